//! What waits in the work queue, how full the streams behind it are, and when that is worth a line of the log.
//!
//! A queue that is worked off as fast as it fills holds something at any moment, and an instance that is killed leaves
//! messages that come again. Neither is news. What is: that much waits, that it is twice as much or half as much as when it
//! was last said, that it is gone, and that messages come again and again.
//!
//! A stream that is full stops everything, so that is said before it happens.
//!
//! Never: asking. That is `worker`'s.

use std::time::Duration;

/// The queue at one moment, for all instances together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Backlog {
    /// Not delivered to anybody yet.
    pub pending: u64,
    /// Delivered and not acknowledged.
    pub ack_pending: u64,
    /// Of those, delivered more than once.
    pub redelivered: u64,
}

/// What is worth a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// So much waits.
    Waiting,
    /// No more than usual, after there was more.
    Gone,
    /// Messages come again and again: they cannot be done, or their instances die of something.
    Stuck,
}

/// How full a stream is that refuses whatever exceeds its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Stored.
    pub bytes: u64,
    /// Its limit.
    pub bytes_max: u64,
}

/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// From here on it is said; below a tenth of it, it is gone.
const PENDING_SAID: u64 = 1000;

/// Looks in a row that must find messages delivered more than once.
const STUCK_LOOKS: u32 = 4;

/// What lasts is said again after so long.
const AGAIN_EVERY: Duration = Duration::from_secs(300);

/// Between two looks at how full the streams are.
const ROOMS_EVERY: Duration = Duration::from_secs(60);

/// After a look that had no answer: we may not be allowed to look, and each try is a line of the log.
const ROOMS_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// From so many per cent on it is said.
pub const ROOM_USED_SAID: u64 = 80;

/// Remembers what was said.
#[derive(Default, Debug)]
pub(crate) struct BacklogLog {
    /// How much was pending when that was last said, and when; none while no more than usual is.
    waiting: Option<(u64, Duration)>,
    looks_stuck: u32,
    stuck_said_at: Option<Duration>,
    rooms_next: Duration,
    /// When it was said last that a stream is nearly full.
    rooms_said_at: [Option<Duration>; ROOMS],
}

/// Streams that are looked at.
pub(crate) const ROOMS: usize = 2;

impl BacklogLog {
    /// What the queue now is worth saying.
    pub(crate) fn look(&mut self, now: Duration, queue: Backlog) -> impl Iterator<Item = News> + use<> {
        [self.waiting(now, queue.pending), self.stuck(now, queue.redelivered)].into_iter().flatten()
    }

    /// Whether it is time to look how full the streams are, which is then taken to be done.
    pub(crate) fn may_look_at_rooms(&mut self, now: Duration) -> bool {
        let is_time = self.rooms_next <= now;
        if is_time {
            self.rooms_next = now + ROOMS_EVERY;
        }
        is_time
    }

    /// Nobody answered.
    pub(crate) fn no_rooms(&mut self, now: Duration) {
        self.rooms_next = now + ROOMS_AGAIN_AFTER;
    }

    /// Whether this much of the stream numbered `at` is worth saying: each of them at most every five minutes.
    pub(crate) fn look_at_room(&mut self, at: usize, now: Duration, room: Room) -> bool {
        let is_scarce = room.bytes.saturating_mul(100) >= room.bytes_max.saturating_mul(ROOM_USED_SAID);
        let said_at = &mut self.rooms_said_at[at];
        let is_worth_it = is_scarce && said_at.is_none_or(|said_at| now >= said_at + AGAIN_EVERY);
        if is_worth_it {
            *said_at = Some(now);
        }
        is_worth_it
    }

    fn waiting(&mut self, now: Duration, pending: u64) -> Option<News> {
        let is_worth_it = match self.waiting {
            None => pending >= PENDING_SAID,
            Some(_) if pending < PENDING_SAID / 10 => {
                self.waiting = None;
                return Some(News::Gone);
            }
            Some((said, at)) => pending >= said * 2 || pending <= said / 2 || now >= at + AGAIN_EVERY,
        };
        is_worth_it.then(|| {
            self.waiting = Some((pending, now));
            News::Waiting
        })
    }

