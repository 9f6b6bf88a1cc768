//! What went wrong, as text: nobody who starts a server for a test can do more than show it.

use std::fmt;

/// What was tried, what came, and where known the cure. `Debug` shows the same text, so that `unwrap` in a test reads
/// well.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Says what was tried before the reason it failed.
pub(crate) trait Trying<T> {
    fn trying(self, what: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Trying<T> for Result<T, E> {
    fn trying(self, what: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|reason| Error(format!("{what}: {reason}")))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
