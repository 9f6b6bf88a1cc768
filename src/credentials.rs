//! Who we are to a server: what an operator gives us, turned into what CONNECT says.
//!
//! ```text
//! user and password   CONNECT {"user":"ann","pass":"…",…}
//! token               CONNECT {"auth_token":"…",…}
//! nkey seed           CONNECT {"nkey":"U…","sig":"…",…}     sig: the nonce of INFO, signed with the seed
//! credentials file    CONNECT {"jwt":"…","sig":"…",…}       a JWT and a seed, as `nsc generate creds` writes them
//! ```
//!
//! They are read anew for each connection, so that new ones count without a restart.
//!
//! Never: opening a file, which the caller does; showing a secret, in `Debug` or in an error.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use nats_wire::session::SignIn;
use nkeys::KeyPair;

/// Text that nobody shall see.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for those who need it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Credentials that can be found when they are needed. Shown as a noun that says where to look, such as
/// ``user `ann` with the password in /run/secrets/nats``.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// What they are.
    pub kind: Kind,
    /// Where they are.
    pub place: Place,
}

/// What credentials are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The password of this user.
    Password(String),
    /// A token.
    Token,
    /// An nkey seed.
    Nkey,
    /// A JWT and the seed that it belongs to.
    Creds,
}

/// Where credentials are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// In this environment variable, with this value.
    Variable(&'static str, Secret),
    /// In the server's URL.
    Url(Secret),
}

impl Source {
    /// What a connection made now signs in with. `read` reads a file.
    ///
    /// # Errors
    /// When the file cannot be read, or what it holds is not what was expected: which file, and what.
    pub fn sign_in(&self, read: impl FnOnce(&Path) -> io::Result<String>) -> Result<SignIn, String> {
        let text = match &self.place {
            Place::File(path) => read(path).map_err(|error| format!("cannot read {self}: {error}"))?,
            Place::Variable(_, secret) | Place::Url(secret) => secret.reveal().to_owned(),
        };
        self.kind.sign_in(&text).map_err(|error| format!("cannot use {self}: {error}"))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Password(user) => write!(f, "user `{user}` with the password in ")?,
            Kind::Token => f.write_str("the token in ")?,
            Kind::Nkey => f.write_str("the nkey seed in ")?,
            Kind::Creds => f.write_str("the JWT and seed in ")?,
        }
        match &self.place {
            Place::File(path) => path.display().fmt(f),
            Place::Variable(name, _) => f.write_str(name),
            Place::Url(_) => f.write_str("the server's URL"),
        }
    }
}

impl Kind {
    fn sign_in(&self, text: &str) -> Result<SignIn, String> {
        match self {
            Self::Password(user) => {
                let (user, password) = (user.clone(), one_line(text)?);
                Ok(SignIn::new(move |_, connect| {
                    (connect.user, connect.pass) = (Some(user), Some(password));
                    Ok(())
                }))
            }
            Self::Token => {
                let token = one_line(text)?;
                Ok(SignIn::new(move |_, connect| {
                    connect.auth_token = Some(token);
                    Ok(())
                }))
            }
            Self::Nkey => {
                let key = seed(text)?;
                Ok(SignIn::new(move |info, connect| {
                    connect.nkey = Some(key.public_key());
                    connect.sig = Some(signed(&key, info.nonce.as_deref())?);
                    Ok(())
                }))
            }
            Self::Creds => {
                let (jwt, key) = (jwt(text)?, seed(text)?);
                Ok(SignIn::new(move |info, connect| {
                    connect.jwt = Some(jwt);
                    connect.sig = Some(signed(&key, info.nonce.as_deref())?);
                    Ok(())
                }))
            }
        }
    }
}

/// Editors and `echo` end a file with a line break.
fn one_line(text: &str) -> Result<String, String> {
    let line = text.trim_end_matches(['\r', '\n']);
    match line.lines().count() {
        1 => Ok(line.into()),
        0 => Err("expected one line, got nothing".into()),
        lines => Err(format!("expected one line, got {lines}")),
    }
}

