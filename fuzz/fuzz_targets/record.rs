//! What a bucket holds of a user, when others could write to it: refused, or a whole record that can be used like one of
//! ours, and comes back as it is stored.
#![no_main]

use alarm_digest::alarm::{AlarmId, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::durable::record::{Decision, Nonce, Record, token};
use alarm_digest::message::encode_digest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let user = stored_user(bytes).unwrap_or_else(|| UserId(Id::new("ann").expect("an id")));
    let _ = token(&user);
    let Ok(record) = Record::decode(&user, bytes) else { return };
    assert_eq!(record.encode(), bytes, "there is one way to write it");
    assert!(bytes.len() <= record.bytes_max());
    comes_back(&user, &record);

    let mut used = record.clone();
    let alarm = AlarmId(Id::new("disk").expect("an id"));
    let condition = Condition::new(Timestamp::new(1_800_000_000, 5), Status::Warning);
    let bytes_max = used.bytes_max_with(&alarm);
    used.apply(&alarm, condition);
    assert!(!used.apply(&alarm, condition), "the same again changes nothing");
    comes_back(&user, &used);
    finish(&mut used);
    assert!(used.bytes_max() <= bytes_max);
    while used.decide(Nonce(7), bytes_max, |_, _| true) == Decision::Part {
        finish(&mut used);
    }
    comes_back(&user, &used);
    finish(&mut used);
    assert_eq!(used.decide(Nonce(8), bytes_max, |_, _| true), Decision::Nothing, "all is told");
    let horizon = Timestamp::new(1_800_000_000, 0);
    used.forget(horizon);
    assert!(used.alarms().all(|known| known.latest.status().is_active() || known.latest.changed_at() >= horizon));
    comes_back(&user, &used);
});

/// The user that the bytes name, at the place where a record has it.
fn stored_user(bytes: &[u8]) -> Option<UserId> {
    let at = if *bytes.get(1)? == 1 { 26 } else { 10 };
    let (length, rest) = bytes.get(at..)?.split_at_checked(2)?;
    let text = rest.get(..u16::from_le_bytes(length.try_into().ok()?).into())?;
    Id::new(std::str::from_utf8(text).ok()?).ok().map(UserId)
}

fn comes_back(user: &UserId, record: &Record) {
    let bytes = record.encode();
    assert_eq!(bytes.len(), record.encoded_bytes());
    assert_eq!(Record::decode(user, &bytes).as_ref(), Ok(record));
}

/// Tells what is on its way out, as far as there is something.
fn finish(record: &mut Record) {
    if let Some((_, digest)) = record.outbox() {
        assert!(!digest.alarms.is_empty() && digest.alarms.iter().all(|(_, told)| told.status().is_active()));
        let ranges = encode_digest(&digest, usize::MAX, &mut Vec::new());
        assert_eq!(ranges.len(), 1);
        record.clear_outbox();
    }
}
