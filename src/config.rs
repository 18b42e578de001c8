//! Every setting: its flag, environment variable, default and meaning. `tabcast --help` shows them,
//! and the README's table is held against that.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::hub::SeatLimits;
use crate::journal::{KeyLimits, PageLimit, Place, Retention};

const EXAMPLES: &str = "\
Examples:
  tabcast                                                 serve the hub and its page
  curl -N http://127.0.0.1:3000/events                    watch
  curl -d 'Hello World!' http://127.0.0.1:3000/messages   send

Durations are written 500ms, 15s, 10m, 24h; sizes 64KiB, 1MiB, 2GiB. A flag wins over its
environment variable. SIGINT and SIGTERM stop the hub: every stream is ended, publishes in
flight are finished, and it exits with 0. It exits with 1 if it can't start or its journal fails, 2 on a bad flag.";

/// A live message hub: POST a message, and every open browser tab and every `curl -N` sees it at once.
#[derive(Clone, Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, max_term_width = 110)]
pub struct Config {
    /// Where to listen. Anything but loopback lets others in: see --allow-host
    #[arg(long, env = "TABCAST_LISTEN", hide_env_values = true, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:3000", value_parser = address)]
    pub listen: SocketAddr,

    /// A name the hub is reached by, as browsers send it in Host; repeat it, or separate several by
    /// commas. `localhost` and the hub's own IP addresses are always allowed
    #[arg(long, env = "TABCAST_ALLOW_HOST", hide_env_values = true, value_name = "NAME", value_delimiter = ',', value_parser = host)]
    pub allow_host: Vec<String>,

    /// A foreign web page origin that may publish and subscribe, as in https://example.org; repeat
    /// it, or separate several by commas; `*` is any
    #[arg(long, env = "TABCAST_ALLOW_ORIGIN", hide_env_values = true, value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,

    /// The file messages are kept in; `memory` for none, and then they are gone with the process
    #[arg(long, env = "TABCAST_JOURNAL", hide_env_values = true, value_name = "PATH", default_value = "tabcast.db", value_parser = place)]
    pub journal: Place,

    /// The most messages kept
    #[arg(long, env = "TABCAST_RETENTION_MESSAGES", hide_env_values = true, value_name = "COUNT", default_value_t = 100_000, value_parser = at_least_one)]
    pub retention_messages: usize,

    /// The most bytes of kept messages: on the disk, or of `--journal memory` in memory
    #[arg(
        long,
        env = "TABCAST_RETENTION_BYTES",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "256MiB"
    )]
    pub retention_bytes: ByteSize,

    /// How long a message is kept; `--journal memory` keeps it as long as there is room
    #[arg(long, env = "TABCAST_RETENTION_AGE", hide_env_values = true, value_name = "DURATION", default_value = "7days", value_parser = duration)]
    pub retention_age: Duration,

    /// The most idempotency keys remembered; 0 remembers none
    #[arg(
        long,
        env = "TABCAST_IDEMPOTENCY_KEYS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 10_000
    )]
    pub idempotency_keys: usize,

    /// How long an idempotency key is remembered
    #[arg(long, env = "TABCAST_IDEMPOTENCY_WINDOW", hide_env_values = true, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub idempotency_window: Duration,

    /// The longest body of a publish
    #[arg(
        long,
        env = "TABCAST_MAX_BODY",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub max_body: ByteSize,

    /// The most bytes of bodies being published at once; more are answered with 503
    #[arg(
        long,
        env = "TABCAST_MAX_IN_FLIGHT",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "64MiB"
    )]
    pub max_in_flight: ByteSize,

    /// The longest event name, in bytes
    #[arg(
        long,
        env = "TABCAST_MAX_EVENT_NAME",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 128
    )]
    pub max_event_name: usize,

    /// The longest channel name, in bytes
    #[arg(
        long,
        env = "TABCAST_MAX_CHANNEL_NAME",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 128
    )]
    pub max_channel_name: usize,

    /// The most channels one subscriber may listen to
    #[arg(
        long,
        env = "TABCAST_MAX_CHANNELS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 16
    )]
    pub max_channels: usize,

    /// How deep arrays and objects in JSON data may nest
    #[arg(
        long,
        env = "TABCAST_MAX_JSON_DEPTH",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 64
    )]
    pub max_json_depth: usize,

    /// The most subscribers
    #[arg(
        long,
        env = "TABCAST_MAX_SUBSCRIBERS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 10_000
    )]
    pub max_subscribers: usize,

    /// The most subscribers from one address (of IPv6, one /64). Behind a proxy, all have the proxy's
    #[arg(
        long,
        env = "TABCAST_MAX_SUBSCRIBERS_PER_ADDRESS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value_t = 1_000
    )]
    pub max_subscribers_per_address: usize,

    /// The most connections; further ones wait to be accepted
    #[arg(long, env = "TABCAST_MAX_CONNECTIONS", hide_env_values = true, value_name = "COUNT", default_value_t = 15_000, value_parser = at_least_one)]
    pub max_connections: usize,

    /// The most messages read from the journal, or answered by GET /messages, at once
    #[arg(long, env = "TABCAST_REPLAY_PAGE", hide_env_values = true, value_name = "COUNT", default_value_t = 500, value_parser = at_least_one)]
    pub replay_page: usize,

    /// How long a request's head may take, from connecting or from the answer before it
    #[arg(long, env = "TABCAST_HEADER_TIMEOUT", hide_env_values = true, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,

    /// How long a request's body may take
    #[arg(long, env = "TABCAST_BODY_TIMEOUT", hide_env_values = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,

    /// How long the other side may take none of what it is sent before it is cut off
    #[arg(long, env = "TABCAST_STALL_TIMEOUT", hide_env_values = true, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub stall_timeout: Duration,

    /// How long a stream is idle before it is sent a keep-alive
    #[arg(long, env = "TABCAST_KEEP_ALIVE", hide_env_values = true, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub keep_alive: Duration,

    /// The shortest reconnection time a subscriber is told, at least 500ms
    #[arg(long, env = "TABCAST_RETRY_MIN", hide_env_values = true, value_name = "DURATION", default_value = "1s", value_parser = reconnection_time)]
    pub retry_min: Duration,

    /// The longest reconnection time a subscriber is told
    #[arg(long, env = "TABCAST_RETRY_MAX", hide_env_values = true, value_name = "DURATION", default_value = "4s", value_parser = reconnection_time)]
    pub retry_max: Duration,

    /// Leave the messages' data out of the log
    #[arg(long, env = "TABCAST_HIDE_DATA", hide_env_values = true)]
    pub hide_data: bool,

    /// How much is logged: off, error, warn, info, debug or trace
    #[arg(
        long,
        env = "TABCAST_LOG_LEVEL",
        hide_env_values = true,
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: tracing::level_filters::LevelFilter,
}

