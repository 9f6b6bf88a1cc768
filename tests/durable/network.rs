//! Connections that stand still and go on much later, and a server that cuts off who reads too slowly.

use std::time::Instant;

use nats_server_fixture::Server;

use crate::chaos::{Setup, World, chaos};
use crate::jetstream_server;
use crate::world::{SOON, on_each_server};

#[test]
fn packets_that_arrive_after_others_took_over_lose_and_repeat_nothing() {
    on_each_server(|binary| {
        let setup = Setup { is_proxied: true, ..Setup::new("a connection that holds bytes past ack_wait") };
        chaos(&setup, vec![jetstream_server(binary)], |world| {
            while world.goes_on() {
                world.pause(500);
                world.proxies[0][0].hold(true);
                world.pause(3500);
                world.proxies[0][0].hold(false);
                world.injected("both directions held");
            }
        });
    });
}

#[test]
fn an_instance_cut_off_as_a_slow_consumer_loses_and_repeats_nothing() {
    on_each_server(|binary| {
        // What one request for messages brings is more than the sockets between hold.
        let server = Server::builder(binary).jetstream().config("write_deadline: \"500ms\"");
        let setup = Setup { padding: 16_000, ..Setup::new("slow consumer: an instance stopped") };
        chaos(&setup, vec![server.start().expect("a server")], |world| {
            let deadline = Instant::now() + SOON;
            let is_cut = |world: &World| world.servers[0].log().contains("Slow Consumer");
            while world.goes_on() || !is_cut(world) && Instant::now() < deadline {
                world.pause(300);
                let at = world.any_instance();
                world.instances[at].suspend().expect("it runs");
                world.pause(2000);
                world.instances[at].resume().expect("it runs");
                world.injected("SIGSTOP of an instance");
            }
            assert!(is_cut(world), "{}", world.servers[0].log());
            for _ in world.servers[0].log().matches("Slow Consumer") {
                world.injected("Slow Consumer");
            }
        });
    });
}
