//! Pictures and sound from FFmpeg: any input it can read, raw or already encoded.
//!
//! [`Input`] says what to read ([`args`] makes the usual ones), [`Output`] what to write to us, [`start`] and [`start_sound`] keep
//! such a child running. Raw output is the default: an encoder inside a child cannot be asked for a
//! keyframe. Sound has a child of its own: a paced audio input in the same process delays the video.
//!
//! Live inputs are as old as they are when they come. A [`Film`] plays in a loop, and its pictures and sound share a
//! [`Timeline`].
//!
//! Written for FFmpeg 5.1 and later.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lightpipe_media::{PixelFormat, Size};

use crate::child::Farewell;
use crate::pipe::{PipeFormat, RawFormat};
use crate::supervisor::{self, Plan};
use crate::timeline::Timeline;
use crate::{AudioSink, SourceHandle, VideoSink};

pub mod args;

pub use crate::supervisor::{SourceError, Watchdog};

/// What FFmpeg reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Everything in front of the output options, `-i` and its value included.
    pub args: Vec<String>,
    /// A filter that must come first, such as the download of pictures from a graphics card.
    pub filter: Option<String>,
    /// Age of a picture when its first byte reaches us, as far as it is known; taken off its arrival time.
    /// Zero when nobody knows.
    pub capture_delay: Duration,
}

/// A file that plays in a loop at its own speed.
#[derive(Debug, Clone)]
pub struct Film {
    /// Where it is, absolute.
    pub path: String,
    /// Options in front of it.
    pub options: Vec<String>,
    /// Its time, which the children that play it share.
    pub timeline: Arc<Timeline>,
}

/// How a picture of another size or aspect ratio becomes one of the configured size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Scaled to fit inside, black bars around. The source's size need not be known.
    #[default]
    Pad,
    /// Scaled, aspect ratio or not. Right where the configured size was chosen by [`fit_inside`].
    Stretch,
    /// No filter: the input delivers this very size, or its raw pictures come out as noise.
    Exact,
}

/// What FFmpeg writes to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Raw pictures, to be encoded by us.
    Raw {
        /// Size of every picture.
        size: Size,
        /// At most this many a second: a faster input is thinned out, a slower one left alone.
        fps: u32,
        /// Sample layout. `Bgra` is what screen grabbers deliver: FFmpeg need not convert.
        pixels: PixelFormat,
        /// How other sizes become this one.
        fit: Fit,
    },
    /// H.264, passed on as it is.
    Encoded {
        /// How it is packed. NUT carries exact times.
        container: Container,
        /// Who encodes.
        video: Video,
    },
}

/// Wrapping of encoded pictures on the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Container {
    /// With lengths and times.
    #[default]
    Nut,
    /// Nothing but the H.264 byte stream.
    AnnexB,
}

/// Where the H.264 of an encoded output comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Video {
    /// The input is H.264 already.
    Copy,
    /// x264 in the child, without any delay of its own.
    X264 {
        /// Scaled to this size, aspect ratio kept by bars; the input's own without.
        size: Option<Size>,
        /// Target bitrate, bits per second.
        bitrate_bps: u32,
        /// Longest distance between keyframes, in pictures. A viewer waits this long for the first one.
        keyframe_every: u32,
    },
    /// The user's options decide; they are part of [`Input::args`].
    AsGiven,
}

/// An FFmpeg child.
#[derive(Debug, Clone)]
pub struct Config {
    /// The program; `ffmpeg` is looked for in `PATH`.
    pub binary: OsString,
    /// What it reads.
    pub input: Input,
    /// Reads this film in place of an input; [`Input::args`] are what stands behind it.
    pub film: Option<Film>,
    /// What it writes.
    pub output: Output,
    /// How long its silence is believed.
    pub watchdog: Watchdog,
}

impl Config {
    /// `ffmpeg` from `PATH` and the default patience.
    pub fn new(input: Input, output: Output) -> Self {
        Self { binary: "ffmpeg".into(), input, film: None, output, watchdog: Watchdog::default() }
    }
}

