//! Requests that want an answer, as `nats request` sends them.

use std::time::{Duration, Instant};

use nats_server_fixture::{Process, Server, Signal, eventually};
use nats_wire::{Headers, Subject};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

use crate::faults::Proxy;
use crate::world::{
    Client, Listener, Received, SOON, at, change, connect, counted, exit_code, on_each_server, program,
    service,
};

/// A client with an inbox for each request.
pub struct Requester(pub Client);

impl Requester {
    pub fn new(server: &Server) -> Self {
        let mut client = connect(server);
        client.subscribe("_INBOX.test.*", None, 1);
        client.flush(Instant::now() + SOON).expect("the server reads it");
        Self(client)
    }

    pub fn publish(&mut self, payload: &str) {
        self.0.publish("AlarmStatusChanged", payload.as_bytes());
    }

    /// Sends a request whose answer comes to inbox `number`.
    pub fn request(&mut self, number: usize, payload: &str) {
        self.request_of("SendAlarmDigest", number, payload);
    }

    pub fn request_of(&mut self, subject: &str, number: usize, payload: &str) {
        let inbox = format!("_INBOX.test.{number}");
        let (subject, reply) = (Subject::new(subject), Subject::new(&inbox));
        let (subject, reply) = (subject.expect("a subject"), reply.expect("a subject"));
        self.0.session().publish_for_reply(subject, reply, None, payload.as_bytes(), Duration::ZERO);
        self.0.flush(Instant::now() + SOON).expect("the server answers");
    }

    /// The next answer, and the number of its inbox.
    pub fn answer(&mut self) -> (usize, Received) {
        let received = self.0.next(Instant::now() + SOON).expect("the connection holds");
        let received = received.expect("an answer in time");
        let number = received.subject.rsplit('.').next().expect("a token").parse();
        (number.expect("the number of an inbox"), received)
    }

    /// The digest that answers a request for `user`.
    fn ask(&mut self, user: &str) -> Value {
        self.request(0, &json!({ "UserID": user }).to_string());
        json_of(&self.answer().1)
    }
}

pub fn json_of(received: &Received) -> Value {
    serde_json::from_slice(&received.payload).expect("a digest is JSON")
}

fn header<'a>(received: &'a Received, name: &str) -> Option<&'a str> {
    std::str::from_utf8(Headers::new(&received.headers).get(name)?).ok()
}

fn digest(user: &str, alarms: &[&str]) -> Value {
    let alarm = |alarm: &&str| json!({ "AlarmID": alarm, "Status": "WARNING", "LatestChangedAt": at(1) });
    json!({ "UserID": user, "ActiveAlarms": alarms.iter().map(alarm).collect::<Vec<_>>() })
}

#[test]
fn a_request_is_answered_with_the_digest_that_was_sent_or_an_empty_one() {
    on_each_server(|binary| {
        for cpus in ["0", "0,1", "0,1,0,1"] {
            let server = Server::start(binary).expect("a server");
            let mut service = service(&server, &["--cpus", cpus]);
            let (mut requester, mut listener) = (Requester::new(&server), Listener::new(&server));
            for number in 0..50 {
                let user = format!("user {number}");
                requester.publish(&change(&user, "disk", "WARNING", &at(1)));
                assert_eq!(requester.ask(&user), digest(&user, &["disk"]));
                assert!(listener.hear_of(&user, SOON), "it was told to everybody");
                assert_eq!(requester.ask(&user), digest(&user, &[]));
            }
            service.signal(Signal::TERM).expect("it runs");
            assert_eq!(exit_code(&mut service), 0, "{}", service.log());
            let counts = ["answers", "unanswered", "digests"].map(|counter| counted(&service, counter));
            assert_eq!(counts, [100, 0, 50], "{}", service.log());
        }
    });
}

#[test]
fn a_bad_request_is_answered_with_what_is_wrong_with_it() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let _service = service(&server, &["--cpus", "0,1"]);
        let mut requester = Requester::new(&server);
        requester.request(0, r#"{"User":"ann"}"#);
        let (_, answer) = requester.answer();
        assert_eq!(header(&answer, "Nats-Service-Error-Code"), Some("400"));
        assert_eq!(header(&answer, "Nats-Service-Error"), Some("expected a field `UserID`, got none"));
        assert!(answer.payload.is_empty());
    });
}

#[test]
fn requests_that_come_together_are_each_answered_once() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0,1"]);
        let mut requester = Requester::new(&server);
        let users = 200;
        for number in 0..users {
            requester.publish(&change(&format!("user {number}"), "disk", "WARNING", &at(1)));
        }
        for number in 0..2 * users {
            requester.request(number, &json!({ "UserID": format!("user {}", number % users) }).to_string());
        }
        let mut alarms = vec![Vec::new(); users];
        for _ in 0..2 * users {
            let (number, answer) = requester.answer();
            let digest = json_of(&answer);
            assert_eq!(digest["UserID"], format!("user {}", number % users));
            alarms[number % users].push(digest["ActiveAlarms"].as_array().expect("an array").len());
        }
        for (user, alarms) in alarms.iter_mut().enumerate() {
            alarms.sort_unstable();
            assert_eq!(*alarms, [0, 1], "user {user}: one of two requests is told of the one alarm");
        }
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
    });
}

