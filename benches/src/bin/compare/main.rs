//! The whole comparison: every variant, every measurement, in turns, with a record and plots.
//!
//! Variants take turns within each measurement, and start from another one each round, so that whatever the machine
//! does meanwhile happens to all of them. What is told is the median, with the least and the greatest.
//!
//! Never: a number that is not in the record.

mod plan;
mod plot;
mod rank;
mod record;
mod summary;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use alarm_digest::config::NatsArgs;
use alarm_digest_benches::load::{Target, measure};
use alarm_digest_benches::machine;
use alarm_digest_benches::place;
use alarm_digest_benches::report::Report;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use nats_server_fixture::{Binary, Process, Server, available};

use crate::plan::{Layout, Measurement, Variant};
use crate::record::Record;

/// Compares the service with its variants, and writes a record with plots.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// A few small loads, for trying whether all of it works; the numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// How often each variant has its turn; memory is measured once [default: 3, or 1 if quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// Only measurements whose name holds one of these, like flood,paced
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only variants whose name holds one of these, like service,tokio
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// The programs next to this one are the ones to measure
    #[arg(long)]
    no_build: bool,
    /// Directory for records; each comparison makes one of its own there
    #[arg(long)]
    out: Option<PathBuf>,
    /// No comparison: summary and plots of the record in this directory, once more
    #[arg(long, value_name = "DIR")]
    again: Option<PathBuf>,
    /// No comparison: whether the records in these two directories put the variants in the same order
    #[arg(long, value_names = ["DIR", "DIR"], num_args = 2, conflicts_with = "again")]
    ranks: Vec<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(dir) = &cli.again {
        let record = Record::read(dir)?;
        summary::write(&record, dir)?;
        plot::write(&record, dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let [first, second] = &cli.ranks[..] {
        let ranks = rank::compare(&Record::read(first)?, &Record::read(second)?);
        print!("{}", ranks.text);
        return Ok(if ranks.contradicting == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let programs = programs(!cli.no_build)?;
    let server = available()?.into_iter().next().context("expected a nats-server")?;
    let cpus = machine::cpus()?;
    let measurements = plan::measurements(&cpus, cli.quick, &cli.only, &cli.variants);
    ensure!(!measurements.is_empty(), "no measurement of that name");
    let rounds = cli.rounds.unwrap_or(if cli.quick { 1 } else { 3 });
    let place = place::describe("compare", &server, rounds)?;
    println!("{place}");

    let started = Instant::now();
    let runs: usize =
        measurements.iter().map(|measurement| measurement.variants.len() * measurement.rounds(rounds)).sum();
    let mut record = Record::default();
    let mut done = 0;
    verify_all(&programs, &server, &measurements)?;
    for round in 0..rounds {
        for measurement in measurements.iter().filter(|measurement| round < measurement.rounds(rounds)) {
            let variants = &measurement.variants;
            for turn in 0..variants.len() {
                let variant = variants[(turn + round) % variants.len()];
                let seed = (round * 1000 + turn) as u64;
                let came = run(&programs, &server, measurement, variant, seed);
                done += 1;
                let left = started.elapsed().mul_f64((runs - done) as f64 / done as f64);
                let told = match &came {
                    Ok(report) => measurement.in_short(report),
                    Err(error) => format!("FAILED: {error:#}"),
                };
                println!(
                    "[{done:>3}/{runs}, {:>2} min left] round {}, {}: {:<28} {told}",
                    left.as_secs().div_ceil(60),
                    round + 1,
                    measurement.title(),
                    variant.name()
                );
                record.add(round, measurement, variant, came);
            }
        }
    }
    let out = cli
        .out
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("record"))
        .join(place::moment()? + if cli.quick { "-quick" } else { "" });
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("machine.md"), place)?;
    record.write(&out)?;
    if !cli.quick {
        count_instructions(&programs, &out)?;
    }
    summary::write(&record, &out)?;
    plot::write(&record, &out)?;
    println!("{}\nwritten to {}", std::fs::read_to_string(out.join("summary.md"))?, out.display());
    Ok(if record.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Into the same record; they are the same every time, so once is enough. Without valgrind there are none.
fn count_instructions(programs: &Path, out: &Path) -> Result<()> {
    let status = Command::new(programs.join("instructions"))
        .arg("--out")
        .arg(out.join("instructions.csv"))
        .status()?;
    if !status.success() {
        println!("no instructions were counted");
    }
    Ok(())
}

/// The directory of the programs to measure. They are built apart, so that no crate of the service gets a feature that
/// only a variant asks for.
fn programs(is_built: bool) -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let dir = ours.parent().context("expected a program in a directory")?;
    if !is_built {
        return Ok(dir.into());
    }
    let target = dir.parent().context("expected a target directory")?;
    for package in ["alarm-digest", "alarm-digest-benches"] {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "--bins", "-p", package, "--target-dir"]).arg(target);
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot run cargo")?;
        ensure!(built.success(), "{package} could not be built");
    }
    Ok(target.join("release"))
}

/// Longest time for a variant to connect, and for the smoke test.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// No number of a variant that does not pass the smoke test.
fn verify_all(programs: &Path, server: &Binary, measurements: &[Measurement]) -> Result<()> {
    for variant in Variant::ALL {
        let is_measured = measurements.iter().any(|measurement| measurement.variants.contains(&variant));
        if !is_measured || variant == Variant::Floor || variant.is_other_setting() {
            continue;
        }
        let server = Server::start(server)?;
        let _process = start(programs, &server, variant, &machine::cpus()?)?;
        let mut verify = Command::new(programs.join("alarm-digest"));
        verify.args(["verify", "--server", &server.url()]);
        let mut verify = Process::spawn(&verify)?;
        let status = verify.wait(READY_WITHIN)?;
        ensure!(status.success(), "{} does not pass the smoke test:\n{}", variant.name(), verify.log());
        println!("{} passes the smoke test", variant.name());
    }
    Ok(())
}

fn start(programs: &Path, server: &Server, variant: Variant, cpus: &[usize]) -> Result<Process> {
    let (program, arguments) = variant.program();
    let list = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new(programs.join(program));
    command.args(arguments).args(["--server", &server.url(), "--cpus", &list]).env_remove("NATS_URL");
    let mut process = Process::spawn(&command)?;
    process.wait_for_line("all cores are connected", READY_WITHIN)?;
    Ok(process)
}

fn run(
    programs: &Path,
    server: &Binary,
    measurement: &Measurement,
    variant: Variant,
    seed: u64,
) -> Result<Report> {
    let server = Server::start(server)?;
    let all = machine::cpus()?;
    let theirs = match &measurement.layout {
        Layout::Together { cpus } => cpus,
        Layout::Apart { cpus, others } => {
            machine::pin_process(server.pid(), others)?;
            cpus
        }
    };
    let process = start(programs, &server, variant, theirs)?;
    let target = Target {
        server: server.addr(),
        subjects: subjects(),
        pid: Some(process.pid()),
        server_pid: Some(server.pid()),
        is_sink: variant == Variant::Floor,
    };
    let mut shape = measurement.shape.clone();
    shape.seed = seed;
    if let Layout::Apart { others, .. } = &measurement.layout {
        machine::pin_thread(others)?;
    }
    let report = measure(&target, &shape, measurement.job);
    machine::pin_thread(&all)?;
    report
}

/// The default ones, that all variants have.
fn subjects() -> alarm_digest::shard::Subjects {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        nats: NatsArgs,
    }
    Defaults::parse_from(["defaults"]).nats.subjects().expect("the defaults are four different subjects")
}
