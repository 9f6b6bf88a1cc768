//! The program against real servers. Ports are chosen free, every wait has a deadline, and what fails shows its logs.

#[path = "../../src/client.rs"]
mod client;
mod contract;
mod faults;
mod hostile;
mod start;
mod world;
