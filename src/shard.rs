//! One core's whole logic, without IO: bytes and mail come in, bytes and mail go out, time is an argument.
//!
//! ```text
//! bytes ─► session ─► message ─► mine? ─► book ─► digest ─► session ─► bytes
//!                        │        no
//!                        ▼         └────► mail to its owner ─► the same from `book` on
//!                    dead letter
//! ```
//!
//! A request waits at the owner for a round of fences of all shards (`causal`), so that its digest misses nothing that the
//! server had taken before it.
//!
//! What is published is kept until a fence proves that the server has read it, and is sent again on the next
//! connection until then. A request that wants an answer gets it after that, by the same rule.
//!
//! Never: a socket, a thread, a clock, a log line. What the log should know is left in [`Logic::notices`].

mod causal;
mod link;

use std::collections::VecDeque;
use std::time::Duration;

use nats_wire::session::{Event, Fault, Fence, Session, SessionConfig, SignIn};
use nats_wire::{ErrText, Header, HeaderBlock, Message, QueueGroup, Sid, Subject, SubjectFilter, encode};
use xxhash_rust::xxh3::xxh3_64;

use crate::alarm::{AlarmId, Change, Command, Condition, Digest, Timestamp, UserId};
use crate::book::Book;
use crate::logic::{Counters, Logic, Notice, RejectionLog, micros};
use crate::message::{self, Rejection};
use crate::reply::{Replies, ReplyTo};
use crate::service_api::{self, Listener};
use causal::Causal;
use link::{Link, Mark};

/// A shard's number, less than the number of shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardId(pub usize);

impl ShardId {
    /// The number of no shard.
    pub const NONE: Self = Self(usize::MAX);
}

/// What every shard of a service has in common.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Where messages come from and go to.
    pub subjects: Subjects,
    /// The queue group that all shards subscribe in.
    pub queue_group: String,
    /// Digests do not wait until every shard has read what the server took before the request.
    pub is_eager: bool,
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
    Apply(Change),
    /// For the owner of its user.
    SendDigest(Request),
    /// For every shard: this one waits for a fence of yours.
    Fence(ShardId),
    /// This shard's fence has passed; what it had read before came before this.
    Passed(ShardId),
    /// The last mail from this shard: it drains, and has read all that it will.
    Last(ShardId),
}

/// Somebody asks for a user's digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Whose.
    pub user: UserId,
    /// The shard that read the request, and by that all that the server had sent it before; [`ShardId::NONE`], if it has another
    /// connection on which more may be on its way.
    pub reader: ShardId,
    /// When, in microseconds.
    pub asked_at: u64,
    /// Where a copy of the digest is to go.
    pub reply: Option<ReplyTo>,
}

// Most mail is changes: they must not pay for what requests carry.
const _: () = assert!(size_of::<Mail>() == size_of::<Change>());

/// The logic of one core.
///
/// `fenced <= written <= unsettled.len()`; `fence` is some ⇔ `fenced > 0`; no link ⇒ `written == 0`.
/// What is published goes to `link`. `second` is read as well, and takes its place when a move to another server is over; while
/// [`Logic::swap_links`] has exchanged the two, `is_swapped`, `link` is that one.
/// `unsettled_bytes` is the sum of their `bytes()`, and exceeds its limit by one digest at most. `reply_bytes` is the sum of
/// the reply subjects in `causal` and `postponed`, and never takes the two over that limit.
pub struct Shard {
    id: ShardId,
    config: ShardConfig,
    replies: Replies,
    /// For one shard of a service.
    service_api: Option<Listener>,
    book: Book,
    link: Option<Link>,
    second: Option<Link>,
    is_swapped: bool,
    /// Links so far.
    links: u64,
    leave: Leave,
    /// Published, and not yet proved to have been read by the server; oldest first.
    unsettled: VecDeque<Publication>,
    unsettled_bytes: usize,
    /// How many of `unsettled`, from the front, are in the output of this link.
    written: usize,
    /// How many of those stand before `fence`.
    fenced: usize,
    fence: Option<Mark>,
    causal: Causal,
    /// Whose digests wait until more is settled.
    postponed: VecDeque<Request>,
    reply_bytes: usize,
    /// One per shard; our own stays empty.
    mail: Vec<Vec<Mail>>,
    mail_is_full: bool,
    drain: Drain,
    /// Which shards have sent their last mail; our own counts from the start.
    lasts: Vec<bool>,
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
    Reading(Mark),
    /// All our mail has been written; peers may still send.
    Read,
}

