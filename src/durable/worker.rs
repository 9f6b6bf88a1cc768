//! One core's whole logic in durable mode, without IO: the same cut as `shard`, with the state in JetStream.
//!
//! ```text
//! pull ─► message ─► user ─► load, store, send … ─► JetStream ─► replies ─► user ─► +ACK
//!             │
//!             └► dead letter, stored, then +TERM
//! ```
//!
//! How often a message was delivered decides nothing: a process that dies takes thousands of innocent messages with it, each
//! counted once more, so a limit would drop alarms in any crash loop.
//!
//! Nothing here must survive. Whatever is forgotten, by a crash or a lost link, was not acknowledged and comes again.
//!
//! Never: a socket, a thread, a clock, a log line, mail; creating streams, which is done before a worker starts.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ahash::RandomState;
use nats_wire::jetstream::{
    Ack, AckSubject, Bucket, ConsumerInfo, Delivery, EXPECTED_STREAM, Failure, JetStream, Key, Name, Next,
    Publication, Pull, PullRequest, PullStatus, Pulled, Reply, Status, StreamInfo,
};
use nats_wire::session::{Event, Fault, Fence, Session, SessionConfig, SignIn};
use nats_wire::{Header, Message, Sid, Subject, encode};
use slab::Slab;

use crate::alarm::{Command, Digest, Timestamp, UserId};

use crate::durable::backlog::{Backlog, BacklogLog, LOOK_EVERY, ROOMS, Room};
use crate::durable::members::Member;
use crate::durable::record::{Nonce, token};
use crate::durable::relay::{self, Came, Relay};
use crate::durable::user::{Acknowledge, Done, Operation, Pending, Refusal, Refused, User, UserLimits};
use crate::logic::{Counters, Logic, Notice, RefusalLog, RejectionLog, micros};
use crate::message::{self, Reason, Rejection};
use crate::reply::{Replies, ReplyTo};
use crate::service_api::{self, Listener};

/// What every worker of an instance has in common.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where messages come from and digests go to.
    pub names: Names,
    /// How a connection is kept.
    pub session: SessionConfig,
    /// How long a cleared alarm is remembered after it was cleared.
    pub retention: Duration,
    /// Output beyond this many bytes holds back whatever would make more of it.
    pub output_bytes_max: usize,
    /// Messages that one request asks for.
    pub batch: u64,
    /// Messages that may be neither acknowledged nor refused before no more are asked for.
    pub open_max: usize,
    /// Users that are kept in memory although nothing waits for them.
    pub cached_users_max: usize,
    /// After so long without a reply, the outcome of a request is unknown.
    pub request_timeout: Duration,
    /// Whether a message is passed on to the worker that its user is at home with.
    pub affinity: bool,
    /// Whether the output stream is republished to `AlarmDigest`. If not, whoever stores a digest publishes it there.
    pub is_republished: bool,
}

/// Streams, consumer and subjects: the assets of one deployment.
#[derive(Clone, Debug)]
pub struct Names {
    /// `AlarmStatusChanged`, stored by `input`.
    pub changed: String,
    /// `SendAlarmDigest`, stored by `input`.
    pub send: String,
    /// `AlarmDigest`, where the digests are republished to.
    pub digest: String,
    /// `AlarmDigest.dead`, stored by a stream of its own.
    pub dead: String,
    /// The work queue.
    pub input: String,
    /// Its durable consumer.
    pub consumer: String,
    /// The key-value bucket of the users.
    pub bucket: String,
    /// The stream of the digests.
    pub output: String,
    /// The stream of the dead letters.
    pub dead_letters: String,
    /// Before the user's token in the digest's subject, with the dot.
    pub output_prefix: String,
    /// Before the name of whom workers tell something, with the dot.
    pub member_prefix: String,
    /// The API prefix, for JetStream in another domain.
    pub api_prefix: Option<String>,
}

/// What it takes to acknowledge a message.
#[derive(Debug)]
struct AckTo {
    subject: Box<[u8]>,
    /// Of a request that its digest has not settled yet.
    asked: Option<Box<Asked>>,
}

impl Acknowledge for AckTo {
    fn number(&self) -> u64 {
        AckSubject::parse(&self.subject).map_or(0, |ack| ack.stream_sequence)
    }
}

#[derive(Debug)]
struct Asked {
    at: Duration,
    reply: Option<ReplyTo>,
}

/// What a reply is about.
#[derive(Clone, Copy, Debug)]
enum Tag {
    /// The operation in flight of the user in this slot.
    User(usize),
    /// The dead letter in this slot.
    Dead(usize),
    /// What waits in the queue.
    Backlog,
    /// How full one of [`Worker::rooms`] is.
    Room(usize),
}

/// The logic of one core.
///
/// `second` is a connection that shakes hands and no more, until it takes the place of `link`; while [`Logic::swap_links`] has
/// exchanged the two, `is_swapped`, `link` is that one.
///
/// `by_id` and `users` hold the same users; a user with an operation in flight is never dropped. `waiting` holds each slot
/// whose `is_waiting` is set once, and no other.
pub struct Worker {
    config: WorkerConfig,
    names: CheckedNames,
    replies: Replies,
    /// For one worker of an instance.
    service_api: Option<Listener>,
    link: Option<Session>,
    second: Option<Session>,
    is_swapped: bool,
    /// What drains is this connection, and not the worker.
    is_leaving: bool,
    /// We have come here from a connection on which nothing was left behind.
    has_moved: bool,
    /// When this has passed, the server has read our subscriptions.
    subscribed: Option<Fence>,
    jetstream: JetStream<Tag>,
    /// The other workers, unless this one keeps to itself.
    relay: Option<Relay>,
    pulls: [Pull; PULLS],
    /// When each pull may ask again, after it was told to pause.
    paused_until: [Duration; PULLS],
    /// The next message did not fit into a whole request of this pull: it is asked for alone.
    is_large: [bool; PULLS],
    users: Slab<Slot>,
    by_id: HashMap<UserId, usize, RandomState>,
    /// Users to be stepped when the link is ready, or after a pause.
    waiting: BTreeSet<(Duration, usize)>,
    dead: Slab<AckTo>,
    open: usize,
    nonce_next: u128,
    wall: Timestamp,
    drain: Drain,
    notices: Vec<Notice>,
    rejections: RejectionLog,
    /// What the server refuses, and the users that cannot be done.
    refusals: RefusalLog,
    held_users: RefusalLog,
    counters: Counters,
    /// When the queue is looked at next, and what was said of it; none for the cores that do not look.
    backlog: Option<(Duration, BacklogLog)>,
    scratch: Vec<u8>,
    /// Loads in a row that found no record.
    strangers: u32,
    /// Where the cache was last looked through.
    evict_next: usize,
}

