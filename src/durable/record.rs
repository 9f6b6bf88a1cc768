//! What is stored of one user: alarms, what was told of them, and the digest that is on its way out.
//!
//! ```text
//! version  u8      1
//! flags    u8      bit 0: an outbox
//! digest   u64     sequence of the user's last digest in the output stream, 0 for none
//! outbox   16 B    its nonce, if there is one
//! user     u16     length, and so many bytes of text
//! alarms   u32     how many, ascending by id, each:
//!   flags  u8      bit 0: UUID, 1: told, 2: due, 3: in the outbox, 4-5: latest status, 6-7: told status
//!   id     16 B    or u16 and so many bytes of text
//!   latest i64 u32 seconds and nanoseconds
//!   told   i64 u32 if told
//! ```
//!
//! All numbers are little-endian. A record comes back from outside, so the decoder believes nothing.
//!
//! Never: deciding what is due. That is `book`'s, in both homes of the state.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::BASE64URL_NOPAD as BASE64URL;

use crate::alarm::{AlarmId, Condition, Digest, Id, Status, Timestamp, UserId};
use crate::book::Memory;

const VERSION: u8 = 1;

/// Tells one digest of a user from every other, for ever: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Nonce(pub u128);

/// One user's state.
///
/// `is_in_outbox` of any alarm ⇒ `outbox` is some and the alarm is told. `alarm_bytes_max` is the sum of
/// the function of that name over all alarms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    user: UserId,
    alarms: BTreeMap<AlarmId, Entry>,
    /// The sequence of this user's last digest in the output stream, 0 for none.
    pub last_digest: u64,
    outbox: Option<Nonce>,
    alarm_bytes_max: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    memory: Memory,
    is_in_outbox: bool,
}

impl Record {
    /// Nothing is known of `user`.
    #[must_use]
    pub fn new(user: UserId) -> Self {
        Self { user, alarms: BTreeMap::new(), last_digest: 0, outbox: None, alarm_bytes_max: 0 }
    }

    /// Joins one change. Says whether it changed anything.
    pub fn apply(&mut self, alarm: &AlarmId, condition: Condition) -> bool {
        if let Some(entry) = self.alarms.get_mut(alarm) {
            return entry.memory.apply(condition);
        }
        self.alarms.insert(alarm.clone(), Entry { memory: Memory::new(condition), is_in_outbox: false });
        self.alarm_bytes_max += alarm_bytes_max(alarm);
        true
    }

    /// The most that the record can take in bytes with `alarm` in it, once all its alarms are told: what is accepted by this
    /// can be told as well. A change of an alarm that is known makes no more of it.
    #[must_use]
    pub fn bytes_max_with(&self, alarm: &AlarmId) -> usize {
        self.bytes_max() + if self.knows(alarm) { 0 } else { alarm_bytes_max(alarm) }
    }

