//! What is measured, of whom, and where it runs.
//!
//! Never: starting anything.

use std::time::Duration;

use alarm_digest_benches::load::{Job, Shape};
use alarm_digest_benches::report::{Report, micros};
use alarm_digest_benches::workload::Skew;

/// What can be compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    Service,
    ServiceSpinning,
    ServicePrompt,
    ServiceInExecutor,
    PerCore,
    PerCoreSpinning,
    PerCorePrompt,
    Stealing,
    AsyncNats,
    Floor,
}

impl Variant {
    pub const ALL: [Self; 10] = [
        Self::Service,
        Self::ServiceSpinning,
        Self::ServicePrompt,
        Self::ServiceInExecutor,
        Self::PerCore,
        Self::PerCoreSpinning,
        Self::PerCorePrompt,
        Self::Stealing,
        Self::AsyncNats,
        Self::Floor,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::ServiceSpinning => "service, spinning",
            Self::ServicePrompt => "service, not coalescing",
            Self::ServiceInExecutor => "service, sleeping in glommio",
            Self::PerCore => "tokio per core",
            Self::PerCoreSpinning => "tokio per core, spinning",
            Self::PerCorePrompt => "tokio per core, not coalescing",
            Self::Stealing => "tokio stealing",
            Self::AsyncNats => "async-nats",
            Self::Floor => "floor",
        }
    }

    /// Which program it is, and with which arguments.
    pub fn program(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Service => ("alarm-digest", &[]),
            Self::ServiceSpinning => ("alarm-digest", &["--spin", "1h"]),
            Self::ServicePrompt => ("alarm-digest", &["--coalesce", "0s"]),
            Self::ServiceInExecutor => ("alarm-digest", &["--coalesce", "0s", "--sleep", "executor"]),
            Self::PerCore => ("tokio-variant", &["--runtime", "per-core"]),
            Self::PerCoreSpinning => ("tokio-variant", &["--runtime", "per-core", "--spin", "1h"]),
            Self::PerCorePrompt => ("tokio-variant", &["--runtime", "per-core", "--coalesce", "0s"]),
            Self::Stealing => ("tokio-variant", &["--runtime", "stealing"]),
            Self::AsyncNats => ("async-nats-variant", &[]),
            Self::Floor => ("floor", &[]),
        }
    }

    /// A program that is in the list by itself, with another argument.
    pub fn is_other_setting(self) -> bool {
        matches!(
            self,
            Self::ServiceSpinning
                | Self::ServicePrompt
                | Self::ServiceInExecutor
                | Self::PerCoreSpinning
                | Self::PerCorePrompt
        )
    }
}

/// Where who runs.
#[derive(Clone, Debug)]
pub enum Layout {
    /// The variant on these CPUs, server and load on whichever the kernel gives them.
    Together { cpus: Vec<usize> },
    /// The variant has its CPUs for itself; server and load are kept on the others.
    Apart { cpus: Vec<usize>, others: Vec<usize> },
}

impl Layout {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Together { .. } => "together",
            Self::Apart { .. } => "apart",
        }
    }

    pub fn cores(&self) -> usize {
        match self {
            Self::Together { cpus } | Self::Apart { cpus, .. } => cpus.len(),
        }
    }
}

/// One line of the plan: several variants under the same load.
pub struct Measurement {
    pub name: &'static str,
    pub job: Job,
    pub shape: Shape,
    pub layout: Layout,
    pub variants: Vec<Variant>,
}

impl Measurement {
    /// Messages or requests per second, if that is fixed.
    pub fn rate(&self) -> Option<f64> {
        match self.job {
            Job::Paced { rate, .. } | Job::Latency { rate, .. } => Some(rate),
            Job::Flood { .. } | Job::Memory => None,
        }
    }

    pub fn title(&self) -> String {
        let rate = self.rate().map(|rate| format!(" at {rate:.0}/s")).unwrap_or_default();
        format!("{}{rate}, {} cores {}", self.name, self.layout.cores(), self.layout.name())
    }

