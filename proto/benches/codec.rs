//! This codec against the others that can be reached, each on the same stream, in turns within one run.
//!
//! `cargo bench -p nats-wire` prints, for each case and codec, the nanoseconds per message of the fastest round and of
//! the median one, and the median of the rounds' ratios to the first codec of the case. Since the codecs take turns
//! every few milliseconds, a busy machine slows all of them; the ratios say more than the times. A case whose median is
//! 15 % above its fastest round is marked as weak.
//!
//! Every pass adds up what it decoded, and the sum is compared with what the stream was made of.

use std::hint::black_box;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use nats_wire::{
    ClientDecoder, ClientOp, Headers, Limits, ReceiveBuffer, ServerDecoder, ServerOp, Step, Subject, encode,
};
use tokio_util::codec::{Decoder, Encoder};
use watermelon_proto::proto as watermelon;

const ROUNDS: usize = 41;
/// Bytes of one stream, about: they stay near the core, as bytes do that the kernel has just copied there.
const STREAM_BYTES: usize = 256 << 10;
/// How often one round takes the stream, so that it is long beside the clock's grain.
const PASSES: usize = 16;

fn main() {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!("{:<58} {:>9} {:>9} {:>7}", "ns per message", "fastest", "median", "ratio");
    for (name, mut contenders) in cases() {
        if only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            measure(&name, &mut contenders);
        }
    }
}

type Pass = Box<dyn FnMut() -> u64>;

/// One codec at one task: how many messages a pass takes, what its sum must be, and the pass.
struct Contender {
    name: &'static str,
    messages: usize,
    sum: u64,
    pass: Pass,
}

fn measure(case: &str, contenders: &mut [Contender]) {
    println!("{case}");
    let mut times = vec![Vec::with_capacity(ROUNDS); contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let start = Instant::now();
            for _ in 0..PASSES {
                let sum = (contender.pass)();
                assert_eq!(sum, contender.sum, "{case}: {} read something else", contender.name);
            }
            times.push(start.elapsed().as_nanos() as f64 / (contender.messages * PASSES) as f64);
        }
    }
    for (contender, own) in contenders.iter().zip(&times) {
        let (fastest, middle) = (quantile(own, 0.0), quantile(own, 0.5));
        let ratios: Vec<f64> = own.iter().zip(&times[0]).map(|(own, first)| own / first).collect();
        let weak = if middle > 1.15 * fastest { "  weak: the machine was busy" } else { "" };
        println!(
            "  {:<56} {fastest:>9.1} {middle:>9.1} {:>7.2}{weak}",
            contender.name,
            quantile(&ratios, 0.5)
        );
    }
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn cases() -> Vec<(String, Vec<Contender>)> {
    let mut cases = Vec::new();
    for payload_len in [16, 170, 64 << 10] {
        let stream = Stream::new(payload_len, &[SUBJECT], None);
        for piece in [1448, 64 << 10] {
            let name = format!("decode MSG, {payload_len} byte payloads, {piece} byte pieces");
            cases.push((name, decoders(&stream, piece)));
        }
    }
    let subjects =
        ["AlarmStatusChanged", "a", "orders.eu.1234567.created", "_INBOX.2ouUZHBRdgpXQNHUnqVcl4.0001", "x.y"];
    let mixed = Stream::new(170, &subjects, None);
    cases.push((
        "decode MSG, 170 byte payloads, mixed subjects, 65536 byte pieces".into(),
        decoders(&mixed, 64 << 10),
    ));
    let headed = Stream::new(170, &[SUBJECT], Some(&format!("NATS/1.0\r\n{}\r\n", header_lines())));
    cases.push((
        "decode HMSG, 3 headers, 170 byte payloads, 65536 byte pieces".into(),
        header_decoders(&headed),
    ));
    cases.push(("decode PUB as a server, 170 byte payloads".into(), server_decoders()));
    cases.push(("encode PUB, 170 byte payloads".into(), encoders(170)));
    cases.push(("encode PUB, 16 byte payloads".into(), encoders(16)));
    cases
}

