//! The rules once more, as naively as they can be written: the whole history is kept, and searched each time.

use std::collections::{BTreeMap, BTreeSet};

use alarm_digest::alarm::{AlarmId, Change, Command, Condition, Digest, Timestamp, UserId};
use alarm_digest::message::{decode_change, decode_request};

/// Every change that ever was, and what the last digest told of each alarm.
#[derive(Clone, Default, Debug)]
pub struct Oracle {
    changes: BTreeMap<(UserId, AlarmId), BTreeSet<Condition>>,
    told: BTreeMap<(UserId, AlarmId), Condition>,
    /// Nobody has to know of a change that is not after this.
    ends: BTreeMap<(UserId, AlarmId), Condition>,
    /// Nobody has to know of these either.
    refused: BTreeSet<(UserId, AlarmId, Condition)>,
}

/// What is wrong with a digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// How it is counted.
    pub fault: Fault,
    /// Which alarm of whom, and what came.
    pub what: String,
}

impl Wrong {
    fn new(fault: Fault, what: String) -> Self {
        Self { fault, what }
    }
}

/// How what is wrong with a digest is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An alarm was told although it was no news.
    Twice,
    /// An alarm was told as it was before what was told last.
    Stale,
    /// Empty, out of order, not active, or never published.
    Malformed,
}

impl Oracle {
    /// A change was published.
    pub fn apply(&mut self, change: &Change) {
        let key = (change.user.clone(), change.alarm.clone());
        self.changes.entry(key).or_default().insert(change.condition);
    }

    /// The digest that `user` would get now, which counts as told.
    pub fn take_digest(&mut self, user: &UserId) -> Option<Digest> {
        let due: Vec<AlarmId> =
            self.alarms_of(user).filter(|alarm| self.is_to_be_told(user, alarm)).cloned().collect();
        let mut alarms = Vec::new();
        for alarm in due {
            let latest = self.latest(user, &alarm);
            self.told.insert((user.clone(), alarm.clone()), latest);
            alarms.push((alarm, latest));
        }
        alarms.sort_by_key(|(alarm, condition)| (condition.changed_at(), alarm.clone()));
        (!alarms.is_empty()).then(|| Digest { user: user.clone(), alarms })
    }

