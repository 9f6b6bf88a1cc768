//! JetStream over a session against real servers: replies, refusals, ends of a pull, acknowledgements.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nats_server_fixture::{Binary, Server, available};
use nats_wire::jetstream::{
    AccountInfo, Ack, AckPolicy, AckSubject, Bucket, ConsumerAction, ConsumerConfig, ConsumerInfo, Deleted,
    DeliverPolicy, Difference, Discard, Failure, JetStream, Key, MESSAGE_ID, Marker, Name, Next, Publication,
    Pull, PullRequest, PullStatus, Pulled, Purged, Release, Reply, Republish, RequestId, Retention,
    StreamConfig, StreamInfo,
};
use nats_wire::session::{Event, Session, SessionConfig};
use nats_wire::{ConnectOptions, Header, Limits, Message, Subject};
use serde::Deserialize;

/// For whatever should happen at once, on however busy a machine.
const SOON: Duration = Duration::from_secs(60);

/// For what should not happen at all.
const A_MOMENT: Duration = Duration::from_millis(300);

/// Runs `test` on every version of nats-server that can be had, with JetStream.
fn on_each_server(test: impl Fn(&mut Link, Release)) {
    for binary in available().expect("a nats-server is needed for this test") {
        eprintln!("on {binary}");
        let server = Server::builder(&binary).jetstream().start().expect("a server");
        test(&mut Link::new(&server, JetStream::new(subject("_INBOX.test"), 1)), release(&binary));
    }
}

fn release(binary: &Binary) -> Release {
    let release = binary.release();
    Release::new(release.major, release.minor, release.patch)
}

fn name(text: &str) -> Name<'_> {
    Name::new(text).expect("a valid name")
}

fn subject(text: &str) -> Subject<'_> {
    Subject::new(text).expect("a valid subject")
}

fn key(text: &str) -> Key<'_> {
    Key::new(text).expect("a valid key")
}

/// A blocking connection with JetStream and one pull on it. Tags count the requests.
struct Link {
    stream: TcpStream,
    session: Session,
    buffer: Vec<u8>,
    epoch: Instant,
    jetstream: JetStream<u32>,
    pull: Option<Pull>,
    tags: u32,
}

/// What came to the pull.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Came {
    Message { subject: String, payload: String, ack: String, delivered: u64 },
    Status(PullStatus),
}

