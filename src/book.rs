//! The rules: which alarms of a user are due, and what becomes of them once they are told.
//!
//! The broker reorders and repeats, so what is remembered of one alarm is a join of the changes seen: the same
//! changes between the same two digests, in any order and any number of times, leave the same book.
//!
//! Never: bytes, peers, a clock. Time comes in as an argument.

use ahash::RandomState;
use std::collections::HashMap;

use crate::alarm::{Change, Condition, Digest, Status, Timestamp, UserId};
use crate::alarms::Alarms;

/// The users are spread over this many maps, so that growing one, or looking through it for what can be forgotten,
/// stops the core for a 256th of the time that one big map would take.
const PAGES: usize = 256;

/// All that is remembered of the users of one shard.
pub struct Book {
    pages: Box<[Page]>,
    hasher: RandomState,
    /// The page that [`Self::forget`] looks through next.
    page_next: usize,
    users: usize,
    alarms: usize,
}

type Page = HashMap<UserId, User, RandomState>;

/// `has_news` is false ⇒ no alarm is both due and active: a user with very many alarms who asks often is not looked
/// through each time.
#[derive(Default)]
struct User {
    alarms: Alarms,
    has_news: bool,
}

/// What is remembered of one alarm, in 24 bytes, because there are millions.
///
/// `due` ⇐ `told` is none; `told` is some ⇒ `told.status` is active and `told <= latest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// The greatest of all changes seen.
    latest: Condition,
    told: Told,
}

/// The change that the last digest carried, if one did; and whether the alarm is due: never told, or some change after
/// that one had another status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(Rust, packed(4))]
struct Told {
    /// [`NEVER`], or the seconds of its instant.
    seconds: i64,
    /// Its nanoseconds (30 bits), whether it was critical, whether the alarm is due.
    nanos_critical_due: u32,
}

const _: () = assert!(size_of::<Memory>() == 24);

/// Far before any instant that RFC 3339 can write.
const NEVER: i64 = i64::MIN;

impl Told {
    fn new(condition: Option<Condition>, is_due: bool) -> Self {
        let Some(condition) = condition else {
            return Self { seconds: NEVER, nanos_critical_due: is_due.into() };
        };
        let (at, is_critical) = (condition.changed_at(), condition.status() == Status::Critical);
        let nanos_critical_due = at.nanos() << 2 | u32::from(is_critical) << 1 | u32::from(is_due);
        Self { seconds: at.seconds(), nanos_critical_due }
    }

    fn condition(self) -> Option<Condition> {
        let status = if self.nanos_critical_due >> 1 & 1 == 1 { Status::Critical } else { Status::Warning };
        let is_some = self.seconds != NEVER;
        is_some.then(|| Condition::new(Timestamp::new(self.seconds, self.nanos_critical_due >> 2), status))
    }

    fn is_due(self) -> bool {
        self.nanos_critical_due & 1 == 1
    }
}

impl Memory {
    pub(crate) fn new(first: Condition) -> Self {
        Self { latest: first, told: Told::new(None, true) }
    }

    /// As it was taken apart before; none if it does not hold together.
    pub(crate) fn from_parts(latest: Condition, told: Option<Condition>, due: bool) -> Option<Self> {
        let holds = match told {
            None => due,
            Some(told) => told.status().is_active() && told <= latest,
        };
        holds.then(|| Self { latest, told: Told::new(told, due) })
    }

    /// Says whether the change changed anything.
    pub(crate) fn apply(&mut self, condition: Condition) -> bool {
        let before = *self;
        self.latest = self.latest.max(condition);
        if let Some(told) = self.told()
            && condition > told
            && condition.status() != told.status()
        {
            self.told = Told::new(Some(told), true);
        }
        *self != before
    }

    pub(crate) fn is_to_be_told(&self) -> bool {
        self.is_due() && self.latest.status().is_active()
    }

    /// What is to be told now, if anything; it counts as told from now on.
    pub(crate) fn take(&mut self) -> Option<Condition> {
        self.is_to_be_told().then(|| {
            self.told = Told::new(Some(self.latest), false);
            self.latest
        })
    }

    pub(crate) fn is_forgettable(&self, horizon: Timestamp) -> bool {
        !self.latest.status().is_active() && self.latest.changed_at() < horizon
    }

    pub(crate) fn latest(&self) -> Condition {
        self.latest
    }

