//! Servers that tell of each other.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use nats_server_fixture::{Binary, Process, Server, eventually};

use crate::world::{SOON, exit_code, on_each_server, program};

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
