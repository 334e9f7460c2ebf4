//! `cargo xtask instructions`: what a packet costs, in executed instructions.
//!
//! Virtual machines seldom have hardware counters, and CPU time differs from one run to the next. So the release binary
//! runs inside a minimal Linux in QEMU whose clock is the count of executed instructions (`-icount shift=0`: one
//! instruction takes 1 ns). CPU time in there is a count, 1 µs being 1000 instructions, the kernel's own among them,
//! and neither caches nor other work on this machine change it.
//!
//! The price: one emulated core does 1 G instructions a second of its own time. Ten viewers leave it time to spare,
//! more than about ten starve it, and what is late is then counted otherwise than on a machine that keeps up.
//!
//! Debian on x86-64 only: QEMU, busybox and the kernel are Debian's packages. The kernel is kept in the target folder.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::install::{self, For};
use crate::{FEATURES, cargo, root};

/// As many as the limits are made for.
const VIEWERS: u32 = 10;

/// More are refused: the emulated core is far behind them.
const MOST_VIEWERS: u32 = 20;

/// Length of the measurement, in the guest's time.
const SECONDS: u32 = 5;

/// Instructions per microsecond of the guest's time, with `-icount shift=0`.
const PER_MICROSECOND: f64 = 1000.0;

/// Largest ratio of a packet's instructions to the floor's, from [`VIEWERS`] viewers on: fewer share a picture's work
/// among fewer packets. Measured: 2.28 and 2.29.
const LIMIT: f64 = 2.35;

/// The same with bandwidth estimation. Measured: 3.39 to 3.52. The estimator's turns come by time, and this core does fewer
/// packets in that time than a real one: at 4 G instructions a second the ratio is 3.28 (`docs/performance.md`).
const LIMIT_ESTIMATING: f64 = 3.6;

/// For one QEMU run, which takes one or two minutes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// The package that depends on Debian's newest kernel for virtual machines, the smallest that it has.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Where Debian's package has it.
const BUSYBOX: &str = "/bin/busybox";

/// What precedes the exit code of the program on the guest's console.
const EXIT: &str = "exit code of lightpipe: ";

/// One vCPU and no devices but a serial console.
#[rustfmt::skip]
const MACHINE: &[&str] = &[
    // `rep movsb` counts one instruction a byte, so the guest's kernel and libc are told that it is not a fast copy.
    "-M", "q35,hpet=off", "-cpu", "max,-erms,-fsrm", "-smp", "1", "-m", "4096",
    "-accel", "tcg,tb-size=512", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm",
    "-nographic", "-no-reboot", "-nic", "none",
];

/// Everything that costs instructions at random, or that a machine of one's own would not pay, is off.
const KERNEL_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off nopti tsc=reliable clocksource=tsc nokaslr \
                           norandmaps apparmor=0 selinux=0 lsm= init_on_alloc=0 nowatchdog";

/// What one run found.
#[derive(Debug, PartialEq)]
struct Figures {
    /// Instructions per packet.
    packet: f64,
    /// Instructions per packet of the floor: encrypting and handing over, nothing else.
    floor: f64,
    lost: f64,
    undecodable: f64,
    disconnected: f64,
}

