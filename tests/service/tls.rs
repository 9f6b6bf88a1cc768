//! TLS in every way that NATS has, and whatever can be wrong with it: certificates, names, files, servers without it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nats_server_fixture::{Binary, Builder, Process, Release, Server, Signal};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use crate::credentials::Files;
use crate::servers::two_servers;
use crate::world::{Listener, SOON, at, change, connect, counted, exit_code, on_each_server, program};

/// The first one that can begin with TLS.
const TLS_FIRST: Release = Release { major: 2, minor: 10, patch: 4 };

/// A CA, and files with what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    files: Files,
    ca: String,
}

/// Paths of a certificate and its key.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of these tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let files = Files::new();
        let ca = files.write("ca.pem", &params.self_signed(&key).expect("a certificate").pem());
        Self { issuer: Issuer::new(params, key), files, ca }
    }

    fn sign(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("hosts that can be named");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: self.files.write(&format!("{name}.pem"), &certificate.pem()),
            key: self.files.write(&format!("{name}.key"), &key.serialize_pem()),
        }
    }

    /// For a server on 127.0.0.1, also known as localhost.
    fn server(&self) -> Pair {
        self.sign("server", &["localhost", "127.0.0.1"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    fn client(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        self.sign(name, &[], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    }
}

fn expired(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
}

/// A server with this certificate, and more lines in its `tls`.
fn with_tls(builder: Builder, pair: &Pair, more: &str) -> Builder {
    let Pair { certificate, key } = pair;
    builder
        .config(&format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", timeout: 10\n{more}\n}}"))
}

fn start(binary: &Binary, pair: &Pair, more: &str) -> Server {
    with_tls(Server::builder(binary), pair, more).start().expect("a server")
}

/// The service and the smoke test both work with these arguments.
fn works(arguments: &[&str]) {
    let mut service = Process::spawn(program(&["--cores", "1"]).args(arguments)).expect("it starts");
    service.wait_for_line("all cores are connected", SOON).expect("it connects");
    let mut verify = Process::spawn(program(&["verify"]).args(arguments)).expect("it starts");
    assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
    service.signal(Signal::TERM).expect("it runs");
    assert_eq!(exit_code(&mut service), 0, "{}", service.log());
    assert!(!service.log().contains("disconnected"), "{}", service.log());
}

/// With these arguments the smoke test and `--no-wait` end with `said`; the service says it too, and tries again.
fn fails(arguments: &[&str], said: &str) {
    for task in ["--no-wait", "verify"] {
        let mut refused = Process::spawn(program(&[task]).args(arguments)).expect("it starts");
        assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
        assert!(refused.stderr().contains(said), "expected `{said}` in {}", refused.log());
    }
    let mut waiting = program(&["--cores", "1", "--reconnect-delay-max", "100ms"]);
    let mut waiting = Process::spawn(waiting.args(arguments)).expect("it starts");
    waiting.wait_for_lines(said, 2, SOON).expect("it says so, and tries again");
    assert!(!waiting.log().contains("started"), "{}", waiting.log());
}

#[test]
fn a_server_whose_certificate_a_ca_vouches_for_is_taken_by_name_and_by_address() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let server = start(binary, &authority.server(), "");
        for url in [
            format!("tls://localhost:{}", server.port()),
            format!("tls://{}", server.addr()),
            // It is for the server to say, and for the flag.
            server.url(),
        ] {
            works(&["--server", &url, "--tls-ca", &authority.ca]);
        }
    });
}

#[test]
fn a_server_that_requires_tls_is_upgraded_to_with_the_cas_of_the_system() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let server = start(binary, &authority.server(), "");
        let mut service = program(&["--server", &server.url(), "--cores", "1"]);
        let mut service = Process::spawn(service.env("SSL_CERT_FILE", &authority.ca)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        fails(
            &["--server", &server.url()],
            "none of the CAs that this system trusts vouches for the server's certificate: give that of its CA with --tls-ca",
        );
    });
}

