//! Why a credential is not accepted.

use std::borrow::Cow;
use std::fmt;

/// Why a credential is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is wrong: what is wrong with it, for whoever presented it.
    Invalid(Cow<'static, str>),
    /// It was right until it expired.
    Expired,
    /// Somebody else, whom the hub asks, does not know whom it is for, for this reason.
    Unknown(String),
    /// Somebody else, whom the hub asks, does not let the caller in, for this reason.
    Forbidden(String),
    /// Whether it is right can't be found out at the moment, for this reason.
    Unavailable(&'static str),
}

impl Refused {
    pub(super) fn invalid(why: impl Into<Cow<'static, str>>) -> Self {
        Refused::Invalid(why.into())
    }

    /// It was revoked.
    pub fn revoked() -> Self {
        Refused::invalid("the token was revoked")
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Invalid(why) => f.write_str(why),
            Refused::Expired => f.write_str("the token has expired"),
            Refused::Unknown(why) | Refused::Forbidden(why) => f.write_str(why),
            Refused::Unavailable(why) => f.write_str(why),
        }
    }
}
