//! Can the simulation fail? Small mutations of the real code, each of which it has to catch within [`SEEDS`] seeds.
//!
//! ```sh
//! cargo test --test mutations -- --ignored --nocapture
//! ```
//!
//! Each is made in a copy of the sources, which is built and run in a build directory of its own: a quarter of an hour for all of
//! them. What no seed catches is either no fault or a gap in the simulation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each mutation is caught within so many seeds.
const SEEDS: u32 = 3000;

/// A test of the simulation, and the name under which it is told how many seeds to run.
type World = (&'static str, &'static str);

const MEMORY: World = ("nothing_is_lost", "SIMULATION_SEEDS");
const WORKERS: World = ("instances_together", "WORKERS_SEEDS");

/// What it breaks, in which file, which text is there once, and what stands there instead.
type Mutation = (&'static str, &'static str, &'static str, &'static str);

const SHARD: &str = "src/shard.rs";
const CAUSAL: &str = "src/shard/causal.rs";
const BOOK: &str = "src/book.rs";

const OF_MEMORY: &[Mutation] = &[
    (
        "what was not proved is not sent again on the next link",
        SHARD,
        "(self.written, self.fenced, self.fence) = (0, 0, None);",
        "(self.fenced, self.fence) = (0, None);",
    ),
    (
        "what was published last is sent again first",
        SHARD,
        "self.unsettled.push_back(publication);",
        "self.unsettled.push_front(publication);",
    ),
    ("any PONG is a proof", SHARD, "if self.fence == Some(mark) {", "if self.fence.is_some() {"),
    (
        "a digest that the server refused counts as delivered",
        SHARD,
        "if text.strip_prefix(PUBLISH_REFUSED).is_none_or(|subject| subject.starts_with(&digest)) {",
        "if digest.is_empty() {",
    ),
    (
        "no fence is sent: whoever is asked has passed",
        SHARD,
        "if !has_read_all && links.iter().any(Option::is_some) {",
        "if id.0 > 64 {",
    ),
    (
        "a request does not wait for a round",
        SHARD,
        "            self.causal.ask(request);\n",
        "            self.take_up(request);\n",
    ),
    (
        "a round waits for one shard only",
        CAUSAL,
        "if self.awaited.contains(&true) { Vec::new() }",
        "if self.awaited[0] { Vec::new() }",
    ),
    (
        "a request joins the round that is under way",
        CAUSAL,
        "        self.asked.push(request);\n",
        "        if !self.round.is_empty() { return self.round.push(request); }\n        self.asked.push(request);\n",
    ),
    (
        "who read the last of several requests is not waited for",
        CAUSAL,
        "self.readers = Readers::Several;",
        "self.readers = Readers::One(request.reader);",
    ),
    (
        "an owner joins the fence that is under way",
        CAUSAL,
        "        self.wanted.push(owner);\n",
        "        match &mut self.under_way { Some((_, owners)) => owners.push(owner), None => self.wanted.push(owner) }\n",
    ),
    (
        "a fence that passes passes all that are wanted",
        CAUSAL,
        "Some((_, owners)) => owners,\n",
        "Some((_, owners)) => owners.into_iter().chain(self.wanted.drain(..)).collect(),\n",
    ),
    (
        "a drain ends before the others have read all",
        SHARD,
        "            && !self.lasts.contains(&false)\n",
        "",
    ),
    (
        "a drain ends before what is published is proved",
        SHARD,
        "            && self.unsettled.is_empty()\n",
        "",
    ),
    (
        "a drain ends before mail has been taken along",
        SHARD,
        "            && self.mail.iter().all(Vec::is_empty)\n",
        "",
    ),
    (
        "a drain does not read what is on its way",
        SHARD,
        "self.drain = Drain::Reading(unsubscribe(link, now)),",
        "{ unsubscribe(link, now); self.on_all_read() }",
    ),
    (
        "a link that breaks while draining is waited for for ever",
        SHARD,
        "if let Drain::Reading(_) = self.drain {",
        "if self.drain == Drain::Read && self.lasts.is_empty() {",
    ),
    (
        "with two connections a fence is sent on one of them",
        SHARD,
        "links.iter_mut().flatten().map",
        "links.iter_mut().flatten().take(1).map",
    ),
    (
        "who read a request on one of two connections is not waited for",
        SHARD,
        "if self.second.is_none() { self.id } else { ShardId::NONE }",
        "if self.second.is_none() || self.links > 0 { self.id } else { ShardId::NONE }",
    ),
    (
        "the only shard does not wait for its second connection",
        SHARD,
        "self.mail.len() == 1 && self.second.is_none()",
        "self.mail.len() == 1",
    ),
    (
        "a connection is left before what is on its way there has been read",
        SHARD,
        "self.leave = Leave::Reading(unsubscribe(link, now));",
        "unsubscribe(link, now);\n            self.leave = Leave::Read;",
    ),
    (
        "a connection is left before what was published there is proved",
        SHARD,
        "self.leave == Leave::Read && self.written == 0",
        "self.leave == Leave::Read",
    ),
    (
        "fences of two connections are taken for each other",
        "src/shard/link.rs",
        "Mark { link: self.number, fence }",
        "Mark { link: self.number.min(1), fence }",
    ),
    ("fences of a connection that broke are waited for", CAUSAL, "sent.link == number", "sent.link > number"),
    ("a request that has to wait is dropped", SHARD, "return self.postponed.push_back(request);", "return;"),
    (
        "a dead letter that cannot be proved is dropped",
        SHARD,
        "        write_dead_letter(&letter, &mut link.session, subjects, now);\n    }\n\n    fn publish",
        "        let _ = (link, subjects, now, letter);\n    }\n\n    fn publish",
    ),
    (
        "full mail holds nothing back",
        SHARD,
        "!(self.mail_is_full && link_is_ready)",
        "(self.mail_is_full || link_is_ready || true)",
    ),
    (
        "users are done by whoever reads",
        SHARD,
        "filter(|owner| *owner != self.id)",
        "filter(|owner| owner.0 > 64)",
    ),
    (
        "the limit of the server is not obeyed",
        SHARD,
        "usize::try_from(max).unwrap_or(usize::MAX).min(encode::PAYLOAD_BYTES_MAX)",
        "usize::try_from(max).unwrap_or(usize::MAX).max(encode::PAYLOAD_BYTES_MAX)",
    ),
    (
        "the last to arrive is the latest",
        BOOK,
        "self.latest = self.latest.max(condition);",
        "self.latest = condition;",
    ),
    (
        "a comparison turned round: what is news",
        BOOK,
        "            && condition > told\n",
        "            && condition < told\n",
    ),
    (
        "the same status later is news",
        BOOK,
        "            && condition.status() != told.status()\n",
        "            && condition.changed_at() != told.changed_at()\n",
    ),
    (
        "what was told is told again",
        BOOK,
        "self.told = Told::new(Some(self.latest), false);",
        "self.told = Told::new(Some(self.latest), true);",
    ),
    (
        "what was cleared is told",
        BOOK,
        "self.is_due() && self.latest.status().is_active()",
        "self.is_due() && self.latest.changed_at().nanos() < 1_000_000_000",
    ),
    (
        "a repetition makes forget that there is news",
        BOOK,
        "user.has_news |= memory.apply(change.condition);",
        "user.has_news = memory.apply(change.condition);",
    ),
    (
        "the newest alarm comes first",
        BOOK,
        "(a.changed_at(), a_id).cmp(&(b.changed_at(), b_id))",
        "(b.changed_at(), b_id).cmp(&(a.changed_at(), a_id))",
    ),
    (
        "active alarms are forgotten with age",
        BOOK,
        "!self.latest.status().is_active() && self.latest.changed_at() < horizon",
        "self.latest.changed_at() < horizon",
    ),
    (
        "cleared alarms are forgotten too early",
        BOOK,
        "!self.latest.status().is_active() && self.latest.changed_at() < horizon",
        "!self.latest.status().is_active() && self.latest.changed_at().seconds() < horizon.seconds() + 3",
    ),
    (
        "a part of a digest that is too large begins with its second alarm",
        "src/message.rs",
        "            out.extend_from_within(head.clone());\n",
        "            out.extend_from_within(head.clone());\n            continue;\n",
    ),
    (
        "fences are counted from zero",
        "proto/src/session.rs",
        "Ok(Event::Passed(Fence(self.passed)))",
        "Ok(Event::Passed(Fence(self.passed + 1)))",
    ),
    (
        "what a server tells of itself later is not heeded",
        "proto/src/session.rs",
        "            self.info = Some(info);\n            return Ok(Some(Event::Info));",
        "            return Ok(Some(Event::Info));",
    ),
];

