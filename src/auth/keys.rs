//! Keys: a set of them in JSON (RFC 7517), by which it is known who signed a token.
//!
//! The algorithm is the key's, and a token's must be the same. A secret that is shared and keys that are
//! public are never in one set: what is public can't be taken for a secret.

use std::fmt;
use std::ops::RangeInclusive;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::jws::Jws;

/// The most keys of a set. Higher: more is parsed of a file that was never meant to be one. Lower: an issuer
/// that changes its keys often may have more.
const MOST: usize = 64;

/// The most keys that are tried for a token that names none. Higher: a wrong token costs more. Lower: an
/// issuer that names no keys can't have as many.
const MOST_TRIED: usize = 8;

/// The shortest shared secret, in bytes: as long as its hash (RFC 7518, 3.2). Lower: it could be guessed.
/// Higher: the secrets of other programs would be refused.
const SHORTEST_SECRET: usize = 32;

/// The fewest and the most bits of an RSA key (RFC 7518, 3.3). Lower: it could be broken. Higher: a signature
/// takes long to check; and with more as the fewest, the keys of many issuers would be refused.
const RSA_BITS: RangeInclusive<usize> = 2_048..=8_192;

/// The keys of one set.
#[derive(Debug)]
pub struct Keys {
    keys: Vec<Key>,
    /// Which keys are of no kind that is taken, and why.
    skipped: Vec<String>,
    has_secrets: bool,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    half: Half,
}

/// The half of a key that can tell whether a signature is right.
enum Half {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl fmt::Debug for Half {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("…")
    }
}

/// An algorithm of signatures (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// A hash with a shared secret.
    HS256,
    /// RSA.
    RS256,
    /// The elliptic curve P-256.
    ES256,
    /// The elliptic curve Ed25519.
    EdDSA,
}

impl Algorithm {
    /// The algorithm's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::RS256 => "RS256",
            Algorithm::ES256 => "ES256",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// The algorithm of a key: that of its kind, which its `alg` must not contradict.
    pub(super) fn of(key: &Map<String, Value>) -> Result<Self, Fault> {
        let kind = text(key, "kty")?.ok_or_else(|| Fault::Bad("`kty` is missing".to_owned()))?;
        let curve = text(key, "crv")?.unwrap_or_default();
        let algorithm = match (kind, curve) {
            ("oct", _) => Algorithm::HS256,
            ("RSA", _) => Algorithm::RS256,
            ("EC", "P-256") => Algorithm::ES256,
            ("OKP", "Ed25519") => Algorithm::EdDSA,
            ("EC" | "OKP", _) => {
                return Err(Fault::Unknown(format!("its curve {curve:?} is neither P-256 nor Ed25519")));
            }
            _ => return Err(Fault::Unknown(format!("its `kty` {kind:?} is none of oct, RSA, EC, OKP"))),
        };
        match text(key, "alg")?.filter(|name| !algorithm.is(name)) {
            Some(name) => Err(Fault::Unknown(format!("its `alg` {name:?} is not {}", algorithm.as_str()))),
            None => Ok(algorithm),
        }
    }

    /// Whether it has this name. `Ed25519` is the newer one of EdDSA with that curve (RFC 9864).
    fn is(self, name: &str) -> bool {
        name == self.as_str() || self == Algorithm::EdDSA && name == "Ed25519"
    }
}

/// Why no key says that a signature is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsigned {
    /// No key has this id. A newer set may have it.
    #[error("no key has the token's `kid` {0:?}")]
    UnknownKey(String),
    /// The algorithm is not that of the key, or of any.
    #[error("the token's `alg` is {token:?}, and {key}")]
    Algorithm {
        /// The token's.
        token: String,
        /// What the keys have.
        key: String,
    },
    /// Too many keys could be meant.
    #[error("the token has no `kid`, and more than {MOST_TRIED} keys, the limit, could be meant")]
    TooMany,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
}

/// Why a key is not in the set.
pub(super) enum Fault {
    /// The set is refused for it.
    Bad(String),
    /// Nobody here knows such keys.
    Unknown(String),
    /// It is for other things than signatures, as its issuer says.
    OtherUse,
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Bad(what) | Fault::Unknown(what) => what,
            Fault::OtherUse => "its `use` or `key_ops` is not that of signatures".to_owned(),
        }
    }
}

