//! `lightpipe bench`: measurements as part of the product.

mod cpu;
mod fanout;
mod floor;
mod latency;
mod machine;
mod viewers;

use std::process::ExitCode;

use crate::cli::Bench;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Latency(flags) => latency::run(flags),
        Bench::Fanout(flags) => fanout::run(flags),
        Bench::Viewers(flags) => viewers::run(flags),
    }
}
