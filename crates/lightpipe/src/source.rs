//! From a source specification to running threads.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lightpipe_codec::openh264::OpenH264;
#[cfg(feature = "vpx")]
use lightpipe_codec::vp8::Vp8;
use lightpipe_codec::{Alternative, AudioSetup, AudioThread, Content, CpuBudget, EncodeThread, EncoderConfig, Setup};
#[cfg(feature = "vpx")]
use lightpipe_media::VideoCodec;
use lightpipe_media::{AudioQueue, EventLog, FrameQueue, MediaClock, PixelFormat, Size, Stream};
use lightpipe_source::ffmpeg::args::{self, Platform};
use lightpipe_source::ffmpeg::{self, Film, Fit, Input, Output, SoundConfig};
use lightpipe_source::pipe::{PipeFormat, RawFormat};
use lightpipe_source::timeline::Timeline;
#[cfg(target_os = "linux")]
use lightpipe_source::x11;
use lightpipe_source::{AudioSink, SourceHandle, VideoSink, beep, cube, exec, pattern, stdin};

use crate::config::{Config, ContentHint, RendererChoice, SimulcastConfig, VideoConfig};
use crate::server::ServerError;
use crate::spec::SourceSpec;

#[cfg(not(target_os = "linux"))]
/// How long the size of a desktop may take to find out.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How long the tracks of a local file may take to find out.
const FILM_PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The same of a network input, and how long the start of its stream waits for that.
const LIVE_PROBE_LIMIT: Duration = Duration::from_secs(10);
const LIVE_PROBE_WAIT: Duration = Duration::from_secs(1);

/// Put between two turns of a film: FFmpeg tells its length in hundredths of a second, and tracks should not overlap.
const FILM_GAP: Duration = Duration::from_millis(10);

/// A source with its encoder, and with the sound that it has itself. Fields drop in order: first the source stops, then the encoder ends.
#[derive(Debug)]
pub(crate) struct Running {
    handle: Option<Box<dyn SourceHandle>>,
    _encoder: Option<EncodeThread>,
    pub(crate) sound: Option<Sound>,
}

impl Running {
    /// Process ids of the children that run now.
    pub(crate) fn child_pids(&self) -> impl Iterator<Item = u32> {
        let pictures = self.handle.as_ref().and_then(|handle| handle.child_pid());
        pictures.into_iter().chain(self.sound.as_ref().and_then(Sound::child_pid))
    }
}

/// A source of sound with its encoder.
#[derive(Debug)]
pub(crate) struct Sound {
    handle: Box<dyn SourceHandle>,
    _encoder: AudioThread,
}

impl Sound {
    pub(crate) fn child_pid(&self) -> Option<u32> {
        self.handle.child_pid()
    }
}

/// The codings beside H.264 that raw pictures of a stream can be had in.
fn alternatives(stream: &Arc<Stream>) -> Vec<Alternative> {
    #[cfg(feature = "vpx")]
    return vec![Alternative {
        stream: stream.add_alternative(VideoCodec::Vp8),
        make: Arc::new(|config| Ok(Box::new(Vp8::new(config)?))),
    }];
    #[cfg(not(feature = "vpx"))]
    {
        let _ = stream;
        Vec::new()
    }
}

/// Encode threads for raw pictures of a stream: one for each layer and coding.
pub(crate) fn encoder(
    stream: &Arc<Stream>,
    frames: &Arc<FrameQueue>,
    clock: MediaClock,
    events: &EventLog,
    (video, simulcast, budget): (&VideoConfig, &SimulcastConfig, Option<&Arc<CpuBudget>>),
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
        layers: simulcast.ladder(video, size),
        adapt: video.adapt,
        budget: budget.cloned(),
        timecode,
        make: Arc::new(|config| Ok(Box::new(OpenH264::new(config)?))),
        alternatives: alternatives(stream),
    })
}

/// Blocks of sound that may wait for the encoder; of 10 ms each.
pub(crate) const QUEUE_BLOCKS: usize = 32;

/// What sources are made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workshop<'a> {
    pub(crate) clock: MediaClock,
    pub(crate) events: &'a EventLog,
    pub(crate) config: &'a Config,
    pub(crate) budget: Option<&'a Arc<CpuBudget>>,
}

