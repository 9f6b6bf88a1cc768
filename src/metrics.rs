//! What the cores say of themselves, as a page of metrics that Prometheus reads.
//!
//! Counters count from the start of the process. All but what the process or the queue as a whole is goes by core, so that a
//! core that lags behind the others shows. What a mode does not have is not there. The whole page, in both forms, stands in
//! `metrics/`.
//!
//! Never: counting, which is done where things happen; asking a core.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::config::Mode;
use crate::histogram::Histogram;
use crate::http_request::Format;
use crate::logic::Counters;
use crate::message::Reason;
use crate::status::CoreStatus;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct About {
    /// Of the program.
    pub version: &'static str,
    /// That it was built from.
    pub commit: &'static str,
    /// Where the state lives.
    pub mode: Mode,
    /// Where the changes come from.
    pub subject_changed: String,
    /// Where the requests come from.
    pub subject_send: String,
}

/// The page. `now` is on the clock of `cores`.
#[must_use]
pub fn page(about: &About, cores: &[CoreStatus], is_ready: bool, now: Duration, format: Format) -> String {
    let mut page = Page { text: String::new(), format, cores };
    page.whole(about, is_ready, now);
    page.messages(about);
    page.digests();
    page.link();
    match about.mode {
        Mode::Memory => page.memory_mode(),
        Mode::Jetstream => page.durable_mode(),
    }
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

/// Before each name.
const PREFIX: &str = "alarm_digest_";

struct Page<'a> {
    text: String,
    format: Format,
    cores: &'a [CoreStatus],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// One `name="value"`.
type Label<'a> = (&'a str, &'a str);

impl Page<'_> {
    fn whole(&mut self, about: &About, is_ready: bool, now: Duration) {
        let mode = match about.mode {
            Mode::Memory => "memory",
            Mode::Jetstream => "jetstream",
        };
        self.family("build", Kind::Info, "What runs here.");
        self.sample("build_info", &[("version", about.version), ("commit", about.commit), ("mode", mode)], 1);
        self.family("ready", Kind::Gauge, "Whether all cores are connected and subscribed, and none drains.");
        self.sample("ready", &[], u8::from(is_ready));
        self.gauge("connected", "Whether the core is connected and subscribed.", |core| {
            u8::from(core.ready_at.is_some())
        });
        self.gauge("silent_seconds", "Time since the core last said something of itself.", |core| {
            now.saturating_sub(core.said_at.unwrap_or_default()).as_secs_f64()
        });
    }

    fn messages(&mut self, about: &About) {
        self.family("messages", Kind::Counter, "Messages from the server.");
        for (core, status) in self.cores.iter().enumerate() {
            let Counters { changes, requests, rejected, rejected_requests, .. } = &status.counters;
            let unknown = rejected[Reason::UnknownSubject as usize];
            let rejected_changes = rejected.iter().sum::<u64>() - rejected_requests - unknown;
            for (subject, result, count) in [
                (about.subject_changed.as_str(), "accepted", *changes),
                (&about.subject_changed, "rejected", rejected_changes),
                (&about.subject_send, "accepted", *requests),
                (&about.subject_send, "rejected", *rejected_requests),
            ] {
                let labels = [("core", &*core.to_string()), ("subject", subject), ("result", result)];
                self.sample("messages_total", &labels, count);
            }
        }
        self.family("rejected_messages", Kind::Counter, "Bad messages.");
        for (core, status) in self.cores.iter().enumerate() {
            for reason in Reason::ALL {
                let labels = [("core", &*core.to_string()), ("reason", reason.name())];
                self.sample("rejected_messages_total", &labels, status.counters.rejected[reason as usize]);
            }
        }
    }

    fn digests(&mut self) {
        self.counter("digests", "Digests taken, or in JetStream mode stored.", |counters| counters.digests);
        self.histogram("digest_alarms", "Alarms in a digest.", 1, |core| &core.counters.alarms_per_digest);
        self.gauge("unsettled", "Publications not proved, or messages not acknowledged.", |core| {
            core.unsettled
        });
        self.counter("settled", "Publications proved, or messages acknowledged.", |counters| {
            counters.settled
        });
        self.histogram("settle_seconds", "From a request to the proof of its digest.", 1_000_000, |core| {
            &core.counters.settle_latency
        });
        self.counter("answers", "Answers at the reply subject of a request.", |counters| counters.answers);
        self.counter("unanswered", "Requests that wanted an answer and got none.", |counters| {
            counters.unanswered
        });
        self.gauge("users", "Users in memory.", |core| core.users);
    }

    fn link(&mut self) {
        self.counter("reconnects", "Connections after one that broke.", Counters::reconnects);
        self.counter("moves", "Connections left before a server closed them.", |counters| counters.moves);
        self.counter("refused", "Refusals of the server.", |counters| counters.refused);
        self.histogram("read_size_bytes", "Bytes of one read from the server.", 1, |core| &core.reads);
        self.family("received_bytes", Kind::Counter, "Bytes from the server.");
        self.each("received_bytes_total", |core| core.reads.sum());
        self.family("sent_bytes", Kind::Counter, "Bytes to the server.");
        self.each("sent_bytes_total", |core| core.written_bytes);
    }

    fn memory_mode(&mut self) {
        self.gauge("alarms", "Alarms in memory, cleared ones included.", |core| core.alarms);
        self.counter("mail_sent", "Commands sent to other cores.", |counters| counters.mailed);
        self.gauge("mail_waiting", "Mail in the core's inbox.", |core| core.inbox);
        self.counter("resent", "Publications written again after a lost link.", |counters| counters.resent);
        self.counter("unproved", "Dead letters sent without proof.", |counters| counters.unproved);
    }

    fn durable_mode(&mut self) {
        self.counter("redelivered", "Messages that came another time.", |counters| counters.redelivered);
        self.counter("loads", "Records of users read.", |counters| counters.loads);
        self.counter("stores", "Records of users written, or refused.", |counters| counters.stores);
        self.counter("conflicts", "Writes that somebody else was first with.", |counters| counters.conflicts);
        self.counter("relayed", "Messages passed on to another core.", |counters| counters.relayed);
        self.counter("returned", "Of those, the ones nobody took.", |counters| counters.returned);
        self.counter("unknown", "Requests to JetStream of unknown outcome.", |counters| counters.unknown);
        let Some(queue) = self.cores.iter().find_map(|core| core.counters.backlog) else { return };
        for (name, help, messages) in [
            ("queue_pending", "Messages delivered to no instance yet.", queue.pending),
            ("queue_ack_pending", "Messages under way in all instances.", queue.ack_pending),
            ("queue_redelivered", "Of those, the ones that came another time.", queue.redelivered),
        ] {
            self.family(name, Kind::Gauge, help);
            self.sample(name, &[], messages);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&Counters) -> u64) {
        self.family(name, Kind::Counter, help);
        self.each(&format!("{name}_total"), |core| value(&core.counters));
    }

    fn gauge<V: Display>(&mut self, name: &str, help: &str, value: impl Fn(&CoreStatus) -> V) {
        self.family(name, Kind::Gauge, help);
        self.each(name, value);
    }

    fn each<V: Display>(&mut self, name: &str, value: impl Fn(&CoreStatus) -> V) {
        for (core, status) in self.cores.iter().enumerate() {
            self.sample(name, &[("core", &core.to_string())], value(status));
        }
    }

    /// Of what was observed in parts of a unit, `parts` of them to one.
    fn histogram<const FIRST: u64, const BUCKETS: usize>(
        &mut self,
        name: &str,
        help: &str,
        parts: u32,
        value: impl Fn(&CoreStatus) -> &Histogram<FIRST, BUCKETS>,
    ) {
        self.family(name, Kind::Histogram, help);
        let (bucket, parts) = (format!("{name}_bucket"), f64::from(parts));
        for (core, status) in self.cores.iter().enumerate() {
            let (core, histogram) = (core.to_string(), value(status));
            for (bound, count) in histogram.up_to() {
                // As a float, also when it is whole: the specification wants the same text from everybody.
                let bound = format!("{:?}", bound as f64 / parts);
                self.sample(&bucket, &[("core", &core), ("le", &bound)], count);
            }
            self.sample(&bucket, &[("core", &core), ("le", "+Inf")], histogram.count());
            self.sample(&format!("{name}_sum"), &[("core", &core)], histogram.sum() as f64 / parts);
            self.sample(&format!("{name}_count"), &[("core", &core)], histogram.count());
        }
    }

    /// OpenMetrics names a family without what its samples' names have at the end, and knows of units and of infos.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let (suffix, kind) = match (self.format, kind) {
            (Format::Text, Kind::Counter) => ("_total", "counter"),
            (Format::Text, Kind::Info) => ("_info", "gauge"),
            (_, Kind::Counter) => ("", "counter"),
            (_, Kind::Info) => ("", "info"),
            (_, Kind::Gauge) => ("", "gauge"),
            (_, Kind::Histogram) => ("", "histogram"),
        };
        self.line(format_args!("# HELP {PREFIX}{name}{suffix} {help}"));
        self.line(format_args!("# TYPE {PREFIX}{name}{suffix} {kind}"));
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            self.line(format_args!("# UNIT {PREFIX}{name} {unit}"));
        }
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        let pairs: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        match pairs.as_slice() {
            [] => self.line(format_args!("{PREFIX}{name} {value}")),
            _ => self.line(format_args!("{PREFIX}{name}{{{}}} {value}", pairs.join(","))),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes everything");
    }
}

