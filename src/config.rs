//! Arguments to configuration: every setting with its unit, its default and the reason for it.
//!
//! Never: starting anything, asking the machine anything. What the machine allows is `preflight`'s.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use nats_wire::session::SessionConfig;
use nats_wire::{ConnectOptions, Limits, QueueGroup, Subject};

use crate::alarm::{Id, UserId};
use crate::credentials::{Kind, Place, Secret, Source};
use crate::durable::worker::{Names, WorkerConfig};
use crate::message::DIGEST_BYTES_MAX_AT_LEAST;
use crate::metrics::About;
use crate::servers::{Identity, Server, Tls};
use crate::shard::{ShardConfig, Subjects};

const EXAMPLES: &str = "\
Examples:
  alarm-digest --server nats.example:4222          one core on each CPU that this process may use
  alarm-digest --cpus 2-3 --spin 50us              two cores on CPUs that nobody else uses
  alarm-digest verify --server nats.example:4222   smoke test of what runs there
  alarm-digest state ann --json                    durable mode: what is known and told of user ann";

/// Tells users what is news to them about their alarms, in one digest, when asked to: reads AlarmStatusChanged and
/// SendAlarmDigest from NATS and publishes AlarmDigest, on one pinned core per CPU. Stops on SIGTERM or SIGINT once all
/// that has arrived is done; a second signal stops it at once.
#[derive(Parser, Clone, Debug)]
#[command(name = "alarm-digest", version = crate::VERSION_AND_COMMIT)]
#[command(max_term_width = 110, after_help = EXAMPLES, disable_help_flag = true)]
pub struct Cli {
    /// None: run the service.
    #[command(subcommand)]
    pub command: Option<Task>,
    /// For both.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// For the service.
    #[command(flatten)]
    pub run: RunArgs,
    /// For the service in durable mode.
    #[command(flatten)]
    pub jetstream: JetStreamArgs,
    /// Print help
    // The long form of clap's help takes four lines for what fits into one.
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// What to do instead of running the service.
#[derive(Subcommand, Clone, Debug)]
pub enum Task {
    /// Smoke test of a running service, this one or any other of the same contract: publishes alarms of a user that
    /// nobody has, asks for the digest and checks it. Prints `Smoke test passed` and exits with 0, or says what was
    /// expected and what came and exits with 1
    Verify {
        /// How long to wait for what must come.
        #[arg(
            long,
            value_name = "TIME",
            default_value = "10s",
            hide_env_values = true,
            env = "ALARM_DIGEST_TIMEOUT"
        )]
        #[arg(value_parser = parse_any_span)]
        timeout: Duration,
    },
    /// Durable mode: prints what is known and told of one user, from the bucket. Exits with 1 when nothing is known
    State {
        /// The user's id, as in UserID
        #[arg(value_parser = parse_user)]
        user: UserId,
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Shows all running instances and their cores: what they read and tell a second, what they hold, what waits. Until Ctrl-C;
    /// redrawn on a terminal, one table after another elsewhere
    Top {
        /// Time between two looks
        #[arg(long, value_name = "TIME", default_value = "2s")]
        #[arg(value_parser = parse_span)]
        interval: Duration,
        /// End after so many looks
        #[arg(long, value_name = "N")]
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        samples: Option<u64>,
    },
}

