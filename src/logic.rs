//! What a driver sees of one core's logic: the same in memory mode (`shard`) and in durable mode (`durable::worker`), so
//! that sockets, reconnecting and draining are written once.
//!
//! Whoever drives one obeys three rules, and then nothing can deadlock:
//!
//! 1. Bytes from the socket wait while [`Logic::takes_bytes`] is false: output or mail is full, and both empty themselves
//!    without us reading.
//! 2. Mail from peers waits while [`Logic::takes_mail`] is false: that depends on our own link only, never on a peer.
//! 3. After anything came in, [`Logic::finish_turn`]; then output and mail are taken along.
//!
//! Whoever can hold two connections can move from one server to another that way, and nothing is lost between them:
//!
//! ```text
//! swap_links, on_link, swap_links      the second connection shakes hands and is subscribed, beside the first one
//! leave                                the first is not, any more, and nothing more is published on it
//! change_links, when has_left          the second is the connection; the first is to be closed
//! ```
//!
//! Times called `now` are spans since any fixed instant.

use std::time::Duration;

use nats_wire::session::{Fault, Session, SignIn};

use crate::alarm::Timestamp;
use crate::durable::backlog::{Backlog, News, Room};
use crate::histogram::Histogram;
use crate::message::{Reason, Rejection};
use crate::reply::ReplyTo;
use crate::service_api::Question;
use crate::shard::{Mail, ShardId};

/// One core's logic, without IO.
pub trait Logic {
    /// A connection was opened, on which to sign in so; what it brings follows through [`Self::receive`], from its first byte
    /// on.
    fn on_link(&mut self, sign_in: SignIn, now: Duration);

    /// The connection is gone.
    fn on_link_lost(&mut self, now: Duration);

    /// Everything that is said of the connection, here and by [`Self::receive`] and what follows, is said of the other one until this
    /// is called again, but for [`Self::finish_turn`], [`Self::drain`] and mail, which are for whole turns.
    fn swap_links(&mut self);

    /// Whether messages can come on this connection: in memory mode, the server has read our subscriptions; in durable mode, where we ask
    /// for each, it has let us in.
    fn is_subscribed(&self) -> bool;

    /// Asks for no more on this connection, finishes what is on its way there, and keeps what is to be published for the other one.
    /// [`Self::has_left`] tells when that is done. Asking again does nothing.
    fn leave(&mut self, now: Duration);

    /// Whether nothing is left on the connection that was to be left.
    fn has_left(&self) -> bool;

    /// The connection is gone, and the other one is in its place.
    fn change_links(&mut self, now: Duration);

    /// Bytes came from the socket.
    fn heard(&mut self, now: Duration);

    /// Takes what it can from `bytes`, which start at the first byte not yet used, and says how many it used. It leaves
    /// complete operations behind only when [`Self::takes_bytes`] turns false.
    ///
    /// # Errors
    /// [`Fault`]: the connection is of no use any more.
    fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<usize, Fault>;

    /// Lets time pass, about once a second; `wall` is time as the world counts it.
    ///
    /// # Errors
    /// [`Fault`]: the connection is of no use any more.
    fn on_time(&mut self, now: Duration, wall: Timestamp) -> Result<(), Fault>;

    /// Stop: ask for no more, finish what is on its way, prove what is published. [`Self::is_drained`] tells when that is
    /// done. Asking again does nothing.
    fn drain(&mut self, now: Duration);

    /// After anything came in: puts what is to be written into the output.
    fn finish_turn(&mut self, now: Duration);

    /// Whether [`Self::receive`] takes anything now.
    fn takes_bytes(&self) -> bool;

    /// Bytes for the socket, in order.
    fn output(&self) -> &[u8];

    /// The first `bytes` of the output were written.
    fn wrote(&mut self, bytes: usize, now: Duration);

    /// Whether all that arrived has been done, and all that was published is proved.
    fn is_drained(&self) -> bool;

    /// The connection, while there is one.
    fn link(&self) -> Option<&Session>;

