//! A server with JetStream, as far as a worker uses it: subscriptions, a work queue with one pull consumer, a key-value
//! bucket, an output stream, dead letters. It speaks the wire, and holds each thing that it is told against what must hold:
//!
//! | when | what must hold |
//! |---|---|
//! | a record is stored | it can be read, and is this user's; what it has forgotten was cleared, before the retention by some clock |
//! | a digest is stored | the bucket holds its decision; nothing in it is no news, or older than what was told |
//! | a change is acknowledged | the stored record covers it |
//! | a request is acknowledged | all is told that was acknowledged before the request was delivered for the first time, unless it ended; as long as reads tell the truth |
//! | a message is given up | nobody could read it, or a record that was stored last since its first delivery has no room for its alarm; and its dead letter is stored |
//! | a digest is published plainly | it was stored, and is published no more often than that |
//!
//! Never: who lives, and what goes wrong. That is the world's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use alarm_digest::alarm::{AlarmId, Change, Condition, Timestamp, UserId};
use alarm_digest::durable::record::{Record, token};
use alarm_digest::durable::worker::DIGEST_ID;
use alarm_digest_checker::{Oracle, parse_digest};
use data_encoding::BASE64;
use fastrand::Rng;
use nats_wire::jetstream::{AckSubject, EXPECTED_LAST_SUBJECT_SEQUENCE, MESSAGE_ID};
use nats_wire::{ClientOp, HeaderBlock, Headers, Limits, Publish, ServerDecoder, Sid, Step, Subject, encode};

use crate::judge::{Published, What};
use crate::runs::Counts;

/// One connection. Its client may have given it up without the server knowing.
pub struct Link {
    decoder: ServerDecoder,
    pub to_server: Vec<u8>,
    pub to_client: VecDeque<u8>,
    subscriptions: Vec<(Vec<u8>, u64)>,
    /// When the server learns that nobody is there; none while somebody is.
    pub deserted_until: Option<Duration>,
}

struct Queued {
    published: Rc<Published>,
    delivered: u64,
    /// Not delivered before: somebody has it.
    hidden_until: Duration,
    /// Of a request: what was acknowledged of its user before it was delivered for the first time.
    promised: Option<Known>,
    /// How often its user's record had been stored when it was delivered for the first time.
    versions: Option<usize>,
}

type Known = BTreeSet<(AlarmId, Condition)>;

struct Waiting {
    link: u64,
    reply: Vec<u8>,
    left: u64,
    ends_at: Duration,
    heartbeat: Duration,
    heard_at: Duration,
}

/// A message of a stream that keeps what it was, so that a replica may still be there.
#[derive(Clone)]
struct Stored {
    sequence: u64,
    /// The header block and the payload.
    headers: Vec<u8>,
    payload: Vec<u8>,
}

type History = BTreeMap<String, Vec<Stored>>;

#[derive(Default)]
pub struct Server {
    pub now: Duration,
    pub links: BTreeMap<u64, Link>,
    users: BTreeMap<String, UserId>,
    queue: BTreeMap<u64, Queued>,
    waiting: Vec<Waiting>,
    bucket: History,
    output: History,
    dead: BTreeSet<Vec<u8>>,
    /// On their way out of JetStream, in no order.
    pub replies: Vec<(u64, Vec<u8>)>,
    sequence: u64,
    /// Digests: how often each was stored, and how often it was published plainly since then.
    told: BTreeMap<Vec<u8>, (u64, u64)>,
    /// What was cleared before the latest of these may be forgotten.
    horizon: Option<Timestamp>,
    is_republished: bool,
    max_payload: usize,
    pub no_leader_until: Duration,
    pub full_until: Duration,
    pub stale_until: Duration,
    /// How much there was of each key and of each user's digests when a leader was deposed.
    stale: BTreeMap<String, usize>,
    pub has_been_stale: bool,
    /// All replicas have caught up.
    pub is_later: bool,
    oracle: Oracle,
    /// All changes that somebody may know of.
    delivered: Oracle,
    acknowledged: BTreeMap<UserId, Known>,
    pub tally: Tally,
}

