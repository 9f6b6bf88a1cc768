//! What each core last said of itself, for whoever looks from outside: metrics, the service API, systemd.
//!
//! A core says it about once a second and whenever it becomes ready or stops being so, so that nobody who looks can disturb
//! it: a lock of its own that is never held for longer than a copy.
//!
//! Never: a decision of the service.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::logic::Counters;
use crate::shard::ShardId;

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
    /// What has happened so far.
    pub counters: Counters,
    /// Users in memory.
    pub users: usize,
    /// Alarms in memory.
    pub alarms: usize,
    /// Publications that are not proved, messages that are not acknowledged.
    pub unsettled: usize,
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

    /// Cores that have not said anything since `then`.
    #[must_use]
    pub fn silent_since(&self, then: Duration) -> Vec<ShardId> {
        let is_silent = |core: &Mutex<CoreStatus>| lock(core).said_at.is_none_or(|said_at| said_at < then);
        (0..self.0.len()).filter(|core| is_silent(&self.0[*core])).map(ShardId).collect()
    }
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
}
