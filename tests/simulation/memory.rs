//! Shards against a simulated server and simulated drivers: a queue group whose messages come in any order and any number of
//! times, connections that break anywhere, cores that move to another one, cores and servers that stop, clocks that jump, and a
//! drain at any time. What must hold is the judge's.
//!
//! A run is some hundred steps in which anything may happen, then quiet, then a last request of each user, then a drain
//! that faults disturb again. Everything is drawn from `dice`.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use alarm_digest::alarm::{Command, Timestamp};
use alarm_digest::logic::Logic;
use alarm_digest::message::{DIGEST_BYTES_MAX_AT_LEAST, decode_change, decode_request};
use alarm_digest::shard::{Mail, Shard, ShardConfig, ShardId, Subjects};
use nats_wire::session::{SessionConfig, SignIn};
use nats_wire::{ClientOp, ConnectOptions, Limits, Publish, ServerDecoder, Step};

use crate::dice::{Dice, Fault, Stream, Without};
use crate::judge::{CHANGED, INBOX, Judge, Published, SEND, What};
use crate::runs::{Outcome, STEPS_MAX};
use crate::wire::{Connection, DEAD, DIGESTS, Delivery, SUBSCRIPTIONS, Sent};

/// A core with what its driver would hold.
struct Core {
    shard: Shard,
    connection: Option<Connection>,
    /// Came from the socket, not used yet.
    buffer: Vec<u8>,
    /// The connection to move to, and what came on it.
    second: Option<(Connection, Vec<u8>)>,
    /// Of sixteen things that happen on either connection, so many happen on the second.
    second_share: u32,
    /// In one of so many steps of this core the first one is begun to be left.
    stays_beside: u32,
    /// The two are exchanged for a moment, for the shard as well.
    is_swapped: bool,
    /// The first one is being left.
    is_leaving: bool,
    /// Each with the shard that wrote it.
    inbox: Vec<(usize, Mail)>,
    /// Of each other core: what it has read for this one, and mailed or will mail.
    mailed: Vec<VecDeque<Delivery>>,
    /// Steps before which it does nothing, takes no mail, does not connect.
    stalled_until: u64,
    no_mail_until: u64,
    no_link_until: u64,
    /// A link has broken since the drain began.
    has_broken: bool,
    /// It is drained, and its driver has left.
    is_gone: bool,
}

/// What is left at the server of a connection that its core has given up.
struct Ghost {
    core: usize,
    subjects: Vec<&'static str>,
    /// Digests that arrive late: their places in the log.
    digests: Vec<(u64, u64)>,
    speaks_at: u64,
    ends_at: u64,
}

pub struct World {
    dice: Dice,
    without: Without,
    is_traced: bool,
    step: u64,
    steps_max: u64,
    now: Duration,
    wall: Timestamp,
    /// Cleared alarms are forgotten, by `wall`.
    has_retention: bool,
    cores: Vec<Core>,
    ghosts: Vec<Ghost>,
    /// Published, and not taken by the server yet.
    pool: VecDeque<Rc<Published>>,
    history: Vec<Rc<Published>>,
    publish_max: usize,
    /// What a broken link swallowed is published again.
    publishes_again: bool,
    taken: u64,
    hangs_until: u64,
    is_chaos: bool,
    is_draining: bool,
    inbox_max: usize,
    output_bytes_max: usize,
    mail_max: usize,
    alarms: Vec<String>,
    bad_read: u64,
    dead_letters_refused: bool,
    has_broken: bool,
    pub judge: Judge,
}

const USERS: usize = 5;

/// 2026-01-01T00:00:00Z.
pub const NEW_YEAR: i64 = 1_767_225_600;

/// Instants of changes are within so many seconds of it, and cleared alarms are remembered for fewer where they are not
/// remembered for ever.
pub const INSTANTS: i64 = 10;
pub const RETENTION: Duration = Duration::from_secs(5);

/// The largest operation, roughly: a digest of all alarms with long names.
const OPERATION_BYTES_MAX: usize = 32 << 10;

fn config(dice: &Dice, is_eager: bool) -> ShardConfig {
    let text = str::to_owned;
    let mut rng = dice.draw(Stream::Setup, 1);
    let small = |small: usize, large| if dice.has(Fault::Limits) { small } else { large };
    ShardConfig {
        subjects: Subjects {
            changed: text(CHANGED),
            send: text(SEND),
            digest: text("digest"),
            rejected: text("rejected"),
        },
        queue_group: "group".into(),
        is_eager,
        retention: if dice.has(Fault::WallJump) { RETENTION } else { Duration::from_secs(1 << 40) },
        output_bytes_max: small(rng.usize(1..2000), 1 << 20),
        unsettled_bytes_max: small(rng.usize(1..500), 1 << 20),
        mail_max: small(rng.usize(1..4), 1 << 10),
        session: SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            answer_max: Duration::from_secs(5),
            max_payload_at_least: DIGEST_BYTES_MAX_AT_LEAST as u64,
        },
    }
}

/// What the shards do, and what they are held to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    Causal,
    /// Shards that are eager, held to all but that.
    Eager,
    /// The same shards, held to all of it.
    Broken,
}

