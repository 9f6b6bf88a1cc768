//! JSON to words and back. The only file that knows a field name or the text of a status or of an instant.
//!
//! What is accepted: one JSON object in UTF-8 whose fields, in any case, are strings; unknown fields are skipped.
//! What is not is refused with a [`Reason`] to count and a sentence that says what was expected and what came.
//!
//! serde_json and `time` are the one definition of what is accepted. `scan` is a short cut for the usual shape that gives
//! the same or nothing.
//!
//! Never: a subject, a socket, a decision about what is due.

mod scan;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

use crate::alarm::{AlarmId, Change, Command, Condition, Digest, Id, Status, Timestamp, UserId};

const ALARM_ID: usize = 0;
const USER_ID: usize = 1;
const STATUS: usize = 2;
const CHANGED_AT: usize = 3;
const FIELDS: [&str; 4] = ["AlarmID", "UserID", "Status", "ChangedAt"];

/// Bytes of an unexpected value that a refusal repeats.
const REPEATED_BYTES_MAX: usize = 64;

/// Reads the payload of an `AlarmStatusChanged`.
///
/// # Errors
/// [`Rejection`], when it is not a change.
pub fn decode_change(payload: &[u8]) -> Result<Command, Rejection> {
    scan::change(payload).map_or_else(|| any_change(payload), Ok).map(Command::Apply)
}

/// Reads the payload of a `SendAlarmDigest`.
///
/// # Errors
/// [`Rejection`], when it names no user.
pub fn decode_request(payload: &[u8]) -> Result<Command, Rejection> {
    scan::request(payload).map_or_else(|| any_request(payload), Ok).map(Command::SendDigest)
}

/// Holds the short cut against the definition.
///
/// # Panics
/// When it takes what it should not, or takes it for something else.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub fn compare(payload: &[u8]) {
    if let Some(change) = scan::change(payload) {
        assert_eq!(Ok(change), any_change(payload), "{}", payload.escape_ascii());
    }
    if let Some(user) = scan::request(payload) {
        assert_eq!(Ok(user), any_request(payload), "{}", payload.escape_ascii());
    }
}

fn any_change(payload: &[u8]) -> Result<Change, Rejection> {
    let fields = Fields::parse(payload)?;
    let user = fields.user()?;
    let alarm = AlarmId(fields.id(ALARM_ID)?);
    let status = parse_status(fields.text(STATUS)?)?;
    let changed_at = parse_timestamp(fields.text(CHANGED_AT)?)?;
    Ok(Change { user, alarm, condition: Condition::new(changed_at, status) })
}

fn any_request(payload: &[u8]) -> Result<UserId, Rejection> {
    Fields::parse(payload)?.user()
}

/// Writes a digest as one JSON object, or as several where one would exceed `bytes_max`: each valid by itself, the
/// alarms in order. They stand behind one another in `out`, and each range is one of them.
///
/// # Panics
/// When `bytes_max` is below [`DIGEST_BYTES_MAX_AT_LEAST`], for then not every single alarm would fit.
pub fn encode_digest(digest: &Digest, bytes_max: usize, out: &mut Vec<u8>) -> Vec<Range<usize>> {
    assert!(
        bytes_max >= DIGEST_BYTES_MAX_AT_LEAST,
        "a digest of one alarm may need more than {bytes_max} bytes"
    );
    const END: &[u8] = b"]}";
    let mut ranges = Vec::with_capacity(1);
    let mut start = out.len();
    out.extend_from_slice(b"{\"UserID\":");
    digest.user.0.with_text(|user| write_json(out, user));
    out.extend_from_slice(b",\"ActiveAlarms\":[");
    let head = start..out.len();
    let mut one = Vec::with_capacity(160);
    for (at, (alarm, condition)) in digest.alarms.iter().enumerate() {
        one.clear();
        encode_alarm(alarm, *condition, &mut one);
        let is_first = at == 0;
        if !is_first && out.len() - start + 1 + one.len() + END.len() > bytes_max {
            out.extend_from_slice(END);
            ranges.push(start..out.len());
            start = out.len();
            out.extend_from_within(head.clone());
        } else if !is_first {
            out.push(b',');
        }
        out.extend_from_slice(&one);
    }
    out.extend_from_slice(END);
    ranges.push(start..out.len());
    ranges
}