pub(crate) fn run(args: &[OsString]) -> Result<(), String> {
    let viewers = viewers(args)?;
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || !install::program(&["apt-get"]) {
        return Err("instructions are counted on x86-64 Debian only: its QEMU, busybox and kernel are used".to_owned());
    }
    install::ensure(For::Counting)?;
    let target = root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    let folder = target.join("instructions");
    fs::create_dir_all(&folder).map_err(about(&folder))?;
    let build = ["build", "--release", "--package", "lightpipe-cli", "--features", FEATURES, "--bin", "lightpipe"];
    succeed(&mut cargo(&build))?;
    let binary = folder.join("lightpipe");
    // Debug information is nine tenths of the file.
    succeed(Command::new("strip").arg("-o").arg(&binary).arg(target.join("release/lightpipe")))?;
    let kernel = kernel(&folder)?;

    let mut table = heading(&kernel);
    let mut faults = Vec::new();
    for (estimation, flag, limit) in [("off", "", LIMIT), ("on", " --estimate", LIMIT_ESTIMATING)] {
        println!("counting with {viewers} viewers, estimation {estimation}: one or two minutes …");
        let bench = format!("bench fanout --viewers {viewers} --seconds {SECONDS} --json{flag}");
        fs::write(folder.join("initrd"), initrd(&binary, &bench)?).map_err(about(&folder))?;
        let found = figures(&emulate(&folder, &kernel)?)?;
        table.push_str(&found.row(viewers, estimation));
        faults.extend(found.faults(viewers, limit).map(|fault| format!("estimation {estimation}: {fault}")));
    }
    println!("\n{table}");
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

fn viewers(args: &[OsString]) -> Result<u32, String> {
    let viewers = match args {
        [] => Some(VIEWERS),
        [number] => number.to_str().and_then(|text| text.parse().ok()).filter(|viewers| *viewers > 0),
        _ => None,
    };
    match viewers {
        Some(viewers @ ..=MOST_VIEWERS) => Ok(viewers),
        Some(viewers) => Err(format!(
            "{viewers} viewers starve in one emulated core of 1 G instructions a second; {MOST_VIEWERS} at most"
        )),
        None => Err("`cargo xtask instructions [VIEWERS]` takes a number of viewers".to_owned()),
    }
}

impl Figures {
    fn ratio(&self) -> f64 {
        self.packet / self.floor
    }

    fn row(&self, viewers: u32, estimation: &str) -> String {
        let Self { packet, floor, lost, undecodable, .. } = self;
        let missing = format!("{lost}/{undecodable}");
        let ratio = self.ratio();
        format!("{viewers:>7}  {estimation:>10}  {packet:>19.0}  {floor:>6.0}  {ratio:>5.2}  {missing:>16}\n")
    }

    /// What is wrong with it. Few viewers have no limit.
    fn faults(&self, viewers: u32, limit: f64) -> impl Iterator<Item = String> {
        let ratio = self.ratio();
        let dear = viewers >= VIEWERS && ratio > limit;
        let broken = self.lost + self.undecodable + self.disconnected > 0.0;
        let dear = dear.then(|| format!("{ratio:.3} times the floor's instructions, the limit is {limit}"));
        let broken = broken.then(|| {
            format!(
                "{} packets lost, {} pictures undecodable, {} viewers disconnected",
                self.lost, self.undecodable, self.disconnected
            )
        });
        dear.into_iter().chain(broken)
    }
}

fn heading(kernel: &Path) -> String {
    let name = kernel.file_name().unwrap_or_default().display();
    let columns = "viewers  estimation  instructions/packet   floor  ratio  lost/undecodable";
    format!("kernel and userland, {name}\n{columns}\n")
}

/// From the guest's console, on which the bench wrote its JSON.
fn figures(console: &str) -> Result<Figures, String> {
    let fault = |what: &str| {
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("the bench in the emulated machine {what}; the console ended with\n{tail}")
    };
    if !console.contains(&format!("{EXIT}0")) {
        return Err(fault("failed"));
    }
    let get = |key| number(console, key).ok_or_else(|| fault(&format!("did not tell `{key}`")));
    Ok(Figures {
        packet: get("cpu_us_per_packet")? * PER_MICROSECOND,
        floor: get("floor_us_per_packet")? * PER_MICROSECOND,
        lost: get("lost_packets")?,
        undecodable: get("undecodable")?,
        disconnected: get("disconnected")?,
    })
}

/// The number that follows a key of a JSON text, where the key is there once.
fn number(json: &str, key: &str) -> Option<f64> {
    let value = json.split_once(&format!("\"{key}\":"))?.1.trim_start();
    value[..value.find([',', '}', ' ', '\r', '\n'])?].parse().ok()
}

/// Runs the machine until it switches itself off, and returns what its console said.
fn emulate(folder: &Path, kernel: &Path) -> Result<String, String> {
    let path = folder.join("console");
    let console = File::create(&path).map_err(about(&path))?;
    let errors = console.try_clone().map_err(about(&path))?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(MACHINE).args(["-append", KERNEL_LINE]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(folder.join("initrd"));
    qemu.stdin(Stdio::null()).stdout(console).stderr(errors);
    let mut child = qemu.spawn().map_err(|error| format!("cannot start QEMU: {error}"))?;
    await_end(&mut child)?;
    let bytes = fs::read(&path).map_err(about(&path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn await_end(child: &mut Child) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(200)),
            // What it wrote tells whether it went well.
            Ok(Some(_)) => return Ok(()),
            Err(error) => return Err(format!("cannot wait for QEMU: {error}")),
        }
    }
    // It may have ended just now.
    _ = child.kill();
    _ = child.wait();
    Err(format!("the emulated machine was not done after {} s", PATIENCE.as_secs()))
}

/// The kernel image: the one that is there, for figures that compare, or the newest from the package archive.
fn kernel(folder: &Path) -> Result<PathBuf, String> {
    let kept = folder.join("kernel");
    if let Some(image) = image(&kept) {
        return Ok(image);
    }
    let unpacked = folder.join("unpacked");
    for old in [&kept, &unpacked] {
        // Mostly there is none.
        _ = fs::remove_dir_all(old);
    }
    fs::create_dir_all(&unpacked).map_err(about(&unpacked))?;
    // The lists of packages may be missing, or so old that they name what is no longer there.
    let package = download(&unpacked).or_else(|_| {
        install::update_lists();
        download(&unpacked)
    })?;
    succeed(Command::new("dpkg-deb").arg("-x").args([&package, &unpacked]))?;
    // Without its modules, which are most of it: what a loopback network needs is built in.
    fs::rename(unpacked.join("boot"), &kept).map_err(about(&kept))?;
    fs::remove_dir_all(&unpacked).map_err(about(&unpacked))?;
    image(&kept).ok_or_else(|| format!("no kernel image in {}", package.display()))
}

fn image(folder: &Path) -> Option<PathBuf> {
    let is_image =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.display().to_string().starts_with("vmlinuz-"));
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find(is_image)
}

