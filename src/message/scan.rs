//! A short cut for the usual shape: one flat object of known fields in their usual case, each once, whose values are
//! strings of plain ASCII without escapes. Whatever is not of that shape is left to serde_json.
//!
//! Never: refusing anything, accepting anything that serde_json would read otherwise. The tests hold one against the
//! other.

use std::borrow::Cow;

use super::{ALARM_ID, CHANGED_AT, Fields, STATUS, USER_ID, Value};

/// The fields of `payload`, if it is of the usual shape.
pub(super) fn fields(payload: &[u8]) -> Option<Fields<'_>> {
    let mut fields = Fields::default();
    let mut rest = blanks(payload).strip_prefix(b"{")?;
    loop {
        let (name, after) = string(blanks(rest))?;
        let (value, after) = string(blanks(blanks(after).strip_prefix(b":")?))?;
        let field = match name {
            "AlarmID" => ALARM_ID,
            "UserID" => USER_ID,
            "Status" => STATUS,
            "ChangedAt" => CHANGED_AT,
            _ => return None,
        };
        if fields.values[field].replace(Value::Text(Cow::Borrowed(value))).is_some() {
            return None;
        }
        match blanks(after).split_first()? {
            (b',', after) => rest = after,
            (b'}', after) => return blanks(after).is_empty().then_some(fields),
            _ => return None,
        }
    }
}

/// Without the blanks in front. Other white space is not usual.
fn blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

/// The plain string that `bytes` begin with, and what follows its closing quote.
fn string(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let bytes = bytes.strip_prefix(b"\"")?;
    let end = plain(bytes);
    let rest = bytes.get(end..)?.strip_prefix(b"\"")?;
    // Cheap for so few bytes that are all ASCII, and nothing that needs a belief.
    Some((std::str::from_utf8(&bytes[..end]).ok()?, rest))
}

/// How many bytes at the front are plain: printable ASCII but for the quote and the backslash. Eight at a time.
fn plain(bytes: &[u8]) -> usize {
    let (words, tail) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return at * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &u8| matches!(byte, 0x20..0x80) && !matches!(byte, b'"' | b'\\');
    bytes.len() - tail.len() + tail.iter().take_while(|byte| is_plain(byte)).count()
}

/// The highest bit of the first byte that is not plain, and perhaps of some after it.
///
/// A byte is below `n` exactly when subtracting `n` borrows into its highest bit, which was not set; a borrow can reach
/// only the bytes after it. Source: Bit Twiddling Hacks, "Determine if a word has a byte less than n".
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | equal(b'"') | equal(b'\\') | word) & HIGHS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What serde_json makes of it must be what the short cut makes of it, if it makes anything of it.
    fn agrees(payload: &[u8]) -> Result<(), TestCaseError> {
        if let Some(fields) = fields(payload) {
            let expected = Fields::parse_any(payload).map_err(|rejection| {
                TestCaseError::fail(format!("accepted {}, but {rejection}", payload.escape_ascii()))
            })?;
            prop_assert_eq!(fields, expected);
        }
        Ok(())
    }

    const USUAL: &str = r#"{"AlarmID":"0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b","UserID":"u","Status":"WARNING","ChangedAt":"2026-11-24T10:00:00Z"}"#;

    #[test]
    fn the_usual_shapes_take_the_short_cut() {
        for payload in [USUAL, &USUAL.replace(':', ": ").replace(',', ", "), r#" { "UserID" : "" } "#] {
            assert!(fields(payload.as_bytes()).is_some(), "{payload}");
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

    #[test]
    fn plain_bytes_are_counted_the_same_wherever_the_first_other_byte_is() {
        for len in 0..40 {
            for byte in 0..=255_u8 {
                let mut bytes = vec![b'x'; len];
                bytes.extend([byte, b'x', b'"', b'x', b'x', b'x', b'x', b'x', b'x', b'x']);
                let is_plain = (0x20..0x80).contains(&byte) && byte != b'"' && byte != b'\\';
                assert_eq!(plain(&bytes), if is_plain { len + 2 } else { len }, "{len} {byte}");
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
