//! Instances of the durable mode, each a whole worker with its relay, against a simulated server with JetStream: every byte
//! between them is on the wire. What must hold is the server's to see (`jetstream`); here is who lives, and what goes wrong.
//!
//! After the faults all must become quiet by itself; then each user is asked for once more; then, much later, all
//! instances are new, the output stream has forgotten everything, and each user is asked for again: the records alone have to
//! tell that nothing is new. Then all drain.

use std::rc::Rc;
use std::time::Duration;

use alarm_digest::alarm::{Command, Id, Timestamp, UserId};
use alarm_digest::durable::worker::{Names, Worker, WorkerConfig};
use alarm_digest::logic::Logic;
use alarm_digest::message::{decode_change, decode_request};
use fastrand::Rng;
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ConnectOptions, Limits};

use crate::dice::{Dice, Fault, Stream, Without};
use crate::jetstream::Server;
use crate::judge::{CHANGED, Published, SEND, What};
use crate::memory::{INSTANTS, NEW_YEAR, RETENTION};
use crate::runs::{Outcome, STEPS_MAX};

struct Instance {
    worker: Worker,
    link: Option<Connection>,
    /// The one to move to.
    second: Option<Connection>,
    /// The two are exchanged for a moment, for the worker as well.
    is_swapped: bool,
    /// The first one is being left.
    is_moving: bool,
    tick_at: Duration,
    wall: Timestamp,
    is_leaving: bool,
    /// Steps before which it does nothing, does not connect, is not there.
    stalled_until: u64,
    no_link_until: u64,
    absent_until: u64,
}

struct Connection {
    /// Its number at the server, which may have closed it.
    id: u64,
    /// Came from the socket, not used yet.
    buffer: Vec<u8>,
    /// Nonsense has been sent to it.
    expects_fault: bool,
}

pub struct World {
    dice: Dice,
    without: Without,
    is_traced: bool,
    config: WorkerConfig,
    server: Server,
    instances: Vec<Instance>,
    lives: u64,
    links: u64,
    step: u64,
    steps_max: u64,
    hangs_until: u64,
    is_chaos: bool,
    history: Vec<Rc<Published>>,
    publish_max: usize,
    alarms: Vec<String>,
    /// There are many alarms, and most of the messages are of the first user.
    is_crowded: bool,
}

const USERS: usize = 4;

fn config(dice: &Dice, is_republished: bool) -> WorkerConfig {
    let text = str::to_owned;
    let mut rng = dice.draw(Stream::Setup, 1);
    let small = |small: usize, large| if dice.has(Fault::Limits) { small } else { large };
    WorkerConfig {
        names: Names {
            changed: text(CHANGED),
            send: text(SEND),
            digest: text("told"),
            dead: text("dead"),
            input: text("IN"),
            consumer: text("digest"),
            bucket: text("STATE"),
            output: text("OUT"),
            dead_letters: text("DEAD"),
            output_prefix: text("AD.out."),
            member_prefix: text("AD.member."),
            api_prefix: None,
        },
        session: SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            answer_max: Duration::from_secs(5),
            max_payload_at_least: 0,
        },
        retention: if dice.has(Fault::WallJump) { RETENTION } else { Duration::from_secs(1 << 40) },
        output_bytes_max: small(rng.usize(1..4000), 1 << 20),
        batch: small(rng.usize(1..6), 100) as u64,
        open_max: small(rng.usize(1..10), 1000),
        cached_users_max: small(rng.usize(0..3), 100),
        request_timeout: Duration::from_secs(2),
        affinity: rng.u32(..4) > 0,
        is_republished,
    }
}

