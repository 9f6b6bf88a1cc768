//! One user's state machine: which operation comes next, and what may be acknowledged.
//!
//! ```text
//!           ┌─────────────── refused or unknown ──────────────┐
//!           ▼                                                 │
//! not loaded ─ Load ─► loaded ─ change or decision ─► Store ──┴─► stored ─ outbox ─► Send ─► sent ─► Store without it
//!                        │                                                           │
//!                        └ request, nothing due, nothing to store: Verify            └ refused or unknown: LastSent
//! ```
//!
//! At most one operation is in flight; what arrives meanwhile waits, and the next store takes all of it along. An
//! operation whose answer never came counts as unknown: the record is loaded again, and tells.
//!
//! The first load may show an older record than the one that is there, even none: what is decided by it is refused by the
//! bucket or by the output stream, like that of an instance that slept. What is loaded then must be the latest one, or it
//! would be decided so again.
//!
//! What the record has no room for is refused only when it was seen that nobody has changed the record: a copy that is out of
//! date may lack the alarm, and be full of others that have been forgotten since.
//!
//! A message is acknowledged when the stored record covers it. A change that changes nothing is covered by what was
//! stored before: records only ever grow, so that holds also where this one is out of date.
//!
//! Never: subjects, bytes of the protocol, a clock, randomness. A nonce comes in as an argument.

use std::collections::BTreeSet;
use std::mem;

use crate::alarm::{AlarmId, Condition, Digest, Timestamp, UserId};
use crate::durable::record::{Decision, Nonce, Record, RecordError};
use crate::message;

/// What is to be done for a user next. One answer is awaited through [`User::on_done`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Read the record; an older one will do.
    Load,
    /// Read the record as it is now.
    Reload,
    /// Write the record if its revision is still this one, 0 for none.
    Store {
        /// The whole record.
        record: Vec<u8>,
        /// What is expected to be there.
        revision: u64,
    },
    /// Read the record, to see that nobody has changed it.
    Verify,
    /// Publish the digest if the user's last one still has this sequence, 0 for none.
    Send {
        /// What to publish.
        digest: Digest,
        /// What it is known by.
        nonce: Nonce,
        /// What is expected to be the last.
        last: u64,
    },
    /// Read the user's last digest's sequence and nonce.
    LastSent,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Of Load, Reload and Verify: the record and its revision, if there is one. No bytes stand for one that was deleted.
    Loaded(Option<(Vec<u8>, u64)>),
    /// Of Store and Send: done, and this is the new revision or sequence.
    Written(u64),
    /// Of LastSent: sequence and nonce, if there is a digest.
    LastSent(Option<(u64, Nonce)>),
    /// Of Store and Send: somebody else was first.
    Conflict,
    /// It may have happened or not.
    Unknown,
}

/// What limits a user's operations.
#[derive(Clone, Copy, Debug)]
pub struct UserLimits {
    /// Largest record that can be stored, in bytes.
    pub record_bytes_max: usize,
    /// Largest digest that can be sent, in bytes of JSON.
    pub digest_bytes_max: usize,
    /// Alarms cleared before this are forgotten with the next store.
    pub horizon: Timestamp,
}

/// What it takes to acknowledge a message.
pub trait Acknowledge {
    /// Of the message, the same when it comes again and another one's for every other message.
    fn number(&self) -> u64;
}

impl Acknowledge for u64 {
    fn number(&self) -> u64 {
        *self
    }
}

