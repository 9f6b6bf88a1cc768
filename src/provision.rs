//! Makes the streams, the bucket and the consumer of the durable mode, or looks whether those that are there will do.
//!
//! What decides over loss or repetition must be as we need it, or the start is refused. Sizes, ages and replicas are the
//! operator's: a difference there is said and left alone.
//!
//! Never: deleting anything.

use std::time::Duration;

use alarm_digest::config::{Cli, JetStreamArgs};
use alarm_digest::durable::worker::{Names, WorkerConfig};
use anyhow::{Context, Result, bail};
use nats_wire::jetstream::{
    AckPolicy, Bucket, ConsumerAction, ConsumerConfig, ConsumerInfo, DeliverPolicy, Difference, Discard,
    Failure, Release, Republish, Retention, Storage, StreamConfig, StreamInfo,
};
use tracing::{info, warn};

use crate::ask::{Asker, client, explain, name_of};

/// A three-node cluster takes seconds to make its first stream.
const PATIENCE: Duration = Duration::from_secs(20);

/// The oldest server that the durable mode was tried on.
const RELEASE_MIN: Release = Release { major: 2, minor: 9, patch: 10 };

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

/// Waits for a server, unless `--no-wait` is given, and provisions on it.
pub fn provision(cli: &Cli, config: &WorkerConfig) -> Result<()> {
    let mut failed = false;
    loop {
        match client(&cli.nats, "alarm-digest provision", cli.run.ping_interval) {
            Ok((server, client)) => {
                let asker = Asker::new(client, &config.names, PATIENCE);
                return Provisioner { asker }.run(cli, config).with_context(|| format!("on {server}"));
            }
            Err(error) if cli.run.no_wait => return Err(error),
            Err(error) if !failed => warn!("cannot connect, trying on: {error:#}"),
            Err(_) => {}
        }
        failed = true;
        std::thread::sleep(cli.run.reconnect_delay_max);
    }
}

struct Provisioner {
    asker: Asker,
}

impl Provisioner {
    fn run(&mut self, cli: &Cli, config: &WorkerConfig) -> Result<()> {
        let info = self.asker.session().info().expect("the handshake is over").clone();
        let release =
            Release::of(&info).with_context(|| format!("expected a version, got {}", info.version))?;
        if release < RELEASE_MIN {
            bail!("expected nats-server {RELEASE_MIN} or newer for --mode jetstream, got {release}");
        }
        if cli.jetstream.no_provision {
            return Ok(());
        }
        let names = &config.names;
        let streams = [
            (names.input.as_str(), input(names, &cli.jetstream)),
            (&format!("KV_{}", names.bucket), state(names, &cli.jetstream)),
            (names.output.as_str(), output(names, &cli.jetstream, release)),
            (names.dead_letters.as_str(), dead_letters(names, &cli.jetstream)),
        ];
        for (name, wanted) in &streams {
            self.stream(name, wanted).with_context(|| format!("stream {name}"))?;
        }
        self.consumer(names, &cli.jetstream)
            .with_context(|| format!("consumer {} of {}", names.consumer, names.input))
    }

    fn stream(&mut self, name: &str, wanted: &StreamConfig) -> Result<()> {
        let stream = name_of(name);
        let created = self.asker.ask::<StreamInfo>("a stream", |jetstream, session| {
            jetstream.stream_create(session, stream, wanted, (), Duration::ZERO);
        });
        match created {
            Ok(_) => Ok(()),
            Err(Failure::Api(error)) if error.is_already_in_use() => {
                let found = self.asker.ask::<StreamInfo>("a stream", |jetstream, session| {
                    jetstream.stream_info(session, stream, (), Duration::ZERO);
                });
                accept(name, &wanted.differences(&found.map_err(explain)?.config))
            }
            Err(failure) => Err(explain(failure)),
        }
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
            Ok(found) => accept(&names.consumer, &wanted.differences(&found.config)),
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

fn accept(name: &str, differences: &[Difference]) -> Result<()> {
    let is_operators = |difference: &&Difference| OPERATORS.contains(&difference.member.as_str());
    let refused: Vec<String> =
        differences.iter().filter(|difference| !is_operators(difference)).map(ToString::to_string).collect();
    for difference in differences.iter().filter(is_operators) {
        info!("{name} is used as it is, with another {difference}");
    }
    if refused.is_empty() {
        return Ok(());
    }
    bail!(
        "it is there with settings that would lose or repeat alarms: {}. Change them, remove it, or give another --js-name.",
        refused.join("; ")
    )
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
