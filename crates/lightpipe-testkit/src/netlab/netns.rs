//! Real processes behind a bad network: two network namespaces joined by a cable.
//!
//! ```text
//!   client namespace                                  server namespace
//!   10.77.0.2  lp0 ◀── down link ──┐      ┌── up link ──▶ lp0  10.77.0.1
//!                   (NFQUEUE here)  └ veth ┘  (NFQUEUE here)
//! ```
//!
//! Not every kernel has netem, so a thread of ours decides: a rule in each namespace hands every packet that comes in
//! from the cable to a queue (NFQUEUE), the thread passes it through a [`Link`], and gives the verdict when its time has
//! come. Packets are taken where they arrive, not where they leave: a packet that is held before it leaves still counts
//! against its sender's socket buffer, and would slow the sender down in a way that no network does.
//!
//! The rule sees packets after segmentation offload was undone, so a burst that left in one system call is lost and
//! delayed packet by packet.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Counters, Link, LinkConfig, Packet};

/// Address of the server's end of the cable.
pub const SERVER_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the client's end of the cable.
pub const CLIENT_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// How long a packet may be late because nobody looked at the queue. The crate that speaks to the kernel shows no file
/// descriptor to wait on, so we look; five thousand times a second costs two percent of a core, and a fifth of a
/// millisecond is nothing beside the delays that people configure.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Packets that the kernel holds for us. 200 ms of 300 Mbit/s; when full the kernel drops the newest.
const KERNEL_QUEUE: u32 = 8_192;
/// Bytes of each packet that the kernel shows us. We only need its length, but it wants to show something.
const SHOWN_BYTES: u16 = 64;
/// Longest time until an end of the cable is running.
const RUNNING_LIMIT: Duration = Duration::from_secs(5);
/// Name of the cable's end in either namespace.
const CABLE: &str = "lp0";

