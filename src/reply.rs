//! Where a request is to be answered, and what an answer looks like.
//!
//! ```text
//! PUB SendAlarmDigest _INBOX.a.1 16           the usual way: the reply subject of the request
//! HPUB SendAlarmDigest 44 60                  through a stream, which takes the reply subject for itself
//! Alarm-Digest-Reply: _INBOX.a.1
//!
//! PUB _INBOX.a.1 …                            the digest that was sent, or one without alarms
//! HPUB _INBOX.a.1 … Nats-Service-Error-Code: 400    why it is no request
//! ```
//!
//! Whoever may send requests makes us publish where he wants. So it is nothing of ours, and nothing of the server's.
//!
//! Never: what is due, and when a digest counts as sent.

use std::fmt;
use std::time::Duration;

use nats_wire::session::Session;
use nats_wire::{Header, HeaderBlock, Message, Subject};

use crate::alarm::Digest;
use crate::message::{self, DIGEST_BYTES_MAX_AT_LEAST, Rejection};

/// In a request: where to answer, if not at its reply subject.
pub const REPLY: &str = "Alarm-Digest-Reply";

/// In an answer: there are more alarms, in an answer that follows.
pub const MORE: &str = "Alarm-Digest-More";

/// Source: ADR-32, "Error handling".
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Longest reply subject, in bytes. Those of the clients have some 40.
const REPLY_BYTES_MAX: usize = 256;

/// What [`MORE`] adds to a message, in bytes.
const MORE_BYTES: usize = 64;

/// A subject to answer at.
#[derive(Clone, PartialEq, Eq)]
pub struct ReplyTo(Box<[u8]>);

impl ReplyTo {
    /// How long it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    fn subject(&self) -> Subject<'_> {
        Subject::new(&self.0).expect("it was checked when it came")
    }

    /// Publishes `digest` there: in several messages where one would exceed `max_payload`, all but the last with
    /// [`MORE`], and with `has_more` the last one too.
    pub(crate) fn answer(
        &self,
        digest: &Digest,
        has_more: bool,
        max_payload: usize,
        link: &mut Session,
        now: Duration,
    ) {
        let takes_headers = link.info().is_some_and(|info| info.headers);
        let room = max_payload.saturating_sub(MORE_BYTES);
        let mut payload = Vec::new();
        let mut parts = message::encode_digest(digest, max_payload, &mut payload);
        let marks = takes_headers && room >= DIGEST_BYTES_MAX_AT_LEAST && (has_more || parts.len() > 1);
        if marks {
            payload.clear();
            parts = message::encode_digest(digest, room, &mut payload);
        }
        let more = [Header::new(MORE, "true").expect("a name of ours, and a word")];
        for (at, part) in parts.iter().enumerate() {
            let (is_last, part) = (at + 1 == parts.len(), &payload[part.clone()]);
            if marks && (has_more || !is_last) {
                link.publish_with_headers(self.subject(), HeaderBlock::new(&more), part, now);
            } else {
                link.publish(self.subject(), part, now);
            }
        }
    }

    /// Publishes `payload` there, if there is a link that takes it.
    pub(crate) fn publish(&self, payload: &[u8], link: Option<&mut Session>, now: Duration) {
        let Some(link) = link.filter(|link| link.is_ready()) else { return };
        if link.info().is_some_and(|info| payload.len() as u64 <= info.max_payload) {
            link.publish(self.subject(), payload, now);
        }
    }

    /// Publishes there why no digest comes.
    pub(crate) fn refuse(&self, rejection: &Rejection, link: &mut Session, now: Duration) {
        if !link.info().is_some_and(|info| info.headers) {
            return link.publish(self.subject(), b"", now);
        }
        let detail = rejection.to_string();
        let header = |name, value| Header::new(name, value).expect("a name of ours, and printable ASCII");
        let headers = [header(ERROR, detail.as_str()), header(ERROR_CODE, "400")];
        link.publish_with_headers(self.subject(), HeaderBlock::new(&headers), b"", now);
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyTo({})", self.0.escape_ascii())
    }
}

