//! NATS's service API, by which `nats micro ls` and `nats micro stats` find us: who asks on `$SRV` is told who we are and what we
//! have counted.
//!
//! ```text
//! SUB $SRV.PING   SUB $SRV.PING.alarm-digest   SUB $SRV.PING.alarm-digest.<id>   and so for INFO and STATS
//! PUB <reply> {"type":"io.nats.micro.v1.ping_response","name":"alarm-digest","id":…,"version":…,"metadata":{…}}
//! ```
//!
//! One core of an instance listens; what the others do it knows from their status. Names and shapes are those of ADR-32 and
//! of the schemas in jsm.go, `schemas/micro/v1`.
//!
//! Never: anything that the service depends on. Where the server forbids `$SRV`, nobody finds us, and that is all.

use std::ops::RangeInclusive;
use std::time::Duration;

use nats_wire::session::Session;
use nats_wire::{Message, Sid, SubjectFilter};
use serde_json::{Map, Value, json};

use crate::alarm::Timestamp;
use crate::logic::Counters;
use crate::message::timestamp_text;
use crate::reply::{Replies, ReplyTo};
use crate::status::CoreStatus;

/// What all instances are called.
pub const NAME: &str = "alarm-digest";

const DESCRIPTION: &str = "Tells users what is news to them about their alarms, in one digest";

/// What somebody wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Are you there?
    Ping,
    /// What do you serve?
    Info,
    /// What have you counted?
    Stats,
}

impl Question {
    const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    fn verb(self) -> &'static str {
        ["PING", "INFO", "STATS"][self as usize]
    }
}

/// Of a connection that listens for questions, the subscriptions.
#[derive(Debug)]
pub(crate) struct Listener {
    id: String,
    replies: Replies,
    was_refused: bool,
}

/// Beyond those of `shard` and `durable`.
pub(crate) const SIDS: RangeInclusive<u64> = 21..=29;

impl Listener {
    /// For the instance `id`, one token of a subject.
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.into(), replies: Replies::new([]), was_refused: false }
    }

    pub(crate) fn subscribe(&self, link: &mut Session, now: Duration) {
        for (filter, sid) in self.filters().iter().zip(SIDS) {
            let filter = SubjectFilter::new(filter).expect("words, and a token");
            link.subscribe(filter, None, Sid::from(sid), now);
        }
    }

    /// All three of one question, then those of the next.
    fn filters(&self) -> [String; 9] {
        std::array::from_fn(|at| {
            let verb = Question::ALL[at / 3].verb();
            match at % 3 {
                0 => format!("$SRV.{verb}"),
                1 => format!("$SRV.{verb}.{NAME}"),
                _ => format!("$SRV.{verb}.{NAME}.{}", self.id),
            }
        })
    }

    /// What `message` asks, and where to answer; none if it is no question that can be answered.
    pub(crate) fn question(&self, message: &Message<'_>) -> Option<(Question, ReplyTo)> {
        let at = message.sid_number()?.checked_sub(*SIDS.start())? / 3;
        let question = *Question::ALL.get(usize::try_from(at).ok()?)?;
        Some((question, self.replies.of(message, message.reply).ok()??))
    }

    /// If the server refuses one of our subscriptions in these words: whether that is to be said. There are nine of them on
    /// each connection, and one line is enough.
    pub(crate) fn on_refused(&mut self, text: &str) -> Option<bool> {
        let subject = text.strip_prefix("Permissions Violation for Subscription to \"")?;
        subject.starts_with("$SRV.").then(|| !std::mem::replace(&mut self.was_refused, true))
    }
}

/// One process of the service, as others see it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// One token of a subject that nobody else has.
    pub id: String,
    /// Semantic.
    pub version: &'static str,
    /// Of the sources, where it is known.
    pub commit: Option<&'static str>,
    /// `memory` or `jetstream`.
    pub mode: &'static str,
    /// When it was started.
    pub started: Timestamp,
    /// Where changes and requests come from.
    pub subjects: [String; 2],
    /// What the cores of this instance share each of them in, with others or among themselves.
    pub queue_group: String,
}

/// Names of the two endpoints, whatever their subjects are.
const ENDPOINTS: [&str; 2] = ["AlarmStatusChanged", "SendAlarmDigest"];

