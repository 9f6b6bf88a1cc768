//! Files with credentials: what is taken goes into CONNECT as it stands there, and a refusal is one of a few sentences,
//! whatever the file holds. The first byte says what kind they are.
#![no_main]

use std::time::Duration;

use alarm_digest::credentials::{Kind, Place, Source};
use nats_wire::session::{Session, SessionConfig};
use nats_wire::{ConnectOptions, Limits};

const REFUSALS: [&str; 6] = [
    "expected one line, got nothing",
    "expected one line, got N",
    "expected a line with the nkey seed of a user, which begins with SU, got none",
    "expected the nkey seed of a user, got a line that begins like one and is damaged",
    "expected a JWT after a line `-----BEGIN NATS USER JWT-----`, got none",
    "stream did not contain valid UTF-8",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [kind, bytes @ ..] = bytes else { return };
    let kind = match kind % 4 {
        0 => Kind::Password("ann".into()),
        1 => Kind::Token,
        2 => Kind::Nkey,
        _ => Kind::Creds,
    };
    let source = Source { kind, place: Place::File("f".into()) };
    match connect(&source, bytes) {
        Ok(connect) => is_in(&connect, std::str::from_utf8(bytes).expect("it was read")),
        Err(error) => {
            let said = error.split_once(": ").map_or("", |(_, said)| said);
            let said = match said.strip_prefix("expected one line, got ") {
                Some(count) if count.parse::<usize>().is_ok() => "expected one line, got N",
                _ => said,
            };
            assert!(REFUSALS.contains(&said), "{error}");
        }
    }
});

/// What CONNECT says when the file holds these bytes.
fn connect(source: &Source, bytes: &[u8]) -> Result<ConnectOptions, String> {
    // As `read_to_string` has it.
    let sign_in = source.sign_in(|_| {
        std::str::from_utf8(bytes).map(Into::into).map_err(|_| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "stream did not contain valid UTF-8")
        })
    })?;
    let config = SessionConfig {
        connect: ConnectOptions::default(),
        limits: Limits::client(),
        handshake_max: Duration::MAX,
        ping_interval: Duration::MAX,
        answer_max: Duration::MAX,
        max_payload_at_least: 0,
    };
    let mut session = Session::new(config, Duration::ZERO).signing_in(sign_in);
    session.receive(b"INFO {\"nonce\":\"abc\"}\r\n").map_err(|fault| format!(": {fault}"))?;
    let line = session.output().strip_prefix(b"CONNECT ").expect("it follows INFO");
    let end = line.iter().position(|byte| *byte == b'\r').expect("a line");
    Ok(ConnectOptions::parse(&line[..end]).expect("JSON"))
}

fn is_in(connect: &ConnectOptions, text: &str) {
    let ConnectOptions { user, pass, auth_token, jwt, nkey, sig, .. } = connect;
    assert_eq!(user.is_some(), pass.is_some());
    for secret in [pass, auth_token].into_iter().flatten() {
        assert_eq!(secret, text.trim_end_matches(['\r', '\n']));
    }
    if let Some(jwt) = jwt {
        assert!(text.lines().any(|line| line.trim() == jwt) && sig.is_some());
    }
    assert!(nkey.is_none() || sig.is_some());
    // What depends on a secret shows it, or a part of it. A secret may well be a part of what is shown anyway.
    let other = |secret: &Option<String>| secret.as_ref().map(|_| "another".to_owned());
    let others = ConnectOptions {
        pass: other(pass),
        auth_token: other(auth_token),
        jwt: other(jwt),
        sig: other(sig),
        ..connect.clone()
    };
    assert_eq!(format!("{connect:?}"), format!("{others:?}"));
}