struct Slot {
    id: UserId,
    token: String,
    user: User<AckTo>,
    /// Alarms in the digest under way.
    digest_alarms: usize,
    is_waiting: bool,
    verdict: Option<Verdict>,
}

/// What becomes of a user's messages without looking at its record again: a message each would read a megabyte.
struct Verdict {
    until: Duration,
    /// Dead letters; if none, they come again later, for another server may do them.
    rejection: Option<Rejection>,
}

#[derive(Clone, Debug)]
struct CheckedNames {
    bucket: Bucket,
    input: String,
    output: String,
}

/// Where a message came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Queue,
    /// Relayed once, and never again.
    Member,
}

/// What a message asks for, by its subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Changed,
    Send,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drain {
    Not,
    /// No more requests for messages; when this fence has passed, none is on its way.
    Reading(Fence),
    /// What has arrived is being finished.
    Finishing,
    /// The last acknowledgements are on their way.
    Acknowledging(Fence),
    Done,
}

/// While one request is being filled, the next one is with the server.
const PULLS: usize = 2;
const REPLY_SID: u64 = 1;
const PULL_SID: u64 = 2;
const SIDS: std::ops::RangeInclusive<u64> = REPLY_SID..=PULL_SID + PULLS as u64 - 1;

/// Messages that are held at most, in terms of how many are asked for: our own, and those that others may relay to us before
/// we answer. A server that sends more keeps no promise.
const OPEN_FACTOR: usize = 4;

/// Bytes that a request for messages asks for. Two of them are a quarter of what a server lets wait for a client, 64 MiB by
/// default, before it closes the connection of who does not read in time.
const PULL_BYTES_MAX: u64 = 8 << 20;

/// How long a request for messages stays with the server.
const PULL_EXPIRES: Duration = Duration::from_secs(10);

/// After an outcome that is unknown, or a server that asks for patience.
const PAUSE: Duration = Duration::from_millis(500);

/// When a message that could not be done comes again, and a user that could not be done is looked at again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// After so many loads that found no record, the next users are taken to have none either: each saves its load, and a few
/// are refused when that is over.
const STRANGERS_MIN: u32 = 64;

/// Header of a digest in the output stream: the nonce of the decision that it tells of.
pub const DIGEST_ID: &str = "Alarm-Digest-Id";

/// What the headers of a stored record or digest can take, in bytes.
const HEADER_BYTES_MAX: usize = 512;

/// Of a subject that a dead letter repeats, before it is escaped.
const SUBJECT_BYTES_MAX: usize = 256;

/// The least `max_payload`: a digest of one alarm with its headers, and the headers of any dead letter.
const MAX_PAYLOAD_AT_LEAST: usize = message::DIGEST_BYTES_MAX_AT_LEAST + HEADER_BYTES_MAX;

impl Worker {
    /// Without a link yet. `inbox` is a subject that nobody else in the account has, and `nonces` a random number of 128
    /// bits.
    ///
    /// # Panics
    /// When a name is not one: they are checked with the configuration.
    #[must_use]
    pub fn new(mut config: WorkerConfig, inbox: &str, nonces: u128) -> Self {
        const BELIEF: &str = "checked with the configuration";
        let at_least = &mut config.session.max_payload_at_least;
        *at_least = (*at_least).max(MAX_PAYLOAD_AT_LEAST as u64);
        let mut jetstream =
            JetStream::new(Subject::new(inbox).expect("the caller gives a subject"), REPLY_SID);
        if let Some(prefix) = &config.names.api_prefix {
            jetstream = jetstream.with_api_prefix(Subject::new(prefix).expect(BELIEF));
        }
        let input = Name::new(&config.names.input).expect(BELIEF);
        let consumer = Name::new(&config.names.consumer).expect(BELIEF);
        let pull = |slot: usize| Pull::new(&jetstream, input, consumer, slot as u32, PULL_SID + slot as u64);
        let pulls = std::array::from_fn(pull);
        let me = Member((nonces >> 64) as u64);
        let relay = config.affinity.then(|| Relay::new(me, &config.names.member_prefix, inbox));
        let names = CheckedNames {
            bucket: Bucket::new(&config.names.bucket).expect(BELIEF),
            input: config.names.input.clone(),
            output: config.names.output.clone(),
        };
        Self {
            replies: replies(&config.names),
            service_api: None,
            names,
            link: None,
            second: None,
            is_swapped: false,
            is_leaving: false,
            has_moved: false,
            subscribed: None,
            relay,
            pulls,
            jetstream,
            paused_until: [Duration::ZERO; PULLS],
            is_large: [false; PULLS],
            users: Slab::new(),
            by_id: HashMap::default(),
            waiting: BTreeSet::new(),
            dead: Slab::new(),
            open: 0,
            nonce_next: nonces,
            wall: Timestamp::new(0, 0),
            drain: Drain::Not,
            notices: Vec::new(),
            rejections: RejectionLog::default(),
            refusals: RefusalLog::default(),
            held_users: RefusalLog::default(),
            counters: Counters::default(),
            backlog: None,
            scratch: Vec::new(),
            strangers: 0,
            evict_next: 0,
            config,
        }
    }

    /// This one looks now and then at what waits in the queue: one of an instance.
    #[must_use]
    pub fn watching_backlog(self) -> Self {
        Self { backlog: Some((Duration::ZERO, BacklogLog::default())), ..self }
    }

