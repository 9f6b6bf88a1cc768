//! Memory mode under load, with everything broken that can be: servers killed, stopped, replaced and told to go, the network cut,
//! held and slowed, the service stopped and cut off as a slow consumer.
//!
//! ```text
//! publisher ── changes and requests, some of which a dying server takes along ──►│ each user │ all of it once more │ each user │ verdict
//! service ─── proxies with a witness ─── servers ───────────────────────────────────────────────────────────────────────┘
//! faults ──── one after the other, or two, and a look at the quiet between ─────►│
//! ```
//!
//! What is promised and held: alarms that were read for sure are told without being published again; once all was published
//! again, nothing is lost; nothing is told twice but where a link broke; nothing that is not so is told; and while nothing is
//! broken, on one server, no digest misses the alarm published just before its request.
//!
//! `ALARM_DIGEST_CHAOS_SEED=n` repeats a schedule, `ALARM_DIGEST_CHAOS_SECONDS=n` makes it last longer than the few seconds
//! that it has among all tests: for hours, in rounds, with
//! `cargo test --test service --test durable random_faults -- --nocapture`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use alarm_digest::alarm::{Id, UserId};
use fastrand::Rng;
use nats_server_fixture::{Binary, Process, Server, Signal, eventually};
use serde_json::json;

use crate::proxy::{Passed, Proxy};
use crate::strike::{Broken, Fault, Part, TWO_AT_ONCE, pick, strike};
use crate::witness::{ONCE, Witness};
use crate::world::{
    Client, LAME_DUCK, SOON, at, exit_code, on_each_server, program, tell_to_go, try_connect_to, until_gone,
};

const CORES: usize = 2;
const USERS: u32 = 100;
const ALARMS: u32 = 10;

/// Messages that are published at once.
const CHUNK: usize = 100;

/// The least time that a chunk takes.
const PACE: Duration = Duration::from_millis(30);

/// Longer than the service waits for an answer to its PING, twice.
const PAST_THE_PINGS: Duration = Duration::from_secs(3);

/// Between two attempts at what a cluster may have lost.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// How long faults go on when nobody says otherwise, and at most before all is checked.
const FAULT_SECONDS: u64 = 6;
const ROUND_SECONDS_MAX: u64 = 90;

/// Bytes of a field that nobody reads, so that some floods are more than all sockets between hold: 48 MB each.
const PADDING: usize = 16_000;
const FLOODS_MAX: u32 = 10;

/// A consumer that does not read is cut off soon.
const CONFIG: &str = "write_deadline: \"500ms\"\nmax_pending: 4194304";

/// What the servers say before they close a connection that spoke nonsense, and what a core says before it dies.
const NEVER_SAID: [&str; 5] = ["Violation", "Unknown Protocol", "Parser", "Invalid", "panicked"];

