//! Networks that are gone for a while, or come back as another one.

use lightpipe_netlab::profile::{EventKind, Profile};
use lightpipe_netlab::{Ladder, Report};

use crate::secs;
use crate::step::watch;

fn millis(span: u64) -> std::time::Duration {
    std::time::Duration::from_millis(span)
}

/// Milliseconds until the picture after a network's last change.
#[track_caller]
fn picture_after(report: &Report) -> f64 {
    report.changes.last().and_then(|change| change.picture_after_ms).expect("there is a picture again")
}

#[test]
fn a_picture_soon_after_an_outage() {
    for (outage, limit) in [(500, 1_000.0), (5_000, 3_000.0), (30_000, 5_000.0)] {
        for profile in ["cable", "lte"] {
            for ladder in [Ladder::camera(), Ladder::simulcast()] {
                let kind = EventKind::Outage(millis(outage));
                let profile = Profile::named(profile).unwrap().with_event(secs(20), kind);
                let name = profile.name.clone();
                let report = watch(3, profile, &ladder, secs(70));
                let after = picture_after(&report);
                println!(
                    "{name}, {} layers, outage of {outage} ms: picture after {after:.0} ms",
                    ladder.layers().len()
                );
                assert!(after < limit, "{after} ms");
                let nobody_there = report.between(27.0, 20.0 + outage as f64 / 1e3);
                assert!(nobody_there.into_iter().all(|sample| sample.target_bps.is_none()), "encoded for nobody");
                let pictures = report.shown_ms.iter().filter(|at| **at > 20_000.0 + outage as f64 + limit).count();
                let expected = (50.0 - (outage as f64 + limit) / 1e3) * 30.0;
                assert!(pictures as f64 > expected * 0.95, "{pictures} of {expected} pictures");
            }
        }
    }
}

#[test]
fn another_port_or_another_address_and_the_same_session() {
    for (kind, limit) in [(EventKind::Rebind, 5_000.0), (EventKind::Move, 1_500.0)] {
        for seed in 1..=3 {
            let profile = Profile::named("lte").unwrap().with_event(secs(10), kind);
            let report = watch(seed, profile, &Ladder::simulcast(), secs(40));
            let after = picture_after(&report);
            println!("{}, seed {seed}: picture after {after:.0} ms", kind.name());
            assert!(after < limit, "{after} ms");
            assert!(report.shown_ms.iter().filter(|at| **at > 20_000.0).count() >= 19 * 30);
        }
    }
}