    fn look_at_backlog(&mut self, now: Duration) {
        let (Some(link), Some((next, _))) =
            (self.link.as_mut().filter(|link| link.is_ready()), &mut self.backlog)
        else {
            return;
        };
        *next = now + LOOK_EVERY;
        let (input, consumer) = (name_of(&self.config.names.input), name_of(&self.config.names.consumer));
        self.jetstream.consumer_info(link, input, consumer, Tag::Backlog, now);
    }

    fn on_backlog(&mut self, reply: &Reply<'_, Tag>, now: Duration) {
        let info = match reply.decode::<ConsumerInfo>("a consumer") {
            Ok(info) => info,
            Err(failure) => {
                let text = || format!("cannot look at the queue: {failure}");
                return self.notices.extend(self.refusals.note(text, now));
            }
        };
        let queue = Backlog {
            pending: info.num_pending,
            ack_pending: info.num_ack_pending,
            redelivered: info.num_redelivered,
        };
        self.counters.backlog = Some(queue);
        if let Some((_, log)) = &mut self.backlog {
            self.notices.extend(log.look(now, queue).map(|news| Notice::Backlog(news, queue)));
        }
    }

    /// The streams that everything waits for when they are full.
    fn rooms(names: &CheckedNames) -> [Name<'_>; ROOMS] {
        [name_of(&names.output), names.bucket.stream()]
    }

    fn look_at_rooms(&mut self, now: Duration) {
        let (Some(link), Some((_, log))) =
            (self.link.as_mut().filter(|link| link.is_ready()), &mut self.backlog)
        else {
            return;
        };
        if log.may_look_at_rooms(now) {
            for (at, stream) in Self::rooms(&self.names).into_iter().enumerate() {
                self.jetstream.stream_info(link, stream, Tag::Room(at), now);
            }
        }
    }

    fn on_room(&mut self, at: usize, reply: &Reply<'_, Tag>, now: Duration) {
        let stream = Self::rooms(&self.names)[at];
        let info = match reply.decode::<StreamInfo>("a stream") {
            Ok(info) => info,
            Err(failure) => {
                return self.notices.push(Notice::Refused(format!("cannot look at {stream}: {failure}")));
            }
        };
        // Without a limit it is -1.
        let bytes_max = info.config.get("max_bytes").and_then(|bytes| bytes.as_u64());
        let room = bytes_max.map(|bytes_max| Room { bytes: info.state.bytes, bytes_max });
        if let (Some(room), Some((_, log))) = (room, &mut self.backlog)
            && log.look_at_room(at, now, room)
        {
            self.notices.push(Notice::Room(stream.to_string(), room));
        }
    }

    fn on_ready(&mut self, now: Duration) {
        let link = self.link.as_mut().expect("it just told that it is ready");
        if let Some(service_api) = &self.service_api {
            service_api.subscribe(link, now);
        }
        self.jetstream.subscribe(link, now);
        for pull in &mut self.pulls {
            pull.subscribe(link, now);
        }
        if let Some(relay) = self.relay.as_mut().filter(|_| self.drain == Drain::Not) {
            relay.on_ready(link, now);
        }
        self.subscribed = Some(link.fence(now));
    }

    fn on_message(&mut self, message: &Message<'_>, now: Duration) -> Result<(), Fault> {
        let ours = [SIDS, relay::SIDS, service_api::SIDS];
        if !message.sid_number().is_some_and(|sid| ours.iter().any(|sids| sids.contains(&sid))) {
            return Err(Fault::subscription(message));
        }
        self.on_our_message(message, now);
        Ok(())
    }

    fn on_our_message(&mut self, message: &Message<'_>, now: Duration) {
        if let Some(reply) = self.jetstream.on_message(message) {
            return self.on_reply(&reply, now);
        }
        for at in 0..PULLS {
            let owed = self.pulls[at].owed();
            match self.pulls[at].on_message(message, now) {
                None | Some(Pulled::Stray) => {}
                Some(Pulled::Delivery(delivery)) => return self.on_delivery(&delivery, Source::Queue, now),
                Some(Pulled::Status(status)) if status.kind == PullStatus::MessageTooLarge => {
                    // Behind others it fits into the next request.
                    return self.is_large[at] = status.is_current && owed == self.config.batch;
                }
                Some(Pulled::Status(status)) => return self.on_status(at, &status, now),
            }
        }
        if let (Some(relay), Some(link)) = (&mut self.relay, &mut self.link) {
            match relay.on_message(link, message, now) {
                None => {}
                Some(Came::Said) => return,
                Some(Came::Relayed(delivery)) => return self.on_delivery(&delivery, Source::Member, now),
                Some(Came::Returned) => return self.counters.returned += 1,
            }
        }
        let asked = self.service_api.as_ref().and_then(|api| api.question(message));
        self.notices.extend(asked.map(|(question, reply)| Notice::Asked(question, reply)));
    }

    fn on_not_allowed(&mut self, text: String, now: Duration) {
        match self.service_api.as_mut().and_then(|api| api.on_refused(&text)) {
            Some(is_to_be_said) => self.notices.extend(is_to_be_said.then_some(Notice::Refused(text))),
            None => {
                self.counters.refused += 1;
                self.notices.extend(self.refusals.note(|| text, now));
            }
        }
    }

    fn on_status(&mut self, at: usize, status: &Status<'_>, now: Duration) {
        match status.kind.next() {
            Next::Wait | Next::AskAgain => {}
            next => {
                self.paused_until[at] = now + PAUSE;
                if status.is_current && (next != Next::Pause || status.kind == PullStatus::NoResponders) {
                    let description = String::from_utf8_lossy(status.description);
                    let text = || format!("pull: {} {description}", status.code);
                    self.notices.extend(self.refusals.note(text, now));
                }
            }
        }
    }

