//! Instances of the durable mode against a simulated bucket, output stream and work queue: messages are delivered again,
//! writes meet, answers are lost or late, packets arrive long after their sender has given them up, instances stop for
//! long or crash. One seed decides everything; every digest that the output stream takes is held against the oracle.
//!
//! `DURABLE_SEED=n` repeats one run, `DURABLE_SEEDS=n` runs that many. Three mutations of the protocol show that the
//! checker can fail.

use std::collections::BTreeMap;

use alarm_digest::alarm::{AlarmId, Change, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::durable::record::{Nonce, Record};
use alarm_digest::durable::user::{Done, Operation, User, UserLimits};
use alarm_digest_checker::Oracle;
use fastrand::Rng;

const SEEDS: u64 = 10_000;
/// Each mutation is caught within so many seeds.
const MUTATION_SEEDS: u64 = 500;

#[test]
fn every_alarm_is_told_exactly_once_whatever_happens_to_instances_and_packets() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("DURABLE_SEED") {
        return World::new(seed, Protocol::AsItIs).run().unwrap();
    }
    for seed in 0..number("DURABLE_SEEDS").unwrap_or(SEEDS) {
        if let Err(wrong) = World::new(seed, Protocol::AsItIs).run() {
            panic!("{wrong}: repeat it with DURABLE_SEED={seed}");
        }
    }
}

