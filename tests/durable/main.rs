//! The durable mode on real JetStream servers: what it promises when nothing goes wrong is here; `chaos` puts it under
//! load, and `instances`, `network`, `servers`, `cluster`, `limits` and `disk` break what they are named after while that goes on;
//! `random` breaks anything, for as long as one likes; `start` is about what is there before.

mod chaos;
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../src/client.rs"]
mod client;
mod cluster;
mod disk;
mod instances;
mod limits;
mod network;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../service/proxy.rs"]
mod proxy;
mod random;
mod reply;
mod servers;
mod start;
#[path = "../service/strike.rs"]
mod strike;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "../service/world.rs"]
mod world;

use std::process::Command;
use std::time::Duration;

use alarm_digest_checker::Streams;
use nats_server_fixture::{Binary, Process, Server, Signal};
use serde_json::{Value, json};
use world::{Listener, SOON, at, change, exit_code, on_each_server, program};

/// One process of the service on any of these servers, which are separated by commas.
fn command(servers: &str, arguments: &[&str]) -> Command {
    let mut command = program(&["--mode", "jetstream", "--server", servers, "--cpus", "0,1"]);
    command.args(["--js-ack-wait", "2s", "--connect-timeout", "2s", "--reconnect-delay-max", "200ms"]);
    // The changes are from the start of the year: nothing of them may be forgotten.
    command.args(["--retention", "10years"]).args(arguments);
    command
}

fn instance(server: &Server) -> Process {
    Process::spawn(&command(&server.url(), &[])).expect("the program starts")
}

fn started(server: &Server) -> Process {
    let mut instance = instance(server);
    instance.wait_for_line("all cores are connected", SOON).expect("it connects");
    instance
}

fn jetstream_server(binary: &Binary) -> Server {
    Server::builder(binary).jetstream().start().expect("a server")
}

fn streams(server: &Server) -> Streams {
    Streams::connect(server.addr(), "AD").expect("the server answers")
}

#[test]
fn the_smoke_test_passes_and_a_restart_forgets_nothing() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let mut first = started(&server);
        let mut verify = Process::spawn(&program(&["verify", "--server", &server.url()])).expect("it starts");
        assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), first.log());

        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() == 1);
        listener.publish(&change("ann", "fan", "WARNING", &at(1)));
        listener.flush();
        first.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut first), 0, "{}", first.log());

        let second = started(&server);
        listener.ask_until(|_| vec!["ann"], |listener| listener.told_of("ann").len() == 2);
        listener.ask("ann");
        listener.flush();
        listener.hear(Duration::from_millis(500));
        let told: Vec<&str> = listener.told_of("ann").iter().map(|(alarm, ..)| alarm.as_str()).collect();
        assert_eq!(told, ["disk", "fan"], "{}", second.log());
    });
}

#[test]
fn bad_messages_are_stored_as_dead_letters_and_leave_the_queue() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let service = started(&server);
        let bad = [("AlarmStatusChanged", b"{".to_vec()), ("SendAlarmDigest", vec![0xff])];
        Streams::publish_surely(&[server.addr()], &bad, SOON).expect("it is stored");
        let mut streams = streams(&server);
        streams.until_drained(SOON).expect("it leaves the queue");
        let letters = streams.read("AD_DEAD").expect("it is there");
        let mut reasons: Vec<_> =
            letters.iter().filter_map(|letter| letter.header("Alarm-Digest-Reason")).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["not-json", "not-utf8"], "{}", service.log());
    });
}

#[test]
fn streams_that_would_lose_alarms_are_refused_and_so_is_a_server_without_jetstream() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        let config = json!({
            "name": "AD_IN", "subjects": ["AlarmStatusChanged", "SendAlarmDigest"], "retention": "limits",
        });
        let created = streams(&server).call::<Value>(&["STREAM.CREATE.AD_IN"], &config.to_string());
        created.expect("it is made");
        let mut refused = instance(&server);
        assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
        assert!(
            refused.stderr().contains("would lose or repeat alarms")
                && refused.stderr().contains("retention"),
            "{}",
            refused.log()
        );

        let server = Server::start(binary).expect("a server");
        let mut refused = instance(&server);
        assert_eq!(exit_code(&mut refused), 1);
        assert!(refused.stderr().contains("is it enabled on the server"), "{}", refused.log());
    });
}