    fn on_delivery(&mut self, delivery: &Delivery<'_>, source: Source, now: Duration) {
        if self.open >= OPEN_FACTOR * self.config.open_max {
            let text = || "more messages came than were asked for, and will come again".into();
            self.notices.extend(self.refusals.note(text, now));
            return self.obey(None, delivery, now);
        }
        let is_again = delivery.ack.delivered > 1;
        self.counters.redelivered += u64::from(is_again && source == Source::Queue);
        let message = &delivery.message;
        let decoded = match kind_of(message.subject, &self.config.names) {
            Some(Kind::Changed) => message::decode_change(message.payload),
            Some(Kind::Send) => message::decode_request(message.payload),
            // No member relays such a thing.
            None if source == Source::Member => return,
            None => Err(unknown_subject(&self.config.names)),
        };
        let command = match decoded {
            Ok(command) => command,
            Err(rejection) => return self.reject(message, &rejection, ack_to(delivery), now),
        };
        if is_again && self.is_held(command.user(), delivery) {
            return;
        }
        // What comes again has perhaps been relayed before: then that was of no use.
        if source == Source::Queue
            && !is_again
            && self.drain == Drain::Not
            && let (Some(relay), Some(link)) = (&mut self.relay, &mut self.link)
            && relay.pass_on(link, command.user(), delivery, now)
        {
            self.counters.relayed += 1;
            return;
        }
        let slot = self.slot_of(command.user());
        let at = &mut self.users[slot];
        at.verdict.take_if(|verdict| verdict.until <= now);
        if let Some(verdict) = &at.verdict {
            let rejection = verdict.rejection.clone();
            return self.obey(rejection, delivery, now);
        }
        self.open += 1;
        let counter = match command {
            Command::Apply(change) => {
                at.user.on_change(change.alarm, change.condition, ack_to(delivery));
                &mut self.counters.changes
            }
            Command::SendDigest(_) => {
                let reply = self.reply_of(message);
                let asked = Some(Box::new(Asked { at: now, reply }));
                self.users[slot].user.on_request(AckTo { asked, ..ack_to(delivery) });
                &mut self.counters.requests
            }
        };
        *counter += 1;
        let refused = self.step(slot, now);
        self.on_refused(slot, refused, Some(delivery), now);
    }

    /// Whether this message waits with its user already: then the server no longer knows the ack subject of its last
    /// delivery, and one that cannot be done for long would be held once more with each.
    fn is_held(&mut self, user: &UserId, delivery: &Delivery<'_>) -> bool {
        let Some(slot) = self.by_id.get(user) else { return false };
        let ack = &delivery.ack;
        let held = self.users[*slot].user.waiting_mut().find(|held| {
            AckSubject::parse(&held.subject)
                .is_some_and(|held| (held.stream_sequence, held.stream) == (ack.stream_sequence, ack.stream))
        });
        held.map(|held| held.subject = ack_to(delivery).subject).is_some()
    }

    /// The reply subject itself is the stream's.
    fn reply_of(&mut self, message: &Message<'_>) -> Option<ReplyTo> {
        let reply = self.replies.of(message, None);
        self.counters.unanswered += u64::from(reply.is_err());
        reply.unwrap_or_default()
    }

    fn obey(&mut self, rejection: Option<Rejection>, delivery: &Delivery<'_>, now: Duration) {
        match rejection {
            Some(rejection) => self.reject(&delivery.message, &rejection, ack_to(delivery), now),
            None => {
                self.open += 1;
                self.answer_all(vec![ack_to(delivery)], Ack::Again { after: Some(AGAIN_AFTER) }, now);
            }
        }
    }

    /// A user's record has no room for these. The one that is at hand becomes a dead letter; of the others nothing is left
    /// but how to answer, so they come again at once, and then they are at hand.
    fn on_refused(
        &mut self,
        slot: usize,
        refused: Vec<Refused<AckTo>>,
        at_hand: Option<&Delivery<'_>>,
        now: Duration,
    ) {
        for Refused { ack, bytes } in refused {
            match at_hand.filter(|delivery| *ack.subject == *delivery.ack.subject().as_bytes()) {
                Some(delivery) => {
                    self.open -= 1;
                    let rejection = too_large(&self.users[slot].id, bytes, self.limits().record_bytes_max);
                    self.reject(&delivery.message, &rejection, ack, now);
                }
                None => self.answer_all(vec![ack], Ack::Again { after: None }, now),
            }
        }
    }

    /// This user cannot be done for a while: what waited comes again, at once to become a dead letter, or later.
    fn condemn(
        &mut self,
        slot: usize,
        rejection: Option<Rejection>,
        unacknowledged: Vec<AckTo>,
        now: Duration,
    ) {
        let after = if rejection.is_some() { None } else { Some(AGAIN_AFTER) };
        self.users[slot].verdict = Some(Verdict { until: now + AGAIN_AFTER, rejection });
        self.answer_all(unacknowledged, Ack::Again { after }, now);
    }

    fn slot_of(&mut self, id: &UserId) -> usize {
        if let Some(slot) = self.by_id.get(id) {
            return *slot;
        }
        let slot = Slot {
            id: id.clone(),
            token: token(id),
            user: User::new(id.clone()),
            digest_alarms: 0,
            is_waiting: false,
            verdict: None,
        };
        let at = self.users.insert(slot);
        self.by_id.insert(id.clone(), at);
        at
    }

    /// Takes a user as far as it goes: its next operation, and its acknowledgements.
    fn advance(&mut self, slot: usize, now: Duration) {
        let refused = self.step(slot, now);
        self.on_refused(slot, refused, None, now);
    }

    /// As [`Self::advance`], and returns what there is no room for.
    fn step(&mut self, slot: usize, now: Duration) -> Vec<Refused<AckTo>> {
        if !self.link.as_ref().is_some_and(Session::is_ready) {
            self.wait(slot, now);
            return Vec::new();
        }
        let limits = self.limits();
        let nonce_next = &mut self.nonce_next;
        let nonce = || {
            *nonce_next = nonce_next.wrapping_add(1);
            Nonce(*nonce_next)
        };
        match self.users[slot].user.step(&limits, nonce) {
            Ok(None) => {}
            Ok(Some(Operation::Load)) if self.strangers >= STRANGERS_MIN => {
                // A first load may be out of date, and so may a guess: a wrong one is refused, and then it is loaded.
                self.users[slot].user.on_done(Done::Loaded(None)).expect("no record can be read");
                return self.step(slot, now);
            }
            Ok(Some(operation)) => self.begin(slot, operation, now),
            Err(Refusal::TooLarge { bytes, unacknowledged }) => {
                let rejection = too_large(&self.users[slot].id, bytes, limits.record_bytes_max);
                self.condemn(slot, Some(rejection), unacknowledged, now);
            }
        }
        self.acknowledge(slot, now);
        std::mem::take(self.users[slot].user.refused())
    }