/// Where NATS is and what it calls things.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// Server, or several separated by commas: HOST, HOST:PORT, nats://HOST:PORT, tls://HOST:PORT where nothing but TLS will do,
    /// with USER:PASSWORD@ or TOKEN@ before HOST for this one alone
    #[arg(
        short,
        long,
        global = true,
        value_name = "URL",
        hide_env_values = true,
        env = "NATS_URL",
        default_value = "127.0.0.1:4222"
    )]
    #[arg(value_delimiter = ',')]
    server: Vec<Secret>,

    /// For servers whose URL has no credentials.
    #[command(flatten)]
    credentials: CredentialArgs,

    /// For all servers.
    #[command(flatten)]
    tls: TlsArgs,

    /// Subject of the status changes that come in
    #[arg(
        long,
        global = true,
        value_name = "SUBJECT",
        hide_env_values = true,
        env = "ALARM_DIGEST_SUBJECT_CHANGED"
    )]
    #[arg(default_value = "AlarmStatusChanged", value_parser = parse_subject)]
    pub subject_changed: String,

    /// Subject of the requests that come in
    #[arg(
        long,
        global = true,
        value_name = "SUBJECT",
        hide_env_values = true,
        env = "ALARM_DIGEST_SUBJECT_SEND"
    )]
    #[arg(default_value = "SendAlarmDigest", value_parser = parse_subject)]
    pub subject_send: String,

    /// Subject of the digests that go out
    #[arg(
        long,
        global = true,
        value_name = "SUBJECT",
        hide_env_values = true,
        env = "ALARM_DIGEST_SUBJECT_DIGEST"
    )]
    #[arg(default_value = "AlarmDigest", value_parser = parse_subject)]
    pub subject_digest: String,

    /// Subject of the copies of bad messages, with the reason in headers
    #[arg(
        long,
        global = true,
        value_name = "SUBJECT",
        hide_env_values = true,
        env = "ALARM_DIGEST_SUBJECT_REJECTED"
    )]
    #[arg(default_value = "AlarmDigest.rejected", value_parser = parse_subject)]
    pub subject_rejected: String,

    /// Longest wait for a connection and for its handshake
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_CONNECT_TIMEOUT",
        default_value = "5s"
    )]
    #[arg(value_parser = parse_span)]
    pub connect_timeout: Duration,
}

/// Who we are, at most one of these. A secret stands in a file or an environment variable, never on a command line, which
/// everybody on the machine can read.
#[derive(Args, Clone, Default, Debug)]
#[command(next_help_heading = "Signing in")]
struct CredentialArgs {
    /// User to sign in as, with --password-file or the password itself in ALARM_DIGEST_PASSWORD
    // With a name of its own, since it is global and `state` has a user too.
    #[arg(id = "sign_in_user", long = "user", global = true, value_name = "NAME")]
    #[arg(hide_env_values = true, env = "ALARM_DIGEST_USER")]
    user: Option<String>,

    /// File with the password of --user. Files with credentials are read at each connection
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        hide_env_values = true,
        env = "ALARM_DIGEST_PASSWORD_FILE"
    )]
    password_file: Option<PathBuf>,

    /// File with the token to sign in with; ALARM_DIGEST_TOKEN may have the token itself
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// File with the nkey seed to sign in with
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_NKEY_FILE")]
    nkey_file: Option<PathBuf>,

    /// Credentials file to sign in with: a JWT and an nkey seed, as nsc writes it
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_CREDS")]
    creds: Option<PathBuf>,
}

/// Any of these, and no server is spoken to without TLS. Files are read at each connection.
#[derive(Args, Clone, Default, Debug)]
#[command(next_help_heading = "TLS")]
struct TlsArgs {
    /// Require TLS, with a server certificate by one of the CAs in this PEM file instead of the system's
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_TLS_CA")]
    tls_ca: Option<PathBuf>,

    /// Require TLS, with this PEM file's certificate for servers that want one of us
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// PEM file with the key of --tls-cert
    #[arg(long, global = true, value_name = "FILE", hide_env_values = true, env = "ALARM_DIGEST_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// Require TLS, and begin with it, as servers with `handshake_first` want it
    #[arg(long, global = true, hide_env_values = true, env = "ALARM_DIGEST_TLS_FIRST")]
    tls_first: bool,
}

/// With the secret itself as their values.
const PASSWORD_VARIABLE: &str = "ALARM_DIGEST_PASSWORD";
const TOKEN_VARIABLE: &str = "ALARM_DIGEST_TOKEN";

