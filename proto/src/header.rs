//! Header blocks: read on demand, because servers relay them unchecked and most receivers never look.
//!
//! ```text
//! NATS/1.0 503 No Responders␍␊     version; a status and its description are optional
//! Nats-Subject: orders.new␍␊       names keep their case, repeats their order
//! ␍␊                               an empty line ends the block
//! ```
//!
//! Source: ADR-4, "NATS message headers". Folded lines (a line that begins with a blank) are not supported: nobody
//! writes them and the reference client does not read them.

use core::fmt;

use crate::name::NameError;
use crate::scan::{self, is_blank};

const VERSION: &[u8] = b"NATS/1.0";

/// A header block as it was received. Nothing has been parsed or checked; each method reads what it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Headers<'a> {
    bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Takes the bytes of a header block, the final empty line included.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The whole block as it was received.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The status in the first line, such as 503 when nobody is there to respond. `None` if there is none, or if it
    /// cannot be read: [`check`](Self::check) tells which.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        Some(self.first_line().ok()?.0?.code)
    }

    /// The text after the status, if there is one.
    #[must_use]
    pub fn description(&self) -> Option<&'a [u8]> {
        let description = self.first_line().ok()?.0?.description;
        if description.is_empty() { None } else { Some(description) }
    }

    /// All lines in order. A line that is none is an error, and the next one is read nevertheless.
    #[must_use]
    pub fn iter(&self) -> HeaderIter<'a> {
        match self.first_line() {
            Ok((_, at)) => HeaderIter { bytes: self.bytes, at: Some(at), failed: None },
            Err(error) => HeaderIter { bytes: self.bytes, at: None, failed: Some(error) },
        }
    }

    /// The first value under `name`, compared with case. Lines that cannot be read are skipped.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.get_all(name).next()
    }

    /// All values under `name`, in order, compared with case. Lines that cannot be read are skipped.
    pub fn get_all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let name = name.as_bytes();
        self.iter().filter_map(move |line| line.ok().filter(|line| line.0 == name).map(|line| line.1))
    }

    /// Reads the whole block.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), HeaderError> {
        self.first_line()?;
        self.iter().try_for_each(|line| line.map(drop))
    }

    /// The status, and where the second line starts.
    fn first_line(&self) -> Result<(Option<StatusLine<'a>>, usize), HeaderError> {
        if !self.bytes.starts_with(VERSION) {
            return Err(HeaderError { kind: HeaderErrorKind::Version, at: 0 });
        }
        let (line, next) = line_at(self.bytes, 0)?;
        // Blanks between version and status are optional, as in nats.go.
        let rest = trim(&line[VERSION.len()..]);
        if rest.is_empty() {
            return Ok((None, next));
        }
        let code = rest.get(..3).and_then(scan::number);
        let code = code.ok_or(HeaderError { kind: HeaderErrorKind::Status, at: VERSION.len() })?;
        Ok((Some(StatusLine { code: code as u16, description: trim(&rest[3..]) }), next))
    }
}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Headers({})", self.bytes.escape_ascii())
    }
}

impl<'a> IntoIterator for Headers<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), HeaderError>;
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

#[derive(Clone, Copy)]
struct StatusLine<'a> {
    code: u16,
    description: &'a [u8],
}

/// The lines of a header block: name and value, blanks around the value trimmed.
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    bytes: &'a [u8],
    /// Start of the next line; `None` after the last one.
    at: Option<usize>,
    failed: Option<HeaderError>,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let start = self.at.take()?;
        let (line, next) = match line_at(self.bytes, start) {
            Ok((b"", _)) => return None,
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        self.at = Some(next);
        let colon = line.iter().position(|byte| !is_name_byte(*byte)).unwrap_or(line.len());
        if colon == 0 || line.get(colon) != Some(&b':') {
            return Some(Err(HeaderError { kind: HeaderErrorKind::Name, at: start + colon }));
        }
        Some(Ok((&line[..colon], trim(&line[colon + 1..]))))
    }
}

impl core::iter::FusedIterator for HeaderIter<'_> {}

