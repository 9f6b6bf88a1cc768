//! A server for one client at a time that delivers what is published to a subject to the subscriptions of exactly this
//! subject. Enough for real clients to connect, subscribe, publish and request.
//!
//! `cargo run --example server -- 127.0.0.1:4222`

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};

use nats_wire::{ClientOp, JsonLine, Limits, ReceiveBuffer, ServerDecoder, ServerInfo, Sid, Token, encode};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:4222".into());
    for client in TcpListener::bind(address)?.incoming() {
        if let Err(error) = serve(client?) {
            println!("{error}");
        }
    }
    Ok(())
}

/// Serves one client until it leaves or errs.
pub fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut info = ServerInfo::default();
    (info.server_id, info.version, info.max_payload) = ("EXAMPLE".into(), "2.9.0".into(), 1 << 20);
    (info.headers, info.proto) = (true, 1);
    let mut out = Vec::new();
    encode::info(&mut out, JsonLine::new(&info.to_json()).expect("it is one line"));
    let mut decoder = ServerDecoder::new(Limits::server());
    let mut buffer = ReceiveBuffer::new(Limits::server());
    let mut sids_by_subject: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    loop {
        client.write_all(&out)?;
        out.clear();
        if buffer.read_from(&mut client)? == 0 {
            return Ok(());
        }
        while let Some(op) = buffer.next(&mut decoder).map_err(io::Error::other)? {
            match op {
                ClientOp::Subscribe(sub) => {
                    sids_by_subject.entry(sub.subject.to_vec()).or_default().push(sub.sid.to_vec());
                }
                ClientOp::Unsubscribe(unsub) => {
                    sids_by_subject.values_mut().for_each(|sids| sids.retain(|sid| sid != unsub.sid));
                }
                ClientOp::Publish(publish) => {
                    let token = |bytes| Token::new(bytes).expect("what was decoded is a token");
                    let (subject, reply) = (token(publish.subject), publish.reply.map(token));
                    for sid in sids_by_subject.get(publish.subject).into_iter().flatten() {
                        let sid = Sid::new(sid).expect("what was decoded is a token");
                        match publish.headers {
                            None => encode::message(&mut out, subject, sid, reply, publish.payload),
                            Some(headers) => encode::message_with_headers(
                                &mut out,
                                subject,
                                sid,
                                reply,
                                headers.into(),
                                publish.payload,
                            ),
                        }
                    }
                }
                ClientOp::Ping => encode::pong(&mut out),
                ClientOp::Connect(_) | ClientOp::Pong | ClientOp::Ok | ClientOp::Info(_) => {}
            }
        }
    }
}
