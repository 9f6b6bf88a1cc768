//! What is sent: users, alarms and changes as numbers, and their text.
//!
//! ```text
//! user 0 … users-1         pair = user * alarms + alarm         change = (pair, count), count = 0, 1, 2, …
//! ```
//!
//! Everything can be computed back from its text, so that a digest is checked without a table of what was sent: an id
//! holds its number, and an instant holds its count.
//!
//! Never: a socket, a clock. Randomness is an argument.

use clap::ValueEnum;
use fastrand::Rng;
use nats_wire::{Subject, encode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Ids that look random and hold a number, as canonical UUID text.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    seed: u64,
}

/// Any odd number has an inverse modulo 2^32; this one, 2^32 divided by the golden ratio, also spreads neighbours.
const SPREAD: u32 = 0x9e37_79b1;
const GATHER: u32 = inverse(SPREAD);
const _: () = assert!(SPREAD.wrapping_mul(GATHER) == 1);

impl Ids {
    /// Another seed, other ids.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    /// The id that holds `number`: its first four bytes, spread; the rest is a hash of number and seed.
    #[must_use]
    pub fn id(self, number: u32) -> Uuid {
        let first = (number ^ self.seed as u32).wrapping_mul(SPREAD);
        let rest = mix(self.seed ^ u64::from(number));
        let all = u128::from(first) << 96 | u128::from(rest) << 32 | u128::from(mix(rest) as u32);
        uuid::Builder::from_random_bytes(all.to_be_bytes()).into_uuid()
    }

    /// The number that `text` holds, if it is an id of ours.
    #[must_use]
    pub fn number(self, text: &str) -> Option<u32> {
        let uuid = Uuid::try_parse_ascii(text.as_bytes()).ok()?;
        let number = (uuid.as_u128() >> 96) as u32;
        let number = number.wrapping_mul(GATHER) ^ self.seed as u32;
        (self.id(number) == uuid).then_some(number)
    }
}

/// Newton's iteration: each step doubles the number of right bits, and an odd number is right in three.
const fn inverse(odd: u32) -> u32 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 4 {
        inverse = inverse.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

/// Source: splitmix64, Steele, Lea and Flood, 2014.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What the statuses of one alarm are, by the count of its changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Rises, is refreshed, is cleared, comes back.
    Life,
    /// Each change is news.
    News,
}

impl Pattern {
    fn cycle(self) -> &'static [&'static str] {
        match self {
            Self::Life => &["WARNING", "CRITICAL", "CRITICAL", "CLEARED"],
            Self::News => &["WARNING", "CRITICAL"],
        }
    }

    /// The status of change `count`.
    #[must_use]
    pub fn status(self, count: u32) -> &'static str {
        self.cycle()[count as usize % self.cycle().len()]
    }

    /// Whether a user who was last told change `told` is to be told change `count`, when all between have arrived.
    #[must_use]
    pub fn is_news(self, told: Option<u32>, count: u32) -> bool {
        let is_active = self.status(count) != "CLEARED";
        let is_due = |told| (told + 1..=count).any(|between| self.status(between) != self.status(told));
        is_active && told.is_none_or(is_due)
    }
}

/// Which users the changes are about.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skew {
    /// All alike.
    Uniform,
    /// The nth user has 1/n of the first one's.
    Zipf,
    /// One user has half of all, the rest is uniform.
    Hot,
}

/// Draws users.
pub struct Sampler {
    users: u32,
    skew: Skew,
    /// For Zipf: the sums of the weights up to each user.
    sums: Vec<f64>,
}

impl Sampler {
    /// # Panics
    /// When there are no users.
    #[must_use]
    pub fn new(users: u32, skew: Skew) -> Self {
        assert!(users > 0, "nobody to draw from");
        let mut sum = 0.0;
        let weights = (1..=users).map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        });
        let sums = if skew == Skew::Zipf { weights.collect() } else { Vec::new() };
        Self { users, skew, sums }
    }

    /// One of the users.
    pub fn draw(&self, rng: &mut Rng) -> u32 {
        match self.skew {
            Skew::Uniform => rng.u32(..self.users),
            Skew::Hot if rng.bool() => 0,
            Skew::Hot => rng.u32(..self.users),
            Skew::Zipf => {
                let at = rng.f64() * self.sums[self.sums.len() - 1];
                (self.sums.partition_point(|sum| *sum <= at) as u32).min(self.users - 1)
            }
        }
    }
}

/// Everything about the load that has a text.
#[derive(Clone)]
pub struct Texts {
    /// Ids of users.
    pub users: Ids,
    /// Ids of alarms, by pair.
    pub alarms: Ids,
    /// Alarms of each user.
    pub alarms_per_user: u32,
    /// What becomes of an alarm.
    pub pattern: Pattern,
    /// The instant of all first changes, in milliseconds since 1970; each next change is one millisecond later.
    pub base_millis: i64,
}

