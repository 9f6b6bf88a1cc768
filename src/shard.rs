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
//! connection until then.
//!
//! Never: a socket, a thread, a clock, a log line. What the log should know is left in [`Logic::notices`].

use std::collections::VecDeque;
use std::time::Duration;

use nats_wire::session::{Event, Fault, Fence, Session, SessionConfig};
use nats_wire::{ErrText, Header, HeaderBlock, Message, QueueGroup, Sid, Subject, SubjectFilter, encode};
use xxhash_rust::xxh3::xxh3_64;

use crate::alarm::{AlarmId, Command, Condition, Digest, Timestamp, UserId};
use crate::book::Book;
use crate::logic::{Counters, Logic, Notice, RejectionLog};
use crate::message::{self, Rejection};

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
    /// Beyond this many bytes of publications that are not proved, requests wait, dead letters are sent without proof,
    /// and mail waits while there is no link.
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

/// The logic of one core.
///
/// `fenced <= written <= unsettled.len()`; `fence` is some ⇔ `fenced > 0`; no link ⇒ `written == 0`.
/// `unsettled_bytes` is the sum of their `bytes()`, and exceeds its limit by one digest at most.
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
    /// Whose digests wait until more is settled.
    postponed: VecDeque<UserId>,
    /// When this has passed, the server has read our subscriptions.
    subscribed: Option<Fence>,
    /// One per shard; our own stays empty.
    mail: Vec<Vec<Mail>>,
    mail_is_full: bool,
    drain: Drain,
    lasts_expected: usize,
    notices: Vec<Notice>,
    rejections: RejectionLog,
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
    Rejected(DeadLetter),
}

struct DeadLetter {
    is_change: bool,
    rejection: Rejection,
    payload: Box<[u8]>,
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
                Self::Rejected(letter) => letter.payload.len() + letter.rejection.heap_bytes(),
            }
    }
}

/// Room for publications that is kept when there are none.
const UNSETTLED_KEPT: usize = 1024;

