//! The epochs of a journal: which ids its messages have, and which cursors are its own.

use crate::message::{Epoch, MessageId};

/// The epochs of a journal, oldest first. Each start of a hub has an epoch of its own, so that no id is given
/// twice: not even where two hubs went on from copies of one file.
#[derive(Debug)]
pub(super) struct Epochs(Vec<Begun>);

/// An epoch, and the sequence after which it began. It has the ids up to where the next one begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) epoch: Epoch,
    pub(super) after: u64,
}

impl Epochs {
    /// These earlier epochs, oldest first, and a new one for what is appended after `head`.
    pub(super) fn begin(mut earlier: Vec<Begun>, head: u64) -> Self {
        earlier.push(Begun { epoch: Epoch::draw(), after: head });
        Epochs(earlier)
    }

    /// These epochs, oldest first.
    pub(super) fn of(epochs: Vec<Begun>) -> Self {
        Epochs(epochs)
    }

    /// The epoch that the journal was made with.
    pub(super) fn first(&self) -> Epoch {
        self.0[0].epoch
    }

    /// The epoch of what is appended now.
    pub(super) fn current(&self) -> Begun {
        self.0[self.0.len() - 1]
    }

    /// The id of the message at `sequence`. Sequence 0, before the first message, is of the first epoch.
    pub(super) fn id(&self, sequence: u64) -> MessageId {
        let later = self.0.partition_point(|begun| begun.after < sequence);
        MessageId { epoch: self.0[later.saturating_sub(1)].epoch, sequence }
    }

    /// The position of a cursor in the journal that ends at `head`. `None` if the journal's history does not
    /// have the cursor: it is another journal's, or of messages that this one lost when an older copy of its
    /// file was restored.
    pub(super) fn position(&self, cursor: MessageId, head: u64) -> Option<u64> {
        let number = self.0.iter().rposition(|begun| begun.epoch == cursor.epoch)?;
        let end = self.0.get(number + 1).map_or(head, |next| next.after);
        (self.0[number].after..=end).contains(&cursor.sequence).then_some(cursor.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_its_messages_epoch_and_a_cursor_counts_within_its_epochs_range() {
        let [made, first] = [Epoch::draw(), Epoch::draw()].map(|epoch| Begun { epoch, after: 0 });
        let second = Begun { epoch: Epoch::draw(), after: 3 };
        let epochs = Epochs::begin(vec![made, first, second], 5);
        let now = epochs.current();
        let ids = (0..=7).map(|sequence| epochs.id(sequence).epoch);
        let expected = [made, first, first, first, second, second, now, now];
        assert!(ids.eq(expected.map(|begun| begun.epoch)));
        let range = |of: Begun| {
            let position = |sequence| epochs.position(MessageId { epoch: of.epoch, sequence }, 7);
            (0..10).filter_map(position).collect::<Vec<_>>()
        };
        assert_eq!((range(made), range(first)), (vec![0], vec![0, 1, 2, 3]));
        assert_eq!((range(second), range(now)), (vec![3, 4, 5], vec![5, 6, 7]));
        assert_eq!(range(Begun { epoch: Epoch::draw(), after: 0 }), [0; 0]);
    }
}
