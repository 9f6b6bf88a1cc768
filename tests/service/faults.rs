//! What the service promises when servers die, links break, messages are bad and operators press buttons.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nats_server_fixture::{Process, Server, Signal, eventually};
use nats_wire::Headers;

use crate::world::{
    Listener, SOON, at, change, connect, counted, exit_code, on_each_server, program, service, try_connect,
};

/// A publisher that, like any that wants at least once, publishes again what the server did not confirm.
#[test]
fn a_server_killed_in_the_middle_costs_no_alarm_and_no_memory_of_what_was_told() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0,1", "--reconnect-delay-max", "200ms"]);
        let users: Vec<String> = (0..2000).map(|number| format!("user {number}")).collect();
        let (early, late) = users.split_at(1000);

        let mut before = Listener::new(&server);
        early.iter().for_each(|user| before.publish(&change(user, "disk", "WARNING", &at(1))));
        before.flush();
        let untold = |listener: &Listener| -> Vec<&str> {
            early.iter().map(String::as_str).filter(|user| !listener.told.contains_key(*user)).collect()
        };
        before.ask_until(untold, |listener| listener.told.len() == early.len());

        std::thread::scope(|scope| {
            let mut client = connect(&server);
            let flood = scope.spawn(move || {
                loop {
                    for user in late {
                        client.publish(
                            "AlarmStatusChanged",
                            change(user, "disk", "WARNING", &at(1)).as_bytes(),
                        );
                    }
                    if client.flush(Instant::now() + SOON).is_err() {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(200));
            server.kill();
            flood.join().expect("it ends when the server is gone");
        });
        service.wait_for_lines("disconnected", 2, SOON).expect("both cores notice");
        server.restart().expect("a server");
        service.wait_for_lines("reconnected", 2, SOON).expect("both cores come back");

        let mut after = Listener::new(&server);
        users.iter().for_each(|user| after.publish(&change(user, "disk", "WARNING", &at(1))));
        after.flush();
        let untold = |listener: &Listener| -> Vec<&str> {
            late.iter().map(String::as_str).filter(|user| !listener.told.contains_key(*user)).collect()
        };
        after.ask_until(untold, |listener| listener.told.len() >= late.len());
        early.iter().for_each(|user| after.ask(user));
        after.flush();
        after.hear(Duration::from_secs(1));
        for user in early {
            assert_eq!((before.told_of(user).len(), after.told_of(user).len()), (1, 0), "{user}");
        }
        for user in late {
            assert_eq!(after.told_of(user).len(), 1, "{user}\n{}", service.log());
        }
    });
}

/// Between the service and the server: lets bytes through, or keeps what the service says for itself, or cuts.
pub struct Proxy {
    pub port: u16,
    pub shared: Arc<Shared>,
}

#[derive(Default)]
pub struct Shared {
    pub keeps: AtomicBool,
    pub kept_bytes: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Self { port: listener.local_addr().expect("it is bound").port(), shared: Arc::default() };
        let (addr, shared) = (server.addr(), proxy.shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(addr).expect("the server answers");
                let copy = |stream: &TcpStream| stream.try_clone().expect("a stream");
                shared.streams.lock().expect("nobody panics").extend([copy(&client), copy(&server)]);
                let (client_too, server_too, shared) = (copy(&client), copy(&server), shared.clone());
                std::thread::spawn(move || forward(server_too, client_too, |_| true));
                std::thread::spawn(move || {
                    forward(client, server, |bytes| {
                        let keeps = shared.keeps.load(Ordering::Acquire);
                        shared.kept_bytes.fetch_add(if keeps { bytes } else { 0 }, Ordering::AcqRel);
                        !keeps
                    });
                });
            }
        });
        proxy
    }

    pub fn cut(&self) {
        for stream in self.shared.streams.lock().expect("nobody panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn(usize) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(bytes) = from.read(&mut buffer)
        && bytes > 0
    {
        if may_pass(bytes) && to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_digest_that_was_on_its_way_when_the_link_broke_is_sent_again() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let proxy = Proxy::start(&server);
        let url = format!("nats://127.0.0.1:{}", proxy.port);
        let mut service = Process::spawn(&program(&["--server", &url, "--cpus", "0"])).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "CRITICAL", &at(1)));
        listener.flush();
        listener.hear(Duration::from_millis(500));

        proxy.shared.keeps.store(true, Ordering::Release);
        listener.ask("ann");
        listener.flush();
        eventually(SOON, "the digest, which goes nowhere", || {
            proxy.shared.kept_bytes.load(Ordering::Acquire) > 100
        });
        proxy.shared.keeps.store(false, Ordering::Release);
        proxy.cut();
        service.wait_for_line("reconnected", SOON).expect("it comes back");
        listener.hear(Duration::from_secs(1));
        assert_eq!(listener.told_of("ann").len(), 1, "{}", service.log());

        service.signal(Signal::TERM).expect("it runs");
        assert_eq!((exit_code(&mut service), counted(&service, "resent")), (0, 1));
    });
}

