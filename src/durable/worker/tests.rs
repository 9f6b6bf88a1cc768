//! What one worker writes when these bytes have come.

use nats_wire::{ConnectOptions, Limits};

use super::*;

const NOW: Duration = Duration::from_secs(100);

fn config() -> WorkerConfig {
    let text = str::to_owned;
    WorkerConfig {
        names: Names {
            changed: text("alarms"),
            send: text("alarms.digest"),
            digest: text("told"),
            dead: text("told.dead"),
            input: text("IN"),
            consumer: text("digest"),
            bucket: text("STATE"),
            output: text("OUT"),
            dead_letters: text("DEAD"),
            output_prefix: text("AD.out."),
            member_prefix: text("AD.member."),
            api_prefix: None,
        },
        session: SessionConfig {
            connect: ConnectOptions::default(),
            limits: Limits::client(),
            handshake_max: NOW,
            ping_interval: NOW,
            answer_max: NOW,
            max_payload_at_least: 0,
        },
        retention: Duration::from_secs(1_000_000),
        output_bytes_max: 1 << 20,
        batch: 10,
        open_max: 100,
        cached_users_max: 100,
        request_timeout: NOW,
        affinity: false,
        is_republished: true,
    }
}

/// A worker, and the server's end of its connection.
struct End {
    worker: Worker,
    now: Duration,
}

impl End {
    fn new(config: WorkerConfig, max_payload: usize) -> Self {
        let mut end = Self { worker: Worker::new(config, "_INBOX.a", 1 << 64), now: NOW };
        end.connect(max_payload);
        end
    }

    fn connect(&mut self, max_payload: usize) {
        self.worker.on_link(SignIn::default(), self.now);
        let info =
            format!("INFO {{\"headers\":true,\"version\":\"2.15.1\",\"max_payload\":{max_payload}}}\nPONG\n");
        self.hears(&info);
    }

    /// What is written after the server wrote `text`, line feeds standing for all line ends.
    fn hears(&mut self, text: &str) -> String {
        let bytes = text.replace('\n', "\r\n").into_bytes();
        let used = self.worker.receive(&bytes, self.now).expect("a good server");
        assert_eq!(used, bytes.len(), "{text}");
        self.turn()
    }

    fn turn(&mut self) -> String {
        self.worker.finish_turn(self.now);
        let output = String::from_utf8_lossy(self.worker.output()).replace("\r\n", "\n");
        self.worker.wrote(self.worker.output().len(), self.now);
        output
    }

    /// Message `sequence` of the queue comes, for the time `delivered`.
    fn delivers(&mut self, subject: &str, sequence: u32, delivered: u32, payload: &str) -> String {
        let bytes = payload.len();
        self.hears(&format!(
            "MSG {subject} 2 $JS.ACK.IN.digest.{delivered}.{sequence}.{sequence}.4.5 {bytes}\n{payload}\n"
        ))
    }

    /// Answers request `number` with a stored message.
    fn stored(&mut self, number: u32, sequence: u32, payload: &[u8]) -> String {
        let headers = format!("NATS/1.0\r\nNats-Subject: a\r\nNats-Sequence: {sequence}\r\n\r\n");
        let total = headers.len() + payload.len();
        let line = format!("HMSG _INBOX.a.{number} 1 {} {total}\r\n{headers}", headers.len());
        let bytes = [line.as_bytes(), payload, b"\r\n"].concat();
        assert_eq!(self.worker.receive(&bytes, self.now).expect("a good server"), bytes.len());
        self.turn()
    }

