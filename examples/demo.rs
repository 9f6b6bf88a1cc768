//! From nothing to a digest: builds the service, gets a real nats-server, starts both, runs the smoke test and shows
//! what goes in and what comes out. Leaves nothing running.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../src/client.rs"]
mod client;
mod program;

use std::error::Error;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nats_server_fixture::{Process, Server, Signal, find};
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ConnectOptions, Limits};

use client::Client;

const SOON: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    println!("building the service …");
    let program = program::build()?;
    let binary = find()?;
    let server = Server::start(&binary)?;
    println!("{binary} listens on {}", server.addr());

    let mut service = Process::spawn(Command::new(&program).args(["--server", &server.url()]))?;
    println!("{}", service.wait_for_line("all cores are connected", SOON)?);

    println!("\n$ alarm-digest verify --server {}", server.addr());
    let verify = Command::new(&program).args(["verify", "--server", &server.url()]).status()?;
    if !verify.success() {
        return Err(format!("the smoke test failed\n{}", service.log()).into());
    }
    println!();
    show_a_digest(&server)?;

    service.signal(Signal::TERM)?;
    let status = service.wait(SOON)?;
    println!("\nSIGTERM: the service drained and ended with {status}");
    println!("Run it on a server of yours: {} --server HOST:PORT", program.display());
    Ok(())
}

fn show_a_digest(server: &Server) -> Result<(), Box<dyn Error>> {
    let config = SessionConfig {
        connect: ConnectOptions::default(),
        limits: Limits::client(),
        handshake_max: SOON,
        ping_interval: SOON,
        answer_max: SOON * 2,
        max_payload_at_least: 0,
    };
    let mut client = Client::new(TcpStream::connect(server.addr())?, config, SignIn::default())?;
    client.subscribe("AlarmDigest", None, 1);
    for (subject, payload) in [
        (
            "AlarmStatusChanged",
            r#"{"UserID":"ann","AlarmID":"disk","Status":"CRITICAL","ChangedAt":"2026-01-02T03:04:07Z"}"#,
        ),
        (
            "AlarmStatusChanged",
            r#"{"UserID":"ann","AlarmID":"fan","Status":"WARNING","ChangedAt":"2026-01-02T03:04:05Z"}"#,
        ),
        (
            "AlarmStatusChanged",
            r#"{"UserID":"ann","AlarmID":"cpu","Status":"WARNING","ChangedAt":"2026-01-02T03:04:05Z"}"#,
        ),
        (
            "AlarmStatusChanged",
            r#"{"UserID":"ann","AlarmID":"cpu","Status":"CLEARED","ChangedAt":"2026-01-02T03:04:06Z"}"#,
        ),
        ("SendAlarmDigest", r#"{"UserID":"ann"}"#),
    ] {
        println!("→ {subject:18} {payload}");
        client.publish(subject, payload.as_bytes());
        client.flush(Instant::now() + SOON)?;
        // So that the request does not overtake the last alarm; they may arrive at different cores.
        std::thread::sleep(Duration::from_millis(50));
    }
    let digest = client.next(Instant::now() + SOON)?.ok_or("expected a digest, got none")?;
    println!("← {:18} {}", digest.subject, String::from_utf8_lossy(&digest.payload));
    Ok(())
}
