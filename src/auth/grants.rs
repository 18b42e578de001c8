//! Grants: what a caller may do, and on which channels. Grants only allow, and their order means nothing.

use std::mem;

use serde::Deserialize;

use crate::message::{ChannelName, Pattern};

/// What can be done to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Publish messages.
    Publish,
    /// Listen to messages.
    Subscribe,
    /// Read the messages that are kept.
    History,
    /// See who is there.
    Presence,
    /// Delete messages, whoever published them.
    Delete,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 5] = [Verb::Publish, Verb::Subscribe, Verb::History, Verb::Presence, Verb::Delete];

    /// The verb's name, as grants have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Publish => "publish",
            Verb::Subscribe => "subscribe",
            Verb::History => "history",
            Verb::Presence => "presence",
            Verb::Delete => "delete",
        }
    }
}

/// The channels on which each verb is granted, as patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    patterns: [Box<[Pattern]>; Verb::ALL.len()],
    /// Whether the administration of the hub is granted.
    admin: bool,
}

/// Grants as JSON or TOML has them: `{"subscribe": ["chat.42"], "publish": ["chat.42"], "admin": true}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    publish: Option<Vec<String>>,
    subscribe: Option<Vec<String>>,
    history: Option<Vec<String>>,
    presence: Option<Vec<String>>,
    delete: Option<Vec<String>>,
    admin: Option<bool>,
}

impl Named {
    /// The same grants with what `change` makes of each pattern. `None` if it makes nothing of one.
    pub(super) fn map(&self, change: impl Fn(&str) -> Option<String>) -> Option<Named> {
        let list = |list: &Option<Vec<String>>| match list {
            Some(list) => list.iter().map(|pattern| change(pattern)).collect::<Option<Vec<_>>>().map(Some),
            None => Some(None),
        };
        Some(Named {
            publish: list(&self.publish)?,
            subscribe: list(&self.subscribe)?,
            history: list(&self.history)?,
            presence: list(&self.presence)?,
            delete: list(&self.delete)?,
            admin: self.admin,
        })
    }
}

impl Grants {
    /// The most patterns of one caller. Higher: a request is compared with more. Lower: a user of many
    /// channels needs patterns that cover several.
    pub const MOST: usize = 1_000;

    /// The longest pattern, in bytes. Higher: more memory for each caller. Lower: channels of the longest
    /// names can't be granted one by one.
    const LONGEST: usize = 1_024;

    /// Every verb on every channel, but not the administration of the hub.
    pub fn all() -> Self {
        let all = || [Pattern::all()].into();
        Grants { patterns: [all(), all(), all(), all(), all()], admin: false }
    }