/// One user. `A` acknowledges a message.
///
/// `operation` is some ⇔ an answer is awaited. `storing <= unstored.len()`. An outbox that [`User::step`] finds is stored:
/// one that was only decided is in the store in flight, or is forgotten with the rest when that fails.
///
/// Of every stored record: its outbox is not among the digests up to `last_digest`. So it can be sent after that one from
/// any copy of the record, however old, and is refused if it has been sent already.
#[derive(Debug)]
pub struct User<A> {
    id: UserId,
    /// As stored at `revision`, with `unstored` applied and perhaps one decision made; none before it is loaded.
    record: Option<Record>,
    /// What was known was out of date, or may have been.
    must_be_latest: bool,
    revision: u64,
    /// Changes that are not known to be stored, in the order they came.
    unstored: Vec<(AlarmId, Condition)>,
    /// How many of them the store in flight holds.
    storing: usize,
    /// The record holds something that neither is stored nor is being stored.
    dirty: bool,
    /// A digest is under way that could not hold all that was due.
    is_part: bool,
    operation: Option<Pending>,
    /// Acknowledged by the next store, and by the one in flight.
    changes: Waiting<A>,
    /// Requests that nobody looks after yet, and those of the digest, the store or the check under way.
    requests: Waiting<A>,
    /// Requests whose digest was sent, and that the next store acknowledges because it takes the digest out of the record.
    told: Vec<A>,
    /// A digest's sequence that was seen while this outbox waited, 0 for none: the one to come after, if the record that
    /// says so can be stored.
    seen: Option<(Nonce, u64)>,
    /// This outbox may have been sent.
    unsure: Option<Nonce>,
    /// The outbox that was sent last, and its sequence: a record that still shows it is older than that.
    sent: Option<(Nonce, u64)>,
    acknowledged: Vec<A>,
    /// Changes that the record has no room for, as far as is known. While there are any, changes of other alarms that are not in
    /// it wait with them.
    roomless: Vec<(AlarmId, Condition, A)>,
    /// How many of them the check under way is for.
    asked_for_room: usize,
    /// Messages with changes that were refused by the record as it was, and may be refused at once when they come again.
    refusable: BTreeSet<u64>,
    /// What the record has no room for.
    refused: Vec<Refused<A>>,
    /// As of the last step: what decides whether there is room.
    record_bytes_max: usize,
    horizon: Timestamp,
}

/// A change of an alarm that is not in the record, for which there is no room; or a request, where there is no room to write
/// down that anything was told.
#[derive(Debug)]
pub struct Refused<A> {
    /// What would have acknowledged it.
    pub ack: A,
    /// What the record would need with it, once all is told, in bytes.
    pub bytes: usize,
}

#[derive(Debug)]
struct Waiting<A> {
    next: Vec<A>,
    under_way: Vec<A>,
}

impl<A> Waiting<A> {
    fn new() -> Self {
        Self { next: Vec::new(), under_way: Vec::new() }
    }

    fn start(&mut self) {
        self.under_way.append(&mut self.next);
    }

    fn restart(&mut self) {
        self.under_way.append(&mut self.next);
        mem::swap(&mut self.under_way, &mut self.next);
    }
}

/// The operation in flight, as far as its answer needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pending {
    Load,
    Store,
    Verify,
    Send(Nonce),
    LastSent(Nonce),
}

/// Changes that have been refused and have not come again yet; those that are forgotten are only looked at once more.
const REFUSABLE_MAX: usize = 1000;

/// What [`User::step`] could not do.
#[derive(Debug)]
pub enum Refusal<A> {
    /// The record is larger than can be stored. What these would acknowledge is not lost: it stays with the broker.
    TooLarge {
        /// Size of the record, in bytes.
        bytes: usize,
        /// All that waited.
        unacknowledged: Vec<A>,
    },
}

impl<A: Acknowledge> User<A> {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(id: UserId) -> Self {
        Self {
            id,
            record: None,
            must_be_latest: false,
            revision: 0,
            unstored: Vec::new(),
            storing: 0,
            dirty: false,
            is_part: false,
            operation: None,
            changes: Waiting::new(),
            requests: Waiting::new(),
            told: Vec::new(),
            seen: None,
            unsure: None,
            sent: None,
            acknowledged: Vec::new(),
            roomless: Vec::new(),
            asked_for_room: 0,
            refusable: BTreeSet::new(),
            refused: Vec::new(),
            record_bytes_max: usize::MAX,
            horizon: Timestamp::new(i64::MIN, 0),
        }
    }

    /// A change came, and `ack` acknowledges it; unless there is no room for it, and then it comes out of [`Self::refused`], now
    /// or later. What has come out of there later comes out now when it comes again.
    pub fn on_change(&mut self, alarm: AlarmId, condition: Condition, ack: A) {
        let Some(record) = &mut self.record else {
            self.unstored.push((alarm, condition));
            self.changes.next.push(ack);
            return;
        };
        let was_refused = !self.refusable.is_empty() && self.refusable.remove(&ack.number());
        match make_room(record, &alarm, self.record_bytes_max, self.horizon) {
            Err(bytes) if was_refused => self.refused.push(Refused { ack, bytes }),
            Err(_) => self.roomless.push((alarm, condition, ack)),
            Ok(()) if !self.roomless.is_empty() && !record.knows(&alarm) => {
                self.roomless.push((alarm, condition, ack));
            }
            Ok(()) => self.take_up(alarm, condition, ack),
        }
    }

    /// A change has room in the record.
    fn take_up(&mut self, alarm: AlarmId, condition: Condition, ack: A) {
        let record = self.record.as_mut().expect("only what is loaded has room");
        let has_changed = record.apply(&alarm, condition);
        if has_changed || self.dirty || self.operation == Some(Pending::Store) {
            // Also what changed nothing: it was judged by what may never be stored, and then has to be judged again.
            self.unstored.push((alarm, condition));
            self.changes.next.push(ack);
            self.dirty |= has_changed;
        } else {
            self.acknowledged.push(ack);
        }
    }

