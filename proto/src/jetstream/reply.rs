//! What comes back: acknowledgements of publishes, stored messages, and why something was not done.
//!
//! Never: requests.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserialize;

use super::{Reply, excerpt};
use crate::{Headers, Message, scan};

/// The proof that a publish is stored, in as many replicas as make a majority.
///
/// Source: nats-server, server/stream.go, `PubAck`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct PubAck<'a> {
    /// The stream that has it.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// Its sequence there.
    #[serde(rename = "seq")]
    pub sequence: u64,
    /// It was there already, under this sequence: a message with the same id came within the duplicate window.
    #[serde(default)]
    pub duplicate: bool,
    /// The JetStream domain of the stream, if it has one.
    #[serde(default, borrow)]
    pub domain: Option<Cow<'a, str>>,
}

/// A message as a stream holds it, borrowed from the reply if that was a direct get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored<'a> {
    /// Where it was published.
    pub subject: Cow<'a, [u8]>,
    /// Its sequence in the stream; in a key-value bucket, the revision.
    pub sequence: u64,
    /// The header block it was published with, empty if there was none. A direct get adds `Nats-Stream`, `Nats-Subject`,
    /// `Nats-Sequence` and `Nats-Time-Stamp`.
    pub header_block: Cow<'a, [u8]>,
    /// The payload.
    pub payload: Cow<'a, [u8]>,
}

/// A message that says that a key has no value. Its sequence is the key's revision nevertheless.
///
/// Source: ADR-8, "JetStream based key-value stores", and ADR-43 for those that the server writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marker {
    /// `KV-Operation: DEL`: deleted, older values may still be there.
    Delete,
    /// `KV-Operation: PURGE`: deleted, with all older values.
    Purge,
    /// `Nats-Marker-Reason`: the server removed the value, for its age or at an operator's request. From 2.11 on.
    Server,
}

impl Stored<'_> {
    /// The headers, if there are any.
    #[must_use]
    pub fn headers(&self) -> Option<Headers<'_>> {
        (!self.header_block.is_empty()).then(|| Headers::new(&self.header_block))
    }

    /// The first header under this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers()?.get(name)
    }

    /// Whether this stands for the absence of a value in a key-value bucket.
    #[must_use]
    pub fn marker(&self) -> Option<Marker> {
        let headers = self.headers()?;
        match headers.get("KV-Operation") {
            Some(b"DEL") => Some(Marker::Delete),
            Some(b"PURGE") => Some(Marker::Purge),
            _ => headers.get("Nats-Marker-Reason").map(|_| Marker::Server),
        }
    }
}

/// JetStream's refusal.
///
/// Source: nats-server, server/errors.json, which numbers them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ApiError {
    /// The kind, as in HTTP: 400, 404, 429, 500, 503.
    pub code: u16,
    /// Which error: see the methods.
    #[serde(default)]
    pub err_code: u32,
    /// For people.
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// The expected sequence is not that of the subject's last message (10071), or another write to the subject is on
    /// its way through the replicas (10164, from 2.11 on). Read again and decide again.
    #[must_use]
    pub const fn is_wrong_last_sequence(&self) -> bool {
        matches!(self.err_code, 10071 | 10164)
    }

    /// The sequence there was instead of the expected one: 10071 says it in its text, 10164 does not know it.
    #[must_use]
    pub fn last_sequence(&self) -> Option<u64> {
        let digits = self.description.strip_prefix("wrong last sequence: ")?;
        if self.err_code == 10071 { scan::number(digits.as_bytes()) } else { None }
    }

    /// No room: the stream's `max_bytes` or `max_msgs` with discard new (10077), the server's `max_file_store` or
    /// memory (10023, and 10047 or 10028 where a stream is created), the account's share (10002). Goes away when
    /// something is deleted.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self.err_code, 10077 | 10023 | 10047 | 10002 | 10028)
    }

    /// There is no such stream (10059), consumer (10014, or 10149 for an update), or message (10037).
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        self.is_stream_not_found() || self.is_consumer_not_found() || self.is_message_not_found()
    }

    /// There is no such stream.
    #[must_use]
    pub const fn is_stream_not_found(&self) -> bool {
        self.err_code == 10059
    }

    /// There is no such consumer.
    #[must_use]
    pub const fn is_consumer_not_found(&self) -> bool {
        matches!(self.err_code, 10014 | 10149)
    }

    /// There is no such message.
    #[must_use]
    pub const fn is_message_not_found(&self) -> bool {
        self.err_code == 10037
    }

    /// A stream of this name is there, with another configuration (10058), or a consumer (10148, from 2.10 on; 10013).
    #[must_use]
    pub const fn is_already_in_use(&self) -> bool {
        matches!(self.err_code, 10058 | 10148 | 10013)
    }

    /// Another stream has taken the subject (10065).
    #[must_use]
    pub const fn is_subject_taken(&self) -> bool {
        self.err_code == 10065
    }

    /// The server is older than what we asked for: it does not know a member of the request (10025). Servers before
    /// 2.11 drop such members and say nothing: compare what they echo.
    #[must_use]
    pub const fn is_unknown_field(&self) -> bool {
        self.err_code == 10025
    }

    /// Nothing was stored, and the same will do later: no leader or majority at the moment (10008), the stream is
    /// catching up (10163), too much at once (10167), or the first copy of this message id is on its way (10158).
    #[must_use]
    pub const fn is_for_now(&self) -> bool {
        matches!(self.err_code, 10008 | 10158 | 10163 | 10167)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, code {})", self.description, self.err_code, self.code)
    }
}

