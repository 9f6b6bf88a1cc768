//! What must hold in memory mode, and when it is looked at.
//!
//! | when | what must hold |
//! |---|---|
//! | the server reads a digest | it is of the owner's user, whole, in order, and some request for it was read before |
//! | and it is new | every alarm in it was given to the owner's book as it is told; none is no news, none is older than what was told; none is older than what the server took before the first request that may be waiting for it |
//! | and it is not new | it is, alarm by alarm, what this core wrote on a link that broke before the proof, all of that, in order, before anything new |
//! | a core counts something as settled | the server had read it before the PING whose PONG the core has just read |
//! | a core has nothing unsettled | whatever the server took before any request that this core was given, and any core read, has been told, unless it ended |
//! | a core reads a change that the server took before a request that is answered | there is nothing to tell of it |
//! | the server reads an answer | all that it says was told; and all that the server took before its request, and any core read, unless it ended |
//! | all is quiet, and each user was asked for once more | nothing that any core read is untold, and each request that wants an answer has one, but for those that the cores counted as unanswered |
//!
//! What a core *read* is what it has taken out of its socket: what a broken link or a dying server swallowed was never
//! delivered, and nothing is promised of it.
//!
//! Never: how anything happens. That is the world's.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use alarm_digest::alarm::{AlarmId, Change, Condition, Timestamp, UserId};
use alarm_digest::shard::{ShardId, owner};
use alarm_digest_checker::{Oracle, parse_digest};

use crate::runs::Counts;
use crate::wire::Delivery;

pub const CHANGED: &str = "changed";
pub const SEND: &str = "send";

/// Before the number of a request, where it wants its answer.
pub const INBOX: &str = "inbox.";

/// What somebody published.
#[derive(Debug)]
pub struct Published {
    pub subject: &'static str,
    pub payload: String,
    pub what: What,
}

/// The same, understood.
#[derive(Debug)]
pub enum What {
    Change(Change),
    Request(UserId),
    Bad,
}

/// One alarm of a digest, as the server reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Item {
    user: UserId,
    alarm: AlarmId,
    condition: Condition,
    is_heard: bool,
}

/// What a core has published, and not been proved: `first` is the number of the front.
#[derive(Default)]
struct Log {
    first: u64,
    items: VecDeque<Item>,
}

/// The changes of one user that were read, by their place among all that the server took.
type Read = Vec<(u64, AlarmId, Condition)>;

pub struct Judge {
    /// Whether digests are held to what the server took before their requests.
    is_causal: bool,
    shards: usize,
    /// Knows what the books of the owners were given, and what the server has read of digests.
    oracle: Oracle,
    read: HashMap<UserId, Read>,
    /// Requests that were read and are not known to be answered; true once the owner has them.
    waiting: HashMap<UserId, BTreeMap<u64, bool>>,
    /// All that was told.
    told: BTreeSet<(UserId, AlarmId, Condition)>,
    /// Requests that were read and want an answer at their number; true once one has come.
    asked: BTreeMap<u64, (UserId, bool)>,
    /// The last request that is answered.
    answered: HashMap<UserId, u64>,
    logs: Vec<Log>,
    pub tally: Tally,
}

/// What a run was made of.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub steps: u64,
    pub taken: u64,
    pub read: u64,
    pub digests: u64,
    pub alarms: u64,
    /// Alarms told again because a link broke before the proof.
    pub repeated: u64,
    /// Requests whose answer was held against what the server had taken before them.
    pub answers: u64,
    pub dead_letters: u64,
    /// Times that a core went over to another connection with nothing left behind.
    pub moves: u64,
}

impl Tally {
    pub fn counts(&self) -> Counts {
        vec![
            ("steps", self.steps),
            ("taken", self.taken),
            ("read", self.read),
            ("digests", self.digests),
            ("alarms", self.alarms),
            ("repeated", self.repeated),
            ("answers", self.answers),
            ("dead letters", self.dead_letters),
            ("moves", self.moves),
        ]
    }
}

impl Judge {
    pub fn new(shards: usize, is_causal: bool) -> Self {
        Self {
            shards,
            is_causal,
            oracle: Oracle::default(),
            read: HashMap::new(),
            waiting: HashMap::new(),
            told: BTreeSet::new(),
            asked: BTreeMap::new(),
            answered: HashMap::new(),
            logs: (0..shards).map(|_| Log::default()).collect(),
            tally: Tally::default(),
        }
    }

