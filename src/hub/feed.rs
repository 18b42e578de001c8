//! A feed: what was announced, to some of those who listen.

use std::sync::{Arc, Weak};

use super::audience::{Listener, MAX_LISTENERS};
use super::core::Core;
use super::live::Announcements;
use crate::journal::{Channels, Entry};

/// The messages for some listeners. The listeners are numbered by whoever has the feed.
#[derive(Debug)]
pub struct Feed {
    core: Arc<Core>,
    number: u8,
}

/// What came on a feed.
#[derive(Debug, Default)]
pub struct Heard {
    /// The sequence of the last message announced. Each one up to there was heard, now or before.
    pub announced: u64,
    /// The messages; `None` for one that retention has dropped meanwhile.
    pub messages: Vec<Option<Arc<Entry>>>,
    /// Who wants which: a listener's number, and a place in `messages`. Sorted, and none is there twice.
    pub wanted: Vec<(u32, u32)>,
    /// Whether there may have been messages for any of the listeners, which only the journal has.
    pub has_lagged: bool,
}

impl Feed {
    /// The most listeners, whose numbers are less than this.
    pub const MAX_LISTENERS: usize = MAX_LISTENERS as usize;

    /// The feed of this number, of which there is one only.
    pub(super) fn new(core: Arc<Core>, number: usize) -> Self {
        Feed { core, number: u8::try_from(number).expect("there are at most 255 feeds") }
    }

    fn listener(&self, number: u32) -> Listener {
        Listener { feed: self.number, number }
    }

    /// From now on, the listener of this number is given the messages of these channels. Returns the sequence
    /// of the last message announced before.
    pub fn listen(&self, channels: &Channels, number: u32) -> u64 {
        self.core.live.listen(channels, self.listener(number))
    }

    /// Ends what [`listen`](Self::listen) began, with the same channels. Another listener may have the number
    /// then.
    pub fn leave(&self, channels: &Channels, number: u32) {
        self.core.live.leave(channels, self.listener(number));
    }

    /// Waits until something came since the last call, or until every subscription ends.
    pub async fn changed(&self) {
        self.core.live.changed(self.number).await;
    }

    /// Takes what came since the last call.
    pub fn take(&self) -> Heard {
        let (announced, Announcements { messages, mut wanted, has_lagged }) =
            self.core.live.take(self.number);
        let messages = messages.iter().map(Weak::upgrade).collect();
        wanted.sort_unstable();
        wanted.dedup();
        Heard { announced, messages, wanted, has_lagged }
    }

    /// Whether every subscription ends.
    pub fn is_over(&self) -> bool {
        self.core.live.is_stopped()
    }
}
