//! Servers are killed under load.

use nats_server_fixture::Release;

use crate::chaos::{Setup, chaos};
use crate::jetstream_server;
use crate::world::on_each_server;

/// Killed, an older one can come back with messages that are acknowledged and there, or delivered and gone, and the queue
/// never ends. Source: nats-server issue 6888.
const SURVIVES_KILLS: Release = Release { major: 2, minor: 10, patch: 23 };

#[test]
fn a_server_killed_under_load_loses_and_repeats_nothing() {
    on_each_server(|binary| {
        if binary.release() < SURVIVES_KILLS {
            return eprintln!("not on {binary}, which garbles its own state when it is killed");
        }
        chaos(&Setup::new("the server killed"), vec![jetstream_server(binary)], |world| {
            while world.goes_on() {
                world.pause(500);
                world.servers[0].kill();
                world.injected("kill -9 of the server");
                world.pause(300);
                world.servers[0].restart().expect("a server");
            }
        });
    });
}
