//! Bytes to operations, for both ends of a connection.
//!
//! The caller owns the bytes; a decoder holds offsets only. Between two calls the caller may move the bytes, grow the
//! buffer or replace it, as long as the next call begins at the same byte of the stream.
//!
//! ```text
//!   bytes:   M S G   f o o   1   5 ␍ ␊ h e l l o ␍ ␊ P I N G …
//!            ├──── line ──────────────┤├─ total ─┤    ├ next operation
//!            ├─────────────── used ──────────────────┤
//! ```
//!
//! What the decoder knows between two calls is `State`: how much of a line it has searched for its end, or where
//! everything is in an operation whose payload is not complete, or why it failed. So a line that comes byte by byte
//! costs O(1) per byte, and a payload that comes in pieces costs O(1) per piece.

mod common;
mod layout;
#[cfg(test)]
mod tests;

use core::marker::PhantomData;

use crate::error::{DecodeError, DecodeErrorKind, Excerpt, Verb};
use crate::limits::{IGNORED_BYTES_MAX, Limits};
use crate::op::{ClientOp, ServerOp};
use crate::scan::{self, Span, is_blank};

pub use layout::Layout;

/// What a decoder makes of the bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<Op> {
    /// An operation. The caller drops `used` bytes from the front before the next call.
    Op {
        /// The operation, borrowed from the bytes.
        op: Op,
        /// Its length on the wire, line ends included.
        used: usize,
    },
    /// There is no complete operation yet. The caller appends and calls again with the same first byte.
    More {
        /// How many bytes are missing, at least: never 0, 1 inside a line, and inside a payload the exact number.
        missing: usize,
    },
}

/// Decodes what a client reads.
#[derive(Clone, Debug)]
pub struct ClientDecoder {
    machine: Machine<FromServer>,
}

/// Decodes what a server reads.
#[derive(Clone, Debug)]
pub struct ServerDecoder {
    machine: Machine<FromClient>,
}

/// Both decoders, for code that serves either.
pub trait Decode: sealed::Sealed {
    /// What the other side sends.
    type Op<'a>;

    /// See [`ClientDecoder::decode`] and [`ServerDecoder::decode`].
    ///
    /// # Errors
    /// If the bytes are not what the other side may send.
    fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<Self::Op<'a>>, DecodeError>;

    /// The limits in force.
    fn limits(&self) -> Limits;

    #[doc(hidden)]
    fn step(&mut self, bytes: &[u8]) -> Result<Step<Layout>, DecodeError>;

    #[doc(hidden)]
    fn op<'a>(layout: &Layout, bytes: &'a [u8]) -> Self::Op<'a>;
}

impl ClientDecoder {
    /// A decoder at the first byte of a connection.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { machine: Machine::new(limits) }
    }

    /// Decodes the operation that begins at the first of `bytes`.
    ///
    /// An operation comes out as soon as its last byte is there, and an error as soon as no byte that may follow can
    /// avert it. How the stream is cut into pieces changes neither operations nor error.
    ///
    /// # Errors
    /// If the bytes are not what a server may send. The connection is of no use any more: every later call returns the
    /// same error.
    #[inline]
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<ServerOp<'a>>, DecodeError> {
        if let Some((layout, used)) = self.machine.common(bytes) {
            return Ok(Step::Op { op: ServerOp::Message(layout.message(bytes)), used });
        }
        match self.machine.any(bytes)? {
            Step::Op { op, used } => Ok(Step::Op { op: op.server_op(bytes), used }),
            Step::More { missing } => Ok(Step::More { missing }),
        }
    }
}

impl ServerDecoder {
    /// A decoder at the first byte of a connection.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { machine: Machine::new(limits) }
    }

    /// Decodes the operation that begins at the first of `bytes`.
    ///
    /// An operation comes out as soon as its last byte is there, and an error as soon as no byte that may follow can
    /// avert it. How the stream is cut into pieces changes neither operations nor error.
    ///
    /// A -ERR from a client is refused as an unknown verb: nats-server closes the connection on it.
    ///
    /// # Errors
    /// If the bytes are not what a client may send. The connection is of no use any more: every later call returns the
    /// same error.
    #[inline]
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<ClientOp<'a>>, DecodeError> {
        if let Some((layout, used)) = self.machine.common(bytes) {
            return Ok(Step::Op { op: ClientOp::Publish(layout.publish(bytes)), used });
        }
        match self.machine.any(bytes)? {
            Step::Op { op, used } => Ok(Step::Op { op: op.client_op(bytes), used }),
            Step::More { missing } => Ok(Step::More { missing }),
        }
    }
}

