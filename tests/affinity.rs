//! Affinity in durable mode, on real servers: each user is done by one core of one instance, and by another one at once
//! when that one is killed. What it saves is measured by a test that only runs when asked to.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/client.rs"]
mod client;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "service/world.rs"]
mod world;

use std::time::{Duration, Instant};

use fastrand::Rng;
use nats_server_fixture::{Process, Server, Signal};
use nats_wire::Subject;
use nats_wire::jetstream::{ConsumerInfo, JetStream, Name, StreamInfo};
use serde::de::DeserializeOwned;
use world::{Client, SOON, at, change, connect, exit_code, on_each_server, program};

const USERS: u32 = 200;

/// An instance of two cores that is connected. Nothing but an acknowledgement, or a refusal, brings a message back.
fn started(server: &Server, arguments: &[&str]) -> Process {
    let mut command = program(&["--mode", "jetstream", "--server", &server.url(), "--cpus", "0,1"]);
    command.args(["--js-ack-wait", "1h", "--retention", "10years"]).args(arguments);
    let mut instance = Process::spawn(&command).expect("the program starts");
    instance.wait_for_line("all cores are connected", SOON).expect("it connects");
    instance
}

/// Ends the instances and adds up what they have counted.
fn counted<const N: usize>(instances: Vec<Process>, counters: [&str; N]) -> [u64; N] {
    let mut sums = [0; N];
    for mut instance in instances {
        instance.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut instance), 0, "{}", instance.log());
        let log = instance.log();
        for (counter, sum) in counters.iter().zip(&mut sums) {
            let value = log.split_whitespace().find_map(|word| word.strip_prefix(counter)?.strip_prefix('='));
            *sum += value.and_then(|value| value.parse::<u64>().ok()).expect("it is in the summary");
        }
    }
    sums
}

#[test]
fn a_user_is_at_home_with_one_core_and_hardly_a_write_is_refused() {
    on_each_server(|binary| {
        let server = Server::builder(binary).jetstream().start().expect("a server");
        let instances: Vec<Process> = (0..3).map(|_| started(&server, &[])).collect();
        let mut queue = Queue::connect(&server);
        queue.publish(changes(20_000, USERS));
        queue.until_drained();
        let [loads, conflicts, relayed] = counted(instances, ["loads", "conflicts", "relayed"]);
        eprintln!("loads {loads}, conflicts {conflicts}, relayed {relayed}");
        // A core that falls behind on a busy machine is spared some of its users, so it may be a few more than one read each and no
        // refusal at all. Six cores without affinity read each user about six times, and are refused thousands of times.
        assert!(loads < 3 * u64::from(USERS) && conflicts < 400, "loads {loads}, conflicts {conflicts}");
        assert!(relayed > 0, "six cores, and none had a message of another's user");
    });
}

#[test]
fn without_affinity_the_cores_meet() {
    on_each_server(|binary| {
        let server = Server::builder(binary).jetstream().start().expect("a server");
        let instances: Vec<Process> = (0..3).map(|_| started(&server, &["--no-affinity"])).collect();
        let mut queue = Queue::connect(&server);
        queue.publish(changes(20_000, USERS));
        queue.until_drained();
        let [loads, relayed] = counted(instances, ["loads", "relayed"]);
        assert!(loads > u64::from(USERS) && relayed == 0, "loads {loads}, relayed {relayed}");
    });
}

#[test]
fn when_an_instance_is_killed_the_others_take_its_users_at_once() {
    on_each_server(|binary| {
        let server = Server::builder(binary).jetstream().start().expect("a server");
        let mut instances: Vec<Process> = (0..3).map(|_| started(&server, &[])).collect();
        let mut queue = Queue::connect(&server);
        queue.publish(changes(1000, USERS));
        queue.until_drained();
        instances.remove(0).kill();
        // The server sees that its requests for messages are void.
        std::thread::sleep(Duration::from_millis(300));
        queue.publish(changes(1000, USERS));
        // Nothing comes again by itself: it is drained only if what was relayed to the dead was asked for again.
        queue.until_drained();
        let [returned] = counted(instances, ["returned"]);
        assert!(returned > 0, "nobody relayed to the dead");
    });
}

#[test]
fn an_instance_that_hangs_holds_up_no_more_than_its_share() {
    // For each of its two cores: what the others may have relayed to it, and what it had asked for itself, twice a thousand.
    const HELD_MAX: u64 = 2 * (4096 + 2 * 1000);
    on_each_server(|binary| {
        let server = Server::builder(binary).jetstream().start().expect("a server");
        let mut instances: Vec<Process> = (0..3).map(|_| started(&server, &[])).collect();
        let mut queue = Queue::connect(&server);
        queue.publish(changes(1000, USERS));
        queue.until_drained();
        instances[0].suspend().expect("it runs");
        queue.publish(changes(40_000, USERS));
        let held = queue.until(|info| info.num_pending == 0 && info.num_ack_pending <= HELD_MAX);
        assert!(held.num_ack_pending > 0, "nothing went to the one that hangs");
        instances[0].resume().expect("it runs");
        queue.until_drained();
        counted(instances, []);
    });
}