impl Texts {
    /// Appends the payload of an `AlarmStatusChanged`.
    pub fn change(&self, pair: u32, count: u32, out: &mut Vec<u8>) {
        let user = self.users.id(pair / self.alarms_per_user).hyphenated();
        let alarm = self.alarms.id(pair).hyphenated();
        let (mut user_text, mut alarm_text) = ([0; 36], [0; 36]);
        out.extend_from_slice(b"{\"AlarmID\":\"");
        out.extend_from_slice(alarm.encode_lower(&mut alarm_text).as_bytes());
        out.extend_from_slice(b"\",\"UserID\":\"");
        out.extend_from_slice(user.encode_lower(&mut user_text).as_bytes());
        out.extend_from_slice(b"\",\"Status\":\"");
        out.extend_from_slice(self.pattern.status(count).as_bytes());
        out.extend_from_slice(b"\",\"ChangedAt\":\"");
        self.instant(pair, count)
            .format_into(out, &Rfc3339)
            .expect("an instant of these years can be written");
        out.extend_from_slice(b"\"}");
    }

    /// Appends the payload of a `SendAlarmDigest`.
    pub fn request(&self, user: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"UserID\":\"");
        out.extend_from_slice(self.users.id(user).hyphenated().encode_lower(&mut [0; 36]).as_bytes());
        out.extend_from_slice(b"\"}");
    }

    /// When change `count` of `pair` happened. What is below a millisecond is the pair's own.
    #[must_use]
    pub fn instant(&self, pair: u32, count: u32) -> OffsetDateTime {
        let nanos = (i128::from(self.base_millis) + i128::from(count)) * 1_000_000 + own_nanos(pair);
        OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("an instant of these years")
    }

    /// The count that `instant` holds, if it is one of `pair`'s.
    #[must_use]
    pub fn count(&self, pair: u32, instant: OffsetDateTime) -> Option<u32> {
        let nanos = instant.unix_timestamp_nanos();
        let count = u32::try_from(nanos.div_euclid(1_000_000) - i128::from(self.base_millis)).ok()?;
        (nanos.rem_euclid(1_000_000) == own_nanos(pair)).then_some(count)
    }
}

fn own_nanos(pair: u32) -> i128 {
    i128::from(pair.wrapping_mul(SPREAD) % 1_000_000)
}

/// Encodes messages for the wire, one behind the other.
#[derive(Default)]
pub struct Encoded {
    /// Whole PUB operations.
    pub bytes: Vec<u8>,
    /// Where each of them ends.
    pub ends: Vec<usize>,
    payload: Vec<u8>,
}

impl Encoded {
    /// Appends a message whose payload `write` appends to what it is given.
    ///
    /// # Panics
    /// When `subject` is not a valid name.
    pub fn push(&mut self, subject: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.payload.clear();
        write(&mut self.payload);
        let subject = Subject::new(subject).expect("the caller gives a valid subject");
        encode::publish(&mut self.bytes, subject, None, &self.payload);
        self.ends.push(self.bytes.len());
    }

    /// How many messages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of the messages from number `from` up to, not including, number `to`.
    #[must_use]
    pub fn range(&self, from: usize, to: usize) -> &[u8] {
        let end = |count: usize| if count == 0 { 0 } else { self.ends[count - 1] };
        &self.bytes[end(from)..end(to)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_holds_its_number_and_is_nobody_elses() {
        let (ids, others) = (Ids::new(1), Ids::new(2));
        for number in [0, 1, 2, 1_000_000, u32::MAX] {
            let text = ids.id(number).hyphenated().to_string();
            assert_eq!((ids.number(&text), others.number(&text)), (Some(number), None), "{text}");
        }
        assert_eq!(ids.number("a user"), None);
    }

    #[test]
    fn an_instant_holds_its_count_through_its_text() {
        let texts = Texts {
            users: Ids::new(1),
            alarms: Ids::new(2),
            alarms_per_user: 10,
            pattern: Pattern::Life,
            base_millis: 1_767_225_600_000,
        };
        for (pair, count) in [(0, 0), (7, 3), (1_000_000, 100_000)] {
            let text = texts.instant(pair, count).format(&Rfc3339).unwrap();
            let back = OffsetDateTime::parse(&text, &Rfc3339).unwrap();
            assert_eq!(texts.count(pair, back), Some(count), "{text}");
            assert_eq!(texts.count(pair + 1, back), None);
        }
    }

    #[test]
    fn a_refreshed_alarm_is_no_news_and_one_that_came_back_is() {
        let news = |told, count| Pattern::Life.is_news(told, count);
        assert!(news(None, 0) && news(Some(0), 1) && news(Some(0), 4) && news(Some(2), 5));
        assert!(!news(Some(1), 2) && !news(Some(2), 3) && !news(None, 3) && !news(Some(0), 0));
    }

    #[test]
    fn skews_are_what_they_say() {
        let share_of_first = |skew| {
            let (sampler, mut rng) = (Sampler::new(100, skew), Rng::with_seed(1));
            (0..10_000).filter(|_| sampler.draw(&mut rng) == 0).count()
        };
        assert!((50..200).contains(&share_of_first(Skew::Uniform)));
        assert!((1700..2200).contains(&share_of_first(Skew::Zipf)), "one in H(100) = 5.19");
        assert!((4900..5300).contains(&share_of_first(Skew::Hot)));
    }
}