macro_rules! both_decoders {
    ($($decoder:ident gives $op:ident by $view:ident)*) => {$(
        impl $decoder {
            /// The limits in force.
            #[must_use]
            pub const fn limits(&self) -> Limits {
                self.machine.limits
            }

            /// Replaces the limits, from the next line on.
            pub const fn set_limits(&mut self, limits: Limits) {
                self.machine.limits = limits.clamped();
            }

            /// Bytes of the stream that have become operations: where the next one begins.
            #[must_use]
            pub const fn offset(&self) -> u64 {
                self.machine.offset
            }
        }

        impl sealed::Sealed for $decoder {}

        impl Decode for $decoder {
            type Op<'a> = $op<'a>;

            #[inline]
            fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<$op<'a>>, DecodeError> {
                $decoder::decode(self, bytes)
            }

            fn limits(&self) -> Limits {
                self.machine.limits
            }

            #[inline]
            fn step(&mut self, bytes: &[u8]) -> Result<Step<Layout>, DecodeError> {
                self.machine.step(bytes)
            }

            #[inline]
            fn op<'a>(layout: &Layout, bytes: &'a [u8]) -> $op<'a> {
                layout.$view(bytes)
            }
        }
    )*};
}
both_decoders!(ClientDecoder gives ServerOp by server_op ServerDecoder gives ClientOp by client_op);

mod sealed {
    pub trait Sealed {}
}

/// Who sent the bytes, and so which verbs may come and how strictly they are read.
trait Sender {
    const VERBS: &'static [Verb];
    /// Servers read sizes of one to nine digits; what they send we read as far as 64 bits go.
    const SIZE_DIGITS_MAX: usize;
    /// Whether INFO may follow its verb without a blank, and whether a CR inside a line is refused.
    const IS_CLIENT: bool;

    /// The verb of a message without headers; the one with them begins with an H.
    const MESSAGE: [u8; 3];
}

#[derive(Clone, Copy, Debug)]
struct FromServer;

impl Sender for FromServer {
    const VERBS: &'static [Verb] =
        &[Verb::Msg, Verb::Hmsg, Verb::Ping, Verb::Pong, Verb::Ok, Verb::Err, Verb::Info];
    const MESSAGE: [u8; 3] = *b"MSG";
    const SIZE_DIGITS_MAX: usize = usize::MAX;
    const IS_CLIENT: bool = false;
}

#[derive(Clone, Copy, Debug)]
struct FromClient;

impl Sender for FromClient {
    const VERBS: &'static [Verb] = &[
        Verb::Pub,
        Verb::Hpub,
        Verb::Ping,
        Verb::Pong,
        Verb::Sub,
        Verb::Unsub,
        Verb::Connect,
        Verb::Ok,
        Verb::Info,
    ];
    const MESSAGE: [u8; 3] = *b"PUB";
    /// Source: nats-server, server/util.go, `parseSize`.
    const SIZE_DIGITS_MAX: usize = 9;
    const IS_CLIENT: bool = true;
}

#[derive(Clone, Debug)]
struct Machine<S> {
    limits: Limits,
    /// Bytes of the stream before the current operation.
    offset: u64,
    state: State,
    sender: PhantomData<S>,
}

/// What is known of the bytes between two calls.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Inside a line: the first `searched` bytes hold no LF, and the first `blank` ones are the verb, once it is known,
    /// and the blanks after it. `blank <= searched`.
    Line {
        searched: usize,
        blank: usize,
    },
    /// The line is complete and its payload is not.
    Payload(Layout),
    Failed(DecodeError),
}

impl<S: Sender> Machine<S> {
    const fn new(limits: Limits) -> Self {
        let state = State::Line { searched: 0, blank: 0 };
        Self { limits: limits.clamped(), offset: 0, state, sender: PhantomData }
    }

    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Result<Step<Layout>, DecodeError> {
        match self.common(bytes) {
            Some((op, used)) => Ok(Step::Op { op, used }),
            None => self.any(bytes),
        }
    }

    #[inline(always)]
    fn common(&mut self, bytes: &[u8]) -> Option<(Layout, usize)> {
        let State::Line { searched: 0, .. } = self.state else {
            return None;
        };
        let found = common::message::<S>(bytes, self.limits)?;
        self.offset += found.1 as u64;
        Some(found)
    }

    /// What is not as common as a whole message written the way servers and clients write it.
    #[inline(never)]
    fn any(&mut self, bytes: &[u8]) -> Result<Step<Layout>, DecodeError> {
        let layout = match self.state {
            State::Line { searched, blank } => match self.line(bytes, searched, blank)? {
                Some(layout) => layout,
                None => return Ok(Step::More { missing: 1 }),
            },
            State::Payload(layout) => layout,
            State::Failed(error) => return Err(error),
        };
        self.payload(bytes, layout)
    }