const FAULTS: [Fault<World>; 10] = [
    Fault {
        name: "kill -9 of a server",
        breaks: &[Part::Server],
        begin: |world| {
            let server = world.any_server();
            world.servers[server].kill();
            Broken::until(world.about(500), move |world: &mut World| {
                world.servers[server].restart().expect("a server");
            })
        },
    },
    Fault {
        name: "rolling restart of the servers",
        breaks: &[Part::Server],
        begin: |world| {
            for server in 0..world.servers.len() {
                world.servers[server].stop().expect("it ends");
                world.pause(200);
                world.servers[server].restart().expect("a server");
                world.pause(200);
            }
            Broken::over()
        },
    },
    Fault {
        name: "lame duck mode of a server",
        breaks: &[Part::Server],
        begin: |world| {
            let server = world.any_server();
            let before = tell_to_go(&mut world.servers[server]);
            Broken::until(Duration::from_secs(1), move |world: &mut World| {
                until_gone(&world.servers[server], before);
                world.servers[server].restart().expect("a server");
            })
        },
    },
    Fault {
        name: "SIGSTOP of a server past the pings",
        breaks: &[Part::Server],
        begin: |world| {
            let server = world.any_server();
            world.servers[server].suspend().expect("it runs");
            Broken::until(PAST_THE_PINGS, move |world: &mut World| {
                world.servers[server].resume().expect("it runs");
            })
        },
    },
    Fault {
        name: "SIGSTOP of the service past the pings",
        breaks: &[Part::Service],
        begin: |world| {
            world.service.suspend().expect("it runs");
            Broken::until(PAST_THE_PINGS, |world: &mut World| world.service.resume().expect("it runs"))
        },
    },
    Fault {
        name: "SIGSTOP of the service under a flood",
        // Which a server has to take, and a connection to bring.
        breaks: &[Part::Service, Part::Server, Part::Network],
        begin: |world| {
            world.service.suspend().expect("it runs");
            // Sockets hold the more the more has gone through them.
            let before = world.slow_consumers();
            for _ in 0..FLOODS_MAX {
                world.flood(3000);
                if world.slow_consumers() > before {
                    break;
                }
            }
            Broken::until(Duration::ZERO, |world: &mut World| world.service.resume().expect("it runs"))
        },
    },
    Fault {
        name: "network cut",
        breaks: &[Part::Network],
        begin: |world| {
            world.proxies.iter().for_each(Proxy::cut);
            Broken::over()
        },
    },
    Fault {
        name: "network cut, and no way back for a while",
        breaks: &[Part::Network],
        begin: |world| {
            world.proxies.iter().for_each(|proxy| proxy.refuse(true));
            world.proxies.iter().for_each(Proxy::cut);
            Broken::until(world.about(1000), World::heal_network)
        },
    },
    Fault {
        name: "network held past the pings",
        breaks: &[Part::Network],
        begin: |world| {
            world.proxies.iter().for_each(|proxy| proxy.hold(true));
            Broken::until(PAST_THE_PINGS, World::heal_network)
        },
    },
    Fault {
        name: "network slow",
        breaks: &[Part::Network],
        begin: |world| {
            let delay = Duration::from_millis(world.rng.u64(5..100));
            world.proxies.iter().for_each(|proxy| proxy.delay(delay));
            Broken::until(world.about(1500), World::heal_network)
        },
    },
];

/// What a fault can break.
struct World {
    rng: Rng,
    servers: Vec<Server>,
    proxies: Vec<Proxy>,
    service: Process,
    witness: Arc<Mutex<Witness>>,
    published: Arc<Mutex<Published>>,
    /// How often, by name.
    injected: BTreeMap<&'static str, u64>,
    began: Instant,
    /// Users that were made up for a look.
    looks: u32,
}

/// All changes that anybody has tried to publish, each once, and of whom they are.
#[derive(Default)]
struct Published {
    changes: BTreeSet<Vec<u8>>,
    users: BTreeSet<String>,
    messages: u64,
}

#[test]
fn servers_killed_and_replaced_lose_nothing() {
    on_each_server(|binary| {
        for servers in [1, 3] {
            let faults =
                ["kill -9 of a server", "rolling restart of the servers", "lame duck mode of a server"];
            each_of(binary, servers, &faults);
        }
    });
}

#[test]
fn stops_past_the_pings_lose_nothing() {
    on_each_server(|binary| {
        each_of(binary, 1, &["SIGSTOP of a server past the pings", "SIGSTOP of the service past the pings"]);
    });
}

#[test]
fn a_service_cut_off_as_a_slow_consumer_loses_nothing() {
    on_each_server(|binary| {
        let slow = |world: &mut World| {
            world.inject_by_name("SIGSTOP of the service under a flood");
            assert!(world.slow_consumers() > 0, "{}", world.servers[0].log());
        };
        round(binary, 1, seed(), slow);
    });
}

#[test]
fn a_network_that_fails_loses_nothing() {
    on_each_server(|binary| {
        let all = FAULTS.map(|fault| fault.name);
        let networks: Vec<&str> = all.into_iter().filter(|name| name.starts_with("network")).collect();
        each_of(binary, 1, &networks);
    });
}

#[test]
fn random_faults_lose_nothing() {
    let binaries = nats_server_fixture::available().expect("a nats-server is needed for this test");
    let seconds = number("ALARM_DIGEST_CHAOS_SECONDS").unwrap_or(FAULT_SECONDS);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = seed();
    for binary in binaries.iter().cycle() {
        let mut rng = Rng::with_seed(seed);
        let servers = rng.usize(1..=3);
        let left = end.saturating_duration_since(Instant::now());
        let until = Instant::now() + left.min(Duration::from_secs(ROUND_SECONDS_MAX));
        round(binary, servers, seed, |world| {
            while Instant::now() < until {
                let (first, second) = pick(&FAULTS, &mut world.rng);
                world.inject(first, second);
                world.pause(300);
            }
        });
        if Instant::now() >= end {
            return;
        }
        seed = seed.wrapping_add(1);
    }
}

