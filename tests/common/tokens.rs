//! Credentials: a file of static tokens, and a key by which a test signs others.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Folder, Hub};

/// The credentials of one hub.
pub struct Tokens {
    folder: Folder,
    key: hmac::Key,
}

impl Tokens {
    pub fn new() -> Tokens {
        let folder = Folder::new();
        let mut secret = [0; 32];
        rand::fill(&mut secret).unwrap();
        let key = json!({"kty": "oct", "alg": "HS256", "kid": "test", "k": URL_SAFE_NO_PAD.encode(secret)});
        let keys = folder.file("keys.json");
        fs::write(&keys, json!({"keys": [key]}).to_string()).unwrap();
        fs::set_permissions(&keys, Permissions::from_mode(0o600)).unwrap();
        fs::write(folder.file("tokens"), "").unwrap();
        Tokens { folder, key: hmac::Key::new(hmac::HMAC_SHA256, &secret) }
    }

    /// The file of static tokens.
    pub fn file(&self) -> String {
        self.folder.file("tokens")
    }

    /// A hub that takes them, with these flags.
    pub fn hub(&self, flags: &[&str]) -> Hub {
        let (tokens, keys) = (self.file(), self.folder.file("keys.json"));
        Hub::start(&[&["--tokens", &tokens, "--keys", &keys], flags].concat())
    }

    /// A static token of this name, with what else its line says. It is for hubs that start after this.
    pub fn add(&self, name: &str, rest: &str) -> String {
        let (secret, hash) = tabcast::auth::tokens::new().unwrap();
        let file = self.file();
        let lines = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{lines}{name} {hash} {rest}\n")).unwrap();
        secret
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(&json!({"alg": "HS256", "kid": "test"})), encode(claims));
        let signature = hmac::sign(&self.key, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The token of a subject with these grants, issued now, until that many seconds after 1970.
    pub fn until(&self, expires: u64, subject: &str, grants: &Value) -> String {
        self.sign(&json!({"sub": subject, "iat": now(), "exp": expires, "tabcast": grants}))
    }

    /// The same, for an hour.
    pub fn of(&self, subject: &str, grants: &Value) -> String {
        self.until(now() + 3600, subject, grants)
    }
}

/// The header with this token.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