/// How the service runs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Service")]
pub struct RunArgs {
    /// Where the state lives
    #[arg(
        long,
        value_name = "MODE",
        hide_env_values = true,
        env = "ALARM_DIGEST_MODE",
        default_value = "memory"
    )]
    pub mode: Mode,

    /// Number of cores, on the first CPUs that this process may use [default: all of them]
    #[arg(
        long,
        value_name = "N",
        hide_env_values = true,
        env = "ALARM_DIGEST_CORES",
        conflicts_with = "cpus"
    )]
    pub cores: Option<usize>,

    /// CPUs to pin a core to, like 0,2-3; a CPU named twice gets two
    #[arg(long, value_name = "LIST", hide_env_values = true, env = "ALARM_DIGEST_CPUS", value_parser = parse_cpus)]
    pub cpus: Option<CpuList>,

    /// Queue group that all cores subscribe in; one process per group, since state is not shared
    #[arg(
        long,
        value_name = "NAME",
        hide_env_values = true,
        env = "ALARM_DIGEST_QUEUE_GROUP",
        default_value = "alarm-digest"
    )]
    #[arg(value_parser = parse_queue_group)]
    pub queue_group: String,

    /// How long a cleared alarm is remembered; a change that arrives later than that may be told again
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_RETENTION",
        default_value = "24h"
    )]
    #[arg(value_parser = parse_any_span)]
    pub retention: Duration,

    /// In memory mode, answer a request at once, even if another core has not read yet what was published just before it
    #[arg(long, hide_env_values = true, env = "ALARM_DIGEST_EAGER")]
    pub eager: bool,

    /// Do not answer on $SRV, where `nats micro` and `alarm-digest top` look for instances
    #[arg(long, hide_env_values = true, env = "ALARM_DIGEST_NO_SERVICE_API")]
    pub no_service_api: bool,

    /// Exit with an error when no server answers at the start, instead of waiting for one
    #[arg(long, hide_env_values = true, env = "ALARM_DIGEST_NO_WAIT")]
    pub no_wait: bool,

    /// Longest time for finishing what has arrived after SIGTERM or SIGINT
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_DRAIN_TIMEOUT",
        default_value = "30s"
    )]
    #[arg(value_parser = parse_any_span)]
    pub drain_timeout: Duration,

    /// How long a core spins before it sleeps; only where it has its CPU for itself
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_SPIN",
        default_value = "0s"
    )]
    #[arg(value_parser = parse_any_span)]
    #[arg(help_heading = "Latency")]
    pub spin: Duration,

    /// While messages come densely, some 2,000 a second and core, how long a core lets them gather before it takes them
    /// together; 0s: never, as with --spin
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_COALESCE",
        default_value = "1ms"
    )]
    #[arg(value_parser = parse_coalesce)]
    #[arg(help_heading = "Latency")]
    pub coalesce: Duration,

    /// How a core sleeps: in one poll of its own, or in the executor's ring, which takes some nine system calls
    #[arg(
        long,
        value_name = "WHERE",
        hide_env_values = true,
        env = "ALARM_DIGEST_SLEEP",
        default_value = "poll"
    )]
    pub sleep: Sleep,

    /// Quiet for so long: ask the server whether it lives; as long again without an answer: reconnect
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_PING_INTERVAL",
        default_value = "10s"
    )]
    #[arg(value_parser = parse_span)]
    pub ping_interval: Duration,

    /// Longest wait between two attempts to connect; the first is 50 ms, each next one twice as long, less up to half
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_RECONNECT_DELAY_MAX",
        default_value = "2s"
    )]
    #[arg(value_parser = parse_span)]
    pub reconnect_delay_max: Duration,

    /// Bytes of output per core that hold back its input
    #[arg(long, value_name = "BYTES", hide_env_values = true, env = "ALARM_DIGEST_OUTPUT_BYTES_MAX", default_value_t = 4 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Limits")]
    pub output_bytes_max: u32,

    /// Bytes of digests per core that may wait for a lost link before its peers have to wait
    #[arg(long, value_name = "BYTES", hide_env_values = true, env = "ALARM_DIGEST_UNSETTLED_BYTES_MAX", default_value_t = 64 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Limits")]
    pub unsettled_bytes_max: u32,

    /// Messages waiting between two cores that hold back the input of the one that sends
    #[arg(long, value_name = "N", hide_env_values = true, env = "ALARM_DIGEST_MAIL_MAX", default_value_t = 16 << 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Limits")]
    pub mail_max: u32,

    /// Answer HTTP requests for /healthz, /readyz and /metrics on this address, like 127.0.0.1:9464; port 0: any
    #[arg(long, value_name = "ADDRESS", hide_env_values = true, env = "ALARM_DIGEST_HTTP", value_parser = parse_address)]
    pub http: Option<SocketAddr>,

    /// How log lines look; what is logged is set by RUST_LOG, `info` by default
    #[arg(
        long,
        value_name = "FORMAT",
        hide_env_values = true,
        env = "ALARM_DIGEST_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// Where the state lives.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In this process: fastest, one process per queue group, forgotten at its end.
    Memory,
    /// In NATS JetStream: any number of processes, and every accepted message survives any of them.
    Jetstream,
}