/// With bytes held on both ways, neither way reads that the connection has ended.
#[test]
fn a_proxy_that_is_cut_says_so_whatever_it_holds() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let seen: Arc<Mutex<Vec<&str>>> = Arc::default();
    let (tap, has_seen) = (Arc::clone(&seen), |what| seen.lock().expect("nobody panics").contains(&what));
    let proxy = Proxy::tapped(listener.local_addr().expect("it is bound"), move |_, passed| {
        tap.lock().expect("nobody panics").push(match passed {
            Passed::ToServer(_) => "to the server",
            Passed::ToService(_) => "to the service",
            Passed::Closed => "closed",
        });
    });
    proxy.hold(true);
    let mut near = TcpStream::connect(proxy.addr()).expect("it listens");
    let (mut far, _) = listener.accept().expect("the proxy connects");
    near.write_all(b"a").expect("it is open");
    far.write_all(b"b").expect("it is open");
    eventually(SOON, "both to be held", || has_seen("to the server") && has_seen("to the service"));
    proxy.cut();
    proxy.heal();
    eventually(SOON, "the end to be told of", || has_seen("closed"));
}

/// Each of these faults in turn.
fn each_of(binary: &Binary, servers: usize, faults: &[&'static str]) {
    round(binary, servers, seed(), |world| {
        for name in faults {
            world.pause(300);
            world.inject_by_name(name);
        }
    });
}

/// One service on so many servers under load, and `fault` meanwhile.
fn round(binary: &Binary, servers: usize, seed: u64, fault: impl FnOnce(&mut World)) {
    let context = format!("{servers} × {binary}, ALARM_DIGEST_CHAOS_SEED={seed}");
    eprintln!("{context}");
    let mut world = World::start(binary, servers, seed);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut publisher = Publisher {
            rng: Rng::with_seed(seed),
            servers: world.servers.iter().map(Server::addr).collect(),
            client: None,
            once: 0,
            witness: Arc::clone(&world.witness),
            published: Arc::clone(&world.published),
            second: 0,
        };
        let is_over = &is_over;
        scope.spawn(move || {
            while !is_over.load(Ordering::Acquire) {
                let began = Instant::now();
                publisher.publish();
                thread::sleep(PACE.saturating_sub(began.elapsed()));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fault(&mut world)));
        is_over.store(true, Ordering::Release);
        if let Err(panic) = outcome {
            eprintln!("{context}");
            std::panic::resume_unwind(panic);
        }
    });
    world.tell_what_was_read(&context);
    world.publish_all_again(&context);
    world.stop(&context);
    let account = world.witness().account();
    let read = world.witness().read_and_untold().0;
    println!(
        "| memory | {servers} × {} | {} | {} changes | {} digests | {} links broken | {} written again | {read} read for sure, \
         0 of them lost |",
        binary.release(),
        world.injected.iter().map(|(what, count)| format!("{count} × {what}")).collect::<Vec<_>>().join(", "),
        world.published.lock().expect("nobody panics").messages,
        account.digests,
        account.broken,
        account.again,
    );
}

impl World {
    fn start(binary: &Binary, servers: usize, seed: u64) -> Self {
        let builder = Server::builder(binary).config(CONFIG).config(LAME_DUCK);
        let servers = if servers == 1 {
            vec![builder.start().expect("a server")]
        } else {
            // Or the service would learn of the servers' own addresses, and go round the proxies.
            builder.unadvertised().start_cluster(servers).expect("a cluster")
        };
        let witness = Arc::new(Mutex::new(Witness::default()));
        let proxy = |server: &Server| {
            let witness = Arc::clone(&witness);
            Proxy::tapped(server.addr(), move |link, passed| lock(&witness).on_passed(link, &passed))
        };
        let proxies: Vec<Proxy> = servers.iter().map(proxy).collect();
        let urls: Vec<String> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
        let mut command = program(&["--server", &urls.join(","), "--cpus", "0,1", "--retention", "10years"]);
        command.args([
            "--ping-interval",
            "500ms",
            "--connect-timeout",
            "2s",
            "--reconnect-delay-max",
            "200ms",
        ]);
        let service = Process::spawn(&command).expect("it starts");
        let world = Self {
            // Another one than that which decides how many servers there are.
            rng: Rng::with_seed(seed).fork(),
            servers,
            proxies,
            service,
            witness,
            published: Arc::default(),
            injected: BTreeMap::new(),
            began: Instant::now(),
            looks: 0,
        };
        world.until_ready();
        world
    }