impl Keys {
    /// Parses a set: `{"keys": […]}`. A key of a kind that is not taken is passed over.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut set = json::object(text.as_bytes())?;
        let Some(Value::Array(list)) = set.remove("keys") else {
            return Err("it must be a set of keys, as in {\"keys\": [{\"kty\": …}]}".to_owned());
        };
        if list.len() > MOST {
            return Err(format!("there are {} keys, the limit is {MOST}", list.len()));
        }
        let is_secret = |key: &Value| key.get("kty").is_some_and(|kind| kind == "oct");
        let has_secrets = list.iter().any(|key| is_secret(key) || key.get("d").is_some());
        if list.iter().any(is_secret) && !list.iter().all(is_secret) {
            return Err("shared secrets (`oct`) and public keys can't be in one set".to_owned());
        }
        let (mut keys, mut skipped, mut others) = (Vec::<Key>::new(), Vec::new(), Vec::new());
        for (number, key) in (1..).zip(list) {
            match Key::parse(&key) {
                Ok(key) => {
                    let is_same = |other: &Key| other.algorithm == key.algorithm && other.id == key.id;
                    if let Some(id) = key.id.as_deref().filter(|_| keys.iter().any(is_same)) {
                        return Err(format!("two keys for {} have the id {id:?}", key.algorithm.as_str()));
                    }
                    keys.push(key);
                }
                Err(Fault::Bad(what)) => return Err(format!("key {number}: {what}")),
                Err(Fault::Unknown(what)) => skipped.push(format!("key {number}: {what}")),
                Err(fault @ Fault::OtherUse) => others.push(format!("key {number}: {}", String::from(fault))),
            }
        }
        if keys.is_empty() {
            let why: String = skipped.iter().chain(&others).map(|what| format!("; {what}")).collect();
            return Err(format!("it has no key for signatures that the hub takes{why}"));
        }
        Ok(Keys { keys, skipped, has_secrets })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Which keys of the set were passed over, and why: nobody here knows their kind.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Whether the set has secrets: with it, tokens can be signed.
    pub fn has_secrets(&self) -> bool {
        self.has_secrets
    }

    /// Checks that one of the keys signed this.
    ///
    /// # Errors
    /// [`Unsigned`].
    pub(super) fn verify(&self, jws: &Jws<'_>) -> Result<(), Unsigned> {
        let named = |key: &&Key| jws.key_id.is_none() || key.id == jws.key_id;
        let named: Vec<_> = self.keys.iter().filter(named).collect();
        if let (Some(id), []) = (&jws.key_id, &named[..]) {
            return Err(Unsigned::UnknownKey(id.clone()));
        }
        let keys: Vec<_> = named.iter().filter(|key| key.algorithm.is(&jws.algorithm)).collect();
        if keys.is_empty() {
            let mut names: Vec<_> = named.iter().map(|key| key.algorithm.as_str()).collect();
            names.dedup();
            let whose = if jws.key_id.is_some() { "its key's is" } else { "the keys are for" };
            let key = format!("{whose} {}", names.join(", "));
            return Err(Unsigned::Algorithm { token: jws.algorithm.clone(), key });
        }
        if keys.len() > MOST_TRIED {
            return Err(Unsigned::TooMany);
        }
        let is_right = keys.iter().any(|key| key.verifies(jws.signed, &jws.signature));
        if is_right { Ok(()) } else { Err(Unsigned::Signature) }
    }
}

impl Key {
    fn parse(key: &Value) -> Result<Self, Fault> {
        let key = key.as_object().ok_or_else(|| Fault::Bad("it must be an object".to_owned()))?;
        let is_for_signatures = match (key.get("use"), key.get("key_ops")) {
            (Some(purpose), _) if purpose != "sig" => false,
            (_, Some(Value::Array(operations))) => operations.iter().any(|operation| operation == "verify"),
            (_, operations) => operations.is_none(),
        };
        if !is_for_signatures {
            return Err(Fault::OtherUse);
        }
        let id = text(key, "kid")?.map(str::to_owned);
        let algorithm = Algorithm::of(key)?;
        let half = Half::parse(algorithm, key)?;
        Ok(Key { id, algorithm, half })
    }

    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match &self.half {
            Half::Secret(key) => hmac::verify(key, signed, signature).is_ok(),
            Half::Public(key) => key.verify_sig(signed, signature).is_ok(),
        }
    }
}

