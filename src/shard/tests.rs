//! What one shard writes when these bytes have come.

use super::*;
use crate::alarm::Id;
use crate::message::Reason;
use nats_wire::{ConnectOptions, Limits};

const NOW: Duration = Duration::ZERO;
const INFO: &str = "INFO {\"max_payload\":4000,\"headers\":true}\r\n";

fn config() -> ShardConfig {
    ShardConfig {
        subjects: Subjects {
            changed: "changed".into(),
            send: "send".into(),
            digest: "digest".into(),
            rejected: "rejected".into(),
        },
        queue_group: "group".into(),
        is_eager: false,
        retention: Duration::from_secs(60),
        output_bytes_max: 1 << 20,
        unsettled_bytes_max: 1 << 20,
        mail_max: 2,
        session: SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            answer_max: Duration::from_secs(10),
            max_payload_at_least: message::DIGEST_BYTES_MAX_AT_LEAST as u64,
        },
    }
}

/// Shard 0 of `shards`, with a link that is ready and whose handshake has been written.
fn ready(shards: usize) -> Shard {
    let mut shard = Shard::new(ShardId(0), shards, config());
    shard.on_link(SignIn::default(), NOW);
    assert_eq!(told(&mut shard, &[INFO, "PONG\r\n"]).lines().nth(2), Some("SUB changed group 1"));
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "");
    assert!(matches!(shard.notices().drain(..).next(), Some(Notice::Ready)));
    shard
}

/// What the shard writes when these bytes have come.
fn told(shard: &mut Shard, bytes: &[&str]) -> String {
    for bytes in bytes {
        assert_eq!(shard.receive(bytes.as_bytes(), NOW).expect("no fault"), bytes.len());
    }
    shard.finish_turn(NOW);
    let output = String::from_utf8(shard.output().to_vec()).expect("all of it is text here");
    shard.wrote(output.len(), NOW);
    output
}

fn msg(sid: u64, payload: &str) -> String {
    format!("MSG {} {sid} {}\r\n{payload}\r\n", ["", "changed", "send"][sid as usize], payload.len())
}

fn change(user: &str, alarm: &str) -> String {
    msg(
        1,
        &format!(
            r#"{{"UserID":"{user}","AlarmID":"{alarm}","Status":"WARNING","ChangedAt":"2026-01-01T00:00:00Z"}}"#
        ),
    )
}

fn request(user: &str) -> String {
    msg(2, &format!(r#"{{"UserID":"{user}"}}"#))
}

/// A request that wants its answer at `reply`.
fn request_for(user: &str, reply: &str) -> String {
    request(user).replacen("send 2 ", &format!("send 2 {reply} "), 1)
}

const DIGEST: &str = "PUB digest 112\r\n{\"UserID\":\"ann\",\"ActiveAlarms\":[{\"AlarmID\":\"disk\",\"Status\":\"WARNING\",\
                      \"LatestChangedAt\":\"2026-01-01T00:00:00Z\"}]}\r\nPING\r\n";

#[test]
fn a_link_shakes_hands_then_subscribes() {
    let mut shard = Shard::new(ShardId(0), 1, config());
    shard.on_link(SignIn::default(), NOW);
    let hello = told(&mut shard, &[INFO]);
    assert!(hello.starts_with("CONNECT {\"verbose\":false,") && hello.ends_with("}\r\nPING\r\n"), "{hello}");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "SUB changed group 1\r\nSUB send group 2\r\nPING\r\n");
}

#[test]
fn a_digest_is_sent_again_until_a_fence_has_passed() {
    let mut shard = ready(1);
    assert_eq!(told(&mut shard, &[&change("ann", "disk"), &request("ann")]), DIGEST);
    assert_eq!((told(&mut shard, &[&request("ann")]).as_str(), shard.unsettled()), ("", 1));
    shard.on_link(SignIn::default(), NOW);
    let again = told(&mut shard, &[INFO, "PONG\r\n"]);
    assert!(again.ends_with(DIGEST), "{again}");
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("", 0));
    shard.on_link(SignIn::default(), NOW);
    assert!(!told(&mut shard, &[INFO, "PONG\r\n"]).contains("PUB"));
}

