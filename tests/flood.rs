//! A million messages as fast as the server takes them: no alarm is lost, and memory stays within what the alarms need.
//! A program of its own, since it wants the machine for itself.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/client.rs"]
mod client;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "service/world.rs"]
mod world;

use std::time::Instant;

use nats_server_fixture::{Server, Signal};
use world::{Listener, SOON, at, change, connect, counted, exit_code, on_each_server, service};

const USERS: u32 = 1000;
const ALARMS: u32 = 50;
const ROUNDS: u32 = 20;
const _: () = assert!(USERS * ALARMS * ROUNDS == 1_000_000);

/// Far above what 50,000 alarms and two cores need, far below what a million messages would.
const RESIDENT_BYTES_MAX: u64 = 150 << 20;

#[test]
fn a_flood_of_bad_messages_and_of_requests_stays_in_bounded_memory() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0", "--unsettled-bytes-max", "8388608"]);
        let mut publisher = connect(&server);
        let deadline = Instant::now() + SOON * 3;
        for number in 0..1_000_000 {
            if number % 2 == 0 {
                publisher.publish("AlarmStatusChanged", b"x");
            } else {
                publisher.publish("SendAlarmDigest", br#"{"UserID":"ann"}"#);
            }
            if number % 2000 == 0 {
                publisher.write(deadline).expect("the server reads");
            }
        }
        publisher.flush(deadline).expect("the server answers");
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() == 1);
        let resident = service.usage().expect("it runs").resident_bytes_max;
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert!(resident < RESIDENT_BYTES_MAX, "{} MiB\n{}", resident >> 20, service.log());
        assert!(!service.log().contains("disconnected"), "{}", service.log());
    });
}

#[test]
fn a_flood_of_a_million_alarms_loses_none_in_bounded_memory() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0,1"]);
        let mut publisher = connect(&server);
        let users: Vec<String> = (0..USERS).map(|number| format!("user {number}")).collect();
        let deadline = Instant::now() + SOON * 3;
        for round in 0..ROUNDS {
            for user in &users {
                for alarm in 0..ALARMS {
                    let status = if round + 1 == ROUNDS { "CRITICAL" } else { "CLEARED" };
                    let payload = change(user, &format!("alarm {alarm}"), status, &at(round));
                    publisher.publish("AlarmStatusChanged", payload.as_bytes());
                }
                publisher.write(deadline).expect("the server reads");
            }
        }
        publisher.flush(deadline).expect("the server answers");

        let mut listener = Listener::new(&server);
        let untold = |listener: &Listener| -> Vec<&str> {
            users
                .iter()
                .map(String::as_str)
                .filter(|user| listener.told_of(user).len() < ALARMS as usize)
                .collect()
        };
        listener.ask_until(untold, |listener| untold(listener).is_empty());
        for user in &users {
            let told = listener.told_of(user);
            assert_eq!(told.len(), ALARMS as usize, "{user}: {told:?}");
            assert!(told.iter().all(|(_, status, last)| status == "CRITICAL" && *last == at(ROUNDS - 1)));
        }
        let resident = service.usage().expect("it runs").resident_bytes_max;
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0);
        assert_eq!(counted(&service, "changes"), 1_000_000, "{}", service.log());
        assert!(resident < RESIDENT_BYTES_MAX, "{} MiB", resident >> 20);
        assert!(!service.log().contains("disconnected"), "{}", service.log());
    });
}