#[test]
fn the_durable_mode_and_what_asks_it_go_through_tls() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let server =
            with_tls(Server::builder(binary).jetstream(), &authority.server(), "").start().expect("a server");
        let url = format!("tls://{}", server.addr());
        let tls = ["--server", &url, "--tls-ca", &authority.ca];
        let mut service =
            Process::spawn(program(&["--mode", "jetstream", "--cores", "1"]).args(tls)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let mut verify = Process::spawn(program(&["verify"]).args(tls)).expect("it starts");
        assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
        let mut state = Process::spawn(program(&["state", "nobody"]).args(tls)).expect("it starts");
        assert_eq!(exit_code(&mut state), 1);
        assert!(state.stderr().contains(r#"expected a record of user "nobody""#), "{}", state.log());
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
    });
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_refused_with_the_reason() {
    on_each_server(|binary| {
        let (authority, other) = (Authority::new(), Authority::new());
        let url = |server: &Server| format!("tls://{}", server.addr());
        let check = |pair: &Pair, ca: &str, said: &str| {
            let server = start(binary, pair, "");
            fails(&["--server", &url(&server), "--tls-ca", ca], said);
        };
        check(
            &authority.server(),
            &other.ca,
            &format!("no certificate in {} vouches for the server's certificate", other.ca),
        );
        check(
            &authority.sign("expired", &["127.0.0.1"], expired),
            &authority.ca,
            "the server's certificate has expired, ",
        );
        let next_century = |params: &mut CertificateParams| {
            (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
        };
        check(
            &authority.sign("early", &["127.0.0.1"], next_century),
            &authority.ca,
            "the server's certificate is not valid yet: is the clock of this machine right?",
        );
        check(
            &authority.sign("named", &["nats.example"], |_| ()),
            &authority.ca,
            "not for `127.0.0.1`: connect by a name that it has",
        );
    });
}

#[test]
fn a_server_that_wants_a_certificate_of_ours_gets_it() {
    on_each_server(|binary| {
        let (authority, other) = (Authority::new(), Authority::new());
        let verify = format!("ca_file: \"{}\", verify: true", authority.ca);
        let server = start(binary, &authority.server(), &verify);
        let url = format!("tls://{}", server.addr());
        let url = ["--server", &url, "--tls-ca", &authority.ca];
        let with = |Pair { certificate, key }: &Pair| {
            [url.as_slice(), &["--tls-cert", certificate, "--tls-key", key]]
                .concat()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let works = |arguments: Vec<String>| works(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let fails = |arguments: Vec<String>, said: &str| {
            fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), said);
        };
        works(with(&authority.client("client", |_| ())));
        fails(
            url.map(String::from).into(),
            "the server wants a certificate of ours: give --tls-cert and --tls-key",
        );
        for pair in [other.client("stranger", |_| ()), authority.client("late", expired)] {
            let said = format!("the server does not accept our certificate in {}", pair.certificate);
            fails(with(&pair), &said);
        }
    });
}

#[test]
fn a_server_that_begins_with_tls_is_met_by_a_client_that_does() {
    on_each_server(|binary| {
        if binary.release() < TLS_FIRST {
            return;
        }
        let authority = Authority::new();
        let first =
            with_tls(Server::builder(binary).tls_first(), &authority.server(), "handshake_first: true");
        let first = first.start().expect("a server");
        let url = |server: &Server| format!("tls://{}", server.addr());
        works(&["--server", &url(&first), "--tls-ca", &authority.ca, "--tls-first"]);
        fails(
            &["--server", &url(&first), "--tls-ca", &authority.ca, "--connect-timeout", "1s"],
            "if the server begins with TLS (handshake_first), give --tls-first",
        );
        let later = start(binary, &authority.server(), "");
        fails(
            &["--server", &url(&later), "--tls-ca", &authority.ca, "--tls-first"],
            "does the server begin with TLS? If not, leave --tls-first out",
        );
    });
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_required() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let server = Server::start(binary).expect("a server");
        let said = "expected a server with TLS, got one without: nothing was said to it";
        fails(&["--server", &format!("tls://{}", server.addr())], said);
        fails(&["--server", &server.url(), "--tls-ca", &authority.ca], said);
    });
}