/// How far we are in leaving `link` for `second`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leave {
    Not,
    /// Unsubscribed; when this fence has passed, all that the server sent us there has been read. What is published from now on waits
    /// for the other link.
    Reading(Mark),
    Read,
}

/// Something to publish.
enum Publication {
    Digest(Told),
    /// To who asked, of what is proved. Without alarms, if nothing was due.
    Answer(Digest, ReplyTo),
    Rejected(DeadLetter),
}

/// A digest, and who asked for it. Without alarms it is told to nobody, and waits for its proof all the same.
struct Told {
    digest: Digest,
    asked_at: u64,
    reply: Option<ReplyTo>,
}

struct DeadLetter {
    is_change: bool,
    rejection: Rejection,
    payload: Box<[u8]>,
    /// Where to say so, if it was to be a request.
    reply: Option<ReplyTo>,
}

impl Publication {
    /// What it takes in memory, roughly.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Digest(told) => alarm_bytes(&told.digest) + reply_bytes(&told.reply),
                Self::Answer(digest, reply) => alarm_bytes(digest) + reply.bytes(),
                Self::Rejected(letter) => {
                    letter.payload.len() + letter.rejection.heap_bytes() + reply_bytes(&letter.reply)
                }
            }
    }
}

fn alarm_bytes(digest: &Digest) -> usize {
    digest.alarms.iter().map(|(id, _)| size_of::<(AlarmId, Condition)>() + id.0.heap_bytes()).sum()
}

fn reply_bytes(reply: &Option<ReplyTo>) -> usize {
    reply.as_ref().map_or(0, ReplyTo::bytes)
}

/// Room for publications that is kept when there are none.
const UNSETTLED_KEPT: usize = 1024;

const CHANGED_SID: u64 = 1;
const SEND_SID: u64 = 2;

/// Before the subject, in quotes, of what we may not publish. Source: nats-server, `client.pubPermissionViolation` in
/// server/client.go.
const PUBLISH_REFUSED: &str = "Permissions Violation for Publish to ";

impl Shard {
    /// One of `shards`, without a link yet.
    ///
    /// # Panics
    /// When `id` is not less than `shards`.
    #[must_use]
    pub fn new(id: ShardId, shards: usize, config: ShardConfig) -> Self {
        assert!(id.0 < shards, "shard {} of {shards}", id.0);
        let Subjects { changed, send, digest, rejected } = &config.subjects;
        Self {
            id,
            replies: Replies::new([changed, send, digest, rejected].map(String::as_str)),
            service_api: None,
            config,
            book: Book::new(),
            link: None,
            second: None,
            is_swapped: false,
            links: 0,
            leave: Leave::Not,
            unsettled: VecDeque::new(),
            unsettled_bytes: 0,
            written: 0,
            fenced: 0,
            fence: None,
            causal: Causal::new(shards),
            postponed: VecDeque::new(),
            reply_bytes: 0,
            mail: (0..shards).map(|_| Vec::new()).collect(),
            mail_is_full: false,
            drain: Drain::Not,
            lasts: (0..shards).map(|shard| shard == id.0).collect(),
            notices: Vec::new(),
            rejections: RejectionLog::default(),
            counters: Counters::default(),
            scratch: Vec::new(),
        }
    }

    fn on_ready(&mut self, now: Duration) {
        let link = self.link.as_mut().expect("it just told that it is ready");
        if let Some(service_api) = self.service_api.as_ref().filter(|_| !self.is_swapped) {
            service_api.subscribe(&mut link.session, now);
        }
        if self.drain == Drain::Not {
            let subjects = &self.config.subjects;
            let queue = QueueGroup::new(&self.config.queue_group).expect("checked with the configuration");
            for (subject, sid) in [(&subjects.changed, CHANGED_SID), (&subjects.send, SEND_SID)] {
                let filter = SubjectFilter::new(subject).expect("checked with the configuration");
                link.session.subscribe(filter, Some(queue), Sid::from(sid), now);
            }
        }
        link.subscribed = Some(link.fence(now));
    }

