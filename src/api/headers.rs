//! The request headers that several handlers read.

use axum::http::{HeaderMap, HeaderName, header};

use super::media_type::MediaType;

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Whether the Accept header prefers this media type to `other`, which it is answered with otherwise. Of two
/// with the same weight, the one that is named more precisely is preferred: `*/*` prefers none.
pub(super) fn prefers(headers: &HeaderMap, media_type: (&str, &str), other: (&str, &str)) -> bool {
    weight(headers, media_type) > weight(headers, other)
}

/// The weight that the Accept header gives to this media type, in thousandths, and how precisely it names
/// it: 3 is best (RFC 9110 12.4.2, 12.5.1).
fn weight(headers: &HeaderMap, (kind, subtype): (&str, &str)) -> (u16, u8) {
    let ranges = headers.get_all(header::ACCEPT).iter().flat_map(|value| MediaType::list(value.as_bytes()));
    let matching = ranges.filter_map(|range| {
        let precision = match range.names() {
            names if names == (kind, subtype) => 3,
            (name, "*") if name == kind => 2,
            ("*", "*") => 1,
            _ => return None,
        };
        let weight = range.parameter("q").next().and_then(|text| std::str::from_utf8(text).ok());
        Some((precision, quality(weight)))
    });
    // The most precise range counts, and not the one that weighs most.
    match matching.max() {
        Some((precision, quality)) if quality > 0 => (quality, precision),
        _ => (0, 0),
    }
}

/// Whether the Accept-Encoding header accepts gzip, and no less than a body as it is (RFC 9110 12.5.3).
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    for coding in lines.flat_map(|line| line.split(',')) {
        let (name, parameter) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = Some(quality(parameter.split_once('=').map(|(_, weight)| weight.trim())));
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = weight,
            "*" => any = weight,
            "identity" => identity = weight,
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// The weight that this text says, in thousandths: all, if it says none that can be read.
fn quality(text: Option<&str>) -> u16 {
    let quality = text.and_then(|text| text.parse().ok());
    // Out of bounds, or not a number, it becomes a bound.
    (quality.unwrap_or(1.0_f32).clamp(0.0, 1.0) * 1000.0) as u16
}