/// What a digest of one alarm can need: two ids of 256 bytes, each byte escaped as `\u00XX`, and 200 bytes for all
/// the rest.
pub const DIGEST_BYTES_MAX_AT_LEAST: usize = 2 * 6 * crate::alarm::ID_BYTES_MAX + 200;

/// What a digest of `user` takes in bytes, but for its alarms.
#[must_use]
pub fn digest_frame_bytes(user: &UserId) -> usize {
    let mut out = Vec::new();
    user.0.with_text(|user| write_json(&mut out, user));
    out.len() + b"{\"UserID\":,\"ActiveAlarms\":[]}".len()
}

/// What one alarm takes in a digest in bytes, with the comma before it.
#[must_use]
pub fn alarm_bytes(alarm: &AlarmId, condition: Condition) -> usize {
    let mut out = Vec::with_capacity(160);
    encode_alarm(alarm, condition, &mut out);
    out.len() + 1
}

fn encode_alarm(alarm: &AlarmId, condition: Condition, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"AlarmID\":");
    alarm.0.with_text(|alarm| write_json(out, alarm));
    out.extend_from_slice(b",\"Status\":\"");
    out.extend_from_slice(status_text(condition.status()).as_bytes());
    out.extend_from_slice(b"\",\"LatestChangedAt\":\"");
    write_timestamp(condition.changed_at(), out);
    out.extend_from_slice(b"\"}");
}

fn write_json(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string can always be written to a vector");
}

/// A status as the contract writes it.
#[must_use]
pub fn status_text(status: Status) -> &'static str {
    match status {
        Status::Cleared => "CLEARED",
        Status::Warning => "WARNING",
        Status::Critical => "CRITICAL",
    }
}

fn parse_status(text: &str) -> Result<Status, Rejection> {
    match text {
        "CLEARED" => Ok(Status::Cleared),
        "WARNING" => Ok(Status::Warning),
        "CRITICAL" => Ok(Status::Critical),
        _ => Err(Rejection::field(STATUS, Reason::UnknownStatus, "`CLEARED`, `WARNING` or `CRITICAL`", text)),
    }
}

/// RFC 3339, section 5.6, to the instant it names. Digits beyond nanoseconds are cut. A leap second is taken as the
/// last nanosecond before the next minute, so that it stays after all that came before it.
fn parse_timestamp(text: &str) -> Result<Timestamp, Rejection> {
    // `time` takes any byte between date and time, and offsets that no RFC 3339 text can have are refused by it.
    let has_t = matches!(text.as_bytes().get(10), Some(b'T' | b't'));
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|_| has_t);
    let Some(parsed) = parsed else {
        let expected = "an RFC 3339 time like `2006-01-02T15:04:05.999999999+01:00`";
        return Err(Rejection::field(CHANGED_AT, Reason::BadTimestamp, expected, text));
    };
    Ok(Timestamp::new(parsed.unix_timestamp(), parsed.nanosecond()))
}

/// An instant as the contract writes it.
#[must_use]
pub fn timestamp_text(timestamp: Timestamp) -> String {
    let mut text = Vec::with_capacity(30);
    write_timestamp(timestamp, &mut text);
    String::from_utf8(text).expect("RFC 3339 is ASCII")
}

/// In UTC. The few instants that RFC 3339 can write only with an offset, because their UTC year is not one of four
/// digits, are written with the greatest offset there is.
fn write_timestamp(timestamp: Timestamp, out: &mut Vec<u8>) {
    const YEAR_0_SECONDS: i64 = -62_167_219_200;
    const YEAR_10000_SECONDS: i64 = 253_402_300_800;
    const BELIEF: &str = "a timestamp comes from RFC 3339, so it can be written as that";
    let offset = match timestamp.seconds() {
        ..YEAR_0_SECONDS => UtcOffset::from_hms(23, 59, 0).expect("less than a day"),
        YEAR_0_SECONDS..YEAR_10000_SECONDS => UtcOffset::UTC,
        YEAR_10000_SECONDS.. => UtcOffset::from_hms(-23, -59, 0).expect("less than a day"),
    };
    let seconds = timestamp.seconds() + i64::from(offset.whole_seconds());
    let local = OffsetDateTime::from_unix_timestamp(seconds).expect(BELIEF);
    let local = local.replace_nanosecond(timestamp.nanos()).expect("it is less than a second");
    let written = PrimitiveDateTime::new(local.date(), local.time()).assume_offset(offset);
    written.format_into(out, &Rfc3339).expect(BELIEF);
}

