//! Shards against a simulated broker: a queue group that reorders, repeats, cuts reads and writes anywhere and breaks
//! connections. One seed decides everything; the oracle watches every digest that comes out.
//!
//! `SIMULATION_SEED=n` repeats one run, `SIMULATION_SEEDS=n` runs that many.
//!
//! The broker delivers at least once: what a connection had not read when it broke goes to another member.

mod durable;
mod rules;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use alarm_digest::alarm::{AlarmId, Command, Condition, Timestamp, UserId};
use alarm_digest::logic::Logic;
use alarm_digest::message::{decode_change, decode_request};
use alarm_digest::shard::{Mail, Shard, ShardConfig, ShardId, Subjects, owner};
use alarm_digest_checker::{Oracle, parse_digest};
use fastrand::Rng;
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ClientOp, ConnectOptions, Limits, ServerDecoder, Sid, Step, Subject, encode};

const SEEDS: u64 = 10_000;

#[test]
fn nothing_is_lost_invented_or_told_twice_whatever_the_broker_does() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIMULATION_SEED") {
        return Simulation::new(seed, false).run();
    }
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS) {
        if std::panic::catch_unwind(|| Simulation::new(seed, false).run()).is_err() {
            panic!("repeat it with SIMULATION_SEED={seed}");
        }
    }
}

#[test]
fn a_digest_that_does_not_wait_for_the_fences_is_caught_within_a_hundred_seeds() {
    let is_caught = |seed| std::panic::catch_unwind(|| Simulation::new(seed, true).run()).is_err();
    assert!((0..100).any(is_caught));
}

/// A published message and what its subject is.
#[derive(Clone)]
struct Published {
    subject: &'static str,
    payload: String,
}

/// One connection as the broker sees it.
struct Connection {
    decoder: ServerDecoder,
    from_client: Vec<u8>,
    to_client: VecDeque<u8>,
    /// Subject and sid of each subscription.
    subscriptions: Vec<(String, u64)>,
    /// Messages on their way, each with the place in the stream where it ends.
    on_their_way: VecDeque<(u64, Published)>,
    sent: u64,
    pings_open: u32,
    /// Nothing more comes or goes, but what has come is the shard's.
    is_broken: bool,
}

/// A shard with what its driver would hold.
struct Core {
    shard: Shard,
    connection: Option<Connection>,
    /// Came from the socket, not used yet.
    buffer: Vec<u8>,
    used: u64,
    inbox: Vec<Mail>,
}

struct Simulation {
    rng: Rng,
    seed: u64,
    now: Duration,
    cores: Vec<Core>,
    pool: Vec<Published>,
    to_publish: u32,
    breaks_left: u32,
    oracle: Oracle,
    /// What the broker has put on a connection, of each user, and what of it before the user's last request.
    taken: HashMap<UserId, BTreeSet<(AlarmId, Condition)>>,
    promised: HashMap<UserId, BTreeSet<(AlarmId, Condition)>>,
    /// Digests may be repeated from the first break on.
    has_broken: bool,
    /// Every digest payload that came out, to know a repetition.
    digests: Vec<Vec<u8>>,
    bad_published: u64,
    dead_letters: u64,
    alarm_names: Vec<String>,
}

const CHANGED: &str = "changed";
const SEND: &str = "send";
const USERS: u32 = 5;
const INBOX_MAX: usize = 4;

fn config(rng: &mut Rng, is_eager: bool) -> ShardConfig {
    let subject = String::from;
    ShardConfig {
        subjects: Subjects {
            changed: subject(CHANGED),
            send: subject(SEND),
            digest: subject("digest"),
            rejected: subject("rejected"),
        },
        queue_group: "group".into(),
        is_eager,
        retention: Duration::from_secs(1 << 40),
        output_bytes_max: rng.usize(1..2000),
        unsettled_bytes_max: rng.usize(1..500),
        mail_max: rng.usize(1..4),
        session: SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: Duration::from_secs(1000),
            ping_interval: Duration::from_secs(5),
            answer_max: Duration::from_secs(1000),
            max_payload_at_least: 3272,
        },
    }
}

