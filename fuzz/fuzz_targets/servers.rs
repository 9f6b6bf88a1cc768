//! URLs of servers: what is taken means the same when it is written again, and credentials are never repeated.
#![no_main]

use alarm_digest::credentials::{Place, Source};
use alarm_digest::servers::{Server, Servers, Tls};

const SECRET: &str = "5ecret-7f3a9c";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(url) = std::str::from_utf8(input) else { return };
    if let Ok(server) = Server::parse(url, None, &Tls::default()) {
        let again = Server::parse(&server.to_string(), None, &Tls::default()).expect("what is shown is a URL");
        assert_eq!((&again.host, again.port), (&server.host, server.port), "{url}");
        assert!(again.credentials.is_none());
        if let Some(Source { place, .. }) = &server.credentials {
            assert!(matches!(place, Place::Url(secret) if !secret.reveal().is_empty()));
        }
        told(&server, url);
    }
    if let Some((before, after)) = url.split_once('\n') {
        hides(before, after);
    }
});

/// A secret before an `@` is a part of the credentials, whatever stands around it.
fn hides(before: &str, after: &str) {
    if before.contains(SECRET) || after.contains(SECRET) {
        return;
    }
    let url = format!("{before}{SECRET}{after}@host");
    match Server::parse(&url, None, &Tls::default()) {
        // A user's name is shown.
        Ok(server) => assert!(!server.to_string().contains(SECRET), "{server}"),
        Err(error) => assert!(!error.contains(SECRET), "{url}: {error}"),
    }
    let url = format!("ann:{before}{SECRET}{after}@host");
    if let Ok(server) = Server::parse(&url, None, &Tls::default()) {
        let shown = format!("{server} {server:?} {}", server.credentials.as_ref().expect("it has some"));
        let is_in_name = matches!(&server.credentials, Some(Source { kind, .. }) if format!("{kind:?}").contains(SECRET));
        assert!(is_in_name || !shown.contains(SECRET), "{url}: {shown}");
    }
}

/// A server that another one told of comes after those that are configured, and is not one of them.
fn told(server: &Server, url: &str) {
    let mut servers = Servers::new(vec![server.clone()], 0);
    servers.learn(&[url.to_owned(), server.to_string()]);
    assert!(!servers.has_another(), "{url}");
    servers.advance();
    assert_eq!(servers.current().to_string(), server.to_string());
}
