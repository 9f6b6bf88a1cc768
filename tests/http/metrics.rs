//! Whether the metrics are true.

use alarm_digest::http_request::Format;
use nats_server_fixture::{Server, eventually, find};

use crate::world::{Listener, SOON, at, change};
use crate::{connected, on_each_server_and_mode, page, samples};

/// What a page says must be what was published, to the last message.
#[test]
fn the_metrics_are_what_was_published() {
    on_each_server_and_mode(|server, mode| {
        let (_service, addr) = connected(&server, mode);
        let mut listener = Listener::new(&server);
        for alarm in 0..100 {
            listener.publish(&change("ann", &format!("alarm {alarm}"), "WARNING", &at(alarm)));
        }
        listener.publish("nonsense");
        listener.publish(
            r#"{"UserID":"ann","AlarmID":"fan","Status":"LOUD","ChangedAt":"2026-01-01T00:00:00Z"}"#,
        );
        listener.client.publish("SendAlarmDigest", b"{}");
        listener.flush();
        let accepted =
            |subject| format!("alarm_digest_messages_total{{subject=\"{subject}\",result=\"accepted\"}}");
        let rejected =
            |subject| format!("alarm_digest_messages_total{{subject=\"{subject}\",result=\"rejected\"}}");
        // In JetStream mode a request may overtake a change that is under way.
        eventually(SOON, "all changes", || samples(addr)[&accepted("AlarmStatusChanged")] == 100.0);
        if mode == "jetstream" {
            eventually(SOON, "all settled", || samples(addr)["alarm_digest_unsettled"] == 0.0);
        }
        listener.ask("ann");
        listener.ask("bob");
        listener.flush();
        assert!(listener.hear_of("ann", SOON), "no digest");
        eventually(SOON, "all settled", || {
            let samples = samples(addr);
            samples[&accepted("SendAlarmDigest")] == 2.0
                && samples["alarm_digest_digests_total"] == 1.0
                && samples["alarm_digest_unsettled"] == 0.0
        });
        let (samples, reason) =
            (samples(addr), |reason| format!("alarm_digest_rejected_messages_total{{reason=\"{reason}\"}}"));
        for (name, expected) in [
            (accepted("AlarmStatusChanged"), 100.0),
            (rejected("AlarmStatusChanged"), 2.0),
            (rejected("SendAlarmDigest"), 1.0),
            (reason("not-json"), 1.0),
            (reason("unknown-status"), 1.0),
            (reason("missing-field"), 1.0),
            (reason("bad-id"), 0.0),
            ("alarm_digest_digest_alarms_count".into(), 1.0),
            ("alarm_digest_digest_alarms_sum".into(), 100.0),
            ("alarm_digest_digest_alarms_bucket{le=\"50.0\"}".into(), 0.0),
            ("alarm_digest_digest_alarms_bucket{le=\"100.0\"}".into(), 1.0),
            ("alarm_digest_connected".into(), 2.0),
            ("alarm_digest_reconnects_total".into(), 0.0),
        ] {
            assert_eq!(samples[&name], expected, "{name} in {samples:#?}");
        }
        // Memory mode settles one digest and three dead letters, JetStream mode each message.
        let (settled, users) = if mode == "memory" { (4.0, 1.0) } else { (102.0, 2.0) };
        assert_eq!(samples["alarm_digest_settled_total"], settled);
        assert_eq!(samples["alarm_digest_users"], users);
        assert_eq!(samples.get("alarm_digest_alarms"), (mode == "memory").then_some(&100.0));
        // 103 messages of at least 20 bytes came.
        assert!(samples["alarm_digest_received_bytes_total"] > 103.0 * 20.0, "{samples:#?}");
        assert!(samples["alarm_digest_sent_bytes_total"] > 1000.0, "{samples:#?}");
    });
}

#[test]
fn the_queue_shows_in_jetstream_mode_alone() {
    on_each_server_and_mode(|server, mode| {
        let (_service, addr) = connected(&server, mode);
        if mode == "jetstream" {
            eventually(SOON, "a look at the queue", || {
                samples(addr).contains_key("alarm_digest_queue_pending")
            });
        }
        let samples = samples(addr);
        for name in ["queue_pending", "queue_ack_pending", "queue_redelivered"] {
            let sample = samples.get(&format!("alarm_digest_{name}"));
            assert_eq!(sample, (mode == "jetstream").then_some(&0.0), "{name}");
        }
    });
}

#[test]
fn both_forms_are_what_their_content_type_says() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let (_service, addr) = connected(&server, "memory");
    let openmetrics = page(addr, Format::OpenMetrics);
    assert!(openmetrics.ends_with("\n# EOF\n"), "{openmetrics}");
    assert!(openmetrics.contains("# TYPE alarm_digest_digests counter\n"), "{openmetrics}");
    let text = page(addr, Format::Text);
    assert!(!text.contains("# EOF"), "{text}");
    assert!(text.contains("# TYPE alarm_digest_digests_total counter\n"), "{text}");
}
