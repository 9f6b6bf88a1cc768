//! What JetStream answers and delivers, whatever is in it: read in each way, and held against serde_json and a base64 of
//! another make.
//!
//! An input is a line with a subject, then perhaps a block of headers, then a payload.
#![no_main]

use std::time::Duration;

use data_encoding::BASE64;
use nats_wire::jetstream::{
    AckSubject, AccountInfo, Bucket, ConsumerConfig, ConsumerInfo, JetStream, Name, Next, PubAck, Pull,
    PullRequest, Pulled, Reply, RequestId, StreamConfig, StreamInfo, set_among,
};
use nats_wire::session::{Session, SessionConfig};
use nats_wire::{ConnectOptions, Headers, Limits, Message, Subject};
use serde_json::Value;

const MOMENT: Duration = Duration::from_secs(1);

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let at = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (subject, rest) = input.split_at(at);
    let rest = rest.get(1..).unwrap_or_default();
    let headers_end = rest.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let (headers, payload) = match headers_end.filter(|_| rest.starts_with(b"NATS/1.0")) {
        Some(end) => (Some(Headers::new(&rest[..end])), &rest[end..]),
        None => (None, rest),
    };
    let message = Message { subject, sid: b"5", reply: Some(subject), headers, payload };
    let reply = Reply { tag: (), request: RequestId(0), sent_at: MOMENT, message };

    acknowledgement(&reply);
    stored(&reply);
    ack_subject(subject);
    key(subject);
    infos(&reply);
    pull(&message);
});

fn acknowledgement(reply: &Reply<'_, ()>) {
    if let Ok(ack) = reply.pub_ack() {
        assert_eq!(serde_json::from_slice::<PubAck<'_>>(reply.message.payload).ok(), Some(ack));
    }
    let _ = reply.confirmed();
}

fn stored(reply: &Reply<'_, ()>) {
    let Ok(Some(stored)) = reply.stored() else { return };
    let _ = (stored.marker(), stored.header("Alarm-Digest-Id"));
    let Message { payload, headers, .. } = reply.message;
    if headers.is_some_and(|headers| headers.get("Nats-Sequence").is_some() && headers.get("Nats-Subject").is_some()) {
        assert_eq!(&*stored.payload, payload);
        return;
    }
    // What is skipped may be what a value cannot hold, such as half of a surrogate pair.
    let Ok(json) = serde_json::from_slice::<Value>(payload) else { return };
    let member = |name: &str| json["message"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(stored.subject, member("subject").as_bytes());
    // Ours takes bits behind the last byte for nothing, as Go does.
    for (text, bytes) in [(member("hdrs"), &stored.header_block), (member("data"), &stored.payload)] {
        let theirs = BASE64.decode(text.as_bytes());
        assert!(theirs.is_err() || theirs.as_deref() == Ok(bytes), "{text}");
    }
}

fn ack_subject(subject: &[u8]) {
    let Some(ack) = AckSubject::parse(subject) else { return };
    assert_eq!(ack.subject().as_bytes(), subject);
    let tokens: Vec<&[u8]> = subject.split(|byte| *byte == b'.').collect();
    let first = if tokens.len() == 9 { 2 } else { 4 };
    assert_eq!((ack.stream, ack.consumer), (tokens[first], tokens[first + 1]));
    let numbers = [
        ack.delivered,
        ack.stream_sequence,
        ack.consumer_sequence,
        ack.stored_at.as_nanos() as u64,
        ack.pending,
    ];
    for (token, number) in tokens[first + 2..].iter().zip(numbers) {
        assert_eq!(std::str::from_utf8(token).ok().and_then(|text| text.parse().ok()), Some(number));
    }
}

fn key(subject: &[u8]) {
    let bucket = Bucket::new("b").expect("a name");
    if let Some(key) = bucket.key(subject) {
        assert_eq!(subject, format!("$KV.b.{key}").as_bytes());
    }
}

/// What was found, changed as the differences say, has none.
fn infos(reply: &Reply<'_, ()>) {
    if let Ok(info) = reply.decode::<StreamInfo>("a stream") {
        let wanted = StreamConfig { max_bytes: Some(7), ..Bucket::new("b").expect("a name").config() };
        let differences = wanted.differences(&info.config);
        let mut mended = info.config.clone();
        for difference in &differences {
            let _ = difference.to_string();
            mended.insert(difference.member.clone(), difference.wanted.clone());
        }
        assert_eq!(wanted.differences(&mended), []);
        assert_eq!(wanted.differences(&wanted.over(&info.config)), []);
        for set in set_among(&info.config, &["no_ack", "max_age", "mirror"]) {
            mended.remove(&set.member);
        }
        assert_eq!(set_among(&mended, &["no_ack", "max_age", "mirror"]), []);
    }
    if let Ok(info) = reply.decode::<ConsumerInfo>("a consumer") {
        let wanted = ConsumerConfig { max_deliver: Some(-1), ..ConsumerConfig::default() };
        wanted.differences(&info.config).iter().for_each(|difference| drop(difference.to_string()));
    }
    if let Err(failure) = reply.decode::<AccountInfo>("an account") {
        let _ = failure.to_string();
    }
}

fn pull(message: &Message<'_>) {
    let jetstream = JetStream::<()>::new(Subject::new("_INBOX.a").expect("a subject"), 1);
    let name = Name::new("x").expect("a name");
    let mut pull = Pull::new(&jetstream, name, name, 3, 5);
    let config = SessionConfig {
        connect: ConnectOptions::default(),
        limits: Limits::client(),
        handshake_max: MOMENT,
        ping_interval: MOMENT,
        answer_max: MOMENT,
        max_payload_at_least: 0,
    };
    pull.request(&mut Session::new(config, MOMENT), &PullRequest::new(2, MOMENT), MOMENT);
    match pull.on_message(message, MOMENT) {
        Some(Pulled::Status(status)) => {
            let is_over = status.is_current && status.kind.next() != Next::Wait;
            assert_eq!(pull.owed(), if is_over { 0 } else { 2 });
        }
        Some(Pulled::Delivery(delivery)) => {
            assert_eq!((pull.owed(), Some(delivery.ack.subject().as_bytes())), (1, message.reply));
        }
        Some(Pulled::Stray) => assert_eq!(pull.owed(), 2),
        None => panic!("its sid is this pull's"),
    }
}
