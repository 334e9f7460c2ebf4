//! One page, the same in both browsers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::wire::Wire;
use crate::{BrowserError, bidi, cdp};

/// Time that a page gets beyond `wait_until`'s own limit to answer: the last try of the condition may be slow.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// Pause before a condition is tried again in a page that has just navigated away.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) enum Target {
    Cdp(cdp::Target),
    Bidi(bidi::Target),
}

/// A page in a window of its own. Dropping it closes the window.
#[derive(Debug)]
#[must_use = "the page is closed when this is dropped"]
pub struct Page {
    wire: Arc<Wire>,
    target: Target,
    closed: bool,
}

impl Page {
    pub(crate) fn new(wire: Arc<Wire>, target: Target) -> Self {
        Self { wire, target, closed: false }
    }

    /// Value of a JavaScript expression, as JSON; a promise is awaited, `undefined` becomes `null`. Several statements
    /// go into a function: `(() => { …; return x })()`.
    ///
    /// # Errors
    /// [`BrowserError::Script`] with message and stack when it throws, rejects, or cannot be parsed;
    /// [`BrowserError::Silent`] when a promise is not settled within
    /// [`command_timeout`](crate::Options::command_timeout).
    pub async fn evaluate(&self, expression: &str) -> Result<Value, BrowserError> {
        // The line break ends a comment at the end of the expression.
        let script = format!("(async () => JSON.stringify(await ({}\n)))()", expression_of(expression));
        from_json(self.run(&script, None).await?)
    }

