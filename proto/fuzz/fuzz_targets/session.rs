//! All that a server may say on one connection: cut anywhere it means the same, and what is answered is NATS.
#![no_main]

use std::time::Duration;

use nats_wire::session::{Session, SessionConfig};
use nats_wire::{ClientOp, ConnectOptions, Limits, ServerDecoder, Step};

const MOMENT: Duration = Duration::from_secs(1);

/// What saves the fuzzer from finding it by itself.
const READY: &[u8] = b"INFO {\"max_payload\":1048576}\r\nPONG\r\n";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [choice, stream @ ..] = input else { return };
    let start: &[u8] = if choice % 2 == 0 { b"" } else { READY };
    let whole = Outcome::of(start, stream, usize::MAX);
    let cut = Outcome::of(start, stream, 1 + usize::from(choice / 2 % 32));
    assert_eq!(whole, cut);
});

#[derive(PartialEq, Debug)]
struct Outcome {
    events: Vec<String>,
    output: Vec<u8>,
    fault: Option<String>,
}

impl Outcome {
    fn of(start: &[u8], stream: &[u8], piece: usize) -> Self {
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits { line_bytes_max: 200, info_bytes_max: 200, payload_bytes_max: 1000 },
            handshake_max: MOMENT,
            ping_interval: MOMENT,
            answer_max: MOMENT,
            max_payload_at_least: 100,
        };
        let mut session = Session::new(config, MOMENT);
        let mut outcome = Self { events: Vec::new(), output: Vec::new(), fault: None };
        let mut buffer = Vec::new();
        for bytes in std::iter::once(start).chain(stream.chunks(piece)) {
            buffer.extend_from_slice(bytes);
            if !outcome.take(&mut session, &mut buffer) {
                break;
            }
        }
        outcome.output.extend_from_slice(session.output());
        answers(&outcome.output);
        outcome
    }

    /// Takes what is complete; says whether the connection is still of use.
    fn take(&mut self, session: &mut Session, buffer: &mut Vec<u8>) -> bool {
        loop {
            match session.receive(buffer) {
                Ok((used, event)) => {
                    let event = event.map(|event| format!("{event:?}"));
                    buffer.drain(..used);
                    match event {
                        Some(event) => self.events.push(event),
                        None => return true,
                    }
                }
                Err(fault) => {
                    self.fault = Some(fault.to_string());
                    return false;
                }
            }
        }
    }
}

/// CONNECT and PING once, and otherwise nothing but PONG.
fn answers(mut output: &[u8]) {
    let mut decoder = ServerDecoder::new(Limits::server());
    let mut ops = 0;
    while !output.is_empty() {
        let Ok(Step::Op { op, used }) = decoder.decode(output) else {
            panic!("not NATS: {}", output.escape_ascii())
        };
        match (ops, op) {
            (0, ClientOp::Connect(json)) => drop(ConnectOptions::parse(json).expect("it is ours")),
            (1, ClientOp::Ping) => {}
            // A server may ask before it has told who it is? No: then it is given up.
            (2.., ClientOp::Pong) => {}
            (at, op) => panic!("operation {at}: {op:?}"),
        }
        ops += 1;
        output = &output[used..];
    }
}