/// The known fields of one JSON object, as far as they are there.
#[derive(Default)]
struct Fields<'de> {
    values: [Option<Value<'de>>; FIELDS.len()],
    duplicate: Option<usize>,
}

enum Value<'de> {
    Text(Cow<'de, str>),
    /// What came instead of a string.
    Other(&'static str),
}

impl<'de> Fields<'de> {
    fn parse(payload: &'de [u8]) -> Result<Self, Rejection> {
        if payload.is_empty() {
            return Err(Rejection::new(Reason::Empty, "expected a JSON object, got an empty payload"));
        }
        // serde_json skips unknown fields without looking at their encoding, so it is looked at here.
        let text = std::str::from_utf8(payload).map_err(|error| {
            let at = error.valid_up_to();
            Rejection::new(Reason::NotUtf8, format!("expected UTF-8, got byte 0x{:02x} at {at}", payload[at]))
        })?;
        let fields: Self = serde_json::from_str(text).map_err(|error| {
            let reason = if error.is_data() { Reason::WrongType } else { Reason::NotJson };
            Rejection::new(reason, format!("expected a JSON object: {error}"))
        })?;
        match fields.duplicate {
            Some(field) => Err(Rejection::new(
                Reason::DuplicateField,
                format!("expected field `{}` once, got it again", FIELDS[field]),
            )),
            None => Ok(fields),
        }
    }

    fn text(&self, field: usize) -> Result<&str, Rejection> {
        let name = FIELDS[field];
        match &self.values[field] {
            Some(Value::Text(text)) => Ok(text),
            Some(Value::Other(came)) => Err(Rejection::new(
                Reason::WrongType,
                format!("field `{name}`: expected a string, got {came}"),
            )),
            None => Err(Rejection::new(Reason::MissingField, format!("expected a field `{name}`, got none"))),
        }
    }

    fn id(&self, field: usize) -> Result<Id, Rejection> {
        Id::new(self.text(field)?)
            .map_err(|error| Rejection::new(Reason::BadId, format!("field `{}`: {error}", FIELDS[field])))
    }

    fn user(&self) -> Result<UserId, Rejection> {
        self.id(USER_ID).map(UserId)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(Name(field)) = map.next_key()? {
            match field {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(field) => {
                    let value = map.next_value()?;
                    if fields.values[field].replace(value).is_some() {
                        fields.duplicate = Some(field);
                    }
                }
            }
        }
        Ok(fields)
    }
}

/// The index of a field's name in [`FIELDS`], in any case: Go's encoding/json reads them so.
struct Name(Option<usize>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(Name(FIELDS.iter().position(|field| field.eq_ignore_ascii_case(name))))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value<'de>, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}

/// Bytes of the sentence that explains a refusal.
const DETAIL_BYTES_MAX: usize = 256;

/// Why a message was refused, to count by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// No bytes.
    Empty,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Not one JSON value.
    NotJson,
    /// Not an object, or a field that is not a string.
    WrongType,
    /// A field that must be there is not.
    MissingField,
    /// A field is there twice, in whatever case.
    DuplicateField,
    /// An id of no bytes or of more than 256.
    BadId,
    /// None of the three.
    UnknownStatus,
    /// Not RFC 3339, or no such day or time.
    BadTimestamp,
    /// From a stream, and neither of the two subjects.
    UnknownSubject,
    /// The user's record has no room for it.
    RecordTooLarge,
    /// The user's record cannot be read.
    RecordDamaged,
}

impl Reason {
    /// All of them, as they count: `Reason::ALL[reason as usize] == reason`.
    pub const ALL: [Self; 12] = [
        Self::Empty,
        Self::NotUtf8,
        Self::NotJson,
        Self::WrongType,
        Self::MissingField,
        Self::DuplicateField,
        Self::BadId,
        Self::UnknownStatus,
        Self::BadTimestamp,
        Self::UnknownSubject,
        Self::RecordTooLarge,
        Self::RecordDamaged,
    ];

    /// As it stands in logs and in the dead letter's header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotUtf8 => "not-utf8",
            Self::NotJson => "not-json",
            Self::WrongType => "wrong-type",
            Self::MissingField => "missing-field",
            Self::DuplicateField => "duplicate-field",
            Self::BadId => "bad-id",
            Self::UnknownStatus => "unknown-status",
            Self::BadTimestamp => "bad-timestamp",
            Self::UnknownSubject => "unknown-subject",
            Self::RecordTooLarge => "record-too-large",
            Self::RecordDamaged => "record-damaged",
        }
    }
}

