//! Which servers there are, and which is next: those that the operator names, then those that they tell of.
//!
//! ```text
//! --server  nats://ann:secret@a:4222,tls://token@[::1],c      user and password, token, --creds and the like
//! INFO      {"connect_urls":["10.0.0.7:4222","[fd00::7]:4222"],…}
//! ```
//!
//! Never: looking a name up, connecting.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::credentials::{Kind, Place, Source};

/// A host and a port, not looked up yet, and who we are there. Shown without that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What to sign in with, if with anything.
    pub credentials: Option<Source>,
    /// How the connection is secured.
    pub tls: Tls,
}

/// How a connection is secured. The default leaves it to the server whether it is.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tls {
    /// Whether nothing but TLS will do.
    pub is_required: bool,
    /// Whether the handshake comes before INFO.
    pub is_first: bool,
    /// File with the certificates of those who may vouch for the server. None: the system's.
    pub ca: Option<PathBuf>,
    /// What we show to a server that wants a certificate.
    pub identity: Option<Identity>,
    /// Whom the server's certificate must name. None: the host.
    pub name: Option<String>,
}

/// Who we are by TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// File with our certificate, and those between it and a CA's.
    pub certificate: PathBuf,
    /// File with its key.
    pub key: PathBuf,
}

/// Source: NATS client port, IANA 4222.
const PORT: u16 = 4222;

impl Server {
    /// Reads a URL as the NATS clients take it. Credentials in it are for this server; without any, it gets `credentials`. It is
    /// secured as `tls` says, and in any case with `tls://`.
    ///
    /// # Errors
    /// When it is none, or one of a kind that we cannot connect to. The text does not repeat credentials.
    pub fn parse(url: &str, credentials: Option<&Source>, tls: &Tls) -> Result<Self, String> {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => (scheme, rest),
            // Without a scheme, so that what stands before `://` may be a part of a password.
            _ => ("nats", url),
        };
        let (user, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, rest),
        };
        let mut tls = tls.clone();
        match scheme.to_ascii_lowercase().as_str() {
            "nats" => {}
            "tls" => tls.is_required = true,
            // It may be a part of a password too.
            _ if user.is_some() => return Err("expected nats:// or tls://, got another scheme".into()),
            _ => return Err(format!("expected nats:// or tls://, got scheme `{scheme}`")),
        }
        let (host, port) = host_and_port(authority.strip_suffix('/').unwrap_or(authority))?;
        let credentials = user.map(from_url).transpose()?.or_else(|| credentials.cloned());
        Ok(Self { host, port, credentials, tls })
    }

    /// Whom the server's certificate must name, if it shows one.
    #[must_use]
    pub fn tls_name(&self) -> &str {
        self.tls.name.as_ref().unwrap_or(&self.host)
    }

    /// One that `self` told of: the same credentials, secured in the same way. Clusters tell of addresses, which their
    /// certificates seldom name, so that an address goes by the name that we know the cluster by.
    /// Source: nats.go, `tlsName` in `addURLToPool`.
    fn told_of(&self, url: &str) -> Result<Self, String> {
        let mut told = Self::parse(url, self.credentials.as_ref(), &Tls { name: None, ..self.tls.clone() })?;
        if is_address(&told.host) && !is_address(self.tls_name()) {
            told.tls.name = Some(self.tls_name().into());
        }
        Ok(told)
    }

    fn is_where(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

fn is_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port))),
            None => return Err(format!("expected `]` after `[`, got `{authority}`")),
        },
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/[]".contains(c)) {
        return Err(format!("expected HOST or HOST:PORT, got `{authority}`"));
    }
    let port = port
        .map_or(Ok(PORT), str::parse)
        .map_err(|_| format!("expected a port from 0 to 65535 in `{authority}`"))?;
    Ok((host.into(), port))
}

/// `user:password`, or a token.
fn from_url(user: &str) -> Result<Source, String> {
    let (kind, secret) = match user.split_once(':') {
        Some((user, password)) => (Kind::Password(percent_decode(user)?), percent_decode(password)?),
        None => (Kind::Token, percent_decode(user)?),
    };
    if secret.is_empty() || kind == Kind::Password(String::new()) {
        return Err("expected USER:PASSWORD or TOKEN before `@`, got nothing for one of them".into());
    }
    Ok(Source { kind, place: Place::Url(secret.into()) })
}

fn percent_decode(text: &str) -> Result<String, String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let hex = part.get(..2).and_then(|hex| HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok());
        bytes
            .extend(hex.ok_or("expected two hexadecimal digits after each `%` in the credentials of a URL")?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| "expected UTF-8 in the credentials of a URL".into())
}

/// More servers than a cluster has. Each of them is tried before the configured ones are again.
const TOLD_MAX: usize = 64;