/// Streams, bucket and consumer.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "JetStream mode")]
pub struct JetStreamArgs {
    /// Begins the names of the streams NAME_IN, NAME_OUT and NAME_DEAD and of the bucket NAME_STATE
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        hide_env_values = true,
        env = "ALARM_DIGEST_JS_NAME",
        default_value = "AD"
    )]
    #[arg(value_parser = parse_name)]
    pub js_name: String,

    /// Prefix of the JetStream API, for a domain `$JS.DOMAIN.API` [default: $JS.API]
    #[arg(
        long,
        global = true,
        value_name = "SUBJECT",
        hide_env_values = true,
        env = "ALARM_DIGEST_JS_API_PREFIX"
    )]
    #[arg(value_parser = parse_subject)]
    pub js_api_prefix: Option<String>,

    /// Replicas of all that is created
    #[arg(
        long,
        value_name = "N",
        hide_env_values = true,
        env = "ALARM_DIGEST_JS_REPLICAS",
        default_value_t = 1
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=5))]
    pub js_replicas: u32,

    /// Bytes of messages that may wait to be done; publishers are refused beyond it
    #[arg(long, value_name = "BYTES", hide_env_values = true, env = "ALARM_DIGEST_JS_INPUT_BYTES_MAX")]
    #[arg(default_value_t = 1 << 30, value_parser = clap::value_parser!(i64).range(1..))]
    pub js_input_bytes_max: i64,

    /// Bytes of users' records
    #[arg(long, value_name = "BYTES", hide_env_values = true, env = "ALARM_DIGEST_JS_STATE_BYTES_MAX")]
    #[arg(default_value_t = 4 << 30, value_parser = clap::value_parser!(i64).range(1..))]
    pub js_state_bytes_max: i64,

    /// Bytes of digests that are kept
    #[arg(long, value_name = "BYTES", hide_env_values = true, env = "ALARM_DIGEST_JS_OUTPUT_BYTES_MAX")]
    #[arg(default_value_t = 4 << 30, value_parser = clap::value_parser!(i64).range(1..))]
    pub js_output_bytes_max: i64,

    /// How long digests are kept: longer than the longest outage, for they tell what was sent
    #[arg(long, value_name = "TIME", hide_env_values = true, env = "ALARM_DIGEST_JS_OUTPUT_AGE_MAX")]
    #[arg(default_value = "7d", value_parser = parse_span)]
    pub js_output_age_max: Duration,

    /// How long a message may be under way in one process before another one gets it
    #[arg(
        long,
        value_name = "TIME",
        hide_env_values = true,
        env = "ALARM_DIGEST_JS_ACK_WAIT",
        default_value = "30s"
    )]
    #[arg(value_parser = parse_span)]
    pub js_ack_wait: Duration,

    /// Messages under way in all processes together; an instance may hold up to some 14,000 a core
    #[arg(long, value_name = "N", hide_env_values = true, env = "ALARM_DIGEST_JS_ACK_PENDING_MAX")]
    #[arg(default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub js_ack_pending_max: u32,

    /// Users kept in memory by each core
    #[arg(long, value_name = "N", hide_env_values = true, env = "ALARM_DIGEST_JS_CACHED_USERS_MAX")]
    #[arg(default_value_t = 100_000)]
    pub js_cached_users_max: usize,

    /// Do each message where it arrives, instead of passing it on to the core that has its user in memory
    #[arg(long, hide_env_values = true, env = "ALARM_DIGEST_NO_AFFINITY")]
    pub no_affinity: bool,

    /// Use streams, bucket and consumer as they are; create and compare nothing
    #[arg(long, hide_env_values = true, env = "ALARM_DIGEST_NO_PROVISION")]
    pub no_provision: bool,
}

