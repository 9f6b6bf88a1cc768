//! A short cut for the usual shape, in one pass: an object of just the fields that are needed, in any order and in their
//! usual case, each once; ids without escapes, instants in UTC. Whatever is not of that shape is left to serde_json.
//!
//! Nothing is searched for: each value is read as what it must be, and what it must be begins and ends with a quote.
//!
//! Never: refusing anything, accepting anything that serde_json would read otherwise. The tests and `fuzz/` hold one
//! against the other.

use time::{Date, Month, UtcDateTime};

use crate::alarm::{AlarmId, Change, Condition, Id, Status, Timestamp, UserId};

/// The change in `payload`, if it is of the usual shape.
pub(super) fn change(payload: &[u8]) -> Option<Change> {
    let (mut user, mut alarm, mut status, mut changed_at) = (None, None, None, None);
    let mut scan = Scan(payload);
    scan.mark(b'{')?;
    // As many members as there are fields, each another one: so all of them.
    for end in *b",,,}" {
        scan.mark(b'"')?;
        let is_first = match scan.0.first()? {
            b'U' => user.replace(scan.name(b"UserID\":\"")?.id()?).is_none(),
            b'A' => alarm.replace(scan.name(b"AlarmID\":\"")?.id()?).is_none(),
            b'S' => status.replace(scan.name(b"Status\":\"")?.status()?).is_none(),
            b'C' => changed_at.replace(scan.name(b"ChangedAt\":\"")?.timestamp()?).is_none(),
            _ => return None,
        };
        if !is_first {
            return None;
        }
        scan.mark(end)?;
    }
    scan.end()?;
    let condition = Condition::new(changed_at?, status?);
    Some(Change { user: UserId(user?), alarm: AlarmId(alarm?), condition })
}

/// The user in the `payload` of a request, if it is of the usual shape.
pub(super) fn request(payload: &[u8]) -> Option<UserId> {
    let mut scan = Scan(payload);
    scan.mark(b'{')?;
    scan.mark(b'"')?;
    let user = scan.name(b"UserID\":\"")?.id()?;
    scan.mark(b'}')?;
    scan.end()?;
    Some(UserId(user))
}

/// What has not been read yet. Each of these takes something from its front or gives none.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self, text: &[u8; N]) -> Option<()> {
        let (first, rest) = self.0.split_first_chunk()?;
        (first == text).then(|| self.0 = rest)
    }

    /// Blanks and this mark.
    #[inline(always)]
    fn mark(&mut self, mark: u8) -> Option<()> {
        self.take(&[mark]).or_else(|| self.mark_behind_blanks(mark))
    }

    #[inline(never)]
    fn mark_behind_blanks(&mut self, mark: u8) -> Option<()> {
        while let [byte, rest @ ..] = self.0
            && is_blank(*byte)
        {
            self.0 = rest;
        }
        self.take(&[mark])
    }

    /// A name from its second byte up to the first one of its string, as in `Status":"`. Blanks may stand around the colon.
    #[inline(always)]
    fn name<const N: usize>(&mut self, text: &[u8; N]) -> Option<&mut Self> {
        if self.take(text).is_none() {
            self.0 = self.0.strip_prefix(&text[..N - 2])?;
            self.mark(b':')?;
            self.mark(b'"')?;
        }
        Some(self)
    }

    /// The rest of a string with its closing quote, as the next two.
    fn id(&mut self) -> Option<Id> {
        if let Some((text, [b'"', rest @ ..])) = self.0.split_first_chunk()
            && let Some(id) = Id::from_canonical_uuid(text)
        {
            self.0 = rest;
            return Some(id);
        }
        let end = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = rest;
        self.take(b"\"")?;
        Id::new(std::str::from_utf8(text).ok()?).ok()
    }

    fn status(&mut self) -> Option<Status> {
        if self.take(b"WARNING\"").is_some() {
            return Some(Status::Warning);
        }
        if self.take(b"CRITICAL\"").is_some() {
            return Some(Status::Critical);
        }
        self.take(b"CLEARED\"").map(|()| Status::Cleared)
    }

    /// `2006-01-02T15:04:05Z` with or without a fraction of at most nine digits, in years from 1970 on.
    fn timestamp(&mut self) -> Option<Timestamp> {
        let (text, rest) = self.0.split_first_chunk::<19>()?;
        self.0 = rest;
        let nanos = self.fraction()?;
        self.take(b"Z\"")?;
        let [century, _, year, _, _, month, ..] = pairs(text.first_chunk()?, b"0000-00-")?;
        let [day, ..] = pairs(text[8..].first_chunk()?, b"00T00:00")?;
        let [hour, _, _, minute, _, _, second, _] = pairs(text.last_chunk()?, b"00:00:00")?;
        let year = i32::from(century) * 100 + i32::from(year);
        let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
        let days = date.to_julian_day() - UtcDateTime::UNIX_EPOCH.date().to_julian_day();
        let is_time = hour < 24 && minute < 60 && second < 60;
        (is_time && days >= 0).then(|| {
            let seconds = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
            Timestamp::new(i64::from(days) * 86_400 + seconds, nanos)
        })
    }

    /// A point and one to nine digits, in nanoseconds; where there is no point, zero.
    fn fraction(&mut self) -> Option<u32> {
        const UNITS: [u32; 10] = [0, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];
        if self.take(b".").is_none() {
            return Some(0);
        }
        let (mut value, mut digits) = (0, 0);
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0
            && digits < 9
        {
            (value, digits, self.0) = (value * 10 + u32::from(digit - b'0'), digits + 1, rest);
        }
        (digits > 0).then(|| value * UNITS[digits])
    }

    /// Blanks and nothing more.
    fn end(&self) -> Option<()> {
        self.0.iter().all(|byte| is_blank(*byte)).then_some(())
    }
}

