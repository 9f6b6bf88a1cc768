//! The decoder against the reference, on made-up streams and on everything that fuzzing has kept.

mod reference;

use std::path::Path;

use nats_wire::Limits;
use proptest::prelude::*;
use reference::{Side, compare, compare_headers, fuzz_input};

/// Bytes that look like operations of `side`'s peer: mostly right, in every spelling, and now and then wrong.
fn stream(side: Side) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(operation(side), 0..8).prop_map(|operations| operations.concat())
}

fn operation(side: Side) -> impl Strategy<Value = Vec<u8>> {
    let messages: &[&str] = match side {
        Side::Client => &["MSG", "HMSG", "msg", "Hmsg"],
        Side::Server => &["PUB", "HPUB", "pub", "hPuB"],
    };
    let lines: &[&str] = match side {
        Side::Client => {
            &["PING", "PONG", "+OK", "-ERR 'x y'", "-ERR", "INFO {} ", "INFO", "PUB a 1", "info\t{\"a\":1}"]
        }
        Side::Server => &[
            "PING",
            "PONG",
            "+ok",
            "CONNECT {}",
            "CONNECT{}",
            "INFO {}",
            "SUB a 1",
            "SUB a q 1",
            "sub a",
            "UNSUB 1",
            "UNSUB 1 5",
            "UNSUB 1 x",
            "-ERR 'x'",
            "MSG a 1 1",
        ],
    };
    prop_oneof![
        20 => message(messages),
        5 => (prop::sample::select(lines), junk(), line_end()).prop_map(|(line, junk, end)| [line.as_bytes(), &junk, end].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

fn message(verbs: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let verb = prop::sample::select(verbs);
    let tokens = prop::collection::vec((blank(), token()), 1..5);
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let sizes = (size(), size());
    (verb, tokens, payload, sizes, blank(), junk(), line_end(), payload_end()).prop_map(
        |(verb, tokens, payload, (header, total), blank, junk, line_end, payload_end)| {
            let mut bytes = verb.as_bytes().to_vec();
            for (blank, token) in tokens {
                bytes.extend_from_slice(blank);
                bytes.extend_from_slice(&token);
            }
            if verb.starts_with(['H', 'h']) {
                bytes.extend_from_slice(blank);
                bytes.extend(header.of(payload.len() / 3));
            }
            bytes.extend_from_slice(blank);
            bytes.extend(total.of(payload.len()));
            bytes.extend_from_slice(&junk);
            bytes.extend_from_slice(line_end);
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(payload_end);
            bytes
        },
    )
}

/// How a length is written.
#[derive(Clone, Debug)]
enum Size {
    Right,
    Zeros(usize),
    Wrong(&'static str),
}

impl Size {
    fn of(self, len: usize) -> Vec<u8> {
        match self {
            Self::Right => len.to_string().into_bytes(),
            Self::Zeros(zeros) => format!("{}{len}", "0".repeat(zeros)).into_bytes(),
            Self::Wrong(text) => text.as_bytes().to_vec(),
        }
    }
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        30 => Just(Size::Right),
        2 => (1..12_usize).prop_map(Size::Zeros),
        1 => prop::sample::select(&["-1", "+1", "1x", "x", "99999999999999999999", "1048577", "4294967296"][..]).prop_map(Size::Wrong),
    ]
}

fn token() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => "[a-zA-Z0-9.*>_]{1,12}".prop_map(String::into_bytes),
        4 => "[a-z.]{20,70}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 1..10),
    ]
}

fn blank() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![30 => Just(&b" "[..]), 1 => Just(&b"\t"[..]), 1 => Just(&b" \t  "[..])]
}

fn junk() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![20 => Just(Vec::new()), 1 => prop::sample::select(&[" ", "\t ", "\r", "\rx", "x"][..]).prop_map(|junk| junk.as_bytes().to_vec())]
}

fn line_end() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![20 => Just(&b"\r\n"[..]), 2 => Just(&b"\n"[..]), 1 => Just(&b"\r\r\n"[..]), 1 => Just(&b""[..])]
}

fn payload_end() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![30 => Just(&b"\r\n"[..]), 1 => Just(&b"\n"[..]), 1 => Just(&b"\r"[..]), 1 => Just(&b"x\r\n"[..])]
}

fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        3 => Just(Limits::client()),
        1 => (1..100_usize, 1..100_usize, 0..300_usize).prop_map(|(line, info, payload)| Limits {
            line_bytes_max: line,
            info_bytes_max: info,
            payload_bytes_max: payload,
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn a_client_reads_what_the_reference_reads(stream in stream(Side::Client), limits in limits(), piece in 1..400_usize) {
        compare(Side::Client, limits, &stream, &stream.chunks(piece).collect::<Vec<_>>());
    }

    #[test]
    fn a_server_reads_what_the_reference_reads(stream in stream(Side::Server), limits in limits(), piece in 1..400_usize) {
        compare(Side::Server, limits, &stream, &stream.chunks(piece).collect::<Vec<_>>());
    }

    #[test]
    fn headers_are_read_as_the_reference_reads_them(
        first in prop::sample::select(&["NATS/1.0", "NATS/1.0 503", "NATS/1.0 404 No Messages ", "NATS/1.0418", "NATS/1.0 5", "nats"][..]),
        lines in prop::collection::vec("[A-Za-z:\\- \t\rü]{0,12}", 0..6),
        end in prop::sample::select(&["\r\n", "\n", ""][..]),
    ) {
        compare_headers(format!("{first}{end}{}{end}", lines.iter().map(|line| format!("{line}{end}")).collect::<String>()).as_bytes());
    }
}

#[test]
fn what_fuzzing_kept_still_agrees() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut count = 0;
    for (target, run) in [
        ("client", &(|input: &[u8]| fuzz_input(Side::Client, input)) as &dyn Fn(&[u8])),
        ("server", &|input| fuzz_input(Side::Server, input)),
        ("headers", &|input| compare_headers(input)),
    ] {
        for entry in std::fs::read_dir(seeds.join(target)).expect("the seeds are there") {
            let input = std::fs::read(entry.expect("it can be listed").path()).expect("it can be read");
            run(&input);
            count += 1;
        }
    }
    assert!(count > 100, "only {count} seeds");
}
