//! Decoding, reading headers and encoding into room that is there allocate nothing. One test alone in its process, so
//! that nobody else's allocations are counted.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

use nats_wire::{ClientDecoder, Header, HeaderBlock, Limits, ReceiveBuffer, ServerOp, Subject, encode};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn messages_cost_no_allocation() {
    let headers = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 2\r\nNats-Last-Stream: 5\r\n\r\n";
    let mut stream = Vec::new();
    for number in 0..1000 {
        stream.extend_from_slice(b"PING\r\n-ERR 'Permissions Violation for Publish to \"a\"'\r\n");
        stream.extend_from_slice(format!("MSG subject.{number} 17 reply.{number} 5\r\nhello\r\n").as_bytes());
        let (header, total) = (headers.len(), headers.len() + 2);
        stream.extend_from_slice(format!("HMSG subject.{number} 17 {header} {total}\r\n").as_bytes());
        stream.extend_from_slice(headers);
        stream.extend_from_slice(b"ok\r\n");
    }
    let mut buffer = ReceiveBuffer::new(Limits::client());
    let mut decoder = ClientDecoder::new(Limits::client());
    let mut out = Vec::with_capacity(1 << 20);
    // The first use makes the buffer.
    buffer.space();

    let region = Region::new(ALLOCATOR);
    let (mut messages, mut lines) = (0, 0);
    for mut piece in stream.chunks(1448) {
        while !piece.is_empty() {
            piece = &piece[buffer.extend(piece)..];
            while let Some(op) = buffer.next(&mut decoder).expect("the stream is right") {
                match op {
                    ServerOp::Ping => encode::pong(&mut out),
                    ServerOp::Err(text) => assert!(!text.closes()),
                    ServerOp::Message(message) => {
                        messages += 1;
                        lines += message.headers.iter().flat_map(|headers| headers.iter()).count();
                        let subject = Subject::new(message.subject).expect("the subject is right");
                        let header = [Header::new("Copy", message.payload).expect("the header is right")];
                        encode::publish_with_headers(
                            &mut out,
                            subject,
                            None,
                            HeaderBlock::new(&header),
                            b"ok",
                        );
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    let change = region.change();
    assert_eq!((messages, lines), (2000, 2000));
    assert_eq!((change.allocations, change.reallocations), (0, 0));

    // The counter counts.
    let region = Region::new(ALLOCATOR);
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert_eq!(region.change().allocations, 1);
}
