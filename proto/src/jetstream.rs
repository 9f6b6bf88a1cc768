//! JetStream over one [`Session`]: plain messages with agreed subjects and JSON, and no more magic than that.
//!
//! The caller owns the session, the socket and the clock. It calls a method here, which writes a request into the
//! session, and hands in every message that comes.
//!
//! ```text
//! JetStream::publish, call, kv_put, …   PUB <subject> <inbox>.<request> …      remembered with the caller's tag
//! JetStream::on_message                 MSG <inbox>.<request> …                → Reply: the tag, and how to read it
//! JetStream::expired                    nothing came in time                   → the tag; the outcome is unknown
//! ```
//!
//! Replies are matched by the number in their subject and not by order: with three replicas the refusal of a later
//! publish overtakes the acknowledgement of an earlier one. All replies come to one wildcard subscription; what is
//! pulled comes to those of [`Pull`].
//!
//! In reading order:
//! - this file: [`JetStream`], requests and replies, publishing
//! - `reply`: what came back: [`PubAck`], [`Stored`], or a [`Failure`] such as an [`ApiError`]
//! - `kv`: [`Bucket`] and [`Key`], put and get with revisions
//! - `pull`: [`Pull`], messages on request, and every status a server ends or keeps a request with
//! - `ack`: [`AckSubject`] and [`Ack`]
//! - `config`: [`StreamConfig`] and [`ConsumerConfig`], what we want, and how what is there differs
//! - `manage`: making, asking for and deleting streams and consumers
//!
//! Never: sockets, clocks, randomness, retries, push consumers, ordered consumers, the object store.
//!
//! Sources: the Architecture and Design Records of NATS (ADR), nats-server's `server/` directory, and trials with
//! nats-server 2.9.10 and 2.15.1.

mod ack;
mod config;
mod kv;
mod manage;
mod pull;
mod reply;

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use crate::encode::Digits;
use crate::session::Session;
use crate::{Header, HeaderBlock, Headers, Message, NameError, Sid, Subject, SubjectFilter, scan};

pub use ack::{Ack, AckSubject};
pub use config::{
    AckPolicy, ConfigMap, ConsumerConfig, DeliverPolicy, Difference, Discard, Republish, Retention, Storage,
    StreamConfig, set_among,
};
pub use kv::{Bucket, Key};
pub use manage::{
    AccountInfo, ApiLevel, ClusterInfo, ConsumerAction, ConsumerInfo, Deleted, Limits, Purged, Release,
    SequencePair, StreamInfo, StreamState,
};
pub use pull::{Delivery, Next, Pull, PullRequest, PullStatus, Pulled, Status};
pub use reply::{ApiError, Failure, Marker, PubAck, Stored};

/// Header of a publish: the sequence of the last message on the same subject, 0 for none. Another one refuses it.
///
/// Source: ADR-8 and nats-server, server/stream.go, `JSExpectedLastSubjSeq`.
pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";

/// Header of a publish: the name of the stream that must take it.
pub const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// Header of a publish: an id, of which the stream takes each once within its `duplicate_window`.
///
/// Servers from 2.12 on, with one replica, check the expected sequence first: a repeated publish with both is refused
/// there and called a duplicate elsewhere. So read back instead of relying on it.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Header of a publish: `sub` replaces all messages of the subject, `all` those of the stream.
pub const ROLLUP: &str = "Nats-Rollup";

/// Where the API is, unless an account imports it from elsewhere or it lies in another domain.
const API_PREFIX: &str = "$JS.API";

/// The requests of one connection after the other, with their replies.
///
/// `T` is what the caller wants to know again when a reply comes: what it was about.
#[derive(Debug)]
pub struct JetStream<T> {
    /// `$JS.API`, without a dot at its end.
    api: String,
    sid: u64,
    pending: Pending<T>,
    /// `<inbox>.`, and behind it the number of the last request.
    reply: Vec<u8>,
    inbox_len: usize,
    /// Memory for the subject and the headers of the next request.
    subject: Vec<u8>,
    headers: Vec<u8>,
}

