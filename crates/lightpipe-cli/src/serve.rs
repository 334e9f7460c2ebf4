//! `lightpipe serve`: streams to browsers until a signal comes.

use std::process::ExitCode;

use lightpipe::{NamedSource, Server};

use crate::cli::ServeFlags;
use crate::process::{Signals, init_logging};
use crate::{output, settings};

pub(crate) fn run(flags: &ServeFlags) -> anyhow::Result<ExitCode> {
    init_logging(flags.log_json);
    let config = settings::load(flags, std::env::vars())?;
    let named = sources(flags, !config.sources.is_empty())?;
    let (runtime, signals) = Signals::listen()?;
    let server = start(config, &named, flags.sources.is_empty())?;
    output::line(format_args!("lightpipe {} is listening. Open:", env!("CARGO_PKG_VERSION")));
    output::line(format_args!("  {}/", server.url()));
    for name in server.streams().names() {
        output::line(format_args!("  {}/watch/{name}", server.url()));
    }
    let signal = runtime.block_on(signals.wait());
    tracing::info!(signal, "stopping");
    server.stop();
    Ok(ExitCode::SUCCESS)
}

/// Starts the server and its sources. One of the default sources that cannot start is no reason to serve nothing.
fn start(config: lightpipe::Config, named: &[NamedSource], by_default: bool) -> anyhow::Result<Server> {
    let server = Server::start(config)?;
    for source in named {
        match server.add_source(source) {
            Ok(()) => {}
            Err(error) if by_default => tracing::warn!(stream = source.name, %error, "left out"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(server)
}

/// The flags' sources, or the default ones when neither flags nor file name any.
fn sources(flags: &ServeFlags, file_has_some: bool) -> anyhow::Result<Vec<NamedSource>> {
    let texts: Vec<String> = if !flags.sources.is_empty() {
        flags.sources.clone()
    } else if file_has_some {
        Vec::new()
    } else {
        let mut texts = vec!["cube".to_owned(), "pattern".to_owned()];
        if has_display() {
            texts.push("desktop".to_owned());
        }
        texts
    };
    let parsed: Result<Vec<NamedSource>, _> = texts.iter().map(|t| t.parse()).collect();
    Ok(parsed?)
}

fn has_display() -> bool {
    if cfg!(any(windows, target_os = "macos")) {
        true
    } else {
        std::env::var_os("DISPLAY").is_some_and(|d| !d.is_empty())
    }
}
