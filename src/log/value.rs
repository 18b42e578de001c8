//! A value in a line of the log: escaped, and cut at [`LIMIT`].

use std::fmt::{self, Write as _};

use crate::message::is_printable;

/// The most bytes of a value in a line. Higher: whoever sends a request can have longer lines written. Lower:
/// a message is hard to recognise by its data.
const LIMIT: usize = 256;

/// The mark of a value that was cut, here or by whoever logged the value.
const CUT: &str = "…";

/// Adds a text to the line, in quotes.
pub(super) fn push_text(line: &mut String, text: &str) {
    let is_as_it_is =
        text.len() <= LIMIT && is_plain(text) && !text.bytes().any(|byte| matches!(byte, b'"' | b'\\'));
    if is_as_it_is {
        line.push('"');
        line.push_str(text);
        line.push('"');
    } else {
        push_cut(line, &text);
    }
}

/// Adds a value to the line as its `Debug` writes it, escaped. A value of more than [`LIMIT`] bytes is cut,
/// and followed by [`CUT`] and the number of bytes left out.
pub(super) fn push_cut(line: &mut String, value: &dyn fmt::Debug) {
    /// A value that was cut at [`LIMIT`] before it was logged has [`CUT`] behind it, and fits.
    const FITS: usize = LIMIT + CUT.len();
    let start = line.len();
    let mut out = Escaped { line, most: FITS, length: 0 };
    let _ = write!(out, "{value:?}");
    let length = out.length;
    if length > FITS {
        line.truncate(line.floor_char_boundary(start + LIMIT));
        let left_out = length - (line.len() - start);
        let _ = write!(line, "{CUT}+{left_out}");
    }
}

/// Adds a value to the line as its `Debug` writes it, escaped, whatever its length.
pub(super) fn push_whole(line: &mut String, value: &dyn fmt::Debug) {
    let _ = write!(Escaped { line, most: usize::MAX, length: 0 }, "{value:?}");
}

/// Writes to a line. Escapes what [`is_visible`] does not pass, and writes the first `most` bytes only.
struct Escaped<'a> {
    line: &'a mut String,
    most: usize,
    /// How many bytes there were, with those that were not written.
    length: usize,
}

impl Escaped<'_> {
    fn push(&mut self, text: &str) {
        let fits = self.most.saturating_sub(self.length);
        self.line.push_str(&text[..text.floor_char_boundary(fits)]);
        self.length += text.len();
    }
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if is_plain(text) {
            self.push(text);
            return Ok(());
        }
        for c in text.chars() {
            if is_visible(c) {
                self.push(c.encode_utf8(&mut [0; 4]));
            } else {
                c.escape_unicode().for_each(|c| self.push(c.encode_utf8(&mut [0; 4])));
            }
        }
        Ok(())
    }
}

/// Whether the text is printable ASCII, as almost all text is. The loop has no early end, so that it compiles
/// to many bytes at once.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

/// Whether a reader of the log sees `c`. Stricter than [`is_printable`], the rule for event names, in which
/// an emoji may have a variation selector.
fn is_visible(c: char) -> bool {
    let leaves_no_mark = matches!(
        c,
        // Unicode's `Default_Ignorable_Code_Point`, the unassigned ones too.
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
            // Blanks and joiners that Unicode counts as letters, symbols or marks.
            | '\u{2800}'
            | '\u{2d7f}'
            | '\u{1107f}'
            | '\u{13430}'..='\u{13442}'
            | '\u{16fe4}'
            | '\u{1d159}'
    );
    is_printable(c) && !leaves_no_mark
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        let mut line = String::new();
        push_text(&mut line, text);
        line
    }

    #[test]
    fn a_value_is_cut_at_its_limit_and_says_how_much_is_left_out() {
        assert_eq!(text(&"x".repeat(256)), format!("\"{}\"", "x".repeat(256)));
        // The quotes count.
        assert_eq!(text(&"x".repeat(258)), format!("\"{}…+4", "x".repeat(255)));
        assert_eq!(text(&"x".repeat(2_000)), format!("\"{}…+1746", "x".repeat(255)));
        // At the boundary of a character.
        assert_eq!(text(&"ü".repeat(200)), format!("\"{}…+147", "ü".repeat(127)));
        // What an escape takes counts.
        assert!(text(&"\0".repeat(10_000)).len() < 280);
        let mut line = "x".repeat(1_000);
        push_cut(&mut line, &format_args!("{}", "y".repeat(1_000)));
        assert_eq!(line, format!("{}{}…+744", "x".repeat(1_000), "y".repeat(256)));
    }

    #[test]
    fn a_value_that_was_cut_before_is_not_cut_again() {
        let mut line = String::new();
        push_cut(&mut line, &format_args!("{}…", "x".repeat(256)));
        assert_eq!(line, format!("{}…", "x".repeat(256)));
    }

    #[test]
    fn what_nobody_sees_is_escaped() {
        let unseen = "\u{ad}\u{34f}\u{115f}\u{1160}\u{17b4}\u{180b}\u{180f}\u{200b}\u{202e}\u{2064}\
            \u{2065}\u{3164}\u{fe00}\u{fe0f}\u{feff}\u{ffa0}\u{fff0}\u{1bca0}\u{1d173}\
            \u{e0001}\u{e0100}\u{e01ef}\
            \u{e0fff}\u{2800}\u{13441}\u{1d159}";
        for c in unseen.chars() {
            assert_eq!(text(&c.to_string()), format!("\"{}\"", c.escape_unicode()), "{c:?}");
        }
        for c in "aü🎉漢한⠁ᄀ".chars() {
            assert_eq!(text(&c.to_string()), format!("\"{c}\""));
        }
    }
}
