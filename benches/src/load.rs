//! The measurements: flood, paced, latency, memory.
//!
//! Open loop: when a message is to be sent is fixed beforehand, and time counts from then, not from when it was sent.
//! So an implementation that stalls is charged for all that would have been sent meanwhile (no coordinated omission).
//! All messages are encoded before the clock starts.
//!
//! How do we know that all is done? By a **barrier**: [`BARRIER_USERS`] users get a change before the load and a request
//! after it. A server hands on one publisher's messages in order, to each member of a queue group at random; so when
//! all of these have their digests, every member has read past the load, and so has every owner of users.
//!
//! Never: a runtime, a library other than the project's own codec, a look at which implementation it is.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alarm_digest::shard::Subjects;
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use hdrhistogram::Histogram;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ledger::Ledger;
use crate::machine::{Machine, Reading};
use crate::report::{Report, histogram, micros};
use crate::wire::Connection;
use crate::workload::{Encoded, Ids, Pattern, Sampler, Skew, Texts};

/// Enough that each pair of the member that reads and the owner that answers is among them, for up to some eight of
/// each.
const BARRIER_USERS: u32 = 256;

/// How long the observer waits in one read before it looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Longest wait for the end of a load that has been sent.
const DONE_WITHIN: Duration = Duration::from_secs(120);

/// Asked whether the load is through, a sink answers at once, and everybody else when they are.
const ASK_SINK_EVERY: Duration = Duration::from_millis(5);
const ASK_BARRIER_EVERY: Duration = Duration::from_secs(2);

/// Time between all being connected and the first message, so that what the start left behind is done.
const SETTLE: Duration = Duration::from_millis(100);

/// Users asked for in one go when alarms are checked off.
const CHECKED_AT_ONCE: usize = 500;

/// Where a sink is asked how many messages it has read, and where it answers.
pub const SINK_ASK: &str = "Floor.ask";
/// The other of the two.
pub const SINK_COUNT: &str = "Floor.count";

/// What is measured.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server that it is connected to.
    pub server: SocketAddr,
    /// What it reads and writes.
    pub subjects: Subjects,
    /// Its process, for time and memory.
    pub pid: Option<u32>,
    /// The server's process.
    pub server_pid: Option<u32>,
    /// It only counts, and tells how many: the floor.
    pub is_sink: bool,
}

