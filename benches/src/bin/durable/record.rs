//! What all runs found, one line each in `runs.csv`, and the medians of it.
//!
//! Never: a text with a comma in it, but for the last column; a judgement.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::drain::Found;
use crate::plan::{Variant, scenarios};

type Column = (&'static str, fn(&Found) -> f64);

/// The numbers of a run.
const COLUMNS: &[Column] = &[
    ("events", |found| f64::from(found.events)),
    ("seconds", |found| found.time.as_secs_f64()),
    ("per_second", |found| f64::from(found.events) / found.time.as_secs_f64()),
    ("cpu_s_per_million", |found| per_event(found, found.used.cpu.as_secs_f64() * 1e6)),
    ("user_s_per_million", |found| per_event(found, found.used.user.as_secs_f64() * 1e6)),
    ("system_s_per_million", |found| per_event(found, found.used.system.as_secs_f64() * 1e6)),
    ("server_cpu_s_per_million", |found| per_event(found, found.server.cpu.as_secs_f64() * 1e6)),
    ("resident_bytes", |found| found.resident_bytes as f64),
    ("sent_per_event", |found| per_event(found, found.sent as f64)),
    ("received_per_event", |found| per_event(found, found.received as f64)),
    ("acks_per_event", |found| per_event(found, found.delivered as f64)),
    ("stores_per_event", |found| per_event(found, found.stored as f64)),
    ("digests_per_event", |found| per_event(found, found.digests as f64)),
    ("rest_per_event", |found| {
        per_event(found, found.sent as f64 - (found.delivered + found.stored + found.digests) as f64)
    }),
    ("told", |found| found.findings.told as f64),
    ("lost", |found| found.findings.lost as f64),
    ("duplicated", |found| found.findings.duplicated as f64),
    ("wrong", |found| found.findings.wrong as f64),
];

fn per_event(found: &Found, sum: f64) -> f64 {
    sum / f64::from(found.events.max(1))
}

/// The server alone, as a variant: new keys, and the same keys again.
const ALONE: [&str; 2] = ["CAS of new keys", "CAS of known keys"];

#[derive(Default)]
pub struct Record {
    runs: Vec<Run>,
}

struct Run {
    round: usize,
    scenario: String,
    variant: String,
    /// One for each of [`COLUMNS`]; none where it does not apply, or the run failed.
    values: Vec<Option<f64>>,
    said: Vec<String>,
}

impl Run {
    fn value(&self, column: &str) -> Option<f64> {
        let at = COLUMNS.iter().position(|(name, _)| *name == column);
        self.values[at.unwrap_or_else(|| panic!("no column {column}"))]
    }

    fn failed(&self) -> bool {
        self.values.iter().all(Option::is_none)
    }
}

impl Record {
    /// Adds what the server alone did before a scenario; what to tell of it.
    pub fn add_alone(&mut self, round: usize, scenario: &str, came: Result<[f64; 2]>) -> String {
        let told = match &came {
            Ok([new, known]) => {
                format!("server alone: {new:.0} puts/s of new keys, {known:.0} of known ones")
            }
            Err(error) => format!("server alone: FAILED: {error:#}"),
        };
        for (at, variant) in ALONE.iter().enumerate() {
            let is_rate = |name: &str| name == "per_second";
            let rate = came.as_ref().ok().map(|rates| rates[at]);
            let values = COLUMNS.iter().map(|(name, _)| rate.filter(|_| is_rate(name))).collect();
            let said = came.as_ref().err().map(|error| format!("failed: {error:#}")).into_iter().collect();
            self.runs.push(Run {
                round,
                scenario: scenario.into(),
                variant: (*variant).into(),
                values,
                said,
            });
        }
        told
    }

    /// Adds a run; what to tell of it.
    pub fn add(&mut self, round: usize, scenario: &str, variant: Variant, came: Result<Found>) -> String {
        let (values, said, told) = match came {
            Ok(found) => {
                let values: Vec<_> = COLUMNS.iter().map(|(_, value)| Some(value(&found))).collect();
                let wrong = found.findings.first_wrong.iter().map(|what| format!("wrong: {what}"));
                let said: Vec<String> = found.warnings.iter().cloned().chain(wrong).collect();
                let findings = &found.findings;
                let told = format!(
                    "{:>6.0} events/s, CPU {:>5.2} s/million, server {:>5.1}, lost {} duplicated {} wrong {} {}",
                    f64::from(found.events) / found.time.as_secs_f64(),
                    per_event(&found, found.used.cpu.as_secs_f64() * 1e6),
                    per_event(&found, found.server.cpu.as_secs_f64() * 1e6),
                    findings.lost,
                    findings.duplicated,
                    findings.wrong,
                    said.join("; "),
                );
                (values, said, told)
            }
            Err(error) => {
                (vec![None; COLUMNS.len()], vec![format!("failed: {error:#}")], format!("FAILED: {error:#}"))
            }
        };
        self.runs.push(Run {
            round,
            scenario: scenario.into(),
            variant: variant.name().into(),
            values,
            said,
        });
        told
    }

    /// Whether nothing failed, and nothing was lost, told twice or told wrongly.
    pub fn is_right(&self) -> bool {
        let is_zero = |run: &Run, column| run.value(column).is_none_or(|value| value == 0.0);
        let faults = ["lost", "duplicated", "wrong"];
        self.runs.iter().all(|run| !run.failed() && faults.iter().all(|column| is_zero(run, column)))
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut text = format!("round,scenario,variant,{},said\n", names.join(","));
        for Run { round, scenario, variant, values, said } in &self.runs {
            let values: Vec<String> =
                values.iter().map(|value| value.map(short).unwrap_or_default()).collect();
            let said = said.join("; ").replace(['\n', '"'], " ");
            writeln!(text, "{round},{scenario},{variant},{},\"{said}\"", values.join(","))?;
        }
        Ok(fs::write(dir.join("runs.csv"), text)?)
    }

    pub fn read(dir: &Path) -> Result<Self> {
        let runs = fs::read_to_string(dir.join("runs.csv")).context("expected runs.csv")?;
        let runs = runs.lines().skip(1).map(|line| {
            let (numbers, said) = line.split_once(",\"").context("expected a last column in quotes")?;
            let fields: Vec<&str> = numbers.split(',').collect();
            ensure!(fields.len() == 3 + COLUMNS.len(), "expected {} fields in {line}", 3 + COLUMNS.len());
            let said = said.trim_end_matches('"').split("; ").filter(|said| !said.is_empty());
            Ok(Run {
                round: fields[0].parse()?,
                scenario: fields[1].into(),
                variant: fields[2].into(),
                values: fields[3..].iter().map(|value| value.parse().ok()).collect(),
                said: said.map(String::from).collect(),
            })
        });
        Ok(Self { runs: runs.collect::<Result<_>>()? })
    }

    pub fn summarize(&self, dir: &Path) -> Result<()> {
        let mut text = fs::read_to_string(dir.join("machine.md"))?;
        for scenario in scenarios(false) {
            if self.runs.iter().any(|run| run.scenario == scenario.name) {
                writeln!(text, "\n### {}\n\n{}.\n", scenario.name, capital(scenario.says))?;
                self.scenario(scenario.name, &mut text)?;
            }
        }
        writeln!(text, "\n### Ratios, each within a round\n\n| | |\n|---|--:|")?;
        self.ratios(&mut text)?;
        let mut said: BTreeMap<&str, usize> = BTreeMap::new();
        for said_once in self.runs.iter().flat_map(|run| &run.said) {
            let kind = said_once.split_once(": ").filter(|(kind, _)| *kind != "failed" && *kind != "wrong");
            *said.entry(kind.map_or(said_once.as_str(), |(kind, _)| kind)).or_default() += 1;
        }
        if !said.is_empty() {
            writeln!(text, "\n### What makes this weak\n")?;
        }
        for (what, times) in said {
            writeln!(text, "- in {times} of {} runs: {what}", self.runs.len())?;
        }
        Ok(fs::write(dir.join("summary.md"), text)?)
    }

    fn scenario(&self, scenario: &str, text: &mut String) -> Result<()> {
        /// Head, column, by what it is divided, digits after the point.
        const SHOWN: &[(&str, &str, f64, usize)] = &[
            ("events/s, in thousands", "per_second", 1e3, 1),
            ("CPU s per million", "cpu_s_per_million", 1.0, 2),
            ("of it user", "user_s_per_million", 1.0, 2),
            ("of it system", "system_s_per_million", 1.0, 2),
            ("server's CPU s per million", "server_cpu_s_per_million", 1.0, 1),
            ("memory, MiB", "resident_bytes", 1_048_576.0, 0),
            ("sent per event", "sent_per_event", 1.0, 3),
            ("acknowledgements", "acks_per_event", 1.0, 3),
            ("records stored", "stores_per_event", 1.0, 3),
            ("digests", "digests_per_event", 1.0, 3),
            ("rest: loads, checks, refused, pulls", "rest_per_event", 1.0, 3),
            ("lost", "lost", 1.0, 0),
            ("duplicated", "duplicated", 1.0, 0),
            ("wrong", "wrong", 1.0, 0),
        ];
        let heads: Vec<&str> = SHOWN.iter().map(|(head, ..)| *head).collect();
        writeln!(text, "| | {} |\n|---|{}", heads.join(" | "), "--:|".repeat(heads.len()))?;
        for variant in ALONE.into_iter().chain(Variant::ALL.map(Variant::name)) {
            let runs = || self.runs.iter().filter(|run| run.scenario == scenario && run.variant == variant);
            if runs().next().is_none() {
                continue;
            }
            let cells: Vec<String> = SHOWN
                .iter()
                .map(|(_, column, unit, digits)| {
                    spread(runs().filter_map(|run| Some(run.value(column)? / unit)).collect(), *digits)
                })
                .collect();
            writeln!(text, "| {variant} | {} |", cells.join(" | "))?;
        }
        Ok(())
    }

    fn ratios(&self, text: &mut String) -> Result<()> {
        let of = |round, scenario: &str, variant: &str, column| {
            let is_it = |run: &&Run| run.round == round && run.scenario == scenario && run.variant == variant;
            self.runs.iter().find(is_it).and_then(|run| run.value(column))
        };
        // As many puts of new keys as of known ones.
        let alone = |round, scenario: &str| {
            let [new, known] = ALONE.map(|variant| of(round, scenario, variant, "per_second"));
            Some(2.0 / (1.0 / new? + 1.0 / known?))
        };
        let rounds = 0..self.runs.iter().map(|run| run.round + 1).max().unwrap_or(0);
        let mut line = |what: String, ratio: &dyn Fn(usize) -> Option<f64>| -> Result<()> {
            let ratios: Vec<f64> = rounds.clone().filter_map(ratio).collect();
            if !ratios.is_empty() {
                writeln!(text, "| {what} | {} |", spread(ratios, 2))?;
            }
            Ok(())
        };
        for scenario in scenarios(false) {
            let name = scenario.name;
            for variant in Variant::ALL.map(Variant::name) {
                line(format!("{name}: {variant}'s events/s over puts/s of the server alone"), &|round| {
                    Some(of(round, name, variant, "per_second")? / alone(round, name)?)
                })?;
            }
        }
        for variant in Variant::ALL.map(Variant::name) {
            line(format!("{variant}: events/s of hot users over those of a cold cache"), &|round| {
                let per_second = |scenario| of(round, scenario, variant, "per_second");
                Some(per_second("hot users")? / per_second("cold cache")?)
            })?;
        }
        for scenario in scenarios(false) {
            for (column, what) in
                [("cpu_s_per_million", "CPU"), ("per_second", "events/s"), ("resident_bytes", "memory")]
            {
                line(format!("{}: service's {what} over async-nats's", scenario.name), &|round| {
                    let of = |variant: Variant| of(round, scenario.name, variant.name(), column);
                    Some(of(Variant::Service)? / of(Variant::AsyncNats)?)
                })?;
            }
        }
        Ok(())
    }
}

/// `0.37 (0.35–0.40)`
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    match &values[..] {
        [] => "–".into(),
        [value] => format!("{value:.digits$}"),
        [least, .., greatest] => {
            let middle = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
            format!("{middle:.digits$} ({least:.digits$}–{greatest:.digits$})")
        }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Six digits that count, and no exponent.
fn short(value: f64) -> String {
    let digits = 6 - value.abs().max(1e-3).log10().floor() as i32 - 1;
    let text = format!("{value:.*}", digits.clamp(0, 8) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}