    /// A core has read this. Says whose it is.
    pub fn on_read(&mut self, delivery: &Delivery) -> Option<ShardId> {
        self.tally.read += 1;
        match &delivery.published.what {
            What::Change(change) => {
                let read = self.read.entry(change.user.clone()).or_default();
                read.push((delivery.taken, change.alarm.clone(), change.condition));
                self.hold_to_answered(change, delivery.taken);
                Some(owner(&change.user, self.shards))
            }
            What::Request(user) => {
                self.waiting.entry(user.clone()).or_default().insert(delivery.taken, false);
                if delivery.wants_answer() {
                    self.asked.insert(delivery.taken, (user.clone(), false));
                }
                Some(owner(user, self.shards))
            }
            What::Bad => None,
        }
    }

    /// The owner has it.
    pub fn on_owned(&mut self, delivery: &Delivery) {
        match &delivery.published.what {
            What::Change(change) => self.oracle.apply(change),
            What::Request(user) => {
                self.waiting.entry(user.clone()).or_default().insert(delivery.taken, true);
            }
            What::Bad => unreachable!("it is nobody's"),
        }
    }

    /// A change was read that the server took before a request which is answered: it came too late, if it is news.
    fn hold_to_answered(&self, change: &Change, taken: u64) {
        let Some(answered) = self.answered.get(&change.user).filter(|answered| taken < **answered) else {
            return;
        };
        let untold = self.oracle.untold(&change.user, &self.known(&change.user, *answered));
        assert!(
            !untold.contains(&change.alarm),
            "change #{taken} of {:?} was read after request #{answered} had been answered",
            change.alarm
        );
    }

    /// What the server took of this user before `taken`, and some core has read.
    /// Who is not held to that is asked nothing about it.
    fn known(&self, user: &UserId, taken: u64) -> BTreeSet<(AlarmId, Condition)> {
        if !self.is_causal {
            return BTreeSet::new();
        }
        let read = self.read.get(user).map_or(&[][..], Vec::as_slice);
        let known = read.iter().filter(|(at, ..)| *at < taken);
        known.map(|(_, alarm, condition)| (alarm.clone(), *condition)).collect()
    }

    /// A digest, or a part of one, that this core wrote on the connection whose next place in the log is `cursor`; the
    /// server reads it now, or perhaps later. Says which places it takes.
    pub fn on_digest(&mut self, at: ShardId, cursor: &mut u64, payload: &[u8], is_heard: bool) -> (u64, u64) {
        let (user, alarms) = parse_digest(payload);
        assert_eq!(owner(&user, self.shards), at, "a digest of another core's user: {user:?}");
        assert!(!alarms.is_empty(), "an empty digest of {user:?}");
        let from = *cursor;
        let log = &mut self.logs[at.0];
        for (alarm, condition) in alarms {
            let place =
                usize::try_from(*cursor - log.first).expect("a connection begins behind what is proved");
            match log.items.get(place) {
                None => log.items.push_back(Item { user: user.clone(), alarm, condition, is_heard: false }),
                Some(item) => {
                    let expected = (&item.user, &item.alarm, item.condition);
                    assert_eq!(
                        (&user, &alarm, condition),
                        expected,
                        "what is not proved is sent again first, and in order"
                    );
                    self.tally.repeated += u64::from(is_heard && item.is_heard);
                }
            }
            *cursor += 1;
        }
        if is_heard {
            self.on_heard(at, from, *cursor);
        }
        (from, *cursor)
    }

