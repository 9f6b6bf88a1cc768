//! A server that speaks nonsense: each time the service says what it expected and what came, and tries again. No
//! nats-server can be made to do this, so a listener of ours does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use nats_server_fixture::{Process, eventually};
use serde_json::json;

use crate::world::{SOON, at, change, program};

const INFO: &str = "INFO {\"max_payload\":1048576,\"headers\":true} \r\n";
const READY: &str = "INFO {\"max_payload\":1048576,\"headers\":true} \r\nPONG\r\n";

/// What the server says, whether it then closes the connection, and what the service's log must say of it.
fn check(says: &[u8], then_closes: bool, expected: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = listener.local_addr().expect("it is bound").to_string();
    let says = says.to_vec();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let says = says.clone();
            std::thread::spawn(move || {
                let _ = stream.write_all(&says);
                if !then_closes {
                    let _ = std::io::copy(&mut Read::take(&stream, 1 << 20), &mut std::io::sink());
                }
            });
        }
    });
    let arguments = [
        ["--server", &url],
        ["--cores", "1"],
        ["--connect-timeout", "1s"],
        ["--ping-interval", "500ms"],
        ["--reconnect-delay-max", "100ms"],
    ];
    let mut service = Process::spawn(&program(arguments.as_flattened())).expect("it starts");
    service.wait_for_line(expected, SOON).expect("it says what came");
    // And again: it has come back for more.
    service.wait_for_lines(expected, 2, SOON).expect("it tries again");
    let resident = service.usage().expect("it runs").resident_bytes_max;
    assert!(resident < 200 << 20, "{} MiB for `{expected}`", resident >> 20);
    let log = service.log();
    assert!(log.lines().all(|line| line.len() < 2000), "a line of any length for `{expected}`");
    assert!(!log.contains('\x1b'), "what a terminal obeys, for `{expected}`");
}

#[test]
fn a_server_that_sends_no_nats() {
    check(b"HTTP/1.1 400 Bad Request\r\n\r\n", false, "expected a verb");
    check(&[0; 4096], false, "expected a verb");
    check(b"PING\r\n", false, "expected INFO, got PING");
    check(b"INFO {\r\n", false, "expected INFO with a JSON object");
    check(
        b"INFO {\"max_payload\":100}\r\n",
        false,
        "expected a server with max_payload of at least 3272 bytes, got 100",
    );
    check(
        b"INFO {\"max_payload\":1048576,\"tls_required\":true}\r\n",
        false,
        "expected the server to finish the TLS handshake, got nothing in time",
    );
}

#[test]
fn a_server_that_is_no_server_for_us() {
    check(b"INFO {\"max_payload\":0}\r\n", false, "with max_payload of at least 3272 bytes, got 0");
    check(b"INFO {\"max_payload\":-1}\r\n", false, "invalid value: integer `-1`, expected u64");
    check(b"INFO {\"max_payload\":1e99}\r\n", false, "expected INFO with a JSON object");
    let text = "x".repeat(500_000);
    check(format!("INFO {{\"max_payload\":\"{text}\"}}\r\n").as_bytes(), false, "invalid type: string");
    check(format!("-ERR '\x1b[2J{}'\r\n", &text[..10_000]).as_bytes(), false, "\\u{1b}[2Jxxx");
    check(
        format!("INFO {{\"max_payload\":{}}}\r\nPONG\r\n", u64::MAX).as_bytes(),
        false,
        "heard nothing for",
    );
    // It changes its mind.
    check(format!("{READY}INFO {{\"max_payload\":100}}\r\n").as_bytes(), false, "got 100");
    check(
        format!("{READY}{}", "INFO {\"max_payload\":4000}\r\n".repeat(100_000)).as_bytes(),
        false,
        "heard nothing for",
    );
    check(
        format!("{READY}MSG nobody.asked 99 2\r\n{{}}\r\n").as_bytes(),
        false,
        "expected a message of a subscription of ours, got one of `99`",
    );
}

#[test]
fn a_server_that_closes_for_every_reason() {
    for text in [
        "Unknown Protocol Operation",
        "Attempted To Connect To Route Port",
        "Authorization Timeout",
        "Invalid Client Protocol",
        "Maximum Control Line Exceeded",
        "Parser Error",
        "Secure Connection - TLS Required",
        "Stale Connection",
        "Slow Consumer",
        "Maximum Payload Violation",
        "",
    ] {
        check(
            format!("{READY}-ERR '{text}'\r\n").as_bytes(),
            false,
            &format!("server closed the connection: {text}"),
        );
    }
    let refused = "Permissions Violation for Subscription to \"SendAlarmDigest\"";
    check(format!("{READY}-ERR '{refused}'\r\n").as_bytes(), false, "server refused: Permissions Violation");
}