/// What a run was made of.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub steps: u64,
    pub messages: u64,
    pub deliveries: u64,
    pub again: u64,
    pub relayed: u64,
    pub returned: u64,
    pub stores: u64,
    pub conflicts: u64,
    pub digests: u64,
    pub alarms: u64,
    pub acknowledged: u64,
    pub dead_letters: u64,
    pub forgotten: u64,
    pub refused: u64,
    /// Times that an instance went over to another connection with nothing left behind.
    pub moves: u64,
}

impl Tally {
    pub fn counts(&self) -> Counts {
        vec![
            ("steps", self.steps),
            ("messages", self.messages),
            ("deliveries", self.deliveries),
            ("again", self.again),
            ("relayed", self.relayed),
            ("returned", self.returned),
            ("stores", self.stores),
            ("conflicts", self.conflicts),
            ("digests", self.digests),
            ("alarms", self.alarms),
            ("acknowledged", self.acknowledged),
            ("dead letters", self.dead_letters),
            ("forgotten", self.forgotten),
            ("refused", self.refused),
            ("moves", self.moves),
        ]
    }
}

/// How long the consumer waits for an acknowledgement.
pub const ACK_WAIT: Duration = Duration::from_secs(5);

const KEY_PREFIX: &str = "$KV.STATE.";
const OUTPUT_PREFIX: &str = "AD.out.";

/// What a worker leaves for headers of what a server takes as one payload.
const HEADER_BYTES_MAX: usize = 512;

impl Server {
    pub fn new(users: impl Iterator<Item = UserId>, is_republished: bool, max_payload: usize) -> Self {
        let users = users.map(|user| (token(&user), user)).collect();
        Self { users, is_republished, max_payload, ..Self::default() }
    }