const USER: &str = "src/durable/user.rs";
const WORKER: &str = "src/durable/worker.rs";

const OF_WORKERS: &[Mutation] = &[
    (
        "a change is acknowledged before it is stored",
        USER,
        "            self.changes.next.push(ack);\n            self.dirty |= has_changed;",
        "            self.acknowledged.push(ack);\n            self.dirty |= has_changed;",
    ),
    (
        "a write that was refused counts as done",
        USER,
        "(Pending::Store, Done::Written(revision)) => self.on_stored(revision),",
        "(Pending::Store, Done::Written(revision)) => self.on_stored(revision),
            (Pending::Store, Done::Conflict) => self.on_stored(self.revision),",
    ),
    (
        "a digest of which nobody knows whether it was sent counts as sent",
        USER,
        "(Pending::Send(nonce), Done::Written(last)) => self.on_sent(nonce, last),",
        "(Pending::Send(nonce), Done::Written(last)) => self.on_sent(nonce, last),
            (Pending::Send(nonce), Done::Unknown) => self.on_sent(nonce, 0),",
    ),
    (
        "a request for which nothing is due is answered from memory",
        USER,
        "return Ok(Some(self.begin(Pending::Verify, Operation::Verify)));",
        "self.acknowledged.append(&mut self.requests.under_way);\n                    return Ok(None);",
    ),
    (
        "a request is acknowledged when its digest is decided",
        USER,
        "(self.dirty, self.is_part) = (true, decision == Decision::Part);\n                    self.requests.start();",
        "(self.dirty, self.is_part) = (true, decision == Decision::Part);\n                    self.requests.start();
                    self.acknowledged.append(&mut self.requests.under_way);",
    ),
    (
        "a record is written whatever is there",
        WORKER,
        "kv_put(link, bucket, key, &record, Some(revision), tag, now)",
        "kv_put(link, bucket, key, &record, (revision > 1 << 60).then_some(revision), tag, now)",
    ),
    ("a digest is published whatever was the last", WORKER, "expected_last: Some(last),", "expected_last: Some(last).filter(|last| *last > 1 << 60),"),
    ("all digests have one number", WORKER, "*nonce_next = nonce_next.wrapping_add(1);", "*nonce_next = 7;"),
    (
        "a bad message is given up before its dead letter is stored",
        WORKER,
        "if is_stored { Ack::Never { reason: None } }",
        "if is_stored || at < 1 << 20 { Ack::Never { reason: None } }",
    ),
    (
        "a message that nobody took when it was passed on is acknowledged",
        "src/durable/relay.rs",
        "ack.send(link, Ack::Again { after: None }, now);",
        "ack.send(link, Ack::Done, now);",
    ),
    (
        "a message that is passed on is acknowledged",
        "src/durable/relay.rs",
        "        if let Some(question) = asks {\n            self.say(link, Said::Ask(question), Some(member), now);\n        }\n        true",
        "        let _ = asks;\n        delivery.ack.send(link, Ack::Done, now);\n        true",
    ),
    (
        "a drain ends before all is answered",
        WORKER,
        "self.open == 0 && self.jetstream.waiting() == 0 && self.waiting.is_empty()",
        "self.waiting.len() < 1 << 20",
    ),
    (
        "a connection is left before all is answered",
        WORKER,
        "self.is_leaving && self.drain == Drain::Done",
        "self.is_leaving",
    ),
    (
        "what is no news to a record is no news",
        USER,
        "if has_changed || self.dirty || self.operation == Some(Pending::Store) {",
        "if has_changed {",
    ),
    (
        "an alarm that counts as told is left out of the outbox",
        "src/durable/record.rs",
        "            entry.is_in_outbox = true;\n",
        "            entry.is_in_outbox = entry.memory.latest().status() == Status::Critical;\n",
    ),
    (
        "a record forgets what is active",
        BOOK,
        "!self.latest.status().is_active() && self.latest.changed_at() < horizon",
        "self.latest.changed_at() < horizon",
    ),
    (
        "a change that has no room in a record is acknowledged",
        USER,
        "            Err(bytes) if was_refused => self.refused.push(Refused { ack, bytes }),\n",
        "            Err(_) if was_refused => self.acknowledged.push(ack),\n",
    ),
    (
        "a change is refused by a record that may be out of date",
        USER,
        "Err(bytes) if was_refused =>",
        "Err(bytes) if was_refused || bytes > 0 =>",
    ),
    (
        "a record forgets too early",
        WORKER,
        "Timestamp::new(self.wall.seconds().saturating_sub(retention), self.wall.nanos())",
        "Timestamp::new(self.wall.seconds().saturating_sub(retention) + 2, self.wall.nanos())",
    ),
];