impl Instance {
    /// The answer to `question`, given what each core last said, as JSON. Where that would exceed `bytes_max`, it is without what
    /// each core has counted.
    #[must_use]
    pub fn answer(&self, question: Question, cores: &[CoreStatus], bytes_max: usize) -> Vec<u8> {
        let mut answer = self.identity(cores.len(), question);
        match question {
            Question::Ping => {}
            Question::Info => {
                answer.insert("description".into(), DESCRIPTION.into());
                answer.insert("endpoints".into(), (0..2).map(|at| self.endpoint(at)).collect());
            }
            Question::Stats => {
                answer.insert("started".into(), timestamp_text(self.started).into());
                answer.insert("endpoints".into(), self.stats(cores));
            }
        }
        let mut answer = Value::Object(answer);
        let text = answer.to_string();
        if text.len() <= bytes_max || question != Question::Stats {
            return text.into();
        }
        answer["endpoints"][0].as_object_mut().expect("an endpoint is an object").remove("data");
        answer.to_string().into()
    }

    fn identity(&self, cores: usize, question: Question) -> Map<String, Value> {
        let mut metadata = json!({ "mode": self.mode, "cores": cores.to_string() });
        if let Some(commit) = self.commit {
            metadata["commit"] = commit.into();
        }
        let verb = question.verb().to_lowercase();
        let identity = json!({
            "type": format!("io.nats.micro.v1.{verb}_response"),
            "name": NAME, "id": self.id, "version": self.version, "metadata": metadata,
        });
        let Value::Object(identity) = identity else { unreachable!("it was written as an object") };
        identity
    }

    fn endpoint(&self, at: usize) -> Value {
        json!({
            "name": ENDPOINTS[at], "subject": self.subjects[at], "queue_group": self.queue_group, "metadata": {},
        })
    }

    /// What an endpoint's handler spends is told of requests alone, and of those that a digest was sent for: the time until
    /// the server had it.
    fn stats(&self, cores: &[CoreStatus]) -> Value {
        let mut all = Counters::default();
        cores.iter().for_each(|core| all.add(&core.counters));
        let (bad_requests, bad) = (all.rejected_requests, all.rejected.iter().sum::<u64>());
        let counts = [(all.changes, bad - bad_requests), (all.requests, bad_requests)];
        let nanos = all.settle_latency.sum().saturating_mul(1_000);
        let average = nanos.checked_div(all.settle_latency.count()).unwrap_or_default();
        (0..2)
            .map(|at| {
                let (good, bad) = counts[at];
                let (total, average) = if at == 1 { (nanos, average) } else { (0, 0) };
                let mut stats = self.endpoint(at);
                stats["num_requests"] = (good + bad).into();
                stats["num_errors"] = bad.into();
                stats["last_error"] = self.last_error(at, cores).into();
                stats["processing_time"] = total.into();
                stats["average_processing_time"] = average.into();
                if at == 0 {
                    stats["data"] = data(cores, &all);
                }
                stats
            })
            .collect()
    }

    fn last_error(&self, at: usize, cores: &[CoreStatus]) -> String {
        let said = cores.iter().filter_map(|core| core.last_rejection.as_ref());
        let last = said.filter(|said| said.subject == self.subjects[at]).max_by_key(|said| said.at);
        last.map_or_else(String::new, |last| last.text.clone())
    }
}

/// What each core has counted, and what waits in the work queue where there is one.
fn data(cores: &[CoreStatus], all: &Counters) -> Value {
    let backlog = all.backlog.map(|queue| {
        json!({ "pending": queue.pending, "ack_pending": queue.ack_pending, "redelivered": queue.redelivered })
    });
    json!({ "cores": cores.iter().map(core).collect::<Vec<_>>(), "backlog": backlog })
}