/// Source: RFC 8259, section 2.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The numbers that any two neighbouring digits write in a text of the form of `form`, where a zero stands for any digit.
///
/// All eight bytes at once: a digit becomes its value, anything else becomes 0 if it is right, and whatever is greater
/// than that turns up a top bit.
#[inline(always)]
fn pairs(text: &[u8; 8], form: &[u8; 8]) -> Option<[u8; 8]> {
    let up = u64::from_le_bytes(form.map(|byte| if byte == b'0' { 0x80 - 10 } else { 0x80 - 1 }));
    let digits = u64::from_le_bytes(*text) ^ u64::from_le_bytes(*form);
    let top_bits = (digits | digits.wrapping_add(up)) & u64::from_le_bytes([0x80; 8]);
    (top_bits == 0).then(|| (digits * 10 + (digits >> 8)).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compare;
    use super::*;

    const USUAL: &str = r#"{"UserID":"0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b","AlarmID":"a","Status":"WARNING","ChangedAt":"2026-11-24T10:00:00.25Z"}"#;

    #[test]
    fn the_usual_shapes_take_the_short_cut() {
        for payload in [
            USUAL,
            r#"{"ChangedAt":"2026-11-24T10:00:00Z","Status":"CLEARED","AlarmID":"ü /","UserID":"u"}"#,
            &USUAL.replace("\":", "\" : ").replace(',', " ,\n\t").replace('}', "\r\n} \n"),
        ] {
            assert!(change(payload.as_bytes()).is_some(), "{payload}");
        }
        assert!(request(b"{ \"UserID\" : \"u\" }\n").is_some());
    }

    #[test]
    fn every_single_byte_change_of_the_usual_shape_is_read_alike() {
        for usual in [USUAL, r#"{"UserID":"u"}"#, r#"{"UserID":"0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b"}"#] {
            for at in 0..usual.len() {
                for byte in 0..=255 {
                    let mut payload = usual.as_bytes().to_vec();
                    payload[at] = byte;
                    compare(&payload);
                    payload.insert(at, usual.as_bytes()[at]);
                    compare(&payload);
                    payload.truncate(at);
                    compare(&payload);
                }
            }
        }
    }

    /// A member whose value is most often right.
    fn member(name: &'static str) -> impl Strategy<Value = String> {
        let right = match name {
            "Status" => "\"(CLEARED|WARNING|CRITICAL)\"",
            "ChangedAt" => {
                r#""(19[67]|202)[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,10})?Z""#
            }
            _ => r#""(.{0,9}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})""#,
        };
        let any = ".{0,20}".prop_map(|text| serde_json::json!(text).to_string());
        let other = prop::sample::select(vec!["1", "null", "{}", r#""\u0041""#, "\"\t\"", "\"a", "a\""]);
        let value = prop_oneof![20 => right, 1 => any, 1 => other.prop_map(str::to_owned)];
        let blank = || prop_oneof![20 => Just(""), 5 => Just(" "), 1 => prop::sample::select(vec!["\n\t\r", "\u{b}", "\u{c}", "ü"])];
        (value, blank(), blank(), blank(), blank())
            .prop_map(move |(value, a, b, c, d)| format!("{a}\"{name}\"{b}:{c}{value}{d}"))
    }

    /// Each field once in any order, and at times another member.
    fn members() -> impl Strategy<Value = Vec<String>> {
        let fields = (member("UserID"), member("AlarmID"), member("Status"), member("ChangedAt"));
        let other = prop::sample::select(vec!["UserID", "Status", "userid", "x"]).prop_flat_map(member);
        (fields, prop::option::weighted(0.1, other))
            .prop_map(|((a, b, c, d), other)| [a, b, c, d].into_iter().chain(other).collect::<Vec<_>>())
            .prop_shuffle()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

        #[test]
        fn objects_of_any_members_are_read_alike(members in members(), behind in "[ \n]{0,2}[\u{c}x]{0,1}") {
            compare(format!("{{{}}}{behind}", members.join(",")).as_bytes());
        }
    }
}
