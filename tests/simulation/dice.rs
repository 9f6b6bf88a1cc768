//! Where all randomness of a run comes from: one seed, and for each kind of decision a stream of its own.
//!
//! What is drawn for a step depends on the seed, the stream and the number of the step, and on nothing that was drawn
//! before. So a kind of fault can be left out, or added, and a step omitted, and everything else is decided as it was: which
//! is how a failing run becomes a short one.
//!
//! Never: a decision about what a fault does. That is the world's.

use fastrand::Rng;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A message is published once more, any time later.
    Repeat,
    /// The broker takes messages in any order.
    Reorder,
    /// A read ends at any byte.
    CutReads,
    /// A write ends at any byte.
    CutWrites,
    /// Little of everything fits: output, mail, what is not proved, a payload.
    Limits,
    /// The server closes a connection; some of what was on its way arrives on either side.
    Disconnect,
    /// A core's socket fails: what it had not read is lost, and what it had written may arrive later.
    Reset,
    /// The same, and the server goes on for long to send messages there.
    HalfOpen,
    /// The server dies with all that was in its memory, and is back at once.
    Restart,
    /// A core cannot connect for a while.
    Unreachable,
    /// The server stops for a while.
    Hang,
    /// A core stops for a while.
    Stall,
    /// A core takes no mail for a while.
    SlowMail,
    /// The server refuses digests of one connection.
    RefuseDigests,
    /// The server refuses dead letters of one connection.
    RefuseDead,
    /// The server refuses the subscriptions of one connection.
    RefuseSubscriptions,
    /// The server says that it closes the connection, and does.
    Expel,
    /// The server sends what is not NATS.
    Garbage,
    /// The server tells of itself again, with another limit.
    Info,
    /// All cores sleep for minutes.
    Sleep,
    /// A clock on the wall jumps, and cleared alarms are forgotten by it.
    WallJump,
    /// The service is told to stop, at any time.
    Drain,
    /// An instance dies with all that it knows, and another one comes.
    Crash,
    /// An instance drains and leaves, and another one comes.
    Leave,
    /// JetStream has no leader for a while: requests, replies and acknowledgements are lost or refused.
    NoLeader,
    /// The output stream and the bucket are full for a while.
    Full,
    /// A deposed leader answers what is read for a while, with what it knew.
    Stale,
    /// A message is delivered again although nobody was late.
    Again,
    /// The server of a core is about to close: it moves to another one, over a second connection beside the first.
    Move,
}

/// How many kinds there are.
pub const KINDS: usize = 29;

impl Fault {
    /// All of them, each at the place of its number.
    pub const ALL: [Self; KINDS] = [
        Self::Repeat,
        Self::Reorder,
        Self::CutReads,
        Self::CutWrites,
        Self::Limits,
        Self::Disconnect,
        Self::Reset,
        Self::HalfOpen,
        Self::Restart,
        Self::Unreachable,
        Self::Hang,
        Self::Stall,
        Self::SlowMail,
        Self::RefuseDigests,
        Self::RefuseDead,
        Self::RefuseSubscriptions,
        Self::Expel,
        Self::Garbage,
        Self::Info,
        Self::Sleep,
        Self::WallJump,
        Self::Drain,
        Self::Crash,
        Self::Leave,
        Self::NoLeader,
        Self::Full,
        Self::Stale,
        Self::Again,
        Self::Move,
    ];

    /// Holds for a whole run instead of striking now and then.
    const fn is_lasting(self) -> bool {
        matches!(self, Self::Reorder | Self::CutReads | Self::CutWrites | Self::Limits)
    }
}

/// What of a run is left out.
#[derive(Clone, Default, Debug)]
pub struct Without {
    /// These kinds, a bit each.
    pub faults: u32,
    /// These steps.
    pub steps: std::collections::BTreeSet<u64>,
}

/// Streams of decisions that are not faults.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// How the run is set up.
    Setup = 100,
    /// What happens at a step.
    Schedule,
    /// What a message says.
    Workload,
    /// What becomes of what was on its way when a connection broke.
    Loss,
    /// What a new connection is like.
    Connection,
}

/// The dice of one run.
pub struct Dice {
    seed: u64,
    /// One in so many steps is struck by this kind; 0 for none.
    rarity: [u32; KINDS],
    /// How often each kind did something; once for those that last.
    pub struck: [u64; KINDS],
}

/// A run without any fault at all, but reordering, is one in so many.
const CALM: u32 = 8;

impl Dice {
    /// Each seed has some of the kinds, each of them rarely or often, since a run with all of them would hardly do anything
    /// else.
    pub fn new(seed: u64, without: &Without) -> Self {
        let is_calm = rng(seed, Stream::Setup as u64, u64::MAX).u32(..CALM) == 0;
        let rarity = std::array::from_fn(|kind| {
            let mut rng = rng(seed, kind as u64, u64::MAX);
            let is_lasting = Fault::ALL[kind].is_lasting();
            let is_there = if is_lasting { rng.bool() } else { rng.u32(..4) == 0 && !is_calm };
            // Most of the strikes find nobody who could move.
            let rarer = if Fault::ALL[kind] == Fault::Move { 1 } else { 10 };
            let rarity = if is_lasting { 1 } else { [2, 6, 20, 60][rng.usize(..4)] * rarer };
            if is_there && without.faults >> kind & 1 == 0 { rarity } else { 0 }
        });
        let lasts = |kind: usize| Fault::ALL[kind].is_lasting() && rarity[kind] > 0;
        Self { seed, rarity, struck: std::array::from_fn(|kind| u64::from(lasts(kind))) }
    }

    /// Whether a kind strikes at this step, and what it draws from.
    pub fn strikes(&self, fault: Fault, step: u64) -> Option<Rng> {
        let kind = fault as usize;
        if self.rarity[kind] == 0 || fault.is_lasting() {
            return None;
        }
        let mut rng = rng(self.seed, kind as u64, step);
        (rng.u32(..self.rarity[kind]) == 0).then_some(rng)
    }

    /// Whether a kind is part of this run.
    pub fn has(&self, fault: Fault) -> bool {
        self.rarity[fault as usize] > 0
    }

    /// What everything else draws from.
    pub fn draw(&self, stream: Stream, at: u64) -> Rng {
        rng(self.seed, stream as u64, at)
    }
}

fn rng(seed: u64, stream: u64, at: u64) -> Rng {
    Rng::with_seed(mix(mix(mix(seed) ^ stream) ^ at))
}

/// Source: SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
fn mix(number: u64) -> u64 {
    let mut hash = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
