//! Whether this machine lets the service run, asked before anything is started: CPUs, memory that may be locked,
//! io_uring. Each refusal names its cause and its cure.
//!
//! glommio would say the same only at the end, from inside an executor, and in part by a panic.

use alarm_digest::config::RunArgs;
use anyhow::{Result, bail, ensure};
use rustix::process::{Resource, getrlimit};
use rustix::thread::sched_getaffinity;

/// Source: glommio 0.9, executor/mod.rs: an executor refuses to start below this limit.
const MEMLOCK_BYTES_PER_CORE: u64 = 512 * 1024;

/// The CPU of each core.
pub fn preflight(run: &RunArgs) -> Result<Vec<usize>> {
    let cpus = choose_cpus(run)?;
    check_memlock(cpus.len() as u64)?;
    check_io_uring()?;
    Ok(cpus)
}

fn choose_cpus(run: &RunArgs) -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let allowed: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    if let Some(list) = &run.cpus {
        if let Some(cpu) = list.0.iter().find(|cpu| !allowed.contains(cpu)) {
            bail!(
                "expected --cpus to name CPUs that this process may use ({allowed:?}), got {cpu}. \
                 Choose from these, or widen the affinity (taskset, cgroup cpuset, systemd CPUAffinity)."
            );
        }
        return Ok(list.0.clone());
    }
    let cores = run.cores.unwrap_or(allowed.len());
    ensure!(
        (1..=allowed.len()).contains(&cores),
        "expected --cores to be from 1 to {}, the number of CPUs that this process may use, got {cores}. \
         To run several cores on one CPU, name it several times with --cpus.",
        allowed.len()
    );
    Ok(allowed[..cores].to_vec())
}

fn check_memlock(cores: u64) -> Result<()> {
    // Privileged processes are not charged, but glommio looks at the limit all the same.
    let is_charged = !may_lock_memory();
    let needed = if is_charged { cores * MEMLOCK_BYTES_PER_CORE } else { MEMLOCK_BYTES_PER_CORE };
    match getrlimit(Resource::Memlock).current {
        Some(limit) if limit < needed => bail!(
            "expected a limit of at least {} KiB of locked memory for {cores} cores (512 KiB each), got {} KiB. \
             Raise it: `ulimit -l {}`, LimitMEMLOCK= in systemd, or --ulimit memlock= in Docker; or use fewer --cores.",
            needed / 1024,
            limit / 1024,
            needed / 1024
        ),
        _ => Ok(()),
    }
}

/// Whether the process has CAP_IPC_LOCK, bit 14. Source: Linux, include/uapi/linux/capability.h.
fn may_lock_memory() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    effective & (1 << 14) != 0
}

fn check_io_uring() -> Result<()> {
    let Err(error) = io_uring::IoUring::new(8) else { return Ok(()) };
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSYS) => bail!(
            "expected a kernel with io_uring, got `{error}`. Linux 5.8 or newer has it; under gVisor and on some \
             hardened kernels it is compiled out or blocked by a seccomp filter that answers so."
        ),
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => bail!(
            "expected to be allowed to use io_uring, got `{error}`. Either the sysctl kernel.io_uring_disabled is not 0 \
             (now: {}), or a seccomp filter blocks it, as Docker's default profile does: allow io_uring_setup, \
             io_uring_enter and io_uring_register there.",
            std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                .map_or("unknown".into(), |text| text.trim().to_owned())
        ),
        Some(rustix::io::Errno::NOMEM) => bail!(
            "expected enough memory that may be locked for io_uring, got `{error}`. Raise it: `ulimit -l`, \
             LimitMEMLOCK= in systemd, or --ulimit memlock= in Docker."
        ),
        _ => bail!("expected io_uring to work, got `{error}`"),
    }
}