    fn on_subscribed(&mut self) {
        self.counters.connected += 1;
        self.notices.push(Notice::Ready);
    }

    /// Without its subscriptions a shard is deaf, and a digest that was refused must not count as delivered. So the link is
    /// given up, and what is not settled is sent again on the next one. What can be done without is the service API, and
    /// anything else that the server does not let us publish: a dead letter, or an answer, whose subject is a stranger's choice.
    fn on_refused(&mut self, text: &ErrText<'_>, now: Duration) -> Result<(), Fault> {
        let text = text.to_string();
        if let Some(is_to_be_said) = self.service_api.as_mut().and_then(|api| api.on_refused(&text)) {
            self.notices.extend(is_to_be_said.then_some(Notice::Refused(text)));
            return Ok(());
        }
        self.counters.refused += 1;
        let digest = format!("\"{}\"", self.config.subjects.digest);
        if text.strip_prefix(PUBLISH_REFUSED).is_none_or(|subject| subject.starts_with(&digest)) {
            return Err(Fault::Refused(text));
        }
        if self.rejections.may_say(now) {
            self.notices.push(Notice::Refused(text));
        }
        Ok(())
    }

    fn on_message(&mut self, message: &Message<'_>, now: Duration) -> Result<(), Fault> {
        let is_change = match message.sid_number() {
            Some(CHANGED_SID) => true,
            Some(SEND_SID) => false,
            Some(sid) if service_api::SIDS.contains(&sid) => {
                let asked = self.service_api.as_ref().and_then(|api| api.question(message));
                self.notices.extend(asked.map(|(question, reply)| Notice::Asked(question, reply)));
                return Ok(());
            }
            _ => return Err(Fault::subscription(message)),
        };
        let decode = if is_change { message::decode_change } else { message::decode_request };
        match decode(message.payload) {
            Ok(Command::Apply(change)) => {
                self.counters.changes += 1;
                match self.peer(&change.user) {
                    None => self.book.apply(change),
                    Some(owner) => self.send(owner, Mail::Apply(change)),
                }
            }
            Ok(Command::SendDigest(user)) => {
                self.counters.requests += 1;
                let reader = if self.second.is_none() { self.id } else { ShardId::NONE };
                let request = Request { user, reader, asked_at: micros(now), reply: self.reply_of(message) };
                match self.peer(&request.user) {
                    None => self.on_request(request),
                    Some(owner) => self.send(owner, Mail::SendDigest(request)),
                }
            }
            Err(rejection) => {
                let reply = if is_change { None } else { self.reply_of(message) };
                self.reject(DeadLetter { is_change, rejection, payload: message.payload.into(), reply }, now);
            }
        }
        Ok(())
    }

    fn reply_of(&mut self, message: &Message<'_>) -> Option<ReplyTo> {
        let reply = self.replies.of(message, message.reply);
        self.counters.unanswered += u64::from(reply.is_err());
        reply.unwrap_or_default()
    }

    /// Who owns `user`, unless it is this shard.
    fn peer(&self, user: &UserId) -> Option<ShardId> {
        Some(owner(user, self.mail.len())).filter(|owner| *owner != self.id)
    }

    fn send(&mut self, owner: ShardId, mail: Mail) {
        self.counters.mailed += 1;
        let mails = &mut self.mail[owner.0];
        mails.push(mail);
        self.mail_is_full |= mails.len() >= self.config.mail_max;
    }

    fn on_request(&mut self, mut request: Request) {
        let bytes = reply_bytes(&request.reply);
        if bytes > 0 && self.unsettled_bytes + self.reply_bytes + bytes > self.config.unsettled_bytes_max {
            self.counters.unanswered += 1;
            request.reply = None;
        }
        self.reply_bytes += reply_bytes(&request.reply);
        // On one connection the server keeps the order.
        if self.config.is_eager || self.mail.len() == 1 && self.second.is_none() {
            self.take_up(request);
        } else {
            self.causal.ask(request);
        }
    }

    fn take_up(&mut self, request: Request) {
        if self.is_full() {
            return self.postponed.push_back(request);
        }
        self.send_digest(request);
    }

