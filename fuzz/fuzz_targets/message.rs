//! Payloads: the short cut against serde_json.
#![no_main]

libfuzzer_sys::fuzz_target!(|payload: &[u8]| alarm_digest::message::compare(payload));
