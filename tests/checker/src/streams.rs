//! The streams of the durable mode from outside, over a blocking connection: publish until it is stored, wait until the
//! queue is empty, read what came out.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../../src/client.rs"]
mod client;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nats_wire::jetstream::{ConsumerInfo, JetStream, Name, Publication, RequestId, StreamInfo};
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ConnectOptions, Headers, Limits, Message, Subject};
use serde::de::DeserializeOwned;

use client::{Client, Received};

/// A server that works answers within milliseconds, and a cluster that elects a leader within seconds.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Between two looks, and between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Requests that wait for an answer at the same time.
const WINDOW: usize = 500;

const SID: u64 = 1;

/// One connection, and the streams of one deployment.
pub struct Streams {
    client: Client,
    jetstream: JetStream<()>,
    name: String,
}

/// A message as a stream holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMessage {
    /// What it was stored under.
    pub subject: String,
    /// The whole block, empty if there is none.
    pub headers: Vec<u8>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl StoredMessage {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(Headers::new(&self.headers).get(name)?).ok()
    }

    /// What tells a digest from every other.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.header("Alarm-Digest-Id")
    }
}

/// What it took to publish.
#[derive(Clone, Default, Debug)]
pub struct Published {
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Refusals, in the server's own words.
    pub refusals: BTreeMap<String, u64>,
    /// Messages sent again because no answer came.
    pub unanswered: u64,
}

impl Published {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
        other
            .refusals
            .iter()
            .for_each(|(text, count)| *self.refusals.entry(text.clone()).or_default() += count);
    }
}

