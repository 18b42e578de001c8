//! The audience: who listens to which channels, and what is due to each.

use super::due::Due;

pub(super) struct Audience {
    /// By subscriber, its channels.
    channels: Vec<Vec<usize>>,
    /// By channel, its subscribers.
    listeners: Vec<Vec<usize>>,
    /// By subscriber.
    pub(super) dues: Vec<Due>,
    /// On which channel the message of a number is published.
    pub(super) aim: Box<dyn FnMut(usize) -> usize>,
}

impl Audience {
    pub(super) fn new(channels: Vec<Vec<usize>>, due: impl FnMut() -> Due) -> Self {
        let count = channels.iter().flatten().max().map_or(0, |greatest| greatest + 1);
        let mut listeners = vec![Vec::new(); count];
        for (subscriber, channels) in channels.iter().enumerate() {
            channels.iter().for_each(|channel| listeners[*channel].push(subscriber));
        }
        let dues = std::iter::repeat_with(due).take(channels.len()).collect();
        Audience { channels, listeners, dues, aim: Box::new(|_| 0) }
    }

    pub(super) fn channels(&self, subscriber: usize) -> &[usize] {
        &self.channels[subscriber]
    }

    /// Notes that a message is published on that channel, and returns how many subscribers have to get it.
    pub(super) fn add(&mut self, number: usize, channel: usize) -> usize {
        let Some(listeners) = self.listeners.get(channel) else { return 0 };
        listeners.iter().for_each(|subscriber| self.dues[*subscriber].add(number));
        listeners.len()
    }
}
