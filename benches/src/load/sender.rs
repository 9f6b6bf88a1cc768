//! Sends what has been encoded, when it is due.
//!
//! Never: a delay because of what came, or did not come, in answer.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::report::histogram;
use crate::wire::Connection;
use crate::workload::Encoded;

/// How one sender goes about it.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    AtOnce,
    /// Message `n` is due at `n * gap`, and goes with the burst at the next multiple of `tick`.
    Bursts {
        gap: Duration,
        tick: Duration,
    },
}

/// Sends all, and returns once the server has read it.
pub(super) fn send(
    sender: &mut Connection,
    encoded: &Encoded,
    start: Instant,
    pace: Pace,
) -> Result<Histogram<u64>> {
    /// Larger writes would not be faster, and smaller ones would cost us more.
    const WRITE_BYTES: usize = 64 * 1024;
    let mut lag = histogram();
    sleep_until(start);
    match pace {
        Pace::AtOnce => {
            for bytes in encoded.bytes.chunks(WRITE_BYTES) {
                sender.write_encoded(bytes)?;
            }
        }
        Pace::Bursts { gap, tick } => {
            need_sharp_timers()?;
            let mut sent = 0;
            let mut bursts = 0u32;
            while sent < encoded.len() {
                bursts += 1;
                let due_at = start + tick * bursts;
                sleep_until(due_at);
                let due = (due_at - start).as_nanos() / gap.as_nanos().max(1);
                let to = usize::try_from(due)?.min(encoded.len());
                if to > sent {
                    record_lag(&mut lag, due_at);
                    sender.write_encoded(encoded.range(sent, to))?;
                    sent = to;
                }
            }
        }
    }
    sender.flush()?;
    Ok(lag)
}

/// How long before its time a single write is waited for awake: a wake-up takes about as long as what is measured.
const SPIN: Duration = Duration::from_micros(100);

/// Sends each of `writes` at its own time.
pub(super) fn send_each(
    sender: &mut Connection,
    writes: &[Encoded],
    due: impl Fn(usize) -> Instant,
) -> Result<Histogram<u64>> {
    need_sharp_timers()?;
    let mut lag = histogram();
    for (number, write) in writes.iter().enumerate() {
        let due = due(number);
        sleep_until(due.checked_sub(SPIN).unwrap_or(due));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        record_lag(&mut lag, due);
        sender.write_encoded(&write.bytes)?;
    }
    sender.flush()?;
    Ok(lag)
}

fn record_lag(lag: &mut Histogram<u64>, due: Instant) {
    lag.saturating_record((due.elapsed().as_nanos() as u64).max(1));
}

/// By default the kernel may wake a thread 50 µs late, to save power.
fn need_sharp_timers() -> Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("setting the timer slack")
}

fn sleep_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}
