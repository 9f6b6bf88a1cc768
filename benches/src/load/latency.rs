//! The latency measurement: a change, then a request, then the time until the digest.
//!
//! A slot is a moment at which one user is asked for. Half a round before it, the user gets an alarm, so that there
//! surely is a digest, which tells by this alarm's count which slot it answers; just before the request, in the same
//! write, the user gets another one, which the digest holds if the request did not overtake it.
//!
//! ```text
//! slot            user                round                one write
//! n               n % users           n / users            known(n + users/2) fresh(n) request(n)
//! ```
//!
//! Never: a wait for an answer before the next request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::check::CHECKED_USERS_MAX;
use super::sender::send_each;
use super::{LOOK_EVERY, Load, Message, SETTLE, join};
use crate::report::{Report, histogram, micros};
use crate::workload::Encoded;

/// How long a last digest is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

impl Load {
    pub(super) fn latency(&mut self, rate: f64, time: Duration) -> Result<Report> {
        ensure!(rate >= 1.0, "expected at least one request per second");
        let first_known = (0..self.shape.users).map(|user| Message::Change(known_pair(user)));
        let encoded = self.encode(first_known);
        self.send_and_wait(&encoded, super::Pace::AtOnce)?;

        let slots = (rate * time.as_secs_f64()) as u64;
        let writes = self.encode_slots(slots);
        let mut report = Report::empty();
        report.messages = writes.iter().flatten().map(|write| write.len() as u64).sum();
        let before = self.look()?;
        let start = Instant::now() + SETTLE;
        let warm = (rate / 4.0).min(slots as f64 / 4.0) as u64;
        self.observer.echo = Some(Echo::new(start, rate, self.shape.users, slots, warm));
        let (end, lag) = self.send_slots(&writes, start, rate)?;
        let echo = self.observer.echo.take().expect("it was put there above");
        (report.time, report.lag) = (end - start, lag);
        (report.latency, report.missed, report.unanswered) = (echo.latency, echo.missed, echo.left);
        self.look()?.put_since(&before, &mut report);
        if report.latency.len() < 1000 {
            report.warnings.push(format!("few latencies were measured: {}", report.latency.len()));
        }
        let lag = micros(&report.lag, 99.0);
        if lag > 1_000.0 {
            report
                .warnings
                .push(format!("the generator was behind schedule: by {lag:.0} µs at the 99th percentile"));
        }
        self.check(CHECKED_USERS_MAX, report)
    }

    /// What each sender writes, slot by slot.
    fn encode_slots(&mut self, slots: u64) -> Vec<Vec<Encoded>> {
        let users = u64::from(self.shape.users);
        let mut writes: Vec<Vec<Encoded>> = self.senders.iter().map(|_| Vec::new()).collect();
        for slot in 0..slots {
            let (user, soon) = ((slot % users) as u32, slot + users / 2);
            let known = (soon >= users).then(|| Message::Change(known_pair((soon % users) as u32)));
            let all = known.into_iter().chain([Message::Change(fresh_pair(user)), Message::Request(user)]);
            let mut write = Encoded::default();
            all.for_each(|message| self.push(message, &mut write));
            let sender = slot as usize % writes.len();
            writes[sender].push(write);
        }
        writes
    }

    /// Sends all slots, and returns when the last digest came, and how late it sent.
    fn send_slots(
        &mut self,
        writes: &[Vec<Encoded>],
        start: Instant,
        rate: f64,
    ) -> Result<(Instant, Histogram<u64>)> {
        let Self { senders, observer, .. } = self;
        let count = senders.len();
        let due = |slot: usize| start + Duration::from_secs_f64(slot as f64 / rate);
        let stop = AtomicBool::new(false);
        let mut lag = histogram();
        thread::scope(|scope| {
            let observing = scope.spawn(|| {
                observer.observe(&stop, |observer| observer.echo.as_ref().is_some_and(|echo| echo.left == 0))
            });
            let sending: Vec<_> = senders
                .iter_mut()
                .zip(writes)
                .enumerate()
                .map(|(at, (sender, writes))| {
                    scope.spawn(move || send_each(sender, writes, |number| due(at + number * count)))
                })
                .collect();
            let sent = sending
                .into_iter()
                .try_for_each(|sending| lag.add(join(sending)?).context("both have the same bounds"));
            let deadline = Instant::now() + PATIENCE;
            while sent.is_ok() && !observing.is_finished() && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
            stop.store(true, Ordering::Release);
            let end = join(observing)?;
            sent.map(|()| (end, lag))
        })
    }
}

/// The pair that each user's digest surely tells of.
pub(super) fn known_pair(user: u32) -> u32 {
    user * 2
}

/// The pair that changes just before the request.
pub(super) fn fresh_pair(user: u32) -> u32 {
    user * 2 + 1
}

/// What is known of the slots.
pub(super) struct Echo {
    start: Instant,
    rate: f64,
    users: u32,
    answered: Vec<bool>,
    left: u64,
    /// Slots before this one are for warming up.
    warm: u64,
    latency: Histogram<u64>,
    missed: u64,
}

impl Echo {
    fn new(start: Instant, rate: f64, users: u32, slots: u64, warm: u64) -> Self {
        let answered = vec![false; slots as usize];
        Self { start, rate, users, answered, left: slots, warm, latency: histogram(), missed: 0 }
    }

    /// The digest of `user` came at `at`, and told these counts of the two alarms.
    pub(super) fn on_digest(&mut self, user: u32, known: Option<u32>, fresh: Option<u32>, at: Instant) {
        let Some(round) = known else { return };
        let slot = u64::from(round) * u64::from(self.users) + u64::from(user);
        let Some(answered) = self.answered.get_mut(slot as usize).filter(|answered| !**answered) else {
            return;
        };
        *answered = true;
        self.left -= 1;
        if slot < self.warm {
            return;
        }
        let due = self.start + Duration::from_secs_f64(slot as f64 / self.rate);
        let nanos = at.saturating_duration_since(due).as_nanos() as u64;
        self.latency.saturating_record(nanos.max(1));
        self.missed += u64::from(fresh.is_none_or(|fresh| fresh < round));
    }
}
