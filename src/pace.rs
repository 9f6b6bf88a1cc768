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
/// served at once. Twice as many after each time that it was not worth it, up to a limit: somebody who waits for each answer
/// before asking again is as fast as a dense stream, and would be held to one message in each span.
const SHORT_SLEEPS_MIN: u32 = 8;
const SHORT_SLEEPS_MAX: u32 = 1 << 14;

/// So many messages make a span worth it.
const GATHERED_MIN: u64 = 4;

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
    /// How many of them it takes now.
    short_sleeps_needed: u32,
    /// How many messages had come by then, or by the last [`Step::Gather`].
    messages: u64,
    /// The last step was [`Step::Gather`], or a look right after it.
    is_gathering: bool,
}

impl Pace {
    /// Spins for `spin` before it sleeps, or coalesces for `coalesce`; zero turns either off. Who spins is in a hurry and does not
    /// coalesce.
    #[must_use]
    pub const fn new(spin: Duration, coalesce: Duration) -> Self {
        let coalesce = if spin.is_zero() { coalesce } else { Duration::ZERO };
        Self {
            spin,
            coalesce,
            idle_since: None,
            parked_at: None,
            short_sleeps: 0,
            short_sleeps_needed: SHORT_SLEEPS_MIN,
            messages: 0,
            is_gathering: false,
        }
    }

    /// What to do after a turn that ended at `now`, when `messages` had come from the server in all. After [`Step::Park`] it is
    /// asked only if that turn found something.
    pub fn next(&mut self, found: Found, messages: u64, now: Duration) -> Step {
        match found {
            Found::Nothing => return self.rest(messages, now),
            Found::Some if self.is_dense(messages) => {
                (self.is_gathering, self.short_sleeps, self.messages) = (true, 0, messages);
                self.idle_since = None;
                return Step::Gather(self.coalesce);
            }
            Found::Some | Found::More => self.idle_since = None,
        }
        Step::Look
    }

    fn is_dense(&mut self, messages: u64) -> bool {
        if !self.is_gathering {
            return messages != self.messages && self.short_sleeps >= self.short_sleeps_needed;
        }
        let is_worth_it = messages - self.messages >= GATHERED_MIN;
        if is_worth_it {
            self.short_sleeps_needed = SHORT_SLEEPS_MIN;
        } else {
            self.stop_gathering(messages);
        }
        is_worth_it
    }

    fn stop_gathering(&mut self, messages: u64) {
        self.short_sleeps_needed = (self.short_sleeps_needed * 2).min(SHORT_SLEEPS_MAX);
        (self.is_gathering, self.parked_at, self.messages) = (false, None, messages);
    }

    fn rest(&mut self, messages: u64, now: Duration) -> Step {
        let idle_since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(idle_since) < self.spin {
            return Step::Look;
        }
        if self.is_gathering {
            self.stop_gathering(messages);
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
        for messages in (100..200).step_by(GATHERED_MIN as usize) {
            assert_eq!(pace.next(Found::Some, messages, now), Step::Gather(micros(500)));
        }
        assert_eq!(pace.next(Found::Nothing, 200, now), Step::Park);
        assert_eq!(wake(&mut pace, 100 * (sleeps + 1)).1, 0, "it starts anew");
    }

    /// A client that asks again 100 µs after each answer.
    #[test]
    fn who_waits_for_each_answer_is_not_held_to_one_a_span() {
        let mut pace = Pace::new(Duration::ZERO, micros(1000));
        let (mut now, mut messages) = (0, 0);
        while now < 10_000_000 {
            messages += 1;
            now = wake_with(&mut pace, messages, now).0 + 100;
        }
        assert!(messages > 90_000, "{messages} instead of 100,000");
    }

    #[test]
    fn who_spins_does_not_gather() {
        let mut pace = Pace::new(micros(10), micros(500));
        assert!((0..10_000).step_by(100).all(|at| wake(&mut pace, at).1 == 0));
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