impl Workshop<'_> {
    fn audio_sink(&self, stream: &Arc<Stream>) -> AudioSink {
        AudioSink {
            stream: Arc::clone(stream),
            blocks: Arc::new(AudioQueue::new(QUEUE_BLOCKS)),
            clock: self.clock,
            events: self.events.clone(),
        }
    }

    /// Encodes what comes into a sink. `exact` blocks are at 48 kHz of our clock already.
    fn audio_encoder(&self, sink: &AudioSink, exact: bool) -> std::io::Result<AudioThread> {
        AudioThread::spawn(AudioSetup {
            stream: Arc::clone(&sink.stream),
            blocks: Arc::clone(&sink.blocks),
            clock: self.clock,
            config: self.config.audio.encoder(),
            exact,
        })
    }

    /// A source of sound and its encoder.
    fn sound<E: std::fmt::Display>(
        &self,
        stream: &Arc<Stream>,
        exact: bool,
        start: impl FnOnce(AudioSink) -> Result<Box<dyn SourceHandle>, E>,
    ) -> Result<Sound, String> {
        let sink = self.audio_sink(stream);
        let encoder = self.audio_encoder(&sink, exact).map_err(|e| e.to_string())?;
        Ok(Sound { handle: start(sink).map_err(|e| e.to_string())?, _encoder: encoder })
    }

    /// The sound of a live input. Whether it has some is asked of FFmpeg; who does not answer soon is believed to have, so that viewers
    /// who come before it begins will hear it.
    fn live_sound(&self, stream: &Arc<Stream>, input: Input) -> Result<Option<Sound>, String> {
        let sink = self.audio_sink(stream);
        let (answer, content) = channel();
        let late = LateSound::default();
        let asking = {
            let (slot, sink) = (late.slot(), sink.clone());
            let config = SoundConfig {
                binary: self.config.ffmpeg.path.clone().into(),
                input,
                film: None,
                channels: self.config.audio.channels,
            };
            move || {
                let found = ffmpeg::probe(&config.binary, &config.input.args, LIVE_PROBE_LIMIT);
                let silent = found.is_some_and(|content| !content.audio);
                // Nobody waits for the answer any more: then the stream was promised sound.
                _ = answer.send(silent);
                if silent {
                    sink.stream.remove_audio();
                } else {
                    LateSound::start(&slot, || ffmpeg::start_sound(config, sink));
                }
            }
        };
        std::thread::Builder::new().name("sound-probe".into()).spawn(asking).map_err(|e| e.to_string())?;
        if content.recv_timeout(LIVE_PROBE_WAIT) == Ok(true) {
            return Ok(None);
        }
        let encoder = self.audio_encoder(&sink, false).map_err(|e| e.to_string())?;
        Ok(Some(Sound { handle: Box::new(late), _encoder: encoder }))
    }
}

/// A source that starts when it is known whether there is anything to start.
#[derive(Debug, Default)]
struct LateSound(Arc<Mutex<Late>>);

#[derive(Debug, Default)]
enum Late {
    #[default]
    Asking,
    Started(Box<dyn SourceHandle>),
    Stopped,
}

impl LateSound {
    /// The thread that asks keeps this, so that an end need not wait for an answer.
    fn slot(&self) -> Arc<Mutex<Late>> {
        Arc::clone(&self.0)
    }

    fn lock(late: &Mutex<Late>) -> MutexGuard<'_, Late> {
        late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start<E: std::fmt::Display>(slot: &Mutex<Late>, start: impl FnOnce() -> Result<Box<dyn SourceHandle>, E>) {
        let mut late = Self::lock(slot);
        if matches!(*late, Late::Asking) {
            match start() {
                Ok(handle) => *late = Late::Started(handle),
                Err(error) => tracing::error!(%error, "sound left out"),
            }
        }
    }
}

impl SourceHandle for LateSound {
    fn child_pid(&self) -> Option<u32> {
        match &*Self::lock(&self.0) {
            Late::Started(handle) => handle.child_pid(),
            _ => None,
        }
    }
}

impl Drop for LateSound {
    fn drop(&mut self) {
        let ended = std::mem::replace(&mut *Self::lock(&self.0), Late::Stopped);
        drop(ended);
    }
}

/// Starts a source of sound alone.
pub(crate) fn start_sound(
    spec: &SourceSpec,
    stream: &Arc<Stream>,
    workshop: Workshop<'_>,
) -> Result<Sound, ServerError> {
    let fault = |reason| ServerError::Source { stream: stream.name().to_owned(), reason };
    if !workshop.config.audio.enabled {
        return Err(fault("sound is switched off: audio.enabled = false".into()));
    }
    match spec {
        #[cfg(feature = "mic")]
        SourceSpec::Mic(device) => {
            let mic =
                lightpipe_source::mic::Config { device: device.clone(), channels: workshop.config.audio.channels };
            workshop.sound(stream, false, |sink| lightpipe_source::mic::start(mic, sink)).map_err(fault)
        }
        _ => Err(fault("this build has no `mic`: build it with the feature of that name".into())),
    }
}

