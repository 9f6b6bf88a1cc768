//! Whether what was told of alarms is what had to be told: LOST, DUP and STALE, counted over everything that was
//! published and every digest that came out.
//!
//! ```no_run
//! # let (changes, patience) = (Vec::<(&'static str, Vec<u8>)>::new(), std::time::Duration::from_secs(60));
//! use alarm_digest_checker::{Checker, Streams};
//!
//! let servers = ["127.0.0.1:4222".parse().unwrap()];
//! let mut checker = Checker::default();
//! changes.iter().for_each(|(_, payload)| checker.published(payload));
//! Streams::publish_surely(&servers, &changes, patience).unwrap();
//! // … a request of each user, and then:
//! let mut streams = Streams::connect(servers[0], "AD").unwrap();
//! streams.until_drained(patience).unwrap();
//! streams.read("AD_OUT").unwrap().iter().for_each(|digest| checker.told(digest.id(), &digest.payload));
//! let verdict = checker.verdict();
//! assert!(verdict.is_clean(), "{verdict}");
//! ```
//!
//! In reading order:
//! - this file: [`Checker`] and its [`Verdict`]
//! - `oracle`: the rules once more, as naively as they can be written
//! - `streams`: a blocking client of the durable mode's streams
//!
//! Never: a deadline of its own, a server, randomness beyond an inbox.

mod oracle;
mod streams;

use std::collections::BTreeSet;
use std::fmt;

use alarm_digest::alarm::Command;
use alarm_digest::message::decode_change;

pub use oracle::{Fault, Oracle, Wrong, parse_digest};
pub use streams::{Published, StoredMessage, Streams};

/// Holds what was told against what was published.
#[derive(Default)]
pub struct Checker {
    oracle: Oracle,
    ids: BTreeSet<(String, String)>,
    verdict: Verdict,
}

impl Checker {
    /// A change that the service may have seen. Requests, and what no service can read, count for nothing.
    pub fn published(&mut self, payload: &[u8]) {
        if let Ok(Command::Apply(change)) = decode_change(payload) {
            self.oracle.apply(&change);
        }
    }

    /// The next digest, in the order of the output stream, and its `Alarm-Digest-Id` if it has one.
    ///
    /// # Panics
    /// When it is no digest.
    pub fn told(&mut self, id: Option<&str>, payload: &[u8]) {
        let (user, alarms) = parse_digest(payload);
        self.verdict.digests += 1;
        self.verdict.alarms += alarms.len() as u64;
        if let Some(id) = id
            && !self.ids.insert((format!("{user:?}"), id.into()))
        {
            self.verdict.add(Wrong { fault: Fault::Twice, what: format!("{user:?}: two digests {id}") });
        }
        for wrong in self.oracle.hear(&user, &alarms) {
            self.verdict.add(wrong);
        }
    }

    /// What is wrong so far. `lost` says something only when each user has been asked for since the last change.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut verdict = self.verdict.clone();
        let lost = self.oracle.missing();
        verdict.lost = lost.len();
        verdict.evidence.extend(lost.iter().map(|(user, alarm)| format!("LOST {user:?} {alarm:?}")));
        verdict
    }
}

/// What came out, and what of it is wrong.
#[derive(Clone, Default, Debug)]
pub struct Verdict {
    /// Digests, and alarms in them.
    pub digests: u64,
    /// The alarms in them.
    pub alarms: u64,
    /// Alarms that are due and active, and were not told.
    pub lost: usize,
    /// Alarms told although nothing had changed since, and digests that came twice.
    pub twice: usize,
    /// Older conditions told after newer ones.
    pub stale: usize,
    /// Whatever else no digest may be: empty, out of order, of an alarm that is not active, of one that never was.
    pub malformed: usize,
    evidence: Vec<String>,
}

impl Verdict {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.evidence.is_empty()
    }

    fn add(&mut self, wrong: Wrong) {
        let (count, name) = match wrong.fault {
            Fault::Twice => (&mut self.twice, "DUP"),
            Fault::Stale => (&mut self.stale, "STALE"),
            Fault::Malformed => (&mut self.malformed, "MALFORMED"),
        };
        *count += 1;
        self.evidence.push(format!("{name} {}", wrong.what));
    }
}