    /// The most that it can take as it is.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.frame_bytes() + OUTBOX_BYTES + self.alarm_bytes_max
    }

    /// Whether something is known of `alarm`.
    #[must_use]
    pub fn knows(&self, alarm: &AlarmId) -> bool {
        self.alarms.contains_key(alarm)
    }

    /// Version, flags, digest, user and the number of alarms.
    fn frame_bytes(&self) -> usize {
        1 + 1 + 8 + self.user.0.with_text(|text| 2 + text.len()) + 4
    }

    /// Length of [`Self::encode`].
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let outbox = if self.outbox.is_some() { OUTBOX_BYTES } else { 0 };
        let untold = self.alarms.values().filter(|entry| entry.memory.told().is_none()).count();
        self.frame_bytes() + outbox + self.alarm_bytes_max - untold * CONDITION_BYTES
    }

    /// Decides what is told next: the oldest of what is due, for as long as `fits` says so of one more alarm and the record
    /// stays within `record_bytes_max`. They count as told and stand in the outbox under `nonce`. Says what that leaves.
    ///
    /// # Panics
    /// When there is an outbox already.
    pub fn decide(
        &mut self,
        nonce: Nonce,
        record_bytes_max: usize,
        mut fits: impl FnMut(&AlarmId, Condition) -> bool,
    ) -> Decision {
        assert_eq!(self.outbox, None, "one digest at a time");
        let mut bytes = self.encoded_bytes() + OUTBOX_BYTES;
        let mut due: Vec<_> =
            self.alarms.iter_mut().filter(|(_, entry)| entry.memory.is_to_be_told()).collect();
        due.sort_unstable_by_key(|(id, entry)| (entry.memory.latest().changed_at(), (*id).clone()));
        if due.is_empty() {
            return Decision::Nothing;
        }
        let taken = due
            .iter()
            .take_while(|(id, entry)| {
                bytes += if entry.memory.told().is_none() { CONDITION_BYTES } else { 0 };
                bytes <= record_bytes_max && fits(id, entry.memory.latest())
            })
            .count();
        if taken == 0 {
            return Decision::TooLarge;
        }
        for (_, entry) in &mut due[..taken] {
            entry.memory.take();
            entry.is_in_outbox = true;
        }
        let is_all = taken == due.len();
        self.outbox = Some(nonce);
        if is_all { Decision::All } else { Decision::Part }
    }

    /// The digest on its way out: a function of the record alone, so that anybody who has the record can finish it.
    #[must_use]
    pub fn outbox(&self) -> Option<(Nonce, Digest)> {
        let mut alarms: Vec<_> = self
            .alarms
            .iter()
            .filter(|(_, entry)| entry.is_in_outbox)
            .map(|(id, entry)| (id.clone(), entry.memory.told().expect("what is in the outbox was told")))
            .collect();
        alarms.sort_unstable_by(|(a_id, a), (b_id, b)| (a.changed_at(), a_id).cmp(&(b.changed_at(), b_id)));
        Some((self.outbox?, Digest { user: self.user.clone(), alarms }))
    }

    /// The nonce of [`Self::outbox`].
    #[must_use]
    pub fn outbox_nonce(&self) -> Option<Nonce> {
        self.outbox
    }

    /// The outbox is in the output stream.
    pub fn clear_outbox(&mut self) {
        self.outbox = None;
        self.alarms.values_mut().for_each(|entry| entry.is_in_outbox = false);
    }

    /// Forgets alarms that were cleared before `horizon`.
    pub fn forget(&mut self, horizon: Timestamp) {
        let Self { alarms, alarm_bytes_max: sum, .. } = self;
        alarms.retain(|id, entry| {
            let stays = entry.is_in_outbox || !entry.memory.is_forgettable(horizon);
            *sum -= if stays { 0 } else { alarm_bytes_max(id) };
            stays
        });
    }

    /// Alarms, cleared ones included, in the order of their ids.
    pub fn alarms(&self) -> impl Iterator<Item = Known<'_>> {
        self.alarms.iter().map(|(alarm, entry)| Known {
            alarm,
            latest: entry.memory.latest(),
            told: entry.memory.told(),
            is_due: entry.memory.is_due(),
            is_in_outbox: entry.is_in_outbox,
        })
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.extend([VERSION, u8::from(self.outbox.is_some())]);
        out.extend(self.last_digest.to_le_bytes());
        if let Some(Nonce(nonce)) = self.outbox {
            out.extend(nonce.to_le_bytes());
        }
        encode_text(&self.user.0, &mut out);
        out.extend(
            u32::try_from(self.alarms.len()).expect("a user has fewer alarms than that").to_le_bytes(),
        );
        for (id, entry) in &self.alarms {
            encode_alarm(id, entry, &mut out);
        }
        assert_eq!(out.len(), self.encoded_bytes(), "it is counted as it is written");
        out
    }

    /// Reads what [`Self::encode`] wrote of `user`.
    ///
    /// # Errors
    /// [`RecordError`], when it is anything else.
    pub fn decode(user: &UserId, bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader { bytes, at: 0 };
        let version = reader.u8()?;
        if version != VERSION {
            return Err(RecordError::Version { came: version });
        }
        let has_outbox = reader.u8()?;
        reader.check(has_outbox < 2, "flags of 0 or 1")?;
        let last_digest = reader.u64()?;
        let outbox = if has_outbox == 1 { Some(Nonce(u128::from_le_bytes(reader.array()?))) } else { None };
        let stored_user = UserId(reader.id_text()?);
        reader.check(stored_user == *user, "the record of this user")?;
        let mut alarms = BTreeMap::new();
        for _ in 0..reader.u32()? {
            let (id, entry) = reader.alarm()?;
            reader.check(
                alarms.last_key_value().is_none_or(|(last, _)| *last < id),
                "alarms in ascending order",
            )?;
            reader.check(!entry.is_in_outbox || outbox.is_some(), "an outbox for the alarms in it")?;
            alarms.insert(id, entry);
        }
        reader.check(reader.at == bytes.len(), "the end")?;
        let is_filled = alarms.values().any(|entry: &Entry| entry.is_in_outbox);
        reader.check(outbox.is_none() || is_filled, "an alarm in the outbox")?;
        let alarm_bytes_max = alarms.keys().map(alarm_bytes_max).sum();
        Ok(Self { user: stored_user, alarms, last_digest, outbox, alarm_bytes_max })
    }
}

