//! One child of ours, with its log, its signals and its use of memory and time. It never outlives us.
//!
//! When our process dies, by whatever signal, the kernel kills the child: it is started through `setpriv --pdeathsig`
//! (util-linux), which then becomes the program, under the same process id. Where there is no such setpriv the child
//! is started directly, and outlives a test program that is itself killed by a signal; Drop covers every other end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};

use crate::binary::programs;
use crate::error::{Error, Trying};
use crate::scratch::Scratch;
use crate::wait::poll;

/// How much of its log a child shows when a test fails; the rest is in the directory that is kept.
const LAST_WORDS_LINES: usize = 60;

/// The signal reaches each thread on its own, the last one after kill(2) has returned.
const SUSPEND_WITHIN: Duration = Duration::from_secs(10);

/// A running or ended program whose output goes to files. Drop kills it; while a test fails, Drop also prints the end
/// of its log and keeps the files.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
    /// None for a child whose owner keeps its files.
    _scratch: Option<Scratch>,
}

impl Process {
    /// Starts the program with the arguments, the changes to the environment and the working directory of `command`.
    /// Whatever else it holds does not count: standard input is empty, the output goes to files, and the environment
    /// is never cleared.
    ///
    /// # Errors
    /// When there is no such program, or it cannot be started.
    pub fn spawn(command: &Command) -> Result<Self, Error> {
        let scratch = Scratch::new(&name(command))?;
        let mut process = Self::spawn_in(scratch.path(), command)?;
        process._scratch = Some(scratch);
        Ok(process)
    }

    /// As [`Process::spawn`], with the output appended to files in `dir`.
    pub(crate) fn spawn_in(dir: &Path, command: &Command) -> Result<Self, Error> {
        let name = name(command);
        let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
        let mut command = dying_with_us(command)?;
        // Ctrl-C at a terminal is for us alone; what becomes of the child then is ours to say.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(append(&stdout)?).stderr(append(&stderr)?);
        let child = spawn_for_life(command).trying(format!("could not start {name}"))?;
        Ok(Self { name, child, ended: None, stdout, stderr, _scratch: None })
    }

    /// The process id; another process may have it after the end.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours can be waited for");
        }
        self.ended
    }

    /// Waits for a line, on standard output or standard error, that holds `pattern` as it stands, and returns the
    /// line. Lines that came before the call count too.
    ///
    /// # Errors
    /// When no such line came `within` the time, or before the program ended. The error holds the end of the log.
    pub fn wait_for_line(&mut self, pattern: &str, within: Duration) -> Result<String, Error> {
        self.wait_for_lines(pattern, 1, within)
    }

    /// As [`Process::wait_for_line`], for the `count`th line of the whole log that holds `pattern`: the second
    /// "reconnected", say.
    ///
    /// # Errors
    /// As [`Process::wait_for_line`].
    pub fn wait_for_lines(&mut self, pattern: &str, count: usize, within: Duration) -> Result<String, Error> {
        assert!(count > 0, "lines are counted from one");
        let found = poll(within, || {
            let ended = self.ended(); // before the log, which is then complete
            match complete_lines(&self.log()).filter(|line| line.contains(pattern)).nth(count - 1) {
                Some(line) => Some(Ok(line.to_owned())),
                None => ended.map(Err),
            }
        });
        let came = match found {
            Some(Ok(line)) => return Ok(line),
            Some(Err(status)) => format!("ended with {status}"),
            None => format!("did not say it within {within:?}"),
        };
        let name = &self.name;
        Err(Error::new(format!(
            "waited for {name} to say `{pattern}` ({count}×): it {came}\n{}",
            self.last_words()
        )))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it still runs after `within`; it is left running. The error holds the end of the log.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, Error> {
        poll(within, || self.ended()).ok_or_else(|| {
            Error::new(format!("{} still runs after {within:?}\n{}", self.name, self.last_words()))
        })
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let what = format!("{signal:?} to {}", self.name);
        match self.ended() {
            // Not waited for yet, so the process id is still its own.
            None => kill_process(Pid::from_child(&self.child), signal).trying(what),
            Some(status) => Err(Error::new(format!("{what}: ended with {status}"))),
        }
    }

    /// Freezes it with SIGSTOP; on return all its threads stand still.
    ///
    /// # Errors
    /// When the program has ended, or a thread did not stop in time.
    pub fn suspend(&mut self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        let pid = self.pid();
        poll(SUSPEND_WITHIN, || all_threads_stopped(pid).then_some(()))
            .ok_or_else(|| Error::new(format!("{} did not stop within {SUSPEND_WITHIN:?}", self.name)))
    }

    /// Lets it go on after [`Process::suspend`].
    ///
    /// # Errors
    /// When the program has ended.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    /// Kills it, if it has not ended, and waits until it is gone.
    pub fn kill(&mut self) -> ExitStatus {
        if self.ended().is_none() {
            self.child.kill().expect("a child of ours can be killed");
            self.ended = Some(self.child.wait().expect("a child of ours can be waited for"));
        }
        self.ended.expect("it was waited for")
    }

    /// Memory and processor time, as the kernel tells them now.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn usage(&self) -> Result<Usage, Error> {
        Usage::of(self.pid()).trying(format!("memory and time of {}", self.name))
    }

    /// What each of its threads waits for in the kernel, a line each: of whom to ask why nothing happens. Linux.
    #[must_use]
    pub fn threads(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let read = |task: &std::fs::DirEntry, file: &str| std::fs::read_to_string(task.path().join(file));
        tasks
            .map(|task| {
                let [name, wait, state] =
                    ["comm", "wchan", "stat"].map(|file| read(&task, file).unwrap_or_default());
                let state = state.rsplit_once(')').map_or("", |(_, rest)| rest.get(1..2).unwrap_or_default());
                format!("{} {} {state} {wait}\n", task.file_name().display(), name.trim())
            })
            .collect()
    }

    /// All that came on standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// All that came on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Standard output, then standard error.
    #[must_use]
    pub fn log(&self) -> String {
        let mut log = self.stdout();
        if !log.is_empty() && !log.ends_with('\n') {
            log.push('\n');
        }
        log + &self.stderr()
    }

    /// The end of the log, framed, for an error or a failing test.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let (left_out, last) = lines.split_at(lines.len().saturating_sub(LAST_WORDS_LINES));
        let title = format!("log of {}, without its first {} lines", self.name, left_out.len());
        format!("--- {title}\n{}\n--- end of log", last.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

/// What a process has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// In memory now, in bytes. `VmRSS`.
    pub resident_bytes: u64,
    /// The most that was ever in memory, in bytes. `VmHWM`.
    pub resident_bytes_max: u64,
    /// Processor time of all threads in the program itself; the kernel tells it in hundredths of a second.
    pub user: Duration,
    /// Processor time of all threads in the kernel.
    pub system: Duration,
}

