//! A reason: why a subscriber ended.

/// Why a subscriber ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The other side closed the connection.
    Closed,
    /// The connection failed.
    Reset,
    /// The other side took nothing for `--stall-timeout`.
    TimedOut,
    /// Retention dropped a message of which only a part was sent: the rest can't be read again.
    TooSlow,
    /// The hub cut the connection, or no other reason was recorded.
    Cut,
    /// The token has expired.
    Expired,
    /// The token was revoked.
    Revoked,
    /// The hub stops.
    Shutdown,
    /// The journal failed, so the hub stops.
    JournalFailed,
}

impl Reason {
    /// The reason as the log gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Reset => "reset",
            Reason::TimedOut => "timed out",
            Reason::TooSlow => "too slow",
            Reason::Cut => "cut",
            Reason::Expired => "expired",
            Reason::Revoked => "revoked",
            Reason::Shutdown => "shutdown",
            Reason::JournalFailed => "journal failed",
        }
    }
}
