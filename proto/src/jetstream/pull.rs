//! A pull consumer's side of the client: ask for a batch, take what comes, know what is still owed.
//!
//! ```text
//! PUB $JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer> <inbox>.p<slot>.<number>   {"batch":500,"expires":…}
//! MSG <stored subject> <sid> $JS.ACK.<stream>.<consumer>.…                     500 times at most
//! HMSG <inbox>.p<slot>.<number> <sid>   NATS/1.0 100 Idle Heartbeat            while there is nothing
//! HMSG <inbox>.p<slot>.<number> <sid>   NATS/1.0 408 Request Timeout           or another end, or none after 500
//! ```
//!
//! Messages come under the subject they were stored with, so only the sid tells which request they are for. Hence each
//! [`Pull`] has a subscription of its own and at most one request open: what it owes is exact. For more requests at a
//! time, have more of them.
//!
//! Source: ADR-37, "JetStream simplification", and nats-server, server/consumer.go, `processNextMsgRequest`.
//!
//! Never: asking again by itself.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde::Serialize;

use super::{AckSubject, JetStream, Name};
use crate::encode::Digits;
use crate::session::Session;
use crate::{Headers, Message, Sid, Subject, SubjectFilter, scan};

/// One subscription to a consumer, with at most one open request.
#[derive(Debug)]
pub struct Pull {
    sid: u64,
    /// `$JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer>`
    subject: String,
    /// `<inbox>.p<slot>.`, and behind it the number of the last request.
    inbox: Vec<u8>,
    inbox_len: usize,
    number: u64,
    open: Option<Open>,
}

/// `owed > 0`.
#[derive(Clone, Copy, Debug)]
struct Open {
    owed: u64,
    heartbeat: Option<Duration>,
    /// When the last message or status came; when the request was sent, before that.
    heard_at: Duration,
    /// When the server should have ended it.
    ends_at: Option<Duration>,
}

/// What to ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct PullRequest {
    /// Messages at most; at least 1.
    pub batch: u64,
    /// The server ends the request after that. Without, it waits for ever and takes up one of the consumer's
    /// `max_waiting`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::config::nanos")]
    pub expires: Option<Duration>,
    /// The server says that it lives after so long without a message; at most half of `expires`. Without, a server that
    /// is gone, or a consumer that is not there, looks like one without messages. A server that has too many waiting
    /// does not say so to a request with heartbeats: it is silent.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::config::nanos")]
    pub idle_heartbeat: Option<Duration>,
    /// Ends at once with what there is.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub no_wait: bool,
    /// Bytes at most, headers and subjects included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

impl PullRequest {
    /// Up to `batch` messages within `expires`, with the longest heartbeat that is allowed.
    #[must_use]
    pub fn new(batch: u64, expires: Duration) -> Self {
        let idle_heartbeat = Some(expires / 2);
        Self { batch, expires: Some(expires), idle_heartbeat, no_wait: false, max_bytes: None }
    }
}

/// What came to a pull.
#[derive(Clone, Copy, Debug)]
pub enum Pulled<'a> {
    /// A message of the stream. Whatever happens, it is to be acknowledged or will come again.
    Delivery(Delivery<'a>),
    /// The server on the state of a request.
    Status(Status<'a>),
    /// Neither: somebody published to our inbox.
    Stray,
}

/// A message of the stream.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The subject it was stored with, its headers and its payload.
    pub message: Message<'a>,
    /// Which it is, and where the answer goes.
    pub ack: AckSubject<'a>,
}

/// The server on the state of a request.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    /// What it means.
    pub kind: PullStatus,
    /// Three digits.
    pub code: u16,
    /// The text behind them, which says more where servers have limits.
    pub description: &'a [u8],
    /// What of the batch the server has not sent: `Nats-Pending-Messages`. Newer servers say it with every end.
    pub unfilled: Option<u64>,
    /// Of a heartbeat: the consumer sequence of its last delivery, `Nats-Last-Consumer`.
    pub last_consumer: Option<u64>,
    /// Of a heartbeat: the stream sequence of its last delivery, `Nats-Last-Stream`.
    pub last_stream: Option<u64>,
    /// Of flow control: publish an empty message to it.
    pub reply: Option<&'a [u8]>,
    /// It is about the request that is open, or was until now; not about one that was given up.
    pub is_current: bool,
}