    /// Acknowledges what is done, and answers the requests that no digest has answered: nothing was due.
    fn acknowledge(&mut self, slot: usize, now: Duration) {
        let mut acknowledged = std::mem::take(self.users[slot].user.acknowledged());
        for reply in acknowledged.iter_mut().filter_map(|ack| ack.asked.take()?.reply) {
            let digest = Digest { user: self.users[slot].id.clone(), alarms: Vec::new() };
            self.reply(&reply, &digest, false, now);
        }
        self.answer_all(acknowledged, Ack::Done, now);
    }

    /// Answers at `reply`, if there is room: whoever asks can ask again.
    fn reply(&mut self, reply: &ReplyTo, digest: &Digest, has_more: bool, now: Duration) {
        let has_room = self.takes_bytes();
        match self.link.as_mut().filter(|link| has_room && link.is_ready()) {
            Some(link) => {
                self.counters.answers += 1;
                let max_payload = usize::try_from(link.info().map_or(0, |info| info.max_payload));
                let max_payload = max_payload.unwrap_or(usize::MAX).min(encode::PAYLOAD_BYTES_MAX);
                reply.answer(digest, has_more, max_payload, link, now);
            }
            None => self.counters.unanswered += 1,
        }
    }

    fn limits(&self) -> UserLimits {
        let info = self.link.as_ref().and_then(Session::info).expect("a session that is ready has it");
        let max_payload =
            usize::try_from(info.max_payload).unwrap_or(usize::MAX).min(encode::PAYLOAD_BYTES_MAX);
        let retention = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        UserLimits {
            record_bytes_max: max_payload - HEADER_BYTES_MAX,
            digest_bytes_max: max_payload - HEADER_BYTES_MAX,
            horizon: Timestamp::new(self.wall.seconds().saturating_sub(retention), self.wall.nanos()),
        }
    }

    fn begin(&mut self, slot: usize, operation: Operation, now: Duration) {
        const BELIEF: &str = "a token is made to be one";
        const FITS: &str = "limits leave room for the headers";
        let link = self.link.as_mut().expect("the caller looked");
        let (at, tag) = (&mut self.users[slot], Tag::User(slot));
        let key = Key::new(&at.token).expect(BELIEF);
        match operation {
            Operation::Load => {
                self.counters.loads += 1;
                self.jetstream.kv_get_direct(link, &self.names.bucket, key, tag, now);
            }
            Operation::Reload | Operation::Verify => {
                self.counters.loads += u64::from(operation == Operation::Reload);
                self.jetstream.kv_get(link, &self.names.bucket, key, tag, now);
            }
            Operation::Store { record, revision } => {
                let bucket = &self.names.bucket;
                self.counters.stores += 1;
                self.jetstream.kv_put(link, bucket, key, &record, Some(revision), tag, now).expect(FITS);
            }
            Operation::LastSent => {
                let subject = [&self.config.names.output_prefix, at.token.as_str()].concat();
                let (stream, subject) =
                    (Name::new(&self.names.output).expect(BELIEF), Subject::new(&subject).expect(BELIEF));
                self.jetstream.last_of(link, stream, subject, tag, now);
            }
            Operation::Send { digest, nonce, last } => {
                self.scratch.clear();
                let ranges = message::encode_digest(&digest, usize::MAX, &mut self.scratch);
                assert_eq!(ranges.len(), 1, "it was decided to fit");
                let subject = [&self.config.names.output_prefix, at.token.as_str()].concat();
                let id = format!("{:032x}", nonce.0);
                let headers = [
                    Header::new(DIGEST_ID, &id).expect("hexadecimal digits"),
                    Header::new(EXPECTED_STREAM, &self.names.output).expect(BELIEF),
                ];
                let publication = Publication {
                    subject: Subject::new(&subject).expect(BELIEF),
                    headers: &headers,
                    payload: &self.scratch,
                    expected_last: Some(last),
                };
                if let Err(error) = self.jetstream.publish(link, publication, tag, now) {
                    // It was decided where more is taken, and there it can be sent.
                    let text = || format!("digest of user {:?}: {error}", at.id.0);
                    self.notices.extend(self.held_users.note(text, now));
                    let unacknowledged = at.user.give_up();
                    return self.condemn(slot, None, unacknowledged, now);
                }
                at.digest_alarms = digest.alarms.len();
            }
        }
    }

    fn on_reply(&mut self, reply: &Reply<'_, Tag>, now: Duration) {
        match reply.tag {
            Tag::Backlog => self.on_backlog(reply, now),
            Tag::Room(at) => self.on_room(at, reply, now),
            Tag::Dead(at) => self.on_dead_letter(at, reply.pub_ack().is_ok(), now),
            Tag::User(slot) => {
                let done = self.done_of(slot, reply, now);
                self.conclude(slot, done, now);
            }
        }
    }

