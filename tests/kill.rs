//! kill -9 at any moment: nothing acknowledged is lost, nothing is there twice, and all subscribers get the
//! same. And the checker that finds this so notices each bug that a hub has on purpose.

mod bugs;
mod checker;
mod common;

use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;

use checker::{
    Evidence, Gap, Known, Reading, Seen, Site, Violation, Workload, assert_kept, check, keys, kill, run, seed,
};
use fastrand::Rng;

/// How many times the hub is killed.
fn kills() -> usize {
    std::env::var("TABCAST_KILLS").map_or(50, |kills| kills.parse().expect("TABCAST_KILLS is a number"))
}

/// The evidence of a load on a hub that is killed this many times.
fn killed(site: &Site, kills: usize, seed: u64) -> Evidence {
    let subscribers = vec![Reading::Steady, Reading::HangsUp, Reading::HangsUp];
    // Half a page a message, so that the WAL is copied to the file now and then.
    let workload = Workload { publishers: 6, subscribers, padding: 2_000, seed };
    let mut rng = Rng::with_seed(seed);
    run(site, site.start(), &workload, |mut hub, load| {
        for _ in 0..kills {
            if rng.u8(..) < 64 {
                // At the moment an acknowledgement arrives.
                let count = load.acknowledged() + rng.usize(1..100);
                assert!(load.wait_until(|evidence| evidence.acknowledged.len() >= count));
            } else {
                moment(&mut rng, 60);
            }
            kill(hub);
            if rng.u8(..) < 64 {
                // While the next hub starts and recovers what the killed one has left.
                let mut command = site.command(&[]);
                let mut starting = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                moment(&mut rng, 30);
                starting.kill().unwrap();
                starting.wait().unwrap();
            }
            hub = site.start();
        }
        // The last hub has a load too.
        let count = load.acknowledged() + 50;
        assert!(load.wait_until(|evidence| evidence.acknowledged.len() >= count));
        hub
    })
}

/// Sleeps for a random time of at most `most_ms`, so that what is to happen at any moment happens at a random
/// one. Nothing is waited for: the test holds whatever the moment.
fn moment(rng: &mut Rng, most_ms: u64) {
    std::thread::sleep(Duration::from_micros(rng.u64(0..most_ms * 1_000)));
}

/// The evidence of a load with a subscriber that stalls while more is published than its sockets and its live
/// feed hold.
fn stalled(site: &Site, seed: u64) -> Evidence {
    const MESSAGES: usize = 1_000;
    const STALLED: usize = 1;
    let subscribers = vec![Reading::Steady, Reading::Stalls { until: MESSAGES }];
    // The buffers of the sockets hold some 4 MB: a quarter of the messages at most.
    let workload = Workload { publishers: 6, subscribers, padding: 16_000, seed };
    run(site, site.start(), &workload, |hub, load| {
        assert!(load.wait_until(|evidence| evidence.acknowledged.len() >= MESSAGES));
        // On the stream that it has: after another hub's start it would reconnect and get everything anyway.
        assert!(load.wait_until_received_by(STALLED));
        hub
    })
}

#[test]
fn whenever_the_hub_is_killed_nothing_acknowledged_is_lost_or_doubled() {
    let kills = kills();
    let evidence = killed(&Site::new(), kills, seed());
    assert_kept(&evidence);
    println!("{kills} kills; acknowledged: {}; answers: {:?}", evidence.acknowledged.len(), evidence.answers);
    // The hub was busy when it was killed: many kills left a publisher without an answer.
    assert!(evidence.count(&[0]) >= kills / 2, "{:?}", evidence.answers);
    assert!(evidence.subscribers[0].streams > kills / 2, "{:?}", evidence.subscribers[0].streams);
    // A batch is kept whole, also if its publisher was never answered.
    let kept: HashSet<_> = evidence.subscribers[3].messages.iter().map(|message| &*message.key).collect();
    let batches =
        kept.iter().filter(|key| !key.contains('/')).map(|key| keys(key)).filter(|keys| keys.len() > 1);
    let batches: Vec<_> = batches.collect();
    assert!(batches.len() > kills / 2, "{}", batches.len());
    assert!(batches.iter().flatten().all(|key| kept.contains(&**key)));
    assert_eq!(kept.iter().filter(|key| key.contains('/')).count(), 2 * batches.len());
}

#[test]
fn it_is_so_while_old_messages_are_dropped_too() {
    let mut site = Site::new();
    site.retention = 40;
    let evidence = killed(&site, kills() / 5, seed());
    assert_kept(&evidence);
    // The newcomer got no more than is kept, and the first subscriber got more.
    let seen: Vec<_> = evidence.subscribers.iter().map(|seen| seen.messages.len()).collect();
    assert!(seen[3] <= 40 && seen[0] > 40, "{seen:?}");
}

#[test]
fn a_subscriber_that_stalls_while_all_others_go_on_gets_the_same() {
    assert_kept(&stalled(&Site::new(), seed()));
}

