//! Subscribes, publishes to itself and reads it, with nothing but the standard library.
//!
//! `cargo run --example blocking -- 127.0.0.1:4222`

use std::io::{self, Write};
use std::net::TcpStream;

use nats_wire::{ClientDecoder, Limits, ReceiveBuffer, ServerOp, Subject, encode};
use nats_wire::{ConnectOptions, JsonLine};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:4222".into());
    println!("{}", run(&address)?);
    Ok(())
}

/// Returns the payload of the first message.
pub fn run(address: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    let mut decoder = ClientDecoder::new(Limits::client());
    let mut buffer = ReceiveBuffer::new(Limits::client());
    let subject = Subject::new("greetings").expect("it is a subject");
    let mut out = Vec::new();
    loop {
        while let Some(op) = buffer.next(&mut decoder).map_err(io::Error::other)? {
            match op {
                // The first operation of a server. INFO can come again; CONNECT must not.
                ServerOp::Info(_) if out.is_empty() => {
                    let options = ConnectOptions::default().to_json();
                    encode::connect(&mut out, JsonLine::new(&options).expect("it is one line"));
                    encode::subscribe(&mut out, subject.into(), None, 1.into());
                    encode::publish(&mut out, subject, None, b"hello");
                    socket.write_all(&out)?;
                }
                ServerOp::Message(message) => {
                    return Ok(String::from_utf8_lossy(message.payload).into_owned());
                }
                ServerOp::Ping => socket.write_all(b"PONG\r\n")?,
                ServerOp::Err(text) => return Err(io::Error::other(text.to_string())),
                _ => {}
            }
        }
        if buffer.read_from(&mut socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
