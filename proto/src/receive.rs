//! A buffer to read a socket into, with the decoder's bounds as its own.
//!
//! ```text
//!   |  used already  |  unused  |   space to read into   |
//!   0              start       end                  capacity
//! ```
//!
//! Bytes are moved to the front only when that is needed, or when at most as many are moved as have been used since
//! the last time; so each byte is moved about once, however the stream is cut. A large payload makes the buffer grow
//! once, to what the decoder says is missing. When none has come for a while, the memory is given back.

use alloc::vec::Vec;
use core::fmt;

use crate::decode::{Decode, Step};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::limits::Limits;

/// Received bytes that are not yet operations.
pub struct ReceiveBuffer {
    /// Wholly initialised: a slice of it can be handed out to be read into.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// What the decoder said, less what came since.
    missing: usize,
    bytes_min: usize,
    bytes_max: usize,
    /// How often room was made since an operation was last longer than `bytes_min`.
    small_for: u32,
}

/// A grown buffer whose size was not needed for so many reads is given back.
const SMALL_FOR_MAX: u32 = 64;

impl ReceiveBuffer {
    /// What one read should be able to take, in bytes.
    pub const READ_BYTES: usize = 64 << 10;

    /// A buffer for a decoder with these limits. Allocates [`READ_BYTES`](Self::READ_BYTES) with the first use, and
    /// never more than twice the longest operation.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::with_read_bytes(limits, Self::READ_BYTES)
    }

    /// The same, with another size for the usual read.
    ///
    /// # Panics
    /// If `read_bytes` is 0.
    #[must_use]
    pub fn with_read_bytes(limits: Limits, read_bytes: usize) -> Self {
        assert!(read_bytes > 0, "a read of no bytes looks like the end of the stream");
        Self {
            bytes: Vec::new(),
            start: 0,
            end: 0,
            missing: 1,
            bytes_min: read_bytes,
            bytes_max: limits.operation_bytes_max().saturating_add(read_bytes),
            small_for: 0,
        }
    }

    /// Decodes the next operation, if all of it is here.
    ///
    /// # Errors
    /// What the decoder returns.
    #[inline]
    pub fn next<'a, D: Decode>(&'a mut self, decoder: &mut D) -> Result<Option<D::Op<'a>>, DecodeError> {
        match decoder.decode(&self.bytes[self.start..self.end])? {
            Step::Op { op, used } => {
                self.start += used;
                if used > self.bytes_min {
                    self.small_for = 0;
                }
                Ok(Some(op))
            }
            Step::More { missing } => {
                self.missing = missing;
                Ok(None)
            }
        }
    }

    /// The next operation with bytes of its own, if all of it is here.
    ///
    /// # Errors
    /// What the decoder returns.
    pub fn next_frame<D: Decode>(
        &mut self,
        decoder: &mut D,
    ) -> Result<Option<Frame<D, Vec<u8>>>, DecodeError> {
        match Frame::decode(decoder, self.unused())? {
            Step::Op { op, used } => {
                self.consume(used);
                Ok(Some(op))
            }
            Step::More { missing } => {
                self.missing = missing;
                Ok(None)
            }
        }
    }

    /// The bytes that are not yet used.
    #[must_use]
    pub fn unused(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `bytes` of [`unused`](Self::unused), for a caller that calls its decoder itself.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start, "{bytes} bytes were used where there were not so many");
        self.start += bytes;
        if bytes > self.bytes_min {
            self.small_for = 0;
        }
    }

    /// Room to read into: never empty, and enough for what is missing, or about one usual read. Say with [`filled`](Self::filled) how much of it
    /// was read.
    ///
    /// # Panics
    /// If an operation is longer than the limits that this buffer was made for, so that the decoder's must be others.
    pub fn space(&mut self) -> &mut [u8] {
        self.make_room();
        // A grown buffer must not make reads grow too: what is read should still be in the cache when it is used.
        let end = self.bytes.len().min(self.end + self.missing.max(self.bytes_min));
        &mut self.bytes[self.end..end]
    }

    /// The first `bytes` of [`space`](Self::space) have been read into.
    ///
    /// # Panics
    /// If there was no room for so many.
    pub fn filled(&mut self, bytes: usize) {
        assert!(
            bytes <= self.bytes.len() - self.end,
            "{bytes} bytes were read where there was no room for them"
        );
        self.end += bytes;
        self.missing = self.missing.saturating_sub(bytes).max(1);
    }

    /// Copies as much of `bytes` as there is room for and returns how much that was: all, or as much as may be held
    /// before the next operation is taken out.
    pub fn extend(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        self.filled(count);
        count
    }

    /// Reads once from `source` into [`space`](Self::space). Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// What `source` returns.
    #[cfg(feature = "std")]
    pub fn read_from(&mut self, source: &mut impl std::io::Read) -> std::io::Result<usize> {
        let count = source.read(self.space())?;
        self.filled(count);
        Ok(count)
    }

    /// Bytes allocated.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    fn make_room(&mut self) {
        let unused = self.end - self.start;
        let needed = unused + self.missing;
        let size = if needed > self.bytes.len() {
            assert!(
                needed <= self.bytes_max,
                "the decoder waits for {needed} bytes, but its limits were said to allow {} at most",
                self.bytes_max
            );
            // Doubling is for lines, whose length nobody knows beforehand.
            needed.max(2 * self.bytes.len()).max(self.bytes_min).min(self.bytes_max)
        } else if needed <= self.bytes_min && self.bytes.len() > self.bytes_min {
            self.small_for += 1;
            if self.small_for > SMALL_FOR_MAX { self.bytes_min } else { self.bytes.len() }
        } else {
            self.bytes.len()
        };
        if size != self.bytes.len() {
            let mut bytes = Vec::with_capacity(size);
            bytes.extend_from_slice(self.unused());
            bytes.resize(size, 0);
            (self.bytes, self.start, self.end, self.small_for) = (bytes, 0, unused, 0);
            return;
        }
        let room = self.bytes.len() - self.end;
        let must_move = room < self.missing;
        let worth_it = self.start >= unused && (room < self.bytes_min / 2 || self.start >= self.bytes_min);
        if must_move || worth_it {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unused);
        }
    }
}

