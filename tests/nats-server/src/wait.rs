//! Waiting with a deadline. Never: a wait without one.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Short against anything a test waits for, long against one look.
const PAUSE: Duration = Duration::from_millis(10);

/// Returns as soon as `cond` holds; it is asked at least twice, the last time after the deadline.
///
/// # Panics
/// When `cond` does not hold after `within`; the message names `what` was awaited.
#[track_caller]
pub fn eventually(within: Duration, what: impl Display, mut cond: impl FnMut() -> bool) {
    assert!(poll(within, || cond().then_some(())).is_some(), "waited {within:?} in vain for {what}");
}

/// The first thing that `look` finds, or `None` after `within`.
pub(crate) fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        let late = Instant::now() >= deadline;
        match look() {
            Some(found) => return Some(found),
            None if late => return None,
            None => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_asked_until_it_holds() {
        let mut asked = 0;
        eventually(Duration::from_secs(10), "the third time", || {
            asked += 1;
            asked == 3
        });
        assert_eq!(asked, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for the moon to fall")]
    fn a_wait_in_vain_names_what_was_awaited() {
        eventually(Duration::ZERO, "the moon to fall", || false);
    }
}
