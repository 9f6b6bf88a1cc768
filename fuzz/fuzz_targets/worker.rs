//! Durable mode behind a server that says anything: no panic, what goes out is NATS that a server takes, and nothing is
//! acknowledged that did not come.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use alarm_digest::alarm::Timestamp;
use alarm_digest::config::Cli;
use alarm_digest::durable::worker::{Worker, WorkerConfig};
use alarm_digest::logic::Logic;
use clap::Parser;
use nats_wire::session::SignIn;
use nats_wire::{ClientOp, Limits, ServerDecoder, Step};

const READY: [&[u8]; 2] = [b"INFO {\"max_payload\":4096,\"headers\":true}\r\nPONG\r\n", b"PONG\r\n"];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [choice, stream @ ..] = input else { return };
    let piece = if choice & 1 == 0 { usize::MAX } else { 1 + usize::from(choice >> 1 & 31) };
    // So that requests expire, sometimes.
    let step = Duration::from_millis(u64::from(choice >> 6) * 700);
    let mut end = End::new(step);
    READY.iter().for_each(|bytes| end.hears(bytes));
    for bytes in stream.chunks(piece) {
        end.hears(bytes);
    }
    end.worker.drain(end.now);
    end.hears(b"PONG\r\n");
    // What is not acknowledged comes again on the next connection.
    end.is_up = true;
    end.buffer.clear();
    end.worker.on_link(SignIn::default(), end.now);
    READY.iter().for_each(|bytes| end.hears(bytes));
    end.worker.on_link_lost(end.now);
    check(&end.output, stream);
});

fn config() -> WorkerConfig {
    static CONFIG: OnceLock<WorkerConfig> = OnceLock::new();
    let config = || {
        let arguments = ["alarm-digest", "--output-bytes-max", "65536", "--js-cached-users-max", "1"];
        let cli = Cli::try_parse_from(arguments).expect("arguments");
        WorkerConfig { batch: 2, open_max: 3, ..cli.worker_config().expect("a configuration") }
    };
    CONFIG.get_or_init(config).clone()
}

struct End {
    worker: Worker,
    is_up: bool,
    buffer: Vec<u8>,
    /// Of each connection.
    output: Vec<Vec<u8>>,
    now: Duration,
    step: Duration,
}

impl End {
    fn new(step: Duration) -> Self {
        let mut worker = Worker::new(config(), "_INBOX.a", 7).watching_backlog();
        let now = Duration::from_secs(1);
        worker.on_link(SignIn::default(), now);
        Self { worker, is_up: true, buffer: Vec::new(), output: Vec::new(), now, step }
    }

    fn hears(&mut self, bytes: &[u8]) {
        if !self.is_up {
            return;
        }
        self.now += self.step;
        self.buffer.extend_from_slice(bytes);
        self.worker.heard(self.now);
        loop {
            let received = self.worker.receive(&self.buffer, self.now);
            if let Ok(used) = received {
                self.buffer.drain(..used);
            }
            self.worker.finish_turn(self.now);
            let written = self.worker.output().len();
            if written > 0 {
                self.output.push(self.worker.output().to_vec());
                self.worker.wrote(written, self.now);
            }
            match received {
                Err(_) => self.is_up = false,
                Ok(used) if used > 0 || written > 0 => continue,
                Ok(_) => self.is_up = self.worker.on_time(self.now, Timestamp::new(1_800_000_000, 0)).is_ok(),
            }
            if !self.is_up {
                self.worker.on_link_lost(self.now);
            }
            return;
        }
    }
}

/// All that was written is what a server takes, and each ack subject came in `stream`.
fn check(output: &[Vec<u8>], stream: &[u8]) {
    for mut output in output.iter().map(Vec::as_slice) {
        let mut decoder = ServerDecoder::new(Limits::server());
        while !output.is_empty() {
            let Ok(Step::Op { op, used }) = decoder.decode(output) else {
                panic!("not what a server takes: {}", output.escape_ascii())
            };
            if let ClientOp::Publish(publish) = op
                && let Some(ack) = publish.subject.strip_prefix(b"$JS.ACK.")
            {
                let came = stream.windows(ack.len()).any(|window| window == ack);
                assert!(came, "{} did not come", publish.subject.escape_ascii());
            }
            output = &output[used..];
        }
    }
}
