//! Health, readiness and metrics over HTTP, of the program on real servers, in both modes.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../src/client.rs"]
mod client;
mod endpoint;
mod metrics;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../service/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use alarm_digest::http_request::Format;
use nats_server_fixture::{Process, Server};
use world::{SOON, on_each_server, program};

const MODES: [&str; 2] = ["memory", "jetstream"];

/// Runs `test` on a server of its own in both modes, on every version of nats-server that can be had.
fn on_each_server_and_mode(test: impl Fn(Server, &str)) {
    on_each_server(|binary| {
        for mode in MODES {
            eprintln!("in mode {mode}");
            test(Server::builder(binary).jetstream().start().expect("a server"), mode);
        }
    });
}

/// The program, and where it answers.
fn started(server: &Server, mode: &str) -> (Process, SocketAddr) {
    let mut command = program(&["--mode", mode, "--server", &server.url(), "--cpus", "0,1"]);
    // The changes are from the start of the year: nothing of them may be forgotten.
    command.args(["--retention", "10years", "--reconnect-delay-max", "200ms", "--http", "127.0.0.1:0"]);
    let mut service = Process::spawn(&command).expect("the program starts");
    let line = service.wait_for_line("listening: http://", SOON).expect("it says where");
    let addr = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    (service, addr.parse().expect("an address"))
}

fn connected(server: &Server, mode: &str) -> (Process, SocketAddr) {
    let (mut service, addr) = started(server, mode);
    service.wait_for_line("all cores are connected", SOON).expect("it connects");
    (service, addr)
}

/// All that is answered to `request`, as it comes.
fn exchange(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    stream.write_all(request).expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer comes to its end");
    answer
}

/// The status code and the body of what is at `path`.
fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    split(&exchange(addr, format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()))
}

fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    assert!(body.is_empty() || length == body.len().to_string(), "{answer}");
    let code = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    (code.expect("a status").parse().expect("a number"), body.into())
}

/// All metrics in this form.
fn page(addr: SocketAddr, format: Format) -> String {
    let content_type = format.content_type();
    let answer =
        exchange(addr, format!("GET /metrics HTTP/1.1\r\nAccept: {content_type}\r\n\r\n").as_bytes());
    assert!(answer.contains(&format!("\r\nContent-Type: {content_type}\r\n")), "{answer}");
    split(&answer).1
}

/// All samples, without their core, those of all cores added up.
fn samples(addr: SocketAddr) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in get(addr, "/metrics").1.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let name =
            name.replace("core=\"0\"", "").replace("core=\"1\"", "").replace("{,", "{").replace("{}", "");
        *samples.entry(name).or_default() += value.parse::<f64>().expect("a number");
    }
    samples
}

fn is_ready(addr: SocketAddr) -> bool {
    get(addr, "/readyz") == (200, "ok\n".into())
}
