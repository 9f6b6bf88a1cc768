//! A disk that is full: JetStream stores nothing more, until the server is started anew with room again.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use nats_server_fixture::{Release, Server, eventually};

use crate::chaos::{Setup, World, chaos};
use crate::world::{SOON, on_each_server};

/// Of the whole file system.
const SIZE: &str = "64m";

/// Seen with 2.9.10: its clients waited for the answer to a PING until it was restarted.
const GIVES_ANSWERS_WHEN_FULL: Release = Release { major: 2, minor: 12, patch: 0 };

#[test]
fn a_disk_that_is_full_loses_and_repeats_nothing_that_was_acknowledged() {
    on_each_server(|binary| {
        if binary.release() < GIVES_ANSWERS_WHEN_FULL {
            return eprintln!("not on {binary}, which answers nobody any more when its disk is full");
        }
        let Some(disk) = Disk::mount() else {
            return eprintln!("left out: only root can mount a small file system, and not everywhere");
        };
        let config =
            format!("jetstream {{ store_dir: {:?}, max_file_store: 100GB }}", disk.0.join("jetstream"));
        let server = Server::builder(binary).config(&config).start().expect("a server");
        chaos(&Setup::new("the disk full, and a restart with room"), vec![server], |world| {
            while world.goes_on() {
                world.pause(700);
                let refused =
                    |world: &World| world.servers[0].log().matches("no space left on device").count();
                let before = refused(world);
                let filler = disk.fill();
                world.injected("disk full");
                eventually(SOON, "JetStream to have no room", || refused(world) > before);
                world.pause(1500);
                fs::remove_file(filler).expect("it is there");
                world.servers[0].restart().expect("a server");
                world.pause(700);
            }
        });
    });
}

/// A file system in memory, mounted as long as this lives.
struct Disk(PathBuf);

impl Disk {
    fn mount() -> Option<Self> {
        let at = std::env::temp_dir().join(format!(
            "alarm-digest-disk-{}-{}",
            std::process::id(),
            fastrand::u32(..)
        ));
        fs::create_dir(&at).expect("a directory of our own");
        let disk = Self(at);
        let options = format!("size={SIZE}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&disk.0).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(disk)
    }

    /// Takes all room that there is: the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).expect("a file");
        for chunk in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0; chunk];
            while file.write_all(&zeros).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}