/// How a core sleeps.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// In one `poll` of its own.
    Poll,
    /// In the executor's ring.
    Executor,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl NatsArgs {
    /// The servers, in the order they are tried, each with what to sign in with there.
    ///
    /// Not read while parsing the command line, because clap's errors repeat what they refuse, and this may hold a
    /// password.
    ///
    /// # Errors
    /// When one of them is not a URL that we take, or it is not clear what to sign in with, or what to show.
    pub fn servers(&self) -> Result<Vec<Server>, String> {
        let credentials = self.credentials.source(|variable| std::env::var(variable).ok())?;
        let tls = self.tls.tls()?;
        let parse = |url: &Secret| Server::parse(url.reveal(), credentials.as_ref(), &tls);
        self.server.iter().map(|url| parse(url).map_err(|error| format!("--server: {error}"))).collect()
    }

    /// The four subjects.
    ///
    /// # Errors
    /// When two of them are the same: the service would read what it writes.
    pub fn subjects(&self) -> Result<Subjects, String> {
        let all = [&self.subject_changed, &self.subject_send, &self.subject_digest, &self.subject_rejected];
        let same = all.iter().enumerate().find(|(at, subject)| all[..*at].contains(subject));
        if let Some((_, subject)) = same {
            return Err(format!("expected four different subjects, got `{subject}` for two of them"));
        }
        let [changed, send, digest, rejected] = all.map(Clone::clone);
        Ok(Subjects { changed, send, digest, rejected })
    }

    /// How a connection named `name` is kept.
    #[must_use]
    pub fn session(&self, name: &str, ping_interval: Duration) -> SessionConfig {
        let connect = ConnectOptions {
            name: name.into(),
            version: crate::VERSION.into(),
            echo: false,
            ..ConnectOptions::default()
        };
        SessionConfig {
            connect,
            limits: Limits::client(),
            handshake_max: self.connect_timeout,
            ping_interval,
            answer_max: ping_interval,
            max_payload_at_least: DIGEST_BYTES_MAX_AT_LEAST as u64,
        }
    }
}

impl CredentialArgs {
    /// What to sign in with, if with anything. `variable` is the environment.
    fn source(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Source>, String> {
        let file = |path: &Option<PathBuf>| path.clone().map(Place::File);
        let value = |name| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some(Place::Variable(name, value.into()))
        };
        let password = || Kind::Password(self.user.clone().unwrap_or_default());
        let given: Vec<(&str, Source)> = [
            ("--password-file", password(), file(&self.password_file)),
            (PASSWORD_VARIABLE, password(), value(PASSWORD_VARIABLE)),
            ("--token-file", Kind::Token, file(&self.token_file)),
            (TOKEN_VARIABLE, Kind::Token, value(TOKEN_VARIABLE)),
            ("--nkey-file", Kind::Nkey, file(&self.nkey_file)),
            ("--creds", Kind::Creds, file(&self.creds)),
        ]
        .into_iter()
        .filter_map(|(name, kind, place)| Some((name, Source { kind, place: place? })))
        .collect();
        match given.as_slice() {
            [] if self.user.is_none() => Ok(None),
            [(_, source)] if matches!(source.kind, Kind::Password(_)) == self.user.is_some() => {
                Ok(Some(source.clone()))
            }
            [(name, _)] if self.user.is_none() => Err(format!("expected --user with {name}, got none")),
            [] | [_] => {
                let got = given.first().map_or("neither", |(name, _)| name);
                Err(format!("expected --password-file or {PASSWORD_VARIABLE} with --user, got {got}"))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                Err(format!("expected one way to sign in, got {}", names.join(" and ")))
            }
        }
    }
}

impl TlsArgs {
    fn tls(&self) -> Result<Tls, String> {
        let identity = match (self.tls_cert.clone(), self.tls_key.clone()) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (Some(_), None) => return Err("expected --tls-key with --tls-cert, got none".into()),
            (None, Some(_)) => return Err("expected --tls-cert with --tls-key, got none".into()),
        };
        let is_required = self.tls_first || self.tls_ca.is_some() || identity.is_some();
        Ok(Tls { is_required, is_first: self.tls_first, ca: self.tls_ca.clone(), identity, name: None })
    }
}

impl Cli {
    /// What every shard needs to know.
    ///
    /// # Errors
    /// When settings do not go together.
    pub fn shard_config(&self) -> Result<ShardConfig, String> {
        Ok(ShardConfig {
            subjects: self.nats.subjects()?,
            queue_group: self.run.queue_group.clone(),
            is_eager: self.run.eager,
            retention: self.run.retention,
            output_bytes_max: self.run.output_bytes_max as usize,
            unsettled_bytes_max: self.run.unsettled_bytes_max as usize,
            mail_max: self.run.mail_max as usize,
            session: self.nats.session("alarm-digest", self.run.ping_interval),
        })
    }
}

