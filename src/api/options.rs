//! The settings of requests: their limits, and the hosts and origins they may have.

use std::net::IpAddr;
use std::time::Duration;

use bytesize::ByteSize;

use crate::value::duration;

/// The settings of every request.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// A name the hub is reached by, as browsers send it in Host; repeat it, or separate several by
    /// commas. `localhost` and the hub's own IP addresses are always allowed
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = host)]
    pub allow_host: Vec<String>,

    /// Another origin whose web pages may publish and subscribe, as in https://example.org; repeat
    /// it, or separate several by commas; `*` is any
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,

    /// The longest body of a publish
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    pub max_body: ByteSize,

    /// The least that a request's body must bring in any five seconds, a second
    #[arg(long, value_name = "SIZE", default_value = "1KiB")]
    pub min_body_rate: ByteSize,

    /// How long a request's body may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,

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
fn host(text: &str) -> Result<String, String> {
    let name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let address = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match text {
        "" => Err("is empty".to_owned()),
        host if name(host) => Ok(host.to_owned()),
        _ if address.is_ok_and(|address| address.is_ipv6()) => {
            Ok(format!("[{}]", text.trim_matches(['[', ']'])))
        }
        _ => Err("give it as in chat.example.org, without scheme or port".to_owned()),
    }
}

/// Parses an origin. Returns it as browsers send it: scheme and host in lower case, no default port, no slash
/// at the end.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let origin = text.to_ascii_lowercase();
    let default_port = if origin.starts_with("https:") { ":443" } else { ":80" };
    let origin = origin.strip_suffix(default_port).unwrap_or(&origin);
    let is_plain = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@*,".contains(&byte))
    };
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    if host.is_some_and(is_plain) {
        Ok(origin.to_owned())
    } else {
        Err("give it as in https://example.org, without a path".to_owned())
    }
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
        assert_eq!(origin("http://localhost:8080").unwrap(), "http://localhost:8080");
        for bad in ["example.org", "https://", "https://example.org/", "https://a b", "https://*.example.org"]
        {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
