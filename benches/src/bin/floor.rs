//! The floor: reads what the service would read, counts it, and does nothing else. On blocking sockets, one pinned
//! thread a core, through the same codec: the least that any client can cost.
//!
//! Never: JSON, an answer to anybody but the load tool, which asks how many messages there were.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use alarm_digest::config::{NatsArgs, RunArgs};
use alarm_digest_benches::load::{SINK_ASK, SINK_COUNT};
use alarm_digest_benches::machine;
use alarm_digest_benches::wire::{Connection, address};
use anyhow::Result;
use clap::Parser;

/// Takes the service's arguments, and leaves out most of what they ask for.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    run: RunArgs,
}

const ASK_SID: u64 = 3;

static COUNT: AtomicU64 = AtomicU64::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);

fn main() -> Result<()> {
    let cli = Cli::parse();
    let cpus = match &cli.run.cpus {
        Some(list) => list.0.clone(),
        None => machine::cpus()?.into_iter().take(cli.run.cores.unwrap_or(usize::MAX)).collect(),
    };
    let (cli, cores_count) = (&cli, cpus.len());
    std::thread::scope(|scope| {
        let cores: Vec<_> = cpus
            .iter()
            .enumerate()
            .map(|(core, cpu)| scope.spawn(move || read(cli, core, &[*cpu], cores_count)))
            .collect();
        cores.into_iter().try_for_each(|core| core.join().expect("a core does not panic"))
    })
}

fn read(cli: &Cli, core: usize, cpu: &[usize], cores: usize) -> Result<()> {
    machine::pin_thread(cpu)?;
    let server = address(&cli.nats)?;
    let mut link = Connection::open(server, "floor", None)?;
    link.subscribe(&cli.nats.subject_changed, Some(&cli.run.queue_group), 1);
    link.subscribe(&cli.nats.subject_send, Some(&cli.run.queue_group), 2);
    if core == 0 {
        link.subscribe(SINK_ASK, None, ASK_SID);
    }
    link.flush()?;
    if READY.fetch_add(1, Ordering::AcqRel) + 1 == cores {
        eprintln!("started: all cores are connected and subscribed");
    }
    loop {
        let (mut count, mut is_asked) = (0, false);
        link.read(|message| match message.sid_number() {
            Some(ASK_SID) => is_asked = true,
            _ => count += 1,
        })?;
        COUNT.fetch_add(count, Ordering::Relaxed);
        if is_asked {
            link.publish(SINK_COUNT, COUNT.load(Ordering::Relaxed).to_string().as_bytes());
        }
    }
}
