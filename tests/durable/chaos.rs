//! Load, a fault meanwhile, and a checker at the end: the frame of everything that is broken here.
//!
//! ```text
//! publisher ──────── messages, until each is acknowledged ────────►│ drained │ a request of each user │ drained │ check
//! instances ── any of them may be killed, stopped, cut off ────────────────────────────────────────────────────┘
//! fault     ── for some seconds ──────►│
//! ```
//!
//! `ALARM_DIGEST_CHAOS_SEED=n` repeats a load, `ALARM_DIGEST_CHAOS_SECONDS=n` makes faults last longer than the few
//! seconds that they have among all tests. Each run prints a row of the table in `docs/jetstream.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alarm_digest_checker::{Checker, Published, Streams};
use fastrand::Rng;
use nats_server_fixture::{Process, Server, Signal};
use serde_json::json;

use crate::command;
use crate::proxy::Proxy;
use crate::world::{SOON, at, exit_code};

const USERS: u32 = 200;
const ALARMS: u32 = 10;

/// Messages that are published at once, and then acknowledged.
const CHUNK: usize = 200;

/// How long a fault goes on when nobody says otherwise.
const FAULT_SECONDS: u64 = 4;

/// What the servers say before they close a connection that spoke nonsense, and what a core says before it dies.
const NEVER_SAID: [&str; 5] = ["Violation", "Unknown Protocol", "Parser", "Invalid", "panicked"];

/// What is broken, and under which conditions.
pub struct Setup {
    /// The first column of the table.
    pub what: &'static str,
    pub instances: usize,
    /// Arguments of each instance.
    pub arguments: &'static [&'static str],
    /// Bytes of a field that nobody reads, in each change.
    pub padding: usize,
    /// The least time that a chunk takes.
    pub pace: Duration,
    /// Instances reach the servers through proxies.
    pub is_proxied: bool,
    /// The fault goes on for no longer, whoever says so.
    pub seconds_max: u64,
}

impl Setup {
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            instances: 3,
            arguments: &[],
            padding: 0,
            pace: Duration::from_millis(50),
            is_proxied: false,
            seconds_max: u64::MAX,
        }
    }
}

/// What a fault can break.
pub struct World {
    pub rng: Rng,
    pub servers: Vec<Server>,
    pub instances: Vec<Process>,
    /// Of each instance to each server, where there are any.
    pub proxies: Vec<Vec<Proxy>>,
    /// What each instance is told of servers.
    urls: Vec<String>,
    arguments: &'static [&'static str],
    until: Instant,
    injected: BTreeMap<&'static str, u64>,
    /// Of instances that are gone.
    logs: String,
}

