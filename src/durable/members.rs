//! Who is there, and with whom a user's messages are best done: so that one core keeps a user's record at hand, where
//! otherwise each would read it, and find that another one has written it meanwhile.
//!
//! ```text
//! join   to all   ─► each answers with a beat, so that who joins knows all others within a round trip
//! beat   to all   about once a second; who is not heard for a while is forgotten
//! leave  to all   ─► forgotten at once, as is who is found to be gone
//! ask    to one   after some messages were relayed to it ─► read, once it has read them and has room for more
//!                 asked again when that stays out: either may be lost
//! ```
//!
//! A user is at home with the member that has the greatest weight for it (rendezvous hashing): when a member comes or goes,
//! only the users move that come to it or leave it.
//!
//! All of this is a hint. Members may have different views, relays may be lost, late or refused: the bucket decides, and
//! what nobody acknowledges comes again. So whatever is in doubt is done here.
//!
//! Never: subjects, bytes of the protocol, a clock, randomness.

use std::fmt;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::alarm::UserId;

/// The random name of one core of one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member(pub u64);

/// Length of a member's name as text.
pub const MEMBER_BYTES: usize = 16;

/// What a member says to all others, or to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// I am new, or was away: who is there? What was relayed to me before may be lost.
    Join,
    /// I am there.
    Beat,
    /// I am going.
    Leave,
    /// Have you read what I relayed before this? With the number of the question.
    Ask(u32),
    /// I have, and go on. With the number of the question that this answers.
    Read(u32),
}

impl Said {
    const fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Beat => "beat",
            Self::Leave => "leave",
            Self::Ask(_) => "ask",
            Self::Read(_) => "read",
        }
    }

    const fn question(self) -> Option<u32> {
        match self {
            Self::Ask(question) | Self::Read(question) => Some(question),
            Self::Join | Self::Beat | Self::Leave => None,
        }
    }

    /// Reads what [`Self::text`] wrote. None for what somebody else says, or a later version.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<(Self, Member)> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let (word, member) = (words.next()?, Member::parse(words.next()?.as_bytes())?);
        let question = words.next().and_then(|number| number.parse().ok());
        let said = match (word, question) {
            ("join", None) => Self::Join,
            ("beat", None) => Self::Beat,
            ("leave", None) => Self::Leave,
            ("ask", Some(question)) => Self::Ask(question),
            ("read", Some(question)) => Self::Read(question),
            _ => return None,
        };
        (said.text(member).as_bytes() == text).then_some((said, member))
    }

    /// `<word> <member>`, as `from` says it, and the question's number if it is about one.
    #[must_use]
    pub fn text(self, from: Member) -> String {
        match self.question() {
            None => format!("{} {from}", self.word()),
            Some(question) => format!("{} {from} {question}", self.word()),
        }
    }
}

impl Member {
    /// Reads 16 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != MEMBER_BYTES || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok().map(Self)
    }

    /// How near a user is to this member. For one user no two members have the same weight, and to each other the weights
    /// are like random numbers.
    const fn weight(self, user: UserHash) -> u64 {
        // The finalizer of MurmurHash3, which turns each 64 bits into others, no two into the same. Source: fmix64 in
        // MurmurHash3.cpp of SMHasher.
        let mut hash = self.0 ^ user.0;
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 33;
        hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// XXH3-64 of the user's text, seed 0: the same on every machine and in every version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct UserHash(u64);

impl UserHash {
    fn of(user: &UserId) -> Self {
        Self(user.0.with_text(|text| xxh3_64(text.as_bytes())))
    }
}

/// Where a message is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// By us: the user is at home here, or its home has enough to do.
    Here,
    /// Relayed to this member, and then, if there is one, a question sent after it.
    With {
        /// Where the user is at home.
        member: Member,
        /// The number of the [`Said::Ask`] to send to it after this.
        asks: Option<u32>,
    },
}

/// What one member knows of the others.
#[derive(Debug)]
pub struct Members {
    me: Member,
    /// In no order, each once, never `me`.
    peers: Vec<Peer>,
    /// Counts the questions to all of them: an answer to one that was asked before is about nothing.
    questions: u32,
}

/// `asked <= unread`.
#[derive(Debug)]
struct Peer {
    member: Member,
    heard_at: Duration,
    /// Relayed to it, and not known to be read.
    unread: u32,
    /// How many of those the question under way is about; 0 if there is none.
    asked: u32,
    /// Its number.
    question: u32,
    /// Beats of ours since it was asked.
    beats: u32,
}

