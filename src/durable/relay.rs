//! How members talk, over core NATS: what they say, and the messages of the queue that one relays to another.
//!
//! ```text
//! PUB  AD.member.all                        beat 0123456789abcdef
//! PUB  AD.member.fedcba9876543210           ask 0123456789abcdef 7
//! HPUB AD.member.fedcba9876543210 <inbox>.relay.fedcba9876543210.AD_IN.digest.1.4.4.1795508339348976653.2
//!      Alarm-Digest-Ack: $JS.ACK.AD_IN.digest.1.4.4.1795508339348976653.2
//!      Alarm-Digest-Subject: AlarmStatusChanged       and a request's Alarm-Digest-Reply, if it has one
//!                                           {"UserID":…}
//! ```
//!
//! Who gets a relayed message acknowledges it itself. The ack subject stands in a header, because a server refuses it as
//! a reply. The reply is where the server says at once that nobody is there, and it tells all that is needed then: whom to
//! forget, and what to ask the queue for again. So nothing is remembered of what was relayed.
//!
//! Never: deciding who does what, which is `members`'; what is in a message, which is `worker`'s.

use std::io::Write;
use std::time::Duration;

use nats_wire::jetstream::{Ack, AckSubject, Delivery};
use nats_wire::session::Session;
use nats_wire::{Header, HeaderBlock, Message, Sid, Subject, SubjectFilter};

use crate::alarm::UserId;
use crate::durable::members::{MEMBER_BYTES, Member, Members, Place, Said};
use crate::reply::REPLY;

/// One member's link to the others.
#[derive(Debug)]
pub(super) struct Relay {
    members: Members,
    /// `<name>.member.`
    prefix: String,
    /// `<inbox>.relay.`
    inbox: String,
    /// Who asked and has no answer yet, each once, with the number of the last question.
    askers: Vec<(Member, u32)>,
    /// When those who are there have answered our first [`Said::Join`], as far as anybody can tell.
    acquainted_at: Option<Duration>,
    /// Memory for a subject and a reply.
    subject: Vec<u8>,
    reply: Vec<u8>,
}

/// What came to a member.
#[derive(Debug)]
pub(super) enum Came<'a> {
    /// It is dealt with.
    Said,
    /// A message of the queue, to be done here whoever its user's home is.
    Relayed(Delivery<'a>),
    /// A message was relayed to somebody who is gone, and the queue was asked for it again.
    Returned,
}

const ALL_SID: u64 = 11;
const ME_SID: u64 = 12;
const INBOX_SID: u64 = 13;
pub(super) const SIDS: std::ops::RangeInclusive<u64> = ALL_SID..=INBOX_SID;

const ACK: &str = "Alarm-Digest-Ack";
const SUBJECT: &str = "Alarm-Digest-Subject";
const ACK_PREFIX: &[u8] = b"$JS.ACK.";

/// Of the subject that all members listen to; no member is named so.
const ALL: &str = "all";

/// Many round trips.
const ACQUAINTED_AFTER: Duration = Duration::from_millis(100);

/// Source: ADR-40, "NATS connection", no responders.
const NO_RESPONDERS: u16 = 503;

const BELIEF: &str = "a checked prefix and tokens of letters and digits";
const MEMORY: &str = "a vector takes all";

impl Relay {
    /// `me` and `inbox` are random; `prefix` is a subject with a dot at its end.
    pub(super) fn new(me: Member, prefix: &str, inbox: &str) -> Self {
        Self {
            members: Members::new(me),
            prefix: prefix.into(),
            inbox: format!("{inbox}.relay."),
            askers: Vec::new(),
            acquainted_at: None,
            subject: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// The link is ready: subscribes and joins.
    pub(super) fn on_ready(&mut self, link: &mut Session, now: Duration) {
        let me = self.members.me();
        for (filter, sid) in [
            (format!("{}{ALL}", self.prefix), ALL_SID),
            (format!("{}{me}", self.prefix), ME_SID),
            (format!("{}>", self.inbox), INBOX_SID),
        ] {
            link.subscribe(SubjectFilter::new(&filter).expect(BELIEF), None, Sid::from(sid), now);
        }
        self.askers.clear();
        self.members.on_link();
        self.say(link, Said::Join, None, now);
        self.acquainted_at.get_or_insert(now + ACQUAINTED_AFTER);
    }

    /// Whether it is known who is there: whoever pulls before that takes itself for the home of all.
    pub(super) fn is_acquainted(&self, now: Duration) -> bool {
        self.acquainted_at.is_some_and(|at| at <= now)
    }

    /// About once a second.
    pub(super) fn on_time(&mut self, link: &mut Session, now: Duration) {
        let again = self.members.on_time(now);
        self.say(link, Said::Beat, None, now);
        for (member, question) in again {
            self.say(link, Said::Ask(question), Some(member), now);
        }
    }

    /// Takes a message. None if it is another subscription's.
    pub(super) fn on_message<'a>(
        &mut self,
        link: &mut Session,
        message: &Message<'a>,
        now: Duration,
    ) -> Option<Came<'a>> {
        match message.sid_number()? {
            INBOX_SID => Some(self.on_reply(link, message, now)),
            ME_SID if message.headers.is_some() => Some(relayed(message).map_or(Came::Said, Came::Relayed)),
            ALL_SID | ME_SID => {
                if let Some((said, member)) = Said::parse(message.payload) {
                    self.on_said(link, said, member, now);
                }
                Some(Came::Said)
            }
            _ => None,
        }
    }