impl Config {
    /// The settings of the process's flags and environment. Ends the process on a bad one, and
    /// after `--help` or `--version`.
    pub fn from_process() -> Self {
        let config = Self::parse();
        if let Err(error) = config.check() {
            Self::command().error(ErrorKind::ValueValidation, error).exit();
        }
        config
    }

    /// What one setting asks of another.
    fn check(&self) -> Result<(), &'static str> {
        if self.retry_min > self.retry_max {
            return Err("--retry-min must not be more than --retry-max");
        }
        if self.max_body > self.max_in_flight {
            return Err(
                "--max-body must not be more than --max-in-flight, or the longest bodies would never be taken",
            );
        }
        Ok(())
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention {
            messages: self.retention_messages,
            bytes: bytes(self.retention_bytes),
            age: self.retention_age,
        }
    }

    pub(crate) fn key_limits(&self) -> KeyLimits {
        KeyLimits { count: self.idempotency_keys, window: self.idempotency_window }
    }

    pub(crate) fn page_limit(&self) -> PageLimit {
        /// What a subscriber that stops reading can hold of the journal beyond its own sockets'
        /// buffers. Smaller costs more, smaller writes; larger, memory for each slow reader.
        const PAGE_BYTES: usize = 128 << 10;
        PageLimit { messages: self.replay_page, bytes: PAGE_BYTES }
    }

    pub(crate) fn seat_limits(&self) -> SeatLimits {
        SeatLimits { total: self.max_subscribers, per_address: self.max_subscribers_per_address }
    }
}

/// As `usize`; more than fits is more than there can be.
pub(crate) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "" => Err("is empty".to_owned()),
        "memory" => Ok(Place::Memory),
        path => Ok(Place::File(path.into())),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses =
        text.to_socket_addrs().map_err(|error| format!("{error}; give it as in 127.0.0.1:3000"))?;
    addresses.next().ok_or_else(|| "has no address".to_owned())
}

/// A name or address alone: it is compared without the port.
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

/// As browsers send it: scheme and host in lower case, no default port, no slash at the end.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let origin = text.to_ascii_lowercase();
    let default_port = if origin.starts_with("https:") { ":443" } else { ":80" };
    let origin = origin.strip_suffix(default_port).unwrap_or(&origin);
    let plain = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@*,".contains(&byte))
    };
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    if host.is_some_and(plain) {
        Ok(origin.to_owned())
    } else {
        Err("give it as in https://example.org, without a path".to_owned())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// With `retry: 0` one tab was seen to reconnect 378 times in 1.1 s.
fn reconnection_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_millis(500) { Err("must be at least 500ms".to_owned()) } else { Ok(time) }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>().map_err(|error| error.to_string())? {
        0 => Err("must be at least 1".to_owned()),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_well_formed() {
        Config::command().debug_assert();
    }

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
