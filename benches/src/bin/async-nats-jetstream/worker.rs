//! The users whose hash leads here, and their operations in flight.
//!
//! Never: decoding, pulling.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ahash::AHashMap;
use alarm_digest::alarm::{Command, Timestamp, UserId};
use alarm_digest::durable::record::{Nonce, token};
use alarm_digest::durable::user::{Acknowledge, Done, Operation, Refusal, User, UserLimits};
use alarm_digest::durable::worker::{DIGEST_ID, WorkerConfig};
use alarm_digest::message;
use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, UpdateErrorKind};
use async_nats::jetstream::message::{Acker, PublishMessage};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

struct Ack(Acker);

/// Nothing is refused here for lack of room, so nobody asks.
impl Acknowledge for Ack {
    fn number(&self) -> u64 {
        0
    }
}

/// What a message asks for, and what acknowledges it.
pub struct Task {
    pub command: Command,
    pub acker: Acker,
}

/// After an outcome that is unknown.
const PAUSE: Duration = Duration::from_millis(500);

/// When a message that could not be done comes again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What the headers of a stored record or digest can take, in bytes.
const HEADER_BYTES_MAX: usize = 512;

/// One worker.
///
/// `kept` holds each of `users` once.
pub struct Worker {
    config: Arc<WorkerConfig>,
    max_payload: usize,
    doing: Arc<Doing>,
    users: AHashMap<UserId, User<Ack>>,
    kept: VecDeque<UserId>,
    /// Tasks of their own: the client hands out room in its channel in the order of asking, so that a flight which only this
    /// worker could poll would keep everybody from sending while the worker itself waits for room.
    flights: JoinSet<(UserId, Done)>,
    /// Messages that are neither acknowledged nor refused.
    open: usize,
    nonce_next: u128,
}

impl Worker {
    pub fn new(
        config: Arc<WorkerConfig>,
        max_payload: usize,
        jetstream: JetStream,
        records: kv::Store,
        output: Stream,
    ) -> Self {
        let output_prefix = config.names.output_prefix.clone();
        Self {
            config,
            max_payload,
            doing: Arc::new(Doing { jetstream, records, output, output_prefix }),
            users: AHashMap::new(),
            kept: VecDeque::new(),
            flights: JoinSet::new(),
            open: 0,
            nonce_next: fastrand::u128(..),
        }
    }

    /// Until there are no more tasks, and all are done.
    pub async fn run(mut self, mut tasks: mpsc::Receiver<Task>) {
        let mut has_more = true;
        while has_more || !self.flights.is_empty() {
            tokio::select! {
                Some(flight) = self.flights.join_next() => {
                    let (id, done) = flight.expect("a panic aborts the process");
                    self.on_done(id, done).await;
                }
                task = tasks.recv(), if has_more && self.open < self.config.open_max => match task {
                    Some(task) => self.on_task(task).await,
                    None => has_more = false,
                },
            }
        }
    }

    async fn on_task(&mut self, Task { command, acker }: Task) {
        self.open += 1;
        let id = command.user().clone();
        let user = self.users.entry(id.clone()).or_insert_with(|| {
            self.kept.push_back(id.clone());
            User::new(id.clone())
        });
        match command {
            Command::Apply(change) => user.on_change(change.alarm, change.condition, Ack(acker)),
            Command::SendDigest(_) => user.on_request(Ack(acker)),
        }
        self.advance(id).await;
        self.evict();
    }

    async fn on_done(&mut self, id: UserId, done: Done) {
        let user = self.users.get_mut(&id).expect("a user with an operation in flight is kept");
        user.on_done(done).expect("nobody else writes to the bucket");
        self.advance(id).await;
    }

