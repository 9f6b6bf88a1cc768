//! Servers that say anything, many sessions of it, from a seed: the service lives, keeps to its delays and its memory, says
//! what is wrong, and goes on as if nothing had been once a real server is there.
//!
//! `ALARM_DIGEST_CHAOS_SEED=n` repeats it, `ALARM_DIGEST_CHAOS_SECONDS=n` goes on for longer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nats_server_fixture::{Process, Server, eventually, find};
use nats_wire::{ClientOp, Limits, ServerDecoder, Step};

use crate::proxy::{Passed, Proxy};
use crate::world::{SOON, at, change, connect, exit_code, program};

const SECONDS: u64 = 8;

/// A session that says nothing more is left by the service, or ends by itself after that.
const SESSION_MAX: Duration = Duration::from_secs(3);

/// Two cores that hold little. A core that is told of payloads of 64 MiB may have to hold one.
const RESIDENT_BYTES_MAX: u64 = 350 << 20;

/// Of the two cores together: what is wrong is said when it is new or for the 1st, 2nd, 4th … time, at most about once a
/// second each, and so are bad messages and refusals.
const LINES_A_SECOND_MAX: u64 = 8;

const READY: &str =
    "INFO {\"server_id\":\"N\",\"version\":\"2.15.1\",\"headers\":true,\"max_payload\":1048576} \r\nPONG\r\n";

/// A listener of ours, and how many sessions it has had.
struct Nonsense {
    addr: SocketAddr,
    sessions: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Nonsense {
    fn start(session: impl Fn(u64, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let nonsense = Self { addr, sessions: Arc::default(), is_over: Arc::default() };
        let (sessions, is_over, session) =
            (Arc::clone(&nonsense.sessions), Arc::clone(&nonsense.is_over), Arc::new(session));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                let (number, session) = (sessions.fetch_add(1, Ordering::AcqRel), Arc::clone(&session));
                thread::spawn(move || session(number, stream));
            }
        });
        nonsense
    }

    fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// No session begins any more.
    fn stop(&self) {
        self.is_over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.addr);
    }
}

/// The service on `servers`, the first of which speak nonsense.
fn service(servers: &[SocketAddr], arguments: &[&str]) -> Process {
    let urls: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let mut command = program(&["--server", &urls.join(","), "--cpus", "0,1"]);
    command.args(["--connect-timeout", "1s", "--ping-interval", "1s", "--reconnect-delay-max", "100ms"]);
    command.args(["--unsettled-bytes-max", "8388608", "--output-bytes-max", "1048576"]).args(arguments);
    Process::spawn(&command).expect("it starts")
}

/// It lives, has kept its bounds, and serves on a real server.
fn serves_after_all(mut service: Process, began: Instant, server: &Server, context: &str) {
    assert!(service.ended().is_none(), "{context}: {}", service.log());
    let log = service.log();
    let (resident, seconds) =
        (service.usage().expect("it runs").resident_bytes_max, began.elapsed().as_secs());
    assert!(resident < RESIDENT_BYTES_MAX, "{context}: {} MiB\n{log}", resident >> 20);
    let lines = log.lines().count() as u64;
    assert!(lines < 20 + LINES_A_SECOND_MAX * seconds, "{context}: {lines} lines\n{log}");
    assert!(log.lines().all(|line| line.len() < 2000), "{context}: a line of any length\n{log}");
    assert!(!log.contains("panicked"), "{context}: {log}");
    let deadline = Instant::now() + SOON;
    loop {
        let arguments = ["verify", "--server", &server.url(), "--timeout", "3s"];
        let mut verify = Process::spawn(&program(&arguments)).expect("it starts");
        // What it publishes before the service is there is nobody's.
        if exit_code(&mut verify) == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{context}: {}{}", verify.log(), service.log());
    }
}

#[test]
fn a_server_that_closes_at_once_is_not_knocked_at_without_end() {
    let nonsense = Nonsense::start(|_, stream| drop(stream));
    let mut service = service(&[nonsense.addr], &[]);
    eventually(SOON, "a hundred sessions", || nonsense.sessions() >= 100);
    let (sessions, cpu) = (nonsense.sessions(), service.usage().expect("it runs").cpu());
    assert!(cpu < Duration::from_millis(500 + 10 * sessions), "{cpu:?} for {sessions} sessions");
    let lines = service.log().lines().filter(|line| line.contains("server closed the connection")).count();
    assert!((2..50).contains(&lines), "{lines} lines for {sessions} sessions\n{}", service.log());
    assert!(service.ended().is_none());
}

