//! `lightpipe lab`: what a session makes of a network, in virtual time.
//!
//! A real session of ours over a network of `lightpipe-netlab`, with a model in the place of the encoder. A minute takes a tenth of
//! a second, and the same seed gives the same network.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use lightpipe_netlab::link::{GilbertElliott, LinkConfig, QueueLimit};
use lightpipe_netlab::profile::{EventKind, Profile};
use lightpipe_netlab::{Lab, Ladder, Report, plot};

use crate::cli::LabFlags;
use crate::output;

pub(crate) fn run(flags: &LabFlags) -> anyhow::Result<ExitCode> {
    if flags.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let mut reports = Vec::new();
    for profile in flags.profiles.clone() {
        reports.push(play(flags, changed(profile, flags))?);
    }
    if flags.json.as_deref() != Some(Path::new("-")) {
        table(&reports);
    }
    if let Some(file) = &flags.json {
        let text = serde_json::to_string_pretty(&reports)?;
        write(file, &text)?;
    }
    if let Some(file) = &flags.plot {
        let picture = file.extension().is_some_and(|extension| extension == "svg");
        let text = match reports.as_slice() {
            [one] if picture => plot::svg(one),
            _ if picture => bail!("a drawing has one profile; for several name a page, such as lab.html"),
            all => plot::html(all),
        };
        write(file, &text)?;
    }
    let failed = reports.iter().any(|report| !report.failures.is_empty());
    Ok(if failed { ExitCode::from(crate::exit::FOUND) } else { ExitCode::SUCCESS })
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    if file == Path::new("-") {
        output::line(text);
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn list() {
    let rows: Vec<[String; 5]> = Profile::all()
        .into_iter()
        .map(|profile| {
            let rate = |link: &LinkConfig| {
                link.rate_bps.map_or_else(|| "-".to_owned(), |bps| format!("{:.1}", bps as f64 / 1e6))
            };
            let rtt = (profile.down.delay + profile.up.delay).as_millis();
            let rates = format!("{} / {}", rate(&profile.down), rate(&profile.up));
            [profile.name, rates, rtt.to_string(), profile.what, profile.source]
        })
        .collect();
    let rows: Vec<[&str; 5]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    output::text_table(&["profile", "Mbit/s down / up", "RTT ms", "what", "figures from"], &rows);
}

/// The profile with what the flags change.
fn changed(mut profile: Profile, flags: &LabFlags) -> Profile {
    let ms = Duration::from_millis;
    for link in [&mut profile.down, &mut profile.up] {
        if let Some(percent) = flags.loss {
            let share = percent / 100.0;
            match flags.bursts {
                Some(length) => (link.loss, link.bursts) = (0.0, Some(GilbertElliott::lossy(share, length))),
                None => (link.loss, link.bursts) = (share, None),
            }
        }
        link.delay = flags.rtt.map_or(link.delay, |rtt| ms(rtt) / 2);
        link.jitter = flags.jitter.map_or(link.jitter, ms);
        link.queue = flags.queue.map_or(link.queue, |queue| QueueLimit::Time(ms(queue)));
        link.reorder = flags.reorder.map_or(link.reorder, |percent| percent / 100.0);
        link.duplicate = flags.duplicate.map_or(link.duplicate, |percent| percent / 100.0);
    }
    if let Some(kbps) = flags.rate {
        profile.down.rate_bps = Some(kbps * 1_000);
    }
    for At { seconds, value } in &flags.steps {
        profile = profile.with_event(*seconds, EventKind::DownRate((value * 1_000.0) as u64));
    }
    for At { seconds, value } in &flags.outages {
        profile = profile.with_event(*seconds, EventKind::Outage(Duration::from_secs_f64(*value)));
    }
    for seconds in &flags.rebinds {
        profile = profile.with_event(Duration::from_secs_f64(*seconds), EventKind::Rebind);
    }
    for seconds in &flags.moves {
        profile = profile.with_event(Duration::from_secs_f64(*seconds), EventKind::Move);
    }
    profile
}

/// Something at a time: `20:800`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At {
    seconds: Duration,
    value: f64,
}

impl std::str::FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no pair such as 20:800");
        let (seconds, value) = text.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| (0.0..1e9).contains(number));
        let (seconds, value) = number(seconds).zip(number(value)).ok_or_else(wrong)?;
        Ok(Self { seconds: Duration::from_secs_f64(seconds), value })
    }
}

fn play(flags: &LabFlags, profile: Profile) -> anyhow::Result<Report> {
    let span = Duration::from_secs(flags.seconds);
    let mut lab = Lab::new(flags.seed, Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let path = lab.path(profile, span);
    let source = lab.source(&if flags.single { Ladder::camera() } else { Ladder::simulcast() });
    let viewer = lab.watch(source, path)?;
    if flags.tcp {
        lab.transfer(path, Duration::ZERO, span);
    }
    lab.run_for(span);
    Ok(lab.report(viewer))
}

fn table(reports: &[Report]) {
    let header = [
        "profile",
        "shown %",
        "freezes",
        "ms",
        "longest",
        "Mbit/s",
        "of",
        "queue p95",
        "age p50",
        "p95",
        "switches",
        "NACKs",
        "again",
        "PLIs",
    ];
    let row = |report: &Report| {
        vec![
            report.profile.clone(),
            format!("{:.1}", 100.0 * report.pictures_shown as f64 / report.pictures_offered.max(1) as f64),
            report.freezes.count.to_string(),
            format!("{:.0}", report.freezes.total_ms),
            format!("{:.0}", report.freezes.longest_ms),
            format!("{:.2}", report.received_bps / 1e6),
            report.capacity_bps.map_or_else(|| "-".to_owned(), |bps| format!("{:.2}", bps / 1e6)),
            format!("{:.0}", report.queue_ms.p95),
            format!("{:.0}", report.age_ms.p50),
            format!("{:.0}", report.age_ms.p95),
            report.layer_switches.to_string(),
            report.nacks.to_string(),
            report.resent_packets.to_string(),
            report.keyframe_requests.to_string(),
        ]
    };
    output::table(&header, &reports.iter().map(row).collect::<Vec<_>>());
    for report in reports {
        for change in report.changes.iter().filter(|change| !change.what.ends_with("rate")) {
            let value = change.value.map_or(String::new(), |ms| format!(" of {ms} ms"));
            let after =
                change.picture_after_ms.map_or_else(|| "never again".to_owned(), |ms| format!("after {ms:.0} ms"));
            let over = change.at_ms as f64 / 1e3;
            output::line(format_args!(
                "{}: {}{value}, over at {over:.1} s: picture {after}",
                report.profile, change.what
            ));
        }
        for failure in &report.failures {
            output::line(format_args!("{}: {failure}", report.profile));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read() {
        #[track_caller]
        fn check(text: &str, expected: Option<(u64, f64)>) {
            let read = text.parse::<At>().ok().map(|at| (at.seconds.as_millis() as u64, at.value));
            assert_eq!(read, expected, "{text}");
        }
        check("20:800", Some((20_000, 800.0)));
        check("0.5:30", Some((500, 30.0)));
        check("20", None);
        check("-1:2", None);
        check("a:b", None);
        check("1:inf", None);
    }
}
