//! The words: what an alarm, a change and a digest are. Everything else in this crate speaks in them.
//!
//! Never: JSON, text forms of time, rules about what is due. Those are `message` and `book`.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Longest id we take, in bytes of UTF-8.
pub const ID_BYTES_MAX: usize = 256;

/// Length of a UUID's canonical text, hyphens included. Source: RFC 9562, section 4.
const UUID_TEXT_BYTES: usize = 36;

/// Who is to be told.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserId(pub Id);

/// Which alarm changed; unique within one user only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AlarmId(pub Id);

/// A non-empty text of at most [`ID_BYTES_MAX`] bytes, equal and ordered as its exact text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Id(Repr);

/// Canonical UUID text is the common case and fits into 16 bytes; any other text is kept as it came. A text has
/// one form only, so equality and hashing can be those of the form.
#[derive(Clone, PartialEq, Eq)]
enum Repr {
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl Hash for Repr {
    /// A UUID as one number: half of what an array takes.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Uuid(uuid) => state.write_u128(u128::from_ne_bytes(*uuid)),
            Self::Text(text) => text.hash(state),
        }
    }
}

impl Id {
    /// # Errors
    /// [`IdError`] when `text` is empty or longer than [`ID_BYTES_MAX`].
    pub fn new(text: &str) -> Result<Self, IdError> {
        match text.len() {
            0 => Err(IdError::Empty),
            1..=ID_BYTES_MAX => Ok(text
                .as_bytes()
                .as_array()
                .and_then(Self::from_canonical_uuid)
                .unwrap_or_else(|| Self(Repr::Text(text.into())))),
            bytes => Err(IdError::TooLong { bytes }),
        }
    }

    /// The id whose text this is, if it is the canonical text of a UUID.
    #[must_use]
    pub fn from_canonical_uuid(text: &[u8; UUID_TEXT_BYTES]) -> Option<Self> {
        canonical_uuid(text).map(|uuid| Self(Repr::Uuid(uuid)))
    }

    /// Hands the text to `f`; a UUID's is written onto the stack first.
    pub fn with_text<T>(&self, f: impl FnOnce(&str) -> T) -> T {
        match &self.0 {
            Repr::Uuid(uuid) => {
                f(std::str::from_utf8(&uuid_text(uuid)).expect("hexadecimal digits and hyphens"))
            }
            Repr::Text(text) => f(text),
        }
    }

    /// As [`Self::with_text`], for whoever needs bytes.
    pub fn with_bytes<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        match &self.0 {
            Repr::Uuid(uuid) => f(&uuid_text(uuid)),
            Repr::Text(text) => f(text.as_bytes()),
        }
    }

    /// The 16 bytes of canonical UUID text.
    #[must_use]
    pub fn as_uuid(&self) -> Option<&[u8; 16]> {
        match &self.0 {
            Repr::Uuid(bytes) => Some(bytes),
            Repr::Text(_) => None,
        }
    }

    /// The id whose text is the canonical form of this UUID.
    #[must_use]
    pub fn from_uuid(bytes: [u8; 16]) -> Self {
        Self(Repr::Uuid(bytes))
    }

    #[inline(never)]
    fn cmp_texts(&self, other: &Self) -> std::cmp::Ordering {
        self.with_text(|a| other.with_text(|b| a.cmp(b)))
    }

    /// Bytes on the heap behind this id.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Uuid(_) => 0,
            Repr::Text(text) => text.len(),
        }
    }
}

