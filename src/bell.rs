//! Sleeping outside the executor: one `poll` of the socket and of a bell that wakers ring.
//!
//! An executor that sleeps for its only task does more than that for it: glommio 0.9 arms timers, links and polls on two rings
//! for each sleep, some nine system calls, where this takes one, and one more when somebody rang.
//!
//! Never: a task. While a core sleeps here, nothing else on its executor runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// What wakes a core that sleeps outside its executor.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Sleeps until one of `sockets` can do what is wanted of it, or was closed; or somebody rings, or `time` has passed. If nothing is
    /// wanted of it, a socket does not count: one that was closed would wake again and again who has no use for it yet.
    ///
    /// # Panics
    /// When there are more than two.
    pub fn sleep<S: AsFd>(&self, sockets: &[(&S, PollFlags)], time: Duration) {
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        let bell = PollFd::new(&self.0, PollFlags::IN);
        let mut polled = [bell.clone(), bell.clone(), bell];
        let mut count = 1;
        for (socket, wanted) in sockets.iter().filter(|(_, wanted)| !wanted.is_empty()) {
            polled[count] = PollFd::new(*socket, *wanted);
            count += 1;
        }
        // Interrupted by a signal is as good as rung: whoever wakes looks at everything.
        let _ = poll(&mut polled[..count], Some(&time));
        if !polled[0].revents().is_empty() {
            let _ = rustix::io::read(&self.0, &mut [0; 8]);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Full after 2^64 - 2 rings that nobody heard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        (ours, listener.accept().expect("a connection").0)
    }

    /// Whether it woke up before its time.
    fn wakes(bell: &Bell, socket: &TcpStream, wanted: PollFlags, time: Duration) -> bool {
        let asleep_at = Instant::now();
        bell.sleep(&[(socket, wanted)], time);
        asleep_at.elapsed() < time
    }

    #[test]
    fn it_sleeps_until_somebody_rings_and_each_ring_wakes_once() {
        let (bell, (socket, _other)) = (Arc::new(Bell::new().expect("an eventfd")), sockets());
        let ringer = Arc::clone(&bell);
        let ringing = std::thread::spawn(move || (0..3).for_each(|_| ringer.wake_by_ref()));
        assert!(wakes(&bell, &socket, PollFlags::IN, LONG));
        ringing.join().expect("it rings");
        bell.wake_by_ref();
        assert!(wakes(&bell, &socket, PollFlags::IN, LONG), "also when it was rung before");
        assert!(!wakes(&bell, &socket, PollFlags::IN, Duration::from_millis(1)), "it was heard");
    }

    #[test]
    fn it_sleeps_until_the_socket_has_something_that_is_wanted() {
        let (bell, (socket, mut other)) = (Bell::new().expect("an eventfd"), sockets());
        assert!(wakes(&bell, &socket, PollFlags::OUT, LONG), "there is room");
        other.write_all(b"x").expect("it is written");
        assert!(wakes(&bell, &socket, PollFlags::IN, LONG));
        assert!(
            !wakes(&bell, &socket, PollFlags::empty(), Duration::from_millis(1)),
            "nothing is wanted of it"
        );
        let (idle, _idle_other) = sockets();
        let asleep_at = Instant::now();
        bell.sleep(&[(&idle, PollFlags::IN), (&socket, PollFlags::IN)], LONG);
        assert!(asleep_at.elapsed() < LONG, "either of two");
        drop(other);
        assert!(wakes(&bell, &socket, PollFlags::IN, LONG), "it was closed");
        assert!(
            !wakes(&bell, &socket, PollFlags::empty(), Duration::from_millis(1)),
            "closed, and nothing is wanted of it"
        );
    }
}