    /// The record is as it is known, and held nothing unstored when it was asked for. No alarm has joined it since, and what has
    /// come since is not refused by it.
    fn refuse_roomless(&mut self) {
        let later = self.roomless.split_off(mem::take(&mut self.asked_for_room));
        let mut has_room_come = false;
        let mut left = Vec::new();
        for (alarm, condition, ack) in mem::take(&mut self.roomless) {
            let record = self.record.as_mut().expect("it was just seen");
            match make_room(record, &alarm, self.record_bytes_max, self.horizon) {
                Ok(()) => {
                    has_room_come = true;
                    self.take_up(alarm, condition, ack);
                }
                Err(bytes) => left.push((alarm, condition, ack, bytes)),
            }
        }
        for (alarm, condition, ack, bytes) in left {
            if has_room_come {
                // What took the room may never be stored.
                self.roomless.push((alarm, condition, ack));
                continue;
            }
            if self.refusable.len() >= REFUSABLE_MAX {
                self.refusable.clear();
            }
            self.refusable.insert(ack.number());
            self.refused.push(Refused { ack, bytes });
        }
        self.roomless.extend(later);
    }

    /// A request came, and `ack` acknowledges it. Requests that wait together are answered together.
    pub fn on_request(&mut self, ack: A) {
        self.requests.next.push(ack);
    }

    /// What may be acknowledged now, to be taken out.
    pub fn acknowledged(&mut self) -> &mut Vec<A> {
        &mut self.acknowledged
    }

    /// What there is no room for, to be taken out. Nothing of it is remembered.
    pub fn refused(&mut self) -> &mut Vec<Refused<A>> {
        &mut self.refused
    }

    /// While a digest is under way: whether it could not hold all that was due, the requests that it was decided for, and
    /// those whose turn has not come.
    pub(crate) fn asking_mut(&mut self) -> (bool, &mut [A], &[A]) {
        (self.is_part, &mut self.requests.under_way, &self.requests.next)
    }

    /// What would acknowledge all that waits, in no order.
    pub(crate) fn waiting_mut(&mut self) -> impl Iterator<Item = &mut A> {
        let Self { changes, requests, told, acknowledged, roomless, .. } = self;
        let waiting =
            [&mut changes.next, &mut changes.under_way, &mut requests.next, &mut requests.under_way];
        let roomless = roomless.iter_mut().map(|(.., ack)| ack);
        waiting.into_iter().flatten().chain(told).chain(acknowledged).chain(roomless)
    }

