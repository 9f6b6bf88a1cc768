//! Signing in, in every way that NATS has: right, wrong, replaced while the service runs, and missing.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, id};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use nats_server_fixture::{Binary, Process, Server, Signal, eventually, find};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::world::{Listener, SOON, at, change, exit_code, on_each_server, program};

/// Stands in every secret of these tests, and may stand in no log.
const SECRET: &str = "s3cret";

/// Files with secrets, in a directory that is removed at the end.
pub struct Files(PathBuf);

impl Files {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("alarm-digest-credentials-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let files = Self(std::env::temp_dir().join(name));
        fs::create_dir(&files.0).expect("a directory of our own");
        files
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        // In one step, as those who rotate secrets do: nobody reads half of it.
        fs::write(self.0.join("new"), text).expect("it is written");
        fs::rename(self.0.join("new"), &path).expect("it is moved");
        path
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command with these arguments, and one environment variable for each `NAME=value` in capitals among them.
fn command(task: &[&str], arguments: &[String]) -> Command {
    let mut command = program(task);
    for argument in arguments {
        match argument.split_once('=').filter(|(name, _)| name.starts_with("ALARM_DIGEST_")) {
            Some((name, value)) => command.env(name, value),
            None => command.arg(argument),
        };
    }
    command
}

fn args<const N: usize>(arguments: [&str; N]) -> Vec<String> {
    arguments.map(String::from).into()
}

fn shows_no_secret(process: &Process) {
    let log = process.log();
    assert!(!log.contains(SECRET) && !log.contains("SUA"), "{log}");
}

/// The service and the smoke test sign in with `right`; with `wrong`, which the log calls `name`, both are refused.
fn check(server: &Server, right: &[String], wrong: &[String], name: &str) {
    let url = format!("--server={}", server.addr());
    let url: &[String] = if right[0].starts_with("--server") { &[] } else { &[url] };
    let (right, wrong) = ([url, right].concat(), [url, wrong].concat());

    let mut service = Process::spawn(&command(&["--cores", "1"], &right)).expect("it starts");
    service.wait_for_line("all cores are connected", SOON).expect("it connects");
    let mut verify = Process::spawn(&command(&["verify"], &right)).expect("it starts");
    assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
    service.signal(Signal::TERM).expect("it runs");
    assert_eq!(exit_code(&mut service), 0, "{}", service.log());
    shows_no_secret(&service);

    for task in [["--no-wait"], ["verify"]] {
        let mut refused = Process::spawn(&command(&task, &wrong)).expect("it starts");
        assert_eq!(exit_code(&mut refused), 1, "{}", refused.log());
        let expected = format!("Authorization Violation: the server does not accept {name}");
        assert!(refused.stderr().contains(&expected), "expected `{expected}` in {}", refused.log());
        shows_no_secret(&refused);
    }
    let mut waiting = Process::spawn(&command(&["--cores", "1", "--reconnect-delay-max", "100ms"], &wrong))
        .expect("it starts");
    let line = waiting.wait_for_line("cannot connect, trying on", SOON).expect("it says so");
    assert!(line.contains(&format!("the server does not accept {name}")), "{line}");
    // It could be that it is the server that is to be changed.
    waiting.wait_for_lines("cannot connect, trying on", 3, SOON).expect("it tries again");
    shows_no_secret(&waiting);
}

#[test]
fn a_user_signs_in_with_a_password() {
    on_each_server(|binary| {
        let config = format!("authorization {{ users: [{{ user: ann, password: \"{SECRET}@,/%\" }}] }}");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let files = Files::new();
        let right = files.write("right", &format!("{SECRET}@,/%\n"));
        let wrong = files.write("wrong", &format!("{SECRET}\n"));
        check(
            &server,
            &args(["--user", "ann", "--password-file", &right]),
            &args(["--user", "ann", "--password-file", &wrong]),
            &format!("user `ann` with the password in {wrong}"),
        );
        check(
            &server,
            &args(["--user", "ann", &format!("ALARM_DIGEST_PASSWORD={SECRET}@,/%")]),
            &args(["--user", "bob", &format!("ALARM_DIGEST_PASSWORD={SECRET}@,/%")]),
            "user `bob` with the password in ALARM_DIGEST_PASSWORD",
        );
        let url = |password: &str| format!("--server=nats://ann:{password}@{}", server.addr());
        check(
            &server,
            &[url(&format!("{SECRET}%40%2C%2F%25"))],
            &[url(SECRET)],
            "user `ann` with the password in the server's URL",
        );
    });
}

#[test]
fn a_token_is_enough() {
    on_each_server(|binary| {
        let config = format!("authorization {{ token: \"{SECRET}\" }}");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let files = Files::new();
        let (right, wrong) = (files.write("right", SECRET), files.write("wrong", "another"));
        check(
            &server,
            &args(["--token-file", &right]),
            &args(["--token-file", &wrong]),
            &format!("the token in {wrong}"),
        );
        check(
            &server,
            &[format!("ALARM_DIGEST_TOKEN={SECRET}")],
            &[format!("ALARM_DIGEST_TOKEN={SECRET}+")],
            "the token in ALARM_DIGEST_TOKEN",
        );
        let url = |token: &str| format!("--server=nats://{token}@{}", server.addr());
        check(&server, &[url(SECRET)], &[url("another")], "the token in the server's URL");
    });
}

#[test]
fn a_seed_signs_what_the_server_sends() {
    on_each_server(|binary| {
        let (known, unknown) = (KeyPair::new_user(), KeyPair::new_user());
        let config = format!("authorization {{ users: [{{ nkey: {} }}] }}", known.public_key());
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let files = Files::new();
        let right = files.write("right", &known.seed().expect("it has one"));
        let wrong = files.write("wrong", &unknown.seed().expect("it has one"));
        check(
            &server,
            &args(["--nkey-file", &right]),
            &args(["--nkey-file", &wrong]),
            &format!("the nkey seed in {wrong}"),
        );
    });
}

/// Who may say who is who: an operator vouches for an account, and that for its users.
struct Operator {
    operator: KeyPair,
    account: KeyPair,
}

impl Operator {
    fn new() -> Self {
        Self { operator: KeyPair::new_operator(), account: KeyPair::new_account() }
    }

    fn server(&self, binary: &Binary) -> Server {
        Server::builder(binary).config(&self.config(json!({}))).start().expect("a server")
    }

    /// `revocations`: users, and the time up to which what was given to them is no good.
    fn config(&self, revocations: Value) -> String {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let claims = json!({ "type": "account", "limits": limits, "revocations": revocations });
        let account = jwt(&self.operator, &self.account, claims, None);
        let operator = jwt(&self.operator, &self.operator, json!({ "type": "operator" }), None);
        format!(
            "operator: {operator}\nresolver: MEMORY\nresolver_preload: {{ {}: {account} }}",
            self.account.public_key()
        )
    }

    /// The credentials file of a new user, good for so many seconds.
    fn creds(&self, seconds: Option<u64>) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(&self.account, &user, claims, seconds),
            user.seed().expect("it has one")
        )
    }
}