#[test]
fn what_is_published_behind_a_fence_waits_for_the_next_one() {
    let mut shard = ready(1);
    told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    let second = told(&mut shard, &[&change("bob", "disk"), &request("bob")]);
    assert!(second.starts_with("PUB digest") && !second.contains("PING"), "{second}");
    assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("PING\r\n", 1));
    assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("", 0));
}

#[test]
fn a_fence_proves_only_what_stands_before_it() {
    let mut shard = ready(1);
    let quiet = Duration::from_secs(10);
    shard.on_time(quiet, Timestamp::new(0, 0)).expect("no fault");
    let keepalive_then_digest = told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    assert_eq!(keepalive_then_digest, format!("PING\r\n{DIGEST}"));
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!(shard.unsettled(), 1);
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!(shard.unsettled(), 0);
}

#[test]
fn a_users_messages_go_to_the_owner_in_order() {
    let mut shard = ready(2);
    let theirs = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(1));
    let theirs = theirs.expect("half of all names");
    assert_eq!(told(&mut shard, &[&change(&theirs, "disk"), &request(&theirs)]), "");
    let mail: Vec<Mail> = mail_for(&mut shard).drain(..).collect();
    assert!(matches!(mail[..], [Mail::Apply(_), Mail::SendDigest(Request { reader: ShardId(0), .. })]));
}

#[test]
fn full_mail_holds_back_messages_but_not_a_handshake() {
    let mut shard = ready(2);
    let theirs = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(1));
    let request = request(&theirs.expect("half of all names"));
    told(&mut shard, &[&request, &request]);
    assert!(!shard.takes_bytes() && shard.takes_mail());
    assert_eq!(shard.receive(request.as_bytes(), NOW).expect("no fault"), 0);
    shard.on_link(SignIn::default(), NOW);
    told(&mut shard, &[INFO, "PONG\r\n"]);
    assert!(!shard.takes_bytes());
    mail_for(&mut shard).clear();
    shard.mail_moved();
    assert!(shard.takes_bytes());
}

#[test]
fn without_a_link_mail_is_taken_up_to_a_limit() {
    let mut shard = Shard::new(ShardId(0), 1, ShardConfig { unsettled_bytes_max: 1, ..config() });
    assert!(shard.takes_mail());
    shard.on_mail(mailed_change("ann", "disk"));
    shard.on_mail(mailed_request("ann", 0, None));
    assert!(!shard.takes_mail());
    shard.on_link(SignIn::default(), NOW);
    told(&mut shard, &[INFO, "PONG\r\n"]);
    assert!(shard.takes_mail());
}