/// The 16 bytes of `text`, if writing them out again gives exactly `text`: no upper case, no other UUID form.
///
/// Each message has two of these. All digits are taken alike and judged at the end, so that the compiler takes 16 of them
/// at once: a tenth of the instructions of a general parser.
fn canonical_uuid(text: &[u8; UUID_TEXT_BYTES]) -> Option<[u8; 16]> {
    let mut is_canonical = [text[8], text[13], text[18], text[23]] == [b'-'; 4];
    let mut digits = [0; 32];
    digits[..8].copy_from_slice(&text[..8]);
    digits[8..12].copy_from_slice(&text[9..13]);
    digits[12..16].copy_from_slice(&text[14..18]);
    digits[16..20].copy_from_slice(&text[19..23]);
    digits[20..].copy_from_slice(&text[24..]);
    for digit in &mut digits {
        let (number, letter) = (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a'));
        is_canonical &= (number < 10) | (letter < 6);
        *digit = if number < 10 { number } else { letter.wrapping_add(10) };
    }
    let mut uuid = [0; 16];
    for (byte, [high, low]) in uuid.iter_mut().zip(digits.as_chunks().0) {
        *byte = high << 4 | low;
    }
    is_canonical.then_some(uuid)
}

/// The canonical text of `uuid`.
fn uuid_text(uuid: &[u8; 16]) -> [u8; UUID_TEXT_BYTES] {
    let mut digits = [0; 32];
    write_hexadecimal(uuid, &mut digits);
    let mut text = [b'-'; UUID_TEXT_BYTES];
    text[..8].copy_from_slice(&digits[..8]);
    text[9..13].copy_from_slice(&digits[8..12]);
    text[14..18].copy_from_slice(&digits[12..16]);
    text[19..23].copy_from_slice(&digits[16..20]);
    text[24..].copy_from_slice(&digits[20..]);
    text
}

/// A function of its own, so that the compiler knows the two apart and takes 16 digits at once.
#[inline(never)]
fn write_hexadecimal(bytes: &[u8; 16], digits: &mut [u8; 32]) {
    for (two, byte) in digits.as_chunks_mut().0.iter_mut().zip(bytes) {
        let byte = u16::from(*byte);
        *two = (byte >> 4 | (byte & 0x0f) << 8).to_le_bytes();
    }
    for digit in digits {
        *digit += if *digit < 10 { b'0' } else { b'a' - 10 };
    }
}

impl Ord for Id {
    #[inline]
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (&self.0, &other.0) {
            // Lower-case hexadecimal digits sort as the values they stand for, and the hyphens stand still. As numbers,
            // because arrays are compared by a call.
            (Repr::Uuid(a), Repr::Uuid(b)) => u128::from_be_bytes(*a).cmp(&u128::from_be_bytes(*b)),
            _ => self.cmp_texts(other),
        }
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| write!(f, "{text:?}"))
    }
}

/// Why a text is not an [`Id`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdError {
    /// No bytes at all.
    Empty,
    /// More than [`ID_BYTES_MAX`].
    TooLong {
        /// How many came.
        bytes: usize,
    },
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "expected 1 to {ID_BYTES_MAX} bytes, got an empty string"),
            Self::TooLong { bytes } => write!(f, "expected 1 to {ID_BYTES_MAX} bytes, got {bytes}"),
        }
    }
}

impl std::error::Error for IdError {}

/// How bad it is, in rising severity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Status {
    /// All is well again.
    Cleared,
    /// Active.
    Warning,
    /// Active, and worse.
    Critical,
}

impl Status {
    /// Whether a user is to be told of it.
    #[must_use]
    pub fn is_active(self) -> bool {
        self != Self::Cleared
    }
}

/// 0000-01-01T00:00:00+23:59, the first instant that RFC 3339 can write.
const SECONDS_MIN: i64 = -62_167_305_540;
/// 9999-12-31T23:59:59-23:59, the last one.
const SECONDS_MAX: i64 = 253_402_387_139;

/// An instant: seconds since 1970-01-01T00:00:00Z and the nanoseconds after them, which always count forward.
///
/// Wide enough for every instant RFC 3339 can write, year 0000 with any offset included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Timestamp {
    /// # Panics
    /// When `nanos` is a second or more.
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Self {
        assert!(nanos < 1_000_000_000, "nanoseconds are within a second, not {nanos}");
        Self { seconds, nanos }
    }

    /// As [`Self::new`], for numbers from elsewhere: none if RFC 3339 could not have written it.
    #[must_use]
    pub fn checked(seconds: i64, nanos: u32) -> Option<Self> {
        let is_written = (SECONDS_MIN..=SECONDS_MAX).contains(&seconds) && nanos < 1_000_000_000;
        is_written.then_some(Self { seconds, nanos })
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`Self::seconds`], less than a second.
    #[must_use]
    pub fn nanos(self) -> u32 {
        self.nanos
    }
}

/// What an alarm is from an instant on. Ordered by `(changed_at, severity)`, which is the order that decides which
/// of two changes is the later one, whatever order they arrive in.
///
/// Twelve bytes, because millions are held: the seconds, then nanoseconds (30 bits) above the severity (2 bits).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(4))]
pub struct Condition {
    seconds: i64,
    nanos_and_status: u32,
}

const _: () = assert!(size_of::<Condition>() == 12);

impl Condition {
    /// `status` holds from `changed_at` on.
    #[must_use]
    pub fn new(changed_at: Timestamp, status: Status) -> Self {
        Self { seconds: changed_at.seconds, nanos_and_status: changed_at.nanos << 2 | status as u32 }
    }

