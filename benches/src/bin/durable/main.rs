//! The durable mode: what it makes of a server, against the server alone and against the official client.
//!
//! Variants take turns within each scenario, and start from another one each round. Ratios are of one round; told is their
//! median, with the least and the greatest.
//!
//! Never: a number that is not in the record.

mod cas;
mod drain;
mod plan;
mod record;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use alarm_digest_benches::place;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use nats_server_fixture::{Binary, available};

use crate::plan::Variant;
use crate::record::Record;

/// Measures the durable mode against the server alone and against the official client, and writes a record.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// A few small loads, for trying whether all of it works; the numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// How often each variant has its turn [default: 3, or 1 if quick]
    #[arg(long)]
    rounds: Option<usize>,
    /// Only scenarios whose name holds one of these, like new,hot
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only variants whose name holds one of these, like service,async-nats
    #[arg(long, value_delimiter = ',')]
    variants: Vec<String>,
    /// The programs next to this one are the ones to measure
    #[arg(long)]
    no_build: bool,
    /// Directory for records; each comparison makes one of its own there
    #[arg(long)]
    out: Option<PathBuf>,
    /// No comparison: the summary of the record in this directory, once more
    #[arg(long, value_name = "DIR")]
    again: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(dir) = &cli.again {
        Record::read(dir)?.summarize(dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    let programs = programs(!cli.no_build)?;
    let server = available()?.into_iter().next().context("expected a nats-server")?;
    let is_wanted =
        |wanted: &[String], name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let scenarios = plan::scenarios(cli.quick);
    let scenarios: Vec<_> =
        scenarios.into_iter().filter(|scenario| is_wanted(&cli.only, scenario.name)).collect();
    let variants: Vec<_> =
        Variant::ALL.into_iter().filter(|variant| is_wanted(&cli.variants, variant.name())).collect();
    ensure!(!scenarios.is_empty() && !variants.is_empty(), "no scenario or no variant of that name");
    let rounds = cli.rounds.unwrap_or(if cli.quick { 1 } else { 3 });
    let place = place::describe("durable", &server, rounds)?;
    println!("{place}");

    let started = Instant::now();
    let runs = rounds * scenarios.len() * variants.len();
    let mut record = Record::default();
    let mut done = 0;
    for round in 0..rounds {
        for scenario in &scenarios {
            println!(
                "round {}, {}",
                round + 1,
                record.add_alone(round, scenario.name, alone(&programs, &server, cli.quick))
            );
            for turn in 0..variants.len() {
                let variant = variants[(turn + round) % variants.len()];
                let seed = (round * 1000 + 10 * turn) as u64;
                let came = drain::run(&programs, &server, scenario, variant, seed);
                done += 1;
                let left = started.elapsed().mul_f64((runs - done) as f64 / done as f64);
                let told = record.add(round, scenario.name, variant, came);
                println!(
                    "[{done:>3}/{runs}, {:>2} min left] round {}, {}: {:<18} {told}",
                    left.as_secs().div_ceil(60),
                    round + 1,
                    scenario.name,
                    variant.name()
                );
            }
        }
    }
    let out = cli
        .out
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("record"))
        .join(place::moment()? + if cli.quick { "-durable-quick" } else { "-durable" });
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("machine.md"), place)?;
    record.write(&out)?;
    record.summarize(&out)?;
    println!("{}\nwritten to {}", std::fs::read_to_string(out.join("summary.md"))?, out.display());
    Ok(if record.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// Puts per second of keys that are new, and of the same keys again.
fn alone(programs: &Path, binary: &Binary, is_quick: bool) -> Result<[f64; 2]> {
    let keys = if is_quick { 5000 } else { 100_000 };
    let server = drain::server(programs, binary)?;
    let took = cas::measure(&mut drain::queue(&server)?, drain::BUCKET, keys)?;
    Ok(took.map(|took| f64::from(keys) / took.as_secs_f64()))
}