impl World {
    pub fn new(seed: u64, without: &Without, is_traced: bool) -> Self {
        let dice = Dice::new(seed, without);
        let mut rng = dice.draw(Stream::Setup, 0);
        let is_republished = rng.bool();
        // Names that JSON makes six times as long, so that a record has room for more than a digest; or so long that a record
        // has room for eleven alarms, and more than those.
        let is_crowded = dice.draw(Stream::Setup, 3).bool();
        let prefix = match (dice.has(Fault::Limits), is_crowded) {
            (false, _) => 0,
            (true, false) => 60,
            (true, true) => 250,
        };
        let name = |number| format!("{}{number}", "\u{1}".repeat(prefix));
        let more = if is_crowded { 12 } else { 0 };
        let max_payload = if dice.has(Fault::Limits) { 3784 } else { 1 << 20 };
        let mut world = Self {
            config: config(&dice, is_republished),
            server: Server::new((0..USERS).map(user), is_republished, max_payload),
            instances: Vec::new(),
            lives: 0,
            links: 0,
            step: 0,
            steps_max: rng.u64(50..STEPS_MAX),
            hangs_until: 0,
            is_chaos: true,
            history: Vec::new(),
            publish_max: rng.usize(1..100),
            alarms: (0..rng.usize(1..9) + more).map(name).collect(),
            is_crowded,
            without: without.clone(),
            is_traced,
            dice,
        };
        for _ in 0..rng.usize(1..5) {
            let instance = world.instance();
            world.instances.push(instance);
        }
        world
    }

    /// A new one, of whom nobody has heard.
    fn instance(&mut self) -> Instance {
        self.lives += 1;
        let nonces = self.dice.draw(Stream::Setup, 1000 + self.lives).u128(..);
        Instance {
            worker: Worker::new(self.config.clone(), &format!("_INBOX.i{}", self.lives), nonces),
            link: None,
            second: None,
            is_swapped: false,
            is_moving: false,
            tick_at: self.server.now,
            wall: Timestamp::new(NEW_YEAR, 0),
            is_leaving: false,
            stalled_until: 0,
            no_link_until: 0,
            absent_until: 0,
        }
    }

    /// What a world is made with, but for what faults decide.
    pub fn shape(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let WorkerConfig { affinity, is_republished, .. } = self.config;
        let crowd = (self.alarms.len(), self.is_crowded);
        (self.instances.len(), self.steps_max, self.publish_max, crowd, affinity, is_republished)
    }

