//! The program against real servers. Ports are chosen free, every wait has a deadline, and what fails shows its logs.

mod chaos;
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../../src/client.rs"]
mod client;
mod contract;
mod credentials;
mod faults;
mod hostile;
mod nonsense;
mod proxy;
mod reply;
mod servers;
mod service_api;
mod start;
mod strike;
mod tls;
mod witness;
mod world;
