//! Anything that can be broken, in an order that a seed decides, on one server or three, with one to three instances.
//!
//! `ALARM_DIGEST_CHAOS_SECONDS=3600 cargo test --test service --test durable random_faults -- --nocapture` goes on for an
//! hour in each mode, in rounds with fresh servers; each fault prints a line, and each round its row.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nats_server_fixture::{Release, Server, available};
use serde_json::{Value, json};

use crate::chaos::{Setup, World, chaos, number};
use crate::cluster::await_meta_leader;
use crate::proxy::Proxy;
use crate::strike::{Broken, Fault, Part, TWO_AT_ONCE, pick, strike};
use crate::world::{LAME_DUCK, tell_to_go, until_gone};

/// Older ones lose data by themselves when they are killed, or full.
const RELEASE_MIN: Release = Release { major: 2, minor: 12, patch: 0 };

const SECONDS: u64 = 10;
const ROUND_SECONDS_MAX: u64 = 60;

/// Longer than the 2 s that a message may be under way in one instance, and than the beats of the others.
const PAST_THE_LEASE: Duration = Duration::from_millis(4500);

const FAULTS: [Fault<World>; 10] = [
    Fault {
        name: "kill -9 of an instance",
        breaks: &[Part::Service],
        begin: |world| {
            let at = world.any_instance();
            world.kill_instance(at);
            Broken::until(world.about(300), move |world: &mut World| world.start_instance(at))
        },
    },
    Fault {
        name: "SIGSTOP of an instance past its lease",
        breaks: &[Part::Service],
        begin: |world| {
            let at = world.any_instance();
            world.instances[at].suspend().expect("it runs");
            Broken::until(PAST_THE_LEASE, move |world: &mut World| {
                world.instances[at].resume().expect("it runs");
            })
        },
    },
    Fault {
        name: "network of an instance cut",
        breaks: &[Part::Network],
        begin: |world| {
            let at = world.any_instance();
            world.proxies[at].iter().for_each(|proxy| proxy.refuse(true));
            world.proxies[at].iter().for_each(Proxy::cut);
            Broken::until(world.about(1000), move |world: &mut World| heal_network(world, at))
        },
    },
    Fault {
        name: "network of an instance held past its lease",
        breaks: &[Part::Network],
        begin: |world| {
            let at = world.any_instance();
            world.proxies[at].iter().for_each(|proxy| proxy.hold(true));
            Broken::until(PAST_THE_LEASE, move |world: &mut World| heal_network(world, at))
        },
    },
    Fault {
        name: "network of an instance slow",
        breaks: &[Part::Network],
        begin: |world| {
            let (at, delay) = (world.any_instance(), Duration::from_millis(world.rng.u64(5..100)));
            world.proxies[at].iter().for_each(|proxy| proxy.delay(delay));
            Broken::until(world.about(2000), move |world: &mut World| heal_network(world, at))
        },
    },
    Fault {
        name: "kill -9 of a server",
        breaks: &[Part::Server],
        begin: |world| {
            let at = world.rng.usize(..world.servers.len());
            world.servers[at].kill();
            Broken::until(world.about(1000), move |world: &mut World| {
                world.servers[at].restart().expect("a server");
            })
        },
    },
    Fault {
        name: "lame duck mode of a server",
        breaks: &[Part::Server],
        begin: |world| {
            let at = world.rng.usize(..world.servers.len());
            let before = tell_to_go(&mut world.servers[at]);
            Broken::until(Duration::from_secs(1), move |world: &mut World| {
                until_gone(&world.servers[at], before);
                world.servers[at].restart().expect("a server");
            })
        },
    },
    Fault {
        name: "SIGSTOP of a server",
        breaks: &[Part::Server],
        begin: |world| {
            let at = world.rng.usize(..world.servers.len());
            world.servers[at].suspend().expect("it runs");
            Broken::until(Duration::from_secs(3), move |world: &mut World| {
                world.servers[at].resume().expect("it runs");
            })
        },
    },
    Fault {
        name: "output stream full",
        // Which they have to be told.
        breaks: &[Part::Server],
        begin: |world| {
            let bytes = world.streams().stream("AD_OUT").map_or(0, |info| info.state.bytes);
            // Also where it did not answer: it may have obeyed.
            let lasts = if resize(world, bytes + 1000) { world.about(1500) } else { Duration::ZERO };
            Broken::until(lasts, |world: &mut World| {
                while !resize(world, 1 << 30) {
                    world.pause(100);
                }
            })
        },
    },
    Fault {
        name: "rolling restart of everything",
        // With instances that must connect.
        breaks: &[Part::Server, Part::Service, Part::Network],
        begin: |world| {
            for at in 0..world.servers.len() {
                world.servers[at].stop().expect("it ends");
                world.pause(300);
                world.servers[at].restart().expect("a server");
                // As operators do: one at a time, each only when the others are whole again.
                for stream in ["AD_IN", "KV_AD_STATE", "AD_OUT"] {
                    world.leader(stream);
                }
                world.pause(500);
            }
            for at in 0..world.instances.len() {
                world.replace_instance(at);
            }
            Broken::over()
        },
    },
];

