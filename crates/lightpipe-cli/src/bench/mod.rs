//! `lightpipe bench`: measurements as part of the product.

mod cpu;
mod fanout;
mod floor;
mod frames;
mod ladder;
mod latency;
mod machine;
mod mix;
mod viewers;

use std::process::ExitCode;

use lightpipe::{Config, Server};

use crate::cli::Bench;

pub(crate) fn run(bench: &Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Latency(flags) => latency::run(flags),
        Bench::Fanout(flags) => fanout::run(flags),
        Bench::Ladder(flags) => ladder::run(flags),
        Bench::Mix(flags) => mix::run(flags),
        Bench::Viewers(flags) => viewers::run(flags),
        Bench::Frames(flags) => frames::run(flags),
    }
}

/// A server on a free port of loopback that shows `source` as the stream `pattern`, without limits on who comes how often.
fn pattern_server(source: &str, change: impl FnOnce(&mut Config)) -> anyhow::Result<Server> {
    let mut config = Config::default();
    config.server.host = std::net::Ipv4Addr::LOCALHOST.into();
    config.server.port = 0;
    config.server.posts_per_second = 0;
    change(&mut config);
    let server = Server::start(config)?;
    server.add_source(&format!("pattern={source}").parse()?)?;
    Ok(server)
}
