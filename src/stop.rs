//! The way from a signal to all cores: run, then drain, then abort. Only ever forward.
//!
//! Never: a signal itself.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

use alarm_digest::shard::ShardId;

/// How far the whole service is in stopping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    Run,
    /// Finish what has arrived.
    Drain,
    /// Stop where you are.
    Abort,
}

/// The stage, and the wakers of the cores that sleep.
pub struct Stop {
    stage: AtomicU8,
    /// One per core, each behind its own lock, so that cores do not meet here.
    wakers: Box<[Mutex<Option<Waker>>]>,
}

impl Stop {
    pub fn new(cores: usize) -> Self {
        Self {
            stage: AtomicU8::new(Stage::Run as u8),
            wakers: (0..cores).map(|_| Mutex::default()).collect(),
        }
    }

    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Run,
            1 => Stage::Drain,
            _ => Stage::Abort,
        }
    }

    /// The stage now; the caller is woken when it changes.
    pub fn poll(&self, core: ShardId, cx: &Context<'_>) -> Stage {
        let mut waker = lock(&self.wakers[core.0]);
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        // After the waker is in its place, so that no change can be missed between the two.
        self.stage()
    }

    /// Goes on to `stage`, if it is not there yet, and wakes all cores.
    pub fn advance(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.wakers.iter().filter_map(|waker| lock(waker).clone()).for_each(Waker::wake);
    }
}

fn lock(waker: &Mutex<Option<Waker>>) -> std::sync::MutexGuard<'_, Option<Waker>> {
    waker.lock().unwrap_or_else(PoisonError::into_inner)
}
