//! Header blocks: the view against the reference.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/reference/mod.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|input: &[u8]| reference::compare_headers(input));