    /// Reads a reply as what the user's operation makes of it.
    fn done_of(&mut self, slot: usize, reply: &Reply<'_, Tag>, now: Duration) -> Done {
        let pending = self.users[slot].user.pending().expect("a reply belongs to an operation");
        let done = match pending {
            Pending::Load | Pending::Verify => reply.stored().map(|stored| {
                Done::Loaded(stored.map(|stored| {
                    let is_deleted = stored.marker().is_some();
                    (if is_deleted { Vec::new() } else { stored.payload.into_owned() }, stored.sequence)
                }))
            }),
            Pending::LastSent(_) => reply.stored().map(|stored| {
                Done::LastSent(stored.map(|stored| {
                    let id = stored.header(DIGEST_ID).and_then(|id| std::str::from_utf8(id).ok());
                    // A digest that is not ours is followed like any other.
                    let nonce = id.and_then(|id| u128::from_str_radix(id, 16).ok()).unwrap_or_default();
                    (stored.sequence, Nonce(nonce))
                }))
            }),
            Pending::Store | Pending::Send(_) => reply.pub_ack().map(|ack| Done::Written(ack.sequence)),
        };
        match done {
            Ok(done) => {
                match (pending, &done) {
                    (Pending::Send(_), Done::Written(_)) => self.on_sent(slot, now),
                    (Pending::LastSent(nonce), Done::LastSent(Some((_, sent)))) if nonce == *sent => {
                        self.on_settled(slot, now);
                    }
                    (Pending::Load, Done::Loaded(None)) => self.strangers = self.strangers.saturating_add(1),
                    (Pending::Load, _) => self.strangers = 0,
                    _ => {}
                }
                done
            }
            Err(Failure::Api(error)) if error.is_wrong_last_sequence() => {
                self.counters.conflicts += 1;
                self.strangers = 0;
                Done::Conflict
            }
            Err(failure) => {
                self.counters.unknown += 1;
                self.notices.extend(self.refusals.note(|| failure.to_string(), now));
                Done::Unknown
            }
        }
    }

    fn on_sent(&mut self, slot: usize, now: Duration) {
        self.counters.digests += 1;
        let alarms = self.users[slot].digest_alarms as u64;
        self.counters.alarms_told += alarms;
        self.counters.alarms_per_digest.observe(alarms);
        if !self.config.is_republished {
            // Only here, after our own publish: never when somebody else may have.
            self.scratch.clear();
            message::encode_digest(&self.digest_sent(slot), usize::MAX, &mut self.scratch);
            let subject = Subject::new(&self.config.names.digest).expect("checked with the configuration");
            self.link.as_mut().expect("a reply came on it").publish(subject, &self.scratch, now);
        }
        self.on_settled(slot, now);
    }

    /// The digest is in the output stream, whoever put it there: says so to those who wait for it. A request that it was not
    /// decided for has an answer of its own to come, but may be here for another time, and then it was.
    fn on_settled(&mut self, slot: usize, now: Duration) {
        let (is_part, under_way, next) = self.users[slot].user.asking_mut();
        let mut replies: Vec<(ReplyTo, bool)> = Vec::new();
        for asked in next.iter().filter_map(|ack| ack.asked.as_ref()) {
            replies.extend(asked.reply.clone().map(|reply| (reply, true)));
        }
        for ack in under_way {
            if is_part {
                replies.extend(
                    ack.asked.as_ref().and_then(|asked| asked.reply.clone()).map(|reply| (reply, true)),
                );
            } else if let Some(asked) = ack.asked.take() {
                self.counters.settle_latency.observe(micros(now.saturating_sub(asked.at)));
                replies.extend(asked.reply.map(|reply| (reply, false)));
            }
        }
        if !replies.is_empty() {
            let digest = self.digest_sent(slot);
            replies.iter().for_each(|(reply, has_more)| self.reply(reply, &digest, *has_more, now));
        }
    }

    /// It leaves the record with the next store.
    fn digest_sent(&self, slot: usize) -> Digest {
        let record = self.users[slot].user.record().expect("only what is loaded is sent");
        record.outbox().expect("what is being sent is in the record").1
    }

    fn conclude(&mut self, slot: usize, done: Done, now: Duration) {
        let is_unknown = done == Done::Unknown;
        if let Err(error) = self.users[slot].user.on_done(done) {
            let at = &mut self.users[slot];
            let text = || format!("record of user {:?} in the bucket cannot be read: {error}", at.id.0);
            self.notices.extend(self.held_users.note(text, now));
            let detail = format!("{error}: mend or delete it, then publish this again; user {:?}", at.id.0);
            let unacknowledged = at.user.give_up();
            let rejection = Rejection::new(Reason::RecordDamaged, detail);
            self.condemn(slot, Some(rejection), unacknowledged, now);
        }
        if is_unknown {
            self.acknowledge(slot, now);
            self.wait(slot, now + PAUSE);
        } else {
            self.advance(slot, now);
        }
    }

    fn wait(&mut self, slot: usize, until: Duration) {
        if !std::mem::replace(&mut self.users[slot].is_waiting, true) {
            self.waiting.insert((until, slot));
        }
    }

    fn reject(&mut self, message: &Message<'_>, rejection: &Rejection, ack: AckTo, now: Duration) {
        // It comes again, and is counted then.
        let is_request = kind_of(message.subject, &self.config.names) == Some(Kind::Send);
        let reply = if is_request { self.reply_of(message) } else { None };
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        if let Some(reply) = reply {
            self.counters.answers += 1;
            reply.refuse(rejection, link, now);
        }
        let subject =
            message.subject[..message.subject.len().min(SUBJECT_BYTES_MAX)].escape_ascii().to_string();
        self.counters.rejected[rejection.reason as usize] += 1;
        self.counters.rejected_requests += u64::from(is_request);
        self.notices.extend(self.rejections.note(&subject, rejection, now));
        self.open += 1;
        let max_payload = link.info().map_or(usize::MAX, |info| info.max_payload as usize);
        let sequence = AckSubject::parse(&ack.subject).map_or(0, |ack| ack.stream_sequence).to_string();
        let (detail, size) = (rejection.to_string(), message.payload.len().to_string());
        let header = |name, value| Header::new(name, value).expect("a name of ours, and printable ASCII");
        let id = format!("{}:{sequence}", self.names.input);
        let headers = [
            header("Alarm-Digest-Reason", rejection.reason.name()),
            header("Alarm-Digest-Detail", &detail),
            header("Alarm-Digest-Subject", &subject),
            header("Alarm-Digest-Payload-Bytes", &size),
            header("Alarm-Digest-Sequence", &sequence),
            header(nats_wire::jetstream::MESSAGE_ID, &id),
        ];
        let room = max_payload - nats_wire::HeaderBlock::new(&headers).encoded_len();
        let publication = Publication {
            subject: Subject::new(&self.config.names.dead).expect("checked with the configuration"),
            headers: &headers,
            payload: &message.payload[..message.payload.len().min(room)],
            expected_last: None,
        };
        let at = self.dead.insert(ack);
        self.jetstream.publish(link, publication, Tag::Dead(at), now).expect("it was cut to fit");
    }

