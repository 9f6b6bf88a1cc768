//! The operations, borrowed from the bytes they came in. Subjects, sids and texts are bytes, because that is what
//! servers relay; text views can fail.

use core::fmt;

use crate::header::Headers;
use crate::scan;

/// What a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOp<'a> {
    /// INFO: the server's JSON, blanks around it trimmed, not parsed. Comes first, and again at any time.
    Info(&'a [u8]),
    /// MSG or HMSG: a message of one of our subscriptions.
    Message(Message<'a>),
    /// PING: answer with PONG at once.
    Ping,
    /// PONG: the server has read everything up to our PING of the same number.
    Pong,
    /// +OK: only sent in verbose mode.
    Ok,
    /// -ERR: some are the last words of the server, see [`ErrText::closes`].
    Err(ErrText<'a>),
}

/// What a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOp<'a> {
    /// CONNECT: the client's JSON, blanks around it trimmed, not parsed. May come more than once.
    Connect(&'a [u8]),
    /// PUB or HPUB.
    Publish(Publish<'a>),
    /// SUB.
    Subscribe(Subscribe<'a>),
    /// UNSUB.
    Unsubscribe(Unsubscribe<'a>),
    /// PING: answer with PONG.
    Ping,
    /// PONG: the answer to a PING of ours.
    Pong,
    /// +OK: allowed and without meaning, nats-server ignores it.
    Ok,
    /// INFO: allowed and without meaning, nats-server ignores it.
    Info(&'a [u8]),
}

/// A delivered message: MSG, or HMSG when `headers` is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Where it was published. Any bytes but blanks and LF; nats-server relays what publishers send.
    pub subject: &'a [u8],
    /// The subscription it is for: the token our SUB gave.
    pub sid: &'a [u8],
    /// Where an answer is awaited.
    pub reply: Option<&'a [u8]>,
    /// The header block, unparsed. `Some` but empty if the server sent HMSG with a header length of 0.
    pub headers: Option<Headers<'a>>,
    /// The payload, without headers and line end.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The subject as text.
    ///
    /// # Errors
    /// If it is not UTF-8, which any publisher can bring about.
    pub fn subject_str(&self) -> Result<&'a str, core::str::Utf8Error> {
        core::str::from_utf8(self.subject)
    }

    /// The sid as the number that [`Sid::from`](crate::Sid) made it from; `None` if it is no number.
    #[must_use]
    pub fn sid_number(&self) -> Option<u64> {
        scan::number(self.sid)
    }
}

/// A message to publish: PUB, or HPUB when `headers` is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Where to. Not checked beyond the wire: nats-server drops a PUB to `foo..bar` and keeps the connection.
    pub subject: &'a [u8],
    /// Where an answer is awaited.
    pub reply: Option<&'a [u8]>,
    /// The header block, unparsed. `Some` but empty if the client sent HPUB with a header length of 0.
    pub headers: Option<Headers<'a>>,
    /// The payload, without headers and line end.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// The subject as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn subject_str(&self) -> Result<&'a str, core::str::Utf8Error> {
        core::str::from_utf8(self.subject)
    }
}

/// A wish to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// What to receive, perhaps with wildcards. Not checked beyond the wire: nats-server answers
    /// `-ERR 'Invalid Subject'` to `foo..bar` and keeps the connection.
    pub subject: &'a [u8],
    /// The group of which one member receives each message.
    pub queue: Option<&'a [u8]>,
    /// The client's name for the subscription, to be echoed in MSG. Opaque.
    pub sid: &'a [u8],
}

/// The end of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// The subscription.
    pub sid: &'a [u8],
    /// After how many delivered messages. `None` and 0 mean now; so does a number that nats-server cannot read, which
    /// it does not refuse.
    pub max: Option<u64>,
}

/// The text of a -ERR, as bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ErrText<'a> {
    bytes: &'a [u8],
}

/// The errors after which nats-server keeps the connection; it closes after every other one.
/// Case differs between versions.
const KEEPS_CONNECTION: [&[u8]; 4] = [
    b"Permissions Violation for ",
    b"Invalid Subject",
    b"Invalid Publish Subject",
    b"maximum subscriptions exceeded",
];

impl<'a> ErrText<'a> {
    /// A text to send.
    ///
    /// # Errors
    /// If it holds CR, LF or a single quote.
    pub fn new(text: &'a str) -> Result<Self, crate::NameError> {
        match text.bytes().position(|byte| matches!(byte, b'\r' | b'\n' | b'\'')) {
            Some(at) => Err(crate::NameError::forbidden(text.as_bytes(), at)),
            None => Ok(Self { bytes: text.as_bytes() }),
        }
    }

    /// From the argument of a -ERR: blanks are trimmed already, one pair of quotes is not.
    pub(crate) fn from_argument(argument: &'a [u8]) -> Self {
        let inner = argument.strip_prefix(b"'").and_then(|rest| rest.strip_suffix(b"'"));
        Self { bytes: inner.unwrap_or(argument) }
    }

    /// The text without its quotes.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The text without its quotes.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, core::str::Utf8Error> {
        core::str::from_utf8(self.bytes)
    }

    /// Whether the server closes the connection after this error. Compared without case and by prefix, since versions
    /// differ; an unknown text counts as closing, as in the reference clients.
    #[must_use]
    pub fn closes(&self) -> bool {
        !KEEPS_CONNECTION.iter().any(|prefix| {
            self.bytes.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
    }
}

impl fmt::Display for ErrText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            write!(f, "{}", chunk.valid())?;
            if !chunk.invalid().is_empty() {
                write!(f, "{}", chunk.invalid().escape_ascii())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ErrText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrText('{self}')")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pair_of_quotes_is_removed() {
        for (argument, text) in
            [("'a'", "a"), ("a", "a"), ("''", ""), ("'", "'"), ("''a''", "'a'"), ("'a", "'a"), ("", "")]
        {
            assert_eq!(ErrText::from_argument(argument.as_bytes()).text(), Ok(text), "{argument}");
        }
    }

    #[test]
    fn only_a_few_errors_keep_the_connection() {
        for (text, closes) in [
            ("Permissions Violation for Publish to \"a\"", false),
            ("permissions violation for Subscription to \"a\" using queue \"q\"", false),
            ("Permissions Violation for Publish with Reply of \"r\"", false),
            ("invalid subject", false),
            ("Invalid Publish Subject", false),
            ("Maximum Subscriptions Exceeded", false),
            ("maximum connections exceeded", true),
            ("Stale Connection", true),
            ("Authorization Violation", true),
            ("", true),
            ("something of tomorrow", true),
        ] {
            assert_eq!(ErrText::from_argument(text.as_bytes()).closes(), closes, "{text}");
        }
    }

    #[test]
    fn a_text_to_send_cannot_end_its_line() {
        for bad in ["a\r", "a\nPING", "it's"] {
            assert!(ErrText::new(bad).is_err(), "{bad:?}");
        }
        assert!(ErrText::new("Stale Connection").is_ok());
    }
}
