//! Every alarm is checked off: asked for until it has been told, and then once more, when nothing must come.
//!
//! Never: a part of what is measured.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Load, Pace, SETTLE};
use crate::report::Report;
use crate::workload::Encoded;

/// Users whose alarms are checked off, at most; of more, every nth.
pub(super) const CHECKED_USERS_MAX: usize = 100_000;

/// Users asked for in one go.
const AT_ONCE: usize = 500;

/// How often a user is asked for before what is missing counts as lost, and how long nothing may come before that.
const ROUNDS: usize = 4;
const PATIENCE: Duration = Duration::from_millis(500);

impl Load {
    pub(super) fn check(&mut self, users_max: usize, mut report: Report) -> Result<Report> {
        report.alarms_held = self.observer.ledger.held() as u64;
        if self.target.is_sink {
            return Ok(report);
        }
        let step = (self.shape.users as usize).div_ceil(users_max);
        let users: Vec<u32> = (0..self.shape.users).step_by(step).collect();
        if step > 1 {
            report.warnings.push(format!("not all users were checked: one in {step}"));
        }
        let first = self.owed_after(&users, 1)?;
        let last = if first > 0 { self.owed_after(&users, ROUNDS - 1)? } else { 0 };
        let findings = &mut self.observer.ledger.findings;
        (findings.late, findings.lost) = (first - last, last);

        self.begin_barrier()?;
        thread::sleep(SETTLE);
        for users in users[..users.len().min(users_max / 4)].chunks(AT_ONCE) {
            self.ask(users)?;
        }
        self.await_done(&[], Pace::AtOnce).context("asking once more")?;
        report.findings = self.observer.ledger.findings.clone();
        Ok(report)
    }

    /// Asks for those of `users` who are owed something, so many times; how many alarms are owed then.
    fn owed_after(&mut self, users: &[u32], rounds: usize) -> Result<u64> {
        for _ in 0..rounds {
            let owing: Vec<u32> = users.iter().copied().filter(|user| self.observer.owes(*user)).collect();
            for users in owing.chunks(AT_ONCE) {
                self.ask(users)?;
                self.observer
                    .read_while(PATIENCE, |observer| users.iter().any(|user| observer.owes(*user)))?;
            }
        }
        Ok(users.iter().map(|user| self.observer.owed(*user) as u64).sum())
    }

    fn ask(&mut self, users: &[u32]) -> Result<()> {
        let mut encoded = Encoded::default();
        for user in users {
            encoded.push(&self.target.subjects.send, |out| self.texts.request(*user, out));
        }
        self.control.write_encoded(&encoded.bytes)?;
        Ok(self.control.flush()?)
    }
}
