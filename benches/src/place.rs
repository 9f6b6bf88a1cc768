//! When, where and of what a comparison was made.
//!
//! Never: a host's name, a path.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nats_server_fixture::Binary;
use time::OffsetDateTime;

/// `2026-11-24T12-03`, UTC.
///
/// # Errors
/// None that is known.
pub fn moment() -> Result<String> {
    let now = OffsetDateTime::now_utc();
    let (date, hour, minute) = (now.date(), now.hour(), now.minute());
    Ok(format!("{date}T{hour:02}-{minute:02}"))
}

/// A comparison by the program `bin`, as Markdown.
///
/// # Errors
/// When the machine does not say what it is.
pub fn describe(bin: &str, server: &Binary, rounds: usize) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = value(&cpuinfo, "model name").unwrap_or("unknown CPU");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let virt = if cpuinfo.contains(" hypervisor") { ", virtual" } else { "" };
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let memory = value(&meminfo, "MemTotal").and_then(|kib| kib.strip_suffix(" kB")?.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or("unknown".into());
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]).unwrap_or_default();
    let changed = changed.lines().filter(|line| !line.contains("benches/record/")).count();

    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let lock = fs::read_to_string(lock).context("expected Cargo.lock beside the workspace")?;
    let crates = ["glommio", "tokio", "async-nats", "serde_json"];
    let crates: Vec<String> =
        crates.iter().filter_map(|name| Some(format!("{name} {}", version(&lock, name)?))).collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();

    let mut text = String::new();
    let line = |text: &mut String, what: &str, value: &str| writeln!(text, "- {what}: {value}");
    line(&mut text, "date", &format!("{} UTC", moment()?))?;
    let commit_line =
        if changed == 0 { commit } else { format!("{commit}, with {changed} files changed since") };
    line(&mut text, "commit", &commit_line)?;
    line(&mut text, "machine", &format!("{cpus} × {cpu}{virt}, {} GiB", memory.unwrap_or(0) >> 20))?;
    line(&mut text, "kernel", &format!("Linux {}", kernel.trim()))?;
    line(&mut text, "load average before", &load.join(" "))?;
    line(&mut text, "server", &server.to_string())?;
    line(&mut text, "compiler", &output("rustc", &["--version"]).unwrap_or("unknown".into()))?;
    line(&mut text, "crates", &crates.join(", "))?;
    line(&mut text, "rounds", &rounds.to_string())?;
    let command = format!("cargo run --release -p alarm-digest-benches --bin {bin} --");
    line(&mut text, "command", &format!("`{}`", format!("{command} {}", arguments.join(" ")).trim()))?;
    Ok(text)
}

/// `name   : value`
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(rest.split_once('"')?.0)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
