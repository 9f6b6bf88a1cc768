//! The examples do what they say, against real servers and against each other.

#[allow(dead_code)]
#[path = "../examples/blocking.rs"]
mod blocking;
#[allow(dead_code)]
#[cfg(target_os = "linux")]
#[path = "../examples/glommio.rs"]
mod glommio_example;
#[allow(dead_code)]
#[path = "../examples/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "../examples/tokio.rs"]
mod tokio_example;

use nats_server_fixture::{Server, available};

#[test]
fn the_clients_hear_themselves_through_a_real_server() {
    for binary in available().expect("a nats-server can be had") {
        let server = Server::start(&binary).expect("it starts");
        check_clients(&server.addr().to_string());
    }
}

#[test]
fn the_clients_hear_themselves_through_the_server_example() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has an address").to_string();
    let served = std::thread::spawn(move || {
        for client in listener.incoming().take(3) {
            // A client that has what it wanted may leave without reading the rest.
            let _ = server::serve(client.expect("a client comes"));
        }
    });
    check_clients(&address);
    served.join().expect("the server does not panic");
}

fn check_clients(address: &str) {
    assert_eq!(blocking::run(address).expect("blocking"), "hello");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    assert_eq!(runtime.block_on(tokio_example::run(address)).expect("tokio"), "hello");
    #[cfg(target_os = "linux")]
    {
        let executor = glommio::LocalExecutor::default();
        assert_eq!(executor.run(glommio_example::run(address)).expect("glommio"), "hello");
    }
    #[cfg(not(target_os = "linux"))]
    blocking::run(address).expect("blocking");
}
