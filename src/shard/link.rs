//! One of a shard's connections, and fences that are told apart by which one they are on.
//!
//! Never: what is read or written.

use std::time::Duration;

use nats_wire::session::{Fence, Session};

/// A connection that has a number of its own among all that its shard ever had.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) session: Session,
    /// When this has passed, the server has read our subscriptions.
    pub(super) subscribed: Option<Mark>,
    pub(super) is_subscribed: bool,
}

/// A fence of the link of this number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) link: u64,
    fence: Fence,
}

impl Link {
    pub(super) fn new(number: u64, session: Session) -> Self {
        Self { number, session, subscribed: None, is_subscribed: false }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.session.is_ready()
    }

    /// Sends a fence.
    pub(super) fn fence(&mut self, now: Duration) -> Mark {
        let fence = self.session.fence(now);
        self.mark(fence)
    }

    pub(super) fn mark(&self, fence: Fence) -> Mark {
        Mark { link: self.number, fence }
    }
}
