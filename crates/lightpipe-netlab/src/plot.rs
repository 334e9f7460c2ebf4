//! A report as a drawing: SVG, or a page of it that needs nothing else.

use std::fmt::Write as _;

use crate::report::{Report, Sample, freezes};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;

/// One panel of the drawing: from the top, with so much height.
#[derive(Clone, Copy)]
struct Panel {
    top: f64,
    height: f64,
    most: f64,
    seconds: f64,
}

impl Panel {
    fn x(self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds.max(f64::EPSILON)
    }

    fn y(self, value: f64) -> f64 {
        self.top + self.height * (1.0 - (value / self.most).clamp(0.0, 1.0))
    }

    fn frame(self, out: &mut String, title: &str, unit: &str) {
        let (top, bottom, right) = (self.top, self.top + self.height, WIDTH - RIGHT);
        _ = writeln!(out, r#"<text x="{LEFT}" y="{:.0}" class="title">{title}</text>"#, top - 6.0);
        for share in [0.0, 0.5, 1.0] {
            let (y, value) = (bottom - self.height * share, self.most * share);
            _ = writeln!(out, r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/>"#);
            let digits = usize::from(value.fract() != 0.0);
            _ = writeln!(
                out,
                r#"<text x="{:.0}" y="{:.1}" class="left">{value:.digits$} {unit}</text>"#,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0].into_iter().find(|step| self.seconds / step <= 12.0);
        let step = step.unwrap_or(600.0);
        let mut at = 0.0;
        while at <= self.seconds {
            let x = self.x(at);
            _ = writeln!(out, r#"<path class="grid" d="M{x:.1} {top}V{bottom}"/>"#);
            _ = writeln!(out, r#"<text x="{x:.1}" y="{:.0}" class="below">{at:.0} s</text>"#, bottom + 14.0);
            at += step;
        }
    }

    fn line(self, out: &mut String, class: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut path = String::new();
        let mut drawing = false;
        for (at, value) in points {
            if let Some(value) = value {
                let letter = if drawing { 'L' } else { 'M' };
                _ = write!(path, "{letter}{:.1} {:.1}", self.x(at), self.y(value));
            }
            drawing = value.is_some();
        }
        _ = writeln!(out, r#"<path class="line {class}" d="{path}"/>"#);
    }
}

/// The report's bitrates, waiting and freezes over time.
pub fn svg(report: &Report) -> String {
    let seconds = report.samples.last().map_or(1.0, |last| last.at_ms as f64 / 1e3);
    let most = |figure: fn(&Sample) -> f64| report.samples.iter().map(figure).fold(0.0, f64::max);
    // A capacity far beyond what is sent would flatten all the rest.
    let wanted = most(|s| s.received_bps).max(most(|s| s.target_bps.unwrap_or(0) as f64));
    let rates = Panel { top: 40.0, height: 240.0, most: rounded(wanted * 1.4 / 1e6), seconds };
    let waits = Panel { top: 340.0, height: 120.0, most: rounded(most(|s| s.queue_ms).max(20.0)), seconds };

    let mut out = String::new();
    _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 500" role="img" aria-label="{}">"#,
        escape(&report.profile)
    );
    out.push_str(STYLE);
    for (from, to) in frozen(report) {
        let (x, width) = (rates.x(from), (rates.x(to) - rates.x(from)).max(1.0));
        let (top, height) = (rates.top, rates.height);
        _ = writeln!(out, r#"<rect class="frozen" x="{x:.1}" y="{top}" width="{width:.1}" height="{height}"/>"#);
    }
    rates.frame(&mut out, "bitrate: capacity, estimate, encoder, received; grey: frozen", "Mbit/s");
    let rate = |figure: fn(&Sample) -> Option<f64>| {
        report.samples.iter().map(move |sample| (sample.at_ms as f64 / 1e3, figure(sample).map(|bps| bps / 1e6)))
    };
    rates.line(&mut out, "capacity", rate(|s| s.capacity_bps.map(|bps| bps as f64)));
    rates.line(&mut out, "received", rate(|s| Some(s.received_bps)));
    rates.line(&mut out, "estimate", rate(|s| s.estimate_bps.map(|bps| bps as f64)));
    rates.line(&mut out, "target", rate(|s| s.target_bps.map(|bps| bps as f64)));
    waits.frame(&mut out, "longest wait before the narrowest place", "ms");
    waits.line(&mut out, "queue", report.samples.iter().map(|s| (s.at_ms as f64 / 1e3, Some(s.queue_ms))));
    if report.layer_switches + report.adaptations > 0 {
        let made = |sample: &Sample| (sample.layer, sample.rows, sample.fps);
        for pair in report.samples.windows(2).filter(|pair| pair[0].rows > 0 && made(&pair[0]) != made(&pair[1])) {
            let label = if pair[0].layer == pair[1].layer {
                format!("{}p{}", pair[1].rows, pair[1].fps)
            } else {
                pair[1].layer.to_string()
            };
            let x = rates.x(pair[1].at_ms as f64 / 1e3);
            let (top, bottom) = (rates.top, rates.top + rates.height);
            _ = writeln!(out, r#"<path class="switch" d="M{x:.1} {top}V{bottom}"/>"#);
            _ = writeln!(out, r#"<text x="{:.1}" y="{:.1}" class="layer">{label}</text>"#, x + 3.0, top + 12.0,);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// A page with the drawings of several reports, and what each says in figures.
pub fn html(reports: &[Report]) -> String {
    let mut out = String::from("<!doctype html>\n<meta charset=\"utf-8\">\n<title>lightpipe lab</title>\n");
    out.push_str("<style>body{font:14px system-ui,sans-serif;margin:2em auto;max-width:960px}</style>\n");
    for report in reports {
        let freezes = report.freezes;
        _ = writeln!(out, "<h1>{}</h1>", escape(&report.profile));
        _ = writeln!(
            out,
            "<p>{} of {} pictures; {} freezes, {:.0} ms together, the longest {:.0} ms; {:.2} Mbit/s received{}; waiting p95 {:.0} ms; \
             age p50 {:.0}, p95 {:.0} ms; {} layer switches; {} NACKs, {} packets again, {} keyframe requests</p>",
            report.pictures_shown,
            report.pictures_offered,
            freezes.count,
            freezes.total_ms,
            freezes.longest_ms,
            report.received_bps / 1e6,
            report.capacity_bps.map_or(String::new(), |bps| format!(" of {:.2}", bps / 1e6)),
            report.queue_ms.p95,
            report.age_ms.p50,
            report.age_ms.p95,
            report.layer_switches,
            report.nacks,
            report.resent_packets,
            report.keyframe_requests,
        );
        out.push_str(&svg(report));
    }
    out
}

const STYLE: &str = "<style>
svg{font:11px system-ui,sans-serif;background:#fff}
.title{font-weight:600}.left{text-anchor:end}.below{text-anchor:middle}
.grid{stroke:#ddd;fill:none}.line{fill:none;stroke-width:1.4}
.capacity{stroke:#222;stroke-dasharray:5 3}.estimate{stroke:#d80}.target{stroke:#06c;stroke-width:2}.received{stroke:#7b7}
.queue{stroke:#a2a}.frozen{fill:#999;opacity:.45}.switch{stroke:#c33;stroke-dasharray:2 2}.layer{fill:#c33}
</style>
";

/// The next number that is easy to read on an axis.
fn rounded(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(0.01).log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

/// Beginnings and ends of the freezes, seconds.
fn frozen(report: &Report) -> Vec<(f64, f64)> {
    let mut found = Vec::new();
    for index in 1..report.shown_ms.len() {
        let before = index.saturating_sub(31);
        let (from, to) = (report.shown_ms[index - 1], report.shown_ms[index]);
        if freezes(&report.shown_ms[before..=index], to).longest_ms == to - from {
            found.push((from / 1e3, to / 1e3));
        }
    }
    found
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_numbers_that_people_read() {
        assert_eq!([0.7, 1.0, 3.5, 4.1, 7.0, 9.1, 312.0].map(rounded), [0.8, 1.0, 4.0, 5.0, 8.0, 10.0, 400.0]);
    }
}