/// The number of a request, never used again, also not on the next connection: a late reply matches nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What came back for a request. Its methods read it as what the caller knows it to be.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a, T> {
    /// What the caller gave with the request.
    pub tag: T,
    /// Which request this answers.
    pub request: RequestId,
    /// When it was sent.
    pub sent_at: Duration,
    /// The answer.
    pub message: Message<'a>,
}

/// A message to store.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    /// Where to; the stream that holds this subject takes it.
    pub subject: Subject<'a>,
    /// More headers, such as [`MESSAGE_ID`].
    pub headers: &'a [Header<'a>],
    /// The payload.
    pub payload: &'a [u8],
    /// [`EXPECTED_LAST_SUBJECT_SEQUENCE`]: compare, and only then store. `None` stores in any case.
    pub expected_last: Option<u64>,
}

impl<'a> Publication<'a> {
    /// Without headers, to be stored in any case.
    #[must_use]
    pub const fn new(subject: Subject<'a>, payload: &'a [u8]) -> Self {
        Self { subject, headers: &[], payload, expected_last: None }
    }
}

impl<T: Copy> JetStream<T> {
    /// Replies will come to `<inbox>.*`, and to sid `sid`. The caller makes `inbox` unique, such as `_INBOX.<random>`:
    /// whoever else subscribes to it sees our replies.
    #[must_use]
    pub fn new(inbox: Subject<'_>, sid: u64) -> Self {
        let reply = [inbox.as_bytes(), b"."].concat();
        Self {
            api: API_PREFIX.into(),
            sid,
            pending: Pending { first: 0, slots: VecDeque::new(), waiting: 0 },
            inbox_len: reply.len(),
            reply,
            subject: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// Asks another API prefix: `$JS.<domain>.API` for a domain, or what an account imports it as. Without a dot at
    /// its end. Source: ADR-19, "API prefixes for materialized JetStream views".
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    pub fn with_api_prefix(mut self, prefix: Subject<'_>) -> Self {
        let prefix = core::str::from_utf8(prefix.as_bytes()).expect("the caller gives a prefix in UTF-8");
        self.api = prefix.into();
        self
    }

    /// Asks the API of a JetStream domain.
    #[must_use]
    pub fn with_domain(mut self, domain: Name<'_>) -> Self {
        self.api = alloc::format!("$JS.{domain}.API");
        self
    }

    /// The prefix of all API subjects, without a dot at its end.
    #[must_use]
    pub fn api_prefix(&self) -> &str {
        &self.api
    }

    /// Subscribes to the replies. Once per connection, before the first request.
    ///
    /// # Panics
    /// If requests of the last connection are still remembered: [`forget`](Self::forget) comes first.
    pub fn subscribe(&self, session: &mut Session, now: Duration) {
        assert!(self.pending.slots.is_empty(), "no request can outlive its connection");
        let filter = [&self.reply[..self.inbox_len], b"*"].concat();
        let filter = SubjectFilter::new(&filter).expect("a subject, a dot and a wildcard are a filter");
        session.subscribe(filter, None, Sid::from(self.sid), now);
    }

    /// The connection is gone: hands out, oldest first, the tags of all requests without a reply. Whether they were
    /// carried out is unknown, as for those that [`expired`](Self::expired).
    pub fn forget(&mut self) -> impl Iterator<Item = (RequestId, T)> + use<'_, T> {
        self.pending.forget()
    }

    /// Sends any request: `headers` and payload to `subject`, the reply to us. If the account may not publish to
    /// `subject`, the session tells it as [`Event::Refused`](crate::session::Event::Refused), and no reply comes.
    pub fn request(
        &mut self,
        session: &mut Session,
        subject: Subject<'_>,
        headers: Option<HeaderBlock<'_>>,
        payload: &[u8],
        tag: T,
        now: Duration,
    ) -> RequestId {
        let request = self.pending.push(tag, now);
        self.reply.truncate(self.inbox_len);
        self.reply.extend_from_slice(Digits::new(request.0).as_bytes());
        let reply = Subject::new(&self.reply).expect("a subject, a dot and digits are a subject");
        session.publish_for_reply(subject, reply, headers, payload, now);
        request
    }

    /// Sends a request to the API. The parts of `path` follow the prefix and a dot, joined as they are:
    /// `["STREAM.LEADER.STEPDOWN.", stream]`.
    ///
    /// # Panics
    /// If that is not a [`Subject`].
    pub fn call(
        &mut self,
        session: &mut Session,
        path: &[&str],
        payload: &[u8],
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.subject.clear();
        self.subject.extend_from_slice(self.api.as_bytes());
        self.subject.push(b'.');
        for part in path {
            self.subject.extend_from_slice(part.as_bytes());
        }
        self.request_to_scratch(session, None, payload, tag, now)
    }

    /// Publishes and asks for the [`PubAck`]: the proof that it is stored.
    ///
    /// # Errors
    /// [`TooLarge`], and then nothing was sent: the server would close the connection.
    pub fn publish(
        &mut self,
        session: &mut Session,
        publication: Publication<'_>,
        tag: T,
        now: Duration,
    ) -> Result<RequestId, TooLarge> {
        self.subject.clear();
        self.subject.extend_from_slice(publication.subject.as_bytes());
        let Publication { headers, payload, expected_last, .. } = publication;
        self.publish_to_scratch(session, headers, payload, expected_last, tag, now)
    }

    /// Takes a message. `None` if it is not a reply to a request that still waits: another subscription's, too late, or
    /// from a former connection.
    pub fn on_message<'a>(&mut self, message: &Message<'a>) -> Option<Reply<'a, T>> {
        if message.sid_number() != Some(self.sid) {
            return None;
        }
        let token = message.subject.strip_prefix(&self.reply[..self.inbox_len])?;
        let request = RequestId(scan::number(token)?);
        let (sent_at, tag) = self.pending.take(request)?;
        Some(Reply { tag, request, sent_at, message: *message })
    }

    /// Takes out the oldest request if its reply has not come within `timeout`; call again until there is none.
    /// Whether it was carried out is unknown: read back and compare.
    ///
    /// To be called now and then, as the memory of requests is a window that starts with the oldest one.
    pub fn expired(&mut self, now: Duration, timeout: Duration) -> Option<(RequestId, T)> {
        self.pending.expired(now, timeout)
    }

    /// When the oldest request was sent: with the timeout, when [`expired`](Self::expired) has something next.
    #[must_use]
    pub fn oldest_sent_at(&self) -> Option<Duration> {
        self.pending.oldest().map(|(sent_at, _)| sent_at)
    }

    /// Requests without a reply.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pending.waiting
    }

    /// `<inbox>.`
    fn inbox_prefix(&self) -> &[u8] {
        &self.reply[..self.inbox_len]
    }

    /// Publishes to the subject in `self.subject`.
    fn publish_to_scratch(
        &mut self,
        session: &mut Session,
        headers: &[Header<'_>],
        payload: &[u8],
        expected_last: Option<u64>,
        tag: T,
        now: Duration,
    ) -> Result<RequestId, TooLarge> {
        self.headers.clear();
        if expected_last.is_some() || !headers.is_empty() {
            write_headers(&mut self.headers, headers, expected_last);
        }
        let max = session.info().map_or(u64::MAX, |info| info.max_payload);
        let bytes = (self.headers.len() + payload.len()) as u64;
        if bytes > max {
            return Err(TooLarge { bytes, max });
        }
        let block = mem::take(&mut self.headers);
        let headers = (!block.is_empty()).then(|| HeaderBlock::from(Headers::new(&block)));
        let request = self.request_to_scratch(session, headers, payload, tag, now);
        self.headers = block;
        Ok(request)
    }

    /// Sends a request to the subject in `self.subject`.
    fn request_to_scratch(
        &mut self,
        session: &mut Session,
        headers: Option<HeaderBlock<'_>>,
        payload: &[u8],
        tag: T,
        now: Duration,
    ) -> RequestId {
        let bytes = mem::take(&mut self.subject);
        let subject = Subject::new(&bytes).expect("checked names with dots between them are a subject");
        let request = self.request(session, subject, headers, payload, tag, now);
        self.subject = bytes;
        request
    }
}