#[test]
#[ignore = "builds the service once for each mutation"]
fn the_simulation_catches_what_is_wrong() {
    let copy = Copy::new();
    let only = std::env::var("MUTATION").unwrap_or_default();
    let mut missed = Vec::new();
    for (world, mutations) in [(MEMORY, OF_MEMORY), (WORKERS, OF_WORKERS)] {
        assert_eq!(copy.run(world), None, "the code as it is");
        for mutation in mutations.iter().filter(|(what, ..)| what.contains(&only)) {
            let what = mutation.0;
            match copy.run_mutated(mutation, world) {
                Some((seed, wrong)) => println!("| {what} | {} | {} |", seed + 1, wrong.replace('|', "/")),
                None => {
                    println!("| {what} | **never** | |");
                    missed.push(what);
                }
            }
        }
    }
    assert!(missed.is_empty(), "{SEEDS} seeds do not catch {missed:?}");
}

/// A copy of what the simulation is made of, in the build directory.
struct Copy(PathBuf);

impl Copy {
    fn new() -> Self {
        let copy = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations"));
        let from = Path::new(env!("CARGO_MANIFEST_DIR"));
        let _ = fs::remove_dir_all(&copy.0);
        for part in [
            "src",
            "proto",
            "tests/simulation",
            "tests/checker",
            "tests/nats-server",
            "Cargo.lock",
            "build.rs",
        ] {
            copy_all(&from.join(part), &copy.0.join(part));
        }
        // Without the program, which nobody here runs.
        fs::remove_file(copy.0.join("src/main.rs")).expect("the program");
        let manifest = fs::read_to_string(from.join("Cargo.toml")).expect("a manifest");
        let manifest = manifest.replace("\"benches\", ", "");
        fs::write(copy.0.join("Cargo.toml"), manifest).expect("it can be written");
        copy
    }