/// Why a lab could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A program is missing.
    #[error("cannot start {program}: install iproute2 and iptables")]
    Missing {
        /// Its name.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A set-up step was refused; most often for want of root.
    #[error("`{step}` was refused (are we root, and has the kernel network namespaces and NFQUEUE?): {words}")]
    Refused {
        /// The command line.
        step: String,
        /// Its standard error.
        words: String,
    },
    /// A namespace could not be entered.
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    /// The packet queue could not be opened.
    #[error("cannot open the packet queue (NFQUEUE)")]
    Queue(#[source] io::Error),
    /// A packet that waits in the kernel cannot be copied.
    #[error("links of a lab of namespaces cannot duplicate packets")]
    Duplicates,
}

/// Two namespaces and the cable between them. Dropping it kills what still runs inside and removes all of it.
///
/// Needs root, `ip` and `iptables`. Both ends have a default route through the cable, because browsers ask for the way to
/// the world to learn their own address; IPv6 is off.
#[derive(Debug)]
#[must_use = "the namespaces are removed when this is dropped"]
pub struct Lab {
    up: Shaper,
    down: Shaper,
    // Dropped last: the shapers' threads live inside.
    client: Namespace,
    server: Namespace,
}

impl Lab {
    /// Builds the lab. `up` is what the client sends, `down` what it receives.
    ///
    /// # Errors
    /// See [`LabError`].
    pub fn new(up: LinkConfig, down: LinkConfig) -> Result<Self, LabError> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let name = format!("lightpipe-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let client = Namespace::add(format!("{name}-client"))?;
        let server = Namespace::add(format!("{name}-server"))?;
        let (c, s) = (client.name.as_str(), server.name.as_str());
        ip(&["link", "add", CABLE, "netns", c, "type", "veth", "peer", "name", CABLE, "netns", s])?;
        client.connect(CLIENT_ADDR, SERVER_ADDR)?;
        server.connect(SERVER_ADDR, CLIENT_ADDR)?;
        client.wait_running()?;
        server.wait_running()?;
        let up = Shaper::start(&server, up, 1)?;
        let down = Shaper::start(&client, down, 2)?;
        Ok(Self { up, down, client, server })
    }

    /// A command that will run inside the server's namespace: add arguments, then spawn it.
    #[must_use]
    pub fn server_exec(&self, program: impl AsRef<OsStr>) -> Command {
        self.server.command(program.as_ref())
    }

    /// A command that will run inside the client's namespace: add arguments, then spawn it.
    #[must_use]
    pub fn client_exec(&self, program: impl AsRef<OsStr>) -> Command {
        self.client.command(program.as_ref())
    }

    /// Runs a closure on a thread inside the server's namespace. Sockets that it opens stay there, and so do the
    /// threads and processes that it starts: a whole async runtime may be built and run in it.
    ///
    /// # Errors
    /// [`LabError::Enter`]
    pub fn in_server<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.server.run(f)
    }

    /// The same inside the client's namespace; this is how a browser comes behind the bad network while its control
    /// connection, on the loopback interface of the namespace, stays quick.
    ///
    /// # Errors
    /// [`LabError::Enter`]
    pub fn in_client<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.client.run(f)
    }

    /// Changes the network under way.
    ///
    /// # Errors
    /// [`LabError::Duplicates`]
    pub fn set_links(&self, up: LinkConfig, down: LinkConfig) -> Result<(), LabError> {
        self.up.reconfigure(up)?;
        self.down.reconfigure(down)
    }

    /// The client has another address from now on, `last` of the same network: a phone that changes from one network to the next.
    ///
    /// # Errors
    /// [`LabError::Refused`]
    pub fn move_client(&self, last: u8) -> Result<(), LabError> {
        let [a, b, c, _] = CLIENT_ADDR.octets();
        let (address, gateway) = (format!("{a}.{b}.{c}.{last}/24"), SERVER_ADDR.to_string());
        for step in [
            &["address", "flush", "dev", CABLE][..],
            &["address", "add", &address, "dev", CABLE],
            &["route", "add", "default", "via", &gateway],
        ] {
            ip(&[&["-n", &self.client.name][..], step].concat())?;
        }
        Ok(())
    }

    /// The client's UDP packets have other ports from now on, and what goes to the old ones is lost: a NAT that forgot its table.
    /// Once in a lab.
    ///
    /// # Errors
    /// [`LabError::Refused`]
    pub fn rebind_client(&self) -> Result<(), LabError> {
        let ports = format!("{CLIENT_ADDR}:20000-29999");
        // Connections of another zone are all new ones; what comes to a port that no new one has is for the old ones.
        for rule in [
            &["-t", "nat", "-A", "POSTROUTING", "-o", CABLE, "-p", "udp", "-j", "SNAT", "--to-source", &ports][..],
            &["-A", "INPUT", "-i", CABLE, "-p", "udp", "-m", "conntrack", "!", "--ctstate", "SNAT", "-j", "DROP"],
            &["-t", "raw", "-A", "PREROUTING", "-i", CABLE, "-p", "udp", "-j", "CT", "--zone", "2"],
            &["-t", "raw", "-A", "OUTPUT", "-o", CABLE, "-p", "udp", "-j", "CT", "--zone", "2"],
        ] {
            self.client.iptables(rule)?;
        }
        Ok(())
    }

    /// What the links did so far, up then down. Counts IP packets of every protocol.
    #[must_use]
    pub fn counters(&self) -> (Counters, Counters) {
        (self.up.look().counters, self.down.look().counters)
    }

    /// How long a packet would wait now before the narrowest place of each link, up then down.
    #[must_use]
    pub fn backlogs(&self) -> (Duration, Duration) {
        (self.up.look().backlog, self.down.look().backlog)
    }
}

