//! Operations that own their bytes: for channels, queues and other threads.
//!
//! A frame is the operation's bytes as they came, in one piece, and a note of where everything is in them. So it costs
//! one allocation with `Vec<u8>`, and none with `Bytes`, which shares the memory that was read into.

use alloc::vec::Vec;
use core::fmt;

use crate::decode::{ClientDecoder, Decode, Layout, ServerDecoder, Step};
use crate::error::DecodeError;

/// One operation with its bytes, as decoded by `D`.
pub struct Frame<D, B> {
    bytes: B,
    layout: Layout,
    decoder: core::marker::PhantomData<fn() -> D>,
}

/// An operation of a server, decoded by a client.
pub type ServerFrame<B = Vec<u8>> = Frame<ClientDecoder, B>;
/// An operation of a client, decoded by a server.
pub type ClientFrame<B = Vec<u8>> = Frame<ServerDecoder, B>;

impl<D: Decode, B: AsRef<[u8]>> Frame<D, B> {
    fn new(bytes: B, layout: Layout) -> Self {
        Self { bytes, layout, decoder: core::marker::PhantomData }
    }

    /// The operation.
    pub fn op(&self) -> D::Op<'_> {
        D::op(&self.layout, self.bytes.as_ref())
    }

    /// The operation as it is on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The operation as it is on the wire.
    pub fn into_bytes(self) -> B {
        self.bytes
    }
}

impl<D: Decode> Frame<D, Vec<u8>> {
    /// Decodes the operation that begins at the first of `bytes` and copies it. The caller drops the bytes used.
    ///
    /// # Errors
    /// What the decoder returns.
    pub fn decode(decoder: &mut D, bytes: &[u8]) -> Result<Step<Self>, DecodeError> {
        match decoder.step(bytes)? {
            Step::Op { op, used } => Ok(Step::Op { op: Self::new(bytes[..used].to_vec(), op), used }),
            Step::More { missing } => Ok(Step::More { missing }),
        }
    }
}

#[cfg(feature = "bytes")]
impl<D: Decode> Frame<D, bytes::Bytes> {
    /// Splits the next operation off `buffer`, without copying, if all of it is there. Otherwise makes room for what is
    /// missing, which the decoder's limits bound.
    ///
    /// # Errors
    /// What the decoder returns.
    pub fn split_off(decoder: &mut D, buffer: &mut bytes::BytesMut) -> Result<Option<Self>, DecodeError> {
        match decoder.step(buffer)? {
            Step::Op { op, used } => Ok(Some(Self::new(buffer.split_to(used).freeze(), op))),
            Step::More { missing } => {
                buffer.reserve(missing);
                Ok(None)
            }
        }
    }

    /// `part`, which the operation borrows from this frame, as bytes that share its memory: a payload, a subject, a
    /// header block.
    ///
    /// # Panics
    /// If `part` is not a part of this frame.
    #[must_use]
    pub fn share(&self, part: &[u8]) -> bytes::Bytes {
        self.bytes.slice_ref(part)
    }
}

impl<D, B: Clone> Clone for Frame<D, B> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), layout: self.layout, decoder: core::marker::PhantomData }
    }
}

impl<D: Decode, B: AsRef<[u8]>> fmt::Debug for Frame<D, B>
where
    for<'a> D::Op<'a>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Frame").field(&self.op()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, ServerOp};

    #[test]
    fn a_frame_gives_the_same_operation_as_the_decoder() {
        let bytes = b"HMSG a.b 7 r 12 14\r\nNATS/1.0\r\n\r\nok\r\nPING\r\n";
        let Ok(Step::Op { op: expected, used }) = ClientDecoder::new(Limits::client()).decode(bytes) else {
            panic!("a whole operation is there")
        };
        let frame = ServerFrame::decode(&mut ClientDecoder::new(Limits::client()), bytes);
        let Ok(Step::Op { op: frame, used: frame_used }) = frame else { panic!("{frame:?}") };
        assert_eq!((frame.op(), frame_used), (expected, used));
        assert_eq!(frame.into_bytes(), bytes[..used]);
    }

    #[cfg(feature = "bytes")]
    #[test]
    fn bytes_are_shared_and_not_copied() {
        let mut buffer = bytes::BytesMut::from(&b"MSG a 1 2\r\nok\r\nMSG a 1 1000\r\n"[..]);
        let start = buffer.as_ptr();
        let mut decoder = ClientDecoder::new(Limits::client());
        let frame = Frame::split_off(&mut decoder, &mut buffer).unwrap().unwrap();
        let ServerOp::Message(message) = frame.op() else { panic!("{frame:?}") };
        let payload = frame.share(message.payload);
        assert_eq!(&payload[..], b"ok");
        assert_eq!(payload.as_ptr(), start.wrapping_add(11));
        drop(frame);
        assert_eq!(&payload[..], b"ok");
        assert!(Frame::split_off(&mut decoder, &mut buffer).unwrap().is_none());
        assert!(buffer.capacity() >= buffer.len() + 1002);
    }
}
