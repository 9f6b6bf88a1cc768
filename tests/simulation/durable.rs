//! Instances of the durable mode against a simulated bucket, output stream and work queue: messages are delivered again,
//! writes meet, answers are lost or late, first loads are answered with what was, packets arrive long after their sender
//! has given them up, leaders change and deposed ones go on answering, instances stop for long or crash, and relay messages
//! to each other, which come late or not at all. One seed decides everything; every digest that the output stream takes is
//! held against the oracle, and so is every acknowledgement.
//!
//! What is promised, and checked here:
//!
//! 1. *Of all messages*: when all are acknowledged and each user was asked for once more, nothing that is due and active
//!    is untold. Nothing is ever told twice, or as it was before what was told last.
//! 2. *Of a request*: when it is acknowledged, the output stream holds all that is due and active by the changes that were
//!    acknowledged before the request was delivered, or delivered to the same instance before it; unless a later change
//!    ended it. A change that is merely published before the request is not among them: another instance may have it.
//!    This second promise holds as long as reads tell the truth. A deposed leader that does not know it yet can let an
//!    instance believe that its record is the latest: then the alarm goes with the next request.
//!
//! `DURABLE_SEED=n` repeats one run, `DURABLE_SEEDS=n` runs that many. Mutations of the protocol show that the checker can
//! fail.

use std::collections::{BTreeMap, BTreeSet};

use alarm_digest::alarm::{AlarmId, Change, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::durable::record::{Nonce, Record};
use alarm_digest::durable::user::{Done, Operation, User, UserLimits};
use alarm_digest_checker::Oracle;
use fastrand::Rng;

const SEEDS: u64 = 10_000;
/// Each mutation is caught within so many seeds.
const MUTATION_SEEDS: u64 = 500;
/// So many calm runs are repeated with a crash at each of their points.
const CRASHED_SEEDS: u64 = 30;

#[test]
fn every_alarm_is_told_exactly_once_whatever_happens_to_instances_and_packets() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("DURABLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DURABLE_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(wrong) = World::new(seed, Protocol::AsItIs).run() {
            panic!("{wrong}: repeat it with DURABLE_SEED={seed}");
        }
    }
}

#[test]
fn a_crash_at_any_point_loses_and_repeats_nothing() {
    let mut crashes = 0;
    for seed in 0..CRASHED_SEEDS {
        for point in 1.. {
            let mut world = World::calm(seed, Protocol::AsItIs);
            world.crash_at = point;
            match world.run() {
                Err(wrong) => panic!("{wrong}: seed {seed}, crash point {point}"),
                Ok(points) if points < point => break,
                Ok(_) => crashes += 1,
            }
        }
    }
    assert!(crashes > 1000, "only {crashes} crashes");
}

