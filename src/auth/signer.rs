//! A signer: the secret half of a key. Tokens are signed with it, by the command line and never by a hub.

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeyPairComponents, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::json;
use super::keys::{self, Algorithm};
use super::tokens::hex;

/// What signs tokens.
#[derive(Debug)]
pub struct Signer {
    id: Option<String>,
    algorithm: Algorithm,
    secret: Secret,
}

#[derive(Debug)]
enum Secret {
    Shared(Box<hmac::Key>),
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Signer {
    /// The first key of the set that can sign, or the one with this id.
    ///
    /// # Errors
    /// What is wrong with the set or the key.
    pub fn parse(text: &str, id: Option<&str>) -> Result<Self, String> {
        let keys = set(text)?;
        let is_meant = |key: &&Map<String, Value>| match id {
            Some(id) => key.get("kid").is_some_and(|own| own == id),
            None => key.contains_key("d") || key.contains_key("k"),
        };
        let key = keys.iter().find(is_meant);
        let key = key.ok_or_else(|| match id {
            Some(id) => format!("no key has the id {id:?}"),
            None => "no key has a secret half, with which it could sign".to_owned(),
        })?;
        let algorithm = Algorithm::of(key)?;
        let bytes = |name| keys::bytes(key, name).map_err(String::from);
        let no_key = |_| format!("it is no key for {}", algorithm.as_str());
        let secret = match algorithm {
            Algorithm::HS256 => Secret::Shared(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &bytes("k")?))),
            Algorithm::RS256 => {
                let components = KeyPairComponents {
                    public_key: PublicKeyComponents { n: bytes("n")?, e: bytes("e")? },
                    d: bytes("d")?,
                    p: bytes("p")?,
                    q: bytes("q")?,
                    dP: bytes("dp")?,
                    dQ: bytes("dq")?,
                    qInv: bytes("qi")?,
                };
                Secret::Rsa(RsaKeyPair::from_components(&components).map_err(no_key)?)
            }
            Algorithm::ES256 => {
                let public = [&[4], &*bytes("x")?, &*bytes("y")?].concat();
                let curve = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = EcdsaKeyPair::from_private_key_and_public_key(curve, &bytes("d")?, &public);
                Secret::Ec(pair.map_err(no_key)?)
            }
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::from_seed_and_public_key(&bytes("d")?, &bytes("x")?);
                Secret::Ed(pair.map_err(no_key)?)
            }
        };
        Ok(Signer { id: keys::text(key, "kid")?.map(str::to_owned), algorithm, secret })
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn sign(&self, claims: &Value) -> Result<String, Unspecified> {
        let mut header = json!({"alg": self.algorithm.as_str(), "typ": "JWT"});
        if let Some(id) = &self.id {
            header["kid"] = id.as_str().into();
        }
        self.sign_as(&header.to_string(), claims.to_string().as_bytes())
    }

    fn sign_as(&self, header: &str, payload: &[u8]) -> Result<String, Unspecified> {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let message = signed.as_bytes();
        let signature = match &self.secret {
            Secret::Shared(key) => encode(hmac::sign(key, message)),
            Secret::Ec(pair) => encode(pair.sign(&SystemRandom::new(), message)?),
            Secret::Ed(pair) => encode(pair.try_sign(message)?),
            Secret::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                encode(signature)
            }
        };
        Ok(format!("{signed}.{signature}"))
    }
}

/// A new set of one key, with its secret half. There is none for RSA.
///
/// # Errors
/// If the system has no random numbers, or for RSA.
pub fn new(algorithm: Algorithm) -> Result<String, Unspecified> {
    let mut id = [0; 8];
    rand::fill(&mut id)?;
    let mut key = match algorithm {
        Algorithm::HS256 => {
            let mut secret = [0; 32];
            rand::fill(&mut secret)?;
            json!({"kty": "oct", "k": encode(secret)})
        }
        Algorithm::ES256 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
            let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
            let d = encode(pair.private_key().as_be_bytes()?.as_ref());
            json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y), "d": d})
        }
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::generate()?;
            let d = encode(pair.seed()?.as_be_bytes()?.as_ref());
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key()), "d": d})
        }
        Algorithm::RS256 => return Err(Unspecified),
    };
    key["kid"] = hex(&id).into();
    key["use"] = "sig".into();
    key["alg"] = algorithm.as_str().into();
    Ok(in_words(&[key]))
}

