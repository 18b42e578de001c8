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

/// Whether there is a text in these bytes.
pub(super) fn has_number(bytes: &[u8]) -> bool {
    bytes.contains(&MARK)
}

/// The digits of a channel's number in its name.
const CHANNEL_DIGITS: usize = 7;

/// The name of the channel of that number.
pub(crate) fn channel_name(channel: usize) -> String {
    format!("c{channel:0CHANNEL_DIGITS$}")
}

/// A request with a text, and perhaps a channel. Their numbers can be changed in place.
pub(super) struct Numbered {
    bytes: Vec<u8>,
    digits: usize,
    channel: Option<usize>,
}

impl Numbered {
    /// Of a request that has the text of this number, and the name of channel 0 if it names one.
    pub(super) fn new(bytes: Vec<u8>, number: usize) -> Self {
        let find = |text: String| memchr::memmem::find(&bytes, text.as_bytes());
        let digits = find(format!("{number:0DIGITS$}")).expect("the request has a text in it");
        let channel = find(channel_name(0)).map(|start| start + 1);
        Numbered { bytes, digits, channel }
    }

    /// The request's bytes with that number, on that channel if it names one.
    pub(super) fn with(&mut self, number: usize, channel: usize) -> &[u8] {
        put(&mut self.bytes[self.digits..][..DIGITS], number);
        if let Some(start) = self.channel {
            put(&mut self.bytes[start..][..CHANNEL_DIGITS], channel);
        }
        &self.bytes
    }
}

/// Writes the number as decimal digits, with zeros before them.
fn put(digits: &mut [u8], mut number: usize) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}