/// A JWT about `subject`, signed by `issuer`. Source: nats-io/jwt, v2/claims.go.
fn jwt(issuer: &KeyPair, subject: &KeyPair, mut nats: Value, seconds: Option<u64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    nats["version"] = json!(2);
    let mut claims = json!({
        "jti": "unchecked", "iat": now, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats,
    });
    if let Some(seconds) = seconds {
        claims["exp"] = json!(now + seconds);
    }
    let encode = |json: Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    let signed = format!("{}.{}", encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(claims));
    let signature = issuer.sign(signed.as_bytes()).expect("it has a seed");
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

#[test]
fn a_credentials_file_is_vouched_for_by_its_account() {
    on_each_server(|binary| {
        let operator = Operator::new();
        let server = operator.server(binary);
        let files = Files::new();
        let right = files.write("right.creds", &operator.creds(None));
        let wrong = files.write("wrong.creds", &Operator::new().creds(None));
        check(
            &server,
            &args(["--creds", &right]),
            &args(["--creds", &wrong]),
            &format!("the JWT and seed in {wrong}"),
        );
    });
}

#[test]
fn credentials_that_expire_are_replaced_without_a_restart() {
    on_each_server(|binary| {
        let operator = Operator::new();
        let server = operator.server(binary);
        let files = Files::new();
        let creds = files.write("it.creds", &operator.creds(Some(5)));
        let arguments =
            ["--server", &server.url(), "--creds", &creds, "--cores", "1", "--reconnect-delay-max", "200ms"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let line = service.wait_for_line("User Authentication Expired", SOON).expect("it says so");
        assert!(
            line.contains(&format!("put new credentials in the place of the JWT and seed in {creds}")),
            "{line}"
        );
        service.wait_for_line("the server does not accept the JWT and seed in", SOON).expect("it tries on");
        files.write("it.creds", &operator.creds(None));
        service.wait_for_line("reconnected", SOON).expect("it has read the new ones");
        shows_no_secret(&service);
    });
}

#[test]
fn a_password_that_was_changed_on_the_server_is_read_anew() {
    on_each_server(|binary| {
        let files = Files::new();
        // The server's directory and ours stand in the same one.
        let directory = files.0.file_name().expect("it has a name").to_str().expect("ASCII");
        let include = format!("include \"../{directory}/server.conf\"");
        let set = |password: &str| {
            files.write("server.conf", &format!("authorization {{ user: ann, password: \"{password}\" }}"));
        };
        set("first s3cret");
        let password = files.write("password", "first s3cret");
        let mut server = Server::builder(binary).config(&include).start().expect("a server");
        let arguments = ["--server", &server.url(), "--user", "ann", "--password-file", &password];
        let mut command = program(&arguments);
        let mut service = Process::spawn(command.args(["--cores", "1", "--reconnect-delay-max", "200ms"]))
            .expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");

        set("second s3cret");
        server.restart().expect("a server");
        service.wait_for_line("the server does not accept user `ann`", SOON).expect("it has the old one");
        fs::remove_file(&password).expect("it was there");
        let line = format!("cannot read user `ann` with the password in {password}");
        // Lines become rarer with each attempt.
        eventually(SOON, &line, || service.log().contains(&line));
        files.write("password", "second s3cret");
        service.wait_for_line("reconnected", SOON).expect("it has read the new one");
        shows_no_secret(&service);
    });
}

#[test]
fn what_is_denied_is_said_with_the_subject_and_to_whom() {
    on_each_server(|binary| {
        let files = Files::new();
        let password = files.write("password", SECRET);
        let user = format!(
            "user: ann, password: {SECRET}, permissions: {{ subscribe: {{ deny: [SendAlarmDigest] }} }}"
        );
        let config = format!("authorization {{ users: [{{ {user} }}] }}");
        let server = Server::builder(binary).config(&config).start().expect("a server");
        let arguments = ["--server", &server.url(), "--user", "ann", "--password-file", &password];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        let line = service.wait_for_line("server refused", SOON).expect("it says so").to_lowercase();
        let denied = "permissions violation for subscription to \"sendalarmdigest\"";
        let advice =
            format!("allow it in the server's permissions for user `ann` with the password in {password}");
        assert!(line.contains(denied) && line.contains(&advice.to_lowercase()), "{line}");
        shows_no_secret(&service);
    });
}

/// A server whose configuration changes while it runs. Whoever comes without credentials may do everything; the service is ann.
struct Changing {
    files: Files,
    server: Server,
    service: Process,
}

const ANN: &str = "user `ann` with the password in ";

impl Changing {
    fn new(binary: &Binary) -> Self {
        let files = Files::new();
        let password = files.write("password", SECRET);
        Self::write(&files, &Self::ann(""));
        // The server's directory and ours stand in the same one.
        let directory = files.0.file_name().expect("it has a name").to_str().expect("ASCII");
        let include = format!("include \"../{directory}/server.conf\"");
        let server = Server::builder(binary).config(&include).start().expect("a server");
        let url = server.url();
        let arguments = ["--server", &url, "--user", "ann", "--password-file", &password];
        let mut service = program(&["--cores", "1", "--reconnect-delay-max", "200ms"]);
        let mut service = Process::spawn(service.args(arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        Self { files, server, service }
    }

    fn ann(permissions: &str) -> String {
        format!("{{ user: ann, password: \"{SECRET}\", permissions: {{ {permissions} }} }}")
    }

    fn write(files: &Files, ann: &str) {
        let users = format!("users: [{{ user: other, password: other }}, {ann}]");
        files.write("server.conf", &format!("authorization {{ {users} }}\nno_auth_user: other"));
    }

    /// What ann may do from now on; without a word, there is no ann.
    fn change(&mut self, ann: &str) {
        Self::write(&self.files, ann);
        self.server.signal(Signal::HUP).expect("it runs");
    }

    /// The log says `said` and what to do; once all is allowed again, the service goes on and tells ann what it has not told.
    fn recovers(&mut self, said: &str) {
        let is_said = |service: &Process| {
            service
                .log()
                .lines()
                .any(|line| line.to_lowercase().contains(&said.to_lowercase()) && line.contains(ANN))
        };
        eventually(SOON, said, || is_said(&self.service));
        let before = self.service.log().matches("reconnected").count();
        self.change(&Self::ann(""));
        self.service.wait_for_lines("reconnected", before + 1, SOON).expect("it comes back");
        let mut listener = Listener::new(&self.server);
        listener.publish(&change("after", "disk", "WARNING", &at(1)));
        listener.ask_until(|_| vec!["after"], |listener| listener.told_of("after").len() == 1);
        shows_no_secret(&self.service);
    }
}

#[test]
fn a_user_that_is_deleted_while_the_service_runs_is_named_and_waited_for() {
    on_each_server(|binary| {
        let mut changing = Changing::new(binary);
        changing.change("");
        changing.recovers("Authorization Violation: the server does not accept user `ann`");
    });
}

#[test]
fn a_subscription_that_is_denied_while_the_service_runs_is_named_and_waited_for() {
    on_each_server(|binary| {
        let mut changing = Changing::new(binary);
        changing.change(&Changing::ann("subscribe: { deny: [AlarmStatusChanged] }"));
        changing.recovers("Permissions Violation for Subscription to \"AlarmStatusChanged\"");
    });
}

#[test]
fn a_digest_that_is_denied_while_the_service_runs_is_told_when_it_is_allowed_again() {
    on_each_server(|binary| {
        let mut changing = Changing::new(binary);
        changing.change(&Changing::ann("publish: { deny: [AlarmDigest] }"));
        eventually(SOON, "the new permissions", || {
            changing.server.log().contains("Reloaded server configuration")
        });
        let mut listener = Listener::new(&changing.server);
        listener.publish(&change("ann", "disk", "WARNING", &at(1)));
        listener.ask("ann");
        listener.flush();
        changing
            .recovers("server refused: Permissions Violation for Publish to \"AlarmDigest\": allow it in");
        assert!(listener.hear_of("ann", SOON), "{}", changing.service.log());
        listener.hear(Duration::from_millis(500));
        assert_eq!(listener.told_of("ann").len(), 1);
    });
}

#[test]
fn a_user_whose_credentials_are_revoked_is_told_who_and_what_to_do() {
    on_each_server(|binary| {
        let operator = Operator::new();
        let files = Files::new();
        files.write("server.conf", &operator.config(json!({})));
        let directory = files.0.file_name().expect("it has a name").to_str().expect("ASCII");
        let include = format!("include \"../{directory}/server.conf\"");
        let mut server = Server::builder(binary).config(&include).start().expect("a server");
        let creds = files.write("it.creds", &operator.creds(None));
        let arguments =
            ["--server", &server.url(), "--creds", &creds, "--cores", "1", "--reconnect-delay-max", "200ms"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let tomorrow =
            SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() + 24 * 3600;
        files.write("server.conf", &operator.config(json!({ "*": tomorrow })));
        server.restart().expect("a server");
        let line = format!("the server does not accept the JWT and seed in {creds}");
        eventually(SOON, &line, || service.log().contains(&line));
        files.write("server.conf", &operator.config(json!({})));
        server.restart().expect("a server");
        service.wait_for_line("reconnected", SOON).expect("it tried on");
        shows_no_secret(&service);
    });
}

/// The start is refused at once, server or not.
fn refused(arguments: &[String], said: &str) {
    let mut service = Process::spawn(&command(&[], arguments)).expect("it starts");
    assert_eq!(exit_code(&mut service), 1, "{}", service.log());
    assert!(service.stderr().contains(said), "expected `{said}` in {}", service.log());
    shows_no_secret(&service);
}

#[test]
fn credentials_that_cannot_be_are_refused_at_the_start() {
    let mut server = Server::start(&find().expect("a nats-server")).expect("a server");
    server.kill();
    let url = format!("--server={}", server.addr());
    let files = Files::new();
    let other = files.write("other", &format!("{SECRET}\n{SECRET}\n"));
    let missing = files.path("missing");
    let seed = KeyPair::new_user().seed().expect("it has one");
    let nkey = files.write("nkey", &seed.replace(&seed[20..30], "AAAAAAAAAA"));
    for (option, file, said) in [
        ("--creds", &missing, format!("cannot read the JWT and seed in {missing}: No such file")),
        ("--creds", &other, format!("cannot use the JWT and seed in {other}: expected a JWT")),
        (
            "--nkey-file",
            &other,
            format!("cannot use the nkey seed in {other}: expected a line with the nkey seed"),
        ),
        (
            "--nkey-file",
            &nkey,
            format!("cannot use the nkey seed in {nkey}: expected the nkey seed of a user, got"),
        ),
        ("--token-file", &other, format!("cannot use the token in {other}: expected one line, got 2")),
        ("--password-file", &other, "expected --user with --password-file".into()),
    ] {
        refused(&args([&url, option, file]), &said);
    }
    refused(&args([&url, "--creds", &other, "--nkey-file", &nkey]), "expected one way to sign in");
    refused(&args([&url, "--user", "ann"]), "expected --password-file or ALARM_DIGEST_PASSWORD");
    refused(
        &args([&format!("--server=nats://ann:{SECRET}%@a")]),
        "expected two hexadecimal digits after each `%`",
    );
}