/// What is known of one alarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known<'a> {
    /// Which one.
    pub alarm: &'a AlarmId,
    /// The greatest of all changes seen.
    pub latest: Condition,
    /// The change that a digest carried last, or carries now.
    pub told: Option<Condition>,
    /// Never told, or some change after `told` had another status.
    pub is_due: bool,
    /// The digest on its way out carries it.
    pub is_in_outbox: bool,
}

/// What [`Record::decide`] decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Nothing is due.
    Nothing,
    /// All that is due stands in the outbox.
    All,
    /// As much as fits stands in the outbox, and more is due.
    Part,
    /// Something is due, and not even one alarm fits: nothing is decided.
    TooLarge,
}

/// What an outbox takes in a record.
const OUTBOX_BYTES: usize = 16;

/// What each of `latest` and `told` takes.
const CONDITION_BYTES: usize = 12;

/// What an alarm takes in a record once it was told.
fn alarm_bytes_max(id: &AlarmId) -> usize {
    let id_bytes = if id.0.as_uuid().is_some() { 16 } else { id.0.with_text(|text| 2 + text.len()) };
    1 + id_bytes + 2 * CONDITION_BYTES
}

fn encode_text(id: &Id, out: &mut Vec<u8>) {
    id.with_text(|text| {
        out.extend(u16::try_from(text.len()).expect("an id has at most 256 bytes").to_le_bytes());
        out.extend(text.as_bytes());
    });
}

fn encode_alarm(id: &AlarmId, entry: &Entry, out: &mut Vec<u8>) {
    let (latest, told) = (entry.memory.latest(), entry.memory.told());
    let told_status = told.map_or(0, |told| told.status() as u8);
    out.push(
        u8::from(id.0.as_uuid().is_some())
            | u8::from(told.is_some()) << 1
            | u8::from(entry.memory.is_due()) << 2
            | u8::from(entry.is_in_outbox) << 3
            | (latest.status() as u8) << 4
            | told_status << 6,
    );
    match id.0.as_uuid() {
        Some(uuid) => out.extend(uuid),
        None => encode_text(&id.0, out),
    }
    for condition in [Some(latest), told].into_iter().flatten() {
        out.extend(condition.changed_at().seconds().to_le_bytes());
        out.extend(condition.changed_at().nanos().to_le_bytes());
    }
}