    pub(crate) fn told(&self) -> Option<Condition> {
        self.told.condition()
    }

    pub(crate) fn is_due(&self) -> bool {
        self.told.is_due()
    }
}

impl Default for Book {
    fn default() -> Self {
        Self::new()
    }
}

impl Book {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new() -> Self {
        let hasher = RandomState::new();
        let pages = (0..PAGES).map(|_| Page::with_hasher(hasher.clone())).collect();
        Self { pages, hasher, page_next: 0, users: 0, alarms: 0 }
    }

    /// Remembers a change. Changes from before what was last told, and repetitions, change nothing.
    pub fn apply(&mut self, change: Change) {
        let page = self.page(&change.user);
        let user = page.entry(change.user).or_default();
        if let Some(memory) = user.alarms.find(&change.alarm) {
            user.has_news |= memory.apply(change.condition);
            return;
        }
        let is_new_user = user.alarms.is_empty();
        user.alarms.insert(change.alarm, Memory::new(change.condition));
        user.has_news = true;
        self.users += usize::from(is_new_user);
        self.alarms += 1;
    }

    /// The alarms of `user` that are due and active, which count as told from now on; none when there are none. An
    /// alarm that is due but cleared now stays due, so that its next activation is told.
    pub fn take_digest(&mut self, user: &UserId) -> Option<Digest> {
        let User { alarms, has_news } = self.page(user).get_mut(user)?;
        if !std::mem::take(has_news) {
            return None;
        }
        let mut due: Vec<_> = alarms
            .iter_mut()
            .filter_map(|(id, memory)| memory.take().map(|told| (id.clone(), told)))
            .collect();
        due.sort_unstable_by(|(a_id, a), (b_id, b)| (a.changed_at(), a_id).cmp(&(b.changed_at(), b_id)));
        (!due.is_empty()).then(|| Digest { user: user.clone(), alarms: due })
    }

    /// Looks through the next of 256 pages and forgets the alarms that were cleared before `horizon`, and users
    /// that have no alarms left. A change that arrives after its alarm was forgotten may be told again.
    pub fn forget(&mut self, horizon: Timestamp) {
        let page = &mut self.pages[self.page_next];
        self.page_next = (self.page_next + 1) % PAGES;
        let (users_before, mut alarms_forgotten) = (page.len(), 0);
        page.retain(|_, user| {
            alarms_forgotten += user.alarms.forget_if(|memory| memory.is_forgettable(horizon));
            !user.alarms.is_empty()
        });
        if page.len() < page.capacity() / 4 {
            page.shrink_to_fit();
        }
        self.users -= users_before - page.len();
        self.alarms -= alarms_forgotten;
    }

    /// Users of whom at least one alarm is remembered.
    #[must_use]
    pub fn users(&self) -> usize {
        self.users
    }

    /// Alarms remembered, cleared ones included.
    #[must_use]
    pub fn alarms(&self) -> usize {
        self.alarms
    }

