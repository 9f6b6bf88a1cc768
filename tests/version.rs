//! Which version and commit the program says it is.

use std::path::Path;
use std::process::Command;

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).expect("text").trim().to_owned())
}

#[test]
fn the_version_names_the_commit_where_there_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let commit = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root))
        .filter(|_| root.join(".git").exists());
    let commit = std::env::var("ALARM_DIGEST_COMMIT").ok().filter(|given| !given.is_empty()).or(commit);
    let version = env!("CARGO_PKG_VERSION");
    let expected = match commit {
        Some(commit) => format!("alarm-digest {version} ({commit})"),
        None => format!("alarm-digest {version}"),
    };
    let said = output(Command::new(env!("CARGO_BIN_EXE_alarm-digest")).arg("--version"));
    assert_eq!(said.as_deref(), Some(&*expected));
}