fn write_headers(out: &mut Vec<u8>, headers: &[Header<'_>], expected_last: Option<u64>) {
    HeaderBlock::new(headers).for_each_part(|part| out.extend_from_slice(part));
    if let Some(sequence) = expected_last {
        out.truncate(out.len() - b"\r\n".len()); // the empty line at the end
        for part in
            [EXPECTED_LAST_SUBJECT_SEQUENCE.as_bytes(), b": ", Digits::new(sequence).as_bytes(), b"\r\n\r\n"]
        {
            out.extend_from_slice(part);
        }
    }
}

/// The requests that wait, as a window over their numbers: a reply finds its own by subtraction.
///
/// `slots[i]` is request `first + i`; the first slot is never empty; `waiting` slots are some; in the order of their
/// times.
#[derive(Debug)]
struct Pending<T> {
    first: u64,
    slots: VecDeque<Option<(Duration, T)>>,
    waiting: usize,
}

impl<T: Copy> Pending<T> {
    fn push(&mut self, tag: T, now: Duration) -> RequestId {
        let request = RequestId(self.first + self.slots.len() as u64);
        self.slots.push_back(Some((now, tag)));
        self.waiting += 1;
        request
    }

    fn take(&mut self, request: RequestId) -> Option<(Duration, T)> {
        let index = usize::try_from(request.0.checked_sub(self.first)?).ok()?;
        let taken = self.slots.get_mut(index)?.take()?;
        self.waiting -= 1;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
        Some(taken)
    }

    fn oldest(&self) -> Option<(Duration, T)> {
        *self.slots.front()?
    }

    fn expired(&mut self, now: Duration, timeout: Duration) -> Option<(RequestId, T)> {
        let (sent_at, tag) = self.oldest()?;
        if now.saturating_sub(sent_at) < timeout {
            return None;
        }
        let request = RequestId(self.first);
        self.take(request);
        Some((request, tag))
    }

    fn forget(&mut self) -> impl Iterator<Item = (RequestId, T)> + use<'_, T> {
        let first = self.first;
        self.first += self.slots.len() as u64;
        self.waiting = 0;
        let numbered = self.slots.drain(..).zip(first..);
        numbered.filter_map(|(slot, number)| slot.map(|(_, tag)| (RequestId(number), tag)))
    }
}