#[test]
fn a_bad_message_becomes_a_dead_letter_and_one_line_a_second() {
    let mut shard = ready(1);
    let bad = msg(1, "{\n");
    let letter = "HPUB rejected 198 200\r\nNATS/1.0\r\nAlarm-Digest-Reason: not-json\r\nAlarm-Digest-Detail: expected a \
                  JSON object: EOF while parsing an object at line 2 column 0\r\nAlarm-Digest-Subject: changed\r\n\
                  Alarm-Digest-Payload-Bytes: 2\r\n\r\n{\n\r\n";
    assert_eq!(told(&mut shard, &[&bad, &bad, &bad]), format!("{letter}{letter}{letter}PING\r\n"));
    shard.receive(bad.as_bytes(), Duration::from_secs(1)).expect("no fault");
    let said = |notice: &Notice| match notice {
        Notice::Rejected { unsaid, .. } => Some(*unsaid),
        _ => None,
    };
    assert_eq!(shard.notices().iter().filter_map(said).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(shard.counters().rejected[Reason::NotJson as usize], 4);
    assert_eq!(shard.counters().rejected_requests, 0);
    told(&mut shard, &[&msg(2, "{\n")]);
    assert_eq!(
        (shard.counters().rejected[Reason::NotJson as usize], shard.counters().rejected_requests),
        (5, 1)
    );
}

#[test]
fn a_dead_letter_of_the_largest_payload_loses_its_end() {
    let mut shard = ready(1);
    let letter = told(&mut shard, &[&msg(2, &"x".repeat(4000))]);
    let sizes: Vec<usize> = letter
        .lines()
        .next()
        .expect("a line")
        .split(' ')
        .skip(2)
        .map(|size| size.parse().expect("a size"))
        .collect();
    assert_eq!(sizes[1], 4000);
    assert!(letter.contains("Payload-Bytes: 4000\r\n"));
}

#[test]
fn a_server_without_headers_gets_the_bare_payload() {
    let mut shard = Shard::new(ShardId(0), 1, config());
    shard.on_link(SignIn::default(), NOW);
    told(&mut shard, &["INFO {\"max_payload\":4000}\r\n", "PONG\r\n"]);
    assert_eq!(told(&mut shard, &[&msg(1, "{")]), "PUB rejected 1\r\n{\r\nPING\r\n");
}

#[test]
fn a_server_that_takes_less_than_one_alarm_is_a_fault() {
    let mut shard = Shard::new(ShardId(0), 1, config());
    shard.on_link(SignIn::default(), NOW);
    let fault = shard.receive(b"INFO {\"max_payload\":1024}\r\n", NOW).expect_err("it is too small");
    assert_eq!(fault.to_string(), "expected a server with max_payload of at least 3272 bytes, got 1024");
}

#[test]
fn a_digest_that_the_server_refuses_is_not_delivered() {
    let mut shard = ready(1);
    told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    let refused = "-ERR 'Permissions Violation for Publish to \"digest\"'\r\nPONG\r\n";
    let fault = shard.receive(refused.as_bytes(), NOW).expect_err("it cannot be done without");
    assert_eq!(fault.to_string(), "server refused: Permissions Violation for Publish to \"digest\"");
    assert_eq!(shard.unsettled(), 1);
}

#[test]
fn a_dead_letter_that_the_server_refuses_can_be_done_without() {
    let mut shard = ready(1);
    told(&mut shard, &["-ERR 'Permissions Violation for Publish to \"rejected\"'\r\n"]);
    assert!(matches!(shard.notices().pop(), Some(Notice::Refused(_))));
}

#[test]
fn memory_for_what_is_not_proved_is_bounded_also_with_a_link() {
    let mut shard = Shard::new(ShardId(0), 1, ShardConfig { unsettled_bytes_max: 1, ..config() });
    shard.on_link(SignIn::default(), NOW);
    told(&mut shard, &[INFO, "PONG\r\n", "PONG\r\n"]);
    told(&mut shard, &[&change("ann", "disk"), &change("bob", "disk"), &request("ann"), &request("bob")]);
    let bad = msg(1, "{");
    assert_eq!(told(&mut shard, &[&bad, &bad]).matches("HPUB rejected").count(), 2);
    assert_eq!((shard.unsettled.len(), shard.postponed.len(), shard.counters().unproved), (1, 1, 2));
    assert!(told(&mut shard, &["PONG\r\n"]).contains("\"bob\""));
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!(shard.unsettled(), 0);
}

#[test]
fn draining_unsubscribes_takes_what_is_on_its_way_and_settles_it() {
    let mut shard = ready(2);
    shard.drain(NOW);
    assert_eq!(told(&mut shard, &[]), "UNSUB 1\r\nUNSUB 2\r\nPING\r\n");
    let ours = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(0));
    let ours = ours.expect("half of all names");
    assert_eq!(told(&mut shard, &[&change(&ours, "disk"), &request(&ours), "PONG\r\n"]), "");
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Last(ShardId(0))]);
    assert!(!shard.is_drained(), "a peer may still send");
    shard.on_mail(Mail::Last(ShardId(1)));
    assert!(told(&mut shard, &[]).starts_with("PUB digest"));
    assert!(!shard.is_drained(), "the digest is not proved");
    told(&mut shard, &["PONG\r\n"]);
    assert!(shard.is_drained());
}

/// A shard whose user somebody else read a request for.
fn asked(shards: usize) -> Shard {
    let mut shard = ready(shards);
    shard.on_mail(mailed_change("ann", "disk"));
    shard.on_mail(mailed_request("ann", shards - 1, None));
    shard
}

fn mailed_change(user: &str, alarm: &str) -> Mail {
    match message::decode_change(change(user, alarm).lines().nth(1).expect("a payload").as_bytes()) {
        Ok(Command::Apply(change)) => Mail::Apply(change),
        other => panic!("not a change: {other:?}"),
    }
}