impl Cli {
    /// What the metrics say of the whole process.
    #[must_use]
    pub fn about(&self) -> About {
        About {
            version: crate::VERSION,
            commit: crate::COMMIT.unwrap_or("unknown"),
            mode: self.run.mode,
            subject_changed: self.nats.subject_changed.clone(),
            subject_send: self.nats.subject_send.clone(),
        }
    }

    /// What every worker needs to know.
    ///
    /// # Errors
    /// When settings do not go together.
    pub fn worker_config(&self) -> Result<WorkerConfig, String> {
        let Subjects { changed, send, digest, rejected } = self.nats.subjects()?;
        let name = &self.jetstream.js_name;
        Ok(WorkerConfig {
            names: Names {
                changed,
                send,
                digest,
                dead: rejected,
                input: format!("{name}_IN"),
                consumer: "digest".into(),
                bucket: format!("{name}_STATE"),
                output: format!("{name}_OUT"),
                dead_letters: format!("{name}_DEAD"),
                output_prefix: format!("{name}.out."),
                member_prefix: format!("{name}.member."),
                api_prefix: self.jetstream.js_api_prefix.clone(),
            },
            session: self.nats.session("alarm-digest", self.run.ping_interval),
            retention: self.run.retention,
            output_bytes_max: self.run.output_bytes_max as usize,
            batch: 1000,
            // Changes of one user that wait together are stored together: the more wait, the fewer stores.
            open_max: 8000,
            cached_users_max: self.jetstream.js_cached_users_max,
            request_timeout: self.nats.connect_timeout,
            affinity: !self.jetstream.no_affinity,
            // Whoever looks at the stream knows better.
            is_republished: true,
        })
    }
}

/// A subject stands in a header of each dead letter, which has to fit into the smallest payload we work with; a queue
/// group stands with one in a line that the server must take.
const SUBJECT_BYTES_MAX: usize = 256;

fn parse_subject(text: &str) -> Result<String, String> {
    if text.len() > SUBJECT_BYTES_MAX {
        return Err(format!("expected at most {SUBJECT_BYTES_MAX} bytes, got {}", text.len()));
    }
    Subject::new(text).map(|_| text.into()).map_err(|error| error.to_string())
}

/// Leaves room for `_STATE` in the longest name of a bucket.
const NAME_BYTES_MAX: usize = 194;

/// JetStream takes more in names; this much goes into file names and subjects everywhere.
fn parse_name(text: &str) -> Result<String, String> {
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("expected at most {NAME_BYTES_MAX} bytes, got {}", text.len()));
    }
    let is_name =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_name {
        Ok(text.into())
    } else {
        Err(format!("expected letters, digits, `-` and `_`, got `{text}`"))
    }
}

fn parse_user(text: &str) -> Result<UserId, String> {
    Id::new(text).map(UserId).map_err(|error| error.to_string())
}

fn parse_queue_group(text: &str) -> Result<String, String> {
    if text.len() > SUBJECT_BYTES_MAX {
        return Err(format!("expected at most {SUBJECT_BYTES_MAX} bytes, got {}", text.len()));
    }
    QueueGroup::new(text).map(|_| text.into()).map_err(|error| error.to_string())
}

/// Far beyond any use, and safe to be added to any time.
const SPAN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A core that gathers answers nobody meanwhile; a server waits for its PING's answer for seconds, not for a tenth of one.
const COALESCE_MAX: Duration = Duration::from_millis(100);

/// Digits of a number in a span, and bytes of a span: together far below the 2^64 seconds near which humantime 2.4 panics.
const SPAN_DIGITS_MAX: usize = 10;
const SPAN_BYTES_MAX: usize = 200;

/// A span that may be zero.
fn parse_any_span(text: &str) -> Result<Duration, String> {
    if text.len() > SPAN_BYTES_MAX {
        return Err(format!("expected at most {SPAN_BYTES_MAX} bytes, got {}", text.len()));
    }
    // Blanks within a number count for nothing.
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit() && !letter.is_whitespace());
    if numbers.any(|number| number.bytes().filter(u8::is_ascii_digit).count() > SPAN_DIGITS_MAX) {
        return Err(format!("expected numbers of at most {SPAN_DIGITS_MAX} digits, got {text}"));
    }
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if span > SPAN_MAX { Err(format!("expected at most 100 years, got {text}")) } else { Ok(span) }
}

