//! Requests that want an answer: the stream takes their reply subject, so they name another one in a header.

use std::time::{Duration, Instant};

use nats_wire::{Header, HeaderBlock, Headers, Subject};
use serde_json::{Value, json};

use crate::world::{Client, SOON, at, change, connect, on_each_server};
use crate::{jetstream_server, started};

struct Requester(Client);

impl Requester {
    /// Sends a message, and waits until the stream has it. A request names `reply`.
    fn send(&mut self, subject: &str, reply: Option<&str>, payload: &str) {
        let lines: Vec<_> = reply
            .map(|reply| Header::new("Alarm-Digest-Reply", reply).expect("a header"))
            .into_iter()
            .collect();
        let headers = (!lines.is_empty()).then(|| HeaderBlock::new(&lines));
        let (subject, inbox) =
            (Subject::new(subject).expect("a subject"), Subject::new("_INBOX.ack").expect("a subject"));
        self.0.session().publish_for_reply(subject, inbox, headers, payload.as_bytes(), Duration::ZERO);
        let ack: Value = serde_json::from_slice(&self.next("_INBOX.ack").1).expect("a PubAck is JSON");
        assert_eq!(ack["stream"], "AD_IN");
    }

    /// The next message, which came to `subject`: headers and payload.
    fn next(&mut self, subject: &str) -> (Vec<u8>, Vec<u8>) {
        let received =
            self.0.next(Instant::now() + SOON).expect("the connection holds").expect("an answer in time");
        assert_eq!(received.subject, subject);
        (received.headers, received.payload)
    }

    fn ask(&mut self, user: &str) -> Value {
        self.send("SendAlarmDigest", Some("_INBOX.answer"), &json!({ "UserID": user }).to_string());
        serde_json::from_slice(&self.next("_INBOX.answer").1).expect("a digest is JSON")
    }
}

#[test]
fn a_request_is_answered_where_its_header_says_also_by_another_instance() {
    on_each_server(|binary| {
        let server = jetstream_server(binary);
        // Two instances with two cores each: most messages are passed on.
        let (one, two) = (started(&server), started(&server));
        let mut client = connect(&server);
        ["_INBOX.ack", "_INBOX.answer"]
            .iter()
            .zip(1..)
            .for_each(|(inbox, sid)| client.subscribe(inbox, None, sid));
        let mut requester = Requester(client);
        for number in 0..20 {
            let user = format!("user {number}");
            requester.send("AlarmStatusChanged", None, &change(&user, "disk", "WARNING", &at(1)));
            let alarm = json!({ "AlarmID": "disk", "Status": "WARNING", "LatestChangedAt": at(1) });
            // A request may overtake an alarm here.
            let mut answers = std::iter::repeat_with(|| requester.ask(&user)).take(100);
            let told = answers.find(|told| told["ActiveAlarms"] != json!([]));
            let told = told.unwrap_or_else(|| panic!("never told {user}: {}{}", one.log(), two.log()));
            assert_eq!(told, json!({ "UserID": user, "ActiveAlarms": [alarm] }));
            assert_eq!(requester.ask(&user), json!({ "UserID": user, "ActiveAlarms": [] }));
        }
        requester.send("SendAlarmDigest", Some("_INBOX.answer"), "{}");
        let (headers, payload) = requester.next("_INBOX.answer");
        let headers = Headers::new(&headers);
        assert_eq!(headers.get("Nats-Service-Error-Code"), Some(&b"400"[..]));
        assert_eq!(
            (headers.get("Nats-Service-Error"), payload),
            (Some(&b"expected a field `UserID`, got none"[..]), vec![])
        );
    });
}