/// A request that the shard `reader` read.
fn mailed_request(user: &str, reader: usize, reply: Option<&str>) -> Mail {
    let message = Message { subject: b"", sid: b"", reply: None, headers: None, payload: b"" };
    let reply = Replies::new([]).of(&message, reply.map(str::as_bytes)).expect("a good subject");
    let user = UserId(Id::new(user).expect("a valid id"));
    Mail::SendDigest(Request { user, reader: ShardId(reader), asked_at: 0, reply })
}

#[test]
fn a_digest_waits_until_every_shard_has_read_what_came_before_the_request() {
    let mut shard = asked(3);
    assert_eq!(told(&mut shard, &[]), "PING\r\n");
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Fence(ShardId(0))]);
    assert_eq!((told(&mut shard, &["PONG\r\n"]).as_str(), shard.unsettled()), ("", 1));
    shard.on_mail(Mail::Passed(ShardId(1)));
    assert_eq!(told(&mut shard, &[]), DIGEST);
}

#[test]
fn who_read_all_requests_of_a_round_is_not_waited_for() {
    let ours = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(0));
    let ours = ours.expect("half of all names");
    let mut shard = ready(2);
    assert_eq!(told(&mut shard, &[&change(&ours, "disk"), &request(&ours)]), "", "no fence of our own");
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Fence(ShardId(0))]);
    shard.on_mail(Mail::Passed(ShardId(1)));
    assert!(told(&mut shard, &[]).starts_with("PUB digest"));

    let mut shard = asked(2);
    assert_eq!(told(&mut shard, &[]), "PING\r\n");
    assert_eq!(*mail_for(&mut shard), [], "the reader's mail said enough");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), DIGEST);

    let mut shard = asked(2);
    assert_eq!(told(&mut shard, &[&request(&ours)]), "PING\r\n", "two readers");
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Fence(ShardId(0))]);
}

#[test]
fn requests_that_come_during_a_round_wait_for_the_next() {
    let mut shard = asked(3);
    told(&mut shard, &[]);
    shard.on_mail(mailed_request("bob", 2, None));
    shard.on_mail(Mail::Passed(ShardId(1)));
    mail_for(&mut shard).clear();
    assert_eq!(told(&mut shard, &["PONG\r\n"]), format!("PING\r\n{DIGEST}"));
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Fence(ShardId(0))]);
}

#[test]
fn a_peer_is_told_when_what_was_on_its_way_to_us_has_been_read_and_mailed() {
    let mut shard = ready(2);
    shard.on_mail(Mail::Fence(ShardId(1)));
    assert_eq!(told(&mut shard, &[]), "PING\r\n");
    shard.on_mail(Mail::Fence(ShardId(1)));
    assert_eq!(told(&mut shard, &[]), "", "one fence at a time");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "PING\r\n");
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Passed(ShardId(0))]);
}

#[test]
fn without_a_link_nothing_is_on_its_way() {
    let mut shard = ready(2);
    shard.on_mail(Mail::Fence(ShardId(1)));
    told(&mut shard, &[]);
    shard.on_link_lost(NOW);
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Passed(ShardId(0))]);
    shard.on_mail(Mail::Fence(ShardId(1)));
    shard.finish_turn(NOW);
    assert_eq!(mail_for(&mut shard).drain(..).collect::<Vec<_>>(), [Mail::Passed(ShardId(0))]);
}

#[test]
fn the_last_mail_of_a_peer_is_as_good_as_a_fence() {
    let mut shard = asked(3);
    told(&mut shard, &[]);
    told(&mut shard, &["PONG\r\n"]);
    shard.on_mail(Mail::Last(ShardId(1)));
    assert_eq!(told(&mut shard, &[]), DIGEST);
}

#[test]
fn who_is_eager_does_not_wait() {
    let mut shard = asked(1);
    assert_eq!(told(&mut shard, &[]), DIGEST, "one shard reads all of it");
    let mut shard = ready(2);
    shard.config.is_eager = true;
    let ours = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(0));
    let ours = ours.expect("half of all names");
    assert!(told(&mut shard, &[&change(&ours, "disk"), &request(&ours)]).starts_with("PUB digest"));
}

/// The digest as it is published to `subject`.
fn published_to(subject: &str) -> String {
    DIGEST.replacen("digest", subject, 1)
}