    /// Takes a user as far as it goes: its next operation, and its acknowledgements.
    async fn advance(&mut self, id: UserId) {
        let limits = self.limits();
        let user = self.users.get_mut(&id).expect("the caller has one");
        let nonce_next = &mut self.nonce_next;
        let nonce = || {
            *nonce_next = nonce_next.wrapping_add(1);
            Nonce(*nonce_next)
        };
        let (mut refused, mut operation) = (Vec::new(), None);
        match user.step(&limits, nonce) {
            Ok(next) => operation = next,
            Err(Refusal::TooLarge { bytes, unacknowledged }) => {
                warn!("record of user {id:?} needs {bytes} bytes");
                refused = unacknowledged;
            }
        }
        let acknowledged = std::mem::take(user.acknowledged());
        self.open -= acknowledged.len() + refused.len();
        if let Some(operation) = operation {
            self.flights.spawn(Arc::clone(&self.doing).perform(id, operation));
        }
        for acker in acknowledged {
            say(acker.0.ack().await);
        }
        for acker in refused {
            say(acker.0.ack_with(AckKind::Nak(Some(AGAIN_AFTER))).await);
        }
    }

    fn limits(&self) -> UserLimits {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let horizon = since_1970.saturating_sub(self.config.retention);
        UserLimits {
            record_bytes_max: self.max_payload - HEADER_BYTES_MAX,
            digest_bytes_max: self.max_payload - HEADER_BYTES_MAX,
            horizon: Timestamp::new(horizon.as_secs() as i64, horizon.subsec_nanos()),
        }
    }

    /// Drops the user kept longest, if nothing waits for it.
    fn evict(&mut self) {
        if self.users.len() > self.config.cached_users_max
            && let Some(id) = self.kept.pop_front()
        {
            if self.users[&id].is_idle() {
                self.users.remove(&id);
            } else {
                self.kept.push_back(id);
            }
        }
    }
}

fn say(acked: Result<(), async_nats::Error>) {
    if let Err(error) = acked {
        warn!("acknowledging: {error}");
    }
}

/// What it takes to do an operation.
struct Doing {
    jetstream: JetStream,
    records: kv::Store,
    output: Stream,
    output_prefix: String,
}

impl Doing {
    async fn perform(self: Arc<Self>, id: UserId, operation: Operation) -> (UserId, Done) {
        let token = token(&id);
        let done = match operation {
            Operation::Load | Operation::Reload | Operation::Verify => self.load(&token).await,
            Operation::Store { record, revision } => self.store(&token, record, revision).await,
            Operation::Send { digest, nonce, last } => {
                let mut payload = Vec::new();
                message::encode_digest(&digest, usize::MAX, &mut payload);
                self.send(&token, payload, nonce, last).await
            }
            Operation::LastSent => self.last_sent(&token).await,
        };
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                warn!("{error}");
                tokio::time::sleep(PAUSE).await;
                Done::Unknown
            }
        };
        (id, done)
    }

    async fn load(&self, token: &str) -> Result<Done, async_nats::Error> {
        let entry = self.records.entry(token).await?;
        Ok(Done::Loaded(entry.map(|entry| {
            let is_there = entry.operation == kv::Operation::Put;
            (if is_there { entry.value.into() } else { Vec::new() }, entry.revision)
        })))
    }

    async fn store(&self, token: &str, record: Vec<u8>, revision: u64) -> Result<Done, async_nats::Error> {
        match self.records.update(token, record.into(), revision).await {
            Ok(revision) => Ok(Done::Written(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(Done::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    async fn send(
        &self,
        token: &str,
        payload: Vec<u8>,
        nonce: Nonce,
        last: u64,
    ) -> Result<Done, async_nats::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(DIGEST_ID, format!("{:032x}", nonce.0));
        let publication = PublishMessage::build()
            .headers(headers)
            .payload(payload.into())
            .expected_last_subject_sequence(last);
        let subject = [&self.output_prefix, token].concat();
        match self.jetstream.send_publish(subject, publication).await?.await {
            Ok(ack) => Ok(Done::Written(ack.sequence)),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(Done::Conflict),
            Err(error) => Err(error.into()),
        }
    }

    async fn last_sent(&self, token: &str) -> Result<Done, async_nats::Error> {
        let subject = [&self.output_prefix, token].concat();
        match self.output.get_last_raw_message_by_subject(&subject).await {
            Ok(stored) => {
                let id = stored.headers.get(DIGEST_ID).map(|id| id.as_str());
                let nonce = id.and_then(|id| u128::from_str_radix(id, 16).ok()).unwrap_or_default();
                Ok(Done::LastSent(Some((stored.sequence, Nonce(nonce)))))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Done::LastSent(None)),
            Err(error) => Err(error.into()),
        }
    }
}
