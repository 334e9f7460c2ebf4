//! `lightpipe doctor`: is everything here that streams need, and what helps if not.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lightpipe_codec::openh264::OpenH264;
use lightpipe_codec::{Content, EncodeError, EncoderConfig, VideoEncoder};
use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoFrame};

use crate::cli::DoctorFlags;
use crate::{exit, output};

/// One finding.
struct Finding {
    what: &'static str,
    ok: bool,
    detail: String,
    /// What helps, when it is not ok.
    help: &'static str,
}

pub(crate) fn run(flags: &DoctorFlags) -> anyhow::Result<ExitCode> {
    let findings = [
        tcp(flags.port),
        udp(flags.port),
        interfaces(),
        realtime(),
        encoder("H.264", |config| Ok(Box::new(OpenH264::new(config)?))),
        #[cfg(feature = "vpx")]
        encoder("VP8", |config| Ok(Box::new(lightpipe_codec::vp8::Vp8::new(config)?))),
        ffmpeg(&flags.ffmpeg),
        display(),
        clock(),
    ];
    let bad = findings.iter().filter(|f| !f.ok).count();
    if flags.json {
        let list: Vec<serde_json::Value> = findings
            .iter()
            .map(|f| serde_json::json!({ "check": f.what, "ok": f.ok, "detail": f.detail, "help": if f.ok { None } else { Some(f.help) } }))
            .collect();
        output::line(serde_json::to_string_pretty(&serde_json::json!({ "findings": list, "problems": bad }))?);
    } else {
        for f in &findings {
            output::line(format_args!("{} {:<12} {}", if f.ok { "ok  " } else { "FAIL" }, f.what, f.detail));
            if !f.ok {
                output::line(format_args!("     {:<12} {}", "", f.help));
            }
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

fn tcp(port: u16) -> Finding {
    let result = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)));
    let detail = result.as_ref().map_or_else(|e| format!("port {port}: {e}"), |_| format!("port {port} is free"));
    Finding {
        what: "TCP port",
        ok: result.is_ok(),
        detail,
        help: "Another program has the port: end it, or choose another with --port.",
    }
}

fn udp(port: u16) -> Finding {
    let result = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port)));
    let detail = result.as_ref().map_or_else(
        |e| format!("port {port}: {e}"),
        |_| format!("port {port} is free; open it in the firewall for viewers elsewhere"),
    );
    Finding {
        what: "UDP port",
        ok: result.is_ok(),
        detail,
        help: "Another program has the port: end it, or choose another with --port.",
    }
}

fn interfaces() -> Finding {
    let names: Vec<String> = lightpipe_net::media::interface_addresses().iter().map(ToString::to_string).collect();
    let ok = !names.is_empty();
    let detail = if ok { names.join(", ") } else { "no address but loopback".into() };
    Finding {
        what: "addresses",
        ok,
        detail,
        help: "Viewers on other machines cannot reach this one: connect it to a network, or use --advertise.",
    }
}

/// A wish: without it streams work, with some milliseconds more on a busy machine.
fn realtime() -> Finding {
    let tried = std::thread::spawn(lightpipe_net::media::make_realtime).join();
    let detail = match tried {
        Ok(Ok(())) => "media threads may go before all others".to_owned(),
        Ok(Err(error)) => format!(
            "not allowed ({error}): pictures may wait for busy neighbours; allow it with CAP_SYS_NICE, or LimitRTPRIO=1 in a systemd unit"
        ),
        Err(_) => "not known".to_owned(),
    };
    Finding { what: "real time", ok: true, detail, help: "" }
}

/// Encodes some pictures of noise and tells how fast.
fn encoder(what: &'static str, make: fn(EncoderConfig) -> Result<Box<dyn VideoEncoder>, EncodeError>) -> Finding {
    const PICTURES: u32 = 30;
    let size = Size::new(1280, 720);
    let tried = || -> Result<(&'static str, Duration), String> {
        let config =
            EncoderConfig { size, fps: 30.0, bitrate_bps: 2_500_000, keyframe_interval: 0, content: Content::Camera };
        let mut encoder = make(config).map_err(|e| e.to_string())?;
        let pool = FramePool::new();
        let started = Instant::now();
        for n in 0..PICTURES {
            let buffer = pool.take(PixelFormat::I420.packed_len(size));
            let at = MediaTime::from_micros(i64::from(n) * 33_333);
            let mut picture = VideoFrame::packed(at, size, PixelFormat::I420, buffer).map_err(|e| e.to_string())?;
            for (x, byte) in picture.plane_mut(0).iter_mut().enumerate() {
                *byte = ((x as u32 / 7 + n * 3) % 256) as u8;
            }
            encoder.submit(&picture).map_err(|e| e.to_string())?;
            encoder.poll().ok_or("no output")?;
        }
        Ok((encoder.name(), started.elapsed() / PICTURES))
    };
    match tried() {
        Ok((backend, each)) => Finding {
            what,
            ok: each < Duration::from_millis(30),
            detail: format!("{backend} takes {:.1} ms per 720p picture", each.as_secs_f64() * 1000.0),
            help: "Too slow for 720p at 30 fps: choose a smaller --width and --height, or fewer --fps.",
        },
        Err(error) => {
            Finding { what, ok: false, detail: error, help: "This build has no working encoder; please report it." }
        }
    }
}

fn ffmpeg(path: &str) -> Finding {
    let output = Command::new(path).arg("-version").stdin(Stdio::null()).output();
    let detail = match &output {
        Ok(out) => String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or("no answer").to_owned(),
        Err(error) => format!("{path}: {error}"),
    };
    let ok = output.is_ok_and(|out| out.status.success());
    Finding {
        what: "FFmpeg",
        ok,
        detail,
        help: "Needed by camera, ffmpeg and file sources, and by desktop on Windows and macOS: install ffmpeg, or set --ffmpeg PATH.",
    }
}

fn display() -> Finding {
    let display = std::env::var("DISPLAY").unwrap_or_default();
    let detail = if display.is_empty() { "none; the desktop source needs one".to_owned() } else { display };
    // Headless is a fine way to live.
    Finding { what: "display", ok: true, detail, help: "" }
}

/// The wall clock must not be absurd: tokens and timecodes carry it.
fn clock() -> Finding {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let ok = now > Duration::from_secs(1_700_000_000);
    Finding {
        what: "clock",
        ok,
        detail: format!("Unix time {}", now.as_secs()),
        help: "The clock is years off: set it, or run NTP.",
    }
}
