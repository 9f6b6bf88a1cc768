//! One connection between a core and the simulated server: bytes on their way, and what they are.
//!
//! ```text
//! core   output ─► to_server ─► obeyed, one operation at a time
//!        buffer ◄─ to_client ◄─ MSG, PONG, INFO, -ERR, each with the place in the stream where it ends
//! ```

use std::collections::VecDeque;
use std::rc::Rc;

use nats_wire::{Limits, ServerDecoder, Sid, Subject, Token, encode};

use crate::judge::{INBOX, Published, What};

/// A message that the server took, and put on a connection.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its place among all that the server took.
    pub taken: u64,
    pub published: Rc<Published>,
}

impl Delivery {
    /// Every second request wants an answer.
    pub fn wants_answer(&self) -> bool {
        matches!(self.published.what, What::Request(_)) && self.taken.is_multiple_of(2)
    }
}

/// What the server sent.
#[derive(Debug)]
pub enum Sent {
    Message(Delivery),
    /// To the client's PING of this number.
    Pong(u64),
    Ping,
    /// With the largest payload that it allows.
    Info(usize),
    /// -ERR, after which the core goes on.
    Refusal,
    /// -ERR, or nonsense, after which it gives the link up.
    Wrong,
}

pub struct Connection {
    pub decoder: ServerDecoder,
    pub to_server: Vec<u8>,
    pub to_client: VecDeque<u8>,
    /// What was sent and is not used yet, each with the place where it ends.
    pub ends: VecDeque<(u64, Sent)>,
    sent: u64,
    /// Bytes that the core has used.
    pub used: u64,
    /// Subject and sid.
    pub subscriptions: Vec<(&'static str, u64)>,
    /// PINGs obeyed.
    pub pings: u64,
    /// PINGs of ours without an answer.
    pub pings_open: u32,
    /// Bytes that the core has written, and how many of them the server has obeyed.
    pub written: u64,
    pub obeyed: u64,
    /// The largest payloads that the core was told of, each with the place in what it writes from which on it knew.
    pub limits: Vec<(u64, usize)>,
    /// Of this connection the server refuses digests, dead letters, subscriptions.
    pub refuses: [bool; 3],
    /// The server has closed it: what is in `to_client` still arrives.
    pub is_closed: bool,
    /// The next digest's place in the log of its core, and what was there when each PING was obeyed that has no answer yet.
    pub cursor: u64,
    pub proofs: VecDeque<(u64, u64)>,
}

pub const DIGESTS: usize = 0;
pub const DEAD: usize = 1;
pub const SUBSCRIPTIONS: usize = 2;

impl Connection {
    /// INFO is on its way.
    pub fn new(max_payload: usize, has_headers: bool, cursor: u64) -> Self {
        let mut connection = Self {
            decoder: ServerDecoder::new(Limits::server()),
            to_server: Vec::new(),
            to_client: VecDeque::new(),
            ends: VecDeque::new(),
            sent: 0,
            used: 0,
            subscriptions: Vec::new(),
            pings: 0,
            pings_open: 0,
            written: 0,
            obeyed: 0,
            limits: Vec::new(),
            refuses: [false; 3],
            is_closed: false,
            cursor,
            proofs: VecDeque::new(),
        };
        connection.info(max_payload, has_headers);
        connection
    }

    pub fn info(&mut self, max_payload: usize, has_headers: bool) {
        let info = format!("INFO {{\"headers\":{has_headers},\"max_payload\":{max_payload}}} \r\n");
        self.send(info.as_bytes(), Sent::Info(max_payload));
    }

    pub fn message(&mut self, delivery: Delivery) {
        let Some((subject, sid)) =
            self.subscriptions.iter().find(|(subject, _)| *subject == delivery.published.subject)
        else {
            unreachable!("it was chosen for its subscription")
        };
        let mut bytes = Vec::new();
        let subject = Subject::new(subject).expect("a valid subject");
        let reply = delivery.wants_answer().then(|| format!("{INBOX}{}", delivery.taken));
        let reply = reply.as_ref().map(|reply| Token::new(reply).expect("a valid token"));
        let payload = delivery.published.payload.as_bytes();
        encode::message(&mut bytes, subject, Sid::from(*sid), reply, payload);
        self.send(&bytes, Sent::Message(delivery));
    }

    pub fn send(&mut self, bytes: &[u8], what: Sent) {
        if self.is_closed {
            return;
        }
        self.to_client.extend(bytes);
        self.sent += bytes.len() as u64;
        self.ends.push_back((self.sent, what));
    }

    pub fn is_subscribed_to(&self, subject: &str) -> bool {
        !self.is_closed && self.subscriptions.iter().any(|(other, _)| *other == subject)
    }

    /// Something is on its way after which the core gives the connection up.
    pub fn has_refused(&self) -> bool {
        self.ends.iter().any(|(_, what)| matches!(what, Sent::Wrong))
    }

    /// How many bytes a core may be given at once so that it stays known what it did with each operation: up to the
    /// second PONG, and what may be a fault alone.
    pub fn batch_bytes(&self) -> usize {
        let mut end = self.used;
        let mut pongs = 0;
        for (at, what) in &self.ends {
            let is_alone = matches!(what, Sent::Wrong | Sent::Info(_));
            pongs += u32::from(matches!(what, Sent::Pong(_)));
            if pongs > 1 || is_alone && end > self.used {
                return (end - self.used) as usize;
            }
            end = *at;
            if is_alone {
                return (end - self.used) as usize;
            }
        }
        // What is cut off at the end of a closed connection has no place of its own, and may be the beginning of nonsense.
        if self.is_closed && end > self.used { (end - self.used) as usize } else { usize::MAX }
    }

    /// What is left of the thing that comes next, when so much that is not used yet has come.
    pub fn bytes_to_next_end(&self, buffered: usize) -> usize {
        let came = self.used + buffered as u64;
        self.ends.iter().find(|(end, _)| *end > came).map_or(0, |(end, _)| (end - came) as usize)
    }

    /// The core has used so many bytes more: what they were.
    pub fn use_bytes(&mut self, bytes: usize) -> Vec<Sent> {
        self.used += bytes as u64;
        let used = self.ends.iter().take_while(|(end, _)| *end <= self.used).count();
        self.ends.drain(..used).map(|(_, what)| what).collect()
    }

    /// The largest payload of what the server obeys now, as the core knew when it began to write it.
    pub fn max_payload(&self) -> usize {
        let known = self.limits.iter().rev().find(|(place, _)| *place <= self.obeyed);
        known.expect("nothing is published before the first INFO").1
    }

    /// The server closes it: so many bytes that were on their way to the core arrive, `buffered` of it have arrived before.
    /// What of it is lost.
    pub fn close(&mut self, arriving: usize, buffered: usize) -> Vec<Sent> {
        self.is_closed = true;
        self.to_client.truncate(arriving);
        self.subscriptions.clear();
        let arrived = self.used + (buffered + arriving) as u64;
        let arrives = self.ends.iter().take_while(|(end, _)| *end <= arrived).count();
        self.ends.drain(arrives..).map(|(_, what)| what).collect()
    }
}
