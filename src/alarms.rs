//! The alarms of one user, held densely: millions of users have a few alarms each, and a few users have very many.
//!
//! Never: a decision. What is remembered of an alarm, and what it means, is `book`'s.

use std::collections::BTreeMap;

use crate::alarm::AlarmId;
use crate::book::Memory;

/// Up to here a sorted vector is smaller than a tree and as fast; beyond it, insertion would cost too much.
const FEW_MAX: usize = 256;

/// So many entries are looked at one after the other: a dozen cache lines.
const ROW_MAX: usize = 16;

/// Alarms by id.
pub(crate) enum Alarms {
    /// Sorted by id. Grows by an eighth, not by doubling: most of these never grow again.
    Few(Vec<(AlarmId, Memory)>),
    Many(BTreeMap<AlarmId, Memory>),
}

impl Default for Alarms {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Alarms {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    pub(crate) fn find(&mut self, id: &AlarmId) -> Option<&mut Memory> {
        match self {
            Self::Few(few) => find(few, id),
            Self::Many(many) => many.get_mut(id),
        }
    }

    /// # Panics
    /// When `id` is in already: the caller has looked.
    pub(crate) fn insert(&mut self, id: AlarmId, memory: Memory) {
        match self {
            Self::Few(few) if few.len() < FEW_MAX => {
                let at = position(few, &id).expect_err("the caller looked for it and did not find it");
                if few.len() == few.capacity() {
                    few.reserve_exact(1 + few.len() / 8);
                }
                few.insert(at, (id, memory));
            }
            Self::Few(few) => {
                let mut many: BTreeMap<_, _> = std::mem::take(few).into_iter().collect();
                many.insert(id, memory);
                *self = Self::Many(many);
            }
            Self::Many(many) => {
                let old = many.insert(id, memory);
                assert!(old.is_none(), "the caller looked for it and did not find it");
            }
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&AlarmId, &mut Memory)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few.iter_mut().map(|(id, memory)| (&*id, memory))), None),
            Self::Many(many) => (None, Some(many.iter_mut())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    /// Drops the alarms that `is_forgettable` picks, gives back spare memory and returns how many went.
    pub(crate) fn forget_if(&mut self, is_forgettable: impl Fn(&Memory) -> bool) -> usize {
        match self {
            Self::Few(few) => {
                let before = few.len();
                few.retain(|(_, memory)| !is_forgettable(memory));
                if few.len() < before {
                    few.shrink_to_fit();
                }
                before - few.len()
            }
            Self::Many(many) => {
                let before = many.len();
                many.retain(|_, memory| !is_forgettable(memory));
                let after = many.len();
                if after <= FEW_MAX / 2 {
                    *self = Self::Few(std::mem::take(many).into_iter().collect());
                }
                before - after
            }
        }
    }
}

/// Halves what is left until it is short, and then looks at all of it. The entries are seldom in the cache, and each half waits
/// for the one before, while a short row is fetched at once.
fn find<'a>(few: &'a mut [(AlarmId, Memory)], id: &AlarmId) -> Option<&'a mut Memory> {
    let mut left = few;
    while left.len() > ROW_MAX {
        let middle = left.len() / 2;
        let (low, high) = left.split_at_mut(middle);
        left = if *id < high[0].0 { low } else { high };
    }
    left.iter_mut().find(|(other, _)| other == id).map(|(_, memory)| memory)
}

fn position(few: &[(AlarmId, Memory)], id: &AlarmId) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| other.cmp(id))
}
