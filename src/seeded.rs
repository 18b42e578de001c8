//! Seeded bugs: the hub wrong on purpose, for the tests to show that their checker would notice. None
//! of it is compiled but with the feature `seeded-bugs`, which no release has.

/// What can be wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bug {
    /// A message is acknowledged before its transaction is committed.
    AcknowledgeBeforeCommit,
    /// A subscriber that has lagged goes on live, and skips what it missed.
    SkipALag,
    /// A subscriber resumes one message too late.
    ResumeOffByOne,
    /// A retry with the same key is published again.
    NoDedupe,
}

/// Whether this bug is seeded: always false without the feature, and else if the environment
/// variable `TABCAST_SEEDED_BUG` has its name.
pub(crate) fn has(bug: Bug) -> bool {
    cfg!(feature = "seeded-bugs")
        && std::env::var("TABCAST_SEEDED_BUG").is_ok_and(|name| name == format!("{bug:?}"))
}
