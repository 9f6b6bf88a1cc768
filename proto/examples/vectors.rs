//! Runs a file of test vectors: every vector whole, byte by byte, and cut in two, as the file's `meta` says.
//!
//! `cargo run --example vectors -- tests/codec-vectors.json`
//!
//! Levels `must` and `should` are judged, `quirk` is not: there the references disagree. INFO from a server and CONNECT
//! from a client are also parsed as typed JSON. Prints the failing vectors with what was expected and what came, and
//! ends with `N passed, N failed`.

use std::process::ExitCode;

use nats_wire::{
    ClientDecoder, ClientOp, ConnectOptions, DecodeErrorKind, Headers, Limits, ServerDecoder, ServerInfo,
    ServerOp, Step,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: vectors <file of test vectors>");
        return ExitCode::from(2);
    };
    let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if run(&file) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all vectors of `file`, prints the result and returns how many failed.
pub fn run(file: &str) -> usize {
    let file: Value = serde_json::from_str(file).expect("the file is JSON");
    let vectors = file["vectors"].as_array().expect("the file has a list of vectors");
    let judged = |vector: &&Value| vector["level"] != "quirk";
    let mut failed = 0;
    for vector in vectors.iter().filter(judged) {
        if let Err(how) = check(vector) {
            failed += 1;
            println!("{} ({}): {how}", text(&vector["id"]), text(&vector["desc"]));
        }
    }
    let judged = vectors.iter().filter(judged).count();
    println!("{} quirks not judged", vectors.len() - judged);
    println!("{} passed, {failed} failed", judged - failed);
    failed
}

fn check(vector: &Value) -> Result<(), String> {
    let input = input(vector);
    if vector["dir"] == "hdr" {
        return compare("", vector, &read_headers(&input));
    }
    for pieces in cuts(&input, vector["split"] == "sample") {
        let what = match pieces[..] {
            [_] => "whole".to_owned(),
            [a, _] => format!("cut at {}", a.len()),
            _ => format!("in pieces of {}", pieces.first().map_or(0, |piece| piece.len())),
        };
        let came = match text(&vector["dir"]) {
            "c2s" => Reader::new(ServerDecoder::new(limits(vector, Limits::server()))).read(&pieces),
            "s2c" => Reader::new(ClientDecoder::new(limits(vector, Limits::client()))).read(&pieces),
            other => panic!("{other} is no direction"),
        };
        compare(&what, vector, &came)?;
    }
    Ok(())
}

/// Each member that the vector names must be what came; the error must be one of its list.
fn compare(how: &str, vector: &Value, came: &Value) -> Result<(), String> {
    let mut expected = json!({});
    for name in ["end", "ops", "status", "description", "entries"] {
        if let Some(value) = vector.get(name) {
            expected[name] = value.clone();
        }
    }
    let ended = vector["end"] == came["end"]
        && (came["end"] != "error" || contains(&vector["error"], &came["error"]));
    let same_ops = match (vector["ops"].as_array(), came["ops"].as_array()) {
        (Some(expected), Some(came)) => {
            expected.len() == came.len()
                && expected.iter().zip(came).all(|(expected, came)| is_part(expected, came))
        }
        _ => true,
    };
    let same_headers = ["status", "description", "entries"]
        .iter()
        .all(|name| vector.get(name).is_none_or(|value| *value == came[name]));
    if ended && same_ops && same_headers && came.get("late").is_none() {
        return Ok(());
    }
    if vector["end"] == "error" {
        expected["error"] = vector["error"].clone();
    }
    Err(format!("{how}\n  expected {}\n  came     {}", short(&expected), short(came)))
}

fn is_part(expected: &Value, came: &Value) -> bool {
    expected.as_object().expect("an operation is an object").iter().all(|(name, value)| *value == came[name])
}

fn contains(list: &Value, value: &Value) -> bool {
    list.as_array().is_some_and(|list| list.contains(value))
}

fn limits(vector: &Value, defaults: Limits) -> Limits {
    let config = &vector["config"];
    let number = |name: &str| config[name].as_u64().map(|number| number as usize);
    let line = number("max_control_line");
    Limits {
        line_bytes_max: line.unwrap_or(defaults.line_bytes_max),
        info_bytes_max: line.unwrap_or(defaults.info_bytes_max),
        payload_bytes_max: number("max_payload").unwrap_or(defaults.payload_bytes_max),
    }
}

