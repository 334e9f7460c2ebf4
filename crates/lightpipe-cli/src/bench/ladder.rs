//! `lightpipe bench ladder`: what the layers of a ladder cost.
//!
//! The test picture goes to several sets of encode threads in turn, picture by picture, so that whatever else the machine does hits all of
//! them: the best layer alone, all layers, the best layer with many outlets. CPU time is the threads' own. The figures are medians over
//! the pictures, so that a picture that loses its core to somebody else's work does not count. Compare the ratios.

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use lightpipe::Config;
use lightpipe_codec::openh264::OpenH264;
use lightpipe_codec::{Content, EncodeThread, EncoderConfig, Setup};
use lightpipe_media::stream::SimulcastLayer;
use lightpipe_media::{
    AccessUnit, EventLog, FrameQueue, MediaClock, MediaTime, Outlet, Size, Stream, Subscription, VideoCodec, VideoFrame,
};
use lightpipe_source::pattern::{self, Pattern};
use serde_json::{Value, json};

use super::cpu;
use super::machine::Machine;
use crate::cli::LadderFlags;
use crate::output;

/// Encoded before the measurement begins: rate controls settle, threads and buffers are there.
const WARM_UP: u32 = 60;

/// Outlets of the run that has many.
const MANY: usize = 50;

/// No encoder takes so long for a picture.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells the bench that a picture is there. What that costs is in the figures of every run, once per layer.
struct Tell(Mutex<Sender<usize>>);

impl Outlet for Tell {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        // The bench ends before its encoders do.
        if let Ok(sender) = self.0.lock() {
            _ = sender.send(unit.data.len());
        }
    }
}

/// One outlet more.
struct Silent;

impl Outlet for Silent {
    fn deliver(&self, _: &Arc<AccessUnit>) {}
}

/// One set of encode threads, known by their name.
struct Run {
    name: &'static str,
    /// Layers that somebody takes.
    layers: usize,
    outlets: usize,
    frames: Arc<FrameQueue>,
    encoded: Receiver<usize>,
    bytes: usize,
    /// CPU time of its threads so far: the one that scales, then each layer's.
    cpu: Vec<Duration>,
    /// CPU milliseconds per picture, of the same threads.
    spent: Vec<Vec<f64>>,
    _outlets: Vec<Subscription>,
    _threads: EncodeThread,
}

impl Run {
    fn start(name: &'static str, setup: &Common, layers: usize, outlets: usize) -> anyhow::Result<Self> {
        let stream = Stream::new(name, VideoCodec::H264);
        let frames = Arc::new(FrameQueue::new(2));
        let threads = EncodeThread::spawn(Setup {
            stream: Arc::clone(&stream),
            frames: Arc::clone(&frames),
            clock: setup.clock,
            events: EventLog::new(),
            config: setup.config,
            layers: setup.ladder.clone(),
            adapt: false,
            budget: None,
            timecode: false,
            make: Arc::new(|config| Ok(Box::new(OpenH264::new(config)?))),
            alternatives: Vec::new(),
        })?;
        let (sender, encoded) = mpsc::channel();
        let mut subscriptions = Vec::new();
        for layer in stream.layers().iter().take(layers) {
            for _ in 1..outlets {
                subscriptions.push(layer.subscribe(Arc::new(Silent)));
            }
            subscriptions.push(layer.subscribe(Arc::new(Tell(Mutex::new(sender.clone())))));
        }
        let (cpu, spent) = (Vec::new(), vec![Vec::new(); setup.ladder.len() + 1]);
        Ok(Self {
            name,
            layers,
            outlets,
            frames,
            encoded,
            bytes: 0,
            cpu,
            spent,
            _outlets: subscriptions,
            _threads: threads,
        })
    }

    /// Encodes a picture and waits until every layer has it.
    fn encode(&mut self, picture: &VideoFrame) -> anyhow::Result<()> {
        self.frames.push(picture.clone());
        for _ in 0..self.layers {
            self.bytes += self.encoded.recv_timeout(PATIENCE).context("a picture was not encoded")?;
        }
        Ok(())
    }

    /// Notes what its threads took since the last time.
    fn count(&mut self, ladder: &[SimulcastLayer]) {
        let threads = format!("encode-{}", self.name);
        let layers: Vec<Duration> =
            ladder.iter().map(|layer| cpu::threads(&format!("{threads}-{}", layer.rid))).collect();
        let scaling = cpu::threads(&threads).saturating_sub(layers.iter().sum());
        let now: Vec<Duration> = std::iter::once(scaling).chain(layers).collect();
        let before = std::mem::replace(&mut self.cpu, now);
        for ((spent, now), before) in self.spent.iter_mut().zip(&self.cpu).zip(before) {
            spent.push(now.saturating_sub(before).as_secs_f64() * 1e3);
        }
    }

