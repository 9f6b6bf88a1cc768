//! What stands behind the flags: spans, CPUs, subjects, names.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        alarm_digest::config::check_parsers(text);
    }
});
