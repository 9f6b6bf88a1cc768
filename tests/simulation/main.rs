//! Everything that the service decides, against simulated servers, and judges that know what must come out. One seed decides
//! everything.
//!
//! - `memory`: shards and their drivers, with the connections of `wire`; `judge` says what must hold
//! - `workers`: instances of the durable mode, members and relays included, with the server of `jetstream`, which says what
//!   must hold
//! - `durable`: users of the durable mode alone, without the wire, and protocols that are wrong
//! - `rules`: the book against the rules written down once more
//! - `dice`: all randomness, and the kinds of faults; `runs`: many seeds, and how a failing one becomes short
//!
//! `SIMULATION_SEED=n` repeats one run of memory mode, `SIMULATION_SEEDS=n` runs that many, `SIMULATION_FROM=n` begins there;
//! `EAGER_…`, `WORKERS_…` and `DURABLE_…` do so for the others. A run that fails is made as short as it can be, and told step by step.
//! Without end, or for `SIMULATION_SECONDS=n`:
//!
//! ```sh
//! cargo test --test simulation -- --ignored --nocapture soak
//! ```

mod dice;
mod durable;
mod jetstream;
mod judge;
mod memory;
mod rules;
mod runs;
mod wire;
mod workers;

use std::time::{Duration, Instant};

use dice::{Fault, Without};
use memory::Promise;
use runs::{Outcome, Total, number, verdict};

const SEEDS: u64 = 30_000;
const WORKERS_SEEDS: u64 = 5_000;
const EAGER_SEEDS: u64 = 5_000;

fn memory(seed: u64, without: &Without, is_traced: bool) -> Outcome {
    memory::World::new(seed, Promise::Causal, without, is_traced).run()
}

fn eager(seed: u64, without: &Without, is_traced: bool) -> Outcome {
    memory::World::new(seed, Promise::Eager, without, is_traced).run()
}

fn workers(seed: u64, without: &Without, is_traced: bool) -> Outcome {
    workers::World::new(seed, without, is_traced).run()
}

#[test]
fn nothing_is_lost_invented_or_told_twice_whatever_the_broker_does() {
    Total::new("SIMULATION", memory).run_all(SEEDS);
}

#[test]
fn instances_together_tell_everything_once_whatever_happens_to_them() {
    Total::new("WORKERS", workers).run_all(WORKERS_SEEDS);
}

/// In the first two the judge did not see what had been forgotten; in the third a copy of a message was refused by what had been
/// seen for another one.
#[test]
fn seeds_that_have_failed_pass() {
    let mut total = Total::new("WORKERS", workers);
    [13_847, 245_684, 1_043_286].into_iter().for_each(|seed| total.run(seed));
}

#[test]
fn who_is_eager_keeps_all_but_the_causal_promise() {
    Total::new("EAGER", eager).run_all(EAGER_SEEDS);
}

#[test]
fn a_digest_that_does_not_wait_for_the_fences_is_caught_within_a_hundred_seeds() {
    let broken = |seed| memory::World::new(seed, Promise::Broken, &Without::default(), false).run();
    let caught = (0..100).find_map(|seed| verdict(|| broken(seed)).err());
    let wrong = caught.expect("eager shards pass");
    assert!(wrong.contains("taken before") || wrong.contains("was read after"), "{wrong}");
}

#[test]
fn leaving_out_a_kind_of_fault_leaves_the_rest_of_a_world_as_it_is() {
    let all = Without::default();
    for seed in 0..100 {
        for kind in 0..dice::KINDS {
            let without = Without { faults: 1 << kind, ..Without::default() };
            let memory = |without| memory::World::new(seed, Promise::Causal, without, false).shape();
            assert_eq!(memory(&without), memory(&all), "seed {seed} without {:?}", Fault::ALL[kind]);
            let workers = |without| workers::World::new(seed, without, false).shape();
            assert_eq!(workers(&without), workers(&all), "seed {seed} without {:?}", Fault::ALL[kind]);
        }
    }
}

#[test]
#[ignore = "runs until it is stopped"]
fn soak() {
    let end = number("SIMULATION_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = number("SIMULATION_FROM").unwrap_or(SEEDS);
    let mut totals = [Total::new("SIMULATION", memory), Total::new("WORKERS", workers)];
    let mut said_at = Instant::now();
    for seed in first.. {
        totals.iter_mut().for_each(|total| total.run(seed));
        let is_over = end.is_some_and(|end| Instant::now() >= end);
        if is_over || said_at.elapsed() >= Duration::from_secs(60) {
            totals.iter().for_each(|total| println!("{total}"));
            said_at = Instant::now();
        }
        if is_over {
            return;
        }
    }
}