/// The evidence of two messages, of which `b` was published twice, and of two subscribers that got both.
fn sound() -> Evidence {
    let known = |key: &str, id: &str| Known { id: id.to_owned(), key: key.to_owned() };
    let messages = vec![known("a", "e-1"), known("b", "e-2")];
    let subscriber =
        |name: &str| Seen { name: name.to_owned(), messages: messages.clone(), ..Seen::default() };
    Evidence {
        acknowledged: vec![known("b", "e-2"), known("a", "e-1"), known("b", "e-2")],
        subscribers: vec![subscriber("one"), subscriber("other")],
        ..Evidence::default()
    }
}

#[test]
fn the_checker_finds_each_broken_promise() {
    assert_eq!(check(&sound()), []);
    // A message that was not acknowledged may be there or not, but for all subscribers alike.
    let mut unanswered = sound();
    unanswered.acknowledged.pop();
    unanswered.acknowledged.remove(0);
    assert_eq!(check(&unanswered), []);

    // A message within a gap is not lost; nor is one that was dropped before a newcomer's first.
    let mut forgetful = Evidence { forgets: true, ..sound() };
    forgetful.subscribers[1].messages.remove(0);
    assert_eq!(check(&forgetful), []);
    forgetful.subscribers[0].messages.pop();
    assert!(check(&forgetful).iter().any(|violation| matches!(violation, Violation::Lost { .. })));
    forgetful.subscribers[0].gaps.push(Gap { after: 1, through: 2 });
    assert_eq!(check(&forgetful), []);

    type Breaking = fn(&mut Evidence);
    type Is = fn(&Violation) -> bool;
    let broken: [(Breaking, Is); 10] = [
        (|e| drop(e.subscribers[1].messages.pop()), |v| matches!(v, Violation::Lost { .. })),
        (|e| drop(e.subscribers[1].messages.pop()), |v| matches!(v, Violation::Diverged { place: 1, .. })),
        (|e| e.subscribers[0].messages.swap(0, 1), |v| matches!(v, Violation::Disordered { .. })),
        (
            |e| e.subscribers[0].messages[1].id = "f-2".to_owned(),
            |v| matches!(v, Violation::Reassigned { .. }),
        ),
        (
            |e| e.subscribers[0].messages[1].id = "e-1".to_owned(),
            |v| matches!(v, Violation::Disordered { .. }),
        ),
        (|e| e.subscribers[0].messages[1].key = "a".to_owned(), |v| matches!(v, Violation::Doubled { .. })),
        (
            |e| e.subscribers[0].messages[1].id = "e-3".to_owned(),
            |v| matches!(v, Violation::Reassigned { .. }),
        ),
        (|e| e.acknowledged[2].id = "e-3".to_owned(), |v| matches!(v, Violation::Reassigned { .. })),
        (
            |e| e.subscribers[0].gaps.push(Gap { after: 0, through: 1 }),
            |v| matches!(v, Violation::Gap { .. }),
        ),
        (|e| e.subscribers[0].altered.push("e-3".to_owned()), |v| matches!(v, Violation::Altered { .. })),
    ];
    for (number, (breaking, is)) in broken.iter().enumerate() {
        let mut evidence = sound();
        breaking(&mut evidence);
        let violations = check(&evidence);
        assert!(violations.iter().any(is), "{number}: {violations:?}");
    }
}

// The load brings out each bug, and the checker finds it.

/// Few kills: each of these bugs shows at once, or at the first of them.
const KILLS: usize = 5;

fn is_lost_by(violation: &Violation, name: &str) -> bool {
    matches!(violation, Violation::Lost { subscriber, .. } if subscriber == name)
}

#[test]
fn acknowledging_before_the_commit_is_noticed_as_a_loss() {
    // A kill falls between an answer and its commit by chance, though in almost every try.
    const TRIES: usize = 10;
    let hub = bugs::hub("acknowledge-before-commit");
    let noticed = || {
        let violations = check(&killed(&Site::of(hub.clone()), KILLS, seed()));
        violations.iter().any(|violation| is_lost_by(violation, "newcomer"))
    };
    assert!((0..TRIES).any(|_| noticed()));
}

#[test]
fn skipping_a_lag_is_noticed_as_a_loss_by_the_one_that_stalled() {
    let violations = check(&stalled(&Site::of(bugs::hub("skip-a-lag")), seed()));
    assert!(violations.iter().any(|violation| is_lost_by(violation, "subscriber 1")), "{violations:?}");
}

#[test]
fn resuming_one_too_late_is_noticed_as_a_loss_by_one_that_comes_back() {
    let violations = check(&killed(&Site::of(bugs::hub("resume-off-by-one")), KILLS, seed()));
    assert!(violations.iter().any(|violation| is_lost_by(violation, "subscriber 1")), "{violations:?}");
}

#[test]
fn publishing_a_retry_again_is_noticed_as_a_double_and_as_two_answers() {
    let violations = check(&killed(&Site::of(bugs::hub("no-dedupe")), KILLS, seed()));
    assert!(
        violations.iter().any(|violation| matches!(violation, Violation::Doubled { .. })),
        "{violations:?}"
    );
    assert!(
        violations.iter().any(|violation| matches!(violation, Violation::Reassigned { .. })),
        "{violations:?}"
    );
}
