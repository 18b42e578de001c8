//! Rules: what is granted to tokens by claims that are not the hub's own.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::grants::{Grants, Named};

/// Rules for tokens. Each that is for a token adds to its grants. Clones share one allocation.
#[derive(Clone, Debug, Default)]
pub struct Rules(Arc<[Rule]>);

/// A rule for the tokens that have these claims.
#[derive(Debug)]
struct Rule {
    /// The claims that a token must have.
    when: Map<String, Value>,
    /// The grants. A pattern may have the name of a claim in braces, in whose place its value is put.
    grants: Named,
    /// The table, as JSON.
    text: String,
}

impl Rules {
    /// The most rules. Higher: a token is compared with more. Lower: a provider may have more roles.
    pub const MOST: usize = 1_000;

    /// Parses the tables `[[grant]]` of a settings file.
    ///
    /// # Errors
    /// Which table is wrong, by its number, and what is wrong with it.
    pub fn parse(value: &toml::Value) -> Result<Self, String> {
        let tables = value.as_array().ok_or("`grant` must be tables, each after a line [[grant]]")?;
        if tables.len() > Self::MOST {
            return Err(format!("there are {} tables [[grant]], the limit is {}", tables.len(), Self::MOST));
        }
        let rule = |(number, table): (u32, &toml::Value)| {
            Rule::parse(table).map_err(|what| format!("the table [[grant]] number {number}: {what}"))
        };
        Ok(Rules((1..).zip(tables).map(rule).collect::<Result<_, _>>()?))
    }

    /// The text of each, as JSON.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|rule| rule.text.as_str())
    }

    /// Adds to the grants what the rules grant to a token with these claims.
    ///
    /// # Errors
    /// If that is too many patterns.
    pub(super) fn add_to(&self, grants: &mut Grants, claims: &Map<String, Value>) -> Result<(), String> {
        self.0.iter().filter_map(|rule| rule.grants(claims)).try_for_each(|more| grants.add(more))
    }
}

impl Rule {
    fn parse(table: &toml::Value) -> Result<Self, String> {
        let table = table.as_table().ok_or("it must be a table")?;
        let (mut when, mut grants) = (Map::new(), toml::Table::new());
        for (key, value) in table {
            let bad = |what: &str| Err(format!("`{key}` {what}"));
            match (key.as_str(), value) {
                ("when", toml::Value::Table(claims)) => {
                    if !claims.values().all(is_comparable) {
                        return bad("must have strings, whole numbers and booleans, or tables of them");
                    }
                    let claims = serde_json::to_value(claims).map_err(|error| error.to_string())?;
                    when = claims.as_object().cloned().unwrap_or_default();
                }
                ("when", _) => return bad("must be a table of claims, as in {role = \"staff\"}"),
                ("publish" | "subscribe" | "history" | "presence" | "delete" | "admin", value) => {
                    grants.insert(key.clone(), value.clone());
                }
                _ => {
                    return bad("is unknown: the keys are when, publish, subscribe, history, presence, \
                                delete, admin");
                }
            }
        }
        let grants: Named = grants.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
        if grants == Named::default() {
            return Err("it grants nothing: it must have publish, subscribe or another verb".to_owned());
        }
        // With a token in the place of each claim, it must be a pattern.
        let example = grants.map(|pattern| filled(pattern, |_| Some("x")));
        let example = example.ok_or("a brace is not closed: claims are named as in {sub}")?;
        Grants::named(example)?;
        let text = serde_json::to_string(table).map_err(|error| error.to_string())?;
        Ok(Rule { when, grants, text })
    }

    /// What the rule grants to a token with these claims. `None` if it is not for that token.
    fn grants(&self, claims: &Map<String, Value>) -> Option<Grants> {
        if !has_all(claims, &self.when) {
            return None;
        }
        let value = |name: &str| claims.get(name)?.as_str().filter(|value| is_plain(value));
        let grants = self.grants.map(|pattern| filled(pattern, value))?;
        // A value can be too long for a pattern.
        Grants::named(grants).ok()
    }
}

fn is_comparable(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(_) | toml::Value::Integer(_) | toml::Value::Boolean(_) => true,
        toml::Value::Table(table) => table.values().all(is_comparable),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) => false,
    }
}

/// Whether each of the wanted members is there: equal, or among the items of an array.
fn has_all(claims: &Map<String, Value>, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(name, wanted)| match (claims.get(name), wanted) {
        (Some(Value::Object(claim)), Value::Object(wanted)) => has_all(claim, wanted),
        (Some(Value::Array(items)), wanted) => items.contains(wanted),
        (claim, wanted) => claim == Some(wanted),
    })
}

/// Whether the value is one token of a channel's name that can't be anything else: no dot, no wildcard.
fn is_plain(value: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !value.is_empty() && value.bytes().all(is_plain)
}