/// About whom.
#[derive(Clone, Debug)]
pub struct Shape {
    /// How many users.
    pub users: u32,
    /// How many alarms each of them has.
    pub alarms: u32,
    /// How changes are spread over the users.
    pub skew: Skew,
    /// Connections that publish.
    pub connections: usize,
    /// Other ids and another order. A second load on an implementation that remembers a first one needs another seed.
    pub seed: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub enum Job {
    /// As fast as the server takes it.
    Flood {
        /// How many.
        messages: u64,
    },
    /// At a fixed rate.
    Paced {
        /// Messages per second.
        rate: f64,
        /// For how long.
        time: Duration,
        /// Messages are sent in bursts so long apart: each has the burst's time as its intended one.
        tick: Duration,
        /// One message in so many is a request; none if zero.
        requests_every: u32,
    },
    /// A change, then a request for its user's digest.
    Latency {
        /// Requests per second.
        rate: f64,
        /// For how long.
        time: Duration,
    },
    /// Each alarm of each user once, and a look at the memory before and after.
    Memory,
}

/// Measures, then checks off.
///
/// # Errors
/// When server or implementation fails, or what cannot be measured is asked for.
pub fn measure(target: &Target, shape: &Shape, job: Job) -> Result<Report> {
    let (shape, pattern) = match job {
        Job::Latency { rate, .. } => {
            // Two alarms each, one known before and one fresh; a user's turn comes again after half a second.
            (Shape { users: (rate / 2.0).max(256.0) as u32, alarms: 2, ..shape.clone() }, Pattern::News)
        }
        _ => (shape.clone(), Pattern::Life),
    };
    ensure!(!(target.is_sink && matches!(job, Job::Latency { .. } | Job::Memory)), "a sink answers nothing");
    let mut load = Load::new(target.clone(), shape, pattern)?;
    match job {
        Job::Flood { messages } => load.flood(messages),
        Job::Paced { rate, time, tick, requests_every } => load.paced(rate, time, tick, requests_every),
        Job::Latency { rate, time } => load.latency(rate, time),
        Job::Memory => load.memory(),
    }
}

struct Load {
    target: Target,
    shape: Shape,
    texts: Texts,
    rng: Rng,
    senders: Vec<Connection>,
    control: Connection,
    observer: Observer,
}

/// How one sender goes about it.
#[derive(Clone, Copy)]
enum Pace {
    AtOnce,
    /// Message `n` is due at `n * gap`, and goes with the burst at the next multiple of `tick`.
    Bursts {
        gap: Duration,
        tick: Duration,
    },
}

impl Load {
    /// Connects, and returns once the implementation answers.
    fn new(target: Target, shape: Shape, pattern: Pattern) -> Result<Self> {
        let Shape { users, alarms, connections, seed, .. } = shape;
        ensure!(
            users > 0 && alarms > 0 && connections > 0,
            "expected at least one user, alarm and connection"
        );
        let pairs = users.checked_mul(alarms).context("expected less than 2^32 alarms in all")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let texts = |seed, alarms_per_user, pattern| Texts {
            users: Ids::new(seed),
            alarms: Ids::new(seed + 1),
            alarms_per_user,
            pattern,
            base_millis: now.as_millis() as i64,
        };
        let open =
            |name| Connection::open(target.server, name, Some(LOOK_EVERY)).context("cannot connect to NATS");
        let mut link = open("load observer")?;
        link.subscribe(&target.subjects.digest, None, DIGEST_SID);
        if target.is_sink {
            link.subscribe(SINK_COUNT, None, COUNT_SID);
        }
        link.flush().context("subscribing")?;
        let mut load = Self {
            senders: (0..connections).map(|_| open("load sender")).collect::<Result<_>>()?,
            control: open("load control")?,
            observer: Observer {
                link,
                ledger: Ledger::new(pairs as usize, pattern),
                texts: texts(seed, alarms, pattern),
                barrier: Barrier {
                    texts: texts(seed + 2, 1, Pattern::News),
                    sent: 0,
                    told: vec![0; BARRIER_USERS as usize],
                },
                echo: None,
                sink_counted: None,
                sink_expected: 0,
            },
            texts: texts(seed, alarms, pattern),
            rng: Rng::with_seed(seed),
            shape,
            target,
        };
        load.begin_barrier()?;
        thread::sleep(SETTLE);
        load.await_done(&[], Pace::AtOnce).context("waiting for the implementation to answer")?;
        // What a sink has read before is none of ours.
        load.observer.sink_expected = load.observer.sink_counted.unwrap_or(0);
        thread::sleep(SETTLE);
        Ok(load)
    }

    fn flood(&mut self, messages: u64) -> Result<Report> {
        let encoded = self.encode_changes(messages, 0);
        let mut report = self.send_and_wait(&encoded, Pace::AtOnce)?;
        if report.time < Duration::from_millis(500) {
            report.warnings.push("less than half a second was measured".into());
        }
        self.check(CHECKED_USERS_MAX, report)
    }

    fn paced(&mut self, rate: f64, time: Duration, tick: Duration, requests_every: u32) -> Result<Report> {
        ensure!(rate >= 1.0, "expected at least one message per second");
        let encoded = self.encode_changes((rate * time.as_secs_f64()) as u64, requests_every);
        let gap = Duration::from_secs_f64(encoded.len() as f64 / rate);
        let mut report = self.send_and_wait(&encoded, Pace::Bursts { gap, tick })?;
        let lag = micros(&report.lag, 99.0);
        if lag > 5_000.0 {
            report.warnings.push(format!("the generator was behind schedule: p99 {:.1} ms", lag / 1e3));
        }
        if report.per_second() < 0.95 * rate {
            report
                .warnings
                .push(format!("{:.0} messages per second were done, not {rate:.0}", report.per_second()));
        }
        self.check(CHECKED_USERS_MAX, report)
    }

    fn memory(&mut self) -> Result<Report> {
        const AT_ONCE: usize = 500_000;
        let Shape { users, alarms, .. } = self.shape;
        let at_first = self.resident()?;
        let mut all = Report::empty();
        // One alarm of each user after the other, as they come in life: no user's alarms arrive together.
        let pairs: Vec<u32> =
            (0..alarms).flat_map(|alarm| (0..users).map(move |user| user * alarms + alarm)).collect();
        for pairs in pairs.chunks(AT_ONCE) {
            let encoded = self.encode(pairs.iter().copied().map(Message::Change));
            let part = self.send_and_wait(&encoded, Pace::AtOnce)?;
            all.messages += part.messages;
            all.time += part.time;
        }
        let at_last = self.resident()?;
        all.resident_bytes = at_last;
        all.bytes_per_alarm =
            at_first.zip(at_last).map(|(first, last)| (last as f64 - first as f64) / pairs.len() as f64);
        if pairs.len() < 1_000_000 {
            all.warnings.push(
                "less than a million alarms: buffers and spare room weigh more than they should".into(),
            );
        }
        self.check(CHECKED_USERS_MAX / 10, all)
    }

