//! Operating the durable mode, on real servers: what an operator asks it, and what it says by itself.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/client.rs"]
mod client;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "service/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alarm_digest::alarm::{AlarmId, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::durable::record::{Nonce, Record};
use alarm_digest::durable::worker::DIGEST_ID;
use nats_server_fixture::{Binary, Process, Server, Signal, eventually};
use nats_wire::jetstream::{Bucket, JetStream, Key, Publication};
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ConnectOptions, Header, Limits, Subject};
use serde_json::{Value, json};
use world::{Client, Listener, SOON, at, change, connect, exit_code, on_each_server, program};

fn jetstream_server(binary: &Binary) -> Server {
    Server::builder(binary).jetstream().start().expect("a server")
}

/// One process of the service on `server`, once it is connected.
fn started(server: &Server, arguments: &[&str]) -> Process {
    let mut command = program(&["--mode", "jetstream", "--server", &server.url(), "--cpus", "0,1"]);
    // The changes are from the start of the year: nothing of them may be forgotten.
    command.args(["--connect-timeout", "2s", "--retention", "10years"]).args(arguments);
    let mut instance = Process::spawn(&command).expect("the program starts");
    instance.wait_for_line("all cores are connected", SOON).expect("it connects");
    instance
}

/// What the program prints and how it ends, run to its end.
fn output(command: &Command) -> (i32, String, String) {
    let mut process = Process::spawn(command).expect("the program starts");
    (exit_code(&mut process), process.stdout(), process.stderr())
}

fn state(server: &Server, user: &str, arguments: &[&str]) -> (i32, String, String) {
    output(program(&["state", user, "--server", &server.url()]).args(arguments))
}

fn state_json(server: &Server, user: &str) -> Value {
    let (code, json, error) = state(server, user, &["--json"]);
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&json).expect("JSON")
}

#[test]
fn the_state_of_a_user_is_what_was_published_and_told() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let service = started(&server, &[]);
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "fan", "WARNING", &at(2)));
        listener.publish(&change("ann", "disk", "CRITICAL", &at(1)));
        listener.flush();
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() == 2);
        listener.publish(&change("ann", "disk", "CLEARED", &at(3)));
        listener.publish(&change("ann", "bell\u{7}", "WARNING", &at(4)));
        listener.flush();

        let expected = json!([
            { "AlarmID": "fan", "Status": "WARNING", "LatestChangedAt": at(2), "Due": false, "Tombstone": false,
              "Told": { "Status": "WARNING", "ChangedAt": at(2) } },
            { "AlarmID": "disk", "Status": "CLEARED", "LatestChangedAt": at(3), "Due": true, "Tombstone": true,
              "Told": { "Status": "CRITICAL", "ChangedAt": at(1) } },
            { "AlarmID": "bell\u{7}", "Status": "WARNING", "LatestChangedAt": at(4), "Due": true, "Tombstone": false,
              "Told": null },
        ]);
        eventually(SOON, "the last two changes in the bucket", || {
            state_json(&server, "ann")["Alarms"] == expected
        });
        let state_now = state_json(&server, "ann");
        assert_eq!(state_now["UserID"], "ann");
        assert_eq!(state_now["Outbox"], Value::Null, "{state_now}");
        assert_eq!(state_now["LastDigest"], listener.digests, "{state_now}");
        assert!(state_now["Revision"].as_u64() > Some(0), "{state_now}");

        let (code, table, error) = state(&server, "ann", &[]);
        assert_eq!(code, 0, "{error}{}", service.log());
        let rows: Vec<String> = table
            .lines()
            .map(|line| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|")
            })
            .collect();
        let expected = [
            "ALARM|STATUS|LATEST CHANGED AT|TOLD|TOLD CHANGED AT|NEXT".to_owned(),
            format!("fan|WARNING|{0}|WARNING|{0}", at(2)),
            format!("disk|CLEARED|{}|CRITICAL|{}|tombstone, due when active", at(3), at(1)),
            format!("bell\\u{{7}}|WARNING|{}|never|due", at(4)),
        ];
        assert!(rows.ends_with(&expected), "{table}");
    });
}

