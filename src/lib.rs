//! Tells users what is news to them about their alarms: `AlarmStatusChanged` and `SendAlarmDigest` come in over NATS,
//! `AlarmDigest` goes out.
//!
//! The library is the thinking and a function of bytes, messages and time handed to it; the program is the doing. In
//! reading order:
//!
//! | file | what it is for |
//! |---|---|
//! | [`alarm`] | the words: ids, status, instant, change, digest |
//! | [`book`] | the rules: what is due, and what is told |
//! | `alarms` | one user's alarms, held densely |
//! | [`message`] | JSON to words and back |
//! | [`reply`] | where a request is to be answered, and what an answer looks like |
//! | [`logic`] | what a driver sees of one core's logic, in either mode |
//! | [`shard`] | one core's whole logic in memory mode: bytes and mail in, bytes and mail out; `shard/causal`: fences that make a digest miss nothing; `shard/link`: one of its connections |
//! | [`durable`] | the same in durable mode: the record of a user, its state machine, who is there to look after it, the worker |
//! | [`mesh`] | mail between cores: a table of bounded inboxes |
//! | [`pace`] | when a core looks again, lets work gather, or sleeps |
//! | [`config`] | arguments to configuration |
//! | [`servers`] | which servers there are, and which is next |
//! | [`service_api`] | who we are and what we have counted, for whoever asks on `$SRV` |
//! | [`status`] | what each core last said of itself, for whoever looks from outside |
//! | [`histogram`], [`metrics`] | observations by size; all that can be counted, as a page for Prometheus |
//! | [`http_request`] | the head of an HTTP request to what it asks for |
//! | [`credentials`] | what an operator gives, turned into what CONNECT says of us |
//! | `nats_wire` | the codec and one connection's session, a crate of its own in `proto/` |
//!
//! and, in the program, `main` (choose CPUs, start, wait, join), `preflight` (may we run here), `provision` (are the
//! streams there), `driver` (one core's logic on one glommio executor), `wire` (a connection as the driver reads and writes it),
//! `bell` (sleeping outside the executor), `opening` (a connection that a thread of its own makes), `stop` (from a signal to all cores), `systemd` (connected, stopping, alive), `connect`
//! (a name to a socket), `transport` (a socket to a connection on which NATS can begin, plain or through TLS), `tls` (files to a
//! handshake, and what went wrong in words), `http` (health, readiness and metrics), `verify` (the smoke test), `state` (what is
//! known of one user in durable mode), `top` (all instances at a glance), `client` and `ask` (a blocking client, and JetStream
//! over it).
//!
//! Who may know whom: `driver` knows `logic`, `mesh` and `pace`; `shard` and `durable` know `book`, `message` and `nats_wire`;
//! `book` knows `alarm` and `alarms`; `nats_wire` knows nobody. Never the other way round. What is due is decided in
//! `book` alone, in both modes.
//!
//! Absent on purpose: traits for runtime, transport, storage and clock, since values do it; persistence, since that is
//! the broker's; an actor framework, since an enum and a `Vec` do it.

pub mod alarm;
mod alarms;
pub mod book;
pub mod config;
pub mod credentials;
pub mod durable;
pub mod histogram;
pub mod http_request;
pub mod logic;
pub mod mesh;
pub mod message;
pub mod metrics;
pub mod pace;
pub mod reply;
pub mod servers;
pub mod service_api;
pub mod shard;
pub mod status;

/// The version of this library and of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, in 12 digits, where that was known: see `build.rs`.
pub const COMMIT: Option<&str> = option_env!("ALARM_DIGEST_COMMIT");

/// Both, like `0.1.0 (0123456789ab)`, or the version alone.
pub const VERSION_AND_COMMIT: &str = env!("ALARM_DIGEST_VERSION_AND_COMMIT");
