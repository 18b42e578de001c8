//! Subscribers on channels of their own, by names and by patterns: each gets what is on its channels, whoever
//! comes and goes meanwhile.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Hub, Stream, on_each_path};

/// The next message of a stream in NDJSON: its channel and its number on that channel.
fn next(stream: &mut Stream) -> (String, u64) {
    let message: serde_json::Value = serde_json::from_str(&stream.line().unwrap()).unwrap();
    (message["channel"].as_str().unwrap().to_owned(), message["data"].as_str().unwrap().parse().unwrap())
}

fn open(hub: &Hub, channels: &[&str]) -> Stream {
    let query: Vec<_> = channels.iter().map(|channel| format!("channel={channel}")).collect();
    hub.open(&format!("/events?{}", query.join("&")), &["Accept: application/x-ndjson"])
}

/// Publishes so many numbered messages on each of these channels, on several connections at once.
fn publish(hub: &Hub, channels: &[String], count: usize) {
    std::thread::scope(|scope| {
        for some in channels.chunks(channels.len().div_ceil(8)) {
            scope.spawn(move || {
                for number in 0..count {
                    some.iter().for_each(|channel| drop(hub.publish_to(channel, &number.to_string())));
                }
            });
        }
    });
}

on_each_path!(each_of_many_subscribers_gets_its_own_channel_and_the_one_that_all_share, {
    let hub = Hub::start(&["--hide-data"]);
    let own: Vec<_> = (0..200).map(|number| format!("user.{number}")).collect();
    let mut streams: Vec<_> = own.iter().map(|own| open(&hub, &[own, "all"])).collect();
    let channels: Vec<_> = own.iter().cloned().chain(["all".to_owned()]).collect();
    publish(&hub, &channels, 5);
    for (stream, own) in streams.iter_mut().zip(&own) {
        let mut expected = HashMap::from([(own.as_str(), 0), ("all", 0)]);
        for _ in 0..10 {
            let (channel, number) = next(stream);
            let expected = expected.get_mut(channel.as_str()).expect("a channel of another");
            assert_eq!(number, *expected);
            *expected += 1;
        }
    }
    // Nothing of another channel is on its way.
    hub.publish_to("all", "99");
    assert!(streams.iter_mut().all(|stream| next(stream) == ("all".to_owned(), 99)));
});

on_each_path!(a_message_that_several_patterns_match_comes_once_and_live, {
    let hub = Hub::start(&[]);
    let mut both = open(&hub, &["build.*", "build.%3E", "build.1"]);
    let (mut one, mut deep) = (open(&hub, &["build.*"]), open(&hub, &["*.*.log"]));
    let mut all = open(&hub, &["%3E"]);
    for (channel, number) in
        ["build.1", "build.2", "build", "build.1.log", "other", "build.2"].into_iter().zip(0..)
    {
        hub.publish_to(channel, &number.to_string());
    }
    let numbers = |stream: &mut Stream, count: usize| (0..count).map(|_| next(stream).1).collect::<Vec<_>>();
    assert_eq!(numbers(&mut both, 4), [0, 1, 3, 5]);
    assert_eq!(numbers(&mut one, 3), [0, 1, 5]);
    assert_eq!(numbers(&mut deep, 1), [3]);
    assert_eq!(numbers(&mut all, 6), [0, 1, 2, 3, 4, 5]);
});

on_each_path!(a_message_that_is_published_while_its_first_subscriber_joins_comes_at_once, {
    let hub = Hub::start(&["--keep-alive", "1h"]);
    for number in 0..300 {
        let channel = format!("new.{number}");
        let mut stream = open(&hub, &[&channel]);
        hub.publish_to(&channel, "1");
        assert_eq!(next(&mut stream), (channel, 1));
    }
});

// A place that one group had is another group's soon: none may get what came for the one before.
on_each_path!(who_comes_and_goes_all_the_time_gets_each_message_of_its_channels_and_no_other, {
    let hub = Hub::start(&["--hide-data"]);
    let channels: Vec<_> = (0..20).map(|number| format!("c.{number}")).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for some in channels.chunks(5) {
            let (hub, stop) = (&hub, &stop);
            scope.spawn(move || {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    some.iter().for_each(|channel| drop(hub.publish_to(channel, &number.to_string())));
                }
            });
        }
        let watchers: Vec<_> = (0..4)
            .map(|watcher| {
                let (hub, channels) = (&hub, &channels);
                scope.spawn(move || {
                    for turn in 0..60 {
                        let own =
                            [&channels[(turn * 7 + watcher) % 20], &channels[(turn * 3 + watcher * 5) % 20]];
                        let mut stream = open(hub, &own.map(String::as_str));
                        let mut last = HashMap::new();
                        for _ in 0..1 + turn % 5 {
                            let (channel, number) = next(&mut stream);
                            assert!(own.contains(&&channel), "{channel} is a channel of another");
                            let last = last.insert(channel, number);
                            assert!(last.is_none_or(|last| last + 1 == number), "{last:?}, then {number}");
                        }
                    }
                })
            })
            .collect();
        let watched: Vec<_> = watchers.into_iter().map(|watcher| watcher.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(watched.into_iter().all(|watcher| watcher.is_ok()));
    });
});