impl fmt::Debug for ReceiveBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unused = self.end - self.start;
        write!(f, "ReceiveBuffer({unused} bytes unused of {})", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec;

    use super::*;
    use crate::{ClientDecoder, ServerOp};

    const LIMITS: Limits = Limits { line_bytes_max: 100, info_bytes_max: 100, payload_bytes_max: 10_000 };

    /// Feeds `stream` in pieces and checks that the payloads come out whole. Returns the largest capacity seen.
    fn run(stream: &str, payloads: &[String], read_bytes: usize, piece: usize) -> usize {
        let mut buffer = ReceiveBuffer::with_read_bytes(LIMITS, read_bytes);
        let mut decoder = ClientDecoder::new(LIMITS);
        let mut rest = stream.as_bytes();
        let mut payloads = payloads.iter();
        let mut capacity = 0;
        loop {
            while let Some(op) = buffer.next(&mut decoder).unwrap() {
                let ServerOp::Message(message) = op else { panic!("{op:?}") };
                assert_eq!(message.payload, payloads.next().unwrap().as_bytes());
            }
            if rest.is_empty() {
                assert_eq!((payloads.len(), buffer.unused()), (0, &b""[..]));
                return capacity;
            }
            let space = buffer.space();
            assert!(!space.is_empty());
            let count = piece.min(rest.len()).min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            buffer.filled(count);
            rest = &rest[count..];
            capacity = capacity.max(buffer.capacity());
        }
    }

    fn messages(lens: &[usize]) -> (String, Vec<String>) {
        let payloads: Vec<String> = lens
            .iter()
            .enumerate()
            .map(|(i, &len)| format!("{i}").repeat(len).split_at(len).0.into())
            .collect();
        let stream =
            payloads.iter().map(|payload| format!("MSG a 1 {}\r\n{payload}\r\n", payload.len())).collect();
        (stream, payloads)
    }

    #[test]
    fn payloads_come_out_whole_however_they_come_in() {
        let (stream, payloads) = messages(&[0, 5, 300, 1, 10_000, 2, 64, 700, 9_999, 9_999, 3, 0, 0, 63]);
        for read_bytes in [1, 7, 64, 500, 20_000] {
            for piece in [1, 3, 64, 100, 1000, 1_000_000] {
                let capacity = run(&stream, &payloads, read_bytes, piece);
                assert!(capacity <= 2 * 11_000 + 70_000 + read_bytes, "{capacity}");
            }
        }
    }

    #[test]
    fn a_large_payload_makes_it_grow_once_and_to_its_size() {
        let (stream, payloads) = messages(&[10_000]);
        assert_eq!(run(&stream, &payloads, 1000, 1000), stream.len());
    }

    #[test]
    fn memory_is_given_back_when_no_large_payload_has_come_for_a_while() {
        let mut buffer = ReceiveBuffer::with_read_bytes(LIMITS, 100);
        let mut decoder = ClientDecoder::new(LIMITS);
        let mut receive = |len| {
            let (stream, _) = messages(&[len]);
            let mut rest = stream.as_bytes();
            while !rest.is_empty() {
                rest = &rest[buffer.extend(rest)..];
                while buffer.next(&mut decoder).unwrap().is_some() {}
            }
            buffer.capacity()
        };
        receive(5000);
        for _ in 0..SMALL_FOR_MAX {
            assert!(receive(10) >= 5000);
        }
        assert_eq!(receive(10), 100);
        // While large ones keep coming, it keeps its size.
        for _ in 0..3 * SMALL_FOR_MAX {
            receive(5000);
            assert!(receive(10) >= 5000);
        }
    }

    #[test]
    #[should_panic(expected = "its limits were said to allow")]
    fn other_limits_than_the_decoders_are_noticed() {
        let mut buffer = ReceiveBuffer::with_read_bytes(LIMITS, 100);
        let mut decoder = ClientDecoder::new(Limits::client());
        buffer.extend(b"MSG a 1 1000000\r\n");
        while buffer.next(&mut decoder).unwrap().is_some() {}
        buffer.space();
    }

    #[test]
    fn an_unended_line_is_refused_before_the_buffer_is_full() {
        let mut buffer = ReceiveBuffer::with_read_bytes(LIMITS, 16);
        let mut decoder = ClientDecoder::new(LIMITS);
        let mut failed = false;
        for _ in 0..1000 {
            buffer.extend(&[b"MSG "[..].to_vec(), vec![b'a'; 60]].concat());
            failed |= buffer.next(&mut decoder).is_err();
            if failed {
                break;
            }
        }
        assert!(failed && buffer.capacity() < 400, "{buffer:?}");
    }
}
