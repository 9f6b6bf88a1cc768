//! Writing operations. Every function computes the exact length first, makes room once, and then cannot fail; every
//! name it takes has been checked, so nothing that is written can end a line early.
//!
//! For vectored writes there is a `*_head` form, which writes everything up to the payload: send the head, the payload
//! and [`TAIL`] as three slices.

use crate::header::HeaderBlock;
use crate::name::{NameError, QueueGroup, Sid, Subject, SubjectFilter, Token};
use crate::op::ErrText;
use crate::sink::Sink;

/// What follows a payload.
pub const TAIL: &[u8] = b"\r\n";

/// The longest payload, headers included, that a client can announce: nats-server reads nine digits.
///
/// Source: nats-server, server/util.go, `parseSize`. Its `max_payload` is far below.
pub const PAYLOAD_BYTES_MAX: usize = 999_999_999;

/// JSON that fits in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLine<'a>(&'a str);

impl<'a> JsonLine<'a> {
    /// Checks that it is one line, not that it is JSON.
    ///
    /// # Errors
    /// If it holds CR or LF, which are legal between the values of JSON but end a line here.
    pub fn new(json: &'a str) -> Result<Self, NameError> {
        match json.bytes().position(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(at) => Err(NameError::forbidden(json.as_bytes(), at)),
            None => Ok(Self(json)),
        }
    }

    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

// What a client sends.

/// `CONNECT <json>`: the first operation of a client, after it has read the server's INFO.
pub fn connect<S: Sink>(out: &mut S, json: JsonLine<'_>) -> S::Output {
    line(out, &[b"CONNECT ", json.0.as_bytes(), b"\r\n"])
}

/// Length of [`connect`], in bytes.
#[must_use]
pub const fn connect_len(json: JsonLine<'_>) -> usize {
    b"CONNECT \r\n".len() + json.0.len()
}

/// `PUB <subject> [reply] <size>` and the payload.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`].
#[inline]
pub fn publish<S: Sink>(
    out: &mut S,
    subject: Subject<'_>,
    reply: Option<Subject<'_>>,
    payload: &[u8],
) -> S::Output {
    Head::publish(subject, reply, None, payload.len()).append_with_payload_to(out, payload)
}

/// Length of [`publish`], in bytes.
#[must_use]
pub fn publish_len(subject: Subject<'_>, reply: Option<Subject<'_>>, payload_len: usize) -> usize {
    publish_head_len(subject, reply, payload_len) + payload_len + TAIL.len()
}

/// [`publish`] up to the payload.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`].
#[inline]
pub fn publish_head<S: Sink>(
    out: &mut S,
    subject: Subject<'_>,
    reply: Option<Subject<'_>>,
    payload_len: usize,
) -> S::Output {
    Head::publish(subject, reply, None, payload_len).append_to(out)
}

/// Length of [`publish_head`], in bytes.
#[must_use]
pub fn publish_head_len(subject: Subject<'_>, reply: Option<Subject<'_>>, payload_len: usize) -> usize {
    Head::publish(subject, reply, None, payload_len).len()
}

/// `HPUB <subject> [reply] <header size> <total size>`, the header block and the payload. Only for a server whose INFO
/// has `headers`, and after a CONNECT that has it too.
///
/// # Panics
/// If headers and payload together are longer than [`PAYLOAD_BYTES_MAX`].
pub fn publish_with_headers<S: Sink>(
    out: &mut S,
    subject: Subject<'_>,
    reply: Option<Subject<'_>>,
    headers: HeaderBlock<'_>,
    payload: &[u8],
) -> S::Output {
    Head::publish(subject, reply, Some(headers), payload.len()).append_with_payload_to(out, payload)
}

/// Length of [`publish_with_headers`], in bytes.
#[must_use]
pub fn publish_with_headers_len(
    subject: Subject<'_>,
    reply: Option<Subject<'_>>,
    headers: HeaderBlock<'_>,
    payload_len: usize,
) -> usize {
    Head::publish(subject, reply, Some(headers), payload_len).len() + payload_len + TAIL.len()
}

/// [`publish_with_headers`] up to the payload, the header block included.
///
/// # Panics
/// If headers and payload together are longer than [`PAYLOAD_BYTES_MAX`].
pub fn publish_with_headers_head<S: Sink>(
    out: &mut S,
    subject: Subject<'_>,
    reply: Option<Subject<'_>>,
    headers: HeaderBlock<'_>,
    payload_len: usize,
) -> S::Output {
    Head::publish(subject, reply, Some(headers), payload_len).append_to(out)
}

/// `SUB <subject> [queue] <sid>`.
pub fn subscribe<S: Sink>(
    out: &mut S,
    filter: SubjectFilter<'_>,
    queue: Option<QueueGroup<'_>>,
    sid: Sid<'_>,
) -> S::Output {
    let (space, queue) = optional(queue.map(|queue| queue.as_bytes()));
    sid.with_bytes(|sid| line(out, &[b"SUB ", filter.as_bytes(), space, queue, b" ", sid, b"\r\n"]))
}

/// Length of [`subscribe`], in bytes.
#[must_use]
pub fn subscribe_len(filter: SubjectFilter<'_>, queue: Option<QueueGroup<'_>>, sid: Sid<'_>) -> usize {
    let queue = queue.map_or(0, |queue| 1 + queue.as_bytes().len());
    b"SUB  \r\n".len() + filter.as_bytes().len() + queue + sid.len()
}

/// `UNSUB <sid> [max]`: now, or after `max` messages have been delivered, counted from the SUB.
///
/// # Panics
/// If `max` has more than nine digits: nats-server would unsubscribe at once.
pub fn unsubscribe<S: Sink>(out: &mut S, sid: Sid<'_>, max: Option<u64>) -> S::Output {
    let max = max.map(|max| {
        assert!(max <= 999_999_999, "UNSUB takes at most nine digits, but max is {max}");
        Digits::new(max)
    });
    let (space, max) = optional(max.as_ref().map(Digits::as_bytes));
    sid.with_bytes(|sid| line(out, &[b"UNSUB ", sid, space, max, b"\r\n"]))
}

/// Length of [`unsubscribe`], in bytes.
#[must_use]
pub fn unsubscribe_len(sid: Sid<'_>, max: Option<u64>) -> usize {
    b"UNSUB \r\n".len() + sid.len() + max.map_or(0, |max| 1 + Digits::new(max).as_bytes().len())
}

// What both send.

/// `PING`.
pub fn ping<S: Sink>(out: &mut S) -> S::Output {
    line(out, &[b"PING\r\n"])
}

/// `PONG`: the answer to every PING, at once.
pub fn pong<S: Sink>(out: &mut S) -> S::Output {
    line(out, &[b"PONG\r\n"])
}

// What a server sends.

/// `INFO <json>`: the first bytes on a connection. nats-server writes a blank before CR LF; so do we, for clients that
/// have come to expect it.
pub fn info<S: Sink>(out: &mut S, json: JsonLine<'_>) -> S::Output {
    line(out, &[b"INFO ", json.0.as_bytes(), b" \r\n"])
}

/// Length of [`info`], in bytes.
#[must_use]
pub const fn info_len(json: JsonLine<'_>) -> usize {
    b"INFO  \r\n".len() + json.0.len()
}

/// `MSG <subject> <sid> [reply] <size>` and the payload. Subjects are tokens here: a server relays what it was given.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`]. So do all functions below that write a message.
#[inline]
pub fn message<'a, S: Sink>(
    out: &mut S,
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    payload: &[u8],
) -> S::Output {
    Head::message(subject.into(), sid, reply, None, payload.len()).append_with_payload_to(out, payload)
}