    /// A slot is a moment at which one user is asked for. Half a round before it, the user gets an alarm, so that there
    /// surely is a digest, which tells by this alarm's count which slot it answers; just before the request, in the
    /// same write, the user gets another one, which the digest holds if the request did not overtake it.
    ///
    /// ```text
    /// slot            user                round                one write
    /// n               n % users           n / users            known(n + users/2) fresh(n) request(n)
    /// ```
    fn latency(&mut self, rate: f64, time: Duration) -> Result<Report> {
        ensure!(rate >= 1.0, "expected at least one request per second");
        let users = u64::from(self.shape.users);
        let first_known = (0..self.shape.users).map(|user| Message::Change(known_pair(user)));
        let encoded = self.encode(first_known);
        self.send_and_wait(&encoded, Pace::AtOnce)?;

        let slots = (rate * time.as_secs_f64()) as u64;
        let connections = self.senders.len() as u64;
        let mut writes: Vec<Vec<Encoded>> = (0..connections).map(|_| Vec::new()).collect();
        let mut messages = 0;
        for slot in 0..slots {
            let (user, soon) = ((slot % users) as u32, slot + users / 2);
            let known = (soon >= users).then(|| Message::Change(known_pair((soon % users) as u32)));
            let all = known.into_iter().chain([Message::Change(fresh_pair(user)), Message::Request(user)]);
            let mut write = Encoded::default();
            all.for_each(|message| self.push(message, &mut write));
            messages += write.len() as u64;
            writes[(slot % connections) as usize].push(write);
        }

        let before = self.look()?;
        let start = Instant::now() + SETTLE;
        let due = move |slot: u64| start + Duration::from_secs_f64(slot as f64 / rate);
        let warm = (rate / 4.0).min(slots as f64 / 4.0) as u64;
        self.observer.echo = Some(Echo::new(start, rate, users, slots, warm));
        let stop = AtomicBool::new(false);
        let (observer, senders) = (&mut self.observer, &mut self.senders);
        let mut report = Report::empty();
        let end = thread::scope(|scope| {
            let observing = scope.spawn(|| {
                observer.observe(&stop, |observer| observer.echo.as_ref().is_some_and(|echo| echo.left == 0))
            });
            let sending: Vec<_> = senders
                .iter_mut()
                .zip(&writes)
                .zip(0u64..)
                .map(|((sender, writes), at)| {
                    scope.spawn(move || {
                        send_each(sender, writes, |number| due(at + number as u64 * connections))
                    })
                })
                .collect();
            let sent = sending
                .into_iter()
                .try_for_each(|sending| report.lag.add(join(sending)?).context("both have the same bounds"));
            let patience = Instant::now() + Duration::from_secs(1);
            while sent.is_ok() && !observing.is_finished() && Instant::now() < patience {
                thread::sleep(LOOK_EVERY);
            }
            stop.store(true, Ordering::Release);
            let end = join(observing)?;
            sent.map(|()| end)
        })?;
        let echo = self.observer.echo.take().expect("it was put there above");
        report.messages = messages;
        report.time = end - start;
        (report.latency, report.missed, report.unanswered) = (echo.latency, echo.missed, echo.left);
        self.look()?.put_since(&before, &mut report);
        if report.latency.len() < 1000 {
            report.warnings.push(format!("only {} latencies were measured", report.latency.len()));
        }
        let lag = micros(&report.lag, 99.0);
        if lag > 1_000.0 {
            report.warnings.push(format!("the generator was behind schedule: p99 {lag:.0} µs"));
        }
        self.check(CHECKED_USERS_MAX, report)
    }

