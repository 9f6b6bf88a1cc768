//! Fills the queue, starts an implementation, waits until it has emptied it, and checks off what it told.
//!
//! Never: a look into the implementation. What it sent is the server's account, not its own.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use alarm_digest_benches::digest::Digest;
use alarm_digest_benches::ledger::{Findings, Ledger};
use alarm_digest_benches::machine::{self, Machine, Reading, Used};
use alarm_digest_benches::queue::{Names, Queue};
use alarm_digest_benches::workload::{Ids, Pattern, Texts};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use nats_server_fixture::{Binary, Process, Server, Signal};
use serde::Deserialize;

use crate::plan::{Scenario, Variant};

/// What one run found.
#[derive(Default)]
pub struct Found {
    pub events: u32,
    /// From the first delivery until nothing waited and nothing was unacknowledged.
    pub time: Duration,
    /// Of the implementation, since its start.
    pub used: Used,
    pub server: Used,
    pub resident_bytes: u64,
    /// Messages that the implementation sent.
    pub sent: u64,
    pub received: u64,
    /// Messages that the queue delivered, again ones included.
    pub delivered: u64,
    /// Records that were stored, and digests.
    pub stored: u64,
    pub digests: u64,
    pub findings: Findings,
    pub warnings: Vec<String>,
}

/// Where an implementation is looked at, and how often.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const READY_WITHIN: Duration = Duration::from_secs(30);
const EMPTY_WITHIN: Duration = Duration::from_secs(300);

/// Users that are asked for at the end, at most; of more, every nth.
const CHECKED_USERS_MAX: u32 = 20_000;

/// A share of a CPU that others may have had.
const OTHERS_MAX: f64 = 0.15;

/// The default ones.
pub const BUCKET: &str = "AD_STATE";
const OUTPUT: &str = "AD_OUT";

/// A server with the streams of a deployment, made by the service.
pub fn server(programs: &Path, binary: &Binary) -> Result<Server> {
    let server = Server::builder(binary).jetstream().monitoring().start()?;
    stop(start(programs, &server, Variant::Service)?)?;
    Ok(server)
}

pub fn queue(server: &Server) -> Result<Queue> {
    let names = Names { input: "AD_IN".into(), consumer: "digest".into(), output: OUTPUT.into() };
    Queue::open(server.addr(), names)
}

fn start(programs: &Path, server: &Server, variant: Variant) -> Result<Process> {
    let mut process = spawn(programs, server, variant)?;
    process.wait_for_line("all cores are connected", READY_WITHIN)?;
    Ok(process)
}

fn spawn(programs: &Path, server: &Server, variant: Variant) -> Result<Process> {
    let (program, cores) = variant.program();
    let cpus = machine::cpus()?;
    let list = (0..cores).map(|core| cpus[core % cpus.len()].to_string()).collect::<Vec<_>>().join(",");
    let mut command = Command::new(programs.join(program));
    // Nothing of the load, which is from another year, may be forgotten.
    command.args(["--mode", "jetstream", "--server", &server.url(), "--cpus", &list]);
    command.args(["--retention", "10years"]).env_remove("NATS_URL");
    Ok(Process::spawn(&command)?)
}

fn stop(mut process: Process) -> Result<()> {
    process.signal(Signal::TERM)?;
    let status = process.wait(READY_WITHIN)?;
    ensure!(status.success(), "it ended with {status}:\n{}", process.log());
    Ok(())
}

/// One run on a server of its own.
pub fn run(
    programs: &Path,
    binary: &Binary,
    scenario: &Scenario,
    variant: Variant,
    seed: u64,
) -> Result<Found> {
    let server = server(programs, binary)?;
    let mut queue = queue(&server)?;
    let mut load = Load::new(scenario, seed);
    if scenario.is_known {
        queue.fill(load.first_changes())?;
        let process = start(programs, &server, Variant::Service)?;
        await_empty(&mut queue)?;
        stop(process)?;
    }
    queue.fill(load.messages())?;

    let before = Counted::of(&mut queue)?;
    let (machine, server_before) = (Machine::now()?, Reading::of(server.pid())?);
    let ours_before = Reading::of(std::process::id())?;
    let process = spawn(programs, &server, variant)?;
    let began_at = await_delivery(&mut queue, before.delivered)?;
    let empty_at = await_empty(&mut queue)?;
    let reading = Reading::of(process.pid())?;
    let server_used = Reading::of(server.pid())?.since(&server_before);
    let after = Counted::of(&mut queue)?;
    let mut found = Found {
        events: scenario.events,
        time: empty_at - began_at,
        used: reading.since(&Reading::default()),
        server: server_used,
        resident_bytes: reading.resident_bytes,
        delivered: after.delivered - before.delivered,
        stored: after.stored - before.stored,
        digests: after.digests - before.digests,
        ..Found::default()
    };
    (found.sent, found.received) = traffic(&server)?;
    let ours = found.used.cpu + found.server.cpu + Reading::of(std::process::id())?.since(&ours_before).cpu;
    let (others, stolen) = Machine::now()?.others_since(&machine, ours);
    if others > OTHERS_MAX {
        found.warnings.push(format!("others had more than {OTHERS_MAX} CPUs: {others:.2}"));
    }
    if stolen > OTHERS_MAX {
        found.warnings.push(format!("the hypervisor took more than {OTHERS_MAX} CPUs: {stolen:.2}"));
    }
    load.check(&mut queue)?;
    stop(process)?;
    found.findings = load.ledger.findings;
    Ok(found)
}

