//! A blocking NATS client over one TCP stream, plain or through what its caller puts between, for the smoke test and the tests: subscribe, publish, wait.
//!
//! Never: reconnecting. Whatever goes wrong is an error that names what was expected and what came.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nats_wire::session::{Event, Fence, Session, SessionConfig, SignIn};
use nats_wire::{Limits, QueueGroup, ReceiveBuffer, Sid, Subject, SubjectFilter};

/// One message of a subscription.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    pub sid: u64,
    pub subject: String,
    pub reply: Option<Vec<u8>>,
    /// The header block as it came, empty if there was none.
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
}

/// What a client reads from and writes to.
pub trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// A connection whose handshake is over.
pub struct Client {
    /// For its timeouts.
    socket: TcpStream,
    stream: Box<dyn Stream>,
    session: Session,
    buffer: ReceiveBuffer,
    received: VecDeque<Received>,
    passed: Fence,
    epoch: Instant,
}

impl Client {
    /// Takes a fresh stream through the handshake.
    #[allow(dead_code, reason = "the program has read INFO before; the tests have not")]
    pub fn new(stream: TcpStream, config: SessionConfig, sign_in: SignIn) -> io::Result<Self> {
        let socket = stream.try_clone()?;
        Self::over(socket, Box::new(stream), ReceiveBuffer::new(Limits::client()), config, sign_in)
    }

    /// The same over `stream`, which reads and writes `socket`, from which `buffer` has come already.
    pub fn over(
        socket: TcpStream,
        stream: Box<dyn Stream>,
        buffer: ReceiveBuffer,
        config: SessionConfig,
        sign_in: SignIn,
    ) -> io::Result<Self> {
        let deadline = Instant::now() + config.handshake_max;
        let mut client = Self {
            socket,
            stream,
            session: Session::new(config, Duration::ZERO).signing_in(sign_in),
            buffer,
            received: VecDeque::new(),
            passed: Fence(0),
            epoch: Instant::now(),
        };
        client.receive()?;
        while !client.session.is_ready() {
            client.turn("the server to finish the handshake", deadline)?;
        }
        Ok(client)
    }

    /// For what this client has no word for. Its output goes out with the next wait.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    pub fn subscribe(&mut self, subject: &str, queue: Option<&str>, sid: u64) {
        let filter = SubjectFilter::new(subject).expect("the caller gives a valid subject");
        let queue = queue.map(|queue| QueueGroup::new(queue).expect("the caller gives a valid queue group"));
        self.session.subscribe(filter, queue, Sid::from(sid), self.epoch.elapsed());
    }

    /// Puts a message into the output; it goes out with the next [`Self::flush`].
    pub fn publish(&mut self, subject: &str, payload: &[u8]) {
        let subject = Subject::new(subject).expect("the caller gives a valid subject");
        self.session.publish(subject, payload, self.epoch.elapsed());
    }

    /// Writes all output and waits until the server has read it, keeping what it sends meanwhile.
    pub fn flush(&mut self, deadline: Instant) -> io::Result<()> {
        let fence = self.session.fence(self.epoch.elapsed());
        while self.passed < fence {
            self.turn("PONG", deadline)?;
        }
        Ok(())
    }

    /// The next message; none when `deadline` passes first.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Received>> {
        loop {
            if let Some(received) = self.received.pop_front() {
                return Ok(Some(received));
            }
            match self.turn("a message", deadline) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                other => other?,
            }
        }
    }

    /// Writes what is to be written, then reads once.
    fn turn(&mut self, awaited: &str, deadline: Instant) -> io::Result<()> {
        self.write(deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let late =
            || io::Error::new(io::ErrorKind::TimedOut, format!("expected {awaited}, got nothing in time"));
        if left.is_zero() {
            return Err(late());
        }
        self.socket.set_read_timeout(Some(left))?;
        let closed = || {
            let text = format!("expected {awaited}, but the server closed the connection");
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        };
        match self.stream.read(self.buffer.space()) {
            Ok(0) => Err(closed()),
            // TLS says so when it was not told of the end beforehand.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(closed()),
            Ok(bytes) => {
                self.buffer.filled(bytes);
                self.receive()
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(late())
            }
            // A read with a timeout is not taken up again by itself when a signal comes in between.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes all output.
    pub fn write(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_write_timeout(Some(left))?;
        self.stream.write_all(self.session.output())?;
        self.stream.flush()?;
        self.session.wrote(self.session.output().len(), self.epoch.elapsed());
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            let received = self.session.receive(self.buffer.unused());
            let (used, event) = received.map_err(|fault| io::Error::other(fault.to_string()))?;
            let is_last = event.is_none();
            match event {
                None => {}
                Some(Event::Passed(fence)) => self.passed = fence,
                Some(Event::Refused(text)) => {
                    return Err(io::Error::other(format!("server refused: {text}")));
                }
                Some(Event::Ready | Event::Info) => {}
                Some(Event::Message(message)) => self.received.push_back(Received {
                    sid: message.sid_number().unwrap_or_default(),
                    subject: String::from_utf8_lossy(message.subject).into_owned(),
                    reply: message.reply.map(<[u8]>::to_vec),
                    headers: message.headers.map(|headers| headers.as_bytes().to_vec()).unwrap_or_default(),
                    payload: message.payload.to_vec(),
                }),
            }
            self.buffer.consume(used);
            if is_last {
                return Ok(());
            }
        }
    }
}
