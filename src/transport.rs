//! A connection's bytes, plain or through TLS: from a server to a connection on which NATS can begin, and what goes through
//! TLS from then on.
//!
//! ```text
//! usual      TCP ─► INFO, and TLS if either side wants it ─► CONNECT …
//! TLS first  TCP ─► TLS ─► INFO ─► CONNECT …
//! ```
//!
//! INFO is left for the session. Nothing is said to a server that has no TLS where TLS is required.
//!
//! Never: an executor, the rest of NATS's handshake.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use alarm_digest::servers::Server;
use nats_wire::session::SignIn;
use nats_wire::{ClientDecoder, Limits, ReceiveBuffer, ServerInfo, ServerOp, Step};
use rustls::ClientConnection;
use socket2::Socket;

use crate::connect::connect;
use crate::tls::{NO_CERTIFICATE, Timed, handshake};

/// A connection on which a session can begin.
pub struct Opened {
    /// In whatever state of blocking and timeouts.
    pub socket: Socket,
    /// None: it is plain.
    pub tls: Option<Box<ClientConnection>>,
    /// What has come already.
    pub received: ReceiveBuffer,
    pub sign_in: SignIn,
}

/// Connects to `server`, and then, within `timeout` again, reads INFO and shakes hands. Blocking.
///
/// # Errors
/// As [`connect`] and [`handshake`]; or the server has no TLS and should, or says nothing.
pub fn open(server: &Server, timeout: Duration) -> io::Result<Opened> {
    let (socket, sign_in) = connect(server, timeout)?;
    let deadline = Instant::now() + timeout;
    let mut received = ReceiveBuffer::new(Limits::client());
    if server.tls.is_first {
        let tls = Some(handshake(server, &socket, deadline)?);
        return Ok(Opened { socket, tls, received, sign_in: sign_in.over_tls() });
    }
    let info = read_info(&socket, &mut received, deadline).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            let text = format!("expected INFO within {timeout:?} of connecting, got nothing{MAYBE_FIRST}");
            io::Error::new(error.kind(), text)
        }
        _ => error,
    })?;
    match info {
        Some((info, end)) if wants_tls(server, &info)? => {
            let more = received.unused().len() - end;
            if more > 0 {
                // Whoever stands between could say something in the server's name, to be taken for what came through TLS.
                return Err(io::Error::other(format!(
                    "expected nothing between INFO and TLS, got {more} bytes"
                )));
            }
            let tls = Some(handshake(server, &socket, deadline)?);
            let received = line(&believed(info, server));
            Ok(Opened { socket, tls, received, sign_in: sign_in.over_tls() })
        }
        // Anything but INFO, which ends a session before it has said a word.
        None | Some(_) => Ok(Opened { socket, tls: None, received, sign_in }),
    }
}

const MAYBE_FIRST: &str = ": if the server begins with TLS (handshake_first), give --tls-first";