#[test]
fn a_reason_that_was_not_said_last_is_said() {
    let sessions = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = listener.local_addr().expect("it is bound").to_string();
    let count = std::sync::Arc::clone(&sessions);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Among attempts 41 to 60 there is no power of two.
            if (40..60).contains(&count.fetch_add(1, std::sync::atomic::Ordering::AcqRel)) {
                let _ = stream.write_all(b"-ERR 'Maximum Connections Exceeded'\r\n");
            }
        }
    });
    let arguments = ["--server", &url, "--cores", "1", "--reconnect-delay-max", "100ms"];
    let mut service = Process::spawn(&program(&arguments)).expect("it starts");
    service.wait_for_line("Maximum Connections Exceeded", SOON).expect("it says so");
}

#[test]
fn a_server_that_never_answers() {
    check(b"", false, "expected INFO within 1s of connecting, got nothing");
    check(INFO.as_bytes(), false, "expected PONG within 1s of connecting, got nothing");
    check(READY.as_bytes(), false, "heard nothing for");
}

#[test]
fn a_server_that_closes() {
    check(b"", true, "server closed the connection");
    check(
        format!("{READY}MSG AlarmStatusChanged 1 100\r\n{{").as_bytes(),
        true,
        "server closed the connection",
    );
    check(
        b"-ERR 'Maximum Connections Exceeded'\r\n",
        true,
        "server closed the connection: Maximum Connections Exceeded",
    );
    check(b"-ERR 'Authorization Violation'\r\n", true, "Authorization Violation");
}

#[test]
fn a_server_that_sends_too_much() {
    check(&[b"INFO ".to_vec(), vec![b'x'; 8 << 20]].concat(), false, "INFO");
    check(&[READY.as_bytes(), b"MSG ", &vec![b'x'; 8 << 20]].concat(), false, "MSG");
    check(format!("{READY}MSG AlarmStatusChanged 1 999999999\r\n").as_bytes(), false, "MSG");
    check(format!("{READY}MSG AlarmStatusChanged 1 99999999999999999999\r\n").as_bytes(), false, "MSG");
    check(format!("{READY}PONG\r\nPONG\r\n").as_bytes(), false, "expected no PONG without a PING, got PONG");
    check(format!("{READY}MSG AlarmStatusChanged 1 2\r\n{{}}xx").as_bytes(), false, "MSG");
    check(format!("{READY}MSG AlarmStatusChanged 1\r\n").as_bytes(), false, "MSG");
}

/// What the service says on one connection.
type Heard = BufReader<TcpStream>;

/// A server of ours that begins as one should.
#[derive(Clone)]
struct Answering {
    addr: SocketAddr,
    sessions: Arc<AtomicU64>,
}

impl Answering {
    fn start(then: impl Fn(TcpStream, Heard) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let sessions = Arc::new(AtomicU64::new(0));
        let (count, then) = (Arc::clone(&sessions), Arc::new(then));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::AcqRel);
                let then = Arc::clone(&then);
                thread::spawn(move || {
                    let _ = stream.write_all(INFO.as_bytes());
                    let heard = BufReader::new(stream.try_clone().expect("a socket can be had twice"));
                    then(stream, heard);
                });
            }
        });
        Self { addr, sessions }
    }

    fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }
}

/// Answers each PING until a line begins with `end`, or the connection ends.
fn answer_until(heard: &mut Heard, end: &str) {
    let mut line = String::new();
    while !line.starts_with(end) {
        line.clear();
        if !heard.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            return;
        }
        if line == "PING\r\n" {
            let _ = heard.get_ref().write_all(b"PONG\r\n");
        }
    }
}

/// To the end of the connection, beside what else is said there.
fn go_on_answering(mut heard: Heard) {
    thread::spawn(move || answer_until(&mut heard, "END"));
}

/// A server that is about to close, and tells it as nats-server does: once.
fn about_to_close(connect_urls: &[SocketAddr]) -> String {
    format!("INFO {{\"max_payload\":1048576,\"ldm\":true,\"connect_urls\":{}}}\r\n", json!(connect_urls))
}

fn told_of(connect_urls: &[SocketAddr]) -> String {
    about_to_close(connect_urls).replace(",\"ldm\":true", "")
}

/// On one core, with little patience.
fn impatient(servers: &[SocketAddr]) -> Process {
    let urls: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let arguments = [["--server", &urls.join(",")], ["--cores", "1"], ["--reconnect-delay-max", "100ms"]];
    Process::spawn(&program(arguments.as_flattened())).expect("it starts")
}

