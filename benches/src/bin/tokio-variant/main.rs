//! The service with another driver: the same library, on tokio. So that a comparison with it changes one thing.
//!
//! `--runtime per-core` is the service's own shape: one runtime per pinned core. `--runtime stealing` is what tokio does
//! by itself: one runtime over all CPUs, its threads free to move over them, and one task per shard.
//!
//! Never: a decision about messages. Those are the library's.

#[path = "../../../../src/connect.rs"]
mod connect;
mod driver;
#[path = "../../../../src/stop.rs"]
mod stop;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alarm_digest::config::Cli;
use alarm_digest::logic::Counters;
use alarm_digest::mesh::Mesh;
use alarm_digest::pace::Pace;
use alarm_digest::servers::Server;
use alarm_digest::shard::{Shard, ShardId};
use alarm_digest_benches::machine;
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::driver::{Common, Driver, Report};
use crate::stop::{Stage, Stop};

/// The alarm digest on tokio. Takes the service's arguments.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// What runs the drivers
    #[arg(long, value_enum, default_value = "per-core")]
    runtime: Runtime,
    #[command(flatten)]
    cli: Cli,
}

#[derive(ValueEnum, Clone, Copy)]
enum Runtime {
    /// One current-thread runtime on each core's own, pinned thread
    PerCore,
    /// One multi-thread runtime with as many threads as cores, on the same CPUs
    Stealing,
}

fn main() -> Result<ExitCode> {
    let Arguments { runtime, cli } = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(false).with_target(false).init();

    let config = cli.shard_config().map_err(anyhow::Error::msg)?;
    let cpus = match &cli.run.cpus {
        Some(list) => list.0.clone(),
        None => machine::cpus()?.into_iter().take(cli.run.cores.unwrap_or(usize::MAX)).collect(),
    };
    let cores = cpus.len();
    let common = Arc::new(Common {
        servers: cli.nats.servers().map_err(anyhow::Error::msg)?,
        connect_timeout: cli.nats.connect_timeout,
        reconnect_delay_max: cli.run.reconnect_delay_max,
        pace: Pace::new(cli.run.spin, cli.run.coalesce),
        mesh: Mesh::new(cores, config.mail_max),
        stop: Stop::new(cores),
        on_first_ready: Box::new(say_started(cores)),
    });
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot listen for SIGTERM and SIGINT")?;
    let (for_signals, drain_timeout) = (Arc::clone(&common), cli.run.drain_timeout);
    std::thread::spawn(move || obey(signals, &for_signals.stop, drain_timeout));

    let drivers: Vec<Driver> = (0..cores)
        .map(ShardId)
        .map(|id| Driver::new(id, Shard::new(id, cores, config.clone()), Arc::clone(&common)))
        .collect();
    let reports = match runtime {
        Runtime::PerCore => run_per_core(drivers, &cpus)?,
        Runtime::Stealing => run_stealing(drivers, &cpus)?,
    };
    Ok(summarize(&reports))
}

fn run_per_core(drivers: Vec<Driver>, cpus: &[usize]) -> Result<Vec<Report>> {
    std::thread::scope(|scope| {
        let cores: Vec<_> = drivers
            .into_iter()
            .zip(cpus)
            .map(|(driver, cpu)| {
                scope.spawn(|| -> Result<Report> {
                    machine::pin_thread(&[*cpu])?;
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    Ok(runtime.block_on(driver.run()))
                })
            })
            .collect();
        cores.into_iter().map(|core| core.join().expect("a panic aborts the process")).collect()
    })
}

fn run_stealing(drivers: Vec<Driver>, cpus: &[usize]) -> Result<Vec<Report>> {
    // Before its threads are started, which then may use the same CPUs.
    machine::pin_thread(cpus)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cpus.len()).enable_all().build()?;
    runtime.block_on(async {
        let tasks: Vec<_> = drivers.into_iter().map(|driver| tokio::spawn(driver.run())).collect();
        let mut reports = Vec::new();
        for task in tasks {
            reports.push(task.await.context("a core ended early")?);
        }
        Ok(reports)
    })
}

/// The line that says that all cores are connected, said by the last of them.
fn say_started(cores: usize) -> impl Fn(&Server) + Send + Sync {
    let ready = AtomicUsize::new(0);
    move |server| {
        if ready.fetch_add(1, Ordering::AcqRel) + 1 == cores {
            info!(%server, "started: all cores are connected and subscribed");
        }
    }
}

/// The first signal drains; a second one, or `drain_timeout`, aborts.
fn obey(mut signals: Signals, stop: &Stop, drain_timeout: Duration) {
    signals.forever().next();
    stop.advance(Stage::Drain);
    let deadline = Instant::now() + drain_timeout;
    while Instant::now() < deadline && signals.pending().next().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    warn!("stopping at once");
    stop.advance(Stage::Abort);
}

fn summarize(reports: &[Report]) -> ExitCode {
    let mut all = Counters::default();
    reports.iter().for_each(|report| all.add(&report.counters));
    let is_drained = reports.iter().all(|report| report.is_drained);
    let unsettled = reports.iter().map(|report| report.unsettled).sum::<usize>();
    info!(changes = all.changes, requests = all.requests, digests = all.digests, unsettled, "stopped");
    if is_drained { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
