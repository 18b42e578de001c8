//! Strips JavaScript: takes away comments, and white space that means nothing. A line break stays wherever it
//! may end a statement. Private names get short ones: nothing outside of a class can see them. Every other
//! token stays.
//!
//! This is a tokenizer and no parser. Where it takes a parser to tell a division from a regular expression,
//! [`strip`] refuses the source.

/// The source without comments and needless white space.
///
/// # Errors
/// The line and the reason, if the source is not JavaScript, or if it takes a parser.
pub(crate) fn strip(source: &str) -> Result<String, String> {
    let mut tokens = Tokens::of(source);
    let mut stripped = String::with_capacity(source.len());
    let mut private_names = Vec::new();
    loop {
        let before = tokens.last;
        let gap = tokens.next().map_err(|reason| {
            let line = source[..tokens.end].matches('\n').count() + 1;
            format!("line {line}: {reason}")
        })?;
        let token = tokens.last;
        match gap {
            Gap::LineBreak if may_end_statement(before, token) => stripped.push('\n'),
            Gap::Space if may_merge(before, token) => stripped.push(' '),
            _ => {}
        }
        match token.text {
            "" => return Ok(stripped),
            name if name.starts_with('#') => stripped.push_str(&shortened(name, &mut private_names)),
            text => stripped.push_str(text),
        }
    }
}

/// The stripped client as a classic script, `/io.js`, which has a global function `io` instead of an export.
/// The module, which a shared worker needs, is beside it.
///
/// # Errors
/// What the client has not just once.
pub(crate) fn classic(stripped: &str) -> Result<String, String> {
    let mut script = stripped.to_owned();
    for (module, classic) in [("export function connect(", "function connect("), ("import.meta.url", "url")] {
        if script.matches(module).count() != 1 {
            return Err(format!("`{module}` has to be there once"));
        }
        script = script.replace(module, classic);
    }
    let own = "const own=globalThis.document?.currentScript?.src;";
    let url = "const url=own?new URL('tabcast.js',own).href:'';";
    Ok(format!("(()=>{{'use strict';{own}{url}{script}\nglobalThis.io=connect.connect=connect;}})();"))
}

/// Whether a line break between two tokens may end a statement (ECMA-262 12.10). True if in doubt.
fn may_end_statement(first: Token, second: Token) -> bool {
    let begins_after = matches!(first.text, "" | "(" | "[" | "{" | "," | ";");
    let ends_before = matches!(second.text, "" | ")" | "]" | "}" | "," | ";");
    !begins_after && !ends_before
}

/// Whether two tokens may become others if nothing stands between them. True if in doubt.
fn may_merge(first: Token, second: Token) -> bool {
    use Kind::{Keyword, Name, Operator, Quoted, Regex, Separator};
    match (first.kind, second.kind) {
        (Separator | Quoted, _) | (_, Separator | Quoted) | (Operator, Name | Keyword) => false,
        // `1 .toFixed()` is not `1.toFixed()`.
        (Name | Keyword, Operator) => second.text == ".",
        // `//` begins a comment, and so does `<!--` in a script.
        (Operator, Regex) => first.text == "/",
        (Operator, Operator) => second.text != "!" || first.text == "<",
        _ => true,
    }
}

/// The same short name for the same private name: `#a`, …, `#z`, `#aa`, …
fn shortened<'a>(name: &'a str, known: &mut Vec<&'a str>) -> String {
    let mut number = known.iter().position(|other| *other == name).unwrap_or_else(|| {
        known.push(name);
        known.len() - 1
    });
    let mut short = String::from("#");
    loop {
        short.push(char::from(b'a' + (number % 26) as u8));
        match number / 26 {
            0 => return short,
            rest => number = rest - 1,
        }
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    /// Empty at the source's end.
    text: &'a str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Any bracket, comma or semicolon; and the source's beginning and end.
    Separator,
    Operator,
    /// A string; or a template, up to a substitution or from there on.
    Quoted,
    Regex,
    /// One of [`KEYWORDS`].
    Keyword,
    /// A name, a number or any other keyword.
    Name,
}