impl core::error::Error for ApiError {}

/// Why a request did not do what it asked for. Not among them: no reply at all, after which the outcome is unknown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Nobody serves the subject, so nothing was done: there is no such stream, it has no leader at the moment, or
    /// JetStream is off.
    NoResponders,
    /// JetStream refused.
    Api(ApiError),
    /// A status that has no place here, such as 408 for a direct get with a payload.
    Status {
        /// Three digits.
        code: u16,
        /// The text behind them.
        description: String,
    },
    /// An answer that cannot be read.
    Malformed {
        /// What had its place.
        expected: &'static str,
        /// The first bytes of what came.
        came: String,
    },
}

impl Failure {
    /// JetStream's refusal, if that is what this is.
    #[must_use]
    pub const fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoResponders => {
                write!(f, "nobody serves the subject: no stream, no leader, or no JetStream")
            }
            Self::Api(error) => error.fmt(f),
            Self::Status { code, description } => write!(f, "unexpected status {code} {description}"),
            Self::Malformed { expected, came } => write!(f, "expected {expected}, got `{came}`"),
        }
    }
}

impl core::error::Error for Failure {}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl<'a, T> Reply<'a, T> {
    /// The reply to a publish.
    ///
    /// # Errors
    /// [`Failure`]: it was not stored.
    pub fn pub_ack(&self) -> Result<PubAck<'a>, Failure> {
        match usual_pub_ack(self.message.payload) {
            Some(ack) => Ok(ack),
            None => self.decode("an acknowledgement of a publish"),
        }
    }

    /// The reply to a get, by the leader or direct: the message, or `None` if there is none.
    ///
    /// # Errors
    /// [`Failure`]: whether there is one is unknown.
    pub fn stored(&self) -> Result<Option<Stored<'a>>, Failure> {
        match direct(&self.message) {
            Some(result) => result,
            None => match self.read::<MessageGet<'_>>("a stored message")? {
                MessageGet { error: Some(error), .. } if error.is_message_not_found() => Ok(None),
                MessageGet { error: Some(error), .. } => Err(error.into()),
                MessageGet { message: Some(message), .. } => message.stored().map(Some),
                MessageGet { .. } => Err(self.malformed("a stored message")),
            },
        }
    }

    /// The reply to an acknowledgement that asked for one: the server has taken it, in a majority of replicas.
    ///
    /// # Errors
    /// [`Failure::NoResponders`] if the consumer is gone.
    pub fn confirmed(&self) -> Result<(), Failure> {
        match self.message.headers.and_then(|headers| headers.status()) {
            None => Ok(()),
            Some(_) => Err(status(&self.message, "an empty message")),
        }
    }

    /// The reply of the API, as JSON. `expected` names it in the error.
    ///
    /// # Errors
    /// [`Failure`]: it was not done.
    pub fn decode<D: Deserialize<'a>>(&self, expected: &'static str) -> Result<D, Failure> {
        match self.read::<Envelope>(expected)?.error {
            Some(error) => Err(error.into()),
            None => self.read(expected),
        }
    }

    fn read<D: Deserialize<'a>>(&self, expected: &'static str) -> Result<D, Failure> {
        match self.message.payload {
            b"" => Err(status(&self.message, expected)),
            json => serde_json::from_slice(json).map_err(|_| self.malformed(expected)),
        }
    }

    fn malformed(&self, expected: &'static str) -> Failure {
        Failure::Malformed { expected, came: excerpt(self.message.payload) }
    }
}

