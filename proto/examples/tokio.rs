//! The same on tokio, with `Framed`: payloads are slices of the memory that was read into.
//!
//! `cargo run --example tokio -- 127.0.0.1:4222`

use std::io;

use futures_util::{SinkExt, StreamExt};
use nats_wire::{ClientCodec, ClientDecoder, ConnectOptions, JsonLine, Limits, ServerOp, Subject, encode};
use tokio::net::TcpStream;
use tokio_util::codec::Framed;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:4222".into());
    println!("{:?}", run(&address).await?);
    Ok(())
}

/// Returns the payload of the first message.
pub async fn run(address: &str) -> io::Result<bytes::Bytes> {
    let codec = ClientCodec::new(ClientDecoder::new(Limits::client()));
    let mut connection = Framed::new(TcpStream::connect(address).await?, codec);
    let subject = Subject::new("greetings").expect("it is a subject");
    let mut connected = false;
    while let Some(frame) = connection.next().await {
        let frame = frame?;
        match frame.op() {
            ServerOp::Info(_) if !connected => {
                connected = true;
                let start = move |out: &mut bytes::BytesMut| {
                    let options = ConnectOptions::default().to_json();
                    encode::connect(out, JsonLine::new(&options).expect("it is one line"));
                    encode::subscribe(out, subject.into(), None, 1.into());
                    encode::publish(out, subject, None, b"hello");
                };
                connection.send(start).await?;
            }
            ServerOp::Message(message) => return Ok(frame.share(message.payload)),
            ServerOp::Ping => connection.send(|out: &mut bytes::BytesMut| encode::pong(out)).await?,
            ServerOp::Err(text) => return Err(io::Error::other(text.to_string())),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