    fn run_mutated(&self, (what, file, text, replacement): &Mutation, world: World) -> Option<(u64, String)> {
        let path = self.0.join(file);
        let source = fs::read_to_string(&path).expect("a source");
        assert_eq!(source.matches(text).count(), 1, "{what}: expected once in {file}: {text}");
        fs::write(&path, source.replace(text, replacement)).expect("it can be written");
        let caught = self.run(world);
        fs::write(&path, source).expect("it can be written");
        caught
    }

    /// Builds and runs the simulation: the first seed that fails, and why.
    fn run(&self, (test, seeds): World) -> Option<(u64, String)> {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--offline", "--quiet", "--test", "simulation", test])
            .current_dir(&self.0)
            // Its own: to cargo a crate of the copy is the same as that of the original, and a broken one would pass for it.
            .env("CARGO_TARGET_DIR", self.0.with_extension("target"))
            .env(seeds, SEEDS.to_string())
            .env("SIMULATION_SHRINK", "0")
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("cargo runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return None;
        }
        let seed = text.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(':'));
        let Some((seed, place)) = seed else {
            panic!("it does not build:\n{text}\n{}", String::from_utf8_lossy(&output.stderr))
        };
        // The line after the place has what is wrong.
        let wrong = text.lines().skip_while(|line| !line.ends_with(place)).nth(1).unwrap_or_default();
        Some((seed.parse().expect("a number"), wrong.chars().take(100).collect()))
    }
}

fn copy_all(from: &Path, to: &Path) {
    if from.is_file() {
        fs::create_dir_all(to.parent().expect("it is in a directory")).expect("a directory");
        fs::copy(from, to).expect("it can be copied");
        return;
    }
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("it can be read");
        if entry.file_name() != "target" {
            copy_all(&entry.path(), &to.join(entry.file_name()));
        }
    }
}
