//! The medians of a record as Markdown tables, with the least and the greatest value in parentheses.
//!
//! Never: a judgement. That is for whoever reads the record.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::record::{Key, Record};

/// Head, column, by what it is divided, digits after the point.
pub type Shown = (&'static str, &'static str, f64, usize);

pub const CPU: Shown = ("CPU s per million", "cpu_s_per_million", 1.0, 3);
pub const LATENCY_P50: Shown = ("p50, µs", "latency_p50_us", 1.0, 0);
pub const MEMORY_EACH: Shown = ("bytes per alarm", "bytes_per_alarm", 1.0, 1);

const LOAD: &[Shown] = &[
    ("messages/s, in thousands", "per_second", 1e3, 0),
    CPU,
    ("of it user", "user_s_per_million", 1.0, 3),
    ("of it system", "system_s_per_million", 1.0, 3),
    ("voluntary switches", "voluntary_switches", 1.0, 0),
    ("involuntary", "involuntary_switches", 1.0, 0),
    ("memory, MiB", "resident_bytes", 1_048_576.0, 0),
];
const LATENCY: &[Shown] = &[
    LATENCY_P50,
    ("p90, µs", "latency_p90_us", 1.0, 0),
    ("p99, µs", "latency_p99_us", 1.0, 0),
    ("CPUs used", "cpus_used", 1.0, 2),
    ("digests that missed the alarm just before", "missed", 1.0, 0),
    ("of", "latency_samples", 1.0, 0),
];
const MEMORY: &[Shown] = &[
    MEMORY_EACH,
    ("alarms", "alarms_held", 1.0, 0),
    ("memory, MiB", "resident_bytes", 1_048_576.0, 0),
    ("messages/s, in thousands", "per_second", 1e3, 0),
];

/// What must be zero, and one that NATS permits.
const CHECKED: [&str; 5] = ["lost", "duplicated", "wrong", "unanswered", "late"];

pub fn write(record: &Record, dir: &Path) -> Result<()> {
    let mut text = fs::read_to_string(dir.join("machine.md"))?;
    let mut title = String::new();
    for key in record.keys() {
        let shown = match &*key.measurement {
            "latency" => LATENCY,
            "memory" => MEMORY,
            _ => LOAD,
        };
        if title != key.title() {
            title = key.title();
            let heads: Vec<&str> = shown.iter().map(|(head, ..)| *head).collect();
            writeln!(text, "\n### {title}\n\n| | {} | {} |", heads.join(" | "), CHECKED.join(" | "))?;
            writeln!(text, "|---|{}", "--:|".repeat(heads.len() + CHECKED.len()))?;
        }
        let spreads = shown.iter().map(|shown| spread(record, &key, shown));
        let checked = CHECKED.map(|column| format!("{:.0}", record.values(&key, column).iter().sum::<f64>()));
        let cells: Vec<String> = spreads.chain(checked).collect();
        writeln!(text, "| {} | {} |", key.variant, cells.join(" | "))?;
    }
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    let runs = record.runs.iter().flat_map(|run| &run.said);
    runs.for_each(|said_once| *said.entry(kind(said_once)).or_default() += 1);
    if !said.is_empty() {
        writeln!(text, "\n### What makes this weak\n")?;
    }
    for (what, times) in said {
        writeln!(text, "- in {times} of {} runs: {what}", record.runs.len())?;
    }
    Ok(fs::write(dir.join("summary.md"), text)?)
}

/// `0.371 (0.350–0.402)`
pub fn spread(record: &Record, key: &Key, (_, column, unit, digits): &Shown) -> String {
    let values = record.values(key, column);
    match &values[..] {
        [] => "–".into(),
        [value] => format!("{:.digits$}", value / unit),
        [least, .., greatest] => format!(
            "{:.digits$} ({:.digits$}–{:.digits$})",
            median(&values) / unit,
            least / unit,
            greatest / unit
        ),
    }
}

/// Of values in rising order, of which there is at least one.
pub fn median(values: &[f64]) -> f64 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// A warning without its numbers, so that those of a kind are counted together.
fn kind(said: &str) -> &str {
    match said.split_once(": ") {
        Some((kind, _)) if kind != "failed" && kind != "wrong" => kind,
        _ => said,
    }
}