    /// Whether nothing waits and nothing is under way: such a user can be dropped and loaded again.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.operation.is_none()
            && !self.dirty
            && self.unstored.is_empty()
            && self.changes.next.is_empty()
            && self.requests.next.is_empty()
            && self.acknowledged.is_empty()
            && self.roomless.is_empty()
            && self.refused.is_empty()
            && self.requests.under_way.is_empty()
            && self.told.is_empty()
            && self.record.as_ref().is_none_or(|record| record.outbox_nonce().is_none())
    }

    /// The operation whose answer is awaited.
    pub(crate) fn pending(&self) -> Option<Pending> {
        self.operation
    }

    /// What is known of the user; none before it is loaded.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The next operation, if none is in flight and there is one. `nonce` is used up when a digest is decided.
    ///
    /// # Errors
    /// [`Refusal`], when the record has grown too large. The user is as after [`Self::new`] then.
    pub fn step(
        &mut self,
        limits: &UserLimits,
        nonce: impl FnOnce() -> Nonce,
    ) -> Result<Option<Operation>, Refusal<A>> {
        (self.record_bytes_max, self.horizon) = (limits.record_bytes_max, limits.horizon);
        if self.operation.is_some() {
            return Ok(None);
        }
        let Some(record) = &mut self.record else {
            let has_work =
                !self.unstored.is_empty() || !self.changes.next.is_empty() || !self.requests.next.is_empty();
            let load = if self.must_be_latest { Operation::Reload } else { Operation::Load };
            return Ok(has_work.then(|| self.begin(Pending::Load, load)));
        };
        if let Some((nonce, digest)) = record.outbox() {
            if self.unsure == Some(nonce) {
                return Ok(Some(self.begin(Pending::LastSent(nonce), Operation::LastSent)));
            }
            if let Some((seen, last)) = self.seen
                && seen == nonce
                && record.last_digest != last
            {
                // Read, the record may be an old one, whose outbox was sent long before what was seen. That it can be
                // stored proves that it is not.
                record.last_digest = last;
                return self.store(limits).map(Some);
            }
            let last = record.last_digest;
            return Ok(Some(self.begin(Pending::Send(nonce), Operation::Send { digest, nonce, last })));
        }
        if !self.requests.next.is_empty() {
            let mut bytes = message::digest_frame_bytes(&self.id);
            let fits = |alarm: &AlarmId, condition: Condition| {
                bytes += message::alarm_bytes(alarm, condition);
                bytes <= limits.digest_bytes_max
            };
            match record.decide(nonce(), limits.record_bytes_max, fits) {
                // This record was stored where there was more room.
                Decision::TooLarge => {
                    let bytes = record.bytes_max();
                    let requests = mem::take(&mut self.requests.next).into_iter();
                    self.refused.extend(requests.map(|ack| Refused { ack, bytes }));
                }
                // That the store succeeds will prove that nobody else knew of more; until then they are not answered.
                Decision::Nothing if self.dirty => self.requests.start(),
                Decision::Nothing => {
                    self.requests.start();
                    return Ok(Some(self.begin(Pending::Verify, Operation::Verify)));
                }
                decision => {
                    (self.dirty, self.is_part) = (true, decision == Decision::Part);
                    self.requests.start();
                }
            }
        }
        if self.dirty {
            return self.store(limits).map(Some);
        }
        if self.roomless.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.begin(Pending::Verify, Operation::Verify)))
    }

    /// The operation in flight has ended.
    ///
    /// # Errors
    /// [`RecordError`], when what was loaded is not this user's record. The user is as after [`Self::new`] then, with all
    /// that waited still waiting.
    ///
    /// # Panics
    /// When none is in flight, or it cannot end so.
    pub fn on_done(&mut self, done: Done) -> Result<(), RecordError> {
        let pending = self.operation.take().expect("an operation is in flight");
        match (pending, done) {
            (Pending::Load, Done::Loaded(stored)) => return self.on_loaded(stored),
            (Pending::Verify, Done::Loaded(stored)) => {
                let revision = stored.as_ref().map_or(0, |(_, revision)| *revision);
                if revision == self.revision {
                    self.acknowledged.append(&mut self.requests.under_way);
                    self.refuse_roomless();
                } else {
                    self.requests.restart();
                    self.forget_loaded();
                    return self.on_loaded(stored);
                }
            }
            (Pending::Store, Done::Written(revision)) => self.on_stored(revision),
            (Pending::Send(nonce), Done::Written(last)) => self.on_sent(nonce, last),
            (Pending::Send(nonce) | Pending::LastSent(nonce), Done::Conflict | Done::Unknown) => {
                self.unsure = Some(nonce);
            }
            (Pending::LastSent(nonce), Done::LastSent(last)) => self.on_last_sent(nonce, last),
            (Pending::Load | Pending::Store | Pending::Verify, Done::Conflict | Done::Unknown) => {
                self.forget_loaded()
            }
            (pending, done) => panic!("{pending:?} cannot end with {done:?}"),
        }
        Ok(())
    }

    fn begin(&mut self, pending: Pending, operation: Operation) -> Operation {
        self.asked_for_room = if pending == Pending::Verify { self.roomless.len() } else { 0 };
        self.operation = Some(pending);
        operation
    }

    fn store(&mut self, limits: &UserLimits) -> Result<Operation, Refusal<A>> {
        let record = self.record.as_mut().expect("only what is loaded is dirty");
        record.forget(limits.horizon);
        let bytes = record.encode();
        if bytes.len() > limits.record_bytes_max {
            let bytes = bytes.len();
            return Err(Refusal::TooLarge { bytes, unacknowledged: self.give_up() });
        }
        self.dirty = false;
        self.storing = self.unstored.len();
        self.changes.start();
        let revision = self.revision;
        Ok(self.begin(Pending::Store, Operation::Store { record: bytes, revision }))
    }

    /// Back to where nothing is known; all that waited goes to the caller.
    pub(crate) fn give_up(&mut self) -> Vec<A> {
        let id = self.id.clone();
        let Self { changes, requests, mut told, mut acknowledged, roomless, refused, .. } =
            mem::replace(self, Self::new(id));
        acknowledged.append(&mut told);
        acknowledged.extend(roomless.into_iter().map(|(.., ack)| ack));
        acknowledged.extend(refused.into_iter().map(|refused| refused.ack));
        for mut waiting in [changes, requests] {
            waiting.restart();
            acknowledged.append(&mut waiting.next);
        }
        acknowledged
    }

    fn on_loaded(&mut self, stored: Option<(Vec<u8>, u64)>) -> Result<(), RecordError> {
        let (mut record, revision) = match stored {
            Some((bytes, revision)) if bytes.is_empty() => (Record::new(self.id.clone()), revision),
            Some((bytes, revision)) => (Record::decode(&self.id, &bytes)?, revision),
            None => (Record::new(self.id.clone()), 0),
        };
        let mut is_sent = false;
        if let Some((nonce, last)) = self.sent
            && record.outbox_nonce() == Some(nonce)
        {
            record.clear_outbox();
            record.last_digest = last;
            is_sent = true;
        }
        // Nothing is in flight while a record is loaded, so each change has its acknowledgement in the same place.
        assert_eq!(self.unstored.len(), self.changes.next.len(), "a change waits with its acknowledgement");
        self.dirty = is_sent;
        // All of them are kept until a store holds them all: what changes nothing now may do so only because of another
        // one that is not stored either.
        for ((alarm, condition), ack) in
            mem::take(&mut self.unstored).into_iter().zip(mem::take(&mut self.changes.next))
        {
            match make_room(&mut record, &alarm, self.record_bytes_max, self.horizon) {
                Ok(()) => {
                    self.dirty |= record.apply(&alarm, condition);
                    self.unstored.push((alarm, condition));
                    self.changes.next.push(ack);
                }
                Err(_) => self.roomless.push((alarm, condition, ack)),
            }
        }
        if !self.dirty {
            self.unstored.clear();
            self.acknowledged.append(&mut self.changes.next);
        }
        (self.record, self.revision, self.must_be_latest) = (Some(record), revision, false);
        Ok(())
    }

    /// Whatever is known may be out of date. All that waits is kept.
    fn forget_loaded(&mut self) {
        (self.record, self.storing, self.dirty, self.is_part) = (None, 0, false, false);
        self.must_be_latest = true;
        self.changes.restart();
        for (alarm, condition, ack) in mem::take(&mut self.roomless) {
            self.unstored.push((alarm, condition));
            self.changes.next.push(ack);
        }
        self.requests.next.append(&mut self.told);
        self.requests.restart();
    }

    fn on_stored(&mut self, revision: u64) {
        self.revision = revision;
        self.unstored.drain(..mem::take(&mut self.storing));
        self.acknowledged.append(&mut self.changes.under_way);
        self.acknowledged.append(&mut self.told);
        if !self.dirty {
            self.unstored.clear();
            self.acknowledged.append(&mut self.changes.next);
        }
        if self.record.as_ref().is_some_and(|record| record.outbox_nonce().is_none()) {
            self.acknowledged.append(&mut self.requests.under_way);
        }
    }

    fn on_sent(&mut self, nonce: Nonce, last: u64) {
        let record = self.record.as_mut().expect("only what is loaded is sent");
        record.clear_outbox();
        record.last_digest = last;
        (self.sent, self.seen, self.unsure) = (Some((nonce, last)), None, None);
        // A record that went on showing it would tell it again once the output stream has forgotten it with age. So the next
        // store takes it away, and acknowledges what asked for it.
        self.dirty = true;
        if mem::take(&mut self.is_part) {
            // There is more to tell than one digest can hold.
            self.requests.restart();
        } else {
            self.told.append(&mut self.requests.under_way);
        }
    }

    fn on_last_sent(&mut self, nonce: Nonce, last: Option<(u64, Nonce)>) {
        self.unsure = None;
        match last {
            Some((last, sent)) if sent == nonce => self.on_sent(nonce, last),
            other => {
                // The one before ours: it was lost on its way. Another one: either ours has long been followed by it, or it
                // came before and was not known of. None: all have left the stream with age. The stored record tells.
                let last = other.map_or(0, |(last, _)| last);
                if last != self.record.as_ref().expect("only what is loaded is sent").last_digest {
                    self.seen = Some((nonce, last));
                    self.forget_loaded();
                }
            }
        }
    }
}

