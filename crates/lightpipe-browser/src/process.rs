//! The browser's process: started, listened to until it names its control port, killed with everything below it.
//!
//! One thread per browser, the keeper, starts the process, owns it and its profile, and ends both. It must be one thread
//! from start to end: Linux sends the parent-death signal when the *thread* that forked ends, and a worker of an async
//! runtime promises nobody how long it lives.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::{BrowserError, Options};

/// Lines of standard error kept for error messages. Chromium is talkative; its first lines name a missing library.
const STDERR_LINES: usize = 60;

/// A browser's process. [`end`](Self::end), or dropping it, kills the process group and removes the profile.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    stderr: Arc<Mutex<VecDeque<String>>>,
    endpoint: Option<oneshot::Receiver<String>>,
    /// Dropping the sender is the order to end.
    keeper: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

/// Writes what the browser needs into its profile and adds its arguments; answers the words that precede the control
/// port's address on standard error.
pub(crate) type Prepare = fn(&mut Command, profile: &Path, &Options) -> io::Result<&'static str>;

impl Process {
    pub(crate) fn start(executable: &Path, options: &Options, prepare: Prepare) -> Result<Self, BrowserError> {
        let profile = tempfile::Builder::new().prefix("lightpipe-browser-").tempdir().map_err(BrowserError::Profile)?;
        let mut command = Command::new(executable);
        let announcement = prepare(&mut command, profile.path(), options).map_err(BrowserError::Profile)?;
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        bind_to_us(&mut command);

        let (started_tx, started_rx) = mpsc::channel();
        let (stop_tx, stop_rx) = mpsc::channel();
        let spawn_failed = |source| BrowserError::Spawn { program: executable.to_owned(), source };
        let keeper = thread::Builder::new()
            .name("browser-keeper".to_owned())
            .spawn(move || keep(command, profile, &started_tx, &stop_rx))
            .map_err(spawn_failed)?;
        let child = started_rx.recv().unwrap_or_else(|_| Err(io::Error::other("the keeper's thread ended")));
        let (pid, pipe) = child.map_err(spawn_failed)?;

        let stderr = Arc::default();
        let (endpoint_tx, endpoint_rx) = oneshot::channel();
        let lines = Arc::clone(&stderr);
        // Ends by itself when the last process that holds the pipe is gone.
        thread::Builder::new()
            .name("browser-stderr".to_owned())
            .spawn(move || listen(pipe, announcement, endpoint_tx, &lines))
            .map_err(spawn_failed)?;
        Ok(Self { pid, stderr, endpoint: Some(endpoint_rx), keeper: Some((stop_tx, keeper)) })
    }

    /// The control port's WebSocket address. Call once.
    pub(crate) async fn endpoint(&mut self, longest: Duration) -> Result<String, BrowserError> {
        let endpoint = self.endpoint.take().ok_or(BrowserError::Disconnected)?;
        let reason = match tokio::time::timeout(longest, endpoint).await {
            Ok(Ok(address)) => return Ok(address),
            Ok(Err(_)) => "it ended".to_owned(),
            Err(_) => format!("waited {longest:?}"),
        };
        Err(BrowserError::NotListening { reason, stderr: self.stderr_tail().join("\n") })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn stderr_tail(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Kills, waits, removes the profile. Blocks for some tens of milliseconds.
    pub(crate) fn end(&mut self) {
        if let Some((stop, keeper)) = self.keeper.take() {
            drop(stop);
            if keeper.join().is_err() {
                tracing::warn!(pid = self.pid, "the browser's keeper panicked");
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

type Started = io::Result<(u32, std::process::ChildStderr)>;

fn keep(mut command: Command, profile: TempDir, started: &mpsc::Sender<Started>, stop: &mpsc::Receiver<()>) {
    let spawned = command.spawn().and_then(|mut child| {
        let pipe = child.stderr.take().ok_or_else(|| io::Error::other("no pipe for standard error"))?;
        Ok((child, pipe))
    });
    let mut child = match spawned {
        Ok((child, pipe)) => {
            _ = started.send(Ok((child.id(), pipe)));
            child
        }
        Err(error) => {
            _ = started.send(Err(error));
            return;
        }
    };
    // Nobody sends: this returns when the other side drops its end.
    _ = stop.recv();
    kill_group(&mut child);
    if let Err(error) = child.wait() {
        tracing::debug!(%error, "waiting for the browser");
    }
    remove(profile);
}

fn listen(pipe: impl io::Read, announcement: &str, endpoint: oneshot::Sender<String>, tail: &Mutex<VecDeque<String>>) {
    let mut endpoint = Some(endpoint);
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if let Some((_, address)) = text.split_once(announcement)
            && let Some(endpoint) = endpoint.take()
        {
            _ = endpoint.send(address.trim().to_owned());
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == STDERR_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
        line.clear();
    }
}

/// Helper processes may still write for a moment after they were killed, and a folder that is written to cannot be
/// removed; half a second of tries is ample.
fn remove(profile: TempDir) {
    let path = profile.keep();
    for _ in 0..20 {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => thread::sleep(Duration::from_millis(25)),
        }
    }
    tracing::warn!("a browser profile could not be removed");
}

/// Makes the child leader of its own process group, so that its helpers can be ended with it, and (Linux) makes it die
/// with the calling thread.
#[cfg(unix)]
fn bind_to_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let die_with_parent = || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        };
        #[allow(unsafe_code, reason = "there is no safe way to run one system call between fork and exec")]
        // SAFETY: the closure runs in the forked child and makes a single prctl system call; it does not allocate, lock
        // or touch memory that it shares with the parent.
        unsafe {
            command.pre_exec(die_with_parent);
        }
    }
}

#[cfg(not(unix))]
fn bind_to_us(_command: &mut Command) {}

#[cfg(unix)]
fn kill_group(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    // The child is not reaped yet, so its number cannot have been given to anybody else.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(windows)]
fn kill_group(child: &mut Child) {
    // Windows has no process groups of this kind; taskkill walks the tree.
    let tree = Command::new("taskkill").args(["/T", "/F", "/PID", &child.id().to_string()]).output();
    if !tree.is_ok_and(|done| done.status.success()) {
        _ = child.kill();
    }
}
