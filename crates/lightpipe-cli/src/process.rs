//! What every long-running command needs: logs and signals.

use lightpipe::{Config, NamedSource, Server};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

/// Logs go to stderr; `RUST_LOG` chooses what, `info` by default.
pub(crate) fn init_logging(json: bool) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,str0m=warn,is=warn,dimpl=warn,wgpu_hal=error,wgpu_core=warn"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A full disk or a closed pipe behind stderr loses log lines, never frames: the writer's errors are not ours to die of.
    let _ = if json { builder.json().try_init() } else { builder.with_target(true).compact().try_init() };
}

/// A server of these sources alone, whatever else the configuration names: with its pages, or without any and on a free port.
pub(crate) fn start_with(mut config: Config, sources: &[NamedSource], pages: bool) -> anyhow::Result<Server> {
    config.sources.clear();
    config.push.clear();
    if !pages {
        config.server.port = 0;
    }
    let server = if pages { Server::start(config)? } else { Server::headless(config)? };
    for source in sources {
        server.add_source(source)?;
    }
    Ok(server)
}

/// SIGINT and SIGTERM, Ctrl-C elsewhere.
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens, on a runtime for the main thread. Before other threads start, so that none of them takes a signal away from us.
    pub(crate) fn listen() -> std::io::Result<(Runtime, Self)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            Self::new()?
        };
        Ok((runtime, signals))
    }

    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    pub(crate) async fn wait(mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    #[cfg(not(unix))]
    pub(crate) async fn wait(self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}
