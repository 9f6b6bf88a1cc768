//! A blocking NATS connection on the project's own codec: what the load tool speaks through, and the floor reads with.
//!
//! Never: reconnecting, threads, a decision about what is sent when.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use alarm_digest::config::NatsArgs;
use nats_wire::session::{Event, Fence, Session, SessionConfig};
use nats_wire::{ConnectOptions, Limits, Message, QueueGroup, ReceiveBuffer, Sid, Subject, SubjectFilter};

/// For handshakes and fences: a server under flood may let them wait behind all that it has buffered.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The first server that the arguments name.
///
/// # Errors
/// When they name none, or it has no address.
pub fn address(nats: &NatsArgs) -> io::Result<SocketAddr> {
    let servers = nats.servers().map_err(io::Error::other)?;
    let first = servers.first().ok_or_else(|| io::Error::other("expected a server"))?;
    let mut addresses = (first.host.as_str(), first.port).to_socket_addrs()?;
    addresses.next().ok_or_else(|| io::Error::other(format!("{first} has no address")))
}

/// A connection whose handshake is over.
pub struct Connection {
    stream: TcpStream,
    session: Session,
    buffer: ReceiveBuffer,
    passed: Fence,
    epoch: Instant,
}

impl Connection {
    /// Connects and takes the server through the handshake. A read gives up after `read_timeout`, if there is one.
    ///
    /// # Errors
    /// When there is no server, or it does not answer as one.
    pub fn open(addr: SocketAddr, name: &str, read_timeout: Option<Duration>) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(read_timeout)?;
        let config = SessionConfig {
            connect: ConnectOptions { name: name.into(), ..ConnectOptions::default() },
            limits: Limits::client(),
            handshake_max: ANSWER_WITHIN,
            ping_interval: ANSWER_WITHIN,
            answer_max: ANSWER_WITHIN * 2,
            max_payload_at_least: 0,
        };
        let mut connection = Self {
            stream,
            session: Session::new(config, Duration::ZERO),
            buffer: ReceiveBuffer::new(Limits::client()),
            passed: Fence(0),
            epoch: Instant::now(),
        };
        let deadline = Instant::now() + ANSWER_WITHIN;
        while !connection.session.is_ready() {
            connection.turn("a handshake", deadline)?;
        }
        Ok(connection)
    }

    /// For what this connection has no word for, and the time to give it. Its output goes out with the next read.
    pub fn session(&mut self) -> (&mut Session, Duration) {
        (&mut self.session, self.epoch.elapsed())
    }

    /// Puts a subscription into the output.
    ///
    /// # Panics
    /// When `subject` or `queue` is not a valid name.
    pub fn subscribe(&mut self, subject: &str, queue: Option<&str>, sid: u64) {
        let filter = SubjectFilter::new(subject).expect("the caller gives a valid subject");
        let queue = queue.map(|queue| QueueGroup::new(queue).expect("the caller gives a valid queue group"));
        self.session.subscribe(filter, queue, Sid::from(sid), self.epoch.elapsed());
    }

    /// Puts a message into the output.
    ///
    /// # Panics
    /// When `subject` is not a valid name.
    pub fn publish(&mut self, subject: &str, payload: &[u8]) {
        let subject = Subject::new(subject).expect("the caller gives a valid subject");
        self.session.publish(subject, payload, self.epoch.elapsed());
    }

    /// Writes all output.
    ///
    /// # Errors
    /// The socket's.
    pub fn write(&mut self) -> io::Result<()> {
        if !self.session.output().is_empty() {
            self.stream.write_all(self.session.output())?;
            self.session.wrote(self.session.output().len(), self.epoch.elapsed());
        }
        Ok(())
    }

    /// Writes whole operations that the caller has encoded, behind all output.
    ///
    /// # Errors
    /// The socket's.
    pub fn write_encoded(&mut self, operations: &[u8]) -> io::Result<()> {
        self.write()?;
        self.stream.write_all(operations)
    }

    /// Writes all output and waits until the server has read it. Messages that come meanwhile are dropped, so this is
    /// for connections without subscriptions, and for the moment before the first message.
    ///
    /// # Errors
    /// The socket's, or that the server did not answer in time.
    pub fn flush(&mut self) -> io::Result<()> {
        let fence = self.session.fence(self.epoch.elapsed());
        let deadline = Instant::now() + ANSWER_WITHIN;
        while self.passed < fence {
            self.turn("PONG", deadline)?;
        }
        Ok(())
    }

    /// Writes all output, reads once and hands over the messages that are complete then; how many there were. None
    /// came when the read timed out, or brought no whole message.
    ///
    /// # Errors
    /// The socket's, the codec's, or the server's own word.
    pub fn read(&mut self, mut on_message: impl FnMut(&Message<'_>)) -> io::Result<usize> {
        self.write()?;
        match self.buffer.read_from(&mut self.stream) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        let mut messages = 0;
        loop {
            let (used, event) = self
                .session
                .receive(self.buffer.unused())
                .map_err(|fault| io::Error::other(fault.to_string()))?;
            match event {
                None => {
                    self.buffer.consume(used);
                    return Ok(messages);
                }
                Some(Event::Message(message)) => {
                    messages += 1;
                    on_message(&message);
                }
                Some(Event::Passed(fence)) => self.passed = fence,
                Some(Event::Refused(text)) => {
                    return Err(io::Error::other(format!("server refused: {text}")));
                }
                Some(Event::Ready | Event::Info) => {}
            }
            self.buffer.consume(used);
        }
    }

    fn turn(&mut self, awaited: &str, deadline: Instant) -> io::Result<()> {
        self.read(|_| {})?;
        if Instant::now() > deadline {
            let text = format!("expected {awaited} from the server, got none in {ANSWER_WITHIN:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}