/// Fetches the kernel's package into an empty folder.
fn download(folder: &Path) -> Result<PathBuf, String> {
    let depends = Command::new("apt-cache").args(["depends", KERNEL]).stderr(Stdio::null()).output();
    let depends = depends.map_err(|error| format!("cannot start apt-cache: {error}"))?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let name = newest(&depends).ok_or_else(|| format!("the package archive has no {KERNEL}: it is Debian's"))?;
    succeed(Command::new("apt-get").args(["download", "-q", name]).current_dir(folder))?;
    let mut files = fs::read_dir(folder).map_err(about(folder))?.flatten();
    files.next().map(|file| file.path()).ok_or_else(|| format!("apt-get left no {name}"))
}

/// The real package among the words of `apt-cache depends`.
fn newest(depends: &str) -> Option<&str> {
    let version = |word: &str| word.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64").map(str::len);
    depends.split_whitespace().find(|word| version(word).is_some())
}

/// The guest's files: the program, busybox, the libraries of both, and what starts them.
fn initrd(binary: &Path, bench: &str) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for empty in ["dev", "proc", "root", "sys", "tmp"] {
        archive.folder(empty);
    }
    archive.file("init", init(bench).as_bytes());
    archive.file("etc/hosts", b"127.0.0.1 localhost\n");
    let mut copy = |from: &Path, to: &str| {
        archive.file(to, &fs::read(from).map_err(about(from))?);
        Ok::<_, String>(())
    };
    copy(Path::new(BUSYBOX), "bin/busybox")?;
    copy(binary, "bin/lightpipe")?;
    for library in libraries(binary)? {
        copy(Path::new(&library), library.trim_start_matches('/'))?;
    }
    Ok(archive.finish())
}

/// The first process. When it ends early, the kernel panics and the machine switches off.
fn init(bench: &str) -> String {
    format!(
        "#!/bin/busybox sh
export HOME=/root PATH=/bin
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t devtmpfs none /dev
busybox mount -t tmpfs none /tmp
busybox ip link set lo up
lightpipe {bench} >/tmp/out 2>/tmp/err
code=$?
busybox cat /tmp/out /tmp/err
echo \"{EXIT}$code\"
busybox poweroff -f
"
    )
}

