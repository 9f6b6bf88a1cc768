//! `deploy/seccomp.json`: under that filter the program runs in both modes, and without io_uring in it the program says so.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/client.rs"]
mod client;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "service/world.rs"]
mod world;

use std::fmt::Write;
use std::process::Command;

use nats_server_fixture::{Process, Server, Signal, find};
use seccompiler::{BpfProgram, compile_from_json};
use serde_json::{Value, json};
use world::{SOON, exit_code};

const PROFILE: &str = include_str!("../deploy/seccomp.json");

/// The profile as a container runtime gives it to the kernel, without the system calls that begin with `left_out`.
fn filter(left_out: &str) -> BpfProgram {
    let profile: Value = serde_json::from_str(PROFILE).expect("JSON");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let groups = profile["syscalls"].as_array().expect("groups");
    assert!(groups.iter().all(|group| group["action"] == "SCMP_ACT_ALLOW" && group.get("args").is_none()));
    let names = groups.iter().flat_map(|group| group["names"].as_array().expect("names"));
    let names =
        names.filter_map(Value::as_str).filter(|name| left_out.is_empty() || !name.starts_with(left_out));
    let rules: Vec<Value> = names.map(|name| json!({ "syscall": name })).collect();
    let filter = json!({ "all": {
        "mismatch_action": { "errno": profile["defaultErrnoRet"] },
        "match_action": "allow",
        "filter": rules,
    }});
    let architecture = std::env::consts::ARCH.try_into().expect("an architecture with a filter");
    let mut filters =
        compile_from_json(filter.to_string().as_bytes(), architecture).expect("names that exist");
    filters.remove("all").expect("the one filter")
}

/// Starts the program under the filter, which Python, whose standard library can, sets as a container runtime does.
fn spawn(filter: &BpfProgram, arguments: &[&str]) -> Process {
    const UNDER: &str = r"
import ctypes, os, struct, sys
code = bytes.fromhex(sys.argv[1])
held = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[2], sys.argv[2:])
";
    let mut code = String::new();
    for step in filter {
        let [a, b] = step.code.to_ne_bytes();
        let [c, d, e, f] = step.k.to_ne_bytes();
        for byte in [a, b, step.jt, step.jf, c, d, e, f] {
            write!(code, "{byte:02x}").expect("memory does not fail");
        }
    }
    let mut python = Command::new("python3");
    python.args(["-c", UNDER, &code, env!("CARGO_BIN_EXE_alarm-digest")]).args(arguments);
    python.env_remove("NATS_URL").env("RUST_LOG", "info");
    Process::spawn(&python).expect("python3 starts")
}

#[test]
fn the_program_runs_under_the_filter_that_we_give_to_containers() {
    let server = Server::builder(&find().expect("a nats-server")).jetstream().start().expect("a server");
    let (filter, url) = (filter(""), server.url());
    for mode in ["memory", "jetstream"] {
        let mut service = spawn(&filter, &["--server", &url, "--cpus", "0,0", "--mode", mode]);
        service.wait_for_line("all cores are connected", SOON).expect("it connects");
        let mut verify = spawn(&filter, &["verify", "--server", &url]);
        assert_eq!(exit_code(&mut verify), 0, "{}\n{}", verify.log(), service.log());
        service.signal(Signal::TERM).expect("it runs");
        assert_eq!(exit_code(&mut service), 0, "{}", service.log());
    }
}

#[test]
fn a_filter_without_io_uring_is_said_at_the_start() {
    let mut service = spawn(&filter("io_uring"), &[]);
    assert_eq!(exit_code(&mut service), 1, "{}", service.log());
    assert!(service.stderr().contains("expected a kernel with io_uring"), "{}", service.log());
    assert!(service.stderr().contains("seccomp"), "{}", service.log());
}
