//! The fixture against the servers it can get, and against a shell.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nats_server_fixture::{Binary, Process, Server, Signal, available, eventually, find};

/// For whatever should happen at once, on however busy a machine.
const SOON: Duration = Duration::from_secs(30);

/// One PING's answer over a new connection, if the server answers at all.
fn pong(server: &Server, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect(server.addr()).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").ok()?;
    let lines = BufReader::new(stream).lines();
    lines.map_while(Result::ok).find(|line| !line.starts_with("INFO "))
}

fn on_each(test: impl Fn(&Binary)) {
    for binary in available().unwrap() {
        eprintln!("on {binary}");
        test(&binary);
    }
}

fn shell(script: &str) -> Process {
    Process::spawn(Command::new("sh").args(["-c", script])).unwrap()
}

#[test]
fn a_server_answers_and_ends_when_asked() {
    on_each(|binary| {
        let mut server = Server::start(binary).unwrap();
        assert_eq!(pong(&server, SOON).as_deref(), Some("PONG"));
        assert_eq!(server.url(), format!("nats://127.0.0.1:{}", server.port()));
        assert!(server.log().contains(&binary.release().to_string()), "{}", server.log());
        assert!(server.usage().unwrap().resident_bytes > 1_000_000);
        server.stop().unwrap();
        assert!(server.stop().is_err(), "it has ended already");
        assert!(server.log().contains("Exiting"), "{}", server.log());
    });
}

#[test]
fn a_killed_server_comes_back_on_its_port() {
    on_each(|binary| {
        let mut server = Server::builder(binary).jetstream().start().unwrap();
        let (addr, pid) = (server.addr(), server.pid());
        for _ in 0..3 {
            server.kill();
            assert_eq!(pong(&server, SOON), None);
            server.restart().unwrap();
            assert_eq!(pong(&server, SOON).as_deref(), Some("PONG"));
        }
        server.restart().unwrap();
        assert_eq!(server.addr(), addr);
        assert_ne!(server.pid(), pid);
        assert_eq!(server.log().matches("Server is ready").count(), 5, "{}", server.log());
    });
}

#[test]
fn a_server_waits_for_its_port_to_be_free_again() {
    on_each(|binary| {
        let mut server = Server::start(binary).unwrap();
        server.kill();
        let passer_by = TcpListener::bind(server.addr()).unwrap();
        thread::scope(|scope| {
            let restarted = scope.spawn(|| {
                server.restart().unwrap();
                assert_eq!(pong(&server, SOON).as_deref(), Some("PONG"));
                server.log()
            });
            thread::sleep(Duration::from_millis(300));
            drop(passer_by);
            let log = restarted.join().unwrap();
            assert!(log.contains("address already in use"), "{log}");
        });
    });
}

#[test]
fn a_suspended_server_answers_when_it_is_resumed() {
    on_each(|binary| {
        let mut server = Server::start(binary).unwrap();
        server.suspend().unwrap();
        assert_eq!(pong(&server, Duration::from_millis(200)), None);
        server.resume().unwrap();
        assert_eq!(pong(&server, SOON).as_deref(), Some("PONG"));
    });
}

#[test]
fn the_configuration_is_the_servers() {
    on_each(|binary| {
        let config = "max_payload: 4096\nport: 1\nauthorization { token: s3cret }";
        let server = Server::builder(binary).config(config).monitoring().jetstream().start().unwrap();
        assert_eq!(pong(&server, SOON).as_deref(), Some("-ERR 'Authorization Violation'"));
        let varz = server.monitor("/varz").unwrap();
        assert!(varz.contains("\"max_payload\": 4096"), "{varz}");
        assert!(varz.contains("\"store_dir\": \"jetstream/jetstream\""), "{varz}");
        assert!(server.monitor("/connz?subs=1").unwrap().contains("\"connections\""));
        assert!(server.monitor("/nothing").unwrap_err().to_string().contains("404"));
    });
}

