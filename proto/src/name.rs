//! Names that have been checked: once one exists, writing it cannot end a line or make two arguments of one.

use core::fmt;

/// Any argument of a control line: not empty, no space, tab, CR or LF. All other bytes may be in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token<'a>(&'a [u8]);

/// A subject to publish to: tokens separated by `.`, none empty, none a wildcard.
///
/// Source: ADR-6, "NATS subjects". `foo*` is a legal token, `*` and `>` alone are not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject<'a>(&'a [u8]);

/// What to subscribe to: a subject in which a token may be `*`, for any one token, and the last one `>`, for any
/// number of tokens, at least one.
///
/// Source: ADR-6, "NATS subjects".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubjectFilter<'a>(&'a [u8]);

/// The name of a group of subscribers of whom one receives each message. An opaque token for nats-server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueGroup<'a>(&'a [u8]);

/// A client's name for one of its subscriptions. Clients count; servers echo whatever token came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sid<'a>(SidForm<'a>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum SidForm<'a> {
    Number(u64),
    Token(Token<'a>),
}

impl<'a> Token<'a> {
    /// # Errors
    /// If it is empty or holds a space, tab, CR or LF.
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(NameError { kind: NameErrorKind::Empty, at: 0, byte: None });
        }
        match bytes.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
            Some(at) => Err(NameError::forbidden(bytes, at)),
            None => Ok(Self(bytes)),
        }
    }
}

impl<'a> Subject<'a> {
    /// # Errors
    /// If it is not a [`Token`], has an empty part, or a part that is a wildcard.
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        let bytes = Token::new(bytes)?.0;
        check_parts(bytes, |_, _| false)?;
        Ok(Self(bytes))
    }
}

impl<'a> SubjectFilter<'a> {
    /// # Errors
    /// If it is not a [`Token`], has an empty part, or `>` as a part other than the last.
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        let bytes = Token::new(bytes)?.0;
        check_parts(bytes, |wildcard, last| wildcard == b'*' || last)?;
        Ok(Self(bytes))
    }
}

impl<'a> QueueGroup<'a> {
    /// # Errors
    /// If it is not a [`Token`].
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        Ok(Self(Token::new(bytes)?.0))
    }
}

impl<'a> Sid<'a> {
    /// A sid as a client sent it.
    ///
    /// # Errors
    /// If it is not a [`Token`].
    pub fn new(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Result<Self, NameError> {
        Ok(Self(SidForm::Token(Token::new(bytes)?)))
    }

    /// Gives `f` the bytes as they are written.
    pub(crate) fn with_bytes<T>(self, f: impl FnOnce(&[u8]) -> T) -> T {
        match self.0 {
            SidForm::Number(number) => f(crate::encode::Digits::new(number).as_bytes()),
            SidForm::Token(token) => f(token.0),
        }
    }

    pub(crate) fn len(self) -> usize {
        self.with_bytes(<[u8]>::len)
    }
}

impl From<u64> for Sid<'_> {
    fn from(number: u64) -> Self {
        Self(SidForm::Number(number))
    }
}

/// Splits at `.` and asks about each part that is a wildcard, with whether it is the last one.
fn check_parts(bytes: &[u8], wildcard_allowed: impl Fn(u8, bool) -> bool) -> Result<(), NameError> {
    let mut start = 0;
    for part in bytes.split(|&byte| byte == b'.') {
        let end = start + part.len();
        let wildcard = match part {
            [] => return Err(NameError { kind: NameErrorKind::EmptyPart, at: start, byte: None }),
            [wildcard @ (b'*' | b'>')] => Some(*wildcard),
            _ => None,
        };
        if let Some(byte) = wildcard.filter(|&byte| !wildcard_allowed(byte, end == bytes.len())) {
            return Err(NameError { kind: NameErrorKind::Wildcard, at: start, byte: Some(byte) });
        }
        start = end + 1;
    }
    Ok(())
}

macro_rules! text_views {
    ($($name:ident)*) => {$(
        impl<'a> $name<'a> {
            /// The bytes as they are written.
            #[must_use]
            pub const fn as_bytes(&self) -> &'a [u8] {
                self.0
            }
        }

        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.escape_ascii())
            }
        }

        impl fmt::Display for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.escape_ascii())
            }
        }
    )*};
}
text_views!(Token Subject SubjectFilter QueueGroup);