/// The ways to cut `input`: whole, byte by byte, in two.
fn cuts(input: &[u8], sample: bool) -> Vec<Vec<&[u8]>> {
    let mut ways = vec![vec![input], input.chunks(1).collect()];
    let len = input.len();
    if sample {
        ways.push(input.chunks(1448).collect());
        let at = [Some(1), Some(3), Some(4), Some(5), Some(9), Some(len / 2), Some(4000)];
        let from_end = [3, 2, 1].map(|n| len.checked_sub(n));
        let at = at.into_iter().chain(from_end).flatten().filter(|at| (1..len).contains(at));
        ways.extend(at.map(|at| vec![&input[..at], &input[at..]]));
    } else {
        ways.extend((1..len).map(|at| vec![&input[..at], &input[at..]]));
    }
    ways
}

/// One decoder with its buffer, and what it gave.
struct Reader<D> {
    decoder: D,
    buffer: Vec<u8>,
}

/// What the two decoders have in common here: an operation as the vectors write it, and how many bytes it used.
trait Decoder {
    fn next(&mut self, bytes: &[u8]) -> Result<Option<(Value, usize)>, &'static str>;
}

impl<D: Decoder> Reader<D> {
    fn new(decoder: D) -> Self {
        Self { decoder, buffer: Vec::new() }
    }

    fn read(mut self, pieces: &[&[u8]]) -> Value {
        let mut ops = Vec::new();
        for piece in pieces {
            let waited = self.buffer.len();
            self.buffer.extend_from_slice(piece);
            let mut start = 0;
            loop {
                match self.decoder.next(&self.buffer[start..]) {
                    Ok(None) => break,
                    Ok(Some((op, used))) => {
                        start += used;
                        ops.push(op);
                        // Its last byte was here before this piece came.
                        if start <= waited {
                            return json!({ "late": true, "ops": ops });
                        }
                    }
                    Err(kind) => {
                        let again = self.decoder.next(b"PING\r\n");
                        assert_eq!(again, Err(kind), "an error stays");
                        return json!({ "ops": ops, "end": "error", "error": kind });
                    }
                }
            }
            self.buffer.drain(..start);
        }
        json!({ "ops": ops, "end": if self.buffer.is_empty() { "clean" } else { "partial" } })
    }
}

impl Decoder for ServerDecoder {
    fn next(&mut self, bytes: &[u8]) -> Result<Option<(Value, usize)>, &'static str> {
        let Step::Op { op, used } = self.decode(bytes).map_err(|error| error_name(error.kind))? else {
            return Ok(None);
        };
        let op = match op {
            ClientOp::Connect(json) => {
                if ConnectOptions::parse(json).is_err() {
                    return Err("bad_json");
                }
                json!({ "op": "CONNECT", "json": escape(json) })
            }
            ClientOp::Info(json) => json!({ "op": "INFO", "json": escape(json) }),
            ClientOp::Subscribe(sub) => json!({
                "op": "SUB", "subject": escape(sub.subject), "queue": sub.queue.map(escape), "sid": escape(sub.sid)
            }),
            ClientOp::Unsubscribe(unsub) => {
                json!({ "op": "UNSUB", "sid": escape(unsub.sid), "max": unsub.max })
            }
            ClientOp::Ping => json!({ "op": "PING" }),
            ClientOp::Pong => json!({ "op": "PONG" }),
            ClientOp::Ok => json!({ "op": "+OK" }),
            ClientOp::Publish(publish) => {
                let op = json!({ "subject": escape(publish.subject), "reply": publish.reply.map(escape) });
                with_body(op, "PUB", publish.headers, publish.payload)
            }
        };
        Ok(Some((op, used)))
    }
}

impl Decoder for ClientDecoder {
    fn next(&mut self, bytes: &[u8]) -> Result<Option<(Value, usize)>, &'static str> {
        let Step::Op { op, used } = self.decode(bytes).map_err(|error| error_name(error.kind))? else {
            return Ok(None);
        };
        let op = match op {
            ServerOp::Info(json) => {
                if ServerInfo::parse(json).is_err() {
                    return Err("bad_json");
                }
                json!({ "op": "INFO", "json": escape(json) })
            }
            ServerOp::Ping => json!({ "op": "PING" }),
            ServerOp::Pong => json!({ "op": "PONG" }),
            ServerOp::Ok => json!({ "op": "+OK" }),
            ServerOp::Err(text) => json!({ "op": "-ERR", "msg": escape(text.as_bytes()) }),
            ServerOp::Message(message) => {
                let op = json!({
                    "subject": escape(message.subject),
                    "sid": escape(message.sid),
                    "reply": message.reply.map(escape),
                });
                with_body(op, "MSG", message.headers, message.payload)
            }
        };
        Ok(Some((op, used)))
    }
}