impl Link {
    fn new(server: &Server, jetstream: JetStream<u32>) -> Self {
        let config = SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: SOON,
            ping_interval: SOON,
            answer_max: SOON * 2,
            max_payload_at_least: 0,
        };
        let mut link = Self {
            stream: TcpStream::connect(server.addr()).expect("the server listens"),
            session: Session::new(config, Duration::ZERO),
            buffer: Vec::new(),
            epoch: Instant::now(),
            jetstream,
            pull: None,
            tags: 0,
        };
        while !link.session.is_ready() {
            link.turn(SOON, |_, _| ());
        }
        link.jetstream.subscribe(&mut link.session, link.epoch.elapsed());
        link
    }

    /// Writes all output, reads once, and hands over each message. False if nothing came in time.
    fn turn(&mut self, within: Duration, mut on_message: impl FnMut(&mut Self, &Message<'_>)) -> bool {
        self.stream.write_all(self.session.output()).expect("the server reads");
        self.session.wrote(self.session.output().len(), self.epoch.elapsed());
        self.stream.set_read_timeout(Some(within)).expect("a span above zero");
        let mut piece = [0; 4096];
        let bytes = match self.stream.read(&mut piece) {
            Ok(0) => panic!("the server closed the connection"),
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(&piece[..bytes]);
        let mut start = 0;
        loop {
            let (used, event) = self.session.receive(&buffer[start..]).expect("the server speaks NATS");
            start += used;
            match event {
                None => break,
                Some(Event::Message(message)) => on_message(self, &message),
                Some(Event::Refused(text)) => panic!("the server refused: {text}"),
                Some(_) => {}
            }
        }
        buffer.drain(..start);
        self.buffer = buffer;
        true
    }

    /// Sends one request and reads its reply.
    #[track_caller]
    fn ask<R>(
        &mut self,
        send: impl FnOnce(&mut JetStream<u32>, &mut Session, u32, Duration) -> RequestId,
        read: impl Fn(&Reply<'_, u32>) -> R,
    ) -> R {
        self.ask_within(SOON, send, read).expect("a reply in time")
    }

    fn ask_within<R>(
        &mut self,
        within: Duration,
        send: impl FnOnce(&mut JetStream<u32>, &mut Session, u32, Duration) -> RequestId,
        read: impl Fn(&Reply<'_, u32>) -> R,
    ) -> Option<R> {
        self.tags += 1;
        let tag = self.tags;
        let request = send(&mut self.jetstream, &mut self.session, tag, self.epoch.elapsed());
        let mut result = None;
        while result.is_none() {
            let came = self.turn(within, |link, message| {
                if let Some(reply) = link.jetstream.on_message(message).filter(|reply| reply.tag == tag) {
                    assert_eq!(reply.request, request);
                    result = Some(read(&reply));
                }
            });
            if !came {
                return None;
            }
        }
        result
    }

    /// A request of the API whose reply is JSON.
    #[track_caller]
    fn call<D: for<'a> Deserialize<'a>>(
        &mut self,
        send: impl FnOnce(&mut JetStream<u32>, &mut Session, u32, Duration) -> RequestId,
    ) -> Result<D, Failure> {
        self.ask(send, |reply| reply.decode("the reply that belongs to the request"))
    }

    /// Publishes, and returns the sequence or what was refused.
    #[track_caller]
    fn publish(&mut self, publication: Publication<'_>) -> Result<u64, Failure> {
        self.ask(
            |js, session, tag, now| js.publish(session, publication, tag, now).expect("it fits"),
            |reply| reply.pub_ack().map(|ack| ack.sequence),
        )
    }

    /// Puts a value, and returns its revision or what was refused.
    #[track_caller]
    fn put(
        &mut self,
        bucket: &Bucket,
        key: Key<'_>,
        value: &[u8],
        revision: Option<u64>,
    ) -> Result<u64, Failure> {
        self.ask(
            |js, session, tag, now| {
                js.kv_put(session, bucket, key, value, revision, tag, now).expect("it fits")
            },
            |reply| reply.pub_ack().map(|ack| ack.sequence),
        )
    }

    /// Gets a value from the leader and from a replica, which must say the same: revision, marker, value.
    #[track_caller]
    fn get(&mut self, bucket: &Bucket, key: Key<'_>) -> Option<(u64, Option<Marker>, Vec<u8>)> {
        let read = |reply: &Reply<'_, u32>| {
            let stored = reply.stored().expect("an answer")?;
            assert_eq!(bucket.key(&stored.subject), Some(key));
            Some((stored.sequence, stored.marker(), stored.payload.to_vec()))
        };
        let leader = self.ask(|js, session, tag, now| js.kv_get(session, bucket, key, tag, now), read);
        let direct = self.ask(|js, session, tag, now| js.kv_get_direct(session, bucket, key, tag, now), read);
        assert_eq!(leader, direct);
        leader
    }

    /// A work queue over `in.>`, and a consumer of it to pull from.
    fn queue(&mut self, ack_wait: Duration) {
        let stream = StreamConfig {
            subjects: vec!["in.>".into()],
            retention: Some(Retention::WorkQueue),
            discard: Some(Discard::New),
            ..StreamConfig::default()
        };
        self.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_create(session, name("IN"), &stream, tag, now)
        })
        .expect("a stream");
        let consumer = ConsumerConfig { ack_wait: Some(ack_wait), ..consumer() };
        self.create_consumer(&consumer, ConsumerAction::CreateOrUpdate).expect("a consumer");
        self.pull_from("IN", "work");
    }

    fn create_consumer(
        &mut self,
        config: &ConsumerConfig,
        action: ConsumerAction,
    ) -> Result<ConsumerInfo, Failure> {
        self.call(|js, session, tag, now| {
            js.consumer_create(session, name("IN"), name("work"), config, action, tag, now)
        })
    }

    fn consumer(&mut self) -> ConsumerInfo {
        let info =
            self.call(|js, session, tag, now| js.consumer_info(session, name("IN"), name("work"), tag, now));
        info.expect("the consumer is there")
    }

    fn pull_from(&mut self, stream: &str, consumer: &str) {
        let mut pull = Pull::new(&self.jetstream, name(stream), name(consumer), 0, 2);
        pull.subscribe(&mut self.session, self.epoch.elapsed());
        self.pull = Some(pull);
    }

    /// Asks for messages, and waits for all that come until the request is over or nothing comes in time.
    fn pull(&mut self, request: &PullRequest, within: Duration) -> Vec<Came> {
        let now = self.epoch.elapsed();
        self.pull.as_mut().expect("there is a pull").request(&mut self.session, request, now);
        self.pulled(within)
    }

    fn pulled(&mut self, within: Duration) -> Vec<Came> {
        let mut came = Vec::new();
        while self.pull.as_ref().is_some_and(Pull::is_open) {
            let in_time = self.turn(within, |link, message| {
                let now = link.epoch.elapsed();
                let pull = link.pull.as_mut().expect("there is a pull");
                match pull.on_message(message, now) {
                    Some(Pulled::Delivery(delivery)) => came.push(Came::Message {
                        subject: delivery.message.subject_str().expect("our own").into(),
                        payload: String::from_utf8(delivery.message.payload.to_vec()).expect("our own"),
                        ack: String::from_utf8(delivery.ack.subject().as_bytes().to_vec()).expect("ASCII"),
                        delivered: delivery.ack.delivered,
                    }),
                    Some(Pulled::Status(status)) => {
                        assert!(status.is_current);
                        came.push(Came::Status(status.kind));
                    }
                    Some(Pulled::Stray) => panic!("neither message nor status: {message:?}"),
                    None => {}
                }
            });
            if !in_time {
                break;
            }
        }
        came
    }

    /// Answers and waits until the server has taken it.
    #[track_caller]
    fn confirm(&mut self, ack_subject: &str, ack: Ack<'_>) -> Result<(), Failure> {
        let subject = AckSubject::parse(ack_subject.as_bytes()).expect("an ack subject");
        self.ask(
            |js, session, tag, now| js.acknowledge(session, &subject, ack, tag, now),
            |reply| reply.confirmed(),
        )
    }
}