/// Reads until INFO is complete, and leaves it where it is: what it says and where it ends; none, if something else came.
fn read_info(
    socket: &Socket,
    received: &mut ReceiveBuffer,
    deadline: Instant,
) -> io::Result<Option<(ServerInfo, usize)>> {
    let mut decoder = ClientDecoder::new(Limits::client());
    loop {
        match decoder.decode(received.unused()) {
            Ok(Step::More { .. }) => {}
            Ok(Step::Op { op: ServerOp::Info(json), used }) => {
                return Ok(ServerInfo::parse(json).ok().map(|info| (info, used)));
            }
            Ok(Step::Op { .. }) | Err(_) => return Ok(None),
        }
        let bytes = Timed { socket, deadline }.read(received.space())?;
        if bytes == 0 {
            let text = format!("server closed the connection before INFO{MAYBE_FIRST}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        received.filled(bytes);
    }
}

/// Whether the connection goes on through TLS.
fn wants_tls(server: &Server, info: &ServerInfo) -> io::Result<bool> {
    if !server.tls.is_required && !info.tls_required {
        return Ok(false);
    }
    if !info.tls_required && !info.tls_available {
        return Err(io::Error::other(
            "expected a server with TLS, got one without: nothing was said to it. Give it a certificate (tls in its \
             configuration), or connect with nats:// and no --tls flag where the network may be trusted",
        ));
    }
    if info.tls_verify && server.tls.identity.is_none() {
        return Err(io::Error::other(NO_CERTIFICATE));
    }
    Ok(true)
}

/// INFO came in plain text: whoever stands between could have named a server of his own there, for which he has a certificate, to
/// be given our credentials at the next reconnect. An address will have to show the certificate of the name that we know.
fn believed(mut info: ServerInfo, server: &Server) -> ServerInfo {
    let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
    let is_known =
        |url: &String| Server::parse(url, None, &server.tls).is_ok_and(|told| is_address(&told.host));
    info.connect_urls.retain(|url| is_known(url) && !is_address(server.tls_name()));
    info
}

fn line(info: &ServerInfo) -> ReceiveBuffer {
    let line = format!("INFO {}\r\n", info.to_json());
    let mut buffer = ReceiveBuffer::new(Limits::client());
    let mut left = line.as_bytes();
    while !left.is_empty() {
        left = &left[buffer.extend(left)..];
    }
    buffer
}

/// TLS between the buffers of a driver and a socket that does not block. Whatever does the reading and writing is handed in.
///
/// `incoming[start..end]` came from the socket and is not decrypted yet; `outgoing[sent..]` is encrypted and not written yet.
pub struct Secured {
    tls: Box<ClientConnection>,
    incoming: Box<[u8]>,
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
    sent: usize,
}

impl Secured {
    pub fn new(tls: Box<ClientConnection>) -> Self {
        let incoming = vec![0; ReceiveBuffer::READ_BYTES].into();
        Self { tls, incoming, start: 0, end: 0, outgoing: Vec::new(), sent: 0 }
    }

    /// Puts what has come into `space`, from at most one `read`: how many bytes, 0 at the end. Pending only if `read` was.
    ///
    /// The end is the same whether it came with TLS's close_notify or without: what counts is proved by fences.
    pub fn poll_read(
        &mut self,
        space: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        while filled < space.len() {
            match self.tls.reader().read(&mut space[filled..]) {
                Ok(0) => break,
                Ok(bytes) => {
                    filled += bytes;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if self.start == self.end {
                if filled > 0 {
                    break;
                }
                (self.start, self.end) = (0, ready!(read(&mut self.incoming))?);
                if self.end == 0 {
                    break;
                }
            }
            self.start += self.tls.read_tls(&mut &self.incoming[self.start..self.end])?;
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(filled))
    }

    /// Whether the last read filled its space, so that there is likely more.
    pub fn is_full(&self) -> bool {
        self.end == self.incoming.len()
    }

    /// Takes the first bytes of `output`, and writes them as far as `write` does: how many were taken. Pending only if `write` was,
    /// with what had been taken before.
    pub fn poll_write(
        &mut self,
        output: &[u8],
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(&mut write))?;
        let taken = self.tls.writer().write(output)?;
        match self.poll_flush(write) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    /// Writes what was taken, and what TLS has to say by itself.
    pub fn poll_flush(
        &mut self,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.outgoing)?;
        }
        while self.sent < self.outgoing.len() {
            self.sent += ready!(write(&self.outgoing[self.sent..]))?;
        }
        self.outgoing.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Whether some of what was taken is still to be written.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Says that nothing more will come, as far as `write` writes at once.
    pub fn close(&mut self, write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) {
        self.tls.send_close_notify();
        let _ = self.poll_flush(write);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alarm_digest::servers::Tls;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};

    use super::*;

    /// Two ends that trust each other, as soon as they have shaken hands.
    fn ends() -> (Box<ClientConnection>, ServerConnection) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["a.example".into()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        let name = "a.example".try_into().expect("a name");
        let client = ClientConnection::new(Arc::new(client), name).expect("a client");
        let server = ServerConnection::new(Arc::new(server)).expect("a server");
        (Box::new(client), server)
    }

    fn shaken() -> (Secured, ServerConnection) {
        let (mut client, mut server) = ends();
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("a vector");
            if !bytes.is_empty() {
                server.read_tls(&mut bytes.as_slice()).expect("room");
                server.process_new_packets().expect("TLS");
            }
            bytes.clear();
            server.write_tls(&mut bytes).expect("a vector");
            if !bytes.is_empty() {
                client.read_tls(&mut bytes.as_slice()).expect("room");
                client.process_new_packets().expect("TLS");
            }
        }
        (Secured::new(client), server)
    }

    fn noise(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7919 / 13) as u8).collect()
    }

    #[test]
    fn what_is_written_in_pieces_with_pauses_arrives_and_is_never_counted_too_early() {
        let (mut secured, mut server) = shaken();
        let output = noise(300_000);
        let (mut taken, mut arrived, mut turn) = (0, Vec::new(), 0);
        while arrived.len() < output.len() {
            // A socket that takes little, and every other time nothing.
            let mut wire = Vec::new();
            let write = |bytes: &[u8]| {
                turn += 1;
                if turn % 2 == 0 {
                    return Poll::Pending;
                }
                let count = bytes.len().min(1000 + turn % 5000);
                wire.extend_from_slice(&bytes[..count]);
                Poll::Ready(Ok(count))
            };
            if taken < output.len() {
                if let Poll::Ready(count) = secured.poll_write(&output[taken..], write) {
                    taken += count.expect("no error");
                }
            } else {
                let _ = secured.poll_flush(write);
            }
            let mut wire = wire.as_slice();
            while !wire.is_empty() {
                server.read_tls(&mut wire).expect("room");
                server.process_new_packets().expect("TLS");
                let mut piece = vec![0; 1 << 16];
                if let Ok(bytes) = server.reader().read(&mut piece) {
                    arrived.extend_from_slice(&piece[..bytes]);
                }
            }
            assert!(arrived.len() <= taken, "{} bytes arrived, {taken} were taken", arrived.len());
        }
        assert_eq!((taken, arrived == output), (output.len(), true));
    }

    #[test]
    fn what_comes_in_pieces_is_read_to_its_end_into_spaces_of_any_size() {
        for (pieces, spaces) in [(1, 1 << 16), (4096, 1), (70_000, 100), (1 << 20, 1 << 20)] {
            let (mut secured, mut server) = shaken();
            let (input, mut wire) = (noise(200_000), Vec::new());
            for part in input.chunks(10_000) {
                server.writer().write_all(part).expect("room");
                while server.wants_write() {
                    server.write_tls(&mut wire).expect("a vector");
                }
            }
            server.send_close_notify();
            server.write_tls(&mut wire).expect("a vector");
            let (mut left, mut arrived, mut space) = (wire.as_slice(), Vec::new(), vec![0; spaces]);
            loop {
                let read = |space: &mut [u8]| {
                    let count = left.len().min(pieces).min(space.len());
                    space[..count].copy_from_slice(&left[..count]);
                    left = &left[count..];
                    if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
                };
                match secured.poll_read(&mut space, read) {
                    Poll::Ready(Ok(0)) => break,
                    Poll::Ready(Ok(bytes)) => arrived.extend_from_slice(&space[..bytes]),
                    other => panic!("{other:?} after {} bytes", arrived.len()),
                }
            }
            assert!(arrived == input, "{} of {} bytes", arrived.len(), input.len());
        }
    }

    #[test]
    fn a_name_that_came_in_plain_text_is_not_believed() {
        let told = |url: &str| {
            let server = Server::parse(url, None, &Tls::default()).expect(url);
            let json =
                br#"{"nonce":"abc","connect_urls":["evil.example:4222","10.0.0.7:4222","[::1]:4222","x y"]}"#;
            let info = believed(ServerInfo::parse(json).expect("JSON"), &server);
            assert_eq!(info.nonce.as_deref(), Some("abc"));
            info.connect_urls
        };
        assert_eq!(told("tls://a.example"), ["10.0.0.7:4222", "[::1]:4222"]);
        assert_eq!(told("tls://10.0.0.6"), [] as [&str; 0], "it would be taken at its own word");
    }
}
