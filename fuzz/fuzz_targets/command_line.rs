//! Whole command lines, an argument a line: what is taken makes a configuration that the logic can start with, and a
//! password in a URL is never repeated.
#![no_main]

use std::cell::RefCell;

use alarm_digest::config::Cli;
use alarm_digest::durable::worker::Worker;
use alarm_digest::shard::{Shard, ShardId};
use clap::{Command, CommandFactory, FromArgMatches};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // What depends on the password shows it, or a part of it.
    assert_eq!(said("5ecret-7f3a9c", text), said("0ther-1b2d4e", text));
});

thread_local! {
    /// Building all flags takes ten times as long as reading a line.
    static COMMAND: RefCell<Command> = RefCell::new(Cli::command());
}

/// All that is said of a command line, with this password in a URL.
fn said(password: &str, text: &str) -> String {
    let url = format!("nats://ann:{password}@host");
    let arguments = ["alarm-digest", "--server", &url].into_iter().chain(text.lines());
    let matches = COMMAND.with_borrow_mut(|command| command.try_get_matches_from_mut(arguments));
    let cli = match matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(cli) => cli,
        Err(error) => return error.to_string(),
    };
    let servers = cli.nats.servers();
    assert!(servers.as_ref().map_or_else(|error| error.contains("expected"), |servers| !servers.is_empty()));
    if let Ok(config) = cli.shard_config() {
        drop(Shard::new(ShardId(0), 1, config));
    }
    if let Ok(config) = cli.worker_config() {
        drop(Worker::new(config, "_INBOX.a", 1));
    }
    format!("{cli:?} {servers:?}")
}