/// Length of [`message`], in bytes.
#[must_use]
pub fn message_len<'a>(
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    payload_len: usize,
) -> usize {
    Head::message(subject.into(), sid, reply, None, payload_len).len() + payload_len + TAIL.len()
}

/// [`message`] up to the payload.
pub fn message_head<'a, S: Sink>(
    out: &mut S,
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    payload_len: usize,
) -> S::Output {
    Head::message(subject.into(), sid, reply, None, payload_len).append_to(out)
}

/// `HMSG <subject> <sid> [reply] <header size> <total size>`, the header block and the payload.
pub fn message_with_headers<'a, S: Sink>(
    out: &mut S,
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    headers: HeaderBlock<'a>,
    payload: &[u8],
) -> S::Output {
    Head::message(subject.into(), sid, reply, Some(headers), payload.len())
        .append_with_payload_to(out, payload)
}

/// Length of [`message_with_headers`], in bytes.
#[must_use]
pub fn message_with_headers_len<'a>(
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    headers: HeaderBlock<'a>,
    payload_len: usize,
) -> usize {
    Head::message(subject.into(), sid, reply, Some(headers), payload_len).len() + payload_len + TAIL.len()
}

/// [`message_with_headers`] up to the payload, the header block included.
pub fn message_with_headers_head<'a, S: Sink>(
    out: &mut S,
    subject: impl Into<Token<'a>>,
    sid: Sid<'a>,
    reply: Option<Token<'a>>,
    headers: HeaderBlock<'a>,
    payload_len: usize,
) -> S::Output {
    Head::message(subject.into(), sid, reply, Some(headers), payload_len).append_to(out)
}

