//! Streams and consumers: what we want them to be, what the server says they are, and how the two differ.
//!
//! ```text
//! STREAM.CREATE   ok: made, or there already with this configuration     10058: there with another one
//! STREAM.INFO     → the differences: none, those an update takes away, or those that forbid the stream
//! STREAM.UPDATE   what was found, with what we want laid over it         → compare again: an old server drops what it
//!                                                                          does not know and says nothing
//! ```
//!
//! A member that is `None` is not sent and not compared. What the server says is kept as JSON, so that an update keeps
//! members that are set by others, or newer than this file.
//!
//! Source: nats-server, server/stream.go, `StreamConfig`, and server/consumer.go, `ConsumerConfig`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{JetStream, Name, RequestId};
use crate::ServerInfo;
use crate::session::Session;

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

/// How strict the creation of a consumer is. Servers before 2.10 do not know it and always do [`CreateOrUpdate`].
///
/// [`CreateOrUpdate`]: ConsumerAction::CreateOrUpdate
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerAction {
    /// Whether it is there or not.
    CreateOrUpdate,
    /// Refused with 10148 if it is there with another configuration.
    Create,
    /// Refused with 10149 if it is not there.
    Update,
}

/// The reply to [`JetStream::stream_create`], [`JetStream::stream_update`] and [`JetStream::stream_info`].
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct StreamInfo {
    /// Its configuration, defaults included.
    pub config: ConfigMap,
    /// What is in it.
    #[serde(default)]
    pub state: StreamState,
    /// Who serves it, in a cluster.
    #[serde(default)]
    pub cluster: Option<ClusterInfo>,
}

/// What is in a stream.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Messages.
    pub messages: u64,
    /// Their bytes in the store.
    pub bytes: u64,
    /// Sequence of the first message.
    pub first_seq: u64,
    /// Sequence of the last message, also if it is gone.
    pub last_seq: u64,
    /// Different subjects.
    pub num_subjects: u64,
    /// Consumers.
    pub consumer_count: u64,
}

/// Who serves a stream or a consumer.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct ClusterInfo {
    /// The cluster.
    pub name: Option<String>,
    /// The server that leads; `None` while there is none.
    pub leader: Option<String>,
}

/// The reply to [`JetStream::consumer_create`] and [`JetStream::consumer_info`].
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct ConsumerInfo {
    /// Its stream.
    pub stream_name: String,
    /// Its name, made by the server if we gave none.
    pub name: String,
    /// Its configuration, defaults included.
    pub config: ConfigMap,
    /// The last delivery.
    #[serde(default)]
    pub delivered: SequencePair,
    /// All up to here is acknowledged.
    #[serde(default)]
    pub ack_floor: SequencePair,
    /// Delivered and not acknowledged.
    #[serde(default)]
    pub num_ack_pending: u64,
    /// Of those, delivered more than once.
    #[serde(default)]
    pub num_redelivered: u64,
    /// Requests that wait.
    #[serde(default)]
    pub num_waiting: u64,
    /// Not delivered yet.
    #[serde(default)]
    pub num_pending: u64,
    /// Who serves it, in a cluster.
    #[serde(default)]
    pub cluster: Option<ClusterInfo>,
}

/// A place in a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct SequencePair {
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// Sequence of the message in its stream.
    pub stream_seq: u64,
}

/// The reply to [`JetStream::stream_purge`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Purged {
    /// How many messages are gone.
    pub purged: u64,
}

/// The reply to [`JetStream::stream_delete`] and [`JetStream::consumer_delete`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Deleted {
    /// Always true: otherwise there is an error instead.
    pub success: bool,
}

/// The reply to [`JetStream::account_info`].
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct AccountInfo {
    /// Bytes in memory.
    #[serde(default)]
    pub memory: u64,
    /// Bytes on disk.
    #[serde(default)]
    pub storage: u64,
    /// Streams.
    #[serde(default)]
    pub streams: u64,
    /// Consumers.
    #[serde(default)]
    pub consumers: u64,
    /// The domain that answered, if it has a name.
    #[serde(default)]
    pub domain: Option<String>,
    /// What the account may use.
    #[serde(default)]
    pub limits: Limits,
    /// Requests so far, and what the API can.
    #[serde(default)]
    pub api: ApiLevel,
}

/// What an account may use; -1 for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes in memory.
    pub max_memory: i64,
    /// Bytes on disk.
    pub max_storage: i64,
    /// Streams.
    pub max_streams: i64,
    /// Consumers.
    pub max_consumers: i64,
    /// Whether a stream without `max_bytes` is refused.
    pub max_bytes_required: bool,
}

/// What the API of a server can.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default)]
pub struct ApiLevel {
    /// Requests so far.
    pub total: u64,
    /// Refused ones.
    pub errors: u64,
    /// Grows with features: 1 in 2.11, 2 in 2.12; `None` before 2.11, which also drops members it does not know. In a
    /// cluster it is that of the server that answered. Source: ADR-44, "Versioning for JetStream assets".
    pub level: Option<u32>,
}

/// A release of nats-server, ordered. What follows a hyphen is not told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Release {
    /// 2 for all that have JetStream.
    pub major: u32,
    /// 9 in 2.9.10.
    pub minor: u32,
    /// 10 in 2.9.10.
    pub patch: u32,
}

