//! Instances are killed and stopped, and meet at the same users.

use std::time::Duration;

use crate::chaos::{Setup, chaos};
use crate::jetstream_server;
use crate::world::on_each_server;

#[test]
fn instances_that_meet_at_every_user_lose_and_repeat_nothing() {
    on_each_server(|binary| {
        for (what, arguments) in [
            ("no fault, three instances at full speed", &[][..]),
            ("the same without affinity", &["--no-affinity"]),
        ] {
            let setup = Setup { pace: Duration::ZERO, arguments, ..Setup::new(what) };
            chaos(&setup, vec![jetstream_server(binary)], |world| {
                while world.goes_on() {
                    world.pause(100);
                }
            });
        }
    });
}

#[test]
fn instances_killed_at_random_lose_and_repeat_nothing() {
    on_each_server(|binary| {
        for (what, arguments) in
            [("instances killed", &[][..]), ("instances killed, without affinity", &["--no-affinity"])]
        {
            let setup = Setup { arguments, ..Setup::new(what) };
            chaos(&setup, vec![jetstream_server(binary)], |world| {
                while world.goes_on() {
                    world.pause(400);
                    let at = world.any_instance();
                    world.kill_instance(at);
                    world.injected("kill -9 of an instance");
                    world.start_instance(at);
                }
            });
        }
    });
}

#[test]
fn an_instance_that_stops_for_longer_than_the_ack_wait_loses_and_repeats_nothing() {
    on_each_server(|binary| {
        chaos(&Setup::new("an instance stopped past ack_wait"), vec![jetstream_server(binary)], |world| {
            while world.goes_on() {
                world.pause(300);
                let at = world.any_instance();
                world.instances[at].suspend().expect("it runs");
                world.pause(3500);
                world.instances[at].resume().expect("it runs");
                world.injected("SIGSTOP of an instance");
            }
        });
    });
}
