//! The rules, as one writes them with serde, `String`s and maps.
//!
//! Never: NATS.

use ahash::AHashMap;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

#[derive(Deserialize)]
pub struct Change {
    #[serde(rename = "UserID", alias = "UserId", alias = "userId", alias = "userid")]
    pub user: String,
    #[serde(rename = "AlarmID", alias = "AlarmId", alias = "alarmId", alias = "alarmid")]
    alarm: String,
    #[serde(rename = "Status", alias = "status")]
    status: Status,
    #[serde(rename = "ChangedAt", alias = "changedAt", alias = "changedat", with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
}

#[derive(Deserialize)]
pub struct Request {
    #[serde(rename = "UserID", alias = "UserId", alias = "userId", alias = "userid")]
    pub user: String,
}

#[derive(Serialize)]
struct Digest<'a> {
    #[serde(rename = "UserID")]
    user: &'a str,
    #[serde(rename = "ActiveAlarms")]
    alarms: &'a [Alarm<'a>],
}

#[derive(Serialize)]
struct Alarm<'a> {
    #[serde(rename = "AlarmID")]
    id: &'a str,
    #[serde(rename = "Status")]
    status: Status,
    #[serde(rename = "LatestChangedAt", with = "time::serde::rfc3339")]
    changed_at: OffsetDateTime,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Cleared,
    Warning,
    Critical,
}

/// The users of one worker.
#[derive(Default)]
pub struct Book(AHashMap<String, AHashMap<String, Memory>>);

/// Ordered by time, then by severity.
type Condition = (OffsetDateTime, Status);

struct Memory {
    latest: Condition,
    told: Option<Condition>,
    /// Never told, or another status since.
    due: bool,
}

impl Book {
    pub fn apply(&mut self, change: Change) {
        let condition = (change.changed_at.to_offset(time::UtcOffset::UTC), change.status);
        let memory = self.0.entry(change.user).or_default().entry(change.alarm);
        let memory = memory.or_insert(Memory { latest: condition, told: None, due: true });
        memory.latest = memory.latest.max(condition);
        memory.due |= memory.told.is_some_and(|told| condition > told && condition.1 != told.1);
    }

    /// The digest's payloads: one, or several if one would be larger than `bytes_max`, or none if nothing is due.
    pub fn take_digest(&mut self, user: &str, bytes_max: usize) -> Vec<Vec<u8>> {
        let Some(alarms) = self.0.get_mut(user) else { return Vec::new() };
        let mut due: Vec<Alarm> = alarms
            .iter_mut()
            .filter(|(_, memory)| memory.due && memory.latest.1 != Status::Cleared)
            .map(|(id, memory)| {
                (memory.told, memory.due) = (Some(memory.latest), false);
                Alarm { id, changed_at: memory.latest.0, status: memory.latest.1 }
            })
            .collect();
        due.sort_unstable_by(|a, b| (a.changed_at, a.id).cmp(&(b.changed_at, b.id)));
        let mut payloads = Vec::new();
        if !due.is_empty() {
            encode(user, &due, bytes_max, &mut payloads);
        }
        payloads
    }

    pub fn forget(&mut self, horizon: OffsetDateTime) {
        self.0.retain(|_, alarms| {
            alarms.retain(|_, memory| memory.latest.1 != Status::Cleared || memory.latest.0 >= horizon);
            !alarms.is_empty()
        });
    }
}

fn encode(user: &str, alarms: &[Alarm], bytes_max: usize, payloads: &mut Vec<Vec<u8>>) {
    let payload = serde_json::to_vec(&Digest { user, alarms }).expect("strings and times can be written");
    if payload.len() <= bytes_max || alarms.len() == 1 {
        return payloads.push(payload);
    }
    let (older, newer) = alarms.split_at(alarms.len() / 2);
    encode(user, older, bytes_max, payloads);
    encode(user, newer, bytes_max, payloads);
}
