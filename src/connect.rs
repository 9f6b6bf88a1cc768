//! From a host name to a TCP connection that is set up for us, and what to sign in with on it. Blocking: whoever has an
//! executor runs it beside it.
//!
//! Never: NATS.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use alarm_digest::servers::Server;
use nats_wire::session::SignIn;
use socket2::{Domain, Socket, TcpKeepalive, Type};

/// A host that vanished without a word is noticed by the session's own PING; keepalive is for when nobody asks, as in
/// a long pause of the whole process. 30 s, then 3 probes 10 s apart.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// Connects to the first address of `server` that answers, all of them within `timeout`, each with an equal share of what
/// is left of it. The name is looked up anew each time; how long that takes is the resolver's to limit. Credentials are
/// read anew too.
///
/// # Errors
/// The last address's error, or that there is no address; or why there are no credentials.
pub fn connect(server: &Server, timeout: Duration) -> io::Result<(Socket, SignIn)> {
    let sign_in = sign_in(server)?;
    Ok((connect_to_any(server, timeout)?, sign_in))
}

/// What to sign in with on a connection to `server` that is made now.
///
/// # Errors
/// Which file cannot be read, or what was expected in it.
pub fn sign_in(server: &Server) -> io::Result<SignIn> {
    match &server.credentials {
        None => Ok(SignIn::default()),
        Some(source) => source.sign_in(|path| std::fs::read_to_string(path)).map_err(io::Error::other),
    }
}

fn connect_to_any(server: &Server, timeout: Duration) -> io::Result<Socket> {
    let deadline = Instant::now() + timeout;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = (server.host.as_str(), server.port).to_socket_addrs()?.collect();
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match connect_to(*address, left / (addresses.len() - at) as u32) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Output is gathered before it is written: waiting for more in the kernel would only add delay.
    socket.set_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.connect_timeout(&address.into(), timeout)?;
    Ok(socket)
}
