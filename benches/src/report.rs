//! What one measurement found, and what makes it weak.
//!
//! Never: averages over several measurements. Those are `compare`'s.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ledger::Findings;
use crate::machine::Used;

/// What one measurement found.
pub struct Report {
    /// Messages sent: changes and requests.
    pub messages: u64,
    /// From the first message until all of them had been done.
    pub time: Duration,
    /// What the implementation has used meanwhile, if its process id is known.
    pub used: Option<Used>,
    /// What the server has used meanwhile, if its process id is known.
    pub server: Option<Used>,
    /// What the implementation had in memory at the end, in bytes.
    pub resident_bytes: Option<u64>,
    /// What that grew by since the start, for each alarm held; of the memory measurement only.
    pub bytes_per_alarm: Option<f64>,
    /// Pairs of user and alarm that the implementation holds.
    pub alarms_held: u64,
    /// Nanoseconds from a request's intended send to its digest.
    pub latency: Histogram<u64>,
    /// Requests without a digest.
    pub unanswered: u64,
    /// Digests that lacked the alarm published just before the request.
    pub missed: u64,
    /// Nanoseconds by which messages were written later than intended.
    pub lag: Histogram<u64>,
    /// What was checked off, and what was not right.
    pub findings: Findings,
    /// CPUs that others had, and that the hypervisor took.
    pub others: (f64, f64),
    /// Why these numbers are weak: what it is, a colon, and how much of it.
    pub warnings: Vec<String>,
}

impl Report {
    /// Nothing found yet.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            messages: 0,
            time: Duration::ZERO,
            used: None,
            server: None,
            resident_bytes: None,
            bytes_per_alarm: None,
            alarms_held: 0,
            latency: histogram(),
            unanswered: 0,
            missed: 0,
            lag: histogram(),
            findings: Findings::default(),
            others: (0.0, 0.0),
            warnings: Vec::new(),
        }
    }

    /// Messages done per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.time.as_secs_f64().max(1e-9)
    }

    /// Seconds of processor time per million messages.
    #[must_use]
    pub fn per_million(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / (self.messages.max(1) as f64)
    }

    /// Whether everything that was expected came, once and right.
    #[must_use]
    pub fn is_right(&self) -> bool {
        let Findings { lost, duplicated, wrong, .. } = &self.findings;
        lost + duplicated + wrong + self.unanswered == 0
    }
}

/// From 1 ns to a minute, to one part in a thousand.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are sound")
}

/// A percentile in microseconds.
#[must_use]
pub fn micros(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages in {:.3} s: {:.0} per second",
            self.messages,
            self.time.as_secs_f64(),
            self.per_second()
        )?;
        for (whose, used) in [("implementation", &self.used), ("nats-server", &self.server)] {
            let Some(used) = used else { continue };
            writeln!(
                f,
                "CPU of {whose}: {:.3} s per million messages ({:.3} user, {:.3} system), {:.0} % of a CPU; {} voluntary and {} involuntary switches",
                self.per_million(used.cpu),
                self.per_million(used.user),
                self.per_million(used.system),
                100.0 * used.cpu.as_secs_f64() / self.time.as_secs_f64().max(1e-9),
                used.voluntary,
                used.involuntary
            )?;
        }
        if let Some(bytes) = self.resident_bytes {
            write!(f, "memory: {:.1} MiB with {} alarms held", bytes as f64 / 1048576.0, self.alarms_held)?;
            let each = self.bytes_per_alarm.map(|bytes| format!(", {bytes:.1} bytes for each"));
            writeln!(f, "{}", each.unwrap_or_default())?;
        }
        if !self.latency.is_empty() {
            let at = |percentile| micros(&self.latency, percentile);
            writeln!(
                f,
                "latency in µs: p50 {:.0}, p90 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0} ({} samples); {} digests missed the alarm just before; {} requests unanswered",
                at(50.0),
                at(90.0),
                at(99.0),
                at(99.9),
                at(100.0),
                self.latency.len(),
                self.missed,
                self.unanswered
            )?;
        }
        if !self.lag.is_empty() {
            let at = |percentile| micros(&self.lag, percentile);
            writeln!(
                f,
                "generator behind schedule by, in µs: p50 {:.0}, p99 {:.0}, max {:.0}",
                at(50.0),
                at(99.0),
                at(100.0)
            )?;
        }
        let Findings { told, lost, duplicated, late, wrong, first_wrong } = &self.findings;
        write!(f, "checked: {told} told, {lost} lost, {duplicated} duplicated, {late} late, {wrong} wrong")?;
        if let Some(what) = first_wrong {
            write!(f, "\nfirst wrong: {what}")?;
        }
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}
