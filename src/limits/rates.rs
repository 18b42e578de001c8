//! Rates: how often each owner may do something, on average. For a while, ten times as much at once.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::owner::Owner;

/// How many units' worth may come at once. Higher: one caller can load the hub for longer. Lower: a program
/// that does nothing for a while, and then much, is refused.
const BURST: u32 = 10;

/// A rate, as settings have it: `1000/s`, `300/m`, `10/h`, or 0 for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many in a unit; 0 is no limit.
    count: u32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

impl Unit {
    fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3_600,
        })
    }
}

impl Rate {
    /// No limit.
    pub const NONE: Rate = Rate { count: 0, unit: Unit::Second };

    /// How many in a second, a minute or an hour; 0 is no limit.
    pub fn count(self) -> u32 {
        self.count
    }

    /// How many may come at once.
    fn burst(self) -> u32 {
        self.count.saturating_mul(BURST)
    }
}

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ERROR: &str = "give it as in 50/s, 300/m or 10/h, or 0 for no limit";
        if text == "0" {
            return Ok(Rate::NONE);
        }
        let (count, unit) = text.split_once('/').ok_or(ERROR)?;
        let unit = match unit {
            "s" => Unit::Second,
            "m" => Unit::Minute,
            "h" => Unit::Hour,
            _ => return Err(ERROR),
        };
        Ok(Rate { count: count.parse().map_err(|_| ERROR)?, unit })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            _ if self.count == 0 => return f.write_str("0"),
            Unit::Second => 's',
            Unit::Minute => 'm',
            Unit::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// A rate, and how far each owner has used it up.
#[derive(Debug)]
pub(crate) struct Rates {
    what: &'static str,
    rate: Rate,
    used: Mutex<Used>,
}

/// Until when what an owner has had would last at the rate (the generic cell rate algorithm).
#[derive(Debug)]
struct Used {
    /// For each owner that has not got all of its burst back.
    until: HashMap<u128, Instant>,
    /// For all others together, while there are too many owners.
    others: Instant,
    /// When the owners that have all of their burst back were last removed.
    swept: Instant,
}

/// A rate is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {what} of one caller, {rate}, is reached")]
pub(crate) struct Exceeded {
    /// Of what there are too many, as in "messages".
    what: &'static str,
    pub(crate) rate: Rate,
    /// How long to wait before another try.
    pub(crate) wait: Duration,
}

impl Rates {
    /// The most owners that are known at once. Higher: more memory while very many ask. Lower: with so many,
    /// newcomers have one share together.
    const MOST: usize = 1 << 16;

    /// The shortest time between two sweeps of the owners, of a millisecond each. Higher: newcomers have one
    /// share together for longer. Lower: a flood of newcomers takes more of the hub's time.
    const SWEEP: Duration = Duration::from_secs(1);

    /// Nobody has used up any of it yet. `what` names what is counted, in the plural.
    pub(crate) fn new(what: &'static str, rate: Rate) -> Self {
        let now = Instant::now();
        let used = Used { until: HashMap::new(), others: now, swept: now };
        Rates { what, rate, used: Mutex::new(used) }
    }

    /// These if this is their rate, else new ones of which nothing is used up.
    pub(crate) fn with(self: &Arc<Self>, rate: Rate) -> Arc<Self> {
        if rate == self.rate { Arc::clone(self) } else { Arc::new(Rates::new(self.what, rate)) }
    }

    /// Takes one for this owner.
    ///
    /// # Errors
    /// [`Exceeded`]: nothing is taken.
    pub(crate) fn take(&self, owner: Owner) -> Result<(), Exceeded> {
        self.take_at(owner, 1, Instant::now())
    }

    /// Takes what is left of `count`, of which one was taken: in all no more than can come at once.
    ///
    /// # Errors
    /// [`Exceeded`]: nothing more is taken.
    pub(crate) fn take_rest(&self, owner: Owner, count: usize) -> Result<(), Exceeded> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.rate.burst());
        if count > 1 { self.take_at(owner, count - 1, Instant::now()) } else { Ok(()) }
    }

    fn take_at(&self, owner: Owner, count: u32, now: Instant) -> Result<(), Exceeded> {
        let Rates { what, rate, ref used } = *self;
        if rate.count == 0 {
            return Ok(());
        }
        let cost = rate.unit.duration() / rate.count * count;
        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
        let until = used.of(owner, now);
        let ahead = until.saturating_duration_since(now) + cost;
        let most = rate.unit.duration() * BURST;
        if ahead > most {
            return Err(Exceeded { what, rate, wait: ahead - most });
        }
        *until = now + ahead;
        Ok(())
    }
}

