//! What all instances do right now, asked of them over the service API: rates, users, alarms and what waits, core by core.
//!
//! On a terminal each sample is drawn over the one before; elsewhere they follow one another. Nothing of the terminal's state is
//! changed, so that Ctrl-C may end it at any time.
//!
//! Never: a question that an instance answers by doing anything but tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use alarm_digest::config::NatsArgs;
use alarm_digest::service_api::NAME;
use anyhow::Result;
use nats_wire::Subject;
use serde_json::Value;
use uuid::Uuid;

use crate::ask;
use crate::client::Client;

/// Instances that do not answer within this are not shown.
const PATIENCE: Duration = Duration::from_millis(500);

/// So many samples, or for ever.
pub fn top(nats: &NatsArgs, interval: Duration, samples: Option<u64>) -> Result<()> {
    let (server, client) = ask::client(nats, "alarm-digest top", interval.max(PATIENCE) * 2)?;
    let mut asker = Asker::new(client)?;
    let mut before = Sample::default();
    let is_terminal = io::stdout().is_terminal();
    for number in 0.. {
        let sample = asker.sample()?;
        let text = format!("{server}\n{}", sample.table(&before));
        let text = if is_terminal { format!("\x1b[H\x1b[2J{text}") } else { format!("{text}\n") };
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() || samples == Some(number + 1) {
            return Ok(());
        }
        std::thread::sleep(interval.saturating_sub(PATIENCE));
        before = sample;
    }
    Ok(())
}

/// The connection, and where answers come.
struct Asker {
    client: Client,
    inbox: String,
    asked: u64,
}

impl Asker {
    fn new(mut client: Client) -> Result<Self> {
        let inbox = format!("_INBOX.{}", Uuid::new_v4().simple());
        client.subscribe(&format!("{inbox}.*"), None, 1);
        client.flush(Instant::now() + PATIENCE * 10)?;
        Ok(Self { client, inbox, asked: 0 })
    }

    /// What has been answered when patience ends. A late answer to the question before is none to this one.
    fn sample(&mut self) -> Result<Sample> {
        const BELIEF: &str = "words, and tokens";
        self.asked += 1;
        let reply = format!("{}.{}", self.inbox, self.asked);
        let subject = format!("$SRV.STATS.{NAME}");
        let (to, at) = (Subject::new(&subject).expect(BELIEF), Subject::new(&reply).expect(BELIEF));
        self.client.session().publish_for_reply(to, at, None, b"", Duration::ZERO);
        let at = Instant::now();
        let mut instances = BTreeMap::new();
        while let Some(received) = self.client.next(at + PATIENCE)? {
            if let Ok(stats) = serde_json::from_slice::<Value>(&received.payload)
                && let Some(id) = stats["id"].as_str().filter(|_| received.subject == reply)
            {
                instances.insert(id.to_owned(), stats.clone());
            }
        }
        Ok(Sample { at: Some(at), instances })
    }
}

/// What each instance said of itself.
#[derive(Default)]
struct Sample {
    at: Option<Instant>,
    instances: BTreeMap<String, Value>,
}

const HEAD: &str = "INSTANCE CORE  STATE    CHANGES/S   ASKED/S  DIGESTS/S     USERS    ALARMS WAITS";

impl Sample {
    /// Rates are since `before`, or since the start of an instance that was not there then.
    fn table(&self, before: &Self) -> String {
        if self.instances.is_empty() {
            return "no instance answers on $SRV.STATS.alarm-digest\n".into();
        }
        let mut out = format!("{HEAD}\n");
        for (id, stats) in &self.instances {
            let seconds = match (self.at, before.at) {
                (Some(now), Some(then)) if before.instances.contains_key(id) => (now - then).as_secs_f64(),
                _ => 0.0,
            };
            let old = &before.instances.get(id).unwrap_or(&Value::Null)["endpoints"][0]["data"]["cores"];
            let data = &stats["endpoints"][0]["data"];
            let cores = data["cores"].as_array().map_or(&[][..], Vec::as_slice);
            for (at, core) in cores.iter().enumerate() {
                let name = if at == 0 { printable(id) } else { String::new() };
                let _ = writeln!(out, "{}", row(&name, at, core, &old[at], seconds));
            }
            let _ = writeln!(out, "{}", summary(stats, data));
        }
        out
    }
}

fn row(id: &str, at: usize, core: &Value, old: &Value, seconds: f64) -> String {
    let count = |core: &Value, name: &str| core[name].as_u64().unwrap_or_default();
    let rate = |name: &str| match seconds {
        0.0 => "-".into(),
        _ => format!("{:.0}", count(core, name).saturating_sub(count(old, name)) as f64 / seconds),
    };
    let state = match (core["ready"].as_bool(), core["draining"].as_bool()) {
        (_, Some(true)) => "draining",
        (Some(true), _) => "ready",
        _ => "away",
    };
    format!(
        "{id:8} {at:>4}  {state:8} {:>9}  {:>8}  {:>9}  {:>8}  {:>8} {:>5}",
        rate("changes"),
        rate("requests"),
        rate("digests"),
        count(core, "users"),
        count(core, "alarms"),
        count(core, "unsettled"),
    )
}

fn summary(stats: &Value, data: &Value) -> String {
    let metadata = &stats["metadata"];
    let text = |value: &Value| printable_all(value.as_str().unwrap_or("?"));
    let nanos = stats["endpoints"][1]["average_processing_time"].as_u64().unwrap_or_default();
    let mut line = format!(
        "          {} {}, a digest is settled after {:.1} ms on average",
        text(&metadata["mode"]),
        text(&stats["version"]),
        nanos as f64 / 1e6
    );
    if let Some(pending) = data["backlog"]["pending"].as_u64() {
        let _ = write!(line, "\n          {pending} wait in the queue");
    }
    line
}

/// The first eight letters: enough to tell some instances apart, and of an answer that may be anybody's.
fn printable(id: &str) -> String {
    printable_all(id).chars().take(8).collect()
}

fn printable_all(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(20).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_rates_since_the_sample_before_and_80_columns() {
        let sample = |at: Instant, changes: u64| {
            let core = json!({ "ready": true, "draining": false, "users": 1_000_000, "alarms": 10_000_000,
                               "unsettled": 12, "changes": changes, "requests": 5, "digests": 5 });
            let stats = json!({
                "id": "0123456789abcdef", "version": "0.1.0", "metadata": { "mode": "memory" },
                "endpoints": [{ "data": { "cores": [core], "backlog": null } }, { "average_processing_time": 1_250_000 }],
            });
            Sample { at: Some(at), instances: BTreeMap::from([("0123456789abcdef".into(), stats)]) }
        };
        let now = Instant::now();
        let table = sample(now + Duration::from_secs(2), 3_000).table(&sample(now, 1_000));
        let expected = "\
INSTANCE CORE  STATE    CHANGES/S   ASKED/S  DIGESTS/S     USERS    ALARMS WAITS
01234567    0  ready         1000         0          0   1000000  10000000    12
          memory 0.1.0, a digest is settled after 1.2 ms on average
";
        assert_eq!(table, expected);
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
        assert!(sample(now, 1_000).table(&Sample::default()).contains("ready            -"));
    }
}
