//! Who takes what a stream brings after its head, and checks it.

pub(super) trait Taker {
    /// The opening, whole.
    ///
    /// # Errors
    /// If it is not what it has to be.
    fn open(&mut self, opening: &[u8]) -> anyhow::Result<()>;

    /// Whether no message is there in part.
    fn is_between(&self) -> bool;

    /// Bytes of messages.
    ///
    /// # Errors
    /// If the messages are not those that have to come.
    fn take(&mut self, data: &[u8]) -> anyhow::Result<()>;
}
