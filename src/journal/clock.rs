//! The clock of a journal. The time of day can be wrong, and be set forward and back; the time that passes
//! cannot.

use std::time::Instant;

use crate::message::Time;

/// Tells the time.
#[derive(Clone, Debug)]
pub(super) enum Clock {
    /// The system's.
    System,
    /// One that tests set.
    #[cfg(test)]
    Set(std::sync::Arc<std::sync::Mutex<Moment>>),
}

/// A point in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The time of day, as the clock has it.
    pub(super) time: Time,
    /// Goes on steadily as long as the process runs.
    pub(super) instant: Instant,
}

/// A clock that begins with the time of day, and then goes on steadily, wherever the time of day is set.
#[derive(Clone, Debug)]
pub(super) struct Steady {
    clock: Clock,
    began: Moment,
}

impl Steady {
    /// It begins now, but not before `earliest`.
    pub(super) fn begin(clock: Clock, earliest: Time) -> Self {
        let Moment { time, instant } = clock.now();
        Steady { clock, began: Moment { time: time.max(earliest), instant } }
    }

    pub(super) fn now(&self) -> Time {
        self.began.time.after(self.clock.now().instant.duration_since(self.began.instant))
    }
}

impl Clock {
    pub(super) fn now(&self) -> Moment {
        match self {
            Clock::System => Moment { time: Time::now(), instant: Instant::now() },
            #[cfg(test)]
            Clock::Set(moment) => *moment.lock().unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_steady_clock_goes_on_wherever_the_time_of_day_is_set_and_begins_after_the_last_message() {
        let moment = Arc::new(Mutex::new(Moment { time: Time::from_ms(5_000), instant: Instant::now() }));
        let [clock, late] = [4_000, 9_000]
            .map(|latest| Steady::begin(Clock::Set(Arc::clone(&moment)), Time::from_ms(latest)));
        for set in [0, 5_000, 90_000] {
            let mut moment = moment.lock().unwrap();
            moment.time = Time::from_ms(set);
            moment.instant += Duration::from_secs(1);
        }
        assert_eq!((clock.now(), late.now()), (Time::from_ms(8_000), Time::from_ms(12_000)));
    }
}
