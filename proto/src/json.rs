//! INFO and CONNECT as typed structs. Members that are not here are ignored when read.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// What a server says of itself in INFO. A member that is missing has its type's default: `false`, 0, empty or `None`.
///
/// Source: nats-server, server/server.go, `Info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ServerInfo {
    /// Public key of the server, unique.
    #[serde(deserialize_with = "or_default")]
    pub server_id: String,
    /// Name of the server; its id unless configured.
    #[serde(deserialize_with = "or_default")]
    pub server_name: String,
    /// Version of the server, such as `2.15.1`.
    #[serde(deserialize_with = "or_default")]
    pub version: String,
    /// The Go that built it.
    #[serde(deserialize_with = "or_default")]
    pub go: String,
    /// Address it listens on, often `0.0.0.0`.
    #[serde(deserialize_with = "or_default")]
    pub host: String,
    /// Port it listens on.
    #[serde(deserialize_with = "or_default")]
    pub port: u16,
    /// Whether HPUB and HMSG may be used.
    #[serde(deserialize_with = "or_default")]
    pub headers: bool,
    /// Largest payload that it accepts, headers included, in bytes.
    #[serde(deserialize_with = "or_default")]
    pub max_payload: u64,
    /// Version of the protocol: 1 means that INFO can come at any time.
    #[serde(deserialize_with = "or_default")]
    pub proto: i64,
    /// Number of this connection.
    #[serde(deserialize_with = "or_default")]
    pub client_id: u64,
    /// Address from which it sees this connection come.
    #[serde(deserialize_with = "or_default")]
    pub client_ip: String,
    /// Whether CONNECT must carry credentials.
    #[serde(deserialize_with = "or_default")]
    pub auth_required: bool,
    /// Whether the connection must be upgraded to TLS now.
    #[serde(deserialize_with = "or_default")]
    pub tls_required: bool,
    /// Whether the client must show a certificate.
    #[serde(deserialize_with = "or_default")]
    pub tls_verify: bool,
    /// Whether the connection may be upgraded to TLS.
    #[serde(deserialize_with = "or_default")]
    pub tls_available: bool,
    /// What to sign for the `sig` of CONNECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Where else to connect, as `host:port`, IPv6 in brackets: the servers of the cluster.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    /// The same for WebSocket.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ws_connect_urls: Vec<String>,
    /// Lame duck mode: the server is about to close this connection; go elsewhere.
    #[serde(deserialize_with = "or_default")]
    pub ldm: bool,
    /// Whether JetStream is enabled.
    #[serde(deserialize_with = "or_default")]
    pub jetstream: bool,
    /// Name of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// JetStream domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Whether this INFO followed CONNECT and describes the connection.
    #[serde(deserialize_with = "or_default")]
    pub connect_info: bool,
    /// The account that the connection belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_account: Option<String>,
}

impl ServerInfo {
    /// Parses the argument of INFO.
    ///
    /// # Errors
    /// If it is not a JSON object, or a member has another type than nats-server gives it.
    pub fn parse(json: &[u8]) -> Result<Self, JsonError> {
        parse_object(json)
    }

    /// The JSON to send, on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and lists of strings always serialise")
    }
}

/// What a client says of itself in CONNECT.
///
/// The default is what this crate suggests: headers, the newest protocol, no +OK for every operation. When a member is
/// missing from the JSON of a client, nats-server takes `verbose`, `pedantic` and `echo` to be true, and so does
/// [`parse`](Self::parse).
///
/// `Debug` shows neither password, token, JWT nor signature.
///
/// Source: nats-server, server/client.go, `ClientOpts`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectOptions {
    /// Whether the server answers every operation with +OK.
    #[serde(default = "yes")]
    pub verbose: bool,
    /// Whether the server checks subjects more strictly.
    #[serde(default = "yes")]
    pub pedantic: bool,
    /// Whether the server delivers our own messages to us.
    #[serde(default = "yes")]
    pub echo: bool,
    /// Whether the client insists on TLS.
    #[serde(default)]
    pub tls_required: bool,
    /// Whether the client understands headers: HPUB may be sent, HMSG may come.
    #[serde(default)]
    pub headers: bool,
    /// Whether a request that nobody serves is answered with status 503. Needs `headers`.
    #[serde(default)]
    pub no_responders: bool,
    /// 1 if INFO may come at any time, 0 if not.
    #[serde(default)]
    pub protocol: i64,
    /// Name of the connection, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Language of the client.
    #[serde(default)]
    pub lang: String,
    /// Version of the client.
    #[serde(default)]
    pub version: String,
    /// User name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    /// Token, instead of user and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    /// User JWT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<String>,
    /// Public key of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nkey: Option<String>,
    /// The server's nonce, signed with the user's seed: base64url of the ed25519 signature, without padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sig: Option<String>,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All members by name, so that a new one cannot be forgotten here.
        let Self {
            verbose,
            pedantic,
            echo,
            tls_required,
            headers,
            no_responders,
            protocol,
            name,
            lang,
            version,
            user,
            pass,
            auth_token,
            jwt,
            nkey,
            sig,
        } = self;
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "…");
        f.debug_struct("ConnectOptions")
            .field("verbose", verbose)
            .field("pedantic", pedantic)
            .field("echo", echo)
            .field("tls_required", tls_required)
            .field("headers", headers)
            .field("no_responders", no_responders)
            .field("protocol", protocol)
            .field("name", name)
            .field("lang", lang)
            .field("version", version)
            .field("user", user)
            .field("pass", &hidden(pass))
            .field("auth_token", &hidden(auth_token))
            .field("jwt", &hidden(jwt))
            .field("nkey", nkey)
            .field("sig", &hidden(sig))
            .finish()
    }
}