    /// Relays a message to its user's home, unless that is here.
    pub(super) fn pass_on(
        &mut self,
        link: &mut Session,
        user: &UserId,
        delivery: &Delivery<'_>,
        now: Duration,
    ) -> bool {
        let (ack, message) = (delivery.ack.subject().as_bytes(), &delivery.message);
        let (Ok(ack_header), Ok(subject_header)) =
            (Header::new(ACK, ack), Header::new(SUBJECT, message.subject))
        else {
            return false;
        };
        let reply = message.headers.and_then(|headers| Header::new(REPLY, headers.get(REPLY)?).ok());
        let headers = [ack_header, subject_header, reply.unwrap_or(ack_header)];
        let headers = HeaderBlock::new(if reply.is_some() { &headers } else { &headers[..2] });
        let max_payload = link.info().map_or(0, |info| info.max_payload);
        if (headers.encoded_len() + message.payload.len()) as u64 > max_payload {
            return false;
        }
        let Place::With { member, asks } = self.members.place(user) else { return false };
        self.address(Some(member));
        self.reply.clear();
        write!(self.reply, "{}{member}.", self.inbox).expect(MEMORY);
        self.reply.extend_from_slice(&ack[ACK_PREFIX.len()..]);
        let subject = Subject::new(&self.subject).expect(BELIEF);
        let reply = Subject::new(&self.reply).expect(BELIEF);
        link.publish_for_reply(subject, reply, Some(headers), message.payload, now);
        if let Some(question) = asks {
            self.say(link, Said::Ask(question), Some(member), now);
        }
        true
    }

    /// Tells those who asked that there is room for more.
    pub(super) fn answer(&mut self, link: &mut Session, now: Duration) {
        for (asker, question) in std::mem::take(&mut self.askers) {
            self.say(link, Said::Read(question), Some(asker), now);
        }
    }

    /// No more relays, please. What was sent before the server reads this still comes.
    pub(super) fn leave(&mut self, link: &mut Session, now: Duration) {
        self.say(link, Said::Leave, None, now);
        link.unsubscribe(Sid::from(ALL_SID), now);
        link.unsubscribe(Sid::from(ME_SID), now);
    }

    fn say(&mut self, link: &mut Session, said: Said, to: Option<Member>, now: Duration) {
        self.address(to);
        let text = said.text(self.members.me());
        link.publish(Subject::new(&self.subject).expect(BELIEF), text.as_bytes(), now);
    }

    /// Writes the subject of one member, or of all.
    fn address(&mut self, to: Option<Member>) {
        self.subject.clear();
        match to {
            Some(member) => write!(self.subject, "{}{member}", self.prefix).expect(MEMORY),
            None => write!(self.subject, "{}{ALL}", self.prefix).expect(MEMORY),
        }
    }

    fn on_said(&mut self, link: &mut Session, said: Said, member: Member, now: Duration) {
        self.members.on_said(said, member, now);
        match said {
            Said::Join => self.say(link, Said::Beat, Some(member), now),
            Said::Ask(question) if self.members.knows(member) => {
                self.askers.retain(|(asker, _)| *asker != member);
                self.askers.push((member, question));
            }
            Said::Beat | Said::Leave | Said::Ask(_) | Said::Read(_) => {}
        }
    }

    /// `<inbox>.relay.<member>.<what follows $JS.ACK.>`
    fn on_reply<'a>(&mut self, link: &mut Session, message: &Message<'a>, now: Duration) -> Came<'a> {
        let is_gone = message.headers.and_then(|headers| headers.status()) == Some(NO_RESPONDERS);
        let Some((member, token)) = message
            .subject
            .strip_prefix(self.inbox.as_bytes())
            .filter(|_| is_gone)
            .and_then(|tokens| tokens.split_at_checked(MEMBER_BYTES))
        else {
            return Came::Said;
        };
        if let Some(member) = Member::parse(member) {
            self.members.forget(member);
        }
        let ack = [ACK_PREFIX, token.strip_prefix(b".").unwrap_or_default()].concat();
        let Some(ack) = AckSubject::parse(&ack) else { return Came::Said };
        ack.send(link, Ack::Again { after: None }, now);
        Came::Returned
    }
}