/// A named network namespace.
#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Namespace {
    fn add(name: String) -> Result<Self, LabError> {
        ip(&["netns", "add", &name])?;
        Ok(Self { name })
    }

    fn connect(&self, own: Ipv4Addr, other: Ipv4Addr) -> Result<(), LabError> {
        let (address, gateway) = (format!("{own}/24"), other.to_string());
        self.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))?
            // A kernel without IPv6 has nothing to switch off.
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .map_err(LabError::Enter)?;
        for step in [
            &["link", "set", "lo", "up"][..],
            &["address", "add", &address, "dev", CABLE],
            &["link", "set", CABLE, "up"],
            &["route", "add", "default", "via", &gateway],
        ] {
            ip(&[&["-n", &self.name][..], step].concat())?;
        }
        self.iptables(&["-t", "mangle", "-A", "PREROUTING", "-i", CABLE, "-j", "NFQUEUE", "--queue-num", "0"])
    }

    /// Where the new tables of iptables have no such target, the old ones may.
    fn iptables(&self, rule: &[&str]) -> Result<(), LabError> {
        let enter = ["netns", "exec", &self.name];
        ip(&[&enter, &["iptables"][..], rule].concat())
            .or_else(|first| ip(&[&enter, &["iptables-legacy"][..], rule].concat()).map_err(|_| first))
            .map(drop)
    }

    /// Waits until the kernel calls the cable's end running, which may take it a second: whoever asks for interfaces before, such as
    /// GStreamer's ICE, finds none.
    fn wait_running(&self) -> Result<(), LabError> {
        let began = Instant::now();
        loop {
            let shown = ip(&["-n", &self.name, "link", "show", CABLE])?;
            if shown.contains(" state UP ") {
                return Ok(());
            }
            if began.elapsed() > RUNNING_LIMIT {
                return Err(LabError::Refused { step: format!("link set {CABLE} up"), words: shown });
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let inside = thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| f()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        inside.map_err(LabError::Enter)
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> io::Result<()> {
        let file = File::open(PathBuf::from("/run/netns").join(&self.name))?;
        Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whatever still lives in a namespace that we made was started by us.
        let listed = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let own = i32::try_from(std::process::id()).ok();
        for pid in listed.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| Some(*pid) != own) {
            if let Some(pid) = Pid::from_raw(pid) {
                _ = kill_process(pid, Signal::KILL);
            }
        }
        _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Answers what it wrote.
fn ip(args: &[&str]) -> Result<String, LabError> {
    let done = Command::new("ip")
        .args(args)
        .output()
        .map_err(|source| LabError::Missing { program: "ip".to_owned(), source })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(LabError::Refused { step: format!("ip {}", args.join(" ")), words })
}

/// A packet that waits in the kernel for our verdict.
#[derive(Debug)]
struct Held(Message);

impl Packet for Held {
    fn wire_len(&self) -> usize {
        self.0.get_original_len()
    }

    fn duplicate(&self) -> Option<Self> {
        None
    }
}

enum Order {
    Reconfigure(LinkConfig),
    Look(mpsc::Sender<State>),
}

/// How a link is.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    counters: Counters,
    backlog: Duration,
}

/// The thread that shapes one direction. Dropping it ends the thread; packets still held are lost.
#[derive(Debug)]
struct Shaper {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Shaper {
    /// Shapes what arrives in `at`.
    fn start(at: &Namespace, config: LinkConfig, seed: u64) -> Result<Self, LabError> {
        refuse_duplicates(&config)?;
        // The queue belongs to the namespace in which it was opened, whichever thread uses it.
        let queue = at.run(open_queue)?.map_err(LabError::Queue)?;
        let (orders, inbox) = mpsc::channel();
        let link = Link::new(seed, config);
        let thread = thread::Builder::new()
            .name("netlab-shaper".to_owned())
            .spawn(move || shape(queue, link, &inbox))
            .map_err(LabError::Queue)?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    fn reconfigure(&self, config: LinkConfig) -> Result<(), LabError> {
        refuse_duplicates(&config)?;
        if let Some(orders) = &self.orders {
            _ = orders.send(Order::Reconfigure(config));
        }
        Ok(())
    }

    fn look(&self) -> State {
        let (answer, seen) = mpsc::channel();
        if let Some(orders) = &self.orders {
            _ = orders.send(Order::Look(answer));
        }
        seen.recv().unwrap_or_default()
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn refuse_duplicates(config: &LinkConfig) -> Result<(), LabError> {
    if config.duplicate > 0.0 { Err(LabError::Duplicates) } else { Ok(()) }
}

fn open_queue() -> io::Result<Queue> {
    let mut queue = Queue::open()?;
    queue.bind(0)?;
    queue.set_copy_range(0, SHOWN_BYTES)?;
    queue.set_queue_max_len(0, KERNEL_QUEUE)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

fn shape(mut queue: Queue, mut link: Link<Held>, orders: &mpsc::Receiver<Order>) {
    loop {
        match orders.try_recv() {
            Ok(Order::Reconfigure(config)) => link.reconfigure(Instant::now(), config),
            Ok(Order::Look(answer)) => {
                _ = answer.send(State { counters: link.counters(), backlog: link.backlog(Instant::now()) });
            }
            Err(mpsc::TryRecvError::Empty) => {}
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
        // An error here is "nothing there now"; a queue that is broken shows as a network without packets.
        while let Ok(message) = queue.recv() {
            if let Some(Held(mut lost)) = link.send(Instant::now(), Held(message)) {
                lost.set_verdict(Verdict::Drop);
                _ = queue.verdict(lost);
            }
        }
        while let Some(Held(mut arrived)) = link.poll(Instant::now()) {
            arrived.set_verdict(Verdict::Accept);
            _ = queue.verdict(arrived);
        }
        let until_next = link.next_at().map_or(LOOK_EVERY, |at| at.saturating_duration_since(Instant::now()));
        thread::sleep(until_next.min(LOOK_EVERY));
    }
}
