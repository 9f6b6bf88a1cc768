//! Many runs, each from its seed; and of one that fails, what is left when all is left out that can be.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::dice::{Fault, KINDS, Without};

/// What a run was made of.
pub type Counts = Vec<(&'static str, u64)>;

/// The same, and how often each kind of fault did something.
pub type Outcome = (Counts, [u64; KINDS]);

/// One run: its seed, what is left out, and whether each of its steps is told. Panics with what is wrong.
pub type Run = fn(u64, &Without, bool) -> Outcome;

/// More steps than any run has before it becomes quiet.
pub const STEPS_MAX: u64 = 1600;

/// What many runs were made of.
pub struct Total {
    /// The world they are in, and the environment variable that repeats one of them.
    world: &'static str,
    run: Run,
    seeds: u64,
    counts: BTreeMap<&'static str, u64>,
    struck: [u64; KINDS],
}

impl Total {
    pub fn new(world: &'static str, run: Run) -> Self {
        Self { world, run, seeds: 0, counts: BTreeMap::new(), struck: [0; KINDS] }
    }

    /// What CI runs, or what the environment says.
    pub fn run_all(mut self, seeds: u64) {
        let variable = |what: &str| number(&format!("{}_{what}", self.world));
        let from = variable("FROM").unwrap_or(0);
        let seeds = match variable("SEED") {
            Some(seed) => seed..seed + 1,
            None => from..from + variable("SEEDS").unwrap_or(seeds),
        };
        seeds.for_each(|seed| self.run(seed));
        println!("{self}");
    }

    /// # Panics
    /// When the run fails, after it was made short and told.
    pub fn run(&mut self, seed: u64) {
        match verdict(|| (self.run)(seed, &Without::default(), false)) {
            Ok((counts, struck)) => {
                self.seeds += 1;
                counts.into_iter().for_each(|(what, count)| *self.counts.entry(what).or_default() += count);
                self.struck.iter_mut().zip(struck).for_each(|(mine, other)| *mine += other);
            }
            Err(wrong) => {
                println!("seed {seed}: {wrong}");
                if number("SIMULATION_SHRINK") != Some(0) {
                    tell_shortest(seed, self.run);
                }
                panic!("seed {seed}: {wrong}: repeat it with {}_SEED={seed}", self.world);
            }
        }
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: seeds {}", self.world, self.seeds)?;
        self.counts.iter().try_for_each(|(what, count)| write!(f, ", {what} {count}"))?;
        write!(f, "; faults {}", self.struck.iter().sum::<u64>())?;
        let struck = Fault::ALL.iter().zip(self.struck).filter(|(_, count)| *count > 0);
        struck.into_iter().try_for_each(|(fault, count)| write!(f, ", {fault:?} {count}"))
    }
}

pub fn number(name: &str) -> Option<u64> {
    let read =
        |text: String| text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text}"));
    std::env::var(name).ok().map(read)
}

/// Leaves out whatever can be left out so that the run still fails, and tells what is left of it.
fn tell_shortest(seed: u64, run: Run) {
    let fails = |without: &Without| verdict(|| run(seed, without, false)).is_err();
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
    let wrong = verdict(|| run(seed, &without, true)).expect_err("it has just failed");
    println!("{wrong}");
}

thread_local! {
    /// What a run of this thread panicked with, while one is under way.
    static WRONG: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Turns a panic into what was wrong and where. Panics are the judges' verdicts, and there may be thousands of them.
pub fn verdict<T>(run: impl FnOnce() -> T) -> Result<T, String> {
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