impl Peer {
    const fn new(member: Member, heard_at: Duration) -> Self {
        Self { member, heard_at, unread: 0, asked: 0, question: 0, beats: 0 }
    }
}

/// A member that was not heard for so long is forgotten: four beats.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Messages that all others together may have relayed to one member that has not read them: so much is done late when
/// that one hangs, and so much gathers in the server for it. Each of them may have its share of this.
const UNREAD_MAX: u32 = 4096;

/// Others that are remembered: more than anybody runs, and few enough to be looked through. Whoever may publish here can
/// speak for as many as he likes.
const PEERS_MAX: usize = 1023;

/// The least share, for relays to be possible at all.
const UNREAD_MAX_AT_LEAST: u32 = 64;

/// A question or its answer is taken to be lost after so many beats, and is asked again.
const ASKS_AGAIN_BEATS: u32 = 3;

/// Questions in one share: enough that a peer in good health never stops us.
const ASKS: u32 = 4;

impl Members {
    /// Alone.
    #[must_use]
    pub const fn new(me: Member) -> Self {
        Self { me, peers: Vec::new(), questions: 0 }
    }

    /// Our own name.
    #[must_use]
    pub const fn me(&self) -> Member {
        self.me
    }

    /// How many there are, we included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.peers.len() + 1
    }

    /// Whether `member` is one of the others.
    #[must_use]
    pub fn knows(&self, member: Member) -> bool {
        self.peers.iter().any(|peer| peer.member == member)
    }

    /// Where a message for `user` is to be done. Who is told to relay it does so.
    pub fn place(&mut self, user: &UserId) -> Place {
        let user = UserHash::of(user);
        let unread_max = (UNREAD_MAX / self.peers.len().max(1) as u32).max(UNREAD_MAX_AT_LEAST);
        let nearest = self.peers.iter_mut().max_by_key(|peer| peer.member.weight(user));
        match nearest {
            Some(peer) if peer.member.weight(user) > self.me.weight(user) => {
                peer.take_relay(unread_max, &mut self.questions)
            }
            _ => Place::Here,
        }
    }

    /// `member` said something. What [`Said::Ask`] asks is the caller's to answer, and [`Said::Join`] with [`Said::Beat`].
    pub fn on_said(&mut self, said: Said, member: Member, now: Duration) {
        if member == self.me {
            return;
        }
        if said == Said::Leave {
            return self.forget(member);
        }
        if self.peers.len() == PEERS_MAX && !self.knows(member) {
            return;
        }
        let at = self.peers.iter().position(|peer| peer.member == member).unwrap_or_else(|| {
            self.peers.push(Peer::new(member, now));
            self.peers.len() - 1
        });
        let peer = &mut self.peers[at];
        peer.heard_at = now;
        match said {
            Said::Join => (peer.unread, peer.asked) = (0, 0),
            Said::Read(question) if question == peer.question => {
                peer.unread -= std::mem::take(&mut peer.asked);
            }
            Said::Read(_) | Said::Beat | Said::Leave | Said::Ask(_) => {}
        }
    }

    /// `member` is gone. When it is not, its next beat tells.
    pub fn forget(&mut self, member: Member) {
        self.peers.retain(|peer| peer.member != member);
    }

    /// Our link is new: what was relayed and asked over the last one may be lost.
    pub fn on_link(&mut self) {
        for peer in &mut self.peers {
            (peer.unread, peer.asked) = (0, 0);
        }
    }

    /// With each beat: forgets who has not been heard for long, and says whom to ask again, and with which number.
    pub fn on_time(&mut self, now: Duration) -> Vec<(Member, u32)> {
        self.peers.retain(|peer| now.saturating_sub(peer.heard_at) < SILENCE_MAX);
        let mut again = Vec::new();
        for peer in self.peers.iter_mut().filter(|peer| peer.asked > 0) {
            peer.beats += 1;
            if peer.beats == ASKS_AGAIN_BEATS {
                peer.beats = 0;
                again.push((peer.member, peer.question));
            }
        }
        again
    }
}