fn heal_network(world: &mut World, at: usize) {
    world.proxies[at].iter().for_each(Proxy::heal);
}

/// Says whether the server has taken it.
fn resize(world: &World, bytes: u64) -> bool {
    let mut streams = world.streams();
    let Ok(info) = streams.stream("AD_OUT") else { return false };
    let mut config = json!(info.config);
    config["max_bytes"] = json!(bytes);
    streams.call::<Value>(&["STREAM.UPDATE.AD_OUT"], &config.to_string()).is_ok()
}

#[test]
fn random_faults_lose_and_repeat_nothing() {
    let seconds = number("ALARM_DIGEST_CHAOS_SECONDS").unwrap_or(SECONDS);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut shape = Rng::with_seed(number("ALARM_DIGEST_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..)));
    let binaries = available().expect("a nats-server is needed for this test");
    let Some(binary) = binaries.iter().find(|binary| binary.release() >= RELEASE_MIN) else {
        return eprintln!("not here: there is no nats-server {RELEASE_MIN} or newer");
    };
    loop {
        let (servers, instances) = ([1, 3][shape.usize(..2)], shape.usize(1..4));
        let builder = Server::builder(binary).config(LAME_DUCK).jetstream();
        let (servers, arguments): (_, &[&str]) = if servers == 1 {
            (vec![builder.start().expect("a server")], &[])
        } else {
            let servers = builder.unadvertised().start_cluster(servers).expect("a cluster");
            await_meta_leader(&servers[0]);
            (servers, &["--js-replicas", "3"])
        };
        let setup = Setup {
            instances,
            arguments,
            pace: Duration::from_millis(100),
            is_proxied: true,
            seconds_max: ROUND_SECONDS_MAX
                .min(end.saturating_duration_since(Instant::now()).as_secs().max(1)),
            ..Setup::new("random faults")
        };
        let began = Instant::now();
        chaos(&setup, servers, |world| {
            while world.goes_on() {
                world.pause(500);
                let (first, second) = pick(&FAULTS, &mut world.rng);
                let at = began.elapsed();
                let mut rng = world.rng.fork();
                strike(world, first, second, &mut rng);
                let names: Vec<&str> =
                    [Some(first), second].into_iter().flatten().map(|fault| fault.name).collect();
                names.iter().for_each(|name| world.injected(name));
                if names.len() > 1 {
                    world.injected(TWO_AT_ONCE);
                }
                let (names, lasted) = (names.join(" + "), began.elapsed() - at);
                println!("{:8.1} s  {names}, {:.1} s", at.as_secs_f64(), lasted.as_secs_f64());
            }
        });
        if Instant::now() >= end {
            return;
        }
    }
}