    fn witness(&self) -> std::sync::MutexGuard<'_, Witness> {
        lock(&self.witness)
    }

    fn any_server(&mut self) -> usize {
        self.rng.usize(..self.servers.len())
    }

    /// Between a half and one and a half of it.
    fn about(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds / 2 + self.rng.u64(..milliseconds))
    }

    fn pause(&mut self, milliseconds: u64) {
        thread::sleep(self.about(milliseconds));
    }

    fn heal_network(&mut self) {
        self.proxies.iter().for_each(Proxy::heal);
    }

    fn inject_by_name(&mut self, name: &str) {
        let fault = FAULTS.iter().find(|fault| fault.name == name).expect("there is one of this name");
        self.inject(fault, None);
    }

    /// Breaks something, or two things at once, and sees all whole again.
    fn inject(&mut self, first: &Fault<World>, second: Option<&Fault<World>>) {
        let at = self.began.elapsed();
        let mut rng = self.rng.fork();
        strike(self, first, second, &mut rng);
        let names: Vec<&str> = [Some(first), second].into_iter().flatten().map(|fault| fault.name).collect();
        names.iter().for_each(|name| *self.injected.entry(name).or_default() += 1);
        if names.len() > 1 {
            *self.injected.entry(TWO_AT_ONCE).or_default() += 1;
        }
        let healed = self.began.elapsed();
        self.look_at_the_quiet();
        let (lasted, quiet) = (healed - at, self.began.elapsed() - healed);
        println!(
            "{:8.1} s  {}: {:.1} s, and {:.1} s until all was well",
            at.as_secs_f64(),
            names.join(" + "),
            lasted.as_secs_f64(),
            quiet.as_secs_f64()
        );
    }

    /// All cores are subscribed, and nothing is left of other connections, which a server could still send messages to.
    fn until_ready(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            let ready = self.witness().ready_links();
            let ways: usize = self.proxies.iter().map(Proxy::ways).sum();
            if (ready, ways) == (CORES, 2 * CORES) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "expected {CORES} cores to be subscribed, got {ready}, and twice as many ways, got {ways}\n{}{}",
                self.service.threads(),
                self.service.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing is broken now: an alarm is in the digest that is asked for just after it.
    fn look_at_the_quiet(&mut self) {
        self.until_ready();
        // A core that sleeps there has returned to its executor, and nothing wakes it.
        let threads = self.service.threads();
        assert!(!threads.contains("io_cqring_wait"), "{threads}");
        // Servers of a cluster hand messages on at their own pace.
        if self.servers.len() > 1 {
            return;
        }
        for _ in 0..5 {
            let broken = self.witness().links_broken();
            self.until_ready();
            let user = self.next_look();
            let passed = self.witness().passed();
            let digests = self.witness().account().digests;
            let told = self.is_told(&user, broken, Instant::now() + SOON);
            if told {
                self.witness().has_read(&passed);
            }
            let digests = self.witness().account().digests - digests;
            assert!(
                told || self.witness().links_broken() > broken,
                "the digest of {user} missed its alarm, or never came, and {digests} others did\n{}{}",
                self.service.threads(),
                self.service.log()
            );
        }
    }

    fn next_look(&mut self) -> String {
        self.looks += 1;
        format!("look {}", self.looks)
    }

    /// Publishes an alarm of a new user and a request, and waits for the digest, unless more than `broken` links break.
    fn is_told(&self, user: &str, broken: u64, deadline: Instant) -> bool {
        let mut client = connect_to_any(&self.servers, deadline);
        let change = change(user, "disk", "WARNING", 1);
        self.record(&change, user);
        client.publish("AlarmStatusChanged", &change);
        client.publish("SendAlarmDigest", &request(user));
        if client.flush(deadline).is_err() {
            return false;
        }
        let id = UserId(Id::new(user).expect("an id"));
        let mut asked_at = Instant::now();
        loop {
            let witness = self.witness();
            if witness.has_told(&id) {
                return true;
            }
            if witness.links_broken() > broken || Instant::now() > deadline {
                return false;
            }
            drop(witness);
            // Between servers either may have been lost, or the request overtaken the alarm.
            if self.servers.len() > 1 && asked_at.elapsed() > ASK_EVERY {
                asked_at = Instant::now();
                client.publish("AlarmStatusChanged", &change);
                client.publish("SendAlarmDigest", &request(user));
                if client.flush(deadline).is_err() {
                    return false;
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Before it is published.
    fn record(&self, change: &[u8], user: &str) {
        self.witness().checker.published(change);
        record(&self.published, change, user);
    }

    /// How often a server has cut somebody off who did not read.
    fn slow_consumers(&self) -> usize {
        self.servers.iter().map(|server| server.log().matches("Slow Consumer").count()).sum()
    }

    /// So many messages at once, which are large.
    fn flood(&mut self, messages: u32) {
        let deadline = Instant::now() + SOON;
        let mut client = connect_to_any(&self.servers, deadline);
        let padding = "x".repeat(PADDING);
        for number in 0..messages {
            let alarm = format!("alarm {}", number % ALARMS);
            let plain = change("flood", &alarm, "CRITICAL", number);
            self.record(&plain, "flood");
            let mut padded: serde_json::Value = serde_json::from_slice(&plain).expect("ours");
            padded["Note"] = json!(padding);
            client.publish("AlarmStatusChanged", padded.to_string().as_bytes());
            if number % 50 == 0 && client.write(deadline).is_err() {
                return;
            }
        }
        let _ = client.flush(deadline);
    }

    /// Asks for each user, and for those who are owed something that was read for sure again: between servers a request may be
    /// lost.
    fn tell_what_was_read(&mut self, context: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            self.until_ready();
            let look = self.next_look();
            let broken = self.witness().links_broken();
            let passed = self.witness().passed();
            if self.is_told(&look, broken, deadline) {
                self.witness().has_read(&passed);
                self.ask_for_all(deadline);
                if self.witness().read_and_untold().1.is_empty() {
                    return;
                }
            }
            let witness = self.witness();
            let (read, untold) = witness.read_and_untold();
            let log = self.service.log();
            assert!(
                Instant::now() < deadline,
                "{context}: {} of {read} read are lost: {untold:?}\n{log}",
                untold.len()
            );
        }
    }

    /// One request of each user, and what has come of them: if a link breaks meanwhile, perhaps not all.
    fn ask_for_all(&mut self, deadline: Instant) {
        let users = self.published.lock().expect("nobody panics").users.clone();
        let mut client = connect_to_any(&self.servers, deadline);
        users.iter().for_each(|user| client.publish("SendAlarmDigest", &request(user)));
        let user = self.next_look();
        let broken = self.witness().links_broken();
        if client.flush(deadline).is_ok() {
            self.is_told(&user, broken, deadline);
        }
    }

    /// All that anybody has tried to publish, and then a request of each user. If a link breaks meanwhile, once more.
    fn publish_all_again(&mut self, context: &str) {
        let deadline = Instant::now() + SOON * 3;
        loop {
            let broken = self.witness().links_broken();
            self.until_ready();
            let is_done = self.try_publish_all_again(broken, deadline);
            if is_done && self.witness().links_broken() == broken {
                return;
            }
            assert!(Instant::now() < deadline, "{context}: it is never quiet\n{}", self.service.log());
        }
    }

    fn try_publish_all_again(&mut self, broken: u64, deadline: Instant) -> bool {
        let (changes, users): (Vec<_>, Vec<_>) = {
            let published = self.published.lock().expect("nobody panics");
            (published.changes.iter().cloned().collect(), published.users.iter().cloned().collect())
        };
        let mut client = connect_to_any(&self.servers, deadline);
        for chunk in changes.chunks(1000) {
            chunk.iter().for_each(|change| client.publish("AlarmStatusChanged", change));
            let user = self.next_look();
            // So that no more than this waits anywhere.
            if client.flush(deadline).is_err() || !self.is_told(&user, broken, deadline) {
                return false;
            }
        }
        users.iter().for_each(|user| client.publish("SendAlarmDigest", &request(user)));
        let user = self.next_look();
        if client.flush(deadline).is_err() || !self.is_told(&user, broken, deadline) {
            return false;
        }
        let is_settled = self.is_settled(Instant::now() + Duration::from_secs(10));
        // On one server, one request is enough. Between servers it may have overtaken what came before, and what a server had for
        // another one that it did not know yet is gone.
        is_settled || self.servers.len() == 1
    }

    /// Nothing is missing, and all that was told is proved.
    fn is_settled(&self, deadline: Instant) -> bool {
        loop {
            let witness = self.witness();
            if witness.is_all_proved() && witness.checker.verdict().lost == 0 {
                return true;
            }
            drop(witness);
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn stop(&mut self, context: &str) {
        self.service.signal(Signal::TERM).expect("it runs");
        let code = exit_code(&mut self.service);
        let log = self.service.log();
        assert_eq!(code, 0, "{context}: {log}");
        let faults = self.witness().faults();
        assert!(faults.is_empty(), "{context}:\n{faults}\n{log}");
        for word in NEVER_SAID {
            assert!(!log.contains(word), "{context}: {word}\n{log}");
        }
    }
}

struct Publisher {
    rng: Rng,
    servers: Vec<SocketAddr>,
    client: Option<Client>,
    witness: Arc<Mutex<Witness>>,
    published: Arc<Mutex<Published>>,
    /// The time that changes are from goes on, so that there is always news.
    second: u32,
    /// Alarms [`ONCE`] so far.
    once: u32,
}

impl Publisher {
    /// A chunk, shuffled, some of it twice, with requests among it. Whether it arrives is another matter.
    fn publish(&mut self) {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK {
            let user = format!("user {}", self.rng.u32(..USERS));
            if self.rng.u32(..10) == 0 {
                chunk.push(("SendAlarmDigest", request(&user)));
                continue;
            }
            let mut status = ["CLEARED", "WARNING", "CRITICAL"][self.rng.usize(..3)];
            let mut alarm = format!("alarm {}", self.rng.u32(..ALARMS));
            if self.rng.u32(..20) == 0 {
                self.once += 1;
                (status, alarm) = ("WARNING", format!("{ONCE}{}", self.once));
            }
            let change = change(&user, &alarm, status, self.second + self.rng.u32(..60));
            lock(&self.witness).checker.published(&change);
            record(&self.published, &change, &user);
            if self.rng.u32(..20) == 0 {
                chunk.push(("AlarmStatusChanged", change.clone()));
            }
            chunk.push(("AlarmStatusChanged", change));
        }
        self.rng.shuffle(&mut chunk);
        self.second += 5;
        if self.try_publish(&chunk).is_err() {
            self.client = None;
            self.servers.rotate_left(1);
        }
    }

    fn try_publish(&mut self, chunk: &[(&str, Vec<u8>)]) -> io::Result<()> {
        if self.client.is_none() {
            self.client = Some(try_connect_to(self.servers[0])?);
        }
        let client = self.client.as_mut().expect("it was just made");
        chunk.iter().for_each(|(subject, payload)| client.publish(subject, payload));
        client.flush(Instant::now() + Duration::from_secs(2))
    }
}

fn record(published: &Mutex<Published>, change: &[u8], user: &str) {
    let mut published = published.lock().expect("nobody panics");
    published.messages += 1;
    published.changes.insert(change.to_vec());
    if !published.users.contains(user) {
        published.users.insert(user.into());
    }
}

/// One thread of a test that failed must not hide why.
fn lock(witness: &Mutex<Witness>) -> std::sync::MutexGuard<'_, Witness> {
    witness.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn connect_to_any(servers: &[Server], deadline: Instant) -> Client {
    let mut servers = servers.iter().cycle();
    loop {
        let server = servers.next().expect("there is at least one");
        match try_connect_to(server.addr()) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "no server answers: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn change(user: &str, alarm: &str, status: &str, second: u32) -> Vec<u8> {
    crate::world::change(user, alarm, status, &at(second)).into_bytes()
}

fn request(user: &str) -> Vec<u8> {
    json!({ "UserID": user }).to_string().into_bytes()
}

fn seed() -> u64 {
    number("ALARM_DIGEST_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")))
}