fn relayed<'a>(message: &Message<'a>) -> Option<Delivery<'a>> {
    let headers = message.headers?;
    let ack = AckSubject::parse(headers.get(ACK)?)?;
    let subject = headers.get(SUBJECT)?;
    let message = Message { subject, reply: Some(ack.subject().as_bytes()), ..*message };
    Some(Delivery { message, ack })
}

#[cfg(test)]
mod tests {
    use nats_wire::session::{Event, SessionConfig};
    use nats_wire::{ConnectOptions, Limits};

    use super::*;
    use crate::alarm::Id;

    const NOW: Duration = Duration::from_secs(100);
    const ACK_TO: &str = "$JS.ACK.IN.digest.1.2.3.4.5";

    /// A relay named `member` on a link that is ready, and has joined.
    struct End {
        relay: Relay,
        link: Session,
    }

    impl End {
        fn new(member: u64) -> Self {
            let mut link = Session::new(
                SessionConfig {
                    connect: ConnectOptions::default(),
                    limits: Limits::client(),
                    handshake_max: NOW,
                    ping_interval: NOW,
                    answer_max: NOW,
                    max_payload_at_least: 0,
                },
                NOW,
            );
            let (info, rest) = ("INFO {\"headers\":true,\"max_payload\":150}\r\n", "PONG\r\n");
            link.receive(info.as_bytes()).expect("a handshake");
            link.receive(rest.as_bytes()).expect("a handshake");
            let mut end = Self { relay: Relay::new(Member(member), "AD.member.", "_INBOX.a"), link };
            end.output();
            end.relay.on_ready(&mut end.link, NOW);
            end
        }

        fn output(&mut self) -> String {
            let output = String::from_utf8(self.link.output().to_vec()).expect("ASCII").replace("\r\n", "\n");
            self.link.wrote(self.link.output().len(), NOW);
            output
        }

        /// What becomes of what the server writes, and what is written then.
        fn hears(&mut self, text: &str) -> String {
            let bytes = text.replace('\n', "\r\n").into_bytes();
            // A decoder of its own, since the link is borrowed by whoever handles its messages.
            let mut other = Self::new(0).link;
            let Ok((_, Some(Event::Message(message)))) = other.receive(&bytes) else {
                panic!("not a message: {text}")
            };
            let came = match self.relay.on_message(&mut self.link, &message, NOW) {
                None => "not ours".into(),
                Some(Came::Said) => String::new(),
                Some(Came::Returned) => "returned\n".into(),
                Some(Came::Relayed(Delivery { message, ack })) => format!(
                    "{} {} {}\n",
                    String::from_utf8_lossy(message.subject),
                    String::from_utf8_lossy(ack.subject().as_bytes()),
                    String::from_utf8_lossy(message.payload),
                ),
            };
            came + &self.output()
        }

        /// Whether a message of a user goes elsewhere.
        fn passes_on(&mut self, user: &str, payload: &str) -> bool {
            let message = Message {
                subject: b"AlarmStatusChanged",
                sid: b"2",
                reply: Some(ACK_TO.as_bytes()),
                headers: None,
                payload: payload.as_bytes(),
            };
            let ack = AckSubject::parse(ACK_TO.as_bytes()).expect("an ack subject");
            let user = UserId(Id::new(user).expect("a valid id"));
            self.relay.pass_on(&mut self.link, &user, &Delivery { message, ack }, NOW)
        }
    }

    /// Member 1, which has heard of member 2, and a user who is at home there.
    fn pair() -> (End, String) {
        let mut end = End::new(1);
        end.hears("MSG AD.member.all 11 21\nbeat 0000000000000002\n");
        let user = (0..).map(|number| format!("user {number}")).find(|user| end.passes_on(user, ""));
        end.relay.members.on_link();
        end.output();
        (end, user.expect("half of them"))
    }

    const RELAYED: &str = "\
HPUB AD.member.0000000000000002 _INBOX.a.relay.0000000000000002.IN.digest.1.2.3.4.5 101 103
NATS/1.0
Alarm-Digest-Ack: $JS.ACK.IN.digest.1.2.3.4.5
Alarm-Digest-Subject: AlarmStatusChanged

{}
";

