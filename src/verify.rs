//! The smoke test of any implementation of the contract, from outside: only NATS and JSON.
//!
//! A request may overtake a change that was published just before it, since they can arrive on two connections. So the
//! request is repeated until all that must come has come, what is told of an alarm that has changed since is passed over,
//! and what came more than once is what fails.
//!
//! Never: another user's alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use alarm_digest::config::NatsArgs;
use alarm_digest::shard::Subjects;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::ask;
use crate::client::Client;

/// Between two requests for what has not come yet.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Before the first request, so that it seldom overtakes a change.
const SETTLE: Duration = Duration::from_millis(200);

/// How long nothing may come where nothing must come.
const QUIET: Duration = Duration::from_millis(500);

/// Runs the test; `print` gets a line for each step.
pub fn verify(nats: &NatsArgs, timeout: Duration, print: impl Fn(&str)) -> Result<()> {
    let mut probe = Probe::new(nats, timeout)?;
    let (disk, fan, cpu, ram) = ("disk", "fan", "cpu", "ram");

    probe.change(disk, "CRITICAL", "2026-01-02T03:04:07Z")?;
    probe.change(fan, "WARNING", "2026-01-02T03:04:05.000000001+00:00")?;
    probe.change(cpu, "WARNING", "2026-01-02T04:04:05.000000001+01:00")?;
    probe.change(ram, "CRITICAL", "2026-01-02T03:04:05Z")?;
    probe.change(ram, "CLEARED", "2026-01-02T03:04:06Z")?;
    probe.change(disk, "WARNING", "2026-01-02T03:04:06Z")?;
    probe.expect(&[
        (cpu, "WARNING", "2026-01-02T03:04:05.000000001Z"),
        (fan, "WARNING", "2026-01-02T03:04:05.000000001Z"),
        (disk, "CRITICAL", "2026-01-02T03:04:07Z"),
    ])?;
    print("active alarms: told, oldest first, whatever order they came in");

    probe.change(disk, "CRITICAL", "2026-01-02T03:04:07Z")?;
    probe.change(disk, "CRITICAL", "2026-01-02T03:05:00Z")?;
    probe.change(fan, "CLEARED", "2026-01-02T03:05:00Z")?;
    probe.expect(&[])?;
    print("repetitions, refreshments and clearings: not told");

    probe.change(fan, "WARNING", "2026-01-02T03:06:00Z")?;
    probe.change(cpu, "CRITICAL", "2026-01-02T03:05:30Z")?;
    probe.expect(&[(cpu, "CRITICAL", "2026-01-02T03:05:30Z"), (fan, "WARNING", "2026-01-02T03:06:00Z")])?;
    print("another severity and an alarm that came back: told again");

    probe.publish_raw(b"{\"AlarmID\":");
    probe.change(ram, "WARNING", "2026-01-02T03:07:00Z")?;
    probe.expect(&[(ram, "WARNING", "2026-01-02T03:07:00Z")])?;
    print("a malformed message: harms nobody");

    probe.expect(&[])?;
    print("nothing new: nothing told");
    Ok(())
}

struct Probe {
    client: Client,
    subjects: Subjects,
    user: String,
    timeout: Duration,
    /// All that was published, as alarm, status and instant.
    published: BTreeSet<(String, String, OffsetDateTime)>,
    /// All that was ever told.
    told_ever: BTreeSet<(String, String, String)>,
}

type Told = BTreeMap<String, (String, String)>;

impl Probe {
    fn new(nats: &NatsArgs, timeout: Duration) -> Result<Self> {
        let subjects = nats.subjects().map_err(anyhow::Error::msg)?;
        let (_, mut client) = ask::client(nats, "alarm-digest verify", timeout)?;
        client.subscribe(&subjects.digest, None, 1);
        client.flush(Instant::now() + timeout)?;
        let user = Uuid::new_v4().to_string();
        Ok(Self { client, subjects, user, timeout, published: BTreeSet::new(), told_ever: BTreeSet::new() })
    }