#[test]
fn the_checker_catches_protocols_that_are_wrong() {
    for protocol in [Protocol::SendsBeforeItStores, Protocol::StoresBlindly, Protocol::SendsBlindly] {
        let caught = (0..MUTATION_SEEDS).find(|seed| World::new(*seed, protocol).run().is_err());
        assert!(caught.is_some(), "{protocol:?} passes {MUTATION_SEEDS} seeds");
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
}

#[derive(Clone)]
enum Message {
    Change(Change),
    Request(UserId),
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
}

#[derive(Default)]
struct Instance {
    life: u32,
    users: BTreeMap<UserId, User<usize>>,
    is_stopped: bool,
}

struct World {
    rng: Rng,
    protocol: Protocol,
    instances: Vec<Instance>,
    packets: Vec<Packet>,
    /// By number; none once acknowledged.
    queue: Vec<Option<Message>>,
    bucket: BTreeMap<UserId, (Vec<u8>, u64)>,
    sent: BTreeMap<UserId, Vec<(u64, Nonce)>>,
    sequence: u64,
    oracle: Oracle,
    wrong: Option<String>,
    has_faults: bool,
    digest_bytes_max: usize,
}

const USERS: u32 = 3;

impl World {
    fn new(seed: u64, protocol: Protocol) -> Self {
        let mut rng = Rng::with_seed(seed);
        let instances = rng.usize(1..4);
        Self {
            protocol,
            instances: (0..instances).map(|_| Instance::default()).collect(),
            packets: Vec::new(),
            queue: Vec::new(),
            bucket: BTreeMap::new(),
            sent: BTreeMap::new(),
            sequence: 0,
            oracle: Oracle::default(),
            wrong: None,
            has_faults: true,
            // Room for one alarm, for two, or for all.
            digest_bytes_max: [130, 220, 10_000][rng.usize(..3)],
            rng,
        }
    }

    fn run(mut self) -> Result<(), String> {
        let messages = self.rng.usize(1..60);
        while self.queue.len() < messages || self.rng.u8(..) > 0 {
            if self.queue.len() < messages && self.rng.u32(..6) == 0 {
                self.publish();
            }
            self.step();
        }
        self.has_faults = false;
        self.instances.iter_mut().for_each(|instance| instance.is_stopped = false);
        self.settle()?;
        for number in 0..USERS {
            self.queue.push(Some(Message::Request(user(number))));
        }
        self.settle()?;
        match &self.oracle.missing()[..] {
            [] => self.wrong.map_or(Ok(()), Err),
            missing => Err(format!("never told of {missing:?}")),
        }
    }

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
        self.queue.push(Some(message));
    }

    /// Until everything is acknowledged and nothing is on its way.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..20_000 {
            if self.queue.iter().all(Option::is_none) && self.packets.is_empty() {
                return Ok(());
            }
            self.step();
        }
        Err("never done".into())
    }

    /// Does one thing that can happen.
    fn step(&mut self) {
        let at = self.rng.usize(..self.instances.len());
        match self.rng.u32(..100) {
            0..20 => self.deliver(at),
            20..50 => self.serve(),
            50..80 => self.answer(),
            80..84 if self.has_faults => self.give_up(),
            84..86 if self.has_faults => self.crash(at),
            86..88 if self.has_faults => self.instances[at].is_stopped ^= true,
            88..92 => self.evict(at),
            _ => {}
        }
    }

    /// Any message that is not acknowledged, to any instance, whether another one has it already or not.
    fn deliver(&mut self, at: usize) {
        let open: Vec<usize> = (0..self.queue.len()).filter(|number| self.queue[*number].is_some()).collect();
        if open.is_empty() || self.instances[at].is_stopped {
            return;
        }
        let number = open[self.rng.usize(..open.len())];
        let message = self.queue[number].clone().expect("it is open");
        let (Message::Change(Change { user: id, .. }) | Message::Request(id)) = &message;
        let user = self.instances[at].users.entry(id.clone()).or_insert_with(|| User::new(id.clone()));
        let id = id.clone();
        match message {
            Message::Change(change) => user.on_change(change.alarm, change.condition, number),
            Message::Request(_) => user.on_request(number),
        }
        self.advance(at, &id);
    }

    fn advance(&mut self, at: usize, id: &UserId) {
        let limits = UserLimits {
            record_bytes_max: 1 << 20,
            digest_bytes_max: self.digest_bytes_max,
            horizon: Timestamp::new(-1, 0),
        };
        let rng = &mut self.rng;
        let instance = &mut self.instances[at];
        let user = instance.users.get_mut(id).expect("it was just used");
        let operation = user.step(&limits, || Nonce(rng.u128(..))).expect("it is not too large");
        for number in user.acknowledged().drain(..) {
            self.queue[number] = None;
        }
        let Some(operation) = operation else { return };
        if self.protocol == Protocol::SendsBeforeItStores
            && let Operation::Store { record, .. } = &operation
            && let Some((nonce, digest)) = Record::decode(id, record).expect("it was just written").outbox()
        {
            self.send(id, nonce, &digest.alarms);
        }
        let life = self.instances[at].life;
        self.packets.push(Packet {
            instance: at,
            life,
            user: id.clone(),
            operation,
            answer: None,
            is_given_up: false,
        });
    }

    /// The server serves any packet that has not been there.
    fn serve(&mut self) {
        let waiting: Vec<usize> =
            (0..self.packets.len()).filter(|at| self.packets[*at].answer.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let at = waiting[self.rng.usize(..waiting.len())];
        let packet = &self.packets[at];
        if self.has_faults && self.rng.u32(..20) == 0 {
            // Lost on its way there: nobody will ever know.
            self.packets[at].answer = Some(Done::Unknown);
            return;
        }
        let (id, operation) = (packet.user.clone(), packet.operation.clone());
        let answer = self.obey(&id, operation);
        self.packets[at].answer = Some(answer);
    }

    fn obey(&mut self, id: &UserId, operation: Operation) -> Done {
        match operation {
            Operation::Load | Operation::Verify => Done::Loaded(self.bucket.get(id).cloned()),
            Operation::Store { record, revision } => {
                let stored = self.bucket.get(id).map_or(0, |(_, revision)| *revision);
                if stored != revision && self.protocol != Protocol::StoresBlindly {
                    return Done::Conflict;
                }
                self.sequence += 1;
                self.bucket.insert(id.clone(), (record, self.sequence));
                Done::Written(self.sequence)
            }
            Operation::Send { .. } if self.protocol == Protocol::SendsBeforeItStores => {
                Done::Written(self.sequence)
            }
            Operation::Send { digest, nonce, last } => {
                let sent =
                    self.sent.get(id).and_then(|sent| sent.last()).map_or(0, |(sequence, _)| *sequence);
                if sent != last && self.protocol != Protocol::SendsBlindly {
                    return Done::Conflict;
                }
                Done::Written(self.send(id, nonce, &digest.alarms))
            }
            Operation::LastSent => Done::LastSent(self.sent.get(id).and_then(|sent| sent.last().copied())),
        }
    }

    fn send(&mut self, id: &UserId, nonce: Nonce, alarms: &[(AlarmId, Condition)]) -> u64 {
        self.sequence += 1;
        self.sent.entry(id.clone()).or_default().push((self.sequence, nonce));
        if let Some(wrong) = self.oracle.hear(id, alarms).first() {
            self.wrong.get_or_insert(format!("{wrong:?}"));
        }
        self.sequence
    }

    /// Any answer arrives, if its instance lives and runs and still waits for it.
    fn answer(&mut self) {
        let ready = |packet: &Packet| packet.answer.is_some() && !self.instances[packet.instance].is_stopped;
        let ready: Vec<usize> = (0..self.packets.len()).filter(|at| ready(&self.packets[*at])).collect();
        if ready.is_empty() {
            return;
        }
        let packet = self.packets.swap_remove(ready[self.rng.usize(..ready.len())]);
        if !packet.is_given_up && self.instances[packet.instance].life == packet.life {
            self.conclude(packet.instance, &packet.user, packet.answer.expect("it is ready"));
        }
    }

    fn conclude(&mut self, at: usize, id: &UserId, done: Done) {
        let user = self.instances[at].users.get_mut(id).expect("who waits is not evicted");
        user.on_done(done).expect("a record of ours");
        self.advance(at, id);
    }

    /// An instance's patience ends. The packet may still be served.
    fn give_up(&mut self) {
        let hopeful = |packet: &Packet| {
            let instance = &self.instances[packet.instance];
            !packet.is_given_up && !instance.is_stopped && instance.life == packet.life
        };
        let hopeful: Vec<usize> = (0..self.packets.len()).filter(|at| hopeful(&self.packets[*at])).collect();
        if hopeful.is_empty() {
            return;
        }
        let at = hopeful[self.rng.usize(..hopeful.len())];
        self.packets[at].is_given_up = true;
        let (instance, id) = (self.packets[at].instance, self.packets[at].user.clone());
        self.conclude(instance, &id, Done::Unknown);
    }

    fn crash(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        *instance = Instance { life: instance.life + 1, ..Instance::default() };
    }

    fn evict(&mut self, at: usize) {
        self.instances[at].users.retain(|_, user| !user.is_idle());
    }
}

fn user(number: u32) -> UserId {
    UserId(Id::new(&format!("user {number}")).expect("a valid id"))
}