const SUBJECT: &str = "AlarmStatusChanged";

/// Messages as a server sends them, and the sum that reading them all must give.
#[derive(Clone)]
struct Stream {
    bytes: Vec<u8>,
    messages: usize,
    sum: u64,
}

impl Stream {
    fn new(payload_len: usize, subjects: &[&str], headers: Option<&str>) -> Self {
        let mut stream = Self { bytes: Vec::new(), messages: 0, sum: 0 };
        while stream.bytes.len() < STREAM_BYTES {
            let subject = subjects[stream.messages % subjects.len()];
            let total = headers.map_or(0, str::len) + payload_len;
            let line = match headers {
                None => format!("MSG {subject} 1 {total}\r\n"),
                Some(headers) => format!("HMSG {subject} 1 {} {total}\r\n{headers}", headers.len()),
            };
            let payload: Vec<u8> = (0..payload_len).map(|i| (i * 7 + stream.messages) as u8).collect();
            stream.sum += sum_of(subject.as_bytes(), &payload);
            stream.bytes.extend_from_slice(line.as_bytes());
            stream.bytes.extend_from_slice(&payload);
            stream.bytes.extend_from_slice(b"\r\n");
            stream.messages += 1;
        }
        stream
    }

    fn contender(&self, name: &'static str, mut pass: impl FnMut(&[u8]) -> u64 + 'static) -> Contender {
        let Self { bytes, messages, sum } = self.clone();
        Contender { name, messages, sum, pass: Box::new(move || pass(&bytes)) }
    }
}

/// Depends on where subject and payload begin and end; reads little of them, since that is not what is measured.
#[inline]
fn sum_of(subject: &[u8], payload: &[u8]) -> u64 {
    let last = |bytes: &[u8]| bytes.last().map_or(0, |&byte| u64::from(byte));
    subject.len() as u64 + last(subject) + payload.len() as u64 + last(payload)
}

#[inline]
fn sum_of_server_op(op: ServerOp<'_>) -> u64 {
    let ServerOp::Message(message) = op else { unreachable!("all are messages") };
    sum_of(message.subject, message.payload)
}

fn decoders(stream: &Stream, piece: usize) -> Vec<Contender> {
    let mut out = BytesMut::with_capacity(STREAM_BYTES * 2);
    let mut receiver = Receiver::new(piece);
    let mut decoder = watermelon::StreamDecoder::new();
    vec![
        stream.contender("nats-wire, copied into its receive buffer", move |bytes| {
            receiver.read(bytes, sum_of_server_op)
        }),
        stream.contender("nats-wire, borrowed from the stream", |bytes| borrow(bytes, sum_of_server_op)),
        stream.contender("watermelon-proto 0.2.1, copied into its buffer", move |bytes| {
            let mut sum = 0;
            for piece in bytes.chunks(piece) {
                decoder.read_buf().put_slice(piece);
                while let Some(op) = decoder.decode().expect("the stream is right") {
                    sum += sum_of_watermelon(&op);
                }
            }
            sum
        }),
        stream.contender("ants 0.1.0-alpha.5, copied into its buffer", move |bytes| {
            let mut sum = 0;
            out.clear();
            for piece in bytes.chunks(piece) {
                out.extend_from_slice(piece);
                while let Some(op) =
                    ants::protocol::ServerOpDecoder.decode(&mut out).expect("the stream is right")
                {
                    let ants::protocol::ServerOp::Msg { subject, payload, .. } = op else { panic!("{op:?}") };
                    sum += sum_of(&subject, &payload);
                }
            }
            sum
        }),
        copy(stream, piece),
    ]
}