impl World {
    /// Whether the fault is to go on.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Between a half and one and a half of it.
    pub fn about(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds / 2 + self.rng.u64(..milliseconds))
    }

    pub fn pause(&mut self, milliseconds: u64) {
        thread::sleep(self.about(milliseconds));
    }

    /// Counts what was done, for the table.
    pub fn injected(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    pub fn any_instance(&mut self) -> usize {
        self.rng.usize(..self.instances.len())
    }

    pub fn kill_instance(&mut self, at: usize) {
        self.instances[at].kill();
        self.logs.push_str(&self.instances[at].log());
    }

    /// Starts an instance where one was killed.
    pub fn start_instance(&mut self, at: usize) {
        self.instances[at] = spawn(&self.urls[at], self.arguments);
    }

    /// Ends an instance as operators do, and starts another one.
    pub fn replace_instance(&mut self, at: usize) {
        self.instances[at].signal(Signal::TERM).expect("it runs");
        let code = exit_code(&mut self.instances[at]);
        assert!(code < 2, "{}", self.instances[at].log());
        self.logs.push_str(&self.instances[at].log());
        self.start_instance(at);
        self.instances[at].wait_for_line("all cores are connected", SOON).expect("it connects");
    }

    /// Whether any instance has said so.
    pub fn is_said(&self, text: &str) -> bool {
        self.instances.iter().any(|instance| instance.log().contains(text))
    }

    /// Which server leads a stream, once one does.
    pub fn leader(&self, stream: &str) -> usize {
        let deadline = Instant::now() + SOON;
        loop {
            let info = self.streams().stream(stream);
            let leader = info.as_ref().ok().and_then(|info| info.cluster.as_ref()?.leader.as_deref());
            let is_leader = |server: &Server| Some(server.name()) == leader;
            if let Some(at) = self.servers.iter().position(is_leader) {
                return at;
            }
            assert!(Instant::now() < deadline, "nobody leads {stream}: {info:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn streams(&self) -> Streams {
        let mut servers = self.servers.iter().cycle();
        let deadline = Instant::now() + SOON;
        loop {
            let server = servers.next().expect("there is at least one");
            match Streams::connect(server.addr(), "AD") {
                Ok(streams) => return streams,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                Err(error) => panic!("no server answers: {error}"),
            }
        }
    }

    fn logs(&self) -> String {
        self.instances.iter().fold(self.logs.clone(), |logs, instance| logs + &instance.log())
    }
}

fn spawn(urls: &str, arguments: &[&str]) -> Process {
    Process::spawn(&command(urls, arguments)).expect("the program starts")
}

/// Instances on `servers` under load, and `fault` meanwhile: no alarm may be lost, told twice or told stale, and the queue
/// must become empty. Says how many refusals the publisher got.
pub fn chaos(setup: &Setup, servers: Vec<Server>, fault: impl FnOnce(&mut World)) -> Published {
    let seed = number("ALARM_DIGEST_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("ALARM_DIGEST_CHAOS_SECONDS").unwrap_or(FAULT_SECONDS).min(setup.seconds_max);
    let context = format!("{} on {}, ALARM_DIGEST_CHAOS_SEED={seed}", setup.what, servers[0].binary());
    eprintln!("{context}");

    let proxies_of = |_| servers.iter().map(|server| Proxy::start(server.addr())).collect();
    let proxies: Vec<Vec<Proxy>> =
        if setup.is_proxied { (0..setup.instances).map(proxies_of).collect() } else { Vec::new() };
    let url_of = |instance: usize| match proxies.get(instance) {
        Some(proxies) => proxies.iter().map(|proxy| format!("nats://{}", proxy.addr())).collect::<Vec<_>>(),
        None => servers.iter().map(Server::url).collect(),
    };
    let urls: Vec<String> = (0..setup.instances).map(|instance| url_of(instance).join(",")).collect();
    // One after the other: of two that make the same stream at once, 2.9.10 may refuse one for an overlap with itself.
    let started = |at: usize| {
        let mut instance = spawn(&urls[at], setup.arguments);
        instance.wait_for_line("all cores are connected", SOON).expect("it connects");
        instance
    };
    let instances: Vec<Process> = (0..setup.instances).map(started).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(Server::addr).collect();
    let mut world = World {
        rng: Rng::with_seed(seed),
        servers,
        instances,
        proxies,
        urls,
        arguments: setup.arguments,
        until: Instant::now() + Duration::from_secs(seconds),
        injected: BTreeMap::new(),
        logs: String::new(),
    };

    let is_over = AtomicBool::new(false);
    let mut publisher = Publisher {
        rng: Rng::with_seed(seed),
        checker: Checker::default(),
        published: Published::default(),
        padding: "x".repeat(setup.padding),
        second: 0,
    };
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                let began = Instant::now();
                publisher.publish(&addresses, CHUNK);
                thread::sleep(setup.pace.saturating_sub(began.elapsed()));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fault(&mut world)));
        is_over.store(true, Ordering::Release);
        publishing.join().expect("it publishes all");
        if let Err(panic) = outcome {
            eprintln!("{context}\n{}", world.logs());
            std::panic::resume_unwind(panic);
        }
    });
    let Publisher { mut checker, mut published, .. } = publisher;
    let healed = Instant::now();
    let drain = |world: &World| {
        let drained = world.streams().until_drained(SOON);
        drained.unwrap_or_else(|why| panic!("{context}: {why}\n{}", world.logs()));
    };
    drain(&world);
    let drained_in = healed.elapsed();
    let requests: Vec<_> = (0..USERS).map(request).collect();
    published.add(&Streams::publish_surely(&addresses, &requests, SOON).expect("it publishes all"));
    drain(&world);
    for digest in world.streams().read("AD_OUT").expect("it is there") {
        checker.told(digest.id(), &digest.payload);
    }
    let verdict = checker.verdict();
    assert!(verdict.is_clean(), "{context}: {verdict}\n{}", world.logs());

    for instance in &mut world.instances {
        instance.signal(Signal::TERM).expect("it runs");
    }
    for instance in &mut world.instances {
        assert_eq!(exit_code(instance), 0, "{context}: {}", instance.log());
    }
    let logs = world.logs();
    for word in NEVER_SAID {
        assert!(!logs.contains(word), "{context}: {word}\n{logs}");
    }
    let mut injected = String::new();
    for (what, count) in &world.injected {
        let _ = write!(injected, "{}{count} × {what}", if injected.is_empty() { "" } else { ", " });
    }
    println!(
        "| {} | {} | {injected} | {} | {} | {} | {} | {} | {} / {} / {} | {:.1} s |",
        setup.what,
        world.servers[0].binary().release(),
        published.acknowledged,
        verdict.digests,
        sum(&logs, "conflicts="),
        sum(&logs, "redelivered="),
        sum(&logs, "unknown="),
        verdict.lost,
        verdict.twice,
        verdict.stale,
        drained_in.as_secs_f64(),
    );
    published
}

struct Publisher {
    rng: Rng,
    checker: Checker,
    published: Published,
    padding: String,
    /// The time that changes are from goes on, so that there is always news.
    second: u32,
}

impl Publisher {
    /// Shuffled, some of it twice, with requests among it.
    fn publish(&mut self, servers: &[SocketAddr], messages: usize) {
        let rng = &mut self.rng;
        let mut chunk = Vec::new();
        while chunk.len() < messages {
            let user = rng.u32(..USERS);
            if rng.u32(..10) == 0 {
                chunk.push(request(user));
                continue;
            }
            let status = ["CLEARED", "WARNING", "CRITICAL"][rng.usize(..3)];
            let change = json!({
                "UserID": name(user),
                "AlarmID": format!("alarm {}", rng.u32(..ALARMS)),
                "Status": status,
                "ChangedAt": at(self.second + rng.u32(..60)),
                "Note": self.padding,
            });
            let payload = change.to_string().into_bytes();
            self.checker.published(&payload);
            if rng.u32(..20) == 0 {
                chunk.push(("AlarmStatusChanged", payload.clone()));
            }
            chunk.push(("AlarmStatusChanged", payload));
        }
        rng.shuffle(&mut chunk);
        self.second += 5;
        let published = Streams::publish_surely(servers, &chunk, SOON);
        self.published.add(&published.expect("it publishes all"));
    }
}

fn name(user: u32) -> String {
    format!("user {user}")
}

fn request(user: u32) -> (&'static str, Vec<u8>) {
    ("SendAlarmDigest", json!({ "UserID": name(user) }).to_string().into_bytes())
}

pub fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")))
}

/// Adds up what instances said at their end; those that were killed said nothing.
fn sum(logs: &str, counter: &str) -> u64 {
    let values = logs.split_whitespace().filter_map(|word| word.strip_prefix(counter));
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}
