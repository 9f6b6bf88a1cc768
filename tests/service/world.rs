//! A real nats-server, the real program on it, and clients that know nothing but NATS and JSON.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use nats_server_fixture::{Binary, Process, Server, Signal, available, eventually};
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ConnectOptions, Limits};
use serde_json::{Value, json};

pub use crate::client::{Client, Received};

/// For whatever should happen at once, on however busy a machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Between two requests for what has not come yet: a request may overtake alarms.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// Runs `test` on every version of nats-server that can be had, and fails when none can.
pub fn on_each_server(test: impl Fn(&Binary)) {
    for binary in available().expect("a nats-server is needed for this test") {
        eprintln!("on {binary}");
        test(&binary);
    }
}

/// The program with these arguments, logging at `info`.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alarm-digest"));
    command.args(arguments).env_remove("NATS_URL").env("RUST_LOG", "info");
    command
}

/// The program on `server`, once all its cores are connected.
pub fn service(server: &Server, arguments: &[&str]) -> Process {
    let url = server.url();
    let mut service =
        Process::spawn(program(&["--server", &url]).args(arguments)).expect("the program starts");
    service.wait_for_line("all cores are connected", SOON).expect("it connects");
    service
}

/// Waits until the program has ended, and returns its exit code.
pub fn exit_code(service: &mut Process) -> i32 {
    let status = service.wait(SOON).expect("it ends");
    status.code().unwrap_or_else(|| panic!("ended by a signal: {status}\n{}", service.log()))
}

/// What the line that the program stops with says of `counter`.
pub fn counted(service: &Process, counter: &str) -> u64 {
    let log = service.log();
    let line =
        log.lines().find(|line| line.contains("stopped")).unwrap_or_else(|| panic!("no summary in {log}"));
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(counter)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {counter} in {line}"))
}

pub fn connect(server: &Server) -> Client {
    try_connect(server).expect("the server answers")
}

pub fn try_connect(server: &Server) -> std::io::Result<Client> {
    try_connect_to(server.addr())
}

pub fn try_connect_to(addr: std::net::SocketAddr) -> std::io::Result<Client> {
    let config = SessionConfig {
        connect: ConnectOptions { name: "test".into(), ..ConnectOptions::default() },
        limits: Limits::client(),
        handshake_max: SOON,
        ping_interval: SOON,
        answer_max: SOON * 2,
        max_payload_at_least: 0,
    };
    Client::new(std::net::TcpStream::connect(addr)?, config, SignIn::default())
}

/// In a server's configuration: once told to go, it tells its clients, and closes their connections after 3 s, one a second.
pub const LAME_DUCK: &str = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"3s\"";

/// Puts a server into lame duck mode. Says how often it had ended before.
pub fn tell_to_go(server: &mut Server) -> usize {
    let before = ends(server);
    server.signal(Signal::USR2).expect("it runs");
    before
}

/// Waits until a server has ended more often than that.
pub fn until_gone(server: &Server, before: usize) {
    eventually(SOON, "the server to end", || ends(server) > before);
}

fn ends(server: &Server) -> usize {
    server.log().matches("Server Exiting").count()
}

/// An instant so many seconds into 2026.
pub fn at(second: u32) -> String {
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("2026-01-01T{hour:02}:{minute:02}:{second:02}Z")
}

pub fn change(user: &str, alarm: &str, status: &str, changed_at: &str) -> String {
    json!({ "UserID": user, "AlarmID": alarm, "Status": status, "ChangedAt": changed_at }).to_string()
}

/// One line of a digest: alarm, status, instant.
pub type Alarm = (String, String, String);

/// A client that hears all digests.
pub struct Listener {
    pub client: Client,
    /// What was told of each user, in the order it came.
    pub told: BTreeMap<String, Vec<Alarm>>,
    pub digests: u64,
}

impl Listener {
    pub fn new(server: &Server) -> Self {
        let mut client = connect(server);
        client.subscribe("AlarmDigest", None, 1);
        client.flush(Instant::now() + SOON).expect("the server reads it");
        Self { client, told: BTreeMap::new(), digests: 0 }
    }

    pub fn publish(&mut self, payload: &str) {
        self.client.publish("AlarmStatusChanged", payload.as_bytes());
    }

    pub fn ask(&mut self, user: &str) {
        self.client.publish("SendAlarmDigest", json!({ "UserID": user }).to_string().as_bytes());
    }

    pub fn flush(&mut self) {
        self.client.flush(Instant::now() + SOON).expect("the server answers");
    }

    /// Reads digests until none has come for `quiet`.
    pub fn hear(&mut self, quiet: Duration) {
        while let Some(received) = self.client.next(Instant::now() + quiet).expect("the connection holds") {
            self.take(&received);
        }
    }

    /// Asks for all of `users` again and again until `is_done`.
    pub fn ask_until<'a>(&mut self, users: impl Fn(&Self) -> Vec<&'a str>, is_done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON * 2;
        while !is_done(self) {
            assert!(Instant::now() < deadline, "never told of all; told {} users", self.told.len());
            for user in users(self) {
                self.ask(user);
            }
            self.flush();
            self.hear(ASK_EVERY);
        }
    }

    pub fn told_of(&self, user: &str) -> &[Alarm] {
        self.told.get(user).map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, received: &Received) {
        let digest: Value = serde_json::from_slice(&received.payload).expect("a digest is JSON");
        let alarms: Vec<Alarm> =
            digest["ActiveAlarms"].as_array().expect("an array").iter().map(alarm).collect();
        assert!(!alarms.is_empty(), "an empty digest: {digest}");
        assert!(
            alarms.is_sorted_by_key(|(id, _, at)| (at.clone(), id.clone())),
            "not oldest first: {digest}"
        );
        assert!(alarms.iter().all(|(_, status, _)| status != "CLEARED"), "not active: {digest}");
        self.told.entry(digest["UserID"].as_str().expect("a string").into()).or_default().extend(alarms);
        self.digests += 1;
    }
}

fn alarm(alarm: &Value) -> Alarm {
    let text =
        |field: &str| alarm[field].as_str().unwrap_or_else(|| panic!("no {field} in {alarm}")).to_owned();
    (text("AlarmID"), text("Status"), text("LatestChangedAt"))
}

impl Listener {
    /// Reads digests until one of `user` has come, for at most so long; says whether one has.
    pub fn hear_of(&mut self, user: &str, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.told_of(user).is_empty()
            && let Some(received) = self.client.next(until).expect("the connection holds")
        {
            self.take(&received);
        }
        !self.told_of(user).is_empty()
    }

    /// Reads digests for so long.
    pub fn hear_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(received) = self.client.next(until).expect("the connection holds") {
            self.take(&received);
        }
    }
}