/// `+OK`: after an operation of a client that asked for `verbose`.
pub fn ok<S: Sink>(out: &mut S) -> S::Output {
    line(out, &[b"+OK\r\n"])
}

/// `-ERR '<text>'`.
pub fn err<S: Sink>(out: &mut S, text: ErrText<'_>) -> S::Output {
    line(out, &[b"-ERR '", text.as_bytes(), b"'\r\n"])
}

/// Length of [`err`], in bytes.
#[must_use]
pub const fn err_len(text: ErrText<'_>) -> usize {
    b"-ERR ''\r\n".len() + text.as_bytes().len()
}

// Inlined without asking: a head that goes through memory on its way to the sink costs as much as all the rest.

/// The line of a message, and the header block behind it.
struct Head<'a> {
    /// `PUB ` or `MSG `, after an H if there are headers.
    verb: &'static [u8; 4],
    subject: &'a [u8],
    sid: Option<Sid<'a>>,
    reply: Option<&'a [u8]>,
    headers: Option<(HeaderBlock<'a>, Size)>,
    total: Size,
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn publish(
        subject: Subject<'a>,
        reply: Option<Subject<'a>>,
        headers: Option<HeaderBlock<'a>>,
        payload_len: usize,
    ) -> Self {
        let (headers, total) = sizes(headers, payload_len);
        let reply = reply.map(|reply| reply.as_bytes());
        Self { verb: b"PUB ", subject: subject.as_bytes(), sid: None, reply, headers, total }
    }

    #[inline(always)]
    fn message(
        subject: Token<'a>,
        sid: Sid<'a>,
        reply: Option<Token<'a>>,
        headers: Option<HeaderBlock<'a>>,
        payload_len: usize,
    ) -> Self {
        let (headers, total) = sizes(headers, payload_len);
        let reply = reply.map(|reply| reply.as_bytes());
        Self { verb: b"MSG ", subject: subject.as_bytes(), sid: Some(sid), reply, headers, total }
    }

    /// Length of the line and the header block.
    #[inline(always)]
    fn len(&self) -> usize {
        let argument = |len: usize| 1 + len;
        self.verb.len()
            + self.subject.len()
            + self.sid.map_or(0, |sid| argument(sid.len()))
            + self.reply.map_or(0, |reply| argument(reply.len()))
            + self.headers.as_ref().map_or(0, |(_, size)| b"H".len() + argument(size.len) + size.number)
            + argument(self.total.len)
            + b"\r\n".len()
    }

    #[inline(always)]
    fn put(&self, out: &mut impl Sink) {
        if self.headers.is_some() {
            out.put(b"H");
        }
        out.put(self.verb);
        out.put(self.subject);
        if let Some(sid) = self.sid {
            out.put(b" ");
            sid.with_bytes(|sid| out.put(sid));
        }
        if let Some(reply) = self.reply {
            out.put(b" ");
            out.put(reply);
        }
        if let Some((_, size)) = &self.headers {
            size.put(out);
        }
        self.total.put_with_line_end(out);
        if let Some((headers, _)) = &self.headers {
            headers.for_each_part(|part| out.put(part));
        }
    }

    #[inline(always)]
    fn append_to<S: Sink>(&self, out: &mut S) -> S::Output {
        out.append(self.len(), |out| self.put(out))
    }

    #[inline(always)]
    fn append_with_payload_to<S: Sink>(&self, out: &mut S, payload: &[u8]) -> S::Output {
        out.append(self.len() + payload.len() + TAIL.len(), |out| {
            self.put(out);
            out.put(payload);
            out.put(TAIL);
        })
    }
}

