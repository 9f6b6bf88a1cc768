//! Key-value buckets: a stream that keeps the last message of each subject, and the rules about its names.
//!
//! A value's revision is the sequence of its message. A put that names the revision it replaces is a
//! compare-and-set; 0 stands for a key that has no message, not even a [`Marker`](super::Marker).
//!
//! Source: ADR-8, "JetStream based key-value stores".
//!
//! Never: history, watching, mirrors, time to live.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use super::{API_PREFIX, Discard, JetStream, Name, ROLLUP, RequestId, Storage, StreamConfig, TooLarge};
use crate::session::Session;
use crate::{Header, NameError, Subject};

/// A bucket: stream `KV_<name>` over the subjects `$KV.<name>.>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    stream: String,
    /// `$KV.<name>.`
    prefix: String,
}

impl Bucket {
    /// # Errors
    /// If a byte of the name is not a letter, a digit, `_` or `-`, or if there are none, or more than 200.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check(name, BUCKET_BYTES_MAX, |byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))?;
        Ok(Self { stream: format!("KV_{name}"), prefix: format!("$KV.{name}.") })
    }

    /// The stream behind it.
    #[must_use]
    pub fn stream(&self) -> Name<'_> {
        Name(&self.stream)
    }

    /// The key of a subject of this bucket; `None` for any other subject.
    #[must_use]
    pub fn key<'a>(&self, subject: &'a [u8]) -> Option<Key<'a>> {
        let key = subject.strip_prefix(self.prefix.as_bytes())?;
        Key::new(core::str::from_utf8(key).ok()?).ok()
    }

    /// What the stream behind a bucket must be: one value per key, on disk, refusing when full. The caller adds
    /// `max_bytes` and `num_replicas`.
    #[must_use]
    pub fn config(&self) -> StreamConfig {
        StreamConfig {
            subjects: vec![format!("{}>", self.prefix)],
            storage: Some(Storage::File),
            discard: Some(Discard::New),
            max_msgs_per_subject: Some(1),
            allow_rollup_hdrs: Some(true),
            deny_delete: Some(true),
            allow_direct: Some(true),
            ..StreamConfig::default()
        }
    }
}

/// Leaves room for `KV_` within the length of a stream's name.
const BUCKET_BYTES_MAX: usize = 200;

/// A key: letters, digits and `-/_=.`, no dot at its ends, no two in a row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key<'a>(&'a str);

/// Longest key we take, in bytes. ADR-8 has no limit, but servers take a control line of 4096 bytes, in which a direct get
/// has the bucket's name twice and our inbox beside the key.
const KEY_BYTES_MAX: usize = 2048;

impl<'a> Key<'a> {
    /// # Errors
    /// If a byte of it is none of the above, or if it is empty or longer than 2048 bytes.
    pub fn new(key: &'a str) -> Result<Self, NameError> {
        check(key, KEY_BYTES_MAX, |byte| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte))?;
        Subject::new(key)?;
        Ok(Self(key))
    }

    /// The key.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn check(text: &str, bytes_max: usize, is_allowed: impl Fn(u8) -> bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::empty());
    }
    let too_long = (text.len() > bytes_max).then_some(bytes_max);
    match text.bytes().position(|byte| !is_allowed(byte)).or(too_long) {
        Some(at) => Err(NameError::forbidden(text.as_bytes(), at)),
        None => Ok(()),
    }
}