impl Half {
    fn parse(algorithm: Algorithm, key: &Map<String, Value>) -> Result<Self, Fault> {
        let bad = |what: String| Fault::Bad(what);
        let no_key = |_| Fault::Bad(format!("it is no key for {}", algorithm.as_str()));
        let public = match algorithm {
            Algorithm::HS256 => {
                let secret = bytes(key, "k")?;
                if secret.len() < SHORTEST_SECRET {
                    let length = secret.len();
                    return Err(bad(format!(
                        "its secret has {length} bytes, the least is {SHORTEST_SECRET}"
                    )));
                }
                return Ok(Half::Secret(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret))));
            }
            Algorithm::RS256 => {
                let (n, e) = (bytes(key, "n")?, bytes(key, "e")?);
                let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
                if !RSA_BITS.contains(&bits) {
                    return Err(bad(format!("its modulus has {bits} bits, and not {RSA_BITS:?}")));
                }
                RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            }
            Algorithm::ES256 => {
                let (x, y) = (bytes(key, "x")?, bytes(key, "y")?);
                if (x.len(), y.len()) != (32, 32) {
                    return Err(bad("`x` and `y` must have 32 bytes each".to_owned()));
                }
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [&[4], &*x, &*y].concat())
            }
            Algorithm::EdDSA => ParsedPublicKey::new(&ED25519, bytes(key, "x")?),
        };
        public.map(Half::Public).map_err(no_key)
    }
}

/// The member's text.
pub(super) fn text<'a>(key: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Fault> {
    match key.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Fault::Bad(format!("`{name}` must be a string"))),
    }
}