    /// What the log should know, to be taken out.
    fn notices(&mut self) -> &mut Vec<Notice>;

    /// From now on, answers for the whole instance of this name when somebody asks who is there.
    fn answer_as(&mut self, instance: &str);

    /// Answers a question of the service API, if there is a link and room for it.
    fn answer(&mut self, reply: &ReplyTo, payload: &[u8], now: Duration);

    /// What has happened so far.
    fn counters(&self) -> &Counters;

    /// Users and alarms in memory.
    fn holds(&self) -> (usize, usize);

    /// What would be left undone by stopping now: publications that are not proved, messages that are not acknowledged.
    fn unsettled(&self) -> usize;

    /// Whether [`Self::on_mail`] may be called now.
    fn takes_mail(&self) -> bool {
        false
    }

    /// Mail came from a peer.
    fn on_mail(&mut self, mail: Mail) {
        unreachable!("nobody writes to who takes no mail: {mail:?}");
    }

    /// Mail for the shard `peer`, to be moved out of here.
    fn mail_for(&mut self, _peer: ShardId) -> Option<&mut Vec<Mail>> {
        None
    }

    /// Mail was moved out of [`Self::mail_for`].
    fn mail_moved(&mut self) {}
}

/// What the log should know.
#[derive(Debug)]
pub enum Notice {
    /// Connected and subscribed.
    Ready,
    /// The server told more about itself: see [`Session::info`].
    Info,
    /// The server refused something, in its own words, and keeps the connection.
    Refused(String),
    /// A bad payload, at most one a second; `unsaid` others were counted since the last one.
    Rejected {
        /// Where it came from.
        subject: String,
        /// Why.
        rejection: Rejection,
        /// Others.
        unsaid: u64,
    },
    /// Somebody asks who we are, and waits for [`Logic::answer`].
    Asked(Question, ReplyTo),
    /// What waits in the work queue has changed in a way that matters.
    Backlog(News, Backlog),
    /// This stream is nearly full.
    Room(String, Room),
}

/// Between two lines of the log about the same kind of trouble.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Bounds what is said of bad payloads.
#[derive(Default, Debug)]
pub(crate) struct RejectionLog {
    said_at: Option<Duration>,
    unsaid: u64,
}

impl RejectionLog {
    /// The notice, if it is time for one.
    pub(crate) fn note(&mut self, subject: &str, rejection: &Rejection, now: Duration) -> Option<Notice> {
        if !self.may_say(now) {
            self.unsaid += 1;
            return None;
        }
        let unsaid = std::mem::take(&mut self.unsaid);
        Some(Notice::Rejected { subject: subject.into(), rejection: rejection.clone(), unsaid })
    }

    /// Whether it is time for a line, which is then taken to be said.
    pub(crate) fn may_say(&mut self, now: Duration) -> bool {
        let may_say = self.said_at.is_none_or(|said_at| now >= said_at + SAID_EVERY);
        if may_say {
            self.said_at = Some(now);
        }
        may_say
    }
}

/// Bounds what is said of anything else that was refused.
#[derive(Default, Debug)]
pub(crate) struct RefusalLog(RejectionLog);

impl RefusalLog {
    /// The notice, if it is time for one, with how many were not said since the last one.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String, now: Duration) -> Option<Notice> {
        if !self.0.may_say(now) {
            self.0.unsaid += 1;
            return None;
        }
        Some(Notice::Refused(match std::mem::take(&mut self.0.unsaid) {
            0 => text(),
            unsaid => format!("{}; {unsaid} more since the last line", text()),
        }))
    }
}

/// In microseconds, up to 50 seconds.
pub type Latency = Histogram<10, 21>;

pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What has happened so far.
#[derive(Clone, Default, Debug)]
pub struct Counters {
    /// Changes read from the server, good ones.
    pub changes: u64,
    /// Requests read from the server, good ones.
    pub requests: u64,
    /// Bad payloads by [`Reason`].
    pub rejected: [u64; Reason::ALL.len()],
    /// Of those, the ones that came as requests.
    pub rejected_requests: u64,
    /// Commands sent to other shards.
    pub mailed: u64,
    /// Digests taken from the book, or stored in the output stream.
    pub digests: u64,
    /// Alarms in them.
    pub alarms_told: u64,
    /// Alarms in each of them.
    pub alarms_per_digest: Histogram<1, 12>,
    /// Publications that a fence has proved, or messages acknowledged.
    pub settled: u64,
    /// Publications that were written when a link broke before their fence had passed: they are written again.
    pub resent: u64,
    /// Answers at the reply subject of a request, refusals of bad ones included.
    pub answers: u64,
    /// Requests that wanted an answer and got none: at a subject that we do not answer at, or too many at once.
    pub unanswered: u64,
    /// From a request to the proof that the server has its digest, in microseconds.
    pub settle_latency: Latency,
    /// Dead letters that were sent without waiting for proof, because too much was waiting already.
    pub unproved: u64,
    /// Refusals of the server.
    pub refused: u64,
    /// Times the handshake succeeded.
    pub connected: u64,
    /// Of those, the ones after a server that was about to close was left for another one, with nothing left behind.
    pub moves: u64,
    /// Messages that JetStream delivered for another time.
    pub redelivered: u64,
    /// Users' records that were read because they were not in memory, or not up to date.
    pub loads: u64,
    /// Users' records that were written, or refused.
    pub stores: u64,
    /// Writes that somebody else was first with.
    pub conflicts: u64,
    /// Messages passed on to the worker that their user is at home with.
    pub relayed: u64,
    /// Of those, the ones that nobody took any more: JetStream was asked to deliver them again.
    pub returned: u64,
    /// Requests to JetStream whose outcome is unknown: no reply, or none that says.
    pub unknown: u64,
    /// What waited in the work queue when it was last looked at, by the one core that looks.
    pub backlog: Option<Backlog>,
}

impl Counters {
    /// Messages that came from the server, good and bad.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.changes + self.requests + self.rejected.iter().sum::<u64>()
    }

    /// Connections of this core after one that broke.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.connected.saturating_sub(1 + self.moves)
    }

    /// Adds another core's.
    pub fn add(&mut self, other: &Self) {
        self.backlog = self.backlog.or(other.backlog);
        self.alarms_per_digest.add(&other.alarms_per_digest);
        self.settle_latency.add(&other.settle_latency);
        self.rejected.iter_mut().zip(other.rejected).for_each(|(mine, other)| *mine += other);
        for (mine, other) in [
            (&mut self.changes, other.changes),
            (&mut self.requests, other.requests),
            (&mut self.rejected_requests, other.rejected_requests),
            (&mut self.mailed, other.mailed),
            (&mut self.digests, other.digests),
            (&mut self.alarms_told, other.alarms_told),
            (&mut self.settled, other.settled),
            (&mut self.resent, other.resent),
            (&mut self.answers, other.answers),
            (&mut self.unanswered, other.unanswered),
            (&mut self.unproved, other.unproved),
            (&mut self.refused, other.refused),
            (&mut self.connected, other.connected),
            (&mut self.moves, other.moves),
            (&mut self.redelivered, other.redelivered),
            (&mut self.loads, other.loads),
            (&mut self.stores, other.stores),
            (&mut self.conflicts, other.conflicts),
            (&mut self.relayed, other.relayed),
            (&mut self.returned, other.returned),
            (&mut self.unknown, other.unknown),
        ] {
            *mine += other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_said_once_a_second_and_the_others_are_counted() {
        let mut log = RefusalLog::default();
        let said: Vec<String> = [0, 300, 999, 1000, 1500, 2500, 4000]
            .into_iter()
            .filter_map(|at| match log.note(|| format!("at {at}"), Duration::from_millis(at)) {
                Some(Notice::Refused(text)) => Some(text),
                _ => None,
            })
            .collect();
        let expected =
            ["at 0", "at 1000; 2 more since the last line", "at 2500; 1 more since the last line", "at 4000"];
        assert_eq!(said, expected);
    }
}
