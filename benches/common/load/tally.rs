//! The tally: which messages were sent, and which have come.

use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Tally {
    /// When each message was sent, or was due.
    pub(super) sent: Vec<Instant>,
    /// To how many subscribers a message is still to be delivered: by its place in the record, or by its
    /// number where subscribers have channels of their own.
    pub(super) left: Vec<usize>,
    /// How many messages all their subscribers have.
    pub(super) finished: usize,
    /// How many messages were received, summed over the subscribers.
    pub(super) delivered: usize,
    pub(super) delivery_times: Vec<Duration>,
}

impl Tally {
    /// Notes that a subscriber has the message of that place in `left`, which was sent as that one of `sent`.
    pub(super) fn deliver(&mut self, place: usize, sent: usize) {
        self.delivered += 1;
        self.left[place] -= 1;
        if self.left[place] == 0 {
            self.finished += 1;
            self.delivery_times.extend(self.sent.get(sent).map(Instant::elapsed));
        }
    }
}
