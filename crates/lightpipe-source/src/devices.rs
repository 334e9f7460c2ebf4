//! What can be captured here: cameras, screens, audio inputs, monitors of outputs.
//!
//! Linux answers from `/sys`, `/dev` and `/tmp/.X11-unix`; Windows and macOS know cameras and screens only through
//! FFmpeg's `-list_devices`, whose text is parsed. Sound is asked of the system that `mic` listens to.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ffmpeg::args::Platform;

/// How long FFmpeg may take to name the devices; DirectShow wakes every camera for it.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// What a device delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// A camera or capture card: `camera:ID`.
    Camera,
    /// A screen: `desktop:ID`.
    Screen,
    /// An audio input: `mic:ID`.
    Microphone,
    /// What an audio output plays: `mic:ID`.
    Monitor,
}

/// Something that a source can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What it delivers.
    pub kind: DeviceKind,
    /// What goes behind the colon of the source's specification.
    pub id: String,
    /// For people.
    pub name: String,
}

/// The devices of this machine. An empty list when there are none, or nobody can tell.
pub fn list(ffmpeg: &OsStr) -> Vec<Device> {
    let ask = |args: &[&str]| {
        let mut command = Command::new(ffmpeg);
        command.arg("-hide_banner").args(args);
        crate::child::stderr_of(command, LIST_TIMEOUT).unwrap_or_default()
    };
    let devices: Vec<Device> = match Platform::here() {
        Platform::Windows => {
            let text = ask(&["-list_devices", "true", "-f", "dshow", "-i", "dummy"]);
            let screen = device(DeviceKind::Screen, "desktop", "the whole desktop");
            std::iter::once(screen).chain(in_dshow_list(&text)).collect()
        }
        Platform::MacOs => in_avfoundation_list(&ask(&["-f", "avfoundation", "-list_devices", "true", "-i", ""])),
        Platform::Linux => {
            let display = std::env::var("DISPLAY").ok();
            let screens = x11_screens(Path::new("/tmp/.X11-unix"), display.as_deref());
            let cameras = v4l2_cameras(Path::new("/dev"), Path::new("/sys/class/video4linux"));
            screens.into_iter().chain(cameras).collect()
        }
    };
    #[cfg(feature = "mic")]
    let devices = {
        // FFmpeg's names of audio inputs are not those that `mic` knows.
        let seen = devices.into_iter().filter(|device| device.kind != DeviceKind::Microphone);
        seen.chain(crate::mic::list()).collect()
    };
    devices
}

fn device(kind: DeviceKind, id: impl Into<String>, name: impl Into<String>) -> Device {
    Device { kind, id: id.into(), name: name.into() }
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Local X displays by their sockets, the one of our environment first.
fn x11_screens(sockets: &Path, environment: Option<&str>) -> Vec<Device> {
    let mut numbers: Vec<u32> =
        file_names(sockets).iter().filter_map(|name| name.strip_prefix('X')?.parse().ok()).collect();
    numbers.sort_unstable();
    let mut ids: Vec<String> = numbers.iter().map(|n| format!(":{n}")).collect();
    if let Some(own) = environment.filter(|d| !d.is_empty()) {
        ids.retain(|id| id != own.strip_suffix(".0").unwrap_or(own));
        ids.insert(0, own.to_owned());
    }
    ids.into_iter()
        .map(|id| {
            let name = format!("X display {id}");
            device(DeviceKind::Screen, id, name)
        })
        .collect()
}

/// V4L2 devices that deliver pictures. A camera has several nodes; the first (`index` 0) is the pictures',
/// the others carry metadata.
fn v4l2_cameras(dev: &Path, sys: &Path) -> Vec<Device> {
    let mut numbers: Vec<u32> =
        file_names(dev).iter().filter_map(|name| name.strip_prefix("video")?.parse().ok()).collect();
    numbers.sort_unstable();
    let read = |n: u32, what: &str| {
        let text = std::fs::read_to_string(sys.join(format!("video{n}")).join(what)).ok()?;
        Some(text.trim().to_owned())
    };
    numbers
        .into_iter()
        .filter(|n| read(*n, "index").is_none_or(|index| index == "0"))
        .map(|n| {
            let id = dev.join(format!("video{n}")).display().to_string();
            let name = read(n, "name").unwrap_or_else(|| id.clone());
            device(DeviceKind::Camera, id, name)
        })
        .collect()
}

/// Devices in the text of FFmpeg's DirectShow list, of both styles: up to 4.4 under headings, since 5.0 with
/// `(video)` or `(audio)` behind each name.
fn in_dshow_list(text: &str) -> Vec<Device> {
    let mut devices = Vec::new();
    let mut heading = None;
    for line in text.lines().filter(|l| l.starts_with("[dshow @")) {
        if line.contains("DirectShow video devices") {
            heading = Some(DeviceKind::Camera);
        } else if line.contains("DirectShow audio devices") {
            heading = Some(DeviceKind::Microphone);
        }
        // The line below a device repeats it in another notation.
        if line.contains("Alternative name") {
            continue;
        }
        let Some((name, after)) = line.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')) else {
            continue;
        };
        let kind = match after.trim() {
            "(video)" => Some(DeviceKind::Camera),
            "(audio)" => Some(DeviceKind::Microphone),
            "" => heading,
            // "(none)": a device that delivers neither, such as a broken driver's.
            _ => None,
        };
        devices.extend(kind.map(|kind| device(kind, name, name)));
    }
    devices
}

