//! When it answers what, and to whom: links that come and go, draining, nonsense, slow ones, many at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use nats_server_fixture::{Process, Server, Signal, eventually, find};

use crate::world::{SOON, exit_code, program};
use crate::{MODES, connected, exchange, get, is_ready, on_each_server_and_mode, samples, split, started};

#[test]
fn it_is_ready_while_all_cores_are_connected_and_alive_all_the_while() {
    on_each_server_and_mode(|mut server, mode| {
        let url = server.addr();
        let (_service, addr) = connected(&server, mode);
        assert!(is_ready(addr), "{:?}", get(addr, "/readyz"));
        assert_eq!(samples(addr)["alarm_digest_ready"], 1.0);
        server.kill();
        eventually(SOON, "not ready without a server", || !is_ready(addr));
        eventually(SOON, "both cores without a link", || {
            let (code, body) = get(addr, "/readyz");
            let said = |core| body.contains(&format!("core {core} is not connected and subscribed: {url}\n"));
            code == 503 && said(0) && said(1)
        });
        assert_eq!(samples(addr)["alarm_digest_ready"], 0.0);
        assert_eq!(get(addr, "/healthz"), (200, "ok\n".into()));
        server.restart().expect("a server");
        eventually(SOON, "ready again", || is_ready(addr));
        eventually(SOON, "reconnects of both cores", || {
            samples(addr)["alarm_digest_reconnects_total"] >= 2.0
        });
    });
}

#[test]
fn it_answers_before_there_is_a_server() {
    for mode in MODES {
        let mut server =
            Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
        server.kill();
        let (_service, addr) = started(&server, mode);
        let (code, body) = get(addr, "/readyz");
        assert!(code == 503 && body.starts_with("core 0 "), "{body}");
        assert_eq!(get(addr, "/healthz").0, 200);
        server.restart().expect("a server");
        eventually(SOON, "ready", || is_ready(addr));
    }
}

#[test]
fn it_says_that_it_drains_until_it_has() {
    on_each_server_and_mode(|mut server, mode| {
        let (mut service, addr) = connected(&server, mode);
        server.suspend().expect("it runs");
        service.signal(Signal::TERM).expect("it runs");
        service.wait_for_line("draining", SOON).expect("it says so");
        eventually(SOON, "draining", || get(addr, "/readyz") == (503, "draining\n".into()));
        assert_eq!(get(addr, "/healthz").0, 200);
        assert_eq!(samples(addr)["alarm_digest_ready"], 0.0);
        server.resume().expect("it is stopped");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert!(TcpStream::connect(addr).is_err());
    });
}

#[test]
fn what_is_not_asked_for_rightly_is_refused() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let (_service, addr) = connected(&server, "memory");
    let long = [b"GET /", &[b'a'; 100_000][..]].concat();
    for (request, code) in [
        (&b"GET /nothing HTTP/1.1\r\n\r\n"[..], 404),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"\0\x01\xff nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 505),
        (&long, 431),
    ] {
        let (answered, body) = split(&exchange(addr, request));
        assert_eq!(answered, code, "{body}");
        assert!(body.contains("expected GET or HEAD of /healthz, /readyz or /metrics"), "{body}");
    }
    assert!(exchange(addr, b"PUT / HTTP/1.1\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
    let answer = exchange(addr, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\n") && !answer.contains("Content-Length: 0"), "{answer}");
    assert!(is_ready(addr));
}

#[test]
fn whoever_is_slow_or_says_nothing_is_in_nobody_s_way() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let (_service, addr) = connected(&server, "memory");
    let slow: Vec<TcpStream> = (0..500)
        .map(|number| {
            let mut stream = TcpStream::connect(addr).expect("it listens");
            // Those that were pushed out cannot be written to.
            let _ = stream.write(if number % 2 == 0 { b"GET /met" } else { b"" });
            stream
        })
        .collect();
    for _ in 0..20 {
        assert!(is_ready(addr));
    }
    drop(slow);
    // And whoever is in the way of nobody either is told.
    let mut late = TcpStream::connect(addr).expect("it listens");
    late.write_all(b"GET /healthz HTTP/1.1\r\nX: ").expect("it is taken");
    let mut answer = String::new();
    late.read_to_string(&mut answer).expect("an answer");
    assert_eq!(split(&answer).0, 408);
    // One that reads nothing, and one that goes at once.
    let mut deaf = TcpStream::connect(addr).expect("it listens");
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("it is taken");
    deaf.shutdown(Shutdown::Read).expect("a socket");
    drop(TcpStream::connect(addr).expect("it listens"));
    assert!(is_ready(addr));
}

#[test]
fn many_ask_at_once_and_each_is_answered() {
    let server = Server::start(&find().expect("a nats-server")).expect("a server");
    let (_service, addr) = connected(&server, "memory");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(move || {
                for _ in 0..50 {
                    assert!(get(addr, "/metrics").1.ends_with("# EOF\n"));
                }
            });
        }
    });
}

#[test]
fn an_address_that_cannot_be_had_stops_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("it is bound").to_string();
    for (address, code, said) in [
        (addr.as_str(), 1, format!("--http: cannot listen on {addr}: Address already in use")),
        ("192.0.2.1:1", 1, "--http: cannot listen on 192.0.2.1:1: Cannot assign requested address".into()),
        (":9464", 2, "expected ADDRESS:PORT like 127.0.0.1:9464 or [::]:9464, got `:9464`".into()),
    ] {
        let mut service = Process::spawn(&program(&["--http", address])).expect("it starts");
        assert_eq!(exit_code(&mut service), code, "{}", service.log());
        assert!(service.stderr().contains(&said), "expected `{said}` in:\n{}", service.log());
    }
}
