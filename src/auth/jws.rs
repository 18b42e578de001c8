//! A text that was signed (RFC 7515, compact): its header, its payload, and the signature of both.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::json;
use super::refused::Refused;

/// What was signed, as its header says it was. Nothing of it is known to be right.
#[derive(Debug)]
pub(super) struct Jws<'a> {
    /// The algorithm that the header names.
    pub(super) algorithm: String,
    /// The id of the key that the header names.
    pub(super) key_id: Option<String>,
    /// What the signature is of: header and payload, encoded.
    pub(super) signed: &'a [u8],
    pub(super) payload: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// # Errors
    /// [`Refused::Invalid`].
    pub(super) fn parse(token: &'a str) -> Result<Self, Refused> {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts[..] else {
            let count = parts.len();
            return Err(Refused::invalid(format!(
                "a signed token has three parts between dots, not {count}"
            )));
        };
        let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
        let header = json::object(&decode("header", header)?)
            .map_err(|what| Refused::invalid(format!("the token's header: {what}")))?;
        // Whoever does not know an extension that must be known has to refuse (RFC 7515, 4.1.11). None is
        // known here.
        if header.contains_key("crit") {
            return Err(Refused::invalid("the token's header has `crit`, which the hub does not know"));
        }
        let Some(Value::String(algorithm)) = header.get("alg") else {
            return Err(Refused::invalid("the token's header has no `alg`, or one that is no string"));
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Refused::invalid("the token's `kid` must be a string")),
        };
        let (algorithm, payload) = (algorithm.clone(), decode("payload", payload)?);
        Ok(Jws { algorithm, key_id, signed, payload, signature: decode("signature", signature)? })
    }
}

/// Decodes base64url without padding; bits that nothing needs must be 0.
fn decode(part: &str, text: &str) -> Result<Vec<u8>, Refused> {
    let wrong = |_| Refused::invalid(format!("the token's {part} is no base64url without padding"));
    URL_SAFE_NO_PAD.decode(text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(header: &str) -> String {
        format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(header))
    }

    #[test]
    fn a_text_is_split_as_it_was_signed() {
        let token = with_header(r#"{"typ": "anything", "alg": "HS256", "kid": "a", "jwk": {}}"#);
        let jws = Jws::parse(&token).unwrap();
        assert_eq!((&*jws.algorithm, jws.key_id.as_deref()), ("HS256", Some("a")));
        assert_eq!((&*jws.payload, &*jws.signature), (&b"{}"[..], &b"\0"[..]));
        assert_eq!(jws.signed, token.strip_suffix(".AA").unwrap().as_bytes());
    }

    #[test]
    fn what_is_no_signed_text_is_refused() {
        let good = with_header(r#"{"alg":"HS256"}"#);
        let (head, rest) = good.split_once('.').unwrap();
        for (bad, why) in [
            (String::new(), "not 1"),
            (head.to_owned(), "not 1"),
            (format!("{head}.e30"), "not 2"),
            (format!("{good}."), "not 4"),
            (format!("{good}.AA.AA"), "not 5"),
            (r#"{"payload":"e30","signatures":[]}"#.to_owned(), "not 1"),
            (format!("{head}=.{rest}"), "header is no base64url"),
            (format!("{head}.e30=.AA"), "payload is no base64url"),
            (format!("{head}.e31.AA"), "payload is no base64url"),
            (format!("{head}.e30.AA=="), "signature is no base64url"),
            (format!("{head}.e30.+/8"), "signature is no base64url"),
            (format!("{head}.e30.AB"), "signature is no base64url"),
            (format!(" {good}"), "header is no base64url"),
            (format!("{good}\n"), "signature is no base64url"),
            (format!(".{rest}"), "header"),
            (with_header("[]"), "a JSON object"),
            (with_header(r#"{"alg":"HS256","alg":"none"}"#), "\"alg\" is there twice"),
            (with_header(r#"{"alg":"HS256","crit":["exp"]}"#), "crit"),
            (with_header(r#"{"alg":"HS256","crit":[]}"#), "crit"),
            (with_header("{}"), "no `alg`"),
            (with_header(r#"{"alg":["HS256"]}"#), "no `alg`"),
            (with_header(r#"{"alg":"HS256","kid":1}"#), "`kid` must be a string"),
        ] {
            match Jws::parse(&bad) {
                Err(Refused::Invalid(what)) => assert!(what.contains(why), "{bad}: {what}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
}