/// The states of a request.
///
/// Source: nats-server, server/consumer.go; ADR-9, "JetStream consumer idle heartbeats"; ADR-13, "Pull subscribe
/// internals"; ADR-42 for pinning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PullStatus {
    /// `100 Idle Heartbeat`: open, nothing to send. Also when the consumer's `max_ack_pending` is reached: no other
    /// status tells that.
    Heartbeat,
    /// `100 FlowControl Request`: only push consumers send it; answer to its reply.
    FlowControl,
    /// `400`: the request cannot be read, or its heartbeat is above half of `expires`.
    BadRequest,
    /// `404 No Messages`: `no_wait`, and there are none.
    NoMessages,
    /// `408 Request Timeout`: `expires` has passed, or `no_wait` has sent what there was.
    Expired,
    /// `408 Interest Expired`: the server saw no subscriber of our inbox.
    InterestExpired,
    /// `408 Requests Pending`: `no_wait`, and other requests stand before this one.
    RequestsPending,
    /// `409 Exceeded MaxWaiting`: too many requests wait at the consumer.
    TooManyWaiting,
    /// `409 Exceeded MaxRequestBatch`, `…Expires` or `…MaxBytes`: above what the consumer allows.
    AboveLimit,
    /// `409 Message Size Exceeds MaxBytes`: the next message does not fit `max_bytes`.
    MessageTooLarge,
    /// `409 Batch Completed`: `max_bytes` is used up.
    BatchCompleted,
    /// `409 Consumer Deleted`.
    ConsumerDeleted,
    /// `409 Consumer is push based`.
    PushBased,
    /// `409 Leadership Change`: the consumer's new leader knows nothing of the request.
    LeadershipChange,
    /// `409 Server Shutdown`.
    ServerShutdown,
    /// `412`: the server is older than what the request needs.
    ApiLevel,
    /// `423`: another client is pinned to the consumer.
    WrongPin,
    /// `429`: too many requests at once.
    TooManyRequests,
    /// `503`: the consumer or its stream is not there, or has no leader. Servers before 2.12 say nothing at all.
    NoResponders,
    /// Something of tomorrow.
    Unknown,
}

/// What to do about a [`PullStatus`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing: the request is open.
    Wait,
    /// It is over in the normal way: ask again when there is room.
    AskAgain,
    /// It is over, and would be over at once again: ask again after a pause, and look whether the consumer is there if
    /// it goes on.
    Pause,
    /// The consumer is gone: create it first.
    Create,
    /// The same request will be refused for ever.
    Fix,
}

impl PullStatus {
    /// What a status line means.
    #[must_use]
    pub fn of(code: u16, description: &[u8]) -> Self {
        let starts = |text: &str| {
            description.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
        };
        match code {
            100 if starts("FlowControl") => Self::FlowControl,
            100 => Self::Heartbeat,
            400 => Self::BadRequest,
            404 => Self::NoMessages,
            408 if starts("Interest Expired") => Self::InterestExpired,
            408 if starts("Requests Pending") => Self::RequestsPending,
            408 => Self::Expired,
            409 if starts("Exceeded MaxWaiting") => Self::TooManyWaiting,
            409 if starts("Exceeded Max") => Self::AboveLimit,
            409 if starts("Message Size Exceeds MaxBytes") => Self::MessageTooLarge,
            409 if starts("Batch Completed") => Self::BatchCompleted,
            409 if starts("Consumer Deleted") => Self::ConsumerDeleted,
            409 if starts("Consumer is push based") => Self::PushBased,
            409 if starts("Leadership Change") => Self::LeadershipChange,
            409 if starts("Server Shutdown") => Self::ServerShutdown,
            412 => Self::ApiLevel,
            423 => Self::WrongPin,
            429 => Self::TooManyRequests,
            503 => Self::NoResponders,
            _ => Self::Unknown,
        }
    }

    /// What to do about it. Anything but [`Next::Wait`] ends the request.
    #[must_use]
    pub const fn next(self) -> Next {
        match self {
            Self::Heartbeat | Self::FlowControl => Next::Wait,
            Self::NoMessages | Self::Expired | Self::BatchCompleted | Self::WrongPin => Next::AskAgain,
            Self::InterestExpired
            | Self::RequestsPending
            | Self::TooManyWaiting
            | Self::LeadershipChange
            | Self::ServerShutdown
            | Self::TooManyRequests
            | Self::NoResponders
            | Self::Unknown => Next::Pause,
            Self::ConsumerDeleted => Next::Create,
            Self::BadRequest
            | Self::AboveLimit
            | Self::MessageTooLarge
            | Self::PushBased
            | Self::ApiLevel => Next::Fix,
        }
    }
}