#[test]
fn a_request_is_answered_after_its_link_broke() {
    on_each_server(|binary| {
        let server = Server::start(binary).expect("a server");
        let proxy = Proxy::start(&server);
        let url = format!("nats://127.0.0.1:{}", proxy.port);
        // No PING of ours but those of the fences.
        let arguments = ["--server", &url, "--cpus", "0,1", "--ping-interval", "10min"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let mut requester = Requester::new(&server);
        requester.publish(&change("ann", "disk", "WARNING", &at(1)));

        // Of the two cores' fences or of the digest, something goes nowhere.
        proxy.shared.keeps.store(true, Ordering::Release);
        requester.request(7, r#"{"UserID":"ann"}"#);
        eventually(SOON, "what the service says, which goes nowhere", || {
            proxy.shared.kept_bytes.load(Ordering::Acquire) > 0
        });
        proxy.shared.keeps.store(false, Ordering::Release);
        proxy.cut();
        let (number, answer) = requester.answer();
        assert_eq!((number, json_of(&answer)), (7, digest("ann", &["disk"])), "{}", service.log());
    });
}

#[test]
fn a_request_is_answered_after_its_server_was_stopped_and_started_again() {
    on_each_server(|binary| {
        let mut server = Server::start(binary).expect("a server");
        let mut service = service(&server, &["--cpus", "0,1", "--reconnect-delay-max", "200ms"]);
        let mut requester = Requester::new(&server);
        requester.publish(&change("ann", "disk", "WARNING", &at(1)));
        requester.publish(&change("bob", "disk", "WARNING", &at(1)));
        assert_eq!(requester.ask("ann"), digest("ann", &["disk"]));
        server.kill();
        service.wait_for_lines("disconnected", 2, SOON).expect("both cores notice");
        server.restart().expect("a server");
        service.wait_for_lines("reconnected", 2, SOON).expect("both cores come back");
        let mut requester = Requester::new(&server);
        assert_eq!(requester.ask("ann"), digest("ann", &[]));
        assert_eq!(requester.ask("bob"), digest("bob", &["disk"]));
    });
}

#[test]
fn an_inbox_that_we_may_not_publish_to_costs_nothing_but_the_answer() {
    on_each_server(|binary| {
        let denied = "users: [{user: a, password: a, permissions: {publish: {deny: [\"_INBOX.>\"]}}}, {user: b, password: b}]";
        let config = format!("authorization {{ {denied} }}\nno_auth_user: b");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let url = format!("nats://a:a@{}", server.addr());
        let mut service = Process::spawn(&program(&["--server", &url, "--cpus", "0,1"])).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let (mut requester, mut listener) = (Requester::new(&server), Listener::new(&server));
        for user in ["ann", "bob"] {
            requester.publish(&change(user, "disk", "WARNING", &at(1)));
            requester.request(0, &json!({ "UserID": user }).to_string());
            assert!(listener.hear_of(user, SOON), "{}", service.log());
        }
        service
            .wait_for_line("Permissions Violation for Publish to \"_INBOX.test.0\"", SOON)
            .expect("it says so");
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        let counts = ["refused", "reconnects", "resent"].map(|counter| counted(&service, counter));
        assert_eq!(counts, [2, 0, 0], "{}", service.log());
    });
}

#[test]
fn an_answer_larger_than_max_payload_comes_as_several_and_the_last_says_so() {
    on_each_server(|binary| {
        let server = Server::builder(binary).config("max_payload: 8192").start().expect("a server");
        let _service = service(&server, &["--cpus", "0,1"]);
        let mut requester = Requester::new(&server);
        let mut expected: Vec<String> = (0..500).map(|number| format!("alarm {number:04}")).collect();
        expected.iter().for_each(|alarm| requester.publish(&change("ann", alarm, "WARNING", &at(1))));
        requester.request(0, r#"{"UserID":"ann"}"#);
        while !expected.is_empty() {
            let (_, answer) = requester.answer();
            let digest = json_of(&answer);
            let part = digest["ActiveAlarms"].as_array().expect("an array");
            for (alarm, expected) in part.iter().zip(expected.drain(..part.len())) {
                assert_eq!(alarm["AlarmID"], expected);
            }
            let has_more = header(&answer, "Alarm-Digest-More") == Some("true");
            assert_eq!(has_more, !expected.is_empty());
        }
    });
}