/// Absolute paths of the shared libraries that a program needs, its loader among them.
fn libraries(binary: &Path) -> Result<BTreeSet<String>, String> {
    let listed = Command::new("ldd").arg(binary).output().map_err(|error| format!("cannot start ldd: {error}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

/// A cpio archive of the format that the kernel unpacks, "newc". Everything in it is root's, and may be executed.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A folder and those above it, each once.
    fn folder(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        if self.folders.insert(path.to_owned()) {
            self.entry(path, 0o040_755, &[]);
        }
    }

    fn file(&mut self, path: &str, contents: &[u8]) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        self.entry(path, 0o100_755, contents);
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(contents.len()).expect("the kernel's archives hold files below 4 GiB");
        let name_length = path.len() as u32 + 1;
        // inode, mode, uid, gid, links, time, length, 2 device numbers, 2 of a device node, name's length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        let mut header = "070701".to_owned();
        for field in fields {
            _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().display().to_string();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} failed: {status}")),
        Err(error) => Err(format!("cannot start {name}: {error}")),
    }
}

fn about(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"hello");
        archive.folder("a/b");
        let bytes = archive.finish();
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let digits = str::from_utf8(&rest[6 + 8 * index..][..8]).expect("digits");
                usize::from_str_radix(digits, 16).expect("hexadecimal")
            };
            let (mode, length, name_length) = (field(1), field(6), field(11));
            let name = str::from_utf8(&rest[110..][..name_length]).expect("a name");
            let start = (110 + name_length).next_multiple_of(4);
            assert_eq!(&rest[start..][..length], if length == 0 { "" } else { "hello" }.as_bytes());
            names.push((name.to_owned(), mode, length));
            rest = &rest[(start + length).next_multiple_of(4)..];
        }
        let expected =
            [("a\0", 0o040_755, 0), ("a/b\0", 0o040_755, 0), ("a/b/c\0", 0o100_755, 5), ("TRAILER!!!\0", 0, 0)];
        assert_eq!(names, expected.map(|(name, mode, length)| (name.to_owned(), mode, length)));
    }

    #[test]
    fn numbers_are_found_by_their_key() {
        let json = "{\r\n \"floor_us_per_packet\": 6.4,\r\n \"lost\": 0\r\n, \"rss\": null, \"flat\":1e3}";
        assert_eq!(number(json, "floor_us_per_packet"), Some(6.4));
        assert_eq!(number(json, "us_per_packet"), None);
        assert_eq!(number(json, "lost"), Some(0.0));
        assert_eq!(number(json, "rss"), None);
        assert_eq!(number(json, "flat"), Some(1000.0));
    }

    #[test]
    fn a_console_is_read_only_when_the_program_succeeded() {
        let json = "\"cpu_us_per_packet\": 14.5,\n\"disconnected\": 0,\n\"floor_us_per_packet\": 6.5,\n\
                    \"lost_packets\": 1,\n\"undecodable\": 2\n";
        let expected = Figures { packet: 14_500.0, floor: 6_500.0, lost: 1.0, undecodable: 2.0, disconnected: 0.0 };
        assert_eq!(figures(&format!("boot\r\n{json}{EXIT}0\r\n")), Ok(expected));
        assert!(figures(&format!("{json}{EXIT}1\r\n")).is_err());
        assert!(figures(&format!("{EXIT}0\r\n")).is_err());
    }

    #[test]
    fn limits_hold_from_ten_viewers_on_and_loss_is_a_fault_always() {
        let figures = |packet, lost| Figures { packet, floor: 1000.0, lost, undecodable: 0.0, disconnected: 0.0 };
        assert_eq!(figures(2299.0, 0.0).faults(10, 2.3).count(), 0);
        assert_eq!(figures(2301.0, 0.0).faults(10, 2.3).count(), 1);
        assert_eq!(figures(2301.0, 0.0).faults(9, 2.3).count(), 0);
        assert_eq!(figures(2301.0, 1.0).faults(9, 2.3).count(), 1);
    }

    #[test]
    fn the_number_of_viewers_is_checked() {
        let viewers = |args: &[&str]| viewers(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(viewers(&[]), Ok(10));
        assert_eq!(viewers(&["20"]), Ok(20));
        for wrong in [&["21"][..], &["0"], &["ten"], &["1", "2"]] {
            assert!(viewers(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_real_kernel_is_told_from_the_one_that_depends_on_it() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(newest(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("linux-image-cloud-amd64\n"), None);
    }
}
