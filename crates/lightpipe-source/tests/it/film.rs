//! A file with sound: two children, one time.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lightpipe_media::queue::Pop;
use lightpipe_media::stream::Health;
use lightpipe_media::{AudioBlock, AudioQueue, PixelFormat, Size, VideoFrame};
use lightpipe_source::ffmpeg::{self, Config, Film, Fit, Input, Output, SoundConfig, args};
use lightpipe_source::timeline::Timeline;
use lightpipe_source::{AudioSink, SourceHandle};

use crate::lab::{Lab, PATIENCE, kill_9, until};

/// A clip of so many seconds, white and loud in the first tenth of each. Its tracks are of different lengths, as codecs make them.
fn clip(seconds: u32) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("lightpipe-clip-{}-{number}.mp4", std::process::id()));
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i"])
        .arg("color=black:s=320x180:r=30,drawbox=w=iw:h=ih:color=white:t=fill:enable='lt(mod(t,1),0.1)'")
        .args(["-f", "lavfi", "-i", "aevalsrc='0.5*sin(2*PI*1000*t)*lt(mod(t,1),0.1)':s=44100"])
        .args(["-t", &seconds.to_string(), "-c:v", "libx264", "-bf", "2", "-g", "60", "-c:a", "aac"])
        .arg(&path)
        .status()
        .expect("FFmpeg is installed");
    assert!(status.success());
    path
}

fn audio_sink(lab: &Lab) -> AudioSink {
    AudioSink {
        stream: Arc::clone(&lab.sink.stream),
        blocks: Arc::new(AudioQueue::new(64)),
        clock: lab.sink.clock,
        events: lab.sink.events.clone(),
    }
}

fn nothing() -> Input {
    Input { args: Vec::new(), filter: None, capture_delay: Duration::ZERO }
}

/// Both children of a film, and what they gave.
struct Cinema {
    lab: Lab,
    sound: AudioSink,
    pictures_child: Box<dyn SourceHandle>,
    sound_child: Box<dyn SourceHandle>,
    flashes: Vec<f64>,
    beeps: Vec<f64>,
    white: bool,
    quiet: usize,
    /// Times of all pictures and of the ends of all blocks, seconds.
    pictures: Vec<f64>,
    heard: Vec<f64>,
}

impl Cinema {
    fn open(path: &std::path::Path, seconds: u32) -> Self {
        let found = ffmpeg::probe("ffmpeg".as_ref(), &["-i".into(), path.display().to_string()], PATIENCE);
        let found = found.expect("FFmpeg reads what it wrote");
        assert!(found.video && found.audio);
        let length = found.length.expect("a file has a length");
        assert!(length.abs_diff(Duration::from_secs(seconds.into())) < Duration::from_millis(50), "{length:?}");
        let timeline = Arc::new(Timeline::new(length + Duration::from_millis(10)));
        let film = Film { path: path.display().to_string(), options: Vec::new(), timeline };
        let lab = Lab::new();
        let sound = audio_sink(&lab);
        let size = Size::new(64, 36);
        let output = Output::Raw { size, fps: 30, pixels: PixelFormat::I420, fit: Fit::Pad };
        let config = Config { film: Some(film.clone()), ..Config::new(nothing(), output) };
        let pictures_child = ffmpeg::start(config, lab.sink.clone()).expect("a good configuration");
        let config = SoundConfig { binary: "ffmpeg".into(), input: nothing(), film: Some(film), channels: 2 };
        let sound_child = ffmpeg::start_sound(config, sound.clone()).expect("a good configuration");
        let (flashes, beeps, pictures, heard) = Default::default();
        Self { lab, sound, pictures_child, sound_child, flashes, beeps, white: false, quiet: 0, pictures, heard }
    }

    fn watch(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            if let Pop::Item(frame) = self.lab.sink.frames.pop(Duration::from_millis(5)) {
                self.see(&frame);
            }
            while let Pop::Item(block) = self.sound.blocks.pop(Duration::ZERO) {
                self.hear(&block);
            }
        }
    }

    fn see(&mut self, frame: &VideoFrame) {
        let at = frame.captured.as_micros() as f64 / 1e6;
        self.pictures.push(at);
        let white = frame.plane(0)[frame.layout(0).stride * 18 + 32] > 128;
        if white && !self.white {
            self.flashes.push(at);
        }
        self.white = white;
    }

    fn hear(&mut self, block: &AudioBlock) {
        assert_eq!((block.rate_hz, block.channels), (48_000, 2));
        let begin = block.captured.as_micros() as f64 / 1e6;
        for (n, sample) in block.samples.chunks_exact(2).enumerate() {
            if sample[0].abs() < 0.05 {
                self.quiet += 1;
            } else {
                if self.quiet > 24_000 {
                    self.beeps.push(begin + n as f64 / 48_000.0);
                }
                self.quiet = 0;
            }
        }
        self.heard.push(begin + block.len() as f64 / 48_000.0);
    }

    /// Every flash with its beep: by how much the flash is later, ms. Only those from `since` on.
    #[track_caller]
    fn skews(&self, since: f64) -> Vec<f64> {
        let flashes = self.flashes.iter().filter(|at| **at >= since);
        let pairs = flashes.filter_map(|flash| {
            let nearest = self.beeps.iter().min_by(|a, b| (*a - flash).abs().total_cmp(&(*b - flash).abs()))?;
            Some((flash - nearest) * 1000.0).filter(|skew| skew.abs() < 500.0)
        });
        pairs.collect()
    }

    fn now(&self) -> f64 {
        self.lab.sink.clock.at(Instant::now()).as_micros() as f64 / 1e6
    }
}