fn consumer() -> ConsumerConfig {
    ConsumerConfig {
        ack_policy: Some(AckPolicy::Explicit),
        max_ack_pending: Some(1000),
        max_deliver: Some(-1),
        max_waiting: Some(4),
        ..ConsumerConfig::default()
    }
}

fn one(text: &str, payload: &str, delivered: u64, came: &[Came]) -> String {
    match came {
        [Came::Message { subject, payload: p, ack, delivered: d }] => {
            assert_eq!((subject.as_str(), p.as_str(), *d), (text, payload, delivered));
            ack.clone()
        }
        other => panic!("expected one message, came {other:?}"),
    }
}

fn members(differences: &[Difference]) -> Vec<(&str, bool)> {
    differences.iter().map(|difference| (difference.member.as_str(), difference.is_updatable)).collect()
}

/// A request that ends at once with what there is.
fn no_wait(batch: u64) -> PullRequest {
    PullRequest { batch, expires: None, idle_heartbeat: None, no_wait: true, max_bytes: None }
}

#[test]
fn the_account_says_what_the_server_can() {
    on_each_server(|link, release| {
        assert_eq!(Release::of(link.session.info().expect("after the handshake")), Some(release));
        let info: AccountInfo =
            link.call(|js, session, tag, now| js.account_info(session, tag, now)).expect("JetStream is on");
        assert_eq!(info.api.level.is_some(), release.is_strict());
        assert_eq!(info.streams, 0);
    });
}

