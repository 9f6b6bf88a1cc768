//! The measurements: flood, paced, latency, memory.
//!
//! Open loop: when a message is to be sent is fixed beforehand, and time counts from then, not from when it was sent.
//! So an implementation that stalls is charged for all that would have been sent meanwhile (no coordinated omission).
//! All messages are encoded before the clock starts.
//!
//! How do we know that all is done? By a **barrier**: some hundred users get a change before the load and a request
//! after it. A server hands on one publisher's messages in order, to each member of a queue group at random; so when
//! all of these have their digests, every member has read past the load, and so has every owner of users.
//!
//! Never: a runtime, a library other than the project's own codec, a look at which implementation it is.

mod check;
mod latency;
mod observer;
mod sender;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alarm_digest::shard::Subjects;
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use hdrhistogram::Histogram;

use crate::machine::{Machine, Reading};
use crate::report::{Report, histogram, micros};
use crate::wire::Connection;
use crate::workload::{Encoded, Ids, Pattern, Sampler, Skew, Texts};

use check::CHECKED_USERS_MAX;
use observer::Observer;
use sender::{Pace, send};

/// How long the observer waits in one read before it looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Longest wait for the end of a load that has been sent.
const DONE_WITHIN: Duration = Duration::from_secs(120);

/// Asked whether the load is through, a sink answers at once, and everybody else when they are.
const ASK_SINK_EVERY: Duration = Duration::from_millis(5);
const ASK_BARRIER_EVERY: Duration = Duration::from_secs(2);

/// Time between all being connected and the first message, so that what the start left behind is done.
const SETTLE: Duration = Duration::from_millis(100);

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
        let texts_of_load = texts(seed, alarms, pattern);
        let mut load = Self {
            senders: (0..connections).map(|_| open("load sender")).collect::<Result<_>>()?,
            control: open("load control")?,
            observer: Observer::new(
                open("load observer")?,
                &target,
                pairs,
                texts_of_load.clone(),
                texts(seed + 2, 1, Pattern::News),
            )?,
            texts: texts_of_load,
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
            report.warnings.push(format!(
                "the generator was behind schedule: by {:.1} ms at the 99th percentile",
                lag / 1e3
            ));
        }
        if report.per_second() < 0.95 * rate {
            report
                .warnings
                .push(format!("the rate was not reached: {:.0}/s of {rate:.0}/s", report.per_second()));
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
                "less than a million alarms were held: buffers and spare room weigh more than they should"
                    .into(),
            );
        }
        self.check(CHECKED_USERS_MAX / 10, all)
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
        let encoded = self.observer.barrier.changes(&self.target.subjects.changed);
        self.control.write_encoded(&encoded)?;
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
            let asked = sent.and_then(|()| ask_until(target, control, &requests, || observing.is_finished()));
            stop.store(true, Ordering::Release);
            let observed = join(observing);
            asked.and(observed).map(|observed| (observed, all_lag))
        })?;
        Ok((start, observed, lag))
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

/// Asks whether the load is through, again and again, until `is_done`, which unparks this thread.
fn ask_until(
    target: &Target,
    control: &mut Connection,
    requests: &[u8],
    is_done: impl Fn() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + DONE_WITHIN;
    while !is_done() {
        ensure!(Instant::now() < deadline, "not done {DONE_WITHIN:?} after the last message");
        if let Some(pid) = target.pid {
            Reading::of(pid).context("the implementation has ended")?;
        }
        if target.is_sink {
            control.publish(SINK_ASK, b"");
            control.write()?;
            thread::park_timeout(ASK_SINK_EVERY);
        } else {
            control.write_encoded(requests)?;
            thread::park_timeout(ASK_BARRIER_EVERY);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Message {
    /// Of this pair.
    Change(u32),
    /// For this user.
    Request(u32),
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
            report.warnings.push(format!("the hypervisor took time: {stolen:.2} CPUs"));
        }
        if used.cpu < Duration::from_millis(50) {
            report.warnings.push(format!("little processor time was measured: {:?}", used.cpu));
        }
    }
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match handle.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread of the load panicked"),
    }
}
