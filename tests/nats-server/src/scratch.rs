//! A directory for one child: gone with it, or kept when a test fails.

use std::path::Path;
use std::thread;

use tempfile::TempDir;

use crate::error::{Error, Trying};

/// Removed on drop; kept, and its path printed, when the thread is panicking.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir();
        dir.map(Self).trying("could not make a temporary directory")
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("kept for a look: {}", self.path().display());
        }
    }
}
