//! NATS wire codec.
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "tokio-util")]
mod codec;
mod decode;
pub mod encode;
mod error;
#[cfg(feature = "alloc")]
mod frame;
mod header;
#[cfg(feature = "jetstream")]
pub mod jetstream;
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

#[cfg(feature = "tokio-util")]
pub use codec::{ClientCodec, Codec, ServerCodec};
pub use decode::{ClientDecoder, Decode, ServerDecoder, Step};
pub use encode::JsonLine;
pub use error::{DecodeError, DecodeErrorKind, Verb};
#[cfg(feature = "alloc")]
pub use frame::{ClientFrame, Frame, ServerFrame};
pub use header::{Header, HeaderBlock, HeaderError, HeaderIter, Headers};
#[cfg(feature = "serde")]
pub use json::{ConnectOptions, JsonError, ServerInfo};
pub use limits::{IGNORED_BYTES_MAX, Limits};
pub use name::{NameError, QueueGroup, Sid, Subject, SubjectFilter, Token};
pub use op::{ClientOp, ErrText, Message, Publish, ServerOp, Subscribe, Unsubscribe};
#[cfg(feature = "alloc")]
pub use receive::ReceiveBuffer;
pub use sink::{Cursor, Full, Sink};