impl Pull {
    /// Pulls from `consumer` of `stream`, through the inbox and the API prefix of `jetstream`. No two pulls may share a
    /// `slot` or a `sid`.
    #[must_use]
    pub fn new<T: Copy>(
        jetstream: &JetStream<T>,
        stream: Name<'_>,
        consumer: Name<'_>,
        slot: u32,
        sid: u64,
    ) -> Self {
        let inbox = [jetstream.inbox_prefix(), format!("p{slot}.").as_bytes()].concat();
        Self {
            sid,
            subject: format!("{}.CONSUMER.MSG.NEXT.{stream}.{consumer}", jetstream.api_prefix()),
            inbox_len: inbox.len(),
            inbox,
            number: 0,
            open: None,
        }
    }

    /// Subscribes. Once per connection, before the first request; a request of the last connection is forgotten.
    pub fn subscribe(&mut self, session: &mut Session, now: Duration) {
        self.open = None;
        let filter = [&self.inbox[..self.inbox_len], b"*"].concat();
        let filter = SubjectFilter::new(&filter).expect("a subject, a dot and a wildcard are a filter");
        session.subscribe(filter, None, Sid::from(self.sid), now);
    }

    /// Asks for messages.
    ///
    /// # Panics
    /// If a request is open, or asks for none.
    pub fn request(&mut self, session: &mut Session, request: &PullRequest, now: Duration) {
        assert!(self.open.is_none(), "a pull has at most one request open");
        assert!(request.batch > 0, "a pull asks for at least one message");
        self.number += 1;
        self.inbox.truncate(self.inbox_len);
        self.inbox.extend_from_slice(Digits::new(self.number).as_bytes());
        let subject =
            Subject::new(&self.subject).expect("checked names with dots between them are a subject");
        let reply = Subject::new(&self.inbox).expect("a subject, a dot and digits are a subject");
        let body = serde_json::to_vec(request).expect("numbers and flags always serialise");
        session.publish_for_reply(subject, reply, None, &body, now);
        self.open = Some(Open {
            owed: request.batch,
            heartbeat: request.idle_heartbeat.filter(|heartbeat| !heartbeat.is_zero()),
            heard_at: now,
            ends_at: request.expires.map(|expires| now.saturating_add(expires)),
        });
    }

