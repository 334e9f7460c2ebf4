//! A child process with a pipe: started in its own process group, dying with us, stopped for certain.

use std::io::Write;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to end itself when asked; FFmpeg looks at its keyboard every 100 ms.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// What to ask a child with before it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// FFmpeg: the letter `q` on its standard input.
    Quit,
    /// Any program: SIGTERM to its process group. Where there are no signals it is killed at once.
    Terminate,
}

/// A running child. Dropping it kills it and what it started, and reaps it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    reaped: Option<ExitStatus>,
}

impl Running {
    /// Starts `command` with its output and errors on pipes.
    ///
    /// Linux ends the child with the **thread** that started it, so that thread must outlive the child.
    pub(crate) fn spawn(command: &mut Command, farewell: Farewell) -> std::io::Result<Self> {
        command
            .stdin(match farewell {
                Farewell::Quit => Stdio::piped(),
                Farewell::Terminate => Stdio::null(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        platform::prepare(command);
        let child = command.spawn()?;
        if let Some(stdout) = &child.stdout {
            platform::enlarge_pipe(stdout);
        }
        Ok(Self { child, reaped: None })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipes; each can be taken once.
    pub(crate) fn take_pipes(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        self.child.stdout.take().zip(self.child.stderr.take())
    }

    /// Waits up to `timeout` for the child to end by itself.
    pub(crate) fn wait_exit(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.reaped.is_some() || platform::has_exited(&mut self.child) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            // There is no portable wait with a timeout; ends are rare and this one is short.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks the child to end, waits a moment, then kills what is left.
    pub(crate) fn stop(&mut self, farewell: Farewell) -> Option<ExitStatus> {
        if self.reaped.is_none() {
            match farewell {
                Farewell::Quit => {
                    // Closing the pipe behind it: a program that reads on gets an end.
                    if let Some(mut stdin) = self.child.stdin.take() {
                        let _ = stdin.write_all(b"q\n");
                    }
                }
                Farewell::Terminate => platform::terminate(&self.child),
            }
            self.wait_exit(STOP_TIMEOUT);
        }
        self.kill()
    }

    /// Kills the child and its process group, and reaps it.
    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        if self.reaped.is_none() {
            // Before it is reaped: until then its process id, and so the group's, is not given to others.
            platform::kill_group(&mut self.child);
            self.reaped = self.child.wait().ok();
        }
        self.reaped
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An end in words: "exited with code 1", "was killed by signal 9".
pub(crate) fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "ended".to_owned();
    };
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was killed by signal {signal}");
    }
    match status.code() {
        Some(0) => "ended without an error (the input ended?)".to_owned(),
        Some(code) => format!("exited with code {code}"),
        None => "ended".to_owned(),
    }
}

#[cfg(unix)]
#[allow(unsafe_code)] // Process groups, the parent-death signal and the pipe's size are libc calls.
mod platform {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, ChildStdout, Command};

    pub(super) fn prepare(command: &mut Command) {
        command.process_group(0);
        #[cfg(target_os = "linux")]
        {
            let parent = std::process::id();
            let die_with_parent = move || {
                // SAFETY: both are plain system calls, allowed between fork and exec; no memory is touched.
                let (set, now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
                if set == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have died before the call above: then no signal will come.
                if u32::try_from(now) != Ok(parent) {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            };
            // SAFETY: the closure only makes async-signal-safe system calls and allocates nothing.
            unsafe { command.pre_exec(die_with_parent) };
        }
    }

    /// 1 MiB, the most that Linux gives an unprivileged process: a writer of large pictures is woken 16
    /// times less often than with the default 64 KiB. Refusal costs only that.
    pub(super) fn enlarge_pipe(stdout: &ChildStdout) {
        #[cfg(target_os = "linux")]
        {
            let fd = std::os::fd::AsRawFd::as_raw_fd(stdout);
            // SAFETY: the descriptor is open, borrowed from `stdout`; the call takes an int by value.
            unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, 1024 * 1024) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = stdout;
    }

    /// Whether the child has ended; leaves it unreaped.
    pub(super) fn has_exited(child: &mut Child) -> bool {
        // SAFETY: all zeros is a valid `siginfo_t`, a C struct of integers and pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is ours to write for the duration of the call.
        let answer = unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, options) };
        // An error means that there is no such child any more. `si_signo` is 0 while it runs.
        answer != 0 || info.si_signo != 0
    }

    pub(super) fn terminate(child: &Child) {
        signal_group(child, libc::SIGTERM);
    }

    pub(super) fn kill_group(child: &mut Child) {
        signal_group(child, libc::SIGKILL);
    }

    fn signal_group(child: &Child, signal: libc::c_int) {
        // Never 0 or -1, which would mean our own group, or everybody.
        if let Ok(pid @ 2..) = libc::pid_t::try_from(child.id()) {
            // SAFETY: a system call without memory; the unreaped child keeps the group's number ours.
            unsafe { libc::kill(-pid, signal) };
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::process::{Child, ChildStdout, Command};

    #[cfg(windows)]
    pub(super) fn prepare(command: &mut Command) {
        // Ctrl-C in our console is ours to handle: CREATE_NEW_PROCESS_GROUP.
        std::os::windows::process::CommandExt::creation_flags(command, 0x0000_0200);
    }

    #[cfg(not(windows))]
    pub(super) fn prepare(_: &mut Command) {}

    pub(super) fn enlarge_pipe(_: &ChildStdout) {}

    pub(super) fn has_exited(child: &mut Child) -> bool {
        !matches!(child.try_wait(), Ok(None))
    }

    pub(super) fn terminate(_: &Child) {}

    pub(super) fn kill_group(child: &mut Child) {
        let _ = child.kill();
    }
}

/// Runs a short-lived `command` and answers what it wrote to standard error; kills it after `timeout`.
pub(crate) fn stderr_of(mut command: Command, timeout: Duration) -> std::io::Result<String> {
    /// Answers are a few kilobytes; a child that floods us is not believed.
    const MAX_LEN: u64 = 256 * 1024;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    platform::prepare(&mut command);
    let mut running = Running { child: command.spawn()?, reaped: None };
    let stderr = running.child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stderr) = stderr {
            let _ = std::io::Read::read_to_end(&mut std::io::Read::take(stderr, MAX_LEN), &mut bytes);
        }
        bytes
    });
    running.wait_exit(timeout);
    running.kill();
    let bytes = reader.join().unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