#[test]
fn streams_are_used_updated_or_refused() {
    on_each_server(|link, release| {
        let create = |link: &mut Link, config: &StreamConfig| {
            link.call::<StreamInfo>(|js, session, tag, now| {
                js.stream_create(session, name("S"), config, tag, now)
            })
        };
        let info = |link: &mut Link| {
            link.call::<StreamInfo>(|js, session, tag, now| js.stream_info(session, name("S"), tag, now))
        };
        let update = |link: &mut Link, config: &StreamConfig| {
            let found = info(link).expect("it is there").config;
            link.call::<StreamInfo>(|js, session, tag, now| {
                js.stream_update(session, name("S"), &config.over(&found), tag, now)
            })
        };
        assert!(info(link).expect_err("nothing there").api().expect("JetStream").is_stream_not_found());

        let mut config = StreamConfig {
            subjects: vec!["a".into(), "b".into()],
            retention: Some(Retention::WorkQueue),
            discard: Some(Discard::New),
            max_bytes: Some(1 << 20),
            max_age: Some(Duration::from_secs(3600)),
            deny_delete: Some(false),
            ..StreamConfig::default()
        };
        for _ in 0..2 {
            let made = create(link, &config).expect("the same twice is no error");
            assert_eq!(config.differences(&made.config), []);
        }

        config.max_bytes = Some(2 << 20);
        let refused = create(link, &config).expect_err("there with another configuration");
        assert!(refused.api().expect("JetStream").is_already_in_use(), "{refused}");
        let found = info(link).expect("it is there").config;
        assert_eq!(members(&config.differences(&found)), [("max_bytes", true)]);
        let updated = update(link, &config).expect("an update may change it").config;
        assert_eq!(config.differences(&updated), []);

        // An update says nothing of max_age, and leaves it as it is.
        let silent = StreamConfig { max_age: None, max_bytes: Some(3 << 20), ..config.clone() };
        let updated = update(link, &silent).expect("an update may change it").config;
        assert_eq!(members(&config.differences(&updated)), [("max_bytes", true)]);

        config.retention = Some(Retention::Limits);
        assert_eq!(
            members(&config.differences(&updated)),
            [("max_bytes", true), ("retention", false)],
            "{updated:?}"
        );
        assert_eq!(update(link, &config).expect_err("fixed").api().map(|error| error.err_code), Some(10052));

        // What the server does not know it refuses, or drops and then does not say.
        let ttl = StreamConfig { allow_msg_ttl: Some(true), ..silent.clone() };
        let updated = update(link, &ttl).expect("known, or dropped").config;
        assert_eq!(ttl.differences(&updated).is_empty(), release >= Release::new(2, 11, 0));

        let other = link.call::<StreamInfo>(|js, session, tag, now| {
            let config = StreamConfig { subjects: vec!["b".into()], ..StreamConfig::default() };
            js.stream_create(session, name("T"), &config, tag, now)
        });
        assert!(other.expect_err("taken").api().expect("JetStream").is_subject_taken());

        let unknown = link.call::<StreamInfo>(|js, session, tag, now| {
            js.call(session, &["STREAM.CREATE.U"], br#"{"name":"U","of_tomorrow":1}"#, tag, now)
        });
        match unknown {
            Ok(info) => assert!(!release.is_strict() && !info.config.contains_key("of_tomorrow")),
            Err(failure) => assert!(failure.api().expect("JetStream").is_unknown_field(), "{failure}"),
        }

        let republish = Republish { src: "c.*".into(), dest: "told".into(), headers_only: false };
        let told = link.call::<StreamInfo>(|js, session, tag, now| {
            let config = StreamConfig {
                subjects: vec!["c.*".into()],
                republish: Some(republish),
                ..StreamConfig::default()
            };
            js.stream_create(session, name("V"), &config, tag, now)
        });
        assert_eq!(told.is_ok(), release.has_republish_to_one(), "{told:?}");

        let deleted: Deleted = link
            .call(|js, session, tag, now| js.stream_delete(session, name("S"), tag, now))
            .expect("it was there");
        assert!(deleted.success && info(link).is_err());
    });
}

#[test]
fn consumers_are_used_updated_or_refused() {
    on_each_server(|link, release| {
        link.queue(Duration::from_secs(30));
        let mut config = consumer();
        let found = link.create_consumer(&config, ConsumerAction::CreateOrUpdate).expect("the same again");
        assert_eq!((found.name.as_str(), found.stream_name.as_str()), ("work", "IN"));
        assert_eq!(config.differences(&found.config), []);

        config.max_ack_pending = Some(2000);
        config.max_waiting = Some(5);
        let differences = config.differences(&found.config);
        assert_eq!(members(&differences), [("max_ack_pending", true), ("max_waiting", false)]);
        assert_eq!(differences[0].to_string(), "max_ack_pending: expected 2000, found 1000");
        let fixed = link.create_consumer(&config, ConsumerAction::CreateOrUpdate).expect_err("fixed");
        assert_eq!(fixed.api().map(|error| error.err_code), Some(10012));

        config.max_waiting = Some(4);
        let created = link.create_consumer(&config, ConsumerAction::Create);
        assert_eq!(created.is_err(), release >= Release::new(2, 10, 0), "{created:?}");
        let updated = link.create_consumer(&config, ConsumerAction::Update).expect("it is there");
        assert_eq!(config.differences(&updated.config), []);

        let deleted: Result<Deleted, _> = link
            .call(|js, session, tag, now| js.consumer_delete(session, name("IN"), name("work"), tag, now));
        assert!(deleted.expect("it was there").success);
        let gone = link.call::<ConsumerInfo>(|js, session, tag, now| {
            js.consumer_info(session, name("IN"), name("work"), tag, now)
        });
        assert!(gone.expect_err("deleted").api().expect("JetStream").is_consumer_not_found());
    });
}

#[test]
fn a_publish_is_stored_refused_or_known_already() {
    on_each_server(|link, release| {
        let here = subject("in.a");
        assert_eq!(link.publish(Publication::new(here, b"x")), Err(Failure::NoResponders));
        link.queue(Duration::from_secs(30));

        assert_eq!(link.publish(Publication::new(here, b"x")), Ok(1));
        let first = Publication { expected_last: Some(0), ..Publication::new(subject("in.b"), b"y") };
        assert_eq!(link.publish(first), Ok(2));
        let refused = link.publish(first).expect_err("there is one now");
        let refused = refused.api().expect("JetStream");
        assert!(refused.is_wrong_last_sequence(), "{refused}");
        assert_eq!(refused.last_sequence(), Some(2));
        let next = Publication { expected_last: Some(2), ..first };
        assert_eq!(link.publish(next), Ok(3));

        let id = [Header::new(MESSAGE_ID, "one").expect("a header")];
        let known = Publication { headers: &id, ..Publication::new(here, b"z") };
        for duplicate in [false, true] {
            let (sequence, known) = link
                .ask(
                    |js, session, tag, now| js.publish(session, known, tag, now).expect("it fits"),
                    |reply| reply.pub_ack().map(|ack| (ack.sequence, ack.duplicate)),
                )
                .expect("both are fine");
            assert_eq!((sequence, known), (4, duplicate));
        }

        let wrong = [Header::new("Nats-Expected-Stream", "OTHER").expect("a header")];
        let elsewhere = link.publish(Publication { headers: &wrong, ..next }).expect_err("another stream");
        assert_eq!(elsewhere.api().map(|error| error.err_code), Some(10060));

        let full = StreamConfig { max_msgs: Some(4), ..StreamConfig::default() };
        let found = link
            .call::<StreamInfo>(|js, session, tag, now| js.stream_info(session, name("IN"), tag, now))
            .expect("it is there");
        assert_eq!((found.state.messages, found.state.last_seq), (4, 4));
        link.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_update(
                session,
                name("IN"),
                &StreamConfig { subjects: vec!["in.>".into()], ..full }.over(&found.config),
                tag,
                now,
            )
        })
        .expect("an update");
        let refused = link.publish(Publication::new(here, b"x")).expect_err("full");
        assert!(refused.api().expect("JetStream").is_full(), "{refused} on {release}");

        let purged: Purged = link
            .call(|js, session, tag, now| js.stream_purge(session, name("IN"), Some("in.a"), tag, now))
            .expect("it is there");
        assert_eq!(purged.purged, 2);
        assert_eq!(link.publish(Publication::new(here, b"x")), Ok(5));

        let big = vec![0; 1 << 20];
        let too_large = Publication { expected_last: Some(5), ..Publication::new(here, &big) };
        let now = link.epoch.elapsed();
        let refused = link.jetstream.publish(&mut link.session, too_large, 0, now).expect_err("too large");
        assert_eq!(refused.max, 1 << 20);
        assert!(refused.bytes > refused.max && link.jetstream.waiting() == 0);
    });
}