/// `at <= bytes.len()`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, bytes: usize) -> Result<&[u8], RecordError> {
        let taken = self.bytes[self.at..]
            .get(..bytes)
            .ok_or(RecordError::Malformed { at: self.at, expected: "more bytes" })?;
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        Ok(self.take(N)?.try_into().expect("as many as were asked for"))
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn check(&self, holds: bool, expected: &'static str) -> Result<(), RecordError> {
        if holds { Ok(()) } else { Err(RecordError::Malformed { at: self.at, expected }) }
    }

    fn id_text(&mut self) -> Result<Id, RecordError> {
        let at = self.at;
        let malformed = RecordError::Malformed { at, expected: "an id of 1 to 256 bytes of UTF-8" };
        let bytes = u16::from_le_bytes(self.array()?);
        let text = std::str::from_utf8(self.take(bytes.into())?).map_err(|_| malformed.clone())?;
        Id::new(text).map_err(|_| malformed)
    }

    fn alarm(&mut self) -> Result<(AlarmId, Entry), RecordError> {
        let flags = self.u8()?;
        let is = |bit: u8| flags >> bit & 1 == 1;
        let id = if is(0) {
            Id::from_uuid(self.array()?)
        } else {
            let id = self.id_text()?;
            self.check(id.as_uuid().is_none(), "a UUID in 16 bytes")?;
            id
        };
        let latest = self.condition(flags >> 4 & 3)?;
        let told = if is(1) { Some(self.condition(flags >> 6)?) } else { None };
        self.check(told.is_some() || flags >> 6 == 0, "no told status where nothing was told")?;
        let memory = Memory::from_parts(latest, told, is(2));
        self.check(memory.is_some(), "an alarm whose parts agree")?;
        self.check(told.is_some() || !is(3), "a told alarm in the outbox")?;
        let memory = memory.expect("it was checked");
        Ok((AlarmId(id), Entry { memory, is_in_outbox: is(3) }))
    }

    fn condition(&mut self, status: u8) -> Result<Condition, RecordError> {
        let status = match status {
            0 => Some(Status::Cleared),
            1 => Some(Status::Warning),
            2 => Some(Status::Critical),
            _ => None,
        };
        let (seconds, nanos) = (i64::from_le_bytes(self.array()?), self.u32()?);
        let condition =
            Timestamp::checked(seconds, nanos).zip(status).map(|(at, status)| Condition::new(at, status));
        condition
            .ok_or(RecordError::Malformed { at: self.at, expected: "a status and an instant of RFC 3339" })
    }
}

/// Why bytes are not a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// From a version that we do not know.
    Version {
        /// Its number.
        came: u8,
    },
    /// It does not hold together.
    Malformed {
        /// Up to where it did, in bytes.
        at: usize,
        /// What should have come.
        expected: &'static str,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { came } => write!(f, "expected a record of version {VERSION}, got version {came}"),
            Self::Malformed { at, expected } => write!(f, "expected {expected} at byte {at} of the record"),
        }
    }
}

impl std::error::Error for RecordError {}