impl World {
    pub fn new(seed: u64, promise: Promise, without: &Without, is_traced: bool) -> Self {
        let dice = Dice::new(seed, without);
        let (mut rng, mut for_limits) = (dice.draw(Stream::Setup, 0), dice.draw(Stream::Setup, 3));
        let shards = rng.usize(1..5);
        let config = config(&dice, promise != Promise::Causal);
        let core = |id| Core {
            shard: Shard::new(ShardId(id), shards, config.clone()),
            connection: None,
            buffer: Vec::new(),
            second: None,
            second_share: 0,
            stays_beside: 1,
            is_swapped: false,
            is_leaving: false,
            inbox: Vec::new(),
            mailed: (0..shards).map(|_| VecDeque::new()).collect(),
            stalled_until: 0,
            no_mail_until: 0,
            no_link_until: 0,
            has_broken: false,
            is_gone: false,
        };
        // Names that JSON makes six times as long, now and then: three of them do not fit into the smallest payload.
        let prefix =
            if dice.has(Fault::Limits) && for_limits.bool() { "\u{1}".repeat(200) } else { String::new() };
        Self {
            cores: (0..shards).map(core).collect(),
            is_traced,
            step: 0,
            steps_max: rng.u64(50..STEPS_MAX / 2),
            now: Duration::ZERO,
            wall: Timestamp::new(NEW_YEAR, 0),
            has_retention: dice.has(Fault::WallJump),
            ghosts: Vec::new(),
            pool: VecDeque::new(),
            history: Vec::new(),
            publish_max: rng.usize(1..150),
            publishes_again: rng.bool(),
            taken: 0,
            hangs_until: 0,
            is_chaos: true,
            is_draining: false,
            inbox_max: if dice.has(Fault::Limits) { for_limits.usize(1..5) } else { 1 << 10 },
            output_bytes_max: config.output_bytes_max,
            mail_max: config.mail_max,
            alarms: (0..rng.usize(1..20)).map(|number| format!("{prefix}{number}")).collect(),
            bad_read: 0,
            dead_letters_refused: false,
            has_broken: false,
            judge: Judge::new(shards, promise != Promise::Eager),
            without: without.clone(),
            dice,
        }
    }

    /// What a world is made with, but for what faults decide.
    pub fn shape(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        (self.cores.len(), self.steps_max, self.publish_max, self.publishes_again, self.alarms.len())
    }

    /// # Panics
    /// When what must hold does not.
    pub fn run(mut self) -> Outcome {
        self.trace(|| "so it begins".into());
        while self.step < self.steps_max {
            self.do_step();
        }
        if !self.is_draining {
            self.settle("all that was published");
            for number in 0..USERS {
                self.pool.push_back(Rc::new(request(number)));
            }
            self.settle("a last request of each user");
            self.judge.on_end();
            self.hold_to_counters();
            self.drain();
            self.chaos_while_draining();
        }
        self.settle("draining");
        assert!(self.judge.is_all_answered(), "drained, and a request is not answered");
        self.judge.hold_to_asked(self.cores.iter().map(|core| core.shard.counters().unanswered).sum());
        self.judge.tally.steps = self.step;
        (self.judge.tally.counts(), self.dice.struck)
    }

