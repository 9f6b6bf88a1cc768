//! The service that the examples start.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The service in release mode; the path of the program.
pub fn build() -> Result<PathBuf, Box<dyn Error>> {
    let build = Command::new(env!("CARGO"))
        .args(["build", "--release", "--bin", "alarm-digest", "--message-format=json-render-diagnostics"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .stderr(Stdio::inherit())
        .output()?;
    if !build.status.success() {
        return Err("the build failed".into());
    }
    let messages = String::from_utf8(build.stdout)?;
    let program = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    program.ok_or_else(|| "cargo built no program".into())
}
