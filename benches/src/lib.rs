//! Measures any implementation of the service's contract from outside. In reading order:
//!
//! | file | what it is for |
//! |---|---|
//! | [`workload`] | users, alarms and changes as numbers, and their text |
//! | [`ledger`] | each (user, alarm) that was sent is checked off when it is told |
//! | [`digest`] | a digest as it was told, checked off in the ledger |
//! | [`wire`] | a blocking NATS connection on the project's own codec |
//! | [`queue`] | the durable mode's streams: filled, watched and read over such a connection |
//! | [`machine`] | what processes have used, from /proc |
//! | [`load`] | the four measurements: flood, paced, latency, memory |
//! | [`report`] | what one of them found, and what makes it weak |
//! | [`place`] | when, where and of what a comparison was made |
//!
//! and the programs: `load` (one measurement of whatever runs), `compare` (all of them, of all variants, with records
//! and plots), `durable` (the durable mode, against the server alone and the official client), `instructions` (the pure
//! path under callgrind), and the variants `tokio-variant`, `async-nats-variant`, `async-nats-jetstream` and `floor`.
//!
//! Never: a shortcut into an implementation. What is measured is reached over NATS and seen through /proc.

pub mod digest;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod place;
pub mod queue;
pub mod report;
pub mod wire;
pub mod workload;
