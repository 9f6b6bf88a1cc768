//! Three instances of the durable mode on one real nats-server, a load of alarms, and a checker: kill any of the instances
//! at any time and see whether an alarm is lost or told twice. Leaves nothing running.

mod program;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use alarm_digest_checker::{Checker, Published, Streams};
use clap::Parser;
use fastrand::Rng;
use nats_server_fixture::{Process, Server, Signal, find};
use rustix::thread::sched_getaffinity;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Starts a nats-server with JetStream and three instances of the service in durable mode, publishes alarms and requests,
/// and checks every digest. Stops after --seconds or at Ctrl-C, and exits with 0 if no alarm was lost or told twice.
#[derive(Parser)]
struct Arguments {
    /// How long to publish
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Messages a second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    rate: u64,
    /// Users that the alarms are spread over, ten alarms each
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// The service's program [default: built from here, in release mode]
    #[arg(long)]
    program: Option<PathBuf>,
}

const INSTANCES: usize = 3;
const ALARMS: u64 = 10;
const SOON: Duration = Duration::from_secs(30);

/// Between two publications, and between two lines.
const TICK: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(3);

/// After it, JetStream gives what a killed or stopped instance had under way to another one.
const ACK_WAIT: &str = "5s";

/// Long enough to start an instance by hand when all are dead.
const DRAIN_MAX: Duration = Duration::from_secs(120);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => {
            println!("building the service …");
            program::build()?
        }
    };
    let binary = find()?;
    let server = Server::builder(&binary).jetstream().start()?;
    println!("{binary} with JetStream listens on {}", server.addr());
    let mut instances = Instances::start(&program, &server)?;
    println!(
        "kill any of them at any time (kill -9 PID), or stop one for a while (kill -STOP PID, kill -CONT PID)"
    );
    println!("a smoke test beside it:  {} verify --server {}", program.display(), server.addr());
    println!("what a user was told:    {} state user-7 --server {}\n", program.display(), server.addr());

    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends us at once, and the kernel ends the children.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&is_over))?;
        signal_hook::flag::register(signal, Arc::clone(&is_over))?;
    }
    let mut run = Run::new(server.addr(), arguments);
    while run.started.elapsed().as_secs() < run.arguments.seconds && !is_over.load(Ordering::Relaxed) {
        run.publish_tick()?;
        run.report_if_due(&mut instances);
    }
    is_over.store(true, Ordering::Relaxed);
    println!("\nno more alarms; one request of each user when all that was published is done");
    run.drain(&mut instances)?;
    run.ask_all()?;
    run.drain(&mut instances)?;
    run.read()?;
    instances.stop();

    let verdict = run.checker.verdict();
    println!("\n{verdict}");
    println!(
        "{} messages were acknowledged and {} instances of {INSTANCES} lived to the end",
        run.published.acknowledged, instances.lived
    );
    println!("{}", if verdict.is_clean() { "nothing was lost, nothing was told twice" } else { "FAILED" });
    Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The processes of the service; none is started again.
struct Instances {
    processes: Vec<Process>,
    command: String,
    were_alive: usize,
    lived: usize,
}

impl Instances {
    /// Each on a CPU of its own, as far as they go.
    fn start(program: &Path, server: &Server) -> Result<Self, Box<dyn Error>> {
        let allowed = sched_getaffinity(None)?;
        let cpus: Vec<usize> = (0..1024).filter(|cpu| allowed.is_set(*cpu)).collect();
        let mut processes = Vec::new();
        let mut by_hand = String::new();
        for at in 0..INSTANCES {
            let cpu = cpus[at % cpus.len()].to_string();
            let mut command = Command::new(program);
            command.args(["--mode", "jetstream", "--server", &server.addr().to_string(), "--cpus", &cpu]);
            command.args(["--js-ack-wait", ACK_WAIT]);
            let words = command.get_args().map(|word| word.to_string_lossy());
            by_hand = format!("{} {}", program.display(), words.collect::<Vec<_>>().join(" "));
            let mut process = Process::spawn(&command)?;
            process.wait_for_line("all cores are connected", SOON)?;
            println!("instance {} on CPU {cpu}: pid {}", at + 1, process.pid());
            processes.push(process);
        }
        Ok(Self { processes, command: by_hand, were_alive: INSTANCES, lived: 0 })
    }

    /// How many live, said when that changes.
    fn alive(&mut self) -> usize {
        let alive =
            self.processes.iter_mut().filter_map(|process| process.ended().is_none().then_some(())).count();
        if alive < self.were_alive && alive == 0 {
            println!(
                "\nall instances are dead; what is published waits in the queue. Start one by hand:\n  {}\n",
                self.command
            );
        }
        self.were_alive = alive;
        alive
    }

    /// Asks each that lives to end; whoever cannot, because it is stopped, is killed when all is over.
    fn stop(&mut self) {
        self.lived = self.alive();
        let mut living = Vec::new();
        for process in &mut self.processes {
            if process.signal(Signal::TERM).is_ok() {
                living.push(process);
            }
        }
        for process in living {
            if process.wait(SOON).is_err() {
                println!("pid {} does not end", process.pid());
            }
        }
    }
}

/// The load, and what became of it.
struct Run {
    server: [SocketAddr; 1],
    arguments: Arguments,
    rng: Rng,
    started: Instant,
    reported: Instant,
    checker: Checker,
    /// Messages that were due, and messages that were published.
    offered: u64,
    sent: u64,
    published: Published,
    /// The next digest to read in the output stream.
    next: u64,
}

