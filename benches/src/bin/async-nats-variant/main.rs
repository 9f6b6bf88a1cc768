//! The service as most people would write it: tokio's multi-thread runtime, the official client, serde, and workers
//! with maps of their own behind channels. As good as its author could make it in this shape.
//!
//! What it promises less than the service: a digest is handed to the client and taken for delivered; a message that
//! arrives while the process is far behind waits in the client's memory, without a bound that pushes back.
//!
//! Never: anything from the service's library but its command line.

mod rules;

use std::process::ExitCode;
use std::time::Duration;

use ahash::RandomState;
use alarm_digest::config::{NatsArgs, RunArgs};
use alarm_digest::shard::Subjects;
use alarm_digest_benches::machine;
use anyhow::{Context, Result};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use clap::Parser;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::rules::{Book, Change, Request};

/// The alarm digest on the official client. Takes the service's arguments.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Connections to the server; each has a task that decodes
    #[arg(long, default_value_t = 1)]
    connections: usize,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Messages that the client holds for a subscription before it drops. It has no way to push back, so: all of them.
const SUBSCRIPTION_CAPACITY: usize = 1 << 30;

/// What a dispatcher takes from a subscription in one go, so that a channel is crossed by batches.
const BATCH: usize = 256;

/// Batches waiting for a worker before its dispatchers wait too.
const WORKER_CAPACITY: usize = 64;

const FORGET_EVERY: Duration = Duration::from_secs(60);

enum Command {
    Apply(Change),
    SendDigest(Request),
}

impl Command {
    fn user(&self) -> &str {
        match self {
            Self::Apply(change) => &change.user,
            Self::SendDigest(request) => &request.user,
        }
    }
}

fn main() -> Result<ExitCode> {
    let Arguments { connections, nats, run } = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter("warn,async_nats_variant=info")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let cpus = match &run.cpus {
        Some(list) => list.0.clone(),
        None => machine::cpus()?.into_iter().take(run.cores.unwrap_or(usize::MAX)).collect(),
    };
    machine::pin_thread(&cpus)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cpus.len()).enable_all().build()?;
    runtime.block_on(serve(&nats, &run, cpus.len(), connections))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(nats: &NatsArgs, run: &RunArgs, workers: usize, connections: usize) -> Result<()> {
    let subjects = nats.subjects().map_err(anyhow::Error::msg)?;
    let servers = nats.servers().map_err(anyhow::Error::msg)?;
    let server = servers.first().context("expected a server")?.to_string();
    let (stop, stopped) = watch::channel(false);
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(connect(&server).await?);
    }

    let mut working = JoinSet::new();
    let mut senders = Vec::new();
    for worker in 0..workers {
        let (sender, receiver) = mpsc::channel(WORKER_CAPACITY);
        senders.push(sender);
        let client = clients[worker % clients.len()].clone();
        working.spawn(work(receiver, client, subjects.digest.clone(), run.retention));
    }
    // The same for all dispatchers, and another one than the maps'.
    let hasher = RandomState::with_seed(1);
    let mut dispatching = JoinSet::new();
    for client in &clients {
        let changes = client.queue_subscribe(subjects.changed.clone(), run.queue_group.clone()).await?;
        let requests = client.queue_subscribe(subjects.send.clone(), run.queue_group.clone()).await?;
        client.flush().await?;
        let dispatcher = Dispatcher {
            client: client.clone(),
            subjects: subjects.clone(),
            hasher: hasher.clone(),
            workers: senders.clone(),
            batches: senders.iter().map(|_| Vec::new()).collect(),
        };
        dispatching.spawn(dispatcher.run(changes, requests, stopped.clone()));
    }
    drop(senders);
    info!("started: all cores are connected and subscribed");

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        ended = dispatching.join_next() => {
            ended.context("there are dispatchers")??.context("a dispatcher ended")?;
        }
    }
    stop.send_replace(true);
    while let Some(ended) = dispatching.join_next().await {
        ended??;
    }
    while let Some(ended) = working.join_next().await {
        ended??;
    }
    for client in &clients {
        client.flush().await?;
    }
    info!("stopped");
    Ok(())
}

async fn connect(server: &str) -> Result<Client> {
    let options = ConnectOptions::new()
        .name("alarm-digest")
        .no_echo()
        .retry_on_initial_connect()
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .event_callback(|event| async move {
            match event {
                Event::Connected => info!("connected"),
                event => warn!("{event}"),
            }
        });
    options.connect(server).await.with_context(|| format!("cannot connect to {server}"))
}

/// Decodes what one connection brings, and hands it to the worker that owns the user.
struct Dispatcher {
    client: Client,
    subjects: Subjects,
    hasher: RandomState,
    workers: Vec<mpsc::Sender<Vec<Command>>>,
    /// What is to be sent to each worker.
    batches: Vec<Vec<Command>>,
}

impl Dispatcher {
    async fn run(
        mut self,
        changes: Subscriber,
        requests: Subscriber,
        mut stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut changes = changes.ready_chunks(BATCH);
        let mut requests = requests.ready_chunks(BATCH);
        let mut is_stopping = false;
        loop {
            // Changes first: a request must not overtake those that came before it on the same connection.
            tokio::select! {
                biased;
                _ = stop.changed(), if !is_stopping => {
                    is_stopping = true;
                    changes.get_mut().drain().await?;
                    requests.get_mut().drain().await?;
                }
                messages = changes.next() => match messages {
                    Some(messages) => self.route(messages, Command::Apply).await?,
                    None => break,
                },
                Some(messages) = requests.next() => self.route(messages, Command::SendDigest).await?,
            }
        }
        while let Some(messages) = requests.next().await {
            self.route(messages, Command::SendDigest).await?;
        }
        Ok(())
    }

    async fn route<T: DeserializeOwned>(
        &mut self,
        messages: Vec<Message>,
        command: fn(T) -> Command,
    ) -> Result<()> {
        for message in messages {
            match serde_json::from_slice(&message.payload) {
                Ok(decoded) => {
                    let command = command(decoded);
                    let owner = self.hasher.hash_one(command.user()) as usize % self.workers.len();
                    self.batches[owner].push(command);
                }
                Err(error) => self.reject(message, error).await?,
            }
        }
        for (batch, worker) in self.batches.iter_mut().zip(&self.workers) {
            if !batch.is_empty() {
                worker.send(std::mem::take(batch)).await.context("a worker has ended")?;
            }
        }
        Ok(())
    }

    async fn reject(&self, message: Message, error: serde_json::Error) -> Result<()> {
        warn!(subject = %message.subject, "bad message: {error}");
        let mut headers = HeaderMap::new();
        headers.insert("Alarm-Digest-Reason", error.to_string().escape_default().to_string());
        headers.insert("Alarm-Digest-Subject", message.subject.as_str());
        let subject = self.subjects.rejected.clone();
        Ok(self.client.publish_with_headers(subject, headers, message.payload).await?)
    }
}

/// Owns the users whose hash leads here.
async fn work(
    mut batches: mpsc::Receiver<Vec<Command>>,
    client: Client,
    subject: String,
    retention: Duration,
) -> Result<()> {
    let mut book = Book::default();
    let mut forget = tokio::time::interval(FORGET_EVERY);
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                for command in batch {
                    match command {
                        Command::Apply(change) => book.apply(change),
                        Command::SendDigest(request) => {
                            for payload in book.take_digest(&request.user, client.max_payload()) {
                                client.publish(subject.clone(), payload.into()).await?;
                            }
                        }
                    }
                }
            }
            _ = forget.tick() => book.forget(OffsetDateTime::now_utc() - retention),
        }
    }
}
