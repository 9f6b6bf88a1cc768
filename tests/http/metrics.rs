//! Whether the metrics are true, and whether Prometheus takes them, the dashboard's questions and the alert rules. What needs
//! `promtool` or `prometheus` says so and is left out where they are not on the PATH.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use alarm_digest::http_request::Format;
use nats_server_fixture::{Process, Server, eventually, find};
use serde_json::Value;

use crate::world::{Listener, SOON, at, change};
use crate::{MODES, connected, exchange, on_each_server_and_mode, page, samples};

/// What a page says must be what was published, to the last message.
#[test]
fn the_metrics_are_what_was_published() {
    on_each_server_and_mode(|server, mode| {
        let (_service, addr) = connected(&server, mode);
        let mut listener = Listener::new(&server);
        for alarm in 0..100 {
            listener.publish(&change("ann", &format!("alarm {alarm}"), "WARNING", &at(alarm)));
        }
        listener.publish("nonsense");
        listener.publish(
            r#"{"UserID":"ann","AlarmID":"fan","Status":"LOUD","ChangedAt":"2026-01-01T00:00:00Z"}"#,
        );
        listener.client.publish("SendAlarmDigest", b"{}");
        listener.flush();
        let accepted =
            |subject| format!("alarm_digest_messages_total{{subject=\"{subject}\",result=\"accepted\"}}");
        let rejected =
            |subject| format!("alarm_digest_messages_total{{subject=\"{subject}\",result=\"rejected\"}}");
        // In JetStream mode a request may overtake a change that is under way.
        eventually(SOON, "all changes", || samples(addr)[&accepted("AlarmStatusChanged")] == 100.0);
        if mode == "jetstream" {
            eventually(SOON, "all settled", || samples(addr)["alarm_digest_unsettled"] == 0.0);
        }
        listener.ask("ann");
        listener.ask("bob");
        listener.flush();
        assert!(listener.hear_of("ann", SOON), "no digest");
        eventually(SOON, "all settled", || {
            let samples = samples(addr);
            samples[&accepted("SendAlarmDigest")] == 2.0
                && samples["alarm_digest_digests_total"] == 1.0
                && samples["alarm_digest_unsettled"] == 0.0
        });
        let (samples, reason) =
            (samples(addr), |reason| format!("alarm_digest_rejected_messages_total{{reason=\"{reason}\"}}"));
        for (name, expected) in [
            (accepted("AlarmStatusChanged"), 100.0),
            (rejected("AlarmStatusChanged"), 2.0),
            (rejected("SendAlarmDigest"), 1.0),
            (reason("not-json"), 1.0),
            (reason("unknown-status"), 1.0),
            (reason("missing-field"), 1.0),
            (reason("bad-id"), 0.0),
            ("alarm_digest_digest_alarms_count".into(), 1.0),
            ("alarm_digest_digest_alarms_sum".into(), 100.0),
            ("alarm_digest_digest_alarms_bucket{le=\"50.0\"}".into(), 0.0),
            ("alarm_digest_digest_alarms_bucket{le=\"100.0\"}".into(), 1.0),
            ("alarm_digest_connected".into(), 2.0),
            ("alarm_digest_reconnects_total".into(), 0.0),
        ] {
            assert_eq!(samples[&name], expected, "{name} in {samples:#?}");
        }
        // Memory mode settles one digest and three dead letters, JetStream mode each message.
        let (settled, users) = if mode == "memory" { (4.0, 1.0) } else { (102.0, 2.0) };
        assert_eq!(samples["alarm_digest_settled_total"], settled);
        assert_eq!(samples["alarm_digest_users"], users);
        assert_eq!(samples.get("alarm_digest_alarms"), (mode == "memory").then_some(&100.0));
        // 103 messages of at least 20 bytes came.
        assert!(samples["alarm_digest_received_bytes_total"] > 103.0 * 20.0, "{samples:#?}");
        assert!(samples["alarm_digest_sent_bytes_total"] > 1000.0, "{samples:#?}");
    });
}

#[test]
fn the_queue_shows_in_jetstream_mode_alone() {
    on_each_server_and_mode(|server, mode| {
        let (_service, addr) = connected(&server, mode);
        if mode == "jetstream" {
            eventually(SOON, "a look at the queue", || {
                samples(addr).contains_key("alarm_digest_queue_pending")
            });
        }
        let samples = samples(addr);
        for name in ["queue_pending", "queue_ack_pending", "queue_redelivered"] {
            let sample = samples.get(&format!("alarm_digest_{name}"));
            assert_eq!(sample, (mode == "jetstream").then_some(&0.0), "{name}");
        }
    });
}

#[test]
fn both_forms_are_what_their_content_type_says() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let (_service, addr) = connected(&server, "memory");
    let openmetrics = page(addr, Format::OpenMetrics);
    assert!(openmetrics.ends_with("\n# EOF\n"), "{openmetrics}");
    assert!(openmetrics.contains("# TYPE alarm_digest_digests counter\n"), "{openmetrics}");
    let text = page(addr, Format::Text);
    assert!(!text.contains("# EOF"), "{text}");
    assert!(text.contains("# TYPE alarm_digest_digests_total counter\n"), "{text}");
}