#[test]
fn a_bucket_compares_and_sets() {
    on_each_server(|link, release| {
        let bucket = Bucket::new("state").expect("a valid name");
        let config = bucket.config();
        for _ in 0..2 {
            let made = link
                .call::<StreamInfo>(|js, session, tag, now| {
                    js.stream_create(session, bucket.stream(), &config, tag, now)
                })
                .expect("the same twice is no error");
            assert_eq!(config.differences(&made.config), []);
        }
        let ann = key("ann");
        assert_eq!(link.get(&bucket, ann), None);
        let value: Vec<u8> = (0..=255).collect();
        assert_eq!(link.put(&bucket, ann, &value, Some(0)), Ok(1));
        assert_eq!(link.get(&bucket, ann), Some((1, None, value)));
        assert_eq!(link.put(&bucket, ann, b"", Some(1)), Ok(2));
        assert_eq!(link.get(&bucket, ann), Some((2, None, vec![])));
        let conflict = link.put(&bucket, ann, b"late", Some(1)).expect_err("another revision");
        assert_eq!(conflict.api().expect("JetStream").last_sequence(), Some(2));

        let marked = |link: &mut Link, purge: bool, revision| {
            link.ask(
                |js, session, tag, now| match purge {
                    true => js.kv_purge(session, &bucket, ann, revision, tag, now),
                    false => js.kv_delete(session, &bucket, ann, revision, tag, now),
                },
                |reply| reply.pub_ack().map(|ack| ack.sequence),
            )
        };
        assert!(marked(link, true, Some(1)).expect_err("another revision").api().is_some());
        assert_eq!(marked(link, false, Some(2)), Ok(3));
        assert_eq!(link.get(&bucket, ann), Some((3, Some(Marker::Delete), vec![])));
        // A marker is a message: 0 is not its revision.
        assert!(link.put(&bucket, ann, b"new", Some(0)).is_err());
        assert_eq!(link.put(&bucket, ann, b"new", Some(3)), Ok(4));
        assert_eq!(marked(link, true, Some(4)), Ok(5));
        assert_eq!(link.get(&bucket, ann), Some((5, Some(Marker::Purge), vec![])));
        assert_eq!(link.put(&bucket, key("bob"), b"b", None), Ok(6));

        let absent = Bucket::new("absent").expect("a valid name");
        let leader = link.ask(
            |js, session, tag, now| js.kv_get(session, &absent, ann, tag, now),
            |reply| reply.stored().map(|_| ()),
        );
        assert!(leader.expect_err("no stream").api().expect("JetStream").is_stream_not_found());
        // 2.9 does not answer this one.
        let within = if release.is_strict() { SOON } else { A_MOMENT };
        let direct = link.ask_within(
            within,
            |js, session, tag, now| js.kv_get_direct(session, &absent, ann, tag, now),
            |reply| reply.stored().map(|_| ()),
        );
        assert_eq!(direct, release.is_strict().then_some(Err(Failure::NoResponders)));
    });
}

