//! One measurement of whatever implementation runs, over NATS.
//!
//! Never: starting server or implementation. `compare` does that.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alarm_digest::config::NatsArgs;
use alarm_digest_benches::load::{Job, Shape, Target, measure};
use alarm_digest_benches::wire::address;
use alarm_digest_benches::workload::Skew;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Loads a running implementation of the alarm digest over NATS, measures it and checks off every alarm.
///
/// Exits with 1 when an alarm was lost, told twice or told wrongly.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    shape: ShapeArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Load")]
struct ShapeArgs {
    /// Process of the implementation, whose time and memory are to be read
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// Process of nats-server
    #[arg(long, global = true)]
    server_pid: Option<u32>,
    /// It is the floor: it counts, and answers nothing else
    #[arg(long, global = true)]
    sink: bool,
    /// Users; chosen by itself for latency
    #[arg(long, global = true, default_value_t = 10_000)]
    users: u32,
    /// Alarms of each user; always two for latency
    #[arg(long, global = true, default_value_t = 10)]
    alarms: u32,
    /// How changes are spread over the users
    #[arg(long, global = true, value_enum, default_value = "uniform")]
    skew: Skew,
    /// Connections that publish
    #[arg(long, global = true, default_value_t = 2)]
    connections: usize,
    /// Repeats a load, on an implementation that has not seen it [default: from the clock]
    #[arg(long, global = true)]
    seed: Option<u64>,
}

#[derive(Subcommand)]
enum What {
    /// As fast as the server takes it
    Flood {
        /// Messages
        #[arg(long, default_value_t = 1_000_000)]
        messages: u64,
    },
    /// At a fixed rate
    Paced {
        /// Messages per second
        #[arg(long, default_value_t = 20_000.0)]
        rate: f64,
        /// For how long
        #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
        time: Duration,
        /// Between two bursts
        #[arg(long, default_value = "500us", value_parser = humantime::parse_duration)]
        tick: Duration,
        /// One message in so many is a request, the others are changes; none if 0
        #[arg(long, default_value_t = 100)]
        requests_every: u32,
    },
    /// A change, then a request, then the wait for the digest
    Latency {
        /// Requests per second
        #[arg(long, default_value_t = 1000.0)]
        rate: f64,
        /// For how long
        #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
        time: Duration,
        /// Fail if a digest misses the alarm just before its request
        #[arg(long)]
        causal: bool,
    },
    /// Each alarm of each user once, and what that takes in memory; needs --pid
    Memory,
}

fn main() -> Result<ExitCode> {
    let Cli { what, nats, shape } = Cli::parse();
    let server = address(&nats)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let target = Target {
        server,
        subjects: nats.subjects().map_err(anyhow::Error::msg)?,
        pid: shape.pid,
        server_pid: shape.server_pid,
        is_sink: shape.sink,
    };
    let shape = Shape {
        users: shape.users,
        alarms: shape.alarms,
        skew: shape.skew,
        connections: shape.connections,
        seed: shape.seed.unwrap_or(clock),
    };
    let is_causal = matches!(what, What::Latency { causal: true, .. });
    let job = match what {
        What::Flood { messages } => Job::Flood { messages },
        What::Paced { rate, time, tick, requests_every } => Job::Paced { rate, time, tick, requests_every },
        What::Latency { rate, time, .. } => Job::Latency { rate, time },
        What::Memory => Job::Memory,
    };
    println!("seed {}", shape.seed);
    let report = measure(&target, &shape, job)?;
    println!("{report}");
    let is_right = report.is_right() && !(is_causal && report.missed > 0);
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