    /// The payload, if the operation has one, must be there and be followed by CR LF.
    #[inline]
    fn payload(&mut self, bytes: &[u8], layout: Layout) -> Result<Step<Layout>, DecodeError> {
        let mut used = layout.line;
        if layout.verb.has_payload() {
            let end = layout.line + layout.total;
            used = end + 2;
            match bytes.get(end..used.min(bytes.len())) {
                Some([b'\r', b'\n']) => {}
                Some([b'\r']) | Some([]) | None => {
                    self.state = State::Payload(layout);
                    return Ok(Step::More { missing: used - bytes.len() });
                }
                Some([wrong, ..]) => {
                    // The first byte that is wrong, so that the error does not depend on how many have come.
                    let wrong = if *wrong == b'\r' { &bytes[end + 1..end + 2] } else { &bytes[end..end + 1] };
                    let kind = DecodeErrorKind::Terminator { total: layout.total as u64 };
                    return Err(self.fail(Some(layout.verb), kind, wrong));
                }
            }
        }
        self.offset += used as u64;
        self.state = State::Line { searched: 0, blank: 0 };
        Ok(Step::Op { op: layout, used })
    }

    /// A whole line, or what can be said about a part of one.
    fn line(&mut self, bytes: &[u8], searched: usize, blank: usize) -> Result<Option<Layout>, DecodeError> {
        let Some(verb) = self.verb(bytes)? else {
            return Ok(None);
        };
        let verb_len = verb.name().len();
        if verb.is_bare() {
            return self.bare_line(bytes, verb, searched.max(verb_len));
        }
        let mut args = blank.max(verb_len);
        while bytes.get(args).is_some_and(|byte| is_blank(*byte)) {
            args += 1;
        }
        if args - verb_len > IGNORED_BYTES_MAX {
            return Err(self.fail(Some(verb), DecodeErrorKind::LineTooLong { max: IGNORED_BYTES_MAX }, b""));
        }
        let max = match verb {
            Verb::Info | Verb::Connect => self.limits.info_bytes_max,
            _ => self.limits.line_bytes_max,
        };
        let lf = scan::find_lf(bytes, searched.max(args));
        let end = lf.unwrap_or(bytes.len());
        // A CR at the end is not an argument's: it belongs to the line's end, or LF has yet to come.
        let end = if end > args && bytes[end - 1] == b'\r' { end - 1 } else { end };
        if end - args > max {
            return Err(self.fail(Some(verb), DecodeErrorKind::LineTooLong { max }, b""));
        }
        let Some(lf) = lf else {
            self.state = State::Line { searched: bytes.len(), blank: args };
            return Ok(None);
        };
        self.arguments(bytes, verb, Span::new(args, end), lf + 1).map(Some)
    }

    /// The verb, once all of its letters and the blank after it, if it needs one, have come.
    fn verb(&mut self, bytes: &[u8]) -> Result<Option<Verb>, DecodeError> {
        let mut right = 0;
        for &verb in S::VERBS {
            let name = verb.name().as_bytes();
            let same = name.iter().zip(bytes).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
            right = right.max(same);
            if same < name.len() {
                continue;
            }
            let needs_blank =
                !(verb.is_bare() || verb == Verb::Connect || (S::IS_CLIENT && verb == Verb::Info));
            match bytes.get(same) {
                Some(byte) if needs_blank && !is_blank(*byte) => break,
                None if needs_blank => return Ok(None),
                _ => return Ok(Some(verb)),
            }
        }
        if right == bytes.len() {
            return Ok(None);
        }
        // Up to and with the first letter that no verb has there.
        Err(self.fail(None, DecodeErrorKind::UnknownVerb, &bytes[..right + 1]))
    }

    /// PING, PONG and +OK: what stands between the verb and LF is ignored.
    ///
    /// Source: nats-server, server/parser.go, `OP_PING`: skips to LF.
    fn bare_line(
        &mut self,
        bytes: &[u8],
        verb: Verb,
        searched: usize,
    ) -> Result<Option<Layout>, DecodeError> {
        let lf = scan::find_lf(bytes, searched);
        if lf.unwrap_or(bytes.len()) - verb.name().len() > IGNORED_BYTES_MAX {
            return Err(self.fail(Some(verb), DecodeErrorKind::LineTooLong { max: IGNORED_BYTES_MAX }, b""));
        }
        match lf {
            Some(lf) => Ok(Some(Layout::new(verb, Span::default(), lf + 1))),
            None => {
                self.state = State::Line { searched: bytes.len().max(searched), blank: 0 };
                Ok(None)
            }
        }
    }

