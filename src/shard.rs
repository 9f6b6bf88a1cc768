//! One core's whole logic, without IO: bytes and mail come in, bytes and mail go out, time is an argument.
//!
//! ```text
//! bytes ─► session ─► message ─► mine? ─► book ─► digest ─► session ─► bytes
//!                        │        no
//!                        ▼         └────► mail to its owner ─► the same from `book` on
//!                    dead letter
//! ```
//!
//! What is published is kept until a fence proves that the server has read it, and is sent again on the next
//! connection until then. Whoever drives a shard obeys three rules, and then nothing can deadlock:
//!
//! 1. Bytes from the socket wait while [`Shard::takes_bytes`] is false: output or mail is full, and both empty
//!    themselves without us reading.
//! 2. Mail from peers waits while [`Shard::takes_mail`] is false: that depends on our own link only, never on a peer.
//! 3. After anything came in, [`Shard::finish_turn`]; then output and mail are taken along.
//!
//! Never: a socket, a thread, a clock, a log line. What the log should know is left in [`Shard::notices`].

use std::collections::VecDeque;
use std::time::Duration;

use nats_wire::session::{Event, Fault, Fence, Session, SessionConfig};
use nats_wire::{Header, HeaderBlock, Message, QueueGroup, Sid, Subject, SubjectFilter, encode};
use xxhash_rust::xxh3::xxh3_64;

use crate::alarm::{AlarmId, Command, Condition, Digest, Timestamp, UserId};
use crate::book::Book;
use crate::message::{self, Reason, Rejection};

/// A shard's number, less than the number of shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardId(pub usize);

/// What every shard of a service has in common.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Where messages come from and go to.
    pub subjects: Subjects,
    /// The queue group that all shards subscribe in.
    pub queue_group: String,
    /// How long a cleared alarm is remembered after it was cleared.
    pub retention: Duration,
    /// Output beyond this many bytes holds back whatever would make more of it.
    pub output_bytes_max: usize,
    /// Without a link, digests beyond this many bytes in memory hold back mail.
    pub unsettled_bytes_max: usize,
    /// Mail to one peer beyond this many commands holds back the socket.
    pub mail_max: usize,
    /// How a connection is kept.
    pub session: SessionConfig,
}

/// Checked beforehand: four different literal subjects.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// `AlarmStatusChanged`
    pub changed: String,
    /// `SendAlarmDigest`
    pub send: String,
    /// `AlarmDigest`
    pub digest: String,
    /// `AlarmDigest.rejected`
    pub rejected: String,
}

/// What goes from shard to shard.
#[derive(PartialEq, Eq, Debug)]
pub enum Mail {
    /// For the owner of its user.
    Command(Command),
    /// The last mail from this peer to this shard: it drains.
    Last,
}

/// What the log should know.
#[derive(Debug)]
pub enum Notice {
    /// Connected and subscribed.
    Ready,
    /// The server refused something, in its own words, and keeps the connection.
    Refused(String),
    /// A bad payload, at most one a second; `unsaid` others were counted since the last one.
    Rejected {
        /// Where it came from.
        subject: String,
        /// Why.
        rejection: Rejection,
        /// Others.
        unsaid: u64,
    },
}

/// What has happened so far.
#[derive(Clone, Default, Debug)]
pub struct Counters {
    /// Changes read from the socket, good ones.
    pub changes: u64,
    /// Requests read from the socket, good ones.
    pub requests: u64,
    /// Bad payloads by [`Reason`].
    pub rejected: [u64; Reason::ALL.len()],
    /// Commands sent to other shards.
    pub mailed: u64,
    /// Digests taken from the book.
    pub digests: u64,
    /// Alarms in them.
    pub alarms_told: u64,
    /// Publications that a fence has proved.
    pub settled: u64,
    /// Publications that were written when a link broke before their fence had passed: they are written again.
    pub resent: u64,
    /// Refusals of the server.
    pub refused: u64,
    /// Times the handshake succeeded.
    pub connected: u64,
}

impl Counters {
    /// Adds another shard's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            changes,
            requests,
            rejected,
            mailed,
            digests,
            alarms_told,
            settled,
            resent,
            refused,
            connected,
        } = other;
        self.changes += changes;
        self.requests += requests;
        self.rejected.iter_mut().zip(rejected).for_each(|(mine, other)| *mine += other);
        self.mailed += mailed;
        self.digests += digests;
        self.alarms_told += alarms_told;
        self.settled += settled;
        self.resent += resent;
        self.refused += refused;
        self.connected += connected;
    }
}

