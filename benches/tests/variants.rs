//! Every variant holds what the service promises, as far as the load tool can see, on a real nats-server.

use std::process::Command;
use std::time::Duration;

use alarm_digest::shard::Subjects;
use alarm_digest_benches::load::{Job, Shape, Target, measure};
use alarm_digest_benches::report::Report;
use alarm_digest_benches::workload::Skew;
use nats_server_fixture::{Process, Server, find};

const READY_WITHIN: Duration = Duration::from_secs(30);

const PER_CORE: (&str, &[&str]) = (env!("CARGO_BIN_EXE_tokio-variant"), &["--runtime", "per-core"]);
const STEALING: (&str, &[&str]) = (env!("CARGO_BIN_EXE_tokio-variant"), &["--runtime", "stealing"]);
const ASYNC_NATS: (&str, &[&str]) = (env!("CARGO_BIN_EXE_async-nats-variant"), &[]);
const FLOOR: (&str, &[&str]) = (env!("CARGO_BIN_EXE_floor"), &[]);

const FLOOD: Job = Job::Flood { messages: 50_000 };

/// Two shards of `program` under `job`.
fn check((program, arguments): (&str, &[&str]), job: Job, skew: Skew) -> Report {
    let server = Server::start(&find().expect("a nats-server is needed for this test")).expect("it starts");
    let mut command = Command::new(program);
    command.args(arguments).args(["--server", &server.url(), "--cpus", "0,0"]).env_remove("NATS_URL");
    let mut process = Process::spawn(&command).expect("it starts");
    process.wait_for_line("all cores are connected", READY_WITHIN).expect("it connects");
    let subjects = Subjects {
        changed: "AlarmStatusChanged".into(),
        send: "SendAlarmDigest".into(),
        digest: "AlarmDigest".into(),
        rejected: "AlarmDigest.rejected".into(),
    };
    let is_sink = program == FLOOR.0;
    let (pid, server_pid) = (Some(process.pid()), Some(server.pid()));
    let target = Target { server: server.addr(), subjects, pid, server_pid, is_sink };
    let shape = Shape { users: 300, alarms: 10, skew, connections: 2, seed: 1 };
    let report = measure(&target, &shape, job).expect("it does not fail");
    assert!(report.is_right(), "{report}\n{}", process.log());
    assert!(report.used.is_some_and(|used| used.cpu > Duration::ZERO), "{report}");
    report
}

#[test]
fn a_flood_of_any_skew_is_checked_off() {
    for variant in [PER_CORE, STEALING, ASYNC_NATS] {
        for skew in [Skew::Uniform, Skew::Zipf, Skew::Hot] {
            let report = check(variant, FLOOD, skew);
            assert!(report.findings.told > 100, "{report}");
        }
    }
}

#[test]
fn requests_among_changes_and_right_behind_them_are_answered() {
    let time = Duration::from_secs(1);
    let paced = Job::Paced { rate: 5000.0, time, tick: Duration::from_millis(1), requests_every: 3 };
    for variant in [PER_CORE, STEALING, ASYNC_NATS] {
        check(variant, paced, Skew::Uniform);
        let report = check(variant, Job::Latency { rate: 200.0, time }, Skew::Uniform);
        assert_eq!(report.latency.len(), 150, "{report}");
    }
}

#[test]
fn the_floor_counts_every_message() {
    let report = check(FLOOR, FLOOD, Skew::Uniform);
    assert_eq!(report.messages, 50_000);
}
