//! Stands beside the proxies and holds what the service says against what it may say.
//!
//! Core NATS forgets what is in a server that is killed, so whoever listens there misses digests that the service had the
//! server's word for. Here nothing is missed: a digest counts as told when the service has written it for the first time,
//! and as proved when the server's PONG for a later PING has come by.
//!
//! Every digest must be proved on some link. It may be written again only where a link broke, and never when its proof had
//! surely been read.
//!
//! What a link that broke did not bring so far was never read, so the witness cannot say of every alarm that it must be told. Of
//! some it can: when an alarm and a request have been answered, each core has read all that came by before the two, on each link
//! that is still there ([`Witness::has_read`]). Those alarms that are published once, and never end, must then be told to whoever
//! is asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

use alarm_digest::alarm::{AlarmId, Command, UserId};
use alarm_digest::message::decode_change;
use alarm_digest_checker::{Checker, parse_digest};
use nats_wire::{ClientDecoder, ClientOp, Limits, ServerDecoder, ServerOp, Step};

use crate::proxy::Passed;

/// PONGs on their way to the service when a link breaks, at most: one fence of digests, some of rounds, the session's own.
const PONGS_UNREAD_MAX: u64 = 8;

#[derive(Default)]
pub struct Witness {
    pub checker: Checker,
    links: BTreeMap<u64, Link>,
    /// Where each digest was written: the link, and the number of the PING that follows there.
    digests: HashMap<Vec<u8>, Vec<(u64, u64)>>,
    users: HashSet<UserId>,
    /// Alarms [`ONCE`] that came by on each link and were not read for sure.
    passed: HashMap<u64, Vec<Once>>,
    /// Those that were.
    read: HashSet<Once>,
    told: HashSet<Once>,
}

/// How the name of an alarm begins that has one change only, which makes it active.
pub const ONCE: &str = "once ";

type Once = (UserId, AlarmId);

struct Link {
    to_server: (ServerDecoder, Vec<u8>),
    to_service: (ClientDecoder, Vec<u8>),
    pings: u64,
    pongs: u64,
    subscriptions: u64,
    /// The PING after the last subscription.
    subscribed: u64,
    is_broken: bool,
}

impl Link {
    fn new() -> Self {
        let limits = Limits { payload_bytes_max: 64 << 20, ..Limits::client() };
        Self {
            to_server: (ServerDecoder::new(limits), Vec::new()),
            to_service: (ClientDecoder::new(limits), Vec::new()),
            pings: 0,
            pongs: 0,
            subscriptions: 0,
            subscribed: 0,
            is_broken: false,
        }
    }

    fn is_ready(&self) -> bool {
        !self.is_broken && self.subscriptions > 1 && self.pongs >= self.subscribed
    }
}

/// What was written, and how.
#[derive(Clone, Copy, Default, Debug)]
pub struct Account {
    pub digests: u64,
    /// Written again after a link broke.
    pub again: u64,
    /// Links that broke.
    pub broken: u64,
}

impl Witness {
    pub fn on_passed(&mut self, number: u64, passed: &Passed<'_>) {
        let link = self.links.entry(number).or_insert_with(Link::new);
        match passed {
            Passed::Closed => link.is_broken = true,
            Passed::ToService(bytes) => {
                let (decoder, buffer) = &mut link.to_service;
                buffer.extend_from_slice(bytes);
                let mut used_all = 0;
                while let Ok(Step::Op { op, used }) = decoder.decode(&buffer[used_all..]) {
                    used_all += used;
                    match op {
                        ServerOp::Pong => link.pongs += 1,
                        ServerOp::Message(message) => {
                            self.passed.entry(number).or_default().extend(once(message.payload));
                        }
                        _ => {}
                    }
                }
                buffer.drain(..used_all);
            }
            Passed::ToServer(bytes) => self.on_written(number, bytes),
        }
    }