#[test]
fn a_request_is_answered_with_the_digest_once_that_is_proved() {
    let mut shard = ready(1);
    let asks = request_for("ann", "_INBOX.a");
    assert_eq!(told(&mut shard, &[&change("ann", "disk"), &asks]), DIGEST);
    assert_eq!(told(&mut shard, &[]), "", "not proved");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), published_to("_INBOX.a"));
    assert_eq!(shard.unsettled(), 1, "the answer is not proved");
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!((shard.unsettled(), shard.counters().answers), (0, 1));
}

#[test]
fn where_nothing_is_due_the_answer_has_no_alarms() {
    let mut shard = ready(1);
    let nothing = "PUB _INBOX.a 34\r\n{\"UserID\":\"ann\",\"ActiveAlarms\":[]}\r\nPING\r\n";
    assert_eq!(
        told(&mut shard, &[&request_for("ann", "_INBOX.a")]),
        "PING\r\n",
        "what was told may be refused yet"
    );
    assert_eq!(told(&mut shard, &["PONG\r\n"]), nothing);
    assert_eq!(shard.counters().settle_latency.count(), 0);
}

#[test]
fn a_reply_travels_with_its_request_to_the_owner_and_waits_for_the_fences() {
    let mut shard = ready(2);
    let theirs = (0..).map(|number| format!("user {number}")).find(|name| owner_of(name, 2) == ShardId(1));
    let theirs = theirs.expect("half of all names");
    told(&mut shard, &[&request_for(&theirs, "_INBOX.a")]);
    assert_eq!(
        mail_for(&mut shard).drain(..).collect::<Vec<_>>(),
        [mailed_request(&theirs, 0, Some("_INBOX.a"))]
    );

    let mut shard = ready(2);
    shard.on_mail(mailed_change("ann", "disk"));
    shard.on_mail(mailed_request("ann", 1, Some("_INBOX.a")));
    assert_eq!(told(&mut shard, &[]), "PING\r\n");
    shard.on_mail(Mail::Passed(ShardId(1)));
    assert_eq!(told(&mut shard, &["PONG\r\n"]), DIGEST);
    assert_eq!(told(&mut shard, &["PONG\r\n"]), published_to("_INBOX.a"));
}

#[test]
fn an_answer_is_sent_again_like_a_digest_until_it_is_proved() {
    let mut shard = ready(1);
    told(&mut shard, &[&change("ann", "disk"), &request_for("ann", "_INBOX.a")]);
    told(&mut shard, &["PONG\r\n"]);
    shard.on_link(SignIn::default(), NOW);
    let again = told(&mut shard, &[INFO, "PONG\r\n"]);
    assert!(again.ends_with(&published_to("_INBOX.a")) && !again.contains("PUB digest"), "{again}");
}

#[test]
fn a_bad_request_is_answered_with_an_error() {
    let mut shard = ready(1);
    let refusal = "HPUB _INBOX.a 134 134\r\nNATS/1.0\r\nNats-Service-Error: expected a JSON object: EOF while parsing an \
                   object at line 1 column 1\r\nNats-Service-Error-Code: 400\r\n\r\n\r\nHPUB rejected";
    let bad = msg(2, "{").replacen("send 2 ", "send 2 _INBOX.a ", 1);
    let answer = told(&mut shard, &[&bad]);
    assert!(answer.starts_with(refusal), "{answer}");
    let bad = msg(1, "{").replacen("changed 1 ", "changed 1 _INBOX.a ", 1);
    let answer = told(&mut shard, &[&bad]);
    assert!(!answer.contains("_INBOX"), "only requests are answered: {answer}");
}

#[test]
fn an_answer_larger_than_one_payload_says_in_all_its_parts_but_the_last_that_there_is_more() {
    let mut shard = ready(1);
    let alarms: Vec<String> = (0..30).map(|number| change("ann", &format!("{number:0250}"))).collect();
    let alarms: Vec<&str> = alarms.iter().map(String::as_str).collect();
    told(&mut shard, &alarms);
    told(&mut shard, &[&request_for("ann", "_INBOX.a")]);
    let answer = told(&mut shard, &["PONG\r\n"]);
    let lines: Vec<&str> = answer.lines().filter(|line| line.contains("PUB _INBOX.a")).collect();
    assert!(
        matches!(lines[..], [first, second, last] if first.starts_with('H') && second.starts_with('H') && last.starts_with('P')),
        "{lines:?}"
    );
    assert_eq!(answer.matches("Alarm-Digest-More: true\r\n").count(), 2);
    let sizes =
        lines.iter().map(|line| line.rsplit(' ').next().expect("a size").parse::<usize>().expect("a number"));
    assert!(sizes.into_iter().all(|size| size <= 4000), "{lines:?}");
}

