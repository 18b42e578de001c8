//! A JSON web token (RFC 7519): who signed it, and what it says of whoever presents it.

use serde_json::{Map, Value};

use super::caller::{Caller, Token};
use super::grants::{Grants, Named};
use super::json;
use super::jws::Jws;
use super::keys::{self, Keys};
use super::refused::Refused;
use super::rules::Rules;

/// How far the clock of an issuer may be off, in seconds. Higher: a token is good for longer after its end.
/// Lower: a new one may be refused.
const LEEWAY: u64 = 30;

/// The claim with the grants.
const GRANTS: &str = "tabcast";

/// What a token says, whoever signed it, if anyone did: for people who ask why it is refused.
#[derive(Debug)]
pub struct Unverified {
    /// The algorithm that it names.
    pub algorithm: String,
    /// The id of the key that it names.
    pub key_id: Option<String>,
    /// Its claims.
    pub claims: Map<String, Value>,
}

impl Unverified {
    /// # Errors
    /// [`Refused`] if it can't be read.
    pub fn parse(token: &str) -> Result<Self, Refused> {
        let Jws { algorithm, key_id, payload, .. } = Jws::parse(token)?;
        Ok(Unverified { algorithm, key_id, claims: claims(&payload)? })
    }
}

/// What a token must say beside its grants.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// For whom it must be.
    pub(super) audience: Option<String>,
    /// Who must have issued it.
    pub(super) issuer: Option<String>,
    /// What is granted beside what it says itself.
    pub(super) rules: Rules,
}

/// Why a token is not accepted.
#[derive(Debug)]
pub(super) enum Fault {
    /// No key has the id that it names. A newer set of keys may have it.
    UnknownKey(Refused),
    /// Anything else.
    Refused(Refused),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::UnknownKey(refused) | Fault::Refused(refused) => refused,
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Fault::Refused(refused)
    }
}

impl From<keys::Unsigned> for Fault {
    fn from(unsigned: keys::Unsigned) -> Self {
        let refused = Refused::invalid(unsigned.to_string());
        match unsigned {
            keys::Unsigned::UnknownKey(_) => Fault::UnknownKey(refused),
            _ => Fault::Refused(refused),
        }
    }
}

impl Expected {
    /// Whose the token is, now.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn caller(&self, keys: &Keys, token: &str, now: u64) -> Result<Caller, Fault> {
        let jws = Jws::parse(token)?;
        keys.verify(&jws)?;
        Ok(self.caller_by(&jws.payload, now)?)
    }

    /// Whose a token with these claims is. That it has expired is said last, of a token that is else right.
    fn caller_by(&self, payload: &[u8], now: u64) -> Result<Caller, Refused> {
        let claims = claims(payload)?;
        let expires = seconds(&claims, "exp")?;
        let expires = expires.ok_or_else(|| Refused::invalid("the token has no `exp`: when it expires"))?;
        let issued = seconds(&claims, "iat")?;
        if seconds(&claims, "nbf")?.is_some_and(|begins| begins > now.saturating_add(LEEWAY)) {
            return Err(Refused::invalid("the token is not good yet: its `nbf` is to come"));
        }
        if let Some(audience) = &self.audience
            && !has_audience(claims.get("aud"), audience)
        {
            return Err(Refused::invalid(format!("the token's `aud` does not have {audience:?}")));
        }
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(Refused::invalid(format!("the token's `iss` is not {issuer:?}")));
        }
        let (subject, id) = (text(&claims, "sub")?, text(&claims, "jti")?);
        let wrong = |what| Refused::invalid(format!("the token's grants: {what}"));
        let mut grants = match claims.get(GRANTS) {
            None => Grants::default(),
            Some(claim) => {
                let named = serde_json::from_value::<Named>(claim.clone());
                let named = named.map_err(|error| wrong(format!("`{GRANTS}`: {error}")))?;
                Grants::named(named).map_err(wrong)?
            }
        };
        self.rules.add_to(&mut grants, &claims).map_err(wrong)?;
        let expires = if now < expires { expires } else { expires.saturating_add(LEEWAY) };
        if expires <= now {
            return Err(Refused::Expired);
        }
        let [subject, id] = [subject, id].map(|text| text.map(Into::into));
        let token = Token { subject, is_static: false, id, issued, expires: Some(expires) };
        Ok(Caller::with_token(token, grants))
    }
}

