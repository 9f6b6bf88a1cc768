//! A short cut for the usual shape: one flat object of known fields in their usual case, each once, whose values are
//! strings without escapes. Whatever is not of that shape is left to serde_json.
//!
//! Never: refusing anything, accepting anything that serde_json would read otherwise. The tests hold one against the
//! other.

use std::borrow::Cow;

use memchr::memchr;

use super::{ALARM_ID, CHANGED_AT, Fields, STATUS, USER_ID, Value};

/// The fields of `text`, if it is of the usual shape.
pub(super) fn fields(text: &str) -> Option<Fields<'_>> {
    if !is_plain(text) {
        return None;
    }
    let mut fields = Fields::default();
    let mut rest = blanks(text).strip_prefix('{')?;
    loop {
        let (field, after) = name(blanks(rest))?;
        let (value, after) = string(blanks(blanks(after).strip_prefix(':')?))?;
        if fields.values[field].replace(Value::Text(Cow::Borrowed(value))).is_some() {
            return None;
        }
        let after = blanks(after);
        match after.as_bytes().first()? {
            b',' => rest = &after[1..],
            b'}' => return blanks(&after[1..]).is_empty().then_some(fields),
            _ => return None,
        }
    }
}

/// Whether every quote in `text` is one that begins or ends a string, and no string needs a second look: no backslash,
/// no control character. One pass without a branch; words or lanes of eight or sixteen bytes took more instructions.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |is_plain, byte| is_plain & (byte >= b' ') & (byte != b'\\'))
}

/// Without the blanks in front. Other white space is not usual.
fn blanks(text: &str) -> &str {
    match text.as_bytes() {
        [b' ', ..] => text.trim_start_matches(' '),
        _ => text,
    }
}

/// The field whose quoted name `text` begins with, and what follows it. Their first letters differ.
fn name(text: &str) -> Option<(usize, &str)> {
    let (field, name) = match text.as_bytes().get(1)? {
        b'A' => (ALARM_ID, "\"AlarmID\""),
        b'U' => (USER_ID, "\"UserID\""),
        b'S' => (STATUS, "\"Status\""),
        b'C' => (CHANGED_AT, "\"ChangedAt\""),
        _ => return None,
    };
    Some((field, text.strip_prefix(name)?))
}

/// The string that `text` begins with, and what follows its closing quote.
fn string(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('"')?;
    let end = memchr(b'"', text.as_bytes())?;
    Some((&text[..end], &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What serde_json makes of it must be what the short cut makes of it, if it makes anything of it.
    fn agrees(payload: &[u8]) -> Result<(), TestCaseError> {
        let Ok(text) = std::str::from_utf8(payload) else { return Ok(()) };
        if let Some(fields) = fields(text) {
            let expected = Fields::parse_any(text)
                .map_err(|rejection| TestCaseError::fail(format!("accepted {text:?}, but {rejection}")))?;
            prop_assert_eq!(fields, expected);
        }
        Ok(())
    }

    const USUAL: &str = r#"{"AlarmID":"0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b","UserID":"u","Status":"WARNING","ChangedAt":"2026-11-24T10:00:00Z"}"#;

    #[test]
    fn the_usual_shapes_take_the_short_cut() {
        for payload in [USUAL, &USUAL.replace(':', ": ").replace(',', ", "), r#" { "UserID" : "" } "#] {
            assert!(fields(payload).is_some(), "{payload}");
        }
    }

    #[test]
    fn every_single_byte_change_of_the_usual_shape_is_read_alike() {
        for at in 0..USUAL.len() {
            for byte in 0..=255 {
                let mut payload = USUAL.as_bytes().to_vec();
                payload[at] = byte;
                agrees(&payload).unwrap();
                payload.truncate(at);
                agrees(&payload).unwrap();
            }
        }
    }

    /// Pieces of JSON that meet in every way, most of them wrong.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "{", "}", ",", ":", " ", "\"", "\\", "\"AlarmID\"", "\"UserID\"", "\"Status\"", "\"ChangedAt\"", "\"userid\"",
                "\"UserID\":\"u\"", "\"AlarmID\": \"a\" ,", "\"x\"", "\"\"", "\"\\u0041\"", "\"\\\"\"", "\"ü\"", "null", "1", "[]", "{}",
                "\t", "\n", "\0", "\u{7f}", "{\"UserID\":\"",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..12),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 50_000, ..ProptestConfig::default() })]

        #[test]
        fn the_short_cut_reads_what_serde_json_reads(payload in pieces()) {
            agrees(&payload)?;
        }

        #[test]
        fn the_short_cut_reads_objects_of_any_strings_alike(
            members in prop::collection::vec((prop::sample::select(vec!["AlarmID", "UserID", "Status", "ChangedAt"]), ".{0,20}"), 0..5),
        ) {
            let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{}", serde_json::json!(value))).collect();
            agrees(format!("{{{}}}", members.join(",")).as_bytes())?;
        }
    }
}
