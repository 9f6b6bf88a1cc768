//! When a core looks again, when it lets work gather, and when it sleeps.
//!
//! A core that finds nothing to do sleeps until its executor wakes it, which is what an executor is dear at: with glommio
//! each sleep and wake-up takes some nine system calls, and with few messages in each, most of a core's time. Two ways out
//! of that, each for another wish:
//!
//! - *Spin*: look again and again, each time with one `recv`, before sleeping. For cores that are nobody else's and digests
//!   that are in a hurry.
//! - *Coalesce*: while messages come so densely that the next sleep would be short, stay away for a fixed while instead and
//!   take together what has gathered. For everyone else. Sparse messages are never delayed, and only what the server delivers
//!   counts, not what follows from it: mail, fences, acknowledgements.
//!
//! Never: a clock, a sleep, a socket.

use std::time::Duration;

/// So many sleeps in a row must have been short before a core coalesces, so that who comes alone, or with a few others, is
/// served at once.
const SHORT_SLEEPS_MIN: u32 = 8;

/// What a driver does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Take a turn without leaving wakers: whatever comes is seen at the next look.
    Look,
    /// Keep the whole core asleep for so long, then [`Step::Look`].
    Gather(Duration),
    /// Take a turn that leaves wakers, and if it finds nothing either, sleep until one of them wakes.
    Park,
}

/// What a turn found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing to do.
    Nothing,
    /// Something, and all of it is done.
    Some,
    /// Something, and there is more.
    More,
}

/// How one core paces itself.
#[derive(Clone, Debug)]
pub struct Pace {
    spin: Duration,
    coalesce: Duration,
    /// Since when turns have found nothing.
    idle_since: Option<Duration>,
    /// When the core last went to sleep after messages.
    parked_at: Option<Duration>,
    /// Such sleeps in a row that began less than half of `coalesce` after the one before.
    short_sleeps: u32,
    /// How many messages had come by then, or by the last [`Step::Gather`].
    messages: u64,
    /// The last step was [`Step::Gather`], or a look right after it.
    is_gathering: bool,
}

impl Pace {
    /// Spins for `spin` before it sleeps, and coalesces for `coalesce`; zero turns either off.
    #[must_use]
    pub const fn new(spin: Duration, coalesce: Duration) -> Self {
        Self {
            spin,
            coalesce,
            idle_since: None,
            parked_at: None,
            short_sleeps: 0,
            messages: 0,
            is_gathering: false,
        }
    }

    /// What to do after a turn that ended at `now`, when `messages` had come from the server in all. After [`Step::Park`] it is
    /// asked only if that turn found something.
    pub fn next(&mut self, found: Found, messages: u64, now: Duration) -> Step {
        let has_come = messages != self.messages;
        match found {
            Found::Nothing => self.rest(messages, now),
            Found::Some if has_come && (self.is_gathering || self.short_sleeps >= SHORT_SLEEPS_MIN) => {
                (self.is_gathering, self.short_sleeps, self.messages) = (true, 0, messages);
                self.idle_since = None;
                Step::Gather(self.coalesce)
            }
            Found::Some | Found::More => {
                self.idle_since = None;
                Step::Look
            }
        }
    }

    fn rest(&mut self, messages: u64, now: Duration) -> Step {
        let idle_since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(idle_since) < self.spin {
            return Step::Look;
        }
        if self.is_gathering {
            // What would have come meanwhile did not: not dense any more.
            (self.is_gathering, self.parked_at) = (false, None);
        } else if messages != self.messages {
            let is_short =
                self.parked_at.is_some_and(|before| now.saturating_sub(before) < self.coalesce / 2);
            self.short_sleeps = if is_short { self.short_sleeps + 1 } else { 0 };
            self.parked_at = Some(now);
        }
        (self.messages, self.idle_since) = (messages, None);
        Step::Park
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Wakes up at `at` with a message and goes on until it sleeps; says when it went to sleep, and how often it gathered before.
    fn wake(pace: &mut Pace, at: u64) -> (u64, u32) {
        wake_with(pace, pace.messages + 1, at)
    }

    fn wake_with(pace: &mut Pace, messages: u64, at: u64) -> (u64, u32) {
        let (mut now, mut found, mut gathered) = (at, Found::Some, 0);
        loop {
            match pace.next(found, messages, micros(now)) {
                Step::Look => now += 1,
                Step::Gather(span) => (now, gathered) = (now + span.as_micros() as u64, gathered + 1),
                Step::Park => return (now, gathered),
            }
            found = Found::Nothing;
        }
    }

    #[test]
    fn without_settings_it_looks_once_more_and_sleeps() {
        let mut pace = Pace::new(Duration::ZERO, Duration::ZERO);
        for at in (0..1000).step_by(10) {
            assert_eq!(wake(&mut pace, at), (at + 1, 0));
        }
    }

    #[test]
    fn it_spins_for_as_long_as_it_was_told_after_the_last_thing_to_do() {
        let mut pace = Pace::new(micros(50), Duration::ZERO);
        assert_eq!(wake(&mut pace, 0), (51, 0));
        assert_eq!(wake(&mut pace, 100), (151, 0));
    }

    #[test]
    fn sparse_messages_and_bursts_of_few_are_never_delayed() {
        let mut pace = Pace::new(Duration::ZERO, micros(500));
        for burst in (0..100_000).step_by(1000) {
            for at in 0..u64::from(SHORT_SLEEPS_MIN) {
                assert_eq!(wake(&mut pace, burst + 20 * at), (burst + 20 * at + 1, 0));
            }
        }
    }

    #[test]
    fn dense_messages_are_gathered_until_a_span_brings_none() {
        let mut pace = Pace::new(Duration::ZERO, micros(500));
        let sleeps = u64::from(SHORT_SLEEPS_MIN) + 1;
        for at in 0..sleeps {
            assert_eq!(wake(&mut pace, 100 * at).1, 0);
        }
        let now = micros(100 * sleeps);
        for messages in 100..110 {
            assert_eq!(pace.next(Found::Some, messages, now), Step::Gather(micros(500)));
        }
        assert_eq!(pace.next(Found::Nothing, 109, now), Step::Park);
        assert_eq!(wake(&mut pace, 100 * (sleeps + 1)).1, 0, "it starts anew");
    }

    #[test]
    fn what_follows_from_messages_is_never_delayed() {
        let mut pace = Pace::new(Duration::ZERO, micros(500));
        for message in (1..1000).map(|number| 1000 * number) {
            for at in 0..50 {
                assert_eq!(wake_with(&mut pace, message, message + 10 * at).1, 0);
            }
        }
    }

    #[test]
    fn who_has_more_to_do_does_not_rest() {
        let mut pace = Pace::new(Duration::ZERO, micros(500));
        assert_eq!(pace.next(Found::More, 1, micros(0)), Step::Look);
    }
}