#[test]
fn a_digest_that_is_decided_and_not_sent_shows_as_that() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let mut service = started(&server, &[]);
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        let mut record = Record::new(user("ann"));
        let disk = AlarmId(Id::new("disk").expect("an id"));
        record.apply(&disk, Condition::new(Timestamp::new(0, 0), Status::Warning));
        record.decide(Nonce(0xabc), usize::MAX, |_, _| true);
        store(&server, "ann", &record.encode());

        let outbox = state_json(&server, "ann")["Outbox"].clone();
        let alarm =
            json!({ "AlarmID": "disk", "Status": "WARNING", "LatestChangedAt": "1970-01-01T00:00:00Z" });
        let id = format!("{:032x}", 0xabc);
        assert_eq!(outbox, json!({ "ID": id, "Sent": false, "ActiveAlarms": [alarm] }));
        let (_, table, _) = state(&server, "ann", &[]);
        assert!(
            table.contains("a digest of 1 alarm is decided and not in AD_OUT yet")
                && table.contains("in the outbox"),
            "{table}"
        );

        // As after a crash between its publication and the store that takes it out of the record.
        publish_digest(&server, "ann", &id);
        assert_eq!(state_json(&server, "ann")["Outbox"]["Sent"], true);
        let (_, table, _) = state(&server, "ann", &[]);
        assert!(table.contains("sent: it is the last one in AD_OUT"), "{table}");

        let service = started(&server, &[]);
        connect_and_ask(&server, "ann");
        eventually(SOON, "an empty outbox", || state_json(&server, "ann")["Outbox"].is_null());
        assert_eq!(state_json(&server, "ann")["LastDigest"], 1, "{}", service.log());
    });
}

#[test]
fn a_state_that_cannot_be_told_is_said_and_why() {
    on_each_server(|binary| {
        let refused = |server: &Server, user: &str, arguments: &[&str], said: &[&str]| {
            let (code, printed, error) = state(server, user, arguments);
            assert_eq!((code, printed.as_str()), (1, ""), "{error}");
            for text in said {
                assert!(error.contains(text), "expected `{text}` in: {error}");
            }
        };
        let mut server = Server::start(binary).expect("a server");
        refused(&server, "ann", &[], &["expected JetStream, but nobody answers", "enabled"]);
        server.kill();
        refused(&server, "ann", &[], &["expected a server that answers", "refused"]);

        let server = jetstream_server(binary);
        refused(&server, "ann", &[], &["expected bucket AD_STATE, but there is none", "--js-name"]);
        let _service = started(&server, &[]);
        refused(&server, "ann", &[], &["expected a record of user \"ann\"", "nothing is known"]);
        refused(&server, "ann", &["--js-name", "XY"], &["expected bucket XY_STATE"]);
        refused(&server, "ann", &["--js-api-prefix", "$JS.nowhere.API"], &["nobody answers"]);
        store(&server, "ann", b"nonsense");
        refused(
            &server,
            "ann",
            &[],
            &["key ann of bucket AD_STATE at revision 1", "expected a record of version 1"],
        );

        let (code, _, error) = state(&server, "", &[]);
        assert!(code == 2 && error.contains("expected 1 to 256 bytes"), "{error}");
    });
}

#[test]
fn a_backlog_is_said_and_summed_up() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        // A digest of this user was decided where more is taken than here, so its messages are held, and no more than ten may
        // be under way. Without affinity, because then it asks for messages before it first looks.
        let mut service = started(&server, &["--js-ack-pending-max", "10", "--no-affinity"]);
        let mut record = Record::new(user("ann"));
        for number in 0..20_000 {
            let alarm = AlarmId(Id::new(&format!("alarm {number}")).expect("an id"));
            record.apply(&alarm, Condition::new(Timestamp::new(0, 0), Status::Warning));
        }
        record.decide(Nonce(0xabc), usize::MAX, |_, _| true);
        store(&server, "ann", &record.encode());
        let mut listener = Listener::new(&server);
        for second in 0..2_000 {
            listener.publish(&change("ann", "disk", "WARNING", &at(second)));
        }
        listener.flush();
        let line = service.wait_for_line("backlog", SOON).expect("it is said");
        assert!(line.contains("messages wait in the queue") && line.contains("pending=1990"), "{line}");
        assert!(line.contains("ack_pending=10"), "{line}");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        assert_eq!(service.log().matches("backlog").count(), 1, "{}", service.log());
        assert_eq!(summed_up(&service, "queue_pending"), 1990);
        assert_eq!(summed_up(&service, "queue_ack_pending"), 10);
    });
}

