//! `lightpipe check-whip`, `check-whep` and `check-signaling`: how well does any server keep to the protocol?
//!
//! A run asks the server what a client may ask, right and wrong, and writes one row per rule: passed, failed with a reason,
//! or skipped because the server lacks something that it may lack. [`http`] sends, [`sdp`] makes offers and judges
//! answers, [`resource`] holds the rows that WHIP and WHEP share; [`whip`] and [`whep`] say what is their own. [`signaling`] asks over the
//! WebSockets of [`wire`].

mod http;
mod resource;
mod sdp;
mod signaling;
mod whep;
mod whip;
mod wire;

use std::process::ExitCode;

use ::http::Uri;
use anyhow::Context;

use crate::cli::{CheckFlags, CheckSignalingFlags};
use crate::{exit, output};

/// Why a row did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A rule is broken; one sentence.
    Failed(String),
    /// It could not be asked, because something that it needs failed; one sentence.
    Unreached(String),
    /// Not applicable to this server; one sentence.
    Skipped(String),
}

/// How a row ended.
pub(crate) type Verdict = Result<(), Flaw>;

/// Fails unless `kept`.
pub(crate) fn ensure(kept: bool, reason: impl FnOnce() -> String) -> Verdict {
    if kept { Ok(()) } else { Err(Flaw::Failed(reason())) }
}

/// A row that does not apply.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Skipped(reason.into()))
}

struct Row {
    name: &'static str,
    section: &'static str,
    verdict: Verdict,
}

/// The rows of a run, in the order they were asked.
#[derive(Default)]
pub(crate) struct Checklist {
    rows: Vec<Row>,
}

impl Checklist {
    /// Adds a row. `section` names the rule's text.
    pub(crate) fn row(&mut self, name: &'static str, section: &'static str, verdict: Verdict) {
        self.rows.push(Row { name, section, verdict });
    }

    /// Passed, failed, not reached, skipped.
    fn counts(&self) -> [usize; 4] {
        let count = |wanted: fn(&Verdict) -> bool| self.rows.iter().filter(|row| wanted(&row.verdict)).count();
        [
            count(Result::is_ok),
            count(|v| matches!(v, Err(Flaw::Failed(_)))),
            count(|v| matches!(v, Err(Flaw::Unreached(_)))),
            count(|v| matches!(v, Err(Flaw::Skipped(_)))),
        ]
    }

    /// Share of the passed among the rows that apply. What was not reached did not pass.
    fn percent(&self) -> f64 {
        let [passed, failed, unreached, _] = self.counts();
        (passed * 1000).checked_div(passed + failed + unreached).unwrap_or(0) as f64 / 10.0
    }

    fn print(&self) {
        let mut rows = Vec::new();
        for row in &self.rows {
            let (result, reason) = match &row.verdict {
                Ok(()) => ("pass", ""),
                Err(Flaw::Failed(reason)) => ("FAIL", reason.as_str()),
                Err(Flaw::Unreached(reason)) => ("-", reason.as_str()),
                Err(Flaw::Skipped(reason)) => ("skip", reason.as_str()),
            };
            rows.push([row.name, row.section, result, reason]);
        }
        output::text_table(&["check", "rule", "", ""], &rows);
        let [passed, failed, unreached, skipped] = self.counts();
        let mut score = format!("{passed} of {}, {} %", passed + failed + unreached, self.percent());
        for (count, what) in [(unreached, "not reached"), (skipped, "skipped")] {
            if count > 0 {
                score.push_str(&format!("; {count} {what}"));
            }
        }
        output::line(format_args!("\n{score}"));
    }

    fn to_json(&self, protocol: &str, url: &Uri) -> serde_json::Value {
        let row = |row: &Row| {
            let (result, reason) = match &row.verdict {
                Ok(()) => ("pass", None),
                Err(Flaw::Failed(reason)) => ("fail", Some(reason)),
                Err(Flaw::Unreached(reason)) => ("unreached", Some(reason)),
                Err(Flaw::Skipped(reason)) => ("skip", Some(reason)),
            };
            serde_json::json!({ "check": row.name, "rule": row.section, "result": result, "reason": reason })
        };
        let [passed, failed, unreached, skipped] = self.counts();
        serde_json::json!({
            "protocol": protocol,
            "url": url.to_string(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "passed": passed,
            "failed": failed,
            "unreached": unreached,
            "skipped": skipped,
            "percent": self.percent(),
        })
    }
}

/// `lightpipe check-whip`.
pub(crate) fn whip(flags: &CheckFlags) -> anyhow::Result<ExitCode> {
    run(flags, &whip::WHIP, whip::check)
}

/// `lightpipe check-whep`.
pub(crate) fn whep(flags: &CheckFlags) -> anyhow::Result<ExitCode> {
    run(flags, &whep::WHEP, whep::check)
}

fn run(
    flags: &CheckFlags,
    protocol: &'static resource::Protocol,
    check: fn(&resource::Server<'_>, &mut Checklist),
) -> anyhow::Result<ExitCode> {
    let client = http::Client::new(flags.token.clone());
    let server = resource::Server { protocol, client: &client, endpoint: &flags.url };
    // Whoever cannot be reached gets no score, but one sentence.
    server.reach().with_context(|| format!("cannot reach {}", flags.url))?;
    let mut list = Checklist::default();
    check(&server, &mut list);
    report(&list, protocol.name, &flags.url, flags.json)
}

/// `lightpipe check-signaling`.
pub(crate) fn signaling(flags: &CheckSignalingFlags) -> anyhow::Result<ExitCode> {
    let server = signaling::Server::new(&flags.url, flags.token.as_deref());
    server.reach().with_context(|| format!("cannot reach {}", flags.url))?;
    let mut list = Checklist::default();
    signaling::check(&server, &mut list);
    report(&list, "JSON-RPC signalling", &flags.url, flags.json)
}

fn report(list: &Checklist, protocol: &str, url: &Uri, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        output::line(serde_json::to_string_pretty(&list.to_json(protocol, url))?);
    } else {
        list.print();
    }
    let [_, failed, ..] = list.counts();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}
