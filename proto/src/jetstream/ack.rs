//! Where and how a delivered message is acknowledged.
//!
//! ```text
//! $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>                   9 tokens
//! $JS.ACK.<domain|_>.<account hash>.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.…]
//! ```
//!
//! Source: ADR-15, "JetStream subscribe workflow", for both forms. The second one comes from servers that are told to
//! (`feature_flags { js_ack_fc_v2: true }`), may have more tokens at its end, and must be told apart by their number.

use alloc::string::{String, ToString};
use core::time::Duration;

use super::{JetStream, RequestId};
use crate::session::Session;
use crate::{Subject, scan};

/// The reply subject of a delivered message: what the server says of the delivery, and where the answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckSubject<'a> {
    subject: Subject<'a>,
    /// The JetStream domain, if the subject says it.
    pub domain: Option<&'a [u8]>,
    /// The stream.
    pub stream: &'a [u8],
    /// The consumer.
    pub consumer: &'a [u8],
    /// How many times the message has been delivered, this one included: 1 for the first time.
    pub delivered: u64,
    /// The message's sequence in its stream.
    pub stream_sequence: u64,
    /// The delivery's number within the consumer.
    pub consumer_sequence: u64,
    /// When it was stored, since 1970.
    pub stored_at: Duration,
    /// Messages of the stream that the consumer has not delivered yet.
    pub pending: u64,
}

impl<'a> AckSubject<'a> {
    /// `None` if it is not an ack subject of either form.
    #[must_use]
    pub fn parse(subject: &'a [u8]) -> Option<Self> {
        let rest = subject.strip_prefix(b"$JS.ACK.")?;
        let count = rest.split(|&byte| byte == b'.').count();
        let mut tokens = rest.split(|&byte| byte == b'.');
        let domain = match count {
            7 => None,
            9.. => {
                let domain = tokens.next()?;
                tokens.next()?; // the account, as a hash
                (domain != b"_").then_some(domain)
            }
            _ => return None,
        };
        let mut next = || tokens.next();
        let (stream, consumer) = (next()?, next()?);
        let mut number = || scan::number(next()?);
        Some(Self {
            subject: Subject::new(subject).ok()?,
            domain,
            stream,
            consumer,
            delivered: number()?,
            stream_sequence: number()?,
            consumer_sequence: number()?,
            stored_at: Duration::from_nanos(number()?),
            pending: number()?,
        })
    }

    /// The whole subject, to which the answer goes unchanged. Answers may come from any connection of the account;
    /// but a publish whose *reply* is such a subject is refused, so whoever passes a message on carries this in a header.
    ///
    /// Source: nats-server, server/client.go, `isReservedReply`.
    #[must_use]
    pub const fn subject(&self) -> Subject<'a> {
        self.subject
    }

    /// Answers, and does not ask whether it arrived: if not, the message comes again after the consumer's `ack_wait`.
    pub fn send(&self, session: &mut Session, ack: Ack<'_>, now: Duration) {
        ack.with_payload(|payload| session.publish(self.subject, payload, now));
    }
}

/// What to say of a delivered message.
///
/// Source: nats-server, server/consumer.go, `AckAck` and its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack<'a> {
    /// `+ACK`: done with it. On a work queue this deletes it.
    Done,
    /// `-NAK`: deliver it again, at once or after the delay.
    Again {
        /// Not before that; none or zero for at once.
        after: Option<Duration>,
    },
    /// `+TERM`: never deliver it again, although it is not done.
    ///
    /// The reason becomes part of the server's advisory. From 2.10.4 on; an older server ignores a `+TERM` with a reason,
    /// answers nevertheless when asked to, and delivers again.
    Never {
        /// For people; one line.
        reason: Option<&'a str>,
    },
    /// `+WPI`: still working on it, `ack_wait` starts anew.
    Working,
}

