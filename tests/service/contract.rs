//! What the service promises while nothing breaks.

use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use nats_server_fixture::{Binary, Process, Server, Signal, available};

use crate::world::{
    Listener, SOON, at, change, connect, counted, exit_code, on_each_server, program, service,
};

const SEED: u64 = 2026;

/// One, two and four shards on what may be two CPUs, and how they sleep.
const SHARDS: [(&str, &str); 4] = [("0", "poll"), ("0,1", "poll"), ("0,1,0,1", "poll"), ("0,1", "executor")];

#[test]
fn the_smoke_test_passes_on_one_two_and_four_shards() {
    on_each_server(|binary| {
        for (cpus, sleep) in SHARDS {
            let server = Server::start(binary).expect("a server");
            let mut service = service(&server, &["--cpus", cpus, "--sleep", sleep]);
            let mut verify =
                Process::spawn(&program(&["verify", "--server", &server.url()])).expect("it starts");
            assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
            assert!(verify.stdout().ends_with("Smoke test passed\n"));
            service.signal(Signal::TERM).expect("it runs");
            assert_eq!(exit_code(&mut service), 0);
        }
    });
}

#[test]
fn the_smoke_test_fails_where_no_service_runs() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let arguments = ["verify", "--server", &server.url(), "--timeout", "1s"];
        let mut verify = Process::spawn(&program(&arguments)).expect("it starts");
        assert_eq!(exit_code(&mut verify), 1);
        assert!(verify.stderr().contains("Does the service run on this server?"), "{}", verify.log());
    });
}

#[test]
fn an_independent_client_sees_the_same() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let service = service(&server, &["--cpus", "0,1"]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_client.py");
        let mut python = Command::new("python3");
        let mut client =
            Process::spawn(python.args([script, "--server", &server.addr().to_string()])).expect("python3");
        assert_eq!(exit_code(&mut client), 0, "{}{}", client.log(), service.log());
    });
}

/// On two connections a request may overtake the alarm before it. Then there would be nothing to tell.
#[test]
fn no_digest_misses_the_alarm_published_just_before_the_request() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let _service = service(&server, &["--cpus", "0,1,0,1"]);
        let mut listener = Listener::new(&server);
        for number in 0..300 {
            let user = format!("user {number}");
            listener.publish(&change(&user, "disk", "WARNING", &at(1)));
            listener.ask(&user);
            listener.flush();
            assert!(listener.hear_of(&user, SOON), "the digest of {user} missed its alarm");
        }
    });
}

#[test]
fn five_hundred_alarms_come_in_one_digest_oldest_first() {
    on_each_server(|binary| {
        let (_server, mut listener, _service) = start(binary, "", &["--cpus", "0"]);
        let expected = publish_shuffled(&mut listener, "ann", 500);
        listener.ask_until(|_| vec!["ann"], |listener| listener.digests > 0);
        assert_eq!((listener.digests, listener.told_of("ann")), (1, &expected[..]));
    });
}

#[test]
fn a_digest_larger_than_max_payload_comes_as_several() {
    on_each_server(|binary| {
        let (_server, mut listener, service) = start(binary, "max_payload: 8192", &["--cpus", "0,1"]);
        let expected = publish_shuffled(&mut listener, "ann", 500);
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() >= 500);
        let mut told = listener.told_of("ann").to_vec();
        assert!(listener.digests > 4, "{} digests", listener.digests);
        told.sort_by_key(|(id, _, at)| (at.clone(), id.clone()));
        assert_eq!(told, expected, "{}", service.log());
    });
}

#[test]
fn twenty_thousand_users_are_each_told_exactly_once() {
    on_each_server(|binary| twenty_thousand_users(binary, "poll"));
    twenty_thousand_users(&available().expect("a nats-server is needed for this test")[0], "executor");
}

