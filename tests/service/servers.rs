//! Servers that tell of each other, and servers that tell that they are about to close.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nats_server_fixture::{Binary, Process, Server, Signal, eventually};

use crate::world::{
    Client, Listener, SOON, at, change, connect, counted, exit_code, on_each_server, program, service,
};

/// Two servers, each of which tells of the other.
pub fn two_servers(binary: &Binary, config: &str) -> Vec<Server> {
    let servers = Server::builder(binary).config(config).start_cluster(2).expect("a cluster");
    let tells = |of: &Server, to: &Server| {
        let mut info = String::new();
        let stream = TcpStream::connect(to.addr()).expect("it listens");
        BufReader::new(stream).read_line(&mut info).expect("it says INFO");
        info.contains(&of.addr().to_string())
    };
    eventually(SOON, "the two servers to know each other", || {
        tells(&servers[0], &servers[1]) && tells(&servers[1], &servers[0])
    });
    servers
}

#[test]
fn a_server_that_only_another_one_told_of_is_used_when_that_is_gone() {
    on_each_server(|binary| {
        let mut servers = two_servers(binary, "authorization { user: ann, password: s3cret }");
        let url = format!("nats://ann:s3cret@{}", servers[0].addr());
        let arguments = ["--server", &url, "--cores", "1", "--reconnect-delay-max", "200ms"];
        let mut service = Process::spawn(&program(&arguments)).expect("it starts");
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        servers[0].kill();
        let line = service.wait_for_line("reconnected", SOON).expect("there is another server");
        assert!(line.contains(&servers[1].addr().to_string()), "{line}");
        let url = format!("nats://ann:s3cret@{}", servers[1].addr());
        let mut verify = Process::spawn(&program(&["verify", "--server", &url])).expect("it starts");
        assert_eq!(exit_code(&mut verify), 0, "{}{}", verify.log(), service.log());
        assert!(!service.log().contains("s3cret"), "{}", service.log());
    });
}

/// In lame duck mode, it begins to close connections after so long, which is long enough for those who publish here.
const LAME_DUCK: &str = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"6s\"";

/// Of each of them, one alarm is published at a time.
const USERS: usize = 64;

/// How long there is load before the server is told to go, and after all cores have gone.
const BESIDE: Duration = Duration::from_millis(500);

#[test]
fn a_server_that_is_about_to_close_is_left_under_load_and_nothing_is_lost() {
    on_each_server(|binary| {
        for cores in [1, 2] {
            let mut servers = two_servers(binary, LAME_DUCK);
            let mut service = service(&servers[0], &["--cores", &cores.to_string()]);
            let mut listener = Listener::new(&servers[1]);
            let users: Vec<String> = (0..USERS).map(|user| format!("user {user}")).collect();
            let all = |_: &Listener| users.iter().map(String::as_str).collect();
            // Until the other server knows of the subscriptions.
            listener.ask_until(all, |listener| {
                publish_round(&mut connect(&servers[1]), &users, 0);
                users.iter().all(|user| !listener.told_of(user).is_empty())
            });
            // Half of the users by each server, as fast as they take it.
            let is_over = [AtomicBool::new(false), AtomicBool::new(false)];
            let rounds = thread::scope(|scope| {
                let publishers = [0, 1].map(|half| {
                    let (mut client, is_over) = (connect(&servers[half]), &is_over[half]);
                    let users = &users[half * USERS / 2..][..USERS / 2];
                    scope.spawn(move || {
                        let mut round = 0;
                        while !is_over.load(Ordering::Acquire) {
                            round += 1;
                            publish_round(&mut client, users, round);
                        }
                        round
                    })
                });
                let mut ask_for = |time| {
                    let end = Instant::now() + time;
                    for user in users.iter().cycle() {
                        listener.ask(user);
                        listener.flush();
                        listener.hear(Duration::from_millis(10));
                        if Instant::now() >= end {
                            break;
                        }
                    }
                };
                ask_for(BESIDE);
                servers[0].signal(Signal::USR2).expect("it runs");
                eventually(SOON, "all cores to have moved", || {
                    ask_for(BESIDE / 10);
                    service.log().matches(" moved").count() == cores
                });
                is_over[0].store(true, Ordering::Release);
                ask_for(BESIDE);
                is_over[1].store(true, Ordering::Release);
                publishers.map(|publisher| publisher.join().expect("the server takes all"))
            });
            eprintln!("{cores} cores, {rounds:?} rounds of {} alarms", USERS / 2);
            let is_told = |listener: &Listener, user: usize| {
                listener.told_of(&users[user]).len() > rounds[2 * user / USERS]
            };
            listener.ask_until(all, |listener| (0..USERS).all(|user| is_told(listener, user)));
            listener.hear(BESIDE);
            for (at, user) in users.iter().enumerate() {
                let told = listener.told_of(user);
                let once: BTreeSet<_> = told.iter().collect();
                let expected = 1 + rounds[2 * at / USERS];
                assert_eq!((told.len(), once.len()), (expected, expected), "{user}\n{}", service.log());
            }
            servers[0].kill();
            service.signal(Signal::TERM).expect("it runs");
            assert_eq!(exit_code(&mut service), 0, "{}", service.log());
            let log = service.log();
            assert!(!log.contains("disconnected") && !log.contains("WARN"), "{log}");
            assert_eq!((counted(&service, "moves"), counted(&service, "reconnects")), (cores as u64, 0));
        }
    });
}

/// One alarm of each of `users`, that nobody has heard of unless the round was there before.
fn publish_round(client: &mut Client, users: &[String], round: usize) {
    for user in users {
        let payload = change(user, &round.to_string(), "CRITICAL", &at(round as u32));
        client.publish("AlarmStatusChanged", payload.as_bytes());
    }
    client.flush(Instant::now() + SOON).expect("the server takes it");
}

#[test]
fn a_server_that_is_about_to_close_is_used_to_its_end_if_there_is_no_other() {
    on_each_server(|binary| {
        let config = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
        let mut server = Server::builder(binary).config(config).start().expect("a server");
        let mut service = service(&server, &["--cores", "1", "--reconnect-delay-max", "200ms"]);
        server.signal(Signal::USR2).expect("it runs");
        service.wait_for_line("no other one that we know of", SOON).expect("it says so");
        service.wait_for_line("disconnected", SOON).expect("the server closes the connection");
        server.restart().expect("a server");
        service.wait_for_line("reconnected", SOON).expect("the server is back");
    });
}
