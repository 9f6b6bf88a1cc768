//! NATS wire codec.
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod decode;
pub mod encode;
mod error;
mod header;
#[cfg(feature = "serde")]
mod json;
mod limits;
mod name;
mod op;
#[cfg(feature = "alloc")]
mod receive;
mod scan;
#[cfg(feature = "serde")]
pub mod session;
mod sink;

pub use decode::{ClientDecoder, Decode, ServerDecoder, Step};
pub use encode::JsonLine;
pub use error::{DecodeError, DecodeErrorKind, Verb};
pub use header::{Header, HeaderBlock, HeaderError, HeaderIter, Headers};
#[cfg(feature = "serde")]
pub use json::{ConnectOptions, JsonError, ServerInfo};
pub use limits::{IGNORED_BYTES_MAX, Limits};
pub use name::{NameError, QueueGroup, Sid, Subject, SubjectFilter, Token};
pub use op::{ClientOp, ErrText, Message, Publish, ServerOp, Subscribe, Unsubscribe};
#[cfg(feature = "alloc")]
pub use receive::ReceiveBuffer;
pub use sink::{Cursor, Full, Sink};
