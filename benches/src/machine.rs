//! What processes and the machine have used, from /proc, and where they may run.
//!
//! Never: an estimate where the kernel counts. Times of threads are in nanoseconds; the kernel tells user and system
//! time apart only in hundredths of a second, so those two are the exact sum, divided in that proportion.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What one process had used at one moment.
#[derive(Clone, Copy, Default, Debug)]
pub struct Reading {
    cpu: Duration,
    user_ticks: u64,
    system_ticks: u64,
    voluntary: u64,
    involuntary: u64,
    /// In memory, in bytes.
    pub resident_bytes: u64,
}

/// What one process has used between two moments.
#[derive(Clone, Copy, Default, Debug)]
pub struct Used {
    /// Processor time of all threads.
    pub cpu: Duration,
    /// The part of it in the program itself.
    pub user: Duration,
    /// The part of it in the kernel.
    pub system: Duration,
    /// Times a thread went to sleep.
    pub voluntary: u64,
    /// Times a thread was taken off its CPU.
    pub involuntary: u64,
}

impl Reading {
    /// Of the process `pid`, now.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let read = |path: String| fs::read_to_string(path);
        let stat = read(format!("/proc/{pid}/stat"))?;
        let (user_ticks, system_ticks) = ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let mut reading = Self { user_ticks, system_ticks, ..Self::default() };
        reading.resident_bytes = field(&read(format!("/proc/{pid}/status"))?, "VmRSS:") * 1024;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path();
            let read = |file| fs::read_to_string(path.join(file));
            // A thread that has just ended is gone, with the little it did since the last reading.
            let (Ok(schedstat), Ok(status)) = (read("schedstat"), read("status")) else { continue };
            let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
            reading.cpu += Duration::from_nanos(nanos);
            reading.voluntary += field(&status, "voluntary_ctxt_switches:");
            reading.involuntary += field(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(reading)
    }

    /// What was used from `earlier` until this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Used {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64;
        let user = cpu.mul_f64(user / (user + system).max(1.0));
        Used {
            cpu,
            user,
            system: cpu - user,
            voluntary: self.voluntary.saturating_sub(earlier.voluntary),
            involuntary: self.involuntary.saturating_sub(earlier.involuntary),
        }
    }
}

/// How busy the whole machine had been at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    at: Instant,
    busy: Duration,
    stolen: Duration,
}

impl Machine {
    /// Now.
    ///
    /// # Errors
    /// When /proc is not as expected.
    pub fn now() -> io::Result<Self> {
        // user nice system idle iowait irq softirq steal. Source: proc_stat(5).
        let stat = fs::read_to_string("/proc/stat")?;
        let numbers: Vec<u64> = stat
            .lines()
            .next()
            .into_iter()
            .flat_map(|line| line.split_whitespace().skip(1).map_while(|number| number.parse().ok()))
            .collect();
        let [user, nice, system, _, _, irq, softirq, steal, ..] = numbers[..] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let busy = duration(user + nice + system + irq + softirq);
        Ok(Self { at: Instant::now(), busy, stolen: duration(steal) })
    }

    /// Since `earlier`: the CPUs that somebody other than those who used `ours` had, and the CPUs that the hypervisor
    /// took; both as a number of CPUs.
    #[must_use]
    pub fn others_since(&self, earlier: &Self, ours: Duration) -> (f64, f64) {
        let passed = (self.at - earlier.at).as_secs_f64().max(1e-3);
        let others = (self.busy - earlier.busy).saturating_sub(ours);
        (others.as_secs_f64() / passed, (self.stolen - earlier.stolen).as_secs_f64() / passed)
    }
}

/// The CPUs that this process may use.
///
/// # Errors
/// The kernel's.
pub fn cpus() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// Keeps the calling thread, and those it starts from now on, on these CPUs.
///
/// # Errors
/// The kernel's.
pub fn pin_thread(cpus: &[usize]) -> io::Result<()> {
    Ok(sched_setaffinity(None, &set(cpus))?)
}

/// Keeps all threads of the process `pid`, and those they start from now on, on these CPUs.
///
/// # Errors
/// The kernel's.
pub fn pin_process(pid: u32, cpus: &[usize]) -> io::Result<()> {
    // Once more for the threads that were started by one that had not been moved yet.
    for _ in 0..2 {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = thread?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            if let Some(id) = id {
                sched_setaffinity(Some(id), &set(cpus))?;
            }
        }
    }
    Ok(())
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    set
}

/// `VmRSS:      5120 kB`, without its unit.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// User and system time, the fields 14 and 15. The second field is a name in parentheses that may hold anything, so we
/// count from the last of them. Source: proc_pid_stat(5).
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let mut from_third = stat.rsplit_once(')')?.1.split_whitespace();
    let user = from_third.nth(14 - 3)?.parse().ok()?;
    Some((user, from_third.next()?.parse().ok()?))
}

fn duration(ticks: u64) -> Duration {
    Duration::from_secs(ticks)
        / u32::try_from(rustix::param::clock_ticks_per_second()).expect("some hundred ticks a second")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_ours_is_seen_as_ours() {
        let (machine, before) = (Machine::now().unwrap(), Reading::of(std::process::id()).unwrap());
        let until = Instant::now() + Duration::from_millis(200);
        let mut turns = 0u64;
        while Instant::now() < until {
            turns += 1;
        }
        assert!(turns > 0);
        let used = Reading::of(std::process::id()).unwrap().since(&before);
        assert!(used.cpu > Duration::from_millis(20), "{used:?}");
        assert_eq!(used.user + used.system, used.cpu);
        let (others, stolen) = Machine::now().unwrap().others_since(&machine, used.cpu);
        assert!(others >= 0.0 && stolen >= 0.0);
    }
}