    /// Waits until a JavaScript expression is truthy, and answers its value. The page itself tries again with each
    /// frame it draws, so the condition is seen true without delay; a promise is awaited, an exception counts as
    /// "not yet", and a navigation in between only starts the trying anew.
    ///
    /// # Errors
    /// [`BrowserError::NotTrue`] with the last value and recent console messages when the time is over;
    /// [`BrowserError::Script`] when the condition cannot be parsed.
    pub async fn wait_until(&self, condition: &str, longest: Duration) -> Result<Value, BrowserError> {
        let end = Instant::now() + longest;
        let mut last = "never evaluated".to_owned();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.run(&waiting_script(condition, left), Some(left + ANSWER_GRACE)).await {
                Ok(answer) => {
                    let mut answer = from_json(answer)?;
                    if answer["met"] == true {
                        return Ok(answer["value"].take());
                    }
                    last = answer["last"].as_str().unwrap_or_default().to_owned();
                }
                // The page navigated away below the script.
                Err(BrowserError::Refused { message, .. }) => last = format!("no answer: {message}"),
                Err(BrowserError::Silent { .. }) => "the page is busy and never answered".clone_into(&mut last),
                Err(error) => return Err(error),
            }
            if Instant::now() >= end {
                let (condition, console) = (condition.to_owned(), self.console());
                return Err(BrowserError::NotTrue { condition, waited: longest, last, console });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Loads another address and waits for its load event.
    ///
    /// # Errors
    /// [`BrowserError::Navigation`] when the page cannot be loaded.
    pub async fn navigate(&self, url: &str) -> Result<(), BrowserError> {
        match &self.target {
            Target::Cdp(target) => target.navigate(&self.wire, url).await,
            Target::Bidi(target) => target.navigate(&self.wire, url).await,
        }
    }

    /// Loads the same address again and waits for its load event.
    ///
    /// # Errors
    /// When the browser refuses or does not come to an end.
    pub async fn reload(&self) -> Result<(), BrowserError> {
        match &self.target {
            Target::Cdp(target) => target.reload(&self.wire).await,
            Target::Bidi(target) => target.reload(&self.wire).await,
        }
    }

    /// What the window shows now, as PNG.
    ///
    /// # Errors
    /// When the browser refuses.
    pub async fn screenshot(&self) -> Result<Vec<u8>, BrowserError> {
        use base64::Engine;
        let answer = match &self.target {
            Target::Cdp(target) => target.screenshot(&self.wire).await?,
            Target::Bidi(target) => target.screenshot(&self.wire).await?,
        };
        let text = answer["data"].as_str().unwrap_or_default();
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        decoded.map_err(|error| BrowserError::PeerMisbehaved(format!("screenshot: {error}")))
    }

    /// Recent console messages, uncaught exceptions and load failures, oldest first: `[warning] text`. The last 200.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        self.wire.consoles().lines(self.key())
    }

    /// Sets the page's size in CSS pixels (device pixel ratio 1) and what `prefers-color-scheme` says.
    ///
    /// # Errors
    /// [`BrowserError::Unsupported`] when Firefox should change colours: it takes them from
    /// [`Options::dark`](crate::Options::dark) at its start. The size is set nevertheless.
    pub async fn set_viewport(&self, width: u32, height: u32, dark: bool) -> Result<(), BrowserError> {
        match &self.target {
            Target::Cdp(target) => target.set_viewport(&self.wire, width, height, dark).await,
            Target::Bidi(target) => target.set_viewport(&self.wire, width, height, dark).await,
        }
    }

    /// Closes the window and waits until the browser has confirmed it.
    ///
    /// # Errors
    /// When the browser is gone or refuses.
    pub async fn close(mut self) -> Result<(), BrowserError> {
        self.closed = true;
        self.wire.consoles().forget(self.key());
        let (method, params) = self.closing();
        self.wire.call(None, method, params).await.map(drop)
    }

    async fn run(&self, script: &str, longest: Option<Duration>) -> Result<Value, BrowserError> {
        match &self.target {
            Target::Cdp(target) => target.run(&self.wire, script, longest).await,
            Target::Bidi(target) => target.run(&self.wire, script, longest).await,
        }
    }

    fn key(&self) -> &str {
        match &self.target {
            Target::Cdp(target) => target.key(),
            Target::Bidi(target) => target.key(),
        }
    }

    fn closing(&self) -> (&'static str, Value) {
        match &self.target {
            Target::Cdp(target) => target.closing(),
            Target::Bidi(target) => target.closing(),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if !self.closed {
            self.wire.consoles().forget(self.key());
            let (method, params) = self.closing();
            self.wire.tell(None, method, params);
        }
    }
}

/// Our scripts answer with JSON text; `undefined` has none.
fn from_json(answer: Value) -> Result<Value, BrowserError> {
    match answer {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| BrowserError::PeerMisbehaved(format!("JSON.stringify gave no JSON: {error}"))),
        _ => Ok(Value::Null),
    }
}

/// People end expressions with a semicolon; inside parentheses it would be a syntax error.
fn expression_of(source: &str) -> &str {
    source.trim_end().trim_end_matches(';')
}

/// Tries the condition with every frame drawn, and at least every 50 ms where nothing is drawn; answers in time even if
/// the condition is a promise that never settles.
fn waiting_script(condition: &str, longest: Duration) -> String {
    let condition = expression_of(condition);
    let millis = longest.as_millis();
    format!(
        "(async () => {{
  const end = performance.now() + {millis};
  const condition = async () => ({condition}
);
  const show = (value) => {{ try {{ return JSON.stringify(value) ?? String(value); }} catch {{ return String(value); }} }};
  const stop = Symbol();
  let late;
  const timeUp = new Promise((resolve) => {{ late = setTimeout(() => resolve(stop), {millis} + 100); }});
  let last;
  for (;;) {{
    let value;
    try {{
      value = await Promise.race([condition(), timeUp]);
      if (value === stop) {{ last = 'a promise that does not settle'; break; }}
      last = show(value);
    }} catch (error) {{
      last = 'threw ' + error;
      value = false;
    }}
    if (value) {{
      clearTimeout(late);
      let text;
      try {{ text = JSON.stringify({{ met: true, value }}); }} catch {{ text = JSON.stringify({{ met: true, value: String(value) }}); }}
      return text;
    }}
    if (performance.now() >= end) break;
    await new Promise((next) => {{
      const pause = setTimeout(next, 50);
      requestAnimationFrame(() => {{ clearTimeout(pause); next(); }});
    }});
  }}
  clearTimeout(late);
  return JSON.stringify({{ met: false, last }});
}})()"
    )
}