#[test]
fn headers_of_a_stored_message_come_back_either_way() {
    on_each_server(|link, _| {
        let stream = StreamConfig {
            subjects: vec!["out.*".into()],
            allow_direct: Some(true),
            ..StreamConfig::default()
        };
        link.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_create(session, name("OUT"), &stream, tag, now)
        })
        .expect("a stream");
        let headers = [("Ad-Id", "77"), ("Nats-Sequence", "99")]
            .map(|(name, value)| Header::new(name, value).expect("a header"));
        let out = subject("out.ann");
        let publication =
            Publication { headers: &headers, expected_last: Some(0), ..Publication::new(out, b"digest") };
        assert_eq!(link.publish(publication), Ok(1));
        let read = |reply: &Reply<'_, u32>| {
            let stored = reply.stored().expect("an answer").expect("it is there");
            assert_eq!(
                (&*stored.subject, &*stored.payload, stored.sequence),
                (&b"out.ann"[..], &b"digest"[..], 1)
            );
            assert_eq!(stored.header("Ad-Id"), Some(&b"77"[..]));
            assert_eq!(stored.header("Nats-Expected-Last-Subject-Sequence"), Some(&b"0"[..]));
        };
        link.ask(|js, session, tag, now| js.last_of(session, name("OUT"), out, tag, now), read);
        link.ask(|js, session, tag, now| js.last_of_direct(session, name("OUT"), out, tag, now), read);
        link.ask(|js, session, tag, now| js.message_at(session, name("OUT"), 1, tag, now), read);
        let none = link.ask(
            |js, session, tag, now| js.message_at(session, name("OUT"), 2, tag, now),
            |reply| reply.stored().map(|stored| stored.is_none()),
        );
        assert_eq!(none, Ok(true));
    });
}

#[test]
fn a_pull_brings_messages_heartbeats_and_its_end() {
    on_each_server(|link, release| {
        link.queue(Duration::from_secs(30));
        assert_eq!(link.pull(&no_wait(3), SOON), [Came::Status(PullStatus::NoMessages)]);

        // Two heartbeats fit, and the second one may be lost to the end.
        let expires = Duration::from_millis(900);
        let quiet =
            PullRequest { idle_heartbeat: Some(Duration::from_millis(300)), ..PullRequest::new(3, expires) };
        let came = link.pull(&quiet, SOON);
        assert_eq!(came.first(), Some(&Came::Status(PullStatus::Heartbeat)));
        assert_eq!(came.last(), Some(&Came::Status(PullStatus::Expired)));

        for payload in ["0", "1", "2", "3", "4"] {
            link.publish(Publication::new(subject("in.a"), payload.as_bytes())).expect("stored");
        }
        let came = link.pull(&PullRequest::new(2, SOON), SOON);
        let [Came::Message { ack: zero, .. }, Came::Message { payload, .. }] = &came[..] else {
            panic!("expected two messages, came {came:?}");
        };
        assert_eq!(payload, "1");
        let pull = link.pull.as_ref().expect("there is a pull");
        assert!(!pull.is_open() && pull.owed() == 0, "a filled request is over without a status");

        let came = link.pull(&PullRequest { expires: Some(expires), ..no_wait(5) }, SOON);
        assert_eq!(came.len(), 4, "{came:?}");
        assert!(matches!(came[3], Came::Status(PullStatus::Expired | PullStatus::NoMessages)), "{came:?}");
        assert_eq!((link.consumer().num_ack_pending, link.consumer().num_pending), (5, 0));
        link.confirm(zero, Ack::Done).expect("the consumer is there");
        assert_eq!(link.consumer().ack_floor.stream_seq, 1);

        let bad = PullRequest { idle_heartbeat: Some(expires), ..PullRequest::new(1, expires) };
        assert_eq!(link.pull(&bad, SOON), [Came::Status(PullStatus::BadRequest)]);

        let now = link.epoch.elapsed();
        let pull = link.pull.as_mut().expect("there is a pull");
        pull.request(&mut link.session, &PullRequest::new(7, SOON), now);
        assert_eq!((pull.owed(), pull.heartbeats_missed(now + SOON)), (7, 2));
        // A request that has only just come may go with the consumer, and nothing is said of it.
        while link.consumer().num_waiting == 0 {}
        link.jetstream.consumer_delete(&mut link.session, name("IN"), name("work"), 0, now);
        assert_eq!(link.pulled(SOON), [Came::Status(PullStatus::ConsumerDeleted)]);

        // Nothing there: a status, or nothing at all, which the missing heartbeats tell.
        let request = PullRequest::new(1, A_MOMENT);
        let tells = release >= Release::new(2, 12, 0);
        let came = link.pull(&request, if tells { SOON } else { A_MOMENT * 2 });
        let now = link.epoch.elapsed();
        let pull = link.pull.as_mut().expect("there is a pull");
        if tells {
            assert_eq!(came, [Came::Status(PullStatus::NoResponders)]);
        } else {
            assert_eq!(came, []);
            assert!(pull.heartbeats_missed(now) >= 2 && pull.overdue(now) > Some(Duration::ZERO));
            pull.give_up();
        }
        assert!(!pull.is_open());
    });
}

