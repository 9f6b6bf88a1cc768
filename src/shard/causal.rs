//! Requests that wait until every shard has read what the server had taken before them.
//!
//! ```text
//! owner of the user              every other shard than the reader        owner
//! requests ─► a round ─► Fence ─► PING … PONG, all before it mailed ─► Passed ─► digests
//! ```
//!
//! A request and the alarm published just before it may come on two connections, at two cores, the request first. But the
//! server answers a PING behind all that it has put on that connection: a shard whose PONG is back has read every change
//! that was on its way to it, and mailed it ahead of the `Passed`. One round covers all requests that came before it, so what
//! rounds cost is bounded by the round trip, and not by the rate of requests.
//!
//! The shard that read a request has read all that was on its way to it before: it came on the same connection, and its mail
//! keeps the order. So a round whose requests were all read by one shard does not wait for that one, which saves the wake-ups of
//! a round trip where they weigh most, at low rates.
//!
//! A shard without a link, or with one that has not subscribed yet, passes at once: nothing is on its way to it. One that moves
//! from one server to another has two for a while, passes when a fence of each has, and is waited for whoever read the request.
//!
//! Never: a session, a digest.

use super::link::Mark;
use super::{Request, ShardId};

/// The rounds of one shard: its own as an owner, and its part in those of others.
///
/// `round` is empty ⇔ nobody is awaited.
#[derive(Debug)]
pub(super) struct Causal {
    /// What waits for the next round. Each user stands in it a few times at most, apart from requests that want an answer:
    /// sorted and cleaned whenever it has grown to `cleaned_at`, since a round may take as long as a server that hangs, and
    /// one digest answers all requests before it.
    asked: Vec<Request>,
    cleaned_at: usize,
    /// Who read them.
    readers: Readers,
    /// What waits for this one.
    round: Vec<Request>,
    /// Which shards have not passed yet, by their number.
    awaited: Vec<bool>,
    /// Owners that wait for our next fence.
    wanted: Vec<ShardId>,
    /// Our fences that have not passed yet, one for each link, and who waits for them.
    under_way: Option<(Vec<Mark>, Vec<ShardId>)>,
}

/// Who read the requests for the next round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Readers {
    One(ShardId),
    Several,
}

/// Requests that wait before it is worth looking for the same user twice.
const CLEANED_AT_MIN: usize = 1 << 14;

impl Causal {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            asked: Vec::new(),
            cleaned_at: CLEANED_AT_MIN,
            readers: Readers::Several,
            round: Vec::new(),
            awaited: vec![false; shards],
            wanted: Vec::new(),
            under_way: None,
        }
    }

    /// A request came.
    pub(super) fn ask(&mut self, request: Request) {
        if self.asked.is_empty() {
            self.readers = Readers::One(request.reader);
        } else if self.readers != Readers::One(request.reader) {
            self.readers = Readers::Several;
        }
        self.asked.push(request);
        if self.asked.len() >= self.cleaned_at {
            self.asked.sort_by(|a, b| a.user.cmp(&b.user));
            self.asked.dedup_by(|later, first| later.reply.is_none() && later.user == first.user);
            self.cleaned_at = (2 * self.asked.len()).max(CLEANED_AT_MIN);
        }
    }

    /// Begins a round, if one is due, that waits for all shards but those that `is_done` says have read everything, and the one
    /// that read all the requests: these shards.
    pub(super) fn begin(&mut self, is_done: impl Fn(ShardId) -> bool) -> Option<Vec<ShardId>> {
        if !self.round.is_empty() || self.asked.is_empty() {
            return None;
        }
        std::mem::swap(&mut self.round, &mut self.asked);
        self.cleaned_at = CLEANED_AT_MIN;
        let awaited: Vec<ShardId> = (0..self.awaited.len())
            .map(ShardId)
            .filter(|shard| !is_done(*shard) && self.readers != Readers::One(*shard))
            .collect();
        awaited.iter().for_each(|shard| self.awaited[shard.0] = true);
        Some(awaited)
    }

    /// `shard` has read all that came before the round, if it is awaited at all.
    pub(super) fn pass(&mut self, shard: ShardId) {
        self.awaited[shard.0] = false;
    }

    /// What may be answered now.
    pub(super) fn passed(&mut self) -> Vec<Request> {
        if self.awaited.contains(&true) { Vec::new() } else { std::mem::take(&mut self.round) }
    }

    /// `owner` waits for a fence that is still to be sent.
    pub(super) fn want(&mut self, owner: ShardId) {
        self.wanted.push(owner);
    }

    /// Sends the fences that owners wait for, unless some are under way.
    pub(super) fn send(&mut self, fences: impl FnOnce() -> Vec<Mark>) {
        if self.under_way.is_none() && !self.wanted.is_empty() {
            self.under_way = Some((fences(), std::mem::take(&mut self.wanted)));
        }
    }

    /// Who waited for `mark`, and for no other any more.
    pub(super) fn on_passed(&mut self, mark: Mark) -> Vec<ShardId> {
        self.without(|sent| sent == mark)
    }

    /// Who waited for a fence of this link, and for no other any more: nothing more can come on it.
    pub(super) fn on_link_lost(&mut self, number: u64) -> Vec<ShardId> {
        self.without(|sent| sent.link == number)
    }

    fn without(&mut self, is_over: impl Fn(Mark) -> bool) -> Vec<ShardId> {
        let Some((marks, _)) = &mut self.under_way else { return Vec::new() };
        marks.retain(|mark| !is_over(*mark));
        match self.under_way.take_if(|(marks, _)| marks.is_empty()) {
            Some((_, owners)) => owners,
            None => Vec::new(),
        }
    }

    /// Who waits for any fence of ours: nothing more can come.
    pub(super) fn on_silence(&mut self) -> Vec<ShardId> {
        let mut owners = std::mem::take(&mut self.wanted);
        owners.extend(self.under_way.take().into_iter().flat_map(|(_, owners)| owners));
        owners
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.asked.len() + self.round.len()
    }
}