/// Starts FFmpeg and keeps it running until the handle is dropped.
///
/// An error is a mistake in `config`. Everything that goes wrong later, a missing program included, is
/// the stream's health and an event, and is tried again.
pub fn start(config: Config, sink: VideoSink) -> Result<Box<dyn SourceHandle>, SourceError> {
    let format = match config.output {
        Output::Raw { size, pixels, .. } if config.film.is_some() => PipeFormat::RawInNut(RawFormat { size, pixels }),
        Output::Raw { size, pixels, .. } => PipeFormat::Raw(RawFormat { size, pixels }),
        Output::Encoded { container: Container::Nut, .. } => PipeFormat::Nut,
        Output::Encoded { container: Container::AnnexB, .. } => PipeFormat::AnnexB,
    };
    supervisor::check_format(format)?;
    // Mistakes are found now; the command line is made for each start.
    args::command_line(&config.input, config.film.is_some(), &config.output)?;
    let Config { binary, input, film, output, watchdog } = config;
    let timeline = film.as_ref().map(|film| Arc::clone(&film.timeline));
    let plan = Plan {
        name: "ffmpeg".to_owned(),
        missing: missing(&binary),
        capture_delay: input.capture_delay,
        command: Box::new(move |from| {
            let input = match &film {
                Some(film) => Input { args: args::film(film, from, &input.args), ..input.clone() },
                None => input.clone(),
            };
            let mut command = Command::new(&binary);
            command.args(args::command_line(&input, film.is_some(), &output).unwrap_or_default());
            command
        }),
        farewell: Farewell::Quit,
        format,
        watchdog,
        may_be_absent: false,
        timeline,
    };
    supervisor::start(plan, sink)
}

/// What the sound of an input comes from.
#[derive(Debug, Clone)]
pub struct SoundConfig {
    /// The program; `ffmpeg` is looked for in `PATH`.
    pub binary: OsString,
    /// What it reads; the options behind it are about sound.
    pub input: Input,
    /// Reads this film in place of an input; [`Input::args`] are what stands behind it.
    pub film: Option<Film>,
    /// 1 or 2.
    pub channels: usize,
}

/// How long a live input's sound is waited for. It may begin late or pause, and the pictures' child knows whether the input lives.
const SOUND_WATCHDOG: Watchdog = Watchdog { first_byte: Duration::from_secs(60), stall: Duration::from_secs(20) };

/// The same of a film, whose sound may be as rare as its author likes.
const FILM_SOUND_WATCHDOG: Watchdog = Watchdog { first_byte: Duration::from_secs(60), stall: Duration::MAX };

/// Starts the FFmpeg that gives the sound of an input, and keeps it running until the handle is dropped.
///
/// What goes wrong is the health of the stream's sound; its pictures are not touched.
pub fn start_sound(config: SoundConfig, sink: AudioSink) -> Result<Box<dyn SourceHandle>, SourceError> {
    let SoundConfig { binary, input, film, channels } = config;
    let timeline = film.as_ref().map(|film| Arc::clone(&film.timeline));
    let plan = Plan {
        name: "ffmpeg (sound)".to_owned(),
        missing: missing(&binary),
        capture_delay: input.capture_delay,
        watchdog: if film.is_some() { FILM_SOUND_WATCHDOG } else { SOUND_WATCHDOG },
        command: Box::new(move |from| {
            let input = film.as_ref().map_or_else(|| input.args.clone(), |film| args::film(film, from, &input.args));
            let mut command = Command::new(&binary);
            command.args(args::sound_line(&input, channels));
            command
        }),
        farewell: Farewell::Quit,
        format: PipeFormat::SoundInNut,
        may_be_absent: true,
        timeline,
    };
    supervisor::start(plan, sink)
}

fn missing(binary: &OsStr) -> String {
    let shown = binary.to_string_lossy();
    if shown == "ffmpeg" {
        "ffmpeg was not found; install it or set --ffmpeg PATH".to_owned()
    } else {
        format!("ffmpeg was not found at {shown}; install it or set --ffmpeg PATH")
    }
}

/// What is in an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    /// Pictures.
    pub video: bool,
    /// Sound.
    pub audio: bool,
    /// How long it is; not known of what is live.
    pub length: Option<Duration>,
}

/// What is in an input, as FFmpeg sees it. `None` when it cannot tell, or not in time.
///
/// Blocks for a fraction of a second with a file, for seconds with a network input.
pub fn probe(binary: &OsStr, input: &[String], timeout: Duration) -> Option<Content> {
    let mut command = Command::new(binary);
    command.args(["-hide_banner", "-nostdin"]).args(input);
    content_in(&crate::child::stderr_of(command, timeout).ok()?)
}

/// The tracks in what FFmpeg prints about its input.
fn content_in(text: &str) -> Option<Content> {
    let streams: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("Stream #")).collect();
    if streams.is_empty() {
        return None;
    }
    let has = |what: &str| streams.iter().any(|line| line.contains(what));
    let length = text.lines().find_map(|line| line.trim().strip_prefix("Duration: ")?.split(',').next());
    Some(Content {
        // A cover is a picture, and not one that moves.
        video: streams.iter().any(|line| line.contains(": Video: ") && !line.contains("(attached pic)")),
        audio: has(": Audio: "),
        length: length.and_then(length_of),
    })
}