/// The first seed of a user among the lines: the file may hold it alone, or decorated.
fn seed(text: &str) -> Result<KeyPair, String> {
    let mut lines = text.lines().map(str::trim);
    let line = lines
        .find(|line| line.starts_with("SU"))
        .ok_or("expected a line with the nkey seed of a user, which begins with SU, got none")?;
    // What nkeys says of it may quote from it.
    KeyPair::from_seed(line).map_err(|_| {
        "expected the nkey seed of a user, got a line that begins like one and is damaged".into()
    })
}

/// The line after `-----BEGIN NATS USER JWT-----`.
fn jwt(text: &str) -> Result<String, String> {
    let is_begin = |line: &&str| line.starts_with("---") && line.contains("BEGIN") && line.contains("JWT");
    let mut lines = text.lines().map(str::trim);
    lines
        .find(is_begin)
        .and_then(|_| lines.find(|line| !line.is_empty()))
        .filter(|line| line.split('.').count() == 3)
        .map(Into::into)
        .ok_or_else(|| "expected a JWT after a line `-----BEGIN NATS USER JWT-----`, got none".into())
}

/// A server that is not configured for keys sends no nonce; whether it takes us all the same is for it to say.
fn signed(key: &KeyPair, nonce: Option<&str>) -> Result<String, String> {
    let signature = key.sign(nonce.unwrap_or_default().as_bytes()).map_err(|error| error.to_string())?;
    Ok(BASE64URL_NOPAD.encode(&signature))
}

