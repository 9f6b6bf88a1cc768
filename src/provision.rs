//! Makes the streams, the bucket and the consumer of the durable mode, or looks whether those that are there will do.
//!
//! What decides over loss or repetition must be as we need it. A stream that only has to be told so is told; otherwise the
//! start is refused. Sizes, ages and replicas are the operator's: a difference there is said and left alone.
//!
//! Never: deleting anything.

use std::time::Duration;

use alarm_digest::config::{Cli, JetStreamArgs};
use alarm_digest::durable::worker::{Names, WorkerConfig};
use anyhow::{Context, Error, Result, anyhow, bail};
use nats_wire::jetstream::{
    AckPolicy, Bucket, ConfigMap, ConsumerAction, ConsumerConfig, ConsumerInfo, DeliverPolicy, Difference,
    Discard, Failure, Release, Republish, Retention, Storage, StreamConfig, StreamInfo, set_among,
};
use tracing::{info, warn};

use crate::ask::{Asker, client, explain, name_of};

/// A three-node cluster takes seconds to make its first stream.
const PATIENCE: Duration = Duration::from_secs(20);

/// The oldest server that the durable mode was tried on.
const RELEASE_MIN: Release = Release { major: 2, minor: 9, patch: 10 };

/// Older ones are known to lose what they have acknowledged.
const RELEASE_SAFE: Release = Release { major: 2, minor: 12, patch: 0 };

/// Members that an operator may have set otherwise.
const OPERATORS: [&str; 8] = [
    "max_bytes",
    "max_age",
    "num_replicas",
    "duplicate_window",
    "ack_wait",
    "max_ack_pending",
    "max_waiting",
    "description",
];

/// Members that no stream of ours may set: what we publish would not be acknowledged, taken, found, or kept.
const NO_STREAM_HAS: [&str; 7] =
    ["no_ack", "max_msg_size", "sealed", "mirror", "sources", "subject_transform", "persist_mode"];

/// Members that our consumer may not set: messages would come without what they say, or never, or it would vanish.
const NO_CONSUMER_HAS: [&str; 5] =
    ["headers_only", "filter_subject", "filter_subjects", "deliver_subject", "inactive_threshold"];

/// Waits for a server that can, unless `--no-wait` is given, and provisions on it. Returns whether the output stream is
/// republished.
pub fn provision(cli: &Cli, config: &WorkerConfig) -> Result<bool> {
    let mut said = String::new();
    loop {
        let error = match client(&cli.nats, "alarm-digest provision", cli.run.ping_interval) {
            Ok((server, client)) => {
                let mut provisioner = Provisioner { asker: Asker::new(client, &config.names, PATIENCE) };
                match provisioner.run(cli, config).with_context(|| format!("on {server}")) {
                    Err(error) if provisioner.asker.is_unanswered() || is_for_now(&error) => error,
                    result => return result,
                }
            }
            Err(error) => error,
        };
        if cli.run.no_wait {
            return Err(error);
        }
        let text = format!("{error:#}");
        if text != said {
            warn!("cannot start yet, trying on: {text}");
            said = text;
        }
        std::thread::sleep(cli.run.reconnect_delay_max);
    }
}

/// As of a cluster that has no leader yet.
fn is_for_now(error: &Error) -> bool {
    error.downcast_ref().and_then(Failure::api).is_some_and(|error| error.is_for_now())
}

struct Provisioner {
    asker: Asker,
}

/// A stream as it has to be.
struct Wanted<'a> {
    name: &'a str,
    config: StreamConfig,
    /// Members that it may not set, beside [`NO_STREAM_HAS`].
    unset: &'static [&'static str],
    /// Says how large it is made.
    flag: &'static str,
    /// What removing it costs.
    removed: &'static str,
}

