//! The lightpipe program: flags, file, environment, logging, exit codes.

mod bench;
mod check;
mod cli;
mod devices;
mod doctor;
mod hear;
mod join;
mod lab;
mod output;
mod play;
mod process;
mod publish;
mod serve;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

/// Exit codes, documented in `lightpipe --help`.
pub(crate) mod exit {
    /// A check or measurement ran and found something wrong.
    pub(crate) const FOUND: u8 = 1;
    /// Wrong flags, file or environment.
    pub(crate) const USAGE: u8 = 2;
    /// It could not be done: a port is taken, a program is missing.
    pub(crate) const FAILED: u8 = 3;
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve::run(&cli.serve),
        Some(Command::Serve(flags)) => serve::run(&flags),
        Some(Command::Publish(flags)) => publish::run(&flags),
        Some(Command::Play(flags)) => play::run(&flags),
        Some(Command::Join(flags)) => join::run(&flags),
        Some(Command::Devices(flags)) => devices::run(&flags),
        Some(Command::Doctor(flags)) => doctor::run(&flags),
        Some(Command::CheckWhip(flags)) => check::whip(&flags),
        Some(Command::CheckWhep(flags)) => check::whep(&flags),
        Some(Command::CheckSignaling(flags)) => check::signaling(&flags),
        Some(Command::Bench(bench)) => bench::run(&bench),
        Some(Command::Lab(flags)) => lab::run(&flags),
        Some(Command::Completions { shell }) => cli::completions(shell),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(if is_usage(&error) { exit::USAGE } else { exit::FAILED })
        }
    }
}

/// Whether the fault is in flags, file or environment.
fn is_usage(error: &anyhow::Error) -> bool {
    use lightpipe::ServerError::{Config, Name, NameTaken};
    error.is::<settings::SettingsError>()
        || error.is::<lightpipe::SpecError>()
        || matches!(error.downcast_ref(), Some(Config(_) | Name(_) | NameTaken(_)))
}