impl Ack<'_> {
    fn with_payload<R>(&self, send: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Done => send(b"+ACK"),
            Self::Again { after: None | Some(Duration::ZERO) } => send(b"-NAK"),
            Self::Again { after: Some(delay) } => {
                send(alloc::format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos()).as_bytes())
            }
            Self::Never { reason: None } => send(b"+TERM"),
            Self::Never { reason: Some(reason) } => send(alloc::format!("+TERM {reason}").as_bytes()),
            Self::Working => send(b"+WPI"),
        }
    }

    /// The payload of the answer.
    #[must_use]
    pub fn payload(&self) -> String {
        self.with_payload(|payload| String::from_utf8_lossy(payload).to_string())
    }
}

impl<T: Copy> JetStream<T> {
    /// Answers and asks whether it arrived: see [`Reply::confirmed`](super::Reply::confirmed). A second answer for the
    /// same message is confirmed too.
    pub fn acknowledge(
        &mut self,
        session: &mut Session,
        subject: &AckSubject<'_>,
        ack: Ack<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        ack.with_payload(|payload| self.request(session, subject.subject, None, payload, tag, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_subject_are_read() {
        let check = |text: &str, expected: Option<(&str, u64, u64)>| {
            let ack = AckSubject::parse(text.as_bytes());
            let read = ack.map(|ack| {
                assert_eq!((ack.stream, ack.consumer), (&b"IN"[..], &b"work"[..]), "{text}");
                assert_eq!((ack.delivered, ack.consumer_sequence), (3, 5), "{text}");
                assert_eq!(ack.stored_at, Duration::from_nanos(1_795_508_339_348_976_653), "{text}");
                assert_eq!(ack.subject().as_bytes(), text.as_bytes());
                let domain = ack.domain.map_or("-".into(), String::from_utf8_lossy).into_owned();
                (domain, ack.stream_sequence, ack.pending)
            });
            let expected = expected.map(|(domain, sequence, pending)| (domain.into(), sequence, pending));
            assert_eq!(read, expected, "{text}");
        };
        let time = "1795508339348976653";
        check(&alloc::format!("$JS.ACK.IN.work.3.4.5.{time}.2"), Some(("-", 4, 2)));
        check(&alloc::format!("$JS.ACK._.hash.IN.work.3.4.5.{time}.2"), Some(("-", 4, 2)));
        check(&alloc::format!("$JS.ACK.hub.hash.IN.work.3.4.5.{time}.2"), Some(("hub", 4, 2)));
        check(&alloc::format!("$JS.ACK.hub.hash.IN.work.3.4.5.{time}.2.random.more"), Some(("hub", 4, 2)));
        // Too few tokens, one that belongs to neither form, none, no number, another subject.
        check(&alloc::format!("$JS.ACK.IN.work.3.4.5.{time}"), None);
        check(&alloc::format!("$JS.ACK.hub.IN.work.3.4.5.{time}.2"), None);
        check(&alloc::format!("$JS.ACK.IN.work.3..5.{time}.2"), None);
        check(&alloc::format!("$JS.ACK.IN.work.3.-4.5.{time}.2"), None);
        check(&alloc::format!("$JS.ACK..work.3.4.5.{time}.2"), None);
        check(&alloc::format!("$JS.FC.IN.work.3.4.5.{time}.2"), None);
        check("$JS.ACK.", None);
        check("", None);
    }

    #[test]
    fn answers_are_what_the_server_reads() {
        for (ack, payload) in [
            (Ack::Done, "+ACK"),
            (Ack::Again { after: None }, "-NAK"),
            (Ack::Again { after: Some(Duration::ZERO) }, "-NAK"),
            (Ack::Again { after: Some(Duration::from_millis(700)) }, r#"-NAK {"delay":700000000}"#),
            (Ack::Never { reason: None }, "+TERM"),
            (Ack::Never { reason: Some("no JSON") }, "+TERM no JSON"),
            (Ack::Working, "+WPI"),
        ] {
            assert_eq!(ack.payload(), payload);
        }
    }
}
