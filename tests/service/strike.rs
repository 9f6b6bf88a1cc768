//! Faults with a beginning and an end, so that one can begin while another one lasts.

use std::thread;
use std::time::Duration;

use fastrand::Rng;

/// What a fault breaks. Of two at once each breaks something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Server,
    Service,
    Network,
}

pub struct Fault<W> {
    pub name: &'static str,
    pub breaks: &'static [Part],
    pub begin: fn(&mut W) -> Broken<W>,
}

/// What has begun, and how it ends.
pub struct Broken<W> {
    lasts: Duration,
    heal: Box<dyn FnOnce(&mut W)>,
}

impl<W> Broken<W> {
    pub fn until(lasts: Duration, heal: impl FnOnce(&mut W) + 'static) -> Self {
        Self { lasts, heal: Box::new(heal) }
    }

    /// Its beginning did all of it.
    pub fn over() -> Self {
        Self::until(Duration::ZERO, |_| {})
    }
}

/// How it is counted when a fault strikes while another one lasts.
pub const TWO_AT_ONCE: &str = "two at once";

/// One in so many is struck while another one lasts.
const BOTH: u32 = 3;

/// A fault, and perhaps another one that can strike while it lasts.
pub fn pick<'a, W>(faults: &'a [Fault<W>], rng: &mut Rng) -> (&'a Fault<W>, Option<&'a Fault<W>>) {
    let first = &faults[rng.usize(..faults.len())];
    let others: Vec<&Fault<W>> =
        faults.iter().filter(|other| !other.breaks.iter().any(|part| first.breaks.contains(part))).collect();
    let second = rng.choice(others).filter(|_| rng.u32(..BOTH) == 0);
    (first, second)
}

/// Breaks something, and something else half of the time later, and heals what is broken, in any order.
pub fn strike<W>(world: &mut W, first: &Fault<W>, second: Option<&Fault<W>>, rng: &mut Rng) {
    let first = (first.begin)(world);
    let Some(second) = second else {
        thread::sleep(first.lasts);
        return (first.heal)(world);
    };
    thread::sleep(first.lasts / 2);
    let second = (second.begin)(world);
    thread::sleep(second.lasts.max(first.lasts / 2));
    let (sooner, later) = if rng.bool() { (first, second) } else { (second, first) };
    (sooner.heal)(world);
    thread::sleep(Duration::from_millis(rng.u64(..500)));
    (later.heal)(world);
}