    /// Changes of pairs as they are drawn; one message in `requests_every` is a request instead.
    fn encode_changes(&mut self, messages: u64, requests_every: u32) -> Vec<Encoded> {
        let sampler = Sampler::new(self.shape.users, self.shape.skew);
        let mut rng = self.rng.fork();
        let alarms = self.shape.alarms;
        let draw = (0..messages).map(|_| {
            let user = sampler.draw(&mut rng);
            if requests_every > 0 && rng.u32(..requests_every) == 0 {
                Message::Request(user)
            } else {
                Message::Change(user * alarms + rng.u32(..alarms))
            }
        });
        self.encode(draw)
    }

    /// Deals the messages out to the senders, in turns.
    fn encode(&mut self, messages: impl Iterator<Item = Message>) -> Vec<Encoded> {
        let mut all: Vec<Encoded> = self.senders.iter().map(|_| Encoded::default()).collect();
        for (at, message) in messages.enumerate() {
            let sender = at % all.len();
            self.push(message, &mut all[sender]);
        }
        all
    }

    fn push(&mut self, message: Message, encoded: &mut Encoded) {
        let (texts, subjects) = (&self.texts, &self.target.subjects);
        match message {
            Message::Change(pair) => {
                let count = self.observer.ledger.send(pair);
                encoded.push(&subjects.changed, |out| texts.change(pair, count, out));
            }
            Message::Request(user) => encoded.push(&subjects.send, |out| texts.request(user, out)),
        }
    }

    /// Sends, waits until all is done, and fills in all of the report but latencies.
    fn send_and_wait(&mut self, encoded: &[Encoded], pace: Pace) -> Result<Report> {
        self.begin_barrier()?;
        thread::sleep(SETTLE);
        let before = self.look()?;
        let (start, end, lag) = self.await_done(encoded, pace)?;
        let mut report = Report::empty();
        report.messages = encoded.iter().map(|encoded| encoded.len() as u64).sum();
        report.time = end - start;
        report.lag = lag;
        self.look()?.put_since(&before, &mut report);
        Ok(report)
    }

    fn begin_barrier(&mut self) -> Result<()> {
        if self.target.is_sink {
            return Ok(());
        }
        let barrier = &mut self.observer.barrier;
        let (count, mut encoded) = (barrier.sent, Encoded::default());
        barrier.sent += 1;
        for user in 0..BARRIER_USERS {
            encoded.push(&self.target.subjects.changed, |out| barrier.texts.change(user, count, out));
        }
        self.control.write_encoded(&encoded.bytes)?;
        Ok(self.control.flush()?)
    }

    /// Sends, and returns when it started, when all was done, and how late it sent.
    fn await_done(&mut self, encoded: &[Encoded], pace: Pace) -> Result<(Instant, Instant, Histogram<u64>)> {
        let Self { target, senders, control, observer, .. } = self;
        observer.sink_expected += encoded.iter().map(|encoded| encoded.len() as u64).sum::<u64>();
        let requests = observer.barrier.requests(&target.subjects.send);
        let (stop, main, is_sink) = (AtomicBool::new(false), thread::current(), target.is_sink);
        let start = Instant::now() + Duration::from_millis(1);
        let (observed, lag) = thread::scope(|scope| -> Result<_> {
            let observing = scope.spawn(|| {
                let observed = observer.observe(&stop, |observer| {
                    if is_sink { observer.is_counted() } else { observer.barrier.is_told() }
                });
                main.unpark();
                observed
            });
            let sending: Vec<_> = senders
                .iter_mut()
                .zip(encoded)
                .map(|(sender, encoded)| scope.spawn(move || send(sender, encoded, start, pace)))
                .collect();
            let mut all_lag = histogram();
            let sent = sending
                .into_iter()
                .try_for_each(|sending| all_lag.add(join(sending)?).context("both have the same bounds"));
            let asked = sent.and_then(|()| {
                let deadline = Instant::now() + DONE_WITHIN;
                while !observing.is_finished() {
                    ensure!(Instant::now() < deadline, "not done {DONE_WITHIN:?} after the last message");
                    if let Some(pid) = target.pid {
                        Reading::of(pid).context("the implementation has ended")?;
                    }
                    if is_sink {
                        control.publish(SINK_ASK, b"");
                        control.write()?;
                        thread::park_timeout(ASK_SINK_EVERY);
                    } else {
                        control.write_encoded(&requests)?;
                        thread::park_timeout(ASK_BARRIER_EVERY);
                    }
                }
                Ok(())
            });
            stop.store(true, Ordering::Release);
            let observed = join(observing);
            asked.and(observed).map(|observed| (observed, all_lag))
        })?;
        Ok((start, observed, lag))
    }

