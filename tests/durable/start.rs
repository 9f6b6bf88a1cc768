//! What a start makes of streams, a bucket and a consumer that are there already, and of servers that cannot make any yet.

use nats_server_fixture::{Binary, Process, Release, Server, Signal, available};
use serde_json::{Value, json};

use crate::world::{Listener, SOON, at, change, exit_code, on_each_server};
use crate::{command, jetstream_server, streams};

const REPUBLISHES: Release = Release { major: 2, minor: 10, patch: 0 };
const SAFE: Release = Release { major: 2, minor: 12, patch: 0 };

fn start(server: &Server, arguments: &[&str]) -> Process {
    Process::spawn(&command(&server.url(), arguments)).expect("the program starts")
}

fn connected(server: &Server, arguments: &[&str]) -> Process {
    let mut instance = start(server, arguments);
    instance.wait_for_line("all cores are connected", SOON).expect("it connects");
    instance
}

fn stop(instance: &mut Process) {
    instance.signal(Signal::TERM).expect("it runs");
    assert_eq!(exit_code(instance), 0, "{}", instance.log());
}

/// A server on which the service has made all that it needs.
fn provisioned(binary: &Binary) -> Server {
    let server = jetstream_server(binary);
    stop(&mut connected(&server, &[]));
    server
}

/// Gives a stream the members of `changed`, and takes away those that are null there.
fn edit(server: &Server, stream: &str, changed: Value) {
    let mut streams = streams(server);
    let mut config = streams.stream(stream).expect("it is there").config;
    for (member, value) in changed.as_object().expect("an object") {
        if value.is_null() {
            config.remove(member);
        } else {
            config.insert(member.clone(), value.clone());
        }
    }
    streams.call::<Value>(&["STREAM.UPDATE.", stream], &json!(config).to_string()).expect("it can be");
}

fn member(server: &Server, stream: &str, member: &str) -> Value {
    streams(server).stream(stream).expect("it is there").config.get(member).cloned().unwrap_or_default()
}

#[test]
fn settings_that_would_lose_alarms_are_taken_from_streams_that_are_there() {
    on_each_server(|binary| {
        let server = provisioned(binary);
        let minute = 60_000_000_000_u64;
        edit(
            &server,
            "AD_IN",
            json!({ "max_age": minute, "duplicate_window": minute, "no_ack": true, "max_msg_size": 100,
                "max_msgs_per_subject": 5, "discard": "old" }),
        );
        edit(
            &server,
            "KV_AD_STATE",
            json!({ "max_age": minute, "duplicate_window": minute, "max_msg_size": 100 }),
        );
        edit(
            &server,
            "AD_OUT",
            json!({ "max_age": minute, "duplicate_window": minute, "max_msgs_per_subject": 1 }),
        );
        let mut service = connected(&server, &[]);
        for said in [
            "stream AD_IN was changed: ",
            "discard: expected \"new\", found \"old\"",
            "max_age: expected none, found 60000000000",
            "no_ack: expected none, found true",
            "max_msg_size: expected none, found 100",
            "stream KV_AD_STATE was changed: ",
        ] {
            assert!(service.log().contains(said), "expected `{said}` in {}", service.log());
        }
        for (stream, name, expected) in [
            ("AD_IN", "max_age", json!(0)),
            ("AD_IN", "max_msg_size", json!(-1)),
            ("AD_IN", "max_msgs_per_subject", json!(-1)),
            ("AD_IN", "discard", json!("new")),
            ("KV_AD_STATE", "max_age", json!(0)),
            ("KV_AD_STATE", "max_msg_size", json!(-1)),
            ("AD_OUT", "max_msgs_per_subject", json!(-1)),
            // The operator's own.
            ("AD_OUT", "max_age", json!(minute)),
        ] {
            assert_eq!(member(&server, stream, name), expected, "{name} of {stream}");
        }
        assert_ne!(member(&server, "AD_IN", "no_ack"), true);
        assert_eq!(
            service.log().contains("known to lose data"),
            binary.release() < SAFE,
            "{}",
            service.log()
        );
        stop(&mut service);
        let again = connected(&server, &[]);
        assert!(!again.log().contains("was changed"), "{}", again.log());
    });
}

#[test]
fn a_consumer_that_would_lose_alarms_is_refused() {
    on_each_server(|binary| {
        let server = provisioned(binary);
        let config = streams(&server).consumer().expect("it is there").config;
        for (name, value) in [
            ("headers_only", json!(true)),
            ("filter_subject", json!("SendAlarmDigest")),
            ("max_deliver", json!(5)),
        ] {
            let mut streams = streams(&server);
            streams.call::<Value>(&["CONSUMER.DELETE.AD_IN.digest"], "").expect("it is there");
            let mut config = json!(config);
            config[name] = value.clone();
            let body = json!({ "stream_name": "AD_IN", "config": config });
            streams
                .call::<Value>(&["CONSUMER.DURABLE.CREATE.AD_IN.digest"], &body.to_string())
                .expect("it is made");
            let mut refused = start(&server, &[]);
            assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
            let expected = if name == "max_deliver" { "-1" } else { "none" };
            let said = format!("would lose or repeat alarms: {name}: expected {expected}, found {value}");
            assert!(refused.stderr().contains(&said), "expected `{said}` in {}", refused.log());
        }
    });
}

