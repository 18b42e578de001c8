//! How old messages are, whatever the clock says: a clock that is wrong for a while makes no message old, and
//! keeps none.
//!
//! A message that was stored since the journal was opened is as old as the time that has passed. The age of
//! an earlier one is by the clock, once the clock has said so for a while. And no message is younger
//! than a later one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::journal::clock::{Clock, Moment};
use crate::journal::passed::{PARTS, Passed};
use crate::message::Time;

/// For how long the clock must have said so. Higher: after a start, old messages are kept for longer. Lower:
/// a clock that is wrong for a minute, as after a machine's start, drops messages.
const TRUST: Duration = Duration::from_secs(60);

/// The shortest time between two [`StoredBy`]. Higher: where the clock was set back, messages of an earlier
/// run are kept for longer than a short age. Lower: more rows.
const SHORTEST: Duration = Duration::from_secs(1);

/// When messages were stored.
#[derive(Debug)]
pub(super) struct Ages {
    clock: Clock,
    /// Messages after this sequence were stored since the journal was opened.
    opened: u64,
    /// The time of the last message. No later one has an earlier time.
    latest: Time,
    /// One for each age that is asked for.
    passed: Vec<(Passed, Certain)>,
    /// Oldest first, and so with ever later times.
    stored_by: Vec<StoredBy>,
    /// Whether one of those is not in the file yet.
    is_recorded: bool,
    /// How far apart [`StoredBy`] are.
    step: Duration,
}

/// An age, and the messages that have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Old {
    /// All messages before this sequence have it.
    pub(super) before: u64,
    /// Of the messages up to this sequence, all with the time `until` or an earlier one have it.
    pub(super) opened: u64,
    pub(super) until: Option<Time>,
}

/// The messages up to `sequence` were stored at `time` or earlier, although theirs may be later: the clock
/// was set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredBy {
    pub(super) sequence: u64,
    pub(super) time: Time,
}

/// The earliest that the clock has been, for a while, as compared with the time that passed.
#[derive(Debug)]
struct Certain {
    trust: Duration,
    opened: Instant,
    /// When the present stretch of time began.
    began: Instant,
    /// What the time of day was at `opened`, in ms, as the clock had it in the present stretch.
    present: i128,
    /// The same for the stretch before. `None` if there was none.
    before: Option<i128>,
}

impl Ages {
    /// For a journal whose last message, at `head`, has the time `latest`. `ages` are those that are asked
    /// for, each once or more often.
    pub(super) fn new(
        clock: Clock,
        head: u64,
        latest: Time,
        recorded: Vec<StoredBy>,
        ages: impl IntoIterator<Item = Duration>,
    ) -> Self {
        let Moment { time, instant } = clock.now();
        let ages = BTreeSet::from_iter(ages);
        let step = (ages.last().copied().unwrap_or_default() / PARTS).max(SHORTEST);
        let passed = ages.into_iter().map(|age| (Passed::new(age), Certain::new(age, instant))).collect();
        let stored_by = Vec::new();
        let is_recorded = true;
        let mut ages = Ages { clock, opened: head, latest, passed, stored_by, is_recorded, step };
        recorded.into_iter().for_each(|stored_by| ages.set_back(stored_by));
        ages.is_recorded = true;
        if time < latest {
            ages.set_back(StoredBy { sequence: head, time });
        }
        ages
    }

    /// From now on, these ages are asked for. Of one that was not before, the messages up to `head` have none
    /// yet by the time that has passed.
    pub(super) fn ask(&mut self, ages: impl IntoIterator<Item = Duration>, head: u64) {
        let (ages, now) = (BTreeSet::from_iter(ages), self.clock.now().instant);
        self.step = (ages.last().copied().unwrap_or_default() / PARTS).max(SHORTEST);
        self.passed.retain(|(passed, _)| ages.contains(&passed.age));
        for age in ages {
            if self.passed.iter().all(|(passed, _)| passed.age != age) {
                let mut passed = Passed::new(age);
                passed.store(now, head);
                self.passed.push((passed, Certain::new(age, now)));
            }
        }
    }

    /// What the clock says.
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Records that the message at this sequence is stored `now`. Returns its time: never one before that of
    /// an earlier message.
    pub(super) fn store(&mut self, sequence: u64, now: Moment) -> Time {
        let Moment { time, instant } = now;
        for (passed, _) in &mut self.passed {
            passed.store(instant, sequence);
        }
        if time < self.latest {
            self.set_back(StoredBy { sequence: sequence - 1, time });
        }
        self.latest = self.latest.max(time);
        self.latest
    }

