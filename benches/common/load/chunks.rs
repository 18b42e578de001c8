//! The chunks of a chunked body (RFC 9112 7.1): which bytes are data.

use anyhow::{Context, bail};

/// The place in a body that a stream has come to.
pub(super) enum Chunks {
    /// In the line of a chunk's size, or in the line break before it. The size as far as it was read.
    Size(Option<usize>),
    /// In a chunk's data, of which so many bytes are left.
    Data(usize),
    /// In a body without chunks.
    None,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Chunks::Size(None)
    }

    /// Takes the data with which `bytes` begin; `None` if there is no more.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> anyhow::Result<Option<&'a [u8]>> {
        while let Some((first, after)) = bytes.split_first() {
            match self {
                Chunks::None => return Ok(Some(std::mem::take(bytes))),
                Chunks::Data(left) => {
                    let (data, after) = bytes.split_at(bytes.len().min(*left));
                    *bytes = after;
                    *self = if data.len() < *left {
                        Chunks::Data(*left - data.len())
                    } else {
                        Chunks::Size(None)
                    };
                    return Ok(Some(data));
                }
                Chunks::Size(size) => {
                    *bytes = after;
                    match (first, *size) {
                        (b'\r', _) | (b'\n', None) => {}
                        (b'\n', Some(0)) => bail!("the server ended a stream"),
                        (b'\n', Some(size)) => *self = Chunks::Data(size),
                        (digit, size_so_far) => {
                            let digit = char::from(*digit)
                                .to_digit(16)
                                .context("a chunk's size is not hexadecimal")?;
                            *size = Some(size_so_far.unwrap_or(0) * 16 + digit as usize);
                        }
                    }
                }
            }
        }
        Ok(None)
    }
}