/// The line that starts at `start`, without its end, and where the next one starts. Lines end at LF, so that a lone CR
/// is a byte like any other.
fn line_at(bytes: &[u8], start: usize) -> Result<(&[u8], usize), HeaderError> {
    let Some(lf) = scan::find_lf(bytes, start) else {
        return Err(HeaderError { kind: HeaderErrorKind::Unterminated, at: bytes.len() });
    };
    let line = &bytes[start..lf];
    Ok((line.strip_suffix(b"\r").unwrap_or(line), lf + 1))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_blank(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && is_blank(*last)
    {
        bytes = rest;
    }
    bytes
}

/// Source: ADR-4: printable ASCII except the colon.
const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, 33..=126) && byte != b':'
}

/// What is wrong with a header block, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderError {
    kind: HeaderErrorKind,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderErrorKind {
    Version,
    Status,
    Name,
    Unterminated,
}

impl HeaderError {
    /// Index, within the block, of the first byte that is wrong.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = match self.kind {
            HeaderErrorKind::Version => "expected NATS/1.0",
            HeaderErrorKind::Status => "expected a status of three digits",
            HeaderErrorKind::Name => "expected a name and a colon",
            HeaderErrorKind::Unterminated => "expected an empty line, found the end",
        };
        write!(f, "header block at byte {}: {expected}", self.at)
    }
}

impl core::error::Error for HeaderError {}

/// One header line to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Header<'a> {
    /// Readers drop blanks around the value, so do not rely on them.
    ///
    /// # Errors
    /// If the name is empty or has a byte that is not printable ASCII, or a colon; if the value has CR or LF.
    pub fn new(name: &'a str, value: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        let (name, value) = (name.as_bytes(), value.as_ref());
        if name.is_empty() {
            return Err(NameError::empty());
        }
        if let Some(at) = name.iter().position(|byte| !is_name_byte(*byte)) {
            return Err(NameError::forbidden(name, at));
        }
        check_line(value)?;
        Ok(Self { name, value })
    }
}

/// A header block to write: made of checked lines, or one that was received, passed on as it is.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBlock<'a>(Form<'a>);