const CHANGED_SID: u64 = 1;
const SEND_SID: u64 = 2;

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
            postponed: VecDeque::new(),
            subscribed: None,
            mail: (0..shards).map(|_| Vec::new()).collect(),
            mail_is_full: false,
            drain: Drain::Not,
            lasts_expected: shards - 1,
            notices: Vec::new(),
            rejections: RejectionLog::default(),
            counters: Counters::default(),
            scratch: Vec::new(),
        }
    }

    fn on_ready(&mut self, now: Duration) {
        let link = self.link.as_mut().expect("it just told that it is ready");
        if self.drain == Drain::Not {
            let subjects = &self.config.subjects;
            let queue = QueueGroup::new(&self.config.queue_group).expect("checked with the configuration");
            for (subject, sid) in [(&subjects.changed, CHANGED_SID), (&subjects.send, SEND_SID)] {
                let filter = SubjectFilter::new(subject).expect("checked with the configuration");
                link.subscribe(filter, Some(queue), Sid::from(sid), now);
            }
        }
        self.subscribed = Some(link.fence(now));
    }

    /// All that the server can refuse to us is something we cannot do without, but for dead letters: a digest that was
    /// refused must not count as delivered, and without a subscription we are deaf. So the link is given up, and what is
    /// not settled is sent again on the next one.
    fn on_refused(&mut self, text: &ErrText<'_>, now: Duration) -> Result<(), Fault> {
        self.counters.refused += 1;
        let text = text.to_string();
        if !text.contains(&format!("\"{}\"", self.config.subjects.rejected)) {
            return Err(Fault::Refused(text));
        }
        if self.rejections.may_say(now) {
            self.notices.push(Notice::Refused(text));
        }
        Ok(())
    }

    fn on_message(&mut self, message: &Message<'_>, now: Duration) {
        let is_change = message.sid_number() == Some(CHANGED_SID);
        let decode = if is_change { message::decode_change } else { message::decode_request };
        match decode(message.payload) {
            Ok(command) => {
                match command {
                    Command::Apply(_) => self.counters.changes += 1,
                    Command::SendDigest(_) => self.counters.requests += 1,
                }
                self.route(command);
            }
            Err(rejection) => self.reject(is_change, rejection, message.payload, now),
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
            Command::SendDigest(user) if self.is_full() => self.postponed.push_back(user),
            Command::SendDigest(user) => self.send_digest(&user),
        }
    }

    fn send_digest(&mut self, user: &UserId) {
        if let Some(digest) = self.book.take_digest(user) {
            self.counters.digests += 1;
            self.counters.alarms_told += digest.alarms.len() as u64;
            self.publish(Publication::Digest(digest));
        }
    }

    fn is_full(&self) -> bool {
        self.unsettled_bytes >= self.config.unsettled_bytes_max
    }

    fn reject(&mut self, is_change: bool, rejection: Rejection, payload: &[u8], now: Duration) {
        self.counters.rejected[rejection.reason as usize] += 1;
        let subjects = &self.config.subjects;
        let subject = if is_change { &subjects.changed } else { &subjects.send };
        self.notices.extend(self.rejections.note(subject, &rejection, now));
        let letter = DeadLetter { is_change, rejection, payload: payload.into() };
        if !self.is_full() {
            return self.publish(Publication::Rejected(letter));
        }
        // The proof would come only after the rest of this flood. Output is bounded by itself.
        self.counters.unproved += 1;
        let link = self.link.as_mut().expect("a message came on it");
        write_dead_letter(&letter, link, subjects, now);
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
            if self.unsettled.is_empty() {
                self.unsettled.shrink_to(UNSETTLED_KEPT);
            }
            while !self.is_full()
                && let Some(user) = self.postponed.pop_front()
            {
                self.send_digest(&user);
            }
        }
        if self.subscribed == Some(fence) {
            self.subscribed = None;
            self.counters.connected += 1;
            self.notices.push(Notice::Ready);
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

impl Logic for Shard {
    fn on_link(&mut self, now: Duration) {
        self.on_link_lost(now);
        self.link = Some(Session::new(self.config.session.clone(), now));
    }

    fn on_link_lost(&mut self, _now: Duration) {
        self.link = None;
        self.counters.resent += self.written as u64;
        (self.written, self.fenced, self.fence, self.subscribed) = (0, 0, None, None);
        if let Drain::Reading(_) = self.drain {
            self.on_all_read();
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
                Some(Event::Message(message)) => self.on_message(&message, now),
                Some(Event::Passed(fence)) => self.on_passed(fence),
                Some(Event::Ready) => self.on_ready(now),
                Some(Event::Info) => {}
                Some(Event::Refused(text)) => self.on_refused(&text, now)?,
            }
        }
        Ok(used_all)
    }

    fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Command(command) => self.execute(command),
            Mail::Last => self.lasts_expected -= 1,
        }
    }

    fn on_time(&mut self, now: Duration, wall: Timestamp) -> Result<(), Fault> {
        let retention = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        self.book.forget(Timestamp::new(wall.seconds().saturating_sub(retention), wall.nanos()));
        let is_reading = self.takes_bytes();
        let Some(link) = &mut self.link else { return Ok(()) };
        if !is_reading {
            // It is we who do not listen. Whether the server reads shows in the output.
            link.heard(now);
        }
        link.on_time(now)
    }

    fn drain(&mut self, now: Duration) {
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

    fn finish_turn(&mut self, now: Duration) {
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

    /// A handshake brings no messages, so full mail does not hold it back: the peers may be waiting for this very link.
    fn takes_bytes(&self) -> bool {
        let link_is_ready = self.link.as_ref().is_some_and(Session::is_ready);
        !(self.mail_is_full && link_is_ready) && self.output().len() < self.config.output_bytes_max
    }

    /// If this depended on room for our own mail, two shards could wait for each other.
    fn takes_mail(&self) -> bool {
        match &self.link {
            Some(link) if link.is_ready() => link.output().len() < self.config.output_bytes_max,
            _ => self.unsettled_bytes < self.config.unsettled_bytes_max,
        }
    }

    fn output(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], Session::output)
    }

    fn wrote(&mut self, bytes: usize, now: Duration) {
        self.link.as_mut().expect("only a link has output").wrote(bytes, now);
    }

    fn mail_for(&mut self, peer: ShardId) -> Option<&mut Vec<Mail>> {
        Some(&mut self.mail[peer.0])
    }

    fn mail_moved(&mut self) {
        self.mail_is_full = self.mail.iter().any(|mail| mail.len() >= self.config.mail_max);
    }

    fn is_drained(&self) -> bool {
        self.drain == Drain::Read
            && self.lasts_expected == 0
            && self.unsettled.is_empty()
            && self.postponed.is_empty()
            && self.mail.iter().all(Vec::is_empty)
    }

    fn link(&self) -> Option<&Session> {
        self.link.as_ref()
    }

    fn notices(&mut self) -> &mut Vec<Notice> {
        &mut self.notices
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn holds(&self) -> (usize, usize) {
        (self.book.users(), self.book.alarms())
    }

    fn unsettled(&self) -> usize {
        self.unsettled.len() + self.postponed.len()
    }
}