    fn set_back(&mut self, stored_by: StoredBy) {
        self.stored_by.retain(|earlier| earlier.time <= stored_by.time);
        let is_known =
            self.stored_by.last().is_some_and(|last| !last.time.has_passed(self.step, stored_by.time));
        if !is_known {
            self.stored_by.push(stored_by);
            self.is_recorded = false;
        }
    }

    /// What the file is to have for later runs, unless it has it.
    pub(super) fn unrecorded(&self) -> Option<&[StoredBy]> {
        (!self.is_recorded).then_some(&self.stored_by)
    }

    /// The file has it now.
    pub(super) fn set_recorded(&mut self) {
        self.is_recorded = true;
    }

    /// The messages that have this age `now`. It is one of those that are asked for.
    pub(super) fn old(&mut self, age: Duration, now: Moment) -> Old {
        let asked = self.passed.iter_mut().find(|(passed, _)| passed.age == age);
        let (passed, certain) =
            asked.map_or((0, None), |(passed, certain)| (passed.before(now.instant), certain.now(now)));
        let until = certain.and_then(|time| {
            let time = time.checked_sub(i128::try_from(age.as_millis()).ok()?)?;
            u64::try_from(time).ok().map(Time::from_ms)
        });
        let is_known =
            |by: &&StoredBy| by.sequence <= self.opened && until.is_some_and(|until| by.time <= until);
        let known = self.stored_by.iter().rfind(is_known);
        let before = passed.max(known.map_or(0, |by| by.sequence + 1));
        Old { before, opened: self.opened, until }
    }
}

impl Old {
    /// Whether the message at this sequence, with this time, has the age.
    pub(super) fn contains(&self, sequence: u64, time: Time) -> bool {
        let is_by_clock = sequence <= self.opened && self.until.is_some_and(|until| time <= until);
        sequence < self.before || is_by_clock
    }
}

impl Certain {
    /// For an age of messages. Where it is short, the clock is trusted sooner.
    fn new(age: Duration, now: Instant) -> Self {
        let trust = TRUST.min(age / 10);
        Certain { trust, opened: now, began: now, present: i128::MAX, before: None }
    }

