//! Chooses CPUs, builds the mesh, starts the cores, waits for signals, joins. The library does the thinking.

mod ask;
mod bell;
mod client;
mod connect;
mod driver;
mod http;
mod opening;
mod preflight;
mod provision;
mod state;
mod stop;
mod systemd;
mod tls;
mod top;
mod transport;
mod verify;
mod wire;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use alarm_digest::alarm::UserId;
use alarm_digest::config::{Cli, LogFormat, Mode, Sleep, Task};
use alarm_digest::durable::worker::Worker;
use alarm_digest::logic::{Counters, Logic};
use alarm_digest::mesh::Mesh;
use alarm_digest::message::Reason;
use alarm_digest::pace::Pace;
use alarm_digest::servers::Server;
use alarm_digest::service_api::Instance;
use alarm_digest::shard::{Shard, ShardId};
use alarm_digest::status::Status;
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::bell::Bell;
use crate::driver::{Common, Driver, Report};
use crate::stop::{Stage, Stop};
use crate::systemd::Systemd;

/// Between two looks for a signal while something else is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Task::Verify { timeout }) => verify(&cli, *timeout),
        Some(Task::State { user, json }) => state(&cli, user, *json),
        Some(Task::Top { interval, samples }) => {
            top::top(&cli.nats, *interval, *samples).map(|()| ExitCode::SUCCESS)
        }
        None => run(&cli),
    };
    result.unwrap_or_else(|error| {
        // Whoever closed standard error does not want to hear of it.
        let _ = writeln!(std::io::stderr(), "alarm-digest: {error:#}");
        ExitCode::FAILURE
    })
}

fn verify(cli: &Cli, timeout: Duration) -> Result<ExitCode> {
    let print = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
    verify::verify(&cli.nats, timeout, |step| print(&format!("ok  {step}")))?;
    print("Smoke test passed");
    Ok(ExitCode::SUCCESS)
}