impl Wanted<'_> {
    fn differences(&self, found: &ConfigMap) -> Vec<Difference> {
        let mut differences = self.config.differences(found);
        differences.extend(set_among(found, &NO_STREAM_HAS));
        differences.extend(set_among(found, self.unset));
        differences
    }

    fn refuse(&self, refused: &[Difference]) -> Result<()> {
        if refused.is_empty() {
            return Ok(());
        }
        let (name, removed) = (self.name, self.removed);
        bail!(
            "it is there with settings that would lose or repeat alarms: {}. Change them (nats stream edit {name}), or give \
             another --js-name; to remove it {removed}",
            list(refused)
        )
    }
}

impl Provisioner {
    fn run(&mut self, cli: &Cli, config: &WorkerConfig) -> Result<bool> {
        let info = self.asker.session().info().expect("the handshake is over").clone();
        let release =
            Release::of(&info).with_context(|| format!("expected a version, got {}", info.version))?;
        if release < RELEASE_MIN {
            bail!("expected nats-server {RELEASE_MIN} or newer for --mode jetstream, got {release}");
        }
        let names = &config.names;
        let is_republished = if cli.jetstream.no_provision {
            self.look_at_output(names, release)?
        } else {
            self.provision(names, &cli.jetstream, release)?
        };
        if release < RELEASE_SAFE {
            warn!(
                "nats-server {release} is known to lose data that it has acknowledged: take {RELEASE_SAFE} or newer for \
                 anything that matters, see Servers in docs/jetstream.md"
            );
        }
        Ok(is_republished)
    }

    fn provision(&mut self, names: &Names, args: &JetStreamArgs, release: Release) -> Result<bool> {
        let bucket = format!("KV_{}", names.bucket);
        let streams = [
            Wanted {
                name: &names.input,
                config: input(names, args),
                unset: &["max_age", "max_msgs_per_subject"],
                flag: "--js-input-bytes-max",
                removed: "loses all messages that wait in it",
            },
            Wanted {
                name: &bucket,
                config: state(names, args),
                unset: &["max_age"],
                flag: "--js-state-bytes-max",
                removed: "loses what is known and told of all users",
            },
            Wanted {
                name: &names.dead_letters,
                config: dead_letters(names, args),
                unset: &[],
                flag: "--js-input-bytes-max",
                removed: "loses the dead letters",
            },
            Wanted {
                name: &names.output,
                config: output(names, args, release),
                unset: &["max_msgs_per_subject"],
                flag: "--js-output-bytes-max",
                removed: "loses the digests that nobody has read yet, and may repeat the last ones",
            },
        ];
        let mut is_republished_now = false;
        for wanted in &streams {
            let config = self.stream(wanted).with_context(|| format!("stream {}", wanted.name))?;
            // That of the last one counts.
            is_republished_now = is_republished(&config, names);
        }
        self.consumer(names, args)
            .with_context(|| format!("consumer {} of {}", names.consumer, names.input))?;
        Ok(is_republished_now)
    }

    /// Without `--no-provision` we would know; with it we may not be allowed to ask.
    fn look_at_output(&mut self, names: &Names, release: Release) -> Result<bool> {
        match self.info(&names.output) {
            Ok(found) => Ok(is_republished(&found.config, names)),
            Err(Failure::Api(error)) if error.is_for_now() => Err(explain(Failure::Api(error))),
            Err(failure) if self.asker.is_unanswered() => Err(explain(failure)),
            Err(failure) => {
                let assumed = release.has_republish_to_one();
                let (output, digest) = (&names.output, &names.digest);
                let text = if assumed { "it is" } else { "it is not, and publishing each digest there too" };
                warn!(
                    "cannot see whether {output} is republished to {digest}, assuming that {text}: {failure}"
                );
                Ok(assumed)
            }
        }
    }

    fn info(&mut self, stream: &str) -> Result<StreamInfo, Failure> {
        self.asker.ask("a stream", |jetstream, session| {
            jetstream.stream_info(session, name_of(stream), (), Duration::ZERO);
        })
    }