#[inline(always)]
fn sizes(headers: Option<HeaderBlock<'_>>, payload_len: usize) -> (Option<(HeaderBlock<'_>, Size)>, Size) {
    let Some(headers) = headers else {
        return (None, Size::new(payload_len));
    };
    let header_len = headers.encoded_len();
    (Some((headers, Size::new(header_len))), Size::new(header_len + payload_len))
}

/// A length of at most nine digits, as it stands at the end of a line.
struct Size {
    number: usize,
    /// A space, the digits, CR and LF.
    bytes: u128,
    /// Number of digits.
    len: usize,
}

impl Size {
    /// # Panics
    /// If it has more than nine digits.
    #[inline(always)]
    fn new(number: usize) -> Self {
        if number < 10_000 { Self::of_four_digits(number as u32) } else { Self::of_more_digits(number) }
    }

    #[inline(always)]
    fn of_four_digits(number: u32) -> Self {
        // In halves and again in halves. Quotients by multiplication: exact for what fits the lanes.
        let hundreds = (number * 5243) >> 19;
        let pairs = hundreds | (number - 100 * hundreds) << 16;
        let tens = ((pairs * 103) >> 10) & 0x000f_000f;
        let digits = tens | (pairs - 10 * tens) << 8 | u32::from_le_bytes(*b"0000");
        let zeros = u32::from(number < 10) + u32::from(number < 100) + u32::from(number < 1000);
        let line = u64::from(digits) | u64::from(u16::from_le_bytes(*b"\r\n")) << 32;
        let bytes = (line >> (8 * zeros)) << 8 | u64::from(b' ');
        Self { number: number as usize, bytes: u128::from(bytes), len: 4 - zeros as usize }
    }

    #[cold]
    fn of_more_digits(number: usize) -> Self {
        assert!(
            number <= PAYLOAD_BYTES_MAX,
            "a payload of {number} bytes cannot be announced in nine digits"
        );
        let digits = Digits::new(number as u64);
        let digits = digits.as_bytes();
        let mut bytes = [b' '; 16];
        bytes[1..=digits.len()].copy_from_slice(digits);
        bytes[1 + digits.len()..][..2].copy_from_slice(b"\r\n");
        Self { number, bytes: u128::from_le_bytes(bytes), len: digits.len() }
    }

    #[inline(always)]
    fn put(&self, out: &mut impl Sink) {
        out.put_some(self.bytes.to_le_bytes(), 1 + self.len);
    }