    #[test]
    fn who_comes_joins_and_is_answered_alone() {
        let mut end = End::new(1);
        assert_eq!(
            end.output(),
            "SUB AD.member.all 11\nSUB AD.member.0000000000000001 12\nSUB _INBOX.a.relay.> 13\n\
             PUB AD.member.all 21\njoin 0000000000000001\n"
        );
        assert_eq!(
            end.hears("MSG AD.member.all 11 21\njoin 0000000000000002\n"),
            "PUB AD.member.0000000000000002 21\nbeat 0000000000000001\n"
        );
        assert_eq!(end.hears("MSG AD.member.0000000000000001 12 21\nbeat 0000000000000003\n"), "");
        assert_eq!(end.relay.members.count(), 3);
        assert!(!end.relay.is_acquainted(NOW) && end.relay.is_acquainted(NOW * 2));
        end.relay.on_time(&mut end.link, NOW);
        assert_eq!(end.output(), "PUB AD.member.all 21\nbeat 0000000000000001\n");
        end.relay.leave(&mut end.link, NOW);
        assert_eq!(end.output(), "PUB AD.member.all 22\nleave 0000000000000001\nUNSUB 11\nUNSUB 12\n");
    }

    #[test]
    fn a_message_goes_to_its_users_home_and_is_acknowledged_there() {
        let (mut end, user) = pair();
        assert!(end.passes_on(&user, "{}"));
        assert_eq!(end.output(), RELAYED);
        let (_, rest) = RELAYED.split_once(' ').expect("HPUB");
        let arrived = format!("HMSG {}", rest.replacen(" _INBOX", " 12 _INBOX", 1));
        let mut home = End::new(2);
        home.output();
        assert_eq!(home.hears(&arrived), format!("AlarmStatusChanged {ACK_TO} {{}}\n"));
    }

    #[test]
    fn when_nobody_is_there_the_member_is_forgotten_and_the_message_comes_again() {
        let (mut end, user) = pair();
        assert!(end.passes_on(&user, "{}"));
        end.output();
        let nobody = "HMSG _INBOX.a.relay.0000000000000002.IN.digest.1.2.3.4.5 13 16 16\nNATS/1.0 503\n\n\n";
        assert_eq!(end.hears(nobody), format!("returned\nPUB {ACK_TO} 4\n-NAK\n"));
        assert!(!end.passes_on(&user, "{}"));
        // A beat that was on its way lets it in again, which costs one more round.
        end.hears("MSG AD.member.all 11 21\nbeat 0000000000000002\n");
        assert!(end.passes_on(&user, "{}"));
    }

    #[test]
    fn what_would_not_fit_with_its_headers_stays() {
        let (mut end, user) = pair();
        assert!(end.passes_on(&user, &"x".repeat(49)));
        assert!(!end.passes_on(&user, &"x".repeat(50)));
    }

    #[test]
    fn a_question_is_answered_once_there_is_room_and_repeats_are_one() {
        let (mut end, user) = pair();
        (0..1023).for_each(|_| assert!(end.passes_on(&user, "{}")));
        end.output();
        assert!(end.passes_on(&user, "{}"));
        let ask = "PUB AD.member.0000000000000002 22\nask 0000000000000001 1\n";
        assert_eq!(end.output(), [RELAYED, ask].concat());

        let ask = "MSG AD.member.0000000000000001 12 22\nask 0000000000000002 7\n";
        assert_eq!([end.hears(ask), end.hears(ask)], ["", ""]);
        end.relay.answer(&mut end.link, NOW);
        assert_eq!(end.output(), "PUB AD.member.0000000000000002 23\nread 0000000000000001 7\n");
        end.relay.answer(&mut end.link, NOW);
        assert_eq!(end.output(), "");
    }

    #[test]
    fn what_nobody_of_ours_says_changes_nothing() {
        let (mut end, user) = pair();
        for text in [
            "MSG AD.member.all 11 4\nsing\n",
            "MSG AD.member.0000000000000001 12 0\n\n",
            "HMSG AD.member.0000000000000001 12 12 14\nNATS/1.0\n\n{}\n",
            "HMSG AD.member.0000000000000001 12 41 41\nNATS/1.0\nAlarm-Digest-Ack: elsewhere\n\n\n",
            "MSG _INBOX.a.relay.0000000000000002.IN.digest.1.2.3.4.5 13 0\n\n",
            "HMSG _INBOX.a.relay.x 13 16 16\nNATS/1.0 503\n\n\n",
        ] {
            assert_eq!(end.hears(text), "", "{text}");
        }
        assert_eq!(end.hears("MSG AlarmStatusChanged 2 0\n\n"), "not ours");
        assert!(end.passes_on(&user, "{}"));
    }
}