/// Whether there is such a program; said if there is not.
fn is_here(program: &str) -> bool {
    let is_here = Command::new(program).arg("--version").output().is_ok();
    if !is_here {
        eprintln!("left out: no {program} on the PATH");
    }
    is_here
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[track_caller]
fn succeeds(process: &mut Process) {
    let status = process.wait(SOON).expect("it ends");
    assert!(status.success(), "{}", process.log());
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    if !is_here("promtool") {
        return;
    }
    on_each_server_and_mode(|server, mode| {
        let (_service, addr) = connected(&server, mode);
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf %s \"$0\" | promtool check metrics", &page(addr, Format::Text)]);
        let mut promtool = Process::spawn(&shell).expect("it starts");
        succeeds(&mut promtool);
        assert_eq!(promtool.log(), "");
    });
}

#[test]
fn the_alert_rules_are_sound_and_fire_when_they_should() {
    if !is_here("promtool") {
        return;
    }
    for arguments in [["check", "rules", "deploy/alerts.yml"], ["test", "rules", "tests/alerts.yml"]] {
        let mut promtool = Command::new("promtool");
        promtool.args(&arguments[..2]).arg(file(arguments[2]));
        succeeds(&mut Process::spawn(&promtool).expect("it starts"));
    }
}

/// What the dashboard asks, with something in the place of its variables.
fn questions() -> Vec<String> {
    let dashboard = std::fs::read(file("deploy/grafana.json")).expect("it is there");
    let dashboard: Value = serde_json::from_slice(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let text = |target: &Value| target["expr"].as_str().expect("an expression").to_owned();
    let questions: Vec<String> = targets.map(text).collect();
    assert!(questions.len() >= 30, "{questions:?}");
    let filled = |question: String| {
        question.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
    };
    let questions: Vec<String> = questions.into_iter().map(filled).collect();
    assert!(!questions.iter().any(|question| question.contains('$')), "{questions:?}");
    questions
}

/// The names of ours in `text`.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("alarm_digest_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn dashboard_and_alerts_ask_for_what_there_is() {
    let server = Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
    let mut there = BTreeSet::new();
    for mode in MODES {
        let (_service, addr) = connected(&server, mode);
        let is_whole = || mode == "memory" || samples(addr).contains_key("alarm_digest_queue_pending");
        eventually(SOON, "a look at the queue", is_whole);
        let samples = page(addr, Format::Text);
        there.extend(samples.lines().filter(|line| !line.starts_with('#')).flat_map(names));
    }
    let rules = std::fs::read_to_string(file("deploy/alerts.yml")).expect("it is there");
    let asked = names(&(questions().join("\n") + &rules));
    assert_eq!(asked.difference(&there).collect::<Vec<_>>(), [""; 0], "asked for, and not there");
}

/// A Prometheus that looks at `targets` each second.
struct Prometheus {
    _process: Process,
    addr: SocketAddr,
    directory: PathBuf,
}

impl Prometheus {
    fn start(targets: &[SocketAddr]) -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let directory = std::env::temp_dir().join(format!("alarm-digest-prometheus-{}", addr.port()));
        std::fs::create_dir_all(&directory).expect("a directory of our own");
        let config = directory.join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs:\n\
             - job_name: alarm-digest\n  static_configs: [{{ targets: {:?} }}]\n",
            file("deploy/alerts.yml"),
            targets.iter().map(SocketAddr::to_string).collect::<Vec<_>>()
        );
        std::fs::write(&config, text).expect("it is written");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={addr}"));
        let mut process = Process::spawn(&command).expect("it starts");
        process.wait_for_line("ready to receive web requests", SOON).expect("it does");
        Self { _process: process, addr, directory }
    }

    /// The values of what `question` finds now.
    fn ask(&self, question: &str) -> Vec<Value> {
        let coded: String = question.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer =
            exchange(self.addr, format!("GET /api/v1/query?query={coded} HTTP/1.0\r\n\r\n").as_bytes());
        let (_, answer) = answer.split_once("\r\n\r\n").expect("a body");
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{question}: {answer}");
        answer["data"]["result"].as_array().expect("results").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_real_prometheus_reads_them_and_has_an_answer_to_all_that_the_dashboard_asks() {
    if !is_here("prometheus") {
        return;
    }
    let server = Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
    let (services, addrs): (Vec<Process>, Vec<SocketAddr>) =
        MODES.into_iter().map(|mode| connected(&server, mode)).unzip();
    let prometheus = Prometheus::start(&addrs);
    let mut listener = Listener::new(&server);
    let mut second = 0;
    let questions = questions();
    let mut open: Vec<&str> = questions.iter().map(String::as_str).collect();
    eventually(SOON * 2, "an answer to everything", || {
        std::thread::sleep(Duration::from_millis(200));
        second += 1;
        listener.publish(&change("ann", "disk", "WARNING", &at(second)));
        listener.publish("nonsense");
        listener.ask("ann");
        listener.flush();
        open.retain(|question| prometheus.ask(question).is_empty());
        eprintln!("{} of {} questions are open", open.len(), questions.len());
        open.is_empty()
    });
    assert_eq!(prometheus.ask("up == 1").len(), addrs.len());
    let alerts = prometheus.ask("ALERTS{alertstate=\"firing\"}");
    assert!(alerts.is_empty(), "{alerts:?}");
    drop(services);
}