#[test]
fn a_stream_that_is_nearly_full_is_said() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let mut service = started(&server, &["--js-output-bytes-max", "10000"]);
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        assert!(!service.log().contains("% full"), "{}", service.log());
        for _ in 0..8 {
            let subject = Subject::new("AD.out.ann").expect("a subject");
            ask(&server, |jetstream, client| {
                let publication = Publication::new(subject, &[b'x'; 1000]);
                jetstream.publish(client.session(), publication, (), Duration::ZERO).expect("it fits");
            });
        }
        let mut service = started(&server, &[]);
        let line = service.wait_for_line("% full", SOON).expect("it is said");
        assert!(line.contains("AD_OUT is more than 80 % full") && line.contains("bytes_max=10000"), "{line}");
    });
}

#[test]
fn a_user_that_cannot_be_done_stops_nobody() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let mut service = started(&server, &["--js-ack-pending-max", "10"]);
        store(&server, "ann", b"nonsense");
        let mut listener = Listener::new(&server);
        for second in 0..50 {
            listener.publish(&change("ann", "disk", "WARNING", &at(second)));
        }
        listener.publish(&change("bob", "disk", "WARNING", &at(1)));
        listener.flush();
        listener.ask_until(|_| vec!["bob"], |listener| listener.told_of("bob").len() == 1);
        let line = service.wait_for_line("record-damaged", SOON).expect("it is said");
        assert!(line.contains("expected a record of version 1, got version 110"), "{line}");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert_eq!(summed_up(&service, "queue_ack_pending"), 0, "{}", service.log());
    });
}

/// The accounts that docs/jetstream.md tells operators to configure.
fn documented_accounts() -> &'static str {
    let docs = include_str!("../docs/jetstream.md");
    let at = docs.find("accounts {").expect("the documentation has them");
    docs[at..].split("```").next().expect("a part")
}

/// A server with `accounts`, where whoever does not log in is `user`.
fn locked_server(binary: &Binary, store: &Path, accounts: &str, user: &str) -> Server {
    let store = format!("jetstream {{ store_dir: {:?} }}", store.display().to_string());
    let config = format!("{accounts}\nno_auth_user: {user}\n{store}");
    Server::builder(binary).config(&config).start().expect("a server")
}

/// One of those who publish and read.
fn world_of(server: &Server) -> Listener {
    let connect = ConnectOptions {
        name: "world".into(),
        user: Some("world".into()),
        pass: Some("change me".into()),
        ..ConnectOptions::default()
    };
    let config = SessionConfig {
        connect,
        limits: Limits::client(),
        handshake_max: SOON,
        ping_interval: SOON,
        answer_max: SOON * 2,
        max_payload_at_least: 0,
    };
    let stream = TcpStream::connect(server.addr()).expect("the server listens");
    let mut client = Client::new(stream, config, SignIn::default()).expect("the server takes us");
    client.subscribe("AlarmDigest", None, 1);
    client.subscribe("AlarmDigest.rejected", None, 2);
    client.flush(Instant::now() + SOON).expect("the server reads it");
    Listener { client, told: BTreeMap::new(), digests: 0 }
}