/// The set with the public halves alone.
///
/// # Errors
/// What is wrong with the set.
pub fn public(text: &str) -> Result<String, String> {
    const PUBLIC: [&str; 9] = ["kty", "crv", "x", "y", "n", "e", "kid", "use", "alg"];
    let public = |mut key: Map<String, Value>| {
        if key.get("kty").is_some_and(|kind| kind == "oct") {
            return Err("a shared secret has no public half".to_owned());
        }
        key.retain(|name, _| PUBLIC.contains(&name.as_str()));
        Ok(Value::from(key))
    };
    Ok(in_words(&set(text)?.into_iter().map(public).collect::<Result<Vec<_>, _>>()?))
}

/// The keys of a set that would be taken.
fn set(text: &str) -> Result<Vec<Map<String, Value>>, String> {
    keys::Keys::parse(text)?;
    let keys = json::object(text.as_bytes())?.remove("keys");
    let keys = keys.as_ref().and_then(Value::as_array).into_iter().flatten();
    Ok(keys.filter_map(Value::as_object).cloned().collect())
}

fn in_words(keys: &[Value]) -> String {
    format!("{:#}", json!({"keys": keys}))
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::jws::Jws;
    use crate::auth::keys::Keys;
    use crate::auth::keys::tests::vectors;

    fn verifies(set: &str, token: &str) -> bool {
        Keys::parse(set).unwrap().verify(&Jws::parse(token).unwrap()).is_ok()
    }

    #[test]
    fn what_the_rfcs_sign_is_signed_to_the_letter() {
        let mut count = 0;
        for vector in vectors().iter().filter(|vector| vector["taken"] == true) {
            let set = json!({"keys": [vector["key"]]}).to_string();
            let signer = Signer::parse(&set, None).unwrap();
            let token = vector["token"].as_str().unwrap();
            let parts: Vec<_> = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
            let signed = signer.sign_as(std::str::from_utf8(&parts[0]).unwrap(), &parts[1]).unwrap();
            assert_eq!(signed == token, vector["repeatable"] == true, "{}", vector["name"]);
            assert!(verifies(&set, &signed));
            count += 1;
        }
        assert_eq!(count, 4);
    }

    #[test]
    fn a_new_key_signs_and_its_public_half_verifies() {
        for algorithm in [Algorithm::HS256, Algorithm::ES256, Algorithm::EdDSA] {
            let (set, other) = (new(algorithm).unwrap(), new(algorithm).unwrap());
            let token = Signer::parse(&set, None).unwrap().sign(&json!({"sub": "ada"})).unwrap();
            assert!(verifies(&set, &token), "{set}");
            let jws = Jws::parse(&token).unwrap();
            assert!(jws.algorithm == algorithm.as_str() && jws.key_id.is_some());
            assert!(Keys::parse(&other).unwrap().verify(&jws).is_err());
            let key = |set: &str| serde_json::from_str::<Value>(set).unwrap()["keys"][0].clone();
            if algorithm == Algorithm::HS256 {
                assert!(public(&set).unwrap_err().contains("no public half"));
                continue;
            }
            let public = public(&set).unwrap();
            assert!(verifies(&public, &token) && !Keys::parse(&public).unwrap().has_secrets());
            let mut expected = key(&set);
            expected.as_object_mut().unwrap().remove("d");
            assert_eq!(key(&public), expected);
            assert!(Signer::parse(&public, None).unwrap_err().contains("no key has a secret half"));
            // Halves of two keys are no key.
            let mut mixed = key(&set);
            mixed["d"] = key(&other)["d"].clone();
            assert!(Signer::parse(&json!({"keys": [mixed]}).to_string(), None).is_err());
        }
        assert!(new(Algorithm::RS256).is_err());
    }

    #[test]
    fn of_several_keys_the_one_with_the_id_signs() {
        let key = |set: String| serde_json::from_str::<Value>(&set).unwrap()["keys"][0].clone();
        let keys = [Algorithm::ES256, Algorithm::EdDSA].map(|algorithm| key(new(algorithm).unwrap()));
        let set = json!({"keys": keys}).to_string();
        for key in &keys {
            let token = Signer::parse(&set, key["kid"].as_str()).unwrap().sign(&json!({})).unwrap();
            assert_eq!(Jws::parse(&token).unwrap().key_id.as_deref(), key["kid"].as_str());
        }
        assert!(Signer::parse(&set, Some("x")).unwrap_err().contains("no key has the id \"x\""));
    }
}
