//! glommio 0.9 parks although a task can run: a task that works, yields and works again stands still for ever.
//!
//! ```sh
//! cargo run --release -p alarm-digest-benches --bin parked -- --preempt 50us --for 10s
//! ```
//!
//! `LocalExecutor::run` installs the preempt timer while it looks for events, and then runs tasks only for as long as that has not
//! fired. If it has by then, none has run, which counts as if there were none: the executor parks, and waits for an event that nobody
//! causes. With the timer of 100 ms that glommio has
//! by default, or the 10 ms that the service had, it takes a thread that is off its CPU for so long at that moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use glommio::{LocalExecutorBuilder, Placement};

#[derive(Parser)]
struct Args {
    /// What takes a task out of its executor for others
    #[arg(long, default_value = "50us", value_parser = humantime::parse_duration)]
    preempt: Duration,
    /// How long to look at it
    #[arg(long = "for", default_value = "10s", value_parser = humantime::parse_duration)]
    time: Duration,
}

static TURNS: AtomicU64 = AtomicU64::new(0);

fn main() {
    let Args { preempt, time } = Args::parse();
    let executor = LocalExecutorBuilder::new(Placement::Unbound).preempt_timer(preempt).spawn(|| async {
        loop {
            // Work that the executor knows nothing of.
            std::thread::sleep(Duration::from_millis(1));
            glommio::yield_if_needed().await;
            TURNS.fetch_add(1, Ordering::Relaxed);
        }
    });
    // It never ends.
    drop(executor.expect("an executor"));
    let (began, mut before) = (Instant::now(), 0);
    while began.elapsed() < time {
        std::thread::sleep(Duration::from_secs(1).min(time));
        let turns = TURNS.load(Ordering::Relaxed);
        println!("{:5.1} s: {} turns", began.elapsed().as_secs_f64(), turns - before);
        before = turns;
    }
}
