//! Streams and consumers as we want them, and where what the server has is something else.
//!
//! A member that is `None` is not sent and not compared. What the server says is kept as JSON, so that an update keeps
//! members that are set by others, or newer than this file.
//!
//! Source: nats-server, server/stream.go, `StreamConfig`, and server/consumer.go, `ConsumerConfig`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// A configuration as the server says it.
pub type ConfigMap = Map<String, Value>;

/// A stream as we want it, but for its name. By default nothing is said.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct StreamConfig {
    /// What it stores.
    pub subjects: Vec<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When messages go. Fixed when the stream is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Where messages are. Fixed when the stream is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What happens when it is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// Bytes at most. -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<i64>,
    /// Messages at most. -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msgs: Option<i64>,
    /// Messages of one subject at most. -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msgs_per_subject: Option<i64>,
    /// Bytes of one message at most. -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_size: Option<i64>,
    /// Messages go when they are so old. Zero for never.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "nanos")]
    pub max_age: Option<Duration>,
    /// Copies, 1, 3 or 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_replicas: Option<u32>,
    /// How long message ids are remembered, in the server's memory.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "nanos")]
    pub duplicate_window: Option<Duration>,
    /// Whether [`ROLLUP`](super::ROLLUP) works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_rollup_hdrs: Option<bool>,
    /// Whether the API may not delete messages. Can be set and never unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_delete: Option<bool>,
    /// Whether the API may not purge. Can be set and never unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_purge: Option<bool>,
    /// Whether replicas answer direct gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_direct: Option<bool>,
    /// Whether `Nats-TTL` works. From 2.11 on; can be set and never unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_msg_ttl: Option<bool>,
    /// Publishes each stored message once more, to core subscribers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub republish: Option<Republish>,
}

/// Where stored messages are published once more, at most once each. Before 2.10 `dest` must have the wildcards of
/// `src` (10052).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Republish {
    /// Which messages.
    pub src: String,
    /// Where to.
    pub dest: String,
    /// Without their payload.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub headers_only: bool,
}

/// When messages go from a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// At a limit.
    Limits,
    /// When all consumers have acknowledged.
    Interest,
    /// When its only consumer has acknowledged.
    WorkQueue,
}

/// Where messages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// On disk.
    File,
    /// Gone with the server.
    Memory,
}

/// What happens when a stream is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// The oldest messages are deleted, whether anybody has read them or not.
    Old,
    /// New messages are refused: [`ApiError::is_full`](super::ApiError::is_full).
    New,
}

/// A pull consumer as we want it, but for its name. By default it outlives its clients, and nothing else is said.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ConsumerConfig {
    /// Whether it is deleted when nobody has asked it for [`inactive_threshold`](Self::inactive_threshold).
    #[serde(skip)]
    pub is_ephemeral: bool,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where it begins. Fixed when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver_policy: Option<DeliverPolicy>,
    /// What it wants to be answered. Fixed when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_policy: Option<AckPolicy>,
    /// Without an answer for so long, a message is delivered again.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "nanos")]
    pub ack_wait: Option<Duration>,
    /// Messages that may be without an answer at a time. -1 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ack_pending: Option<i64>,
    /// Deliveries of one message at most; -1 for no limit. A work queue keeps a message beyond it for ever, and shows it
    /// to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_deliver: Option<i64>,
    /// Requests that may wait at a time. Fixed when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<i64>,
    /// Only messages of these subjects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_subject: Option<String>,
    /// Without a request for so long, it is deleted. Zero for never.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "nanos")]
    pub inactive_threshold: Option<Duration>,
    /// Copies; 0 for as many as the stream has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_replicas: Option<u32>,
    /// Its state is in memory only. Fixed when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_storage: Option<bool>,
}

/// Where a consumer begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliverPolicy {
    /// With the first message.
    All,
    /// With the last one.
    Last,
    /// With the next one.
    New,
    /// With the last one of each subject.
    LastPerSubject,
}

/// What a consumer wants to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AckPolicy {
    /// Nothing.
    None,
    /// The last message, for all before it.
    All,
    /// Every message.
    Explicit,
}

impl StreamConfig {
    /// Where the server's configuration is not what we want. Empty: use it as it is.
    #[must_use]
    pub fn differences(&self, found: &ConfigMap) -> Vec<Difference> {
        differences(&as_map(self), found, |member, wanted, found| match member {
            "retention" | "storage" => false,
            // Can be set, and never unset.
            "deny_delete" | "deny_purge" | "allow_msg_ttl" => is_nothing(found) && !is_nothing(wanted),
            _ => true,
        })
    }

    /// What was found, with what we want laid over it: for
    /// [`JetStream::stream_update`](super::JetStream::stream_update).
    #[must_use]
    pub fn over(&self, found: &ConfigMap) -> ConfigMap {
        let mut merged = found.clone();
        merged.extend(as_map(self));
        merged
    }
}

impl ConsumerConfig {
    /// Where the server's configuration is not what we want. Empty: use it as it is.
    #[must_use]
    pub fn differences(&self, found: &ConfigMap) -> Vec<Difference> {
        differences(&as_map(self), found, |member, _, _| {
            !matches!(member, "deliver_policy" | "ack_policy" | "max_waiting" | "mem_storage")
        })
    }
}