/// What a client says to a server that begins with `says`, and what it logs.
fn heard(says: &str, arguments: &[&str]) -> (Vec<u8>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    let url = format!("{}ann:s3cret@{addr}", if arguments.is_empty() { "tls://" } else { "nats://" });
    let mut client = program(&["verify", "--server", &url, "--connect-timeout", "2s"]);
    let mut client = Process::spawn(client.args(arguments)).expect("it starts");
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.write_all(says.as_bytes()).expect("it reads");
    let mut heard = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut heard);
    assert_eq!(exit_code(&mut client), 1, "{}", client.log());
    (heard, client.log())
}

#[test]
fn nothing_is_said_in_plain_text_where_tls_is_required() {
    let authority = Authority::new();
    let flags = ["--tls-ca", &authority.ca];
    for arguments in [&[] as &[&str], &flags] {
        for says in [
            "INFO {\"max_payload\":1048576}\r\n",
            "INFO {\"max_payload\":1048576}\r\nPONG\r\n",
            "INFO {}\r\nINFO {\"max_payload\":1048576,\"tls_required\":true}\r\n",
            "+OK\r\nINFO {\"max_payload\":1048576}\r\n",
            "PING\r\n",
            "INFO x\r\nINFO {\"max_payload\":1048576}\r\n",
            "-ERR 'Maximum Connections Exceeded'\r\n",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
        ] {
            let (heard, log) = heard(says, arguments);
            assert_eq!(heard.escape_ascii().to_string(), "", "to {says}: {log}");
        }
    }
}

#[test]
fn what_comes_between_info_and_tls_is_not_taken_for_the_servers() {
    let says = "INFO {\"max_payload\":1048576,\"tls_required\":true}\r\nPONG\r\n";
    let (heard, log) = heard(says, &[]);
    assert!(heard.is_empty() && log.contains("expected nothing between INFO and TLS, got 6 bytes"), "{log}");
}

#[test]
fn an_address_that_a_server_tells_of_has_the_certificate_of_its_name() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let pair = authority.sign("cluster", &["localhost"], |_| ());
        let Pair { certificate, key } = &pair;
        let config = format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}");
        let mut servers = two_servers(binary, &config);
        let url = format!("tls://localhost:{}", servers[0].port());
        let service = program(&[
            "--server",
            &url,
            "--tls-ca",
            &authority.ca,
            "--cores",
            "1",
            "--reconnect-delay-max",
            "200ms",
        ]);
        let mut service = Process::spawn(&service).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        servers[0].kill();
        let line = service.wait_for_line("reconnected", SOON).expect("there is another server");
        assert!(line.contains(&servers[1].addr().to_string()), "{line}");
    });
}

#[test]
fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let authority = Authority::new();
    let (pair, other) = (authority.client("client", |_| ()), authority.client("other", |_| ()));
    let Pair { certificate, key } = &pair;
    let missing = authority.files.path("missing");
    let no_pem = authority.files.write("no.pem", "s3cret\n");
    for (arguments, said) in [
        (
            ["--tls-ca", &missing].as_slice(),
            format!("cannot read the certificates in {missing}: No such file"),
        ),
        (
            &["--tls-ca", &no_pem],
            format!("cannot use the certificates in {no_pem}: expected one or more in PEM"),
        ),
        (&["--tls-ca", key], format!("cannot use the certificates in {key}: expected one or more in PEM")),
        (&["--tls-cert", &missing, "--tls-key", key], format!("cannot read the certificates in {missing}")),
        (&["--tls-cert", certificate, "--tls-key", &missing], format!("cannot read the key in {missing}")),
        (
            &["--tls-cert", certificate, "--tls-key", &no_pem],
            format!("cannot use the key in {no_pem}: expected a private key"),
        ),
        (
            &["--tls-cert", certificate, "--tls-key", &other.key],
            format!("cannot use the certificate in {certificate} with the key in {}", other.key),
        ),
        (&["--tls-cert", certificate], "expected --tls-key with --tls-cert, got none".into()),
    ] {
        let mut service = Process::spawn(program(&[]).args(arguments)).expect("it starts");
        assert_eq!(exit_code(&mut service), 1, "{}", service.log());
        let log = service.log();
        assert!(log.contains(&said) && !log.contains("s3cret"), "expected `{said}` in {log}");
    }
}