    /// Begins what rounds and fences are due.
    fn go_on_with_rounds(&mut self, now: Duration) {
        self.answer_what_passed();
        let (id, has_read_all) = (self.id, self.drain == Drain::Read);
        let is_done = |shard: ShardId| if shard == id { has_read_all } else { self.lasts[shard.0] };
        for shard in self.causal.begin(is_done).unwrap_or_default() {
            if shard == id {
                self.causal.want(id);
            } else if !has_read_all {
                self.mail[shard.0].push(Mail::Fence(id));
            }
            // Whoever has read all will hear no more of it than the last mail of the others, which is on its way.
        }
        let mut links =
            [&mut self.link, &mut self.second].map(|link| link.as_mut().filter(|link| link.is_ready()));
        if !has_read_all && links.iter().any(Option::is_some) {
            self.causal.send(|| links.iter_mut().flatten().map(|link| link.fence(now)).collect());
        } else {
            let owners = self.causal.on_silence();
            self.tell_passed(owners);
        }
        self.answer_what_passed();
    }

    fn tell_passed(&mut self, owners: Vec<ShardId>) {
        for owner in owners {
            if owner == self.id {
                self.causal.pass(owner);
            } else if self.drain != Drain::Read {
                // Otherwise our last mail has said so.
                self.mail[owner.0].push(Mail::Passed(self.id));
            }
        }
    }

    fn answer_what_passed(&mut self) {
        for request in self.causal.passed() {
            self.take_up(request);
        }
    }

    fn send_digest(&mut self, Request { user, asked_at, reply, .. }: Request) {
        self.reply_bytes -= reply_bytes(&reply);
        if let Some(digest) = self.book.take_digest(&user) {
            self.counters.digests += 1;
            self.counters.alarms_told += digest.alarms.len() as u64;
            self.counters.alarms_per_digest.observe(digest.alarms.len() as u64);
            self.publish(Publication::Digest(Told { digest, asked_at, reply }));
        } else if reply.is_some() {
            // A digest before it may have told of what was due, and may yet be refused.
            let digest = Digest { user, alarms: Vec::new() };
            self.publish(Publication::Digest(Told { digest, asked_at, reply }));
        }
    }

    fn publish_answer(&mut self, digest: Digest, reply: ReplyTo) {
        self.counters.answers += 1;
        self.publish(Publication::Answer(digest, reply));
    }

    fn is_full(&self) -> bool {
        self.unsettled_bytes >= self.config.unsettled_bytes_max
    }

    fn reject(&mut self, letter: DeadLetter, now: Duration) {
        self.counters.rejected[letter.rejection.reason as usize] += 1;
        self.counters.rejected_requests += u64::from(!letter.is_change);
        self.counters.answers += u64::from(letter.reply.is_some());
        let subjects = &self.config.subjects;
        let subject = if letter.is_change { &subjects.changed } else { &subjects.send };
        self.notices.extend(self.rejections.note(subject, &letter.rejection, now));
        if !self.is_full() {
            return self.publish(Publication::Rejected(letter));
        }
        // The proof would come only after the rest of this flood. Output is bounded by itself.
        self.counters.unproved += 1;
        let link = self.link.as_mut().expect("a message came on it");
        write_dead_letter(&letter, &mut link.session, subjects, now);
    }

    fn publish(&mut self, publication: Publication) {
        self.unsettled_bytes += publication.bytes();
        self.unsettled.push_back(publication);
    }

    fn on_passed(&mut self, fence: Fence, now: Duration) {
        let link = self.link.as_mut().expect("a fence passed on it");
        let mark = link.mark(fence);
        if link.subscribed == Some(mark) {
            (link.subscribed, link.is_subscribed) = (None, true);
            if !self.is_swapped {
                self.on_subscribed();
            }
        }
        if self.leave == Leave::Reading(mark) {
            self.leave = Leave::Read;
        }
        if self.fence == Some(mark) {
            self.settle(now);
            while !self.is_full()
                && let Some(request) = self.postponed.pop_front()
            {
                self.send_digest(request);
            }
        }
        let owners = self.causal.on_passed(mark);
        self.tell_passed(owners);
        if self.drain == Drain::Reading(mark) {
            self.on_all_read();
        }
    }

