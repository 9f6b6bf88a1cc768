//! The JSON of INFO and of CONNECT: what is taken is an object, comes back as it was written, and shows no secret.
#![no_main]

use nats_wire::{ConnectOptions, JsonLine, ServerInfo};

const SECRET: &str = "5ecret-7f3a9c";

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    if let Ok(info) = ServerInfo::parse(json) {
        let written = info.to_json();
        check(json, &written);
        assert_eq!(ServerInfo::parse(written.as_bytes()).expect("it is ours"), info);
    }
    if let Ok(options) = ConnectOptions::parse(json) {
        let written = options.to_json();
        check(json, &written);
        assert_eq!(ConnectOptions::parse(written.as_bytes()).expect("it is ours"), options);
        shows_no_secret(options);
    }
});

fn check(json: &[u8], written: &str) {
    assert!(json.trim_ascii_start().starts_with(b"{"), "{}", json.escape_ascii());
    assert!(JsonLine::new(written).is_ok(), "{written}");
}

fn shows_no_secret(mut options: ConnectOptions) {
    if format!("{options:?}").contains(SECRET) {
        return; // as its name, say
    }
    let secret = Some(SECRET.to_owned());
    (options.pass, options.auth_token) = (secret.clone(), secret.clone());
    (options.jwt, options.sig) = (secret.clone(), secret);
    let shown = format!("{options:?}");
    assert!(!shown.contains(SECRET), "{shown}");
}
