//! The durable mode on tokio's multi-thread runtime and the official client, as good as its author could make it in this
//! shape: one pull consumer's stream, workers with users of their own behind channels, many operations in flight.
//!
//! The protocol is the service's, down to its rules: `durable::user`, `durable::record` and `message` are the library's. So
//! what differs from the service is the client with its codec, the runtime, and how a message travels between them.
//!
//! What it does less: a load or a check asks any replica, which is right with one replica only; streams are not made, but
//! used as they are; a record that cannot be read ends it.
//!
//! Never: a change of the rules.

mod worker;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use alarm_digest::alarm::Command;
use alarm_digest::config::Cli;
use alarm_digest::durable::worker::Names;
use alarm_digest::message;
use alarm_digest_benches::machine;
use anyhow::{Context, Result};
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::{Acker, PublishMessage};
use async_nats::jetstream::{AckKind, Context as JetStream, Message};
use async_nats::{ConnectOptions, Event};
use clap::Parser;
use futures_util::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::worker::{Task, Worker};

/// Messages that one request asks for; the client asks again when half of them have come.
const BATCH: usize = 1000;

/// What waits for one worker before the reader waits too.
const WORKER_CAPACITY: usize = 1000;

/// Publications in flight before the next one waits: more than all workers together can have open.
const IN_FLIGHT_MAX: usize = 100_000;

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter("warn,async_nats_jetstream=info")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let cpus = match &cli.run.cpus {
        Some(list) => list.0.clone(),
        None => machine::cpus()?.into_iter().take(cli.run.cores.unwrap_or(usize::MAX)).collect(),
    };
    machine::pin_thread(&cpus)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cpus.len()).enable_all().build()?;
    runtime.block_on(serve(&cli, cpus.len()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(cli: &Cli, workers: usize) -> Result<()> {
    let config = Arc::new(cli.worker_config().map_err(anyhow::Error::msg)?);
    let servers = cli.nats.servers().map_err(anyhow::Error::msg)?;
    let server = servers.first().context("expected a server")?.to_string();
    let options = ConnectOptions::new().name("alarm-digest").event_callback(|event| async move {
        match event {
            Event::Connected => info!("connected"),
            event => warn!("{event}"),
        }
    });
    let client = options.connect(&server).await.with_context(|| format!("cannot connect to {server}"))?;
    let jetstream = ContextBuilder::new()
        .max_ack_inflight(IN_FLIGHT_MAX)
        .backpressure_on_inflight(true)
        .build(client.clone());
    let names = &config.names;
    let input = jetstream.get_stream(&names.input).await?;
    let consumer: PullConsumer =
        input.get_consumer(&names.consumer).await.map_err(anyhow::Error::from_boxed)?;
    let users = jetstream.get_key_value(&names.bucket).await?;
    let output = jetstream.get_stream(&names.output).await?;

    let max_payload = client.max_payload();
    let mut working = JoinSet::new();
    let mut senders = Vec::new();
    for _ in 0..workers {
        let (sender, receiver) = mpsc::channel(WORKER_CAPACITY);
        senders.push(sender);
        let worker =
            Worker::new(Arc::clone(&config), max_payload, jetstream.clone(), users.clone(), output.clone());
        working.spawn(worker.run(receiver));
    }
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(5))
        .messages()
        .await?;
    info!("started: all cores are connected and subscribed");

    // Another one than the maps'.
    let hasher = ahash::RandomState::with_seed(1);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        let message = tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            message = messages.next() => message.context("the stream of messages has ended")?,
        };
        match message {
            Ok(message) => {
                let Some((command, acker)) = decode(message, names, &jetstream).await? else { continue };
                let owner = hasher.hash_one(command.user()) as usize % senders.len();
                senders[owner].send(Task { command, acker }).await.context("a worker has ended")?;
            }
            Err(error) => warn!("pull: {error}"),
        }
    }
    drop((messages, senders));
    while let Some(ended) = working.join_next().await {
        ended?;
    }
    client.flush().await?;
    info!("stopped");
    Ok(())
}

/// A bad message is stored as a dead letter, and then never delivered again.
async fn decode(message: Message, names: &Names, jetstream: &JetStream) -> Result<Option<(Command, Acker)>> {
    let (message, acker) = message.split();
    let decoded = if message.subject.as_str() == names.changed {
        message::decode_change(&message.payload)
    } else {
        message::decode_request(&message.payload)
    };
    match decoded {
        Ok(command) => Ok(Some((command, acker))),
        Err(rejection) => {
            warn!(subject = %message.subject, "bad message: {rejection}");
            let letter = PublishMessage::build()
                .payload(message.payload)
                .header("Alarm-Digest-Reason", rejection.reason.name())
                .header("Alarm-Digest-Subject", message.subject.as_str());
            jetstream.send_publish(names.dead.clone(), letter).await?.await?;
            acker.ack_with(AckKind::Term).await.map_err(anyhow::Error::from_boxed)?;
            Ok(None)
        }
    }
}
