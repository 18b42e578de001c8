//! The fan-out: many subscribers that come, go and stop reading while messages are published.

mod common;

use std::io::{BufReader, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Event, Hub, Response, Stream, on_each_journal, on_each_path, post_text, request};

/// The sequence in an id.
fn sequence(id: &str) -> u64 {
    id.split_once('-').unwrap().1.parse().unwrap()
}

/// The sequence of the position at which the stream's opening says that it begins.
fn beginning(stream: &Stream) -> u64 {
    sequence(stream.opening.lines().find_map(|line| line.strip_prefix("id: ")).unwrap())
}

/// Reads every message after the stream's beginning, each once and in order, up to `end`, and returns the
/// sequence of that one.
fn read_to_end(stream: &mut Stream) -> u64 {
    let mut last = beginning(stream);
    loop {
        let Event { id, data, .. } = stream.event().expect("the stream goes on");
        last += 1;
        assert_eq!(sequence(&id), last);
        if data == "end" {
            return last;
        }
    }
}

on_each_path!(who_subscribes_while_messages_are_published_has_each_from_its_beginning_on, {
    let hub = Hub::start(&["--hide-data"]);
    let (stop, newest) = (AtomicBool::new(false), Mutex::new(hub.publish("first")));
    let (mut streams, published) = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let id = hub.publish("x");
                *newest.lock().unwrap() = id;
            }
            sequence(&hub.publish("end"))
        });
        let streams: Vec<_> = (0..300)
            .map(|number| match number % 3 {
                0 => hub.watch("/events", &[]),
                1 => hub.watch("/events?last=3", &[]),
                _ => {
                    let cursor = format!("Last-Event-ID: {}", newest.lock().unwrap());
                    hub.watch("/events", &[&cursor])
                }
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        (streams, publisher.join().unwrap())
    });
    for stream in &mut streams {
        assert_eq!(read_to_end(stream), published);
    }
    hub.wait_for_log(&["message published", "subscribers=300"]);
});

on_each_path!(bursts_on_several_channels_come_whole_and_in_order, {
    let hub = Hub::start(&["--hide-data"]);
    let channels = ["a", "b", "c"];
    let mut streams: Vec<_> =
        (0..300).map(|_| hub.watch("/events?channel=a&channel=b&channel=c", &[])).collect();
    std::thread::scope(|scope| {
        for publisher in 0..32 {
            let hub = &hub;
            scope.spawn(move || {
                for number in 0..40 {
                    hub.publish_to(channels[(publisher + number) % 3], "x");
                }
            });
        }
    });
    let end = sequence(&hub.publish_to("b", "end"));
    assert_eq!(end, 32 * 40 + 1);
    for stream in &mut streams {
        assert_eq!(read_to_end(stream), end);
    }
});

on_each_path!(subscribers_that_stop_reading_get_everything_later_and_the_others_get_it_meanwhile, {
    let hub = Hub::start(&["--hide-data", "--retention-bytes", "1GiB"]);
    let mut streams: Vec<_> = (0..6).map(|_| hub.watch("/events", &[])).collect();
    // More than the buffers of a socket hold, in each round.
    let text = "x".repeat(200_000);
    for _ in 0..2 {
        let (late, prompt) = streams.split_at_mut(2);
        std::thread::scope(|scope| {
            let readers =
                prompt.iter_mut().map(|stream| scope.spawn(|| (0..80).for_each(|_| drop(stream.data()))));
            let readers: Vec<_> = readers.collect();
            (0..80).for_each(|_| drop(hub.publish(&text)));
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
        for stream in late {
            let ids: Vec<_> = (0..80).map(|_| sequence(&stream.event().unwrap().id)).collect();
            assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
    }
    // All of them follow live again.
    hub.publish("end");
    assert!(streams.iter_mut().all(|stream| stream.data() == "end"));
});

on_each_path!(a_subscriber_excepted_from_all_messages_is_sent_their_ids_while_others_get_them, {
    let hub = Hub::start(&["--keep-alive", "50ms"]);
    let (mut me, mut you) = (hub.watch("/events?as=me", &[]), hub.watch("/events?as=you", &[]));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                hub.post("?except=me", "text/plain", "not for me");
                assert_eq!(you.data(), "not for me");
            }
        });
        let mut last = 0;
        while last < 3 {
            let block = me.block().unwrap();
            let id = block.strip_prefix("id: ").and_then(|rest| rest.strip_suffix("\n\n"));
            let Some(id) = id else {
                // A keep-alive before the first message.
                assert_eq!(block, ":\n\n");
                continue;
            };
            assert!(sequence(id) > last, "{id} is sent again, or after a later one");
            last = sequence(id);
        }
        stop.store(true, Ordering::Relaxed);
    });
});

on_each_path!(the_same_channels_in_another_order_or_format_are_the_same_messages, {
    let hub = Hub::start(&[]);
    let targets = [
        "/events?channel=a&channel=b",
        "/events?channel=b&channel=a",
        "/events?channel=a&channel=b&channel=a",
    ];
    let mut streams: Vec<_> = targets.iter().map(|target| hub.watch(target, &[])).collect();
    let mut lines = hub.open(targets[1], &["Accept: application/x-ndjson"]);
    let mut one = hub.watch("/events?channel=b", &[]);
    hub.publish_to("a", "1");
    hub.publish_to("b", "2");
    for stream in &mut streams {
        assert_eq!([stream.data(), stream.data()], ["1", "2"]);
    }
    assert!(
        lines.line().unwrap().contains(r#""data":"1""#) && lines.line().unwrap().contains(r#""data":"2""#)
    );
    assert_eq!(one.data(), "2");
    hub.wait_for_log(&["message published", "channel=\"a\"", "subscribers=4"]);
    hub.wait_for_log(&["message published", "channel=\"b\"", "subscribers=5"]);
});

on_each_journal!(a_connection_that_has_published_may_become_a_stream, {
    let hub = Hub::start(&[]);
    let mut connection = hub.connect();
    for number in 0..3 {
        connection.write_all(&post_text(hub.address, &number.to_string())).unwrap();
        assert_eq!(Response::read(&mut BufReader::new(&connection), false).status, 201);
    }
    connection.write_all(&request("GET /events?last=2 HTTP/1.1", hub.address, &[], None)).unwrap();
    let mut stream = Stream::read(connection);
    assert_eq!([stream.data(), stream.data()], ["1", "2"]);
    hub.publish("live");
    assert_eq!(stream.data(), "live");
});

#[test]
fn a_subscriber_that_sends_more_is_still_seen_to_close_and_one_that_sends_for_ever_is_cut() {
    for version in ["1.0", "1.1"] {
        let hub = Hub::start(&["--keep-alive", "1h"]);
        let request = request(&format!("GET /events HTTP/{version}"), hub.address, &[], None);
        let mut connection = hub.connect();
        connection.write_all(&request).unwrap();
        hub.wait_for_log(&["subscriber connected", "subscriber=1"]);
        connection.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        hub.wait_for_log(&["subscriber disconnected", "subscriber=1", "reason=\"closed\""]);

        let mut endless = hub.connect();
        endless.write_all(&request).unwrap();
        hub.wait_for_log(&["subscriber connected", "subscriber=2"]);
        while endless.write_all(&[b'x'; 4096]).is_ok() {}
        hub.wait_for_log(&["subscriber disconnected", "subscriber=2"]);
    }
}
