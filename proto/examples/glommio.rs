//! The same on glommio, which reads with io_uring into a buffer of ours. Linux only.
//!
//! `cargo run --example glommio -- 127.0.0.1:4222`

use std::io;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::{LocalExecutor, net::TcpStream};
use nats_wire::{ClientDecoder, ConnectOptions, JsonLine, Limits, ReceiveBuffer, ServerOp, Subject, encode};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:4222".into());
    println!("{}", LocalExecutor::default().run(run(&address))?);
    Ok(())
}

/// Returns the payload of the first message.
pub async fn run(address: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let mut decoder = ClientDecoder::new(Limits::client());
    let mut buffer = ReceiveBuffer::new(Limits::client());
    let subject = Subject::new("greetings").expect("it is a subject");
    let mut out = Vec::new();
    loop {
        while let Some(op) = buffer.next(&mut decoder).map_err(io::Error::other)? {
            match op {
                ServerOp::Info(_) if out.is_empty() => {
                    let options = ConnectOptions::default().to_json();
                    encode::connect(&mut out, JsonLine::new(&options).expect("it is one line"));
                    encode::subscribe(&mut out, subject.into(), None, 1.into());
                    encode::publish(&mut out, subject, None, b"hello");
                    socket.write_all(&out).await?;
                }
                ServerOp::Message(message) => {
                    return Ok(String::from_utf8_lossy(message.payload).into_owned());
                }
                ServerOp::Ping => socket.write_all(b"PONG\r\n").await?,
                ServerOp::Err(text) => return Err(io::Error::other(text.to_string())),
                _ => {}
            }
        }
        let count = socket.read(buffer.space()).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.filled(count);
    }
}
