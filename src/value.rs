//! The values of settings: parsers that the settings of several modules share.

use std::time::Duration;

use bytesize::ByteSize;

/// Parses a duration of more than 0, as in `15s` or `7days`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a count of at least 1.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>().map_err(|error| error.to_string())? {
        0 => Err("must be at least 1".to_owned()),
        count => Ok(count),
    }
}

/// The size in bytes. Saturates: no machine has more.
pub(crate) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}
