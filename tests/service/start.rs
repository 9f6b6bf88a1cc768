//! Starting it wrong: each refusal comes before anything is started and names its cause and its cure.

use std::process::Command;

use nats_server_fixture::{Process, Server, Signal, eventually, find};

use crate::world::{SOON, exit_code, on_each_server, program};

/// A server that is gone, and keeps its port from others.
fn dead_server() -> Server {
    let mut server = Server::start(&find().expect("a nats-server")).expect("a server");
    server.kill();
    server
}

fn refused(command: &Command, expected_code: i32, said: &[&str]) {
    let mut service = Process::spawn(command).expect("it starts");
    assert_eq!(exit_code(&mut service), expected_code, "{}", service.log());
    for text in said {
        assert!(service.stderr().contains(text), "expected `{text}` in:\n{}", service.log());
    }
}

#[test]
fn wrong_arguments_are_refused_with_what_was_expected() {
    refused(&program(&["--cores", "0"]), 1, &["expected --cores to be from 1 to"]);
    refused(&program(&["--cores", "999"]), 1, &["expected --cores to be from 1 to", "got 999", "--cpus"]);
    refused(
        &program(&["--cpus", "0,999"]),
        1,
        &["expected --cpus to name CPUs that this process may use", "got 999"],
    );
    refused(&program(&["--cpus", "x"]), 2, &["expected CPU numbers below 1024 like 0,2-3, got `x`"]);
    refused(&program(&["--server", "http://x"]), 1, &["expected nats:// or tls://, got scheme `http`"]);
    refused(&program(&["--subject-send", "a b"]), 2, &["--subject-send"]);
    refused(&program(&["--subject-send", "AlarmDigest"]), 1, &["expected four different subjects"]);
    refused(&program(&["--retention", "soon"]), 2, &["--retention"]);
    refused(&program(&["--nonsense"]), 2, &["--nonsense"]);
}

#[test]
fn too_little_memory_that_may_be_locked_is_said_at_the_start() {
    let script = r#"ulimit -l 64 && exec "$0" --cores 1"#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_alarm-digest")]);
    refused(
        &shell,
        1,
        &["at least 512 KiB of locked memory", "got 64 KiB", "ulimit -l 512", "LimitMEMLOCK="],
    );
}

/// A seccomp filter as container runtimes use it, set from Python, whose standard library can.
#[test]
fn a_blocked_io_uring_is_said_at_the_start() {
    const BLOCK: &str = r"
import ctypes, os, struct, sys
SYS_io_uring_setup, ALLOW, EPERM = 425, 0x7fff0000, 0x00050001
ops = [(0x20, 0, 0, 0), (0x15, 0, 1, SYS_io_uring_setup), (0x06, 0, 0, EPERM), (0x06, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *op) for op in ops))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(ops), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
";
    let mut python = Command::new("python3");
    python.args(["-c", BLOCK, env!("CARGO_BIN_EXE_alarm-digest")]);
    refused(&python, 1, &["expected to be allowed to use io_uring", "seccomp", "kernel.io_uring_disabled"]);
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let url = server.url();
        server.kill();
        let mut service = Process::spawn(&program(&["--server", &url, "--reconnect-delay-max", "100ms"]))
            .expect("it starts");
        service.wait_for_line("cannot connect, trying on", SOON).expect("it says so");
        server.restart().expect("a server");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
    });
}

#[test]
fn a_service_that_waits_for_a_server_stops_when_asked_to() {
    let server = dead_server();
    let mut service = Process::spawn(&program(&["--server", &server.url()])).expect("it starts");
    service.wait_for_line("cannot connect", SOON).expect("it says so");
    service.signal(Signal::INT).expect("it runs");
    assert_eq!(exit_code(&mut service), 0, "{}", service.log());
}

#[test]
fn no_wait_ends_when_no_server_answers() {
    let server = dead_server();
    let arguments = ["--no-wait", "--server", &server.url()];
    refused(&program(&arguments), 1, &["expected a server that answers", "refused"]);
}

#[test]
fn the_second_of_two_servers_is_used_when_the_first_is_not_there() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let dead = dead_server();
        let servers = format!("{},{}", dead.url(), server.url());
        let mut service = Process::spawn(program(&[]).env("NATS_URL", servers)).expect("it starts");
        let line = service.wait_for_line("all cores are connected", SOON).expect("it connects");
        assert!(line.contains(&server.addr().to_string()), "{line}");
    });
}

#[test]
fn the_log_is_quiet_and_can_be_json() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let arguments = ["--server", &server.url(), "--log-format", "json"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        let log = service.stderr();
        let messages: Vec<String> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("one object a line"))
            .map(|line| {
                line["message"].as_str().expect("a message").split(':').next().expect("a word").to_owned()
            })
            .collect();
        assert_eq!(messages, ["started", "draining", "stopped"]);
    });
}

#[test]
fn a_core_that_cannot_run_ends_the_service() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    // Enough open files for one executor and not for two.
    let script = r#"ulimit -n 12 && exec "$0" --cpus 0,0 --server "$1""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_alarm-digest"), &server.url()]);
    let mut service = Process::spawn(&shell).expect("it starts");
    assert_ne!(exit_code(&mut service), 0, "{}", service.log());
}

#[test]
fn a_log_that_cannot_be_written_does_not_stop_the_service() {
    on_each_server(|binary| {
        let server = Server::builder(binary).monitoring().start().expect("a server");
        let script = r#"exec "$0" --server "$1" 2>/dev/full"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_alarm-digest"), &server.url()]);
        let mut service = Process::spawn(&shell).expect("it starts");
        let is_subscribed =
            || server.monitor("/connz?subs=1").is_ok_and(|text| text.contains("SendAlarmDigest"));
        eventually(SOON, "the service's subscriptions", is_subscribed);
        let mut verify = Process::spawn(&program(&["verify", "--server", &server.url()])).expect("it starts");
        assert_eq!(exit_code(&mut verify), 0, "{}", verify.log());
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
    });
}