/// The logic of one core.
///
/// `fenced <= written <= unsettled.len()`; `fence` is some ⇔ `fenced > 0`; no link ⇒ `written == 0`.
pub struct Shard {
    id: ShardId,
    config: ShardConfig,
    book: Book,
    link: Option<Session>,
    /// Published, and not yet proved to have been read by the server; oldest first.
    unsettled: VecDeque<Publication>,
    unsettled_bytes: usize,
    /// How many of `unsettled`, from the front, are in the output of this link.
    written: usize,
    /// How many of those stand before `fence`.
    fenced: usize,
    fence: Option<Fence>,
    /// One per shard; our own stays empty.
    mail: Vec<Vec<Mail>>,
    mail_is_full: bool,
    drain: Drain,
    lasts_expected: usize,
    notices: Vec<Notice>,
    rejected_said_at: Option<Duration>,
    rejected_unsaid: u64,
    counters: Counters,
    scratch: Vec<u8>,
}

/// How far we are in stopping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drain {
    Not,
    /// Unsubscribed; when this fence has passed, all that the server sent us has been read.
    Reading(Fence),
    /// All our mail has been written; peers may still send.
    Read,
}

/// Something to publish.
enum Publication {
    Digest(Digest),
    Rejected { subject: String, rejection: Rejection, payload: Box<[u8]> },
}

impl Publication {
    /// What it takes in memory, roughly.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Digest(digest) => digest
                    .alarms
                    .iter()
                    .map(|(id, _)| size_of::<(AlarmId, Condition)>() + id.0.heap_bytes())
                    .sum(),
                Self::Rejected { payload, .. } => payload.len(),
            }
    }
}

const CHANGED_SID: u64 = 1;
const SEND_SID: u64 = 2;

/// Seconds between two lines of the log about bad payloads.
const REJECTED_SAID_EVERY: Duration = Duration::from_secs(1);

impl Shard {
    /// One of `shards`, without a link yet.
    ///
    /// # Panics
    /// When `id` is not less than `shards`.
    #[must_use]
    pub fn new(id: ShardId, shards: usize, config: ShardConfig) -> Self {
        assert!(id.0 < shards, "shard {} of {shards}", id.0);
        Self {
            id,
            config,
            book: Book::new(),
            link: None,
            unsettled: VecDeque::new(),
            unsettled_bytes: 0,
            written: 0,
            fenced: 0,
            fence: None,
            mail: (0..shards).map(|_| Vec::new()).collect(),
            mail_is_full: false,
            drain: Drain::Not,
            lasts_expected: shards - 1,
            notices: Vec::new(),
            rejected_said_at: None,
            rejected_unsaid: 0,
            counters: Counters::default(),
            scratch: Vec::new(),
        }
    }

    // What comes in.

    /// A connection was opened; what it brings follows through [`Self::receive`], from its first byte on.
    pub fn on_link(&mut self, now: Duration) {
        self.on_link_lost();
        self.link = Some(Session::new(self.config.session.clone(), now));
    }

    /// The connection is gone. What was not settled is sent again on the next one.
    pub fn on_link_lost(&mut self) {
        self.link = None;
        self.counters.resent += self.written as u64;
        (self.written, self.fenced, self.fence) = (0, 0, None);
        if let Drain::Reading(_) = self.drain {
            self.on_all_read();
        }
    }

    /// Bytes came from the socket, at `now`.
    pub fn heard(&mut self, now: Duration) {
        if let Some(link) = &mut self.link {
            link.heard(now);
        }
    }