    fn stuck(&mut self, now: Duration, redelivered: u64) -> Option<News> {
        if redelivered == 0 {
            (self.looks_stuck, self.stuck_said_at) = (0, None);
            return None;
        }
        self.looks_stuck = self.looks_stuck.saturating_add(1);
        let is_worth_it = self.looks_stuck >= STUCK_LOOKS
            && self.stuck_said_at.is_none_or(|said_at| now >= said_at + AGAIN_EVERY);
        is_worth_it.then(|| {
            self.stuck_said_at = Some(now);
            News::Stuck
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every ten seconds; each line is what is pending, what was redelivered, and what is said.
    fn check(looks: &[(u64, u64, &[News])]) {
        let mut log = BacklogLog::default();
        for (at, (pending, redelivered, said)) in looks.iter().enumerate() {
            let queue = Backlog { pending: *pending, redelivered: *redelivered, ..Backlog::default() };
            let news: Vec<News> = log.look(LOOK_EVERY * at as u32, queue).collect();
            assert_eq!(news, *said, "look {at}: {queue:?}");
        }
    }

    #[test]
    fn a_backlog_is_said_when_it_comes_doubles_halves_and_goes() {
        let waiting = &[News::Waiting][..];
        check(&[
            (0, 0, &[]),
            (999, 0, &[]),
            (1_000, 0, waiting),
            (1_999, 0, &[]),
            (2_000, 0, waiting),
            (9_000, 0, waiting),
            (4_501, 0, &[]),
            (4_500, 0, waiting),
            (100, 0, waiting),
            (99, 0, &[News::Gone]),
            (0, 0, &[]),
            (999, 0, &[]),
        ]);
    }

    #[test]
    fn messages_that_come_again_once_are_no_news() {
        check(&[(0, 7, &[]), (0, 3, &[]), (0, 1, &[]), (0, 0, &[]), (0, 9, &[]), (0, 0, &[])]);
    }

    #[test]
    fn a_stream_is_nearly_full_from_80_per_cent_on_and_that_is_said_every_five_minutes() {
        let mut log = BacklogLog::default();
        let mut look = |at, minute: u64, bytes| {
            log.look_at_room(at, Duration::from_secs(60 * minute), Room { bytes, bytes_max: 1000 })
        };
        assert!(!look(0, 0, 799) && look(0, 1, 800) && look(1, 1, 1000), "each for itself");
        assert!(!look(0, 2, 900) && !look(0, 3, 0) && !look(0, 5, 800) && look(0, 6, 800));
    }

    #[test]
    fn streams_are_looked_at_once_a_minute_or_an_hour_after_nobody_answered() {
        let mut log = BacklogLog::default();
        let minute = Duration::from_secs(60);
        assert!(log.may_look_at_rooms(Duration::ZERO) && !log.may_look_at_rooms(minute / 2));
        assert!(log.may_look_at_rooms(minute));
        log.no_rooms(minute);
        assert!(!log.may_look_at_rooms(minute * 60) && log.may_look_at_rooms(minute * 61));
    }

    #[test]
    fn what_lasts_is_said_again_after_five_minutes() {
        let mut log = BacklogLog::default();
        let queue = Backlog { pending: 5_000, redelivered: 1, ..Backlog::default() };
        let said: Vec<(u32, News)> = (0..64)
            .flat_map(|at| log.look(LOOK_EVERY * at, queue).map(move |news| (at, news)).collect::<Vec<_>>())
            .collect();
        use News::{Stuck, Waiting};
        let expected = [(0, Waiting), (3, Stuck), (30, Waiting), (33, Stuck), (60, Waiting), (63, Stuck)];
        assert_eq!(said, expected);
    }
}