/// Devices in the text of FFmpeg's AVFoundation list: `[0] FaceTime HD Camera` under headings.
fn in_avfoundation_list(text: &str) -> Vec<Device> {
    let mut devices = Vec::new();
    let mut heading = None;
    for line in text.lines() {
        let Some((_, line)) = line.split_once("] ").filter(|_| line.starts_with("[AVFoundation")) else {
            continue;
        };
        if line.starts_with("AVFoundation video devices") {
            heading = Some(DeviceKind::Camera);
        } else if line.starts_with("AVFoundation audio devices") {
            heading = Some(DeviceKind::Microphone);
        } else if let Some((index, name)) = line.strip_prefix('[').and_then(|l| l.split_once("] "))
            && let Some(kind) = heading
        {
            // Screens are listed among the cameras, and named by their own number.
            devices.push(match name.strip_prefix("Capture screen ") {
                Some(screen) => device(DeviceKind::Screen, screen, name),
                None => device(kind, index, name),
            });
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(devices: Vec<Device>, expected: &[(DeviceKind, &str, &str)]) {
        let got: Vec<_> = devices.iter().map(|d| (d.kind, d.id.as_str(), d.name.as_str())).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn directshow_lists_of_both_styles_are_read() {
        let expected = [
            (DeviceKind::Camera, "HD \"Pro\" Webcam", "HD \"Pro\" Webcam"),
            (DeviceKind::Microphone, "Microphone (HD)", "Microphone (HD)"),
        ];
        check(
            in_dshow_list(
                "[dshow @ 0001] \"HD \"Pro\" Webcam\" (video)\n\
                 [dshow @ 0001]   Alternative name \"@device_pnp_x\"\n\
                 [dshow @ 0001] \"Broken\" (none)\n\
                 [dshow @ 0001] \"Microphone (HD)\" (audio)\n\
                 [dshow @ 0001]   Alternative name \"@device_cm_y\"\n\
                 dummy: Immediate exit requested\n",
            ),
            &expected,
        );
        check(
            in_dshow_list(
                "[dshow @ 0001] DirectShow video devices (some may be both video and audio devices)\n\
                 [dshow @ 0001]  \"HD \"Pro\" Webcam\"\n\
                 [dshow @ 0001]     Alternative name \"@device_pnp_x\"\n\
                 [dshow @ 0001] DirectShow audio devices\n\
                 [dshow @ 0001]  \"Microphone (HD)\"\n",
            ),
            &expected,
        );
        check(in_dshow_list("[dshow @ 0001] Could not enumerate\n\"x\""), &[]);
    }

    #[test]
    fn avfoundation_list_is_read() {
        check(
            in_avfoundation_list(
                "[AVFoundation indev @ 0x7f] AVFoundation video devices:\n\
                 [AVFoundation indev @ 0x7f] [0] FaceTime HD Camera\n\
                 [AVFoundation indev @ 0x7f] [1] Capture screen 0\n\
                 [AVFoundation indev @ 0x7f] AVFoundation audio devices:\n\
                 [AVFoundation indev @ 0x7f] [0] MacBook Microphone\n\
                 : Input/output error\n",
            ),
            &[
                (DeviceKind::Camera, "0", "FaceTime HD Camera"),
                (DeviceKind::Screen, "0", "Capture screen 0"),
                (DeviceKind::Microphone, "0", "MacBook Microphone"),
            ],
        );
        check(in_avfoundation_list("[AVFoundation"), &[]);
    }

    #[test]
    fn linux_devices_are_found_by_their_files() {
        let root = std::env::temp_dir().join(format!("lightpipe-devices-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
            std::fs::write(path, text).expect("a new file");
        };
        for n in [0, 1, 10] {
            write(&format!("dev/video{n}"), "");
        }
        write("dev/vcs", "");
        write("sys/video0/name", "HD Webcam: HD Webcam\n");
        write("sys/video0/index", "0\n");
        write("sys/video1/name", "HD Webcam: HD Webcam\n");
        write("sys/video1/index", "1\n");
        write("x/X0", "");
        write("x/X99", "");
        write("x/other", "");
        let dev = |n: u32| root.join(format!("dev/video{n}")).display().to_string();
        check(
            v4l2_cameras(&root.join("dev"), &root.join("sys")),
            &[(DeviceKind::Camera, &dev(0), "HD Webcam: HD Webcam"), (DeviceKind::Camera, &dev(10), &dev(10))],
        );
        check(
            x11_screens(&root.join("x"), Some(":99.0")),
            &[(DeviceKind::Screen, ":99.0", "X display :99.0"), (DeviceKind::Screen, ":0", "X display :0")],
        );
        check(x11_screens(&root.join("nothing"), None), &[]);
        std::fs::remove_dir_all(&root).expect("the folder just made");
    }
}
