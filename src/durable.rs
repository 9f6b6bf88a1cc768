//! The durable mode: state in a JetStream key-value bucket, so that any instance can go on where another one stopped.
//!
//! *Decide in the bucket by compare-and-swap, publish by compare-and-swap, acknowledge last.* Which alarms a digest holds
//! is decided by one write to one key; a digest is a function of the stored record alone, so anybody can finish it; the
//! output stream takes each digest once, because its publication names the one before it; a message is acknowledged only
//! when what it asks for is stored. So no instance has to know of any other; that they tell each other of themselves spares
//! work and decides nothing.
//!
//! | file | what it is for |
//! |---|---|
//! | [`record`] | what is stored of one user |
//! | [`user`] | one user's state machine: one operation in flight, everything else waits and is committed together |
//! | [`backlog`] | what waits in the queue, and when that is worth a line of the log |
//! | [`members`] | who is there, and where a user is at home: a hint that saves reads and refused writes |
//! | `relay` | how members talk, and pass messages on |
//! | [`worker`] | one core's whole logic: bytes in, bytes out, the users between |

pub mod backlog;
pub mod members;
pub mod record;
mod relay;
pub mod user;
pub mod worker;