/// All servers that may be connected to, and the one that is.
#[derive(Clone, Debug)]
pub struct Servers {
    configured: Vec<Server>,
    /// What the last server that told of any has told of, without those that are configured.
    told: Vec<Server>,
    /// The place that `current` has among all of them, or had when it was chosen.
    at: usize,
    current: Server,
}

impl Servers {
    /// Begins at the server of this number, counted on from the first one.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn new(configured: Vec<Server>, first: usize) -> Self {
        let at = first % configured.len();
        let current = configured[at].clone();
        Self { configured, told: Vec::new(), at, current }
    }

    /// The server that we are connected to, or try to be.
    #[must_use]
    pub fn current(&self) -> &Server {
        &self.current
    }

    /// Goes on to the next one.
    pub fn advance(&mut self) {
        self.at = (self.at + 1) % (self.configured.len() + self.told.len());
        let next = self.all().nth(self.at).expect("it is less than their number").clone();
        self.current = next;
    }

    /// Goes on to the next one that is not where `here` is, if there is any.
    pub fn advance_past(&mut self, here: &Server) {
        for _ in 0..self.all().count() {
            self.advance();
            if !self.current.is_where(here) {
                return;
            }
        }
    }

    /// Whether there is any other than the current one.
    #[must_use]
    pub fn has_another(&self) -> bool {
        self.all().any(|server| !server.is_where(&self.current))
    }

    /// Takes the `connect_urls` of the current server's INFO: those are further servers of its cluster, which take the same
    /// credentials and are secured in the same way, until a server tells of others. Most servers that are alone tell of none, and so do those that are
    /// configured not to; that says nothing about the ones that we know.
    pub fn learn(&mut self, connect_urls: &[String]) {
        if connect_urls.is_empty() {
            return;
        }
        self.told = connect_urls
            .iter()
            .filter_map(|url| self.current.told_of(url).ok())
            .filter(|told| !self.configured.iter().any(|server| server.is_where(told)))
            .take(TOLD_MAX)
            .collect();
    }

    /// Takes what `other` was told of, and stays where it is.
    pub fn learn_from(&mut self, other: &Self) {
        self.told.clone_from(&other.told);
    }

    fn all(&self) -> impl Iterator<Item = &Server> {
        self.configured.iter().chain(&self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Server {
        Server::parse(url, None, &Tls::default()).expect(url)
    }

    #[test]
    fn a_server_is_a_host_with_or_without_a_scheme_and_a_port() {
        for (url, shown) in [
            ("localhost", "localhost:4222"),
            ("localhost:1", "localhost:1"),
            ("nats://10.0.0.1:4223", "10.0.0.1:4223"),
            ("NATS://nats.example/", "nats.example:4222"),
            ("[::1]", "[::1]:4222"),
            ("nats://[::1]:4223", "[::1]:4223"),
            ("nats://ann:x@[::1]:4223", "[::1]:4223"),
        ] {
            assert_eq!(server(url).to_string(), shown);
        }
        for url in [
            "", ":4222", "nats://", "tls://", "x:y", "x:65536", "x:1:2", "[::1", "a b", "x/y", "ws://x",
            "u@", "[[]", "a]",
        ] {
            assert!(Server::parse(url, None, &Tls::default()).is_err(), "{url}");
        }
    }

    #[test]
    fn a_scheme_or_a_flag_requires_tls() {
        let flags = Tls { is_required: true, is_first: true, ..Tls::default() };
        for (url, tls, expected) in [
            ("a", Tls::default(), Tls::default()),
            ("nats://a", Tls::default(), Tls::default()),
            ("TLS://ann:x@a", Tls::default(), Tls { is_required: true, ..Tls::default() }),
            ("nats://a", flags.clone(), flags),
        ] {
            assert_eq!(Server::parse(url, None, &tls).expect(url).tls, expected, "{url}");
        }
    }

    #[test]
    fn an_address_that_was_told_of_goes_by_the_name_of_who_told() {
        for (current, told, name) in [
            ("tls://a.example", "10.0.0.7:4222", "a.example"),
            ("tls://a.example", "[fd00::7]:4222", "a.example"),
            ("tls://a.example", "b.example:4222", "b.example"),
            ("tls://10.0.0.6", "10.0.0.7:4222", "10.0.0.7"),
            ("tls://10.0.0.6", "b.example:4222", "b.example"),
        ] {
            let told = server(current).told_of(told).expect(told);
            assert_eq!((told.tls_name(), told.tls.is_required), (name, true), "{current}");
        }
        let told = server("tls://a.example").told_of("10.0.0.7:1").expect("an address");
        assert_eq!(told.told_of("10.0.0.8:1").expect("an address").tls_name(), "a.example");
        assert_eq!(
            told.told_of("b.example").expect("a name").told_of("10.0.0.9").expect("an address").tls_name(),
            "b.example"
        );
    }

    #[test]
    fn credentials_stand_before_the_host_and_may_be_encoded() {
        let password = |user: &str, password: &str| (Kind::Password(user.into()), password.to_owned());
        for (url, expected) in [
            ("nats://ann:x@a", password("ann", "x")),
            ("ann:x@a", password("ann", "x")),
            ("nats://ann:x:y@a", password("ann", "x:y")),
            ("nats://a%40b:%c3%A9%2C%2f%25@a", password("a@b", "é,/%")),
            ("ann:x://y@z@a", password("ann", "x://y@z")),
            ("nats://s3cret@a", (Kind::Token, "s3cret".into())),
        ] {
            let server = server(url);
            let Some(Source { kind, place: Place::Url(secret) }) = server.credentials else {
                panic!("no credentials in {url}")
            };
            assert_eq!((server.host.as_str(), kind, secret.reveal()), ("a", expected.0, expected.1.as_str()));
        }
        let given = Source { kind: Kind::Creds, place: Place::File("x".into()) };
        assert_eq!(
            Server::parse("a", Some(&given), &Tls::default()).expect("a host").credentials,
            Some(given.clone())
        );
        assert_ne!(
            Server::parse("b@a", Some(&given), &Tls::default()).expect("a host").credentials,
            Some(given)
        );
    }

    #[test]
    fn neither_a_refusal_nor_debug_output_repeats_credentials() {
        for url in [
            "nats://ann:s3cret@",
            "nats://ann:s3cret@a:b",
            "nats://ann:s3cret@[a",
            "nats://ann:s3cret%2@a",
            "nats://ann:s3cret%+f@a",
            "nats://ann:s3cret%ff@a",
            "nats://:s3cret@a",
            "tls://ann:s3cret@a:b",
            "http://ann:s3cret@a",
            "s3cret://ann@a",
        ] {
            let error = Server::parse(url, None, &Tls::default()).expect_err(url);
            assert!(error.contains("expected") && !error.contains("s3cret"), "{error}");
        }
        let shown = format!("{:?}", server("nats://ann:s3cret@a"));
        assert!(shown.contains("ann") && !shown.contains("s3cret"), "{shown}");
    }

    /// The servers of two rounds.
    fn rounds(servers: &Servers) -> Vec<String> {
        let (mut servers, mut hosts) = (servers.clone(), Vec::new());
        for _ in 0..2 * servers.all().count() {
            hosts.push(servers.current().host.clone());
            servers.advance();
        }
        hosts
    }

    #[test]
    fn servers_that_were_told_of_follow_the_configured_ones_until_others_are_told_of() {
        let mut servers = Servers::new(vec![server("s3cret@a"), server("b")], 2);
        assert_eq!(rounds(&servers), ["a", "b", "a", "b"]);
        servers.learn(&["b:4222".into(), "c:1".into(), "not a host".into(), "[::1]:2".into()]);
        assert_eq!(rounds(&servers), ["a", "b", "c", "::1", "a", "b", "c", "::1"]);
        servers.advance();
        servers.advance();
        assert_eq!(servers.current().to_string(), "c:1");
        assert_eq!(servers.current().credentials, server("s3cret@a").credentials, "those of who told");
        servers.learn(&[]);
        servers.learn(&["d:1".into()]);
        assert_eq!(servers.current().to_string(), "c:1", "we are still there");
        servers.advance();
        assert_eq!(rounds(&servers), ["a", "b", "d", "a", "b", "d"]);
    }

    #[test]
    fn a_server_that_tells_of_servers_without_end_is_believed_in_part() {
        let mut servers = Servers::new(vec![server("a")], 0);
        let urls: Vec<String> = (0..60_000).map(|port| format!("b:{port}")).collect();
        servers.learn(&urls);
        assert_eq!(servers.all().count(), 65, "we come back to ours before long");
    }

    #[test]
    fn whoever_leaves_a_server_goes_to_one_that_is_elsewhere() {
        let mut servers = Servers::new(vec![server("a"), server("a"), server("b")], 0);
        let here = servers.current().clone();
        for _ in 0..2 {
            servers.advance_past(&here);
            assert_eq!(servers.current().host, "b");
        }
        let mut servers = Servers::new(vec![server("a"), server("a:4222")], 0);
        servers.advance_past(&here);
        assert_eq!(servers.current().host, "a", "there is no other");
    }

    #[test]
    fn one_server_has_no_other() {
        let mut servers = Servers::new(vec![server("a"), server("a")], 0);
        servers.learn(&["a:4222".into()]);
        assert!(!servers.has_another());
        servers.learn(&["b:4222".into()]);
        assert!(servers.has_another());
    }
}
