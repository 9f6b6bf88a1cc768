//! Against real servers: nats-server takes every operation that we write, and we read every operation that it sends.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use nats_server_fixture::{Server, available};
use nats_wire::{
    ClientDecoder, ConnectOptions, Header, HeaderBlock, JsonLine, Limits, QueueGroup, ReceiveBuffer,
    ServerFrame, ServerInfo, ServerOp, Sid, Subject, SubjectFilter, encode,
};

/// One connection that expects what it is told to expect.
struct Client {
    socket: TcpStream,
    buffer: ReceiveBuffer,
    decoder: ClientDecoder,
}

impl Client {
    fn open(server: &Server) -> Self {
        let socket = TcpStream::connect(server.addr()).expect("the server listens");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        let limits = Limits::client();
        Self { socket, buffer: ReceiveBuffer::new(limits), decoder: ClientDecoder::new(limits) }
    }

    fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        self.socket.write_all(&out).expect("the server reads");
    }

    /// The next operation but INFO and PING, which come when they like; `None` at the end of the connection.
    fn next(&mut self) -> Option<ServerFrame> {
        loop {
            match self.buffer.next_frame(&mut self.decoder).expect("the server speaks NATS") {
                Some(frame) => match frame.op() {
                    ServerOp::Info(_) => {}
                    ServerOp::Ping => self.send(encode::pong),
                    _ => return Some(frame),
                },
                None => {
                    if self.buffer.read_from(&mut self.socket).expect("the server answers in time") == 0 {
                        return None;
                    }
                }
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, expected: &str) {
        let came = self.next().map(|frame| frame.as_bytes().escape_ascii().to_string());
        assert_eq!(came.as_deref(), Some(expected));
    }

    fn connect(server: &Server, options: &ConnectOptions) -> Self {
        let mut client = Self::open(server);
        client.send(|out| {
            encode::connect(out, JsonLine::new(&options.to_json()).expect("the JSON is one line"))
        });
        client
    }
}

fn on_each_server(test: impl Fn(&Server)) {
    let binaries = available().expect("a nats-server can be had");
    assert!(!binaries.is_empty());
    for binary in binaries {
        println!("{binary}");
        test(&Server::start(&binary).expect("it starts"));
    }
}

#[test]
fn every_operation_goes_both_ways() {
    on_each_server(|server| {
        let mut client = Client::open(server);
        let info = loop {
            let ready = client.buffer.next(&mut client.decoder).expect("the server speaks NATS");
            match ready {
                Some(ServerOp::Info(json)) => break ServerInfo::parse(json).expect("INFO is right"),
                Some(other) => panic!("{other:?}"),
                None => assert_ne!(client.buffer.read_from(&mut client.socket).expect("INFO comes"), 0),
            }
        };
        assert_eq!((info.headers, info.max_payload, info.port), (true, 1 << 20, server.port()));
        assert!(info.version.starts_with('2') && !info.server_id.is_empty() && info.proto >= 1);

        let options = ConnectOptions { verbose: true, ..ConnectOptions::default() };
        client.send(|out| encode::connect(out, JsonLine::new(&options.to_json()).expect("one line")));
        client.expect("+OK\\r\\n");
        client.send(encode::ping);
        client.expect("PONG\\r\\n");

        let (subject, reply) = (Subject::new("a.b").unwrap(), Subject::new("r").unwrap());
        let subscribe = |out: &mut Vec<u8>| {
            let group = QueueGroup::new("workers").unwrap();
            encode::subscribe(out, SubjectFilter::new("a.*").unwrap(), None, 7.into());
            encode::subscribe(out, SubjectFilter::new("c.>").unwrap(), Some(group), Sid::new("s-1").unwrap());
        };
        client.send(subscribe);
        client.expect("+OK\\r\\n");
        client.expect("+OK\\r\\n");

        // From here on without +OK. A second CONNECT ends the subscriptions on 2.15.1 and leaves them on 2.9.10, where
        // the same sid again is ignored.
        let options = ConnectOptions { pedantic: true, ..ConnectOptions::default() };
        client.send(|out| encode::connect(out, JsonLine::new(&options.to_json()).expect("one line")));
        client.send(subscribe);
        client.send(|out| encode::publish(out, subject, Some(reply), b"with\r\nreply"));
        client.expect("MSG a.b 7 r 11\\r\\nwith\\r\\nreply\\r\\n");

        let lines = [Header::new("Key", "Val").unwrap(), Header::new("Key", "").unwrap()];
        let headers = HeaderBlock::new(&lines);
        client.send(|out| {
            encode::publish_with_headers(out, Subject::new("c.d.e").unwrap(), None, headers, b"headed")
        });
        let frame = client.next().unwrap();
        let ServerOp::Message(message) = frame.op() else { panic!("{frame:?}") };
        assert_eq!(
            (message.subject, message.sid, message.payload),
            (&b"c.d.e"[..], &b"s-1"[..], &b"headed"[..])
        );
        let read: Vec<_> = message.headers.unwrap().iter().map(Result::unwrap).collect();
        assert_eq!(read, [(&b"Key"[..], &b"Val"[..]), (&b"Key"[..], &b""[..])]);

        // In parts, as a vectored write sends it, and the largest that the server takes.
        let payload = vec![b'x'; info.max_payload as usize];
        client.send(|out| encode::publish_head(out, subject, None, payload.len()));
        client.socket.write_all(&payload).unwrap();
        client.socket.write_all(encode::TAIL).unwrap();
        let frame = client.next().unwrap();
        let ServerOp::Message(message) = frame.op() else { panic!("{frame:?}") };
        assert_eq!((message.sid_number(), message.payload), (Some(7), &payload[..]));

        // Nobody is there to respond.
        client.send(|out| {
            encode::subscribe(out, SubjectFilter::new("inbox").unwrap(), None, 8.into());
            encode::publish(out, Subject::new("nobody").unwrap(), Some(Subject::new("inbox").unwrap()), b"?");
        });
        let frame = client.next().unwrap();
        let ServerOp::Message(message) = frame.op() else { panic!("{frame:?}") };
        let headers = message.headers.unwrap();
        assert_eq!((headers.status(), message.payload, headers.check()), (Some(503), &b""[..], Ok(())));

        // Of four messages the server delivers two, since it has delivered two before.
        client.send(|out| {
            encode::unsubscribe(out, 8.into(), None);
            encode::unsubscribe(out, 7.into(), Some(4));
            for _ in 0..4 {
                encode::publish(out, subject, None, b"last");
            }
            encode::pong(out);
            encode::ping(out);
        });
        client.expect("MSG a.b 7 4\\r\\nlast\\r\\n");
        client.expect("MSG a.b 7 4\\r\\nlast\\r\\n");
        client.expect("PONG\\r\\n");
    });
}

#[test]
fn what_the_server_refuses_is_read_with_whether_it_closes() {
    on_each_server(|server| {
        let mut client =
            Client::connect(server, &ConnectOptions { pedantic: true, ..ConnectOptions::default() });
        // Our encoders cannot write these.
        client.send(|out| out.extend_from_slice(b"SUB foo..bar 1\r\nPUB a.* 1\r\nx\r\nPING\r\n"));
        for expected in ["Invalid Subject", "Invalid Publish Subject"] {
            let frame = client.next().unwrap();
            let ServerOp::Err(text) = frame.op() else { panic!("{frame:?}") };
            assert_eq!((text.text(), text.closes()), (Ok(expected), false));
        }
        client.expect("PONG\\r\\n");
        client.send(|out| out.extend_from_slice(b"NONSENSE\r\n"));
        let frame = client.next().unwrap();
        let ServerOp::Err(text) = frame.op() else { panic!("{frame:?}") };
        assert_eq!((text.text(), text.closes()), (Ok("Unknown Protocol Operation"), true));
        assert!(client.next().is_none(), "the server has closed");
    });
}

#[test]
fn every_byte_that_can_stand_in_a_subject_comes_back() {
    on_each_server(|server| {
        let mut client = Client::connect(server, &ConnectOptions::default());
        client.send(|out| encode::subscribe(out, SubjectFilter::new(">").unwrap(), None, 1.into()));
        let names = (0..=u8::MAX).filter(|byte| !b" \t\r\n.*>".contains(byte)).map(|byte| [b'a', byte, b'b']);
        let names: Vec<[u8; 3]> = names.collect();
        client.send(|out| {
            for name in &names {
                encode::publish(out, Subject::new(name).expect("it is a subject"), None, name);
            }
        });
        for name in &names {
            let frame = client.next().unwrap();
            let ServerOp::Message(message) = frame.op() else { panic!("{frame:?}") };
            assert_eq!((message.subject, message.payload), (&name[..], &name[..]));
        }
    });
}
