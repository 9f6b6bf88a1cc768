//! The head of an HTTP request: cut anywhere it means the same, and what is taken can be written again.
#![no_main]

use alarm_digest::http_request::{Format, HEAD_BYTES_MAX, Refusal, Request, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    // What is wrong or complete early stays so, whatever follows.
    for end in 0..bytes.len() {
        match parse(&bytes[..end]) {
            Ok(None) => {}
            early => {
                assert_eq!(early, whole, "from byte {end} on");
                break;
            }
        }
    }
    match whole {
        Ok(Some(request)) => comes_back(&request),
        Ok(None) => assert!(bytes.len() < HEAD_BYTES_MAX),
        Err(refusal) => {
            assert!(!matches!(refusal, Refusal::NotFound | Refusal::Late), "that is for others to say");
            assert!(refusal.status()[..3].parse().is_ok_and(|code: u16| (400..600).contains(&code)));
        }
    }
});

fn comes_back(request: &Request<'_>) {
    let Request { is_head, path, format } = *request;
    assert!(!path.contains(['?', ' ', '\r', '\n']), "{path}");
    let method = if is_head { "HEAD" } else { "GET" };
    let accept = match format {
        Format::OpenMetrics => "application/openmetrics-text",
        Format::Text => "text/plain",
    };
    let written = format!("{method} {path}?x HTTP/1.1\r\nHost: a\r\naccept: {accept};q=0.5\r\n\r\n");
    assert_eq!(parse(written.as_bytes()), Ok(Some(*request)));
}