impl Simulation {
    fn new(seed: u64, is_eager: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let shards = rng.usize(1..5);
        let config = config(&mut rng, is_eager);
        let core = |id| Core {
            shard: Shard::new(ShardId(id), shards, config.clone()),
            connection: None,
            buffer: Vec::new(),
            used: 0,
            inbox: Vec::new(),
        };
        // Long names now and then, so that a digest does not fit into one payload.
        let name_bytes = if rng.bool() { 1 } else { 200 };
        Self {
            cores: (0..shards).map(core).collect(),
            seed,
            now: Duration::ZERO,
            pool: Vec::new(),
            to_publish: rng.u32(1..200),
            breaks_left: if rng.bool() { 0 } else { rng.u32(1..8) },
            oracle: Oracle::default(),
            taken: HashMap::new(),
            promised: HashMap::new(),
            has_broken: false,
            digests: Vec::new(),
            bad_published: 0,
            dead_letters: 0,
            alarm_names: (0..20).map(|number| format!("{number:0name_bytes$}")).collect(),
            rng,
        }
    }

    fn run(mut self) {
        let drains_early = self.rng.u32(..8) == 0;
        while self.to_publish > 0 || self.rng.u8(..) > 0 {
            self.step();
            if drains_early && self.rng.u8(..) == 0 {
                self.to_publish = 0;
                return self.drain();
            }
        }
        self.settle("all that was published");
        self.hold_to_promises();
        for number in 0..USERS {
            self.pool.push(Published { subject: SEND, payload: format!(r#"{{"UserID":"user {number}"}}"#) });
        }
        self.settle("a last request of each user");
        let missing = self.oracle.missing();
        assert!(missing.is_empty(), "seed {}: never told of {missing:?}", self.seed);
        let unproved: u64 = self.cores.iter().map(|core| core.shard.counters().unproved).sum();
        let is_complete = self.dead_letters + unproved >= self.bad_published;
        assert!(is_complete, "seed {}: a dead letter is missing", self.seed);

        self.drain();
    }

    /// Links break while draining too, and then nothing is left that was taken in.
    fn drain(&mut self) {
        let now = self.now;
        self.cores.iter_mut().for_each(|core| core.shard.drain(now));
        self.breaks_left = self.rng.u32(..3);
        for _ in 0..self.rng.u32(..500) {
            self.step();
        }
        self.pool.clear();
        self.settle("draining");
        for core in &self.cores {
            assert!(core.shard.is_drained(), "seed {}: not drained", self.seed);
        }
    }

    /// Does one thing that can happen.
    fn step(&mut self) {
        let at = self.rng.usize(..self.cores.len());
        match self.rng.u32(..100) {
            0..10 if self.to_publish > 0 => self.publish(),
            10..25 => self.deliver(),
            25..45 => self.read(at),
            45..60 => self.write(at),
            60..75 => self.mail(at),
            75..80 => self.connect(at),
            80..82 if self.breaks_left > 0 => self.break_connection(at),
            82 if self.breaks_left > 0 => (0..self.cores.len()).for_each(|at| self.break_connection(at)),
            83..85 => self.let_time_pass(at),
            85..87 => self.ping(at),
            _ => {}
        }
        let now = self.now;
        self.cores[at].shard.finish_turn(now);
    }

    /// No more faults: everything goes on until nothing moves any more.
    fn settle(&mut self, what: &str) {
        (self.breaks_left, self.to_publish) = (0, 0);
        for _ in 0..100_000 {
            if self.is_quiet() {
                return;
            }
            for at in 0..self.cores.len() {
                self.connect(at);
                self.read(at);
                self.mail(at);
                let now = self.now;
                self.cores[at].shard.finish_turn(now);
                self.write(at);
            }
            self.deliver();
        }
        panic!("seed {}: stuck with {what}", self.seed);
    }

    fn is_quiet(&self) -> bool {
        self.pool.is_empty()
            && self.cores.iter().all(|core| {
                let is_connected = core.connection.as_ref().is_some_and(|connection| {
                    !connection.is_broken
                        && connection.to_client.is_empty()
                        && !connection.subscriptions.is_empty()
                        || core.shard.is_drained()
                });
                is_connected
                    && core.buffer.is_empty()
                    && core.inbox.is_empty()
                    && core.shard.output().is_empty()
                    && core.shard.unsettled() == 0
            })
    }

    fn publish(&mut self) {
        self.to_publish -= 1;
        let user = self.rng.u32(..USERS);
        let published = match self.rng.u32(..10) {
            0 => Published { subject: CHANGED, payload: "{".into() },
            1..4 => Published { subject: SEND, payload: format!(r#"{{"UserID":"user {user}"}}"#) },
            _ => {
                let alarm = &self.alarm_names[self.rng.usize(..self.alarm_names.len())];
                let status = ["CLEARED", "WARNING", "CRITICAL"][self.rng.usize(..3)];
                let second = self.rng.u32(..10);
                let payload = format!(
                    r#"{{"AlarmID":"{alarm}","UserID":"user {user}","Status":"{status}","ChangedAt":"2026-01-01T00:00:0{second}Z"}}"#
                );
                Published { subject: CHANGED, payload }
            }
        };
        match (published.subject, decode_change(published.payload.as_bytes())) {
            (CHANGED, Ok(Command::Apply(change))) => self.oracle.apply(&change),
            (CHANGED, _) => self.bad_published += 1,
            _ => {}
        }
        self.pool.push(published);
    }

    /// Takes any message of the pool to any member of the group, and keeps it for another time now and then.
    fn deliver(&mut self) {
        if self.pool.is_empty() {
            return;
        }
        let picked = self.rng.usize(..self.pool.len());
        let subject = self.pool[picked].subject;
        let subscribed = |core: &mut &mut Core| {
            let connection = core.connection.as_ref()?;
            connection.subscriptions.iter().find(|(other, _)| other == subject).map(|(_, sid)| *sid)
        };
        let mut members: Vec<_> = self
            .cores
            .iter_mut()
            .filter_map(|mut core| subscribed(&mut core).map(|sid| (core, sid)))
            .collect();
        if members.is_empty() {
            return;
        }
        let chosen = self.rng.usize(..members.len());
        let (core, sid) = members.swap_remove(chosen);
        let is_repeated = self.to_publish > 0 && self.rng.u32(..10) == 0;
        let published = if is_repeated { self.pool[picked].clone() } else { self.pool.swap_remove(picked) };
        let connection = core.connection.as_mut().expect("it is subscribed");
        let mut bytes = Vec::new();
        let subject = Subject::new(published.subject).expect("a valid subject");
        encode::message(&mut bytes, subject, Sid::from(sid), None, published.payload.as_bytes());
        connection.send(&bytes);
        connection.on_their_way.push_back((connection.sent, published.clone()));
        self.note_taken(&published);
    }

    /// What the broker takes before a request must be in the digest that answers it.
    fn note_taken(&mut self, published: &Published) {
        let payload = published.payload.as_bytes();
        match published.subject {
            CHANGED => {
                if let Ok(Command::Apply(change)) = decode_change(payload) {
                    self.taken.entry(change.user).or_default().insert((change.alarm, change.condition));
                }
            }
            _ => {
                if let Ok(Command::SendDigest(user)) = decode_request(payload) {
                    let taken = self.taken.get(&user).cloned().unwrap_or_default();
                    self.promised.insert(user, taken);
                }
            }
        }
    }

    /// A broker takes again what was on a connection that broke, and nothing is promised of that.
    fn hold_to_promises(&self) {
        if self.has_broken {
            return;
        }
        for (user, promised) in &self.promised {
            let missed = self.oracle.untold(user, promised);
            assert!(missed.is_empty(), "seed {}: {user:?} missed {missed:?} in a digest", self.seed);
        }
    }

    fn connect(&mut self, at: usize) {
        let core = &mut self.cores[at];
        if core.connection.is_some() {
            return;
        }
        let mut connection = Connection {
            decoder: ServerDecoder::new(Limits::server()),
            from_client: Vec::new(),
            to_client: VecDeque::new(),
            subscriptions: Vec::new(),
            on_their_way: VecDeque::new(),
            sent: 0,
            pings_open: 0,
            is_broken: false,
        };
        let max_payload = self.rng.u32(3272..5000);
        connection.send(
            format!("INFO {{\"headers\":{},\"max_payload\":{max_payload}}} \r\n", self.rng.bool()).as_bytes(),
        );
        core.connection = Some(connection);
        core.buffer.clear();
        core.used = 0;
        core.shard.on_link(SignIn::default(), self.now);
    }

    /// Some of what was on its way has arrived, and is nobody's but the shard's; the rest goes to another member. The shard
    /// learns of it when it has read to the end.
    fn break_connection(&mut self, at: usize) {
        // What the client wrote last may still arrive.
        if self.rng.bool() {
            self.write(at);
        }
        let core = &mut self.cores[at];
        let Some(connection) = core.connection.as_mut().filter(|connection| !connection.is_broken) else {
            return;
        };
        self.breaks_left = self.breaks_left.saturating_sub(1);
        self.has_broken = true;
        connection.is_broken = true;
        let arrived = self.rng.usize(..=connection.to_client.len());
        core.buffer.extend(connection.to_client.drain(..arrived));
        connection.to_client.clear();
        connection.subscriptions.clear();
        let arrived = core.used + core.buffer.len() as u64;
        let lost = connection.on_their_way.drain(..).filter(|(end, _)| *end > arrived);
        self.pool.extend(lost.map(|(_, published)| published));
    }

    fn read(&mut self, at: usize) {
        let core = &mut self.cores[at];
        let Some(connection) = &mut core.connection else { return };
        if !core.shard.takes_bytes() {
            return;
        }
        let bytes = self.rng.usize(..=connection.to_client.len().min(300));
        core.buffer.extend(connection.to_client.drain(..bytes));
        if bytes > 0 {
            core.shard.heard(self.now);
        }
        let used = core
            .shard
            .receive(&core.buffer, self.now)
            .unwrap_or_else(|fault| panic!("seed {}: {fault}", self.seed));
        core.buffer.drain(..used);
        core.used += used as u64;
        if connection.is_broken && core.shard.takes_bytes() {
            core.connection = None;
            core.shard.on_link_lost(self.now);
        }
    }

    fn mail(&mut self, at: usize) {
        if self.cores[at].shard.takes_mail() {
            for mail in std::mem::take(&mut self.cores[at].inbox) {
                self.cores[at].shard.on_mail(mail);
            }
        }
        for peer in 0..self.cores.len() {
            if self.cores[peer].inbox.len() < INBOX_MAX {
                let mut batch =
                    std::mem::take(self.cores[at].shard.mail_for(ShardId(peer)).expect("shards write mail"));
                self.cores[peer].inbox.append(&mut batch);
            }
        }
        self.cores[at].shard.mail_moved();
    }

    fn let_time_pass(&mut self, at: usize) {
        self.now += Duration::from_secs(self.rng.u64(1..8));
        let wall = Timestamp::new(self.now.as_secs().try_into().expect("a small number"), 0);
        self.cores[at]
            .shard
            .on_time(self.now, wall)
            .unwrap_or_else(|fault| panic!("seed {}: {fault}", self.seed));
    }

    fn ping(&mut self, at: usize) {
        let core = &mut self.cores[at];
        if let Some(connection) =
            core.connection.as_mut().filter(|connection| !connection.subscriptions.is_empty())
        {
            connection.send(b"PING\r\n");
            connection.pings_open += 1;
        }
    }

    /// Moves some of a core's output to the broker, which obeys.
    fn write(&mut self, at: usize) {
        let core = &mut self.cores[at];
        let Some(connection) = &mut core.connection else { return };
        if connection.is_broken {
            // As the driver does: to nowhere, so that what has arrived can still be read.
            return core.shard.wrote(core.shard.output().len(), self.now);
        }
        let bytes = self.rng.usize(..=core.shard.output().len());
        connection.from_client.extend_from_slice(&core.shard.output()[..bytes]);
        if bytes > 0 {
            core.shard.wrote(bytes, self.now);
        }
        let from_client = std::mem::take(&mut connection.from_client);
        let mut rest = &from_client[..];
        loop {
            let connection = self.cores[at].connection.as_mut().expect("nobody took it meanwhile");
            match connection
                .decoder
                .decode(rest)
                .unwrap_or_else(|error| panic!("seed {}: {error}", self.seed))
            {
                Step::More { .. } => break connection.from_client = rest.to_vec(),
                Step::Op { op, used } => {
                    rest = &rest[used..];
                    self.obey(at, &op);
                }
            }
        }
    }

    fn obey(&mut self, at: usize, op: &ClientOp<'_>) {
        let connection = self.cores[at].connection.as_mut().expect("it sent this");
        match op {
            ClientOp::Ping => connection.send(b"PONG\r\n"),
            ClientOp::Pong => {
                connection.pings_open = connection.pings_open.checked_sub(1).expect("PONG only after PING");
            }
            ClientOp::Subscribe(subscribe) => {
                let sid = std::str::from_utf8(subscribe.sid).expect("ASCII").parse().expect("a number");
                assert_eq!(subscribe.queue, Some(&b"group"[..]));
                let subject = String::from_utf8(subscribe.subject.to_vec()).expect("ASCII");
                connection.subscriptions.push((subject, sid));
            }
            ClientOp::Unsubscribe(unsubscribe) => {
                let sid =
                    std::str::from_utf8(unsubscribe.sid).expect("ASCII").parse::<u64>().expect("a number");
                connection.subscriptions.retain(|(_, other)| *other != sid);
            }
            ClientOp::Publish(publish) if publish.subject == b"rejected" => self.dead_letters += 1,
            ClientOp::Publish(publish) => self.hear(at, publish.payload),
            _ => {}
        }
    }

    /// A digest came out: is it one that the rules allow?
    fn hear(&mut self, at: usize, payload: &[u8]) {
        let seed = self.seed;
        let (user, alarms) = parse_digest(payload);
        assert_eq!(
            owner(&user, self.cores.len()),
            ShardId(at),
            "seed {seed}: a digest of another shard's user"
        );
        if self.digests.iter().any(|digest| digest == payload) && self.has_broken {
            return;
        }
        let wrong = self.oracle.hear(&user, &alarms);
        if !wrong.is_empty() {
            // After a break, a digest that is sent again may be cut where the new server's limit wants it.
            let is_repetition = self.has_broken && alarms.iter().all(|alarm| self.was_told(&user, alarm));
            assert!(is_repetition, "seed {seed}: {wrong:?}");
        }
        self.digests.push(payload.to_vec());
    }

    fn was_told(&self, user: &UserId, alarm: &(AlarmId, Condition)) -> bool {
        self.digests
            .iter()
            .map(|digest| parse_digest(digest))
            .any(|(other, alarms)| other == *user && alarms.contains(alarm))
    }
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) {
        self.to_client.extend(bytes);
        self.sent += bytes.len() as u64;
    }
}
