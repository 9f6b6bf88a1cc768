//! Anything that can be broken, in an order that a seed decides, on one server or three, with one to three instances.
//!
//! `ALARM_DIGEST_CHAOS_SECONDS=3600 cargo test --test service --test durable random_faults -- --nocapture` goes on for an
//! hour in each mode, in rounds with fresh servers; each fault prints a line, and each round its row.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nats_server_fixture::{Release, Server, available};
use serde_json::{Value, json};

use crate::chaos::{Setup, World, chaos, number};
use crate::cluster::await_meta_leader;
use crate::world::{LAME_DUCK, let_go};

/// Older ones lose data by themselves when they are killed, or full.
const RELEASE_MIN: Release = Release { major: 2, minor: 12, patch: 0 };

const SECONDS: u64 = 10;
const ROUND_SECONDS_MAX: u64 = 60;

/// Longer than the 2 s that a message may be under way in one instance, and than the beats of the others.
const PAST_THE_LEASE: Duration = Duration::from_millis(4500);

/// It counts itself.
const KILLED: &str = "kill -9 of an instance";

type Fault = fn(&mut World);

const FAULTS: [(&str, Fault); 10] = [
    (KILLED, |world| {
        let at = world.any_instance();
        world.kill_instance(at);
        world.pause(300);
        world.start_instance(at);
    }),
    ("SIGSTOP of an instance past its lease", |world| {
        let at = world.any_instance();
        world.instances[at].suspend().expect("it runs");
        thread::sleep(PAST_THE_LEASE);
        world.instances[at].resume().expect("it runs");
    }),
    ("network of an instance cut", |world| {
        let at = world.any_instance();
        world.proxies[at].iter().for_each(|proxy| proxy.refuse(true));
        world.proxies[at].iter().for_each(|proxy| proxy.cut());
        world.pause(1000);
        world.proxies[at].iter().for_each(|proxy| proxy.heal());
    }),
    ("network of an instance held past its lease", |world| {
        let at = world.any_instance();
        world.proxies[at].iter().for_each(|proxy| proxy.hold(true));
        thread::sleep(PAST_THE_LEASE);
        world.proxies[at].iter().for_each(|proxy| proxy.heal());
    }),
    ("network of an instance slow", |world| {
        let (at, delay) = (world.any_instance(), Duration::from_millis(world.rng.u64(5..100)));
        world.proxies[at].iter().for_each(|proxy| proxy.delay(delay));
        world.pause(2000);
        world.proxies[at].iter().for_each(|proxy| proxy.heal());
    }),
    ("kill -9 of a server", |world| {
        let at = world.rng.usize(..world.servers.len());
        world.servers[at].kill();
        world.pause(1000);
        world.servers[at].restart().expect("a server");
    }),
    ("lame duck mode of a server", |world| {
        let at = world.rng.usize(..world.servers.len());
        let_go(&mut world.servers[at]);
        world.servers[at].restart().expect("a server");
    }),
    ("SIGSTOP of a server", |world| {
        let at = world.rng.usize(..world.servers.len());
        world.servers[at].suspend().expect("it runs");
        thread::sleep(Duration::from_secs(3));
        world.servers[at].resume().expect("it runs");
    }),
    ("output stream full", |world| {
        let bytes = world.streams().stream("AD_OUT").map_or(0, |info| info.state.bytes);
        if resize(world, bytes + 1000) {
            world.pause(1500);
            while !resize(world, 1 << 30) {
                world.pause(100);
            }
        }
    }),
    ("rolling restart of everything", |world| {
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
    }),
];

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
                let (name, fault) = FAULTS[world.rng.usize(..FAULTS.len())];
                let at = began.elapsed();
                fault(world);
                if name != KILLED {
                    world.injected(name);
                }
                println!("{:8.1} s  {name}, {:.1} s", at.as_secs_f64(), (began.elapsed() - at).as_secs_f64());
            }
        });
        if Instant::now() >= end {
            return;
        }
    }
}