/// The name of a stream, a consumer, a bucket or a domain: one token of a subject, and a file name on the server.
///
/// Source: ADR-6, "Protocol naming conventions", and nats-server, `JSMaxNameLen`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Name<'a>(&'a str);

/// Longest name of a stream or a consumer, in bytes.
const NAME_BYTES_MAX: usize = 255;

impl<'a> Name<'a> {
    /// # Errors
    /// If it is empty, longer than 255 bytes, or holds a blank, a control character or one of `.*>/\`.
    pub fn new(name: &'a str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::empty());
        }
        let forbidden = |byte: u8| byte <= b' ' || byte == 0x7f || b".*>/\\".contains(&byte);
        let too_long = (name.len() > NAME_BYTES_MAX).then_some(NAME_BYTES_MAX);
        match name.bytes().position(forbidden).or(too_long) {
            Some(at) => Err(NameError::forbidden(name.as_bytes(), at)),
            None => Ok(Self(name)),
        }
    }

    /// The name.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A publish that the server would answer by closing the connection.
///
/// Source: nats-server, server/client.go, `maxPayloadViolation`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLarge {
    /// Length of headers and payload, in bytes.
    pub bytes: u64,
    /// The server's `max_payload`, in bytes.
    pub max: u64,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "message of {} bytes, headers included, is above max_payload of {} bytes",
            self.bytes, self.max
        )
    }
}

impl core::error::Error for TooLarge {}

