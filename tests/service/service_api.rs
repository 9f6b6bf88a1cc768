//! Instances as `nats micro` finds them.

use std::collections::BTreeSet;

use nats_server_fixture::{Process, Server, Signal, eventually};
use serde_json::{Value, json};

use crate::reply::{Requester, json_of};
use crate::world::{Listener, SOON, at, change, exit_code, on_each_server, program, service};

impl Requester {
    /// What is answered by so many to this subject.
    fn asked(&mut self, subject: &str, instances: usize) -> Vec<Value> {
        self.request_of(subject, 0, "");
        (0..instances).map(|_| json_of(&self.answer().1)).collect()
    }
}

#[test]
fn each_instance_is_found_and_says_what_it_has_counted() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let _one = service(&server, &["--cpus", "0,1", "--queue-group", "one"]);
        let _two = service(&server, &["--cpus", "0", "--queue-group", "two"]);
        let _silent = service(&server, &["--cpus", "0", "--queue-group", "three", "--no-service-api"]);
        let mut requester = Requester::new(&server);
        let ids = |answers: &[Value]| -> BTreeSet<String> {
            answers.iter().map(|answer| answer["id"].as_str().expect("a string").to_owned()).collect()
        };
        let pings = requester.asked("$SRV.PING", 2);
        let found = ids(&pings);
        assert_eq!(found.len(), 2, "{pings:?}");
        let cores: BTreeSet<&str> =
            pings.iter().map(|ping| ping["metadata"]["cores"].as_str().expect("a string")).collect();
        assert_eq!(cores, BTreeSet::from(["1", "2"]));
        assert_eq!(ids(&requester.asked("$SRV.PING.alarm-digest", 2)), found);
        for id in &found {
            let info = &requester.asked(&format!("$SRV.INFO.alarm-digest.{id}"), 1)[0];
            assert_eq!((&info["id"], &info["type"]), (&json!(id), &json!("io.nats.micro.v1.info_response")));
            assert_eq!(
                (&info["version"], &info["metadata"]["mode"]),
                (&json!(env!("CARGO_PKG_VERSION")), &json!("memory"))
            );
            assert_eq!(info["endpoints"][1]["subject"], "SendAlarmDigest");
        }

        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.publish("{");
        listener.ask("ann");
        listener.flush();
        let mut counted = Value::Null;
        eventually(SOON, "what three messages add up to", || {
            requester.asked("$SRV.STATS.alarm-digest", 2).iter().all(|stats| {
                counted = stats.clone();
                let [changes, requests] = [0, 1].map(|at| &stats["endpoints"][at]);
                let counts = [&changes["num_requests"], &changes["num_errors"], &requests["num_requests"]];
                counts == [&json!(2), &json!(1), &json!(1)] && requests["processing_time"].as_u64() > Some(0)
            })
        });
        let error = counted["endpoints"][0]["last_error"].as_str().expect("a string");
        assert!(error.starts_with("expected a JSON object"), "{counted}");
        let cores = counted["endpoints"][0]["data"]["cores"].as_array().expect("an array");
        let users: u64 = cores.iter().map(|core| core["users"].as_u64().expect("a number")).sum();
        assert_eq!(users, 1, "{counted}");
    });
}

#[test]
fn where_the_server_forbids_it_nothing_else_suffers_and_one_line_says_so() {
    on_each_server(|binary| {
        let denied = "users: [{user: a, password: a, permissions: {subscribe: {deny: [\"$SRV.>\"]}}}, {user: b, password: b}]";
        let config = format!("authorization {{ {denied} }}\nno_auth_user: b");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let url = format!("nats://a:a@{}", server.addr());
        let mut service = Process::spawn(&program(&["--server", &url, "--cpus", "0,1"])).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let mut listener = Listener::new(&server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.ask("ann");
        listener.flush();
        assert!(listener.hear_of("ann", SOON), "{}", service.log());
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert_eq!(
            service.log().matches("Permissions Violation for Subscription").count(),
            1,
            "{}",
            service.log()
        );
        assert!(!service.log().contains("disconnected"), "{}", service.log());
    });
}

#[test]
fn top_shows_each_instance_core_by_core() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let top = |samples: &str| {
            let arguments = ["top", "--server", &server.url(), "--interval", "100ms", "--samples", samples];
            let mut top = Process::spawn(&program(&arguments)).expect("it starts");
            assert_eq!(exit_code(&mut top), 0, "{}", top.log());
            top.stdout()
        };
        assert!(top("1").contains("no instance answers on $SRV.STATS.alarm-digest"));
        let _service = service(&server, &["--cpus", "0,1"]);
        let mut listener = Listener::new(&server);
        for number in 0..100 {
            listener.publish(&change(&format!("user {number}"), "disk", "WARNING", &at(1)));
        }
        listener.flush();
        let held = |table: &str, column: usize| -> u32 {
            let cores = table.lines().filter(|line| line.contains(" ready "));
            cores
                .map(|core| {
                    core.split_whitespace()
                        .rev()
                        .nth(column)
                        .expect("a column")
                        .parse::<u32>()
                        .expect("a number")
                })
                .sum()
        };
        // What the cores last said is a second old at most.
        eventually(SOON, "both cores to hold what was published", || {
            let table = top("1");
            table.matches(" ready ").count() == 2 && (held(&table, 2), held(&table, 1)) == (100, 100)
        });
        assert_eq!(top("3").matches("INSTANCE CORE").count(), 3);
    });
}