fn with_body(mut op: Value, verb: &str, headers: Option<Headers<'_>>, payload: &[u8]) -> Value {
    op["op"] = match headers {
        None => verb.into(),
        Some(headers) => {
            op["hdr_len"] = headers.as_bytes().len().into();
            op["header"] = escape(headers.as_bytes()).into();
            format!("H{verb}").into()
        }
    };
    if payload.len() > 2048 {
        op["payload_len"] = payload.len().into();
        op["payload_sha256"] = hex(&Sha256::digest(payload)).into();
    } else {
        op["payload"] = escape(payload).into();
    }
    op
}

fn read_headers(block: &[u8]) -> Value {
    let headers = Headers::new(block);
    if headers.check().is_err() {
        return json!({ "end": "error", "error": "bad_header" });
    }
    let entries: Vec<_> =
        headers.iter().flatten().map(|(name, value)| [escape(name), escape(value)]).collect();
    json!({
        "end": "clean",
        "status": headers.status(),
        "description": headers.description().map(escape),
        "entries": entries,
    })
}

fn error_name(kind: DecodeErrorKind) -> &'static str {
    match kind {
        DecodeErrorKind::UnknownVerb => "unknown_op",
        DecodeErrorKind::ArgumentCount { .. } => "bad_args",
        DecodeErrorKind::Size => "bad_size",
        DecodeErrorKind::HeaderSize { .. } => "hdr_gt_total",
        DecodeErrorKind::PayloadTooLarge { .. } => "max_payload",
        DecodeErrorKind::LineTooLong { .. } => "max_control_line",
        DecodeErrorKind::Terminator { .. } => "bad_terminator",
        DecodeErrorKind::StrayCr => "stray_cr",
        _ => "not named in the format",
    }
}

/// The bytes of a vector, checked against its length and hash.
fn input(vector: &Value) -> Vec<u8> {
    let bytes = match (&vector["input"], &vector["parts"]) {
        (Value::String(input), _) => unescape(input),
        (_, Value::Array(parts)) => parts.iter().flat_map(part).collect(),
        _ => panic!("{} has neither input nor parts", vector["id"]),
    };
    assert_eq!(vector["len"].as_u64(), Some(bytes.len() as u64), "length of {}", vector["id"]);
    if let Some(expected) = vector["sha256"].as_str() {
        assert_eq!(hex(&Sha256::digest(&bytes)), expected, "hash of {}", vector["id"]);
    }
    if let Some(expected) = vector["hex"].as_str() {
        assert_eq!(hex(&bytes), expected, "bytes of {}", vector["id"]);
    }
    bytes
}

fn part(part: &Value) -> Vec<u8> {
    match part {
        Value::String(literal) => unescape(literal),
        _ => {
            let times = part["times"].as_u64().expect("a repetition says how often") as usize;
            unescape(text(&part["repeat"])).repeat(times)
        }
    }
}

/// ASCII text with `\r`, `\n`, `\t`, `\\` and `\xHH` for other bytes.
fn escape(bytes: &[u8]) -> String {
    let escape = |&byte: &u8| match byte {
        b'\'' | b'"' => (byte as char).to_string(),
        _ => byte.escape_ascii().to_string(),
    };
    bytes.iter().map(escape).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    loop {
        let (byte, used) = match rest {
            [] => return bytes,
            [b'\\', b'x', high, low, ..] => {
                let digit =
                    |digit: u8| (digit as char).to_digit(16).unwrap_or_else(|| panic!("bad \\x in {text}"));
                ((digit(*high) * 16 + digit(*low)) as u8, 4)
            }
            [b'\\', b'r', ..] => (b'\r', 2),
            [b'\\', b'n', ..] => (b'\n', 2),
            [b'\\', b't', ..] => (b'\t', 2),
            [b'\\', b'\\', ..] => (b'\\', 2),
            [b'\\', ..] => panic!("unknown escape in {text}"),
            [byte, ..] => (*byte, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 600 {
        text
    } else {
        format!("{}… ({} bytes)", &text[..text.floor_char_boundary(600)], text.len())
    }
}