    /// Takes a digest that came out of the service instead, and says what is wrong with it.
    pub fn hear(&mut self, user: &UserId, alarms: &[(AlarmId, Condition)]) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        if alarms.is_empty() {
            wrong.push(Wrong::new(Fault::Malformed, format!("{user:?}: an empty digest")));
        }
        if !alarms.is_sorted_by(|(a, at_a), (b, at_b)| (at_a.changed_at(), a) < (at_b.changed_at(), b)) {
            wrong.push(Wrong::new(Fault::Malformed, format!("{user:?}: not oldest first: {alarms:?}")));
        }
        for (alarm, condition) in alarms {
            wrong.extend(self.hear_alarm(user, alarm, *condition));
        }
        wrong
    }

    fn hear_alarm(&mut self, user: &UserId, alarm: &AlarmId, condition: Condition) -> Option<Wrong> {
        let key = (user.clone(), alarm.clone());
        let wrong = |fault, what: &str| Some(Wrong::new(fault, format!("{user:?} {alarm:?}: {what}")));
        if !self.changes.get(&key).is_some_and(|changes| changes.contains(&condition)) {
            return wrong(Fault::Malformed, &format!("invented: {condition:?}"));
        }
        if !condition.status().is_active() {
            return wrong(Fault::Malformed, &format!("not active: {condition:?}"));
        }
        let told = self.told.get(&key).copied();
        match told {
            Some(told) if condition < told => {
                return wrong(Fault::Stale, &format!("told {told:?} and then {condition:?}"));
            }
            Some(told) if condition == told || !self.has_differed_since(user, alarm, told) => {
                self.told.insert(key, condition);
                return wrong(
                    Fault::Twice,
                    &format!("told {told:?} and then {condition:?}, which is no news"),
                );
            }
            _ => {}
        }
        self.told.insert(key, condition);
        None
    }

    /// Alarms that their user would have to be told of now.
    #[must_use]
    pub fn missing(&self) -> Vec<(UserId, AlarmId)> {
        self.changes.keys().filter(|(user, alarm)| self.is_to_be_told(user, alarm)).cloned().collect()
    }

    /// Alarms that would still have to be told by who knows at least `known`, and perhaps any other change.
    #[must_use]
    pub fn untold(&self, user: &UserId, known: &BTreeSet<(AlarmId, Condition)>) -> Vec<AlarmId> {
        let alarms: BTreeSet<&AlarmId> = known.iter().map(|(alarm, _)| alarm).collect();
        let is_untold = |alarm: &&AlarmId| {
            let conditions = || {
                let of_it =
                    known.iter().filter(|(other, _)| other == *alarm).map(|(_, condition)| *condition);
                of_it.filter(|condition| self.must_be_known(user, alarm, *condition))
            };
            let Some(latest) = conditions().max() else { return false };
            let told = self.told.get(&(user.clone(), (*alarm).clone())).copied();
            let is_due = told.is_none_or(|told| {
                conditions().any(|condition| condition > told && condition.status() != told.status())
            });
            // Who knew of a later end of it had nothing to tell.
            let may_have_ended = self.changes.get(&(user.clone(), (*alarm).clone())).is_some_and(|changes| {
                changes.iter().any(|condition| *condition > latest && !condition.status().is_active())
            });
            latest.status().is_active() && is_due && !may_have_ended
        };
        alarms.into_iter().filter(is_untold).cloned().collect()
    }

    /// Forgets the alarms of these users that were cleared before `horizon`, as the service does, and says which.
    pub fn forget(
        &mut self,
        horizon: Timestamp,
        is_theirs: impl Fn(&UserId) -> bool,
    ) -> Vec<(UserId, AlarmId)> {
        let is_forgotten = |(user, _): &(UserId, AlarmId), changes: &BTreeSet<Condition>| {
            let latest = changes.last().expect("an alarm has at least one change");
            is_theirs(user) && !latest.status().is_active() && latest.changed_at() < horizon
        };
        let forgotten: Vec<_> = self
            .changes
            .iter()
            .filter(|(key, changes)| is_forgotten(key, changes))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &forgotten {
            self.changes.remove(key);
            self.told.remove(key);
        }
        forgotten
    }

    /// The last change of this alarm that ended it, is not before `condition`, and is from before `horizon`: the service may have
    /// forgotten the alarm by it.
    #[must_use]
    pub fn end_before(
        &self,
        horizon: Timestamp,
        user: &UserId,
        alarm: &AlarmId,
        condition: Condition,
    ) -> Option<Condition> {
        let changes = self.changes.get(&(user.clone(), alarm.clone()))?;
        let is_end = |end: &&Condition| !end.status().is_active() && end.changed_at() < horizon;
        changes.range(condition..).rev().find(is_end).copied()
    }

    /// The service may have forgotten this alarm, by `end` at the latest: nobody has to know of a change that is not after it.
    pub fn let_end(&mut self, user: &UserId, alarm: &AlarmId, end: Condition) {
        let last = self.ends.entry((user.clone(), alarm.clone())).or_insert(end);
        *last = end.max(*last);
    }

    /// What was told of this alarm is forgotten, and may be told again should it come late, or once more.
    pub fn forget_told(&mut self, user: &UserId, alarm: &AlarmId) {
        self.told.remove(&(user.clone(), alarm.clone()));
    }

    /// The service has said that it has no room for this change.
    pub fn refuse(&mut self, change: &Change) {
        self.refused.insert((change.user.clone(), change.alarm.clone(), change.condition));
    }

    /// The service has said that it knows of this change.
    pub fn accept(&mut self, change: &Change) {
        self.refused.remove(&(change.user.clone(), change.alarm.clone(), change.condition));
    }

    fn must_be_known(&self, user: &UserId, alarm: &AlarmId, condition: Condition) -> bool {
        !self.refused.contains(&(user.clone(), alarm.clone(), condition))
            && self.ends.get(&(user.clone(), alarm.clone())).is_none_or(|end| condition > *end)
    }

    fn alarms_of(&self, user: &UserId) -> impl Iterator<Item = &AlarmId> {
        self.changes.keys().filter(move |(other, _)| other == user).map(|(_, alarm)| alarm)
    }

    fn is_to_be_told(&self, user: &UserId, alarm: &AlarmId) -> bool {
        let must_be_known = |condition: &Condition| self.must_be_known(user, alarm, *condition);
        let changes = &self.changes[&(user.clone(), alarm.clone())];
        let Some(latest) = changes.iter().rev().copied().find(must_be_known) else { return false };
        let told = self.told.get(&(user.clone(), alarm.clone()));
        let is_due = |told: &Condition| {
            self.differing_since(user, alarm, *told).any(|condition| must_be_known(&condition))
        };
        latest.status().is_active() && told.is_none_or(is_due)
    }

    fn latest(&self, user: &UserId, alarm: &AlarmId) -> Condition {
        *self.changes[&(user.clone(), alarm.clone())].last().expect("an alarm has at least one change")
    }

    fn has_differed_since(&self, user: &UserId, alarm: &AlarmId, told: Condition) -> bool {
        self.differing_since(user, alarm, told).next().is_some()
    }

    fn differing_since(
        &self,
        user: &UserId,
        alarm: &AlarmId,
        told: Condition,
    ) -> impl Iterator<Item = Condition> {
        let changes = &self.changes[&(user.clone(), alarm.clone())];
        changes
            .iter()
            .copied()
            .filter(move |condition| *condition > told && condition.status() != told.status())
    }
}

/// Reads a digest by turning each alarm of it into the change that it tells of.
///
/// # Panics
/// When it is no digest.
#[must_use]
pub fn parse_digest(payload: &[u8]) -> (UserId, Vec<(AlarmId, Condition)>) {
    let digest: serde_json::Value = serde_json::from_slice(payload).expect("a digest is JSON");
    let Ok(Command::SendDigest(user)) = decode_request(payload) else { panic!("a digest has a UserID") };
    let alarm = |alarm: &serde_json::Value| {
        let change = serde_json::json!({
            "AlarmID": alarm["AlarmID"], "UserID": digest["UserID"],
            "Status": alarm["Status"], "ChangedAt": alarm["LatestChangedAt"],
        });
        match decode_change(change.to_string().as_bytes()) {
            Ok(Command::Apply(Change { alarm, condition, .. })) => (alarm, condition),
            other => panic!("not an alarm: {other:?}"),
        }
    };
    (user, digest["ActiveAlarms"].as_array().expect("an array").iter().map(alarm).collect())
}