#[test]
fn sigterm_in_the_middle_of_traffic_finishes_what_has_arrived() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0,1"]);
        let mut listener = Listener::new(&server);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut client = connect(&server);
            let is_over = &is_over;
            scope.spawn(move || {
                for number in 0.. {
                    if is_over.load(Ordering::Acquire) {
                        return;
                    }
                    let user = format!("user {number}");
                    client.publish("AlarmStatusChanged", change(&user, "disk", "WARNING", &at(1)).as_bytes());
                    client.publish("SendAlarmDigest", format!(r#"{{"UserID":"{user}"}}"#).as_bytes());
                    if number % 100 == 0 {
                        client.flush(Instant::now() + SOON).expect("the server answers");
                    }
                }
            });
            listener.hear_for(Duration::from_millis(500));
            service.signal(Signal::TERM).expect("it runs");
            let code = exit_code(&mut service);
            is_over.store(true, Ordering::Release);
            assert_eq!(code, 0, "{}", service.log());
        });
        listener.hear(Duration::from_secs(1));
        let digests = counted(&service, "digests");
        assert!(digests > 0);
        assert_eq!((listener.digests, counted(&service, "settled")), (digests, digests), "{}", service.log());
    });
}

#[test]
fn a_quiet_server_that_lives_is_left_alone() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let service = service(&server, &["--cpus", "0", "--ping-interval", "300ms"]);
        std::thread::sleep(Duration::from_secs(4));
        assert!(!service.log().contains("disconnected"), "{}", service.log());
    });
}

#[test]
fn what_came_while_the_service_was_stopped_is_not_lost() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0", "--ping-interval", "300ms"]);
        service.suspend().expect("it runs");
        let mut listener = Listener::new(&server);
        let users: Vec<String> = (0..1000).map(|number| format!("user {number}")).collect();
        users.iter().for_each(|user| listener.publish(&change(user, "disk", "WARNING", &at(1))));
        listener.flush();
        std::thread::sleep(Duration::from_secs(2));
        service.resume().expect("it runs");
        let untold = |listener: &Listener| -> Vec<&str> {
            users.iter().map(String::as_str).filter(|user| !listener.told.contains_key(*user)).collect()
        };
        listener.ask_until(untold, |listener| listener.told.len() == users.len());
    });
}

#[test]
fn a_digest_that_the_server_refuses_is_told_once_it_may_be() {
    on_each_server(|binary| {
        let denied = "users: [{user: a, password: a, permissions: {publish: {deny: [AlarmDigest]}}}, {user: b, password: b}]";
        let config = format!("authorization {{ {denied} }}\nno_auth_user: a");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let mut service = service(&server, &["--cpus", "0"]);
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.flush();
        std::thread::sleep(Duration::from_millis(200));
        listener.ask("ann");
        listener.flush();
        service.wait_for_line("server refused: Permissions Violation for Publish", SOON).expect("it says so");
        service.signal(Signal::TERM).expect("it runs");
        service.wait_for_line("draining", SOON).expect("it says so");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 1, "it was not delivered\n{}", service.log());
        assert!(service.log().contains("1 publications or requests were not done with"), "{}", service.log());
    });
}

#[test]
fn a_second_signal_stops_at_once_and_says_what_is_left() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0"]);
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "CRITICAL", &at(1)));
        listener.flush();
        std::thread::sleep(Duration::from_millis(200));
        // A server that does not answer: the fence of what was published cannot pass.
        server.suspend().expect("it runs");
        service.signal(Signal::TERM).expect("it runs");
        service.wait_for_line("draining", SOON).expect("it says so");
        service.signal(Signal::INT).expect("it runs");
        assert_eq!(exit_code(&mut service), 1, "{}", service.log());
        assert!(
            service.log().contains("second signal") && service.log().contains("not drained"),
            "{}",
            service.log()
        );
        server.resume().expect("it runs");
    });
}

#[test]
fn a_drain_that_takes_too_long_is_given_up_with_an_error() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0", "--drain-timeout", "300ms"]);
        server.suspend().expect("it runs");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 1);
        assert!(service.log().contains("not drained within 300ms"), "{}", service.log());
        server.resume().expect("it runs");
    });
}

#[test]
fn a_server_that_hangs_is_noticed_by_its_silence() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0", "--ping-interval", "500ms"]);
        server.suspend().expect("it runs");
        service.wait_for_line("heard nothing for", SOON).expect("it notices");
        server.resume().expect("it runs");
        service.wait_for_line("reconnected", SOON).expect("it comes back");
    });
}