#[test]
fn a_configuration_that_is_wrong_is_named_by_the_server() {
    on_each(|binary| {
        let error = Server::builder(binary).config("max_payload: many").start().unwrap_err().to_string();
        assert!(error.contains("nats-server.conf:2"), "{error}");
        assert!(error.starts_with(&format!("{binary} did not start: ended with exit status: 1")), "{error}");
    });
}

#[test]
fn a_demo_finds_one() {
    let mut server = Server::start(&find().unwrap()).unwrap();
    assert_eq!(pong(&server, SOON).as_deref(), Some("PONG"));
    server.kill();
}

#[test]
fn many_servers_start_at_once() {
    let binary = available().unwrap().remove(0);
    thread::scope(|scope| {
        let starting: Vec<_> = (0..8).map(|_| scope.spawn(|| Server::start(&binary).unwrap())).collect();
        let mut ports: Vec<u16> =
            starting.into_iter().map(|started| started.join().unwrap().port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    });
}

#[test]
fn a_process_is_heard_on_both_outputs() {
    let mut process = shell("echo out; echo err again >&2; echo err again >&2; exec sleep 1000");
    assert_eq!(process.wait_for_line("ut", SOON).unwrap(), "out");
    assert_eq!(process.wait_for_lines("again", 2, SOON).unwrap(), "err again");
    assert_eq!((process.stdout().as_str(), process.stderr().as_str()), ("out\n", "err again\nerr again\n"));
    assert!(process.wait(Duration::ZERO).unwrap_err().to_string().starts_with("sh still runs after 0ns"));
}

#[test]
fn a_process_that_ends_is_not_waited_for() {
    let mut process = shell("echo so long; exit 3");
    let error = process.wait_for_line("welcome", SOON).unwrap_err().to_string();
    assert!(error.contains("to say `welcome` (1×): it ended with exit status: 3"), "{error}");
    assert!(error.contains("so long"), "{error}");
    assert_eq!(process.wait(SOON).unwrap().code(), Some(3));
    assert!(process.signal(Signal::TERM).is_err());
    assert!(process.usage().is_err());
}

#[test]
fn a_process_gets_its_arguments_its_environment_and_its_directory() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo \"$0 $GREETING $(pwd)\"; env", "--first"]);
    command.env("GREETING", "good day").env_remove("CARGO_MANIFEST_DIR").current_dir("/");
    let mut process = Process::spawn(&command).unwrap();
    process.wait_for_line("--first good day /", SOON).unwrap();
    assert!(process.wait(SOON).unwrap().success());
    assert!(!process.stdout().contains("CARGO_MANIFEST_DIR"), "{}", process.log());
}

#[test]
fn a_program_that_is_not_there_is_an_error_at_once() {
    let error = Process::spawn(&Command::new("no-such-program")).unwrap_err().to_string();
    assert_eq!(error, "no program no-such-program");
}

#[test]
fn a_signal_arrives() {
    let mut process = shell("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done");
    process.wait_for_line("ready", SOON).unwrap();
    process.signal(Signal::TERM).unwrap();
    assert_eq!(process.wait(SOON).unwrap().code(), Some(5));
    assert_eq!(process.stdout(), "ready\ncaught\n");
}

#[test]
fn the_use_of_memory_and_time_is_read() {
    let process = shell("while :; do :; done");
    eventually(SOON, "some processor time", || process.usage().unwrap().cpu() >= Duration::from_millis(50));
    let usage = process.usage().unwrap();
    assert!(usage.resident_bytes > 100_000 && usage.resident_bytes_max >= usage.resident_bytes, "{usage:?}");
}

#[test]
fn a_process_ends_with_its_owner_and_outlives_the_thread_that_started_it() {
    let mut process = thread::spawn(|| shell("exec sleep 1000")).join().unwrap();
    assert_eq!(process.ended(), None);
    let alive = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&alive).exists());
    drop(process);
    assert!(!std::path::Path::new(&alive).exists());
}
