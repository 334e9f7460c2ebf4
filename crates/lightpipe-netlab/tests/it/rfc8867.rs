//! Cases of RFC 8867, with its parameters (`docs/lab.md` says from where).
//!
//! The RFC names no limits. What must hold here is what §5 says is to be looked at: the flow follows the capacity, flows share it, and
//! neither starves beside TCP.

use lightpipe_media::Size;
use lightpipe_netlab::profile::Profile;
use lightpipe_netlab::{Ladder, Report, jain};

use crate::{lab, secs};

/// RFC 8867 §4: a source of 150 kbit/s to 1.5 Mbit/s. It keeps its size and rate: what is judged is the rate control, and one that adapts goes
/// lower.
fn media() -> Ladder {
    Ladder::single(Size::new(1280, 720), 30.0, 1_500_000).without_adaptation()
}

fn line(name: &str, report: &Report) {
    println!(
        "{name}: {:.2} Mbit/s, queue p95 {:.0} max {:.0} ms, lost {} overflowed {}, freezes {} longest {:.0} ms, age p95 {:.0} ms",
        report.received_bps / 1e6,
        report.queue_ms.p95,
        report.queue_ms.max,
        report.lost_packets,
        report.line_overflowed,
        report.freezes.count,
        report.freezes.longest_ms,
        report.age_ms.p95
    );
}

/// Mbit/s received from one second to another.
fn rate(report: &Report, from: f64, to: f64) -> f64 {
    report.mean(from, to, |sample| sample.received_bps) / 1e6
}

#[test]
fn case_5_1_variable_capacity_single_flow() {
    for seed in 1..=3 {
        for delay in [50, 100] {
            let mut lab = lab(seed);
            let profile = Profile::named("rfc8867-5.1").unwrap().with_both(|link| link.with_delay_millis(delay));
            let path = lab.path(profile, secs(100));
            let source = lab.source(&media());
            let viewer = lab.watch(source, path).unwrap();
            lab.run_for(secs(100));
            let report = lab.report(viewer);
            // After ten seconds of each capacity; the source has no more than 1.5 Mbit/s.
            let shares: Vec<f64> = [(10.0, 40.0, 1.0), (50.0, 60.0, 1.5), (70.0, 80.0, 0.6), (90.0, 100.0, 1.0)]
                .into_iter()
                .map(|(from, to, capacity)| rate(&report, from, to) / capacity)
                .collect();
            line(&format!("5.1, {delay} ms, seed {seed}, shares of the capacity {shares:.2?}"), &report);
            assert!(shares.iter().all(|share| *share >= 0.6), "{shares:.2?}");
            assert!(report.freezes.longest_ms <= 1_500.0, "{:?}", report.freezes);
        }
    }
}

#[test]
fn case_5_2_variable_capacity_two_flows() {
    for seed in 1..=3 {
        let mut lab = lab(seed);
        let path = lab.path(Profile::named("rfc8867-5.2").unwrap(), secs(125));
        let viewers: Vec<_> = (0..2)
            .map(|_| {
                let source = lab.source(&media());
                lab.watch(source, path).unwrap()
            })
            .collect();
        lab.run_for(secs(125));
        let reports: Vec<Report> = viewers.into_iter().map(|viewer| lab.report(viewer)).collect();
        let spans = [(10.0, 25.0), (35.0, 50.0), (60.0, 75.0), (85.0, 100.0), (110.0, 125.0)];
        let fair: Vec<f64> = spans
            .iter()
            .map(|(from, to)| jain(&reports.iter().map(|r| rate(r, *from, *to)).collect::<Vec<_>>()))
            .collect();
        for report in &reports {
            line(&format!("5.2, seed {seed}"), report);
        }
        let whole = jain(&reports.iter().map(|report| rate(report, 10.0, 125.0)).collect::<Vec<_>>());
        println!("5.2, seed {seed}: fairness {whole:.2}, of each capacity {fair:.2?}");
        assert!(whole >= 0.8, "{whole}");
        assert!(fair.iter().all(|index| *index >= 0.7), "{fair:.2?}");
    }
}

#[test]
fn case_5_3_congested_feedback() {
    for seed in 1..=3 {
        let mut lab = lab(seed);
        let path = lab.path(Profile::named("rfc8867-5.3").unwrap(), secs(100));
        let source = lab.source(&media());
        let forth = lab.watch(source, path).unwrap();
        let source = lab.source(&media());
        let back = lab.watch_backwards(source, path).unwrap();
        lab.run_for(secs(100));
        let (forth, back) = (lab.report(forth), lab.report(back));
        line(&format!("5.3 forward, seed {seed}"), &forth);
        line(&format!("5.3 backward, seed {seed}"), &back);
        // Both ways the same capacity: at the beginning, and at the end.
        let fair: Vec<f64> = [(10.0, 20.0), (85.0, 100.0)]
            .map(|(from, to)| jain(&[rate(&forth, from, to), rate(&back, from, to)]))
            .to_vec();
        let shares = [rate(&forth, 30.0, 40.0) / 1.0, rate(&forth, 50.0, 60.0) / 0.5, rate(&back, 45.0, 70.0) / 0.8];
        println!("5.3, seed {seed}: fairness {fair:.2?}, shares of the capacity {shares:.2?}");
        assert!(fair.iter().all(|index| *index >= 0.8), "{fair:.2?}");
        assert!(shares.iter().all(|share| *share >= 0.5), "{shares:.2?}");
    }
}

#[test]
fn case_5_6_beside_a_long_transfer() {
    for seed in 1..=3 {
        for queue in [300, 1_000] {
            let mut lab = lab(seed);
            let limit = lightpipe_netlab::link::QueueLimit::Time(std::time::Duration::from_millis(queue));
            let profile = Profile::named("rfc8867-5.6").unwrap().with_down(|link| link.with_queue(limit));
            let path = lab.path(profile, secs(120));
            let transfer = lab.transfer(path, secs(0), secs(119));
            lab.run_for(secs(5));
            let source = lab.source(&media());
            let viewer = lab.watch(source, path).unwrap();
            lab.run_for(secs(115));
            let report = lab.report(viewer);
            let media = rate(&report, 15.0, 119.0);
            let tcp = lab.transferred_bytes(transfer) as f64 * 8.0 / 119.0 / 1e6;
            line(
                &format!("5.6, queue of {queue} ms, seed {seed}: media {media:.2}, TCP {tcp:.2} of 2 Mbit/s"),
                &report,
            );
            assert!(media >= 0.15, "the flow starves: {media}");
            assert!(tcp >= 0.2, "the transfer starves: {tcp}");
        }
    }
}