#[test]
fn any_nonsense_is_survived() {
    let seed = seed();
    let began = Instant::now();
    let mut server = Server::start(&find().expect("a nats-server")).expect("a server");
    server.kill();
    let nonsense = Nonsense::start(move |number, stream| {
        talk(&mut Rng::with_seed(seed.wrapping_add(number)), stream);
    });
    let service = service(&[nonsense.addr, server.addr()], &[]);
    let context = format!("ALARM_DIGEST_CHAOS_SEED={seed}");
    eventually(SOON + seconds(), format!("sessions, {context}"), || {
        began.elapsed() > seconds() && nonsense.sessions() > 50
    });
    println!("{} sessions of nonsense, {context}", nonsense.sessions());
    server.restart().expect("a server");
    nonsense.stop();
    serves_after_all(service, began, &server, &context);
}

/// One session: a transcript, perhaps spoiled, in pieces of any size.
fn talk(rng: &mut Rng, mut stream: TcpStream) {
    let mut says = Vec::new();
    if rng.u32(..8) > 0 {
        says.extend_from_slice(READY.as_bytes());
    }
    for _ in 0..rng.u32(..30) {
        says.extend_from_slice(&something(rng));
    }
    if rng.u32(..2) == 0 {
        spoil(rng, &mut says);
    }
    let _ = stream.set_nodelay(true);
    let piece = [1, 7, 100, 4096, usize::MAX][rng.usize(..5)].min(says.len().max(1));
    // One byte at a time is for what is short.
    let piece = piece.max(says.len() / 1000);
    for bytes in says.chunks(piece) {
        if stream.write_all(bytes).is_err() {
            return;
        }
    }
    if rng.bool() {
        return;
    }
    // Silence, until the service has had enough.
    let _ = stream.set_read_timeout(Some(SESSION_MAX));
    let mut sink = [0; 4096];
    let end = Instant::now() + SESSION_MAX;
    while Instant::now() < end && stream.read(&mut sink).is_ok_and(|bytes| bytes > 0) {}
}

