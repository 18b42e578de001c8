//! For whom a proxy asks: the address of a request that came through trusted proxies.

use std::iter;
use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, header};

use crate::limits::{Peer, Proxies};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The peer for whom limits count, and whom the log names: that of the connection, or, if it is a
/// trusted proxy's, the last address in `X-Forwarded-For` that is not a trusted proxy's; in `Forwarded` (RFC
/// 7239) if the other header is not there. Each proxy adds the address that it was asked from, so what stands
/// before that address may be anything.
pub(super) fn address(trusted: &[Proxies], connection: Peer, headers: &HeaderMap) -> Peer {
    let is_trusted = |peer| trusted.iter().any(|proxies| proxies.contains(peer));
    let mut address = connection;
    if trusted.is_empty() || !is_trusted(connection) {
        return address;
    }
    for text in hops(headers).into_iter().rev() {
        // An unknown or hidden address: the last known one stands for it.
        let Some(hop) = parse(&text) else { break };
        address = hop;
        if !is_trusted(hop) {
            break;
        }
    }
    address
}

/// The addresses that proxies added, the last one added last.
fn hops(headers: &HeaderMap) -> Vec<String> {
    let list = |name| {
        let lines = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
        lines.collect::<Vec<_>>().join(",")
    };
    if headers.contains_key(X_FORWARDED_FOR) {
        return list(X_FORWARDED_FOR).split(',').map(|hop| hop.trim().to_owned()).collect();
    }
    let for_of = |element: &str| {
        let pairs = unquoted(element, b';').filter_map(|pair| pair.trim().split_once('='));
        let mut values = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for")).map(|(_, value)| value);
        values.next().unwrap_or_default().trim_matches('"').to_owned()
    };
    let list = list(header::FORWARDED);
    unquoted(&list, b',').filter(|element| !element.is_empty()).map(for_of).collect()
}

/// The parts of a text between these marks, unless they are quoted: a proxy may quote what it was sent, as
/// the host. After a quote that is never closed, no part is known.
fn unquoted(text: &str, mark: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest.take()?;
        let (mut is_quoted, mut is_escaped) = (false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = is_quoted,
                b'"' => is_quoted = !is_quoted,
                _ if byte == mark && !is_quoted => {
                    rest = Some(&text[at + 1..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
        }
        Some(if is_quoted { "unknown" } else { text })
    })
}

/// An address with a port, or without one, or with a hidden one (RFC 7239 6.3): then the port is 0.
fn parse(text: &str) -> Option<Peer> {
    let text = text.rsplit_once(":_").map_or(text, |(address, _)| address);
    let address = text.parse::<SocketAddr>().or_else(|_| {
        text.trim_start_matches('[').trim_end_matches(']').parse().map(|address| SocketAddr::new(address, 0))
    });
    address.ok().map(Peer::from)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// The address for a connection from this address, with these headers.
    fn of(connection: &str, headers: &[(HeaderName, &'static str)]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        let connection = SocketAddr::new(connection.parse().unwrap(), 9).into();
        match address(&trusted, connection, &map) {
            Peer::Inet(address) => address.ip().to_string(),
            Peer::Unix => "unix".to_owned(),
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let forwarded = |value| [(X_FORWARDED_FOR, value)];
        assert_eq!(of("192.0.2.1", &forwarded("203.0.113.1")), "192.0.2.1");
        assert_eq!(of("10.0.0.1", &forwarded("203.0.113.1")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("198.51.100.1, 203.0.113.1")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("203.0.113.1, 10.0.0.2,10.0.0.3")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("10.0.0.9, 10.0.0.2")), "10.0.0.9");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        let forwarded = |value| [(X_FORWARDED_FOR, value)];
        assert_eq!(of("10.0.0.1", &forwarded("203.0.113.1:4711")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("[2001:db8::1]:4711")), "2001:db8::1");
        assert_eq!(of("fd00::1", &forwarded("2001:db8::1")), "2001:db8::1");
        assert_eq!(of("10.0.0.1", &forwarded("::ffff:203.0.113.1")), "203.0.113.1");
        for unknown in ["203.0.113.1, unknown", "203.0.113.1, _hidden", "203.0.113.1, ", "\u{7f}"] {
            let unknown: &'static str = unknown;
            if HeaderValue::from_str(unknown).is_ok() {
                assert_eq!(of("10.0.0.1", &forwarded(unknown)), "10.0.0.1", "{unknown}");
            }
        }
        let lines = [(X_FORWARDED_FOR, "198.51.100.1"), (X_FORWARDED_FOR, "203.0.113.1, 10.0.0.2")];
        assert_eq!(of("10.0.0.1", &lines), "203.0.113.1");
    }

    #[test]
    fn the_standard_header_is_read_where_the_other_is_not_there() {
        let forwarded = |value| [(header::FORWARDED, value)];
        assert_eq!(of("10.0.0.1", &forwarded("for=203.0.113.1;proto=https, for=10.0.0.2")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("By=10.0.0.9;For=\"[2001:db8::1]:47\"")), "2001:db8::1");
        assert_eq!(of("10.0.0.1", &forwarded("for=203.0.113.1, for=_secret")), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &forwarded("for=203.0.113.1, for=unknown")), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &forwarded("for=\"203.0.113.1:_hidden\"")), "203.0.113.1");
        assert_eq!(of("10.0.0.1", &forwarded("for=\"[2001:db8::1]:_hidden\"")), "2001:db8::1");
        // What the proxy was sent, as the host, may contain anything.
        for host in ["a, for=198.51.100.1", "a;for=198.51.100.1", "a\\\", for=198.51.100.1;x=\\\""] {
            let quoted = format!("host=\"{host}\";for=203.0.113.1;by=10.0.0.9");
            assert_eq!(of("10.0.0.1", &forwarded(Box::leak(quoted.into()))), "203.0.113.1", "{host}");
        }
        assert_eq!(of("10.0.0.1", &forwarded("for=\"203.0.113.9, for=203.0.113.1")), "10.0.0.1");
        let both = [(header::FORWARDED, "for=198.51.100.1"), (X_FORWARDED_FOR, "203.0.113.1")];
        assert_eq!(of("10.0.0.1", &both), "203.0.113.1");
    }
}