    pub fn connect(&mut self, link: u64) {
        let mut connection = Link {
            decoder: ServerDecoder::new(Limits::server()),
            to_server: Vec::new(),
            to_client: VecDeque::new(),
            subscriptions: Vec::new(),
            deserted_until: None,
        };
        let info =
            format!(r#"INFO {{"headers":true,"version":"2.15.1","max_payload":{}}}"#, self.max_payload);
        connection.to_client.extend(info.as_bytes().iter().chain(b" \r\n"));
        self.links.insert(link, connection);
    }

    /// The work queue takes a message, for good.
    pub fn put(&mut self, published: Rc<Published>) {
        if let What::Change(change) = &published.what {
            self.oracle.apply(change);
        }
        self.sequence += 1;
        self.tally.messages += 1;
        let queued =
            Queued { published, delivered: 0, hidden_until: Duration::ZERO, promised: None, versions: None };
        self.queue.insert(self.sequence, queued);
    }

    /// Nobody is at the other end any more, and the server learns of it later: so much of what was written arrives until then, in
    /// circles, or all of it.
    pub fn desert(&mut self, link: u64, arriving: usize, for_how_long: Duration) {
        let until = self.now + for_how_long;
        if let Some(link) = self.links.get_mut(&link) {
            link.to_client.clear();
            link.to_server.truncate(if arriving == usize::MAX {
                arriving
            } else {
                arriving % (link.to_server.len() + 1)
            });
            // The old one may have seen more of the last operation than arrives.
            (link.decoder, link.deserted_until) = (ServerDecoder::new(Limits::server()), Some(until));
        }
    }

    /// Learns of those who have gone.
    pub fn bury(&mut self) {
        self.links.retain(|_, link| link.deserted_until.is_none_or(|until| until > self.now));
    }

    /// What is only in memory is gone.
    pub fn restart(&mut self) {
        self.links.clear();
        self.waiting.clear();
        self.replies.clear();
        (self.no_leader_until, self.stale_until) = (Duration::ZERO, Duration::ZERO);
    }

    /// No fault lasts.
    pub fn recover(&mut self) {
        (self.no_leader_until, self.full_until, self.stale_until) = Default::default();
    }

    /// Some instance has this horizon now.
    pub fn may_forget(&mut self, horizon: Timestamp) {
        self.horizon = self.horizon.max(Some(horizon));
    }

    pub fn says_what_is_left(&self) -> String {
        let queued = |(at, queued): (&u64, &Queued)| format!("{at}: {} times", queued.delivered);
        let queue: Vec<String> = self.queue.iter().map(queued).collect();
        format!("queue {queue:?}, {} pulls, {} replies", self.waiting.len(), self.replies.len())
    }

    /// All is acknowledged, and nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        let is_empty = |link: &Link| {
            link.to_server.is_empty() && link.to_client.is_empty() && link.deserted_until.is_none()
        };
        self.queue.is_empty() && self.replies.is_empty() && self.links.values().all(is_empty)
    }

    /// Later the output stream has forgotten all with age, and no replica lags.
    pub fn grow_old(&mut self) {
        self.output.clear();
        (self.is_later, self.stale_until) = (true, Duration::ZERO);
    }

    pub fn on_end(&self) {
        let missing = self.oracle.missing();
        assert!(missing.is_empty(), "never told of {missing:?}");
    }

    /// A leader is deposed, and does not know it yet.
    pub fn depose(&mut self, until: Duration) {
        (self.stale_until, self.has_been_stale) = (until, true);
        self.stale =
            self.bucket.iter().chain(&self.output).map(|(key, kept)| (key.clone(), kept.len())).collect();
    }

    /// The leaders are gone: what waited for messages is over, and some of what was on its way out is lost.
    pub fn lose_leaders(&mut self, until: Duration, rng: &mut Rng) {
        self.no_leader_until = until;
        self.replies.retain(|_| rng.bool());
        for waiting in std::mem::take(&mut self.waiting) {
            if rng.bool() {
                self.status(waiting.link, &waiting.reply, "409 Leadership Change");
            }
        }
    }

    /// Some message that somebody has is delivered to another one as well.
    pub fn deliver_again(&mut self, rng: &mut Rng) -> bool {
        let held: Vec<u64> =
            self.queue.iter().filter(|(_, queued)| queued.delivered > 0).map(|(at, _)| *at).collect();
        let Some(at) = rng.choice(&held) else { return false };
        self.queue.get_mut(at).expect("it was just there").hidden_until = self.now;
        true
    }

    /// A message goes to somebody who waits for one.
    pub fn deliver(&mut self, rng: &mut Rng, in_order: bool) {
        self.end_waiting();
        if self.waiting.is_empty() || self.no_leader_until > self.now {
            return;
        }
        let is_visible = |queued: &Queued| queued.hidden_until <= self.now;
        let visible: Vec<u64> =
            self.queue.iter().filter(|(_, queued)| is_visible(queued)).map(|(at, _)| *at).collect();
        let Some(picked) = (if in_order { visible.first() } else { rng.choice(&visible) }).copied() else {
            return;
        };
        let at = rng.usize(..self.waiting.len());
        let (link, reply) = (self.waiting[at].link, self.waiting[at].reply.clone());
        let Some(sid) = self.sid_of(link, &reply) else {
            self.waiting.swap_remove(at);
            return;
        };
        self.waiting[at].left -= 1;
        self.waiting[at].heard_at = self.now;
        if self.waiting[at].left == 0 {
            self.waiting.swap_remove(at);
        }
        self.tally.deliveries += 1;
        let queued = self.queue.get_mut(&picked).expect("it was picked");
        queued.delivered += 1;
        queued.hidden_until = self.now + ACK_WAIT;
        self.tally.again += u64::from(queued.delivered > 1);
        match &queued.published.what {
            What::Request(user) => {
                let known = self.acknowledged.get(user);
                queued.promised.get_or_insert_with(|| known.cloned().unwrap_or_default());
            }
            What::Change(change) => {
                queued.versions.get_or_insert(self.bucket.get(&token(&change.user)).map_or(0, Vec::len));
                self.delivered.apply(change);
            }
            What::Bad => {}
        }
        let ack = format!("$JS.ACK.IN.digest.{}.{picked}.{picked}.1.0", queued.delivered);
        let (subject, payload) = (queued.published.subject, queued.published.payload.clone());
        let mut bytes = Vec::new();
        let subject = Subject::new(subject).expect("a valid subject");
        let ack = Subject::new(&ack).expect("a valid subject");
        encode::message(&mut bytes, subject, Sid::from(sid), Some(ack.into()), payload.as_bytes());
        self.send(link, &bytes);
    }

    /// Ends pulls whose time is over, and tells the others that the server lives.
    fn end_waiting(&mut self) {
        let now = self.now;
        let mut said = Vec::new();
        self.waiting.retain_mut(|waiting| {
            if waiting.ends_at <= now {
                said.push((waiting.link, waiting.reply.clone(), "408 Request Timeout"));
            } else if now >= waiting.heard_at + waiting.heartbeat {
                waiting.heard_at = now;
                said.push((waiting.link, waiting.reply.clone(), "100 Idle Heartbeat"));
            }
            waiting.ends_at > now
        });
        said.into_iter().for_each(|(link, reply, text)| self.status(link, &reply, text));
    }

    /// Any reply leaves JetStream.
    pub fn reply(&mut self, rng: &mut Rng) {
        if !self.replies.is_empty() {
            let (link, bytes) = self.replies.swap_remove(rng.usize(..self.replies.len()));
            self.send(link, &bytes);
        }
    }

    fn send(&mut self, link: u64, bytes: &[u8]) {
        if let Some(link) = self.links.get_mut(&link).filter(|link| link.deserted_until.is_none()) {
            link.to_client.extend(bytes);
        }
    }

    fn sid_of(&self, link: u64, subject: &[u8]) -> Option<u64> {
        let link = self.links.get(&link)?;
        link.subscriptions.iter().find(|(filter, _)| matches(filter, subject)).map(|(_, sid)| *sid)
    }

    /// A message with nothing but a status.
    fn status(&mut self, link: u64, reply: &[u8], text: &str) {
        let headers = format!("NATS/1.0 {text}\r\n\r\n");
        if let Some(bytes) = self.message(link, reply, Some(headers.as_bytes()), b"") {
            self.send(link, &bytes);
        }
    }

    fn message(&self, link: u64, reply: &[u8], headers: Option<&[u8]>, payload: &[u8]) -> Option<Vec<u8>> {
        let sid = Sid::from(self.sid_of(link, reply)?);
        let subject = Subject::new(reply).expect("a valid subject");
        let mut bytes = Vec::new();
        match headers {
            None => encode::message(&mut bytes, subject, sid, None, payload),
            Some(headers) => {
                let headers = HeaderBlock::from(Headers::new(headers));
                encode::message_with_headers(&mut bytes, subject, sid, None, headers, payload);
            }
        }
        Some(bytes)
    }

    fn answer(&mut self, link: u64, reply: &[u8], headers: Option<&[u8]>, payload: &[u8]) {
        let bytes = self.message(link, reply, headers, payload);
        self.replies.extend(bytes.map(|bytes| (link, bytes)));
    }

    /// Does all that has arrived on a link.
    pub fn serve(&mut self, id: u64, rng: &mut Rng) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let bytes = std::mem::take(&mut link.to_server);
        let mut rest = &bytes[..];
        loop {
            let link = self.links.get_mut(&id).expect("nobody takes it meanwhile");
            match link.decoder.decode(rest).expect("a worker writes NATS") {
                Step::More { .. } => break link.to_server = rest.to_vec(),
                Step::Op { op, used } => {
                    rest = &rest[used..];
                    self.obey(id, &op, rng);
                }
            }
        }
    }

    fn obey(&mut self, id: u64, op: &ClientOp<'_>, rng: &mut Rng) {
        let link = self.links.get_mut(&id).expect("it sent this");
        match op {
            ClientOp::Ping => self.send(id, b"PONG\r\n"),
            ClientOp::Subscribe(subscribe) => {
                let sid = std::str::from_utf8(subscribe.sid).expect("ASCII").parse().expect("a number");
                link.subscriptions.push((subscribe.subject.to_vec(), sid));
            }
            ClientOp::Unsubscribe(unsubscribe) => {
                let sid: u64 =
                    std::str::from_utf8(unsubscribe.sid).expect("ASCII").parse().expect("a number");
                link.subscriptions.retain(|(_, other)| *other != sid);
            }
            ClientOp::Publish(publish) => self.on_publish(id, publish, rng),
            _ => {}
        }
    }

    fn on_publish(&mut self, link: u64, publish: &Publish<'_>, rng: &mut Rng) {
        let subject = publish.subject_str().expect("ASCII");
        let has_leader = self.no_leader_until <= self.now;
        if subject.starts_with("AD.member.") {
            return self.route(link, publish);
        }
        if subject == "told" {
            return self.on_told(publish.payload);
        }
        if !has_leader {
            // Sometimes nobody is there, sometimes nobody answers.
            if let Some(reply) = publish.reply
                && rng.bool()
            {
                self.status(link, reply, "503");
            }
            return;
        }
        if subject.starts_with("$JS.ACK.") {
            return self.on_ack(subject, publish.payload);
        }
        let reply = publish.reply.expect("all else asks for a reply");
        let direct = format!("$JS.API.DIRECT.GET.KV_STATE.{KEY_PREFIX}");
        if subject == "$JS.API.CONSUMER.MSG.NEXT.IN.digest" {
            self.on_pull(link, reply, publish.payload);
        } else if let Some(key) = subject.strip_prefix(&direct) {
            self.on_direct_get(link, reply, key, rng);
        } else if subject.starts_with("$JS.API.STREAM.MSG.GET.") {
            self.on_get(link, reply, publish.payload, rng);
        } else if let Some(key) = subject.strip_prefix(KEY_PREFIX) {
            self.on_put(link, reply, key, publish);
        } else if let Some(token) = subject.strip_prefix(OUTPUT_PREFIX) {
            self.on_digest(link, reply, token, publish);
        } else if subject == "dead" {
            let id = header(publish, MESSAGE_ID).expect("a dead letter has an id");
            self.tally.dead_letters += u64::from(self.dead.insert(id.to_vec()));
            self.sequence += 1;
            self.answer(
                link,
                reply,
                None,
                format!(r#"{{"stream":"DEAD","seq":{}}}"#, self.sequence).as_bytes(),
            );
        } else {
            panic!("published to {subject}");
        }
    }

    /// Core NATS: to all who subscribe, or the answer that nobody does.
    fn route(&mut self, from: u64, publish: &Publish<'_>) {
        let to: Vec<(u64, u64)> = self
            .links
            .keys()
            .filter_map(|link| self.sid_of(*link, publish.subject).map(|sid| (*link, sid)))
            .collect();
        self.tally.relayed += u64::from(publish.headers.is_some());
        if to.is_empty()
            && let Some(reply) = publish.reply
        {
            self.tally.returned += 1;
            return self.status(from, reply, "503");
        }
        for (link, sid) in to {
            let mut bytes = Vec::new();
            let subject = Subject::new(publish.subject).expect("a valid subject");
            let reply = publish.reply.map(|reply| Subject::new(reply).expect("a valid subject").into());
            match publish.headers {
                None => encode::message(&mut bytes, subject, Sid::from(sid), reply, publish.payload),
                Some(headers) => {
                    let headers = HeaderBlock::from(headers);
                    encode::message_with_headers(
                        &mut bytes,
                        subject,
                        Sid::from(sid),
                        reply,
                        headers,
                        publish.payload,
                    );
                }
            }
            self.send(link, &bytes);
        }
    }

    fn on_pull(&mut self, link: u64, reply: &[u8], payload: &[u8]) {
        let request: serde_json::Value = serde_json::from_slice(payload).expect("a request is JSON");
        let span = |name: &str| Duration::from_nanos(request[name].as_u64().expect("nanoseconds"));
        self.waiting.push(Waiting {
            link,
            reply: reply.to_vec(),
            left: request["batch"].as_u64().expect("a number"),
            ends_at: self.now + span("expires"),
            heartbeat: span("idle_heartbeat"),
            heard_at: self.now,
        });
    }

    fn on_ack(&mut self, subject: &str, payload: &[u8]) {
        let ack = AckSubject::parse(subject.as_bytes()).expect("an ack subject");
        let Some(queued) = self.queue.get_mut(&ack.stream_sequence) else { return };
        let text = std::str::from_utf8(payload).expect("ASCII");
        if let Some(delay) = text.strip_prefix("-NAK") {
            let delay = delay.strip_prefix(" {\"delay\":").and_then(|rest| rest.strip_suffix('}'));
            let nanos = delay.map_or(0, |nanos| nanos.parse().expect("a number"));
            queued.hidden_until = self.now + Duration::from_nanos(nanos);
            return;
        }
        let sequence = ack.stream_sequence;
        let queued = self.queue.remove(&sequence).expect("it was just there");
        match (text, &queued.published.what) {
            ("+ACK", What::Change(change)) => {
                self.tally.acknowledged += 1;
                let record =
                    self.record_of(&change.user).expect("no record of whom a change was acknowledged");
                let is_covered = !record.clone().apply(&change.alarm, change.condition);
                if !is_covered {
                    // It came and went with one store, or came again.
                    let end = self.end(&change.user, &change.alarm, change.condition);
                    let end = end.unwrap_or_else(|| panic!("acknowledged and not stored: {change:?}"));
                    self.oracle.let_end(&change.user, &change.alarm, end);
                }
                self.oracle.accept(change);
                let known = self.acknowledged.entry(change.user.clone()).or_default();
                known.insert((change.alarm.clone(), change.condition));
            }
            ("+ACK", What::Request(user)) => {
                self.tally.acknowledged += 1;
                let untold = self.oracle.untold(user, &queued.promised.expect("it was delivered"));
                let is_told = untold.is_empty() || self.has_been_stale;
                assert!(is_told, "request {sequence} of {user:?} is acknowledged, and {untold:?} untold");
            }
            ("+TERM", What::Bad | What::Change(_)) => {
                let id = format!("IN:{sequence}").into_bytes();
                assert!(
                    self.dead.contains(&id),
                    "message {sequence} was given up, and there is no dead letter"
                );
                if let What::Change(change) = &queued.published.what {
                    self.on_refused(change, queued.versions.expect("it was delivered"));
                }
            }
            (text, what) => panic!("{text} for {what:?}"),
        }
    }

    /// A change was given up because there is no room for its alarm: so it was in some record that was stored last since it was
    /// delivered for the first time.
    fn on_refused(&mut self, change: &Change, versions: usize) {
        let kept = self.bucket.get(&token(&change.user)).map_or(&[][..], Vec::as_slice);
        let is_full = |stored: &Stored| {
            let record = Record::decode(&change.user, &stored.payload).expect("it could be read");
            let bytes = record.bytes_max_with(&change.alarm);
            !record.knows(&change.alarm) && bytes > self.max_payload - HEADER_BYTES_MAX
        };
        let was_full = kept[versions.saturating_sub(1)..].iter().any(is_full);
        assert!(was_full || self.has_been_stale, "refused, and there was room: {change:?}");
        self.tally.refused += 1;
        let known = self.acknowledged.get(&change.user);
        if known.is_none_or(|known| !known.contains(&(change.alarm.clone(), change.condition))) {
            self.oracle.refuse(change);
        }
    }

    /// The end that an alarm that was so may be forgotten by.
    fn end(&self, user: &UserId, alarm: &AlarmId, condition: Condition) -> Option<Condition> {
        self.delivered.end_before(self.horizon?, user, alarm, condition)
    }

    fn record_of(&self, user: &UserId) -> Option<Record> {
        let stored = self.bucket.get(&token(user))?.last()?;
        Some(Record::decode(user, &stored.payload).expect("it could be read when it was stored"))
    }

    /// What is read of a key or of a user's digests by somebody who asks the leader.
    fn last<'a>(&self, history: &'a History, key: &str, rng: &mut Rng) -> Option<&'a Stored> {
        let kept = history.get(key)?;
        if self.stale_until > self.now && rng.bool() {
            let was = self.stale.get(key).copied().unwrap_or(0);
            return kept.get(was.checked_sub(1)?);
        }
        kept.last()
    }

    fn on_direct_get(&mut self, link: u64, reply: &[u8], key: &str, rng: &mut Rng) {
        let kept = self.bucket.get(key).map_or(&[][..], Vec::as_slice);
        // Any replica answers, and may lag behind.
        let at = if self.is_later || rng.bool() { kept.len() } else { rng.usize(..=kept.len()) };
        let Some(stored) = at.checked_sub(1).map(|at| kept[at].clone()) else {
            return self.answer(link, reply, Some(b"NATS/1.0 404 Message Not Found\r\n\r\n"), b"");
        };
        let headers = format!(
            "NATS/1.0\r\nNats-Stream: KV_STATE\r\nNats-Subject: {KEY_PREFIX}{key}\r\nNats-Sequence: {}\r\n\r\n",
            stored.sequence
        );
        self.answer(link, reply, Some(headers.as_bytes()), &stored.payload);
    }

    fn on_get(&mut self, link: u64, reply: &[u8], payload: &[u8], rng: &mut Rng) {
        let request: serde_json::Value = serde_json::from_slice(payload).expect("a request is JSON");
        let subject = request["last_by_subj"].as_str().expect("a subject");
        let stored = match (subject.strip_prefix(KEY_PREFIX), subject.strip_prefix(OUTPUT_PREFIX)) {
            (Some(key), _) => self.last(&self.bucket, key, rng),
            (_, Some(token)) => self.last(&self.output, token, rng),
            _ => panic!("the last message of {subject}"),
        };
        let answer = match stored {
            None => r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#.to_owned(),
            Some(stored) => format!(
                r#"{{"message":{{"subject":"{subject}","seq":{},"hdrs":"{}","data":"{}"}}}}"#,
                stored.sequence,
                BASE64.encode(&stored.headers),
                BASE64.encode(&stored.payload)
            ),
        };
        self.answer(link, reply, None, answer.as_bytes());
    }

    /// Stores a message if it may be: compare and set. Says whether it did.
    fn store(&mut self, is_bucket: bool, link: u64, reply: &[u8], key: &str, publish: &Publish<'_>) -> bool {
        let expected = header(publish, EXPECTED_LAST_SUBJECT_SEQUENCE).expect("all writes are compared");
        let expected: u64 = std::str::from_utf8(expected).expect("ASCII").parse().expect("a number");
        let history = if is_bucket { &mut self.bucket } else { &mut self.output };
        let kept = history.entry(key.into()).or_default();
        let last = kept.last().map_or(0, |stored| stored.sequence);
        let error = if self.full_until > self.now {
            Some((10077, "maximum bytes exceeded".to_owned()))
        } else if last != expected {
            self.tally.conflicts += 1;
            Some((10071, format!("wrong last sequence: {last}")))
        } else {
            None
        };
        if let Some((number, text)) = error {
            let json = format!(r#"{{"error":{{"code":400,"err_code":{number},"description":"{text}"}}}}"#);
            self.answer(link, reply, None, json.as_bytes());
            return false;
        }
        self.sequence += 1;
        kept.push(Stored {
            sequence: self.sequence,
            headers: publish.headers.expect("it has one").as_bytes().to_vec(),
            payload: publish.payload.to_vec(),
        });
        let stream = if is_bucket { "KV_STATE" } else { "OUT" };
        self.answer(
            link,
            reply,
            None,
            format!(r#"{{"stream":"{stream}","seq":{}}}"#, self.sequence).as_bytes(),
        );
        true
    }

    fn on_put(&mut self, link: u64, reply: &[u8], key: &str, publish: &Publish<'_>) {
        let user = self.users.get(key).unwrap_or_else(|| panic!("a record of nobody: {key}")).clone();
        let record = Record::decode(&user, publish.payload)
            .unwrap_or_else(|error| panic!("a record of {user:?}: {error}"));
        let before = self.record_of(&user);
        if !self.store(true, link, reply, key, publish) {
            return;
        }
        self.tally.stores += 1;
        let Some(before) = before else { return };
        let is_another_digest = before.outbox_nonce() != record.outbox_nonce();
        for was in before.alarms() {
            // Forgotten for good, or until it came again, late: then it may be told again as it was.
            let is_forgotten = record.alarms().find(|is| is.alarm == was.alarm).is_none_or(|is| {
                let is_told_again = is.is_in_outbox && is_another_digest && is.told == was.told;
                is.latest < was.latest || is.told < was.told || is_told_again
            });
            if is_forgotten {
                let end = self.end(&user, was.alarm, was.latest);
                let end = end
                    .unwrap_or_else(|| panic!("forgotten, and not cleared, or not old: {was:?} of {user:?}"));
                self.tally.forgotten += 1;
                self.oracle.let_end(&user, was.alarm, end);
                self.oracle.forget_told(&user, was.alarm);
            }
        }
    }

    fn on_digest(&mut self, link: u64, reply: &[u8], token: &str, publish: &Publish<'_>) {
        if !self.store(false, link, reply, token, publish) {
            return;
        }
        let (user, alarms) = parse_digest(publish.payload);
        assert_eq!(Some(&user), self.users.get(token), "a digest under another user's subject");
        let id = std::str::from_utf8(header(publish, DIGEST_ID).expect("a digest has an id")).expect("ASCII");
        let id = u128::from_str_radix(id, 16).expect("hexadecimal digits");
        let decided = self.record_of(&user).and_then(|record| record.outbox());
        let is_decided = decided.is_some_and(|(nonce, digest)| nonce.0 == id && digest.alarms == alarms);
        assert!(is_decided, "the bucket knows of no such digest of {user:?}: {alarms:?}");
        self.told.entry(publish.payload.to_vec()).or_default().0 += 1;
        self.tally.digests += 1;
        self.tally.alarms += alarms.len() as u64;
        let wrong = self.oracle.hear(&user, &alarms);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Where the stream does not republish, whoever stored a digest publishes it.
    fn on_told(&mut self, payload: &[u8]) {
        assert!(!self.is_republished, "the stream does that itself");
        let text = String::from_utf8_lossy(payload);
        let told =
            self.told.get_mut(payload).unwrap_or_else(|| panic!("published plainly and not stored: {text}"));
        told.1 += 1;
        assert!(told.1 <= told.0, "stored {} times, and published plainly {} times: {text}", told.0, told.1);
    }
}

fn header<'a>(publish: &Publish<'a>, name: &str) -> Option<&'a [u8]> {
    publish.headers?.get(name)
}

/// `*` at the end of a filter stands for one token, `>` for all that follow; nothing else is used.
fn matches(filter: &[u8], subject: &[u8]) -> bool {
    match filter.split_last() {
        Some((b'>', before)) => subject.starts_with(before) && subject.len() > before.len(),
        Some((b'*', before)) => {
            subject.strip_prefix(before).is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'.'))
        }
        _ => filter == subject,
    }
}
