//! Making, asking for and deleting streams and consumers, and what the server says of them.
//!
//! ```text
//! STREAM.CREATE   ok: made, or there already with this configuration     10058: there with another one
//! STREAM.INFO     → the differences: none, those an update takes away, or those that forbid the stream
//! STREAM.UPDATE   what was found, with what we want laid over it         → compare again: an old server drops what it
//!                                                                          does not know and says nothing
//! ```
//!
//! Source: nats-server, server/jetstream_api.go.

use alloc::string::{String, ToString};
use core::fmt;
use core::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::{ConfigMap, ConsumerConfig, JetStream, Name, RequestId, StreamConfig};
use crate::ServerInfo;
use crate::session::Session;

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

    /// Whether [`Republish`](super::Republish) may go from a wildcard to one subject.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_and_know_what_they_can() {
        let release = |text| Release::parse(text);
        assert_eq!(release("v2.9.10"), Some(Release::new(2, 9, 10)));
        assert_eq!(release("2.16.0-dev"), Some(Release::new(2, 16, 0)));
        for bad in ["", "2", "2.9", "2.9.x", "2.9.1.0", "x"] {
            assert_eq!(release(bad), None, "{bad}");
        }
        assert!(release("2.10.0") > release("2.9.10"));
        let can = |text| {
            let release = Release::parse(text).unwrap();
            (release.has_republish_to_one(), release.has_term_reason(), release.is_strict())
        };
        assert_eq!(can("2.9.10"), (false, false, false));
        assert_eq!(can("2.10.3"), (true, false, false));
        assert_eq!(can("2.10.4"), (true, true, false));
        assert_eq!(can("2.11.0"), (true, true, true));
    }
}