/// Go takes `null` for a member that is missing; so must we.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    value: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

const fn yes() -> bool {
    true
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            verbose: false,
            pedantic: false,
            echo: true,
            tls_required: false,
            headers: true,
            no_responders: true,
            protocol: 1,
            name: String::new(),
            lang: "rust".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            user: None,
            pass: None,
            auth_token: None,
            jwt: None,
            nkey: None,
            sig: None,
        }
    }
}

impl ConnectOptions {
    /// Parses the argument of CONNECT.
    ///
    /// # Errors
    /// If it is not a JSON object, or a member has another type than nats-server gives it.
    pub fn parse(json: &[u8]) -> Result<Self, JsonError> {
        parse_object(json)
    }

    /// The JSON to send, on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and flags always serialise")
    }
}

/// Derived code would also take an array of the members' values.
fn parse_object<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, JsonError> {
    match json.trim_ascii_start() {
        [b'{', ..] => serde_json::from_slice(json).map_err(JsonError),
        _ => Err(JsonError(serde::de::Error::custom("expected an object"))),
    }
}

/// The JSON of INFO or CONNECT is not what it should be.
#[derive(Debug)]
pub struct JsonError(serde_json::Error);

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for JsonError {}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn an_info_is_read_and_what_is_unknown_is_ignored() {
        let info = ServerInfo::parse(
            br#"{"server_id":"N","version":"2.15.1","proto":1,"port":4222,"headers":true,"max_payload":1048576,
                "connect_urls":["10.0.0.1:4222","[::1]:4222"],"ldm":true,"nonce":"abc","zzz":{"a":[1,null]}}"#,
        )
        .unwrap();
        assert_eq!((info.max_payload, info.headers, info.ldm, info.port), (1 << 20, true, true, 4222));
        assert_eq!(info.connect_urls, ["10.0.0.1:4222", "[::1]:4222"]);
        assert_eq!(info.nonce.as_deref(), Some("abc"));
        assert_eq!(ServerInfo::parse(info.to_json().as_bytes()).unwrap(), info);
    }

    #[test]
    fn null_is_read_as_missing_and_never_written() {
        let info = ServerInfo::parse(
            br#"{"server_id":null,"connect_urls":null,"ldm":null,"nonce":null,"port":null}"#,
        );
        let info = info.unwrap();
        assert_eq!(info, ServerInfo::default());
        // async-nats refuses an INFO with a nonce of null.
        let json = info.to_json();
        assert!(
            !json.contains("null") && !json.contains("nonce") && !json.contains("connect_urls"),
            "{json}"
        );
        assert!(!ConnectOptions::default().to_json().contains("null"));
    }

    #[test]
    fn what_a_client_leaves_out_is_true_where_nats_server_says_so() {
        let options = ConnectOptions::parse(b"{}").unwrap();
        assert_eq!((options.verbose, options.pedantic, options.echo), (true, true, true));
        assert_eq!((options.headers, options.no_responders, options.protocol), (false, false, 0));
    }

    #[test]
    fn what_is_written_is_one_line_and_reads_the_same() {
        let options = ConnectOptions { name: "a\r\nb\u{2028}".into(), ..ConnectOptions::default() };
        let json = options.to_json();
        assert!(crate::JsonLine::new(&json).is_ok());
        assert_eq!(ConnectOptions::parse(json.as_bytes()).unwrap(), options);
        assert!(!json.contains("auth_token"));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secret = || Some("s3cret".into());
        let options = ConnectOptions {
            user: Some("ann".into()),
            pass: secret(),
            auth_token: secret(),
            jwt: secret(),
            sig: secret(),
            ..ConnectOptions::default()
        };
        let shown = alloc::format!("{options:#?}");
        assert!(shown.contains("ann") && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn bad_json_is_an_error_with_its_place() {
        assert!(ServerInfo::parse(b"").is_err());
        assert!(ServerInfo::parse(b"[]").is_err());
        let error = ConnectOptions::parse(br#"{"verbose":1}"#).unwrap_err().to_string();
        assert!(error.contains("line 1 column"), "{error}");
    }
}