#[test]
fn a_consumer_with_too_many_requests_refuses() {
    on_each_server(|link, _| {
        link.queue(Duration::from_secs(30));
        for slot in 1..=4 {
            let mut pull = Pull::new(&link.jetstream, name("IN"), name("work"), slot, 10 + u64::from(slot));
            let now = link.epoch.elapsed();
            pull.subscribe(&mut link.session, now);
            let request = PullRequest { idle_heartbeat: None, ..PullRequest::new(1, SOON) };
            pull.request(&mut link.session, &request, now);
        }
        let request = PullRequest { idle_heartbeat: None, ..PullRequest::new(1, SOON) };
        let came = link.pull(&request, SOON);
        assert_eq!(came, [Came::Status(PullStatus::TooManyWaiting)]);
        assert_eq!(PullStatus::TooManyWaiting.next(), Next::Pause);
    });
}

#[test]
fn what_is_not_done_comes_again() {
    on_each_server(|link, release| {
        let ack_wait = Duration::from_secs(2);
        link.queue(ack_wait);
        link.publish(Publication::new(subject("in.a"), b"x")).expect("stored");
        let pull = |link: &mut Link, delivered| {
            let came = link.pull(&PullRequest { idle_heartbeat: None, ..PullRequest::new(1, SOON) }, SOON);
            one("in.a", "x", delivered, &came)
        };
        let now = Instant::now();
        let ack = pull(link, 1);
        link.confirm(&ack, Ack::Again { after: None }).expect("the consumer is there");
        let ack = pull(link, 2);
        assert!(now.elapsed() < SOON);

        let now = Instant::now();
        link.confirm(&ack, Ack::Again { after: Some(ack_wait / 2) }).expect("the consumer is there");
        let ack = pull(link, 3);
        assert!(now.elapsed() >= ack_wait / 2);

        // Fire and forget, as every answer but the last one below could be.
        let now = Instant::now();
        let subject = AckSubject::parse(ack.as_bytes()).expect("an ack subject");
        std::thread::sleep(ack_wait / 2);
        subject.send(&mut link.session, Ack::Working, link.epoch.elapsed());
        let ack = pull(link, 4);
        assert!(now.elapsed() >= ack_wait + ack_wait / 2, "its time starts anew: {:?}", now.elapsed());

        let reason = release.has_term_reason().then_some("unreadable");
        link.confirm(&ack, Ack::Never { reason }).expect("the consumer is there");
        link.confirm(&ack, Ack::Done).expect("a second answer is fine");
        assert_eq!(link.pull(&no_wait(1), SOON), [Came::Status(PullStatus::NoMessages)]);
        let info = link.consumer();
        assert_eq!((info.num_ack_pending, info.num_pending, info.num_redelivered), (0, 0, 0));

        link.call::<Deleted>(|js, session, tag, now| js.stream_delete(session, name("IN"), tag, now))
            .expect("it was there");
        assert_eq!(link.confirm(&ack, Ack::Done), Err(Failure::NoResponders));
    });
}

#[test]
fn a_bucket_is_read_whole_through_a_consumer() {
    on_each_server(|link, _| {
        let bucket = Bucket::new("state").expect("a valid name");
        link.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_create(session, bucket.stream(), &bucket.config(), tag, now)
        })
        .expect("a bucket");
        for text in ["a", "a.1", "a.2", "b.1", "a.1"] {
            link.put(&bucket, key(text), text.as_bytes(), None).expect("stored");
        }
        let config = ConsumerConfig {
            is_ephemeral: true,
            deliver_policy: Some(DeliverPolicy::LastPerSubject),
            filter_subject: Some("$KV.state.a.>".into()),
            ack_policy: Some(AckPolicy::None),
            mem_storage: Some(true),
            num_replicas: Some(1),
            inactive_threshold: Some(SOON),
            ..ConsumerConfig::default()
        };
        let info: ConsumerInfo = link
            .call(|js, session, tag, now| {
                let action = ConsumerAction::CreateOrUpdate;
                js.consumer_create(session, bucket.stream(), name("dump"), &config, action, tag, now)
            })
            .expect("a consumer");
        assert_eq!(info.num_pending, 2);
        assert_eq!(config.differences(&info.config), []);
        assert!(!info.config.contains_key("durable_name"));
        link.pull_from("KV_state", "dump");
        let came = link.pull(&PullRequest::new(info.num_pending, SOON), SOON);
        let keys: Vec<_> = came
            .iter()
            .map(|came| match came {
                Came::Message { subject, ack, .. } => {
                    let ack = AckSubject::parse(ack.as_bytes()).expect("an ack subject");
                    let key = bucket.key(subject.as_bytes()).expect("one of the bucket");
                    (key.as_str(), ack.stream_sequence, ack.pending)
                }
                other => panic!("expected a message, came {other:?}"),
            })
            .collect();
        assert_eq!(keys, [("a.2", 3, 1), ("a.1", 5, 0)]);
    });
}

