//! Memory mode behind a server that says anything: no panic, and what goes out is NATS that a server takes, and our
//! contract. Without a PONG among it, which answers what was asked when the bytes were cut, the same goes out, whole or cut.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use alarm_digest::alarm::Timestamp;
use alarm_digest::config::Cli;
use alarm_digest::logic::Logic;
use alarm_digest::shard::{Mail, Shard, ShardConfig, ShardId};
use clap::Parser;
use nats_wire::session::SignIn;
use nats_wire::{ClientOp, Limits, ServerDecoder, Step};

const MAX_PAYLOAD: usize = 4096;
const READY: &[u8] = b"INFO {\"max_payload\":4096,\"headers\":true}\r\nPONG\r\nPONG\r\n";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [choice, stream @ ..] = input else { return };
    let shards = 1 + usize::from(choice % 2);
    let cut = run(shards, stream, 1 + usize::from(choice / 2));
    if shards == 1 && !stream.windows(4).any(|verb| verb.eq_ignore_ascii_case(b"PONG")) {
        assert_eq!(cut, run(shards, stream, usize::MAX));
    }
});

fn config() -> ShardConfig {
    static CONFIG: OnceLock<ShardConfig> = OnceLock::new();
    let config = || {
        let arguments = ["alarm-digest", "--mail-max", "3", "--unsettled-bytes-max", "500", "--output-bytes-max", "65536"];
        Cli::try_parse_from(arguments).expect("arguments").shard_config().expect("a configuration")
    };
    CONFIG.get_or_init(config).clone()
}

/// The digests in their order, the dead letters in none, since they wait or do not, and whether the server was given up.
fn run(shards: usize, stream: &[u8], piece: usize) -> (Vec<(String, Vec<u8>)>, bool) {
    let mut end = End { shard: Shard::new(ShardId(0), shards, config()), shards, buffer: Vec::new(), output: Vec::new() };
    let mut now = Duration::from_secs(1);
    end.shard.on_link(SignIn::default(), now);
    end.hears(&READY[..READY.len() - 6], now);
    end.hears(&READY[READY.len() - 6..], now);
    let mut is_up = true;
    for bytes in stream.chunks(piece) {
        now += Duration::from_millis(300);
        is_up = end.hears(bytes, now) && end.shard.on_time(now, Timestamp::new(1_800_000_000, 0)).is_ok();
        if !is_up {
            break;
        }
    }
    end.shard.drain(now);
    end.shard.on_link_lost(now);
    end.shard.finish_turn(now);
    let published = published(&end.output, stream);
    let (digests, mut letters): (Vec<_>, Vec<_>) =
        published.into_iter().partition(|(subject, _)| subject == "AlarmDigest");
    letters.sort();
    ([digests, letters].concat(), is_up)
}

struct End {
    shard: Shard,
    shards: usize,
    buffer: Vec<u8>,
    output: Vec<u8>,
}

impl End {
    /// Says whether the server is still of use.
    fn hears(&mut self, bytes: &[u8], now: Duration) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.shard.heard(now);
        loop {
            let received = self.shard.receive(&self.buffer, now);
            if let Ok(used) = received {
                self.buffer.drain(..used);
            }
            self.shard.finish_turn(now);
            let written = self.shard.output().len();
            self.output.extend_from_slice(self.shard.output());
            if written > 0 {
                self.shard.wrote(written, now);
            }
            let has_mail = self.plays_the_peer();
            match received {
                Err(_) => return false,
                // What was full leaves complete operations behind.
                Ok(used) if used == 0 && written == 0 && !has_mail => return true,
                Ok(_) => {}
            }
        }
    }

    fn plays_the_peer(&mut self) -> bool {
        if self.shards == 1 {
            return false;
        }
        let mail = std::mem::take(self.shard.mail_for(ShardId(1)).expect("there are two"));
        self.shard.mail_moved();
        for one in &mail {
            if matches!(one, Mail::Fence(_)) {
                self.shard.on_mail(Mail::Passed(ShardId(1)));
            }
        }
        !mail.is_empty()
    }
}

/// All publishes among what was written, which must be what a server takes.
fn published(mut output: &[u8], stream: &[u8]) -> Vec<(String, Vec<u8>)> {
    let came = |subject: &[u8]| stream.windows(subject.len()).any(|window| window == subject);
    // Whoever asks says where the answer goes, and that may be anywhere.
    let is_reply = came(b" AlarmDigest ");

    let mut decoder = ServerDecoder::new(Limits { payload_bytes_max: MAX_PAYLOAD, ..Limits::server() });
    let mut published = Vec::new();
    while !output.is_empty() {
        let Ok(Step::Op { op, used }) = decoder.decode(output) else {
            panic!("not what a server takes: {}", output.escape_ascii())
        };
        if let ClientOp::Publish(publish) = op {
            let subject = String::from_utf8_lossy(publish.subject).into_owned();
            match subject.as_str() {
                "AlarmDigest" if !is_reply => is_digest(publish.payload),
                "AlarmDigest" | "AlarmDigest.rejected" => {}
                reply => assert!(came(publish.subject), "nobody asked for an answer at {reply}"),
            }
            published.push((subject, publish.payload.to_vec()));
        }
        output = &output[used..];
    }
    published
}

fn is_digest(payload: &[u8]) {
    let digest: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
    let alarms = digest["ActiveAlarms"].as_array().expect("an array");
    assert!(digest["UserID"].is_string() && !alarms.is_empty(), "{digest}");
    assert!(alarms.iter().all(|alarm| alarm["Status"] != "CLEARED"), "{digest}");
}