    /// Takes a message. `None` if it is another subscription's.
    pub fn on_message<'a>(&mut self, message: &Message<'a>, now: Duration) -> Option<Pulled<'a>> {
        if message.sid_number() != Some(self.sid) {
            return None;
        }
        if let Some(open) = &mut self.open {
            open.heard_at = now;
        }
        // Before the ack subject, because a status has none; and by subject first, because anybody may store a message
        // that has a status in its headers.
        if let Some(number) = message.subject.strip_prefix(&self.inbox[..self.inbox_len]) {
            let status = message.headers.and_then(|headers| self.status(number, headers, message.reply));
            return Some(status.map_or(Pulled::Stray, |status| self.on_status(status)));
        }
        match message.reply.and_then(AckSubject::parse) {
            Some(ack) => Some(self.on_delivery(Delivery { message: *message, ack })),
            None => Some(Pulled::Stray),
        }
    }

    /// Whether a request is open: messages may come.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Messages that the open request may still bring; 0 if none is open.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.open.map_or(0, |open| open.owed)
    }

    /// How many heartbeats in a row did not come. From 2 on the request counts as lost: the server, the consumer or the
    /// way between is gone. 0 without heartbeats.
    #[must_use]
    pub fn heartbeats_missed(&self, now: Duration) -> u64 {
        let missed = |open: Open| {
            let quiet = now.saturating_sub(open.heard_at);
            Some((quiet.as_nanos() / open.heartbeat?.as_nanos()) as u64)
        };
        self.open.and_then(missed).unwrap_or(0)
    }

    /// How long ago the server should have ended the request; `None` if it is not due, or not open.
    #[must_use]
    pub fn overdue(&self, now: Duration) -> Option<Duration> {
        now.checked_sub(self.open?.ends_at?)
    }

    /// Gives up the open request, so that another one may be sent. What it still brings is taken for the next one's:
    /// then less is owed than the server thinks, which does no harm.
    pub fn give_up(&mut self) {
        self.open = None;
    }

    fn status<'a>(&self, number: &[u8], headers: Headers<'a>, reply: Option<&'a [u8]>) -> Option<Status<'a>> {
        let code = headers.status()?;
        let description = headers.description().unwrap_or_default();
        let header = |name| headers.get(name).and_then(scan::number);
        Some(Status {
            kind: PullStatus::of(code, description),
            code,
            description,
            unfilled: header("Nats-Pending-Messages"),
            last_consumer: header("Nats-Last-Consumer"),
            last_stream: header("Nats-Last-Stream"),
            reply,
            is_current: scan::number(number) == Some(self.number),
        })
    }

    fn on_status<'a>(&mut self, status: Status<'a>) -> Pulled<'a> {
        if status.is_current && status.kind.next() != Next::Wait {
            self.open = None;
        }
        Pulled::Status(status)
    }

    fn on_delivery<'a>(&mut self, delivery: Delivery<'a>) -> Pulled<'a> {
        match &mut self.open {
            Some(open) if open.owed > 1 => open.owed -= 1,
            open => *open = None,
        }
        Pulled::Delivery(delivery)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::jetstream::tests::session;

    #[test]
    fn every_status_has_its_meaning() {
        use Next::*;
        use PullStatus::*;
        for (line, kind, next) in [
            ("100 Idle Heartbeat", Heartbeat, Wait),
            ("100", Heartbeat, Wait),
            ("100 FlowControl Request", FlowControl, Wait),
            ("400 Bad Request", BadRequest, Fix),
            ("400 Bad Request - heartbeat value too large", BadRequest, Fix),
            ("404 No Messages", NoMessages, AskAgain),
            ("408 Request Timeout", Expired, AskAgain),
            ("408 Interest Expired", InterestExpired, Pause),
            ("408 Requests Pending", RequestsPending, Pause),
            ("409 Exceeded MaxWaiting", TooManyWaiting, Pause),
            ("409 Exceeded MaxRequestBatch of 10", AboveLimit, Fix),
            ("409 Exceeded MaxRequestExpires of 2s", AboveLimit, Fix),
            ("409 Exceeded MaxRequestMaxBytes of 1024", AboveLimit, Fix),
            ("409 Message Size Exceeds MaxBytes", MessageTooLarge, Fix),
            ("409 Batch Completed", BatchCompleted, AskAgain),
            ("409 Consumer Deleted", ConsumerDeleted, Create),
            ("409 Consumer is push based", PushBased, Fix),
            ("409 Leadership Change", LeadershipChange, Pause),
            ("409 leadership change", LeadershipChange, Pause),
            ("409 Server Shutdown", ServerShutdown, Pause),
            ("409 Something Else", Unknown, Pause),
            ("409", Unknown, Pause),
            ("412 Required Api Level", ApiLevel, Fix),
            ("423 Nats-Wrong-Pin-Id", WrongPin, AskAgain),
            ("423 Nats-Pin-Id mismatch", WrongPin, AskAgain),
            ("429 Too Many Requests", TooManyRequests, Pause),
            ("503", NoResponders, Pause),
            ("503 No Responders", NoResponders, Pause),
            ("599 Of Tomorrow", Unknown, Pause),
        ] {
            let (code, description) = line.split_at(3);
            let status = PullStatus::of(code.parse().unwrap(), description.trim_start().as_bytes());
            assert_eq!((status, status.next()), (kind, next), "{line}");
        }
    }

    /// A pull with one open request for `batch` messages, sent at second 0.
    fn open(batch: u64) -> Pull {
        let jetstream = JetStream::<()>::new(Subject::new("_INBOX.a").unwrap(), 1);
        let mut pull = Pull::new(&jetstream, Name::new("IN").unwrap(), Name::new("work").unwrap(), 3, 7);
        let mut session = session();
        pull.subscribe(&mut session, Duration::ZERO);
        let request = PullRequest::new(batch, Duration::from_secs(10));
        pull.request(&mut session, &request, Duration::ZERO);
        let body = alloc::format!(r#"{{"batch":{batch},"expires":10000000000,"idle_heartbeat":5000000000}}"#);
        let expected = alloc::format!(
            "SUB _INBOX.a.p3.* 7\r\nPUB $JS.API.CONSUMER.MSG.NEXT.IN.work _INBOX.a.p3.1 {}\r\n{body}\r\n",
            body.len(),
        );
        assert_eq!(
            session.output().escape_ascii().to_string(),
            expected.as_bytes().escape_ascii().to_string()
        );
        pull
    }

    const ACK: &str = "$JS.ACK.IN.work.1.2.3.4.5";

    /// What comes of a message at second `at`, and what is owed after it.
    fn feed(pull: &mut Pull, at: u64, subject: &str, reply: Option<&str>, block: Option<&str>) -> String {
        let message = Message {
            subject: subject.as_bytes(),
            sid: b"7",
            reply: reply.map(str::as_bytes),
            headers: block.map(|block| Headers::new(block.as_bytes())),
            payload: b"",
        };
        let pulled = match pull.on_message(&message, Duration::from_secs(at)) {
            None => "none".to_string(),
            Some(Pulled::Stray) => "stray".to_string(),
            Some(Pulled::Delivery(delivery)) => format!("message {}", delivery.ack.stream_sequence),
            Some(Pulled::Status(status)) if status.is_current => {
                format!("{:?} {:?}", status.kind, status.unfilled)
            }
            Some(Pulled::Status(status)) => format!("old {:?}", status.kind),
        };
        format!("{pulled}, {} owed", pull.owed())
    }

    const EXPIRED: &str =
        "NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 2\r\nNats-Pending-Bytes: 0\r\n\r\n";

    #[test]
    fn what_is_owed_shrinks_with_messages_and_ends_with_a_status() {
        let mut pull = open(4);
        assert_eq!(feed(&mut pull, 1, "in.a", Some(ACK), None), "message 2, 3 owed");
        let heartbeat = "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n";
        assert_eq!(feed(&mut pull, 2, "_INBOX.a.p3.1", None, Some(heartbeat)), "Heartbeat None, 3 owed");
        // Whoever stores a message with a status in its headers has stored a message.
        assert_eq!(feed(&mut pull, 3, "in.a", Some(ACK), Some(EXPIRED)), "message 2, 2 owed");
        assert_eq!(feed(&mut pull, 4, "in.a", None, None), "stray, 2 owed");
        assert_eq!(feed(&mut pull, 4, "_INBOX.a.p3.1", None, None), "stray, 2 owed");
        assert_eq!(feed(&mut pull, 5, "_INBOX.a.p3.1", None, Some(EXPIRED)), "Expired Some(2), 0 owed");
        assert!(!pull.is_open());
    }

    #[test]
    fn a_filled_request_is_over() {
        let mut pull = open(1);
        assert_eq!(feed(&mut pull, 1, "in.a", Some(ACK), None), "message 2, 0 owed");
        assert!(!pull.is_open());
        assert_eq!(feed(&mut pull, 1, "in.a", Some(ACK), None), "message 2, 0 owed");
        let other = Message { subject: b"in.a", sid: b"8", reply: None, headers: None, payload: b"" };
        assert!(pull.on_message(&other, Duration::ZERO).is_none());
    }

    #[test]
    fn silence_is_counted_in_heartbeats() {
        let seconds = Duration::from_secs;
        let mut pull = open(2);
        assert_eq!([0, 4, 5, 9, 10, 15].map(|at| pull.heartbeats_missed(seconds(at))), [0, 0, 1, 1, 2, 3]);
        assert_eq!(
            [9, 10, 12].map(|at| pull.overdue(seconds(at))),
            [None, Some(seconds(0)), Some(seconds(2))]
        );
        feed(&mut pull, 9, "in.a", Some(ACK), None);
        assert_eq!([9, 13, 14].map(|at| pull.heartbeats_missed(seconds(at))), [0, 0, 1]);
        pull.give_up();
        assert_eq!((pull.heartbeats_missed(seconds(99)), pull.overdue(seconds(99))), (0, None));
    }

    #[test]
    fn the_end_of_a_request_that_was_given_up_does_not_end_the_next() {
        let mut pull = open(4);
        pull.give_up();
        pull.request(&mut session(), &PullRequest::new(4, Duration::from_secs(10)), Duration::from_secs(20));
        assert_eq!(feed(&mut pull, 21, "_INBOX.a.p3.1", None, Some(EXPIRED)), "old Expired, 4 owed");
        assert_eq!(feed(&mut pull, 21, "_INBOX.a.p3.2", None, Some(EXPIRED)), "Expired Some(2), 0 owed");
    }

    #[test]
    #[should_panic = "at most one request open"]
    fn two_requests_need_two_pulls() {
        open(1).request(&mut session(), &PullRequest::new(1, Duration::from_secs(10)), Duration::ZERO);
    }
}
