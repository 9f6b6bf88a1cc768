//! How often a value was at most 1, 2, 5, 10, 20, 50 … of some unit: enough to tell a median from a tail, in a few words of
//! memory, and any number of them add up to one.
//!
//! Never: a unit, which the name of whoever holds one says; more than one count for an observation.

/// Observations by size. The bounds are `FIRST` times 1, 2, 5, 10, 20, 50 and so on, `BUCKETS` of them; what is greater than
/// the last one is counted beyond them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram<const FIRST: u64, const BUCKETS: usize> {
    /// Each without what the ones before it have.
    counts: [u64; BUCKETS],
    beyond: u64,
    sum: u64,
}

impl<const FIRST: u64, const BUCKETS: usize> Histogram<FIRST, BUCKETS> {
    /// The greatest value of each bucket.
    pub const BOUNDS: [u64; BUCKETS] = {
        let mut bounds = [0; BUCKETS];
        let (mut at, mut decade) = (0, FIRST);
        while at < BUCKETS {
            bounds[at] = decade * [1, 2, 5][at % 3];
            at += 1;
            if at % 3 == 0 {
                decade *= 10;
            }
        }
        bounds
    };

    /// Counts `value`.
    pub fn observe(&mut self, value: u64) {
        let bucket = Self::BOUNDS.iter().position(|bound| value <= *bound);
        *bucket.map_or(&mut self.beyond, |bucket| &mut self.counts[bucket]) += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Each bound, and how many observations were at most that.
    pub fn up_to(&self) -> impl Iterator<Item = (u64, u64)> {
        let running = |sum: &mut u64, (bound, count): (u64, &u64)| {
            *sum += count;
            Some((bound, *sum))
        };
        Self::BOUNDS.into_iter().zip(&self.counts).scan(0, running)
    }

    /// All observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.beyond
    }

    /// What all observations add up to.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(mine, other)| *mine += other);
        self.beyond += other.beyond;
        self.sum = self.sum.saturating_add(other.sum);
    }
}

impl<const FIRST: u64, const BUCKETS: usize> Default for Histogram<FIRST, BUCKETS> {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], beyond: 0, sum: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tens = Histogram<10, 5>;

    fn observed(values: &[u64]) -> Tens {
        let mut histogram = Tens::default();
        values.iter().for_each(|value| histogram.observe(*value));
        histogram
    }

    #[test]
    fn a_value_counts_in_each_bound_that_it_does_not_exceed() {
        let histogram = observed(&[0, 10, 11, 20, 200, 201, 7_000]);
        let up_to: Vec<_> = histogram.up_to().collect();
        assert_eq!(up_to, [(10, 2), (20, 4), (50, 4), (100, 4), (200, 5)]);
        assert_eq!((histogram.count(), histogram.sum()), (7, 7_442));
    }

    #[test]
    fn bounds_go_on_over_decades() {
        assert_eq!(Histogram::<1, 8>::BOUNDS, [1, 2, 5, 10, 20, 50, 100, 200]);
    }

    #[test]
    fn two_add_up_to_what_one_would_have_counted() {
        let (left, right) = (&[3, 15, 999][..], &[15, 100, u64::MAX][..]);
        let mut sum = observed(left);
        sum.add(&observed(right));
        assert_eq!(sum, observed(&[left, right].concat()));
        assert_eq!(sum.sum(), u64::MAX);
    }
}