    /// CPU milliseconds per picture of scaling and of each layer.
    fn medians(&mut self) -> Vec<f64> {
        let median = |spent: &mut Vec<f64>| {
            spent.sort_by(f64::total_cmp);
            spent.get(spent.len() / 2).copied().unwrap_or(f64::NAN)
        };
        self.spent.iter_mut().map(median).collect()
    }
}

struct Common {
    clock: MediaClock,
    config: EncoderConfig,
    ladder: Vec<SimulcastLayer>,
}

pub(crate) fn run(flags: &LadderFlags) -> anyhow::Result<ExitCode> {
    let mut config = Config::default();
    (config.video.width, config.video.height) = (flags.width, flags.height);
    config.check()?;
    let size = Size::new(flags.width, flags.height);
    let ladder = config.simulcast.ladder(&config.video, size);
    ensure!(!ladder.is_empty(), "a picture of {size} has no layers below it");
    let clock = MediaClock::new(Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let encoder = EncoderConfig {
        size,
        fps: config.video.fps,
        bitrate_bps: config.video.bitrate_bps(),
        keyframe_interval: config.video.keyframe_interval,
        content: Content::Camera,
    };
    let common = Common { clock, config: encoder, ladder };
    // The kernel keeps 15 letters of a thread's name.
    let all = common.ladder.len();
    let mut runs =
        [Run::start("one", &common, 1, 1)?, Run::start("all", &common, all, 1)?, Run::start("many", &common, 1, MANY)?];
    let mut pattern = Pattern::new(pattern::Config { size, fps: config.video.fps }, clock)?;
    output::note(format_args!("encoding {} pictures, {} times each …", flags.pictures, runs.len()));
    for n in 0..WARM_UP + flags.pictures {
        let picture = pattern.render(MediaTime::from_micros((f64::from(n) * 1e6 / config.video.fps) as i64));
        for run in &mut runs {
            if n == WARM_UP {
                run.bytes = 0;
            }
            run.encode(&picture)?;
            if n + 1 >= WARM_UP {
                run.count(&common.ladder);
            }
        }
    }
    let spent: Vec<Vec<f64>> = runs.iter_mut().map(Run::medians).collect();
    report(flags, &common.ladder, &runs, &spent)?;
    Ok(ExitCode::SUCCESS)
}

fn report(flags: &LadderFlags, ladder: &[SimulcastLayer], runs: &[Run], spent: &[Vec<f64>]) -> anyhow::Result<()> {
    let machine = Machine::this();
    let alone: f64 = spent.first().into_iter().flatten().sum();
    let rows = runs.iter().zip(spent).map(|(run, spent)| {
        let [scaling, layers @ ..] = spent.as_slice() else { return Value::Null };
        let total: f64 = spent.iter().sum();
        json!({
            "layers": run.layers,
            "outlets": run.outlets,
            "cpu_ms_per_picture": total,
            "of_that_scaling": scaling,
            "of_that_layers": layers,
            "ratio": total / alone,
            "kbps": run.bytes as f64 * 8.0 * 30.0 / f64::from(flags.pictures) / 1000.0,
        })
    });
    let rows: Vec<Value> = rows.collect();
    if flags.json {
        let report = json!({ "bench": "ladder", "machine": machine, "pictures": flags.pictures, "width": flags.width, "height": flags.height, "runs": rows });
        output::line(serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    output::line(&machine);
    let sizes: Vec<String> = ladder.iter().map(|layer| format!("{} {}", layer.rid, layer.size)).collect();
    output::line(format_args!("{}; {} pictures, CPU ms per picture", sizes.join(", "), flags.pictures));
    output::line("");
    let number = |value: &Value| value.as_f64().map_or_else(|| "–".to_owned(), |v| format!("{v:.3}"));
    let mut titles = vec!["layers", "outlets", "all threads", "ratio", "scaling"];
    titles.extend(ladder.iter().map(|layer| layer.rid.as_str()));
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![row["layers"].to_string(), row["outlets"].to_string()];
            cells.extend(["cpu_ms_per_picture", "ratio", "of_that_scaling"].map(|key| number(&row[key])));
            cells.extend(row["of_that_layers"].as_array().into_iter().flatten().map(number));
            cells
        })
        .collect();
    output::table(&titles, &rows);
    Ok(())
}
