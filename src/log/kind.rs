//! A kind of lines: those that one place in the code logs. Of each kind there is a most in a second, and what
//! goes beyond is counted.

use std::fmt::Debug;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

use super::value;

/// The kinds that have had a line. A kind is only ever added, so that finding one takes no lock.
#[derive(Debug)]
pub(super) struct Kinds {
    /// The most lines of a kind in a second; 0 is no limit.
    rate: u32,
    /// Each kind is in the list that the address of its place picks.
    lists: [Link; Kinds::LISTS],
}

type Link = OnceLock<Box<Kind>>;

impl Kinds {
    /// The hub has some twenty kinds. More: memory for nothing. Fewer: finding a kind passes over others.
    const LISTS: usize = 64;

    pub(super) fn new(rate: u32) -> Self {
        Kinds { rate, lists: [const { OnceLock::new() }; Kinds::LISTS] }
    }

    /// Counts a line of this place. Returns the line's kind if it has had all the lines it may have in this
    /// second.
    pub(super) fn over(&self, place: &'static Metadata<'static>, second: u64) -> Option<&Kind> {
        if self.rate == 0 {
            return None;
        }
        let kind = self.find(place);
        // The lowest bits are enough to tell one second from the next.
        (!kind.counted.takes(second as u32, self.rate)).then_some(kind)
    }

    fn find(&self, place: &'static Metadata<'static>) -> &Kind {
        // The lowest bits are the same for all places.
        let number = ptr::from_ref(place).addr() >> 4;
        let mut link = &self.lists[number % Kinds::LISTS];
        loop {
            let kind = link.get_or_init(|| Box::new(Kind::new(place)));
            if ptr::eq(kind.place, place) {
                return kind;
            }
            link = &kind.next;
        }
    }

    /// Takes the count of each kind that has left out lines, with the kind's level and message.
    pub(super) fn take_left_out(&self) -> impl Iterator<Item = (Level, &str, u64)> {
        let firsts = self.lists.iter().filter_map(OnceLock::get);
        let kinds = firsts.flat_map(|first| std::iter::successors(Some(first), |kind| kind.next.get()));
        kinds.filter_map(|kind| {
            let count = kind.left_out.swap(0, Ordering::AcqRel);
            let message = kind.message.get().map_or(kind.place.target(), |message| message);
            (count > 0).then_some((*kind.place.level(), message, count))
        })
    }
}

/// The lines of one place in the code.
#[derive(Debug)]
pub(super) struct Kind {
    place: &'static Metadata<'static>,
    counted: Counted,
    /// How many lines were left out since the last summary.
    left_out: AtomicU64,
    /// The message of the first line that was left out, for the summary.
    message: OnceLock<Box<str>>,
    next: Link,
}

impl Kind {
    fn new(place: &'static Metadata<'static>) -> Self {
        let (counted, left_out) = (Counted::default(), AtomicU64::new(0));
        Kind { place, counted, left_out, message: OnceLock::new(), next: OnceLock::new() }
    }

    /// Counts a line as left out. True if it is the first since the last summary.
    pub(super) fn leave_out(&self, event: &Event<'_>) -> bool {
        self.message.get_or_init(|| {
            let mut message = Message(String::new());
            event.record(&mut message);
            let Message(text) = message;
            if text.is_empty() { self.place.target().into() } else { text.into() }
        });
        self.left_out.fetch_add(1, Ordering::AcqRel) == 0
    }
}

/// How many lines there were in a second: the second in the upper half, the count in the lower.
#[derive(Debug, Default)]
struct Counted(AtomicU64);

impl Counted {
    /// Counts a line in this second. False if there were `rate` already.
    fn takes(&self, second: u32, rate: u32) -> bool {
        let mut counted = self.0.load(Ordering::Relaxed);
        loop {
            let (current, count) = ((counted >> 32) as u32, counted as u32);
            // Another thread may have counted a line of the next second before this one.
            let is_counted = current.wrapping_sub(second) <= 1;
            let (current, count) = if is_counted { (current, count) } else { (second, 0) };
            if count >= rate {
                return false;
            }
            let next = (u64::from(current) << 32) | u64::from(count + 1);
            let result = self.0.compare_exchange_weak(counted, next, Ordering::Relaxed, Ordering::Relaxed);
            match result {
                Ok(_) => return true,
                Err(other) => counted = other,
            }
        }
    }
}

/// The message of an event, without its other fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            value::push_cut(&mut self.0, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_taken_in_each_second() {
        let counted = Counted::default();
        let takes = |second: u32| (0..10).filter(|_| counted.takes(second, 3)).count();
        assert_eq!([takes(7), takes(7), takes(8), takes(9)], [3, 0, 3, 3]);
        // A thread that is late is counted in the second that has begun.
        assert_eq!([takes(8), takes(9), takes(10)], [0, 0, 3]);
        // The clock was set back, or the number of the second begins anew.
        assert_eq!([takes(1), takes(u32::MAX), takes(0)], [3, 3, 3]);
    }
}