    /// What the shards have counted is what was read and heard.
    fn hold_to_counters(&mut self) {
        let counters = || self.cores.iter().map(|core| core.shard.counters());
        let read: u64 = counters().map(|counters| counters.messages()).sum();
        assert_eq!(read, self.judge.tally.read, "messages read, as the shards count them");
        let rejected: u64 = counters().map(|counters| counters.rejected.iter().sum::<u64>()).sum();
        assert_eq!(rejected, self.bad_read, "bad messages, as the shards count them");
        let unproved: u64 = counters().map(|counters| counters.unproved).sum();
        let heard = self.judge.tally.dead_letters;
        if !self.dead_letters_refused {
            assert!(
                heard + unproved >= rejected,
                "a dead letter is missing: {heard} + {unproved} < {rejected}"
            );
            assert!(
                self.has_broken || heard == rejected,
                "{heard} dead letters of {rejected}, and no link broke"
            );
        }
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:5} {}", self.step, what());
        }
    }

    fn do_step(&mut self) {
        self.step += 1;
        if !self.without.steps.contains(&self.step) {
            self.strike();
            self.act();
        }
    }

    fn chaos_while_draining(&mut self) {
        let until = self.step + self.dice.draw(Stream::Setup, 2).u64(..200);
        self.is_chaos = true;
        while self.step < until {
            self.do_step();
        }
    }

    /// What goes wrong at this step.
    fn strike(&mut self) {
        let step = self.step;
        for fault in Fault::ALL {
            if let Some(mut rng) = self.dice.strikes(fault, step) {
                let at = rng.usize(..self.cores.len());
                let until = step + [5, 30, 150][rng.usize(..3)];
                self.befall(fault, at, until, &mut rng);
            }
        }
    }

    fn befall(&mut self, fault: Fault, at: usize, until: u64, rng: &mut fastrand::Rng) {
        if self.cores[at].second.is_some() && rng.bool() {
            self.on_second(at, |world| world.befall_link(fault, at, until, rng));
        } else {
            self.befall_link(fault, at, until, rng);
        }
    }

    fn befall_link(&mut self, fault: Fault, at: usize, until: u64, rng: &mut fastrand::Rng) {
        let (is_draining, has_second) = (self.is_draining, self.cores[at].second.is_some());
        let core = &mut self.cores[at];
        let connection = core.connection.as_mut().filter(|connection| !connection.is_closed);
        match (fault, connection) {
            (Fault::Repeat, _) if !self.history.is_empty() => {
                let again = self.history[rng.usize(..self.history.len())].clone();
                self.pool.push_back(again);
            }
            (Fault::Disconnect, Some(_)) => self.close(at, rng),
            (Fault::Reset, Some(_)) => self.lose_link(at, rng.u64(..5)),
            (Fault::HalfOpen, Some(_)) => self.lose_link(at, rng.u64(5..200)),
            (Fault::Restart, _) => {
                for at in 0..self.cores.len() {
                    self.close(at, rng);
                    self.on_second(at, |world| world.close(at, rng));
                }
                self.ghosts.clear();
                self.hangs_until = 0;
            }
            (Fault::Unreachable, _) => core.no_link_until = until,
            (Fault::Hang, _) => self.hangs_until = until,
            (Fault::Stall, _) => core.stalled_until = until,
            (Fault::SlowMail, _) => core.no_mail_until = until,
            (Fault::RefuseDigests, Some(connection)) => connection.refuses[DIGESTS] = true,
            (Fault::RefuseDead, Some(connection)) => connection.refuses[DEAD] = true,
            (Fault::RefuseSubscriptions, Some(connection)) => connection.refuses[SUBSCRIPTIONS] = true,
            (Fault::Expel, Some(connection)) => {
                let text = ["Slow Consumer", "Stale Connection", "Authorization Violation"][rng.usize(..3)];
                connection.send(format!("-ERR '{text}'\r\n").as_bytes(), Sent::Wrong);
                self.close(at, rng);
            }
            (Fault::Garbage, Some(connection)) => connection.send(b"\x16\x03\x01\r\n", Sent::Wrong),
            (Fault::Info, Some(connection)) => connection.info(rng.usize(3272..5000), rng.bool()),
            (Fault::Sleep, _) => self.now += Duration::from_secs(rng.u64(60..600)),
            // Most of the time to where some of the instants are just forgotten.
            (Fault::WallJump, _) => self.wall = Timestamp::new(NEW_YEAR + rng.i64(4..18), 0),
            (Fault::Drain, _) if !self.is_draining => self.drain(),
            (Fault::Move, Some(connection))
                if !is_draining && !has_second && connection.subscriptions.len() == 2 =>
            {
                self.begin_move(at, rng);
            }
            _ => return,
        }
        self.dice.struck[fault as usize] += 1;
        self.trace(|| format!("fault: {fault:?} of core {at} until {until}"));
    }

    /// Does one thing that can happen.
    fn act(&mut self) {
        let mut rng = self.dice.draw(Stream::Schedule, self.step);
        self.let_ghosts_speak();
        let at = rng.usize(..self.cores.len());
        match rng.u32(..100) {
            0..10 => self.publish(),
            10..25 => self.deliver(&mut rng),
            25..35 => self.on_either(at, &mut rng, |world, _| world.serve(at)),
            _ if self.is_stalled(at) => {}
            35..55 => self.on_either(at, &mut rng, |world, rng| {
                // Where one thing ends and the next one begins is where it matters what has been read.
                let bytes = if rng.bool() { rng.usize(..400) } else { world.bytes_to_next_end(at) };
                world.read(at, bytes);
            }),
            55..68 => self.on_either(at, &mut rng, |world, rng| world.write(at, rng.usize(..1000))),
            68..78 => self.take_mail(at),
            78..88 => self.send_mail(at),
            88..94 => self.connect(at),
            94..97 => self.let_time_pass(at, rng.u64(1..4)),
            97..99 => self.on_either(at, &mut rng, |world, _| world.ping(at)),
            _ => {}
        }
        // Both connections are there for a while: what comes on one of them may overtake what came before it on the other.
        if !self.is_stalled(at) && (self.cores[at].is_leaving || rng.u32(..self.cores[at].stays_beside) == 0)
        {
            self.go_over(at);
        }
        self.finish_turn(at);
    }

    /// Does this with one of the connections of a core.
    fn on_either(
        &mut self,
        at: usize,
        rng: &mut fastrand::Rng,
        what: impl FnOnce(&mut Self, &mut fastrand::Rng),
    ) {
        if self.cores[at].second.is_some() && rng.u32(..16) < self.cores[at].second_share {
            self.on_second(at, |world| what(world, rng));
        } else {
            what(self, rng);
        }
    }

    /// Does this with the second connection of a core, if it has one, in the place of the first.
    fn on_second(&mut self, at: usize, what: impl FnOnce(&mut Self)) {
        if self.cores[at].second.is_none() {
            return;
        }
        self.swap_links(at);
        what(self);
        self.swap_links(at);
        if self.cores[at].is_leaving && self.cores[at].second.is_none() {
            // Not subscribed any more: it has to begin anew.
            self.lose_link(at, 3);
        }
    }

    fn swap_links(&mut self, at: usize) {
        let core = &mut self.cores[at];
        let first = core.connection.take().map(|first| (first, std::mem::take(&mut core.buffer)));
        let (second, buffer) = std::mem::replace(&mut core.second, first).unzip();
        (core.connection, core.buffer) = (second, buffer.unwrap_or_default());
        core.shard.swap_links();
        core.is_swapped = !core.is_swapped;
    }

    fn begin_move(&mut self, at: usize, rng: &mut fastrand::Rng) {
        let connection = self.new_connection(at);
        let core = &mut self.cores[at];
        core.second = Some((connection, Vec::new()));
        (core.second_share, core.stays_beside) = ([1, 8, 15][rng.usize(..3)], [4, 100][rng.usize(..2)]);
        core.shard.swap_links();
        core.shard.on_link(SignIn::default(), self.now);
        core.shard.swap_links();
        // Otherwise hardly any run is long enough for what comes then.
        for _ in 0..[0, 3][rng.usize(..2)] {
            self.on_second(at, |world| {
                world.read(at, usize::MAX);
                world.write(at, usize::MAX);
                world.serve(at);
            });
        }
    }

    /// As the driver does: leaves the first connection when the second is subscribed, and goes over when nothing is left on it.
    fn go_over(&mut self, at: usize) {
        let core = &mut self.cores[at];
        if core.second.is_none() {
            return;
        }
        core.shard.swap_links();
        let is_subscribed = core.shard.is_subscribed();
        core.shard.swap_links();
        if is_subscribed && !core.is_leaving {
            core.is_leaving = true;
            core.shard.leave(self.now);
            self.trace(|| format!("core {at} leaves its first connection"));
        } else if is_subscribed && core.shard.has_left() {
            let first = core.connection.take().expect("there are two");
            let resent = core.shard.counters().resent;
            self.take_second(at);
            assert_eq!(
                self.cores[at].shard.counters().resent,
                resent,
                "no link broke, and digests are sent again"
            );
            let is_message = |(_, what): &(u64, Sent)| matches!(what, Sent::Message(_));
            assert!(!first.ends.iter().any(is_message), "it leaves messages behind where it was");
            // Nothing that is to be proved, but perhaps a dead letter that is not.
            self.has_broken |= !first.to_server.is_empty();
            if !first.is_closed {
                self.haunt(at, first, 0);
            }
            self.judge.tally.moves += 1;
            self.trace(|| format!("core {at} has gone over to its second connection"));
        }
    }

    fn take_second(&mut self, at: usize) {
        let core = &mut self.cores[at];
        core.shard.change_links(self.now);
        let (mut second, buffer) = core.second.take().expect("there are two");
        second.cursor = self.judge.unproved(ShardId(at));
        (core.connection, core.buffer, core.is_leaving) = (Some(second), buffer, false);
    }

    fn is_stalled(&self, at: usize) -> bool {
        self.cores[at].is_gone || self.cores[at].stalled_until > self.step
    }

    fn finish_turn(&mut self, at: usize) {
        if self.is_stalled(at) {
            return;
        }
        let core = &mut self.cores[at];
        if self.is_draining && core.second.is_none() {
            core.shard.drain(self.now);
        }
        core.shard.finish_turn(self.now);
        core.shard.notices().clear();
        let bytes = core.shard.output().len();
        assert!(
            bytes < self.output_bytes_max + OPERATION_BYTES_MAX,
            "output of {bytes} bytes is not bounded"
        );
        if core.shard.unsettled() == 0 {
            self.judge.on_quiet(ShardId(at));
        }
        if self.is_draining && self.cores[at].shard.is_drained() {
            self.leave(at);
        }
    }

    /// A core is drained, and its driver leaves: nothing that came to it may be left.
    fn leave(&mut self, at: usize) {
        self.trace(|| format!("core {at} is drained"));
        let core = &mut self.cores[at];
        assert!(core.inbox.is_empty() && core.mailed.iter().all(VecDeque::is_empty), "it leaves mail behind");
        core.is_gone = true;
        if let Some(connection) = core.connection.take()
            && !core.has_broken
        {
            let is_message = |(_, what): &(u64, Sent)| matches!(what, Sent::Message(_));
            assert!(!connection.ends.iter().any(is_message), "it leaves messages behind");
        }
    }

    /// No more faults: everything goes on until nothing moves any more.
    fn settle(&mut self, what: &str) {
        self.trace(|| format!("from here on all is well: {what}"));
        (self.is_chaos, self.hangs_until) = (false, 0);
        for core in &mut self.cores {
            (core.stalled_until, core.no_mail_until, core.no_link_until) = (0, 0, 0);
            // One that has refused something is given up anyway.
            let second = core.second.as_mut().map(|(second, _)| second);
            for connection in core.connection.iter_mut().chain(second) {
                if !connection.has_refused() {
                    connection.refuses = [false; 3];
                }
            }
        }
        for _ in 0..20_000 {
            self.step += 1;
            self.let_ghosts_speak();
            if self.is_quiet() {
                return;
            }
            for at in (0..self.cores.len()).filter(|at| !self.cores[*at].is_gone).collect::<Vec<_>>() {
                self.connect(at);
                self.read(at, usize::MAX);
                self.on_second(at, |world| world.read(at, usize::MAX));
                self.go_over(at);
                self.take_mail(at);
                self.finish_turn(at);
                if !self.cores[at].is_gone {
                    self.write(at, usize::MAX);
                    self.on_second(at, |world| world.write(at, usize::MAX));
                    self.send_mail(at);
                    self.serve(at);
                    self.on_second(at, |world| world.serve(at));
                }
            }
            let mut rng = self.dice.draw(Stream::Schedule, self.step);
            self.deliver(&mut rng);
        }
        panic!("stuck with {what}");
    }

    fn is_quiet(&self) -> bool {
        if self.is_draining {
            return self.ghosts.is_empty() && self.cores.iter().all(|core| core.is_gone);
        }
        let is_quiet = |core: &Core| {
            core.connection.as_ref().is_some_and(|connection| {
                !connection.is_closed
                    && connection.to_client.is_empty()
                    && connection.to_server.is_empty()
                    && connection.subscriptions.len() == 2
            }) && core.second.is_none()
                && core.buffer.is_empty()
                && core.inbox.is_empty()
                && core.mailed.iter().all(VecDeque::is_empty)
                && core.shard.output().is_empty()
                && core.shard.unsettled() == 0
        };
        self.pool.is_empty() && self.ghosts.is_empty() && self.cores.iter().all(is_quiet)
    }

    fn publish(&mut self) {
        if self.history.len() >= self.publish_max || !self.is_chaos {
            return;
        }
        let mut rng = self.dice.draw(Stream::Workload, self.history.len() as u64);
        let user = rng.usize(..USERS);
        let published = Rc::new(match rng.u32(..10) {
            0 => Published { subject: CHANGED, payload: "{".into(), what: What::Bad },
            1..4 => request(user),
            _ => {
                let alarm = serde_json::json!(self.alarms[rng.usize(..self.alarms.len())]);
                let status = ["CLEARED", "WARNING", "CRITICAL"][rng.usize(..3)];
                let second = rng.i64(0..INSTANTS);
                change(&format!(
                    r#"{{"AlarmID":{alarm},"UserID":"user {user}","Status":"{status}","ChangedAt":"2026-01-01T00:00:0{second}Z"}}"#
                ))
            }
        });
        self.trace(|| {
            format!("published: {} {}", published.subject, published.payload.replace("\\u0001", ""))
        });
        self.history.push(published.clone());
        self.pool.push_back(published);
    }

    /// The server takes a message and sends it to any member of the group.
    fn deliver(&mut self, rng: &mut fastrand::Rng) {
        if self.pool.is_empty() || self.hangs_until > self.step {
            return;
        }
        let picked = if self.dice.has(Fault::Reorder) { rng.usize(..self.pool.len()) } else { 0 };
        let chosen = rng.usize(..);
        let subject = self.pool[picked].subject;
        let mut members = Vec::new();
        for (at, core) in self.cores.iter().enumerate() {
            let second = core.second.as_ref().map(|(second, _)| second);
            let links = [(core.connection.as_ref(), false), (second, true)];
            let is_member =
                |link: Option<&Connection>| link.is_some_and(|link| link.is_subscribed_to(subject));
            members.extend(
                links.into_iter().filter(|(link, _)| is_member(*link)).map(|(_, is_second)| (at, is_second)),
            );
        }
        let ghosts = self.ghosts.iter().filter(|ghost| ghost.subjects.contains(&subject)).count();
        if members.is_empty() && ghosts == 0 {
            // Whoever publishes does so until somebody listens; but while draining nobody will.
            if self.is_draining {
                self.pool.clear();
            }
            return;
        }
        let published = self.pool.remove(picked).expect("it was picked");
        self.taken += 1;
        self.judge.tally.taken += 1;
        let delivery = Delivery { taken: self.taken, published };
        match members.get(chosen % (members.len() + ghosts)) {
            Some((at, is_second)) => {
                self.trace(|| {
                    let link = if *is_second { ", on its second connection" } else { "" };
                    format!(
                        "the server takes #{} for core {at}{link}: {}",
                        delivery.taken, delivery.published.payload
                    )
                });
                let core = &mut self.cores[*at];
                let second = core.second.as_mut().map(|(second, _)| second).filter(|_| *is_second);
                second.or(core.connection.as_mut()).expect("it is a member").message(delivery);
            }
            None => self.on_lost(delivery),
        }
    }

    /// Nobody will read it. Publishers who need certainty publish again.
    fn on_lost(&mut self, delivery: Delivery) {
        self.trace(|| format!("#{} is lost", delivery.taken));
        if self.publishes_again {
            self.pool.push_back(delivery.published);
        }
    }

    fn on_all_lost(&mut self, lost: Vec<Sent>) {
        for what in lost {
            if let Sent::Message(delivery) = what {
                self.on_lost(delivery);
            }
        }
    }

    fn connect(&mut self, at: usize) {
        let core = &mut self.cores[at];
        if core.connection.is_some() || core.no_link_until > self.step {
            return;
        }
        let connection = self.new_connection(at);
        let core = &mut self.cores[at];
        core.connection = Some(connection);
        core.buffer.clear();
        core.shard.on_link(SignIn::default(), self.now);
    }

    fn new_connection(&self, at: usize) -> Connection {
        let mut rng = self.dice.draw(Stream::Connection, self.step);
        let small = rng.usize(3272..5000);
        let max_payload = if self.dice.has(Fault::Limits) { small } else { 1 << 20 };
        self.trace(|| format!("core {at} connects, max_payload {max_payload}"));
        Connection::new(max_payload, rng.u32(..4) > 0, self.judge.unproved(ShardId(at)))
    }

    /// The server closes a connection, or dies. The core learns of it when it has read to the end.
    fn close(&mut self, at: usize, rng: &mut fastrand::Rng) {
        let has_written = rng.bool();
        let arriving = rng.usize(..);
        if has_written {
            self.serve(at);
        }
        let core = &mut self.cores[at];
        let Some(connection) = core.connection.as_mut().filter(|connection| !connection.is_closed) else {
            return;
        };
        let arriving = arriving % (connection.to_client.len() + 1);
        let lost = connection.close(arriving, core.buffer.len());
        connection.to_server.clear();
        (core.has_broken, self.has_broken) = (true, true);
        self.on_all_lost(lost);
    }

    /// The core has given its connection up. For a while the server does not know.
    fn lose_link(&mut self, at: usize, ghost_steps: u64) {
        let core = &mut self.cores[at];
        let Some(mut connection) = core.connection.take() else { return };
        (core.has_broken, self.has_broken) = (true, true);
        core.buffer.clear();
        if core.second.is_some() && !core.is_swapped {
            self.take_second(at);
        } else {
            core.shard.on_link_lost(self.now);
            core.is_leaving &= core.is_swapped;
        }
        let lost = connection.ends.drain(..).map(|(_, what)| what).collect();
        if !connection.is_closed {
            self.haunt(at, connection, ghost_steps);
        }
        self.on_all_lost(lost);
        self.trace(|| format!("core {at} has lost its link"));
    }

    /// Some of what the core wrote last arrives later.
    fn haunt(&mut self, core: usize, mut connection: Connection, steps: u64) {
        let mut rng = self.dice.draw(Stream::Loss, self.step);
        let arriving = rng.usize(..=connection.to_server.len());
        let bytes = connection.to_server[..arriving].to_vec();
        let mut ghost = Ghost {
            core,
            subjects: connection.subscriptions.iter().map(|(subject, _)| *subject).collect(),
            digests: Vec::new(),
            speaks_at: self.step + if steps == 0 { 0 } else { rng.u64(..steps) },
            ends_at: self.step + steps,
        };
        let mut rest = &bytes[..];
        // A new one: the old one may have seen more of the last operation than arrives.
        let mut decoder = ServerDecoder::new(Limits::server());
        while let Step::Op { op, used } = decoder.decode(rest).expect("a shard writes NATS") {
            rest = &rest[used..];
            match op {
                ClientOp::Publish(publish)
                    if publish.subject == b"digest" && !connection.refuses[DIGESTS] =>
                {
                    let (at, cursor) = (ShardId(core), &mut connection.cursor);
                    ghost.digests.push(self.judge.on_digest(at, cursor, publish.payload, false));
                }
                ClientOp::Publish(publish) if publish.subject == b"rejected" && !connection.refuses[DEAD] => {
                    self.judge.tally.dead_letters += 1;
                }
                ClientOp::Subscribe(subscribe) if !connection.refuses[SUBSCRIPTIONS] => {
                    ghost.subjects.push(subject_of(subscribe.subject));
                }
                ClientOp::Unsubscribe(_) => ghost.subjects.clear(),
                _ => {}
            }
        }
        self.ghosts.push(ghost);
    }

    fn let_ghosts_speak(&mut self) {
        if self.ghosts.is_empty() || self.hangs_until > self.step {
            return;
        }
        let (step, is_chaos) = (self.step, self.is_chaos);
        for ghost in &mut self.ghosts {
            if ghost.speaks_at <= step || !is_chaos {
                for (from, to) in std::mem::take(&mut ghost.digests) {
                    self.judge.on_heard(ShardId(ghost.core), from, to);
                }
            }
        }
        self.ghosts.retain(|ghost| is_chaos && ghost.ends_at > step || !ghost.digests.is_empty());
    }

    /// What is left of the thing that comes next.
    fn bytes_to_next_end(&self, at: usize) -> usize {
        let core = &self.cores[at];
        core.connection.as_ref().map_or(0, |connection| connection.bytes_to_next_end(core.buffer.len()))
    }

    /// Some bytes arrive at a core, and it takes what it can.
    fn read(&mut self, at: usize, bytes_max: usize) {
        let bytes_max = if self.dice.has(Fault::CutReads) { bytes_max } else { usize::MAX };
        let core = &mut self.cores[at];
        let Some(connection) = &mut core.connection else { return };
        if !core.shard.takes_bytes() {
            return;
        }
        let is_held = self.hangs_until > self.step;
        let bytes = if is_held { 0 } else { connection.to_client.len().min(bytes_max) };
        if bytes > 0 {
            core.buffer.extend(connection.to_client.drain(..bytes));
            core.shard.heard(self.now);
        }
        self.take_bytes(at);
        let core = &mut self.cores[at];
        let is_at_end = core
            .connection
            .as_ref()
            .is_some_and(|connection| connection.is_closed && connection.to_client.is_empty());
        if is_at_end && core.shard.takes_bytes() {
            self.lose_link(at, 0);
        }
    }

    fn take_bytes(&mut self, at: usize) {
        loop {
            let core = &mut self.cores[at];
            let Some(connection) = &mut core.connection else { return };
            let bytes = connection.batch_bytes().min(core.buffer.len());
            if bytes == 0 || !core.shard.takes_bytes() {
                return;
            }
            let settled = core.shard.counters().settled;
            let used = match core.shard.receive(&core.buffer[..bytes], self.now) {
                Ok(used) => used,
                Err(fault) => {
                    let is_due = match connection.ends.front() {
                        Some((_, what)) => matches!(what, Sent::Wrong),
                        // The beginning of some nonsense.
                        None => connection.is_closed,
                    };
                    assert!(is_due, "a fault that nobody caused: {fault}");
                    self.trace(|| format!("core {at}: {fault}"));
                    return self.lose_link(at, 3);
                }
            };
            if used == 0 {
                return;
            }
            core.buffer.drain(..used);
            let has_settled = core.shard.counters().settled > settled;
            let came = connection.use_bytes(used);
            self.on_came(at, came, has_settled);
        }
    }

    /// A core has used all this at once.
    fn on_came(&mut self, at: usize, came: Vec<Sent>, mut has_settled: bool) {
        for what in came {
            match what {
                Sent::Message(delivery) => self.on_read(at, delivery),
                Sent::Pong(ping) => {
                    let connection = self.cores[at].connection.as_mut().expect("it came on it");
                    let (first, proof) = connection.proofs.pop_front().expect("one for each PING");
                    assert_eq!(first, ping, "the simulation answers in order");
                    if std::mem::take(&mut has_settled) {
                        self.trace(|| format!("core {at} has proof up to place {proof}"));
                        self.judge.on_proved(ShardId(at), proof);
                    }
                }
                Sent::Info(max_payload) => {
                    let core = &mut self.cores[at];
                    let connection = core.connection.as_mut().expect("it came on it");
                    let place = connection.written + core.shard.output().len() as u64;
                    connection.limits.push((place, max_payload));
                }
                Sent::Ping | Sent::Refusal | Sent::Wrong => {}
            }
        }
        assert!(!has_settled, "something counts as settled, and no PONG has come");
    }

    fn on_read(&mut self, at: usize, delivery: Delivery) {
        self.trace(|| format!("core {at} reads #{}", delivery.taken));
        match self.judge.on_read(&delivery) {
            None => self.bad_read += 1,
            Some(owner) if owner.0 == at => self.judge.on_owned(&delivery),
            Some(owner) => self.cores[owner.0].mailed[at].push_back(delivery),
        }
    }

    fn take_mail(&mut self, at: usize) {
        if self.cores[at].no_mail_until > self.step || !self.cores[at].shard.takes_mail() {
            return;
        }
        for (from, mail) in std::mem::take(&mut self.cores[at].inbox) {
            let core = &mut self.cores[at];
            if !matches!(mail, Mail::Fence(_) | Mail::Passed(_) | Mail::Last(_)) {
                let delivery = core.mailed[from].pop_front().expect("it was read");
                self.judge.on_owned(&delivery);
                self.trace(|| format!("core {at} gets #{} from core {from}", delivery.taken));
            } else {
                self.trace(|| format!("core {at} gets {mail:?} from core {from}"));
            }
            self.cores[at].shard.on_mail(mail);
        }
    }

    fn send_mail(&mut self, at: usize) {
        for peer in 0..self.cores.len() {
            let mail = self.cores[at].shard.mail_for(ShardId(peer)).expect("shards write mail");
            if mail.is_empty() {
                continue;
            }
            let batch = std::mem::take(mail);
            // Beside commands at most a fence, two words of fences that have passed, and the last one.
            assert!(batch.len() <= self.mail_max + 4, "mail is not bounded: {}", batch.len());
            assert!(!self.cores[peer].is_gone, "mail for core {peer}, which has left: {batch:?}");
            if self.cores[peer].inbox.len() < self.inbox_max {
                self.cores[peer].inbox.extend(batch.into_iter().map(|mail| (at, mail)));
                self.cores[at].shard.mail_moved();
            } else {
                *self.cores[at].shard.mail_for(ShardId(peer)).expect("shards write mail") = batch;
            }
        }
    }

    /// As the driver does: what has come is read before the time is told.
    fn let_time_pass(&mut self, at: usize, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.read(at, usize::MAX);
        self.on_second(at, |world| world.read(at, usize::MAX));
        if !self.has_retention {
            return self.tell_time(at);
        }
        // What is forgotten is known exactly only while nothing is on its way. The book looks through one of 256 pages at a
        // time, and which one a user is on is random.
        let is_owed = |core: &Core| !core.shard.takes_mail() || !core.inbox.is_empty();
        if self.cores[at].shard.unsettled() > 0
            || is_owed(&self.cores[at])
            || self.cores[at].mailed.iter().any(|mailed| !mailed.is_empty())
        {
            return;
        }
        for _ in 0..256 {
            self.tell_time(at);
        }
        let retention = i64::try_from(RETENTION.as_secs()).expect("a few seconds");
        self.judge
            .on_forgotten(ShardId(at), Timestamp::new(self.wall.seconds() - retention, self.wall.nanos()));
    }

    fn tell_time(&mut self, at: usize) {
        self.tell_time_of_link(at);
        self.on_second(at, |world| world.tell_time_of_link(at));
    }

    fn tell_time_of_link(&mut self, at: usize) {
        if let Err(fault) = self.cores[at].shard.on_time(self.now, self.wall) {
            self.trace(|| format!("core {at}: {fault}"));
            self.lose_link(at, 20);
        }
    }

    fn ping(&mut self, at: usize) {
        if let Some(connection) = &mut self.cores[at].connection
            && !connection.subscriptions.is_empty()
        {
            connection.send(b"PING\r\n", Sent::Ping);
            connection.pings_open += 1;
        }
    }

    /// Some of a core's output is on its way.
    fn write(&mut self, at: usize, bytes_max: usize) {
        let bytes_max = if self.dice.has(Fault::CutWrites) { bytes_max } else { usize::MAX };
        let core = &mut self.cores[at];
        let Some(connection) = &mut core.connection else { return };
        let output = core.shard.output();
        if connection.is_closed {
            // As the driver does: to nowhere, so that what has arrived can still be read.
            let bytes = output.len();
            return core.shard.wrote(bytes, self.now);
        }
        let bytes = output.len().min(bytes_max);
        if bytes > 0 {
            connection.to_server.extend_from_slice(&output[..bytes]);
            connection.written += bytes as u64;
            core.shard.wrote(bytes, self.now);
        }
    }

    /// The server obeys what has arrived from a core.
    fn serve(&mut self, at: usize) {
        if self.hangs_until > self.step {
            return;
        }
        let Some(connection) = &mut self.cores[at].connection else { return };
        let bytes = std::mem::take(&mut connection.to_server);
        let mut rest = &bytes[..];
        loop {
            let connection = self.cores[at].connection.as_mut().expect("nobody takes it meanwhile");
            match connection.decoder.decode(rest).expect("a shard writes NATS") {
                Step::More { .. } => break connection.to_server = rest.to_vec(),
                Step::Op { op, used } => {
                    rest = &rest[used..];
                    self.obey(at, &op);
                    let connection = self.cores[at].connection.as_mut().expect("nobody takes it meanwhile");
                    connection.obeyed += used as u64;
                }
            }
        }
    }

    fn obey(&mut self, at: usize, op: &ClientOp<'_>) {
        let connection = self.cores[at].connection.as_mut().expect("it sent this");
        match op {
            ClientOp::Ping => {
                connection.pings += 1;
                connection.proofs.push_back((connection.pings, connection.cursor));
                connection.send(b"PONG\r\n", Sent::Pong(connection.pings));
            }
            ClientOp::Pong => {
                connection.pings_open = connection.pings_open.checked_sub(1).expect("PONG only after PING");
            }
            ClientOp::Subscribe(subscribe) => {
                assert_eq!(subscribe.queue, Some(&b"group"[..]));
                let subject = subject_of(subscribe.subject);
                if connection.refuses[SUBSCRIPTIONS] {
                    return refuse(
                        connection,
                        &format!("Subscription to \"{subject}\" using queue \"group\""),
                    );
                }
                let sid = std::str::from_utf8(subscribe.sid).expect("ASCII").parse().expect("a number");
                connection.subscriptions.push((subject, sid));
            }
            ClientOp::Unsubscribe(unsubscribe) => {
                let sid: u64 =
                    std::str::from_utf8(unsubscribe.sid).expect("ASCII").parse().expect("a number");
                connection.subscriptions.retain(|(_, other)| *other != sid);
            }
            ClientOp::Publish(publish) => self.on_publish(at, publish),
            _ => {}
        }
    }

    fn on_publish(&mut self, at: usize, publish: &Publish<'_>) {
        let connection = self.cores[at].connection.as_mut().expect("it sent this");
        let bytes = publish.payload.len() + publish.headers.map_or(0, |headers| headers.as_bytes().len());
        let max_payload = connection.max_payload();
        assert!(bytes <= max_payload, "{bytes} bytes of payload, {max_payload} were allowed");
        match publish.subject {
            b"digest" if connection.refuses[DIGESTS] => refuse(connection, "Publish to \"digest\""),
            b"digest" => {
                let mut cursor = connection.cursor;
                self.judge.on_digest(ShardId(at), &mut cursor, publish.payload, true);
                self.cores[at].connection.as_mut().expect("it sent this").cursor = cursor;
                self.trace(|| format!("core {at} tells {}", String::from_utf8_lossy(publish.payload)));
            }
            b"rejected" if connection.refuses[DEAD] => {
                self.dead_letters_refused = true;
                refuse_and_go_on(connection, "Publish to \"rejected\"");
            }
            b"rejected" => self.judge.tally.dead_letters += 1,
            subject => match subject.strip_prefix(INBOX.as_bytes()) {
                Some(number) => {
                    let number = std::str::from_utf8(number).expect("ASCII").parse().expect("a number");
                    self.judge.on_answer(number, publish.payload);
                }
                None => panic!("published to {}", subject.escape_ascii()),
            },
        }
    }

    fn drain(&mut self) {
        self.trace(|| "drain".into());
        self.is_draining = true;
        for core in &mut self.cores {
            core.has_broken = false;
            if core.second.is_none() {
                core.shard.drain(self.now);
            }
        }
    }
}

/// The core must give such a link up.
fn refuse(connection: &mut Connection, what: &str) {
    connection.send(format!("-ERR 'Permissions Violation for {what}'\r\n").as_bytes(), Sent::Wrong);
}

fn refuse_and_go_on(connection: &mut Connection, what: &str) {
    connection.send(format!("-ERR 'Permissions Violation for {what}'\r\n").as_bytes(), Sent::Refusal);
}

fn subject_of(bytes: &[u8]) -> &'static str {
    [CHANGED, SEND].into_iter().find(|subject| subject.as_bytes() == bytes).expect("one of the two")
}

fn request(user: usize) -> Published {
    let payload = format!(r#"{{"UserID":"user {user}"}}"#);
    let Ok(Command::SendDigest(user)) = decode_request(payload.as_bytes()) else { panic!("a request") };
    Published { subject: SEND, payload, what: What::Request(user) }
}

fn change(payload: &str) -> Published {
    let Ok(Command::Apply(change)) = decode_change(payload.as_bytes()) else { panic!("a change") };
    Published { subject: CHANGED, payload: payload.into(), what: What::Change(change) }
}