#[derive(Clone, Copy, Debug)]
enum Form<'a> {
    Lines { status: Option<(u16, &'a [u8])>, lines: &'a [Header<'a>] },
    Received(Headers<'a>),
}

impl<'a> HeaderBlock<'a> {
    /// A block of these lines, without a status.
    #[must_use]
    pub const fn new(lines: &'a [Header<'a>]) -> Self {
        Self(Form::Lines { status: None, lines })
    }

    /// A block with a status in its first line, as servers send it.
    ///
    /// # Errors
    /// If the description has CR or LF.
    ///
    /// # Panics
    /// If the code does not have three digits.
    pub fn with_status(code: u16, description: &'a str, lines: &'a [Header<'a>]) -> Result<Self, NameError> {
        assert!(matches!(code, 100..=999), "status {code} does not have three digits");
        check_line(description.as_bytes())?;
        Ok(Self(Form::Lines { status: Some((code, description.as_bytes())), lines }))
    }

    /// Length in bytes, the final empty line included.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let mut len = 0;
        self.for_each_part(|part| len += part.len());
        len
    }

    /// The bytes of the block, piece by piece.
    pub(crate) fn for_each_part(&self, mut part: impl FnMut(&[u8])) {
        let (status, lines) = match self.0 {
            Form::Received(headers) => return part(headers.bytes),
            Form::Lines { status, lines } => (status, lines),
        };
        part(VERSION);
        if let Some((code, description)) = status {
            part(b" ");
            part(crate::encode::Digits::new(u64::from(code)).as_bytes());
            if !description.is_empty() {
                part(b" ");
                part(description);
            }
        }
        part(b"\r\n");
        for line in lines {
            part(line.name);
            part(b": ");
            part(line.value);
            part(b"\r\n");
        }
        part(b"\r\n");
    }
}

impl<'a> From<Headers<'a>> for HeaderBlock<'a> {
    /// Passed on byte for byte; its length frames it, so nothing in it can end a line of the protocol.
    fn from(headers: Headers<'a>) -> Self {
        Self(Form::Received(headers))
    }
}

impl<'a> From<&'a [Header<'a>]> for HeaderBlock<'a> {
    fn from(lines: &'a [Header<'a>]) -> Self {
        Self::new(lines)
    }
}

fn check_line(bytes: &[u8]) -> Result<(), NameError> {
    match bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        Some(at) => Err(NameError::forbidden(bytes, at)),
        None => Ok(()),
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    use super::*;

    /// Everything that can be read from a block, in one line.
    fn read(block: &str) -> String {
        let headers = Headers::new(block.as_bytes());
        let mut parts: Vec<String> = headers.status().iter().map(u16::to_string).collect();
        parts.extend(headers.description().map(|text| text.escape_ascii().to_string()));
        for line in headers {
            parts.push(match line {
                Ok((name, value)) => alloc::format!("{}={}", name.escape_ascii(), value.escape_ascii()),
                Err(error) => alloc::format!("?{}", error.at()),
            });
        }
        assert_eq!(headers.check().is_err(), parts.iter().any(|part| part.starts_with('?')), "{block:?}");
        parts.join(" | ")
    }

    #[test]
    fn blocks_are_read_as_adr_4_says() {
        for (block, expected) in [
            ("NATS/1.0\r\n\r\n", ""),
            ("NATS/1.0\r\na: 1\r\nA: 2\r\na:3\r\n\r\n", "a=1 | A=2 | a=3"),
            ("NATS/1.0\r\nA:\r\nB:  \t\r\nC: \tx y\t \r\n\r\n", "A= | B= | C=x y"),
            ("NATS/1.0\r\nUrl: nats://a:4222\r\n\r\n", "Url=nats://a:4222"),
            ("NATS/1.0 503\r\n\r\n", "503"),
            ("NATS/1.0  404   No Messages \r\nA: 1\r\n\r\n", "404 | No Messages | A=1"),
            ("NATS/1.0418\r\n\r\n", "418"),
            ("NATS/1.0 \t\r\n\r\n", ""),
            ("NATS/1.0\r\nA: a\rb\r\n\r\n", "A=a\\rb"),
            ("NATS/1.0\nA: 1\n\n", "A=1"),
            ("NATS/1.0\r\nA: 1\r\n\r\nB: 2\r\n", "A=1"),
        ] {
            assert_eq!(read(block), expected, "{block:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_block_is_found_and_the_rest_is_read() {
        for (block, expected) in [
            ("", "?0"),
            ("XXXXX", "?0"),
            ("NATS/1", "?0"),
            ("NATS/1.1\r\n\r\n", "?0"),
            ("NATS/1.0", "?8"),
            ("NATS/1.0\r\n", "?10"),
            ("NATS/1.0 50\r\n\r\n", "?8"),
            ("NATS/1.0 5x3\r\n\r\n", "?8"),
            ("NATS/1.0\r\nA: 1\r\n", "A=1 | ?16"),
            ("NATS/1.0\r\nA: 1\r\n  folded\r\nB: 2\r\n\r\n", "A=1 | ?16 | B=2"),
            ("NATS/1.0\r\n: v\r\nA: 1\r\n\r\n", "?10 | A=1"),
            ("NATS/1.0\r\nno colon\r\nA : 1\r\n\r\n", "?12 | ?21"),
        ] {
            assert_eq!(read(block), expected, "{block:?}");
        }
    }

    #[test]
    fn names_are_looked_up_with_case_and_in_order() {
        let headers = Headers::new(b"NATS/1.0\r\na: 1\r\nbad\r\nA: 2\r\nA: 3\r\n\r\n");
        assert_eq!(headers.get("A"), Some(&b"2"[..]));
        assert_eq!(headers.get("b"), None);
        assert_eq!(headers.get_all("A").collect::<Vec<_>>(), [b"2", b"3"]);
    }

    #[test]
    fn a_header_cannot_end_its_line() {
        assert!(Header::new("A", "a\r\nB: b").is_err());
        assert!(Header::new("A", "a\nb").is_err());
        for name in ["", "a b", "a:", "ä", "a\n"] {
            assert!(Header::new(name, "v").is_err(), "{name:?}");
        }
        assert!(HeaderBlock::with_status(503, "no\r\n", &[]).is_err());
    }
}
