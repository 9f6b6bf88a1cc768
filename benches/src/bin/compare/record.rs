//! What all runs found: one line each in `runs.csv`, and the latencies, over all rounds, in `latency.csv`.
//!
//! Never: a quote within a text.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use alarm_digest_benches::report::{Report, histogram, micros};
use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::plan::{Measurement, Variant};

type Column = (&'static str, fn(&Report) -> Option<f64>);

/// The numbers of a run.
const COLUMNS: &[Column] = &[
    ("messages", |report| Some(report.messages as f64)),
    ("seconds", |report| Some(report.time.as_secs_f64())),
    ("per_second", |report| Some(report.per_second())),
    ("cpu_s_per_million", |report| Some(report.per_million(report.used?.cpu))),
    ("user_s_per_million", |report| Some(report.per_million(report.used?.user))),
    ("system_s_per_million", |report| Some(report.per_million(report.used?.system))),
    ("cpus_used", |report| Some(report.used?.cpu.as_secs_f64() / report.time.as_secs_f64())),
    ("voluntary_switches", |report| Some(report.used?.voluntary as f64)),
    ("involuntary_switches", |report| Some(report.used?.involuntary as f64)),
    ("server_cpu_s_per_million", |report| Some(report.per_million(report.server?.cpu))),
    ("resident_bytes", |report| Some(report.resident_bytes? as f64)),
    ("alarms_held", |report| Some(report.alarms_held as f64)),
    ("bytes_per_alarm", |report| report.bytes_per_alarm),
    ("latency_p50_us", |report| latency(report, 50.0)),
    ("latency_p90_us", |report| latency(report, 90.0)),
    ("latency_p99_us", |report| latency(report, 99.0)),
    ("latency_p999_us", |report| latency(report, 99.9)),
    ("latency_samples", |report| Some(report.latency.len() as f64)),
    ("missed", |report| Some(report.missed as f64)),
    ("unanswered", |report| Some(report.unanswered as f64)),
    ("lag_p99_us", |report| Some(micros(&report.lag, 99.0))),
    ("told", |report| Some(report.findings.told as f64)),
    ("lost", |report| Some(report.findings.lost as f64)),
    ("duplicated", |report| Some(report.findings.duplicated as f64)),
    ("late", |report| Some(report.findings.late as f64)),
    ("wrong", |report| Some(report.findings.wrong as f64)),
    ("others_cpus", |report| Some(report.others.0)),
    ("stolen_cpus", |report| Some(report.others.1)),
];

fn latency(report: &Report, percentile: f64) -> Option<f64> {
    (!report.latency.is_empty()).then(|| micros(&report.latency, percentile))
}

/// All runs of a comparison.
#[derive(Default)]
pub struct Record {
    pub runs: Vec<Run>,
    pub latencies: Vec<Latencies>,
    histograms: Vec<(Key, Histogram<u64>)>,
}

/// What runs have in common that may be compared with each other, and the variant.
#[derive(Clone, PartialEq, Debug)]
pub struct Key {
    pub measurement: String,
    pub layout: String,
    pub cores: usize,
    /// Zero if it is not fixed.
    pub rate: f64,
    pub variant: String,
}

impl Key {
    /// `flood, 2 cores together`
    pub fn title(&self) -> String {
        let rate = if self.rate > 0.0 { format!(" at {:.0}/s", self.rate) } else { String::new() };
        format!("{}{rate}, {} cores {}", self.measurement, self.cores, self.layout)
    }
}

/// One run.
pub struct Run {
    pub round: usize,
    pub key: Key,
    /// One for each of [`COLUMNS`]; empty when the run failed.
    values: Vec<Option<f64>>,
    /// Warnings, or why it failed.
    pub said: Vec<String>,
}

impl Run {
    pub fn failed(&self) -> bool {
        self.values.iter().all(Option::is_none)
    }

    pub fn value(&self, column: &str) -> Option<f64> {
        let at = COLUMNS.iter().position(|(name, _)| *name == column);
        *self.values.get(at.unwrap_or_else(|| panic!("no column {column}")))?
    }
}

/// The latencies of one variant, over all rounds.
pub struct Latencies {
    pub key: Key,
    /// Percentiles from 0 to 100, and microseconds.
    pub points: Vec<(f64, f64)>,
}

impl Record {
    pub fn add(&mut self, round: usize, measurement: &Measurement, variant: Variant, came: Result<Report>) {
        let key = Key {
            measurement: measurement.name.into(),
            layout: measurement.layout.name().into(),
            cores: measurement.layout.cores(),
            rate: measurement.rate().unwrap_or(0.0),
            variant: variant.name().into(),
        };
        let (values, said) = match &came {
            Ok(report) => {
                let wrong = report.findings.first_wrong.iter().map(|what| format!("wrong: {what}"));
                let values = COLUMNS.iter().map(|(_, value)| value(report)).collect();
                (values, report.warnings.iter().cloned().chain(wrong).collect())
            }
            Err(error) => (vec![None; COLUMNS.len()], vec![format!("failed: {error:#}")]),
        };
        if let Ok(report) = &came
            && !report.latency.is_empty()
        {
            let at = self.histograms.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
                self.histograms.push((key.clone(), histogram()));
                self.histograms.len() - 1
            });
            self.histograms[at].1.add(&report.latency).expect("all histograms have the same bounds");
        }
        self.runs.push(Run { round, key, values, said });
    }

    /// Whether nothing failed, and nothing was lost, told twice, told wrongly or left unanswered.
    pub fn is_right(&self) -> bool {
        let is_zero = |run: &Run, column| run.value(column).is_none_or(|value| value == 0.0);
        let faults = ["lost", "duplicated", "wrong", "unanswered"];
        self.runs.iter().all(|run| !run.failed() && faults.iter().all(|column| is_zero(run, column)))
    }

    /// The values of one column, over all rounds, in rising order.
    pub fn values(&self, key: &Key, column: &str) -> Vec<f64> {
        let runs = self.runs.iter().filter(|run| run.key == *key);
        let mut values: Vec<f64> = runs.filter_map(|run| run.value(column)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Every key there is, in the order of the plan.
    pub fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        for run in &self.runs {
            if !keys.contains(&run.key) {
                keys.push(run.key.clone());
            }
        }
        let place = |key: &Key| Variant::ALL.iter().position(|variant| variant.name() == key.variant);
        let titles: Vec<String> = keys.iter().map(Key::title).collect();
        let first = |key: &Key| titles.iter().position(|title| *title == key.title());
        keys.sort_by_key(|key| (first(key), place(key)));
        keys
    }

    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.latencies = self
            .histograms
            .iter()
            .map(|(key, histogram)| Latencies { key: key.clone(), points: points(histogram) })
            .collect();
        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut text = format!("round,measurement,layout,cores,rate,variant,{},said\n", names.join(","));
        for run in &self.runs {
            let values: Vec<String> =
                run.values.iter().map(|value| value.map(short).unwrap_or_default()).collect();
            let said = run.said.join("; ").replace(['\n', '"'], " ");
            writeln!(text, "{},{},{},\"{said}\"", run.round, written(&run.key), values.join(","))?;
        }
        fs::write(dir.join("runs.csv"), text)?;
        let mut text = String::from("measurement,layout,cores,rate,variant,percentile,microseconds\n");
        for latencies in &self.latencies {
            for (percentile, micros) in &latencies.points {
                writeln!(text, "{},{},{}", written(&latencies.key), short(*percentile), short(*micros))?;
            }
        }
        Ok(fs::write(dir.join("latency.csv"), text)?)
    }

    pub fn read(dir: &Path) -> Result<Self> {
        let mut record = Self::default();
        let runs = fs::read_to_string(dir.join("runs.csv")).context("expected runs.csv")?;
        for line in runs.lines().skip(1) {
            let fields = split(line);
            ensure!(fields.len() == 7 + COLUMNS.len(), "expected {} fields in {line}", 7 + COLUMNS.len());
            record.runs.push(Run {
                round: fields[0].parse()?,
                key: key(&fields[1..6])?,
                values: fields[6..6 + COLUMNS.len()].iter().map(|value| value.parse().ok()).collect(),
                said: fields[6 + COLUMNS.len()]
                    .split("; ")
                    .filter(|said| !said.is_empty())
                    .map(String::from)
                    .collect(),
            });
        }
        let latencies = fs::read_to_string(dir.join("latency.csv")).context("expected latency.csv")?;
        for line in latencies.lines().skip(1) {
            let fields = split(line);
            ensure!(fields.len() == 7, "expected 7 fields in {line}");
            let (key, point) = (key(&fields[..5])?, (fields[5].parse()?, fields[6].parse()?));
            match record.latencies.last_mut().filter(|last| last.key == key) {
                Some(last) => last.points.push(point),
                None => record.latencies.push(Latencies { key, points: vec![point] }),
            }
        }
        Ok(record)
    }
}