/// What an operator can do about `text`, a server's last words, where it has to do with who we are, which is `who`.
///
/// Source: nats-server, server/client.go and server/accounts.go, `sendErr` and its callers.
#[must_use]
pub fn advice(text: &str, who: Option<&Source>) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let says = |words: &str| text.contains(words);
    let name = who.map_or_else(|| "whoever connects without credentials".into(), ToString::to_string);
    if says("permissions violation for ") {
        Some(format!("allow it in the server's permissions for {name}"))
    } else if says("authentication expired") {
        Some(format!("put new credentials in the place of {name}; they are read at the next attempt"))
    } else if says("authentication revoked") {
        Some(format!("the server's operator has revoked {name}; give others"))
    } else if says("authentication timeout") {
        Some(
            "the server waited in vain for CONNECT: it, the network or this machine is overloaded, or its \
              authorization timeout is too short"
                .into(),
        )
    } else if says("authorization violation") && who.is_none() {
        Some("give credentials: --creds, --nkey-file, --user with --password-file, --token-file, or in the URL".into())
    } else if says("authorization violation") {
        Some(format!(
            "the server does not accept {name}: is that known to it, and neither expired nor revoked?"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use nats_wire::session::{Session, SessionConfig};
    use nats_wire::{ConnectOptions, Limits};
    use std::time::Duration;

    use super::*;

    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

    /// Source: the nkeys page of the NATS documentation has the pair.
    const PUBLIC_KEY: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn source(kind: Kind) -> Source {
        Source { kind, place: Place::File("/secrets/it".into()) }
    }

    /// What CONNECT says when the file holds `text` and the nonce is `abc`.
    fn connect(kind: Kind, text: &str) -> Result<ConnectOptions, String> {
        let sign_in = source(kind).sign_in(|path| {
            assert_eq!(path, Path::new("/secrets/it"));
            Ok(text.into())
        })?;
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: Duration::from_secs(1),
            ping_interval: Duration::from_secs(1),
            answer_max: Duration::from_secs(1),
            max_payload_at_least: 0,
        };
        let mut session = Session::new(config, Duration::ZERO).signing_in(sign_in);
        session.receive(b"INFO {\"nonce\":\"abc\"}\r\n").map_err(|fault| fault.to_string())?;
        let line = session.output().strip_prefix(b"CONNECT ").expect("it follows INFO");
        let end = line.iter().position(|byte| *byte == b'\r').expect("a line");
        Ok(ConnectOptions::parse(&line[..end]).expect("JSON"))
    }

    /// Why what the file holds is refused.
    fn refused(kind: Kind, text: &str) -> String {
        connect(kind, text).expect_err(text)
    }

    fn creds() -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\r\nhead.claims.signature\r\n------END NATS USER JWT------\r\n\n\
             ************************* IMPORTANT *************************\n\
             -----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn a_password_or_a_token_is_one_line() {
        for text in ["s3 cret", "s3 cret\n", "s3 cret\r\n"] {
            let options = connect(Kind::Password("ann".into()), text).expect("one line");
            assert_eq!(options.user.zip(options.pass), Some(("ann".into(), "s3 cret".into())));
            let options = connect(Kind::Token, text).expect("one line");
            assert_eq!(options.auth_token.as_deref(), Some("s3 cret"));
        }
        assert!(refused(Kind::Token, "\n").contains("expected one line, got nothing"));
        assert!(refused(Kind::Token, "a\nb").contains("expected one line, got 2"));
    }

    #[test]
    fn a_seed_signs_the_nonce_alone_or_decorated() {
        let key = KeyPair::from_seed(SEED).expect("a seed");
        for text in [SEED.to_owned(), format!("\n  {SEED}  \r\n"), creds()] {
            let options = connect(Kind::Nkey, &text).expect("a seed");
            assert_eq!(options.nkey.as_deref(), Some(PUBLIC_KEY));
            let signature = BASE64URL_NOPAD.decode(options.sig.expect("it is signed").as_bytes());
            key.verify(b"abc", &signature.expect("base64url")).expect("the nonce's");
        }
    }

    #[test]
    fn a_credentials_file_has_a_jwt_and_a_seed() {
        let options = connect(Kind::Creds, &creds()).expect("both");
        assert_eq!(options.jwt.as_deref(), Some("head.claims.signature"));
        assert!(options.sig.is_some() && options.nkey.is_none());
        assert!(refused(Kind::Creds, SEED).contains("expected a JWT"));
        assert!(
            refused(Kind::Creds, &creds().replace("SUA", "")).contains("expected a line with the nkey seed")
        );
        assert!(refused(Kind::Creds, &creds().replace('.', "")).contains("expected a JWT"));
    }

    #[test]
    fn what_is_refused_names_the_file_and_never_what_it_holds() {
        let damaged = SEED.replace("SUACSSL", "SUACSSM");
        let account = KeyPair::new_account().seed().expect("it has one");
        for text in ["", "hunter2", &damaged, &account, "SU", "SUé"] {
            for kind in [Kind::Nkey, Kind::Creds] {
                let error = refused(kind, text);
                assert!(error.contains("/secrets/it") && error.contains("expected"), "{error}");
                assert!(text.len() < 3 || !error.contains(text), "{error}");
            }
        }
        let missing = source(Kind::Creds).sign_in(|_| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(
            missing.expect_err("no file"),
            "cannot read the JWT and seed in /secrets/it: entity not found"
        );
    }

    #[test]
    fn no_debug_output_holds_a_secret() {
        let source = Source { kind: Kind::Token, place: Place::Url(Secret::from("s3cret".to_owned())) };
        let sign_in = source.sign_in(|_| unreachable!("it is in the URL")).expect("a token");
        let shown = format!("{source} {source:#?} {sign_in:?}");
        assert!(shown.contains("the token in the server's URL") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn advice_names_the_credentials_or_how_to_give_them() {
        let who = source(Kind::Password("ann".into()));
        for text in [
            "Authorization Violation",
            "User Authentication Expired",
            "User Authentication Revoked",
            "Permissions Violation for Publish to \"x\"",
        ] {
            let advice = advice(text, Some(&who)).expect(text);
            assert!(advice.contains("user `ann` with the password in /secrets/it"), "{advice}");
        }
        assert!(advice("'Authorization Violation'", None).is_some_and(|text| text.contains("--creds")));
        assert!(advice("Authentication Timeout", None).is_some());
        assert_eq!(advice("Stale Connection", Some(&who)), None);
    }
}