    /// Asks for the users, until all that is owed has been told, and then once more, when nothing must come.
    fn check(&mut self, users_max: usize, mut report: Report) -> Result<Report> {
        report.alarms_held = self.observer.ledger.held() as u64;
        if self.target.is_sink {
            return Ok(report);
        }
        let step = (self.shape.users as usize).div_ceil(users_max);
        let users: Vec<u32> = (0..self.shape.users).step_by(step).collect();
        if step > 1 {
            report.warnings.push(format!("one user in {step} was checked"));
        }
        let mut owing = users.clone();
        for round in 0..4 {
            if round > 0 {
                thread::sleep(Duration::from_millis(300));
            }
            for users in owing.chunks(CHECKED_AT_ONCE) {
                self.ask(users)?;
                let patience = Duration::from_millis(500);
                self.observer
                    .read_while(patience, |observer| users.iter().any(|user| observer.owes(*user)))?;
            }
            owing.retain(|user| self.observer.owes(*user));
            let owed = owing.iter().map(|user| self.observer.owed(*user)).sum::<usize>() as u64;
            let findings = &mut self.observer.ledger.findings;
            if round == 0 {
                findings.late = owed;
            }
            findings.lost = owed;
            if owing.is_empty() {
                break;
            }
        }
        let findings = &mut self.observer.ledger.findings;
        findings.late -= findings.lost;

        self.begin_barrier()?;
        thread::sleep(SETTLE);
        let again = &users[..users.len().min(CHECKED_USERS_MAX / 4)];
        for users in again.chunks(CHECKED_AT_ONCE) {
            self.ask(users)?;
        }
        self.await_done(&[], Pace::AtOnce).context("asking once more")?;
        report.findings = self.observer.ledger.findings.clone();
        Ok(report)
    }

    fn ask(&mut self, users: &[u32]) -> Result<()> {
        let mut encoded = Encoded::default();
        for user in users {
            encoded.push(&self.target.subjects.send, |out| self.texts.request(*user, out));
        }
        self.control.write_encoded(&encoded.bytes)?;
        Ok(self.control.flush()?)
    }

    fn resident(&self) -> Result<Option<u64>> {
        self.target.pid.map(|pid| Ok(Reading::of(pid)?.resident_bytes)).transpose()
    }

    fn look(&self) -> Result<Look> {
        let of = |pid: Option<u32>| pid.map(Reading::of).transpose();
        Ok(Look {
            machine: Machine::now()?,
            target: of(self.target.pid).context("the implementation has ended")?,
            server: of(self.target.server_pid).context("the server has ended")?,
            ours: Reading::of(std::process::id())?,
        })
    }
}

/// Users whose alarms are checked off, at most; of more, every nth.
const CHECKED_USERS_MAX: usize = 100_000;

#[derive(Clone, Copy)]
enum Message {
    /// Of this pair.
    Change(u32),
    /// For this user.
    Request(u32),
}

/// In the latency measurement, the pair that each user's digest surely tells of.
fn known_pair(user: u32) -> u32 {
    user * 2
}

/// In the latency measurement, the pair that changes just before the request.
fn fresh_pair(user: u32) -> u32 {
    user * 2 + 1
}

/// What was used up to one moment, by all who take part.
struct Look {
    machine: Machine,
    target: Option<Reading>,
    server: Option<Reading>,
    ours: Reading,
}

impl Look {
    /// Puts what was used since `earlier` into the report, and how far that is to be trusted.
    fn put_since(&self, earlier: &Self, report: &mut Report) {
        let since = |now: Option<Reading>, then: Option<Reading>| Some(now?.since(&then?));
        report.used = since(self.target, earlier.target);
        report.server = since(self.server, earlier.server);
        report.resident_bytes = self.target.map(|reading| reading.resident_bytes);
        let (Some(used), Some(server)) = (report.used, report.server) else { return };
        let ours = used.cpu + server.cpu + self.ours.since(&earlier.ours).cpu;
        report.others = self.machine.others_since(&earlier.machine, ours);
        let (others, stolen) = report.others;
        if others > 0.15 {
            report.warnings.push(format!("the machine was busy: others had {others:.2} CPUs"));
        }
        if stolen > 0.05 {
            report.warnings.push(format!("the hypervisor took {stolen:.2} CPUs"));
        }
        if used.cpu < Duration::from_millis(50) {
            report.warnings.push(format!("only {:?} of processor time were measured", used.cpu));
        }
    }
}

const DIGEST_SID: u64 = 1;
const COUNT_SID: u64 = 2;

/// Reads what comes and checks it off.
struct Observer {
    link: Connection,
    ledger: Ledger,
    texts: Texts,
    barrier: Barrier,
    echo: Option<Echo>,
    sink_counted: Option<u64>,
    sink_expected: u64,
}

/// The barrier's users, and how far they are.
struct Barrier {
    texts: Texts,
    /// Changes of each of them.
    sent: u32,
    /// Counted from one, zero for none.
    told: Vec<u32>,
}

impl Barrier {
    fn is_told(&self) -> bool {
        self.told.iter().all(|told| *told == self.sent)
    }