    /// All that stands before the fence is proved.
    fn settle(&mut self, now: Duration) {
        let settled = std::mem::take(&mut self.fenced);
        self.fence = None;
        self.written -= settled;
        self.counters.settled += settled as u64;
        for _ in 0..settled {
            let publication = self.unsettled.pop_front().expect("what is fenced is not settled");
            self.unsettled_bytes -= publication.bytes();
            if let Publication::Digest(Told { digest, asked_at, reply }) = publication {
                if !digest.alarms.is_empty() {
                    self.counters.settle_latency.observe(micros(now).saturating_sub(asked_at));
                }
                if let Some(reply) = reply {
                    self.publish_answer(digest, reply);
                }
            }
        }
        if self.unsettled.is_empty() {
            self.unsettled.shrink_to(UNSETTLED_KEPT);
        }
    }

    fn on_all_read(&mut self) {
        self.drain = Drain::Read;
        let id = self.id.0;
        self.mail
            .iter_mut()
            .enumerate()
            .filter(|(peer, _)| *peer != id)
            .for_each(|(_, mail)| mail.push(Mail::Last(ShardId(id))));
    }
}

impl Logic for Shard {
    fn on_link(&mut self, sign_in: SignIn, now: Duration) {
        self.on_link_lost(now);
        self.links += 1;
        let session = Session::new(self.config.session.clone(), now).signing_in(sign_in);
        self.link = Some(Link::new(self.links, session));
    }

    fn on_link_lost(&mut self, _now: Duration) {
        let Some(link) = self.link.take() else { return };
        // What was on its way is read or lost.
        let owners = self.causal.on_link_lost(link.number);
        self.tell_passed(owners);
        if self.is_swapped {
            return;
        }
        self.counters.resent += self.written as u64;
        (self.written, self.fenced, self.fence) = (0, 0, None);
        self.leave = Leave::Not;
        if let Drain::Reading(_) = self.drain {
            self.on_all_read();
        }
    }

    fn swap_links(&mut self) {
        std::mem::swap(&mut self.link, &mut self.second);
        self.is_swapped = !self.is_swapped;
    }

