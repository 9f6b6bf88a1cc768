//! The NATS client protocol as a codec: bytes in, operations out, and back. No runtime, no socket, no clock; without
//! features also no allocator.
//!
//! ```text
//! server: INFO {"server_id":"N…","max_payload":1048576,"headers":true,…} ␍␊      first, and again at any time
//! client: CONNECT {"verbose":false,"headers":true,…}␍␊
//! client: SUB orders.* 1␍␊                       SUB <subject> [queue group] <sid>
//! client: PUB orders.new 5␍␊hello␍␊              PUB <subject> [reply] <bytes>␍␊<payload>␍␊
//! server: MSG orders.new 1 5␍␊hello␍␊            MSG <subject> <sid> [reply] <bytes>␍␊<payload>␍␊
//! client: HPUB orders.new 22 27␍␊NATS/1.0␍␊Key: Val␍␊␍␊hello␍␊    the same with headers:
//! server: HMSG orders.new 1 22 27␍␊NATS/1.0␍␊Key: Val␍␊␍␊hello␍␊  … <header bytes> <header and payload bytes>␍␊
//! client: UNSUB 1 10␍␊                           after 10 messages, or now without a number
//! either: PING␍␊ and, at once, from the other: PONG␍␊
//! server: -ERR 'Invalid Subject'␍␊               some end the connection, some do not; +OK␍␊ if verbose
//! ```
//!
//! Verbs are taken in any case, arguments may be apart by any run of spaces and tabs, a line ends at LF with or without
//! CR before it. A subject is dotted parts, `*` stands for one part and a last `>` for all that follow. A sid is the
//! client's name for its subscription, which the server repeats.
//!
//! ```
//! use nats_wire::{ClientDecoder, Limits, ServerOp, Step, Subject, encode};
//!
//! let received = b"MSG orders.new 1 5\r\nhello\r\nPING\r\n";
//! let mut decoder = ClientDecoder::new(Limits::client());
//! let Step::Op { op: ServerOp::Message(message), used } = decoder.decode(received)? else { unreachable!() };
//! assert_eq!((message.subject, message.payload), (&b"orders.new"[..], &b"hello"[..]));
//!
//! let mut decode = |bytes| decoder.decode(bytes);
//! assert_eq!(decode(&received[used..]), Ok(Step::Op { op: ServerOp::Ping, used: 6 }));
//! assert_eq!(decode(b"MSG orders.new 1 5\r\nhel"), Ok(Step::More { missing: 4 }));
//!
//! let mut out = Vec::new();
//! encode::pong(&mut out);
//! encode::publish(&mut out, Subject::new("orders.done")?, None, b"hello");
//! assert_eq!(out, b"PONG\r\nPUB orders.done 5\r\nhello\r\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In reading order:
//! - `limits`: [`Limits`], how much a peer may make us hold
//! - `op`: [`ServerOp`] and [`ClientOp`], what each side sends
//! - `decode`: [`ClientDecoder`] and [`ServerDecoder`]; the rules of the wire are here
//! - `scan`: what they look for in the bytes, eight at a time
//! - `header`: [`Headers`] to read, [`HeaderBlock`] to write
//! - `name`: [`Subject`], [`SubjectFilter`], [`QueueGroup`], [`Sid`], which cannot end a line
//! - [`encode`], `sink`: writing operations into whatever is a [`Sink`]
//! - `error`: [`DecodeError`], what a peer did wrong and where
//! - `receive` (feature `alloc`): `ReceiveBuffer`, to read a socket into; `frame`: `Frame`, operations that own their bytes
//! - `json` (`serde`): `ServerInfo` and `ConnectOptions`; `session`: one connection's life, without IO
//! - `codec` (`tokio-util`): `ClientCodec` and `ServerCodec`
//!
//! Never: connecting, TLS, reconnecting, timers, routing between subscriptions, the protocol between servers (RS+, LS+,
//! A+ and the like are refused); and never a panic for what a peer sends.
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

/// The example of the crate page.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