fn longest_gap(times: &[f64]) -> f64 {
    times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

#[track_caller]
fn assert_together(skews: &[f64], at_least: usize) {
    assert!(skews.len() >= at_least, "{skews:?}");
    assert!(skews.iter().all(|skew| skew.abs() < 20.0), "{skews:?}");
}

#[test]
fn flash_and_beep_stay_together_through_all_loops_and_a_killed_child() {
    let path = clip(2);
    let mut cinema = Cinema::open(&path, 2);
    cinema.watch(Duration::from_secs(9));
    let skews = cinema.skews(0.0);
    assert_together(&skews, 7);
    assert!(longest_gap(&cinema.pictures) < 0.2, "loops show no hole: {}", longest_gap(&cinema.pictures));
    let apart = cinema.flashes.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(apart.clone().all(|apart| (0.95..1.1).contains(&apart)), "{:?}", cinema.flashes);

    // The sound's child dies: sound is back where the film is by then, and pictures never knew.
    let killed = cinema.now();
    kill_9(cinema.sound_child.child_pid().expect("it runs"));
    cinema.watch(Duration::from_secs(4));
    let back = cinema.heard.iter().find(|at| **at > killed + 0.1).expect("sound again") - killed;
    assert!(back < 2.0, "sound after {back} s");
    assert_together(&cinema.skews(killed + back), 2);
    assert!(longest_gap(&cinema.pictures) < 0.2, "{}", longest_gap(&cinema.pictures));
    assert_eq!((cinema.lab.health(), cinema.lab.sink.stream.audio_health()), (Health::Live, Health::Live));
    assert!(!cinema.lab.event_names().contains(&"ffmpeg_exited"), "{:?}", cinema.lab.event_names());

    // The pictures' child dies: the same the other way.
    let killed = cinema.now();
    kill_9(cinema.pictures_child.child_pid().expect("it runs"));
    cinema.watch(Duration::from_secs(4));
    let back = cinema.pictures.iter().find(|at| **at > killed + 0.05).expect("pictures again") - killed;
    assert!(back < 2.0, "pictures after {back} s");
    assert_together(&cinema.skews(killed + back), 2);
    drop(cinema);
    std::fs::remove_file(path).expect("the clip");
}

#[test]
fn a_live_input_without_sound_is_no_failure() {
    let lab = Lab::new();
    let sound = audio_sink(&lab);
    lab.sink.stream.add_audio();
    lab.sink.stream.set_health(Health::Live);
    let input = args::lavfi("testsrc2=size=64x48:rate=30");
    let found = ffmpeg::probe("ffmpeg".as_ref(), &input.args, PATIENCE).expect("FFmpeg tells");
    assert_eq!((found.video, found.audio, found.length), (true, false, None));
    let _child = ffmpeg::start_sound(SoundConfig { binary: "ffmpeg".into(), input, film: None, channels: 2 }, sound)
        .expect("starts");
    until("no sound any more", || !lab.sink.stream.has_audio());
    assert_eq!((lab.health(), lab.sink.stream.audio_health()), (Health::Live, Health::Live));
    assert_eq!(lab.event_names(), ["audio_spawned"]);
}

#[test]
fn live_sound_comes_in_any_chunks_with_even_times() {
    for samples in [480, 1024, 4097] {
        let lab = Lab::new();
        let sound = audio_sink(&lab);
        let input = args::lavfi(&format!("sine=frequency=440:sample_rate=44100:samples_per_frame={samples}"));
        let config = SoundConfig { binary: "ffmpeg".into(), input, film: None, channels: 1 };
        let _child = ffmpeg::start_sound(config, sound.clone()).expect("starts");
        let mut end: Option<i64> = None;
        let mut total = 0;
        while total < 48_000 {
            let Pop::Item(block) = sound.blocks.pop(PATIENCE) else { panic!("{:?}", lab.sink.events.since(0)) };
            let begin = block.captured.as_micros();
            if let Some(end) = end.filter(|_| total > 10_000) {
                assert!((begin - end).abs() < 20_000, "{samples}: block at {begin} after one to {end}");
            }
            total += block.len();
            end = Some(begin + block.len() as i64 * 1_000_000 / 48_000);
        }
        assert_eq!(lab.sink.stream.audio_health(), Health::Live);
    }
}