/// The keywords that an expression may follow, or a statement after a pair of brackets. Either may begin with
/// a regular expression. Some of these words may be names as well.
const KEYWORDS: &str = "await case default delete do else extends for if in instanceof new of return throw \
    typeof void while with yield";

/// What stands between two tokens, besides comments.
enum Gap {
    Nothing,
    Space,
    LineBreak,
}

/// What a `/` does that begins no comment.
#[derive(Clone, Copy)]
enum Slash {
    Divides,
    BeginsRegex,
    /// Either: it takes a parser.
    Unknown,
}

/// A bracket that is open.
enum Open {
    /// `(`, with what a `/` after its `)` does.
    Round(Slash),
    Square,
    Curly,
    /// `${` in a template.
    Substitution,
}

struct Tokens<'a> {
    source: &'a str,
    last: Token<'a>,
    /// Where `last` ends.
    end: usize,
    /// What a `/` after `last` does.
    slash: Slash,
    open: Vec<Open>,
}

/// A token's length, its kind, and what a `/` after it does.
type Measure = (usize, Kind, Slash);

impl<'a> Tokens<'a> {
    fn of(source: &'a str) -> Self {
        let last = Token { text: "", kind: Kind::Separator };
        Tokens { source, last, end: 0, slash: Slash::BeginsRegex, open: Vec::new() }
    }

    /// Makes the next token the last one. Returns what stands before it.
    fn next(&mut self) -> Result<Gap, String> {
        let gap = self.skip_gap()?;
        let rest = &self.source[self.end..];
        let (length, kind, slash) = self.measure(rest)?;
        self.last = Token { text: &rest[..length], kind };
        self.end += length;
        self.slash = slash;
        Ok(gap)
    }

    fn skip_gap(&mut self) -> Result<Gap, String> {
        let begin = self.end;
        loop {
            let rest = &self.source[self.end..];
            self.end += if rest.starts_with("//") {
                length_until(rest, is_line_break)
            } else if let Some(comment) = rest.strip_prefix("/*") {
                comment.find("*/").ok_or("a comment has no end")? + "/**/".len()
            } else {
                match length_until(rest, |char| !is_space(char)) {
                    0 => break,
                    length => length,
                }
            };
        }
        Ok(match &self.source[begin..self.end] {
            "" => Gap::Nothing,
            gap if gap.contains(is_line_break) => Gap::LineBreak,
            _ => Gap::Space,
        })
    }

    /// Measures the token with which `rest` begins.
    fn measure(&mut self, rest: &str) -> Result<Measure, String> {
        let operator = |length, slash| Ok((length, Kind::Operator, slash));
        match rest.chars().next() {
            None if self.open.is_empty() => Ok((0, Kind::Separator, Slash::BeginsRegex)),
            None => Err("a bracket has no end".to_owned()),
            Some(quote @ ('\'' | '"')) => Ok((string(rest, quote)?, Kind::Quoted, Slash::Divides)),
            Some('`') => self.template(rest),
            Some(bracket @ ('(' | '[' | '{' | ')' | ']' | '}')) => self.bracket(rest, bracket),
            Some(',' | ';') => Ok((1, Kind::Separator, Slash::BeginsRegex)),
            Some('/') => match self.slash {
                Slash::Divides => operator(1, Slash::BeginsRegex),
                Slash::BeginsRegex => Ok((regex(rest)?, Kind::Regex, Slash::Divides)),
                Slash::Unknown => {
                    Err(format!("`/` after `{}` may divide, or begin a regular expression", self.last.text))
                }
            },
            Some('0'..='9') => Ok((number(rest), Kind::Name, Slash::Divides)),
            Some(first) if is_word(first) => Ok(self.word(rest)),
            // Neither before an operand nor after it can a regular expression follow.
            Some(sign @ ('+' | '-')) if rest[1..].starts_with(sign) => operator(2, Slash::Divides),
            // One token, so that a name after it is not taken for a property.
            Some('.') if rest.starts_with("...") => operator(3, Slash::BeginsRegex),
            // Not a backslash: it would give a name two spellings.
            Some(first) if first.is_ascii_punctuation() && first != '\\' => operator(1, Slash::BeginsRegex),
            Some(first) => Err(format!("{first:?} begins no token")),
        }
    }