    /// Takes what it can from `bytes`, which start at the first byte not yet used, and says how many it used. It
    /// leaves complete operations behind only when [`Self::takes_bytes`] turns false.
    ///
    /// # Errors
    /// [`Fault`]: the connection is of no use any more.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<usize, Fault> {
        let mut used_all = 0;
        while self.takes_bytes() {
            let Some(link) = &mut self.link else { break };
            let (used, event) = link.receive(&bytes[used_all..])?;
            used_all += used;
            match event {
                None => break,
                Some(Event::Message(message)) => self.on_message(&message, now),
                Some(Event::Passed(fence)) => self.on_passed(fence),
                Some(Event::Ready) => self.on_ready(now),
                Some(Event::Info) => {}
                Some(Event::Refused(text)) => {
                    self.counters.refused += 1;
                    self.notices.push(Notice::Refused(text.to_string()));
                }
            }
        }
        Ok(used_all)
    }

    /// Mail came from a peer.
    pub fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Command(command) => self.execute(command),
            Mail::Last => self.lasts_expected -= 1,
        }
    }

    /// Lets time pass, about once a second: `now` as everywhere, `wall` as the world counts it.
    ///
    /// # Errors
    /// [`Fault`]: the connection is of no use any more.
    pub fn on_time(&mut self, now: Duration, wall: Timestamp) -> Result<(), Fault> {
        let retention = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        self.book.forget(Timestamp::new(wall.seconds().saturating_sub(retention), wall.nanos()));
        let is_reading = self.takes_bytes();
        let Some(link) = &mut self.link else { return Ok(()) };
        if !is_reading && link.output().is_empty() {
            // It is we who do not listen.
            link.heard(now);
        }
        link.on_time(now)
    }

    /// Stop: unsubscribe, take what is on its way, settle what is published. [`Self::is_drained`] tells when that is
    /// done.
    pub fn drain(&mut self, now: Duration) {
        if self.drain != Drain::Not {
            return;
        }
        match &mut self.link {
            Some(link) if link.is_ready() => {
                link.unsubscribe(Sid::from(CHANGED_SID), now);
                link.unsubscribe(Sid::from(SEND_SID), now);
                self.drain = Drain::Reading(link.fence(now));
            }
            // Not subscribed, and will not be.
            _ => self.on_all_read(),
        }
    }

    /// After anything came in: puts what is to be published into the output, and a fence behind it.
    pub fn finish_turn(&mut self, now: Duration) {
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        while self.written < self.unsettled.len() && link.output().len() < self.config.output_bytes_max {
            let publication = &self.unsettled[self.written];
            write(publication, link, &self.config.subjects, &mut self.scratch, now);
            self.written += 1;
        }
        // One fence at a time: what is written meanwhile waits for the next, so that fences cost a round trip each
        // and not a PING each digest.
        if self.fence.is_none() && self.written > 0 {
            self.fence = Some(link.fence(now));
            self.fenced = self.written;
        }
    }

    // What goes out.

    /// Whether [`Self::receive`] takes anything now. A handshake brings no messages, so full mail does not hold it back:
    /// the peers may be waiting for this very link.
    #[must_use]
    pub fn takes_bytes(&self) -> bool {
        let link_is_ready = self.link.as_ref().is_some_and(Session::is_ready);
        !(self.mail_is_full && link_is_ready) && self.output().len() < self.config.output_bytes_max
    }

    /// Whether [`Self::on_mail`] may be called now. It depends on our link alone: if it depended on room for our own
    /// mail, two shards could wait for each other.
    #[must_use]
    pub fn takes_mail(&self) -> bool {
        match &self.link {
            Some(link) if link.is_ready() => link.output().len() < self.config.output_bytes_max,
            _ => self.unsettled_bytes < self.config.unsettled_bytes_max,
        }
    }

    /// Bytes for the socket.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], Session::output)
    }

    /// The first `bytes` of the output were written.
    pub fn wrote(&mut self, bytes: usize, now: Duration) {
        self.link.as_mut().expect("only a link has output").wrote(bytes, now);
    }

    /// Mail for the shard `peer`, to be moved out of here.
    pub fn mail_for(&mut self, peer: ShardId) -> &mut Vec<Mail> {
        &mut self.mail[peer.0]
    }

    /// Mail was moved out of [`Self::mail_for`].
    pub fn mail_moved(&mut self) {
        self.mail_is_full = self.mail.iter().any(|mail| mail.len() >= self.config.mail_max);
    }

    /// Whether all that arrived has been done and all that was published is settled.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drain == Drain::Read
            && self.lasts_expected == 0
            && self.unsettled.is_empty()
            && self.mail.iter().all(Vec::is_empty)
    }

    /// The connection, while there is one.
    #[must_use]
    pub fn link(&self) -> Option<&Session> {
        self.link.as_ref()
    }

    /// What the log should know, to be taken out.
    pub fn notices(&mut self) -> &mut Vec<Notice> {
        &mut self.notices
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is remembered.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Publications that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    // What happens inside.

    fn on_ready(&mut self, now: Duration) {
        self.counters.connected += 1;
        self.notices.push(Notice::Ready);
        if self.drain != Drain::Not {
            return;
        }
        let link = self.link.as_mut().expect("it just told that it is ready");
        let queue = QueueGroup::new(&self.config.queue_group).expect("checked with the configuration");
        for (subject, sid) in
            [(&self.config.subjects.changed, CHANGED_SID), (&self.config.subjects.send, SEND_SID)]
        {
            let filter = SubjectFilter::new(subject).expect("checked with the configuration");
            link.subscribe(filter, Some(queue), Sid::from(sid), now);
        }
    }

    fn on_message(&mut self, message: &Message<'_>, now: Duration) {
        let (subject, decoded) = if message.sid_number() == Some(CHANGED_SID) {
            (&self.config.subjects.changed, message::decode_change(message.payload))
        } else {
            (&self.config.subjects.send, message::decode_request(message.payload))
        };
        match decoded {
            Ok(command) => {
                match command {
                    Command::Apply(_) => self.counters.changes += 1,
                    Command::SendDigest(_) => self.counters.requests += 1,
                }
                self.route(command);
            }
            Err(rejection) => self.reject(subject.clone(), rejection, message.payload, now),
        }
    }

    fn route(&mut self, command: Command) {
        let owner = owner(command.user(), self.mail.len());
        if owner == self.id {
            return self.execute(command);
        }
        self.counters.mailed += 1;
        let mail = &mut self.mail[owner.0];
        mail.push(Mail::Command(command));
        self.mail_is_full |= mail.len() >= self.config.mail_max;
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Apply(change) => self.book.apply(change),
            Command::SendDigest(user) => {
                if let Some(digest) = self.book.take_digest(&user) {
                    self.counters.digests += 1;
                    self.counters.alarms_told += digest.alarms.len() as u64;
                    self.publish(Publication::Digest(digest));
                }
            }
        }
    }

    fn reject(&mut self, subject: String, rejection: Rejection, payload: &[u8], now: Duration) {
        self.counters.rejected[rejection.reason as usize] += 1;
        let is_due = self.rejected_said_at.is_none_or(|said_at| now >= said_at + REJECTED_SAID_EVERY);
        if is_due {
            self.rejected_said_at = Some(now);
            let unsaid = std::mem::take(&mut self.rejected_unsaid);
            self.notices.push(Notice::Rejected {
                subject: subject.clone(),
                rejection: rejection.clone(),
                unsaid,
            });
        } else {
            self.rejected_unsaid += 1;
        }
        self.publish(Publication::Rejected { subject, rejection, payload: payload.into() });
    }

    fn publish(&mut self, publication: Publication) {
        self.unsettled_bytes += publication.bytes();
        self.unsettled.push_back(publication);
    }

    fn on_passed(&mut self, fence: Fence) {
        if self.fence == Some(fence) {
            let settled: usize =
                self.unsettled.drain(..self.fenced).map(|publication| publication.bytes()).sum();
            self.unsettled_bytes -= settled;
            self.counters.settled += self.fenced as u64;
            self.written -= self.fenced;
            (self.fenced, self.fence) = (0, None);
        }
        if self.drain == Drain::Reading(fence) {
            self.on_all_read();
        }
    }

    fn on_all_read(&mut self) {
        self.drain = Drain::Read;
        let id = self.id.0;
        self.mail
            .iter_mut()
            .enumerate()
            .filter(|(peer, _)| *peer != id)
            .for_each(|(_, mail)| mail.push(Mail::Last));
    }
}

