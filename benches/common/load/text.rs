//! The text of a message: its number, and filler that is the same in all.

use anyhow::{Context, ensure};

/// The length of a text that makes a body of 100 bytes.
pub(crate) const LENGTH: usize = 88;

/// The digits of the number, behind a mark that nothing else in a message has.
const DIGITS: usize = 10;
const MARK: u8 = b'#';

/// ASCII, repeated in a longer text.
const FILLER: &str = " The quick brown fox jumps over the lazy dog, and every open tab and watcher sees it.";

/// The text of that number, so many bytes long.
pub(crate) fn text(number: usize, length: usize) -> String {
    let filler = FILLER.chars().cycle().take(length - 1 - DIGITS);
    format!("{}{number:0DIGITS$}", char::from(MARK)).chars().chain(filler).collect()
}

/// The number of the one text in a message's bytes, checked to be whole.
pub(super) fn number_in(message: &[u8], length: usize) -> anyhow::Result<usize> {
    let mut starts = (0..message.len()).filter(|index| message[*index] == MARK);
    let start = starts.next().context("it has no text in it")?;
    ensure!(starts.next().is_none(), "it has more than one text in it");
    let digits = message.get(start + 1..start + 1 + DIGITS).context("its text is cut off")?;
    let number = std::str::from_utf8(digits)?.parse()?;
    ensure!(message[start..].starts_with(text(number, length).as_bytes()), "its text is another");
    Ok(number)
}

/// A request with a text. Its number can be changed in place.
pub(super) struct Numbered {
    bytes: Vec<u8>,
    digits: usize,
}

impl Numbered {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let mark = bytes.iter().position(|byte| *byte == MARK).expect("the request has a text in it");
        Numbered { bytes, digits: mark + 1 }
    }

    /// The request's bytes with that number.
    pub(super) fn with(&mut self, number: usize) -> &[u8] {
        let digits = format!("{number:0DIGITS$}");
        self.bytes[self.digits..self.digits + DIGITS].copy_from_slice(digits.as_bytes());
        &self.bytes
    }
}
