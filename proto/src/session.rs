//! One connection's life, without IO: handshake, PING and PONG, fences, what is to be written next.
//!
//! The caller owns the socket and the clock. It hands in the bytes that came and the time, and writes what stands in
//! [`Session::output`]. A session ends with its connection; a new connection gets a new one, and subscribes again.
//!
//! ```text
//! server   INFO {…}              PONG
//! session           CONNECT PING      → Event::Ready, then whatever the caller publishes and subscribes
//! ```
//!
//! What CONNECT says of who we are depends on the connection, and may depend on INFO, whose nonce is to be signed: that is a
//! [`SignIn`], which the caller gives to each session.
//!
//! A **fence** is a PING whose PONG proves that the server has read all that we wrote before it, and that we have
//! read all that the server wrote before the PONG. NATS answers in order on one connection, so fences pass in order.
//! Source: nats-server, `client.processPing` in server/client.go.
//!
//! Never: reconnecting, choosing a server, TLS, remembering subscriptions, cryptography.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::{
    ClientDecoder, ConnectOptions, DecodeError, ErrText, HeaderBlock, JsonError, JsonLine, Limits, Message,
    QueueGroup, ServerInfo, ServerOp, Sid, Step, Subject, SubjectFilter, encode,
};

/// What a session needs to know beforehand. Times are spans.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What our CONNECT says.
    pub connect: ConnectOptions,
    /// What the decoder takes from the server.
    pub limits: Limits,
    /// From the start until [`Event::Ready`].
    pub handshake_max: Duration,
    /// Quiet for so long: we send a PING.
    pub ping_interval: Duration,
    /// A PING is unanswered and nothing heard for so long, or nothing could be written for so long although there is
    /// output: the server counts as gone.
    pub answer_max: Duration,
    /// The least `max_payload`, in bytes, of a server that we can work with.
    pub max_payload_at_least: u64,
}

/// What one connection adds to CONNECT once the server's INFO has come: who we are, and the proof of it. The default adds
/// nothing.
#[derive(Default)]
pub struct SignIn(Option<Box<Complete>>);

type Complete = dyn FnOnce(&ServerInfo, &mut ConnectOptions) -> Result<(), String> + Send;

impl SignIn {
    /// `complete` gets INFO and completes CONNECT, or says what was expected and what came.
    pub fn new(
        complete: impl FnOnce(&ServerInfo, &mut ConnectOptions) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self(Some(Box::new(complete)))
    }

    /// The same on a connection that the caller has taken through TLS, which CONNECT then says. On any other, a server that
    /// requires TLS is a [`Fault::TlsRequired`].
    #[must_use]
    pub fn over_tls(self) -> Self {
        Self::new(move |info, connect| {
            connect.tls_required = true;
            self.0.map_or(Ok(()), |complete| complete(info, connect))
        })
    }
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "SignIn(…)" } else { "SignIn" })
    }
}

/// The number of a fence, counted from 1 within one session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fence(pub u64);

