//! Each fuzz target for a moment, on the stable compiler. `fuzz/README.md` tells how to run them for hours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lightpipe_testkit::fuzz::{Mutator, TARGETS, Target};

/// For how long each target runs, at most.
const TIME: Duration = Duration::from_secs(2);

/// One input may take this long; what takes longer can be used to stop us.
const SLOW: Duration = Duration::from_secs(1);

fn smoke(target: &Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has nothing to start from", target.name);
    for seed in &seeds {
        run(target, seed);
    }
    let mut mutator = Mutator::seeded(1, seeds);
    let start = Instant::now();
    let (mut runs, mut slowest) = (0, Duration::ZERO);
    while start.elapsed() < TIME {
        slowest = slowest.max(run(target, &mutator.next_input()));
        runs += 1;
    }
    println!("{}: {runs} inputs, the slowest took {slowest:?}", target.name);
}

/// Runs the target once, and tells the input if that fails.
fn run(target: &Target, input: &[u8]) -> Duration {
    let shown = || input.escape_ascii().to_string();
    let time = || {
        let start = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        assert!(done.is_ok(), "{} panicked on b\"{}\"", target.name, shown());
        start.elapsed()
    };
    // A slow input is slow each time; a machine that looked away for a second is not.
    let took = Some(time()).filter(|took| *took < SLOW).unwrap_or_else(time);
    assert!(took < SLOW, "{} took {took:?} for b\"{}\"", target.name, shown());
    took
}

#[test]
fn no_parser_panics_or_dawdles_on_mutated_input() {
    TARGETS.iter().for_each(smoke);
}

#[test]
fn every_target_has_its_libfuzzer_file() {
    let folder = crate::repository().join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let file = format!("fuzz_targets/{}.rs", target.name);
        assert!(folder.join(&file).exists(), "{file} is missing");
        assert!(manifest.contains(&format!("path = \"{file}\"")), "{file} is not in fuzz/Cargo.toml");
    }
}