/// `HH:MM:SS.cc`
fn length_of(text: &str) -> Option<Duration> {
    let mut parts = text.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Duration::try_from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds).ok()
}

/// Size of the input's pictures: FFmpeg reads one and says so. `None` when it cannot, or not in time.
///
/// Blocks for a fraction of a second with a screen, for seconds with a camera or a network input.
pub fn probe_size(binary: &OsStr, input: &Input, timeout: Duration) -> Option<Size> {
    let mut command = Command::new(binary);
    command.args(args::probe(input)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let text = crate::child::stderr_of(command, timeout).ok()?;
    size_in(&text)
}

/// The picture size in what FFmpeg prints about its input: `Stream #0:0: Video: …, 1280x720 [SAR …`.
fn size_in(text: &str) -> Option<Size> {
    let line = text.lines().find(|l| l.contains(": Video: "))?;
    let side = |s: &str| s.parse::<u32>().ok().filter(|n| *n > 0);
    line.split([' ', ',']).find_map(|word| {
        let (width, height) = word.split_once('x')?;
        Some(Size::new(side(width)?, side(height)?))
    })
}

/// The largest even size inside `limit` with the aspect ratio of `source`; `source` itself when it fits.
pub fn fit_inside(source: Size, limit: Size) -> Size {
    let (sw, sh) = (u64::from(source.width.max(1)), u64::from(source.height.max(1)));
    let (lw, lh) = (u64::from(limit.width), u64::from(limit.height));
    if sw <= lw && sh <= lh {
        return source.to_even();
    }
    // The side that is over by more decides; both results are at most the limit's u32.
    let (width, height) = if sw * lh >= sh * lw { (lw, sh * lw / sw) } else { (sw * lh / sh, lh) };
    Size::new(width as u32, height as u32).to_even()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_size_is_found_in_what_ffmpeg_prints() {
        for (line, expected) in [
            (
                "  Stream #0:0: Video: rawvideo (BGR[0] / 0x524742), bgr0, 1280x720, 30 fps, 30 tbr",
                Some(Size::new(1280, 720)),
            ),
            (
                "  Stream #0:0(und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709), 1920x1080 [SAR 1:1 DAR 16:9], 4 kb/s",
                Some(Size::new(1920, 1080)),
            ),
            ("  Stream #0:0: Audio: pcm_s16le, 48000 Hz, 1x2", None),
            ("  Stream #0:0: Video: none, 0x0, 30 fps", None),
            ("", None),
        ] {
            assert_eq!(size_in(line), expected, "{line}");
        }
    }

    #[track_caller]
    fn check_content(text: &str, expected: Option<(bool, bool, Option<u64>)>) {
        let got = content_in(text).map(|c| (c.video, c.audio, c.length.map(|l| l.as_millis() as u64)));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn tracks_and_length_are_found_in_what_ffmpeg_prints() {
        let video = "  Stream #0:0[0x1](und): Video: h264 (High), yuv420p, 320x180, 25 fps\n";
        let audio = "  Stream #0:1[0x2](und): Audio: aac (LC), 44100 Hz, mono, fltp, 13 kb/s (default)\n";
        let cover = "  Stream #0:1: Video: mjpeg (Baseline), 500x500, 90k tbn (attached pic)\n";
        let length = "  Duration: 01:02:05.04, start: 0.000000, bitrate: 26 kb/s\n";
        check_content(&[length, video, audio].concat(), Some((true, true, Some(3_725_040))));
        check_content(&["  Duration: N/A, start: 0.0, bitrate: N/A\n", video].concat(), Some((true, false, None)));
        check_content(&[length, audio, cover].concat(), Some((false, true, Some(3_725_040))));
        check_content(audio, Some((false, true, None)));
        check_content("film.mp4: No such file or directory\n", None);
        check_content("", None);
    }

    #[test]
    fn pictures_are_fitted_with_their_aspect_ratio() {
        let limit = Size::new(1280, 720);
        for (source, expected) in [
            ((1280, 720), (1280, 720)),
            ((640, 480), (640, 480)),
            ((1920, 1080), (1280, 720)),
            ((1920, 1200), (1152, 720)),
            ((3440, 1440), (1280, 534)),
            ((1080, 1920), (404, 720)),
            ((801, 601), (800, 600)),
            ((100_000, 1), (1280, 2)),
            ((0, 0), (2, 2)),
        ] {
            assert_eq!(
                fit_inside(Size::new(source.0, source.1), limit),
                Size::new(expected.0, expected.1),
                "{source:?}"
            );
        }
    }
}