#[test]
fn nothing_is_answered_at_our_own_subjects() {
    let mut shard = ready(1);
    let own = ["changed", "send", "digest", "rejected", "$JS.API.STREAM.DELETE.X"];
    let asks: Vec<String> = own.iter().map(|own| request_for("ann", own)).collect();
    let asks: Vec<&str> = asks.iter().map(String::as_str).collect();
    assert_eq!(told(&mut shard, &asks), "");
    assert_eq!((shard.counters().requests, shard.counters().unanswered), (5, 5));
}

#[test]
fn an_answer_that_the_server_refuses_can_be_done_without() {
    let mut shard = ready(1);
    for subject in ["_INBOX.a", "x\\\"digest\\\"", "digest.x"] {
        told(&mut shard, &[&format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'\r\n")]);
    }
    assert_eq!(shard.counters().refused, 3);
}

#[test]
fn replies_beyond_the_limit_are_not_kept_and_their_requests_are() {
    let mut shard = Shard::new(ShardId(0), 2, ShardConfig { unsettled_bytes_max: 20, ..config() });
    shard.on_mail(mailed_request("ann", 1, Some("_INBOX.a")));
    shard.on_mail(mailed_request("ann", 1, Some("_INBOX.b")));
    shard.on_mail(mailed_request("ann", 1, Some("_INBOX.c")));
    assert_eq!((shard.unsettled(), shard.counters().unanswered, shard.reply_bytes), (3, 1, 16));
}

#[test]
fn how_long_a_digest_took_is_counted_from_its_request() {
    let mut shard = ready(1);
    told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    shard.receive(b"PONG\r\n", Duration::from_micros(150)).expect("no fault");
    let up_to: Vec<_> = shard.counters().settle_latency.up_to().take(6).collect();
    assert_eq!(up_to, [(10, 0), (20, 0), (50, 0), (100, 0), (200, 1), (500, 1)]);
}

fn mail_for(shard: &mut Shard) -> &mut Vec<Mail> {
    shard.mail_for(ShardId(1)).expect("shards write mail")
}

fn owner_of(text: &str, shards: usize) -> ShardId {
    owner(&UserId(Id::new(text).expect("a valid id")), shards)
}

/// Golden: whoever changes these moves users between shards.
#[test]
fn the_owner_is_the_same_on_every_machine_and_in_every_version() {
    for (text, hash) in [
        ("a", 0xe6c6_32b6_1e96_4e1f_u64),
        ("abc", 0x78af_5f94_892f_3950),
        ("0b6a3c5e-9d4f-4b7a-8e21-5f0c1d2e3a4b", 0xdd61_6505_f084_5928),
        ("0B6A3C5E-9D4F-4B7A-8E21-5F0C1D2E3A4B", 0x51e3_0e6d_b195_0b46),
    ] {
        for shards in [1, 2, 3, 4, 64] {
            let expected = (u128::from(hash) * shards as u128) >> 64;
            assert_eq!(owner_of(text, shards), ShardId(expected as usize), "{text} {shards}");
        }
    }
}

/// What the shard writes on its second connection when these bytes have come there.
fn told_second(shard: &mut Shard, bytes: &[&str]) -> String {
    shard.swap_links();
    for bytes in bytes {
        assert_eq!(shard.receive(bytes.as_bytes(), NOW).expect("no fault"), bytes.len());
    }
    shard.swap_links();
    shard.finish_turn(NOW);
    shard.swap_links();
    let output = String::from_utf8(shard.output().to_vec()).expect("all of it is text here");
    shard.wrote(output.len(), NOW);
    shard.swap_links();
    output
}

/// The only shard, with two connections that are both subscribed.
fn moving() -> Shard {
    let mut shard = ready(1);
    shard.swap_links();
    shard.on_link(SignIn::default(), NOW);
    shard.swap_links();
    let hello = told_second(&mut shard, &[INFO, "PONG\r\n"]);
    assert!(hello.ends_with("SUB changed group 1\r\nSUB send group 2\r\nPING\r\n"), "{hello}");
    assert!(!is_second_subscribed(&mut shard));
    assert_eq!(told_second(&mut shard, &["PONG\r\n"]), "");
    assert!(is_second_subscribed(&mut shard) && shard.notices().is_empty());
    shard
}

fn is_second_subscribed(shard: &mut Shard) -> bool {
    shard.swap_links();
    let is_subscribed = shard.is_subscribed();
    shard.swap_links();
    is_subscribed
}

#[test]
fn with_two_connections_a_digest_waits_for_what_is_on_its_way_on_both() {
    let mut shard = moving();
    assert_eq!(told(&mut shard, &[&change("ann", "disk"), &request("ann")]), "PING\r\n");
    assert_eq!(told_second(&mut shard, &[]), "PING\r\n");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "");
    assert_eq!(told_second(&mut shard, &["PONG\r\n"]), "");
    assert_eq!(told(&mut shard, &[]), DIGEST);
    assert_eq!(told_second(&mut shard, &[]), "");
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!(shard.unsettled(), 0);
}

#[test]
fn a_connection_is_left_when_nothing_is_on_its_way_there_and_all_is_proved() {
    let mut shard = moving();
    told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    told_second(&mut shard, &["PONG\r\n"]);
    assert_eq!(told(&mut shard, &["PONG\r\n"]), DIGEST);
    shard.leave(NOW);
    assert_eq!(told(&mut shard, &[]), "UNSUB 1\r\nUNSUB 2\r\nPING\r\n");
    shard.leave(NOW);
    // What comes while it is left counts, and is published where we go.
    told(&mut shard, &[&change("bob", "disk"), &request("bob")]);
    told_second(&mut shard, &["PONG\r\n"]);
    assert!(!shard.has_left());
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "");
    assert!(!shard.has_left(), "the digest of ann is proved, and more may come");
    assert_eq!(told(&mut shard, &["PONG\r\n", "PONG\r\n"]), "");
    assert!(shard.has_left());
    shard.change_links(NOW);
    assert!(matches!(shard.notices().pop(), Some(Notice::Ready)));
    assert_eq!(told(&mut shard, &[]), DIGEST.replace("ann", "bob"));
    told(&mut shard, &["PONG\r\n"]);
    assert_eq!((shard.unsettled(), shard.counters().resent), (0, 0));
    // One connection keeps the order again.
    assert!(told(&mut shard, &[&change("bob", "cpu"), &request("bob")]).starts_with("PUB digest"));
}

