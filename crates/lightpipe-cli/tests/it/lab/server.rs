//! The built binary, running.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, Answer};
use super::{PATIENCE, until};

/// The program, with an environment and a folder that hold nothing of the machine's.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lightpipe"));
    let foreign = |name: &OsString| {
        let name = name.to_string_lossy();
        ["HOST", "PORT", "DISPLAY", "RUST_LOG"].contains(&&*name)
            || ["CS_", "LIGHTPIPE_"].iter().any(|p| name.starts_with(p))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| foreign(name)) {
        command.env_remove(name);
    }
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// Describes a server to start.
#[must_use = "nothing runs before `start`"]
pub(crate) struct Launch {
    command: Command,
    host: String,
    port: u16,
}

/// A server of these sources, of small pictures.
pub(crate) fn serve(sources: &[&str]) -> Launch {
    let mut launch = Launch { command: program(), host: "127.0.0.1".to_owned(), port: 0 }.size(320, 180);
    for source in sources {
        launch = launch.args(&["--source", source]);
    }
    launch
}

impl Launch {
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// As many sessions per second as the test likes.
    pub(crate) fn unlimited(self) -> Self {
        self.env("LIGHTPIPE_SERVER_POSTS_PER_SECOND", "0")
    }

    pub(crate) fn size(self, width: u32, height: u32) -> Self {
        self.env("LIGHTPIPE_VIDEO_WIDTH", &width.to_string()).env("LIGHTPIPE_VIDEO_HEIGHT", &height.to_string())
    }

    pub(crate) fn on_host(mut self, host: std::net::Ipv4Addr) -> Self {
        self.host = host.to_string();
        self
    }

    pub(crate) fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    pub(crate) fn with_stdin(mut self, stdin: Stdio) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Starts it and waits until it says where it listens.
    #[track_caller]
    pub(crate) fn start(mut self) -> Server {
        let folder = tempfile::tempdir().unwrap();
        self.command.args(["--host", &self.host, "--port", &self.port.to_string()]);
        self.command.current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = self.command.spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let stderr = text_of(child.stderr.take().unwrap());
        let mut server = Server { child, address: None, started_in: Duration::ZERO, stderr, _folder: folder };
        while server.address.is_none() {
            let Ok(line) = lines.recv_timeout(PATIENCE) else { panic!("the server said nowhere that it listens") };
            server.address =
                line.trim().strip_prefix("http://").and_then(|rest| rest.trim_end_matches('/').parse().ok());
        }
        server.started_in = began.elapsed();
        server
    }
}

pub(super) fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            _ = sender.send(line);
        }
    });
    lines
}

pub(crate) fn text_of(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let end = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let mut text = end.lock().unwrap();
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
        }
    });
    text
}

/// A running server. Dropping it kills it; what it logged is shown when the test fails.
#[must_use = "the server is killed when this is dropped"]
pub(crate) struct Server {
    child: Child,
    address: Option<SocketAddr>,
    /// From the spawn to the printed address.
    pub(crate) started_in: Duration,
    stderr: Arc<Mutex<String>>,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}---", self.stderr.lock().unwrap());
        }
    }
}

impl Server {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        http::request(self.address(), method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], &[])
    }

    /// Posts an offer.
    #[track_caller]
    pub(crate) fn post_offer(&self, stream: &str, offer: &str) -> Answer {
        self.request("POST", &format!("/whep/{stream}"), &[("Content-Type", "application/sdp")], offer.as_bytes())
    }

    /// All peers that the API tells of.
    #[track_caller]
    pub(crate) fn peers(&self) -> Vec<Value> {
        self.get("/api/v1/peers").json()["peers"].as_array().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn peer_ids(&self) -> Vec<String> {
        self.peers().iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until so many peers are connected and no other is there.
    #[track_caller]
    pub(crate) fn wait_peers(&self, count: usize, longest: Duration) -> Duration {
        let began = Instant::now();
        until(&format!("{count} peers, all connected"), longest, || {
            let peers = self.peers();
            (peers.len() == count && peers.iter().all(|p| p["state"] == "connected")).then_some(())
        });
        began.elapsed()
    }

    #[track_caller]
    pub(crate) fn stream(&self, name: &str) -> Value {
        let streams = self.get("/api/v1/streams").json();
        streams["streams"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone()
    }

    /// Lifecycle events from a sequence number on.
    #[track_caller]
    pub(crate) fn events(&self, since: u64) -> Vec<Value> {
        self.get(&format!("/api/v1/events?since={since}")).json()["events"].as_array().unwrap().clone()
    }

    /// Waits for the first event of a name at or after `since`.
    #[track_caller]
    pub(crate) fn wait_event(&self, since: u64, name: &str) -> Value {
        until(&format!("event {name} from {since} on"), PATIENCE, || {
            self.events(since).into_iter().find(|e| e["event"] == name)
        })
    }

    /// The sequence number that the next event will have.
    #[track_caller]
    pub(crate) fn next_seq(&self) -> u64 {
        self.events(0).last().map_or(0, |e| e["seq"].as_u64().unwrap() + 1)
    }

    /// Resident memory, KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, longest: Duration) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let status = until("the server's end", longest, || self.child.try_wait().unwrap());
        (status, began.elapsed())
    }

    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }
}

/// Sends a signal to a process that a test started, or that its server did.
pub(crate) fn send_signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Whether a process runs (a zombie does not).
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Runs the program to its end; answers exit code and standard error.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let text = text_of(child.stderr.take().unwrap());
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            // The pipe is at its end; the reader may need a moment to notice.
            let end = Instant::now() + Duration::from_secs(2);
            while Arc::strong_count(&text) > 1 && Instant::now() < end {
                std::thread::yield_now();
            }
            return (status.code(), text.lock().unwrap().clone());
        }
        if began.elapsed() > PATIENCE {
            _ = child.kill();
            _ = child.wait();
            panic!("{command:?} does not end: {}", text.lock().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
