//! Reads what an implementation answers, and checks it off.
//!
//! Never: sending.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::latency::{Echo, fresh_pair, known_pair};
use super::{SINK_COUNT, Target};
use crate::digest::Digest;
use crate::ledger::Ledger;
use crate::wire::Connection;
use crate::workload::{Encoded, Texts};

const DIGEST_SID: u64 = 1;
const COUNT_SID: u64 = 2;

/// Reads what comes and checks it off.
pub(super) struct Observer {
    link: Connection,
    pub(super) ledger: Ledger,
    texts: Texts,
    pub(super) barrier: Barrier,
    /// Of the latency measurement.
    pub(super) echo: Option<Echo>,
    /// What a sink has told, and what it must tell in the end.
    pub(super) sink_counted: Option<u64>,
    pub(super) sink_expected: u64,
}

/// Enough that each pair of the member that reads and the owner that answers is among them, for up to some eight of
/// each.
const BARRIER_USERS: u32 = 256;

/// The barrier's users, and how far they are.
pub(super) struct Barrier {
    texts: Texts,
    /// Changes of each of them.
    sent: u32,
    /// Counted from one, zero for none.
    told: Vec<u32>,
}

impl Barrier {
    /// One more change of each of them, encoded.
    pub(super) fn changes(&mut self, subject: &str) -> Vec<u8> {
        let (count, mut encoded) = (self.sent, Encoded::default());
        self.sent += 1;
        for user in 0..BARRIER_USERS {
            encoded.push(subject, |out| self.texts.change(user, count, out));
        }
        encoded.bytes
    }

    /// Whether all of them have been told of their last change.
    pub(super) fn is_told(&self) -> bool {
        self.told.iter().all(|told| *told == self.sent)
    }

    /// A request for each of them, encoded.
    pub(super) fn requests(&self, subject: &str) -> Vec<u8> {
        let mut encoded = Encoded::default();
        (0..BARRIER_USERS).for_each(|user| encoded.push(subject, |out| self.texts.request(user, out)));
        encoded.bytes
    }
}

impl Observer {
    /// Subscribes.
    pub(super) fn new(
        mut link: Connection,
        target: &Target,
        pairs: u32,
        texts: Texts,
        barrier: Texts,
    ) -> Result<Self> {
        link.subscribe(&target.subjects.digest, None, DIGEST_SID);
        if target.is_sink {
            link.subscribe(SINK_COUNT, None, COUNT_SID);
        }
        link.flush().context("subscribing")?;
        Ok(Self {
            link,
            ledger: Ledger::new(pairs as usize, texts.pattern),
            texts,
            barrier: Barrier { texts: barrier, sent: 0, told: vec![0; BARRIER_USERS as usize] },
            echo: None,
            sink_counted: None,
            sink_expected: 0,
        })
    }

    /// Reads until `is_done`, and returns when that was, or until `stop`.
    pub(super) fn observe(&mut self, stop: &AtomicBool, is_done: impl Fn(&Self) -> bool) -> Result<Instant> {
        while !is_done(self) && !stop.load(Ordering::Acquire) {
            self.read()?;
        }
        Ok(Instant::now())
    }

    /// Reads while `is_wanted` and until nothing has come for `patience`.
    pub(super) fn read_while(&mut self, patience: Duration, is_wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let mut deadline = Instant::now() + patience;
        while is_wanted(self) && Instant::now() < deadline {
            if self.read()? > 0 {
                deadline = Instant::now() + patience;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<usize> {
        let Self { link, ledger, texts, barrier, echo, sink_counted, .. } = self;
        // All that one read brought came together.
        let mut came_at = None;
        let count = link.read(|message| {
            let at = *came_at.get_or_insert_with(Instant::now);
            if message.sid_number() == Some(COUNT_SID) {
                *sink_counted = std::str::from_utf8(message.payload).ok().and_then(|text| text.parse().ok());
                return;
            }
            if let Err(error) = on_digest(message.payload, at, ledger, texts, barrier, echo.as_mut()) {
                ledger.wrong(|| format!("{error:#}: {}", message.payload.escape_ascii()));
            }
        });
        count.context("the observer's connection")
    }

    pub(super) fn is_counted(&self) -> bool {
        self.sink_counted.is_some_and(|counted| counted >= self.sink_expected)
    }

    pub(super) fn owes(&self, user: u32) -> bool {
        self.owed(user) > 0
    }

    pub(super) fn owed(&self, user: u32) -> usize {
        let alarms = self.texts.alarms_per_user;
        (user * alarms..(user + 1) * alarms).filter(|pair| self.ledger.is_owed(*pair)).count()
    }
}

fn on_digest(
    payload: &[u8],
    at: Instant,
    ledger: &mut Ledger,
    texts: &Texts,
    barrier: &mut Barrier,
    echo: Option<&mut Echo>,
) -> Result<()> {
    let digest = Digest::read(payload)?;
    if let Some(user) = barrier.texts.users.number(&digest.user) {
        let count =
            barrier.texts.count(user, digest.alarms[0].instant()?).context("not an instant we sent")?;
        let told = barrier.told.get_mut(user as usize).context("not a user of ours")?;
        *told = (count + 1).max(*told);
        return Ok(());
    }
    // Others may use the server too.
    let Some(user) = texts.users.number(&digest.user) else { return Ok(()) };
    let (mut known, mut fresh) = (None, None);
    digest.check_off(user, texts, ledger, |pair, count| {
        if echo.is_some() {
            if pair == known_pair(user) {
                known = Some(count);
            } else if pair == fresh_pair(user) {
                fresh = Some(count);
            }
        }
    })?;
    if let Some(echo) = echo {
        echo.on_digest(user, known, fresh, at);
    }
    Ok(())
}