fn twenty_thousand_users(binary: &Binary, sleep: &str) {
    let (_server, mut listener, mut service) = start(binary, "", &["--cpus", "0,1", "--sleep", sleep]);
    let users: Vec<String> = (0..20_000).map(|number| format!("user {number}")).collect();
    let mut changes: Vec<String> = Vec::new();
    for (number, user) in users.iter().enumerate() {
        for second in 0..3 {
            changes.push(change(
                user,
                "disk",
                ["WARNING", "CLEARED", "CRITICAL"][second],
                &at(second as u32),
            ));
        }
        changes.push(change(user, "fan", ["CLEARED", "WARNING"][number % 2], &at(3)));
    }
    Rng::with_seed(SEED).shuffle(&mut changes);
    for (number, change) in changes.iter().enumerate() {
        listener.publish(change);
        if number % 1000 == 0 {
            listener.flush();
        }
    }
    listener.flush();
    // A request that overtakes a change would rightly be answered without it, and the rest would come later.
    listener.hear(Duration::from_secs(1));
    let untold = |listener: &Listener| {
        users
            .iter()
            .map(String::as_str)
            .filter(|user| !listener.told.contains_key(*user))
            .take(2000)
            .collect()
    };
    listener.ask_until(untold, |listener| listener.told.len() == users.len());
    for user in &users {
        listener.ask(user);
    }
    listener.flush();
    listener.hear(Duration::from_secs(1));
    for (number, user) in users.iter().enumerate() {
        let mut expected = vec![("disk".into(), "CRITICAL".into(), at(2))];
        if number % 2 == 1 {
            expected.push(("fan".into(), "WARNING".into(), at(3)));
        }
        assert_eq!(listener.told_of(user), expected, "{user} (seed {SEED})");
    }
    service.signal(Signal::TERM).expect("it runs");
    assert_eq!((exit_code(&mut service), counted(&service, "users")), (0, 20_000));
}

#[test]
fn two_publishers_race_and_the_latest_change_wins() {
    on_each_server(|binary| {
        let (server, mut listener, _service) = start(binary, "", &["--cpus", "0,1"]);
        std::thread::scope(|scope| {
            for parity in 0..2 {
                let mut client = connect(&server);
                scope.spawn(move || {
                    for second in (parity..2000).step_by(2) {
                        let status = if second % 3 == 0 { "CLEARED" } else { "CRITICAL" };
                        for alarm in ["a", "b", "c"] {
                            client.publish(
                                "AlarmStatusChanged",
                                change("ann", alarm, status, &at(second)).as_bytes(),
                            );
                        }
                        if second % 100 < 2 {
                            client.flush(std::time::Instant::now() + SOON).expect("the server answers");
                        }
                    }
                    client.flush(std::time::Instant::now() + SOON).expect("the server answers");
                });
            }
        });
        listener.hear(Duration::from_millis(500));
        listener.ask_until(|_| vec!["ann"], |listener| listener.digests > 0);
        listener.ask("ann");
        listener.flush();
        listener.hear(Duration::from_millis(500));
        let expected = ["a", "b", "c"].map(|alarm| (alarm.into(), "CRITICAL".into(), at(1999)));
        assert_eq!(listener.told_of("ann"), expected);
    });
}

fn start(binary: &Binary, config: &str, arguments: &[&str]) -> (Server, Listener, Process) {
    let server = Server::builder(binary).config(config).start().expect("a server");
    let service = service(&server, arguments);
    let listener = Listener::new(&server);
    (server, listener, service)
}

/// Publishes so many alarms of `user`, two an instant, in random order, and returns them in the order they must be
/// told.
fn publish_shuffled(listener: &mut Listener, user: &str, alarms: u32) -> Vec<(String, String, String)> {
    let mut expected: Vec<_> = (0..alarms)
        .map(|number| (format!("alarm {number:04}"), "WARNING".to_owned(), at(number / 2)))
        .collect();
    Rng::with_seed(SEED).shuffle(&mut expected);
    for (alarm, status, at) in &expected {
        listener.publish(&change(user, alarm, status, at));
    }
    listener.flush();
    listener.hear(Duration::from_millis(500));
    expected.sort_by_key(|(id, _, at)| (at.clone(), id.clone()));
    expected
}