    /// Two alarms at the same instant are told by id, so ids are the names behind the user's own.
    fn change(&mut self, alarm: &str, status: &str, changed_at: &str) -> Result<()> {
        let alarm = format!("{}/{alarm}", self.user);
        self.published.insert((alarm.clone(), status.into(), instant(changed_at)?));
        let change =
            json!({ "AlarmID": alarm, "UserID": self.user, "Status": status, "ChangedAt": changed_at });
        self.client.publish(&self.subjects.changed, change.to_string().as_bytes());
        Ok(())
    }

    fn publish_raw(&mut self, payload: &[u8]) {
        self.client.publish(&self.subjects.changed, payload);
    }

    /// Asks until all of `expected` has been told, in any number of digests, and then once more, when nothing may come.
    fn expect(&mut self, expected: &[(&str, &str, &str)]) -> Result<()> {
        let owned = |(alarm, status, at): &(&str, &str, &str)| {
            (format!("{}/{alarm}", self.user), (String::from(*status), String::from(*at)))
        };
        let expected: Told = expected.iter().map(owned).collect();
        let mut told = Told::new();
        let deadline = Instant::now() + self.timeout;
        self.client.flush(deadline).context("published alarms")?;
        std::thread::sleep(SETTLE);
        while told.len() < expected.len() {
            let missing = || format!("expected {expected:?} within {:?}, got {told:?}", self.timeout);
            ensure!(Instant::now() < deadline, "{}. Does the service run on this server?", missing());
            self.ask_and_read(ASK_EVERY, &expected, &mut told)?;
        }
        self.ask_and_read(QUIET, &expected, &mut told)
    }

    fn ask_and_read(&mut self, within: Duration, expected: &Told, told: &mut Told) -> Result<()> {
        let request = json!({ "UserID": self.user });
        self.client.publish(&self.subjects.send, request.to_string().as_bytes());
        let until = Instant::now() + within;
        while let Some(received) = self.client.next(until).context("waiting for a digest")? {
            let digest: Value = serde_json::from_slice(&received.payload)
                .with_context(|| format!("expected JSON, got {}", received.payload.escape_ascii()))?;
            if digest["UserID"] == self.user.as_str() {
                self.read(&digest, expected, told)?;
            }
            if told.len() == expected.len() && !expected.is_empty() && within == ASK_EVERY {
                break;
            }
        }
        Ok(())
    }

    fn read(&mut self, digest: &Value, expected: &Told, told: &mut Told) -> Result<()> {
        let alarms = digest["ActiveAlarms"]
            .as_array()
            .with_context(|| format!("expected ActiveAlarms in {digest}"))?;
        ensure!(!alarms.is_empty(), "expected no digest when nothing is due, got {digest}");
        let mut last = None;
        for alarm in alarms {
            let text = |field: &str| {
                let value = alarm[field].as_str().map(String::from);
                value.with_context(|| format!("expected a string `{field}` in {alarm}"))
            };
            let (id, status, at) = (text("AlarmID")?, text("Status")?, text("LatestChangedAt")?);
            let is_first = self.told_ever.insert((id.clone(), status.clone(), at.clone()));
            ensure!(is_first, "expected {id} {status} {at} once, got it again in {digest}");
            let when = instant(&at)?;
            let place = (when, id.clone());
            ensure!(last.as_ref() < Some(&place), "expected the oldest first, got {digest}");
            last = Some(place);
            if self.is_overtaken(&id, &status, when) {
                continue;
            }
            match expected.get(&id) {
                None => bail!("expected one of {expected:?}, got {alarm}"),
                Some(due) => {
                    ensure!(due == &(status.clone(), at.clone()), "expected {due:?} of {id}, got {alarm}")
                }
            }
            ensure!(!told.contains_key(&id), "expected {id} once, got it again in {digest}");
            told.insert(id, (status, at));
        }
        Ok(())
    }

    /// Whether that was published, and something later after it: a request came in between, as it may.
    fn is_overtaken(&self, id: &str, status: &str, at: OffsetDateTime) -> bool {
        let mut of_this = self.published.iter().filter(|(alarm, ..)| alarm == id);
        self.published.contains(&(id.into(), status.into(), at)) && of_this.any(|(_, _, later)| *later > at)
    }
}

fn instant(text: &str) -> Result<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).with_context(|| format!("expected an RFC 3339 time, got `{text}`"))
}