    #[inline(always)]
    fn put_with_line_end(&self, out: &mut impl Sink) {
        out.put_some(self.bytes.to_le_bytes(), 1 + self.len + 2);
    }
}

fn line<S: Sink>(out: &mut S, parts: &[&[u8]]) -> S::Output {
    let len = parts.iter().map(|part| part.len()).sum();
    out.append(len, |out| parts.iter().for_each(|part| out.put(part)))
}

fn optional(argument: Option<&[u8]>) -> (&[u8], &[u8]) {
    argument.map_or((b"", b""), |argument| (b" ", argument))
}

/// A number as decimal digits, right-aligned.
#[derive(Clone, Copy)]
pub(crate) struct Digits {
    bytes: [u8; 20],
    start: u8,
}

impl Digits {
    #[inline]
    pub(crate) fn new(mut number: u64) -> Self {
        let mut bytes = [0; 20];
        let mut start = bytes.len();
        loop {
            start -= 1;
            bytes[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { bytes, start: start as u8 };
            }
        }
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..]
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::header::{Header, Headers};
    use crate::sink::{Cursor, Full};

    /// What `write` writes into a vector and into a buffer of exactly the promised length.
    #[track_caller]
    fn check(
        expected: &str,
        promised_len: usize,
        into_vec: impl FnOnce(&mut Vec<u8>),
        into_cursor: impl Fn(&mut Cursor<'_>) -> Result<(), Full>,
    ) {
        let mut out = b"before".to_vec();
        into_vec(&mut out);
        assert_eq!(out.escape_ascii().to_string(), format!("before{}", expected.as_bytes().escape_ascii()));
        assert_eq!(promised_len, expected.len(), "promised length of {expected:?}");

        let mut fixed = vec![0; promised_len];
        let mut cursor = Cursor::new(&mut fixed);
        assert_eq!(into_cursor(&mut cursor), Ok(()));
        assert_eq!(cursor.written(), expected.as_bytes());
        let full = Full { needed: promised_len, free: promised_len - 1 };
        let mut cursor = Cursor::new(&mut fixed[1..]);
        assert_eq!(into_cursor(&mut cursor), Err(full));
        assert_eq!(cursor.written(), b"");
    }

    use alloc::string::ToString;
    use alloc::{format, vec};

    macro_rules! check {
        ($expected:expr, $len:expr, $function:ident($($argument:expr),*)) => {
            check(
                $expected,
                $len,
                |out| $function(out, $($argument),*),
                |out| $function(out, $($argument),*),
            )
        };
    }

    #[test]
    fn a_client_writes_what_the_protocol_says() -> Result<(), NameError> {
        let (a, b) = (Subject::new("a")?, Some(Subject::new("b.c")?));
        let filter = SubjectFilter::new("a.*.>")?;
        let (queue, x) = (Some(QueueGroup::new("q")?), Sid::new("x")?);
        let json = JsonLine::new("{}")?;
        check!("CONNECT {}\r\n", connect_len(json), connect(json));
        check!("PUB a 2\r\nok\r\n", publish_len(a, None, 2), publish(a, None, b"ok"));
        check!("PUB a b.c 0\r\n\r\n", publish_len(a, b, 0), publish(a, b, b""));
        check!("PUB a 1000\r\n", publish_head_len(a, None, 1000), publish_head(a, None, 1000));
        check!("SUB a.*.> 7\r\n", subscribe_len(filter, None, 7.into()), subscribe(filter, None, 7.into()));
        check!("SUB a.*.> q x\r\n", subscribe_len(filter, queue, x), subscribe(filter, queue, x));
        check!("UNSUB 7\r\n", unsubscribe_len(7.into(), None), unsubscribe(7.into(), None));
        check!("UNSUB 7 10\r\n", unsubscribe_len(7.into(), Some(10)), unsubscribe(7.into(), Some(10)));
        check!("PING\r\n", 6, ping());
        check!("PONG\r\n", 6, pong());

        let lines = [Header::new("Key", "Val")?, Header::new("Empty", "")?];
        let headers = HeaderBlock::new(&lines);
        check!(
            "HPUB a b.c 31 33\r\nNATS/1.0\r\nKey: Val\r\nEmpty: \r\n\r\nok\r\n",
            publish_with_headers_len(a, b, headers, 2),
            publish_with_headers(a, b, headers, b"ok")
        );
        check!(
            "HPUB a 31 33\r\nNATS/1.0\r\nKey: Val\r\nEmpty: \r\n\r\n",
            publish_with_headers_len(a, None, headers, 2) - 4,
            publish_with_headers_head(a, None, headers, 2)
        );
        Ok(())
    }

    #[test]
    fn a_server_writes_what_the_protocol_says() -> Result<(), NameError> {
        let (a, b) = (Token::new("a..b")?, Some(Token::new("r")?));
        let json = JsonLine::new("{}")?;
        let sid = Sid::new("s1")?;
        check!("INFO {} \r\n", info_len(json), info(json));
        check!("+OK\r\n", 5, ok());
        let text = ErrText::new("Stale Connection")?;
        check!("-ERR 'Stale Connection'\r\n", err_len(text), err(text));
        check!("MSG a..b s1 2\r\nok\r\n", message_len(a, sid, None, 2), message(a, sid, None, b"ok"));
        check!("MSG a..b s1 r 0\r\n\r\n", message_len(a, sid, b, 0), message(a, sid, b, b""));
        check!("MSG a..b s1 r 9\r\n", message_len(a, sid, b, 9) - 11, message_head(a, sid, b, 9));
        let headers = HeaderBlock::with_status(503, "", &[])?;
        check!(
            "HMSG a..b 12 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
            message_with_headers_len(a, 12.into(), None, headers, 0),
            message_with_headers(a, 12.into(), None, headers, b"")
        );
        let headers = HeaderBlock::with_status(404, "No Messages", &[])?;
        check!(
            "HMSG a..b 12 r 28 29\r\nNATS/1.0 404 No Messages\r\n\r\n",
            message_with_headers_len(a, 12.into(), b, headers, 1) - 3,
            message_with_headers_head(a, 12.into(), b, headers, 1)
        );
        let headers = HeaderBlock::from(Headers::new(b"garbage"));
        check!(
            "HMSG a..b 1 7 8\r\ngarbagex\r\n",
            message_with_headers_len(a, 1.into(), None, headers, 1),
            message_with_headers(a, 1.into(), None, headers, b"x")
        );
        Ok(())
    }

    #[test]
    fn json_of_several_lines_is_no_line() {
        assert!(JsonLine::new("{\n}").is_err());
        assert!(JsonLine::new("{}\r").is_err());
    }

    #[test]
    #[should_panic(expected = "nine digits")]
    fn a_limit_that_the_server_would_take_for_now_is_refused() {
        unsubscribe(&mut Vec::new(), 1.into(), Some(1_000_000_000));
    }

    #[test]
    fn a_size_is_a_space_and_its_digits() {
        let check = |number: usize| {
            let mut room = [0; 40];
            let mut out = Cursor::new(&mut room);
            Size::new(number).put(&mut out);
            assert_eq!(out.written(), format!(" {number}").as_bytes());
            Size::new(number).put_with_line_end(&mut out);
            assert_eq!(out.written(), format!(" {number} {number}\r\n").as_bytes());
        };
        let powers = (0..9).map(|power| 10_usize.pow(power));
        powers.flat_map(|power| [power - 1, power, power + 1, 5 * power, 9 * power]).for_each(check);
        check(PAYLOAD_BYTES_MAX);
        (0..10_000).for_each(check);
    }

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 1, 9, 10, 99, 100, 999_999_999, u64::MAX] {
            assert_eq!(Digits::new(number).as_bytes(), number.to_string().as_bytes());
        }
    }
}