#[test]
fn a_connection_that_breaks_while_it_is_left_is_left_at_once_and_its_digests_are_sent_again() {
    let mut shard = moving();
    told(&mut shard, &[&change("ann", "disk"), &request("ann")]);
    told_second(&mut shard, &["PONG\r\n"]);
    assert_eq!(told(&mut shard, &["PONG\r\n"]), DIGEST);
    shard.leave(NOW);
    shard.change_links(NOW);
    assert_eq!((told(&mut shard, &[]).as_str(), shard.counters().resent), (DIGEST, 1));
}

#[test]
fn a_second_connection_that_breaks_is_not_waited_for() {
    let mut shard = moving();
    assert_eq!(told(&mut shard, &[&change("ann", "disk"), &request("ann")]), "PING\r\n");
    assert_eq!(told(&mut shard, &["PONG\r\n"]), "");
    shard.swap_links();
    shard.on_link_lost(NOW);
    shard.swap_links();
    assert_eq!(told(&mut shard, &[]), DIGEST);
}

#[test]
fn a_message_of_a_subscription_that_we_never_made_ends_the_connection() {
    for sid in ["3", "0", "x", "18446744073709551616"] {
        let mut shard = ready(1);
        let message = format!("MSG send {sid} 16\r\n{{\"UserID\":\"ann\"}}\r\n");
        let fault = shard.receive(message.as_bytes(), NOW).expect_err(sid).to_string();
        assert_eq!(fault, format!("expected a message of a subscription of ours, got one of `{sid}`"));
        assert_eq!(shard.counters().requests, 0);
    }
}
