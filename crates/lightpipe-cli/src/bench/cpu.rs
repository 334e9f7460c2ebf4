//! CPU time of this thread, of this process's threads by name, and memory. Linux; elsewhere the figures are missing.

use std::time::Duration;

/// CPU time of the calling thread, user and system.
pub(crate) fn this_thread() -> Duration {
    #[cfg(target_os = "linux")]
    {
        of_task("/proc/thread-self").unwrap_or_default()
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}

/// CPU time of all threads whose name begins with `prefix`, and how many there are.
pub(crate) fn threads(prefix: &str) -> Duration {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Duration::ZERO };
    tasks
        .flatten()
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix)))
        .filter_map(|task| of_task(&task.path().to_string_lossy()))
        .sum()
}

/// First field of `schedstat`: nanoseconds on a CPU.
fn of_task(path: &str) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("{path}/schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Resident memory of this process, bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