#[test]
fn the_documented_permissions_are_enough_and_a_missing_one_is_said() {
    on_each_server(|binary| {
        let directory = Directory::new();
        let quiet = |server: &Server, service: &mut Process| {
            service.signal(Signal::TERM).expect("it runs");
            assert_eq!(exit_code(service), 0, "{}", service.log());
            assert!(!service.log().contains("refused:"), "{}", service.log());
            assert!(!server.log().contains("iolation"), "{}", server.log());
        };
        let accounts = documented_accounts();
        std::fs::create_dir_all(directory.path()).expect("a directory of our own");
        let password = directory.path().join("password");
        std::fs::write(&password, "change me\n").expect("it is written");
        let password = password.display().to_string();
        let as_user = |user| ["--user", user, "--password-file", &password];

        let server = locked_server(binary, directory.path(), accounts, "setup");
        let mut service = started(&server, &as_user("setup"));
        let mut world = world_of(&server);
        world.publish(&change("ann", "disk", "WARNING", &at(1)));
        world.ask_until(|_| vec!["ann"], |world| world.told_of("ann").len() == 1);
        quiet(&server, &mut service);
        drop(server);

        let server = locked_server(binary, directory.path(), accounts, "service");
        let mut service = started(&server, &[&["--no-provision"][..], &as_user("service")].concat());
        // A decided digest that names the wrong one before it: somebody has to look which one that is.
        let mut record = Record::new(user("bob"));
        let disk = AlarmId(Id::new("disk").expect("an id"));
        record.last_digest = 99;
        record.apply(&disk, Condition::new(Timestamp::new(0, 0), Status::Warning));
        record.decide(Nonce(0xabc), usize::MAX, |_, _| true);
        store(&server, "bob", &record.encode());
        let mut world = world_of(&server);
        world.publish(&change("ann", "disk", "CRITICAL", &at(2)));
        world.ask_until(
            |_| vec!["ann", "bob"],
            |world| world.told_of("ann").len() == 1 && world.told_of("bob").len() == 1,
        );
        assert_eq!(state_json(&server, "ann")["Alarms"][0]["Told"]["Status"], "CRITICAL");
        service.wait_for_line("connected", SOON).expect("it is there");
        quiet(&server, &mut service);
        assert!(summed_up(&service, "conflicts") > 0, "nobody had to look: {}", service.log());

        let mut setup = program(&["--mode", "jetstream", "--server", &server.url(), "--cpus", "0"]);
        let (code, _, error) = output(setup.args(["--connect-timeout", "2s"]));
        let said = "stream AD_IN: expected a stream, got `server refused: Permissions Violation for Publish to \"$JS.API.STREAM.CREATE.AD_IN\"";
        assert!(code == 1 && error.to_lowercase().contains(&said.to_lowercase()), "{error}");
        drop(server);

        let pull = "\"$JS.API.CONSUMER.MSG.NEXT.AD_IN.digest\"";
        assert!(accounts.contains(pull));
        let server =
            locked_server(binary, directory.path(), &accounts.replace(pull, "\"nothing\""), "service");
        let mut service = started(&server, &[&["--no-provision"][..], &as_user("service")].concat());
        let line = service.wait_for_line("server refused", SOON).expect("it says so");
        assert!(
            line.to_lowercase()
                .contains(&format!("permissions violation for publish to {pull}").to_lowercase()),
            "{line}"
        );
        assert!(line.contains("for user `service` with the password in"), "{line}");
    });
}

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("alarm-digest-operate-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the line about JetStream at the end says of `counter`.
fn summed_up(service: &Process, counter: &str) -> u64 {
    let log = service.log();
    let line = log.lines().find(|line| line.contains("JetStream")).expect("a summary");
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(counter)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {counter} in {line}"))
}

fn user(text: &str) -> UserId {
    UserId(Id::new(text).expect("an id"))
}

fn connect_and_ask(server: &Server, user: &str) {
    let mut listener = Listener::new(server);
    listener.ask(user);
    listener.flush();
}

/// Stores a digest in the output stream.
fn publish_digest(server: &Server, user: &str, id: &str) {
    let header = Header::new(DIGEST_ID, id).expect("hexadecimal digits");
    let subject = format!("AD.out.{user}");
    let headers = [header];
    let publication = Publication {
        headers: &headers,
        ..Publication::new(Subject::new(&subject).expect("a subject"), b"a digest")
    };
    ask(server, |jetstream, client| {
        jetstream.publish(client.session(), publication, (), Duration::ZERO).expect("it fits");
    });
}

/// Puts `record` under the key `key`, which has none yet.
fn store(server: &Server, key: &str, record: &[u8]) {
    let (bucket, key) = (Bucket::new("AD_STATE").expect("a name"), Key::new(key).expect("a key"));
    ask(server, |jetstream, client| {
        let session = client.session();
        jetstream.kv_put(session, &bucket, key, record, Some(0), (), Duration::ZERO).expect("it fits");
    });
}

/// Sends one publication, which must be stored.
fn ask(server: &Server, send: impl FnOnce(&mut JetStream<()>, &mut Client)) {
    let mut client = connect(server);
    let mut jetstream = JetStream::new(Subject::new("_INBOX.test").expect("a subject"), 9);
    jetstream.subscribe(client.session(), Duration::ZERO);
    send(&mut jetstream, &mut client);
    let answer = client.next(Instant::now() + SOON).expect("the connection holds").expect("an answer");
    assert!(answer.payload.starts_with(br#"{"stream":""#), "{}", answer.payload.escape_ascii());
}