/// What stands between commas, those in quotes excepted.
fn split(line: &str) -> Vec<&str> {
    let mut is_quoted = false;
    let parts = line.split(|letter| {
        is_quoted ^= letter == '"';
        letter == ',' && !is_quoted
    });
    parts.map(|field| field.trim_matches('"')).collect()
}

fn written(key: &Key) -> String {
    let Key { measurement, layout, cores, rate, variant } = key;
    format!("{measurement},{layout},{cores},{rate},\"{variant}\"")
}

fn key(fields: &[&str]) -> Result<Key> {
    Ok(Key {
        measurement: fields[0].into(),
        layout: fields[1].into(),
        cores: fields[2].parse()?,
        rate: fields[3].parse()?,
        variant: fields[4].into(),
    })
}

/// Evenly over the nines, as far as there are samples for: the last point has at least five above it.
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let nines_max = (histogram.len() as f64 / 5.0).log10().max(0.0);
    let nines = (0..).map(|step| f64::from(step) * 0.05).take_while(|nines| *nines <= nines_max);
    nines
        .map(|nines| 100.0 * (1.0 - 10f64.powf(-nines)))
        .map(|percentile| (percentile, micros(histogram, percentile)))
        .collect()
}

/// Six digits that count, and no exponent.
fn short(value: f64) -> String {
    let digits = 6 - value.abs().max(1e-3).log10().floor() as i32 - 1;
    let text = format!("{value:.*}", digits.clamp(0, 8) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_short() {
        let cases =
            [(0.0, "0"), (1.0, "1"), (0.2371234, "0.237123"), (1_234_567.8, "1234568"), (99.999, "99.999")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let key = Key {
            measurement: "latency".into(),
            layout: "apart".into(),
            cores: 1,
            rate: 1000.0,
            variant: "service, spinning".into(),
        };
        let values = (0..COLUMNS.len()).map(|at| (at != 3).then_some(at as f64)).collect();
        let run = Run { round: 2, key: key.clone(), values, said: vec!["a, b".into(), "c".into()] };
        let mut histogram = histogram();
        (1..=1000).for_each(|micros| histogram.record(micros * 1000).unwrap());
        let mut record =
            Record { runs: vec![run], histograms: vec![(key.clone(), histogram)], ..Record::default() };
        let dir = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        record.write(&dir).unwrap();
        let again = Record::read(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let (old, new) = (&record.runs[0], &again.runs[0]);
        assert_eq!((&old.key, &old.values, &old.said), (&new.key, &new.values, &new.said));
        assert_eq!(new.value("seconds"), Some(1.0));
        assert_eq!(again.latencies[0].key, key);
        assert_eq!(again.latencies[0].points.len(), record.latencies[0].points.len());
    }
}