    fn is_subscribed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_subscribed)
    }

    fn leave(&mut self, now: Duration) {
        if let Some(link) = self.link.as_mut().filter(|_| self.leave == Leave::Not) {
            self.leave = Leave::Reading(unsubscribe(link, now));
        }
    }

    fn has_left(&self) -> bool {
        self.leave == Leave::Read && self.written == 0 && self.output().is_empty()
    }

    fn change_links(&mut self, now: Duration) {
        self.counters.moves += u64::from(self.has_left());
        self.on_link_lost(now);
        self.link = self.second.take();
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        if let Some(service_api) = &self.service_api {
            service_api.subscribe(&mut link.session, now);
        }
        if link.is_subscribed {
            self.on_subscribed();
        }
    }

    fn heard(&mut self, now: Duration) {
        if let Some(link) = &mut self.link {
            link.session.heard(now);
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<usize, Fault> {
        let mut used_all = 0;
        while self.takes_bytes() {
            let Some(link) = &mut self.link else { break };
            let (used, event) = link.session.receive(&bytes[used_all..])?;
            used_all += used;
            match event {
                None => break,
                Some(Event::Message(message)) => self.on_message(&message, now)?,
                Some(Event::Passed(fence)) => self.on_passed(fence, now),
                Some(Event::Ready) => self.on_ready(now),
                Some(Event::Info) if self.is_swapped => {}
                Some(Event::Info) => self.notices.push(Notice::Info),
                Some(Event::Refused(text)) => self.on_refused(&text, now)?,
            }
        }
        Ok(used_all)
    }

    fn on_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Apply(change) => self.book.apply(change),
            Mail::SendDigest(request) => self.on_request(request),
            Mail::Fence(owner) => self.causal.want(owner),
            Mail::Passed(shard) => self.causal.pass(shard),
            Mail::Last(shard) => {
                self.lasts[shard.0] = true;
                self.causal.pass(shard);
            }
        }
    }

    fn on_time(&mut self, now: Duration, wall: Timestamp) -> Result<(), Fault> {
        let retention = i64::try_from(self.config.retention.as_secs()).unwrap_or(i64::MAX);
        self.book.forget(Timestamp::new(wall.seconds().saturating_sub(retention), wall.nanos()));
        let is_reading = self.takes_bytes();
        let Some(Link { session, .. }) = &mut self.link else { return Ok(()) };
        if !is_reading {
            // It is we who do not listen. Whether the server reads shows in the output.
            session.heard(now);
        }
        session.on_time(now)
    }

    fn drain(&mut self, now: Duration) {
        if self.drain != Drain::Not {
            return;
        }
        match &mut self.link {
            Some(link) if link.is_ready() => self.drain = Drain::Reading(unsubscribe(link, now)),
            // Not subscribed, and will not be.
            _ => self.on_all_read(),
        }
    }

    fn finish_turn(&mut self, now: Duration) {
        self.go_on_with_rounds(now);
        let Some(link) = self.link.as_mut().filter(|link| link.is_ready()) else { return };
        while self.leave == Leave::Not
            && self.written < self.unsettled.len()
            && link.session.output().len() < self.config.output_bytes_max
        {
            let publication = &self.unsettled[self.written];
            write(publication, &mut link.session, &self.config.subjects, &mut self.scratch, now);
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
        let link_is_ready = self.link.as_ref().is_some_and(Link::is_ready);
        !(self.mail_is_full && link_is_ready) && self.output().len() < self.config.output_bytes_max
    }

    /// If this depended on room for our own mail, two shards could wait for each other.
    fn takes_mail(&self) -> bool {
        match &self.link {
            Some(link) if link.is_ready() => link.session.output().len() < self.config.output_bytes_max,
            _ => self.unsettled_bytes < self.config.unsettled_bytes_max,
        }
    }

    fn output(&self) -> &[u8] {
        self.link.as_ref().map_or(&[], |link| link.session.output())
    }

    fn wrote(&mut self, bytes: usize, now: Duration) {
        self.link.as_mut().expect("only a link has output").session.wrote(bytes, now);
    }

    fn mail_for(&mut self, peer: ShardId) -> Option<&mut Vec<Mail>> {
        Some(&mut self.mail[peer.0])
    }

    fn mail_moved(&mut self) {
        self.mail_is_full = self.mail.iter().any(|mail| mail.len() >= self.config.mail_max);
    }

    fn is_drained(&self) -> bool {
        self.drain == Drain::Read
            && !self.lasts.contains(&false)
            && self.causal.waiting() == 0
            && self.unsettled.is_empty()
            && self.postponed.is_empty()
            && self.mail.iter().all(Vec::is_empty)
    }

    fn link(&self) -> Option<&Session> {
        self.link.as_ref().map(|link| &link.session)
    }

    fn notices(&mut self) -> &mut Vec<Notice> {
        &mut self.notices
    }

    fn answer_as(&mut self, instance: &str) {
        self.service_api = Some(Listener::new(instance));
    }

    fn answer(&mut self, reply: &ReplyTo, payload: &[u8], now: Duration) {
        if self.output().len() < self.config.output_bytes_max {
            reply.publish(payload, self.link.as_mut().map(|link| &mut link.session), now);
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn holds(&self) -> (usize, usize) {
        (self.book.users(), self.book.alarms())
    }

    fn unsettled(&self) -> usize {
        self.unsettled.len() + self.postponed.len() + self.causal.waiting()
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

/// Nothing that the server sends behind this fence is ours.
fn unsubscribe(link: &mut Link, now: Duration) -> Mark {
    for sid in [CHANGED_SID, SEND_SID] {
        link.session.unsubscribe(Sid::from(sid), now);
    }
    link.fence(now)
}

fn write(
    publication: &Publication,
    link: &mut Session,
    subjects: &Subjects,
    scratch: &mut Vec<u8>,
    now: Duration,
) {
    match publication {
        Publication::Digest(told) if told.digest.alarms.is_empty() => {}
        Publication::Digest(told) => {
            scratch.clear();
            let subject = Subject::new(&subjects.digest).expect("checked with the configuration");
            for range in message::encode_digest(&told.digest, max_payload(link), scratch) {
                link.publish(subject, &scratch[range], now);
            }
            scratch.shrink_to(SCRATCH_BYTES_KEPT);
        }
        Publication::Answer(digest, reply) => reply.answer(digest, false, max_payload(link), link, now),
        Publication::Rejected(letter) => write_dead_letter(letter, link, subjects, now),
    }
}

fn write_dead_letter(letter: &DeadLetter, link: &mut Session, subjects: &Subjects, now: Duration) {
    if let Some(reply) = &letter.reply {
        reply.refuse(&letter.rejection, link, now);
    }
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
mod tests;
