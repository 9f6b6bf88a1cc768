//! What was sent and what was told of it: each (user, alarm) is checked off.
//!
//! The check holds for any order of arrival. A digest may come before the last change has arrived; then it tells an
//! earlier one, and the last one must be told later, if it is still news.
//!
//! Never: JSON, sockets. Alarms are numbers here.

use crate::workload::Pattern;

/// Per pair, how often it changed and what was told last.
///
/// `told[pair] <= sent[pair]`, both counted from one, zero for none.
pub struct Ledger {
    pattern: Pattern,
    sent: Vec<u32>,
    told: Vec<u32>,
    /// What was found so far.
    pub findings: Findings,
}

/// What was found wrong, or out of time. All zero is what is expected, but for `late`, which NATS permits.
#[derive(Clone, Default, Debug)]
pub struct Findings {
    /// Told, and right.
    pub told: u64,
    /// Never told, though asked for again and again.
    pub lost: u64,
    /// Told again though it was no news.
    pub duplicated: u64,
    /// Told only when asked again, although everything had arrived before the first request.
    pub late: u64,
    /// Never sent, not active, out of order, or not to be read.
    pub wrong: u64,
    /// The first of the wrong ones.
    pub first_wrong: Option<String>,
}

impl Ledger {
    /// Nothing sent yet of any of `pairs`.
    #[must_use]
    pub fn new(pairs: usize, pattern: Pattern) -> Self {
        Self { pattern, sent: vec![0; pairs], told: vec![0; pairs], findings: Findings::default() }
    }

    /// One more change of `pair` is sent; its count.
    pub fn send(&mut self, pair: u32) -> u32 {
        let sent = &mut self.sent[pair as usize];
        *sent += 1;
        *sent - 1
    }

    /// A digest told change `count` of `pair`, with `status`.
    pub fn tell(&mut self, pair: u32, count: u32, status: &str) {
        let (sent, told) = (self.sent[pair as usize], &mut self.told[pair as usize]);
        if count >= sent || status != self.pattern.status(count) || status == "CLEARED" {
            return self
                .wrong(|| format!("pair {pair}: {status} as change {count} of {sent} was never sent"));
        }
        let before = told.checked_sub(1);
        if !self.pattern.is_news(before, count) || before.is_some_and(|before| before >= count) {
            self.findings.duplicated += 1;
            return;
        }
        *told = count + 1;
        self.findings.told += 1;
    }

    /// A digest, or what should have been one, is not as it must be.
    pub fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.findings.wrong += 1;
        self.findings.first_wrong.get_or_insert_with(what);
    }

    /// Whether, once everything has arrived, the user is still to be told of `pair`.
    #[must_use]
    pub fn is_owed(&self, pair: u32) -> bool {
        let (sent, told) = (self.sent[pair as usize], self.told[pair as usize]);
        sent > 0 && self.pattern.is_news(told.checked_sub(1), sent - 1)
    }

    /// Pairs of which at least one change was sent: what an implementation holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.sent.iter().filter(|sent| **sent > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends so many changes of one pair, then tells these; what was found, and whether the rest is owed.
    fn check(sent: u32, told: &[(u32, &str)], expected: (u64, u64, u64, bool)) {
        let mut ledger = Ledger::new(1, Pattern::Life);
        for _ in 0..sent {
            ledger.send(0);
        }
        told.iter().for_each(|(count, status)| ledger.tell(0, *count, status));
        let found = &ledger.findings;
        let came = (found.told, found.duplicated, found.wrong, ledger.is_owed(0));
        assert_eq!(came, expected, "{sent} sent, told {told:?}");
    }

    #[test]
    fn each_pair_is_checked_off_once() {
        check(0, &[], (0, 0, 0, false));
        check(1, &[], (0, 0, 0, true));
        check(1, &[(0, "WARNING")], (1, 0, 0, false));
        check(4, &[], (0, 0, 0, false));
        check(5, &[(1, "CRITICAL"), (4, "WARNING")], (2, 0, 0, false));
        check(5, &[(1, "CRITICAL")], (1, 0, 0, true));
    }

    #[test]
    fn what_is_no_news_is_a_duplicate_and_what_was_never_sent_is_wrong() {
        check(1, &[(0, "WARNING"), (0, "WARNING")], (1, 1, 0, false));
        check(3, &[(1, "CRITICAL"), (2, "CRITICAL")], (1, 1, 0, false));
        check(3, &[(2, "CRITICAL"), (0, "WARNING")], (1, 1, 0, false));
        check(1, &[(1, "CRITICAL")], (0, 0, 1, true));
        check(1, &[(0, "CRITICAL")], (0, 0, 1, true));
        check(4, &[(3, "CLEARED")], (0, 0, 1, false));
    }
}