impl Peer {
    fn take_relay(&mut self, unread_max: u32, questions: &mut u32) -> Place {
        if self.unread >= unread_max {
            return Place::Here;
        }
        self.unread += 1;
        let asks = self.asked == 0 && self.unread >= unread_max / ASKS;
        if asks {
            *questions = questions.wrapping_add(1);
            (self.asked, self.question, self.beats) = (self.unread, *questions, 0);
        }
        Place::With { member: self.member, asks: asks.then_some(self.question) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarm::Id;

    fn user(text: &str) -> UserId {
        UserId(Id::new(text).expect("a valid id"))
    }

    fn users() -> impl Iterator<Item = UserId> {
        (0..10_000).map(|number| user(&format!("user {number}")))
    }

    fn member(number: u64) -> Member {
        // Any spread-out numbers will do for random ones.
        Member(xxh3_64(&number.to_le_bytes()))
    }

    /// What member 0 knows when it has heard of the others by second 0.
    fn with(others: std::ops::Range<u64>) -> Members {
        let mut members = Members::new(member(0));
        others.for_each(|other| members.on_said(Said::Beat, member(other), Duration::ZERO));
        members
    }

    #[test]
    fn strangers_without_end_are_not_all_remembered() {
        let mut members = with(1..5000);
        assert_eq!(members.count(), 1024);
        // Who is known goes on, and who is gone makes room.
        members.on_said(Said::Leave, member(1), Duration::ZERO);
        members.on_said(Said::Beat, member(5000), Duration::ZERO);
        assert_eq!(members.count(), 1024);
    }

    /// Where a user is at home, however much its home has to do.
    fn home(members: &mut Members, user: &UserId) -> Member {
        members.on_link();
        match members.place(user) {
            Place::Here => members.me(),
            Place::With { member, .. } => member,
        }
    }

    /// Golden: whoever changes these lets two versions that run side by side disagree.
    #[test]
    fn weights_are_the_same_on_every_machine_and_in_every_version() {
        for (text, member, weight) in [
            ("a", 0, 0x06ea_c7df_0e31_bbf5_u64),
            ("a", 1, 0x1ec1_cd89_6ef5_5551),
            ("abc", 0xe6c6_32b6_1e96_4e1f, 0xfde4_0fdf_0470_2d92),
            ("0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b", u64::MAX, 0x024d_b38c_ac86_1c57),
        ] {
            assert_eq!(Member(member).weight(UserHash::of(&user(text))), weight, "{text} {member:x}");
        }
    }

    #[test]
    fn all_members_agree_on_a_users_home_and_each_is_home_to_its_share() {
        let mut views: Vec<Members> = (0..5)
            .map(|me| {
                let mut members = Members::new(member(me));
                // Heard in different orders.
                (0..5).map(|other| (other + me) % 5).for_each(|other| {
                    members.on_said(Said::Beat, member(other), Duration::ZERO);
                });
                members
            })
            .collect();
        let mut shares = [0; 5];
        for user in users() {
            let homes: Vec<Member> = views.iter_mut().map(|view| home(view, &user)).collect();
            assert!(homes.iter().all(|other| *other == homes[0]), "{user:?} {homes:?}");
            shares[(0..5).position(|number| member(number) == homes[0]).expect("one of them")] += 1;
        }
        assert!(shares.iter().all(|share| (1800..2200).contains(share)), "{shares:?}");
    }

    #[test]
    fn only_the_users_of_one_who_leaves_move_and_they_come_back_with_it() {
        let mut members = with(1..4);
        let before: Vec<Member> = users().map(|user| home(&mut members, &user)).collect();
        members.on_said(Said::Leave, member(2), Duration::ZERO);
        let without: Vec<Member> = users().map(|user| home(&mut members, &user)).collect();
        for (before, without) in before.iter().zip(&without) {
            assert!(*before == member(2) || before == without);
            assert_ne!(*without, member(2));
        }
        members.on_said(Said::Join, member(2), Duration::ZERO);
        assert!(users().map(|user| home(&mut members, &user)).eq(before));
    }

    #[test]
    fn who_is_silent_or_gone_is_forgotten_and_who_speaks_is_known() {
        let seconds = Duration::from_secs;
        let mut members = with(1..4);
        assert_eq!(members.count(), 4);
        members.on_said(Said::Beat, member(1), seconds(2));
        members.on_said(Said::Ask(1), member(2), seconds(3));
        members.on_said(Said::Beat, members.me(), seconds(3));
        members.on_time(seconds(3));
        assert_eq!(members.count(), 4);
        members.on_time(seconds(4));
        assert_eq!(members.count(), 3);
        members.on_time(seconds(6));
        assert_eq!(members.count(), 2);
        members.forget(member(2));
        members.forget(member(2));
        assert_eq!(members.count(), 1);
        members.on_said(Said::Read(1), member(3), seconds(7));
        assert_eq!(members.count(), 2);
    }

    /// Relays messages of one user to its home until there is no room, and says after how many there was a question.
    fn relay_all(members: &mut Members, user: &UserId) -> (u32, Vec<u32>) {
        let (mut relayed, mut asked) = (0, Vec::new());
        while let Place::With { asks, .. } = members.place(user) {
            relayed += 1;
            asked.extend(asks.map(|_| relayed));
        }
        (relayed, asked)
    }

    #[test]
    fn who_does_not_read_is_given_no_more() {
        let mut members = with(1..5);
        let at_1 = users().find(|user| home(&mut members, user) == member(1)).expect("a fifth of them");
        members.on_link();
        assert_eq!(relay_all(&mut members, &at_1), (1024, vec![256]));
        let said = |members: &mut Members, said| members.on_said(said, member(1), Duration::ZERO);
        let read = |members: &mut Members| {
            let question = members.questions;
            members.on_said(Said::Read(question), member(1), Duration::ZERO);
        };
        // A beat proves only that it lives.
        said(&mut members, Said::Beat);
        assert_eq!(relay_all(&mut members, &at_1), (0, vec![]));
        read(&mut members);
        assert_eq!(relay_all(&mut members, &at_1), (256, vec![1]));
        read(&mut members);
        assert_eq!(relay_all(&mut members, &at_1), (769, vec![1]));
        read(&mut members);
        read(&mut members);
        assert_eq!(relay_all(&mut members, &at_1), (256, vec![1]));
    }

    #[test]
    fn a_question_that_stays_unanswered_is_asked_again_and_answers_count_once() {
        let mut members = with(1..5);
        let at_1 = users().find(|user| home(&mut members, user) == member(1)).expect("a fifth of them");
        members.on_link();
        relay_all(&mut members, &at_1);
        let question = members.questions;
        let asked: Vec<_> = (0..7).map(|_| members.on_time(Duration::ZERO)).collect();
        let again = vec![(member(1), question)];
        assert_eq!(asked, [vec![], vec![], again.clone(), vec![], vec![], again, vec![]]);
        let read = |members: &mut Members, question| {
            members.on_said(Said::Read(question), member(1), Duration::ZERO)
        };
        read(&mut members, question);
        assert_eq!(members.on_time(Duration::ZERO), []);
        assert_eq!(relay_all(&mut members, &at_1), (256, vec![1]));
        // The answer to the repeated question is not one to the next.
        read(&mut members, question);
        assert_eq!(relay_all(&mut members, &at_1), (0, vec![]));
        read(&mut members, question + 1);
        assert_eq!(relay_all(&mut members, &at_1), (769, vec![1]));
    }

    #[test]
    fn what_gathers_for_one_is_shared_among_the_others() {
        for (others, share) in [(1, 4096), (2, 2048), (16, 256), (100, 64)] {
            let mut members = with(1..others + 1);
            let at_1 = users().find(|user| home(&mut members, user) == member(1)).expect("its share of them");
            members.on_link();
            assert_eq!(relay_all(&mut members, &at_1), (share, vec![share / 4]));
        }
    }

    #[test]
    fn what_may_be_lost_with_a_link_is_not_waited_for() {
        let mut members = with(1..5);
        let at_1 = users().find(|user| home(&mut members, user) == member(1)).expect("a fifth of them");
        members.on_link();
        for restart in [
            |members: &mut Members| members.on_link(),
            |members: &mut Members| members.on_said(Said::Join, member(1), Duration::ZERO),
            |members: &mut Members| {
                members.forget(member(1));
                members.on_said(Said::Beat, member(1), Duration::ZERO);
                members.on_said(Said::Read(members.questions), member(1), Duration::ZERO);
            },
        ] {
            assert_eq!(relay_all(&mut members, &at_1), (1024, vec![256]));
            restart(&mut members);
        }
    }

    #[test]
    fn what_members_say_is_read_and_anything_else_is_not() {
        for (said, expected) in [
            (Said::Join, "join 00000000000000ab"),
            (Said::Beat, "beat 00000000000000ab"),
            (Said::Leave, "leave 00000000000000ab"),
            (Said::Ask(7), "ask 00000000000000ab 7"),
            (Said::Read(u32::MAX), "read 00000000000000ab 4294967295"),
        ] {
            let text = said.text(Member(0xab));
            assert_eq!(text, expected);
            assert_eq!(Said::parse(text.as_bytes()), Some((said, Member(0xab))));
        }
        for text in [
            "",
            "beat",
            "beat ",
            "beat ab",
            "beat +0000000000000ab",
            "sing 00000000000000ab",
            "beat\u{e4}",
            "ask 00000000000000ab",
            "ask 00000000000000ab +7",
            "ask 00000000000000ab 4294967296",
            "beat 00000000000000ab 7",
            "read 00000000000000ab 7 7",
        ] {
            assert_eq!(Said::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Said::parse(b"beat 00000000000000\xff\xff"), None);
    }
}