/// A subject may have anything in it but white space.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::backlog::Backlog;

    /// Two cores on which all sorts of things have happened, at a time of 100 seconds.
    fn cores() -> [CoreStatus; 2] {
        let mut core = CoreStatus {
            said_at: Some(Duration::from_millis(99_500)),
            ready_at: Some(Duration::from_secs(1)),
            users: 20,
            alarms: 200,
            unsettled: 3,
            inbox: 4,
            written_bytes: 5_000,
            counters: Counters {
                changes: 1_000,
                requests: 10,
                rejected_requests: 2,
                mailed: 500,
                digests: 3,
                settled: 12,
                answers: 15,
                unanswered: 16,
                resent: 1,
                unproved: 2,
                refused: 3,
                connected: 4,
                redelivered: 5,
                loads: 6,
                stores: 7,
                conflicts: 8,
                relayed: 9,
                returned: 10,
                unknown: 11,
                backlog: Some(Backlog { pending: 12, ack_pending: 13, redelivered: 14 }),
                ..Counters::default()
            },
            ..CoreStatus::default()
        };
        for reason in [Reason::NotJson, Reason::NotJson, Reason::BadId, Reason::UnknownSubject] {
            core.counters.rejected[reason as usize] += 1;
        }
        [1, 2, 6_000].into_iter().for_each(|alarms| core.counters.alarms_per_digest.observe(alarms));
        [80, 900, 90_000_000].into_iter().for_each(|micros| core.counters.settle_latency.observe(micros));
        [90, 100, 65_536].into_iter().for_each(|bytes| core.reads.observe(bytes));
        [core, CoreStatus::default()]
    }

    fn page_of(mode: Mode, format: Format) -> String {
        let about = About {
            version: "1.2.3",
            commit: "0123456789ab",
            mode,
            subject_changed: "AlarmStatusChanged".into(),
            subject_send: r#"Send"\Digest"#.into(),
        };
        page(&about, &cores(), false, Duration::from_secs(100), format)
    }

    #[test]
    fn the_page_is_to_the_letter_as_written_down() {
        assert_eq!(page_of(Mode::Memory, Format::OpenMetrics), include_str!("metrics/memory.openmetrics"));
        assert_eq!(page_of(Mode::Jetstream, Format::Text), include_str!("metrics/jetstream.text"));
    }

    /// The two forms differ in what they say about families, and in nothing else.
    #[test]
    fn both_forms_have_the_same_samples() {
        for mode in [Mode::Memory, Mode::Jetstream] {
            let samples = |format| {
                let page = page_of(mode, format);
                page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(samples(Format::OpenMetrics), samples(Format::Text));
        }
    }
}