/// What came in that the caller has to know of.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server has taken our CONNECT: publish and subscribe from now on.
    Ready,
    /// The server told more about itself: see [`Session::info`].
    Info,
    /// A subscription's message.
    Message(Message<'a>),
    /// This fence and all before it have passed.
    Passed(Fence),
    /// The server refused something and keeps the connection.
    Refused(ErrText<'a>),
}

/// One connection's state.
///
/// `passed <= fences`; `start <= output.len()`; `state` is `Ready` ⇒ `info` is some.
///
/// `Debug` shows how much output there is and not what, since it may hold credentials.
pub struct Session {
    config: SessionConfig,
    sign_in: SignIn,
    decoder: ClientDecoder,
    state: State,
    info: Option<ServerInfo>,
    output: Vec<u8>,
    /// Bytes at the front of `output` that were written already.
    start: usize,
    fences: u64,
    passed: u64,
    started_at: Duration,
    heard_at: Duration,
    /// When the last fence was sent.
    asked_at: Duration,
    /// When output last began to wait, or last shrank.
    progress_at: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ExpectInfo,
    /// CONNECT and PING are on their way.
    ExpectPong,
    Ready,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("state", &self.state)
            .field("output_bytes", &self.output().len())
            .field("fences", &self.fences)
            .field("passed", &self.passed)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// The connection was opened at `now`, a span since any fixed instant.
    #[must_use]
    pub fn new(config: SessionConfig, now: Duration) -> Self {
        Self {
            decoder: ClientDecoder::new(config.limits),
            config,
            sign_in: SignIn::default(),
            state: State::ExpectInfo,
            info: None,
            output: Vec::new(),
            start: 0,
            fences: 0,
            passed: 0,
            started_at: now,
            heard_at: now,
            asked_at: now,
            progress_at: now,
        }
    }

    /// The same session, signing in as `sign_in` says.
    #[must_use]
    pub fn signing_in(self, sign_in: SignIn) -> Self {
        Self { sign_in, ..self }
    }

    /// Takes what can be taken from `bytes`, which start at the first byte not yet used, up to the first event: how
    /// many bytes were used, and the event. No event means that all that was complete has been used.
    ///
    /// # Errors
    /// [`Fault`]: the connection is of no use any more, now and ever after.
    pub fn receive<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<Event<'a>>), Fault> {
        let mut used_all = 0;
        loop {
            let (op, used) = match self.decoder.decode(&bytes[used_all..])? {
                Step::More { .. } => return Ok((used_all, None)),
                Step::Op { op, used } => (op, used),
            };
            used_all += used;
            if let Some(event) = self.on_op(op)? {
                return Ok((used_all, Some(event)));
            }
        }
    }

    /// Bytes came at `now`: the server lives.
    pub fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// Lets time pass: sends a PING when it has been quiet for long.
    ///
    /// # Errors
    /// [`Fault`] when the handshake or the server's silence has lasted too long.
    pub fn on_time(&mut self, now: Duration) -> Result<(), Fault> {
        let config = &self.config;
        let quiet = now.saturating_sub(self.heard_at);
        if self.state != State::Ready {
            let expected = if self.state == State::ExpectInfo { "INFO" } else { "PONG" };
            let is_late = now.saturating_sub(self.started_at) >= config.handshake_max;
            return if is_late {
                Err(Fault::Handshake { expected, within: config.handshake_max })
            } else {
                Ok(())
            };
        }
        let unanswered = now.saturating_sub(self.asked_at.max(self.heard_at));
        if self.passed < self.fences && unanswered >= config.answer_max {
            return Err(Fault::Silent { lasted: quiet });
        }
        if !self.output().is_empty() && now.saturating_sub(self.progress_at) >= config.answer_max {
            return Err(Fault::Stalled { bytes: self.output().len() });
        }
        if quiet >= config.ping_interval && self.passed == self.fences {
            self.fence(now);
        }
        Ok(())
    }

    /// What the server last told of itself; and `ldm` from when it first did.
    #[must_use]
    pub fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// Whether the handshake is over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Bytes to write to the socket, in order.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output[self.start..]
    }

    /// The first `bytes` of [`Self::output`] were written at `now`.
    ///
    /// # Panics
    /// When that is more than there was.
    pub fn wrote(&mut self, bytes: usize, now: Duration) {
        assert!(bytes <= self.output().len(), "cannot have written more than there was");
        self.start += bytes;
        self.progress_at = now;
        if self.start == self.output.len() {
            self.output.clear();
            self.start = 0;
            self.output.shrink_to(OUTPUT_BYTES_KEPT);
        } else if self.start >= self.output.len() / 2 {
            // Each byte is moved at most once for each that was written, however slowly the socket takes them.
            self.output.drain(..self.start);
            self.start = 0;
        }
    }

    /// Publishes. The server answers nothing; a [`Fence`] after it proves that it was read.
    pub fn publish(&mut self, subject: Subject<'_>, payload: &[u8], now: Duration) {
        self.begin_output(now);
        encode::publish(&mut self.output, subject, None, payload);
    }

    /// Publishes with headers, which a server whose INFO lacks `headers` would refuse.
    pub fn publish_with_headers(
        &mut self,
        subject: Subject<'_>,
        headers: HeaderBlock<'_>,
        payload: &[u8],
        now: Duration,
    ) {
        self.begin_output(now);
        encode::publish_with_headers(&mut self.output, subject, None, headers, payload);
    }

    /// Publishes a request: whoever serves `subject` answers to `reply`, which is to be subscribed to. For headers see
    /// [`publish_with_headers`](Self::publish_with_headers).
    pub fn publish_for_reply(
        &mut self,
        subject: Subject<'_>,
        reply: Subject<'_>,
        headers: Option<HeaderBlock<'_>>,
        payload: &[u8],
        now: Duration,
    ) {
        self.begin_output(now);
        match headers {
            None => encode::publish(&mut self.output, subject, Some(reply), payload),
            Some(headers) => {
                encode::publish_with_headers(&mut self.output, subject, Some(reply), headers, payload);
            }
        }
    }

    /// Subscribes, as one of a queue group if one is given.
    pub fn subscribe(
        &mut self,
        filter: SubjectFilter<'_>,
        queue: Option<QueueGroup<'_>>,
        sid: Sid<'_>,
        now: Duration,
    ) {
        self.begin_output(now);
        encode::subscribe(&mut self.output, filter, queue, sid);
    }

    /// Unsubscribes at once; messages that the server sent before it read this still come.
    pub fn unsubscribe(&mut self, sid: Sid<'_>, now: Duration) {
        self.begin_output(now);
        encode::unsubscribe(&mut self.output, sid, None);
    }

    /// Sends a PING whose [`Event::Passed`] proves that all before it has been read, on both sides.
    pub fn fence(&mut self, now: Duration) -> Fence {
        self.begin_output(now);
        encode::ping(&mut self.output);
        self.fences += 1;
        self.asked_at = now;
        Fence(self.fences)
    }

    fn on_op<'a>(&mut self, op: ServerOp<'a>) -> Result<Option<Event<'a>>, Fault> {
        match (self.state, op) {
            (_, ServerOp::Info(json)) => self.on_info(json),
            (_, ServerOp::Err(text)) if text.closes() => Err(Fault::Closed(text.to_string())),
            (State::ExpectInfo, op) => Err(Fault::Unexpected { expected: "INFO", came: verb(&op) }),
            (_, ServerOp::Ping) => {
                self.begin_output(self.heard_at);
                encode::pong(&mut self.output);
                Ok(None)
            }
            (_, ServerOp::Pong) => self.on_pong().map(Some),
            (_, ServerOp::Message(message)) => Ok(Some(Event::Message(message))),
            (_, ServerOp::Err(text)) => Ok(Some(Event::Refused(text))),
            (_, ServerOp::Ok) => Ok(None),
        }
    }

    fn on_info(&mut self, json: &[u8]) -> Result<Option<Event<'static>>, Fault> {
        let mut info = ServerInfo::parse(json)?;
        // nats-server says it once (`sendLDMToClients`), and whatever it tells later is without.
        info.ldm |= self.info.as_ref().is_some_and(|before| before.ldm);
        let max_payload = info.max_payload;
        if max_payload < self.config.max_payload_at_least {
            return Err(Fault::MaxPayload { came: max_payload, at_least: self.config.max_payload_at_least });
        }
        if self.state != State::ExpectInfo {
            self.info = Some(info);
            return Ok(Some(Event::Info));
        }
        let mut connect = self.config.connect.clone();
        if let Some(complete) = self.sign_in.0.take() {
            complete(&info, &mut connect).map_err(Fault::SignIn)?;
        }
        if info.tls_required && !connect.tls_required {
            return Err(Fault::TlsRequired);
        }
        self.info = Some(info);
        self.begin_output(self.heard_at);
        let connect = connect.to_json();
        let line = JsonLine::new(&connect).expect("serde_json writes compact JSON, which has no line breaks");
        encode::connect(&mut self.output, line);
        encode::ping(&mut self.output);
        self.fences += 1;
        self.state = State::ExpectPong;
        Ok(None)
    }

    fn on_pong(&mut self) -> Result<Event<'static>, Fault> {
        if self.passed == self.fences {
            return Err(Fault::Unexpected { expected: "no PONG without a PING", came: "PONG" });
        }
        self.passed += 1;
        if self.state == State::ExpectPong {
            self.state = State::Ready;
            return Ok(Event::Ready);
        }
        Ok(Event::Passed(Fence(self.passed)))
    }

    fn begin_output(&mut self, now: Duration) {
        if self.output.is_empty() {
            self.progress_at = now;
        }
    }
}

