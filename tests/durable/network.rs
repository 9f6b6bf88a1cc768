//! Connections that stand still and go on much later, and a server that cuts off who reads too slowly.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nats_server_fixture::Server;

use crate::chaos::{Setup, chaos};
use crate::jetstream_server;
use crate::world::on_each_server;

#[test]
fn packets_that_arrive_after_others_took_over_lose_and_repeat_nothing() {
    on_each_server(|binary| {
        let setup = Setup { instances: 2, ..Setup::new("a connection that holds bytes past ack_wait") };
        chaos(&setup, vec![jetstream_server(binary)], |world| {
            let proxy = Proxy::start(world.servers[0].addr()).expect("a loopback port");
            world.add_instance_on(proxy.addr);
            while world.goes_on() {
                world.pause(500);
                proxy.hold(true);
                world.pause(3500);
                proxy.hold(false);
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
            while world.goes_on() || !world.servers[0].log().contains("Slow Consumer") {
                world.pause(300);
                let at = world.any_instance();
                world.instances[at].suspend().expect("it runs");
                world.pause(2000);
                world.instances[at].resume().expect("it runs");
                world.injected("SIGSTOP of an instance");
            }
            for _ in world.servers[0].log().matches("Slow Consumer") {
                world.injected("Slow Consumer");
            }
        });
    });
}

/// Passes bytes on, or holds them. What was on its way when a side went is still delivered to the other.
struct Proxy {
    addr: SocketAddr,
    is_held: Arc<AtomicBool>,
}

impl Proxy {
    fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (addr, is_held) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let held = Arc::clone(&is_held);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let pairs = near.try_clone().and_then(|back| Ok([(near, far.try_clone()?), (far, back)]));
                for (from, to) in pairs.into_iter().flatten() {
                    let held = Arc::clone(&held);
                    thread::spawn(move || pass_on(from, to, &held));
                }
            }
        });
        Ok(Self { addr, is_held })
    }

    fn hold(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Release);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, is_held: &AtomicBool) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).unwrap_or(0);
        while is_held.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(10));
        }
        if read == 0 || to.write_all(&bytes[..read]).is_err() {
            // Each way ends by itself.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}
