//! A connection that is being opened by a thread of its own, since resolving, connecting and shaking hands block.
//!
//! Not by the executor's pool: whoever waits for that sleeps in the executor's ring, and who has gone must not leave it anything to
//! do, or it panics.
//!
//! Never: an executor, deadlines, which are the connection's.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alarm_digest::servers::Server;

use crate::transport::{Opened, open};

/// What comes of it. Whoever drops this leaves the thread to its deadlines.
pub struct Opening(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    outcome: Option<io::Result<Opened>>,
    waiting: Option<Waker>,
}

impl Opening {
    /// Begins, on the CPUs of the caller.
    pub fn start(server: Server, timeout: Duration) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let of_thread = Arc::clone(&state);
        let open = move || say(&of_thread, open(&server, timeout));
        if let Err(error) = std::thread::Builder::new().name("connect".into()).spawn(open) {
            say(&state, Err(error));
        }
        Self(state)
    }

    /// The outcome, once; until then the caller is woken when it is there.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<io::Result<Opened>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn say(state: &Mutex<State>, outcome: io::Result<Opened>) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.outcome = Some(outcome);
    let waiting = state.waiting.take();
    drop(state);
    if let Some(waiting) = waiting {
        waiting.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;
    use std::time::Instant;

    use alarm_digest::servers::Tls;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn who_waits_is_woken_and_told_once() {
        let nobody =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let server = Server::parse(&nobody.to_string(), None, &Tls::default()).expect("a server");
        let opening = Opening::start(server, Duration::from_secs(10));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let end = Instant::now() + Duration::from_secs(60);
        let mut outcome = opening.poll(&Context::from_waker(&waker));
        if outcome.is_pending() {
            while !woken.0.load(Ordering::Acquire) {
                assert!(Instant::now() < end, "nobody was woken");
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome = opening.poll(&Context::from_waker(&waker));
        }
        assert!(matches!(outcome, Poll::Ready(Err(_))), "nobody listens there");
        assert!(opening.poll(&Context::from_waker(&waker)).is_pending(), "it was told");
    }
}