    fn on_written(&mut self, number: u64, bytes: &[u8]) {
        let link = self.links.get_mut(&number).expect("the caller made it");
        let (decoder, buffer) = &mut link.to_server;
        buffer.extend_from_slice(bytes);
        let mut used_all = 0;
        loop {
            let (op, used) = match decoder.decode(&buffer[used_all..]) {
                Ok(Step::Op { op, used }) => (op, used),
                Ok(Step::More { .. }) => break,
                Err(error) => panic!("the service wrote what is not NATS: {error}"),
            };
            used_all += used;
            match op {
                ClientOp::Ping => link.pings += 1,
                ClientOp::Subscribe(_) => {
                    link.subscriptions += 1;
                    link.subscribed = link.pings + 1;
                }
                ClientOp::Publish(publish) if publish.subject == b"AlarmDigest" => {
                    let places = self.digests.entry(publish.payload.to_vec()).or_default();
                    if places.is_empty() {
                        self.checker.told(None, publish.payload);
                        let (user, alarms) = parse_digest(publish.payload);
                        let once = alarms.into_iter().filter(|(alarm, _)| is_once(alarm));
                        self.told.extend(once.map(|(alarm, _)| (user.clone(), alarm)));
                        self.users.insert(user);
                    }
                    places.push((number, link.pings + 1));
                }
                _ => {}
            }
        }
        buffer.drain(..used_all);
    }

    /// Links that are subscribed and not broken.
    pub fn ready_links(&self) -> usize {
        self.links.values().filter(|link| link.is_ready()).count()
    }

    pub fn links_broken(&self) -> u64 {
        self.links.values().filter(|link| link.is_broken && link.subscriptions > 0).count() as u64
    }

    /// Whether a digest of this user was written.
    pub fn has_told(&self, user: &UserId) -> bool {
        self.users.contains(user)
    }

    /// How many alarms [`ONCE`] have come by so far on each link that is there.
    pub fn passed(&self) -> Vec<(u64, usize)> {
        let is_there = |number: &u64| !self.links[number].is_broken;
        let passed = self.passed.iter().filter(|(number, _)| is_there(number));
        passed.map(|(number, once)| (*number, once.len())).collect()
    }

    /// What came by before `passed` was taken has been read, where the link is there to this day.
    pub fn has_read(&mut self, passed: &[(u64, usize)]) {
        for (number, count) in passed {
            if !self.links[number].is_broken {
                let passed = self.passed.get_mut(number).expect("something came by");
                self.read.extend(passed.drain(..count));
            }
        }
    }

    /// Alarms that were read for sure, and those of them that nobody was told of.
    pub fn read_and_untold(&self) -> (usize, Vec<&Once>) {
        (self.read.len(), self.read.difference(&self.told).collect())
    }

    /// Whether all that was written so far is proved.
    pub fn is_all_proved(&self) -> bool {
        self.digests.values().all(|places| self.is_proved(places))
    }

    fn is_proved(&self, places: &[(u64, u64)]) -> bool {
        places.iter().any(|(link, ping)| self.links[link].pongs >= *ping)
    }

    /// What is wrong: a line each, none if nothing is.
    pub fn faults(&self) -> String {
        let mut faults = String::new();
        for (digest, places) in &self.digests {
            let mut say = |what: &str| {
                let _ = writeln!(faults, "{what}: {} at {places:?}", String::from_utf8_lossy(digest));
            };
            if !self.is_proved(places) {
                say("LOST, never proved");
            }
            let last = places.iter().map(|(link, _)| *link).max().expect("it was written somewhere");
            let mut links: Vec<u64> = places.iter().map(|(link, _)| *link).collect();
            links.sort_unstable();
            links.dedup();
            if links.len() < places.len() {
                say("DUP, twice on one link");
            }
            for (number, ping) in places.iter().filter(|(number, _)| *number != last) {
                let link = &self.links[number];
                if !link.is_broken {
                    say("DUP, and no link broke");
                } else if link.pongs >= ping + PONGS_UNREAD_MAX {
                    say("DUP, although its proof had been read");
                }
            }
        }
        let verdict = self.checker.verdict();
        if !verdict.is_clean() {
            let _ = writeln!(faults, "{verdict}");
        }
        faults
    }

    pub fn account(&self) -> Account {
        let again = self.digests.values().map(|places| places.len() as u64 - 1).sum();
        Account { digests: self.digests.len() as u64, again, broken: self.links_broken() }
    }
}

/// The alarm, if the message tells of one of those.
fn once(payload: &[u8]) -> Option<Once> {
    match decode_change(payload) {
        Ok(Command::Apply(change)) if is_once(&change.alarm) => Some((change.user, change.alarm)),
        _ => None,
    }
}

fn is_once(alarm: &AlarmId) -> bool {
    alarm.0.with_text(|text| text.starts_with(ONCE))
}