impl Streams {
    /// Connects for the streams that `--js-name` names.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn connect(server: SocketAddr, name: &str) -> io::Result<Self> {
        let config = SessionConfig {
            connect: ConnectOptions { name: "alarm-digest checker".into(), ..ConnectOptions::default() },
            limits: Limits::client(),
            handshake_max: ANSWER_MAX,
            ping_interval: Duration::MAX / 4,
            answer_max: Duration::MAX / 4,
            max_payload_at_least: 0,
        };
        let stream = TcpStream::connect_timeout(&server, ANSWER_MAX)?;
        stream.set_nodelay(true)?;
        let mut client = Client::new(stream, config, SignIn::default())?;
        let inbox = format!("_INBOX.checker{:016x}", fastrand::u64(..));
        let jetstream = JetStream::new(Subject::new(&inbox).expect("hexadecimal digits"), SID);
        jetstream.subscribe(client.session(), Duration::ZERO);
        Ok(Self { client, jetstream, name: name.into() })
    }

    /// Publishes until each message is acknowledged, over as many connections to as many servers as it takes. Some may then
    /// be stored more than once.
    ///
    /// # Errors
    /// When that takes longer than `patience`: how many are left, and what was answered.
    pub fn publish_surely(
        servers: &[SocketAddr],
        messages: &[(&'static str, Vec<u8>)],
        patience: Duration,
    ) -> Result<Published, String> {
        let deadline = Instant::now() + patience;
        let mut published = Published::default();
        let mut left: Vec<usize> = (0..messages.len()).collect();
        for server in servers.iter().cycle() {
            match Self::connect(*server, "") {
                Ok(mut streams) => left = streams.publish(messages, &left, &mut published),
                Err(error) => *published.refusals.entry(error.kind().to_string()).or_default() += 1,
            }
            if left.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("{} messages are never acknowledged: {published:?}", left.len()));
            }
            thread::sleep(PAUSE);
        }
        Ok(published)
    }

    /// Publishes `which` of `messages` and returns those that were not acknowledged.
    fn publish(
        &mut self,
        messages: &[(&'static str, Vec<u8>)],
        which: &[usize],
        published: &mut Published,
    ) -> Vec<usize> {
        let mut refused = Vec::new();
        let mut open: BTreeMap<RequestId, usize> = BTreeMap::new();
        let mut next = which.iter();
        loop {
            while open.len() < WINDOW
                && let Some(number) = next.next()
            {
                let (subject, payload) = &messages[*number];
                let publication = Publication::new(Subject::new(*subject).expect("a subject"), payload);
                let session = self.client.session();
                let request =
                    self.jetstream.publish(session, publication, (), Duration::ZERO).expect("it fits");
                open.insert(request, *number);
            }
            if open.is_empty() {
                return refused;
            }
            let Ok(Some(received)) = self.client.next(Instant::now() + ANSWER_MAX) else { break };
            let Some(reply) = self.jetstream.on_message(&message(&received)) else { continue };
            let Some(number) = open.remove(&reply.request) else { continue };
            match reply.pub_ack() {
                Ok(_) => published.acknowledged += 1,
                Err(failure) => {
                    *published.refusals.entry(failure.to_string()).or_default() += 1;
                    refused.push(number);
                }
            }
        }
        published.unanswered += open.len() as u64;
        refused.into_iter().chain(open.into_values()).chain(next.copied()).collect()
    }

    /// Asks the API: `["STREAM.INFO.", "AD_IN"]`, without the prefix, with JSON or nothing.
    ///
    /// # Errors
    /// The server's refusal, or that no answer came.
    pub fn call<D: DeserializeOwned>(&mut self, api: &[&str], body: &str) -> Result<D, String> {
        let session = self.client.session();
        let request = self.jetstream.call(session, api, body.as_bytes(), (), Duration::ZERO);
        let received = self.await_reply(request).map_err(|error| error.to_string())?;
        let message = message(&received);
        let payload: serde_json::Value = serde_json::from_slice(message.payload)
            .map_err(|_| format!("not JSON: {}", String::from_utf8_lossy(message.payload)))?;
        if let Some(error) = payload.get("error") {
            return Err(error.to_string());
        }
        serde_json::from_value(payload).map_err(|error| error.to_string())
    }

    /// What a stream says of itself, by its whole name.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stream(&mut self, stream: &str) -> Result<StreamInfo, String> {
        self.call(&["STREAM.INFO.", stream], "")
    }

    /// What the consumer of the work queue says of itself.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn consumer(&mut self) -> Result<ConsumerInfo, String> {
        let stream = format!("{}_IN", self.name);
        self.call(&["CONSUMER.INFO.", &stream, ".digest"], "")
    }

    /// Waits until nothing waits for an instance or in one.
    ///
    /// # Errors
    /// When that takes longer than `patience`: what still waits.
    pub fn until_drained(&mut self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            // Just after its start a server may not have found its consumer yet, and a consumer may not have heard of what
            // its stream has just acknowledged; but what is not done is in the stream.
            let (info, stream) = (self.consumer(), self.stream(&format!("{}_IN", self.name)));
            if info.as_ref().is_ok_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
                && stream.as_ref().is_ok_and(|stream| stream.state.messages == 0)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let state = stream.map(|stream| stream.state);
                return Err(format!("the queue is never empty: {state:?}, {info:?}"));
            }
            thread::sleep(PAUSE);
        }
    }

    /// All messages of a stream, by its whole name, in order.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn read(&mut self, stream: &str) -> Result<Vec<StoredMessage>, String> {
        self.read_from(stream, 1).map(|(all, _)| all)
    }

    /// The messages from sequence `first` on, in order, and the sequence to go on with.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn read_from(&mut self, stream: &str, first: u64) -> Result<(Vec<StoredMessage>, u64), String> {
        let state = self.stream(stream)?.state;
        let name = Name::new(stream).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        let sequences: Vec<u64> = (first.max(state.first_seq)..=state.last_seq).collect();
        for sequences in sequences.chunks(WINDOW) {
            // By request, and so by sequence.
            let mut answers: BTreeMap<RequestId, Option<StoredMessage>> = BTreeMap::new();
            for sequence in sequences {
                let session = self.client.session();
                self.jetstream.message_at(session, name, *sequence, (), Duration::ZERO);
            }
            while answers.len() < sequences.len() {
                let received = self.next().map_err(|error| error.to_string())?;
                let message = message(&received);
                let Some(reply) = self.jetstream.on_message(&message) else { continue };
                // What was deleted meanwhile is not there.
                let stored = reply.stored().map_err(|failure| failure.to_string())?;
                let stored = stored.map(|stored| StoredMessage {
                    subject: String::from_utf8_lossy(&stored.subject).into_owned(),
                    headers: stored.header_block.to_vec(),
                    payload: stored.payload.to_vec(),
                });
                answers.insert(reply.request, stored);
            }
            all.extend(answers.into_values().flatten());
        }
        Ok((all, first.max(state.last_seq + 1)))
    }

    fn next(&mut self) -> io::Result<Received> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ANSWER_MAX:?}"));
        self.client.next(Instant::now() + ANSWER_MAX)?.ok_or_else(late)
    }

    fn await_reply(&mut self, request: RequestId) -> io::Result<Received> {
        loop {
            let received = self.next()?;
            if self.jetstream.on_message(&message(&received)).is_some_and(|reply| reply.request == request) {
                return Ok(received);
            }
        }
    }
}

fn message(received: &Received) -> Message<'_> {
    Message {
        subject: received.subject.as_bytes(),
        sid: b"1",
        reply: received.reply.as_deref(),
        headers: (!received.headers.is_empty()).then(|| Headers::new(&received.headers)),
        payload: &received.payload,
    }
}