#[test]
fn what_cannot_be_changed_is_refused_and_it_is_said_what_removing_it_costs() {
    on_each_server(|binary| {
        let server = provisioned(binary);
        edit(&server, "AD_IN", json!({ "subjects": ["AlarmStatusChanged"] }));
        let mut refused = start(&server, &[]);
        assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
        for said in ["stream AD_IN", "subjects: expected", "loses all messages that wait in it"] {
            assert!(refused.stderr().contains(said), "expected `{said}` in {}", refused.log());
        }
    });
}

#[test]
fn a_digest_is_heard_once_whether_the_stream_republishes_it_or_not() {
    on_each_server(|binary| {
        let server = provisioned(binary);
        let republishes = binary.release() >= REPUBLISHES;
        assert_eq!(member(&server, "AD_OUT", "republish").is_object(), republishes);
        if republishes {
            // As it was made by a server that cannot, which was upgraded since.
            edit(&server, "AD_OUT", json!({ "republish": null }));
            assert!(!member(&server, "AD_OUT", "republish").is_object());
        }
        let mut listener = Listener::new(&server);
        for (alarm, arguments) in
            [("disk", &["--no-provision"][..]), ("fan", &[]), ("bell", &["--no-provision"])]
        {
            let mut service = connected(&server, arguments);
            listener.publish(&change("ann", alarm, "WARNING", &at(1)));
            listener.flush();
            let heard = |listener: &Listener| {
                listener.told_of("ann").iter().filter(|(told, ..)| told == alarm).count()
            };
            listener.ask_until(|_| vec!["ann"], |listener| heard(listener) > 0);
            stop(&mut service);
            listener.flush();
            listener.hear(std::time::Duration::from_millis(300));
            assert_eq!(heard(&listener), 1, "{alarm} {}", service.log());
            let is_now = republishes && alarm != "disk";
            assert_eq!(member(&server, "AD_OUT", "republish").is_object(), is_now, "{}", service.log());
        }
    });
}

#[test]
fn instances_that_start_at_once_do_not_refuse_each_other() {
    on_each_server(|binary| {
        for _ in 0..3 {
            let server = jetstream_server(binary);
            let mut instances: Vec<Process> = (0..3).map(|_| start(&server, &["--no-wait"])).collect();
            for instance in &mut instances {
                instance.wait_for_line("all cores are connected", SOON).expect("it connects");
            }
        }
    });
}

#[test]
fn without_room_it_is_said_what_asked_for_it_and_who_can_give_it() {
    on_each_server(|binary| {
        let config = "jetstream { store_dir: \"jetstream\", max_file_store: 100000000 }";
        let server = Server::builder(binary).config(config).start().expect("a server");
        let small = ["--js-input-bytes-max", "1000000", "--js-output-bytes-max", "1000000"];
        let mut refused = start(&server, &small);
        assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
        for said in
            ["stream KV_AD_STATE", "it is to have 4294967296 bytes", "--js-state-bytes-max", "max_file_store"]
        {
            assert!(refused.stderr().contains(said), "expected `{said}` in {}", refused.log());
        }
        connected(&server, &[&small[..], &["--js-state-bytes-max", "1000000"]].concat());
    });
}

#[test]
fn a_cluster_without_a_leader_is_waited_for() {
    for binary in available().expect("a nats-server").iter().filter(|binary| binary.release() >= SAFE) {
        let mut servers = Server::builder(binary).jetstream().start_cluster(3).expect("servers");
        for server in &mut servers[1..] {
            server.kill();
        }
        let mut service = start(&servers[0], &["--js-replicas", "3"]);
        let line = service.wait_for_line("cannot start yet, trying on", SOON).expect("it says so");
        eprintln!("{line}");
        assert!(line.contains("stream AD_IN"), "{line}");
        for server in &mut servers[1..] {
            server.restart().expect("a server");
        }
        service.wait_for_line("all cores are connected", SOON * 2).expect("it connects");
    }
}

/// Also as the first process of a container, which the kernel would not end by a signal that it does not handle.
#[test]
fn a_start_that_waits_for_a_server_ends_at_a_signal() {
    for (signal, arguments) in [(Signal::TERM, [].as_slice()), (Signal::INT, &["--http", "127.0.0.1:0"])] {
        let arguments = command("nats://127.0.0.1:1", arguments);
        let mut service = Process::spawn(&arguments).expect("the program starts");
        service.wait_for_line("cannot start yet, trying on", SOON).expect("it says so");
        service.signal(signal).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert!(service.log().contains("stopped before it was started"), "{}", service.log());
    }
}
