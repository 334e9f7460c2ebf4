//! The test picture out of a child process: what `bench latency --through` measures.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lightpipe_media::{MediaClock, Size};
use lightpipe_source::pattern::{self, Pattern};
use lightpipe_source::ticker::Schedule;

use crate::cli::{FramesFlags, LatencyFlags, Through};

/// A source specification whose child draws the picture and hands it over in the given way. Both encoded ways are the same
/// encoder with the same settings.
pub(crate) fn pipeline(how: Through, flags: &LatencyFlags, fps: f64) -> anyhow::Result<String> {
    let this = std::env::current_exe().context("this program's own path")?;
    let this = this.to_str().filter(|path| !path.contains('\'')).context("this program's own path is no plain text")?;
    let LatencyFlags { width, height, .. } = flags;
    let encoded = |format: &str| {
        // No frame threads, no lookahead, no B pictures: the encoder's own delay would hide the container's.
        format!(
            "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -g {} -b:v 2500k -flush_packets 1 -f {format}",
            (fps * 2.0).round()
        )
    };
    let output = match how {
        Through::Raw => "-f rawvideo -pix_fmt rgba".to_owned(),
        Through::Nut => encoded("nut"),
        Through::Annexb => encoded("h264"),
    };
    Ok(format!(
        "exec:'{this}' bench frames --width {width} --height {height} --fps {fps} | ffmpeg -loglevel error -fflags nobuffer \
         -probesize 32 -f rawvideo -pix_fmt yuv420p -video_size {width}x{height} -framerate {fps} -use_wallclock_as_timestamps 1 -i - {output} -"
    ))
}

/// Writes the picture until nobody reads it any more.
pub(crate) fn run(flags: &FramesFlags) -> anyhow::Result<ExitCode> {
    let clock = MediaClock::new(Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let config = pattern::Config { size: Size::new(flags.width, flags.height), fps: flags.fps };
    let mut pattern = Pattern::new(config, clock)?;
    let mut schedule = Schedule::new(clock.at(Instant::now()), flags.fps);
    let mut out = std::io::stdout().lock();
    loop {
        let due = clock.instant(schedule.next(clock.at(Instant::now())));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let frame = pattern.render(clock.at(Instant::now()));
        let written = (0..3).try_for_each(|plane| out.write_all(frame.plane(plane))).and_then(|()| out.flush());
        if written.is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