/// Members of the server's configuration that are set although they should not be: there, and neither what Go has for
/// nothing nor -1, which is no limit. A member that it does not know is not set.
#[must_use]
pub fn set_among(found: &ConfigMap, members: &[&str]) -> Vec<Difference> {
    let is_none = |value: &Value| is_nothing(value) || value.as_i64() == Some(-1);
    let set = members.iter().filter_map(|member| Some((*member, found.get(*member)?)));
    set.filter(|(_, value)| !is_none(value))
        .map(|(member, value)| Difference {
            member: member.into(),
            wanted: Value::Null,
            found: value.clone(),
            is_updatable: !matches!(member, "mirror" | "sealed" | "persist_mode"),
        })
        .collect()
}

/// A member that is not what we want.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its name in the JSON.
    pub member: String,
    /// What we want; null for nothing.
    pub wanted: Value,
    /// What the server says; null if it says nothing, as one that does not know the member.
    pub found: Value,
    /// Whether an update can take it away. If not, only deleting the whole thing can.
    pub is_updatable: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |value: &Value| if value.is_null() { "none".into() } else { value.to_string() };
        write!(f, "{}: expected {}, found {}", self.member, say(&self.wanted), say(&self.found))
    }
}

fn differences(
    wanted: &ConfigMap,
    found: &ConfigMap,
    is_updatable: impl Fn(&str, &Value, &Value) -> bool,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (member, wanted) in wanted {
        let found = found.get(member).unwrap_or(&Value::Null);
        if !is_same(wanted, found) {
            differences.push(Difference {
                member: member.clone(),
                is_updatable: is_updatable(member, wanted, found),
                wanted: wanted.clone(),
                found: found.clone(),
            });
        }
    }
    differences
}

/// Lists are sets here, objects may have more members than we want, and what is left out is nothing.
fn is_same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().all(|item| found.contains(item))
        }
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(member, value)| is_same(value, found.get(member).unwrap_or(&Value::Null)))
        }
        (wanted, Value::Null) => is_nothing(wanted),
        _ => wanted == found,
    }
}

/// What Go leaves out of its JSON.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

fn as_map(config: &impl Serialize) -> ConfigMap {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("a configuration is an object, not {other:?}"),
    }
}

/// A span as JetStream writes it: whole nanoseconds. Those beyond 292 years become just that.
pub(super) fn nanos<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let nanos = span.map(|span| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX));
    nanos.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use serde_json::json;

    use super::*;

    fn map(value: Value) -> ConfigMap {
        match value {
            Value::Object(map) => map,
            other => panic!("expected an object, not {other}"),
        }
    }

    #[test]
    fn only_what_we_set_is_sent_and_compared() {
        let config = StreamConfig {
            subjects: vec!["a".into(), "b".into()],
            retention: Some(Retention::WorkQueue),
            max_age: Some(Duration::from_secs(1)),
            max_bytes: Some(-1),
            deny_purge: Some(false),
            republish: Some(Republish { src: "a".into(), dest: "c".into(), headers_only: false }),
            ..StreamConfig::default()
        };
        assert_eq!(
            as_map(&config),
            map(json!({"subjects":["a","b"],"retention":"workqueue","max_age":1_000_000_000,"max_bytes":-1,
                "deny_purge":false,"republish":{"src":"a","dest":"c"}}))
        );
        // In another order, with more members, without those that Go leaves out.
        let found =
            map(json!({"name":"S","subjects":["b","a"],"retention":"workqueue","max_age":1_000_000_000,
            "max_bytes":-1,"republish":{"src":"a","dest":"c","headers_only":false},"of_tomorrow":{"x":1}}));
        assert_eq!(config.differences(&found), []);
        let over = config.over(&found);
        assert_eq!(over.get("of_tomorrow"), Some(&json!({"x":1})));
        assert_eq!(over.get("name"), Some(&json!("S")));
    }

    #[test]
    fn a_member_is_set_unless_it_says_nothing_or_no_limit() {
        let found =
            map(json!({"max_age":60,"max_msg_size":-1,"no_ack":false,"filter_subject":"","sources":[],
            "mirror":{"name":"S"},"retention":"limits"}));
        let members = ["max_age", "max_msg_size", "no_ack", "filter_subject", "sources", "mirror", "sealed"];
        let said: Vec<_> = set_among(&found, &members).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            ["max_age: expected none, found 60", r#"mirror: expected none, found {"name":"S"}"#]
        );
    }

    #[test]
    fn differences_are_named_and_sorted_by_what_can_be_done() {
        let check = |wanted: &StreamConfig, found: Value, expected: &[(&str, bool)]| {
            let differences = wanted.differences(&map(found));
            let differences: Vec<_> = differences
                .iter()
                .map(|difference| (difference.member.as_str(), difference.is_updatable))
                .collect();
            assert_eq!(differences, expected);
        };
        let wanted = StreamConfig {
            subjects: vec!["a".into()],
            storage: Some(Storage::File),
            deny_delete: Some(true),
            allow_msg_ttl: Some(false),
            num_replicas: Some(3),
            ..StreamConfig::default()
        };
        check(&wanted, json!({"subjects":["a"],"storage":"file","deny_delete":true,"num_replicas":3}), &[]);
        check(
            &wanted,
            json!({"subjects":["a","b"],"storage":"memory","num_replicas":1,"allow_msg_ttl":true}),
            &[
                ("allow_msg_ttl", false),
                ("deny_delete", true),
                ("num_replicas", true),
                ("storage", false),
                ("subjects", true),
            ],
        );
    }
}