/// All that is looked at before a reply is read: whether it is an error.
#[derive(Deserialize)]
struct Envelope {
    error: Option<ApiError>,
}

/// Nothing but a status came.
fn status(message: &Message<'_>, expected: &'static str) -> Failure {
    match message.headers.and_then(|headers| Some((headers.status()?, headers.description()))) {
        Some((503, _)) => Failure::NoResponders,
        Some((code, description)) => {
            Failure::Status { code, description: description.unwrap_or_default().escape_ascii().to_string() }
        }
        None => Failure::Malformed { expected, came: excerpt(message.payload) },
    }
}

/// `{"stream":"S","seq":1}`, with a blank after the comma as 2.9 has it; `None` for whatever else may be right.
fn usual_pub_ack(json: &[u8]) -> Option<PubAck<'_>> {
    let rest = json.strip_prefix(br#"{"stream":""#)?;
    // JSON has no control characters in a string, and no zeros before a number.
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '))?;
    let (stream, rest) = rest.split_at(end);
    let rest = rest.strip_prefix(br#"","#)?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let digits = rest.strip_prefix(br#""seq":"#)?.strip_suffix(b"}")?;
    if let [b'0', _, ..] = digits {
        return None;
    }
    let sequence = scan::number(digits)?;
    let stream = core::str::from_utf8(stream).ok()?;
    Some(PubAck { stream: stream.into(), sequence, duplicate: false, domain: None })
}

/// The reply to a direct get. `None` if it is not one: a leader answers in JSON and without headers.
///
/// ```text
/// NATS/1.0␍␊ <the stored headers> Nats-Stream: S␍␊ Nats-Subject: a.b␍␊ Nats-Sequence: 2␍␊ Nats-Time-Stamp: …␍␊ ␍␊
/// ```
///
/// Source: ADR-31, "JetStream direct get". What the server adds stands last, so that a stored header of the same name
/// is no danger.
fn direct<'a>(message: &Message<'a>) -> Option<Result<Option<Stored<'a>>, Failure>> {
    let headers = message.headers?;
    let (sequence, subject) = match headers.status() {
        Some(404) => return Some(Ok(None)),
        Some(_) => return Some(Err(status(message, "a stored message"))),
        None => (headers.get_all("Nats-Sequence").last()?, headers.get_all("Nats-Subject").last()?),
    };
    let stored = Stored {
        subject: subject.into(),
        sequence: scan::number(sequence)?,
        header_block: headers.as_bytes().into(),
        payload: message.payload.into(),
    };
    Some(Ok(Some(stored)))
}

#[derive(Deserialize)]
struct MessageGet<'a> {
    error: Option<ApiError>,
    #[serde(borrow)]
    message: Option<StoredJson<'a>>,
}

/// Source: nats-server, server/store.go, `StoredMsg`.
#[derive(Deserialize)]
struct StoredJson<'a> {
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(rename = "seq")]
    sequence: u64,
    #[serde(default, borrow)]
    hdrs: Cow<'a, str>,
    #[serde(default, borrow)]
    data: Cow<'a, str>,
}

impl<'a> StoredJson<'a> {
    fn stored(self) -> Result<Stored<'a>, Failure> {
        let decode = |text: &str| {
            let malformed = || Failure::Malformed { expected: "base64", came: excerpt(text.as_bytes()) };
            base64(text.as_bytes()).map(Cow::Owned).ok_or_else(malformed)
        };
        Ok(Stored {
            header_block: decode(&self.hdrs)?,
            payload: decode(&self.data)?,
            subject: match self.subject {
                Cow::Borrowed(subject) => subject.as_bytes().into(),
                Cow::Owned(subject) => subject.into_bytes().into(),
            },
            sequence: self.sequence,
        })
    }
}

/// Base64 of RFC 4648, section 4, with its padding, as Go writes bytes into JSON.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (groups, []) = text.as_chunks::<4>() else {
        return None;
    };
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (index, group) in groups.iter().enumerate() {
        let last = index + 1 == groups.len();
        let padding = match group {
            [_, _, b'=', b'='] if last => 2,
            [_, _, _, b'='] if last => 1,
            _ => 0,
        };
        let mut bits = 0;
        for &byte in &group[..4 - padding] {
            bits = bits << 6 | sextet(byte)?;
        }
        let [_, three @ ..] = (bits << (6 * padding)).to_be_bytes();
        bytes.extend_from_slice(&three[..3 - padding]);
    }
    Some(bytes)
}

const fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value as u32)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::jetstream::RequestId;

    fn reply<'a>(headers: Option<&'a str>, payload: &'a str) -> Reply<'a, ()> {
        let headers = headers.map(|block| Headers::new(block.as_bytes()));
        let payload = payload.as_bytes();
        let message = Message { subject: b"_INBOX.a.1", sid: b"1", reply: None, headers, payload };
        Reply { tag: (), request: RequestId(1), sent_at: Duration::ZERO, message }
    }

    fn text(result: Result<String, Failure>) -> String {
        match result {
            Ok(text) => text,
            Err(Failure::Api(error)) => error.err_code.to_string(),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn a_publish_is_acknowledged_or_not() {
        let check = |headers: Option<&str>, payload: &str, expected: &str| {
            let ack = reply(headers, payload).pub_ack();
            let ack = ack.map(|ack| {
                let domain = ack.domain.as_deref().unwrap_or("-");
                alloc::format!("{} {} {} {domain}", ack.stream, ack.sequence, ack.duplicate)
            });
            assert_eq!(text(ack), expected, "{payload}");
        };
        check(None, r#"{"stream":"S","seq":2}"#, "S 2 false -");
        check(None, r#"{"stream":"S", "seq":18446744073709551615}"#, "S 18446744073709551615 false -");
        check(None, r#"{"stream":"S","seq":2,"duplicate": true}"#, "S 2 true -");
        check(None, r#"{"stream":"S","seq":2,"domain":"hub","of":[1]}"#, "S 2 false hub");
        check(None, r#"{"stream":"a\"b","seq":2}"#, "a\"b 2 false -");
        check(
            None,
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 2"},"stream":"S","seq":0}"#,
            "10071",
        );
        check(
            Some("NATS/1.0 429 Too Many Requests\r\n\r\n"),
            r#"{"error":{"code":429,"err_code":10167,"description":"too many requests"},"stream":"S","seq":0}"#,
            "10167",
        );
        check(Some("NATS/1.0 503\r\n\r\n"), "", &Failure::NoResponders.to_string());
        check(Some("NATS/1.0 408 Late\r\n\r\n"), "", "unexpected status 408 Late");
        check(None, "", "expected an acknowledgement of a publish, got ``");
        check(None, "{}", "expected an acknowledgement of a publish, got `{}`");
        check(
            None,
            r#"{"stream":"S","seq":-1}"#,
            r#"expected an acknowledgement of a publish, got `{\"stream\":\"S\",\"seq\":-1}`"#,
        );
    }

    #[test]
    fn the_short_cut_takes_the_usual_and_leaves_the_rest() {
        for (json, is_usual) in [
            (r#"{"stream":"KV_ad_state","seq":123}"#, true),
            (r#"{"stream":"X", "seq":1}"#, true),
            (r#"{"stream":"ä","seq":18446744073709551615}"#, true),
            (r#"{"stream":"X","seq":1,"duplicate":true}"#, false),
            (r#"{"stream":"X\u0041","seq":1}"#, false),
            (r#"{"stream":"X","seq":1 }"#, false),
            (r#"{"stream":"X","seq":18446744073709551616}"#, false),
            (r#"{"stream":"X","seq":0}"#, true),
            (r#"{"stream":"X","seq":01}"#, false),
            ("{\"stream\":\"X\u{1}\",\"seq\":1}", false),
            (r#"{"stream":"X","seq":}"#, false),
            (r#"{"stream":"X","seq":1}}"#, false),
            (r#"{"stream":"X","#, false),
            (r#"{"stream":"X"#, false),
            (r#"{"seq":1,"stream":"X"}"#, false),
        ] {
            let usual = usual_pub_ack(json.as_bytes());
            assert_eq!(usual.is_some(), is_usual, "{json}");
            if is_usual {
                assert_eq!(usual, serde_json::from_str(json).ok(), "{json}");
            }
        }
    }

    #[test]
    fn errors_have_their_kind() {
        let check = |err_code, expected: &str| {
            let error = ApiError { code: 400, err_code, description: String::new() };
            let kinds = [
                (error.is_wrong_last_sequence(), "cas"),
                (error.is_full(), "full"),
                (error.is_not_found(), "none"),
                (error.is_stream_not_found(), "stream"),
                (error.is_consumer_not_found(), "consumer"),
                (error.is_message_not_found(), "message"),
                (error.is_already_in_use(), "there"),
                (error.is_subject_taken(), "taken"),
                (error.is_unknown_field(), "field"),
                (error.is_for_now(), "later"),
            ];
            let kinds: Vec<_> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
            assert_eq!(kinds.join(" "), expected, "{err_code}");
        };
        check(10071, "cas");
        check(10164, "cas");
        for full in [10077, 10023, 10047, 10002, 10028] {
            check(full, "full");
        }
        check(10059, "none stream");
        check(10014, "none consumer");
        check(10149, "none consumer");
        check(10037, "none message");
        for there in [10058, 10148, 10013] {
            check(there, "there");
        }
        check(10065, "taken");
        check(10025, "field");
        for later in [10008, 10158, 10163, 10167] {
            check(later, "later");
        }
        for other in [0, 10012, 10052, 10060, 10099] {
            check(other, "");
        }
        let last = |err_code, description: &str| {
            ApiError { code: 400, err_code, description: description.into() }.last_sequence()
        };
        assert_eq!(last(10071, "wrong last sequence: 17"), Some(17));
        assert_eq!(last(10164, "wrong last sequence"), None);
        assert_eq!(last(10071, "wrong last sequence: x"), None);
        assert_eq!(last(10060, "wrong last sequence: 17"), None);
    }

    #[test]
    fn a_stored_message_comes_from_the_leader_or_direct() {
        let check = |headers: Option<&str>, payload: &str, expected: &str| {
            let stored = reply(headers, payload).stored();
            let stored = stored.map(|stored| {
                let Some(stored) = stored else {
                    return "none".into();
                };
                let header = stored.header("A").unwrap_or(b"-").escape_ascii();
                let (subject, payload) = (stored.subject.escape_ascii(), stored.payload.escape_ascii());
                alloc::format!("{} {subject} A={header} {payload} {:?}", stored.sequence, stored.marker())
            });
            assert_eq!(text(stored), expected, "{headers:?} {payload}");
        };
        let direct = |stored: &str, revision: &str| {
            alloc::format!(
                "NATS/1.0\r\n{stored}Nats-Stream: S\r\nNats-Subject: $KV.b.k\r\nNats-Sequence: {revision}\r\n\
                 Nats-Time-Stamp: 2026-01-01T00:00:00Z\r\n\r\n"
            )
        };
        check(Some(&direct("", "7")), "value", "7 $KV.b.k A=- value None");
        check(Some(&direct("A: 1\r\nNats-Sequence: 99\r\n", "7")), "", "7 $KV.b.k A=1  None");
        check(Some(&direct("KV-Operation: DEL\r\n", "7")), "", "7 $KV.b.k A=-  Some(Delete)");
        check(Some(&direct("KV-Operation: PURGE\r\n", "7")), "", "7 $KV.b.k A=-  Some(Purge)");
        check(Some(&direct("Nats-Marker-Reason: MaxAge\r\n", "7")), "", "7 $KV.b.k A=-  Some(Server)");
        check(Some("NATS/1.0 404 Message Not Found\r\n\r\n"), "", "none");
        check(Some("NATS/1.0 408 Empty Request\r\n\r\n"), "", "unexpected status 408 Empty Request");
        check(Some("NATS/1.0 503\r\n\r\n"), "", &Failure::NoResponders.to_string());
        check(Some(&direct("", "x")), "value", "expected a stored message, got `value`");

        let hdrs = "TkFUUy8xLjANCkE6IDENCg0K"; // NATS/1.0, A: 1
        let json = alloc::format!(
            r#"{{"type":"t","message":{{"subject":"a.b","seq":3,"hdrs":"{hdrs}","data":"/w==","time":"t"}}}}"#
        );
        check(None, &json, "3 a.b A=1 \\xff None");
        check(None, r#"{"message":{"subject":"a.b","seq":3,"time":"t"}}"#, "3 a.b A=-  None");
        check(None, r#"{"message":{"subject":"a\u00e4","seq":3,"data":"YQ=="}}"#, "3 a\\xc3\\xa4 A=- a None");
        check(None, r#"{"message":{"subject":"a","seq":3,"data":"YQ="}}"#, "expected base64, got `YQ=`");
        check(None, r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#, "none");
        check(None, r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#, "10059");
        check(None, r#"{"type":"t"}"#, r#"expected a stored message, got `{\"type\":\"t\"}`"#);
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYg==", Some(b"foob")),
            ("Zm9vYmE=", Some(b"fooba")),
            ("Zm9vYmFy", Some(b"foobar")),
            ("+/+/", Some(b"\xfb\xff\xbf")),
            ("Zg", None),
            ("Zg=", None),
            ("Z===", None),
            ("====", None),
            ("Zg==Zg==", None),
            ("Zm8=Zm9v", None),
            ("Zm9-", None),
            ("Zm 9v", None),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), bytes, "{text}");
        }
    }
}