/// When the first message was delivered.
fn await_delivery(queue: &mut Queue, delivered_before: u64) -> Result<Instant> {
    let asked_at = Instant::now();
    while queue.consumer()?.delivered.consumer_seq == delivered_before {
        ensure!(asked_at.elapsed() < READY_WITHIN, "nothing was delivered");
        thread::sleep(LOOK_EVERY / 10);
    }
    Ok(Instant::now())
}

/// When nothing waited any more and nothing was unacknowledged.
fn await_empty(queue: &mut Queue) -> Result<Instant> {
    let asked_at = Instant::now();
    loop {
        let info = queue.consumer()?;
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            return Ok(Instant::now());
        }
        ensure!(asked_at.elapsed() < EMPTY_WITHIN, "the queue is never empty: {info:?}");
        thread::sleep(LOOK_EVERY);
    }
}

/// What the server has counted.
struct Counted {
    delivered: u64,
    stored: u64,
    digests: u64,
}

impl Counted {
    fn of(queue: &mut Queue) -> Result<Self> {
        Ok(Self {
            delivered: queue.consumer()?.delivered.consumer_seq,
            stored: queue.stream(&format!("KV_{BUCKET}"))?.state.last_seq,
            digests: queue.stream(OUTPUT)?.state.last_seq,
        })
    }
}

/// Messages from and to the implementation, over all its connections, since it connected.
fn traffic(server: &Server) -> Result<(u64, u64)> {
    #[derive(Deserialize)]
    struct Connections {
        connections: Vec<Connection>,
    }
    #[derive(Deserialize)]
    struct Connection {
        name: Option<String>,
        /// From it.
        in_msgs: u64,
        out_msgs: u64,
    }
    let Connections { connections } = serde_json::from_str(&server.monitor("/connz")?)?;
    let theirs = connections.iter().filter(|link| link.name.as_deref() == Some("alarm-digest"));
    let sum = theirs.fold((0, 0), |(sent, received), link| (sent + link.in_msgs, received + link.out_msgs));
    ensure!(sum.0 > 0, "expected a connection by the name of alarm-digest");
    Ok(sum)
}

struct Load {
    scenario: Scenario,
    texts: Texts,
    ledger: Ledger,
    rng: Rng,
    /// The first digest that was not read yet.
    digest_next: u64,
}

impl Load {
    fn new(scenario: &Scenario, seed: u64) -> Self {
        let pattern = if scenario.is_requests_only { Pattern::News } else { Pattern::Life };
        Self {
            texts: Texts {
                users: Ids::new(seed),
                alarms: Ids::new(seed + 1),
                alarms_per_user: scenario.alarms,
                pattern,
                base_millis: 1_767_225_600_000,
            },
            ledger: Ledger::new((scenario.users * scenario.alarms) as usize, pattern),
            rng: Rng::with_seed(seed),
            digest_next: 1,
            scenario: scenario.clone(),
        }
    }

    fn first_changes(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        (0..self.scenario.users).map(|user| self.change(user * self.scenario.alarms)).collect()
    }

    fn messages(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let Scenario { users, alarms, events, requests_every, is_requests_only, .. } = self.scenario;
        let mut messages = Vec::with_capacity(events as usize);
        for number in 0..events {
            messages.push(if is_requests_only {
                self.request(number % users)
            } else if self.rng.u32(..requests_every) == 0 {
                let user = self.rng.u32(..users);
                self.request(user)
            } else {
                let pair = self.rng.u32(..users * alarms);
                self.change(pair)
            });
        }
        messages
    }

    fn change(&mut self, pair: u32) -> (&'static str, Vec<u8>) {
        let (count, mut payload) = (self.ledger.send(pair), Vec::with_capacity(180));
        self.texts.change(pair, count, &mut payload);
        ("AlarmStatusChanged", payload)
    }

    fn request(&self, user: u32) -> (&'static str, Vec<u8>) {
        let mut payload = Vec::with_capacity(60);
        self.texts.request(user, &mut payload);
        ("SendAlarmDigest", payload)
    }

    /// Checks off all digests; then asks for users who are owed something, and counts as lost what they are not told; then
    /// asks once more, when nothing may come.
    fn check(&mut self, queue: &mut Queue) -> Result<()> {
        self.read(queue)?;
        let step = self.scenario.users.div_ceil(CHECKED_USERS_MAX);
        let users: Vec<u32> = (0..self.scenario.users).step_by(step as usize).collect();
        for _ in 0..2 {
            let told = self.ledger.findings.told;
            queue.fill(users.iter().map(|user| self.request(*user)))?;
            await_empty(queue)?;
            self.read(queue)?;
            if self.ledger.findings.told == told {
                break;
            }
        }
        let owed = |user: &u32| {
            let alarms = self.scenario.alarms;
            (user * alarms..(user + 1) * alarms).filter(|pair| self.ledger.is_owed(*pair)).count() as u64
        };
        self.ledger.findings.lost = users.iter().map(owed).sum();
        Ok(())
    }

    fn read(&mut self, queue: &mut Queue) -> Result<()> {
        let (texts, ledger) = (&self.texts, &mut self.ledger);
        self.digest_next = queue.digests(self.digest_next, |payload| {
            if let Err(error) = check_off(payload, texts, ledger) {
                ledger.wrong(|| format!("{error:#}: {}", payload.escape_ascii()));
            }
        })?;
        Ok(())
    }
}

fn check_off(payload: &[u8], texts: &Texts, ledger: &mut Ledger) -> Result<()> {
    let digest = Digest::read(payload)?;
    let user = texts.users.number(&digest.user).context("not a user of ours")?;
    digest.check_off(user, texts, ledger, |_, _| {})
}