    fn requests(&self, subject: &str) -> Vec<u8> {
        let mut encoded = Encoded::default();
        (0..BARRIER_USERS).for_each(|user| encoded.push(subject, |out| self.texts.request(user, out)));
        encoded.bytes
    }
}

/// What the latency measurement knows of its slots.
struct Echo {
    start: Instant,
    rate: f64,
    users: u64,
    answered: Vec<bool>,
    left: u64,
    /// Slots before this one are for warming up.
    warm: u64,
    latency: Histogram<u64>,
    missed: u64,
}

impl Echo {
    fn new(start: Instant, rate: f64, users: u64, slots: u64, warm: u64) -> Self {
        let answered = vec![false; slots as usize];
        Self { start, rate, users, answered, left: slots, warm, latency: histogram(), missed: 0 }
    }

    /// The digest of `user` came at `at`, and told these counts of the two alarms.
    fn on_digest(&mut self, user: u32, known: Option<u32>, fresh: Option<u32>, at: Instant) {
        let Some(round) = known else { return };
        let slot = u64::from(round) * self.users + u64::from(user);
        let Some(answered) = self.answered.get_mut(slot as usize).filter(|answered| !**answered) else {
            return;
        };
        *answered = true;
        self.left -= 1;
        if slot < self.warm {
            return;
        }
        let due = self.start + Duration::from_secs_f64(slot as f64 / self.rate);
        let nanos = at.saturating_duration_since(due).as_nanos() as u64;
        self.latency.saturating_record(nanos.max(1));
        self.missed += u64::from(fresh.is_none_or(|fresh| fresh < round));
    }
}

#[derive(Deserialize)]
struct DigestText<'a> {
    #[serde(rename = "UserID", borrow)]
    user: Cow<'a, str>,
    #[serde(rename = "ActiveAlarms", borrow)]
    alarms: Vec<AlarmText<'a>>,
}

#[derive(Deserialize)]
struct AlarmText<'a> {
    #[serde(rename = "AlarmID", borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "Status", borrow)]
    status: Cow<'a, str>,
    #[serde(rename = "LatestChangedAt", borrow)]
    changed_at: Cow<'a, str>,
}

impl Observer {
    /// Reads until `is_done`, and returns when that was, or until `stop`.
    fn observe(&mut self, stop: &AtomicBool, is_done: impl Fn(&Self) -> bool) -> Result<Instant> {
        while !is_done(self) && !stop.load(Ordering::Acquire) {
            self.read()?;
        }
        Ok(Instant::now())
    }