impl Release {
    /// A release from its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The release of the server we are connected to; in a cluster others may be older. `None` if its version is not
    /// three numbers.
    #[must_use]
    pub fn of(info: &ServerInfo) -> Option<Self> {
        Self::parse(&info.version)
    }

    /// `2.15.1`, `v2.15.1` or `2.16.0-dev`.
    #[must_use]
    pub fn parse(version: &str) -> Option<Self> {
        let numbers = version.strip_prefix('v').unwrap_or(version).split('-').next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let release = Self::new(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(release)
    }

    /// Whether [`Republish`] may go from a wildcard to one subject.
    #[must_use]
    pub fn has_republish_to_one(self) -> bool {
        self >= Self::new(2, 10, 0)
    }

    /// Whether [`Ack::Never`](super::Ack::Never) may have a reason.
    #[must_use]
    pub fn has_term_reason(self) -> bool {
        self >= Self::new(2, 10, 4)
    }

    /// Whether a request with a member that the server does not know is refused, instead of the member being dropped.
    #[must_use]
    pub fn is_strict(self) -> bool {
        self >= Self::new(2, 11, 0)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
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

    /// What was found, with what we want laid over it: for [`JetStream::stream_update`].
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

/// A member that is not what we want.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Its name in the JSON.
    pub member: String,
    /// What we want.
    pub wanted: Value,
    /// What the server says; null if it says nothing, as one that does not know the member.
    pub found: Value,
    /// Whether an update can take it away. If not, only deleting the whole thing can.
    pub is_updatable: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.member, self.wanted, self.found)
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

/// Requests to the API. Each says what its reply is to be read as, with [`Reply::decode`](super::Reply::decode).
///
/// In a cluster that has just started, the first creations may have no answer for seconds, or
/// [`ApiError::is_for_now`](super::ApiError::is_for_now), until it has a leader.
impl<T: Copy> JetStream<T> {
    /// What the account has and may: an [`AccountInfo`]. [`Failure::NoResponders`](super::Failure::NoResponders), or no
    /// reply at all, when JetStream is off.
    pub fn account_info(&mut self, session: &mut Session, tag: T, now: Duration) -> RequestId {
        self.call(session, &["INFO"], b"", tag, now)
    }

    /// Makes a stream, unless it is there with the same configuration: a [`StreamInfo`].
    /// [`is_already_in_use`](super::ApiError::is_already_in_use) if it is there with another one,
    /// [`is_subject_taken`](super::ApiError::is_subject_taken) if another stream stores one of its subjects.
    pub fn stream_create(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        config: &StreamConfig,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let mut body = json!(config);
        body["name"] = stream.0.into();
        self.call(session, &["STREAM.CREATE.", stream.0], body.to_string().as_bytes(), tag, now)
    }

    /// Gives a stream another configuration, whole: see [`StreamConfig::over`]. A [`StreamInfo`]; refused with 10052 if
    /// it changes what is fixed.
    pub fn stream_update(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        config: &ConfigMap,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let body = serde_json::to_vec(config).expect("JSON always serialises");
        self.call(session, &["STREAM.UPDATE.", stream.0], &body, tag, now)
    }

    /// A stream: a [`StreamInfo`].
    pub fn stream_info(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.call(session, &["STREAM.INFO.", stream.0], b"", tag, now)
    }

    /// Removes the messages of a stream, or those of the subjects of `filter`: [`Purged`].
    pub fn stream_purge(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        filter: Option<&str>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let body = filter.map(|filter| json!({ "filter": filter }).to_string()).unwrap_or_default();
        self.call(session, &["STREAM.PURGE.", stream.0], body.as_bytes(), tag, now)
    }

    /// Deletes a stream with its messages and consumers: [`Deleted`].
    pub fn stream_delete(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.call(session, &["STREAM.DELETE.", stream.0], b"", tag, now)
    }

    /// Makes a consumer, or gives it another configuration: a [`ConsumerInfo`]. Refused with 10012 if it changes what
    /// is fixed; a second consumer of a work queue without filters with 10099.
    #[expect(
        clippy::too_many_arguments,
        reason = "the session, what to make where, and what every request takes"
    )]
    pub fn consumer_create(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        consumer: Name<'_>,
        config: &ConsumerConfig,
        action: ConsumerAction,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let mut body = json!({ "stream_name": stream.0, "config": config });
        body["config"]["name"] = consumer.0.into();
        if !config.is_ephemeral {
            body["config"]["durable_name"] = consumer.0.into();
        }
        match action {
            ConsumerAction::CreateOrUpdate => {}
            ConsumerAction::Create => body["action"] = "create".into(),
            ConsumerAction::Update => body["action"] = "update".into(),
        }
        let path = ["CONSUMER.CREATE.", stream.0, ".", consumer.0];
        self.call(session, &path, body.to_string().as_bytes(), tag, now)
    }

    /// A consumer: a [`ConsumerInfo`].
    pub fn consumer_info(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        consumer: Name<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.call(session, &["CONSUMER.INFO.", stream.0, ".", consumer.0], b"", tag, now)
    }

    /// Deletes a consumer: [`Deleted`].
    pub fn consumer_delete(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        consumer: Name<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.call(session, &["CONSUMER.DELETE.", stream.0, ".", consumer.0], b"", tag, now)
    }
}
