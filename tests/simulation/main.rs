//! Everything that the service decides, against simulated servers, and judges that know what must come out. One seed decides
//! everything.
//!
//! - `memory`: shards and their drivers, with the faults of `dice` and the connections of `wire`; `judge` says what must hold
//! - `durable`: users of the durable mode against a simulated bucket, output stream and work queue
//! - `rules`: the book against the rules written down once more
//!
//! `SIMULATION_SEED=n` repeats one run, `SIMULATION_SEEDS=n` runs that many, `SIMULATION_FROM=n` begins there. A run that fails
//! is made as short as it can be, and told step by step. Without end, or for `SIMULATION_SECONDS=n`:
//!
//! ```sh
//! cargo test --release --test simulation -- --ignored --nocapture soak
//! ```

mod dice;
mod durable;
mod judge;
mod memory;
mod rules;
mod wire;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use dice::{Fault, KINDS, Without};
use judge::Tally;
use memory::{STEPS_MAX, World};

const SEEDS: u64 = 30_000;

/// Seeds that failed once, each with what was wrong.
const REGRESSIONS: [(u64, &str); 0] = [];

#[test]
fn nothing_is_lost_invented_or_told_twice_whatever_the_broker_does() {
    if let Some(seed) = number("SIMULATION_SEED") {
        return run_all(seed..seed + 1);
    }
    let from = number("SIMULATION_FROM").unwrap_or(0);
    REGRESSIONS.iter().for_each(|(seed, _)| run_all(*seed..*seed + 1));
    run_all(from..from + number("SIMULATION_SEEDS").unwrap_or(SEEDS));
}

#[test]
fn a_digest_that_does_not_wait_for_the_fences_is_caught_within_a_hundred_seeds() {
    let caught = (0..100).find_map(|seed| run(seed, true, &Without::default(), false).err());
    let wrong = caught.expect("eager shards pass");
    assert!(wrong.contains("taken before") || wrong.contains("was read after"), "{wrong}");
}

#[test]
#[ignore = "runs until it is stopped"]
fn soak() {
    let end = number("SIMULATION_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = number("SIMULATION_FROM").unwrap_or(SEEDS);
    let (mut total, mut said_at) = (Total::default(), Instant::now());
    for seed in first.. {
        total.run(seed);
        let is_over = end.is_some_and(|end| Instant::now() >= end);
        if is_over || said_at.elapsed() >= Duration::from_secs(60) {
            println!("{total}");
            said_at = Instant::now();
        }
        if is_over {
            return;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text}")))
}

fn run_all(seeds: std::ops::Range<u64>) {
    let mut total = Total::default();
    seeds.for_each(|seed| total.run(seed));
    println!("{total}");
}

/// What many runs were made of.
#[derive(Default)]
struct Total {
    seeds: u64,
    tally: Tally,
    struck: [u64; KINDS],
}

impl Total {
    /// # Panics
    /// When the run fails, after it was made short and told.
    fn run(&mut self, seed: u64) {
        match run(seed, false, &Without::default(), false) {
            Ok((tally, struck)) => {
                self.seeds += 1;
                self.tally.add(&tally);
                self.struck.iter_mut().zip(struck).for_each(|(mine, other)| *mine += other);
            }
            Err(wrong) => {
                println!("seed {seed}: {wrong}");
                if number("SIMULATION_SHRINK") != Some(0) {
                    tell_shortest(seed);
                }
                panic!("seed {seed}: {wrong}: repeat it with SIMULATION_SEED={seed}");
            }
        }
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seeds, tally, struck } = self;
        write!(f, "{seeds} seeds, {tally:?}")?;
        Fault::ALL.iter().zip(struck).try_for_each(|(fault, count)| write!(f, ", {fault:?} {count}"))
    }
}

/// One run, and what is wrong with it.
fn run(
    seed: u64,
    is_eager: bool,
    without: &Without,
    is_traced: bool,
) -> Result<(Tally, [u64; KINDS]), String> {
    verdict(|| World::new(seed, is_eager, without, is_traced).run())
}

/// Leaves out whatever can be left out so that the run still fails, and tells what is left of it.
fn tell_shortest(seed: u64) {
    let fails = |without: &Without| run(seed, false, without, false).is_err();
    let mut without = Without::default();
    for kind in 0..KINDS {
        let fewer = Without { faults: without.faults | 1 << kind, ..without.clone() };
        if fails(&fewer) {
            without = fewer;
        }
    }
    // Again and again, since what could not be left out may have been needed only for something that is left out by now.
    loop {
        let before = without.steps.len();
        for length in [512, 128, 32, 8, 2, 1] {
            for from in (1..STEPS_MAX).step_by(length) {
                let mut fewer = without.clone();
                fewer.steps.extend(from..from + length as u64);
                if fewer.steps.len() > without.steps.len() && fails(&fewer) {
                    without = fewer;
                }
            }
        }
        if without.steps.len() == before {
            break;
        }
    }
    let left: Vec<&Fault> =
        Fault::ALL.iter().filter(|fault| without.faults >> **fault as usize & 1 == 0).collect();
    println!("what is left of seed {seed}, with {left:?}:");
    let wrong = run(seed, false, &without, true).expect_err("it has just failed");
    println!("{wrong}");
}

thread_local! {
    /// What a run of this thread panicked with, while one is under way.
    static WRONG: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Turns a panic into what was wrong and where. Panics are the judges' verdicts, and there may be thousands of them.
fn verdict<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match WRONG.take() {
            Some(_) => WRONG.set(Some(info.to_string())),
            None => hook(info),
        }));
    });
    WRONG.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(run));
    let wrong = WRONG.take().unwrap_or_default();
    result.map_err(|_| wrong)
}