/// The shard that owns `user`: XXH3-64 of the id's text, seed 0, scaled to the number of shards by multiplication. The
/// same on every machine and in every version. Source: XXH3 specification, doc/xxhash_spec.md of xxHash.
#[must_use]
pub fn owner(user: &UserId, shards: usize) -> ShardId {
    if shards == 1 {
        return ShardId(0);
    }
    let hash = user.0.with_bytes(xxh3_64);
    ShardId(((u128::from(hash) * shards as u128) >> 64) as usize)
}

fn write(
    publication: &Publication,
    link: &mut Session,
    subjects: &Subjects,
    scratch: &mut Vec<u8>,
    now: Duration,
) {
    match publication {
        Publication::Digest(digest) => {
            scratch.clear();
            let subject = Subject::new(&subjects.digest).expect("checked with the configuration");
            for range in message::encode_digest(digest, max_payload(link), scratch) {
                link.publish(subject, &scratch[range], now);
            }
            scratch.shrink_to(SCRATCH_BYTES_KEPT);
        }
        Publication::Rejected(letter) => write_dead_letter(letter, link, subjects, now),
    }
}

fn write_dead_letter(letter: &DeadLetter, link: &mut Session, subjects: &Subjects, now: Duration) {
    let rejected = Subject::new(&subjects.rejected).expect("checked with the configuration");
    let (payload, max_payload) = (&letter.payload, max_payload(link));
    if !link.info().is_some_and(|info| info.headers) {
        return link.publish(rejected, &payload[..payload.len().min(max_payload)], now);
    }
    let subject = if letter.is_change { &subjects.changed } else { &subjects.send };
    let (detail, size) = (letter.rejection.to_string(), payload.len().to_string());
    let header = |name, value| Header::new(name, value).expect("a name of ours, and printable ASCII");
    let lines = [
        header("Alarm-Digest-Reason", letter.rejection.reason.name()),
        header("Alarm-Digest-Detail", &detail),
        header("Alarm-Digest-Subject", subject),
        header("Alarm-Digest-Payload-Bytes", &size),
    ];
    let headers = HeaderBlock::new(&lines);
    // Headers count as payload: of a payload as large as the server takes, the end has to go.
    let room = max_payload - headers.encoded_len();
    link.publish_with_headers(rejected, headers, &payload[..payload.len().min(room)], now);
}

fn max_payload(link: &Session) -> usize {
    let max = link.info().expect("a session that is ready has it").max_payload;
    usize::try_from(max).unwrap_or(usize::MAX).min(encode::PAYLOAD_BYTES_MAX)
}

