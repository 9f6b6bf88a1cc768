//! What a peer can do wrong. Every error is fatal for the connection: after it nobody knows where the next operation
//! starts. None of them is our own fault or the caller's; those panic.

use core::fmt;

/// The operations of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    Info,
    Connect,
    Pub,
    Hpub,
    Sub,
    Unsub,
    Msg,
    Hmsg,
    Ping,
    Pong,
    Ok,
    Err,
}

impl Verb {
    /// As it is written on the wire, in upper case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Connect => "CONNECT",
            Self::Pub => "PUB",
            Self::Hpub => "HPUB",
            Self::Sub => "SUB",
            Self::Unsub => "UNSUB",
            Self::Msg => "MSG",
            Self::Hmsg => "HMSG",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Ok => "+OK",
            Self::Err => "-ERR",
        }
    }
}

/// Why the bytes are not NATS.
///
/// A function of the stream alone, down to the last field: it does not depend on how the bytes were cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was expected and did not come.
    pub kind: DecodeErrorKind,
    /// Where the operation that could not be decoded begins, in bytes since the decoder was made.
    pub offset: u64,
    pub(crate) verb: Option<Verb>,
    pub(crate) found: Excerpt,
}

impl DecodeError {
    /// The operation that could not be decoded, if its verb was understood.
    #[must_use]
    pub const fn verb(&self) -> Option<Verb> {
        self.verb
    }

    /// The bytes that came instead of what was expected, or as many of them as an error holds.
    #[must_use]
    pub fn found(&self) -> &[u8] {
        self.found.as_bytes()
    }
}

/// What was expected and did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The line does not begin with a verb that this peer may send.
    UnknownVerb,
    /// Too few arguments, or too many.
    ArgumentCount {
        /// Fewest that the verb takes.
        min: usize,
        /// Most that the verb takes.
        max: usize,
        /// How many came.
        found: usize,
    },
    /// A length is not a number: one to nine digits from a client, digits that fit 64 bits from a server.
    ///
    /// Source: nats-server, server/util.go, `parseSize`.
    Size,
    /// The headers are longer than headers and payload together.
    HeaderSize {
        /// Declared length of the header block, in bytes.
        header: u64,
        /// Declared length of header block and payload, in bytes.
        total: u64,
    },
    /// The declared length is above [`Limits::payload_bytes_max`](crate::Limits::payload_bytes_max).
    PayloadTooLarge {
        /// Declared length of header block and payload, in bytes.
        total: u64,
        /// The limit, in bytes.
        max: usize,
    },
    /// The arguments go on past the limit for lines, or what is ignored past [`IGNORED_BYTES_MAX`](crate::IGNORED_BYTES_MAX).
    LineTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// The payload is not followed by CR LF.
    Terminator {
        /// Declared length of header block and payload, in bytes.
        total: u64,
    },
    /// A client's line holds a CR that is not part of its end. What nats-server makes of it depends on how the bytes
    /// were cut, so nobody can rely on it.
    StrayCr,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.verb.map_or("operation", Verb::name);
        write!(f, "{name} at byte {}: ", self.offset)?;
        let found = &self.found;
        match self.kind {
            DecodeErrorKind::UnknownVerb => write!(f, "expected a verb, found `{found}`"),
            DecodeErrorKind::ArgumentCount { min, max, found } if min == max => {
                write!(f, "expected {min} arguments, found {found}")
            }
            DecodeErrorKind::ArgumentCount { min, max, found } => {
                write!(f, "expected {min} or {max} arguments, found {found}")
            }
            DecodeErrorKind::Size => write!(f, "length `{found}` is not a number"),
            DecodeErrorKind::HeaderSize { header, total } => {
                write!(f, "header length {header} is above the total length {total}")
            }
            DecodeErrorKind::PayloadTooLarge { total, max } => {
                write!(f, "payload length {total} is above the limit of {max} bytes")
            }
            DecodeErrorKind::LineTooLong { max } => write!(f, "line is longer than the limit of {max} bytes"),
            DecodeErrorKind::Terminator { total } => {
                write!(f, "expected CR LF after {total} bytes of payload, found `{found}`")
            }
            DecodeErrorKind::StrayCr => write!(f, "carriage return inside the line, after `{found}`"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// The first bytes of something that was received, kept inside an error without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Excerpt {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
    cut: bool,
}

impl Excerpt {
    const BYTES_MAX: usize = 22;

    pub(crate) fn new(of: &[u8]) -> Self {
        let len = of.len().min(Self::BYTES_MAX);
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[..len].copy_from_slice(&of[..len]);
        Self { bytes, len: len as u8, cut: len < of.len() }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.as_bytes().escape_ascii(), if self.cut { "…" } else { "" })
    }
}