#[test]
fn the_checker_catches_protocols_that_are_wrong() {
    for protocol in WRONG {
        let caught = (0..MUTATION_SEEDS)
            .find_map(|seed| World::new(seed, protocol).run().err().map(|wrong| (seed, wrong)));
        let (seed, wrong) = caught.unwrap_or_else(|| panic!("{protocol:?} passes {MUTATION_SEEDS} seeds"));
        println!("{protocol:?}: seed {seed}: {wrong}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    AsItIs,
    /// Publishes a digest when it is decided, before the decision is stored.
    SendsBeforeItStores,
    /// Writes the record whatever is there.
    StoresBlindly,
    /// Publishes a digest whatever was the last.
    SendsBlindly,
    /// Acknowledges a change when it comes.
    AcknowledgesBeforeItStores,
    /// Takes a record that somebody else was first with for its own: what it decided counts as told.
    KeepsWhatItDecided,
    /// Acknowledges a request for which nothing was due, although the write that should have proved it failed.
    AcknowledgesWithoutProof,
    /// Acknowledges a request when its digest is decided, before it is sent.
    AcknowledgesBeforeItSends,
    /// Acknowledges a request for which nothing is due without looking whether it still has the latest record.
    AnswersFromMemory,
    /// Knows all digests by the same number.
    HasOneNonce,
}

const WRONG: [Protocol; 9] = [
    Protocol::SendsBeforeItStores,
    Protocol::StoresBlindly,
    Protocol::SendsBlindly,
    Protocol::AcknowledgesBeforeItStores,
    Protocol::KeepsWhatItDecided,
    Protocol::AcknowledgesWithoutProof,
    Protocol::AcknowledgesBeforeItSends,
    Protocol::AnswersFromMemory,
    Protocol::HasOneNonce,
];

#[derive(Clone)]
enum Message {
    Change(Change),
    Request(UserId),
}

impl Message {
    fn user(&self) -> &UserId {
        match self {
            Self::Change(change) => &change.user,
            Self::Request(user) => user,
        }
    }
}

/// One operation on its way to the server and back.
struct Packet {
    instance: usize,
    /// Which life of the instance sent it: a later one does not know of it.
    life: u32,
    user: UserId,
    operation: Operation,
    /// What the server answered, once it has been there.
    answer: Option<Done>,
    /// The sender has given it up.
    is_given_up: bool,
    /// It does not arrive before.
    held_until: u64,
}

/// The changes of one user that somebody knows.
type Known = BTreeSet<(AlarmId, Condition)>;

#[derive(Default)]
struct Instance {
    life: u32,
    users: BTreeMap<UserId, User<u64>>,
    stopped_until: u64,
    /// Changes that were delivered to it.
    heard: BTreeMap<UserId, Known>,
    /// Requests that it has not acknowledged, each with what its digest must know.
    asked: Vec<(usize, Known)>,
}

/// The leader of a stream.
#[derive(Default)]
struct Leader<T> {
    state: T,
    /// There is none.
    absent_until: u64,
    /// A deposed one may still answer what is read, with what it knew.
    stale_until: u64,
    stale: T,
}

type Records = BTreeMap<UserId, (Vec<u8>, u64)>;
type Digests = BTreeMap<UserId, Vec<(u64, Nonce)>>;

struct World {
    rng: Rng,
    protocol: Protocol,
    /// Steps so far.
    now: u64,
    instances: Vec<Instance>,
    packets: Vec<Packet>,
    /// Acknowledgements on their way.
    acks: Vec<usize>,
    /// Messages that one instance has relayed to another, in one of its lives.
    relays: Vec<(usize, u32, usize)>,
    messages: Vec<Message>,
    is_open: Vec<bool>,
    bucket: Leader<Records>,
    /// All records that ever were, in order: any replica may still be at any of them.
    history: BTreeMap<UserId, Vec<(Vec<u8>, u64)>>,
    output: Leader<Digests>,
    sequence: u64,
    oracle: Oracle,
    /// By the changes that were acknowledged.
    stored: BTreeMap<UserId, Known>,
    wrong: Option<String>,
    messages_max: usize,
    has_faults: bool,
    /// All replicas have caught up.
    is_later: bool,
    has_stale_reads: bool,
    digest_bytes_max: usize,
    /// Places where an instance can crash, so far.
    points: u64,
    /// At which of them one does.
    crash_at: u64,
}

const USERS: u32 = 3;

impl World {
    fn new(seed: u64, protocol: Protocol) -> Self {
        let mut rng = Rng::with_seed(seed);
        let instances = rng.usize(1..4);
        Self {
            protocol,
            now: 0,
            instances: (0..instances).map(|_| Instance::default()).collect(),
            packets: Vec::new(),
            acks: Vec::new(),
            relays: Vec::new(),
            messages: Vec::new(),
            is_open: Vec::new(),
            bucket: Leader::default(),
            history: BTreeMap::new(),
            output: Leader::default(),
            sequence: 0,
            oracle: Oracle::default(),
            stored: BTreeMap::new(),
            wrong: None,
            messages_max: rng.usize(1..60),
            has_faults: true,
            is_later: false,
            has_stale_reads: rng.u32(..3) == 0,
            // Room for one alarm, for two, or for all.
            digest_bytes_max: [130, 220, 10_000][rng.usize(..3)],
            points: 0,
            crash_at: 0,
            rng,
        }
    }

    /// Short, and without any fault but the crash that the caller wants.
    fn calm(seed: u64, protocol: Protocol) -> Self {
        let mut world = Self::new(seed, protocol);
        (world.has_faults, world.has_stale_reads) = (false, false);
        world.messages_max = world.messages_max.min(12);
        world
    }

    /// Says how many points there were where an instance could crash.
    fn run(mut self) -> Result<u64, String> {
        while self.messages.len() < self.messages_max || self.has_faults && self.rng.u8(..) > 0 {
            if self.messages.len() < self.messages_max && self.rng.u32(..6) == 0 {
                self.publish();
            }
            self.step();
        }
        self.has_faults = false;
        self.settle()?;
        for number in 0..USERS {
            self.put(Message::Request(user(number)));
        }
        self.settle()?;
        // Later nobody is left who was there, all replicas have caught up, and the output stream has forgotten all with age:
        // the records have to tell alone that nothing is new.
        self.instances.fill_with(Instance::default);
        (self.bucket.stale_until, self.output) = (0, Leader::default());
        self.is_later = true;
        for number in 0..USERS {
            self.put(Message::Request(user(number)));
        }
        self.settle()?;
        match &self.oracle.missing()[..] {
            [] => self.wrong.map_or(Ok(self.points), Err),
            missing => Err(format!("never told of {missing:?}")),
        }
    }

    /// Few instants and statuses, so that the same status comes again and again with another instant.
    fn publish(&mut self) {
        let user = user(self.rng.u32(..USERS));
        let message = if self.rng.u32(..4) == 0 {
            Message::Request(user)
        } else {
            let status = [Status::Cleared, Status::Warning, Status::Critical][self.rng.usize(..3)];
            let condition = Condition::new(Timestamp::new(self.rng.i64(0..8), 0), status);
            let alarm = AlarmId(Id::new(&format!("alarm {}", self.rng.u32(..3))).expect("a valid id"));
            let change = Change { user, alarm, condition };
            self.oracle.apply(&change);
            Message::Change(change)
        };
        self.put(message);
    }

    fn put(&mut self, message: Message) {
        self.messages.push(message);
        self.is_open.push(true);
    }

    /// Until everything is acknowledged and nothing is on its way.
    fn settle(&mut self) -> Result<(), String> {
        for instance in &mut self.instances {
            instance.stopped_until = 0;
        }
        self.packets.iter_mut().for_each(|packet| packet.held_until = 0);
        (self.bucket.stale_until, self.output.stale_until) = (0, 0);
        for _ in 0..20_000 {
            if !self.is_open.contains(&true) && self.packets.is_empty() && self.relays.is_empty() {
                return Ok(());
            }
            self.step();
        }
        Err("never done".into())
    }

    /// Does one thing that can happen.
    fn step(&mut self) {
        self.now += 1;
        let at = self.rng.usize(..self.instances.len());
        match self.rng.u32(..1000) {
            0..150 => self.deliver(at),
            150..200 => self.relay(),
            200..480 => self.serve(),
            480..760 => self.answer(),
            760..850 => self.acknowledge(),
            850..890 => self.evict(at),
            890..930 if self.has_faults => self.give_up(),
            930..945 if self.has_faults => self.crash(at),
            945..955 if self.has_faults => self.stop(at),
            955..965 if self.has_faults => self.cut_off(at),
            965..970 if self.has_faults => self.depose(),
            _ => {}
        }
    }

    /// Any message that is not acknowledged, to any instance, whether another one has it already or not.
    fn deliver(&mut self, at: usize) {
        let open: Vec<usize> = (0..self.messages.len()).filter(|number| self.is_open[*number]).collect();
        if open.is_empty() || self.is_stopped(at) {
            return;
        }
        let number = open[self.rng.usize(..open.len())];
        if self.rng.u32(..3) == 0 {
            // Views differ: the other one may be any, or dead.
            let to = self.rng.usize(..self.instances.len());
            return self.relays.push((to, self.instances[to].life, number));
        }
        self.hear(at, number);
    }

    /// Any relay arrives, perhaps long after its message was acknowledged, or is lost.
    fn relay(&mut self) {
        if self.relays.is_empty() {
            return;
        }
        let which = self.rng.usize(..self.relays.len());
        let (to, life, number) = self.relays[which];
        if self.is_stopped(to) {
            return;
        }
        self.relays.swap_remove(which);
        let is_lost = self.has_faults && self.rng.u32(..10) == 0;
        if life == self.instances[to].life && !is_lost {
            self.hear(to, number);
        }
    }

    fn hear(&mut self, at: usize, number: usize) {
        let message = self.messages[number].clone();
        let id = message.user().clone();
        let instance = &mut self.instances[at];
        let user = instance.users.entry(id.clone()).or_insert_with(|| User::new(id.clone()));
        let heard = instance.heard.entry(id.clone()).or_default();
        match message {
            Message::Change(change) => {
                heard.insert((change.alarm.clone(), change.condition));
                user.on_change(change.alarm, change.condition, number as u64);
                if self.protocol == Protocol::AcknowledgesBeforeItStores {
                    self.release(at, number);
                }
            }
            Message::Request(_) => {
                let stored = self.stored.get(&id).into_iter().flatten();
                instance.asked.push((number, heard.iter().chain(stored).cloned().collect()));
                user.on_request(number as u64);
            }
        }
        if !self.crashes(at) {
            self.advance(at, &id);
        }
    }

    fn advance(&mut self, at: usize, id: &UserId) {
        let limits = UserLimits {
            record_bytes_max: 1 << 20,
            digest_bytes_max: self.digest_bytes_max,
            horizon: Timestamp::new(-1, 0),
        };
        let nonce = if self.protocol == Protocol::HasOneNonce { 7 } else { self.rng.u128(..) };
        let instance = &mut self.instances[at];
        let user = instance.users.get_mut(id).expect("it was just used");
        let operation = user.step(&limits, || Nonce(nonce)).expect("it is not too large");
        let acknowledged = std::mem::take(user.acknowledged());
        if let Some(operation) = operation {
            self.begin(at, id, operation);
            if self.crashes(at) {
                return;
            }
        }
        for number in acknowledged {
            self.release(at, number as usize);
            if self.crashes(at) {
                return;
            }
        }
    }

    fn begin(&mut self, at: usize, id: &UserId, operation: Operation) {
        if let Operation::Store { record, .. } = &operation
            && let Some((nonce, digest)) = Record::decode(id, record).expect("it was just written").outbox()
        {
            if self.protocol == Protocol::SendsBeforeItStores {
                self.send(id, nonce, &digest.alarms);
            }
            if self.protocol == Protocol::AcknowledgesBeforeItSends {
                self.release_requests(at, id);
            }
        }
        let life = self.instances[at].life;
        let packet = Packet {
            instance: at,
            life,
            user: id.clone(),
            operation,
            answer: None,
            is_given_up: false,
            held_until: 0,
        };
        self.packets.push(packet);
    }

    /// An instance acknowledges a message, and keeps the promise that lies in it.
    fn release(&mut self, at: usize, number: usize) {
        self.acks.push(number);
        match &self.messages[number] {
            Message::Change(change) => {
                let known = self.stored.entry(change.user.clone()).or_default();
                known.insert((change.alarm.clone(), change.condition));
            }
            Message::Request(user) => {
                let asked = &mut self.instances[at].asked;
                let Some(first) = asked.iter().position(|(other, _)| *other == number) else { return };
                let (_, known) = asked.remove(first);
                let untold = self.oracle.untold(user, &known);
                if !untold.is_empty() && !self.has_stale_reads {
                    let wrong = format!("request {number} of {user:?} is done, and {untold:?} untold");
                    self.wrong.get_or_insert(wrong);
                }
            }
        }
    }

    fn release_requests(&mut self, at: usize, id: &UserId) {
        let asked = self.instances[at].asked.iter().map(|(number, _)| *number);
        let asked: Vec<usize> = asked.filter(|number| self.messages[*number].user() == id).collect();
        asked.into_iter().for_each(|number| self.release(at, number));
    }

    /// An acknowledgement arrives, or is lost: nobody waits for it.
    fn acknowledge(&mut self) {
        if self.acks.is_empty() {
            return;
        }
        let number = self.acks.swap_remove(self.rng.usize(..self.acks.len()));
        if !(self.has_faults && self.rng.u32(..10) == 0) {
            self.is_open[number] = false;
        }
    }

    /// The server serves any packet that has not been there.
    fn serve(&mut self) {
        let is_waiting =
            |packet: &Packet| packet.answer.is_none() && (packet.held_until <= self.now || !self.has_faults);
        let waiting: Vec<usize> =
            (0..self.packets.len()).filter(|at| is_waiting(&self.packets[*at])).collect();
        if waiting.is_empty() {
            return;
        }
        let at = waiting[self.rng.usize(..waiting.len())];
        let packet = &self.packets[at];
        let absent_until = match packet.operation {
            Operation::Load | Operation::Reload | Operation::Verify | Operation::Store { .. } => {
                self.bucket.absent_until
            }
            Operation::Send { .. } | Operation::LastSent => self.output.absent_until,
        };
        let is_lost = self.has_faults && self.rng.u32(..20) == 0;
        if is_lost || absent_until > self.now {
            // On its way there, or with nobody to serve it: nobody will ever know.
            self.packets[at].answer = Some(Done::Unknown);
            return;
        }
        let (id, operation) = (packet.user.clone(), packet.operation.clone());
        let (instance, life) = (packet.instance, packet.life);
        let answer = self.obey(&id, operation);
        self.packets[at].answer = Some(answer);
        if self.instances[instance].life == life {
            self.crashes(instance);
        }
    }

    fn obey(&mut self, id: &UserId, operation: Operation) -> Done {
        let is_stale = |until: u64, rng: &mut Rng| until > self.now && rng.bool();
        match operation {
            Operation::Load if self.is_later => Done::Loaded(self.bucket.state.get(id).cloned()),
            Operation::Load => {
                let records = self.history.get(id).map_or(&[][..], Vec::as_slice);
                let at = self.rng.usize(..=records.len());
                Done::Loaded(at.checked_sub(1).map(|at| records[at].clone()))
            }
            Operation::Reload | Operation::Verify => {
                let is_stale = is_stale(self.bucket.stale_until, &mut self.rng);
                let records = if is_stale { &self.bucket.stale } else { &self.bucket.state };
                Done::Loaded(records.get(id).cloned())
            }
            Operation::Store { record, revision } => {
                let stored = self.bucket.state.get(id).map_or(0, |(_, revision)| *revision);
                if stored != revision && self.protocol != Protocol::StoresBlindly {
                    return Done::Conflict;
                }
                self.sequence += 1;
                self.history.entry(id.clone()).or_default().push((record.clone(), self.sequence));
                self.bucket.state.insert(id.clone(), (record, self.sequence));
                Done::Written(self.sequence)
            }
            Operation::Send { .. } if self.protocol == Protocol::SendsBeforeItStores => {
                Done::Written(self.sequence)
            }
            Operation::Send { digest, nonce, last } => {
                let sent = self.output.state.get(id).and_then(|sent| sent.last());
                let sent = sent.map_or(0, |(sequence, _)| *sequence);
                if sent != last && self.protocol != Protocol::SendsBlindly {
                    return Done::Conflict;
                }
                Done::Written(self.send(id, nonce, &digest.alarms))
            }
            Operation::LastSent => {
                let is_stale = is_stale(self.output.stale_until, &mut self.rng);
                let digests = if is_stale { &self.output.stale } else { &self.output.state };
                Done::LastSent(digests.get(id).and_then(|sent| sent.last().copied()))
            }
        }
    }

    fn send(&mut self, id: &UserId, nonce: Nonce, alarms: &[(AlarmId, Condition)]) -> u64 {
        self.sequence += 1;
        self.output.state.entry(id.clone()).or_default().push((self.sequence, nonce));
        if let Some(wrong) = self.oracle.hear(id, alarms).first() {
            self.wrong.get_or_insert(format!("{wrong:?}"));
        }
        self.sequence
    }

    /// Any answer arrives, if its instance lives and runs and still waits for it.
    fn answer(&mut self) {
        let is_ready = |packet: &Packet| packet.answer.is_some() && !self.is_stopped(packet.instance);
        let ready: Vec<usize> = (0..self.packets.len()).filter(|at| is_ready(&self.packets[*at])).collect();
        if ready.is_empty() {
            return;
        }
        let packet = self.packets.swap_remove(ready[self.rng.usize(..ready.len())]);
        if packet.is_given_up || self.instances[packet.instance].life != packet.life {
            return;
        }
        let mut answer = packet.answer.expect("it is ready");
        match (&packet.operation, self.protocol) {
            (Operation::Store { .. }, Protocol::KeepsWhatItDecided) if answer == Done::Conflict => {
                answer =
                    Done::Written(self.bucket.state.get(&packet.user).map_or(0, |(_, revision)| *revision));
            }
            (Operation::Store { record, .. }, Protocol::AcknowledgesWithoutProof)
                if answer == Done::Conflict =>
            {
                let record = Record::decode(&packet.user, record).expect("it was just written");
                if record.outbox_nonce().is_none() {
                    self.release_requests(packet.instance, &packet.user);
                }
            }
            (Operation::Verify, Protocol::AnswersFromMemory) => {
                self.release_requests(packet.instance, &packet.user);
            }
            _ => {}
        }
        self.conclude(packet.instance, &packet.user, answer);
    }

    fn conclude(&mut self, at: usize, id: &UserId, done: Done) {
        let user = self.instances[at].users.get_mut(id).expect("who waits is not evicted");
        user.on_done(done).expect("a record of ours");
        if !self.crashes(at) {
            self.advance(at, id);
        }
    }

    /// An instance's patience ends. The packet may still be served.
    fn give_up(&mut self) {
        let is_hopeful = |packet: &Packet| self.is_awaited(packet) && !self.is_stopped(packet.instance);
        let hopeful: Vec<usize> =
            (0..self.packets.len()).filter(|at| is_hopeful(&self.packets[*at])).collect();
        if !hopeful.is_empty() {
            let picked = self.rng.usize(..hopeful.len());
            self.give_up_packet(hopeful[picked]);
        }
    }

    fn give_up_packet(&mut self, at: usize) {
        self.packets[at].is_given_up = true;
        let (instance, id) = (self.packets[at].instance, self.packets[at].user.clone());
        self.conclude(instance, &id, Done::Unknown);
    }

    fn is_awaited(&self, packet: &Packet) -> bool {
        !packet.is_given_up && self.instances[packet.instance].life == packet.life
    }

    /// Whether an instance crashes here, as the caller of the run wants it.
    fn crashes(&mut self, at: usize) -> bool {
        self.points += 1;
        if self.points == self.crash_at {
            self.crash(at);
        }
        self.points == self.crash_at
    }

    fn crash(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        *instance = Instance { life: instance.life + 1, ..Instance::default() };
    }

    fn is_stopped(&self, at: usize) -> bool {
        self.instances[at].stopped_until > self.now && self.has_faults
    }

    /// An instance stops, for a moment or for long, and what it had sent is held up as long or longer.
    fn stop(&mut self, at: usize) {
        let until = self.now + [20, 200, 1000][self.rng.usize(..3)];
        self.instances[at].stopped_until = until;
        if self.rng.bool() {
            let longer = self.rng.u64(..100);
            self.hold(at, until + longer);
        }
    }

    /// An instance loses its connection, and what it had sent is held up somewhere.
    fn cut_off(&mut self, at: usize) {
        if self.is_stopped(at) {
            return;
        }
        let steps = [10, 100, 1000][self.rng.usize(..3)];
        self.hold(at, self.now + steps);
        let awaited: Vec<usize> = (0..self.packets.len())
            .filter(|number| self.packets[*number].instance == at && self.is_awaited(&self.packets[*number]))
            .collect();
        awaited.into_iter().for_each(|number| self.give_up_packet(number));
    }

    fn hold(&mut self, at: usize, until: u64) {
        for packet in self.packets.iter_mut().filter(|packet| packet.instance == at) {
            packet.held_until = until;
        }
    }

    /// A stream's leader is gone: for a while there is none, its last answers are lost although what they tell of has
    /// happened, and it may answer what is read for a while longer, without knowing of its successor.
    fn depose(&mut self) {
        let is_bucket = self.rng.bool();
        let absent_until = self.now + self.rng.u64(1..60);
        let stale_until = if self.has_stale_reads { self.now + self.rng.u64(1..300) } else { 0 };
        if is_bucket {
            let leader = &mut self.bucket;
            (leader.absent_until, leader.stale_until, leader.stale) =
                (absent_until, stale_until, leader.state.clone());
        } else {
            let leader = &mut self.output;
            (leader.absent_until, leader.stale_until, leader.stale) =
                (absent_until, stale_until, leader.state.clone());
        }
        for packet in &mut self.packets {
            let is_output = matches!(packet.operation, Operation::Send { .. } | Operation::LastSent);
            if is_bucket != is_output && packet.answer.is_some() && self.rng.bool() {
                packet.answer = Some(Done::Unknown);
            }
        }
    }

    fn evict(&mut self, at: usize) {
        self.instances[at].users.retain(|_, user| !user.is_idle());
    }
}

fn user(number: u32) -> UserId {
    UserId(Id::new(&format!("user {number}")).expect("a valid id"))
}