/// One thing that a server could say, right or wrong.
fn something(rng: &mut Rng) -> Vec<u8> {
    const LINES: [&str; 24] = [
        "PING\r\n",
        "PONG\r\n",
        "PONG\r\nPONG\r\nPONG\r\n",
        "+OK\r\n",
        "ping\r\n",
        "INFO {}\r\n",
        "INFO {\"max_payload\":0}\r\n",
        "INFO {\"max_payload\":-1}\r\n",
        "INFO {\"max_payload\":3272,\"headers\":false}\r\n",
        "INFO {\"max_payload\":18446744073709551615,\"headers\":true}\r\n",
        "INFO {\"max_payload\":1048576,\"connect_urls\":[\"\",\"x\",\":\",\"[::1\",\"127.0.0.1:1\"]}\r\n",
        "INFO {\"max_payload\":1048576,\"ldm\":true}\r\n",
        "INFO {\"max_payload\":1048576,\"tls_required\":true}\r\n",
        "INFO []\r\n",
        "-ERR 'Permissions Violation for Publish to \"AlarmDigest.rejected\"'\r\n",
        "-ERR 'Permissions Violation for Subscription to \"SendAlarmDigest\"'\r\n",
        "-ERR 'Unknown Protocol Operation'\r\n",
        "-ERR\r\n",
        "-ERR 'Slow Consumer'\r\n",
        "MSG AlarmStatusChanged 1 99999999\r\n{",
        "MSG AlarmStatusChanged 1 18446744073709551616\r\n",
        "HMSG AlarmStatusChanged 1 20 10\r\n",
        "HMSG AlarmStatusChanged 1 12 14\r\nNATS/1.0 503\r\n\r\n",
        "\r\n",
    ];
    let number = rng.u32(..50);
    let user = format!("user {}", rng.u32(..10));
    let payload = match rng.u32(..5) {
        0 => format!(r#"{{"UserID":"{user}"}}"#),
        1 => "{".into(),
        2 => "[".repeat(rng.usize(..5000)),
        _ => change(
            &user,
            &format!("alarm {number}"),
            ["CLEARED", "WARNING", "CRITICAL"][rng.usize(..3)],
            &at(number),
        ),
    };
    let bytes = payload.len();
    match rng.u32(..10) {
        0..4 => LINES[rng.usize(..LINES.len())].into(),
        4 => format!("MSG AlarmStatusChanged 1 {bytes}\r\n{payload}\r\n").into(),
        5 => format!("MSG SendAlarmDigest 2 loop.{number} {bytes}\r\n{payload}\r\n").into(),
        6 => format!("MSG nobody.asked {} SendAlarmDigest {bytes}\r\n{payload}\r\n", rng.u64(..)).into(),
        7 => format!("HMSG AlarmStatusChanged 1 {} {}\r\n{}{payload}\r\n", 4, bytes + 4, "\r\n:x").into(),
        8 => (0..rng.usize(..2000)).map(|_| rng.u8(..)).collect(),
        _ => vec![b'x'; rng.usize(..200_000)],
    }
}

/// Changes bytes as no fault of a network would.
fn spoil(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.u32(..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        let end = at + rng.usize(..=(bytes.len() - at).min(64));
        match rng.u32(..6) {
            0 => bytes[at] ^= 1 << rng.u32(..8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes.truncate(at),
            4 => bytes.insert(at, rng.u8(..)),
            // Lengths and sequences.
            _ => {
                if let Some(digit) = bytes[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + rng.u8(..10);
                }
            }
        }
    }
}

/// A real server, most of whose words arrive, some of them spoiled.
#[test]
fn jetstream_spoiled_on_its_way_is_survived() {
    let seed = seed();
    let context = format!("ALARM_DIGEST_CHAOS_SEED={seed}");
    let server = Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
    let rng = Mutex::new(Rng::with_seed(seed));
    let (is_spoiling, spoiled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (spoils, counts) = (Arc::clone(&is_spoiling), Arc::clone(&spoiled));
    let spoiling = Proxy::tapped(server.addr(), move |_, passed| {
        if let Passed::ToService(bytes) = passed
            && spoils.load(Ordering::Acquire)
        {
            let mut rng = rng.lock().expect("nobody panics");
            if rng.u32(..20) == 0 {
                spoil(&mut rng, bytes);
                counts.fetch_add(1, Ordering::AcqRel);
            }
        }
    });
    let clean = Proxy::start(server.addr());
    clean.refuse(true);
    let began = Instant::now();
    let arguments = ["--mode", "jetstream", "--js-ack-wait", "2s", "--js-cached-users-max", "20"];
    let mut service = service(&[spoiling.addr(), clean.addr()], &arguments);
    service.wait_for_line("all cores are connected", SOON).expect("it connects");

    is_spoiling.store(true, Ordering::Release);
    let mut client = connect(&server);
    let mut load = Rng::with_seed(seed);
    while began.elapsed() < seconds() || spoiled.load(Ordering::Acquire) < 100 {
        assert!(service.ended().is_none(), "{context}: {}", service.log());
        assert!(began.elapsed() < SOON + seconds(), "{context}: nothing to spoil\n{}", service.log());
        for _ in 0..20 {
            let (user, alarm) = (format!("user {}", load.u32(..100)), format!("alarm {}", load.u32(..5)));
            let status = ["CLEARED", "WARNING", "CRITICAL"][load.usize(..3)];
            client.publish(
                "AlarmStatusChanged",
                change(&user, &alarm, status, &at(load.u32(..80_000))).as_bytes(),
            );
            client.publish("SendAlarmDigest", format!(r#"{{"UserID":"{user}"}}"#).as_bytes());
        }
        client.flush(Instant::now() + SOON).expect("the server answers");
        thread::sleep(Duration::from_millis(20));
    }
    println!("{} answers of JetStream spoiled, {context}", spoiled.load(Ordering::Acquire));
    clean.refuse(false);
    spoiling.refuse(true);
    spoiling.cut();
    serves_after_all(service, began, &server, &context);
}

/// Well-formed lies: a JetStream that says yes to everything, with any numbers.
#[test]
fn a_jetstream_that_lies_is_survived() {
    let seed = seed();
    let context = format!("ALARM_DIGEST_CHAOS_SEED={seed}");
    let mut server = Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
    let urls = [server.addr()];
    let mut first = service(&urls, &["--mode", "jetstream"]);
    first.wait_for_line("all cores are connected", SOON).expect("it makes the streams");
    drop(first);
    server.kill();

    let began = Instant::now();
    let liar = Nonsense::start(move |number, stream| {
        lie(&mut Rng::with_seed(seed.wrapping_add(number)), stream);
    });
    let arguments = ["--mode", "jetstream", "--no-provision", "--js-cached-users-max", "20"];
    let service = service(&[liar.addr, server.addr()], &arguments);
    eventually(SOON + seconds(), format!("sessions, {context}\n{}", service.log()), || {
        began.elapsed() > seconds() && liar.sessions() > 4
    });
    println!("{} sessions of lies, {context}", liar.sessions());
    server.restart().expect("a server");
    liar.stop();
    serves_after_all(service, began, &server, &context);
}

/// Takes CONNECT, answers each PING, and each request with a lie.
fn lie(rng: &mut Rng, mut stream: TcpStream) {
    let end = Instant::now() + SESSION_MAX;
    let _ = stream.set_read_timeout(Some(SESSION_MAX));
    let mut decoder = ServerDecoder::new(Limits { line_bytes_max: 1 << 16, ..Limits::server() });
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    if stream.write_all(&READY.as_bytes()[..READY.len() - 6]).is_err() {
        return;
    }
    while let Ok(bytes @ 1..) = stream.read(&mut chunk)
        && Instant::now() < end
    {
        buffer.extend_from_slice(&chunk[..bytes]);
        let (mut used_all, mut says) = (0, Vec::new());
        loop {
            let (op, used) = match decoder.decode(&buffer[used_all..]) {
                Ok(Step::Op { op, used }) => (op, used),
                Ok(Step::More { .. }) => break,
                Err(error) => panic!("the service wrote what is not NATS: {error}"),
            };
            used_all += used;
            match op {
                ClientOp::Ping => says.extend_from_slice(b"PONG\r\n"),
                ClientOp::Publish(publish) => answer(rng, publish.subject, publish.reply, &mut says),
                _ => {}
            }
        }
        buffer.drain(..used_all);
        if stream.write_all(&says).is_err() {
            return;
        }
    }
}

fn answer(rng: &mut Rng, subject: &[u8], reply: Option<&[u8]>, says: &mut Vec<u8>) {
    let Some(reply) = reply.and_then(|reply| std::str::from_utf8(reply).ok()) else { return };
    let subject = String::from_utf8_lossy(subject);
    let mut message = |subject: &str, sid: u64, reply: &str, headers: &str, payload: &[u8]| {
        let (verb, length) =
            if headers.is_empty() { ("MSG", String::new()) } else { ("HMSG", format!("{} ", headers.len())) };
        let line =
            format!("{verb} {subject} {sid} {reply} {length}{}\r\n{headers}", headers.len() + payload.len());
        says.extend_from_slice(line.as_bytes());
        says.extend_from_slice(payload);
        says.extend_from_slice(b"\r\n");
    };
    // Whom a start tells wrongly whether digests are republished, publishes them twice for ever.
    if subject.ends_with("STREAM.INFO.AD_OUT") {
        let refusal = br#"{"error":{"code":403,"err_code":10000,"description":"not for you"}}"#;
        return message(reply, 1, "x", "", refusal);
    }
    let number = |rng: &mut Rng| [0, 1, 2, 7, rng.u64(..100), u64::MAX][rng.usize(..6)];
    if subject.contains("CONSUMER.MSG.NEXT") {
        for _ in 0..rng.u32(..2000) {
            let user = format!("user {}", rng.u32(..5000));
            let (subject, payload) = match rng.u32(..4) {
                0 => ("SendAlarmDigest", format!(r#"{{"UserID":"{user}"}}"#)),
                1 => ("nobody.asked", "{".into()),
                _ => ("AlarmStatusChanged", change(&user, "disk", "WARNING", &at(rng.u32(..80_000)))),
            };
            let ack =
                format!("$JS.ACK.AD_IN.digest.{}.{}.{}.4.5", number(rng).max(1), number(rng), number(rng));
            message(subject, 2 + rng.u64(..2), &ack, "", payload.as_bytes());
        }
        if rng.bool() {
            let status = ["408 Request Timeout", "409 Consumer Deleted", "100 Idle Heartbeat", "999", "503"];
            message(
                reply,
                2 + rng.u64(..2),
                "x",
                &format!("NATS/1.0 {}\r\n\r\n", status[rng.usize(..5)]),
                b"",
            );
        }
        return;
    }
    let stored = |sequence: u64| {
        format!(
            "NATS/1.0\r\nNats-Subject: a\r\nNats-Sequence: {sequence}\r\nAlarm-Digest-Id: {sequence:x}\r\n\r\n"
        )
    };
    let random: Vec<u8> = (0..rng.usize(..60)).map(|_| rng.u8(..)).collect();
    match rng.u32(..12) {
        0 => {}
        1 => message(reply, 1, "x", "NATS/1.0 404 Message Not Found\r\n\r\n", b""),
        2 => message(reply, 1, "x", "NATS/1.0 503\r\n\r\n", b""),
        3 => message(reply, 1, "x", &stored(number(rng)), &random),
        4 => message(reply, 1, "x", &stored(number(rng)), b""),
        5 => message(reply, 1, "x", "", b"{\"error\":{\"code\":400,\"err_code\":10071,\"description\":\"wrong last sequence: 2\"}}"),
        6 => message(reply, 1, "x", "", &random),
        7 => message(reply, 1, "x", "", b"{\"error\":{\"code\":404,\"err_code\":10037}}"),
        8 => message(reply, 1, "x", "", b"{\"config\":{\"max_bytes\":1},\"state\":{\"bytes\":18446744073709551615},\"stream_name\":\"x\",\"name\":\"y\",\"num_pending\":18446744073709551615}"),
        _ => {
            let ack = format!("{{\"stream\":\"X\",\"seq\":{}}}", number(rng));
            message(reply, 1, "x", "", ack.as_bytes());
        }
    }
}

fn seed() -> u64 {
    number("ALARM_DIGEST_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..))
}

fn seconds() -> Duration {
    Duration::from_secs(number("ALARM_DIGEST_CHAOS_SECONDS").unwrap_or(SECONDS))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")))
}