    /// The server reads what stands at these places of the log, all of one digest. What was proved since is nothing new.
    pub fn on_heard(&mut self, at: ShardId, from: u64, to: u64) {
        let log = &mut self.logs[at.0];
        let mut new = Vec::new();
        for place in from.max(log.first)..to {
            let item = &mut log.items[(place - log.first) as usize];
            if !std::mem::replace(&mut item.is_heard, true) {
                new.push((item.user.clone(), item.alarm.clone(), item.condition));
                self.told.insert((item.user.clone(), item.alarm.clone(), item.condition));
            }
        }
        let Some((user, ..)) = new.first().cloned() else { return };
        let alarms: Vec<_> = new.into_iter().map(|(_, alarm, condition)| (alarm, condition)).collect();
        (self.tally.digests, self.tally.alarms) =
            (self.tally.digests + 1, self.tally.alarms + alarms.len() as u64);
        self.hold_to_waiting(&user, &alarms);
        let wrong = self.oracle.hear(&user, &alarms);
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// A new digest tells of nothing as it was before what the server had taken when it took the first request that may be
    /// waiting for it.
    fn hold_to_waiting(&self, user: &UserId, alarms: &[(AlarmId, Condition)]) {
        let first = self.waiting.get(user).and_then(|waiting| waiting.first_key_value());
        let Some((first, _)) = first else { panic!("a digest that {user:?} had not asked for: {alarms:?}") };
        let known = self.known(user, *first);
        for (alarm, condition) in alarms {
            let newer = known.iter().find(|(other, known)| other == alarm && known > condition);
            assert!(
                newer.is_none(),
                "{alarm:?} is told as {condition:?}, but before the request there was {newer:?}"
            );
        }
    }

    /// This core counts all before `proof` as settled, a place in its log that the server had read before the PING.
    pub fn on_proved(&mut self, at: ShardId, proof: u64) {
        let log = &mut self.logs[at.0];
        while log.first < proof {
            let item = log.items.pop_front().expect("the server has read it");
            assert!(item.is_heard, "settled, and the server has not read it: {item:?}");
            log.first += 1;
        }
    }

    /// Where a new link of this core begins.
    pub fn unproved(&self, at: ShardId) -> u64 {
        self.logs[at.0].first
    }

    /// This core has nothing unsettled: what it was asked for is answered.
    pub fn on_quiet(&mut self, at: ShardId) {
        let shards = self.shards;
        for user in self.waiting.keys().filter(|user| owner(user, shards) == at).cloned().collect::<Vec<_>>()
        {
            let waiting = self.waiting.get_mut(&user).expect("it was just there");
            let Some((&last, _)) = waiting.iter().rfind(|(_, is_owned)| **is_owned) else { continue };
            let before = waiting.len();
            waiting.retain(|_, is_owned| !*is_owned);
            self.tally.answers += (before - waiting.len()) as u64;
            if waiting.is_empty() {
                self.waiting.remove(&user);
            }
            let answered = self.answered.entry(user.clone()).or_default();
            *answered = last.max(*answered);
            let untold = self.oracle.untold(&user, &self.known(&user, last));
            assert!(
                untold.is_empty(),
                "request #{last} of {user:?} is answered, and what was taken before it is untold: {untold:?}"
            );
        }
    }

    /// Whether no core was given a request that is not known to be answered.
    pub fn is_all_answered(&self) -> bool {
        self.waiting.is_empty()
    }

    /// This core has forgotten what was cleared before `horizon`.
    pub fn on_forgotten(&mut self, at: ShardId, horizon: Timestamp) {
        let shards = self.shards;
        for (user, alarm) in self.oracle.forget(horizon, |user| owner(user, shards) == at) {
            self.read.entry(user).or_default().retain(|(_, other, _)| *other != alarm);
        }
    }

    /// The server reads an answer to request `taken`.
    pub fn on_answer(&mut self, taken: u64, payload: &[u8]) {
        let (user, alarms) = parse_digest(payload);
        let (asked, is_answered) = self.asked.get_mut(&taken).expect("an answer to a request that wants one");
        assert_eq!(user, *asked, "another user's answer");
        *is_answered = true;
        for (alarm, condition) in alarms {
            let told = (user.clone(), alarm, condition);
            assert!(self.told.contains(&told), "in an answer, and never told: {told:?}");
        }
        let untold = self.oracle.untold(&user, &self.known(&user, taken));
        assert!(untold.is_empty(), "request #{taken} has its answer, and {untold:?} is untold");
    }

    /// All that was read is done, and the cores say that so many requests got no answer.
    pub fn hold_to_asked(&self, unanswered: u64) {
        let without = self.asked.iter().filter(|(_, (_, is_answered))| !is_answered).map(|(taken, _)| *taken);
        let without: Vec<u64> = without.collect();
        assert!(
            without.len() as u64 <= unanswered,
            "requests without an answer: {without:?}, said {unanswered}"
        );
    }

    /// Each user was asked for once more, and all is quiet.
    pub fn on_end(&self) {
        let missing = self.oracle.missing();
        assert!(missing.is_empty(), "never told of {missing:?}");
    }
}