fn ask_until_told(listener: &mut Listener, names: &[String], alarms: usize) {
    let untold = |listener: &Listener| -> Vec<&str> {
        names.iter().map(String::as_str).filter(|user| listener.told_of(user).len() < alarms).collect()
    };
    listener.ask_until(untold, |listener| untold(listener).is_empty());
}

const FLOOD: u32 = 300_000;
const USERS: u32 = 1000;

/// Everybody but the service is spared the encryption, so that it is the service that is flooded.
#[test]
fn a_flood_through_tls_loses_nothing_and_a_server_that_is_killed_in_it_costs_nothing() {
    on_each_server(|binary| {
        let authority = Authority::new();
        let builder = Server::builder(binary).config("allow_non_tls: true");
        let mut server = with_tls(builder, &authority.server(), "").start().expect("a server");
        let url = format!("tls://{}", server.addr());
        let arguments =
            ["--server", &url, "--tls-ca", &authority.ca, "--cpus", "0,1", "--reconnect-delay-max", "200ms"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");

        let deadline = Instant::now() + SOON * 3;
        let name = |number: u32| format!("user {}", number % USERS);
        let mut publisher = connect(&server);
        for number in 0..FLOOD {
            let alarm = format!("alarm {}", number / USERS % 50);
            let payload = change(&name(number), &alarm, "WARNING", &at(1 + number / USERS));
            publisher.publish("AlarmStatusChanged", payload.as_bytes());
            if number % 500 == 0 {
                publisher.write(deadline).expect("the server reads");
            }
        }
        publisher.flush(deadline).expect("the server answers");
        let mut before = Listener::new(&server);
        let names: Vec<String> = (0..USERS).map(name).collect();
        ask_until_told(&mut before, &names, 50);
        for user in &names {
            assert_eq!(before.told_of(user).len(), 50, "{user}\n{}", service.log());
        }

        // A publisher that publishes again what the server did not confirm, as any that wants at least once.
        std::thread::scope(|scope| {
            let mut client = connect(&server);
            let names = &names;
            let flood = scope.spawn(move || {
                loop {
                    for user in names {
                        let payload = change(user, "alarm 50", "WARNING", &at(1000));
                        client.publish("AlarmStatusChanged", payload.as_bytes());
                    }
                    if client.flush(Instant::now() + SOON).is_err() {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(200));
            server.kill();
            flood.join().expect("it ends when the server is gone");
        });
        service.wait_for_lines("disconnected", 2, SOON).expect("both cores notice");
        server.restart().expect("a server");
        service.wait_for_lines("reconnected", 2, SOON).expect("both cores come back");
        let mut after = Listener::new(&server);
        names.iter().for_each(|user| after.publish(&change(user, "alarm 50", "WARNING", &at(1000))));
        after.flush();
        ask_until_told(&mut after, &names, 1);
        after.hear(Duration::from_secs(1));
        for user in &names {
            assert_eq!(after.told_of(user).len(), 1, "{user}\n{}", service.log());
        }
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
        assert!(counted(&service, "changes") >= u64::from(FLOOD + USERS), "{}", service.log());
    });
}