/// The user's key in the bucket and in the subject of its digests: an id of letters, digits, `_` and `-` as it is, any
/// other as `=` and its text in base64url, which can hold neither a dot nor a wildcard.
#[must_use]
pub fn token(user: &UserId) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    user.0.with_text(|text| match text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("={}", BASE64URL.encode(text.as_bytes())),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(text: &str) -> UserId {
        UserId(Id::new(text).expect("a valid id"))
    }

    fn records() -> impl Strategy<Value = Record> {
        let id = prop_oneof![
            any::<[u8; 16]>().prop_map(Id::from_uuid),
            "[a-z\\PC]{1,20}".prop_map(|text| Id::new(&text).expect("a valid id")),
        ];
        let status = prop_oneof![Just(Status::Cleared), Just(Status::Warning), Just(Status::Critical)];
        let condition = (SECONDS, 0..1_000_000_000_u32, status)
            .prop_map(|(seconds, nanos, status)| Condition::new(Timestamp::new(seconds, nanos), status));
        let change = (id.prop_map(AlarmId), condition, any::<bool>());
        (prop::collection::vec(change, 0..20), any::<u64>(), any::<u128>(), any::<bool>()).prop_map(
            |(changes, last_digest, nonce, is_cleared)| {
                let mut record = Record::new(user("ann"));
                record.last_digest = last_digest;
                for (id, condition, decides) in changes {
                    record.apply(&id, condition);
                    if decides && record.outbox.is_none() {
                        record.decide(Nonce(nonce), usize::MAX, |_, _| true);
                    }
                }
                if is_cleared {
                    record.clear_outbox();
                }
                record
            },
        )
    }

    const SECONDS: std::ops::RangeInclusive<i64> = -62_167_305_540..=253_402_387_139;

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was_stored(record in records()) {
            prop_assert_eq!(Record::decode(&user("ann"), &record.encode()), Ok(record));
        }

        #[test]
        fn a_damaged_record_is_an_error_or_another_whole_record(
            record in records(), at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = record.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for bytes in [&bytes[..], &bytes[..end.index(bytes.len())]] {
                if let Ok(other) = Record::decode(&user("ann"), bytes) {
                    prop_assert_eq!(other.encode(), bytes);
                    // What comes out of it can be written.
                    if let Some((_, digest)) = other.outbox() {
                        crate::message::encode_digest(&digest, 1 << 20, &mut Vec::new());
                    }
                }
            }
        }

        #[test]
        fn forgetting_leaves_what_is_active_not_old_or_on_its_way_out(
            mut record in records(), seconds in SECONDS, all_end in any::<bool>(),
        ) {
            let horizon = Timestamp::new(seconds, 0);
            let end = |known: Known<'_>| {
                let at = Timestamp::new(known.latest.changed_at().seconds() + 1, 0);
                (known.alarm.clone(), Condition::new(at, Status::Cleared))
            };
            let ends: Vec<_> = record.alarms().filter(|_| all_end).map(end).collect();
            for (alarm, end) in ends {
                record.apply(&alarm, end);
            }
            let mut forgetful = record.clone();
            forgetful.forget(horizon);
            prop_assert_eq!(forgetful.outbox(), record.outbox());
            let stays = |known: &Known<'_>| {
                known.latest.status().is_active() || known.latest.changed_at() >= horizon || known.is_in_outbox
            };
            prop_assert!(forgetful.alarms().eq(record.alarms().filter(stays)));
            prop_assert_eq!(Record::decode(&user("ann"), &forgetful.encode()), Ok(forgetful));
        }

        #[test]
        fn any_bytes_are_an_error_or_a_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = Record::decode(&user("ann"), &bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let mut record = Record::new(user("ann"));
        record.last_digest = 7;
        let at = |seconds| Timestamp::new(seconds, 5);
        record.apply(&AlarmId(Id::new("disk").expect("a valid id")), Condition::new(at(1), Status::Critical));
        record.decide(Nonce(0x0102), usize::MAX, |_, _| true);
        let expected = [
            &[1, 1][..],
            &7_u64.to_le_bytes(),
            &0x0102_u128.to_le_bytes(),
            b"\x03\x00ann",
            &[1, 0, 0, 0],
            &[0b1010_1010],
            b"\x04\x00disk",
            &[1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0],
        ];
        assert_eq!(record.encode(), expected.concat());
    }

    #[test]
    fn what_a_record_can_take_is_what_it_takes_once_all_is_told() {
        let mut record = Record::new(user("ann"));
        let disk = AlarmId(Id::new("disk").expect("a valid id"));
        let fan = AlarmId(Id::from_uuid([7; 16]));
        let at = |seconds| Condition::new(Timestamp::new(seconds, 0), Status::Warning);
        record.apply(&disk, at(1));
        let bytes_max = record.bytes_max_with(&fan);
        assert_eq!(bytes_max - record.bytes_max_with(&disk), 41);
        record.apply(&fan, at(2));
        assert_eq!(record.encode().len() + 16 + 2 * 12, bytes_max);
        // Room for the older one only.
        assert_eq!(record.decide(Nonce(1), bytes_max - 12, |_, _| true), Decision::Part);
        let told: Vec<_> = record.outbox().expect("it was decided").1.alarms;
        assert_eq!(told, [(disk, at(1))]);
        record.clear_outbox();
        assert_eq!(record.decide(Nonce(2), bytes_max - 1, |_, _| true), Decision::TooLarge);
        assert_eq!(record.outbox_nonce(), None);
        assert_eq!(record.decide(Nonce(2), bytes_max, |_, _| true), Decision::All);
        assert_eq!(record.encode().len(), bytes_max);
    }

    #[test]
    fn a_record_of_another_user_or_version_is_refused() {
        let mut bytes = Record::new(user("ann")).encode();
        assert_eq!(
            Record::decode(&user("bob"), &bytes).expect_err("not bob's").to_string(),
            "expected the record of this user at byte 15 of the record"
        );
        bytes[0] = 2;
        assert_eq!(
            Record::decode(&user("ann"), &bytes).expect_err("too new").to_string(),
            "expected a record of version 1, got version 2"
        );
    }

    #[test]
    fn a_token_is_one_subject_token_and_different_for_each_user() {
        for (id, expected) in [
            ("ann-1_X", "ann-1_X"),
            ("a.b", "=YS5i"),
            ("*", "=Kg"),
            ("=YS5i", "=PVlTNWk"),
            ("ü >", "=w7wgPg"),
        ] {
            assert_eq!(token(&user(id)), expected);
        }
        assert!(token(&user(&"\u{1}".repeat(256))).len() < 400);
    }
}