impl Usage {
    /// Processor time of all threads.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }

    fn of(pid: u32) -> Result<Self, Error> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).trying(path)
        };
        let (status, stat) = (read("status")?, read("stat")?);
        let parsed = || {
            let (user, system) = processor_ticks(&stat)?;
            Some(Self {
                resident_bytes: kibibytes(&status, "VmRSS:")? * 1024,
                resident_bytes_max: kibibytes(&status, "VmHWM:")? * 1024,
                user: duration(user),
                system: duration(system),
            })
        };
        parsed().ok_or_else(|| Error::new("not told by the kernel; it has ended"))
    }
}

/// `VmRSS:      5120 kB`. Source: proc_pid_status(5).
fn kibibytes(status: &str, field: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(field))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// User and system time, the fields 14 and 15. The second field is a name in parentheses that may hold anything, so
/// we count from the last of them. Source: proc_pid_stat(5).
fn processor_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut from_third = stat.rsplit_once(')')?.1.split_whitespace();
    let user = from_third.nth(14 - 3)?.parse().ok()?;
    Some((user, from_third.next()?.parse().ok()?))
}

/// Whether the state, the field after the name in parentheses, is `T` for each. A thread that ends meanwhile is gone.
fn all_threads_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| match fs::read_to_string(thread.path().join("stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, fields)| fields.starts_with(" T ")),
        Err(_) => true,
    })
}

fn duration(ticks: u64) -> Duration {
    Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second()).expect("some hundred ticks a second")
}

fn complete_lines(log: &str) -> impl Iterator<Item = &str> {
    log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn append(path: &Path) -> Result<File, Error> {
    OpenOptions::new().create(true).append(true).open(path).trying(path.display())
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The same command by way of setpriv. The program is looked for here: setpriv's word for a missing one would be an
/// exit status, long after.
fn dying_with_us(command: &Command) -> Result<Command, Error> {
    let program = Path::new(command.get_program());
    let found = if program.components().count() > 1 {
        program.is_file().then(|| std::path::absolute(program).unwrap_or_else(|_| program.to_owned()))
    } else {
        programs(&program.to_string_lossy()).next()
    };
    let found = found.ok_or_else(|| Error::new(format!("no program {}", program.display())))?;

    let mut ours = match setpriv() {
        Some(setpriv) => {
            let mut ours = Command::new(setpriv);
            ours.args(["--pdeathsig", "KILL", "--"]).arg(found);
            ours
        }
        None => Command::new(found),
    };
    ours.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => ours.env(name, value),
            None => ours.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        ours.current_dir(dir);
    }
    Ok(ours)
}

/// A setpriv that can do what we ask; busybox's cannot.
fn setpriv() -> Option<&'static Path> {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let can = |setpriv: &PathBuf| {
        let mut trial = Command::new(setpriv);
        trial.args(["--pdeathsig", "KILL", "--", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        trial.status().is_ok_and(|status| status.success())
    };
    SETPRIV.get_or_init(|| programs("setpriv").next().filter(can)).as_deref()
}

/// Starts a child from a thread that lives as long as we do.
///
/// The kernel's "parent", whose death is the child's, is the thread that started it. A child started by one test, and
/// kept in a static or handed to another thread, would die with that test's thread.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, received) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in received {
                let _ = reply.send(command.spawn()); // who ordered waits below
            }
        });
        orders
    });
    let (reply, child) = mpsc::channel();
    orders.send((command, reply)).expect("the thread that starts children never ends");
    child.recv().expect("each order is answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "42 (a ) b (c) R 1 42 42 0 -1 4194304 90 0 0 0 1234 567 0 0 20 0 1 0 100 8192 200";
        assert_eq!(processor_ticks(stat), Some((1234, 567)));
        assert_eq!(processor_ticks("42 (sh) R 1"), None);
    }

    #[test]
    fn ticks_are_hundredths_of_a_second() {
        assert_eq!(duration(clock_ticks_per_second()), Duration::from_secs(1));
    }

    #[test]
    fn half_a_line_is_not_a_line() {
        assert_eq!(complete_lines("one\ntwo\nthr").collect::<Vec<_>>(), ["one", "two"]);
    }
}