    /// The configuration with which it is there.
    fn stream(&mut self, wanted: &Wanted<'_>) -> Result<ConfigMap> {
        let stream = name_of(wanted.name);
        let created = self.asker.ask::<StreamInfo>("a stream", |jetstream, session| {
            jetstream.stream_create(session, stream, &wanted.config, (), Duration::ZERO);
        });
        match created {
            Ok(made) => Ok(made.config),
            Err(Failure::Api(error)) if error.is_already_in_use() => {
                let found = self.info(wanted.name).map_err(explain)?;
                self.accept(wanted, found.config)
            }
            // Perhaps by this very stream, which somebody else is making at the same time: so 2.9.
            Err(Failure::Api(error)) if error.is_subject_taken() => match self.info(wanted.name) {
                Ok(found) => self.accept(wanted, found.config),
                Err(_) => Err(explain(Failure::Api(error))),
            },
            Err(Failure::Api(error)) if error.is_full() => {
                let (flag, bytes) = (wanted.flag, wanted.config.max_bytes.unwrap_or_default());
                Err(anyhow!(
                    "{error}: it is to have {bytes} bytes. Make that less with {flag}, or max_file_store of the server more, \
                     or what the account may have"
                ))
            }
            Err(failure) => Err(explain(failure)),
        }
    }

    /// Uses it as it is, after it was told what it only has to be told.
    fn accept(&mut self, wanted: &Wanted<'_>, mut found: ConfigMap) -> Result<ConfigMap> {
        let name = wanted.name;
        let (operators, others): (Vec<_>, Vec<_>) =
            wanted.differences(&found).into_iter().partition(is_operators);
        say_operators(name, &operators);
        let (updates, refused): (Vec<_>, Vec<_>) = others.into_iter().partition(can_be_told);
        wanted.refuse(&refused)?;
        if updates.is_empty() {
            return Ok(found);
        }
        for Difference { member, wanted, .. } in &updates {
            if wanted.is_null() {
                found.remove(member);
            } else {
                found.insert(member.clone(), wanted.clone());
            }
        }
        let updated = self.asker.ask::<StreamInfo>("a stream", |jetstream, session| {
            jetstream.stream_update(session, name_of(name), &found, (), Duration::ZERO);
        });
        let updated = updated.map_err(|failure| {
            explain(failure)
                .context(format!("cannot change what would lose or repeat alarms: {}", list(&updates)))
        })?;
        // An old server drops what it does not know, and says nothing.
        let left: Vec<_> =
            wanted.differences(&updated.config).into_iter().filter(|left| !is_operators(left)).collect();
        wanted.refuse(&left)?;
        warn!("stream {name} was changed: {}", list(&updates));
        if updates.iter().any(|update| update.member == "republish") {
            warn!("instances that were started before publish each digest too: restart them");
        }
        Ok(updated.config)
    }

    fn consumer(&mut self, names: &Names, args: &JetStreamArgs) -> Result<()> {
        let wanted = ConsumerConfig {
            deliver_policy: Some(DeliverPolicy::All),
            ack_policy: Some(AckPolicy::Explicit),
            ack_wait: Some(args.js_ack_wait),
            max_ack_pending: Some(args.js_ack_pending_max.into()),
            // A message over its limit would stay in a work queue for ever, and nobody would see it.
            max_deliver: Some(-1),
            max_waiting: Some(2048),
            ..ConsumerConfig::default()
        };
        let (stream, consumer) = (name_of(&names.input), name_of(&names.consumer));
        let found = self.asker.ask::<ConsumerInfo>("a consumer", |jetstream, session| {
            jetstream.consumer_info(session, stream, consumer, (), Duration::ZERO);
        });
        match found {
            Ok(found) => {
                let mut differences = wanted.differences(&found.config);
                differences.extend(set_among(&found.config, &NO_CONSUMER_HAS));
                let (operators, refused): (Vec<_>, Vec<_>) = differences.into_iter().partition(is_operators);
                say_operators(&names.consumer, &operators);
                if refused.is_empty() {
                    return Ok(());
                }
                bail!(
                    "it is there with settings that would lose or repeat alarms: {}. Change them (nats consumer edit), or \
                     remove it (nats consumer rm): what waits in the queue stays there",
                    list(&refused)
                )
            }
            Err(Failure::Api(error)) if error.is_consumer_not_found() => {
                let action = ConsumerAction::CreateOrUpdate;
                let created = self.asker.ask::<ConsumerInfo>("a consumer", |jetstream, session| {
                    jetstream.consumer_create(session, stream, consumer, &wanted, action, (), Duration::ZERO);
                });
                created.map(drop).map_err(explain)
            }
            Err(failure) => Err(explain(failure)),
        }
    }
}