/// Starts a source that feeds `stream`. `own_sound`: with the sound that it has, if any.
pub(crate) fn start(
    spec: &SourceSpec,
    stream: &Arc<Stream>,
    workshop: Workshop<'_>,
    own_sound: bool,
) -> Result<Running, ServerError> {
    let Workshop { clock, events, config, budget } = workshop;
    let own_sound = own_sound && config.audio.enabled;
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
    let child = |input: Input, film: Option<Film>, output: Output, sink: VideoSink| {
        let mut child = ffmpeg::Config::new(input, output);
        child.binary = config.ffmpeg.path.clone().into();
        child.watchdog = config.ffmpeg.watchdog();
        child.film = film;
        ffmpeg::start(child, sink)
    };
    let pictures = |size, pixels, fit| Output::Raw { size, fps: whole_fps, pixels, fit };
    let piped = PipeFormat::Detect(RawFormat { size, pixels: PixelFormat::Rgba });
    // Any input of FFmpeg's that may have both.
    let both = |input: Input, output: Output, sink: VideoSink| -> Result<_, ServerError> {
        let Some((film, after, content)) = film(config, &input) else {
            let sound = match args::sound(&input).filter(|_| own_sound) {
                Some(input) => workshop.live_sound(stream, input).map_err(|e| fault(&e))?,
                None => None,
            };
            return Ok((Some(child(args::pictures(&input), None, output, sink).map_err(|e| fault(&e))?), sound));
        };
        let sound = match args::sound_options(&after).filter(|_| own_sound && content.audio) {
            Some(options) => {
                let config = SoundConfig {
                    binary: config.ffmpeg.path.clone().into(),
                    input: Input { args: options, filter: None, capture_delay: Duration::ZERO },
                    film: Some(film.clone()),
                    channels: config.audio.channels,
                };
                Some(workshop.sound(stream, true, |sink| ffmpeg::start_sound(config, sink)).map_err(|e| fault(&e))?)
            }
            None => None,
        };
        if !content.video {
            stream.without_video();
            return Ok((None, sound));
        }
        let input = Input { args: after, ..input };
        Ok((Some(child(input, Some(film), output, sink).map_err(|e| fault(&e))?), sound))
    };
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
            if own_sound {
                let drift_ppm = f64::from(*drift_ppm);
                let block = Duration::from_millis(config.audio.frame_ms.into()).min(beep::LONGEST_BLOCK);
                let start = |sink| beep::start(beep::Config { block, drift_ppm }, sink);
                sound = Some(workshop.sound(stream, drift_ppm == 0.0, start).map_err(|e| fault(&e))?);
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
            child(input, None, pictures(size, PixelFormat::Bgra, fit), sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Camera(device) => {
            let input = args::camera(Platform::here(), device.as_deref(), Some(size), Some(whole_fps));
            child(input, None, pictures(size, PixelFormat::I420, Fit::Pad), sink).map_err(|e| fault(&e))?
        }
        SourceSpec::Mic(_) => {
            let sound = Some(start_sound(spec, stream, workshop)?);
            return Ok(Running { handle: None, _encoder: None, sound });
        }
        SourceSpec::Ffmpeg(text) => {
            let (input, encoded) = args::user(text).map_err(|e| fault(&e))?;
            let output = if encoded {
                raw = false;
                Output::Encoded { container: ffmpeg::Container::Nut, video: ffmpeg::Video::AsGiven }
            } else {
                pictures(size, PixelFormat::I420, Fit::Pad)
            };
            let (handle, heard) = both(input, output, sink)?;
            sound = heard;
            let Some(handle) = handle else { return Ok(Running { handle, _encoder: None, sound }) };
            handle
        }
        SourceSpec::File(path) => {
            let words = ["-re", "-stream_loop", "-1", "-i", path].map(str::to_owned).to_vec();
            let input = Input { args: words, filter: None, capture_delay: Duration::ZERO };
            let (handle, heard) = both(input, pictures(size, PixelFormat::I420, Fit::Pad), sink)?;
            sound = heard;
            let Some(handle) = handle else { return Ok(Running { handle, _encoder: None, sound }) };
            handle
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
        let how = (video, &config.simulcast, budget);
        let threads = encoder(stream, &frames, clock, events, how, size, timecode);
        Some(threads.map_err(|e| fault(&e))?)
    } else {
        None
    };
    Ok(Running { handle: Some(handle), _encoder: encoder, sound })
}

/// The film that an input is, the options behind it, and what is in it. `None` of what is live, or cannot be read now.
fn film(config: &Config, input: &Input) -> Option<(Film, Vec<String>, ffmpeg::Content)> {
    let (path, options, after) = args::as_film(input)?;
    let words = [options.clone(), vec!["-i".into(), path.clone()]].concat();
    let content = ffmpeg::probe(config.ffmpeg.path.as_ref(), &words, FILM_PROBE_LIMIT)?;
    let length = content.length.filter(|length| *length >= Timeline::SHORTEST && (content.video || content.audio))?;
    Some((Film { path, options, timeline: Arc::new(Timeline::new(length + FILM_GAP)) }, after, content))
}
