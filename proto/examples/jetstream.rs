//! Compare-and-set in a key-value bucket, over a blocking stream: `cargo run --example jetstream -- 127.0.0.1:4222`

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nats_wire::jetstream::{Bucket, Failure, JetStream, Key, Reply, StreamInfo};
use nats_wire::session::{Event, Session, SessionConfig};
use nats_wire::{ConnectOptions, Limits, Subject};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4222".into());
    let inbox = format!("_INBOX.example-{}", std::process::id()); // unique enough for an example
    let mut link = Link::open(&addr, JetStream::new(Subject::new(&inbox)?, 1))?;
    let (bucket, key, now) = (Bucket::new("example")?, Key::new("count")?, link.now());

    link.jetstream.stream_create(&mut link.session, bucket.stream(), &bucket.config(), (), now);
    link.reply(|reply| reply.decode::<StreamInfo>("a stream"))??;

    loop {
        let now = link.now();
        link.jetstream.kv_get(&mut link.session, &bucket, key, (), now);
        let (revision, count) = link.reply(|reply| {
            let stored = reply.stored()?;
            let count =
                stored.as_ref().and_then(|stored| std::str::from_utf8(&stored.payload).ok()?.parse().ok());
            Ok::<_, Failure>((stored.map_or(0, |stored| stored.sequence), count.unwrap_or(0_u64)))
        })??;
        let value = (count + 1).to_string();
        link.jetstream.kv_put(&mut link.session, &bucket, key, value.as_bytes(), Some(revision), (), now)?;
        match link.reply(|reply| reply.pub_ack().map(|ack| ack.sequence))? {
            Ok(revision) => {
                println!("{key} is {value} in revision {revision}");
                return Ok(());
            }
            Err(Failure::Api(error)) if error.is_wrong_last_sequence() => println!("{error}: again"),
            Err(failure) => return Err(failure.into()),
        }
    }
}

/// A connection that waits for the reply to each request; real programs have many on their way.
struct Link {
    stream: TcpStream,
    session: Session,
    jetstream: JetStream<()>,
    received: Vec<u8>,
    epoch: Instant,
}

impl Link {
    fn open(addr: &str, jetstream: JetStream<()>) -> Result<Self, Error> {
        let (stream, epoch, patience) = (TcpStream::connect(addr)?, Instant::now(), Duration::from_secs(10));
        stream.set_read_timeout(Some(patience))?;
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: patience,
            ping_interval: patience,
            answer_max: patience,
            max_payload_at_least: 0,
        };
        let session = Session::new(config, Duration::ZERO);
        let mut link = Self { stream, session, jetstream, received: Vec::new(), epoch };
        link.wait(|_, event| matches!(event, Event::Ready).then_some(()))?;
        let now = link.now();
        link.jetstream.subscribe(&mut link.session, now);
        Ok(link)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn reply<R>(&mut self, read: impl Fn(&Reply<'_, ()>) -> R) -> Result<R, Error> {
        self.wait(|jetstream, event| match event {
            Event::Message(message) => jetstream.on_message(&message).map(|reply| read(&reply)),
            _ => None,
        })
    }

    fn wait<R>(&mut self, on_event: impl Fn(&mut JetStream<()>, Event<'_>) -> Option<R>) -> Result<R, Error> {
        loop {
            self.stream.write_all(self.session.output())?;
            self.session.wrote(self.session.output().len(), self.now());
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => self.received.extend_from_slice(&bytes[..read]),
            }
            while let (used, event @ Some(_)) | (used @ 1.., event) = self.session.receive(&self.received)? {
                let found = event.and_then(|event| on_event(&mut self.jetstream, event));
                self.received.drain(..used);
                if let Some(found) = found {
                    return Ok(found);
                }
            }
        }
    }
}
