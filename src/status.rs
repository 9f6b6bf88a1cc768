//! What each core last said of itself, for whoever looks from outside: metrics, the service API, systemd.
//!
//! A core says it about once a second and whenever it becomes ready or stops being so, so that nobody who looks can disturb
//! it: a lock of its own that is never held for longer than a copy.
//!
//! Never: a decision of the service.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::histogram::Histogram;
use crate::logic::Counters;
use crate::shard::ShardId;

/// Bytes of reads: up to 50,000, and what is nearer to all that one read can take.
pub type ReadSizes = Histogram<100, 9>;

/// What one core says of itself. Times are spans since the start of the service.
#[derive(Clone, Default, Debug)]
pub struct CoreStatus {
    /// When it said this; nothing before its first turn.
    pub said_at: Option<Duration>,
    /// Since when it has been connected and subscribed.
    pub ready_at: Option<Duration>,
    /// The server it is connected to, or tries to be.
    pub server: String,
    /// It finishes what has arrived, and takes no more.
    pub is_draining: bool,
    /// This was its last word.
    pub has_ended: bool,
    /// What has happened so far.
    pub counters: Counters,
    /// Users in memory.
    pub users: usize,
    /// Alarms in memory.
    pub alarms: usize,
    /// Publications that are not proved, messages that are not acknowledged.
    pub unsettled: usize,
    /// Mail from other cores that waits for it.
    pub inbox: usize,
    /// Bytes of each read from the server.
    pub reads: ReadSizes,
    /// Bytes written to the server.
    pub written_bytes: u64,
    /// The bad message that its log named last.
    pub last_rejection: Option<Rejected>,
}

/// A bad message.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// When it came.
    pub at: Duration,
    /// Where it came from.
    pub subject: String,
    /// What was expected and what came.
    pub text: String,
}

/// The last word of each core.
pub struct Status(Box<[Mutex<CoreStatus>]>);

impl Status {
    /// Of `cores`, none of which has said anything.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| Mutex::default()).collect())
    }

    /// What `core` says of itself now.
    ///
    /// # Panics
    /// When there is no such core.
    pub fn say(&self, core: ShardId, status: CoreStatus) {
        *lock(&self.0[core.0]) = status;
    }

    /// What each core last said.
    #[must_use]
    pub fn cores(&self) -> Vec<CoreStatus> {
        self.0.iter().map(|core| lock(core).clone()).collect()
    }

    /// Cores that have not said anything since `then`, but for those that have ended.
    #[must_use]
    pub fn silent_since(&self, then: Duration) -> Vec<ShardId> {
        let is_silent = |core: &Mutex<CoreStatus>| {
            let core = lock(core);
            !core.has_ended && core.said_at.is_none_or(|said_at| said_at < then)
        };
        (0..self.0.len()).filter(|core| is_silent(&self.0[*core])).map(ShardId).collect()
    }
}

/// A core that has turned and says nothing for so long does so no more: ten times as long as between two words.
const HUNG_AFTER: Duration = Duration::from_secs(10);

/// What is to be said of cores that turned once and do so no more.
#[must_use]
pub fn hung(cores: &[CoreStatus], now: Duration) -> Vec<String> {
    let silence = |core: &CoreStatus| match core.said_at {
        Some(said_at) if !core.has_ended => now.saturating_sub(said_at),
        _ => Duration::ZERO,
    };
    let hung = cores.iter().map(silence).enumerate().filter(|(_, silence)| *silence > HUNG_AFTER);
    hung.map(|(core, silence)| format!("core {core} has not turned for {} s", silence.as_secs())).collect()
}

/// What is to be said of cores that do not do what they are there for.
#[must_use]
pub fn unready(cores: &[CoreStatus], now: Duration) -> Vec<String> {
    let unready = cores.iter().enumerate().filter(|(_, core)| core.ready_at.is_none());
    let unready = unready.map(|(core, status)| match status.server.as_str() {
        "" => format!("core {core} has not started"),
        server => format!("core {core} is not connected and subscribed: {server}"),
    });
    hung(cores, now).into_iter().chain(unready).collect()
}

fn lock(core: &Mutex<CoreStatus>) -> MutexGuard<'_, CoreStatus> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_silent_until_it_speaks_and_again_when_it_has_not_for_long() {
        let status = Status::new(2);
        let second = Duration::from_secs;
        assert_eq!(status.silent_since(second(0)), [ShardId(0), ShardId(1)]);
        status.say(ShardId(1), CoreStatus { said_at: Some(second(5)), ..CoreStatus::default() });
        assert_eq!(status.silent_since(second(5)), [ShardId(0)]);
        assert_eq!(status.silent_since(second(6)), [ShardId(0), ShardId(1)]);
        assert_eq!(status.cores()[1].said_at, Some(second(5)));
    }

    #[test]
    fn a_core_that_falls_silent_is_hung_and_one_without_a_link_is_not_ready() {
        let said_at = |second, ready_at: Option<u64>| CoreStatus {
            said_at: Some(Duration::from_secs(second)),
            ready_at: ready_at.map(Duration::from_secs),
            server: "nats://here:4222".into(),
            ..CoreStatus::default()
        };
        let cores = [said_at(20, Some(3)), CoreStatus::default(), said_at(21, None)];
        let not_started = "core 1 has not started";
        let not_connected = "core 2 is not connected and subscribed: nats://here:4222";
        let now = Duration::from_secs(30);
        assert_eq!(hung(&cores, now), [""; 0]);
        assert_eq!(unready(&cores, now), [not_started, not_connected]);
        let ended = CoreStatus { has_ended: true, ..cores[0].clone() };
        assert_eq!(hung(&[ended], now * 2), [""; 0]);
        let (now, silent) = (now + Duration::from_secs(1), "core 0 has not turned for 11 s");
        assert_eq!(hung(&cores, now), [silent]);
        assert_eq!(unready(&cores, now), [silent, not_started, not_connected]);
    }
}