    /// Parses grants as settings have them: `all`, or verbs with their channels, as in
    /// `subscribe=public.>,news publish=public.chat`; `admin` grants the administration of the hub.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut named = Named::default();
        let mut is_all = false;
        for word in text.split_whitespace() {
            let (verb, list) = match word.split_once('=') {
                Some((verb, list)) => (verb, Some(list)),
                None => (word, None),
            };
            let field = match (verb, list) {
                ("all", None) => {
                    is_all = true;
                    continue;
                }
                ("admin", None) => {
                    named.admin = Some(true);
                    continue;
                }
                ("publish", Some(_)) => &mut named.publish,
                ("subscribe", Some(_)) => &mut named.subscribe,
                ("history", Some(_)) => &mut named.history,
                ("presence", Some(_)) => &mut named.presence,
                ("delete", Some(_)) => &mut named.delete,
                _ => {
                    return Err(format!(
                        "`{word}` is no grant: give it as in subscribe=public.> or publish=chat,news; the \
                         verbs are publish, subscribe, history, presence, delete; `all` is each of them"
                    ));
                }
            };
            let names = list.unwrap_or_default().split(',').filter(|name| !name.is_empty());
            field.get_or_insert_default().extend(names.map(str::to_owned));
        }
        let grants = Grants::named(named)?;
        Ok(if is_all { Grants { admin: grants.admin, ..Grants::all() } } else { grants })
    }

    /// Grants with these patterns. History is granted as subscribe is, if it is not named.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn named(named: Named) -> Result<Self, String> {
        let Named { publish, subscribe, history, presence, delete, admin } = named;
        let history = history.or_else(|| subscribe.clone());
        let lists = [publish, subscribe, history, presence, delete].map(Option::unwrap_or_default);
        let count: usize = lists.iter().map(Vec::len).sum();
        if count > Self::MOST {
            return Err(format!("there are {count} patterns, the limit is {}", Self::MOST));
        }
        let mut grants = Grants { admin: admin.unwrap_or_default(), ..Grants::default() };
        for (verb, list) in Verb::ALL.into_iter().zip(lists) {
            let pattern = |text: String| {
                Pattern::parse(&text, Self::LONGEST)
                    .map_err(|error| format!("`{}`: a pattern {error}", verb.as_str()))
            };
            grants.patterns[verb as usize] = list.into_iter().map(pattern).collect::<Result<_, _>>()?;
        }
        Ok(grants)
    }

    /// Grants these as well.
    ///
    /// # Errors
    /// If that is too many patterns.
    pub(super) fn add(&mut self, other: Grants) -> Result<(), String> {
        for (own, other) in self.patterns.iter_mut().zip(other.patterns) {
            *own = [mem::take(own), other].concat().into();
        }
        self.admin |= other.admin;
        match self.patterns.iter().map(|list| list.len()).sum() {
            0..=Self::MOST => Ok(()),
            count => Err(format!("there are {count} patterns, the limit is {}", Self::MOST)),
        }
    }

    /// Whether the verb is granted on each channel that `asked` matches: one of the granted patterns covers
    /// it.
    pub fn allow(&self, verb: Verb, asked: &Pattern) -> bool {
        self.patterns[verb as usize].iter().any(|granted| granted.covers(asked))
    }

    /// Whether the verb is granted on this channel.
    pub fn allow_on(&self, verb: Verb, channel: &ChannelName) -> bool {
        self.patterns[verb as usize].iter().any(|granted| granted.matches(channel))
    }

    /// Whether the administration of the hub is granted.
    pub fn allow_admin(&self) -> bool {
        self.admin
    }

    /// The patterns on which the verb is granted.
    pub fn of(&self, verb: Verb) -> &[Pattern] {
        &self.patterns[verb as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channel(text: &str) -> ChannelName {
        ChannelName::parse(text, 64).unwrap()
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, 64).unwrap()
    }

    #[test]
    fn grants_are_read_as_settings_have_them() {
        let grants = Grants::parse("subscribe=public.>,news publish=chat").unwrap();
        assert!(grants.allow_on(Verb::Subscribe, &channel("news")));
        assert!(grants.allow_on(Verb::History, &channel("public.a.b")));
        assert!(grants.allow_on(Verb::Publish, &channel("chat")));
        assert!(!grants.allow_on(Verb::Publish, &channel("news")) && !grants.allow_admin());
        assert!(!grants.allow_on(Verb::Delete, &channel("chat")));
        assert!(!Grants::parse("subscribe=a history=").unwrap().allow_on(Verb::History, &channel("a")));
        assert!(Grants::parse("all").unwrap().allow(Verb::Delete, &pattern(">")));
        assert!(Grants::parse("admin").unwrap().allow_admin());
        assert_eq!(Grants::parse(""), Ok(Grants::default()));
        for bad in ["subscribe", "sub=a", "all=", "publish=a*", "everything"] {
            assert!(Grants::parse(bad).is_err(), "{bad}");
        }
        let most = format!("publish={}", vec!["a"; Grants::MOST].join(","));
        assert!(Grants::parse(&most).is_ok() && Grants::parse(&format!("{most},b")).is_err());
    }

    /// Every channel of up to three of these tokens: those of the patterns below, and one of no pattern.
    fn channels() -> Vec<ChannelName> {
        let tokens = ["a", "b", "other"];
        let mut names: Vec<String> = tokens.map(str::to_owned).into();
        for length in 1..4 {
            let longest: Vec<_> = names.iter().filter(|name| name.split('.').count() == length).collect();
            let longer: Vec<_> =
                longest.iter().flat_map(|name| tokens.map(|token| format!("{name}.{token}"))).collect();
            names.extend(longer);
        }
        names.iter().map(|name| channel(name)).collect()
    }

    proptest! {
        /// A pattern that is asked for is allowed if, and only if, one granted pattern matches each channel
        /// that the pattern asked for matches. Brute force over all channels finds the same.
        #[test]
        fn what_is_allowed_is_contained_in_one_granted_pattern(
            granted in prop::collection::vec("(a|b|\\*)(\\.(a|b|\\*)){0,2}(\\.>)?|>", 0..4),
            asked in "(a|b|\\*)(\\.(a|b|\\*)){0,2}(\\.>)?|>",
        ) {
            let text = format!("subscribe={}", granted.join(","));
            let (grants, asked) = (Grants::parse(&text).unwrap(), pattern(&asked));
            let channels = channels();
            let contains = |granted: &Pattern| {
                channels.iter().filter(|name| asked.matches(name)).all(|name| granted.matches(name))
            };
            let is_contained = grants.of(Verb::Subscribe).iter().any(contains);
            prop_assert_eq!(grants.allow(Verb::Subscribe, &asked), is_contained);
        }
    }
}
