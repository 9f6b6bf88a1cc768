//! What the server alone allows: compare-and-swap puts into the same bucket, with nothing around them.
//!
//! Never: more than one connection.

use std::time::{Duration, Instant};

use alarm_digest_benches::queue::{Put, Queue};
use alarm_digest_benches::workload::Ids;
use anyhow::Result;

/// About a record of seven alarms.
const VALUE_BYTES: usize = 300;

/// Puts in flight.
const WINDOW: usize = 1000;

/// How long it took to put each of `keys` for the first time, and then once more.
pub fn measure(queue: &mut Queue, bucket: &str, keys: u32) -> Result<[Duration; 2]> {
    let value = [7; VALUE_BYTES];
    let ids = Ids::new(fastrand::u64(..));
    let subjects: Vec<String> = (0..keys).map(|key| format!("$KV.{bucket}.{}", ids.id(key))).collect();
    let mut revisions = vec![0; keys as usize];
    let mut took = [Duration::ZERO; 2];
    for took in &mut took {
        let mut puts = subjects.iter().zip(revisions.clone()).zip(0..).map(|((subject, revision), tag)| {
            Put { tag, subject: subject.into(), payload: value[..].into(), expected_last: Some(revision) }
        });
        let started = Instant::now();
        queue.put_all(WINDOW, || puts.next(), |tag, sequence| revisions[tag as usize] = sequence)?;
        *took = started.elapsed();
    }
    Ok(took)
}