/// How much evidence is worth reading.
const EVIDENCE_MAX: usize = 20;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digests, alarms, lost, twice, stale, malformed, evidence } = self;
        write!(
            f,
            "{digests} digests of {alarms} alarms: LOST {lost}, DUP {twice}, STALE {stale}, MALFORMED {malformed}"
        )?;
        evidence.iter().take(EVIDENCE_MAX).try_for_each(|line| write!(f, "\n{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is a change `disk WARNING 3`, or a digest after `told` with an id.
    fn check(lines: &str, expected: &str) {
        let mut checker = Checker::default();
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["told", id, ref alarms @ ..] => {
                    let alarms: Vec<_> = alarms
                        .chunks(3)
                        .map(|alarm| {
                            serde_json::json!({
                                "AlarmID": alarm[0], "Status": alarm[1], "LatestChangedAt": at(alarm[2]),
                            })
                        })
                        .collect();
                    let digest = serde_json::json!({ "UserID": "ann", "ActiveAlarms": alarms });
                    checker.told(Some(id), digest.to_string().as_bytes());
                }
                [alarm, status, second] => {
                    let change = serde_json::json!({
                        "UserID": "ann", "AlarmID": alarm, "Status": status, "ChangedAt": at(second),
                    });
                    checker.published(change.to_string().as_bytes());
                }
                _ => panic!("{line}"),
            }
        }
        let verdict = checker.verdict();
        let text = verdict.to_string();
        assert_eq!(text.lines().next().and_then(|line| line.split(": ").nth(1)), Some(expected), "{text}");
        assert_eq!(verdict.is_clean(), expected == CLEAN);
    }

    fn at(second: &str) -> String {
        format!("2026-01-01T00:00:0{second}Z")
    }

    const CLEAN: &str = "LOST 0, DUP 0, STALE 0, MALFORMED 0";

    #[test]
    fn what_had_to_be_told_is_clean() {
        check("disk WARNING 1\ntold a disk WARNING 1\ndisk WARNING 2\nfan CLEARED 3", CLEAN);
        check(
            "disk WARNING 1\ntold a disk WARNING 1\ndisk CLEARED 2\ndisk WARNING 3\ntold b disk WARNING 3",
            CLEAN,
        );
    }

    #[test]
    fn each_fault_counts_as_what_it_is() {
        check("disk WARNING 1", "LOST 1, DUP 0, STALE 0, MALFORMED 0");
        check(
            "disk WARNING 1\ntold a disk WARNING 1\ndisk CRITICAL 2",
            "LOST 1, DUP 0, STALE 0, MALFORMED 0",
        );
        check(
            "disk WARNING 1\ntold a disk WARNING 1\ntold b disk WARNING 1",
            "LOST 0, DUP 1, STALE 0, MALFORMED 0",
        );
        check(
            "disk WARNING 1\ndisk WARNING 2\ntold a disk WARNING 1\ntold b disk WARNING 2",
            "LOST 0, DUP 1, STALE 0, MALFORMED 0",
        );
        check(
            "disk WARNING 1\ndisk CRITICAL 2\ntold a disk CRITICAL 2\ntold b disk WARNING 1",
            "LOST 0, DUP 0, STALE 1, MALFORMED 0",
        );
        check("disk CLEARED 1\ntold a disk CLEARED 1", "LOST 0, DUP 0, STALE 0, MALFORMED 1");
        check("disk CLEARED 1\ntold a disk WARNING 1", "LOST 0, DUP 0, STALE 0, MALFORMED 1");
        check("told a", "LOST 0, DUP 0, STALE 0, MALFORMED 1");
    }

    #[test]
    fn a_digest_that_came_twice_counts_once_more_than_its_alarms() {
        check(
            "disk WARNING 1\ntold a disk WARNING 1\ntold a disk WARNING 1",
            "LOST 0, DUP 2, STALE 0, MALFORMED 0",
        );
    }
}
