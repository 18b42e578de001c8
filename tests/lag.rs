//! Slow subscribers: one that reads late gets everything that is still kept, costs bounded memory,
//! and does not slow the others down.

mod common;

use std::io::{BufReader, Read, Write};

use common::{Hub, Response, on_each_path, post_text};

/// Publishes `count` numbered messages over a few keep-alive connections, one after the other on
/// each, and returns the texts in the order of their ids.
fn flood(hub: &Hub, count: usize, padding: &str) -> Vec<String> {
    const PUBLISHERS: usize = 4;
    let publisher = |first: usize| {
        let mut connection = BufReader::new(hub.connect());
        let mut published = Vec::new();
        for number in (first..count).step_by(PUBLISHERS) {
            let request = post_text(hub.address, &format!("{number} {padding}"));
            connection.get_mut().write_all(&request).unwrap();
            let response = Response::read(&mut connection, false);
            assert_eq!(response.status, 201);
            let id = response.json()["id"].as_str().unwrap().to_owned();
            published.push((id.split_once('-').unwrap().1.parse::<usize>().unwrap(), number.to_string()));
        }
        published
    };
    let mut published: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PUBLISHERS).map(|first| scope.spawn(move || publisher(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    published.sort();
    published.into_iter().map(|(_, text)| text).collect()
}

fn number(data: &str) -> String {
    data.split_once(' ').unwrap().0.to_owned()
}

on_each_path!(a_stalled_reader_among_fast_ones_gets_all_of_100_000_messages_in_order, {
    const COUNT: usize = 100_000;
    // All messages together are more than a socket's buffers hold: the live feed runs far ahead of `stalled`.
    let padding = "x".repeat(100);
    let retention = ["--retention-messages", "200000", "--retention-bytes", "1GiB"];
    // `stalled` takes nothing until all is published, which may be long on a busy machine.
    let hub = Hub::start(&[&retention[..], &["--stall-timeout", "1h", "--hide-data"]].concat());
    let mut stalled = hub.watch("/events", &[]);
    let mut fast: Vec<_> = (0..3).map(|_| hub.watch("/events", &[])).collect();
    let (published, received) = std::thread::scope(|scope| {
        let readers: Vec<_> = fast
            .iter_mut()
            .map(|stream| scope.spawn(|| (0..COUNT).map(|_| number(&stream.data())).collect::<Vec<_>>()))
            .collect();
        let published = flood(&hub, COUNT, &padding);
        (published, readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>())
    });
    assert_eq!(published.len(), COUNT);
    assert!(received.iter().all(|texts| *texts == published));
    let late: Vec<_> = (0..COUNT).map(|_| number(&stalled.data())).collect();
    assert!(late == published);
    // `stalled` follows live again.
    hub.publish("0 live");
    assert_eq!(stalled.data(), "0 live");
});

on_each_path!(one_that_reads_too_late_gets_a_gap_event, {
    let hub = Hub::start(&["--retention-messages", "100", "--hide-data"]);
    let mut stalled = hub.watch("/events", &[]);
    let published = flood(&hub, 2_000, &"x".repeat(10_000));
    let sequence = |id: &str| id.split_once('-').unwrap().1.parse::<usize>().unwrap();
    let mut received = Vec::new();
    let mut position = 0;
    let mut gaps = 0;
    while position < published.len() {
        let event = stalled.event().unwrap();
        if event.event == "tabcast:gap" {
            gaps += 1;
            // The gap reaches from the position to the earliest message that is kept. Retention may drop
            // that one before it is read: then another gap follows at once.
            let gap = event.json();
            assert_eq!(sequence(gap["asked"].as_str().unwrap()), position);
            assert_eq!(sequence(gap["earliest"].as_str().unwrap()), sequence(&event.id) + 1);
            assert!(sequence(&event.id) > position);
        } else {
            assert_eq!(sequence(&event.id), position + 1);
            received.push(number(&event.data));
        }
        position = sequence(&event.id);
    }
    assert!(gaps > 0, "20 MB fitted into the socket's buffers");
    // `received` is a subsequence of `published`: nothing is doubled or out of order.
    let mut rest = published.iter();
    assert!(received.iter().all(|text| rest.any(|other| other == text)));
});

on_each_path!(subscribers_that_read_nothing_cost_bounded_memory, {
    let hub = Hub::start(&["--retention-bytes", "8MiB", "--hide-data"]);
    let padding = "x".repeat(20_000);
    // What is kept has its full size before memory is measured: what grows afterwards is the subscribers'.
    flood(&hub, 500, &padding);
    let mut stalled: Vec<_> = (0..50).map(|_| hub.watch_without_reading("/events")).collect();
    for stream in &mut stalled {
        stream.read_exact(&mut [0; 16]).unwrap();
    }
    let before = hub.resident_bytes();
    flood(&hub, 2_000, &padding);
    let grown = hub.resident_bytes().saturating_sub(before);
    // A subscriber may hold one replay page and what is being written to it, of the 40 MB published.
    assert!(grown < 50 * (1 << 20), "{grown} bytes for 50 stalled subscribers");
    assert_eq!(hub.publish("alive").split_once('-').unwrap().1, "2501");
});