    /// The time of day in ms, at the earliest. `None` until the clock was looked at for long enough.
    fn now(&mut self, now: Moment) -> Option<i128> {
        let passed = now.instant.duration_since(self.opened).as_millis();
        let passed = i128::try_from(passed).unwrap_or(i128::MAX);
        let opened = i128::from(now.time.as_ms()) - passed;
        if now.instant.duration_since(self.began) >= self.trust {
            (self.before, self.present, self.began) = (Some(self.present), opened, now.instant);
        }
        self.present = self.present.min(opened);
        self.before.map(|before| before.min(self.present) + passed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const WEEK: Duration = Duration::from_hours(7 * 24);
    const SECOND: Duration = Duration::from_secs(1);
    const NONE: [u64; 0] = [];

    /// The days since 1970 at which the tests begin.
    const BEGIN: u64 = 20_000;

    fn day(number: u64) -> Time {
        Time::from_ms(number * 86_400_000)
    }

    struct Watch(Arc<Mutex<Moment>>);

    impl Watch {
        fn new() -> (Self, Clock) {
            let moment = Arc::new(Mutex::new(Moment { time: day(BEGIN), instant: Instant::now() }));
            (Watch(Arc::clone(&moment)), Clock::Set(moment))
        }

        /// Time passes, and the clock goes with it.
        fn pass(&self, time: Duration) {
            let mut moment = self.0.lock().unwrap();
            moment.instant += time;
            moment.time = Time::from_ms(moment.time.as_ms() + time.as_millis() as u64);
        }

        fn set(&self, time: Time) {
            self.0.lock().unwrap().time = time;
        }
    }

    fn store(ages: &mut Ages, sequence: u64) -> Time {
        ages.store(sequence, ages.now())
    }

    /// The sequences of these messages that are at least a week old.
    fn old(ages: &mut Ages, messages: &[(u64, Time)]) -> Vec<u64> {
        let old = ages.old(WEEK, ages.now());
        messages.iter().filter(|(sequence, time)| old.contains(*sequence, *time)).map(|(s, _)| *s).collect()
    }

    #[test]
    fn a_message_of_this_run_is_as_old_as_the_time_that_has_passed_wherever_the_clock_is_set() {
        let (watch, clock) = Watch::new();
        let mut ages = Ages::new(clock, 0, day(0), vec![], [WEEK, DAY]);
        let first = (1, store(&mut ages, 1));
        watch.set(day(BEGIN + 8));
        let second = (2, store(&mut ages, 2));
        watch.pass(SECOND);
        watch.set(day(BEGIN - 1));
        let third = (3, store(&mut ages, 3));
        assert!(first.1 < second.1 && second.1 <= third.1, "no time before an earlier message's");
        let messages = [first, second, third];
        for set in [BEGIN - 3, BEGIN, BEGIN + 8] {
            watch.set(day(set));
            assert_eq!(old(&mut ages, &messages), NONE);
        }
        watch.pass(WEEK - 2 * SECOND);
        assert_eq!(old(&mut ages, &messages), NONE);
        // The second follows so closely that it is not known from the first, and is kept for as long as the
        // third.
        watch.pass(WEEK / PARTS);
        store(&mut ages, 4);
        watch.pass(2 * SECOND);
        store(&mut ages, 5);
        assert_eq!(old(&mut ages, &messages), NONE);
        watch.pass(WEEK - 2 * SECOND);
        assert_eq!(old(&mut ages, &messages), [1, 2, 3]);
        let last = (6, store(&mut ages, 6));
        watch.pass(WEEK - SECOND);
        assert_eq!(old(&mut ages, &[last]), NONE);
        watch.pass(SECOND);
        assert_eq!(old(&mut ages, &[last]), [6]);
    }

    #[test]
    fn every_message_is_as_old_as_no_time() {
        let (_, clock) = Watch::new();
        let mut ages = Ages::new(clock, 0, day(0), vec![], [WEEK, Duration::ZERO]);
        let time = store(&mut ages, 1);
        assert!(
            ages.old(Duration::ZERO, ages.now()).contains(1, time)
                && !ages.old(WEEK, ages.now()).contains(1, time)
        );
    }

    #[test]
    fn an_earlier_message_is_old_only_if_the_clock_has_said_so_for_a_minute() {
        let (watch, clock) = Watch::new();
        let mut ages = Ages::new(clock, 2, day(BEGIN - 1), vec![], [WEEK, DAY]);
        let messages = [(1, day(BEGIN - 8)), (2, day(BEGIN - 1))];
        assert_eq!(old(&mut ages, &messages), NONE);
        watch.pass(TRUST);
        assert_eq!(old(&mut ages, &messages), [1]);
        watch.set(day(BEGIN + 8));
        for _ in 0..50 {
            watch.pass(SECOND);
            assert_eq!(old(&mut ages, &messages), [1]);
        }
        watch.set(day(BEGIN));
        for _ in 0..200 {
            watch.pass(SECOND);
            assert_eq!(old(&mut ages, &messages), [1]);
        }
        // This time it is right.
        watch.set(day(BEGIN + 8));
        for _ in 0..=2 * TRUST.as_secs() {
            watch.pass(SECOND);
            ages.old(WEEK, ages.now());
        }
        assert_eq!(old(&mut ages, &messages), [1, 2]);
    }

    #[test]
    fn a_clock_that_was_wrong_at_the_start_drops_nothing() {
        let (watch, clock) = Watch::new();
        watch.set(day(BEGIN + 8));
        let mut ages = Ages::new(clock, 1, day(BEGIN), vec![], [WEEK, DAY]);
        for _ in 0..50 {
            assert_eq!(old(&mut ages, &[(1, day(BEGIN))]), NONE);
            watch.pass(SECOND);
        }
        watch.set(day(BEGIN));
        for _ in 0..500 {
            assert_eq!(old(&mut ages, &[(1, day(BEGIN))]), NONE);
            watch.pass(SECOND);
        }
    }

    #[test]
    fn no_message_is_younger_than_a_later_one_also_in_later_runs() {
        let (watch, clock) = Watch::new();
        let mut ages = Ages::new(clock.clone(), 0, day(0), vec![], [WEEK, DAY]);
        watch.set(day(BEGIN + 100));
        let ahead = store(&mut ages, 1);
        watch.set(day(BEGIN));
        let after = store(&mut ages, 2);
        assert_eq!((ahead, after), (day(BEGIN + 100), day(BEGIN + 100)));
        let recorded = ages.unrecorded().unwrap().to_vec();
        assert_eq!(recorded, [StoredBy { sequence: 1, time: day(BEGIN) }]);
        ages.set_recorded();
        assert!(ages.unrecorded().is_none());

        watch.pass(DAY);
        let mut ages = Ages::new(clock, 2, after, recorded, [WEEK, DAY]);
        assert_eq!(ages.unrecorded().unwrap().len(), 2, "the second was stored by now");
        let messages = [(1, ahead), (2, after)];
        for _ in 0..6 {
            assert_eq!(old(&mut ages, &messages), NONE);
            watch.pass(DAY);
        }
        assert_eq!(old(&mut ages, &messages), [1]);
        watch.pass(DAY);
        assert_eq!(old(&mut ages, &messages), [1, 2]);
    }
}