    /// Memory is the same each time, and takes long.
    pub fn rounds(&self, rounds: usize) -> usize {
        if matches!(self.job, Job::Memory) { 1 } else { rounds }
    }

    pub fn in_short(&self, report: &Report) -> String {
        let cpu = report.used.map_or(0.0, |used| report.per_million(used.cpu));
        let right = if report.is_right() { "" } else { " NOT RIGHT" };
        let weak = if report.warnings.is_empty() { "" } else { " (weak)" };
        match self.job {
            Job::Latency { .. } => format!(
                "p50 {:.0} µs, p99 {:.0} µs{right}{weak}",
                micros(&report.latency, 50.0),
                micros(&report.latency, 99.0)
            ),
            Job::Memory => format!("{:.1} bytes an alarm{right}", report.bytes_per_alarm.unwrap_or(0.0)),
            _ => {
                format!("{:.0}/s, {cpu:.3} CPU s per million{right}{weak}", report.per_second())
            }
        }
    }
}

/// The whole plan, or a small one, as far as names fit.
pub fn measurements(cpus: &[usize], quick: bool, only: &[String], of: &[String]) -> Vec<Measurement> {
    use Variant::*;
    let shape = |users, alarms| Shape { users, alarms, skew: Skew::Uniform, connections: 2, seed: 0 };
    let seconds = Duration::from_secs;
    let together = |cores: usize| Layout::Together { cpus: cpus[..cores].to_vec() };
    let core_counts: &[usize] = match (cpus.len(), quick) {
        (1, _) => &[1],
        (_, true) => &[2],
        (_, false) => &[2, 1],
    };
    let all = vec![Service, PerCore, Stealing, AsyncNats, Floor];
    let answering = vec![Service, PerCore, Stealing, AsyncNats];

    let mut plan = Vec::new();
    for cores in core_counts {
        let job = Job::Flood { messages: if quick { 100_000 } else { 2_000_000 } };
        let (layout, variants) = (together(*cores), all.clone());
        plan.push(Measurement { name: "flood", job, shape: shape(10_000, 10), layout, variants });
    }
    let rates: &[f64] = if quick { &[20e3] } else { &[20e3, 100e3, 300e3] };
    for (cores, rate) in core_counts.iter().flat_map(|cores| rates.iter().map(move |rate| (*cores, *rate))) {
        let job = Job::Paced {
            rate,
            time: seconds(if quick { 1 } else { 3 }),
            tick: Duration::from_micros(500),
            requests_every: 100,
        };
        let variants = [&all[..], &[ServicePrompt, ServiceInExecutor, PerCorePrompt]].concat();
        let layout = together(cores);
        plan.push(Measurement { name: "paced", job, shape: shape(10_000, 10), layout, variants });
    }
    let job = Job::Latency { rate: 1000.0, time: seconds(if quick { 1 } else { 5 }) };
    let latency =
        |layout, variants| Measurement { name: "latency", job, shape: shape(1, 2), layout, variants };
    plan.push(latency(together(core_counts[0]), answering.clone()));
    if let [ours, others @ ..] = cpus
        && !others.is_empty()
    {
        let layout = Layout::Apart { cpus: vec![*ours], others: others.to_vec() };
        plan.push(latency(layout, vec![Service, ServiceSpinning, PerCore, PerCoreSpinning, AsyncNats]));
    }
    plan.push(Measurement {
        name: "memory",
        job: Job::Memory,
        shape: if quick { shape(10_000, 10) } else { shape(1_000_000, 10) },
        layout: together(core_counts[0]),
        variants: answering,
    });

    let is_named =
        |name: &str, names: &[String]| names.is_empty() || names.iter().any(|part| name.contains(&**part));
    plan.retain(|measurement| is_named(measurement.name, only));
    plan.iter_mut()
        .for_each(|measurement| measurement.variants.retain(|variant| is_named(variant.name(), of)));
    plan.retain(|measurement| !measurement.variants.is_empty());
    plan
}
