//! The first server that answers, and JetStream there asked one question at a time, over the blocking client: for what is
//! done once, by hand or at the start.
//!
//! Never: two requests under way, a second try.

use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use alarm_digest::config::NatsArgs;
use alarm_digest::credentials::advice;
use alarm_digest::durable::worker::Names;
use alarm_digest::servers::Server;
use anyhow::{Context, Error, Result, anyhow};
use nats_wire::jetstream::{Failure, JetStream, Name, Reply, Stored};
use nats_wire::session::{Session, SessionConfig};
use nats_wire::{Headers, Message, Subject};
use rustls::StreamOwned;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::client::{Client, Stream};
use crate::tls::explain as explain_tls;
use crate::transport::{Opened, open};

/// A blocking client of the first server that takes us through its handshake, and which that is.
pub fn client(nats: &NatsArgs, name: &str, ping_interval: Duration) -> Result<(Server, Client)> {
    let mut failures = Vec::new();
    for server in nats.servers().map_err(anyhow::Error::msg)? {
        let client = open(&server, nats.connect_timeout)
            .and_then(|opened| begin(opened, nats.session(name, ping_interval)))
            .map_err(|error| explain_tls(error, &server));
        let error = match client {
            Ok(client) => return Ok((server, client)),
            Err(error) => error.to_string(),
        };
        let advice = advice(&error, server.credentials.as_ref());
        failures.push(format!(
            "{server}: {error}{}",
            advice.map_or_else(String::new, |text| format!(": {text}"))
        ));
    }
    Err(anyhow!(failures.join("; "))).context("expected a server that answers, got none")
}

fn begin(opened: Opened, config: SessionConfig) -> io::Result<Client> {
    let Opened { socket, tls, received, sign_in } = opened;
    let socket = TcpStream::from(socket);
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(socket.try_clone()?),
        Some(tls) => Box::new(StreamOwned::new(*tls, socket.try_clone()?)),
    };
    Client::over(socket, stream, received, config, sign_in)
}

/// A connection to JetStream.
pub struct Asker {
    client: Client,
    jetstream: JetStream<()>,
    patience: Duration,
    is_unanswered: bool,
}

impl Asker {
    /// Over `client`, which is for this alone from now on. An answer may take as long as `patience`.
    pub fn new(mut client: Client, names: &Names, patience: Duration) -> Self {
        let inbox = format!("_INBOX.{}", Uuid::new_v4().simple());
        let mut jetstream = JetStream::new(Subject::new(&inbox).expect("an inbox is a subject"), 1);
        if let Some(prefix) = &names.api_prefix {
            jetstream =
                jetstream.with_api_prefix(Subject::new(prefix).expect("checked with the configuration"));
        }
        jetstream.subscribe(client.session(), Duration::ZERO);
        Self { client, jetstream, patience, is_unanswered: false }
    }

    pub fn session(&mut self) -> &mut Session {
        self.client.session()
    }

    /// Whether the last question had no answer: too late, or the connection is gone. Not so if it was refused.
    pub fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// Asks the API for what `expected` names.
    pub fn ask<D: DeserializeOwned>(
        &mut self,
        expected: &'static str,
        send: impl FnOnce(&mut JetStream<()>, &mut Session),
    ) -> Result<D, Failure> {
        self.exchange(expected, send, |reply| {
            // Owned, because the reply borrows from what was received.
            let json: serde_json::Value = reply.decode(expected)?;
            serde_json::from_value(json.clone())
                .map_err(|_| Failure::Malformed { expected, came: json.to_string() })
        })
    }

    /// Asks for a stored message; none, if there is none.
    pub fn ask_stored(
        &mut self,
        send: impl FnOnce(&mut JetStream<()>, &mut Session),
    ) -> Result<Option<Stored<'static>>, Failure> {
        self.exchange("a stored message", send, |reply| {
            let stored = reply.stored()?;
            Ok(stored.map(|stored| Stored {
                subject: stored.subject.into_owned().into(),
                sequence: stored.sequence,
                header_block: stored.header_block.into_owned().into(),
                payload: stored.payload.into_owned().into(),
            }))
        })
    }

    fn exchange<R>(
        &mut self,
        expected: &'static str,
        send: impl FnOnce(&mut JetStream<()>, &mut Session),
        read: impl FnOnce(&Reply<'_, ()>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        send(&mut self.jetstream, self.client.session());
        let silence = |came: String| Failure::Malformed { expected, came };
        let deadline = Instant::now() + self.patience;
        loop {
            let received = self.client.next(deadline);
            self.is_unanswered = match &received {
                Ok(received) => received.is_none(),
                // Which is how the client says what the server says.
                Err(error) => error.kind() != io::ErrorKind::Other,
            };
            let received = received.map_err(|error| silence(error.to_string()))?;
            let received = received.ok_or_else(|| silence(format!("nothing within {:?}", self.patience)))?;
            let sid = received.sid.to_string();
            let message = Message {
                subject: received.subject.as_bytes(),
                sid: sid.as_bytes(),
                reply: received.reply.as_deref(),
                headers: (!received.headers.is_empty()).then(|| Headers::new(&received.headers)),
                payload: &received.payload,
            };
            if let Some(reply) = self.jetstream.on_message(&message) {
                return read(&reply);
            }
        }
    }
}

/// What an operator can do about it, where that is known.
pub fn explain(failure: Failure) -> Error {
    match failure {
        Failure::NoResponders => anyhow!(
            "expected JetStream, but nobody answers: is it enabled on the server and for this account?"
        ),
        Failure::Api(ref error) if error.is_subject_taken() => {
            anyhow!(
                "{failure}: another stream stores one of its subjects; give that one's subjects another home, or another --js-name"
            )
        }
        failure => Error::new(failure),
    }
}

pub fn name_of(name: &str) -> Name<'_> {
    Name::new(name).expect("checked with the configuration")
}
