//! From a source specification to running threads.

use std::sync::Arc;
use std::time::Duration;

use lightpipe_codec::openh264::OpenH264;
#[cfg(feature = "vpx")]
use lightpipe_codec::vp8::Vp8;
use lightpipe_codec::{Alternative, AudioSetup, AudioThread, Content, EncodeThread, EncoderConfig, Setup};
#[cfg(feature = "vpx")]
use lightpipe_media::VideoCodec;
use lightpipe_media::{AudioQueue, EventLog, FrameQueue, MediaClock, PixelFormat, Size, Stream};
use lightpipe_source::ffmpeg::args::{self, Platform};
use lightpipe_source::ffmpeg::{self, Fit, Input, Output};
use lightpipe_source::pipe::{PipeFormat, RawFormat};
#[cfg(target_os = "linux")]
use lightpipe_source::x11;
use lightpipe_source::{AudioSink, SourceHandle, VideoSink, beep, cube, exec, pattern, stdin};

use crate::config::{Config, ContentHint, RendererChoice, VideoConfig};
use crate::server::ServerError;
use crate::spec::SourceSpec;

#[cfg(not(target_os = "linux"))]
/// How long the size of a desktop may take to find out.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// A source with its encoder. Fields drop in order: first the source stops, then the encoder ends.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) handle: Box<dyn SourceHandle>,
    _encoder: Option<EncodeThread>,
    _sound: Option<Sound>,
}

/// A source of sound with its encoder.
#[derive(Debug)]
pub(crate) struct Sound {
    _handle: Box<dyn SourceHandle>,
    _encoder: AudioThread,
}

/// The codings beside H.264 that raw pictures of a stream can be had in.
fn alternatives(stream: &Arc<Stream>) -> Vec<Alternative> {
    #[cfg(feature = "vpx")]
    return vec![Alternative {
        stream: stream.add_alternative(VideoCodec::Vp8),
        make: Box::new(|config| Ok(Box::new(Vp8::new(config)?))),
    }];
    #[cfg(not(feature = "vpx"))]
    {
        let _ = stream;
        Vec::new()
    }
}

/// An encode thread for raw pictures of a stream, and one for each other coding.
pub(crate) fn encoder(
    stream: &Arc<Stream>,
    frames: &Arc<FrameQueue>,
    clock: MediaClock,
    events: &EventLog,
    video: &VideoConfig,
    size: Size,
    timecode: bool,
) -> std::io::Result<EncodeThread> {
    EncodeThread::spawn(Setup {
        stream: Arc::clone(stream),
        frames: Arc::clone(frames),
        clock,
        events: events.clone(),
        config: EncoderConfig {
            size,
            fps: video.fps,
            bitrate_bps: video.bitrate_bps(),
            keyframe_interval: video.keyframe_interval,
            content: match video.content {
                ContentHint::Camera => Content::Camera,
                ContentHint::Screen => Content::Screen,
            },
        },
        timecode,
        make: Box::new(|config| Ok(Box::new(OpenH264::new(config)?))),
        alternatives: alternatives(stream),
    })
}

/// Blocks of sound that may wait for the encoder; of 10 ms each.
const QUEUE_BLOCKS: usize = 32;

/// An audio thread for a stream, and what feeds it. `exact` blocks are at 48 kHz of our clock already.
fn start_sound(
    stream: &Arc<Stream>,
    clock: MediaClock,
    config: &Config,
    exact: bool,
    start: impl FnOnce(AudioSink) -> std::io::Result<Box<dyn SourceHandle>>,
) -> std::io::Result<Sound> {
    let blocks = Arc::new(AudioQueue::new(QUEUE_BLOCKS));
    let encoder = AudioThread::spawn(AudioSetup {
        stream: Arc::clone(stream),
        blocks: Arc::clone(&blocks),
        clock,
        config: config.audio.encoder(),
        exact,
    })?;
    let handle = start(AudioSink { stream: Arc::clone(stream), blocks, clock })?;
    Ok(Sound { _handle: handle, _encoder: encoder })
}

