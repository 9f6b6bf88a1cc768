//! Which commit this is, for `--version`, the log and whoever asks the service.
//!
//! From ALARM_DIGEST_COMMIT where a build has no git (a container, a package), else from the git checkout that this is,
//! else nothing. It never fails, and never asks a checkout that these sources merely lie in. Changes that are not
//! committed are not told: to notice them, each change of a file would have to build everything again.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "ALARM_DIGEST_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let given = std::env::var(VARIABLE).ok().filter(|commit| !commit.is_empty());
    let version_and_commit = match given.or_else(checked_out) {
        Some(commit) => {
            println!("cargo::rustc-env={VARIABLE}={commit}");
            format!("{version} ({commit})")
        }
        None => version,
    };
    println!("cargo::rustc-env=ALARM_DIGEST_VERSION_AND_COMMIT={version_and_commit}");
}

/// The commit of the checkout whose root this folder is.
fn checked_out() -> Option<String> {
    // A folder, or in further work trees a file.
    if !Path::new(".git").exists() {
        return None;
    }
    // HEAD changes with the branch, its log with each commit. Cargo runs this each time if one of them is missing.
    for file in ["HEAD", "logs/HEAD"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", file])?);
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