/// A message that was refused. `Display` is one line of printable ASCII that says what was expected and what came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// What to count it as.
    pub reason: Reason,
    detail: String,
}

impl Rejection {
    /// `detail` is cut where it is too long.
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        // serde_json repeats a string that stands where an object belongs, whole.
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Self { reason, detail }
    }

    /// Bytes on the heap behind this.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.detail.len()
    }

    fn field(field: usize, reason: Reason, expected: &str, came: &str) -> Self {
        let shown = came.get(..came.floor_char_boundary(REPEATED_BYTES_MAX)).unwrap_or_default();
        let more = if shown.len() < came.len() { "…" } else { "" };
        let name = FIELDS[field];
        Self::new(reason, format!("field `{name}`: expected {expected}, got `{shown}`{more}"))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What came is a stranger's text: it must break neither a log line nor a header.
        write!(f, "{}", self.detail.escape_default())
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(json: &str) -> Change {
        match decode_change(json.as_bytes()).unwrap_or_else(|rejection| panic!("{json}: {rejection}")) {
            Command::Apply(change) => change,
            other => panic!("not a change: {other:?}"),
        }
    }

    fn json(changed_at: &str) -> String {
        format!(r#"{{"AlarmID":"a","UserID":"u","Status":"WARNING","ChangedAt":"{changed_at}"}}"#)
    }

    fn written(timestamp: Timestamp) -> String {
        let mut out = Vec::new();
        write_timestamp(timestamp, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn a_change_is_read_whatever_the_case_of_its_fields_and_whatever_else_there_is() {
        let expected = change(&json("2026-11-24T10:00:00Z"));
        for json in [
            r#"{"AlarmId":"a","userid":"u","STATUS":"WARNING","changedAt":"2026-11-24T11:00:00+01:00"}"#,
            r#" {"x":[{"UserID":1}],"ChangedAt":"2026-11-24t10:00:00z","Status":"WARNING","UserID":"u","AlarmID":"a","x":null} "#,
            r#"{"Alarm\u0049D":"\u0061","UserID":"u","Status":"W\u0041RNING","ChangedAt":"2026-11-24T10:00:00.000Z"}"#,
        ] {
            assert_eq!(change(json), expected, "{json}");
        }
    }

    /// `came` is written into a text form that must be read as the instant `utc`.
    #[test]
    fn every_instant_rfc_3339_can_write_survives() {
        for (came, utc) in [
            ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z"),
            ("2026-11-24T10:00:00.5+05:30", "2026-11-24T04:30:00.5Z"),
            ("2026-11-24T10:00:00.123456789-00:00", "2026-11-24T10:00:00.123456789Z"),
            ("2026-11-24T10:00:00.1234567899999Z", "2026-11-24T10:00:00.123456789Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
            ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999999Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
            ("2024-02-29T00:00:00+23:59", "2024-02-28T00:01:00Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999999Z"),
            ("1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59.999999999Z"),
            ("0000-01-01T00:00:00.25+23:59", "0000-01-01T00:00:00.25+23:59"),
            ("0000-01-01T00:00:00+00:01", "0000-01-01T23:58:00+23:59"),
            ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59-23:59"),
        ] {
            let timestamp = parse_timestamp(came).unwrap_or_else(|rejection| panic!("{rejection}"));
            assert_eq!(written(timestamp), utc, "{came}");
            assert_eq!(parse_timestamp(utc).expect("what we write can be read"), timestamp);
        }
    }

    #[test]
    fn what_rfc_3339_cannot_write_is_no_timestamp() {
        for came in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T10:00:00",
            "2026-11-24 10:00:00Z",
            "2026-11-24T10:00Z",
            "2026-11-24T10:00:00.Z",
            "2026-11-24T10:00:00,5Z",
            "2026-11-24T10:00:00+0100",
            "2026-11-24T10:00:00+24:00",
            "2026-11-24T10:00:00+01:60",
            "2026-11-24T10:00:00Z ",
            " 2026-11-24T10:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T10:60:00Z",
            "2026-11-24T10:00:60Z",
            "2026-11-24T10:00:61Z",
            "-001-11-24T10:00:00Z",
            "+2026-11-24T10:00:00Z",
            "12026-11-24T10:00:00Z",
            "２026-11-24T10:00:00Z",
        ] {
            let rejection = parse_timestamp(came).expect_err(came);
            assert_eq!(rejection.reason, Reason::BadTimestamp, "{came}");
        }
    }

    #[test]
    fn a_bad_payload_is_refused_with_its_reason_and_a_sentence() {
        let long = format!(r#"{{"AlarmID":"a","UserID":"{}","Status":"WARNING"}}"#, "x".repeat(257));
        let deep = format!(r#"{{"UserID":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let shape = |field: &str, value: &str| {
            json("2026-11-24T10:00:00Z")
                .replace(&format!("\"{field}\":\"a\""), &format!("\"{field}\":{value}"))
        };
        for (payload, reason, sentence) in [
            ("", Reason::Empty, "expected a JSON object, got an empty payload"),
            ("\0", Reason::NotJson, "expected a JSON object: expected value at line 1 column 1"),
            ("{", Reason::NotJson, "expected a JSON object: EOF while parsing an object at line 1 column 1"),
            ("{}x", Reason::NotJson, "expected a JSON object: trailing characters at line 1 column 3"),
            (&deep, Reason::WrongType, "field `UserID`: expected a string, got an array"),
            (
                &"[".repeat(100_000),
                Reason::WrongType,
                "expected a JSON object: invalid type: sequence, expected an object at line 1 column 0",
            ),
            (
                "[]",
                Reason::WrongType,
                "expected a JSON object: invalid type: sequence, expected an object at line 1 column 0",
            ),
            (
                "null",
                Reason::WrongType,
                "expected a JSON object: invalid type: null, expected an object at line 1 column 4",
            ),
            ("{}", Reason::MissingField, "expected a field `UserID`, got none"),
            (&long, Reason::BadId, "field `UserID`: expected 1 to 256 bytes, got 257"),
            (
                &shape("AlarmID", "\"\""),
                Reason::BadId,
                "field `AlarmID`: expected 1 to 256 bytes, got an empty string",
            ),
            (&shape("AlarmID", "7"), Reason::WrongType, "field `AlarmID`: expected a string, got a number"),
            (&shape("AlarmID", "null"), Reason::WrongType, "field `AlarmID`: expected a string, got null"),
            (
                &shape("AlarmID", "{\"a\":[]}"),
                Reason::WrongType,
                "field `AlarmID`: expected a string, got an object",
            ),
            (
                &shape("AlarmID", "[1,\"\"]"),
                Reason::WrongType,
                "field `AlarmID`: expected a string, got an array",
            ),
            (
                &shape("AlarmID", "\"a\",\"alarmid\":\"a\""),
                Reason::DuplicateField,
                "expected field `AlarmID` once, got it again",
            ),
            (
                &shape("AlarmID", "\"a\u{1}\""),
                Reason::NotJson,
                "expected a JSON object: control character (\\\\u0000-\\\\u001F) found while parsing a string at line 1 column 14",
            ),
            (
                &shape("AlarmID", "\"\\ud800\""),
                Reason::NotJson,
                "expected a JSON object: unexpected end of hex escape at line 1 column 19",
            ),
            (
                &json("yesterday\\n"),
                Reason::BadTimestamp,
                "field `ChangedAt`: expected an RFC 3339 time like `2006-01-02T15:04:05.999999999+01:00`, got `yesterday\\n`",
            ),
            (
                &json("").replace("WARNING", "OK"),
                Reason::UnknownStatus,
                "field `Status`: expected `CLEARED`, `WARNING` or `CRITICAL`, got `OK`",
            ),
        ] {
            let rejection = decode_change(payload.as_bytes()).expect_err(payload);
            assert_eq!((rejection.reason, rejection.to_string().as_str()), (reason, sentence), "{payload}");
        }
        let rejection = decode_request(b"{\"x\":\"\xff\",\"UserID\":\"u\"}").expect_err("not UTF-8");
        assert_eq!(rejection.to_string(), "expected UTF-8, got byte 0xff at 6");
        assert_eq!(rejection.reason, Reason::NotUtf8);
    }

    #[test]
    fn reasons_count_in_the_order_they_are_listed() {
        assert!(Reason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    }

    fn digest(user: &str, alarms: usize) -> Digest {
        let alarm = |at: usize| {
            let id = AlarmId(Id::new(&format!("\u{1}\"{at}")).expect("a valid id"));
            (id, Condition::new(Timestamp::new(at as i64, 0), Status::Critical))
        };
        Digest { user: UserId(Id::new(user).expect("a valid id")), alarms: (0..alarms).map(alarm).collect() }
    }

    #[test]
    fn a_digest_is_written_as_the_contract_says() {
        let mut out = b"before".to_vec();
        let ranges = encode_digest(&digest("ann \"x\"", 2), 1 << 20, &mut out);
        assert_eq!((ranges.len(), &ranges[0]), (1, &(6..out.len())));
        assert_eq!(
            std::str::from_utf8(&out[6..]).expect("JSON is UTF-8"),
            r#"{"UserID":"ann \"x\"","ActiveAlarms":[{"AlarmID":"\u0001\"0","Status":"CRITICAL","LatestChangedAt":"1970-01-01T00:00:00Z"},{"AlarmID":"\u0001\"1","Status":"CRITICAL","LatestChangedAt":"1970-01-01T00:00:01Z"}]}"#
        );
    }

    #[test]
    fn a_digest_that_is_too_large_becomes_several_that_are_as_large_as_may_be() {
        let digest = digest("ann", 500);
        for bytes_max in DIGEST_BYTES_MAX_AT_LEAST..DIGEST_BYTES_MAX_AT_LEAST + 200 {
            let mut out = Vec::new();
            let ranges = encode_digest(&digest, bytes_max, &mut out);
            let mut told = Vec::new();
            for range in &ranges {
                assert!(
                    range.len() <= bytes_max && (range.len() > bytes_max - 100 || range.end == out.len())
                );
                let json: serde_json::Value =
                    serde_json::from_slice(&out[range.clone()]).expect("valid JSON");
                assert_eq!(json["UserID"], "ann");
                told.extend(json["ActiveAlarms"].as_array().expect("an array").iter().cloned());
            }
            let ids: Vec<_> = told.iter().map(|alarm| alarm["AlarmID"].as_str().expect("a string")).collect();
            let expected: Vec<_> = (0..500).map(|at| format!("\u{1}\"{at}")).collect();
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn the_largest_digest_of_one_alarm_fits_where_it_is_said_to_fit() {
        let id = || Id::new(&"\u{1}".repeat(256)).expect("a valid id");
        let instant = parse_timestamp("0000-01-01T00:00:00.123456789+23:59").expect("a valid time");
        let alarms = vec![(AlarmId(id()), Condition::new(instant, Status::Critical))];
        let mut out = Vec::new();
        encode_digest(&Digest { user: UserId(id()), alarms }, DIGEST_BYTES_MAX_AT_LEAST, &mut out);
        assert!(out.len() <= DIGEST_BYTES_MAX_AT_LEAST, "{}", out.len());
    }
}