    /// Reads while `is_wanted` and until nothing has come for `patience`.
    fn read_while(&mut self, patience: Duration, is_wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let mut deadline = Instant::now() + patience;
        while is_wanted(self) && Instant::now() < deadline {
            if self.read()? > 0 {
                deadline = Instant::now() + patience;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<usize> {
        let Self { link, ledger, texts, barrier, echo, sink_counted, .. } = self;
        // All that one read brought came together.
        let mut came_at = None;
        let count = link.read(|message| {
            let at = *came_at.get_or_insert_with(Instant::now);
            if message.sid_number() == Some(COUNT_SID) {
                *sink_counted = std::str::from_utf8(message.payload).ok().and_then(|text| text.parse().ok());
                return;
            }
            if let Err(error) = on_digest(message.payload, at, ledger, texts, barrier, echo.as_mut()) {
                ledger.wrong(|| format!("{error:#}: {}", message.payload.escape_ascii()));
            }
        });
        count.context("the observer's connection")
    }

    fn is_counted(&self) -> bool {
        self.sink_counted.is_some_and(|counted| counted >= self.sink_expected)
    }

    fn owes(&self, user: u32) -> bool {
        self.owed(user) > 0
    }

    fn owed(&self, user: u32) -> usize {
        let alarms = self.texts.alarms_per_user;
        (user * alarms..(user + 1) * alarms).filter(|pair| self.ledger.is_owed(*pair)).count()
    }
}

fn on_digest(
    payload: &[u8],
    at: Instant,
    ledger: &mut Ledger,
    texts: &Texts,
    barrier: &mut Barrier,
    echo: Option<&mut Echo>,
) -> Result<()> {
    let digest: DigestText = serde_json::from_slice(payload).context("expected a digest")?;
    ensure!(!digest.alarms.is_empty(), "expected no digest when nothing is due");
    let instant = |alarm: &AlarmText| OffsetDateTime::parse(&alarm.changed_at, &Rfc3339);
    if let Some(user) = barrier.texts.users.number(&digest.user) {
        let count =
            barrier.texts.count(user, instant(&digest.alarms[0])?).context("not an instant we sent")?;
        let told = barrier.told.get_mut(user as usize).context("not a user of ours")?;
        *told = (count + 1).max(*told);
        return Ok(());
    }
    // Others may use the server too.
    let Some(user) = texts.users.number(&digest.user) else { return Ok(()) };
    let mut last = None;
    let (mut known, mut fresh) = (None, None);
    for alarm in &digest.alarms {
        let pair = texts.alarms.number(&alarm.id).filter(|pair| pair / texts.alarms_per_user == user);
        let pair = pair.context("not an alarm of this user")?;
        let changed_at = instant(alarm)?;
        let place = Some((changed_at, &alarm.id));
        ensure!(last < place, "expected the oldest first");
        last = place;
        let count = texts.count(pair, changed_at).context("not an instant we sent")?;
        ledger.tell(pair, count, &alarm.status);
        if echo.is_some() {
            let which = if pair == known_pair(user) { &mut known } else { &mut fresh };
            *which = Some(count);
        }
    }
    if let Some(echo) = echo {
        echo.on_digest(user, known, fresh, at);
    }
    Ok(())
}

/// Sends all, and returns once the server has read it.
fn send(sender: &mut Connection, encoded: &Encoded, start: Instant, pace: Pace) -> Result<Histogram<u64>> {
    /// Larger writes would not be faster, and smaller ones would cost us more.
    const WRITE_BYTES: usize = 64 * 1024;
    let mut lag = histogram();
    sleep_until(start);
    match pace {
        Pace::AtOnce => {
            for bytes in encoded.bytes.chunks(WRITE_BYTES) {
                sender.write_encoded(bytes)?;
            }
        }
        Pace::Bursts { gap, tick } => {
            need_sharp_timers()?;
            let mut sent = 0;
            let mut bursts = 0u32;
            while sent < encoded.len() {
                bursts += 1;
                let due_at = start + tick * bursts;
                sleep_until(due_at);
                let due = (due_at - start).as_nanos() / gap.as_nanos().max(1);
                let to = usize::try_from(due)?.min(encoded.len());
                if to > sent {
                    record_lag(&mut lag, due_at);
                    sender.write_encoded(encoded.range(sent, to))?;
                    sent = to;
                }
            }
        }
    }
    sender.flush()?;
    Ok(lag)
}

/// How long before its time a single write is waited for awake: a wake-up takes about as long as what is measured.
const SPIN: Duration = Duration::from_micros(100);

/// Sends each of `writes` at its own time.
fn send_each(
    sender: &mut Connection,
    writes: &[Encoded],
    due: impl Fn(usize) -> Instant,
) -> Result<Histogram<u64>> {
    need_sharp_timers()?;
    let mut lag = histogram();
    for (number, write) in writes.iter().enumerate() {
        let due = due(number);
        sleep_until(due.checked_sub(SPIN).unwrap_or(due));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        record_lag(&mut lag, due);
        sender.write_encoded(&write.bytes)?;
    }
    sender.flush()?;
    Ok(lag)
}

fn record_lag(lag: &mut Histogram<u64>, due: Instant) {
    lag.saturating_record((due.elapsed().as_nanos() as u64).max(1));
}

/// By default the kernel may wake a thread 50 µs late, to save power.
fn need_sharp_timers() -> Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("setting the timer slack")
}

fn sleep_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match handle.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread of the load panicked"),
    }
}