/// The pattern with the value of each claim that it names in braces. `None` if one has no value, or a brace
/// has no other.
fn filled<'a>(pattern: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let mut pieces = pattern.split('{');
    let mut filled = pieces.next().filter(|first| !first.contains('}'))?.to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once('}').filter(|(_, rest)| !rest.contains('}'))?;
        filled += value(name)?;
        filled += rest;
    }
    Some(filled)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::grants::Verb;
    use crate::message::Pattern;

    fn rules(text: &str) -> Result<Rules, String> {
        Rules::parse(&text.parse::<toml::Table>().unwrap()["grant"])
    }

    /// Whether a token with these claims may subscribe to this.
    fn may(rules: &Rules, claims: &Value, asked: &str) -> bool {
        let mut grants = Grants::default();
        rules.add_to(&mut grants, claims.as_object().unwrap()).unwrap();
        grants.allow(Verb::Subscribe, &Pattern::parse(asked, 64).unwrap())
    }

    #[test]
    fn a_rule_is_for_tokens_with_its_claims() {
        let rules = rules(
            "[[grant]]\nwhen = {iss = 'https://a.example', role = 'staff', level = 2, ok = true}\n\
             subscribe = ['staff.>']\n[[grant]]\nwhen = {realm.roles = 'ops'}\nsubscribe = ['ops']\n\
             [[grant]]\nsubscribe = ['all']",
        )
        .unwrap();
        let staff = json!({"iss": "https://a.example", "role": "staff", "level": 2, "ok": true, "x": 1});
        assert!(
            may(&rules, &staff, "staff.a.b") && may(&rules, &staff, "all") && !may(&rules, &staff, "ops")
        );
        let with = |name: &str, value: Value| {
            let mut claims = staff.clone();
            claims[name] = value;
            claims
        };
        assert!(may(&rules, &with("role", json!(["user", "staff"])), "staff.>"));
        for other in [
            with("role", json!("Staff")),
            with("role", json!(["user"])),
            with("role", json!([["staff"]])),
            with("role", json!({"staff": true})),
            with("role", Value::Null),
            with("level", json!("2")),
            with("level", json!(3)),
            with("ok", json!("true")),
            with("iss", json!("https://b.example")),
            json!({}),
        ] {
            assert!(!may(&rules, &other, "staff.a") && may(&rules, &other, "all"), "{other}");
        }
        assert!(may(&rules, &json!({"realm": {"roles": ["a", "ops"]}}), "ops"));
        for other in [json!({"realm": "ops"}), json!({"realm": {}}), json!({"realm.roles": "ops"})] {
            assert!(!may(&rules, &other, "ops"), "{other}");
        }
    }

    #[test]
    fn a_claim_in_braces_is_one_plain_token_or_the_rule_is_void() {
        let rules = rules(
            "[[grant]]\nsubscribe = ['user.{sub}.>', 'news']\n[[grant]]\nsubscribe = ['{org}-{sub}.x']",
        )
        .unwrap();
        let ada = json!({"sub": "ada", "org": "A_1-z"});
        assert!(
            may(&rules, &ada, "user.ada.>") && may(&rules, &ada, "news") && may(&rules, &ada, "A_1-z-ada.x")
        );
        assert!(!may(&rules, &ada, "user.bob.x") && !may(&rules, &json!({"sub": "ada"}), "A-ada.x"));
        let long = "x".repeat(2_000);
        for sub in ["", "*", ">", "a.b", "auth0|1", "a b", "é", "{sub}", "a*", &long] {
            assert!(!may(&rules, &json!({"sub": sub, "org": "a"}), "news"), "{sub}");
        }
        for sub in [json!(1), json!(["ada"]), json!({"ada": 1}), json!(null)] {
            assert!(!may(&rules, &json!({"sub": sub}), "news"), "{sub}");
        }
        assert!(!may(&rules, &json!({}), "news"));
    }

    #[test]
    fn grants_of_several_rules_are_added_up_to_a_limit() {
        let table = |count: usize| format!("[[grant]]\npublish = {:?}\n", vec!["a"; count]);
        let most = rules(&(table(600) + &table(400))).unwrap();
        let mut grants = Grants::parse("admin").unwrap();
        most.add_to(&mut grants, &Map::new()).unwrap();
        assert!(grants.of(Verb::Publish).len() == Grants::MOST && grants.allow_admin());
        assert!(most.add_to(&mut grants, &Map::new()).unwrap_err().contains("limit is 1000"));
        assert!(rules(&table(Grants::MOST + 1)).unwrap_err().contains("limit is 1000"));
        assert!(rules(&table(1).repeat(Rules::MOST)).is_ok());
        assert!(rules(&table(1).repeat(Rules::MOST + 1)).unwrap_err().contains("limit is 1000"));
    }

    #[test]
    fn a_table_that_is_wrong_is_named_by_its_number() {
        let good = "[[grant]]\nadmin = true\n";
        assert!(rules(good).is_ok());
        for (bad, what) in [
            ("[[grant]]", "grants nothing"),
            ("[[grant]]\nsubscribe = 'a'", "sequence"),
            ("[[grant]]\nsubscribe = [1]", "string"),
            ("[[grant]]\nadmin = 'yes'", "boolean"),
            ("[[grant]]\nsubscribe = ['a*']", "`subscribe`: a pattern"),
            ("[[grant]]\nsubscribe = ['a.{sub']", "brace"),
            ("[[grant]]\nsubscribe = ['a.sub}']", "brace"),
            ("[[grant]]\nsubscribe = ['{a}}']", "brace"),
            ("[[grant]]\nsubscribe = ['a.>.{sub}']", "a pattern"),
            ("[[grant]]\nsubscibe = ['a']", "`subscibe` is unknown: the keys are when,"),
            ("[[grant]]\nadmin = true\nwhen = 'x'", "`when` must be a table"),
            ("[[grant]]\nadmin = true\nwhen = {role = ['a']}", "`when` must have strings"),
            ("[[grant]]\nadmin = true\nwhen = {exp = 1.5}", "`when` must have strings"),
        ] {
            let error = rules(&format!("{good}{bad}")).unwrap_err();
            assert!(error.contains("[[grant]] number 2: ") && error.contains(what), "{bad}: {error}");
        }
        assert!(rules("grant = 1").unwrap_err().contains("must be tables"));
        assert!(rules("grant = [1]").unwrap_err().contains("number 1: it must be a table"));
    }
}