/// The member's bytes, in base64url without padding.
pub(super) fn bytes(key: &Map<String, Value>, name: &str) -> Result<Vec<u8>, Fault> {
    let text = text(key, name)?.ok_or_else(|| Fault::Bad(format!("`{name}` is missing")))?;
    let wrong = |_| Fault::Bad(format!("`{name}` is no base64url without padding"));
    URL_SAFE_NO_PAD.decode(text).map_err(wrong)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn keys(keys: &Value) -> Result<Keys, String> {
        Keys::parse(&json!({ "keys": keys }).to_string())
    }

    /// The vectors of RFC 7515, appendix A, and of RFC 8037, appendix A.
    pub(in super::super) fn vectors() -> Vec<Value> {
        serde_json::from_str(include_str!("../../tests/fixtures/rfc-signatures.json")).unwrap()
    }

    /// The key of a vector.
    fn key(name: &str) -> Value {
        let vector = vectors().into_iter().find(|vector| vector["name"].as_str().unwrap().ends_with(name));
        vector.unwrap()["key"].clone()
    }

    fn with(mut key: Value, member: &str, value: impl Into<Value>) -> Value {
        key[member] = value.into();
        key
    }

    fn verifies(keys: &Result<Keys, String>, token: &str) -> bool {
        let jws = Jws::parse(token);
        keys.as_ref().is_ok_and(|keys| jws.is_ok_and(|jws| keys.verify(&jws).is_ok()))
    }

    #[test]
    fn the_vectors_of_the_rfcs_hold() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 8);
        for vector in vectors {
            let keys = keys(&json!([vector["key"]]));
            let token = vector["token"].as_str().unwrap();
            assert_eq!(json!(verifies(&keys, token)), vector["taken"], "{}", vector["name"]);
        }
    }

    #[test]
    fn the_vectors_of_wycheproof_hold() {
        let set = include_str!("../../tests/fixtures/wycheproof/json_web_signature_test.json");
        let set: Value = serde_json::from_str(set).unwrap();
        let (mut count, mut taken) = (0, 0);
        for group in set["testGroups"].as_array().unwrap() {
            let key = group.get("public").unwrap_or(&group["private"]);
            let keys = keys(&json!([key]));
            // Of a key for another algorithm, or for encryption, there is no set.
            let is_ours = ["HS256", "RS256", "ES256"].iter().any(|name| key["alg"] == *name);
            assert_eq!(keys.is_ok(), is_ours, "{}: {keys:?}", group["comment"]);
            for test in group["tests"].as_array().unwrap() {
                let is_valid = match test["tcId"].as_u64().unwrap() {
                    // Said to have wrong padding, but to the letter the same as the valid number 357.
                    367 | 370 => true,
                    // Said to be valid with a question mark among the base64url, which RFC 7515, 2 rules out.
                    372 | 373 => false,
                    _ => is_ours && test["result"] == "valid",
                };
                assert_eq!(verifies(&keys, test["jws"].as_str().unwrap()), is_valid, "{test}");
                count += 1;
                taken += usize::from(is_valid);
            }
        }
        assert_eq!((count, taken), (401, 20));
    }

    #[test]
    fn a_set_is_read_and_what_it_can_not_be_is_said() {
        let (oct, rsa, ec, ed) = (key("A.1"), key("A.2"), key("A.3"), key("A.4, A.5"));
        let all = keys(&json!([with(rsa.clone(), "kid", "a"), with(ec.clone(), "kid", "a"), ed])).unwrap();
        assert!(all.count() == 3 && all.has_secrets() && all.skipped().is_empty());
        let secret = |length: usize| json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(vec![7; length])});
        assert!(keys(&json!([secret(32), secret(33)])).is_ok());
        let modulus = |bits: usize| URL_SAFE_NO_PAD.encode([vec![0x80; 1], vec![1; bits / 8 - 1]].concat());
        assert!(keys(&json!([with(rsa.clone(), "n", modulus(2_048))])).is_ok());
        let zeros = URL_SAFE_NO_PAD.encode([vec![0; 256], vec![1; 1]].concat());
        let same = with(ec.clone(), "kid", "x");
        for (bad, why) in [
            (json!([]), "no key for signatures"),
            (json!([secret(31)]), "key 1: its secret has 31 bytes, the least is 32"),
            (json!([{"kty": "oct"}]), "`k` is missing"),
            (json!([{"kty": "oct", "k": 1}]), "`k` must be a string"),
            (json!([with(oct.clone(), "k", "AAAA=")]), "`k` is no base64url"),
            (json!([with(rsa.clone(), "n", modulus(2_040))]), "key 1: its modulus has 2040 bits"),
            (json!([with(rsa.clone(), "n", modulus(8_200))]), "its modulus has 8200 bits"),
            (json!([with(rsa.clone(), "n", zeros)]), "no key for RS256"),
            (json!([with(rsa.clone(), "e", "AA")]), "no key for RS256"),
            (json!([with(ec.clone(), "x", "AAAA")]), "32 bytes each"),
            (json!([with(ec.clone(), "x", ec["y"].clone())]), "no key for ES256"),
            (json!([with(key("A.4, A.5"), "x", "AAAA")]), "no key for EdDSA"),
            (json!([ec, oct]), "can't be in one set"),
            (json!([oct, with(rsa.clone(), "use", "enc")]), "can't be in one set"),
            (json!([same, same]), "two keys for ES256 have the id \"x\""),
            (json!(vec![secret(32); MOST + 1]), "there are 65 keys, the limit is 64"),
            (json!([1]), "key 1: it must be an object"),
            (json!([{}]), "`kty` is missing"),
            (json!([with(ec.clone(), "kid", 1)]), "`kid` must be a string"),
            (json!([key("A.4")]), "its curve \"P-521\" is neither"),
            (json!([{"kty": "AKP"}]), "its `kty` \"AKP\" is none of"),
            (json!([with(rsa.clone(), "alg", "PS256")]), "its `alg` \"PS256\" is not RS256"),
            (json!([with(oct.clone(), "alg", "HS512")]), "its `alg` \"HS512\" is not HS256"),
            (json!([with(rsa.clone(), "alg", "HS256")]), "its `alg` \"HS256\" is not RS256"),
            (json!([with(ec.clone(), "use", "enc")]), "key 1: its `use` or `key_ops` is not"),
            (json!([with(ec.clone(), "key_ops", json!(["sign"]))]), "its `use` or `key_ops` is not"),
            (json!([with(ec.clone(), "key_ops", "verify")]), "its `use` or `key_ops` is not"),
        ] {
            let error = keys(&bad).err().unwrap_or_default();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(keys(&json!(vec![secret(32); MOST])).is_ok());
        for bad in
            ["", "[]", "{}", "{\"keys\": {}}", "{\"keys\": [], \"keys\": []}", "-----BEGIN PUBLIC KEY-----"]
        {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_is_not_taken_is_passed_over_and_named() {
        let encryption = with(key("A.2"), "use", "enc");
        let set = keys(&json!([{"kty": "AKP"}, encryption, key("A.4"), key("A.3")])).unwrap();
        assert_eq!(set.count(), 1);
        let [first, second] = set.skipped() else { panic!("{set:?}") };
        assert!(first.starts_with("key 1: its `kty`") && second.starts_with("key 3: its curve"), "{set:?}");
        let operations = with(key("A.3"), "key_ops", json!(["sign", "verify"]));
        let public = keys(&json!([with(operations, "use", "sig")])).unwrap();
        assert!(public.skipped().is_empty() && public.has_secrets());
        let mut public = key("A.3");
        public.as_object_mut().unwrap().remove("d");
        assert!(!keys(&json!([public])).unwrap().has_secrets());
        assert!(!format!("{:?}", keys(&json!([key("A.1")]))).contains("AyM1"));
    }
}