    /// # Panics
    /// When what must hold does not.
    pub fn run(mut self) -> Outcome {
        while self.step < self.steps_max {
            self.step += 1;
            if !self.without.steps.contains(&self.step) {
                self.strike();
                self.act();
            }
        }
        self.settle("all that was published");
        self.ask_for_all();
        self.settle("a last request of each user");
        self.server.on_end();
        self.server.grow_old();
        (0..self.instances.len()).for_each(|at| self.crash(at, 0));
        self.ask_for_all();
        self.settle("requests much later");
        self.server.on_end();
        for at in 0..self.instances.len() {
            self.leave(at);
        }
        self.settle("draining");
        self.server.tally.steps = self.step;
        (self.server.tally.counts(), self.dice.struck)
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:5} {:7?} {}", self.step, self.server.now, what());
        }
    }

    fn ask_for_all(&mut self) {
        (0..USERS).for_each(|number| self.put(request(number)));
    }

    fn put(&mut self, published: Rc<Published>) {
        self.trace(|| {
            format!("published: {} {}", published.subject, published.payload.replace("\\u0001", ""))
        });
        self.server.put(published);
    }

    fn strike(&mut self) {
        for fault in Fault::ALL {
            if let Some(mut rng) = self.dice.strikes(fault, self.step) {
                let at = rng.usize(..self.instances.len());
                let steps = [5, 30, 150][rng.usize(..3)];
                if self.befall(fault, at, steps, &mut rng) {
                    self.dice.struck[fault as usize] += 1;
                    self.trace(|| format!("fault: {fault:?} of instance {at} for {steps} steps"));
                }
            }
        }
    }

    /// Says whether anything came of it.
    fn befall(&mut self, fault: Fault, at: usize, steps: u64, rng: &mut Rng) -> bool {
        if self.instances[at].second.is_none() || rng.bool() {
            return self.befall_link(fault, at, steps, rng);
        }
        let mut did = false;
        self.on_second(at, |world| did = world.befall_link(fault, at, steps, rng));
        did
    }

    fn befall_link(&mut self, fault: Fault, at: usize, steps: u64, rng: &mut Rng) -> bool {
        let (until, later) = (self.step + steps, self.server.now + Duration::from_millis(20) * steps as u32);
        let instance = &mut self.instances[at];
        let link = instance.link.as_ref().map(|link| link.id);
        let link = link.filter(|link| self.server.links.contains_key(link));
        match (fault, link) {
            (Fault::Repeat, _) if !self.history.is_empty() => {
                let again = self.history[rng.usize(..self.history.len())].clone();
                self.put(again);
            }
            (Fault::Disconnect, Some(_)) => self.close(at, rng),
            (Fault::Reset, Some(_)) => self.lose_link(at, Duration::from_millis(rng.u64(..100))),
            (Fault::HalfOpen, Some(_)) => self.lose_link(at, Duration::from_millis(rng.u64(..20_000))),
            (Fault::Restart, _) => {
                for at in 0..self.instances.len() {
                    self.close(at, rng);
                    self.on_second(at, |world| world.close(at, rng));
                }
                self.server.restart();
                self.hangs_until = 0;
            }
            (Fault::Unreachable, _) => instance.no_link_until = until,
            (Fault::Hang, _) => self.hangs_until = until,
            (Fault::Stall, _) => instance.stalled_until = until,
            (Fault::Garbage, Some(link)) => {
                instance.link.as_mut().expect("it was just there").expects_fault = true;
                self.server
                    .links
                    .get_mut(&link)
                    .expect("it was just there")
                    .to_client
                    .extend(b"\x16\x03\x01\r\n");
            }
            // Most of the time to where some of the instants are just forgotten.
            (Fault::WallJump, _) => {
                let seconds = NEW_YEAR + rng.i64(4..18);
                instance.wall = Timestamp::new(seconds, 0);
                self.server.may_forget(Timestamp::new(seconds - RETENTION.as_secs() as i64, 0));
            }
            (Fault::Sleep, _) => self.server.now += Duration::from_secs(rng.u64(10..100)),
            (Fault::Crash, _) => self.crash(at, steps),
            (Fault::Leave, _) => self.leave(at),
            (Fault::NoLeader, _) => self.server.lose_leaders(later, rng),
            (Fault::Full, _) => self.server.full_until = later,
            (Fault::Stale, _) => self.server.depose(later),
            (Fault::Again, _) => return self.server.deliver_again(rng),
            (Fault::Move, Some(_)) => return self.begin_move(at),
            _ => return false,
        }
        true
    }

    fn act(&mut self) {
        let mut rng = self.dice.draw(Stream::Schedule, self.step);
        let at = rng.usize(..self.instances.len());
        self.server.now += Duration::from_millis(rng.u64(1..40));
        self.server.bury();
        let is_up = self.hangs_until <= self.step;
        match rng.u32(..100) {
            0..12 => self.publish(),
            12..32 if is_up => self.server.deliver(&mut rng, !self.dice.has(Fault::Reorder)),
            32..48 if is_up => self.server.reply(&mut rng),
            48..60 if is_up => self.serve_any(&mut rng),
            60..80 => self.on_either(at, &mut rng, |world, rng| world.read(at, rng.usize(..600))),
            80..94 => self.on_either(at, &mut rng, |world, rng| world.write(at, rng.usize(..1200))),
            94..99 => self.connect(at),
            _ => {}
        }
        if !self.is_stalled(at) && self.instances[at].second.is_some() && rng.bool() {
            self.go_over(at);
        }
        self.finish_turn(at);
    }

    /// Does this with one of the connections of an instance.
    fn on_either(&mut self, at: usize, rng: &mut Rng, what: impl FnOnce(&mut Self, &mut Rng)) {
        if self.instances[at].second.is_some() && rng.bool() {
            self.on_second(at, |world| what(world, rng));
        } else {
            what(self, rng);
        }
    }

    /// Does this with the second connection of an instance, if it has one, in the place of the first.
    fn on_second(&mut self, at: usize, what: impl FnOnce(&mut Self)) {
        if self.instances[at].second.is_none() {
            return;
        }
        self.swap_links(at);
        what(self);
        // Unless another instance is in its place.
        if self.instances[at].is_swapped {
            self.swap_links(at);
        }
        let instance = &self.instances[at];
        if instance.is_moving && instance.second.is_none() {
            self.lose_link(at, Duration::ZERO);
        }
    }

    fn swap_links(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        std::mem::swap(&mut instance.link, &mut instance.second);
        instance.worker.swap_links();
        instance.is_swapped = !instance.is_swapped;
    }

    fn begin_move(&mut self, at: usize) -> bool {
        let (is_stalled, now) = (self.is_stalled(at), self.server.now);
        let instance = &self.instances[at];
        let may_move = !is_stalled && !instance.is_leaving && instance.worker.is_subscribed();
        if !may_move || instance.second.is_some() {
            return false;
        }
        let connection = self.new_connection();
        let instance = &mut self.instances[at];
        instance.second = Some(connection);
        instance.worker.swap_links();
        instance.worker.on_link(SignIn::default(), now);
        instance.worker.swap_links();
        true
    }

    /// As the driver does.
    fn go_over(&mut self, at: usize) {
        let now = self.server.now;
        let instance = &mut self.instances[at];
        if instance.second.is_none() {
            return;
        }
        instance.worker.swap_links();
        let is_subscribed = instance.worker.is_subscribed();
        instance.worker.swap_links();
        if is_subscribed && !instance.is_moving {
            instance.is_moving = true;
            instance.worker.leave(now);
            self.trace(|| format!("instance {at} leaves its first connection"));
        } else if is_subscribed && instance.worker.has_left() {
            assert_eq!(instance.worker.unsettled(), 0, "it leaves behind what is not answered");
            let first = instance.link.take().expect("there are two");
            self.take_second(at);
            self.server.desert(first.id, usize::MAX, Duration::ZERO);
            self.server.tally.moves += 1;
            self.trace(|| format!("instance {at} has gone over to its second connection"));
        }
    }

    fn take_second(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        instance.worker.change_links(self.server.now);
        (instance.link, instance.is_moving) = (instance.second.take(), false);
    }

    fn is_stalled(&self, at: usize) -> bool {
        let instance = &self.instances[at];
        instance.stalled_until > self.step || instance.absent_until > self.step
    }

    fn finish_turn(&mut self, at: usize) {
        if self.is_stalled(at) {
            return;
        }
        let now = self.server.now;
        if self.instances[at].tick_at <= now {
            self.instances[at].tick_at = now + Duration::from_secs(1);
            self.read(at, usize::MAX);
            self.on_second(at, |world| world.read(at, usize::MAX));
            self.tell_time(at);
            self.on_second(at, |world| world.tell_time(at));
        }
        let instance = &mut self.instances[at];
        if instance.is_leaving && instance.second.is_none() {
            instance.worker.drain(now);
        }
        instance.worker.finish_turn(now);
        instance.worker.notices().clear();
        if instance.is_leaving && instance.worker.is_drained() {
            assert_eq!(instance.worker.unsettled(), 0, "drained, and something is not answered");
            self.trace(|| format!("instance {at} is drained"));
            let steps = self.dice.draw(Stream::Loss, self.step).u64(..100);
            self.crash(at, steps);
        }
    }

    fn tell_time(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        if let Err(fault) = instance.worker.on_time(self.server.now, instance.wall) {
            self.trace(|| format!("instance {at}: {fault}"));
            self.lose_link(at, Duration::from_secs(1));
        }
    }

    fn settle(&mut self, what: &str) {
        self.trace(|| format!("from here on all is well: {what}"));
        (self.is_chaos, self.hangs_until) = (false, 0);
        self.server.recover();
        for instance in &mut self.instances {
            (instance.stalled_until, instance.no_link_until, instance.absent_until) = (0, 0, 0);
        }
        let is_end = self.instances.iter().all(|instance| instance.is_leaving) && what == "draining";
        for _ in 0..20_000 {
            self.step += 1;
            self.server.now += Duration::from_millis(50);
            self.server.bury();
            let has_left = self.instances.iter().all(|instance| !instance.is_leaving);
            if if is_end { has_left } else { self.server.is_quiet() } {
                return;
            }
            let mut rng = self.dice.draw(Stream::Schedule, self.step);
            for at in 0..self.instances.len() {
                self.connect(at);
                self.read(at, usize::MAX);
                self.on_second(at, |world| world.read(at, usize::MAX));
                self.go_over(at);
                self.finish_turn(at);
                self.write(at, usize::MAX);
                self.on_second(at, |world| world.write(at, usize::MAX));
            }
            let links: Vec<u64> = self.server.links.keys().copied().collect();
            links.into_iter().for_each(|link| self.server.serve(link, &mut rng));
            for _ in 0..10 {
                self.server.deliver(&mut rng, false);
            }
            while !self.server.replies.is_empty() {
                self.server.reply(&mut rng);
            }
        }
        panic!("stuck with {what}: {}", self.server.says_what_is_left());
    }

    fn publish(&mut self) {
        if self.history.len() >= self.publish_max {
            return;
        }
        let mut rng = self.dice.draw(Stream::Workload, self.history.len() as u64);
        let user = if self.is_crowded && rng.u32(..4) > 0 { 0 } else { rng.usize(..USERS) };
        let published = match rng.u32(..12) {
            0 => Rc::new(Published { subject: CHANGED, payload: "{".into(), what: What::Bad }),
            1..5 => request(user),
            _ => {
                let alarm = &self.alarms[rng.usize(..self.alarms.len())];
                let status = ["CLEARED", "WARNING", "CRITICAL"][rng.usize(..3)];
                let payload = serde_json::json!({
                    "AlarmID": alarm,
                    "UserID": format!("user {user}"),
                    "Status": status,
                    "ChangedAt": format!("2026-01-01T00:00:0{}Z", rng.u32(..INSTANTS as u32)),
                })
                .to_string();
                let Ok(Command::Apply(change)) = decode_change(payload.as_bytes()) else {
                    panic!("a change")
                };
                Rc::new(Published { subject: CHANGED, payload, what: What::Change(change) })
            }
        };
        self.history.push(published.clone());
        self.put(published);
    }

    fn serve_any(&mut self, rng: &mut Rng) {
        let links: Vec<u64> = self.server.links.keys().copied().collect();
        if let Some(link) = rng.choice(&links) {
            self.server.serve(*link, rng);
        }
    }

    fn connect(&mut self, at: usize) {
        let (is_stalled, now) = (self.is_stalled(at), self.server.now);
        let instance = &self.instances[at];
        if is_stalled || instance.link.is_some() || instance.no_link_until > self.step {
            return;
        }
        let connection = self.new_connection();
        let instance = &mut self.instances[at];
        instance.link = Some(connection);
        instance.worker.on_link(SignIn::default(), now);
        self.trace(|| format!("instance {at} connects"));
    }

    fn new_connection(&mut self) -> Connection {
        self.links += 1;
        self.server.connect(self.links);
        Connection { id: self.links, buffer: Vec::new(), expects_fault: false }
    }

    /// The server closes a connection, or dies. What has arrived is the instance's.
    fn close(&mut self, at: usize, rng: &mut Rng) {
        let (has_written, arriving) = (rng.bool(), rng.usize(..));
        let Some(link) = self.instances[at].link.as_ref().map(|link| link.id) else { return };
        if has_written {
            self.server.serve(link, rng);
        }
        if let Some(mut link) = self.server.links.remove(&link) {
            let arriving = arriving % (link.to_client.len() + 1);
            let connection = self.instances[at].link.as_mut().expect("it was just there");
            connection.buffer.extend(link.to_client.drain(..arriving));
        }
    }

    /// The instance has given its connection up. Some of what it wrote last arrives later, and the server does not know.
    fn lose_link(&mut self, at: usize, for_how_long: Duration) {
        let now = self.server.now;
        let instance = &mut self.instances[at];
        let Some(link) = instance.link.take() else { return };
        if instance.second.is_some() && !instance.is_swapped {
            self.take_second(at);
        } else {
            instance.worker.on_link_lost(now);
            instance.is_moving &= instance.is_swapped;
        }
        let arriving = self.dice.draw(Stream::Loss, self.step).usize(..);
        self.server.desert(link.id, arriving, for_how_long);
        self.trace(|| format!("instance {at} has lost its link"));
    }

    fn crash(&mut self, at: usize, steps: u64) {
        let arriving = self.dice.draw(Stream::Loss, self.step).usize(..);
        let Instance { link, second, .. } = &self.instances[at];
        for link in link.iter().chain(second) {
            self.server.desert(link.id, arriving, Duration::from_millis(20) * steps as u32);
        }
        self.instances[at] = self.instance();
        self.instances[at].absent_until = self.step + steps;
    }

    fn leave(&mut self, at: usize) {
        let now = self.server.now;
        if !self.is_stalled(at) {
            let instance = &mut self.instances[at];
            instance.is_leaving = true;
            if instance.second.is_none() {
                instance.worker.drain(now);
            }
        }
    }

    fn read(&mut self, at: usize, bytes_max: usize) {
        let bytes_max = if self.dice.has(Fault::CutReads) { bytes_max } else { usize::MAX };
        let (is_stalled, now) = (self.is_stalled(at), self.server.now);
        let instance = &mut self.instances[at];
        let Some(connection) = instance.link.as_mut().filter(|_| !is_stalled) else { return };
        if !instance.worker.takes_bytes() {
            return;
        }
        let mut link = self.server.links.get_mut(&connection.id);
        if let Some(link) = link.as_mut().filter(|_| self.hangs_until <= self.step) {
            let bytes = link.to_client.len().min(bytes_max);
            connection.buffer.extend(link.to_client.drain(..bytes));
            if bytes > 0 {
                instance.worker.heard(now);
            }
        }
        let is_closed = link.is_none();
        match instance.worker.receive(&connection.buffer, now) {
            Ok(used) => drop(connection.buffer.drain(..used)),
            Err(fault) => {
                assert!(connection.expects_fault, "a fault that nobody caused: {fault}");
                return self.lose_link(at, Duration::from_secs(1));
            }
        }
        if is_closed && instance.worker.takes_bytes() {
            self.lose_link(at, Duration::ZERO);
        }
    }

    fn write(&mut self, at: usize, bytes_max: usize) {
        let bytes_max = if self.dice.has(Fault::CutWrites) { bytes_max } else { usize::MAX };
        let (is_stalled, now) = (self.is_stalled(at), self.server.now);
        let instance = &mut self.instances[at];
        let Some(id) = instance.link.as_ref().map(|link| link.id).filter(|_| !is_stalled) else { return };
        let output = instance.worker.output();
        let bytes = match self.server.links.get_mut(&id) {
            None => output.len(),
            Some(link) => {
                let bytes = output.len().min(bytes_max);
                link.to_server.extend_from_slice(&output[..bytes]);
                bytes
            }
        };
        if bytes > 0 {
            instance.worker.wrote(bytes, now);
        }
    }
}

fn user(number: usize) -> UserId {
    UserId(Id::new(&format!("user {number}")).expect("a valid id"))
}

fn request(number: usize) -> Rc<Published> {
    let payload = format!(r#"{{"UserID":"user {number}"}}"#);
    let Ok(Command::SendDigest(user)) = decode_request(payload.as_bytes()) else { panic!("a request") };
    Rc::new(Published { subject: SEND, payload, what: What::Request(user) })
}