    fn arguments(
        &mut self,
        bytes: &[u8],
        verb: Verb,
        mut args: Span,
        line: usize,
    ) -> Result<Layout, DecodeError> {
        // These ignore a CR before the line's end however often it comes; PUB and HPUB do not.
        // Source: nats-server, server/client.go, `splitArg`, which also splits at CR, against `processPub`.
        let keeps_cr = matches!(verb, Verb::Pub | Verb::Hpub);
        while args.start < args.end
            && (is_blank(bytes[args.end - 1]) || (!keeps_cr && bytes[args.end - 1] == b'\r'))
        {
            args.end -= 1;
        }
        match verb {
            Verb::Info | Verb::Connect if args.is_empty() => {
                Err(self.fail(Some(verb), DecodeErrorKind::ArgumentCount { min: 1, max: 1, found: 0 }, b""))
            }
            Verb::Info | Verb::Connect | Verb::Err => Ok(Layout::new(verb, args, line)),
            _ => self.tokens(bytes, verb, args, line),
        }
    }

    /// The verbs whose arguments are tokens.
    fn tokens(&mut self, bytes: &[u8], verb: Verb, args: Span, line: usize) -> Result<Layout, DecodeError> {
        let args_bytes = args.of(bytes);
        if S::IS_CLIENT
            && let Some(cr) = args_bytes.iter().position(|&byte| byte == b'\r')
        {
            return Err(self.fail(Some(verb), DecodeErrorKind::StrayCr, &args_bytes[..cr]));
        }
        let (tokens, count) = scan::split::<5>(args_bytes, args.start);
        let (min, max) = verb.argument_count();
        if count < min || count > max {
            let kind = DecodeErrorKind::ArgumentCount { min, max, found: count };
            return Err(self.fail(Some(verb), kind, args_bytes));
        }
        let has_optional = count == max;
        let optional = |index: usize| if has_optional { tokens[index] } else { Span::default() };
        let mut layout = Layout::new(verb, tokens[0], line);
        match verb {
            Verb::Sub => {
                layout.optional = optional(1);
                layout.sid = tokens[count - 1];
                return Ok(layout);
            }
            Verb::Unsub => {
                layout.sid = tokens[0];
                layout.optional = optional(1);
                return Ok(layout);
            }
            Verb::Pub | Verb::Hpub => layout.optional = optional(1),
            _ => {
                layout.sid = tokens[1];
                layout.optional = optional(2);
            }
        }
        if matches!(verb, Verb::Hpub | Verb::Hmsg) {
            let header = self.size(bytes, verb, tokens[count - 2])?;
            let total = self.size(bytes, verb, tokens[count - 1])?;
            if header > total {
                return Err(self.fail(Some(verb), DecodeErrorKind::HeaderSize { header, total }, b""));
            }
            layout.total = self.total(verb, total)?;
            layout.header = header as usize;
        } else {
            let total = self.size(bytes, verb, tokens[count - 1])?;
            layout.total = self.total(verb, total)?;
        }
        Ok(layout)
    }

    fn size(&mut self, bytes: &[u8], verb: Verb, token: Span) -> Result<u64, DecodeError> {
        let digits = token.of(bytes);
        let number = if digits.len() > S::SIZE_DIGITS_MAX { None } else { scan::number(digits) };
        number.ok_or_else(|| self.fail(Some(verb), DecodeErrorKind::Size, digits))
    }

    fn total(&mut self, verb: Verb, total: u64) -> Result<usize, DecodeError> {
        let max = self.limits.payload_bytes_max;
        match usize::try_from(total) {
            Ok(total) if total <= max => Ok(total),
            _ => Err(self.fail(Some(verb), DecodeErrorKind::PayloadTooLarge { total, max }, b"")),
        }
    }

    #[cold]
    fn fail(&mut self, verb: Option<Verb>, kind: DecodeErrorKind, found: &[u8]) -> DecodeError {
        let error = DecodeError { kind, offset: self.offset, verb, found: Excerpt::new(found) };
        self.state = State::Failed(error);
        error
    }
}

impl Verb {
    const fn has_payload(self) -> bool {
        matches!(self, Self::Pub | Self::Hpub | Self::Msg | Self::Hmsg)
    }

    const fn is_bare(self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::Ok)
    }

    /// Fewest and most arguments.
    const fn argument_count(self) -> (usize, usize) {
        match self {
            Self::Ping | Self::Pong | Self::Ok => (0, 0),
            Self::Info | Self::Connect | Self::Err => (1, 1),
            Self::Unsub => (1, 2),
            Self::Sub | Self::Pub => (2, 3),
            Self::Hpub | Self::Msg => (3, 4),
            Self::Hmsg => (4, 5),
        }
    }
}
