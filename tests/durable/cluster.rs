//! Three servers with three replicas of everything: the leaders of the streams are killed, deposed, stopped, and told to go.

use std::thread;
use std::time::{Duration, Instant};

use alarm_digest_checker::Streams;
use nats_server_fixture::{Release, Server, available};
use serde_json::Value;

use crate::chaos::{Setup, World, chaos};
use crate::world::{LAME_DUCK, SOON, tell_to_go, until_gone};

/// What is recommended for anything that matters.
const RELEASE_MIN: Release = Release { major: 2, minor: 12, patch: 0 };

const STREAMS: [&str; 3] = ["AD_IN", "KV_AD_STATE", "AD_OUT"];

/// A commit needs two of three servers, and all of it happens on one machine.
const PACE: Duration = Duration::from_millis(100);

#[test]
fn leaders_killed_in_turn_lose_and_repeat_nothing() {
    cluster("3 servers: leaders killed in turn", |world| {
        for stream in STREAMS.into_iter().cycle() {
            let leader = world.leader(stream);
            world.servers[leader].kill();
            world.injected("kill -9 of a leader");
            world.pause(2500);
            world.servers[leader].restart().expect("a server");
            world.pause(500);
            if !world.goes_on() {
                break;
            }
        }
    });
}

#[test]
fn leaders_that_step_down_lose_and_repeat_nothing() {
    cluster("3 servers: leaders step down", |world| {
        while world.goes_on() {
            for stream in STREAMS {
                let asked = world.streams().call::<Value>(&["STREAM.LEADER.STEPDOWN.", stream], "");
                if asked.is_ok() {
                    world.injected("stream leader stepped down");
                }
                world.pause(200);
            }
            let asked = world.streams().call::<Value>(&["CONSUMER.LEADER.STEPDOWN.AD_IN.digest"], "");
            if asked.is_ok() {
                world.injected("consumer leader stepped down");
            }
        }
    });
}

#[test]
fn leaders_that_stop_for_six_seconds_lose_and_repeat_nothing() {
    cluster("3 servers: leaders stopped for 6 s", |world| {
        for stream in STREAMS.into_iter().cycle() {
            let leader = world.leader(stream);
            world.servers[leader].suspend().expect("it runs");
            thread::sleep(Duration::from_secs(6));
            world.servers[leader].resume().expect("it runs");
            world.injected("SIGSTOP of a leader");
            world.pause(500);
            if !world.goes_on() {
                break;
            }
        }
    });
}

#[test]
fn leaders_that_are_about_to_close_are_left_and_lose_and_repeat_nothing() {
    cluster("3 servers: leaders in lame duck mode", |world| {
        for stream in STREAMS.into_iter().cycle() {
            let leader = world.leader(stream);
            let before = tell_to_go(&mut world.servers[leader]);
            until_gone(&world.servers[leader], before);
            world.injected("lame duck mode of a leader");
            world.servers[leader].restart().expect("a server");
            world.pause(500);
            if !world.goes_on() {
                break;
            }
        }
        assert!(world.is_said(" moved"), "nobody was there");
    });
}

fn cluster(what: &'static str, fault: impl Fn(&mut World)) {
    for binary in available().expect("a nats-server is needed for this test") {
        if binary.release() < RELEASE_MIN {
            continue;
        }
        let servers =
            Server::builder(&binary).config(LAME_DUCK).jetstream().start_cluster(3).expect("a cluster");
        await_meta_leader(&servers[0]);
        let setup = Setup { arguments: &["--js-replicas", "3"], pace: PACE, ..Setup::new(what) };
        chaos(&setup, servers, &fault);
    }
}

pub fn await_meta_leader(server: &Server) {
    let deadline = Instant::now() + SOON;
    loop {
        let named = Streams::connect(server.addr(), "AD").map_err(|error| error.to_string());
        match named.and_then(|mut streams| streams.call::<Value>(&["STREAM.NAMES"], "")) {
            Ok(_) => return,
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
            Err(error) => panic!("the cluster has no leader: {error}"),
        }
    }
}
