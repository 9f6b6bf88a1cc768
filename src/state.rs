//! What is known and told of one user in durable mode, read from the bucket and the output stream and printed.
//!
//! The two are read one after the other, so a digest that is sent meanwhile can show in one of them only.
//!
//! Never: writing anything.

use std::fmt::Write;

use alarm_digest::alarm::{AlarmId, Condition, Id, UserId};
use alarm_digest::config::Cli;
use alarm_digest::durable::record::{Known, Nonce, Record, token};
use alarm_digest::durable::worker::{DIGEST_ID, Names};
use alarm_digest::message::{status_text, timestamp_text};
use anyhow::{Context, Error, Result, anyhow, bail};
use nats_wire::Subject;
use nats_wire::jetstream::{Bucket, Failure, Key};
use serde_json::{Value, json};
use std::time::Duration;

use crate::ask::{self, Asker, explain, name_of};

/// One user's state.
pub struct State {
    names: Names,
    user: UserId,
    record: Record,
    revision: u64,
    /// Sequence and nonce of the user's last digest in the output stream.
    last_digest: Option<(u64, Option<Nonce>)>,
}

/// Reads the state of `user` from the first server that answers.
pub fn read(cli: &Cli, user: &UserId) -> Result<State> {
    let names = cli.worker_config().map_err(Error::msg)?.names;
    let patience = cli.nats.connect_timeout;
    let (server, client) = ask::client(&cli.nats, "alarm-digest state", patience)?;
    let asker = Asker::new(client, &names, patience);
    read_from(asker, names, user).with_context(|| format!("on {server}"))
}

fn read_from(mut asker: Asker, names: Names, user: &UserId) -> Result<State> {
    const BELIEF: &str = "checked with the configuration";
    let (token, bucket) = (token(user), Bucket::new(&names.bucket).expect(BELIEF));
    let key = Key::new(&token).expect("a token is made to be one");
    let stored = asker.ask_stored(|jetstream, session| {
        jetstream.kv_get(session, &bucket, key, (), Duration::ZERO);
    });
    let stored = stored.map_err(|failure| missing(failure, &format!("bucket {}", names.bucket)))?;
    let Some(stored) = stored.filter(|stored| stored.marker().is_none()) else {
        bail!(
            "expected a record of user {user} in bucket {}, got none: nothing is known of this user, or all that was known is forgotten",
            names.bucket,
            user = quoted(user)
        );
    };
    let revision = stored.sequence;
    let record = Record::decode(user, &stored.payload).with_context(|| {
        format!("key {token} of bucket {} at revision {revision} holds no record", names.bucket)
    })?;
    let subject = [&names.output_prefix, token.as_str()].concat();
    let last = asker.ask_stored(|jetstream, session| {
        let subject = Subject::new(&subject).expect("a prefix and a token are a subject");
        jetstream.last_of(session, name_of(&names.output), subject, (), Duration::ZERO);
    });
    let last = last.map_err(|failure| missing(failure, &format!("stream {}", names.output)))?;
    let last_digest = last.map(|digest| {
        let id = digest.header(DIGEST_ID).and_then(|id| std::str::from_utf8(id).ok());
        (digest.sequence, id.and_then(|id| u128::from_str_radix(id, 16).ok()).map(Nonce))
    });
    Ok(State { names, user: user.clone(), record, revision, last_digest })
}

fn missing(failure: Failure, what: &str) -> Error {
    match failure {
        Failure::Api(error) if error.is_stream_not_found() => {
            anyhow!(
                "expected {what}, but there is none: has the service run here in durable mode with this --js-name?"
            )
        }
        failure => explain(failure).context(what.to_owned()),
    }
}