    fn bracket(&mut self, rest: &str, bracket: char) -> Result<Measure, String> {
        let open = match bracket {
            '(' if matches!(self.last.kind, Kind::Keyword) => Open::Round(Slash::Unknown),
            '(' => Open::Round(Slash::Divides),
            '[' => Open::Square,
            '{' => Open::Curly,
            _ => {
                let slash = match (bracket, self.open.pop()) {
                    (')', Some(Open::Round(slash))) => slash,
                    (']', Some(Open::Square)) => Slash::Divides,
                    // The end of a block, or of an object.
                    ('}', Some(Open::Curly)) => Slash::Unknown,
                    ('}', Some(Open::Substitution)) => return self.template(rest),
                    _ => return Err(format!("`{bracket}` closes nothing")),
                };
                return Ok((1, Kind::Separator, slash));
            }
        };
        self.open.push(open);
        Ok((1, Kind::Separator, Slash::BeginsRegex))
    }

    fn word(&self, rest: &str) -> Measure {
        let length = length_until(rest, |char| !is_word(char));
        let is_keyword = KEYWORDS.split(' ').any(|keyword| keyword == &rest[..length]);
        // After a dot, even a keyword is a name.
        if is_keyword && self.last.text != "." {
            (length, Kind::Keyword, Slash::Unknown)
        } else {
            (length, Kind::Name, Slash::Divides)
        }
    }

    /// Measures a template from its quote, or from the `}` of a substitution.
    fn template(&mut self, rest: &str) -> Result<Measure, String> {
        let end = find_unescaped(rest, |rest| rest.starts_with('`') || rest.starts_with("${"));
        let end = end.ok_or("a template has no end")?;
        if rest[end..].starts_with('`') {
            return Ok((end + 1, Kind::Quoted, Slash::Divides));
        }
        self.open.push(Open::Substitution);
        Ok((end + 2, Kind::Quoted, Slash::BeginsRegex))
    }
}

/// The length of a string with its quotes.
fn string(rest: &str, quote: char) -> Result<usize, String> {
    let end = find_unescaped(rest, |rest| rest.starts_with([quote, '\n', '\r']));
    match end {
        Some(end) if rest[end..].starts_with(quote) => Ok(end + 1),
        _ => Err("a string has no end".to_owned()),
    }
}

/// The length of a regular expression with its flags.
fn regex(rest: &str) -> Result<usize, String> {
    let mut is_in_class = false;
    let end = find_unescaped(rest, |rest| {
        is_in_class = (is_in_class || rest.starts_with('[')) && !rest.starts_with(']');
        rest.starts_with(is_line_break) || (rest.starts_with('/') && !is_in_class)
    });
    match end {
        Some(end) if rest[end..].starts_with('/') => {
            Ok(end + 1 + length_until(&rest[end + 1..], |char| !is_word(char)))
        }
        _ => Err("a regular expression has no end".to_owned()),
    }
}

/// Where, behind its first character, `is_end` holds of what is left. Not behind a backslash.
fn find_unescaped(rest: &str, mut is_end: impl FnMut(&str) -> bool) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        if is_end(&rest[at..]) {
            return Some(at);
        }
        if char == '\\' {
            chars.next();
        }
    }
    None
}

/// The length of a number, or of a number and the property after it.
fn number(rest: &str) -> usize {
    let is_hexadecimal = rest.starts_with("0x") || rest.starts_with("0X");
    let mut before = ' ';
    length_until(rest, |char| {
        let is_exponents_sign = !is_hexadecimal && matches!((before, char), ('e' | 'E', '+' | '-'));
        before = char;
        !(is_word(char) || char == '.' || is_exponents_sign)
    })
}

fn length_until(text: &str, is_end: impl FnMut(char) -> bool) -> usize {
    text.find(is_end).unwrap_or(text.len())
}

/// Whether it may be in a name, a private name or a number.
fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '_' | '$' | '#') || !(char.is_ascii() || is_space(char))
}

/// Whether it is white space, or a byte order mark, which JavaScript takes for white space.
fn is_space(char: char) -> bool {
    char.is_whitespace() || char == '\u{feff}'
}

fn is_line_break(char: char) -> bool {
    matches!(char, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}
