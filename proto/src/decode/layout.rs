//! Where everything is in one operation, and the operation made of it.

use crate::error::Verb;
use crate::header::Headers;
use crate::op::{ClientOp, ErrText, Message, Publish, ServerOp, Subscribe, Unsubscribe};
use crate::scan::{self, Span};

/// Where everything is in one operation, counted from its first byte. Absent parts are empty.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub(super) verb: Verb,
    /// The subject; for lines of one argument, that argument.
    pub(super) first: Span,
    /// The reply of a message, the queue of a subscription, the number of an UNSUB.
    pub(super) optional: Span,
    pub(super) sid: Span,
    /// Length of the line, its end included; the payload starts here.
    pub(super) line: usize,
    pub(super) header: usize,
    /// Header and payload.
    pub(super) total: usize,
}

impl Layout {
    pub(super) const fn new(verb: Verb, first: Span, line: usize) -> Self {
        let none = Span::new(0, 0);
        Self { verb, first, optional: none, sid: none, line, header: 0, total: 0 }
    }

    #[inline]
    pub(super) fn server_op<'a>(&self, bytes: &'a [u8]) -> ServerOp<'a> {
        match self.verb {
            Verb::Ping => ServerOp::Ping,
            Verb::Pong => ServerOp::Pong,
            Verb::Ok => ServerOp::Ok,
            Verb::Info => ServerOp::Info(self.first.of(bytes)),
            Verb::Err => ServerOp::Err(ErrText::from_argument(self.first.of(bytes))),
            _ => ServerOp::Message(self.message(bytes)),
        }
    }

    #[inline]
    pub(super) fn message<'a>(&self, bytes: &'a [u8]) -> Message<'a> {
        Message {
            subject: self.first.of(bytes),
            sid: self.sid.of(bytes),
            reply: self.optional.maybe(bytes),
            headers: self.headers(bytes),
            payload: self.body(bytes),
        }
    }

    #[inline]
    pub(super) fn client_op<'a>(&self, bytes: &'a [u8]) -> ClientOp<'a> {
        match self.verb {
            Verb::Ping => ClientOp::Ping,
            Verb::Pong => ClientOp::Pong,
            Verb::Ok => ClientOp::Ok,
            Verb::Info => ClientOp::Info(self.first.of(bytes)),
            Verb::Connect => ClientOp::Connect(self.first.of(bytes)),
            Verb::Sub => ClientOp::Subscribe(Subscribe {
                subject: self.first.of(bytes),
                queue: self.optional.maybe(bytes),
                sid: self.sid.of(bytes),
            }),
            Verb::Unsub => ClientOp::Unsubscribe(Unsubscribe {
                sid: self.sid.of(bytes),
                max: self.optional.maybe(bytes).filter(|max| max.len() <= 9).and_then(scan::number),
            }),
            _ => ClientOp::Publish(self.publish(bytes)),
        }
    }

    #[inline]
    pub(super) fn publish<'a>(&self, bytes: &'a [u8]) -> Publish<'a> {
        Publish {
            subject: self.first.of(bytes),
            reply: self.optional.maybe(bytes),
            headers: self.headers(bytes),
            payload: self.body(bytes),
        }
    }

    #[inline]
    fn headers<'a>(&self, bytes: &'a [u8]) -> Option<Headers<'a>> {
        matches!(self.verb, Verb::Hmsg | Verb::Hpub)
            .then(|| Headers::new(&bytes[self.line..self.line + self.header]))
    }

    #[inline]
    fn body<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.line + self.header..self.line + self.total]
    }
}