fn state(cli: &Cli, user: &UserId, json: bool) -> Result<ExitCode> {
    let state = state::read(cli, user)?;
    let text = if json { state.json() } else { state.table() };
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn run(cli: &Cli) -> Result<ExitCode> {
    start_log(cli.run.log_format)?;
    let cpus = preflight::preflight(&cli.run)?;
    let cores = cpus.len();
    // Files that cannot be read now are a mistake; later on, they may be about to be replaced.
    for server in cli.nats.servers().map_err(anyhow::Error::msg)? {
        connect::sign_in(&server)?;
        if server.tls.is_required {
            tls::check(&server.tls)?;
        }
    }
    let systemd = Arc::new(Systemd::from_environment());
    let common = Arc::new(Common {
        servers: cli.nats.servers().map_err(anyhow::Error::msg)?,
        connect_timeout: cli.nats.connect_timeout,
        reconnect_delay_max: cli.run.reconnect_delay_max,
        pace: Pace::new(cli.run.spin, cli.run.coalesce),
        sleep: cli.run.sleep,
        mesh: Mesh::new(cores, cli.run.mail_max as usize),
        stop: Stop::new(cores),
        status: Status::new(cores),
        instance: (!cli.run.no_service_api).then(|| instance(cli)).transpose()?,
        epoch: Instant::now(),
        on_first_ready: Box::new(say_started(cpus.clone(), Arc::clone(&systemd))),
    });
    // Before a server is waited for, which may take long.
    if let Some(addr) = cli.run.http {
        http::serve(addr, cpus.clone(), cli.about(), Arc::clone(&common))?;
    }
    // Before a server is waited for: the kernel drops signals that the first process of a container does not handle.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot listen for SIGTERM and SIGINT")?;
    match cli.run.mode {
        Mode::Memory => {
            let config = cli.shard_config().map_err(anyhow::Error::msg)?;
            if cli.run.no_wait {
                let cli = cli.clone();
                let answers = move || ask::client(&cli.nats, "alarm-digest", cli.run.ping_interval).map(drop);
                if unless_stopped(&mut signals, &systemd, answers)?.is_none() {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            run_cores(cli, cpus, common, systemd, signals, move |id| Shard::new(id, cores, config.clone()))
        }
        Mode::Jetstream => {
            let mut config = cli.worker_config().map_err(anyhow::Error::msg)?;
            let (its_cli, its_config) = (cli.clone(), config.clone());
            let provision = move || provision::provision(&its_cli, &its_config);
            let Some(is_republished) = unless_stopped(&mut signals, &systemd, provision)? else {
                return Ok(ExitCode::SUCCESS);
            };
            config.is_republished = is_republished;
            run_cores(cli, cpus, common, systemd, signals, move |id| {
                let inbox = format!("_INBOX.{}", Uuid::new_v4().simple());
                let worker = Worker::new(config.clone(), &inbox, Uuid::new_v4().as_u128());
                if id == ShardId(0) { worker.watching_backlog() } else { worker }
            })
        }
    }
}

/// Has `prepare` wait for a server, on a thread of its own. None when a signal came first, which ends the start.
fn unless_stopped<T: Send + 'static>(
    signals: &mut Signals,
    systemd: &Systemd,
    prepare: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Option<T>> {
    let (done, prepared) = mpsc::channel();
    std::thread::spawn(move || done.send(prepare()));
    loop {
        match prepared.recv_timeout(LOOK_EVERY) {
            Ok(result) => return result.map(Some),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("what prepares the start has ended"),
            Err(mpsc::RecvTimeoutError::Timeout) if signals.pending().next().is_none() => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                systemd.say_stopping("stopped before it was started");
                info!("stopped before it was started: nothing has been received");
                return Ok(None);
            }
        }
    }
}

/// One core on each of `cpus`, each with the logic that `logic` makes for it.
fn run_cores<L: Logic + 'static>(
    cli: &Cli,
    cpus: Vec<usize>,
    common: Arc<Common>,
    systemd: Arc<Systemd>,
    signals: Signals,
    logic: impl Fn(ShardId) -> L + Clone + Send + 'static,
) -> Result<ExitCode> {
    // glommio 0.9 parks although a task can run when this passes between its looking for events and its looking for tasks, as it
    // does where a core is taken off its CPU for so long. What sleeps without the executor would not be woken again.
    let preempt_timer = match cli.run.sleep {
        Sleep::Poll => Duration::from_secs(1 << 30),
        Sleep::Executor => Duration::from_millis(10),
    };
    let mut handles = Vec::with_capacity(cpus.len());
    for (id, cpu) in cpus.into_iter().enumerate().map(|(id, cpu)| (ShardId(id), cpu)) {
        let (logic, common) = (logic.clone(), Arc::clone(&common));
        let bell = Bell::new().context("cannot make what wakes a core")?;
        let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name("core")
            // Memory for files that glommio would lock; there are none.
            .io_memory(64 << 10)
            .preempt_timer(preempt_timer)
            .spawn(move || Driver::new(id, logic(id), common, bell).run())
            .map_err(|error| anyhow!("cannot start a core on CPU {cpu}: {error}"))?;
        handles.push(handle);
    }
    let drain_timeout = cli.run.drain_timeout;
    let (for_signals, for_watch, watching) = (Arc::clone(&common), Arc::clone(&common), Arc::clone(&systemd));
    std::thread::spawn(move || watching.watch(&for_watch));
    std::thread::spawn(move || obey(signals, &for_signals.stop, &systemd, drain_timeout));

    let reports = join(handles, &common.stop)?;
    Ok(summarize(cli.run.mode, &reports))
}

/// What the service API says of this process.
fn instance(cli: &Cli) -> Result<Instance> {
    let subjects = cli.nats.subjects().map_err(anyhow::Error::msg)?;
    let (mode, queue_group) = match cli.run.mode {
        Mode::Memory => ("memory", cli.run.queue_group.clone()),
        // Its consumer shares the messages out.
        Mode::Jetstream => ("jetstream", String::new()),
    };
    Ok(Instance {
        id: Uuid::new_v4().simple().to_string(),
        version: alarm_digest::VERSION,
        commit: alarm_digest::COMMIT,
        mode,
        started: driver::wall_clock(),
        subjects: [subjects.changed, subjects.send],
        queue_group,
    })
}

/// Waits for all cores. What glommio cannot set up comes to light only here, and a core that is missing would silently
/// take its users with it: so the first that fails ends them all.
fn join(handles: Vec<ExecutorJoinHandle<Report>>, stop: &Stop) -> Result<Vec<Report>> {
    let (ended, ends) = mpsc::channel();
    let cores = handles.len();
    for handle in handles {
        let ended = ended.clone();
        // Whoever has stopped listening has seen another core fail.
        std::thread::spawn(move || drop(ended.send(handle.join().map_err(|error| error.to_string()))));
    }
    let mut reports = Vec::with_capacity(cores);
    while reports.len() < cores {
        match ends.recv().expect("each core is waited for") {
            Ok(report) => reports.push(report),
            Err(error) => {
                stop.advance(Stage::Abort);
                bail!("a core could not run: {error}");
            }
        }
    }
    Ok(reports)
}

fn start_log(format: LogFormat) -> Result<()> {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".into());
    let filter =
        EnvFilter::try_new(&wanted).map_err(|error| anyhow!("{}: {error}", EnvFilter::DEFAULT_ENV))?;
    let is_terminal = std::io::stderr().is_terminal();
    // A log that cannot be written must not stop the service, as a panic in writing to standard error would.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// The line that says that all cores are connected, said by the last of them.
fn say_started(cpus: Vec<usize>, systemd: Arc<Systemd>) -> impl Fn(&Server) + Send + Sync {
    let ready = AtomicUsize::new(0);
    move |server| {
        if ready.fetch_add(1, Ordering::AcqRel) + 1 == cpus.len() {
            let (version, commit) = (alarm_digest::VERSION, alarm_digest::COMMIT);
            info!(%server, ?cpus, version, commit, "started: all cores are connected and subscribed");
            systemd.say_ready();
        }
    }
}

/// The first signal drains; a second one, or `drain_timeout`, aborts.
fn obey(mut signals: Signals, stop: &Stop, systemd: &Systemd, drain_timeout: Duration) {
    signals.forever().next();
    systemd.say_stopping("draining");
    info!(?drain_timeout, "draining: a second signal stops at once");
    stop.advance(Stage::Drain);
    let deadline = Instant::now() + drain_timeout;
    while Instant::now() < deadline {
        if signals.pending().next().is_some() {
            warn!("stopping at once: second signal");
            return stop.advance(Stage::Abort);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    warn!("stopping at once: not drained within {drain_timeout:?}");
    stop.advance(Stage::Abort);
}

fn summarize(mode: Mode, reports: &[Report]) -> ExitCode {
    let mut all = Counters::default();
    reports.iter().for_each(|report| all.add(&report.counters));
    let sum = |what: fn(&Report) -> usize| reports.iter().map(what).sum::<usize>();
    let rejected: Vec<String> = Reason::ALL
        .iter()
        .map(|reason| (reason.name(), all.rejected[*reason as usize]))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let (unsettled, undrained) =
        (sum(|report| report.unsettled), sum(|report| usize::from(!report.is_drained)));
    info!(
        changes = all.changes,
        requests = all.requests,
        rejected = if rejected.is_empty() { "none".into() } else { rejected.join(", ") },
        digests = all.digests,
        alarms_told = all.alarms_told,
        mailed = all.mailed,
        settled = all.settled,
        answers = all.answers,
        unanswered = all.unanswered,
        resent = all.resent,
        unproved = all.unproved,
        refused = all.refused,
        reconnects = reports.iter().map(|report| report.counters.reconnects()).sum::<u64>(),
        moves = all.moves,
        users = sum(|report| report.users),
        alarms = sum(|report| report.alarms),
        "stopped"
    );
    if mode == Mode::Jetstream {
        let queue = all.backlog.unwrap_or_default();
        info!(
            redelivered = all.redelivered,
            loads = all.loads,
            stores = all.stores,
            conflicts = all.conflicts,
            relayed = all.relayed,
            returned = all.returned,
            unknown = all.unknown,
            queue_pending = queue.pending,
            queue_ack_pending = queue.ack_pending,
            queue_redelivered = queue.redelivered,
            "JetStream"
        );
    }
    if undrained == 0 {
        return ExitCode::SUCCESS;
    }
    error!(
        unsettled,
        cores = undrained,
        "not drained: {unsettled} publications or requests were not done with, as far as the server has proved, and \
         {undrained} cores may not have read all that was sent to them"
    );
    ExitCode::FAILURE
}