/// The shard that owns `user`: XXH3-64 of the id's text, seed 0, scaled to the number of shards by multiplication. The
/// same on every machine and in every version. Source: XXH3 specification, doc/xxhash_spec.md of xxHash.
#[must_use]
pub fn owner(user: &UserId, shards: usize) -> ShardId {
    let hash = user.0.with_text(|text| xxh3_64(text.as_bytes()));
    ShardId(((u128::from(hash) * shards as u128) >> 64) as usize)
}

fn write(
    publication: &Publication,
    link: &mut Session,
    subjects: &Subjects,
    scratch: &mut Vec<u8>,
    now: Duration,
) {
    let (max_payload, has_headers) = {
        let info = link.info().expect("a session that is ready has it");
        (usize::try_from(info.max_payload).unwrap_or(usize::MAX).min(encode::PAYLOAD_BYTES_MAX), info.headers)
    };
    match publication {
        Publication::Digest(digest) => {
            scratch.clear();
            let subject = Subject::new(&subjects.digest).expect("checked with the configuration");
            for range in message::encode_digest(digest, max_payload, scratch) {
                link.publish(subject, &scratch[range], now);
            }
            scratch.shrink_to(SCRATCH_BYTES_KEPT);
        }
        Publication::Rejected { subject, rejection, payload } => {
            let rejected = Subject::new(&subjects.rejected).expect("checked with the configuration");
            if !has_headers {
                return link.publish(rejected, &payload[..payload.len().min(max_payload)], now);
            }
            let (detail, size) = (rejection.to_string(), payload.len().to_string());
            let header = |name, value| Header::new(name, value).expect("a name of ours, and printable ASCII");
            let lines = [
                header("Alarm-Digest-Reason", rejection.reason.name()),
                header("Alarm-Digest-Detail", &detail),
                header("Alarm-Digest-Subject", subject),
                header("Alarm-Digest-Payload-Bytes", &size),
            ];
            let headers = HeaderBlock::new(&lines);
            // Headers count as payload: of a payload as large as the server takes, the end has to go.
            let room = max_payload - headers.encoded_len();
            link.publish_with_headers(rejected, headers, &payload[..payload.len().min(room)], now);
        }
    }
}

/// Memory that is kept for encoding the next digest, in bytes.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;
