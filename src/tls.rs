//! TLS for a connection that is about to speak NATS: from an operator's files to the end of a handshake, and what went wrong
//! in words that tell an operator what to do.
//!
//! Files are read anew for each connection, so that new ones count without a restart.
//!
//! Never: NATS, a server whose certificate is not verified.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_digest::servers::{Server, Tls};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Error, RootCertStore};
use socket2::Socket;

/// Looks whether the files that `tls` names can be used.
///
/// # Errors
/// Which file cannot be read, or what was expected in it.
pub fn check(tls: &Tls) -> io::Result<()> {
    config(tls).map(drop).map_err(io::Error::other)
}

/// Shakes hands with `server` on `socket` until `deadline`.
///
/// # Errors
/// As [`check`], or what is wrong with the server or its certificate.
pub fn handshake(server: &Server, socket: &Socket, deadline: Instant) -> io::Result<Box<ClientConnection>> {
    let config = config(&server.tls).map_err(io::Error::other)?;
    let name = ServerName::try_from(server.tls_name().to_owned()).map_err(|_| {
        io::Error::other(format!("expected a host that a certificate can name, got `{}`", server.tls_name()))
    })?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut socket = Timed { socket, deadline };
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut socket).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), CLOSED_EARLY),
            io::ErrorKind::TimedOut => io::Error::new(error.kind(), SILENT),
            _ => explain(error, server),
        })?;
    }
    Ok(Box::new(tls))
}

const CLOSED_EARLY: &str = "server closed the connection during the TLS handshake";
const SILENT: &str = "expected the server to finish the TLS handshake, got nothing in time";

/// A blocking socket until a deadline.
pub struct Timed<'a> {
    pub socket: &'a Socket,
    pub deadline: Instant,
}

impl Timed<'_> {
    /// In whole microseconds, as the kernel counts them, to which none at all is no limit.
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            left if left < Duration::from_micros(1) => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(self.left()?)?;
            match (&mut &*self.socket).read(bytes) {
                // A read with a timeout is not taken up again by itself when a signal comes in between.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(late),
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        (&mut &*self.socket).write(bytes).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How the kernel says that a timeout has passed.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let roots = roots(tls.ca.as_deref())?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need")
        .with_root_certificates(roots);
    let Some(identity) = &tls.identity else { return Ok(config.with_no_client_auth()) };
    let certificates = certificates(&identity.certificate)?;
    // Whatever is wrong with it, none of it is repeated.
    let key = PrivateKeyDer::from_pem_file(&identity.key).map_err(|error| match error {
        pem::Error::Io(error) => format!("cannot read the key in {}: {error}", identity.key.display()),
        _ => format!(
            "cannot use the key in {}: expected a private key in PEM that is not encrypted, got none",
            identity.key.display()
        ),
    })?;
    config.with_client_auth_cert(certificates, key).map_err(|error| {
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        format!("cannot use the certificate in {certificate} with the key in {key}: {error}")
    })
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(ca) = ca else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return if roots.is_empty() {
            Err(format!(
                "expected certificates of CAs on this system, got none{why}: install them, or give --tls-ca"
            ))
        } else {
            Ok(roots)
        };
    };
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .map_err(|error| format!("cannot use the certificates in {}: {error}", ca.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Err(pem::Error::Io(error)) => {
            Err(format!("cannot read the certificates in {}: {error}", path.display()))
        }
        _ => Err(format!(
            "cannot use the certificates in {}: expected one or more in PEM, got none",
            path.display()
        )),
    }
}

/// What an operator can do about `error`, if TLS is what went wrong; else `error`.
pub fn explain(error: io::Error, server: &Server) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => io::Error::new(error.kind(), explanation(inner, server)),
        None => error,
    }
}

fn explanation(error: &Error, server: &Server) -> String {
    match error {
        Error::InvalidCertificate(error) => wrong_certificate(error, server),
        Error::AlertReceived(alert) if is_about_certificates(*alert) => refused_certificate(*alert, server),
        Error::InvalidMessage(_) if server.tls.is_first => {
            "expected a TLS handshake, got something else: does the server begin with TLS? If not, leave --tls-first out"
                .into()
        }
        Error::InvalidMessage(_) => "expected a TLS handshake, got something else: is this a NATS server?".into(),
        Error::PeerIncompatible(_) | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            format!("expected a server with TLS 1.2 or 1.3 and a cipher suite of today, got another: {error}")
        }
        _ => format!("TLS: {error}"),
    }
}

fn wrong_certificate(error: &CertificateError, server: &Server) -> String {
    let vouch = match &server.tls.ca {
        Some(ca) => format!("no certificate in {} vouches", ca.display()),
        None => "none of the CAs that this system trusts vouches".into(),
    };
    match error {
        // The latter when the two have the same name, as after a CA was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("{vouch} for the server's certificate: give that of its CA with --tls-ca")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the server's certificate has expired{}: renew it", by_how_much(error))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: is the clock of this machine right?".into()
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "the server's certificate is for {}, not for `{}`: connect by a name that it has, or give it this one",
            if presented.is_empty() { "nobody".into() } else { presented.join(", ") },
            server.tls_name()
        ),
        CertificateError::Revoked => "the server's certificate is revoked: give it another one".into(),
        _ => format!("cannot trust the server's certificate: {error}"),
    }
}

fn by_how_much(error: &CertificateError) -> String {
    const DAY: u64 = 24 * 3600;
    let seconds = |time: &UnixTime| time.as_secs();
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let ago = seconds(time).saturating_sub(seconds(not_after));
            let ago = if ago < DAY { "today".into() } else { format!("{} days ago", ago / DAY) };
            format!(", {ago} by the clock of this machine")
        }
        _ => String::new(),
    }
}

/// Whether a server sends it because of our certificate, or because there is none.
fn is_about_certificates(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

fn refused_certificate(alert: AlertDescription, server: &Server) -> String {
    match &server.tls.identity {
        None => NO_CERTIFICATE.into(),
        Some(identity) => format!(
            "the server does not accept our certificate in {} ({alert:?}): is it by a CA that the server knows, for clients, and \
             neither expired nor revoked?",
            identity.certificate.display()
        ),
    }
}

/// For servers that want a certificate of ours when there is none.
pub const NO_CERTIFICATE: &str = "the server wants a certificate of ours: give --tls-cert and --tls-key";
