//! Instructions per message on the pure path, counted by callgrind: they do not depend on how busy the machine is.
//!
//! Each stage is run with some number of messages and with twice as many; the difference is what they cost without the
//! start of the program. Run plainly, this program runs itself under valgrind and prints the table.
//!
//! Never: a clock, a socket, a thread.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use alarm_digest::alarm::Command as Order;
use alarm_digest::book::Book;
use alarm_digest::config::Cli;
use alarm_digest::logic::Logic;
use alarm_digest::message;
use alarm_digest::shard::{Mail, Shard, ShardId};
use alarm_digest_benches::workload::{Ids, Pattern, Texts};
use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use fastrand::Rng;
use nats_wire::session::SignIn;

/// Counts the instructions per message on the way from a payload to the book and back. Needs valgrind.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Writes the table to this file as CSV too
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only runs this stage once, which is what is counted
    #[arg(long, value_enum, requires = "messages")]
    stage: Option<Stage>,
    /// Messages of that stage
    #[arg(long)]
    messages: Option<u32>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The payload of a change to a command
    Decode,
    /// And the command into the book
    Apply,
    /// All of one shard: MSG to message to command to owner to book
    Shard,
    /// The same where half of the users are another shard's, whose half is counted too
    TwoShards,
    /// A request for one due alarm, through a shard to PUB in the output
    Digest,
}

const STAGES: [(Stage, &str); 5] = [
    (Stage::Decode, "payload to command"),
    (Stage::Apply, "payload to command to book"),
    (Stage::Shard, "MSG to book, one shard"),
    (Stage::TwoShards, "MSG to book, two shards"),
    (Stage::Digest, "MSG of a change and of a request to PUB of a digest, one shard"),
];

const USERS: u32 = 1000;
const ALARMS: u32 = 10;
const MESSAGES: u32 = 20_000;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(stage), Some(messages)) = (arguments.stage, arguments.messages) {
        return run(stage, messages);
    }
    let mut csv = String::from("stage,instructions_per_message\n");
    for (stage, what) in STAGES {
        let (once, twice) = (count(stage, MESSAGES)?, count(stage, 2 * MESSAGES)?);
        let each = twice.checked_sub(once).context("twice as many messages took fewer instructions")?;
        let each = each as f64 / f64::from(MESSAGES);
        println!("{each:>8.0} instructions: {what}");
        csv += &format!("\"{what}\",{each:.0}\n");
    }
    if let Some(out) = arguments.out {
        std::fs::write(out, csv)?;
    }
    Ok(())
}