fn verb(op: &ServerOp<'_>) -> &'static str {
    match op {
        ServerOp::Info(_) => "INFO",
        ServerOp::Message(_) => "MSG",
        ServerOp::Ping => "PING",
        ServerOp::Pong => "PONG",
        ServerOp::Ok => "+OK",
        ServerOp::Err(_) => "-ERR",
    }
}

/// Memory that an idle connection keeps for what it will write next, in bytes.
const OUTPUT_BYTES_KEPT: usize = 256 * 1024;

/// Why a connection is of no use any more.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The server sent what is not NATS, or above our limits.
    Decode(DecodeError),
    /// INFO that cannot be read.
    Info(JsonError),
    /// The server said why it closes the connection.
    Closed(String),
    /// A message of a subscription that was never made.
    Subscription {
        /// The sid that came, or its first bytes.
        came: String,
    },
    /// An operation that has no place here.
    Unexpected {
        /// What had its place.
        expected: &'static str,
        /// The verb that came.
        came: &'static str,
    },
    /// The server did not answer the handshake in time.
    Handshake {
        /// The verb that was waited for.
        expected: &'static str,
        /// For how long.
        within: Duration,
    },
    /// Nothing was heard, PING or not.
    Silent {
        /// For how long.
        lasted: Duration,
    },
    /// The server does not read.
    Stalled {
        /// Bytes that wait to be written.
        bytes: usize,
    },
    /// The server takes only payloads that are too small for us.
    MaxPayload {
        /// Its INFO's `max_payload`, in bytes.
        came: u64,
        /// What we need, in bytes.
        at_least: u64,
    },
    /// The server refused something that the caller cannot do without, in its own words.
    Refused(String),
    /// The server wants TLS, which a session does not speak by itself.
    TlsRequired,
    /// The caller's [`SignIn`] could not complete CONNECT, in its words.
    SignIn(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => error.fmt(f),
            Self::Info(error) => write!(f, "expected INFO with a JSON object: {error}"),
            Self::Closed(text) => write!(f, "server closed the connection: {text}"),
            Self::Refused(text) => write!(f, "server refused: {text}"),
            Self::Subscription { came } => {
                write!(f, "expected a message of a subscription of ours, got one of `{came}`")
            }
            Self::Unexpected { expected, came } => write!(f, "expected {expected}, got {came}"),
            Self::Handshake { expected, within } => {
                write!(f, "expected {expected} within {within:?} of connecting, got nothing")
            }
            Self::Silent { lasted } => write!(f, "expected an answer to PING, heard nothing for {lasted:?}"),
            Self::Stalled { bytes } => write!(f, "expected the server to read, but {bytes} bytes still wait"),
            Self::MaxPayload { came, at_least } => {
                write!(f, "expected a server with max_payload of at least {at_least} bytes, got {came}")
            }
            Self::TlsRequired => write!(f, "expected a server without TLS, got one that requires it"),
            Self::SignIn(text) => f.write_str(text),
        }
    }
}

