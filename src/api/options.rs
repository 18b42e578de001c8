//! The settings of requests: their limits, and the hosts and origins they may have.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use crate::value::{at_least_one, duration};

/// The settings of every request.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// A name the hub is reached by, as browsers send it in Host; repeat it, or separate several by
    /// commas. `localhost` and the hub's own IP addresses are always allowed
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = host)]
    pub allow_host: Vec<String>,

    /// Another origin whose web pages may publish and subscribe, as in https://example.org, or in
    /// https://*.example.org for its subdomains; repeat it, or separate several by commas; `*` is any
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,

    /// Take tokens in the query too, as ?token=…, for an EventSource of another origin. Proxies and
    /// browsers keep such URLs
    #[arg(long)]
    pub token_in_query: bool,

    /// A folder whose files are served at `/`, to everybody: a page of one's own. The hub's own page is at
    /// `/hub/` then
    #[arg(long, value_name = "FOLDER")]
    pub public: Option<PathBuf>,

    /// The longest body of a publish
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    pub max_body: ByteSize,

    /// The least that a request's body must bring in any five seconds, a second
    #[arg(long, value_name = "SIZE", default_value = "1KiB")]
    pub min_body_rate: ByteSize,

    /// How long a request's body may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,

    /// The most messages of one publish
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = at_least_one)]
    pub max_batch: usize,

    /// The longest event name, in bytes
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub max_event_name: usize,

    /// The longest channel name, in bytes
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    pub max_channel_name: usize,

    /// The most channels one subscriber may listen to
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    pub max_channels: usize,

    /// How deep arrays and objects in JSON data may nest
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    pub max_json_depth: usize,

    /// Leave the messages' data out of the log
    #[arg(long)]
    pub hide_data: bool,
}

/// Parses a host: a name or an address, without a port, as it is compared.
pub(super) fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let address = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match text {
        "" => Err("is empty".to_owned()),
        host if is_name(host) => Ok(host.to_owned()),
        _ if address.is_ok_and(|address| address.is_ipv6()) => {
            Ok(format!("[{}]", text.trim_matches(['[', ']'])))
        }
        _ => Err("give it as in chat.example.org, without scheme or port".to_owned()),
    }
}

impl Options {
    /// Whether pages of every origin may publish and subscribe.
    pub(super) fn allows_any_origin(&self) -> bool {
        self.allow_origin.iter().any(|allowed| allowed == "*")
    }
}

/// Whether the list has this origin, or a pattern of origins that it matches.
pub(super) fn is_listed(list: &[String], origin: &str) -> bool {
    let is_subdomain_of = |(scheme, domain): (&str, &str)| {
        let name = origin.strip_prefix(scheme).and_then(|rest| rest.strip_suffix(domain));
        name.and_then(|name| name.strip_prefix("://")?.strip_suffix('.')).is_some_and(is_name)
    };
    list.iter().any(|listed| listed == origin || listed.split_once("://*.").is_some_and(is_subdomain_of))
}

/// Whether the text can be a host's name, or some labels of one.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Parses an origin, as in `https://example.org`, `null` or `app://local` (RFC 6454 6.2); or `*`, which is
/// any; or a pattern, as in `https://*.example.org`. Returns it as browsers send it: scheme and host in lower
/// case, no default port, no slash at the end.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let origin = text.trim().to_ascii_lowercase();
    if ["*", "null"].contains(&&*origin) {
        return Ok(origin);
    }
    let (scheme, host) = origin.split_once("://").unwrap_or_default();
    let host = without_default_port(scheme, host);
    let in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let in_host = |byte: u8| byte.is_ascii_graphic() && !b"/?#@*,\\".contains(&byte);
    let plain = host.strip_prefix("*.").unwrap_or(host);
    // Some shells of apps send `file://`.
    let has_host = !plain.is_empty() || origin == "file://";
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(in_scheme);
    if is_scheme && has_host && plain.bytes().all(in_host) {
        Ok(format!("{scheme}://{host}"))
    } else {
        Err("give it as in https://example.org, without a path".to_owned())
    }
}

/// The host of an origin, or of a request for one, without the port that is the scheme's own (RFC 6454 4).
pub(super) fn without_default_port<'a>(scheme: &str, host: &'a str) -> &'a str {
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return host,
    };
    host.strip_suffix(port).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_without_a_port() {
        for good in ["chat.example.org", "10.1.2.3", "[::1]", "a_b"] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        for bad in ["", "https://a", "a:80", "a/b", "*"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        assert_eq!(origin("https://Example.org").unwrap(), "https://example.org");
        assert_eq!(origin("https://example.org:443").unwrap(), "https://example.org");
        assert_eq!(origin("http://[::1]:80").unwrap(), "http://[::1]");
        assert_eq!(origin("http://localhost:443").unwrap(), "http://localhost:443");
        for good in ["null", "*", "file://", "chrome-extension://abc", "capacitor://localhost", "app://."] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        for bad in ["example.org", "https://", "https://example.org/", "https://a b", "https://*.", "://a"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
        for bad in
            ["", "https://*", "https://a.*.b", "https://*a", "https://a@b", "nul", "file:///", "1a://b"]
        {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_is_for_subdomains_alone() {
        let list = [origin("https://*.Example.org").unwrap(), origin("http://*.local:8080").unwrap()];
        for good in ["https://a.example.org", "https://a.b.example.org", "http://x-1.local:8080"] {
            assert!(is_listed(&list, good), "{good}");
        }
        for bad in [
            "https://example.org",
            "https://.example.org",
            "https://evil-example.org",
            "http://a.example.org",
            "https://a.example.org:8443",
            "https://a.example.org.evil.org",
            "https://evil.org/a.example.org",
            "https://evil.org#a.example.org",
            "https://a@b.example.org",
            "http://a.local",
        ] {
            assert!(!is_listed(&list, bad), "{bad}");
        }
    }
}
