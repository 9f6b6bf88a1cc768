//! Mail between cores: one bounded inbox per shard, filled and emptied a batch at a time.
//!
//! A lock and two kinds of wakers, so that it works under any executor and in any `select`. One lock per batch, not
//! per message; at every batch size faster than glommio's shared channels, see `benches/src/bin/mesh.rs` and the README.
//!
//! Never: dropping, reordering what one sender sent, waiting for more than one inbox at a time.

use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::shard::ShardId;

/// The inboxes of all shards, shared by all cores.
pub struct Mesh<T> {
    inboxes: Box<[Inbox<T>]>,
    capacity: usize,
}

/// Two cache lines apart from the next, so that two receivers do not slow each other down.
#[repr(align(128))]
struct Inbox<T>(Mutex<State<T>>);

/// Whoever finds nothing to do leaves a waker, and whoever changes that takes it.
struct State<T> {
    queue: Vec<T>,
    receiver: Option<Waker>,
    senders: Vec<Waker>,
}

impl<T> Mesh<T> {
    /// One empty inbox for each of `shards`, each closed for new batches while it holds `capacity` items or more. An
    /// inbox holds at most one batch more than that.
    #[must_use]
    pub fn new(shards: usize, capacity: usize) -> Self {
        let inbox = || Inbox(Mutex::new(State { queue: Vec::new(), receiver: None, senders: Vec::new() }));
        Self { inboxes: (0..shards).map(|_| inbox()).collect(), capacity }
    }

    /// How many inboxes there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.inboxes.len()
    }

    /// How much is in the inbox of `at`.
    #[must_use]
    pub fn waiting(&self, at: ShardId) -> usize {
        self.lock(at).queue.len()
    }

    /// Moves all of `batch` into the inbox of `to`, or none of it and wakes the caller when there is room.
    pub fn poll_send(&self, to: ShardId, batch: &mut Vec<T>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock(to);
        if state.queue.len() >= self.capacity {
            if !state.senders.iter().any(|sender| sender.will_wake(cx.waker())) {
                state.senders.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        state.queue.append(batch);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Poll::Ready(())
    }

    /// Moves all that is in the inbox of `at` into `into`, which is empty, or wakes the caller when something is.
    ///
    /// # Panics
    /// When `into` is not empty.
    pub fn poll_receive(&self, at: ShardId, into: &mut Vec<T>, cx: &mut Context<'_>) -> Poll<()> {
        assert!(into.is_empty(), "what came before is taken first");
        let mut state = self.lock(at);
        if state.queue.is_empty() {
            state.receiver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut state.queue, into);
        let senders = std::mem::take(&mut state.senders);
        drop(state);
        senders.into_iter().for_each(Waker::wake);
        Poll::Ready(())
    }

    /// A core that panics takes the process with it, so what a poisoned lock protects is whole.
    fn lock(&self, shard: ShardId) -> std::sync::MutexGuard<'_, State<T>> {
        self.inboxes[shard.0].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const AT: ShardId = ShardId(1);

    #[test]
    fn a_receiver_is_woken_by_the_batch_it_waits_for_and_takes_it_whole() {
        let (mesh, woken) = (Mesh::new(2, 4), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let (cx, mut into) = (&mut Context::from_waker(&waker), Vec::new());
        assert!(mesh.poll_receive(AT, &mut into, cx).is_pending());
        assert!(mesh.poll_send(AT, &mut vec![1, 2], cx).is_ready());
        assert!(mesh.poll_send(AT, &mut vec![3], cx).is_ready());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(mesh.poll_receive(AT, &mut into, cx).is_ready());
        assert_eq!(into, [1, 2, 3]);
    }

    #[test]
    fn a_sender_waits_for_room_and_keeps_its_batch_meanwhile() {
        let (mesh, woken) = (Mesh::new(2, 2), Arc::new(Woken::default()));
        let waker = Waker::from(woken.clone());
        let (cx, mut into) = (&mut Context::from_waker(&waker), Vec::new());
        let mut batch = vec![3];
        assert!(mesh.poll_send(AT, &mut vec![1, 2], cx).is_ready());
        assert!(mesh.poll_send(AT, &mut batch, cx).is_pending());
        assert!(mesh.poll_send(AT, &mut batch, cx).is_pending());
        assert_eq!(batch, [3]);
        assert!(mesh.poll_receive(AT, &mut into, cx).is_ready());
        assert_eq!((woken.0.load(Ordering::Relaxed), into), (1, vec![1, 2]));
        assert!(mesh.poll_send(AT, &mut batch, cx).is_ready());
        assert!(batch.is_empty());
    }
}
