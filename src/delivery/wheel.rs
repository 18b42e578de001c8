//! The wheel: when each group of a shard is to be asked for a keep-alive. It takes some four bytes a group.

use std::mem;
use std::time::Duration;

use tokio::time::Instant;

/// Into how many steps the time between two keep-alives is divided. Higher: an idle hub wakes more often.
/// Lower: keep-alives come later, by one of the steps.
const STEPS: u32 = 64;

/// The steps from now on, in which groups are to be asked. A turn has all steps within the time between two
/// keep-alives, and the one that has begun.
#[derive(Debug)]
pub(super) struct Wheel {
    /// The keys of the groups.
    steps: Vec<Vec<u32>>,
    present: usize,
    /// When the step after the present one comes.
    next: Instant,
    length: Duration,
}

impl Wheel {
    /// An empty wheel.
    pub(super) fn new(keep_alive: Duration) -> Self {
        let steps = (0..STEPS + 2).map(|_| Vec::new()).collect();
        let length = (keep_alive / STEPS).clamp(Duration::from_millis(1), Self::LONGEST);
        Wheel { steps, present: 0, next: Instant::now() + length, length }
    }

    /// The longest step. Higher: the runtime's timer could not be set.
    const LONGEST: Duration = Duration::from_hours(24 * 365 / STEPS as u64);

    /// Adds the group with this key, to be asked after this time. Returns the step, by which the group is
    /// known not to be another one that had the key before.
    pub(super) fn add(&mut self, key: u32, after: Duration) -> u8 {
        let now = Instant::now();
        if self.steps.iter().all(Vec::is_empty) {
            self.next = now + self.length;
        }
        let wait = (now + after.min(self.length * STEPS)).saturating_duration_since(self.next);
        let ahead = 1 + wait.as_nanos().div_ceil(self.length.as_nanos()) as usize;
        let step = (self.present + ahead.min(STEPS as usize + 1)) % self.steps.len();
        self.steps[step].push(key);
        u8::try_from(step).expect("there are fewer steps")
    }

    /// When groups are to be asked next. `None` if there are no groups.
    pub(super) fn next(&self) -> Option<Instant> {
        let step = |ahead: &u32| &self.steps[(self.present + 1 + *ahead as usize) % self.steps.len()];
        let ahead = (0..STEPS + 1).find(|ahead| !step(ahead).is_empty())?;
        Some(self.next + self.length * ahead)
    }

    /// Takes the groups that are to be asked by now, and their step.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u8, Vec<u32>)> {
        self.next().filter(|next| *next <= now)?;
        loop {
            self.present = (self.present + 1) % self.steps.len();
            self.next += self.length;
            let keys = mem::take(&mut self.steps[self.present]);
            if !keys.is_empty() {
                return Some((u8::try_from(self.present).expect("there are fewer steps"), keys));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_group_is_asked_once_not_before_its_time_and_hardly_later() {
        let mut wheel = Wheel::new(64 * SECOND);
        assert!(wheel.next().is_none() && wheel.take(Instant::now() + 100 * SECOND).is_none());
        let began = Instant::now();
        let waits: Vec<_> = (0..1_000).map(|number| Duration::from_millis(number * 64)).collect();
        let steps: Vec<_> = waits.iter().zip(0..).map(|(wait, key)| wheel.add(key, *wait)).collect();
        let mut asked = 0;
        while let Some(next) = wheel.next() {
            assert!(wheel.take(next - Duration::from_millis(1)).is_none());
            let (step, keys) = wheel.take(next).unwrap();
            for key in keys {
                let late = next.checked_duration_since(began + waits[key as usize]);
                assert!(late.is_some_and(|late| late < 3 * SECOND), "{key}: {late:?}");
                assert_eq!(step, steps[key as usize]);
                asked += 1;
            }
        }
        assert_eq!(asked, waits.len());
    }

    #[test]
    fn no_time_is_too_long() {
        let mut wheel = Wheel::new(Duration::MAX);
        wheel.add(1, Duration::MAX);
        assert!(wheel.next().is_some_and(|next| next > Instant::now() + Duration::from_hours(24 * 300)));
    }
}