impl Run {
    fn new(server: SocketAddr, arguments: Arguments) -> Self {
        let now = Instant::now();
        Self {
            server: [server],
            arguments,
            rng: Rng::new(),
            started: now,
            reported: now,
            checker: Checker::default(),
            offered: 0,
            sent: 0,
            published: Published::default(),
            next: 1,
        }
    }

    /// As much as is due by now, one of twenty messages twice.
    fn publish_tick(&mut self) -> Result<(), Box<dyn Error>> {
        let due = (self.started.elapsed().as_secs_f64() * self.arguments.rate as f64) as u64;
        let tick = self.arguments.rate.div_ceil(5);
        let mut batch = Vec::new();
        for _ in 0..due.saturating_sub(self.offered).min(tick * 2) {
            batch.push(self.message());
            if self.rng.u8(..20) == 0 {
                batch.extend_from_within(batch.len() - 1..);
            }
        }
        // What a slow server made us miss is not made up for.
        self.offered = due;
        self.publish(&batch)?;
        sleep(TICK);
        Ok(())
    }

    fn publish(&mut self, batch: &[(&'static str, Vec<u8>)]) -> Result<(), String> {
        batch
            .iter()
            .filter(|(subject, _)| *subject == CHANGED)
            .for_each(|(_, payload)| self.checker.published(payload));
        self.sent += batch.len() as u64;
        let published = Streams::publish_surely(&self.server, batch, DRAIN_MAX)?;
        self.published.add(&published);
        Ok(())
    }

    /// A change, about now and not in order, or in one of ten cases a request.
    fn message(&mut self) -> (&'static str, Vec<u8>) {
        let user = user(self.rng.u64(..self.arguments.users));
        if self.rng.u8(..10) == 0 {
            return (SEND, request(&user));
        }
        let status = ["CLEARED", "WARNING", "CRITICAL"][self.rng.usize(..3)];
        let alarm = ["disk", "fan", "cpu", "ram", "net", "swap", "load", "temp", "raid", "ntp"]
            [self.rng.usize(..ALARMS as usize)];
        let at = OffsetDateTime::now_utc() - Duration::from_micros(self.rng.u64(..2_000_000));
        let at = at.format(&Rfc3339).expect("this century can be written");
        let change = json!({ "UserID": user, "AlarmID": alarm, "Status": status, "ChangedAt": at });
        (CHANGED, change.to_string().into_bytes())
    }

    fn ask_all(&mut self) -> Result<(), String> {
        let requests: Vec<_> =
            (0..self.arguments.users).map(|number| (SEND, request(&user(number)))).collect();
        self.publish(&requests)
    }

    /// Until the queue is empty.
    fn drain(&mut self, instances: &mut Instances) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + DRAIN_MAX;
        while Streams::connect(self.server[0], NAME)?.until_drained(TICK).is_err() {
            if Instant::now() > deadline {
                return Err(format!(
                    "the queue was not worked off within {DRAIN_MAX:?}, so there is no verdict"
                )
                .into());
            }
            self.report_if_due(instances);
        }
        Ok(())
    }

    /// Holds the digests that have come out since the last time against what was published.
    fn read(&mut self) -> Result<(), String> {
        let mut streams = Streams::connect(self.server[0], NAME).map_err(|error| error.to_string())?;
        let (digests, next) = streams.read_from(OUTPUT, self.next)?;
        self.next = next;
        // A smoke test may run beside us; its users are not ours.
        let is_ours = |subject: &str| subject.starts_with(&format!("{NAME}.out.{USER}"));
        for digest in digests.iter().filter(|digest| is_ours(&digest.subject)) {
            self.checker.told(digest.id(), &digest.payload);
        }
        Ok(())
    }

    fn report_if_due(&mut self, instances: &mut Instances) {
        if self.reported.elapsed() < REPORT_EVERY {
            return;
        }
        self.reported = Instant::now();
        let seconds = self.started.elapsed().as_secs();
        let queue = Streams::connect(self.server[0], NAME)
            .map_err(|error| error.to_string())
            .and_then(|mut streams| streams.consumer());
        let (read, alive) = (self.read(), instances.alive());
        let verdict = self.checker.verdict();
        let wrong = verdict.twice + verdict.stale + verdict.malformed;
        let (published, acknowledged) = (self.sent, self.published.acknowledged);
        let queue = match (queue, read) {
            (Ok(queue), Ok(())) => format!("{} + {} under way", queue.num_pending, queue.num_ack_pending),
            (Err(error), _) | (_, Err(error)) => format!("unknown: {error}"),
        };
        println!(
            "{seconds:>4} s  published {published}, acknowledged {acknowledged}, digests {}, alarms told {}, wrong {wrong}, backlog {queue}, instances {alive}/{INSTANCES}",
            verdict.digests, verdict.alarms,
        );
    }
}

const NAME: &str = "AD";
const OUTPUT: &str = "AD_OUT";
const CHANGED: &str = "AlarmStatusChanged";
const SEND: &str = "SendAlarmDigest";
const USER: &str = "user-";

fn user(number: u64) -> String {
    format!("{USER}{number}")
}

fn request(user: &str) -> Vec<u8> {
    json!({ "UserID": user }).to_string().into_bytes()
}
