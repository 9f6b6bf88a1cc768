//! One connection as a driver reads and writes it: its socket, TLS where there is any, and what came and is not used yet.
//!
//! Never: waiting, reconnecting, which connection of a core it is.

use std::io::{self, Read, Write};
use std::net;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alarm_digest::logic::Logic;
use alarm_digest::servers::Server;
use alarm_digest::status::ReadSizes;
use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use nats_wire::ReceiveBuffer;
use nats_wire::session::SignIn;
use rustix::event::PollFlags;

use crate::tls::explain;
use crate::transport::{Opened, Secured};

/// One connection.
pub struct Wire {
    /// The socket as the executor knows it, which wakes us; none where the core sleeps without it.
    stream: Option<TcpStream>,
    /// The same socket for looking without the executor: nothing but one `recv`, while a poll of the executor's ring costs
    /// several system calls and finds data only after the next turn of its own.
    direct: net::TcpStream,
    /// What stands between the buffers and the socket; nothing, if the connection is plain.
    tls: Option<Box<Secured>>,
    /// Nothing can be written any more. What the server sent before that is ours and is read to its end, which says why;
    /// output goes nowhere meanwhile, so that it holds nothing back, and is proved to nobody.
    is_mute: bool,
    /// Came from the socket, and is not used yet.
    buffer: ReceiveBuffer,
    /// The last read or decode found everything used: only a read can bring more.
    is_dry: bool,
    /// The last read filled its space, so that there is likely more.
    is_full: bool,
}

/// How a socket is read or written.
pub enum Via<'a, 'b> {
    /// The executor wakes whoever finds nothing.
    Executor(&'a mut Context<'b>),
    /// Without the executor, which learns nothing of it.
    Itself,
}

impl Wire {
    /// Of a connection that was just opened, and how to sign in on it. Only one that the executor knows of may be read or
    /// written through it.
    ///
    /// # Errors
    /// The system's, without room for another file descriptor.
    pub fn new(opened: Opened, is_known_to_executor: bool) -> io::Result<(Self, SignIn)> {
        // Of both, since it is one socket. glommio does not mind.
        opened.socket.set_nonblocking(true)?;
        let stream = if is_known_to_executor { Some(opened.socket.try_clone()?.into()) } else { None };
        let wire = Self {
            stream,
            direct: opened.socket.into(),
            tls: opened.tls.map(|tls| Box::new(Secured::new(tls))),
            is_mute: false,
            buffer: opened.received,
            is_dry: false,
            is_full: false,
        };
        Ok((wire, opened.sign_in))
    }

    /// One read and all that it brings, or what an earlier one brought and `logic` did not take: whether there was anything.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub fn poll_read(
        &mut self,
        logic: &mut impl Logic,
        via: Via<'_, '_>,
        server: &Server,
        reads: &mut ReadSizes,
        now: Duration,
    ) -> Result<bool, String> {
        self.is_full = false;
        if !logic.takes_bytes() {
            return Ok(false);
        }
        if self.is_dry {
            match self.poll_fill(via, reads) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(())) => logic.heard(now),
                Poll::Ready(Err(error)) => return Err(explain(error, server).to_string()),
            }
        }
        let used = logic.receive(self.buffer.unused(), now).map_err(|fault| fault.to_string())?;
        self.buffer.consume(used);
        // Only what is full leaves complete operations behind.
        self.is_dry = logic.takes_bytes();
        Ok(true)
    }

    fn poll_fill(&mut self, mut via: Via<'_, '_>, reads: &mut ReadSizes) -> Poll<io::Result<()>> {
        let Self { stream, direct, .. } = self;
        let mut read = |space: &mut [u8]| match &mut via {
            Via::Executor(cx) => Pin::new(known(stream)).poll_read(cx, space),
            Via::Itself => unless_blocked(direct.read(space)),
        };
        let space = self.buffer.space();
        let (bytes, is_full) = match &mut self.tls {
            None => (ready!(read(space))?, false),
            Some(tls) => (ready!(tls.poll_read(space, read))?, tls.is_full()),
        };
        if bytes == 0 {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "server closed the connection");
            return Poll::Ready(Err(error));
        }
        self.is_full = is_full || bytes == space.len();
        reads.observe(bytes as u64);
        self.buffer.filled(bytes);
        Poll::Ready(Ok(()))
    }

    /// Writes what the socket takes of the output of `logic`: whether that was anything.
    pub fn poll_write(
        &mut self,
        logic: &mut impl Logic,
        mut via: Via<'_, '_>,
        written_bytes: &mut u64,
        now: Duration,
    ) -> bool {
        let mut did = false;
        let Self { stream, direct, tls, is_mute, .. } = self;
        let mut write = |bytes: &[u8]| match &mut via {
            Via::Executor(cx) => Pin::new(known(stream)).poll_write(cx, bytes),
            Via::Itself => unless_blocked(direct.write(bytes)),
        };
        while !logic.output().is_empty() {
            let output = logic.output();
            let written = match tls {
                None => write(output),
                Some(tls) => tls.poll_write(output, &mut write),
            };
            match written {
                _ if *is_mute => logic.wrote(logic.output().len(), now),
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => {
                    *written_bytes += bytes as u64;
                    logic.wrote(bytes, now);
                }
                Poll::Ready(Err(_)) => *is_mute = true,
            }
            did = true;
        }
        // What TLS has taken counts as written, so nothing else would come back to it.
        if let Some(tls) = tls {
            *is_mute |= matches!(tls.poll_flush(write), Poll::Ready(Err(_)));
        }
        did
    }

    /// There is likely more to read.
    pub fn has_more(&self) -> bool {
        self.is_full || !self.is_dry
    }

    /// The socket, and what `logic` waits for there.
    pub fn wanted(&self, logic: &impl Logic) -> (&net::TcpStream, PollFlags) {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, logic.takes_bytes());
        let has_unsent = !self.is_mute && self.tls.as_ref().is_some_and(|tls| tls.has_unsent());
        wanted.set(PollFlags::OUT, has_unsent || !logic.output().is_empty());
        (&self.direct, wanted)
    }

    /// Closes it, with TLS's word for the end.
    pub fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(|bytes| unless_blocked(self.direct.write(bytes)));
        }
        // Dropping it alone would close it only when the executor next looks at its polls.
        let _ = self.direct.shutdown(net::Shutdown::Both);
    }
}

fn known(stream: &mut Option<TcpStream>) -> &mut TcpStream {
    stream.as_mut().expect("a core that sleeps in its executor has its sockets there")
}

fn unless_blocked<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}