    /// A map takes its bucket from the low bits of the hash and its tag from the top seven: these are neither.
    fn page(&mut self, user: &UserId) -> &mut Page {
        const { assert!(PAGES == 1 << 8) };
        &mut self.pages[(self.hasher.hash_one(user) >> 32) as usize % PAGES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarm::{AlarmId, Id};

    /// Plays a script, one step a line, and compares every digest with what stands after its arrow.
    ///
    /// `USER ALARM STATUS @SECOND` is a change, `digest USER -> ALARM STATUS, …` a request and its digest,
    /// `forget before @SECOND` looks through the whole book, `holds U users A alarms` counts.
    fn check(script: &str) {
        let mut book = Book::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            match words[..] {
                ["digest", user, "->", ref expected @ ..] => {
                    let digest = book.take_digest(&user_id(user));
                    assert_eq!(spoken(digest), expected.join(" "), "at `{line}` of {script}");
                }
                ["forget", "before", second] => (0..PAGES).for_each(|_| book.forget(timestamp(second))),
                ["holds", users, "users", alarms, "alarms"] => {
                    let held = (book.users().to_string(), book.alarms().to_string());
                    assert_eq!(held, (users.into(), alarms.into()), "at `{line}` of {script}");
                }
                [user, alarm, status, second] => book.apply(change(user, alarm, status, second)),
                _ => panic!("not a step: `{line}`"),
            }
        }
    }

    fn user_id(text: &str) -> UserId {
        UserId(Id::new(text).expect("a valid id"))
    }

    fn timestamp(second: &str) -> Timestamp {
        Timestamp::new(second.trim_start_matches('@').parse().expect("a second"), 0)
    }

    fn change(user: &str, alarm: &str, status: &str, second: &str) -> Change {
        let status = match status {
            "cleared" => Status::Cleared,
            "warning" => Status::Warning,
            "critical" => Status::Critical,
            _ => panic!("not a status: {status}"),
        };
        let alarm = AlarmId(Id::new(alarm).expect("a valid id"));
        Change { user: user_id(user), alarm, condition: Condition::new(timestamp(second), status) }
    }

    fn spoken(digest: Option<Digest>) -> String {
        let Some(digest) = digest else { return "nothing".into() };
        let spoken = |(alarm, condition): &(AlarmId, Condition)| {
            alarm.0.with_text(|id| format!("{id} {}", format!("{:?}", condition.status()).to_lowercase()))
        };
        digest.alarms.iter().map(spoken).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn active_alarms_are_told_oldest_first_and_ties_by_id() {
        check(
            "
            ann disk critical @7
            ann fan  warning  @3
            ann cpu  warning  @7
            ann ram  cleared  @1
            digest ann -> fan warning, cpu warning, disk critical
        ",
        );
    }

    #[test]
    fn users_are_apart() {
        check(
            "
            ann disk critical @7
            bob disk warning  @8
            digest bob -> disk warning
            digest eve -> nothing
            digest ann -> disk critical
        ",
        );
    }

    #[test]
    fn nobody_is_told_the_same_thing_twice() {
        check(
            "
            ann disk warning @1
            digest ann -> disk warning
            digest ann -> nothing
            ann disk warning @1
            digest ann -> nothing
            ann disk warning @2
            digest ann -> nothing
        ",
        );
    }

    #[test]
    fn another_severity_is_news_and_so_is_coming_back() {
        check(
            "
            ann disk warning @1
            digest ann -> disk warning
            ann disk critical @2
            digest ann -> disk critical
            ann disk warning @3
            digest ann -> disk warning
            ann disk critical @4
            ann disk warning  @5
            digest ann -> disk warning
        ",
        );
    }

    #[test]
    fn an_alarm_that_was_cleared_in_between_is_due_again_also_when_the_clearing_arrives_last() {
        check(
            "
            ann disk warning @1
            ann fan  warning @1
            digest ann -> disk warning, fan warning
            ann disk cleared @2
            ann disk warning @3
            ann fan  warning @3
            ann fan  cleared @2
            digest ann -> disk warning, fan warning
        ",
        );
    }

    #[test]
    fn a_cleared_alarm_is_not_told_and_stays_due() {
        check(
            "
            ann disk warning @1
            ann disk cleared @2
            digest ann -> nothing
            ann disk warning @3
            digest ann -> disk warning
            ann disk cleared @4
            digest ann -> nothing
            ann disk warning @5
            digest ann -> disk warning
        ",
        );
    }

    #[test]
    fn a_late_change_from_the_past_changes_nothing() {
        check(
            "
            ann disk warning  @5
            digest ann -> disk warning
            ann disk cleared  @4
            ann disk critical @4
            digest ann -> nothing
            ann fan cleared @5
            ann fan warning @4
            digest ann -> nothing
        ",
        );
    }

    #[test]
    fn at_the_same_instant_the_greater_severity_is_the_later_change() {
        check(
            "
            ann disk critical @1
            ann disk cleared  @1
            ann fan  cleared  @1
            ann fan  warning  @1
            digest ann -> disk critical, fan warning
            ann fan  critical @1
            ann disk warning  @1
            digest ann -> fan critical
        ",
        );
    }

    #[test]
    fn cleared_alarms_are_forgotten_after_the_horizon_and_active_ones_never() {
        check(
            "
            ann disk cleared @10
            ann fan  cleared @20
            bob disk cleared @10
            bob fan  warning @1
            eve disk cleared @10
            holds 3 users 5 alarms
            forget before @10
            holds 3 users 5 alarms
            forget before @20
            holds 2 users 2 alarms
            ann disk warning @9
            digest ann -> disk warning
            digest bob -> fan warning
        ",
        );
    }
}