fn count(stage: Stage, messages: u32) -> Result<u64> {
    let ours = std::env::current_exe()?;
    let name = stage.to_possible_value().expect("no stage is hidden").get_name().to_owned();
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(ours);
    valgrind.args(["--stage", &name, "--messages", &messages.to_string()]);
    let output = valgrind.output().context("expected valgrind on the PATH")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed under valgrind:\n{told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.with_context(|| format!("expected a line `Collected :` from valgrind, got:\n{told}"))
}

fn run(stage: Stage, messages: u32) -> Result<()> {
    let mut load = Load::new();
    match stage {
        Stage::Decode => {
            for _ in 0..messages {
                let payload = load.change();
                black_box(message::decode_change(payload)?);
            }
        }
        Stage::Apply => {
            let mut book = Book::new();
            for _ in 0..messages {
                match message::decode_change(load.change())? {
                    Order::Apply(change) => book.apply(change),
                    Order::SendDigest(_) => unreachable!("it was decoded as a change"),
                }
            }
            ensure!(book.alarms() > 0, "nothing was remembered");
        }
        Stage::Shard => {
            let mut shard = shard(0, 1)?;
            (0..messages).step_by(BATCH).try_for_each(|_| load.feed(&mut shard, false))?;
            ensure!(shard.counters().changes >= u64::from(messages), "not all were read");
        }
        Stage::TwoShards => {
            let (mut one, mut other) = (shard(0, 2)?, shard(1, 2)?);
            for _ in (0..messages).step_by(BATCH) {
                load.feed(&mut one, false)?;
                let mail: Vec<Mail> = one.mail_for(ShardId(1)).expect("it has a peer").drain(..).collect();
                one.mail_moved();
                mail.into_iter().for_each(|mail| other.on_mail(mail));
                other.finish_turn(NOW);
            }
            ensure!(one.holds().1 > 0 && other.holds().1 > 0, "one shard got nothing");
        }
        Stage::Digest => {
            let mut shard = shard(0, 1)?;
            (0..messages).step_by(BATCH).try_for_each(|_| load.feed(&mut shard, true))?;
            ensure!(shard.counters().digests > 0, "no digest was sent");
        }
    }
    Ok(())
}

/// Messages that a shard gets in one go: what one read brings under load, and of a divisor of [`MESSAGES`].
const BATCH: usize = 250;
const _: () = assert!((MESSAGES as usize).is_multiple_of(BATCH));

const NOW: Duration = Duration::ZERO;

/// Changes of some alarms, to be taken in random order. They are encoded beforehand, so that what is counted of making
/// the load is a copy.
struct Load {
    payloads: Vec<Vec<u8>>,
    changes: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    rng: Rng,
    bytes: Vec<u8>,
}

/// Changes of each alarm.
const COUNTS: u32 = 3;

impl Load {
    fn new() -> Self {
        let texts = Texts {
            users: Ids::new(1),
            alarms: Ids::new(2),
            alarms_per_user: ALARMS,
            pattern: Pattern::News,
            base_millis: 1_767_225_600_000,
        };
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut payload = Vec::new();
            write(&mut payload);
            payload
        };
        let payloads: Vec<Vec<u8>> = (0..USERS * ALARMS)
            .flat_map(|pair| (0..COUNTS).map(move |count| (pair, count)))
            .map(|(pair, count)| written(&|out| texts.change(pair, count, out)))
            .collect();
        let requests = (0..USERS).map(|user| written(&|out| texts.request(user, out)));
        Self {
            changes: payloads.iter().map(|payload| msg("AlarmStatusChanged 1", payload)).collect(),
            requests: requests.map(|payload| msg("SendAlarmDigest 2", &payload)).collect(),
            payloads,
            rng: Rng::with_seed(1),
            bytes: Vec::new(),
        }
    }

    fn change(&mut self) -> &[u8] {
        let at = self.rng.usize(..self.payloads.len());
        &self.payloads[at]
    }

    /// A batch of MSG to the shard, and its output away; each change with a request behind it, if asked for.
    fn feed(&mut self, shard: &mut Shard, with_requests: bool) -> Result<()> {
        self.bytes.clear();
        for _ in 0..BATCH {
            let at = self.rng.usize(..self.changes.len());
            self.bytes.extend_from_slice(&self.changes[at]);
            if with_requests {
                self.bytes.extend_from_slice(&self.requests[at / (COUNTS * ALARMS) as usize]);
            }
        }
        let used = shard.receive(&self.bytes, NOW).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        ensure!(used == self.bytes.len(), "the shard took {used} of {} bytes", self.bytes.len());
        pump(shard)
    }
}

fn msg(subject_and_sid: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("MSG {subject_and_sid} {}\r\n", payload.len());
    [head.as_bytes(), payload, b"\r\n"].concat()
}

/// Writes what the shard has to say, and answers its fence.
fn pump(shard: &mut Shard) -> Result<()> {
    shard.finish_turn(NOW);
    let output = shard.output().len();
    let has_fence = shard.output().ends_with(b"PING\r\n");
    if output > 0 {
        shard.wrote(output, NOW);
    }
    if has_fence {
        shard.receive(b"PONG\r\n", NOW).map_err(|fault| anyhow::anyhow!("{fault}"))?;
    }
    Ok(())
}

/// Connected and subscribed.
fn shard(id: usize, shards: usize) -> Result<Shard> {
    let config = Cli::parse_from(["instructions"]).shard_config().map_err(anyhow::Error::msg)?;
    let mut shard = Shard::new(ShardId(id), shards, config);
    shard.on_link(SignIn::default(), NOW);
    shard
        .receive(b"INFO {\"headers\":true,\"max_payload\":1048576}\r\nPONG\r\n", NOW)
        .map_err(|fault| anyhow::anyhow!("{fault}"))?;
    pump(&mut shard)?;
    ensure!(shard.takes_bytes(), "the shard is not connected");
    Ok(shard)
}
