//! Whether two records put the variants in the same order.
//!
//! Two variants are *apart* in a record where all values of one are below all of the other's; elsewhere nobody is ahead. Records
//! contradict each other where two variants are apart in both of them, the other way round.
//!
//! Never: a claim from medians whose ranges overlap.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::record::{Key, Record};
use crate::summary::{CPU, LATENCY_P50, MEMORY_EACH, Shown, median, spread};

/// What two records say of each other.
pub struct Ranks {
    /// As Markdown.
    pub text: String,
    /// Pairs of variants that are apart in both, in the same order.
    pub same: usize,
    /// Pairs of which nobody is ahead in one of them.
    pub open: usize,
    /// Pairs that they contradict each other about.
    pub contradicting: usize,
}

/// Everything that is in both records.
pub fn compare(first: &Record, second: &Record) -> Ranks {
    let mut ranks = Ranks { text: String::new(), same: 0, open: 0, contradicting: 0 };
    let others = second.keys();
    let keys: Vec<Key> = first.keys().into_iter().filter(|key| others.contains(key)).collect();
    for group in keys.chunk_by(|a, b| a.title() == b.title()) {
        let (figure, column) = figure(&group[0].measurement);
        let values = |record: &Record, key: &Key| record.values(key, column.1);
        let mut group: Vec<&Key> = group
            .iter()
            .filter(|key| [first, second].iter().all(|record| !values(record, key).is_empty()))
            .collect();
        group.sort_by(|a, b| median(&values(first, a)).total_cmp(&median(&values(first, b))));
        let _ = writeln!(
            ranks.text,
            "\n### {}: {figure}\n\n| | first | second |\n|---|--:|--:|",
            group[0].title()
        );
        for key in &group {
            let [first, second] = [first, second].map(|record| spread(record, key, column));
            let _ = writeln!(ranks.text, "| {} | {first} | {second} |", key.variant);
        }
        let mut said = Vec::new();
        for (at, a) in group.iter().enumerate() {
            for b in &group[at + 1..] {
                match [first, second].map(|record| apart(&values(record, a), &values(record, b))) {
                    [Some(one), Some(other)] if one == other => ranks.same += 1,
                    [Some(_), Some(_)] => {
                        ranks.contradicting += 1;
                        said.push(format!("contradicting: {} and {}", a.variant, b.variant));
                    }
                    _ => {
                        ranks.open += 1;
                        said.push(format!("nobody is ahead: {} and {}", a.variant, b.variant));
                    }
                }
            }
        }
        said.iter().enumerate().for_each(|(at, line)| {
            let _ = writeln!(ranks.text, "{}- {line}", if at == 0 { "\n" } else { "" });
        });
    }
    let Ranks { same, open, contradicting, .. } = ranks;
    let _ = writeln!(
        ranks.text,
        "\n{same} pairs of variants are apart in both records, in the same order; of {open} nobody is ahead in one of them; \
         they contradict each other about {contradicting}."
    );
    ranks
}

fn figure(measurement: &str) -> (&'static str, &'static Shown) {
    match measurement {
        "latency" => ("p50 in µs", &LATENCY_P50),
        "memory" => ("bytes per alarm", &MEMORY_EACH),
        _ => ("CPU seconds per million messages", &CPU),
    }
}

/// Which of them is below, if all of it is. Values are in rising order.
fn apart(a: &[f64], b: &[f64]) -> Option<Ordering> {
    let is_below = |a: &[f64], b: &[f64]| a.last() < b.first();
    match (is_below(a, b), is_below(b, a)) {
        (true, _) => Some(Ordering::Less),
        (_, true) => Some(Ordering::Greater),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ahead_is_known_only_where_nothing_overlaps() {
        assert_eq!(apart(&[1.0, 2.0], &[3.0, 4.0]), Some(Ordering::Less));
        assert_eq!(apart(&[3.0], &[1.0, 2.0]), Some(Ordering::Greater));
        assert_eq!(apart(&[1.0, 3.0], &[2.0, 4.0]), None);
        assert_eq!(apart(&[1.0], &[1.0]), None);
    }
}