/// `AFFINITY_MESSAGES=n` for another number of messages.
#[test]
#[ignore = "measures"]
fn what_affinity_saves() {
    let messages = std::env::var("AFFINITY_MESSAGES").ok().and_then(|text| text.parse().ok());
    let messages = messages.unwrap_or(300_000);
    let binary = nats_server_fixture::available().expect("a nats-server").remove(0);
    println!("{binary}, {messages} messages");
    println!("users cores affinity | loads stores conflicts relayed, each per 1000 messages | messages/s");
    for users in [1000, 100_000] {
        for instances in [1, 2] {
            for affinity in [&[][..], &["--no-affinity"]] {
                measure(&binary, messages, users, instances, affinity);
            }
        }
    }
}

fn measure(
    binary: &nats_server_fixture::Binary,
    messages: u32,
    users: u32,
    instances: usize,
    arguments: &[&str],
) {
    let server = Server::builder(binary).jetstream().start().expect("a server");
    // Makes the streams, so that there is where to publish to.
    counted(vec![started(&server, arguments)], ["loads"]);
    let mut queue = Queue::connect(&server);
    queue.publish(changes(messages, users));
    let instances: Vec<Process> = (0..instances).map(|_| started(&server, arguments)).collect();
    while queue.consumer().is_some_and(|info| info.num_pending == u64::from(messages)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    queue.until_drained();
    let rate = f64::from(messages) / start.elapsed().as_secs_f64();
    let cores = instances.len() * 2;
    let per_1000 = counted(instances, ["loads", "stores", "conflicts", "relayed"])
        .map(|count| format!("{:.1}", count as f64 * 1000.0 / f64::from(messages)));
    let affinity = if arguments.is_empty() { "on" } else { "off" };
    println!("{users} {cores} {affinity} | {} | {rate:.0}", per_1000.join(" "));
}

/// Of ten alarms of each user, in no order, and a request in ten messages.
fn changes(messages: u32, users: u32) -> impl Iterator<Item = (&'static str, String)> {
    let mut rng = Rng::with_seed(7);
    (0..messages).map(move |_| {
        let user = format!("user {}", rng.u32(..users));
        if rng.u32(..10) == 0 {
            return ("SendAlarmDigest", format!(r#"{{"UserID":"{user}"}}"#));
        }
        let status = ["CLEARED", "WARNING", "CRITICAL"][rng.usize(..3)];
        (
            "AlarmStatusChanged",
            change(&user, &format!("alarm {}", rng.u32(..10)), status, &at(rng.u32(..80_000))),
        )
    })
}

/// The stream that messages wait in.
struct Queue {
    client: Client,
    jetstream: JetStream<()>,
    published: u64,
}

impl Queue {
    fn connect(server: &Server) -> Self {
        let mut client = connect(server);
        let inbox = format!("_INBOX.test{}", fastrand::u64(..));
        let jetstream = JetStream::new(Subject::new(&inbox).expect("a subject"), 9);
        jetstream.subscribe(client.session(), Duration::ZERO);
        let mut queue = Self { client, jetstream, published: 0 };
        queue.published = queue.last();
        queue
    }

    /// Publishes, never more at a time than any server holds for a stream.
    fn publish(&mut self, messages: impl Iterator<Item = (&'static str, String)>) {
        let mut messages = messages.peekable();
        while messages.peek().is_some() {
            for (subject, payload) in messages.by_ref().take(5000) {
                self.client.publish(subject, payload.as_bytes());
                self.published += 1;
            }
            self.client.flush(Instant::now() + SOON).expect("the server answers");
            let deadline = Instant::now() + SOON;
            while self.last() < self.published {
                assert!(Instant::now() < deadline, "the stream never has {} messages", self.published);
            }
        }
    }

    fn last(&mut self) -> u64 {
        let info: StreamInfo = self
            .ask(|jetstream, client| {
                jetstream.stream_info(client.session(), name("AD_IN"), (), Duration::ZERO);
            })
            .expect("a stream");
        info.state.last_seq
    }

    fn consumer(&mut self) -> Option<ConsumerInfo> {
        self.ask(|jetstream, client| {
            jetstream.consumer_info(client.session(), name("AD_IN"), name("digest"), (), Duration::ZERO);
        })
    }

    /// Until nothing waits for an instance or in one.
    fn until_drained(&mut self) {
        self.until(|info| info.num_pending == 0 && info.num_ack_pending == 0);
    }

    fn until(&mut self, is_so: impl Fn(&ConsumerInfo) -> bool) -> ConsumerInfo {
        let deadline = Instant::now() + SOON * 2;
        loop {
            let info = self.consumer();
            if let Some(info) = info.as_ref().filter(|info| is_so(info)) {
                return info.clone();
            }
            assert!(Instant::now() < deadline, "the queue stays so: {info:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask<D: DeserializeOwned>(&mut self, send: impl FnOnce(&mut JetStream<()>, &mut Client)) -> Option<D> {
        send(&mut self.jetstream, &mut self.client);
        let answer =
            self.client.next(Instant::now() + SOON).expect("the connection holds").expect("an answer");
        serde_json::from_slice(&answer.payload).ok()
    }
}

fn name(name: &str) -> Name<'_> {
    Name::new(name).expect("a name")
}