/// At most the first 64 bytes of something that came, for an error.
fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(64)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionConfig;
    use crate::{ConnectOptions, Limits};

    const MOMENT: Duration = Duration::from_secs(1);

    /// A session of which only the output matters.
    pub(super) fn session() -> Session {
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: MOMENT,
            ping_interval: MOMENT,
            answer_max: MOMENT * 2,
            max_payload_at_least: 0,
        };
        Session::new(config, Duration::ZERO)
    }

    fn jetstream() -> JetStream<char> {
        JetStream::new(Subject::new("_INBOX.a").unwrap(), 5)
    }

    /// Sends one request for each of `tags`, one second apart.
    fn ask(jetstream: &mut JetStream<char>, tags: &str) {
        let mut session = session();
        let subject = Subject::new("s").unwrap();
        for (second, tag) in tags.chars().enumerate() {
            jetstream.request(&mut session, subject, None, b"", tag, MOMENT * second as u32);
        }
    }

    /// The tag that a reply to `subject` finds.
    fn answer(jetstream: &mut JetStream<char>, subject: &str) -> Option<char> {
        let message =
            Message { subject: subject.as_bytes(), sid: b"5", reply: None, headers: None, payload: b"" };
        jetstream.on_message(&message).map(|reply| reply.tag)
    }

    #[test]
    fn replies_find_their_requests_in_any_order_and_once() {
        let mut jetstream = jetstream();
        ask(&mut jetstream, "abcde");
        for (subject, tag) in [
            ("_INBOX.a.3", Some('d')),
            ("_INBOX.a.1", Some('b')),
            ("_INBOX.a.1", None),
            ("_INBOX.a.0", Some('a')),
            ("_INBOX.a.0", None),
            ("_INBOX.a.5", None),
            ("_INBOX.a.99999999999999999999", None),
            ("_INBOX.a.x", None),
            ("_INBOX.a.", None),
            ("_INBOX.a", None),
            ("_INBOX.b.2", None),
            ("_INBOX.a.4", Some('e')),
            ("_INBOX.a.2", Some('c')),
        ] {
            assert_eq!(answer(&mut jetstream, subject), tag, "{subject}");
        }
        assert_eq!(jetstream.waiting(), 0);
        ask(&mut jetstream, "f");
        let other = Message { subject: b"_INBOX.a.5", sid: b"6", reply: None, headers: None, payload: b"" };
        assert!(jetstream.on_message(&other).is_none());
        assert_eq!(answer(&mut jetstream, "_INBOX.a.5"), Some('f'));
    }

    #[test]
    fn requests_expire_in_their_order_and_then_have_no_reply() {
        let mut jetstream = jetstream();
        assert_eq!(jetstream.expired(MOMENT * 99, MOMENT), None);
        ask(&mut jetstream, "abcd");
        assert_eq!(answer(&mut jetstream, "_INBOX.a.1"), Some('b'));
        assert_eq!(jetstream.oldest_sent_at(), Some(Duration::ZERO));
        assert_eq!(jetstream.expired(MOMENT * 4, MOMENT * 5), None);
        assert_eq!(jetstream.expired(MOMENT * 7, MOMENT * 5), Some((RequestId(0), 'a')));
        assert_eq!(jetstream.expired(MOMENT * 7, MOMENT * 5), Some((RequestId(2), 'c')));
        assert_eq!(jetstream.expired(MOMENT * 7, MOMENT * 5), None);
        assert_eq!(answer(&mut jetstream, "_INBOX.a.2"), None);
        assert_eq!((jetstream.waiting(), jetstream.oldest_sent_at()), (1, Some(MOMENT * 3)));
    }

    #[test]
    fn a_new_connection_knows_no_old_request() {
        let mut jetstream = jetstream();
        ask(&mut jetstream, "abc");
        answer(&mut jetstream, "_INBOX.a.1");
        assert_eq!(jetstream.forget().collect::<Vec<_>>(), [(RequestId(0), 'a'), (RequestId(2), 'c')]);
        assert_eq!(jetstream.waiting(), 0);
        ask(&mut jetstream, "d");
        let _ = jetstream.forget(); // not looked at, and forgotten all the same
        let mut session = session();
        jetstream.subscribe(&mut session, MOMENT);
        assert_eq!(session.output(), b"SUB _INBOX.a.* 5\r\n");
        ask(&mut jetstream, "e");
        assert_eq!(
            ["_INBOX.a.0", "_INBOX.a.2", "_INBOX.a.3"].map(|old| answer(&mut jetstream, old)),
            [None; 3]
        );
        assert_eq!(answer(&mut jetstream, "_INBOX.a.4"), Some('e'));
    }

    #[test]
    fn what_is_sent_is_what_the_server_expects() {
        let check = |send: &dyn Fn(&mut JetStream<char>, &mut Session) -> RequestId, expected: &str| {
            for (prefix, api) in [(None, "$JS.API"), (Some("hub"), "$JS.hub.API")] {
                let (mut jetstream, mut session) = (jetstream(), session());
                if let Some(domain) = prefix {
                    jetstream = jetstream.with_domain(Name::new(domain).unwrap());
                }
                send(&mut jetstream, &mut session);
                let put = if prefix.is_some() { "$JS.hub.API.$KV" } else { "$KV" };
                let expected = expected.replace("API", api).replace("PUT", put).replace('\n', "\r\n");
                assert_eq!(core::str::from_utf8(session.output()), Ok(&*expected));
            }
        };
        let bucket = Bucket::new("b").unwrap();
        let key = Key::new("k").unwrap();
        check(
            &|js, session| js.kv_put(session, &bucket, key, b"v", None, 'a', MOMENT).unwrap(),
            "PUB PUT.b.k _INBOX.a.0 1\nv\n",
        );
        check(
            &|js, session| js.kv_put(session, &bucket, key, b"v", Some(7), 'a', MOMENT).unwrap(),
            "HPUB PUT.b.k _INBOX.a.0 52 53\nNATS/1.0\nNats-Expected-Last-Subject-Sequence: 7\n\nv\n",
        );
        check(
            &|js, session| js.kv_purge(session, &bucket, key, Some(0), 'a', MOMENT),
            "HPUB PUT.b.k _INBOX.a.0 91 91\nNATS/1.0\nKV-Operation: PURGE\nNats-Rollup: sub\n\
             Nats-Expected-Last-Subject-Sequence: 0\n\n\n",
        );
        check(
            &|js, session| js.kv_get_direct(session, &bucket, key, 'a', MOMENT),
            "PUB API.DIRECT.GET.KV_b.$KV.b.k _INBOX.a.0 0\n\n",
        );
        check(
            &|js, session| js.kv_get(session, &bucket, key, 'a', MOMENT),
            "PUB API.STREAM.MSG.GET.KV_b _INBOX.a.0 26\n{\"last_by_subj\":\"$KV.b.k\"}\n",
        );
        let id = [Header::new(MESSAGE_ID, "7").unwrap()];
        let publication = Publication { headers: &id, ..Publication::new(Subject::new("s").unwrap(), b"v") };
        check(
            &|js, session| js.publish(session, publication, 'a', MOMENT).unwrap(),
            "HPUB s _INBOX.a.0 28 29\nNATS/1.0\nNats-Msg-Id: 7\n\nv\n",
        );
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_comes_can_hurt(
            block in "(NATS/1.0( [0-9]{3}( [a-zA-Z ]*)?)?\r\n(Nats-(Subject|Sequence|Pending-Messages): ?[0-9a-z.]*\r\n)*\r\n)?",
            payload in "(\\{\"(error|stream|message)\":[ -~]{0,40}\\}|[ -~]{0,40})",
            subject in "(_INBOX\\.a\\.(p3\\.)?[0-9]{0,25}|[ -~]{0,20})",
            ack in "(\\$JS\\.ACK(\\.[0-9a-z]{0,25}){5,12}|[ -~]{0,20})",
        ) {
            let message = Message {
                subject: subject.as_bytes(),
                sid: b"5",
                reply: Some(ack.as_bytes()),
                headers: Some(Headers::new(block.as_bytes())),
                payload: payload.as_bytes(),
            };
            let mut jetstream = jetstream();
            ask(&mut jetstream, "abc");
            jetstream.on_message(&message);
            let reply = Reply { tag: (), request: RequestId(0), sent_at: MOMENT, message };
            let _ = (reply.pub_ack(), reply.stored(), reply.confirmed(), reply.decode::<StreamInfo>("a stream"));
            let name = Name::new("x").unwrap();
            let mut pull = Pull::new(&jetstream, name, name, 3, 5);
            pull.request(&mut session(), &PullRequest::new(2, MOMENT), MOMENT);
            pull.on_message(&message, MOMENT);
            assert!(pull.owed() <= 2);
        }
    }

    #[test]
    fn names_follow_adr_6() {
        for name in ["IN", "KV_state", "a-b", "$x", "ä"] {
            assert!(Name::new(name).is_ok(), "{name}");
        }
        for name in ["", "a.b", "a b", "a*", ">", "a/b", "a\\b", "a\n", "\x7f", &"a".repeat(256)] {
            assert!(Name::new(name).is_err(), "{name}");
        }
    }
}
