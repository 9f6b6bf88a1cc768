//! A codec for `tokio_util::codec::Framed`, over the same decoders and encoders.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::decode::{ClientDecoder, Decode, ServerDecoder};
use crate::frame::Frame;

/// Frames in, whatever the functions of [`encode`](crate::encode) write out.
///
/// ```
/// # use nats_wire::{ClientCodec, ClientDecoder, Limits, encode};
/// # use tokio_util::codec::Encoder;
/// # let mut buffer = bytes::BytesMut::new();
/// let mut codec = ClientCodec::new(ClientDecoder::new(Limits::client()));
/// // With `Framed`, this is `framed.send(|out: &mut bytes::BytesMut| encode::ping(out)).await`.
/// codec.encode(|out: &mut bytes::BytesMut| encode::ping(out), &mut buffer)?;
/// assert_eq!(buffer, "PING\r\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Codec<D> {
    decoder: D,
}

/// The codec of a client.
pub type ClientCodec = Codec<ClientDecoder>;
/// The codec of a server.
pub type ServerCodec = Codec<ServerDecoder>;

impl<D: Decode> Codec<D> {
    /// A codec at the first byte of a connection.
    #[must_use]
    pub const fn new(decoder: D) -> Self {
        Self { decoder }
    }
}

impl<D: Decode> Decoder for Codec<D> {
    type Item = Frame<D, Bytes>;
    type Error = io::Error;

    /// A [`DecodeError`](crate::DecodeError) comes as the inner error of an `io::Error` of kind `InvalidData`.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, io::Error> {
        Frame::split_off(&mut self.decoder, buffer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Self::Item>, io::Error> {
        match self.decode(buffer)? {
            None if !buffer.is_empty() => {
                let text = alloc::format!(
                    "the stream ended inside an operation, after {} bytes of it",
                    buffer.len()
                );
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            frame => Ok(frame),
        }
    }
}

/// Everything that writes into a `BytesMut` can be sent.
impl<D, F: FnOnce(&mut BytesMut)> Encoder<F> for Codec<D> {
    type Error = io::Error;

    fn encode(&mut self, write: F, out: &mut BytesMut) -> Result<(), io::Error> {
        write(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeError, Limits, ServerOp};

    #[test]
    fn frames_errors_and_a_cut_end_come_through() {
        let mut codec = ClientCodec::new(ClientDecoder::new(Limits::client()));
        let mut buffer = BytesMut::from(&b"PING\r\nPON"[..]);
        assert_eq!(codec.decode(&mut buffer).unwrap().unwrap().op(), ServerOp::Ping);
        assert!(codec.decode(&mut buffer).unwrap().is_none());
        assert_eq!(codec.decode_eof(&mut buffer).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        buffer.extend_from_slice(b"X");
        let error = codec.decode(&mut buffer).unwrap_err();
        let error = error.get_ref().unwrap().downcast_ref::<DecodeError>().unwrap();
        assert_eq!(error.offset, 6);
    }
}