#[test]
fn bad_messages_are_dead_letters_and_the_good_ones_around_them_count() {
    on_each_server(|binary| {
        let server = Server::builder(binary).config("max_payload: 65536").start().expect("a server");
        let mut service = service(&server, &["--cpus", "0,1"]);
        let mut listener = Listener::new(&server);
        let mut letters = connect(&server);
        letters.subscribe("AlarmDigest.rejected", None, 1);
        letters.flush(Instant::now() + SOON).expect("the server answers");

        let good = change("ann", "disk", "WARNING", &at(1));
        let with = |from: &str, to: &str| good.replace(from, to).into_bytes();
        let long = format!("\"{}\"", "x".repeat(257));
        let bad: Vec<(&str, Vec<u8>)> = vec![
            ("empty", vec![]),
            ("not-json", b"{".to_vec()),
            ("not-json", b"\0".to_vec()),
            ("not-json", vec![b' '; 65536]),
            ("not-utf8", b"{\"UserID\":\"\xff\"}".to_vec()),
            ("wrong-type", b"[]".to_vec()),
            ("wrong-type", format!("\"{}\"", "y".repeat(65534)).into_bytes()),
            ("wrong-type", with("\"ann\"", "7")),
            ("wrong-type", with("\"ann\"", &format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)))),
            ("missing-field", with("UserID", "User")),
            ("duplicate-field", with("{", "{\"userid\":\"ann\",")),
            ("bad-id", with("\"ann\"", "\"\"")),
            ("bad-id", with("\"ann\"", &long)),
            ("unknown-status", with("WARNING", "warning")),
            ("bad-timestamp", with("T", " ")),
            ("bad-timestamp", with("2026-01-01", "2026-02-30")),
        ];
        for (number, (_, payload)) in bad.iter().enumerate() {
            listener.publish(&change("ann", &format!("alarm {number:02}"), "CRITICAL", &at(1)));
            listener.client.publish("AlarmStatusChanged", payload);
        }
        listener.client.publish("SendAlarmDigest", b"who?");
        listener.flush();

        let mut reasons = Vec::new();
        for _ in 0..=bad.len() {
            let letter =
                letters.next(Instant::now() + SOON).expect("the connection holds").expect("a dead letter");
            let headers = Headers::new(&letter.headers);
            let text = |name| String::from_utf8(headers.get(name).expect(name).to_vec()).expect("ASCII");
            let reason = text("Alarm-Digest-Reason");
            if text("Alarm-Digest-Subject") == "SendAlarmDigest" {
                assert_eq!((letter.payload.as_slice(), reason.as_str()), (&b"who?"[..], "not-json"));
                continue;
            }
            let original = bad.iter().find(|(_, payload)| {
                payload.starts_with(&letter.payload)
                    && payload.len().to_string() == text("Alarm-Digest-Payload-Bytes")
            });
            let (expected, payload) = original.unwrap_or_else(|| panic!("not what was sent: {letter:?}"));
            assert_eq!(&reason, expected);
            assert!(letter.payload.len() == payload.len() || payload.len() > 65000, "cut without need");
            reasons.push(reason);
        }
        assert_eq!(reasons.len(), bad.len());
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() >= bad.len());
        assert_eq!(listener.told_of("ann").len(), bad.len());

        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        let log = service.log();
        let lines = log.lines().filter(|line| line.contains("bad message")).count();
        assert!((1..10).contains(&lines), "{lines} lines about bad messages\n{log}");
        assert!(log.contains("unknown-status 1"), "{log}");
    });
}

#[test]
fn a_slow_reader_of_digests_is_not_the_services_problem() {
    on_each_server(|binary| {
        let server = Server::builder(binary)
            .config("max_pending: 1048576\nwrite_deadline: \"1s\"")
            .start()
            .expect("a server");
        let service = service(&server, &["--cpus", "0,1"]);
        // Subscribes to digests and never reads: the server cuts it off.
        let mut deaf = connect(&server);
        deaf.subscribe("AlarmDigest", None, 1);
        deaf.flush(Instant::now() + SOON).expect("the server answers");
        let mut publisher = try_connect(&server).expect("the server answers");
        for number in 0..20_000 {
            let user = format!("user {number}");
            publisher.publish("AlarmStatusChanged", change(&user, "disk", "WARNING", &at(1)).as_bytes());
            publisher.publish("SendAlarmDigest", format!(r#"{{"UserID":"{user}"}}"#).as_bytes());
            if number % 500 == 0 {
                publisher.flush(Instant::now() + SOON).expect("the server answers");
            }
        }
        publisher.flush(Instant::now() + SOON).expect("the server answers");
        let mut verify = Process::spawn(&program(&["verify", "--server", &server.url()])).expect("it starts");
        assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
        assert!(!service.log().contains("disconnected"), "{}", service.log());
    });
}
