//! The durable mode's streams, seen from outside: fills the queue, looks whether it is empty, reads the digests.
//!
//! Never: making streams. Whoever is measured has made them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nats_wire::jetstream::{
    ConsumerInfo, JetStream, Name, Publication, Pull, PullRequest, Pulled, StreamInfo,
};
use nats_wire::{Message, Subject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

use crate::wire::Connection;

/// Publications whose acknowledgement is awaited at a time.
const WINDOW: usize = 4000;

/// Messages that one request for digests asks for.
const READ_BATCH: u64 = 5000;

const REPLY_SID: u64 = 1;
const PULL_SID: u64 = 2;

/// The streams of one deployment, asked over one connection.
pub struct Queue {
    link: Connection,
    jetstream: JetStream<u32>,
    readers: u64,
    names: Names,
}

/// Of what is asked for.
#[derive(Clone, Debug)]
pub struct Names {
    /// The work queue.
    pub input: String,
    /// Its consumer.
    pub consumer: String,
    /// The stream of the digests.
    pub output: String,
}

/// The part of what makes a consumer that we need.
#[derive(Deserialize)]
struct Made {
    name: String,
    num_pending: u64,
}

impl Queue {
    /// Connects.
    ///
    /// # Errors
    /// When there is no server.
    pub fn open(addr: SocketAddr, names: Names) -> Result<Self> {
        let mut link = Connection::open(addr, "queue", None)?;
        let inbox = format!(
            "_INBOX.{}",
            uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid().simple()
        );
        let jetstream = JetStream::new(Subject::new(&inbox).expect("hexadecimal digits"), REPLY_SID);
        let (session, now) = link.session();
        jetstream.subscribe(session, now);
        Ok(Self { link, jetstream, readers: 0, names })
    }

    /// Publishes all, and returns when each is acknowledged.
    ///
    /// # Errors
    /// When one is not.
    pub fn fill(&mut self, messages: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Result<()> {
        let mut messages = messages.into_iter().map(|(subject, payload)| Put {
            subject: subject.into(),
            payload: payload.into(),
            ..Put::default()
        });
        self.put_all(WINDOW, || messages.next(), |_, _| {})
    }

    /// Publishes what `next` gives, with so many at a time that are not acknowledged yet; tells of each acknowledgement the
    /// tag and the sequence.
    ///
    /// # Errors
    /// When one is refused.
    pub fn put_all<'a>(
        &mut self,
        window: usize,
        mut next: impl FnMut() -> Option<Put<'a>>,
        mut on_stored: impl FnMut(u32, u64),
    ) -> Result<()> {
        let mut is_last = false;
        loop {
            while !is_last && self.jetstream.waiting() < window {
                let Some(Put { tag, subject, payload, expected_last }) = next() else {
                    is_last = true;
                    break;
                };
                let subject = Subject::new(&*subject).context("not a subject")?;
                let publication = Publication { expected_last, ..Publication::new(subject, &payload) };
                let (session, now) = self.link.session();
                self.jetstream.publish(session, publication, tag, now)?;
            }
            if is_last && self.jetstream.waiting() == 0 {
                return Ok(());
            }
            let jetstream = &mut self.jetstream;
            let mut refused = None;
            self.link.read(|message| {
                let Some(reply) = jetstream.on_message(message) else { return };
                match reply.pub_ack() {
                    Ok(ack) => on_stored(reply.tag, ack.sequence),
                    Err(failure) => refused = Some(failure),
                }
            })?;
            if let Some(failure) = refused {
                return Err(failure).context("publishing");
            }
        }
    }

    /// How far the queue's consumer is.
    ///
    /// # Errors
    /// When it is not there.
    pub fn consumer(&mut self) -> Result<ConsumerInfo> {
        let subject = format!("CONSUMER.INFO.{}.{}", self.names.input, self.names.consumer);
        self.call(&subject, b"", "a consumer")
    }

    /// What a stream holds.
    ///
    /// # Errors
    /// When it is not there.
    pub fn stream(&mut self, name: &str) -> Result<StreamInfo> {
        self.call(&format!("STREAM.INFO.{name}"), b"", "a stream")
    }

    /// The digests from sequence `from` on, in order; the sequence to go on with.
    ///
    /// # Errors
    /// When the stream is not there.
    pub fn digests(&mut self, from: u64, mut on_digest: impl FnMut(&[u8])) -> Result<u64> {
        let output = self.names.output.clone();
        let config = serde_json::json!({ "stream_name": output, "config": {
            "deliver_policy": "by_start_sequence", "opt_start_seq": from, "ack_policy": "none", "mem_storage": true,
            "inactive_threshold": 10_000_000_000_u64,
        }});
        let made: Made =
            self.call(&format!("CONSUMER.CREATE.{output}"), config.to_string().as_bytes(), "a consumer")?;
        self.readers += 1;
        let (stream, consumer) = (Name::new(&output)?, Name::new(&made.name)?);
        let mut pull =
            Pull::new(&self.jetstream, stream, consumer, self.readers as u32, PULL_SID + self.readers);
        let (session, now) = self.link.session();
        pull.subscribe(session, now);
        let mut left = made.num_pending;
        let mut came = 0;
        while left > 0 {
            if !pull.is_open() {
                let (session, now) = self.link.session();
                pull.request(session, &PullRequest::new(left.min(READ_BATCH), Duration::from_secs(10)), now);
            }
            let now = self.link.session().1;
            self.link.read(|message: &Message<'_>| {
                if let Some(Pulled::Delivery(delivery)) = pull.on_message(message, now) {
                    on_digest(delivery.message.payload);
                    came += 1;
                    left -= 1;
                }
            })?;
        }
        Ok(from + came)
    }

    fn call<D: DeserializeOwned>(&mut self, path: &str, payload: &[u8], expected: &'static str) -> Result<D> {
        ensure!(self.jetstream.waiting() == 0, "one request at a time");
        let (session, now) = self.link.session();
        self.jetstream.call(session, &[path], payload, 0, now);
        let mut came = None;
        while came.is_none() {
            let jetstream = &mut self.jetstream;
            self.link.read(|message| {
                let Some(reply) = jetstream.on_message(message) else { return };
                // Owned, because the reply borrows from what was read.
                came = Some(reply.decode::<serde_json::Value>(expected));
            })?;
        }
        let json = came.expect("the loop ends with it")?;
        serde_json::from_value(json.clone()).with_context(|| format!("expected {expected}, came {json}"))
    }
}

/// A message to be stored.
#[derive(Default)]
pub struct Put<'a> {
    /// Told again with the acknowledgement.
    pub tag: u32,
    /// Where to.
    pub subject: std::borrow::Cow<'a, str>,
    /// What.
    pub payload: std::borrow::Cow<'a, [u8]>,
    /// The sequence that must be the subject's last, 0 for none; in any case if `None`.
    pub expected_last: Option<u64>,
}