impl State {
    /// For machines: one object with the field names of the contract.
    pub fn json(&self) -> String {
        let alarms: Vec<Value> = self.alarms().iter().map(|known| alarm_json(known)).collect();
        let outbox = self.record.outbox().map(|(nonce, digest)| {
            let alarms: Vec<Value> = digest
                .alarms
                .iter()
                .map(|(alarm, condition)| {
                    json!({ "AlarmID": text(&alarm.0), "Status": status_text(condition.status()),
                            "LatestChangedAt": timestamp_text(condition.changed_at()) })
                })
                .collect();
            json!({ "ID": hexadecimal(nonce), "Sent": self.is_sent(nonce), "ActiveAlarms": alarms })
        });
        let state = json!({
            "UserID": text(&self.user.0),
            "Revision": self.revision,
            "LastDigest": self.last_digest.map(|(sequence, _)| sequence),
            "Outbox": outbox,
            "Alarms": alarms,
        });
        format!("{state:#}")
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| writeln!(out, "{name:8} {value}").expect(INFALLIBLE);
        line("user", quoted(&self.user));
        line("record", format!("revision {} in bucket {}", self.revision, self.names.bucket));
        line("outbox", self.outbox_text());
        let output = &self.names.output;
        line(
            "digests",
            match self.last_digest {
                Some((sequence, _)) => format!("the last one is sequence {sequence} of {output}"),
                None => format!("none in {output}"),
            },
        );
        let rows: Vec<[String; 6]> = self.alarms().iter().map(row).collect();
        let heads =
            ["ALARM", "STATUS", "LATEST CHANGED AT", "TOLD", "TOLD CHANGED AT", "NEXT"].map(String::from);
        let width = |at: usize| {
            [&heads].into_iter().chain(&rows).map(|row| row[at].chars().count()).max().unwrap_or_default()
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        for row in [&heads].into_iter().chain(&rows) {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            out.push('\n');
            out.push_str(cells.join("  ").trim_end());
        }
        out.push('\n');
        out
    }

    fn outbox_text(&self) -> String {
        let output = &self.names.output;
        match self.record.outbox() {
            None => "empty".into(),
            Some((nonce, _)) if self.is_sent(nonce) => {
                format!("sent: it is the last one in {output}, and is about to leave the record")
            }
            Some((nonce, digest)) => format!(
                "a digest of {} is decided and not in {output} yet, id {}",
                match digest.alarms.len() {
                    1 => "1 alarm".into(),
                    alarms => format!("{alarms} alarms"),
                },
                hexadecimal(nonce)
            ),
        }
    }

    /// Oldest first, as a digest has them.
    fn alarms(&self) -> Vec<Known<'_>> {
        let mut alarms: Vec<_> = self.record.alarms().collect();
        alarms.sort_by_key(|known| known.latest.changed_at());
        alarms
    }

    fn is_sent(&self, nonce: Nonce) -> bool {
        matches!(self.last_digest, Some((_, Some(last))) if last == nonce)
    }
}

const INFALLIBLE: &str = "a string takes all that is written";

fn alarm_json(known: &Known<'_>) -> Value {
    let told = known.told.map(|told| {
        json!({ "Status": status_text(told.status()), "ChangedAt": timestamp_text(told.changed_at()) })
    });
    json!({
        "AlarmID": text(&known.alarm.0),
        "Status": status_text(known.latest.status()),
        "LatestChangedAt": timestamp_text(known.latest.changed_at()),
        "Told": told,
        "Due": known.is_due,
        "Tombstone": !known.latest.status().is_active(),
    })
}

fn row(known: &Known<'_>) -> [String; 6] {
    let cells = |condition: Condition| {
        (status_text(condition.status()).into(), timestamp_text(condition.changed_at()))
    };
    let (status, at) = cells(known.latest);
    let (told, told_at) = known.told.map_or(("never".into(), String::new()), cells);
    let next = match (known.latest.status().is_active(), known.is_due) {
        _ if known.is_in_outbox => "in the outbox",
        (true, true) => "due",
        (true, false) => "",
        (false, true) => "tombstone, due when active",
        (false, false) => "tombstone",
    };
    [printable(known.alarm), status, at, told, told_at, next.into()]
}

fn text(id: &Id) -> String {
    id.with_text(str::to_owned)
}

/// Without what would move the terminal's cursor.
fn printable(alarm: &AlarmId) -> String {
    alarm.0.with_text(|text| {
        text.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect()
    })
}

fn quoted(user: &UserId) -> String {
    format!("{:?}", user.0)
}

fn hexadecimal(nonce: Nonce) -> String {
    format!("{:032x}", nonce.0)
}
