//! Capacity that falls and comes back, and capacity that stays.

use std::time::Duration;

use lightpipe_netlab::link::{LinkConfig, QueueLimit};
use lightpipe_netlab::profile::Profile;
use lightpipe_netlab::{Ladder, Report};

use crate::{lab, secs};

/// One viewer of one source on this network, for so long.
pub(crate) fn watch(seed: u64, profile: Profile, ladder: &Ladder, span: Duration) -> Report {
    let mut lab = lab(seed);
    let path = lab.path(profile, span);
    let source = lab.source(ladder);
    let viewer = lab.watch(source, path).unwrap();
    lab.run_for(span);
    let report = lab.report(viewer);
    assert_eq!(report.failures, Vec::<String>::new());
    report
}

/// Seconds from `from` until a figure keeps to its limit for a second.
fn settles(report: &Report, from: f64, keeps: impl Fn(&lightpipe_netlab::Sample) -> bool) -> Option<f64> {
    let ten = report.between(from, f64::MAX).collect::<Vec<_>>();
    let at = ten.windows(10).position(|second| second.iter().all(|sample| keeps(sample)))?;
    Some(at as f64 / 10.0)
}

/// Seconds from `from` until the mean of a second is this much, bits per second.
fn reaches(report: &Report, from: f64, bps: f64) -> Option<f64> {
    (0..600)
        .map(|tenth| f64::from(tenth) / 10.0)
        .find(|after| report.mean(from + after, from + after + 1.0, |sample| sample.received_bps) >= bps)
}

/// Times that the encoder's aim fell by a fifth from a peak, to rise by a quarter again.
fn swings(report: &Report, from: f64, to: f64) -> u64 {
    let (mut peak, mut trough, mut fallen, mut count) = (0.0_f64, f64::MAX, false, 0);
    for target in report.between(from, to).filter_map(|sample| sample.target_bps) {
        let target = target as f64;
        if fallen {
            trough = trough.min(target);
            if target > trough * 1.25 {
                (fallen, peak, count) = (false, target, count + 1);
            }
        } else {
            peak = peak.max(target);
            if target < peak * 0.8 {
                (fallen, trough) = (true, target);
            }
        }
    }
    count
}

#[test]
fn capacity_that_falls_and_comes_back() {
    for seed in 1..=10 {
        let report = watch(seed, Profile::named("step").unwrap(), &Ladder::camera(), secs(80));
        let calm = settles(&report, 20.0, |sample| sample.queue_ms < 100.0);
        let up = reaches(&report, 50.0, 0.8 * 3e6);
        let falling = report.freezes_between(15.0, 49.0);
        let freezes = report.freezes;
        println!(
            "step, seed {seed}: queue below 100 ms after {calm:?} s, longest freeze {:.0} ms, 2.4 Mbit/s after {up:?} s, {} packets again",
            freezes.longest_ms, report.resent_packets
        );
        assert!(calm.is_some_and(|after| after <= 5.0), "{calm:?}");
        assert!(falling.longest_ms <= 1_000.0 && freezes.longest_ms <= 1_000.0, "{freezes:?}");
        assert!(up.is_some_and(|after| after <= 15.0), "{up:?}");
    }
}

#[test]
fn capacity_that_stays() {
    for seed in 1..=5 {
        let path = LinkConfig::default().with_delay_millis(20);
        let narrow =
            |path: LinkConfig| path.with_rate_bps(1_200_000).with_queue(QueueLimit::Time(Duration::from_millis(300)));
        let profile = Profile::perfect().with_both(|_| path.clone()).with_down(narrow);
        for ladder in [Ladder::camera(), Ladder::simulcast()] {
            let report = watch(seed, profile.clone(), &ladder, secs(140));
            let swings = swings(&report, 20.0, 140.0);
            let layers = report.layer_switches;
            println!(
                "1.2 Mbit/s, {} layers, seed {seed}: {swings} swings and {layers} layer switches in 120 s, {:.2} Mbit/s, queue p95 {:.0} ms, {:?}",
                ladder.layers().len(),
                report.received_bps / 1e6,
                report.queue_ms.p95,
                report.freezes
            );
            assert!(swings <= 12, "{swings} swings in 120 s");
            assert!(layers <= 12, "{layers} layer switches in 120 s");
        }
    }
}

/// Others hold the best layer at its full rate, and this viewer's network carries less than that, or just as much.
#[test]
fn between_two_layers() {
    const SPAN: u64 = 120;
    for (kbps, seed) in [1_600, 2_000, 2_200, 2_400, 2_600, 2_800, 3_200].into_iter().zip(1..) {
        let mut lab = lab(seed);
        let source = lab.source(&Ladder::simulcast());
        let perfect = lab.path(Profile::perfect(), secs(SPAN));
        lab.watch(source, perfect).unwrap();
        let path = LinkConfig::default().with_delay_millis(20).with_jitter_millis(3);
        let narrow = |path: LinkConfig| {
            path.with_rate_bps(kbps * 1_000).with_queue(QueueLimit::Time(Duration::from_millis(200)))
        };
        let path = lab.path(Profile::perfect().with_both(|_| path.clone()).with_down(narrow), secs(SPAN));
        let viewer = lab.watch(source, path).unwrap();
        lab.run_for(secs(SPAN));
        let report = lab.report(viewer);
        let samples: Vec<_> = report.between(10.0, SPAN as f64).collect();
        let on_best = samples.iter().filter(|sample| sample.layer == 0).count() as f64 / samples.len() as f64;
        println!(
            "{:.1} Mbit/s: {} switches, {:2.0} % on the best, queue p50 {:.0} p95 {:.0} ms, {:?}, {:.2} Mbit/s received, {} packets again",
            kbps as f64 / 1e3,
            report.layer_switches,
            on_best * 100.0,
            report.queue_ms.p50,
            report.queue_ms.p95,
            report.freezes,
            report.received_bps / 1e6,
            report.resent_packets
        );
        assert_eq!(report.freezes.count, 0, "{:?}", report.freezes);
        assert!(report.queue_ms.p95 <= 40.0, "{:?}", report.queue_ms);
        assert!(report.layer_switches <= 5, "{} layer switches", report.layer_switches);
        assert!(kbps < 2_600 || on_best >= 0.95, "{:.0} % on the best", on_best * 100.0);
    }
}

/// Weak 4G, ten minutes: no disconnect and next to no freeze.
#[test]
fn weak_4g() {
    let report = watch(1, Profile::named("lte-weak").unwrap(), &Ladder::camera(), secs(600));
    // The budget of the age is half a round trip and 80 ms; a player that shows as evenly as it can uses it.
    let on_screen = report.freezes_with_reserve(80.0);
    let share = on_screen.total_ms / 600e3;
    println!(
        "lte-weak: {:.2} % frozen ({} freezes, longest {:.0} ms; without reserve {:.2} %), {:.2} Mbit/s, age p50 {:.0} p95 {:.0} ms, {} of {} pictures",
        share * 100.0,
        on_screen.count,
        on_screen.longest_ms,
        report.freezes.total_ms / 6e3,
        report.received_bps / 1e6,
        report.age_ms.p50,
        report.age_ms.p95,
        report.pictures_shown,
        report.pictures_offered
    );
    assert!(share < 0.01, "{:.2} % frozen", share * 100.0);
    assert!(report.age_ms.p50 <= 45.0 + 80.0, "{:?}", report.age_ms);
}