/// A request that wants its answer where we give none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unanswerable;

/// Which subjects we answer at: all but those that begin with `$`, and ours with all beneath them.
#[derive(Clone, Debug)]
pub struct Replies {
    ours: Vec<String>,
}

impl Replies {
    /// `ours` are subjects that we or our streams read or write; a dot at their end makes no difference.
    pub fn new<'a>(ours: impl IntoIterator<Item = &'a str>) -> Self {
        Self { ours: ours.into_iter().map(|subject| subject.trim_end_matches('.').to_owned()).collect() }
    }

    /// Where `message` wants its answer, if it wants one. `reply` is its reply subject, unless that is a stream's.
    ///
    /// # Errors
    /// [`Unanswerable`], when that is no subject, longer than 256 bytes, or not for us to publish to.
    pub fn of(&self, message: &Message<'_>, reply: Option<&[u8]>) -> Result<Option<ReplyTo>, Unanswerable> {
        let named = message.headers.and_then(|headers| headers.get(REPLY));
        let Some(subject) = named.or(reply) else { return Ok(None) };
        let is_answerable = subject.len() <= REPLY_BYTES_MAX
            && Subject::new(subject).is_ok()
            && !subject.starts_with(b"$")
            && !self.is_ours(subject);
        if is_answerable { Ok(Some(ReplyTo(subject.into()))) } else { Err(Unanswerable) }
    }

    fn is_ours(&self, subject: &[u8]) -> bool {
        self.ours.iter().any(|ours| {
            let beneath = subject.strip_prefix(ours.as_bytes());
            beneath.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nats_wire::Headers;

    /// Where a message with this reply subject and this header is answered.
    fn answered_at(reply: Option<&str>, header: Option<&str>) -> Result<Option<String>, Unanswerable> {
        let block = header.map(|subject| format!("NATS/1.0\r\nAlarm-Digest-Reply: {subject}\r\n\r\n"));
        let message = Message {
            subject: b"send",
            sid: b"2",
            reply: None,
            headers: block.as_ref().map(|block| Headers::new(block.as_bytes())),
            payload: b"",
        };
        let to =
            Replies::new(["send", "alarms.changed", "AD.out."]).of(&message, reply.map(str::as_bytes))?;
        Ok(to.map(|to| String::from_utf8(to.0.into()).expect("it was text")))
    }

    #[test]
    fn an_answer_goes_where_the_request_says_and_the_header_says_it_first() {
        let text = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(answered_at(None, None), Ok(None));
        assert_eq!(answered_at(Some("_INBOX.a.1"), None), text("_INBOX.a.1"));
        assert_eq!(answered_at(None, Some("_INBOX.b")), text("_INBOX.b"));
        assert_eq!(answered_at(Some("_INBOX.a.1"), Some("_INBOX.b")), text("_INBOX.b"));
        for good in ["sender", "alarms", "alarms.change", "AD.outer.x", "a$b", &"x".repeat(256)] {
            assert_eq!(answered_at(Some(good), None), text(good));
        }
    }

    #[test]
    fn nothing_of_ours_or_of_the_server_is_answered_at() {
        let too_long = "x".repeat(257);
        let ours = ["send", "send.0", "alarms.changed", "alarms.changed.x.y", "AD.out", "AD.out.token"];
        let servers = ["$JS.API.STREAM.DELETE.AD_IN", "$KV.AD_STATE.x", "$SRV.PING", "$"];
        for bad in ours.iter().chain(&servers).chain(&["", "a..b", "a.*", ">", &too_long]) {
            assert_eq!(answered_at(Some(bad), None), Err(Unanswerable), "{bad}");
            assert_eq!(answered_at(Some("_INBOX.a"), Some(bad)), Err(Unanswerable), "{bad}");
        }
    }
}