/// Starts a source that feeds `stream`.
pub(crate) fn start(
    spec: &SourceSpec,
    stream: &Arc<Stream>,
    clock: MediaClock,
    events: &EventLog,
    config: &Config,
) -> Result<Running, ServerError> {
    let video = &config.video;
    let frames = Arc::new(FrameQueue::new(video.queue_frames));
    let sink = VideoSink { stream: Arc::clone(stream), frames: Arc::clone(&frames), clock, events: events.clone() };
    let whole_fps = video.fps.round().clamp(1.0, 240.0) as u32;
    let mut size = video.size();
    // These paint the strip themselves, with the very capture time that they stamp.
    let mut timecode = video.timecode;
    let mut raw = true;
    let mut sound = None;
    let fault = |error: &dyn std::fmt::Display| ServerError::Source {
        stream: stream.name().to_owned(),
        reason: error.to_string(),
    };
    let child = |input: Input, output: Output, sink: VideoSink| {
        let mut child = ffmpeg::Config::new(input, output);
        child.binary = config.ffmpeg.path.clone().into();
        child.watchdog = config.ffmpeg.watchdog();
        ffmpeg::start(child, sink)
    };
    let pictures = |size, pixels, fit| Output::Raw { size, fps: whole_fps, pixels, fit };
    let piped = PipeFormat::Detect(RawFormat { size, pixels: PixelFormat::Rgba });
    let handle = match spec {
        SourceSpec::Cube => {
            let renderer = match video.renderer {
                RendererChoice::Auto => cube::Renderer::Auto,
                RendererChoice::Gpu => cube::Renderer::Gpu,
                RendererChoice::Cpu => cube::Renderer::Cpu,
            };
            let timecode = std::mem::take(&mut timecode);
            cube::start(cube::Config { size, fps: video.fps, renderer, timecode }, sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Pattern { drift_ppm } => {
            timecode = false;
            if config.audio.enabled {
                let drift_ppm = f64::from(*drift_ppm);
                let start = |sink| beep::start(beep::Config { drift_ppm }, sink);
                sound = Some(start_sound(stream, clock, config, drift_ppm == 0.0, start).map_err(|e| fault(&e))?);
            }
            pattern::start(pattern::Config { size, fps: video.fps }, sink).map_err(|e| fault(&e))?
        }
        #[cfg(target_os = "linux")]
        SourceSpec::Desktop(display) => {
            // A screen that cannot be read now is the stream's health; its size is then the configured one.
            if let Ok(whole) = x11::screen_size(display.as_deref()) {
                size = ffmpeg::fit_inside(whole, size);
            }
            x11::start(x11::Config { display: display.clone(), fps: video.fps }, sink).map_err(|e| fault(&e))?
        }
        #[cfg(not(target_os = "linux"))]
        SourceSpec::Desktop(display) => {
            let desktop = args::Desktop { display: display.clone(), ..args::Desktop::default() };
            let input = args::desktop(Platform::here(), &desktop, whole_fps);
            let found = ffmpeg::probe_size(config.ffmpeg.path.as_ref(), &input, PROBE_LIMIT);
            let fit = found.map_or(Fit::Pad, |whole| {
                size = ffmpeg::fit_inside(whole, size);
                if size == whole { Fit::Exact } else { Fit::Stretch }
            });
            child(input, pictures(size, PixelFormat::Bgra, fit), sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Camera(device) => {
            let input = args::camera(Platform::here(), device.as_deref(), Some(size), Some(whole_fps));
            child(input, pictures(size, PixelFormat::I420, Fit::Pad), sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Ffmpeg(text) => {
            let (input, encoded) = args::user(text).map_err(|e| fault(&e))?;
            let output = if encoded {
                raw = false;
                Output::Encoded { container: ffmpeg::Container::Nut, video: ffmpeg::Video::AsGiven }
            } else {
                pictures(size, PixelFormat::I420, Fit::Pad)
            };
            child(input, output, sink).map_err(|e| fault(&e))?
        }
        SourceSpec::File(path) => {
            let words = ["-re", "-stream_loop", "-1", "-i", path].map(str::to_owned).to_vec();
            let input = Input { args: words, filter: None, capture_delay: Duration::ZERO };
            child(input, pictures(size, PixelFormat::I420, Fit::Pad), sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Exec(command) => {
            let mut program = exec::Config::new(command.clone(), piped);
            program.watchdog = config.ffmpeg.watchdog();
            exec::start(program, sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Whep(_) => return Err(fault(&"a WHEP stream is fed by a client, not by a source")),
        SourceSpec::Stdin => stdin::start(piped, sink).map_err(|e| fault(&e))?,
    };
    // Encoded children publish by themselves; the encoder of a pipe that turns out to be encoded rests.
    let encoder = if raw {
        Some(encoder(stream, &frames, clock, events, video, size, timecode).map_err(|e| fault(&e))?)
    } else {
        None
    };
    Ok(Running { handle, _encoder: encoder, _sound: sound })
}