impl Used {
    fn of(&mut self, owner: Owner, now: Instant) -> &mut Instant {
        let owner = owner.to_bits();
        if self.until.len() >= Rates::MOST && !self.until.contains_key(&owner) {
            if now.saturating_duration_since(self.swept) >= Rates::SWEEP {
                self.until.retain(|_, until| *until > now);
                self.swept = now;
            }
            if self.until.len() >= Rates::MOST {
                return &mut self.others;
            }
        }
        self.until.entry(owner).or_insert(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rates(rate: &str) -> Rates {
        Rates::new("messages", rate.parse().unwrap())
    }

    #[test]
    fn a_rate_is_so_many_in_a_second_a_minute_or_an_hour() {
        for text in ["1000/s", "300/m", "10/h", "0"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for bad in ["", "5", "/s", "5/", "5/d", "-1/s", "1.5/s", "5 /s", "99999999999/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ten_times_as_many_come_at_once_and_then_one_after_the_other() {
        let (rates, now) = (rates("10/s"), Instant::now());
        let (one, other) = (Owner::subject(2), Owner::subject(4));
        for _ in 0..100 {
            rates.take_at(one, 1, now).unwrap();
        }
        let wait = |count, after| rates.take_at(one, count, now + after).map_err(|exceeded| exceeded.wait);
        assert_eq!(wait(1, Duration::ZERO), Err(100 * MS));
        assert_eq!(wait(3, 40 * MS), Err(260 * MS));
        assert_eq!(rates.take_at(other, 100, now), Ok(()));
        assert_eq!(wait(1, 100 * MS), Ok(()));
        assert_eq!(wait(1, 100 * MS), Err(100 * MS));
        // What was refused took nothing, and no more than the burst comes back.
        assert_eq!(wait(100, Duration::from_secs(60)), Ok(()));
        assert_eq!(wait(1, Duration::from_secs(60)), Err(100 * MS));
    }

    #[test]
    fn more_than_the_burst_counts_as_the_burst() {
        let (rates, owner) = (rates("2/h"), Owner::subject(2));
        assert_eq!((rates.take(owner), rates.take_rest(owner, 1)), (Ok(()), Ok(())));
        assert!(rates.take(owner).is_ok() && rates.take_rest(owner, 1_000).is_err());
        let owner = Owner::subject(4);
        assert!(rates.take(owner).is_ok() && rates.take_rest(owner, usize::MAX).is_ok());
        assert!(rates.take(owner).is_err());
    }

    #[test]
    fn zero_is_no_limit_and_counts_nobody() {
        let rates = rates("0");
        assert_eq!(rates.take_rest(Owner::subject(2), usize::MAX), Ok(()));
        assert!((0..1_000).all(|_| rates.take(Owner::subject(2)).is_ok()));
        assert!(rates.used.lock().unwrap().until.is_empty());
    }

    #[test]
    fn beyond_the_most_owners_newcomers_have_one_share_until_others_are_done() {
        let (rates, now) = (rates("1/s"), Instant::now());
        let owner = |number: usize| Owner::subject(2 * number as u128);
        for number in 0..Rates::MOST {
            // The first is done last.
            rates.take_at(owner(number), if number == 0 { 10 } else { 5 }, now).unwrap();
        }
        let most = Rates::MOST;
        rates.take_at(owner(most), 6, now + MS).unwrap();
        assert!(rates.take_at(owner(most + 1), 6, now + MS).is_err());
        assert!(rates.take_at(owner(1), 5, now + MS).is_ok());
        assert_eq!(rates.used.lock().unwrap().until.len(), most);
        let later = now + 6_000 * MS;
        rates.take_at(owner(most + 1), 10, later).unwrap();
        // The first two of before are there still.
        assert_eq!(rates.used.lock().unwrap().until.len(), 3);
        assert!(rates.take_at(owner(0), 7, later).is_err());
    }
}
