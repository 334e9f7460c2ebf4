//! `lightpipe devices`: what can be captured here.

use std::process::ExitCode;

use lightpipe_source::devices::{self, DeviceKind};

use crate::cli::DevicesFlags;
use crate::output;

pub(crate) fn run(flags: &DevicesFlags) -> anyhow::Result<ExitCode> {
    let found = devices::list(flags.ffmpeg.as_ref());
    let kind = |kind: DeviceKind| format!("{kind:?}").to_lowercase();
    if flags.json {
        let list: Vec<serde_json::Value> =
            found.iter().map(|d| serde_json::json!({ "kind": kind(d.kind), "id": d.id, "name": d.name })).collect();
        output::line(serde_json::to_string_pretty(&serde_json::json!({ "devices": list }))?);
    } else if found.is_empty() {
        output::note(
            "No camera, screen or audio device found. A camera needs /dev/video*, a screen DISPLAY, sound a PulseAudio or PipeWire server.",
        );
    } else {
        let rows: Vec<Vec<String>> = found.into_iter().map(|d| vec![kind(d.kind), d.id, d.name]).collect();
        output::table(&["kind", "id", "name"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}
