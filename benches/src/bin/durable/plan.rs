//! What is measured, of whom.
//!
//! Never: starting anything.

/// What is in the queue before the clock starts.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// For the summary.
    pub says: &'static str,
    pub users: u32,
    pub alarms: u32,
    /// Messages in the queue.
    pub events: u32,
    /// One message in so many is a request, the others are changes.
    pub requests_every: u32,
    /// Each user has a record already, of one change, made by another process.
    pub is_known: bool,
    /// Of each user one request and nothing else.
    pub is_requests_only: bool,
}

pub fn scenarios(is_quick: bool) -> Vec<Scenario> {
    let by = if is_quick { 20 } else { 1 };
    let new = Scenario {
        name: "new users",
        says: "100,000 users that nobody knows yet, one message in twenty a request",
        users: 100_000 / by,
        alarms: 10,
        events: 200_000 / by,
        requests_every: 20,
        is_known: false,
        is_requests_only: false,
    };
    let cold = Scenario {
        name: "cold cache",
        says: "the same users, each with a record that is not in memory",
        is_known: true,
        ..new.clone()
    };
    let hot = Scenario {
        name: "hot users",
        says: "1,000 users, one message in twenty a request",
        users: 1000,
        events: 400_000 / by,
        ..new.clone()
    };
    let digests = Scenario {
        name: "digests only",
        says: "one request of each of 50,000 users with a record that is not in memory, and each has something to tell",
        users: 50_000 / by,
        events: 50_000 / by,
        is_known: true,
        is_requests_only: true,
        ..new.clone()
    };
    vec![new, cold, hot, digests]
}

/// Who empties it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    Service,
    ServiceOneCore,
    AsyncNats,
}

impl Variant {
    pub const ALL: [Self; 3] = [Self::Service, Self::ServiceOneCore, Self::AsyncNats];

    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::ServiceOneCore => "service on 1 core",
            Self::AsyncNats => "async-nats",
        }
    }

    /// Which program it is, and on how many of the CPUs.
    pub fn program(self) -> (&'static str, usize) {
        match self {
            Self::Service => ("alarm-digest", 2),
            Self::ServiceOneCore => ("alarm-digest", 1),
            Self::AsyncNats => ("async-nats-jetstream", 2),
        }
    }
}
