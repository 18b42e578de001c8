//! A caller: who asks, what it may do, and until when.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::grants::{Grants, Verb};
use crate::limits::{Network, Owner};
use crate::message::{ChannelName, Pattern, SubscriberId, Time};

/// Who asks. Clones share one allocation.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    credential: Credential,
    grants: Grants,
}

/// How a caller is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Credential {
    /// The hub asks for no credentials.
    Open,
    /// None was presented.
    None,
    Token(Token),
}

/// What is known of a token that was found right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Whom the token is for: the claim `sub`, or a static token's name.
    pub subject: Option<Arc<str>>,
    /// Whether the subject is a static token's name, which is no user's.
    pub is_static: bool,
    /// The token's own id: the claim `jti`, or a static token's name.
    pub id: Option<Arc<str>>,
    /// When the token was issued, in seconds since 1970.
    pub issued: Option<u64>,
    /// Until when the token is good, in seconds since 1970. `None` if it is good for ever.
    pub expires: Option<u64>,
}

impl Caller {
    /// Whoever reaches a hub that asks for no credentials.
    pub fn anyone() -> Self {
        Caller(Arc::new(Inner { credential: Credential::Open, grants: Grants::all() }))
    }

    /// Whoever presents no credential.
    pub fn anonymous(grants: Grants) -> Self {
        Caller(Arc::new(Inner { credential: Credential::None, grants }))
    }

    /// Whoever presents this token.
    pub fn with_token(token: Token, grants: Grants) -> Self {
        Caller(Arc::new(Inner { credential: Credential::Token(token), grants }))
    }

    /// The token that was presented.
    pub fn token(&self) -> Option<&Token> {
        match &self.0.credential {
            Credential::Token(token) => Some(token),
            Credential::Open | Credential::None => None,
        }
    }

    /// Whom the token is for.
    pub fn subject(&self) -> Option<&str> {
        self.token()?.subject.as_deref()
    }

    /// Until when the caller may go on. `None` for ever, which is what a time after the year 9999 is.
    pub fn expires(&self) -> Option<Time> {
        const YEAR_10000: u64 = 253_402_300_800;
        let seconds = self.token()?.expires.filter(|seconds| *seconds < YEAR_10000)?;
        Some(Time::from_ms(seconds * 1_000))
    }

    /// What the caller may do.
    pub fn grants(&self) -> &Grants {
        &self.0.grants
    }

    /// Whether the caller may do this on each channel that `asked` matches.
    pub fn may(&self, verb: Verb, asked: &Pattern) -> bool {
        self.0.credential == Credential::Open || self.0.grants.allow(verb, asked)
    }

    /// Whether the caller may do this on this channel.
    pub fn may_on(&self, verb: Verb, channel: &ChannelName) -> bool {
        self.0.credential == Credential::Open || self.0.grants.allow_on(verb, channel)
    }

    /// Whether `other` is the same subject, so that its token can stand for this one's.
    pub fn is_same(&self, other: &Caller) -> bool {
        match (self.token(), other.token()) {
            (Some(one), Some(other)) => (&one.subject, one.is_static) == (&other.subject, other.is_static),
            _ => false,
        }
    }

    /// Whose limits and keys are the caller's: the subject's own, or those of all at one network.
    pub fn owner(&self, network: Network) -> Owner {
        self.hash().map_or(Owner::Network(network), |hash| Owner::subject(u128::from_be_bytes(hash)))
    }

    /// The caller's name to others, by which they can't tell who it is. With a subject, it is the subject's
    /// alone. `None` on a hub that asks for no credentials.
    pub fn mark(&self) -> Option<String> {
        if self.0.credential == Credential::Open {
            return None;
        }
        let hash = self.hash().map(|hash| URL_SAFE_NO_PAD.encode(&hash[..SubscriberId::MARK_BYTES]));
        Some(format!("~{}", hash.unwrap_or_default()))
    }

    /// The id of this caller's subscriber, which it chose: nobody else can have the same.
    pub fn own_id(&self, id: SubscriberId) -> SubscriberId {
        match self.mark() {
            Some(mark) => id.marked(&mark),
            None => id,
        }
    }

    fn hash(&self) -> Option<[u8; 16]> {
        let Token { subject, is_static, .. } = self.token()?;
        let mut hash = Sha256::new();
        hash.update([u8::from(*is_static)]);
        hash.update(subject.as_deref()?);
        hash.finalize()[..16].try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(subject: Option<&str>, is_static: bool) -> Caller {
        let token = Token { subject: subject.map(Arc::from), is_static, ..Token::default() };
        Caller::with_token(token, Grants::default())
    }

    #[test]
    fn an_id_is_its_subjects_own() {
        let id = |caller: &Caller, text| caller.own_id(SubscriberId::parse(text).unwrap());
        let (ada, bob, ci) =
            (caller(Some("ada"), false), caller(Some("bob"), false), caller(Some("ada"), true));
        assert_eq!(id(&ada, "x"), id(&caller(Some("ada"), false), "x"));
        assert_ne!(id(&ada, "x"), id(&bob, "x"));
        assert_ne!(id(&ada, "x"), id(&ci, "x"));
        // Nobody without a subject can choose an id that looks like it.
        let of_ada = id(&ada, "x");
        for nobody in [Caller::anonymous(Grants::default()), caller(None, false)] {
            assert_ne!(id(&nobody, of_ada.as_str()), of_ada);
        }
        assert_eq!(id(&Caller::anyone(), "x").as_str(), "x");
    }

    #[test]
    fn limits_are_a_subjects_own_or_its_networks() {
        let network = Network::from(std::net::IpAddr::from([10, 0, 0, 1]));
        assert_eq!(Caller::anyone().owner(network), Owner::Network(network));
        assert_eq!(caller(None, false).owner(network), Owner::Network(network));
        assert_ne!(caller(Some("a"), false).owner(network), caller(Some("b"), false).owner(network));
    }
}