    /// The leader's answer to request `number`: what is stored at `sequence`.
    fn latest(&mut self, number: u32, sequence: u32, payload: &[u8]) -> String {
        let data = data_encoding::BASE64.encode(payload);
        let time = "2026-01-01T00:00:00Z";
        let message =
            format!(r#"{{"message":{{"subject":"a","seq":{sequence},"data":"{data}","time":"{time}"}}}}"#);
        self.hears(&format!("MSG _INBOX.a.{number} 1 {}\n{message}\n", message.len()))
    }
}

fn change(alarm: &str, status: &str) -> String {
    format!(
        r#"{{"AlarmID":"{alarm}","UserID":"ann","Status":"{status}","ChangedAt":"2026-01-01T00:00:00Z"}}"#
    )
}

#[test]
fn a_subject_is_one_of_the_two_or_its_numbered_part() {
    let names = config().names;
    for (subject, kind) in [
        ("alarms", Some(Kind::Changed)),
        ("alarms.digest", Some(Kind::Send)),
        ("alarms.0", Some(Kind::Changed)),
        ("alarms.digest.12", Some(Kind::Send)),
        ("alarms.", None),
        ("alarms.1a", None),
        ("alarms.digest.1.2", None),
        ("alarm", None),
        ("other", None),
    ] {
        assert_eq!(kind_of(subject.as_bytes(), &names), kind, "{subject}");
    }
}

#[test]
fn a_server_must_take_a_digest_of_one_alarm_with_its_headers() {
    let mut worker = Worker::new(config(), "_INBOX.a", 1);
    worker.on_link(SignIn::default(), NOW);
    let refused = worker.receive(b"INFO {\"headers\":true,\"max_payload\":3783}\r\n", NOW);
    assert!(matches!(refused, Err(Fault::MaxPayload { came: 3783, at_least: 3784 })), "{refused:?}");
}

#[test]
fn messages_of_a_user_whose_record_is_damaged_become_dead_letters() {
    let mut end = End::new(config(), 10_000);
    let load = end.delivers("alarms", 7, 1, &change("disk", "WARNING"));
    assert!(load.contains("PUB $JS.API.DIRECT.GET.KV_STATE.$KV.STATE.ann _INBOX.a.0"), "{load}");
    let again = end.stored(0, 3, b"nonsense");
    assert!(again.contains("PUB $JS.ACK.IN.digest.1.7.7.4.5 4\n-NAK\n"), "{again}");
    // The record is not read again.
    let dead = end.delivers("alarms", 7, 2, &change("disk", "WARNING"));
    assert!(dead.starts_with("HPUB told.dead _INBOX.a.1 "), "{dead}");
    assert!(dead.contains("Alarm-Digest-Reason: record-damaged\n"), "{dead}");
    assert!(dead.ends_with(&format!("{}\n", change("disk", "WARNING"))), "{dead}");
    assert_eq!((end.worker.open, end.worker.counters.rejected[Reason::RecordDamaged as usize]), (1, 1));
    let done = end.hears("MSG _INBOX.a.1 1 27\n{\"stream\":\"DEAD\",\"seq\":123}\n");
    assert!(done.contains("PUB $JS.ACK.IN.digest.2.7.7.4.5 5\n+TERM\n"), "{done}");
    assert_eq!(end.worker.open, 0);
    // Somebody may have mended it.
    end.now += AGAIN_AFTER;
    assert!(end.delivers("alarms", 8, 1, &change("disk", "WARNING")).contains("DIRECT.GET"));
}

#[test]
fn a_change_that_a_record_has_no_room_for_is_a_dead_letter_and_the_rest_is_stored() {
    let mut end = End::new(config(), 4_000);
    let user = UserId(crate::alarm::Id::new("ann").expect("a valid id"));
    let mut record = crate::durable::record::Record::new(user);
    let alarm = |number: u32| {
        crate::alarm::AlarmId(crate::alarm::Id::new(&format!("alarm {number}")).expect("a valid id"))
    };
    let warning = crate::alarm::Condition::new(Timestamp::new(1, 0), crate::alarm::Status::Warning);
    let mut count = 0;
    while record.bytes_max_with(&alarm(count)) <= 4_000 - HEADER_BYTES_MAX {
        record.apply(&alarm(count), warning);
        count += 1;
    }
    end.delivers("alarms", 1, 1, &change("one more alarm", "WARNING"));
    // Perhaps it has room by now.
    let asked = end.stored(0, 3, &record.encode());
    assert!(asked.contains("STREAM.MSG.GET.KV_STATE _INBOX.a.1 ") && !asked.contains("$JS.ACK"), "{asked}");
    let again = end.latest(1, 3, &record.encode());
    assert!(again.contains("PUB $JS.ACK.IN.digest.1.1.1.4.5 4\n-NAK\n"), "{again}");
    let dead = end.delivers("alarms", 1, 2, &change("one more alarm", "WARNING"));
    assert!(dead.starts_with("HPUB told.dead _INBOX.a.2 "), "{dead}");
    assert!(dead.contains("Alarm-Digest-Reason: record-too-large\n"), "{dead}");
    assert!(dead.contains("expected a record of at most 3488 bytes, it needs "), "{dead}");
    let stored = end.delivers("alarms", 2, 1, &change("alarm 0", "CLEARED"));
    assert!(stored.contains("HPUB $KV.STATE.ann _INBOX.a.3 "), "{stored}");
    assert_eq!(end.worker.open, 2);
}

#[test]
fn a_digest_decided_where_more_is_taken_waits_for_such_a_server() {
    let user = UserId(crate::alarm::Id::new("ann").expect("a valid id"));
    let mut record = crate::durable::record::Record::new(user);
    for number in 0..100 {
        let id = crate::alarm::Id::new(&format!("alarm {number}")).expect("a valid id");
        let warning = crate::alarm::Condition::new(Timestamp::new(1, 0), crate::alarm::Status::Warning);
        record.apply(&crate::alarm::AlarmId(id), warning);
    }
    record.decide(Nonce(7), usize::MAX, |_, _| true);
    let mut end = End::new(config(), 4_000);
    end.delivers("alarms.digest", 1, 1, r#"{"UserID":"ann"}"#);
    let later = end.stored(0, 3, &record.encode());
    assert!(later.contains("PUB $JS.ACK.IN.digest.1.1.1.4.5 26\n-NAK {\"delay\":30000000000}\n"), "{later}");
    let later = end.delivers("alarms.digest", 2, 1, r#"{"UserID":"ann"}"#);
    assert!(
        later.contains("digest.1.2.2.4.5") && later.contains("-NAK {") && !later.contains("GET"),
        "{later}"
    );
    assert_eq!((end.worker.open, end.worker.counters.alarms_told), (0, 0));
    let said = |notice: &Notice| matches!(notice, Notice::Refused(text) if text.starts_with("digest of user \"ann\": "));
    assert_eq!(end.worker.notices.iter().filter(|notice| said(notice)).count(), 1);
}

#[test]
fn a_message_that_comes_again_while_it_is_held_is_held_once() {
    let mut end = End::new(config(), 10_000);
    end.delivers("alarms", 7, 1, &change("disk", "WARNING"));
    end.delivers("alarms", 7, 2, &change("disk", "WARNING"));
    end.delivers("alarms.digest", 8, 2, r#"{"UserID":"ann"}"#);
    end.delivers("alarms.digest", 8, 3, r#"{"UserID":"ann"}"#);
    assert_eq!(end.worker.open, 2);
    let user = &mut end.worker.users[0].user;
    let held: Vec<u64> =
        user.waiting_mut().map(|ack| AckSubject::parse(&ack.subject).expect("it is one").delivered).collect();
    assert_eq!(held, [2, 3]);
}

#[test]
fn what_no_member_would_relay_is_not_looked_at() {
    let mut end = End::new(WorkerConfig { affinity: true, ..config() }, 4_000);
    let mut relays = |subject: &str| {
        let headers = format!(
            "NATS/1.0\nAlarm-Digest-Ack: $JS.ACK.IN.digest.1.2.3.4.5\nAlarm-Digest-Subject: {subject}\n\n"
        );
        let bytes = headers.replace('\n', "\r\n").len();
        let output = end.hears(&format!("HMSG AD.member.1 12 {bytes} {}\n{headers}{{}}\n", bytes + 2));
        (output.contains("told.dead"), end.worker.open)
    };
    assert_eq!(relays(&"x".repeat(3_900)), (false, 0));
    assert_eq!(relays("alarms.digest.x"), (false, 0));
    assert_eq!(relays("alarms.digest.3"), (true, 1));
}

#[test]
fn what_a_dead_letter_repeats_is_cut_to_what_the_smallest_server_takes() {
    let mut end = End::new(config(), MAX_PAYLOAD_AT_LEAST);
    let subject = "\u{7f}".repeat(3_000);
    let payload = format!(r#"{{"UserID":"{}"}}"#, "\u{7f}".repeat(9_000));
    let dead = end.delivers(&subject, 1, 1, &payload);
    assert!(dead.contains("Alarm-Digest-Reason: unknown-subject\n"), "{dead}");
    let dead = end.delivers("alarms", 2, 1, &payload.replace("UserID", "AlarmID"));
    assert!(dead.contains("Alarm-Digest-Reason: missing-field\n"), "{dead}");
    assert_eq!(end.worker.open, 2);
}

#[test]
fn users_that_wait_are_stepped_as_far_as_the_output_has_room() {
    let mut end = End::new(WorkerConfig { output_bytes_max: 2_000, ..config() }, 10_000);
    for number in 0..50 {
        end.delivers(
            "alarms",
            number,
            1,
            &change("disk", "WARNING").replace("ann", &format!("user{number}")),
        );
    }
    end.connect(10_000);
    assert_eq!(end.worker.waiting.len(), 50);
    end.now += PAUSE;
    let mut turns = Vec::new();
    while !end.worker.waiting.is_empty() {
        let output = end.turn();
        assert!(output.len() < 2_500, "{}", output.len());
        turns.push(output.matches("STREAM.MSG.GET").count());
    }
    assert!(turns.len() > 1 && turns.iter().sum::<usize>() == 50, "{turns:?}");
}

#[test]
fn a_message_that_fits_no_request_is_asked_for_alone() {
    const TOO_LARGE: &str = "NATS/1.0 409 Message Size Exceeds MaxBytes\n\n";
    let status = |number: u32| format!("HMSG _INBOX.a.p0.{number} 2 46 46\n{TOO_LARGE}\n");
    let asked = |output: String| {
        let asked = output.lines().find(|line| line.starts_with('{')).map(str::to_owned);
        asked.expect("a request for messages")
    };
    let mut end = End::new(config(), 1 << 20);
    let whole = r#"{"batch":10,"expires":10000000000,"idle_heartbeat":5000000000,"max_bytes":8388608}"#;
    end.delivers("alarms", 1, 1, &change("disk", "WARNING"));
    assert_eq!(asked(end.hears(&status(1))), whole, "it did not fit behind another one");
    let alone = r#"{"batch":1,"expires":10000000000,"idle_heartbeat":5000000000}"#;
    assert_eq!(asked(end.hears(&status(2))), alone);
    assert_eq!(asked(end.delivers("alarms", 2, 1, &change("fan", "WARNING"))), whole);
}

impl End {
    /// A request for ann comes that wants its answer at `reply`.
    fn asks(&mut self, sequence: u32, delivered: u32, reply: &str) -> String {
        let (headers, payload) =
            (format!("NATS/1.0\nAlarm-Digest-Reply: {reply}\n\n"), r#"{"UserID":"ann"}"#);
        let bytes = headers.replace('\n', "\r\n").len();
        let ack = format!("$JS.ACK.IN.digest.{delivered}.{sequence}.{sequence}.4.5");
        let total = bytes + payload.len();
        self.hears(&format!("HMSG alarms.digest 2 {ack} {bytes} {total}\n{headers}{payload}\n"))
    }

    /// JetStream has stored what request `number` wanted to be stored.
    fn stores(&mut self, number: u32) -> String {
        self.hears(&format!("MSG _INBOX.a.{number} 1 24\n{{\"stream\":\"X\",\"seq\":100}}\n"))
    }
}

/// Of a user with one alarm that is due.
fn due() -> crate::durable::record::Record {
    let id = |text| crate::alarm::Id::new(text).expect("a valid id");
    let mut record = crate::durable::record::Record::new(UserId(id("ann")));
    let warning = crate::alarm::Condition::new(Timestamp::new(1, 0), crate::alarm::Status::Warning);
    record.apply(&crate::alarm::AlarmId(id("disk")), warning);
    record
}

const DIGEST: &str = r#"{"UserID":"ann","ActiveAlarms":[{"AlarmID":"disk","Status":"WARNING","LatestChangedAt":"1970-01-01T00:00:01Z"}]}"#;
const NOTHING: &str = r#"{"UserID":"ann","ActiveAlarms":[]}"#;

#[test]
fn a_request_is_answered_when_its_digest_is_stored() {
    let mut end = End::new(config(), 10_000);
    end.asks(1, 1, "_INBOX.me.1");
    assert!(end.stored(0, 3, &due().encode()).contains("HPUB $KV.STATE.ann _INBOX.a.1 "));
    assert!(end.stores(1).contains("HPUB AD.out.ann _INBOX.a.2 "));
    let answer = end.stores(2);
    assert!(answer.starts_with(&format!("PUB _INBOX.me.1 {}\n{DIGEST}\n", DIGEST.len())), "{answer}");
    let done = end.stores(3);
    assert_eq!(done, "PUB $JS.ACK.IN.digest.1.1.1.4.5 4\n+ACK\n", "answered once");
    assert_eq!((end.worker.counters.answers, end.worker.counters.settle_latency.count()), (1, 1));
}

#[test]
fn a_request_that_nothing_is_due_for_is_answered_when_that_is_proved() {
    let mut end = End::new(config(), 10_000);
    let mut told = due();
    told.decide(Nonce(7), usize::MAX, |_, _| true);
    told.clear_outbox();
    end.asks(1, 1, "_INBOX.me.1");
    assert!(end.stored(0, 3, &told.encode()).contains("STREAM.MSG.GET.KV_STATE _INBOX.a.1 "));
    let answer = end.latest(1, 3, &told.encode());
    let expected =
        format!("PUB _INBOX.me.1 {}\n{NOTHING}\nPUB $JS.ACK.IN.digest.1.1.1.4.5 4\n+ACK\n", NOTHING.len());
    assert_eq!(answer, expected);
}

/// The one who decided it has died.
#[test]
fn a_request_that_comes_again_is_answered_with_the_digest_that_somebody_else_decided() {
    let mut decided = due();
    decided.decide(Nonce(7), usize::MAX, |_, _| true);
    let mut end = End::new(config(), 10_000);
    end.asks(1, 2, "_INBOX.me.1");
    assert!(end.stored(0, 3, &decided.encode()).contains("HPUB AD.out.ann _INBOX.a.1 "));
    let answer = end.stores(1);
    let marked = format!("Alarm-Digest-More: true\n\n{DIGEST}\n");
    assert!(answer.starts_with("HPUB _INBOX.me.1 ") && answer.contains(&marked), "{answer}");
    let done = end.stores(2);
    assert!(done.contains(NOTHING) && done.ends_with("+ACK\n"), "{done}");
}

#[test]
fn a_bad_request_is_answered_and_nothing_at_our_own_subjects() {
    let mut end = End::new(config(), 10_000);
    let headers = "NATS/1.0\nAlarm-Digest-Reply: _INBOX.me.1\n\n";
    let bytes = headers.replace('\n', "\r\n").len();
    let message = format!("alarms.digest 2 $JS.ACK.IN.digest.1.1.1.4.5 {bytes} {}\n{headers}{{\n", bytes + 1);
    let refusal = end.hears(&format!("HMSG {message}"));
    assert!(
        refusal.starts_with("HPUB _INBOX.me.1 ") && refusal.contains("Nats-Service-Error-Code: 400\n"),
        "{refusal}"
    );
    let dead = end.hears(&format!("HMSG {}", message.replace("alarms.digest 2", "alarms 2")));
    assert!(dead.starts_with("HPUB told.dead "), "only requests are answered: {dead}");
    for ours in ["told", "AD.out.ann", "$KV.STATE.ann"] {
        end.asks(2, 1, ours);
    }
    assert_eq!(end.worker.counters.unanswered, 3);
}

#[test]
fn a_message_of_a_subscription_that_we_never_made_ends_the_connection() {
    let mut end = End::new(config(), 1 << 20);
    assert_eq!(end.hears("MSG _INBOX.a.99 1 2\n{}\n"), "", "a reply may be late");
    let fault =
        end.worker.receive(b"MSG _INBOX.a.0 4 2\r\n{}\r\n", NOW).expect_err("4 is nobody's").to_string();
    assert_eq!(fault, "expected a message of a subscription of ours, got one of `4`");
}

#[test]
fn a_server_that_sends_more_than_was_asked_for_fills_no_memory() {
    let mut end = End::new(config(), 1 << 20);
    for sequence in 0..10_000 {
        let user = format!(r#"{{"UserID":"user {sequence}"}}"#);
        end.delivers("alarms.digest", sequence, 1, &user);
    }
    assert!(end.worker.unsettled() <= 400, "{} wait", end.worker.unsettled());
    assert!(end.worker.holds().0 <= 400, "{:?} users", end.worker.holds());
    assert!(end.delivers("alarms.digest", 10_001, 1, "{}").contains("-NAK {\"delay\":30000000000}"));
    let said = end.worker.notices().iter().filter(|notice| matches!(notice, Notice::Refused(_))).count();
    assert_eq!(said, 1);
}

#[test]
fn who_asks_without_end_is_one_of_a_thousand_at_most() {
    let mut end = End::new(WorkerConfig { affinity: true, ..config() }, 1 << 20);
    for member in 2..5000 {
        end.worker.open = 1000; // so that nobody is answered
        end.hears(&format!("MSG AD.member.0000000000000001 12 22\nask {member:016x} 7\n"));
    }
    end.worker.open = 0;
    assert_eq!(end.turn().matches("read ").count(), 1023);
}