macro_rules! token_from {
    ($($name:ident)*) => {$(
        impl<'a> From<$name<'a>> for Token<'a> {
            fn from(name: $name<'a>) -> Self {
                Token(name.0)
            }
        }
    )*};
}
token_from!(Subject SubjectFilter QueueGroup);

impl<'a> From<Subject<'a>> for SubjectFilter<'a> {
    fn from(subject: Subject<'a>) -> Self {
        Self(subject.0)
    }
}

impl fmt::Display for Sid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_bytes(|bytes| write!(f, "{}", bytes.escape_ascii()))
    }
}

impl fmt::Debug for SidForm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Sid(*self))
    }
}

/// Why something cannot be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameError {
    kind: NameErrorKind,
    at: usize,
    byte: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameErrorKind {
    Empty,
    EmptyPart,
    Forbidden,
    Wildcard,
}

impl NameError {
    pub(crate) fn empty() -> Self {
        Self { kind: NameErrorKind::Empty, at: 0, byte: None }
    }

    pub(crate) fn forbidden(bytes: &[u8], at: usize) -> Self {
        Self { kind: NameErrorKind::Forbidden, at, byte: bytes.get(at).copied() }
    }

    /// Index of the first byte that is wrong.
    #[must_use]
    pub const fn at(&self) -> usize {
        self.at
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        let byte = self.byte.unwrap_or_default().escape_ascii();
        match self.kind {
            NameErrorKind::Empty => write!(f, "expected at least one byte, found none"),
            NameErrorKind::EmptyPart => {
                write!(f, "expected at least one byte between dots, found none at byte {at}")
            }
            NameErrorKind::Forbidden => write!(f, "byte {at} is `{byte}`, which may not be here"),
            NameErrorKind::Wildcard => write!(f, "byte {at} is the wildcard `{byte}`, which may not be here"),
        }
    }
}

impl core::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_filters_follow_adr_6() {
        // name, as a subject, as a filter
        for (name, subject, filter) in [
            ("foo", true, true),
            ("foo.bar.baz", true, true),
            ("foo*", true, true),
            ("*foo.b>r", true, true),
            ("süß.ø", true, true),
            ("\x00\x0c\x7f", true, true),
            ("*", false, true),
            (">", false, true),
            ("foo.*.bar", false, true),
            ("foo.>", false, true),
            ("*.*", false, true),
            ("foo.>.bar", false, false),
            (">.>", false, false),
            ("", false, false),
            (".", false, false),
            (".foo", false, false),
            ("foo.", false, false),
            ("foo..bar", false, false),
            ("foo bar", false, false),
            ("foo\tbar", false, false),
            ("foo\rbar", false, false),
            ("foo\nbar", false, false),
        ] {
            assert_eq!(Subject::new(name).is_ok(), subject, "subject {name:?}");
            assert_eq!(SubjectFilter::new(name).is_ok(), filter, "filter {name:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_names_too() {
        assert_eq!(Subject::new(b"f\xffo").map(|subject| subject.as_bytes()), Ok(&b"f\xffo"[..]));
        assert!(Sid::new(b"\xfe\x01").is_ok());
    }

    #[test]
    fn a_sid_made_of_a_number_is_its_digits() {
        Sid::from(u64::MAX).with_bytes(|bytes| assert_eq!(bytes, b"18446744073709551615"));
        Sid::from(0).with_bytes(|bytes| assert_eq!(bytes, b"0"));
        assert_eq!(Sid::from(1000).len(), 4);
    }

    #[cfg(feature = "alloc")]
    #[test]
    fn errors_name_the_byte() {
        use alloc::string::ToString;
        let text = |name| Subject::new(name).unwrap_err().to_string();
        assert_eq!(text("a b"), "byte 1 is ` `, which may not be here");
        assert_eq!(text("a.>"), "byte 2 is the wildcard `>`, which may not be here");
        assert_eq!(text("a..b"), "expected at least one byte between dots, found none at byte 2");
        assert_eq!(text(""), "expected at least one byte, found none");
    }
}