    /// When it began.
    #[must_use]
    pub fn changed_at(self) -> Timestamp {
        Timestamp { seconds: self.seconds, nanos: self.nanos_and_status >> 2 }
    }

    /// What it is.
    #[must_use]
    pub fn status(self) -> Status {
        match self.nanos_and_status & 3 {
            0 => Status::Cleared,
            1 => Status::Warning,
            _ => Status::Critical,
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} from {:?}", self.status(), self.changed_at())
    }
}

/// One status change of one alarm of one user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Whose alarm.
    pub user: UserId,
    /// Which.
    pub alarm: AlarmId,
    /// What it is now, and since when.
    pub condition: Condition,
}

/// What somebody asks of the owner of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// From `AlarmStatusChanged`: remember this.
    Apply(Change),
    /// From `SendAlarmDigest`: tell this user what is due.
    SendDigest(UserId),
}

impl Command {
    /// The user whose owner is to do it.
    #[must_use]
    pub fn user(&self) -> &UserId {
        match self {
            Self::Apply(change) => &change.user,
            Self::SendDigest(user) => user,
        }
    }
}

/// What is news to one user: active alarms only, oldest first, ties by alarm id. Empty only as an answer to who asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Who is told.
    pub user: UserId,
    /// Of what.
    pub alarms: Vec<(AlarmId, Condition)>,
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(text: &str) -> Id {
        Id::new(text).expect("a valid id")
    }

    #[test]
    fn an_id_gives_back_exactly_the_text_it_was_made_of() {
        let long = "ü".repeat(ID_BYTES_MAX / 2);
        for text in [
            "0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b",
            "0B6A3C5E-9D4F-4B7A-8E21-5F0C1D2E3A4B",
            "0b6a3c5e-9d4f-4b7a-8e21-5F0c1d2e3a4b",
            "0b6a3c5e9d4f4b7a8e215f0c1d2e3a4b",
            "0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4g",
            "x",
            "\0",
            " a b ",
            &long,
        ] {
            id(text).with_text(|back| assert_eq!(back, text));
        }
    }

    #[test]
    fn a_uuid_is_kept_short_exactly_if_it_is_canonical() {
        let canonical = "0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b";
        for at in 0..canonical.len() {
            for byte in 0..128 {
                let mut text = canonical.as_bytes().to_vec();
                text[at] = byte;
                let text = String::from_utf8(text).expect("ASCII");
                let expected = Uuid::try_parse(&text).ok().filter(|uuid| uuid.to_string() == text);
                let came = canonical_uuid(text.as_bytes().as_array().expect("as long as a UUID's text"));
                assert_eq!(came, expected.map(Uuid::into_bytes), "{text}");
                id(&text).with_text(|back| assert_eq!(back, text));
            }
        }
    }

    #[test]
    fn texts_that_differ_are_different_ids_and_sort_as_texts() {
        let mut texts = [
            "0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b",
            "0B6A3C5E-9D4F-4B7A-8E21-5F0C1D2E3A4B",
            "fb6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b",
            "0b6a3c5e",
            "a",
            "~",
        ];
        let mut ids: Vec<Id> = texts.iter().map(|text| id(text)).collect();
        texts.sort_unstable();
        ids.sort_unstable();
        for (id, text) in ids.iter().zip(texts) {
            id.with_text(|back| assert_eq!(back, text));
        }
        ids.dedup();
        assert_eq!(ids.len(), texts.len());
    }

    #[test]
    fn an_id_has_between_1_and_256_bytes() {
        assert_eq!(Id::new(""), Err(IdError::Empty));
        assert!(Id::new(&"x".repeat(256)).is_ok());
        assert_eq!(Id::new(&"x".repeat(257)), Err(IdError::TooLong { bytes: 257 }));
    }

    #[test]
    fn conditions_are_ordered_by_time_then_severity() {
        let ordered = [
            (-62_135_596_800, 0, Status::Cleared),
            (-1, 999_999_999, Status::Critical),
            (0, 0, Status::Cleared),
            (0, 0, Status::Warning),
            (0, 0, Status::Critical),
            (0, 1, Status::Cleared),
            (0, 999_999_999, Status::Critical),
            (253_402_387_139, 0, Status::Cleared),
        ]
        .map(|(seconds, nanos, status)| Condition::new(Timestamp::new(seconds, nanos), status));
        assert!(ordered.is_sorted_by(|a, b| a < b));
        assert_eq!(ordered[1].changed_at(), Timestamp::new(-1, 999_999_999));
        assert_eq!(ordered[3].status(), Status::Warning);
    }
}
