//! Between the service and a server: passes bytes on, holds them, slows them down, cuts, refuses; and shows whoever wants
//! to look what passes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens on a connection, by its number. Whoever looks may change the bytes.
pub enum Passed<'a> {
    /// The service wrote this.
    ToServer(&'a mut Vec<u8>),
    /// The server wrote this.
    ToService(&'a mut Vec<u8>),
    /// One side is gone. What it wrote before has been told of, unless the connection was cut; perhaps once for each side.
    Closed,
}

/// Looks at bytes as they come, before they are held or lost.
type Tap = dyn Fn(u64, Passed<'_>) + Send + Sync;

pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    is_held: AtomicBool,
    is_refusing: AtomicBool,
    delay_millis: AtomicU64,
    /// Ways of connections that have not ended, two of each.
    ways: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
    tap: Box<Tap>,
}

impl Proxy {
    pub fn start(target: SocketAddr) -> Self {
        Self::tapped(target, |_, _| {})
    }

    pub fn tapped(target: SocketAddr, tap: impl Fn(u64, Passed<'_>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            target,
            is_held: AtomicBool::new(false),
            is_refusing: AtomicBool::new(false),
            delay_millis: AtomicU64::new(0),
            ways: AtomicUsize::new(0),
            streams: Mutex::default(),
            tap: Box::new(tap),
        });
        let for_connections = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                for_connections.open(near);
            }
        });
        Self { addr, shared }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether bytes stay here for now, both ways.
    pub fn hold(&self, is_held: bool) {
        self.shared.is_held.store(is_held, Ordering::Release);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, is_refusing: bool) {
        self.shared.is_refusing.store(is_refusing, Ordering::Release);
    }

    /// How late bytes are.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_millis.store(delay.as_millis() as u64, Ordering::Release);
    }

    /// Ways of connections on which anything may still pass, two of each: of one that has ended both sides know it.
    pub fn ways(&self) -> usize {
        self.shared.ways.load(Ordering::Acquire)
    }

    /// Closes all connections.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().expect("nobody panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// As if nothing had ever been done to it; connections that are closed stay so.
    pub fn heal(&self) {
        self.hold(false);
        self.refuse(false);
        self.delay(Duration::ZERO);
    }
}

/// Nobody waits for its connections any more.
impl Drop for Proxy {
    fn drop(&mut self) {
        self.heal();
        self.refuse(true);
        self.cut();
    }
}

impl Shared {
    fn open(self: &Arc<Self>, near: TcpStream) {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if self.is_refusing.load(Ordering::Acquire) {
            return;
        }
        let Ok(far) = TcpStream::connect(self.target) else { return };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be had twice");
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        self.streams.lock().expect("nobody panics").extend([copy(&near), copy(&far)]);
        for (from, to, is_to_server) in [(copy(&near), copy(&far), true), (far, near, false)] {
            let shared = Arc::clone(self);
            shared.ways.fetch_add(1, Ordering::AcqRel);
            thread::spawn(move || {
                shared.pass_on(number, from, to, is_to_server);
                shared.ways.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    fn pass_on(&self, number: u64, mut from: TcpStream, mut to: TcpStream, is_to_server: bool) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let bytes = from.read(&mut buffer).unwrap_or(0);
            let mut passed = buffer[..bytes].to_vec();
            match bytes {
                0 => (self.tap)(number, Passed::Closed),
                _ if is_to_server => (self.tap)(number, Passed::ToServer(&mut passed)),
                _ => (self.tap)(number, Passed::ToService(&mut passed)),
            }
            thread::sleep(Duration::from_millis(self.delay_millis.load(Ordering::Acquire)));
            while self.is_held.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(10));
            }
            let is_written = bytes > 0 && to.write_all(&passed).is_ok();
            if !is_written {
                if bytes > 0 {
                    (self.tap)(number, Passed::Closed);
                }
                // Each way ends by itself: what was on its way when a side went still arrives at the other.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
        }
    }
}