    /// Only what is stored as a dead letter is never delivered again.
    fn on_dead_letter(&mut self, at: usize, is_stored: bool, now: Duration) {
        let ack = self.dead.remove(at);
        let answer =
            if is_stored { Ack::Never { reason: None } } else { Ack::Again { after: Some(AGAIN_AFTER) } };
        self.answer_all(vec![ack], answer, now);
    }

    fn answer_all(&mut self, acks: Vec<AckTo>, answer: Ack<'_>, now: Duration) {
        self.open -= acks.len();
        // Without a link they come again.
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        for ack in acks {
            AckSubject::parse(&ack.subject).expect("it was one when it came").send(link, answer, now);
            self.counters.settled += u64::from(answer == Ack::Done);
        }
    }

    /// Asks for more messages, if there is room for them.
    fn pull(&mut self, now: Duration) {
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        if self.drain != Drain::Not || self.relay.as_ref().is_some_and(|relay| !relay.is_acquainted(now)) {
            return;
        }
        for (at, pull) in self.pulls.iter_mut().enumerate() {
            if pull.is_open() || self.paused_until[at] > now || self.open >= self.config.open_max {
                continue;
            }
            let is_large = std::mem::take(&mut self.is_large[at]);
            let (batch, max_bytes) =
                if is_large { (1, None) } else { (self.config.batch, Some(PULL_BYTES_MAX)) };
            pull.request(link, &PullRequest { max_bytes, ..PullRequest::new(batch, PULL_EXPIRES) }, now);
        }
    }

    /// Drops users that nothing waits for, where too many are kept.
    fn evict(&mut self) {
        let excess = self.users.len().saturating_sub(self.config.cached_users_max);
        let mut looked = 0;
        let mut dropped = 0;
        while dropped < excess && looked < self.users.len() + dropped {
            if self.evict_next >= self.users.capacity() {
                self.evict_next = 0;
            }
            let at = self.evict_next;
            self.evict_next += 1;
            looked += 1;
            if self.users.get(at).is_some_and(|slot| slot.user.is_idle() && !slot.is_waiting) {
                let slot = self.users.remove(at);
                self.by_id.remove(&slot.id);
                dropped += 1;
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.open == 0 && self.jetstream.waiting() == 0 && self.waiting.is_empty()
    }
}

fn name_of(name: &str) -> Name<'_> {
    Name::new(name).expect("checked with the configuration")
}

fn ack_to(delivery: &Delivery<'_>) -> AckTo {
    AckTo { subject: delivery.ack.subject().as_bytes().into(), asked: None }
}

/// All that streams and members read or write, where it does not begin with `$`.
fn replies(names: &Names) -> Replies {
    let Names { changed, send, digest, dead, output_prefix, member_prefix, .. } = names;
    let ours = [changed, send, digest, dead, output_prefix, member_prefix];
    Replies::new(ours.into_iter().chain(&names.api_prefix).map(String::as_str))
}

/// By the name itself, or by what a mapping of the server that splits a subject makes of it: the name, a dot, a number. None
/// if it is neither of the two.
fn kind_of(subject: &[u8], names: &Names) -> Option<Kind> {
    let kinds = [(names.changed.as_bytes(), Kind::Changed), (names.send.as_bytes(), Kind::Send)];
    let is_part = |name: &[u8]| {
        let number = subject.strip_prefix(name).and_then(|rest| rest.strip_prefix(b"."));
        number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
    };
    let exact = kinds.iter().find(|(name, _)| *name == subject);
    exact.or_else(|| kinds.iter().find(|(name, _)| is_part(name))).map(|(_, kind)| *kind)
}

fn unknown_subject(names: &Names) -> Rejection {
    let detail = format!("expected subject {} or {}, got another one", names.changed, names.send);
    Rejection::new(Reason::UnknownSubject, detail)
}

/// The user comes last, because it may be cut.
fn too_large(user: &UserId, bytes: usize, bytes_max: usize) -> Rejection {
    let detail = format!(
        "expected a record of at most {bytes_max} bytes, it needs {bytes}: raise max_payload, then publish this again; \
         user {:?}",
        user.0
    );
    Rejection::new(Reason::RecordTooLarge, detail)
}

impl Logic for Worker {
    fn on_link(&mut self, sign_in: SignIn, now: Duration) {
        self.on_link_lost(now);
        self.link = Some(Session::new(self.config.session.clone(), now).signing_in(sign_in));
    }

    fn on_link_lost(&mut self, now: Duration) {
        self.link = None;
        if self.is_swapped {
            return;
        }
        self.has_moved = false;
        self.pulls.iter_mut().for_each(Pull::give_up);
        let forgotten: Vec<Tag> = self.jetstream.forget().map(|(_, tag)| tag).collect();
        for tag in forgotten {
            match tag {
                Tag::User(slot) => self.conclude(slot, Done::Unknown, now),
                Tag::Dead(at) => self.on_dead_letter(at, false, now),
                Tag::Backlog | Tag::Room(_) => {}
            }
        }
        if std::mem::take(&mut self.is_leaving) {
            self.drain = Drain::Not;
        } else if matches!(self.drain, Drain::Reading(_) | Drain::Acknowledging(_)) {
            self.drain = Drain::Finishing;
        }
    }

    fn swap_links(&mut self) {
        std::mem::swap(&mut self.link, &mut self.second);
        self.is_swapped = !self.is_swapped;
    }

    fn is_subscribed(&self) -> bool {
        self.link.as_ref().is_some_and(Session::is_ready)
    }

    /// The same as the end of it all, and then all begins anew on the other one.
    fn leave(&mut self, now: Duration) {
        if self.drain == Drain::Not && self.link.is_some() {
            self.is_leaving = true;
            self.drain(now);
        }
    }