#[test]
fn a_server_that_is_about_to_close_is_left_whatever_else_it_tells() {
    let next = Answering::start(|_, heard| go_on_answering(heard));
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound");
    let next_addr = next.addr;
    let first = Answering::start(move |mut stream, mut heard| {
        answer_until(&mut heard, "SUB");
        go_on_answering(heard);
        let mut say = |text: String| {
            thread::sleep(Duration::from_millis(500));
            let _ = stream.write_all(text.as_bytes());
        };
        say(about_to_close(&[]).repeat(1000));
        say(told_of(&[nobody]));
        say(told_of(&[nobody, next_addr]));
        thread::sleep(SOON);
    });
    let mut service = impatient(&[first.addr]);
    service.wait_for_line(" moved", SOON).expect("there is another server");
    let log = service.log();
    assert_eq!(log.matches("no other one that we know of").count(), 1, "{log}");
    assert!(log.contains("cannot move there") && !log.contains("disconnected"), "{log}");
    assert_eq!((first.sessions(), next.sessions()), (1, 1));
}

#[test]
fn servers_that_send_us_to_and_fro_do_not_hurry_us() {
    let both: Arc<OnceLock<[Answering; 2]>> = Arc::default();
    let [one, two] = [0, 1].map(|at| {
        let both = Arc::clone(&both);
        Answering::start(move |mut stream, mut heard| {
            let other = &both.wait()[1 - at];
            let before = other.sessions();
            answer_until(&mut heard, "SUB");
            go_on_answering(heard);
            let _ = stream.write_all(about_to_close(&[other.addr]).as_bytes());
            // Until the service connects there.
            while other.sessions() == before {
                thread::sleep(Duration::from_millis(1));
            }
            let _ = stream.shutdown(Shutdown::Both);
        })
    });
    assert!(both.set([one.clone(), two.clone()]).is_ok(), "it is set once");
    let service = impatient(&[one.addr]);
    eventually(SOON, "both to be tried", || one.sessions() > 1 && two.sessions() > 1);
    let before = one.sessions() + two.sessions();
    thread::sleep(Duration::from_secs(3));
    let sessions = one.sessions() + two.sessions() - before;
    assert!(sessions < 20, "{sessions} connections in three seconds\n{}", service.log());
}

#[test]
fn a_pause_while_a_server_is_left_costs_nothing_that_it_has_answered() {
    let next = Answering::start(|_, heard| go_on_answering(heard));
    let next_addr = next.addr;
    let (has_left, left) = channel();
    let (go_on, is_stopped) = channel();
    let channels = Mutex::new((has_left, is_stopped));
    let first = Answering::start(move |mut stream, mut heard| {
        answer_until(&mut heard, "SUB");
        let _ = stream.write_all(about_to_close(&[next_addr]).as_bytes());
        answer_until(&mut heard, "UNSUB");
        let (has_left, is_stopped) = &*channels.lock().expect("nobody panics");
        has_left.send(()).expect("the test waits");
        is_stopped.recv().expect("the test says so");
        // More than one read takes, and then the answer that is waited for.
        let payload = change("ann", "disk", "WARNING", &at(1));
        let message = format!("MSG AlarmStatusChanged 1 {}\r\n{payload}\r\n", payload.len());
        let _ = stream.write_all(message.repeat(3000).as_bytes());
        go_on_answering(heard);
    });
    let mut service = impatient(&[first.addr]);
    left.recv_timeout(SOON).expect("it moves");
    service.suspend().expect("it runs");
    go_on.send(()).expect("the server waits");
    // Longer than a server has to answer.
    thread::sleep(Duration::from_secs(6));
    service.resume().expect("it runs");
    service.wait_for_line(" moved", SOON).expect("all has come");
    assert!(!service.log().contains("disconnected"), "{}", service.log());
}

#[test]
fn a_server_that_sends_headers_without_sense_is_read_all_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = listener.local_addr().expect("it is bound").to_string();
    let mut service = Process::spawn(&program(&["--server", &url, "--cores", "1"])).expect("it starts");
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.write_all(READY.as_bytes()).expect("it reads");
    stream
        .write_all(b"HMSG AlarmStatusChanged 1 5 7\r\nxx\rxx{}\r\nMSG AlarmStatusChanged 1 0\r\n\r\n")
        .expect("it reads");
    service.wait_for_line("missing-field", SOON).expect("the first is a bad message");
    assert!(!service.log().contains("disconnected"), "{}", service.log());
}