/// Whether a change of `alarm` has room in the record, if need be when what can be forgotten is. If not, says how many
/// bytes that would take.
fn make_room(
    record: &mut Record,
    alarm: &AlarmId,
    record_bytes_max: usize,
    horizon: Timestamp,
) -> Result<(), usize> {
    let has_room = |record: &Record| record.knows(alarm) || record.bytes_max_with(alarm) <= record_bytes_max;
    if has_room(record) {
        return Ok(());
    }
    record.forget(horizon);
    if has_room(record) { Ok(()) } else { Err(record.bytes_max_with(alarm)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Acknowledge for u32 {
        fn number(&self) -> u64 {
            (*self).into()
        }
    }
    use crate::alarm::{Id, Status};

    fn user() -> User<u32> {
        User::new(UserId(Id::new("ann").expect("a valid id")))
    }

    fn alarm() -> AlarmId {
        AlarmId(Id::new("disk").expect("a valid id"))
    }

    fn condition(second: i64, status: Status) -> Condition {
        Condition::new(Timestamp::new(second, 0), status)
    }

    fn step(user: &mut User<u32>) -> Option<Operation> {
        let limits =
            UserLimits { record_bytes_max: 1000, digest_bytes_max: 1000, horizon: Timestamp::new(-1, 0) };
        user.step(&limits, || Nonce(7)).expect("it is small")
    }

    /// A loaded user whose only alarm is critical since second 1, stored as revision 1.
    fn stored() -> User<u32> {
        let mut user = user();
        user.on_change(alarm(), condition(1, Status::Critical), 1);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(None)).expect("nothing is a record");
        assert!(matches!(step(&mut user), Some(Operation::Store { revision: 0, .. })));
        user.on_done(Done::Written(1)).expect("nothing to read");
        assert_eq!(std::mem::take(user.acknowledged()), [1]);
        assert!(user.is_idle());
        user
    }

    #[test]
    fn changes_that_come_during_a_store_are_stored_together_by_the_next() {
        let mut user = stored();
        user.on_change(alarm(), condition(2, Status::Warning), 2);
        assert!(matches!(step(&mut user), Some(Operation::Store { revision: 1, .. })));
        for (second, ack) in [(3, 3), (4, 4), (1, 5)] {
            user.on_change(alarm(), condition(second, Status::Critical), ack);
        }
        assert_eq!((step(&mut user), user.acknowledged().len()), (None, 0));
        user.on_done(Done::Written(2)).expect("nothing to read");
        assert_eq!(std::mem::take(user.acknowledged()), [2]);
        assert!(matches!(step(&mut user), Some(Operation::Store { revision: 2, .. })));
        user.on_done(Done::Written(3)).expect("nothing to read");
        assert_eq!(std::mem::take(user.acknowledged()), [3, 4, 5]);
    }

    #[test]
    fn a_request_is_acknowledged_when_its_digest_is_sent_and_has_left_the_record() {
        let mut user = stored();
        user.on_request(2);
        assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
        user.on_done(Done::Written(2)).expect("nothing to read");
        assert!(matches!(step(&mut user), Some(Operation::Send { nonce: Nonce(7), last: 0, .. })));
        user.on_done(Done::Unknown).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::LastSent));
        user.on_done(Done::LastSent(Some((9, Nonce(7))))).expect("nothing to read");
        assert!(user.acknowledged().is_empty() && !user.is_idle());
        let Some(Operation::Store { record, revision: 2 }) = step(&mut user) else { panic!("a store") };
        let record = Record::decode(&UserId(Id::new("ann").expect("a valid id")), &record).expect("a record");
        assert_eq!((record.outbox_nonce(), record.last_digest), (None, 9));
        user.on_done(Done::Written(3)).expect("nothing to read");
        assert_eq!(std::mem::take(user.acknowledged()), [2]);
        user.on_request(3);
        assert_eq!(step(&mut user), Some(Operation::Verify));
    }

    /// The request must not go with the store that it only waited for.
    #[test]
    fn a_request_that_found_nothing_due_is_asked_again_when_the_store_fails() {
        let mut user = stored();
        user.on_change(alarm(), condition(2, Status::Cleared), 2);
        user.on_request(3);
        assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
        let mut theirs = Record::new(UserId(Id::new("ann").expect("a valid id")));
        theirs.apply(&alarm(), condition(3, Status::Critical));
        user.on_done(Done::Conflict).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::Reload));
        user.on_done(Done::Loaded(Some((theirs.encode(), 5)))).expect("a record");
        assert!(!user.acknowledged().contains(&3));
        assert!(matches!(step(&mut user), Some(Operation::Store { revision: 5, .. })));
        user.on_done(Done::Written(6)).expect("nothing to read");
        assert!(matches!(step(&mut user), Some(Operation::Send { .. })));
    }

    /// Found by the simulation, with a deposed leader that goes on answering: the digest that was seen is a later one.
    #[test]
    fn an_outbox_from_a_record_that_may_be_out_of_date_is_stored_before_it_is_sent_after_another() {
        let mut old = Record::new(UserId(Id::new("ann").expect("a valid id")));
        old.apply(&alarm(), condition(1, Status::Critical));
        old.decide(Nonce(1), usize::MAX, |_, _| true);
        let old = || Done::Loaded(Some((old.encode(), 5)));
        let mut user = user();
        user.on_request(1);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(old()).expect("a record");
        assert!(matches!(step(&mut user), Some(Operation::Send { nonce: Nonce(1), last: 0, .. })));
        user.on_done(Done::Conflict).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::LastSent));
        user.on_done(Done::LastSent(Some((9, Nonce(2))))).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::Reload));
        user.on_done(old()).expect("a record");
        assert!(matches!(step(&mut user), Some(Operation::Store { revision: 5, .. })));
        user.on_done(Done::Written(10)).expect("nothing to read");
        assert!(matches!(step(&mut user), Some(Operation::Send { nonce: Nonce(1), last: 9, .. })));
        assert!(user.acknowledged().is_empty());
    }

    /// Found by the simulation: it was no news to a decision that then came to nothing.
    #[test]
    fn a_change_judged_by_a_decision_that_failed_is_judged_again() {
        let mut user = stored();
        user.on_change(alarm(), condition(7, Status::Critical), 2);
        user.on_request(3);
        assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
        user.on_change(alarm(), condition(5, Status::Cleared), 4);
        let mut theirs = Record::new(UserId(Id::new("ann").expect("a valid id")));
        theirs.apply(&alarm(), condition(4, Status::Critical));
        theirs.decide(Nonce(1), usize::MAX, |_, _| true);
        theirs.clear_outbox();
        user.on_done(Done::Conflict).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::Reload));
        user.on_done(Done::Loaded(Some((theirs.encode(), 5)))).expect("a record");
        assert!(
            matches!(step(&mut user), Some(Operation::Store { .. })),
            "critical, cleared, critical is news"
        );
        user.on_done(Done::Written(6)).expect("nothing to read");
        assert!(matches!(step(&mut user), Some(Operation::Send { .. })));
    }

    fn numbered(number: u32) -> AlarmId {
        AlarmId(Id::new(&format!("alarm {number:03}")).expect("a valid id"))
    }

    #[test]
    fn a_change_that_has_no_room_is_refused_alone_and_the_rest_goes_on() {
        let mut user = stored();
        // 36 bytes each, and 21, 16 and 31 for the frame, the outbox and the first alarm.
        for number in 0..100 {
            user.on_change(numbered(number), condition(1, Status::Warning), number);
            if number == 0 {
                assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
            }
        }
        user.on_done(Done::Written(2)).expect("nothing to read");
        assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
        user.on_done(Done::Written(3)).expect("nothing to read");
        assert!(user.refused().is_empty(), "it may not be the latest");
        assert_eq!(step(&mut user), Some(Operation::Verify));
        user.on_change(numbered(100), condition(1, Status::Warning), 102);
        user.on_done(Done::Loaded(Some((vec![], 3)))).expect("nothing to read");
        let refused: Vec<u32> =
            std::mem::take(user.refused()).into_iter().map(|refused| refused.ack).collect();
        assert_eq!(refused.len() + user.acknowledged().len(), 100);
        assert!(refused.len() > 50 && refused.is_sorted() && refused.ends_with(&[99]), "{refused:?}");
        assert!(user.waiting_mut().any(|ack| *ack == 102), "what came since is not judged by what was");
        // What comes again is refused at once, and only once.
        user.on_change(numbered(99), condition(1, Status::Warning), 99);
        assert_eq!(user.refused().pop().map(|refused| refused.ack), Some(99));
        user.on_change(numbered(99), condition(1, Status::Warning), 103);
        assert!(user.refused().is_empty());
        // What is known may change, and all of it can be told.
        user.on_change(alarm(), condition(2, Status::Cleared), 100);
        user.on_request(101);
        let Some(Operation::Store { record, .. }) = step(&mut user) else { panic!("a decision") };
        assert!(record.len() <= 1000, "{}", record.len());
        user.on_done(Done::Written(4)).expect("nothing to read");
        let mut sent = 0;
        while !user.acknowledged().contains(&101) {
            sent += match step(&mut user) {
                Some(Operation::Send { digest, .. }) => digest.alarms.len(),
                Some(Operation::Store { .. } | Operation::Verify) => 0,
                other => panic!("{other:?}"),
            };
            let done = match user.pending() {
                Some(Pending::Verify) => Done::Loaded(Some((vec![], user.revision))),
                _ => Done::Written(4),
            };
            user.on_done(done).expect("nothing to read");
        }
        assert_eq!(sent, 100 - refused.len());
    }

    #[test]
    fn what_waited_for_the_record_is_refused_when_it_has_no_room() {
        let mut user = user();
        (0..100).for_each(|number| user.on_change(numbered(number), condition(1, Status::Warning), number));
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(None)).expect("nothing is a record");
        assert!(matches!(step(&mut user), Some(Operation::Store { .. })));
        user.on_done(Done::Written(1)).expect("nothing to read");
        assert_eq!(step(&mut user), Some(Operation::Verify));
        user.on_done(Done::Loaded(Some((vec![], 1)))).expect("nothing to read");
        assert!(user.refused().len() > 50 && user.refused().iter().all(|refused| refused.bytes > 1000));
        assert_eq!(user.acknowledged().len() + user.refused().len(), 100);
    }

    /// The copy that is known lacks an alarm that others have told of since, and is full of what they have forgotten.
    #[test]
    fn a_change_is_not_refused_by_a_record_that_is_out_of_date() {
        let mut user = user();
        user.on_change(numbered(200), condition(2, Status::Cleared), 1);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(Some((full().encode(), 5)))).expect("a record");
        assert_eq!((step(&mut user), user.refused().len()), (Some(Operation::Verify), 0));
        let mut theirs = Record::new(UserId(Id::new("ann").expect("a valid id")));
        theirs.apply(&numbered(200), condition(1, Status::Critical));
        user.on_done(Done::Loaded(Some((theirs.encode(), 9)))).expect("a record");
        let Some(Operation::Store { record, revision: 9 }) = step(&mut user) else { panic!("a store") };
        let record = Record::decode(&UserId(Id::new("ann").expect("a valid id")), &record).expect("a record");
        assert!(record.alarms().all(|known| known.latest == condition(2, Status::Cleared)));
        user.on_done(Done::Written(10)).expect("nothing to read");
        assert_eq!((std::mem::take(user.acknowledged()), user.refused().len()), (vec![1], 0));
    }

    /// Stored where there was more room, and untold.
    fn full() -> Record {
        let mut record = Record::new(UserId(Id::new("ann").expect("a valid id")));
        while record.encoded_bytes() + 24 <= 1000 {
            let number = record.alarms().count() as u32;
            record.apply(&numbered(number), condition(1, Status::Warning));
        }
        record
    }

    #[test]
    fn a_record_that_has_no_room_for_all_that_is_told_tells_a_part_or_refuses_the_request() {
        let mut user = user();
        let record = full();
        assert!(record.bytes_max() > 1000);
        let limits = |record_bytes_max| UserLimits {
            record_bytes_max,
            digest_bytes_max: 10_000,
            horizon: Timestamp::new(-1, 0),
        };
        let stored = record.encode();
        user.on_request(1);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(Some((stored.clone(), 1)))).expect("a record");
        let one_more = limits(stored.len() + 16 + 12);
        let Ok(Some(Operation::Store { record, .. })) = user.step(&one_more, || Nonce(7)) else {
            panic!("a decision")
        };
        let record = Record::decode(&UserId(Id::new("ann").expect("a valid id")), &record).expect("a record");
        assert_eq!(
            record.outbox().expect("a decision").1.alarms,
            [(numbered(0), condition(1, Status::Warning))]
        );

        let mut user = self::user();
        user.on_request(1);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(Some((stored.clone(), 1)))).expect("a record");
        // What is known may change all the same.
        user.on_change(numbered(1), condition(2, Status::Cleared), 2);
        let none_more = limits(stored.len());
        assert!(matches!(user.step(&none_more, || Nonce(7)), Ok(Some(Operation::Store { .. }))));
        assert_eq!(user.refused().pop().map(|refused| refused.ack), Some(1));
        user.on_done(Done::Written(2)).expect("nothing to read");
        assert_eq!(std::mem::take(user.acknowledged()), [2]);
    }

    #[test]
    fn a_record_that_cannot_be_stored_any_more_gives_back_all_that_waited() {
        let mut user = user();
        user.on_change(numbered(0), condition(2, Status::Critical), 1);
        user.on_request(2);
        assert_eq!(step(&mut user), Some(Operation::Load));
        user.on_done(Done::Loaded(Some((full().encode(), 1)))).expect("a record");
        let limits =
            UserLimits { record_bytes_max: 500, digest_bytes_max: 1000, horizon: Timestamp::new(-1, 0) };
        let Err(Refusal::TooLarge { bytes, unacknowledged }) = user.step(&limits, || Nonce(7)) else {
            panic!("it is too large")
        };
        assert!(bytes > 500 && user.is_idle() || !user.refused().is_empty());
        assert!(unacknowledged.contains(&1));
    }
}