    fn has_left(&self) -> bool {
        self.is_leaving && self.drain == Drain::Done && self.output().is_empty()
    }

    fn change_links(&mut self, now: Duration) {
        let has_left = self.has_left();
        self.on_link_lost(now);
        self.has_moved = has_left;
        self.link = self.second.take();
        if self.link.as_ref().is_some_and(Session::is_ready) {
            self.on_ready(now);
        }
    }

    fn heard(&mut self, now: Duration) {
        if let Some(link) = &mut self.link {
            link.heard(now);
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<usize, Fault> {
        let mut used_all = 0;
        while self.takes_bytes() {
            let Some(link) = &mut self.link else { break };
            let (used, event) = link.receive(&bytes[used_all..])?;
            used_all += used;
            match event {
                None => break,
                Some(Event::Refused(text)) if self.is_swapped => {
                    return Err(Fault::Refused(text.to_string()));
                }
                Some(_) if self.is_swapped => {}
                Some(Event::Message(message)) => self.on_message(&message, now)?,
                Some(Event::Passed(fence)) if self.drain == Drain::Reading(fence) => {
                    self.drain = Drain::Finishing
                }
                Some(Event::Passed(fence)) if self.drain == Drain::Acknowledging(fence) => {
                    self.drain = Drain::Done
                }
                Some(Event::Ready) => self.on_ready(now),
                Some(Event::Passed(fence)) if self.subscribed == Some(fence) => {
                    self.counters.connected += 1;
                    self.counters.moves += u64::from(std::mem::take(&mut self.has_moved));
                    self.notices.push(Notice::Ready);
                }
                Some(Event::Info) => self.notices.push(Notice::Info),
                Some(Event::Passed(_)) => {}
                Some(Event::Refused(text)) => self.on_not_allowed(text.to_string(), now),
            }
        }
        Ok(used_all)
    }

    fn on_time(&mut self, now: Duration, wall: Timestamp) -> Result<(), Fault> {
        if self.is_swapped {
            return self.link.as_mut().map_or(Ok(()), |link| link.on_time(now));
        }
        self.wall = wall;
        while let Some((_, tag)) = self.jetstream.expired(now, self.config.request_timeout) {
            self.counters.unknown += 1;
            match tag {
                Tag::User(slot) => self.conclude(slot, Done::Unknown, now),
                Tag::Dead(at) => self.on_dead_letter(at, false, now),
                Tag::Backlog => {}
                Tag::Room(_) => {
                    if let Some((_, log)) = &mut self.backlog {
                        log.no_rooms(now);
                    }
                }
            }
        }
        for pull in &mut self.pulls {
            if pull.heartbeats_missed(now) > 1 || pull.overdue(now).is_some_and(|late| late > PAUSE) {
                pull.give_up();
            }
        }
        self.evict();
        if self.backlog.as_ref().is_some_and(|(next, _)| *next <= now) {
            self.look_at_backlog(now);
        }
        if self.drain == Drain::Not {
            self.look_at_rooms(now);
        }
        let is_reading = self.takes_bytes();
        let Some(link) = &mut self.link else { return Ok(()) };
        if !is_reading {
            link.heard(now);
        }
        if link.is_ready()
            && self.drain == Drain::Not
            && let Some(relay) = &mut self.relay
        {
            relay.on_time(link, now);
        }
        link.on_time(now)
    }

    fn drain(&mut self, now: Duration) {
        if self.drain != Drain::Not {
            return;
        }
        self.drain = match &mut self.link {
            Some(link) if link.is_ready() => {
                if let Some(relay) = &mut self.relay {
                    relay.leave(link, now);
                }
                for at in 0..PULLS {
                    link.unsubscribe(Sid::from(PULL_SID + at as u64), now);
                }
                let fence = link.fence(now);
                // For the summary.
                if !self.is_leaving {
                    self.look_at_backlog(now);
                }
                Drain::Reading(fence)
            }
            _ => Drain::Finishing,
        };
    }

    fn finish_turn(&mut self, now: Duration) {
        let Some(true) = self.link.as_ref().map(Session::is_ready) else {
            if self.drain == Drain::Finishing && self.link.is_none() && self.open == 0 {
                self.drain = Drain::Done;
            }
            return;
        };
        // After a reconnect all users wait: as many as the output takes now, and the rest in later turns.
        while self.takes_bytes()
            && let Some((_, slot)) = self.waiting.first().copied().filter(|(until, _)| *until <= now)
        {
            self.waiting.pop_first();
            self.users[slot].is_waiting = false;
            self.advance(slot, now);
        }
        self.pull(now);
        // Twice of what is open before we stop to pull: our own share of the queue is always below that.
        if self.open < 2 * self.config.open_max
            && let (Some(relay), Some(link)) = (&mut self.relay, &mut self.link)
        {
            relay.answer(link, now);
        }
        if self.drain == Drain::Finishing && self.is_finished() {
            self.drain = Drain::Acknowledging(self.link.as_mut().expect("it is ready").fence(now));
        }
    }

    fn takes_bytes(&self) -> bool {
        self.output().len() < self.config.output_bytes_max
    }

    fn output(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], Session::output)
    }

    fn wrote(&mut self, bytes: usize, now: Duration) {
        self.link.as_mut().expect("only a link has output").wrote(bytes, now);
    }

    fn is_drained(&self) -> bool {
        self.drain == Drain::Done && !self.is_leaving
    }

    fn link(&self) -> Option<&Session> {
        self.link.as_ref()
    }

    fn notices(&mut self) -> &mut Vec<Notice> {
        &mut self.notices
    }

    fn answer_as(&mut self, instance: &str) {
        self.service_api = Some(Listener::new(instance));
    }

    fn answer(&mut self, reply: &ReplyTo, payload: &[u8], now: Duration) {
        if self.takes_bytes() {
            reply.publish(payload, self.link.as_mut(), now);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn holds(&self) -> (usize, usize) {
        (self.users.len(), 0)
    }

    fn unsettled(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests;