impl core::error::Error for Fault {}

impl Fault {
    /// A message came of a subscription that the caller does not know.
    #[must_use]
    pub fn subscription(message: &Message<'_>) -> Self {
        let sid = &message.sid[..message.sid.len().min(SID_BYTES_SHOWN_MAX)];
        Self::Subscription { came: sid.escape_ascii().to_string() }
    }
}

/// Of a sid that we never gave.
const SID_BYTES_SHOWN_MAX: usize = 64;

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl From<JsonError> for Fault {
    fn from(error: JsonError) -> Self {
        Self::Info(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "INFO {\"max_payload\":1048576,\"headers\":true} \r\n";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn session() -> Session {
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: seconds(5),
            ping_interval: seconds(10),
            answer_max: seconds(20),
            max_payload_at_least: 1000,
        };
        Session::new(config, seconds(100))
    }

    /// Feeds `bytes` at `now`, cut at every byte; what is to be written, and the events by name.
    fn told(session: &mut Session, bytes: &str, now: Duration) -> (String, Vec<String>) {
        let (mut events, mut buffer) = (Vec::new(), Vec::new());
        for byte in bytes.as_bytes() {
            session.heard(now);
            buffer.push(*byte);
            loop {
                let (used, event) = session.receive(&buffer).expect("no fault");
                let event = event.map(|event| alloc::format!("{event:?}"));
                buffer.drain(..used);
                match event {
                    Some(event) => events.push(event.split(' ').next().unwrap_or_default().into()),
                    None => break,
                }
            }
        }
        let output = String::from_utf8_lossy(session.output()).into_owned();
        session.wrote(output.len(), now);
        (output, events)
    }

    fn ready() -> Session {
        let mut session = session();
        told(&mut session, INFO, seconds(100));
        assert_eq!(told(&mut session, "PONG\r\n", seconds(100)).1, ["Ready"]);
        session
    }

    fn fault(session: &mut Session, bytes: &str) -> String {
        session.receive(bytes.as_bytes()).expect_err(bytes).to_string()
    }

    #[test]
    fn the_handshake_is_info_connect_ping_pong() {
        let mut session = session();
        let (output, events) = told(&mut session, INFO, seconds(101));
        assert!(output.starts_with("CONNECT {") && output.ends_with("}\r\nPING\r\n"), "{output}");
        assert!(events.is_empty() && !session.is_ready());
        assert_eq!(
            told(&mut session, "PING\r\nPONG\r\n", seconds(101)),
            ("PONG\r\n".into(), alloc::vec!["Ready".into()])
        );
        assert!(session.is_ready());
    }

    #[test]
    fn who_we_are_is_added_to_connect_with_the_nonce_at_hand_and_shown_to_nobody() {
        let mut session = session().signing_in(SignIn::new(|info, connect| {
            connect.jwt = Some("s3cret".into());
            connect.sig = info.nonce.as_ref().map(|nonce| alloc::format!("signed {nonce}"));
            Ok(())
        }));
        assert!(!alloc::format!("{session:?}").contains("s3cret"));
        let info = "INFO {\"max_payload\":1048576,\"nonce\":\"abc\"} \r\n";
        assert!(matches!(session.receive(info.as_bytes()), Ok((_, None))));
        let shown = alloc::format!("{session:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("115, 51, 99"), "{shown}");
        let (output, _) = told(&mut session, "", seconds(100));
        assert!(output.contains(r#""jwt":"s3cret","sig":"signed abc"}"#), "{output}");
        // Told again, it is not asked again.
        assert_eq!(told(&mut session, info, seconds(100)), (String::new(), alloc::vec!["Info".into()]));
    }

    #[test]
    fn who_cannot_say_who_we_are_gives_the_connection_up() {
        let mut session = session().signing_in(SignIn::new(|_, _| Err("expected a nonce".into())));
        assert_eq!(fault(&mut session, INFO), "expected a nonce");
        assert!(session.output().is_empty(), "nothing is said to the server");
    }

    #[test]
    fn over_tls_a_server_may_require_it_and_connect_says_so() {
        let mut session = session().signing_in(
            SignIn::new(|_, connect| {
                connect.user = Some("ann".into());
                Ok(())
            })
            .over_tls(),
        );
        let info = "INFO {\"max_payload\":1048576,\"tls_required\":true} \r\n";
        let (output, _) = told(&mut session, info, seconds(100));
        assert!(output.contains(r#""tls_required":true"#) && output.contains(r#""user":"ann""#), "{output}");
        let mut plain = self::session();
        assert_eq!(fault(&mut plain, info), "expected a server without TLS, got one that requires it");
        assert!(plain.output().is_empty(), "nothing is said to the server");
    }

    #[test]
    fn fences_pass_in_order_and_only_when_there_are_some() {
        let mut session = ready();
        assert_eq!((session.fence(seconds(101)), session.fence(seconds(101))), (Fence(2), Fence(3)));
        assert_eq!(
            told(&mut session, "PONG\r\nPONG\r\n", seconds(101)).1,
            ["Passed(Fence(2))", "Passed(Fence(3))"]
        );
        assert_eq!(fault(&mut session, "PONG\r\n"), "expected no PONG without a PING, got PONG");
    }

    #[test]
    fn a_quiet_server_is_asked_and_a_silent_one_given_up() {
        let mut session = ready();
        session.on_time(seconds(109)).expect("not quiet for long");
        assert!(session.output().is_empty());
        session.on_time(seconds(110)).expect("asks");
        assert_eq!(told(&mut session, "", seconds(110)).0, "PING\r\n");
        session.on_time(seconds(129)).expect("may still answer");
        assert_eq!(
            session.on_time(seconds(130)).expect_err("silent").to_string(),
            "expected an answer to PING, heard nothing for 30s"
        );
    }

    #[test]
    fn a_pause_of_our_own_is_not_the_servers_silence() {
        let mut session = ready();
        session.on_time(seconds(1000)).expect("nobody was asked");
        assert_eq!(told(&mut session, "PONG\r\n", seconds(1001)).0, "PING\r\n");
        session.on_time(seconds(1005)).expect("it has answered");
    }

    #[test]
    fn a_server_that_does_not_read_is_given_up_and_one_that_reads_slowly_is_not() {
        let mut session = ready();
        let subject = Subject::new("a").expect("a valid subject");
        session.publish(subject, &[b'x'; 1000], seconds(200));
        for now in [210, 225, 240] {
            session.heard(seconds(now));
            session.wrote(1, seconds(now));
            session.on_time(seconds(now)).expect("it reads");
        }
        session.heard(seconds(260));
        let fault = session.on_time(seconds(260)).expect_err("it does not read");
        assert_eq!(fault.to_string(), "expected the server to read, but 1011 bytes still wait");
    }

    #[test]
    fn a_server_that_breaks_the_rules_is_a_fault_that_names_them() {
        for (bytes, expected) in [
            ("PING\r\n", "expected INFO, got PING"),
            ("MSG a 1 0\r\n\r\n", "expected INFO, got MSG"),
            (
                "INFO {\"max_payload\":999}\r\n",
                "expected a server with max_payload of at least 1000 bytes, got 999",
            ),
            (
                "INFO {\"max_payload\":1000,\"tls_required\":true}\r\n",
                "expected a server without TLS, got one that requires it",
            ),
            ("-ERR 'Authorization Violation'\r\n", "server closed the connection: Authorization Violation"),
        ] {
            assert_eq!(fault(&mut session(), bytes), expected);
        }
        let late = |at| session().on_time(seconds(at)).map_err(|fault| fault.to_string());
        assert_eq!(late(104), Ok(()));
        assert_eq!(late(105), Err("expected INFO within 5s of connecting, got nothing".into()));
    }

    #[test]
    fn a_refusal_that_keeps_the_connection_is_an_event() {
        let (_, events) =
            told(&mut ready(), "-ERR 'Permissions Violation for Publish to \"x\"'\r\n", seconds(101));
        assert_eq!(events, ["Refused(ErrText('Permissions"]);
    }

    #[test]
    fn a_server_that_is_about_to_close_stays_so_whatever_else_it_tells() {
        let mut session = session();
        let now = seconds(101);
        told(&mut session, &alloc::format!("{INFO}PONG\r\n"), now);
        let is_leaving = |session: &Session| session.info().is_some_and(|info| info.ldm);
        assert!(!is_leaving(&session));
        told(&mut session, "INFO {\"max_payload\":1048576,\"ldm\":true}\r\n", now);
        assert!(is_leaving(&session));
        // The cluster has changed: nats-server tells of that without `ldm`.
        told(&mut session, "INFO {\"max_payload\":1048576,\"connect_urls\":[\"b:1\"]}\r\n", now);
        assert!(is_leaving(&session));
        assert_eq!(session.info().expect("it told").connect_urls, ["b:1"]);
    }
}