fn claims(payload: &[u8]) -> Result<Map<String, Value>, Refused> {
    json::object(payload).map_err(|what| Refused::invalid(format!("the token's claims: {what}")))
}

fn has_audience(claim: Option<&Value>, audience: &str) -> bool {
    match claim {
        Some(Value::Array(items)) => items.iter().any(|item| item == audience),
        claim => claim.is_some_and(|claim| claim == audience),
    }
}

/// The claim's time in whole seconds since 1970. It is a number, and may have a fraction.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            // What is below 0, or above what there is, becomes the least or the most.
            let seconds = number.as_u64().or_else(|| number.as_f64().map(|seconds| seconds as u64));
            Ok(seconds)
        }
        Some(_) => Err(Refused::invalid(format!("the token's `{name}` must be a number"))),
    }
}

/// The claim's text.
fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(Refused::invalid(format!("the token's `{name}` must be a string that is not empty"))),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::auth::grants::Verb;
    use crate::auth::keys::{Algorithm, tests::vectors};
    use crate::auth::signer::{self, Signer};
    use crate::message::Pattern;

    /// What the tokens of these tests are signed with: the one key of a set, and its set.
    fn signer(algorithm: Algorithm) -> (Signer, Keys, String) {
        let set = signer::new(algorithm).unwrap();
        (Signer::parse(&set, None).unwrap(), Keys::parse(&set).unwrap(), set)
    }

    fn ask(expected: &Expected, claims: &Value, now: u64) -> Result<Caller, Refused> {
        expected.caller_by(claims.to_string().as_bytes(), now)
    }

    /// Why a token with these claims is not accepted, at 1,000 seconds.
    fn refused(expected: &Expected, claims: &Value) -> String {
        match ask(expected, claims, 1_000) {
            Err(Refused::Invalid(why)) => why.into_owned(),
            other => panic!("{claims}: {other:?}"),
        }
    }

    #[test]
    fn a_token_says_who_and_what_and_until_when() {
        let claims = json!({
            "sub": "ada", "jti": "7", "iat": 900.9, "exp": 2000.5, "nbf": 1000, "iss": "x", "aud": "y",
            "tabcast": {"subscribe": ["chat.42", "user.ada.>"], "publish": ["chat.42"], "admin": true},
        });
        let caller = ask(&Expected::default(), &claims, 1_000).unwrap();
        let token = caller.token().unwrap();
        let expected = Token {
            subject: Some("ada".into()),
            is_static: false,
            id: Some("7".into()),
            issued: Some(900),
            expires: Some(2_000),
        };
        assert_eq!(*token, expected);
        let text = "subscribe=chat.42,user.ada.> publish=chat.42 admin";
        assert_eq!(*caller.grants(), Grants::parse(text).unwrap());
        // Nothing but `exp` is needed, and without grants nothing is granted.
        let caller = ask(&Expected::default(), &json!({"exp": 2_000}), 1_000).unwrap();
        assert!(caller.subject().is_none() && *caller.grants() == Grants::default());
    }

    #[test]
    fn a_token_is_good_until_the_leeway_after_its_end_and_no_longer() {
        let expires = |now| {
            let caller = ask(&Expected::default(), &json!({"exp": 1_000}), now);
            caller.map(|caller| caller.token().unwrap().expires.unwrap())
        };
        assert_eq!([0, 999, 1_000, 1_029].map(expires), [1_000, 1_000, 1_030, 1_030].map(Ok));
        assert_eq!([1_030, 9_999].map(expires), [Err(Refused::Expired), Err(Refused::Expired)]);
        for exp in [json!(0), json!(-1), json!(-1e300), json!(1.5), json!(u64::MAX)] {
            let is_expired = exp.as_u64() != Some(u64::MAX);
            let caller = ask(&Expected::default(), &json!({ "exp": exp }), 1_000);
            assert_eq!(caller.is_err(), is_expired, "{exp}");
        }
        // What is also wrong is wrong, and not expired.
        assert!(refused(&Expected::default(), &json!({"exp": 1, "sub": 7})).contains("`sub`"));
    }

    #[test]
    fn a_claim_that_is_missing_or_wrong_is_named() {
        let free = Expected::default();
        for (claims, why) in [
            (json!({}), "no `exp`"),
            (json!({"exp": "2000"}), "`exp` must be a number"),
            (json!({"exp": null}), "`exp` must be a number"),
            (json!({"exp": [2_000]}), "`exp` must be a number"),
            (json!({"exp": 2_000, "nbf": 1_031}), "not good yet"),
            (json!({"exp": 2_000, "nbf": "0"}), "`nbf` must be a number"),
            (json!({"exp": 2_000, "iat": "0"}), "`iat` must be a number"),
            (json!({"exp": 2_000, "sub": 1}), "`sub` must be a string"),
            (json!({"exp": 2_000, "sub": ""}), "`sub` must be a string that is not empty"),
            (json!({"exp": 2_000, "jti": ["a"]}), "`jti` must be a string"),
            (json!({"exp": 2_000, "tabcast": "all"}), "`tabcast`"),
            (json!({"exp": 2_000, "tabcast": ["a"]}), "`tabcast`"),
            (json!({"exp": 2_000, "tabcast": null}), "`tabcast`"),
            (json!({"exp": 2_000, "tabcast": {"read": ["a"]}}), "unknown field `read`"),
            (json!({"exp": 2_000, "tabcast": {"publish": "a"}}), "`tabcast`"),
            (json!({"exp": 2_000, "tabcast": {"publish": ["a*"]}}), "a pattern"),
            (json!({"exp": 2_000, "tabcast": {"publish": vec!["a"; 1_001]}}), "limit is 1000"),
        ] {
            let found = refused(&free, &claims);
            assert!(found.contains(why), "{claims}: {found}");
        }
        assert!(ask(&free, &json!({"exp": 2_000, "nbf": 1_030}), 1_000).is_ok());
        for text in [
            "",
            "[]",
            "foo",
            r#"{"exp":9e9,"exp":9e9}"#,
            r#"{"exp":9e9,"tabcast":{"admin":true,"admin":true}}"#,
        ] {
            let found = free.caller_by(text.as_bytes(), 1_000);
            assert!(matches!(&found, Err(Refused::Invalid(why)) if why.contains("claims")), "{text}");
        }
    }

    #[test]
    fn audience_and_issuer_are_checked_where_they_are_set() {
        let set = Expected {
            audience: Some("hub".to_owned()),
            issuer: Some("https://a.example".to_owned()),
            ..Expected::default()
        };
        let claims = |aud: Value, iss: Value| json!({"exp": 2_000, "aud": aud, "iss": iss});
        for aud in [json!("hub"), json!(["other", "hub"])] {
            assert!(ask(&set, &claims(aud, json!("https://a.example")), 1_000).is_ok());
        }
        for aud in [json!("hubs"), json!("Hub"), json!([]), json!([["hub"]]), json!({"hub": 1}), json!(null)]
        {
            let found = refused(&set, &claims(aud.clone(), json!("https://a.example")));
            assert!(found.contains("`aud` does not have \"hub\""), "{aud}: {found}");
        }
        for iss in [json!("https://a.example/"), json!(["https://a.example"]), json!(null)] {
            let found = refused(&set, &claims(json!("hub"), iss.clone()));
            assert!(found.contains("`iss` is not \"https://a.example\""), "{iss}: {found}");
        }
        assert!(refused(&set, &json!({"exp": 2_000})).contains("`aud`"));
        assert!(ask(&Expected::default(), &claims(json!("other"), json!("other")), 1_000).is_ok());
    }

    #[test]
    fn rules_add_to_what_the_token_says() {
        let table: toml::Table =
            "[[grant]]\nwhen = {iss = 'a'}\nsubscribe = ['user.{sub}.>']".parse().unwrap();
        let expected = Expected { rules: Rules::parse(&table["grant"]).unwrap(), ..Expected::default() };
        let may = |claims: Value, verb, asked: &str| {
            let caller = ask(&expected, &claims, 1_000).unwrap();
            caller.may(verb, &Pattern::parse(asked, 64).unwrap())
        };
        let ada = json!({"exp": 2_000, "iss": "a", "sub": "ada", "tabcast": {"publish": ["x"]}});
        assert!(may(ada.clone(), Verb::Subscribe, "user.ada.>") && may(ada.clone(), Verb::Publish, "x"));
        assert!(may(ada, Verb::History, "user.ada.a"));
        assert!(!may(json!({"exp": 2_000, "iss": "b", "sub": "ada"}), Verb::Subscribe, "user.ada.a"));
        let most = json!({"exp": 2_000, "iss": "a", "sub": "ada", "tabcast": {"publish": vec!["x"; 1_000]}});
        assert!(refused(&expected, &most).contains("limit is 1000"));
    }

    #[test]
    fn the_token_of_rfc_7515_was_good_in_its_time() {
        let vector = &vectors()[0];
        let keys = Keys::parse(&json!({"keys": [vector["key"]]}).to_string()).unwrap();
        let token = vector["token"].as_str().unwrap();
        let ask = |now| Expected::default().caller(&keys, token, now).map_err(Refused::from);
        assert_eq!(ask(1_300_819_379).unwrap().token().unwrap().expires, Some(1_300_819_380));
        assert_eq!(ask(1_300_819_410).unwrap_err(), Refused::Expired);
    }

    /// Why a token with this header, signed by a shared secret, is not accepted by these keys.
    fn attack(keys: &Keys, header: &str, secret: &[u8]) -> Fault {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(header), encode(r#"{"exp":9e9}"#));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let signature = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()));
        Expected::default().caller(keys, &format!("{signed}.{signature}"), 1_000).unwrap_err()
    }

    #[test]
    fn a_public_key_is_no_shared_secret() {
        let vectors = vectors();
        for vector in vectors.iter().filter(|vector| vector["taken"] == true && vector["key"]["kty"] != "oct")
        {
            let set = signer::public(&json!({"keys": [vector["key"]]}).to_string()).unwrap();
            let keys = Keys::parse(&set).unwrap();
            let mut secrets = vec![set.clone().into_bytes()];
            for name in ["n", "x"] {
                let text = vector["key"][name].as_str().unwrap_or_default();
                secrets.extend([text.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(text).unwrap()]);
            }
            for secret in secrets {
                for name in ["HS256", "RS256", "ES256", "EdDSA", "none", "None", "", "hs256"] {
                    let fault = attack(&keys, &json!({ "alg": name }).to_string(), &secret);
                    assert!(matches!(&fault, Fault::Refused(Refused::Invalid(_))), "{name}: {fault:?}");
                }
            }
        }
    }

    #[test]
    fn a_key_id_picks_a_key_and_does_nothing_else() {
        let (signer, keys, set) = signer(Algorithm::HS256);
        let set: Value = serde_json::from_str(&set).unwrap();
        let secret = URL_SAFE_NO_PAD.decode(set["keys"][0]["k"].as_str().unwrap()).unwrap();
        for id in ["", "x", "../../dev/null", "/etc/passwd", "' OR 1=1 --", "https://evil.example/jwks", "\0"]
        {
            let fault = attack(&keys, &json!({"alg": "HS256", "kid": id}).to_string(), &secret);
            let Fault::UnknownKey(Refused::Invalid(why)) = fault else { panic!("{id}: {fault:?}") };
            assert!(why.contains("no key has the token's `kid`"), "{why}");
        }
        // Of no id, each key of the algorithm is tried.
        let token = signer.sign(&json!({"exp": 2_000})).unwrap();
        assert!(Expected::default().caller(&keys, &token, 1_000).is_ok());
        let unnamed = attack(&keys, r#"{"alg":"HS256"}"#, b"another secret of more than 32 bytes.");
        let Fault::Refused(Refused::Invalid(why)) = unnamed else { panic!("{unnamed:?}") };
        assert!(why.contains("signature is wrong"), "{why}");
        let wrong = attack(&keys, r#"{"alg":"ES256"}"#, &secret);
        let Fault::Refused(Refused::Invalid(why)) = wrong else { panic!("{wrong:?}") };
        assert_eq!(why, "the token's `alg` is \"ES256\", and the keys are for HS256");
    }

    #[test]
    fn of_keys_with_one_id_the_algorithm_picks_and_of_too_many_none_is_tried() {
        let key = |algorithm: Algorithm, id: Option<&str>| {
            let set: Value = serde_json::from_str(&signer::new(algorithm).unwrap()).unwrap();
            let mut key = set["keys"][0].clone();
            match id {
                Some(id) => key["kid"] = id.into(),
                None => drop(key.as_object_mut().unwrap().remove("kid")),
            }
            key
        };
        let token = |key: &Value| {
            let set = json!({"keys": [key]}).to_string();
            Signer::parse(&set, None).unwrap().sign(&json!({"exp": 2_000})).unwrap()
        };
        let ask = |keys: &[Value], token: &str| {
            let keys = Keys::parse(&json!({"keys": keys}).to_string()).unwrap();
            Expected::default().caller(&keys, token, 1_000).map_err(|fault| Refused::from(fault).to_string())
        };
        let same = [Algorithm::ES256, Algorithm::EdDSA].map(|algorithm| key(algorithm, Some("a")));
        assert!(same.iter().all(|key| ask(&same, &token(key)).is_ok()));
        let other = key(Algorithm::ES256, Some("a"));
        assert!(ask(&same, &token(&other)).unwrap_err().contains("signature is wrong"));
        assert!(ask(&same[..1], &token(&same[1])).unwrap_err().contains("its key's is ES256"));
        let many: Vec<_> = (0..9).map(|_| key(Algorithm::EdDSA, None)).collect();
        assert!(many[..8].iter().all(|key| ask(&many[..8], &token(key)).is_ok()));
        assert!(ask(&many, &token(&many[0])).unwrap_err().contains("more than 8 keys, the limit"));
    }

    proptest! {
        /// Whatever comes is refused, and nothing panics: rubbish, and a good token with one byte changed.
        #[test]
        fn rubbish_is_refused(
            text in "\\PC*|[A-Za-z0-9_-]*(\\.[A-Za-z0-9_-]*){2}",
            at in 0usize..1_000,
            letter in "[A-Za-z0-9_-]",
        ) {
            let (signer, keys, _) = signer(Algorithm::HS256);
            prop_assert!(Expected::default().caller(&keys, &text, 1_000).is_err());
            let mut token = signer.sign(&json!({"exp": 2_000})).unwrap().into_bytes();
            let at = at % token.len();
            prop_assume!(token[at] != letter.as_bytes()[0]);
            token[at] = letter.as_bytes()[0];
            let token = String::from_utf8(token).unwrap();
            prop_assert!(Expected::default().caller(&keys, &token, 1_000).is_err());
        }
    }
}