fn core(core: &CoreStatus) -> Value {
    let CoreStatus { counters, .. } = core;
    json!({
        "ready": core.ready_at.is_some(),
        "draining": core.is_draining,
        "users": core.users,
        "alarms": core.alarms,
        "unsettled": core.unsettled,
        "changes": counters.changes,
        "requests": counters.requests,
        "rejected": counters.rejected.iter().sum::<u64>(),
        "digests": counters.digests,
        "alarms_told": counters.alarms_told,
        "answers": counters.answers,
        "unanswered": counters.unanswered,
        "settled": counters.settled,
        "settle_latency_count": counters.settle_latency.count(),
        "settle_latency_micros": counters.settle_latency.sum(),
        "mailed": counters.mailed,
        "relayed": counters.relayed,
        "redelivered": counters.redelivered,
        "conflicts": counters.conflicts,
        "resent": counters.resent,
        "refused": counters.refused,
        "connected": counters.connected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Rejected;

    fn instance() -> Instance {
        Instance {
            id: "4f2a".into(),
            version: "0.1.0",
            commit: Some("0123456789ab"),
            mode: "memory",
            started: Timestamp::new(0, 0),
            subjects: ["alarms", "alarms.digest"].map(String::from),
            queue_group: "group".into(),
        }
    }

    /// Two cores, of which the first has read two changes, one of them bad, and a request.
    fn cores() -> Vec<CoreStatus> {
        let mut counters = Counters { changes: 1, requests: 1, connected: 1, ..Counters::default() };
        counters.rejected[0] = 1;
        counters.settle_latency.observe(150);
        let last_rejection = Some(Rejected {
            at: Duration::from_secs(1),
            subject: "alarms".into(),
            text: "expected a JSON object, got an empty payload".into(),
        });
        let one = CoreStatus { counters, users: 7, last_rejection, ..CoreStatus::default() };
        vec![one, CoreStatus::default()]
    }

    fn answer(question: Question, bytes_max: usize) -> Value {
        serde_json::from_slice(&instance().answer(question, &cores(), bytes_max)).expect("it is JSON")
    }

    #[test]
    fn each_question_has_the_answer_of_its_schema() {
        let identity = |kind: &str| {
            json!({
                "type": format!("io.nats.micro.v1.{kind}_response"), "name": "alarm-digest", "id": "4f2a",
                "version": "0.1.0", "metadata": { "mode": "memory", "cores": "2", "commit": "0123456789ab" },
            })
        };
        assert_eq!(answer(Question::Ping, usize::MAX), identity("ping"));

        let mut info = identity("info");
        info["description"] = DESCRIPTION.into();
        let endpoint = |name: &str, subject: &str| json!({ "name": name, "subject": subject, "queue_group": "group", "metadata": {} });
        let mut endpoints =
            [endpoint("AlarmStatusChanged", "alarms"), endpoint("SendAlarmDigest", "alarms.digest")];
        info["endpoints"] = json!(endpoints);
        assert_eq!(answer(Question::Info, usize::MAX), info);

        let mut came = answer(Question::Stats, usize::MAX);
        let data =
            came["endpoints"][0].as_object_mut().expect("an object").remove("data").expect("it is there");
        let mut stats = identity("stats");
        stats["started"] = "1970-01-01T00:00:00Z".into();
        let counted = [(2, 1, "expected a JSON object, got an empty payload", 0), (1, 0, "", 150_000)];
        for (endpoint, (requests, errors, last, nanos)) in endpoints.iter_mut().zip(counted) {
            endpoint["num_requests"] = requests.into();
            endpoint["num_errors"] = errors.into();
            endpoint["last_error"] = last.into();
            endpoint["processing_time"] = nanos.into();
            endpoint["average_processing_time"] = nanos.into();
        }
        stats["endpoints"] = json!(endpoints);
        assert_eq!(came, stats);
        assert_eq!((&data["cores"][0]["users"], &data["cores"][0]["changes"]), (&json!(7), &json!(1)));
        assert_eq!((data["cores"].as_array().map(Vec::len), &data["backlog"]), (Some(2), &Value::Null));
    }

    #[test]
    fn an_answer_that_would_be_too_large_has_no_cores_in_it() {
        let whole = answer(Question::Stats, usize::MAX).to_string().len();
        assert!(!answer(Question::Stats, whole)["endpoints"][0]["data"].is_null());
        assert!(answer(Question::Stats, whole - 1)["endpoints"][0]["data"].is_null());
    }

    #[test]
    fn a_question_is_known_by_its_subscription_and_answered_only_where_it_may_be() {
        let listener = Listener::new("4f2a");
        assert_eq!(
            listener.filters()[3..6],
            ["$SRV.INFO", "$SRV.INFO.alarm-digest", "$SRV.INFO.alarm-digest.4f2a"]
        );
        let question = |sid: &str, reply: Option<&str>| {
            let reply = reply.map(str::as_bytes);
            let message = Message { subject: b"", sid: sid.as_bytes(), reply, headers: None, payload: b"" };
            listener.question(&message).map(|(question, _)| question)
        };
        let reply = Some("_INBOX.a");
        let expected = [
            ("20", None),
            ("21", Some(Question::Ping)),
            ("23", Some(Question::Ping)),
            ("24", Some(Question::Info)),
            ("29", Some(Question::Stats)),
            ("30", None),
        ];
        for (sid, expected) in expected {
            assert_eq!(question(sid, reply), expected, "{sid}");
        }
        assert_eq!((question("21", None), question("21", Some("$JS.ACK"))), (None, None));
    }

    #[test]
    fn that_the_server_forbids_it_is_said_once() {
        let mut listener = Listener::new("4f2a");
        let refused = "Permissions Violation for Subscription to \"$SRV.PING\"";
        assert_eq!(listener.on_refused(refused), Some(true));
        assert_eq!(listener.on_refused(refused), Some(false));
        assert_eq!(listener.on_refused("Permissions Violation for Subscription to \"alarms\""), None);
    }
}