fn parse_span(text: &str) -> Result<Duration, String> {
    let span = parse_any_span(text)?;
    if span < Duration::from_millis(1) { Err(format!("expected at least 1ms, got {text}")) } else { Ok(span) }
}

/// A span that a whole core may sleep without missing anything of importance.
fn parse_coalesce(text: &str) -> Result<Duration, String> {
    let span = parse_any_span(text)?;
    if span > COALESCE_MAX { Err(format!("expected at most 100ms, got {text}")) } else { Ok(span) }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("expected ADDRESS:PORT like 127.0.0.1:9464 or [::]:9464, got `{text}`"))
}

/// CPUs in the order given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(pub Vec<usize>);

/// Source: Linux `CPU_SETSIZE`, sched.h.
const CPUS_MAX: usize = 1024;

fn parse_cpus(list: &str) -> Result<CpuList, String> {
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
        _ => Err(format!("expected CPU numbers below {CPUS_MAX} like 0,2-3, got `{list}`")),
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("expected a range from low to high, got `{part}`"));
        }
        cpus.extend(first..=last);
    }
    Ok(CpuList(cpus))
}

/// Holds the parsers of values against what they promise: what is taken keeps its limits and is the same written another
/// way, and what is refused is told on one line.
///
/// # Panics
/// When one does not.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub fn check_parsers(text: &str) {
    let spans = [parse_any_span(text), parse_span(text), parse_coalesce(text)];
    for span in spans.iter().flatten() {
        let written = humantime::format_duration(*span).to_string();
        assert_eq!(parse_any_span(&written).as_ref(), Ok(span), "{text:?} is {written}");
    }
    let [any, at_least, at_most] = spans;
    assert!(any.as_ref().is_ok_and(|span| *span <= SPAN_MAX) || any.is_err());
    assert_eq!(at_least.is_ok(), any.as_ref().is_ok_and(|span| *span >= Duration::from_millis(1)));
    assert_eq!(at_most.is_ok(), any.as_ref().is_ok_and(|span| *span <= COALESCE_MAX));

    let cpus = parse_cpus(text);
    if let Ok(CpuList(cpus)) = &cpus {
        let written: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        assert_eq!(parse_cpus(&written.join(",")).as_ref(), Ok(&CpuList(cpus.clone())));
    }
    let texts = [parse_subject(text), parse_queue_group(text), parse_name(text)];
    for taken in texts.iter().flatten() {
        assert!(
            taken == text && taken.len() <= SUBJECT_BYTES_MAX && !taken.contains([' ', '\t', '\r', '\n'])
        );
    }
    let user = parse_user(text);
    assert!(user.iter().all(|user| user.0.with_text(|user| user == text)));
    let refusals = [any.err(), at_least.err(), at_most.err(), cpus.err(), user.err()];
    for refusal in refusals.into_iter().flatten().chain(texts.into_iter().filter_map(Result::err)) {
        assert!(!refusal.is_empty(), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_mean_the_same_written_another_way() {
        for text in
            ["", "1h 5m", "100years", "101years", "0s", "1us", "0-3,7", "3-1", "a.b", "a b", ">", "\u{a0}"]
        {
            check_parsers(text);
        }
    }

    #[test]
    fn a_span_beyond_all_spans_is_refused() {
        for text in
            ["18446744073709551615s1000ms", "1 8446744073709551615s 1000ms", &"9999999999years".repeat(60)]
        {
            let refused = parse_any_span(text).expect_err(text);
            assert!(refused.starts_with("expected"), "{refused}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    /// What to sign in with, given these arguments, and one environment variable for each `NAME=VALUE` among them.
    fn credentials(arguments: &str) -> Result<String, String> {
        let is_variable = |word: &&str| word.starts_with("ALARM_DIGEST_");
        let (variables, arguments): (Vec<&str>, Vec<&str>) =
            arguments.split_whitespace().partition(is_variable);
        let cli = Cli::try_parse_from(std::iter::once("alarm-digest").chain(arguments));
        let value = |name: &str| {
            variables.iter().find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        };
        let source = cli.map_err(|error| error.to_string())?.nats.credentials.source(value)?;
        assert!(!format!("{source:?}").contains("s3cret"), "{source:?}");
        Ok(source.map_or_else(|| "none".into(), |source| source.to_string()))
    }

    #[test]
    fn there_is_one_way_to_sign_in() {
        for (arguments, expected) in [
            ("", "none"),
            ("ALARM_DIGEST_TOKEN=", "none"),
            ("--user ann --password-file f", "user `ann` with the password in f"),
            (
                "--user ann ALARM_DIGEST_PASSWORD=s3cret",
                "user `ann` with the password in ALARM_DIGEST_PASSWORD",
            ),
            ("--token-file f", "the token in f"),
            ("ALARM_DIGEST_TOKEN=s3cret", "the token in ALARM_DIGEST_TOKEN"),
            ("--nkey-file f", "the nkey seed in f"),
            ("--creds f", "the JWT and seed in f"),
        ] {
            assert_eq!(credentials(arguments), Ok(expected.into()), "{arguments}");
        }
        for (arguments, expected) in [
            ("--user ann", "expected --password-file or ALARM_DIGEST_PASSWORD with --user, got neither"),
            (
                "--user ann --creds f",
                "expected --password-file or ALARM_DIGEST_PASSWORD with --user, got --creds",
            ),
            ("--password-file f", "expected --user with --password-file, got none"),
            ("ALARM_DIGEST_PASSWORD=s3cret", "expected --user with ALARM_DIGEST_PASSWORD, got none"),
            ("--creds f --nkey-file g", "expected one way to sign in, got --nkey-file and --creds"),
            (
                "--user ann --password-file f ALARM_DIGEST_PASSWORD=s3cret",
                "expected one way to sign in, got --password-file and ALARM_DIGEST_PASSWORD",
            ),
        ] {
            assert_eq!(credentials(arguments), Err(expected.into()), "{arguments}");
        }
    }

    #[test]
    fn any_flag_of_tls_requires_it() {
        let tls = |arguments: &str| {
            let cli =
                Cli::try_parse_from(std::iter::once("alarm-digest").chain(arguments.split_whitespace()));
            cli.map_err(|error| error.to_string())?.nats.tls.tls()
        };
        assert_eq!(tls(""), Ok(Tls::default()));
        for arguments in ["--tls-ca f", "--tls-cert f --tls-key g", "--tls-first"] {
            assert!(tls(arguments).is_ok_and(|tls| tls.is_required), "{arguments}");
        }
        for (arguments, expected) in [
            ("--tls-cert f", "expected --tls-key with --tls-cert, got none"),
            ("--tls-key f --tls-ca g", "expected --tls-cert with --tls-key, got none"),
        ] {
            assert_eq!(tls(arguments), Err(expected.into()));
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        for url in ["nats://user:s3cret@host:x", "nats://user:s3cret@host"] {
            let cli = Cli::try_parse_from(["alarm-digest", "--server", url]).expect("it is read later");
            let shown = format!("{cli:?} {:?}", cli.nats.servers());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn cpus_are_numbers_and_ranges() {
        assert_eq!(parse_cpus("0,2-3,0"), Ok(CpuList(vec![0, 2, 3, 0])));
        for list in ["", "a", "1-", "-1", "3-1", "0,,1", "1024"] {
            assert!(parse_cpus(list).is_err(), "{list}");
        }
    }

    #[test]
    fn every_js_name_that_is_taken_makes_a_name_of_a_bucket() {
        let parse = |name: &str| Cli::try_parse_from(["alarm-digest", "--js-name", name]);
        let config =
            parse(&"a".repeat(NAME_BYTES_MAX)).expect("a name").worker_config().expect("a configuration");
        assert!(nats_wire::jetstream::Bucket::new(&config.names.bucket).is_ok());
        for bad in ["", "a.b", "a b", "ä", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_service_does_not_read_what_it_writes() {
        let subjects = |arguments: &[&str]| {
            Cli::try_parse_from(["alarm-digest"].iter().chain(arguments))
                .map_err(|error| error.to_string())?
                .nats
                .subjects()
        };
        assert!(subjects(&[]).is_ok());
        assert!(subjects(&["--subject-digest", "SendAlarmDigest"]).is_err());
        for bad in ["", "a b", "a..b", "*", "a.>"] {
            assert!(subjects(&["--subject-changed", bad]).is_err(), "{bad}");
        }
    }
}