/// What copying alone costs.
fn copy(stream: &Stream, piece: usize) -> Contender {
    let mut buffer = vec![0; piece];
    let sum = stream.sum;
    stream.contender("copying alone", move |bytes| {
        for piece in bytes.chunks(piece) {
            buffer[..piece.len()].copy_from_slice(piece);
            black_box(&mut buffer);
        }
        sum
    })
}

/// One connection's decoder and buffer.
struct Receiver {
    piece: usize,
    buffer: ReceiveBuffer,
    decoder: ClientDecoder,
}

impl Receiver {
    fn new(piece: usize) -> Self {
        let limits = Limits::client();
        Self { piece, buffer: ReceiveBuffer::new(limits), decoder: ClientDecoder::new(limits) }
    }

    fn read(&mut self, bytes: &[u8], mut sum_of: impl FnMut(ServerOp<'_>) -> u64) -> u64 {
        let mut sum = 0;
        for mut piece in bytes.chunks(self.piece) {
            while !piece.is_empty() {
                piece = &piece[self.buffer.extend(piece)..];
                while let Some(op) = self.buffer.next(&mut self.decoder).expect("the stream is right") {
                    sum += sum_of(op);
                }
            }
        }
        sum
    }
}

fn borrow(mut bytes: &[u8], mut sum_of: impl FnMut(ServerOp<'_>) -> u64) -> u64 {
    let mut decoder = ClientDecoder::new(Limits::client());
    let mut sum = 0;
    while let Step::Op { op, used } = decoder.decode(bytes).expect("the stream is right") {
        sum += sum_of(op);
        bytes = &bytes[used..];
    }
    sum
}

fn sum_of_watermelon(op: &watermelon::ServerOp) -> u64 {
    let watermelon::ServerOp::Message { message } = op else { panic!("{op:?}") };
    sum_of(message.base.subject.as_bytes(), &message.base.payload)
}

const HEADERS: [(&str, &str); 3] = [
    ("Nats-Msg-Id", "0123456789abcdef"),
    ("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("Kind", "alarm"),
];

fn header_lines() -> String {
    HEADERS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

fn header_decoders(stream: &Stream) -> Vec<Contender> {
    let piece = 64 << 10;
    let receivers = [(); 4].map(|()| Receiver::new(piece));
    let [mut untouched, mut walking, mut without, mut longer] = receivers;
    let same_length = Stream::new(170 + "NATS/1.0\r\n\r\n".len() + header_lines().len(), &[SUBJECT], None);
    let mut decoder = watermelon::StreamDecoder::new();
    let walked = |headers: Option<Headers<'_>>| {
        let lines = headers.into_iter().flatten();
        lines.map(|line| line.expect("the headers are right").1.len() as u64).sum::<u64>()
    };
    let mut with_lines = stream.clone();
    with_lines.sum += (HEADERS.iter().map(|line| line.1.len()).sum::<usize>() * stream.messages) as u64;
    vec![
        stream.contender("nats-wire, copied, headers untouched", move |bytes| {
            untouched.read(bytes, sum_of_server_op)
        }),
        with_lines.contender("nats-wire, copied, headers walked", move |bytes| {
            walking.read(bytes, |op| {
                let ServerOp::Message(message) = op else { unreachable!("all are messages") };
                sum_of(message.subject, message.payload) + walked(message.headers)
            })
        }),
        Stream::new(170, &[SUBJECT], None)
            .contender("nats-wire, copied, MSG without headers", move |bytes| {
                without.read(bytes, sum_of_server_op)
            }),
        same_length.contender("nats-wire, copied, MSG of the same length", move |bytes| {
            longer.read(bytes, sum_of_server_op)
        }),
        stream.contender("watermelon-proto 0.2.1, copied", move |bytes| {
            let mut sum = 0;
            for piece in bytes.chunks(piece) {
                decoder.read_buf().put_slice(piece);
                while let Some(op) = decoder.decode().expect("the stream is right") {
                    sum += sum_of_watermelon(&op);
                }
            }
            sum
        }),
    ]
}

fn server_decoders() -> Vec<Contender> {
    let mut stream = Stream::new(170, &[SUBJECT], None);
    let mut bytes = Vec::new();
    for (subject, payload) in messages(&stream.bytes) {
        let subject = Subject::new(subject).expect("the subject is right");
        encode::publish(&mut bytes, subject, None, payload);
    }
    stream.bytes = bytes;
    vec![stream.contender("nats-wire, borrowed from the stream", |mut bytes| {
        let mut decoder = ServerDecoder::new(Limits::server());
        let mut sum = 0;
        while let Step::Op { op, used } = decoder.decode(bytes).expect("the stream is right") {
            let ClientOp::Publish(publish) = op else { unreachable!("all are messages") };
            sum += sum_of(publish.subject, publish.payload);
            bytes = &bytes[used..];
        }
        sum
    })]
}

/// Subject and payload of every message in `bytes`.
fn messages(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut decoder = ClientDecoder::new(Limits::client());
    let mut messages = Vec::new();
    while let Step::Op { op, used } = decoder.decode(bytes).expect("the stream is right") {
        let ServerOp::Message(message) = op else { unreachable!("all are messages") };
        messages.push((message.subject, message.payload));
        bytes = &bytes[used..];
    }
    messages
}

const ENCODED: usize = 512;

fn encoders(payload_len: usize) -> Vec<Contender> {
    let payload = vec![b'x'; payload_len];
    let one = format!("PUB {SUBJECT} {payload_len}\r\n").len() + payload_len + 2;
    let sum = (one * ENCODED) as u64;
    let contender = |name, pass| Contender { name, messages: ENCODED, sum, pass };
    let (own, fixed, other) = (payload.clone(), payload.clone(), bytes::Bytes::from(payload));
    let mut out = Vec::with_capacity(2 * one * ENCODED);
    let mut room = vec![0; one * ENCODED];
    let mut ants_out = BytesMut::with_capacity(2 * one * ENCODED);
    let ants_payload = other.clone();
    let subject = Subject::new(SUBJECT).expect("the subject is right");
    let ants_subject = bytes::Bytes::from_static(SUBJECT.as_bytes());
    vec![
        contender(
            "nats-wire, into a Vec",
            Box::new(move || {
                out.clear();
                for _ in 0..ENCODED {
                    encode::publish(&mut out, black_box(subject), None, black_box(&own));
                }
                out.len() as u64
            }) as Pass,
        ),
        contender(
            "nats-wire, into a slice",
            Box::new(move || {
                let mut out = nats_wire::Cursor::new(&mut room);
                for _ in 0..ENCODED {
                    encode::publish(&mut out, black_box(subject), None, black_box(&fixed))
                        .expect("there is room");
                }
                out.written().len() as u64
            }),
        ),
        contender(
            "watermelon-proto 0.2.1",
            Box::new(move || {
                let mut encoder = watermelon::StreamEncoder::new();
                let op = watermelon::ClientOp::Publish {
                    message: watermelon_proto::MessageBase {
                        subject: watermelon_proto::Subject::from_static(SUBJECT),
                        reply_subject: None,
                        headers: watermelon_proto::headers::HeaderMap::new(),
                        payload: other.clone(),
                    },
                };
                for _ in 0..ENCODED {
                    encoder.enqueue_write_op(black_box(&op));
                }
                bytes::Buf::remaining(&encoder) as u64
            }),
        ),
        contender(
            "ants 0.1.0-alpha.5",
            Box::new(move || {
                ants_out.clear();
                for _ in 0..ENCODED {
                    let op = ants::protocol::ClientOp::Pub {
                        subject: black_box(&ants_subject).clone(),
                        reply: bytes::Bytes::new(),
                        payload: black_box(&ants_payload).clone(),
                    };
                    ants::protocol::ClientOpEncoder.encode(op, &mut ants_out).expect("it fits");
                }
                ants_out.len() as u64
            }),
        ),
    ]
}
