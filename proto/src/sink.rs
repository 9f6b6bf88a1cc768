//! Where operations are written.

use core::fmt;

/// Takes slices, one after the other: a `Vec<u8>`, a [`Cursor`] over bytes that exist already, or a buffer of the
/// caller's.
pub trait Sink {
    /// `()` where appending cannot fail, `Result<(), Full>` where it can.
    type Output;

    /// Makes room for `bytes` and then calls `write` once, which puts exactly that many; or does nothing at all and
    /// says so.
    fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Self)) -> Self::Output;

    /// Appends within the room made. Only called by `append`'s `write`, as is `put_some`.
    fn put(&mut self, slice: &[u8]);

    /// Appends the first `len` of `bytes`, at most 16. A sink may copy all of them and then go back, which saves a call.
    #[inline]
    fn put_some(&mut self, bytes: [u8; 16], len: usize) {
        self.put(&bytes[..len]);
    }
}

#[cfg(feature = "alloc")]
impl Sink for alloc::vec::Vec<u8> {
    type Output = ();

    #[inline]
    fn append(&mut self, _: usize, write: impl FnOnce(&mut Self)) {
        // A vector grows by itself, by doubling; to ask it first costs time every time.
        write(self);
    }

    #[inline]
    fn put(&mut self, slice: &[u8]) {
        self.extend_from_slice(slice);
    }

    #[inline]
    fn put_some(&mut self, bytes: [u8; 16], len: usize) {
        let end = self.len() + len;
        self.extend_from_slice(&bytes);
        self.truncate(end);
    }
}

#[cfg(feature = "bytes")]
impl Sink for bytes::BytesMut {
    type Output = ();

    #[inline]
    fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Self)) {
        self.reserve(bytes);
        write(self);
    }

    #[inline]
    fn put(&mut self, slice: &[u8]) {
        self.extend_from_slice(slice);
    }
}

/// Writes into bytes that exist already.
#[derive(Debug)]
pub struct Cursor<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, used: 0 }
    }

    /// What has been written.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

impl Sink for Cursor<'_> {
    type Output = Result<(), Full>;

    #[inline]
    fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Self)) -> Result<(), Full> {
        let free = self.bytes.len() - self.used;
        if bytes > free {
            return Err(Full { needed: bytes, free });
        }
        write(self);
        Ok(())
    }

    #[inline]
    fn put(&mut self, slice: &[u8]) {
        let end = self.used + slice.len();
        self.bytes[self.used..end].copy_from_slice(slice);
        self.used = end;
    }

    #[inline]
    fn put_some(&mut self, bytes: [u8; 16], len: usize) {
        match self.bytes[self.used..].first_chunk_mut() {
            Some(room) => {
                *room = bytes;
                self.used += len;
            }
            None => self.put(&bytes[..len]),
        }
    }
}

/// An operation did not fit; nothing of it has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Length of the operation, in bytes.
    pub needed: usize,
    /// Room there was, in bytes.
    pub free: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation of {} bytes does not fit in {} bytes", self.needed, self.free)
    }
}

impl core::error::Error for Full {}
