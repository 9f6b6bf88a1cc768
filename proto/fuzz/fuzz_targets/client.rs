//! What a client reads: the decoder against the reference.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/reference/mod.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|input: &[u8]| reference::fuzz_input(reference::Side::Client, input));
