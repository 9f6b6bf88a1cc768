//! Tells systemd how it goes, for `Type=notify` and `WatchdogSec=`: connected, stopping, alive.
//!
//! Alive is the whole service: one core that has stopped turning loses its share of the users, so its silence is ours, and
//! systemd starts us anew.
//!
//! Never: a failure of the service because systemd cannot be told. Source of the protocol: sd_notify(3), sd_watchdog_enabled(3).

use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use alarm_digest::status::CoreStatus;
use tracing::warn;

use crate::driver::Common;
use crate::stop::Stage;

/// Longest wait for systemd to read what it has been told before.
const SAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks at the cores when there is no watchdog.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A core says something each second, so less silence than this means nothing.
const SILENCE_MIN: Duration = Duration::from_secs(3);

/// systemd, where it has started us and wants to be told.
pub struct Systemd {
    socket: Option<UnixDatagram>,
    /// It ends us when it has heard nothing for so long.
    watchdog: Option<Duration>,
}

impl Systemd {
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let socket = variable("NOTIFY_SOCKET").and_then(|place| match connect(&place) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!("cannot tell systemd how it goes: NOTIFY_SOCKET={place}: {error}");
                None
            }
        });
        Self { socket, watchdog: watchdog(variable) }
    }

    /// All cores are connected and subscribed.
    pub fn say_ready(&self) {
        self.say("READY=1\nSTATUS=all cores are connected and subscribed");
    }

    /// It ends, and does this meanwhile.
    pub fn say_stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// Says again and again how the cores are, and that they are alive as long as they are.
    pub fn watch(&self, common: &Common) {
        if self.socket.is_none() {
            return;
        }
        let silence_max = self.watchdog.map(|span| (span / 2).max(SILENCE_MIN));
        let mut was_alive = true;
        loop {
            std::thread::sleep(self.watchdog.map_or(LOOK_EVERY, |span| span / 4));
            let since = silence_max.and_then(|span| common.epoch.elapsed().checked_sub(span));
            let silent = since.map(|since| common.status.silent_since(since)).unwrap_or_default();
            // Cores that are drained have ended, and --drain-timeout watches over the others.
            let is_draining = common.stop.stage() != Stage::Run;
            let is_alive = silent.is_empty() || is_draining;
            if was_alive && !is_alive {
                let cores: Vec<usize> = silent.iter().map(|core| core.0).collect();
                warn!(?cores, ?silence_max, "cores hang: systemd's watchdog will end the service");
            }
            was_alive = is_alive;
            self.say(&news(&common.status.cores(), is_draining, is_alive && self.watchdog.is_some()));
        }
    }

    fn say(&self, lines: &str) {
        if let Some(socket) = &self.socket {
            // It may be about to be restarted itself.
            let _ = socket.send(lines.as_bytes());
        }
    }
}

/// What systemd is told of the cores. The status is what `systemctl status` shows.
fn news(cores: &[CoreStatus], is_draining: bool, feeds_watchdog: bool) -> String {
    let sum = |what: fn(&CoreStatus) -> usize| cores.iter().map(what).sum::<usize>();
    let mut news = String::from(if feeds_watchdog { "WATCHDOG=1\n" } else { "" });
    let state = if is_draining { "draining, " } else { "" };
    let connected = sum(|core| usize::from(core.ready_at.is_some()));
    let (users, alarms) = (sum(|core| core.users), sum(|core| core.alarms));
    let _ = write!(
        news,
        "STATUS={state}{connected} of {} cores connected, {users} users and {alarms} alarms in memory",
        cores.len()
    );
    news
}

fn connect(place: &str) -> io::Result<UnixDatagram> {
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SAY_TIMEOUT))?;
    Ok(socket)
}

/// What `variable` says of the watchdog, if it means this process.
fn watchdog(variable: impl Fn(&'static str) -> Option<String>) -> Option<Duration> {
    if variable("WATCHDOG_PID").is_some_and(|pid| pid != std::process::id().to_string()) {
        return None;
    }
    let micros = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names() {
        let ours = std::process::id().to_string();
        for (pid, micros, expected) in [
            (None, Some("30000000"), Some(Duration::from_secs(30))),
            (Some(&*ours), Some("500000"), Some(Duration::from_millis(500))),
            (Some("1"), Some("30000000"), None),
            (None, None, None),
            (None, Some("0"), None),
            (None, Some("soon"), None),
        ] {
            let variable = |name| match name {
                "WATCHDOG_PID" => pid.map(str::to_owned),
                "WATCHDOG_USEC" => micros.map(str::to_owned),
                _ => None,
            };
            assert_eq!(watchdog(variable), expected, "{pid:?} {micros:?}");
        }
    }

    #[test]
    fn what_systemd_is_told_is_one_line_for_each_thing() {
        let core = |ready_at| CoreStatus { ready_at, users: 2, alarms: 3, ..CoreStatus::default() };
        let cores = [core(Some(Duration::ZERO)), core(None)];
        let status = "STATUS=1 of 2 cores connected, 4 users and 6 alarms in memory";
        assert_eq!(news(&cores, false, true), format!("WATCHDOG=1\n{status}"));
        assert_eq!(news(&cores, false, false), status);
    }
}