/// Methods that are answered with a [`PubAck`](super::PubAck), whose sequence is the new revision, take `revision`, the
/// one they replace: `None` for any, `Some(0)` for a key that has none.
impl<T: Copy> JetStream<T> {
    /// Sets a key. Answered with a [`PubAck`](super::PubAck).
    ///
    /// # Errors
    /// [`TooLarge`], and then nothing was sent.
    #[expect(
        clippy::too_many_arguments,
        reason = "the session, what to put where, and what every request takes"
    )]
    pub fn kv_put(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        value: &[u8],
        revision: Option<u64>,
        tag: T,
        now: Duration,
    ) -> Result<RequestId, TooLarge> {
        self.kv_subject(bucket, key);
        self.publish_to_scratch(session, &[], value, revision, tag, now)
    }

    /// Puts a marker that the key is deleted. Answered with a [`PubAck`](super::PubAck).
    pub fn kv_delete(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        revision: Option<u64>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.kv_marker(session, bucket, key, &[("KV-Operation", "DEL")], revision, tag, now)
    }

    /// Puts a marker that the key is deleted, and removes all its older values. Answered with a
    /// [`PubAck`](super::PubAck).
    pub fn kv_purge(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        revision: Option<u64>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.kv_marker(
            session,
            bucket,
            key,
            &[("KV-Operation", "PURGE"), (ROLLUP, "sub")],
            revision,
            tag,
            now,
        )
    }

    /// Asks the leader for a key: what it says is up to date, but for the moment in which a deposed leader does not know
    /// it yet. Answered with a [`Stored`](super::Stored).
    pub fn kv_get(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let body = format!(r#"{{"last_by_subj":"{}{key}"}}"#, bucket.prefix);
        self.call(session, &["STREAM.MSG.GET.", &bucket.stream], body.as_bytes(), tag, now)
    }

    /// Asks any replica for a key, which may lag behind. Twice as fast as [`kv_get`](Self::kv_get), and decoded without
    /// copying. Answered with a [`Stored`](super::Stored).
    pub fn kv_get_direct(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.call(session, &["DIRECT.GET.", &bucket.stream, ".", &bucket.prefix, key.0], b"", tag, now)
    }

    /// Asks the leader of any stream for the last message of a subject. Answered with a [`Stored`](super::Stored).
    pub fn last_of(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        subject: Subject<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let subject = core::str::from_utf8(subject.as_bytes()).expect("the caller gives a subject in UTF-8");
        let body = serde_json::json!({ "last_by_subj": subject }).to_string();
        self.call(session, &["STREAM.MSG.GET.", stream.0], body.as_bytes(), tag, now)
    }

    /// Asks any replica of a stream with `allow_direct` for the last message of a subject. Answered with a
    /// [`Stored`](super::Stored).
    pub fn last_of_direct(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        subject: Subject<'_>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let subject = core::str::from_utf8(subject.as_bytes()).expect("the caller gives a subject in UTF-8");
        self.call(session, &["DIRECT.GET.", stream.0, ".", subject], b"", tag, now)
    }

    /// Asks the leader of a stream for the message with this sequence. Answered with a [`Stored`](super::Stored).
    pub fn message_at(
        &mut self,
        session: &mut Session,
        stream: Name<'_>,
        sequence: u64,
        tag: T,
        now: Duration,
    ) -> RequestId {
        let body = format!(r#"{{"seq":{sequence}}}"#);
        self.call(session, &["STREAM.MSG.GET.", stream.0], body.as_bytes(), tag, now)
    }

    #[expect(clippy::too_many_arguments, reason = "as kv_put")]
    fn kv_marker(
        &mut self,
        session: &mut Session,
        bucket: &Bucket,
        key: Key<'_>,
        headers: &[(&'static str, &'static str)],
        revision: Option<u64>,
        tag: T,
        now: Duration,
    ) -> RequestId {
        self.kv_subject(bucket, key);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| Header::new(name, *value).expect("the names above are printable"))
            .collect();
        let sent = self.publish_to_scratch(session, &headers, b"", revision, tag, now);
        sent.expect("two headers are below any max_payload")
    }

    /// Through another API prefix, a put goes where the API is: a domain maps `$JS.<domain>.API.$KV.>` to its buckets.
    ///
    /// Source: nats-server, server/jetstream.go, `generateJSMappingTable`.
    fn kv_subject(&mut self, bucket: &Bucket, key: Key<'_>) {
        self.subject.clear();
        if self.api != API_PREFIX {
            self.subject.extend_from_slice(self.api.as_bytes());
            self.subject.push(b'.');
        }
        self.subject.extend_from_slice(bucket.prefix.as_bytes());
        self.subject.extend_from_slice(key.0.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_buckets_follow_adr_8() {
        // text, as a key, as a bucket
        for (text, is_key, is_bucket) in [
            ("ann", true, true),
            ("A_b-9", true, true),
            ("a.b/c=d", true, false),
            ("=6162", true, false),
            ("", false, false),
            (".a", false, false),
            ("a.", false, false),
            ("a..b", false, false),
            ("a b", false, false),
            ("*", false, false),
            ("a.>", false, false),
            ("ä", false, false),
            ("a\r\n", false, false),
        ] {
            assert_eq!(Key::new(text).is_ok(), is_key, "key {text:?}");
            assert_eq!(Bucket::new(text).is_ok(), is_bucket, "bucket {text:?}");
        }
        assert!(
            Key::new(&"a".repeat(KEY_BYTES_MAX)).is_ok()
                && Bucket::new(&"a".repeat(BUCKET_BYTES_MAX)).is_ok()
        );
        assert!(Key::new(&"a".repeat(KEY_BYTES_MAX + 1)).is_err());
        assert!(Bucket::new(&"a".repeat(BUCKET_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn the_longest_names_fit_the_control_line_of_a_server() {
        let direct_get = "$JS.API.DIRECT.GET.KV_.$KV..".len() + 2 * BUCKET_BYTES_MAX + KEY_BYTES_MAX;
        assert!("PUB   0\r\n".len() + direct_get + 1024 < crate::Limits::server().line_bytes_max);
    }

    #[test]
    fn a_subject_of_the_bucket_has_a_key() {
        let bucket = Bucket::new("b").unwrap();
        assert_eq!(bucket.stream().as_str(), "KV_b");
        assert_eq!(bucket.key(b"$KV.b.a.c").map(|key| key.as_str()), Some("a.c"));
        for other in [&b"$KV.b."[..], b"$KV.b", b"$KV.bb.a", b"$KV.b.\xff", b""] {
            assert_eq!(bucket.key(other), None);
        }
    }
}