/// Memory that is kept for encoding the next digest, in bytes.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarm::Id;
    use crate::message::Reason;
    use nats_wire::{ConnectOptions, Limits};

    const NOW: Duration = Duration::ZERO;
    const INFO: &str = "INFO {\"max_payload\":4000,\"headers\":true}\r\n";

    fn config() -> ShardConfig {
        ShardConfig {
            subjects: Subjects {
                changed: "changed".into(),
                send: "send".into(),
                digest: "digest".into(),
                rejected: "rejected".into(),
            },
            queue_group: "group".into(),
            retention: Duration::from_secs(60),
            output_bytes_max: 1 << 20,
            unsettled_bytes_max: 1 << 20,
            mail_max: 2,
            session: SessionConfig {
                connect: ConnectOptions::default(),
                limits: Limits::client(),
                handshake_max: Duration::from_secs(5),
                ping_interval: Duration::from_secs(10),
                answer_max: Duration::from_secs(10),
                max_payload_at_least: message::DIGEST_BYTES_MAX_AT_LEAST as u64,
            },
        }
    }

    /// Shard 0 of `shards`, with a link that is ready and whose handshake has been written.
    fn ready(shards: usize) -> Shard {
        let mut shard = Shard::new(ShardId(0), shards, config());
        shard.on_link(NOW);
        assert_eq!(told(&mut shard, &[INFO, "PONG\r\n"]).lines().nth(2), Some("SUB changed group 1"));
        assert_eq!(told(&mut shard, &["PONG\r\n"]), "");
        assert!(matches!(shard.notices().drain(..).next(), Some(Notice::Ready)));
        shard
    }

    /// What the shard writes when these bytes have come.
    fn told(shard: &mut Shard, bytes: &[&str]) -> String {
        for bytes in bytes {
            assert_eq!(shard.receive(bytes.as_bytes(), NOW).expect("no fault"), bytes.len());
        }
        shard.finish_turn(NOW);
        let output = String::from_utf8(shard.output().to_vec()).expect("all of it is text here");
        shard.wrote(output.len(), NOW);
        output
    }

    fn msg(sid: u64, payload: &str) -> String {
        format!("MSG {} {sid} {}\r\n{payload}\r\n", ["", "changed", "send"][sid as usize], payload.len())
    }

    fn change(user: &str, alarm: &str) -> String {
        msg(
            1,
            &format!(
                r#"{{"UserID":"{user}","AlarmID":"{alarm}","Status":"WARNING","ChangedAt":"2026-01-01T00:00:00Z"}}"#
            ),
        )
    }

    fn request(user: &str) -> String {
        msg(2, &format!(r#"{{"UserID":"{user}"}}"#))
    }

    const DIGEST: &str = "PUB digest 112\r\n{\"UserID\":\"ann\",\"ActiveAlarms\":[{\"AlarmID\":\"disk\",\"Status\":\"WARNING\",\
                          \"LatestChangedAt\":\"2026-01-01T00:00:00Z\"}]}\r\nPING\r\n";

    #[test]
    fn a_link_shakes_hands_then_subscribes() {
        let mut shard = Shard::new(ShardId(0), 1, config());
        shard.on_link(NOW);
        let hello = told(&mut shard, &[INFO]);
        assert!(
            hello.starts_with("CONNECT {\"verbose\":false,") && hello.ends_with("}\r\nPING\r\n"),
            "{hello}"
        );
        assert_eq!(told(&mut shard, &["PONG\r\n"]), "SUB changed group 1\r\nSUB send group 2\r\nPING\r\n");
    }

    #[test]
    fn a_digest_is_sent_again_until_a_fence_has_passed() {
        let mut shard = ready(1);
        assert_eq!(told(&mut shard, &[&change("ann", "disk"), &request("ann")]), DIGEST);
        assert_eq!((told(&mut shard, &[&request("ann")]).as_str(), shard.unsettled()), ("", 1));
        shard.on_link(NOW);
        let again = told(&mut shard, &[INFO, "PONG\r\n"]);
        assert!(again.ends_with(DIGEST), "{again}");
        told(&mut shard, &["PONG\r\n"]);
        assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("", 0));
        shard.on_link(NOW);
        assert!(!told(&mut shard, &[INFO, "PONG\r\n"]).contains("PUB"));
    }

    #[test]
    fn what_is_published_behind_a_fence_waits_for_the_next_one() {
        let mut shard = ready(1);
        told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
        let second = told(&mut shard, &[&change("bob", "disk"), &request("bob")]);
        assert!(second.starts_with("PUB digest") && !second.contains("PING"), "{second}");
        assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("PING\r\n", 1));
        assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("", 0));
    }

    #[test]
    fn a_fence_proves_only_what_stands_before_it() {
        let mut shard = ready(1);
        let quiet = Duration::from_secs(10);
        shard.on_time(quiet, Timestamp::new(0, 0)).expect("no fault");
        let keepalive_then_digest = told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
        assert_eq!(keepalive_then_digest, format!("PING\r\n{DIGEST}"));
        told(&mut shard, &["PONG\r\n"]);
        assert_eq!(shard.unsettled(), 1);
        told(&mut shard, &["PONG\r\n"]);
        assert_eq!(shard.unsettled(), 0);
    }

    #[test]
    fn a_users_messages_go_to_the_owner_in_order() {
        let mut shard = ready(2);
        let theirs =
            (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(1));
        let theirs = theirs.expect("half of all names");
        assert_eq!(told(&mut shard, &[&change(&theirs, "disk"), &request(&theirs)]), "");
        let mail: Vec<Mail> = mail_for(&mut shard).drain(..).collect();
        assert!(matches!(
            mail[..],
            [Mail::Command(Command::Apply(_)), Mail::Command(Command::SendDigest(_))]
        ));
    }

    #[test]
    fn full_mail_holds_back_messages_but_not_a_handshake() {
        let mut shard = ready(2);
        let theirs =
            (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(1));
        let request = request(&theirs.expect("half of all names"));
        told(&mut shard, &[&request, &request]);
        assert!(!shard.takes_bytes() && shard.takes_mail());
        assert_eq!(shard.receive(request.as_bytes(), NOW).expect("no fault"), 0);
        shard.on_link(NOW);
        told(&mut shard, &[INFO, "PONG\r\n"]);
        assert!(!shard.takes_bytes());
        mail_for(&mut shard).clear();
        shard.mail_moved();
        assert!(shard.takes_bytes());
    }

    #[test]
    fn without_a_link_mail_is_taken_up_to_a_limit() {
        let mut shard = Shard::new(ShardId(0), 1, ShardConfig { unsettled_bytes_max: 1, ..config() });
        assert!(shard.takes_mail());
        for message in [change("ann", "disk"), request("ann")] {
            let payload = message.lines().nth(1).expect("a payload").as_bytes();
            let command = message::decode_change(payload).or_else(|_| message::decode_request(payload));
            shard.on_mail(Mail::Command(command.expect("a command")));
        }
        assert!(!shard.takes_mail());
        shard.on_link(NOW);
        told(&mut shard, &[INFO, "PONG\r\n"]);
        assert!(shard.takes_mail());
    }

    #[test]
    fn a_bad_message_becomes_a_dead_letter_and_one_line_a_second() {
        let mut shard = ready(1);
        let bad = msg(1, "{\n");
        let letter = "HPUB rejected 198 200\r\nNATS/1.0\r\nAlarm-Digest-Reason: not-json\r\nAlarm-Digest-Detail: expected a \
                      JSON object: EOF while parsing an object at line 2 column 0\r\nAlarm-Digest-Subject: changed\r\n\
                      Alarm-Digest-Payload-Bytes: 2\r\n\r\n{\n\r\n";
        assert_eq!(told(&mut shard, &[&bad, &bad, &bad]), format!("{letter}{letter}{letter}PING\r\n"));
        shard.receive(bad.as_bytes(), Duration::from_secs(1)).expect("no fault");
        let said = |notice: &Notice| match notice {
            Notice::Rejected { unsaid, .. } => Some(*unsaid),
            _ => None,
        };
        assert_eq!(shard.notices().iter().filter_map(said).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(shard.counters().rejected[Reason::NotJson as usize], 4);
    }

    #[test]
    fn a_dead_letter_of_the_largest_payload_loses_its_end() {
        let mut shard = ready(1);
        let letter = told(&mut shard, &[&msg(2, &"x".repeat(4000))]);
        let sizes: Vec<usize> = letter
            .lines()
            .next()
            .expect("a line")
            .split(' ')
            .skip(2)
            .map(|size| size.parse().expect("a size"))
            .collect();
        assert_eq!(sizes[1], 4000);
        assert!(letter.contains("Payload-Bytes: 4000\r\n"));
    }

    #[test]
    fn a_server_without_headers_gets_the_bare_payload() {
        let mut shard = Shard::new(ShardId(0), 1, config());
        shard.on_link(NOW);
        told(&mut shard, &["INFO {\"max_payload\":4000}\r\n", "PONG\r\n"]);
        assert_eq!(told(&mut shard, &[&msg(1, "{")]), "PUB rejected 1\r\n{\r\nPING\r\n");
    }

    #[test]
    fn a_server_that_takes_less_than_one_alarm_is_a_fault() {
        let mut shard = Shard::new(ShardId(0), 1, config());
        shard.on_link(NOW);
        let fault = shard.receive(b"INFO {\"max_payload\":1024}\r\n", NOW).expect_err("it is too small");
        assert_eq!(fault.to_string(), "expected a server with max_payload of at least 3272 bytes, got 1024");
    }

    #[test]
    fn a_digest_that_the_server_refuses_is_not_delivered() {
        let mut shard = ready(1);
        told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
        let refused = "-ERR 'Permissions Violation for Publish to \"digest\"'\r\nPONG\r\n";
        let fault = shard.receive(refused.as_bytes(), NOW).expect_err("it cannot be done without");
        assert_eq!(fault.to_string(), "server refused: Permissions Violation for Publish to \"digest\"");
        assert_eq!(shard.unsettled(), 1);
    }

    #[test]
    fn a_dead_letter_that_the_server_refuses_can_be_done_without() {
        let mut shard = ready(1);
        told(&mut shard, &["-ERR 'Permissions Violation for Publish to \"rejected\"'\r\n"]);
        assert!(matches!(shard.notices().pop(), Some(Notice::Refused(_))));
    }

    #[test]
    fn memory_for_what_is_not_proved_is_bounded_also_with_a_link() {
        let mut shard = Shard::new(ShardId(0), 1, ShardConfig { unsettled_bytes_max: 1, ..config() });
        shard.on_link(NOW);
        told(&mut shard, &[INFO, "PONG\r\n", "PONG\r\n"]);
        told(&mut shard, &[&change("ann", "disk"), &change("bob", "disk"), &request("ann"), &request("bob")]);
        let bad = msg(1, "{");
        assert_eq!(told(&mut shard, &[&bad, &bad]).matches("HPUB rejected").count(), 2);
        assert_eq!((shard.unsettled.len(), shard.postponed.len(), shard.counters().unproved), (1, 1, 2));
        assert!(told(&mut shard, &["PONG\r\n"]).contains("\"bob\""));
        told(&mut shard, &["PONG\r\n"]);
        assert_eq!(shard.unsettled(), 0);
    }

    #[test]
    fn draining_unsubscribes_takes_what_is_on_its_way_and_settles_it() {
        let mut shard = ready(2);
        shard.drain(NOW);
        assert_eq!(told(&mut shard, &[]), "UNSUB 1\r\nUNSUB 2\r\nPING\r\n");
        let ours = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(0));
        let ours = ours.expect("half of all names");
        assert!(
            told(&mut shard, &[&change(&ours, "disk"), &request(&ours), "PONG\r\n"]).ends_with("PING\r\n")
        );
        assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Last]);
        told(&mut shard, &["PONG\r\n"]);
        assert!(!shard.is_drained(), "a peer may still send");
        shard.on_mail(Mail::Last);
        assert!(shard.is_drained());
    }

    fn mail_for(shard: &mut Shard) -> &mut Vec<Mail> {
        shard.mail_for(ShardId(1)).expect("shards write mail")
    }

    fn owner_of(text: &str, shards: usize) -> ShardId {
        owner(&UserId(Id::new(text).expect("a valid id")), shards)
    }

    /// Golden: whoever changes these moves users between shards.
    #[test]
    fn the_owner_is_the_same_on_every_machine_and_in_every_version() {
        for (text, hash) in [
            ("a", 0xe6c6_32b6_1e96_4e1f_u64),
            ("abc", 0x78af_5f94_892f_3950),
            ("0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b", 0xdd61_6505_f084_5928),
            ("0B6A3C5E-9D4F-4B7A-8E21-5F0C1D2E3A4B", 0x51e3_0e6d_b195_0b46),
        ] {
            for shards in [1, 2, 3, 4, 64] {
                let expected = (u128::from(hash) * shards as u128) >> 64;
                assert_eq!(owner_of(text, shards), ShardId(expected as usize), "{text} {shards}");
            }
        }
    }
}
