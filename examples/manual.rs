//! Writes what is installed beside the program: the manual pages and the completions for shells, from the command line as it
//! is. Into the folder `share` of a prefix:
//!
//! ```sh
//! cargo run --release --example manual -- /usr/local/share
//! ```

use std::fs::create_dir_all;
use std::io;
use std::path::PathBuf;

use alarm_digest::config::Cli;
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

/// Where each shell looks for them.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

fn main() -> io::Result<()> {
    let share = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "target/share".into()));
    for (shell, folder) in COMPLETIONS {
        let folder = share.join(folder);
        create_dir_all(&folder)?;
        println!("{}", generate_to(shell, &mut Cli::command(), "alarm-digest", folder)?.display());
    }
    let pages = share.join("man/man1");
    create_dir_all(&pages)?;
    clap_mangen::generate_to(Cli::command(), &pages)?;
    println!("{}", pages.display());
    Ok(())
}