/// Whether each digest that is stored goes to `AlarmDigest` by itself.
fn is_republished(output: &ConfigMap, names: &Names) -> bool {
    let republish = output.get("republish");
    republish.is_some_and(|to| to["dest"] == names.digest && to["headers_only"] != true)
}

fn is_operators(difference: &Difference) -> bool {
    OPERATORS.contains(&difference.member.as_str()) && !difference.wanted.is_null()
}

/// Whether an update takes it away, deletes nothing, and cannot be meant otherwise.
fn can_be_told(Difference { member, wanted, found, .. }: &Difference) -> bool {
    match member.as_str() {
        "max_age" | "max_msg_size" | "max_msgs_per_subject" | "no_ack" => wanted.is_null(),
        "discard" => wanted == "new",
        "allow_direct" => true,
        // As a server before 2.10 had it made.
        "republish" => found.is_null(),
        _ => false,
    }
}

fn say_operators(name: &str, differences: &[Difference]) {
    for difference in differences {
        info!("{name} is used as it is, with another {difference}");
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A work queue: what is in it is what is to be done, and publishers are refused rather than anything deleted.
fn input(names: &Names, args: &JetStreamArgs) -> StreamConfig {
    StreamConfig {
        subjects: vec![names.changed.clone(), names.send.clone()],
        retention: Some(Retention::WorkQueue),
        storage: Some(Storage::File),
        discard: Some(Discard::New),
        max_bytes: Some(args.js_input_bytes_max),
        num_replicas: Some(args.js_replicas),
        ..StreamConfig::default()
    }
}

fn state(names: &Names, args: &JetStreamArgs) -> StreamConfig {
    let bucket = Bucket::new(&names.bucket).expect("checked with the configuration");
    StreamConfig {
        storage: Some(Storage::File),
        max_bytes: Some(args.js_state_bytes_max),
        num_replicas: Some(args.js_replicas),
        ..bucket.config()
    }
}

fn output(names: &Names, args: &JetStreamArgs, release: Release) -> StreamConfig {
    let subjects = format!("{}*", names.output_prefix);
    let republish = Republish { src: subjects.clone(), dest: names.digest.clone(), headers_only: false };
    StreamConfig {
        subjects: vec![subjects],
        retention: Some(Retention::Limits),
        storage: Some(Storage::File),
        discard: Some(Discard::New),
        max_bytes: Some(args.js_output_bytes_max),
        max_age: Some(args.js_output_age_max),
        num_replicas: Some(args.js_replicas),
        allow_direct: Some(true),
        // Older servers cannot; there the worker publishes it after its own.
        republish: release.has_republish_to_one().then_some(republish),
        ..StreamConfig::default()
    }
}

fn dead_letters(names: &Names, args: &JetStreamArgs) -> StreamConfig {
    StreamConfig {
        subjects: vec![names.dead.clone()],
        retention: Some(Retention::Limits),
        storage: Some(Storage::File),
        discard: Some(Discard::Old),
        max_bytes: Some(args.js_input_bytes_max),
        max_age: Some(Duration::from_secs(30 * 24 * 3600)),
        num_replicas: Some(args.js_replicas),
        ..StreamConfig::default()
    }
}
