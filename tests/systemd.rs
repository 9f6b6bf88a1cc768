//! What systemd is told, over a socket that stands in for its own.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/client.rs"]
mod client;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "service/world.rs"]
mod world;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use nats_server_fixture::{Process, Server, Signal, find};
use nix::sys::ptrace;
use nix::unistd::Pid;
use world::{SOON, exit_code, program};

/// As seen by us, systemd is a socket.
struct Systemd {
    socket: UnixDatagram,
    name: String,
}

impl Systemd {
    fn new() -> Self {
        let name = format!("alarm-digest-test-{}", fastrand::u64(..));
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a name that nobody has");
        socket.set_read_timeout(Some(SOON)).expect("a time");
        Self { socket, name }
    }

    /// Starts the program as a unit with `WatchdogSec=6s` would.
    fn start(&self, arguments: &[&str]) -> Process {
        let mut command: Command = program(arguments);
        command.env("NOTIFY_SOCKET", format!("@{}", self.name)).env("WATCHDOG_USEC", "6000000");
        Process::spawn(&command).expect("the program starts")
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let read = self.socket.recv(&mut bytes).expect("it is told something");
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Hears until something is said that `is_it`, and returns all that was said.
    fn hear_until(&self, is_it: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        while !heard.last().is_some_and(|said: &String| is_it(said)) {
            assert!(heard.len() < 100, "it never comes: {heard:?}");
            heard.push(self.hear());
        }
        heard
    }
}

fn has(said: &str, line: &str) -> bool {
    said.lines().any(|said| said == line)
}

#[test]
fn it_is_ready_when_connected_then_alive_and_stopping_when_told_to() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let systemd = Systemd::new();
    let mut service = systemd.start(&["--server", &server.url(), "--cpus", "0,0"]);
    systemd.hear_until(|said| has(said, "READY=1"));
    for _ in 0..2 {
        let heard = systemd.hear_until(|said| has(said, "WATCHDOG=1"));
        let last = heard.last().expect("that one");
        assert!(last.contains("STATUS=2 of 2 cores connected, 0 users"), "{heard:?}");
    }
    service.signal(Signal::TERM).expect("it runs");
    systemd.hear_until(|said| has(said, "STOPPING=1"));
    assert_eq!(exit_code(&mut service), 0, "{}", service.log());
}

#[test]
fn it_is_not_ready_before_there_is_a_server() {
    let mut server = Server::start(&find().expect("a nats-server")).expect("a server");
    server.kill();
    let systemd = Systemd::new();
    let service =
        systemd.start(&["--server", &server.url(), "--cpus", "0,0", "--reconnect-delay-max", "100ms"]);
    let heard = systemd.hear_until(|said| said.contains("STATUS=0 of 2 cores connected"));
    assert!(!heard.iter().any(|said| has(said, "READY=1")), "{heard:?}");
    server.restart().expect("the server comes back");
    systemd.hear_until(|said| has(said, "READY=1"));
    drop(service);
}

/// One thread is held by ptrace, while the others, among them the one that talks to systemd, go on.
#[test]
fn one_core_that_hangs_is_enough_to_starve_the_watchdog() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let systemd = Systemd::new();
    let service = systemd.start(&["--server", &server.url(), "--cpus", "0,0"]);
    systemd.hear_until(|said| has(said, "READY=1"));
    systemd.hear_until(|said| has(said, "WATCHDOG=1"));

    let core = Pid::from_raw(thread_of(service.pid(), "core-"));
    ptrace::seize(core, ptrace::Options::empty()).expect("a child's thread may be traced");
    ptrace::interrupt(core).expect("it is traced");
    systemd.hear_until(|said| !has(said, "WATCHDOG=1"));
    assert!(service.log().contains("cores hang"), "{}", service.log());

    nix::sys::wait::waitpid(core, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("it has stopped");
    ptrace::detach(core, None).expect("it is traced");
    systemd.hear_until(|said| has(said, "WATCHDOG=1"));
}

/// A thread of `pid` whose name begins so.
fn thread_of(pid: u32, name: &str) -> i32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut paths = threads.map(|thread| thread.expect("it runs").path());
    let path = paths
        .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|found| found.starts_with(name)));
    let path = path.unwrap_or_else(|| panic!("no thread of {pid} is called {name}"));
    path.file_name().and_then(|tid| tid.to_str()?.parse().ok()).expect("a number")
}