#[test]
fn many_requests_wait_at_a_time_and_each_finds_its_reply() {
    on_each_server(|link, _| {
        let bucket = Bucket::new("state").expect("a valid name");
        link.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_create(session, bucket.stream(), &bucket.config(), tag, now)
        })
        .expect("a bucket");
        let now = link.epoch.elapsed();
        for number in 0..1000_u32 {
            let text = format!("key-{number}");
            let value = text.as_bytes();
            let sent =
                link.jetstream.kv_put(&mut link.session, &bucket, key(&text), value, Some(0), number, now);
            sent.expect("it fits");
        }
        let mut revisions = vec![0; 1000];
        while link.jetstream.waiting() > 0 {
            let in_time = link.turn(SOON, |link, message| {
                let reply = link.jetstream.on_message(message).expect("all that comes are replies");
                revisions[reply.tag as usize] = reply.pub_ack().expect("stored").sequence;
            });
            assert!(in_time, "{} replies missing", link.jetstream.waiting());
        }
        let expected: Vec<u64> = (1..=1000).collect();
        assert_eq!(revisions, expected);
        assert_eq!(link.jetstream.expired(now + SOON, A_MOMENT), None);
    });
}

#[test]
fn without_jetstream_nobody_answers() {
    for binary in available().expect("a nats-server is needed for this test") {
        let server = Server::start(&binary).expect("a server");
        let mut link = Link::new(&server, JetStream::new(subject("_INBOX.test"), 1));
        let info = link.call::<AccountInfo>(|js, session, tag, now| js.account_info(session, tag, now));
        assert_eq!(info, Err(Failure::NoResponders), "on {binary}");
    }
}

#[test]
fn a_domain_has_its_own_prefix() {
    for binary in available().expect("a nats-server is needed for this test") {
        let lines = "jetstream { store_dir: \"jetstream\", domain: hub }";
        let server = Server::builder(&binary).config(lines).start().expect("a server");
        let jetstream = JetStream::new(subject("_INBOX.test"), 1).with_domain(name("hub"));
        let mut link = Link::new(&server, jetstream);
        let info: AccountInfo =
            link.call(|js, session, tag, now| js.account_info(session, tag, now)).expect("the domain");
        assert_eq!(info.domain.as_deref(), Some("hub"));

        let bucket = Bucket::new("state").expect("a valid name");
        link.call::<StreamInfo>(|js, session, tag, now| {
            js.stream_create(session, bucket.stream(), &bucket.config(), tag, now)
        })
        .expect("a bucket");
        assert_eq!(link.put(&bucket, key("ann"), b"a", Some(0)), Ok(1));
        assert_eq!(link.get(&bucket, key("ann")), Some((1, None, b"a".to_vec())));

        link.queue(SOON);
        let domain = link.ask(
            |js, session, tag, now| {
                js.publish(session, Publication::new(subject("in.a"), b"x"), tag, now).expect("it fits")
            },
            |reply| reply.pub_ack().expect("stored").domain.map(|domain| domain.into_owned()),
        );
        assert_eq!(domain.as_deref(), Some("hub"));
        let ack = one("in.a", "x", 1, &link.pull(&PullRequest::new(1, SOON), SOON));
        link.confirm(&ack, Ack::Done).expect("the consumer is there");

        let mut elsewhere =
            Link::new(&server, JetStream::new(subject("_INBOX.test2"), 1).with_domain(name("nowhere")));
        let info = elsewhere.call::<AccountInfo>(|js, session, tag, now| js.account_info(session, tag, now));
        assert_eq!(info, Err(Failure::NoResponders));
    }
}

#[test]
fn the_longer_ack_subject_is_read_too() {
    for binary in available().expect("a nats-server is needed for this test") {
        if release(&binary) < Release::new(2, 15, 0) {
            continue;
        }
        let server = Server::builder(&binary)
            .config("feature_flags { js_ack_fc_v2: true }")
            .jetstream()
            .start()
            .expect("a server");
        let mut link = Link::new(&server, JetStream::new(subject("_INBOX.test"), 1));
        link.queue(SOON);
        link.publish(Publication::new(subject("in.a"), b"x")).expect("stored");
        let ack = one("in.a", "x", 1, &link.pull(&PullRequest::new(1, SOON), SOON));
        assert!(ack.starts_with("$JS.ACK._."), "{ack}");
        link.confirm(&ack, Ack::Done).expect("the consumer is there");
        assert_eq!(link.consumer().ack_floor.stream_seq, 1);
    }
}
