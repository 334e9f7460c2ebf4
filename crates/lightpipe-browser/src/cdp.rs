//! Chromium by the DevTools protocol, flattened sessions.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::wire::{Event, Wire};
use crate::{BrowserError, Options};

/// The same for every launch. No sandbox, because tests run as root and in containers, where it does not start; the
/// browser only ever opens pages that its caller chose. QUIC is off because it only adds noise on the network under
/// test. Throttling is off because a page that nobody looks at is the normal case here.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-domain-reliability",
    "--disable-client-side-phishing-detection",
    "--disable-features=OptimizationHints,MediaRouter,Translate,CalculateNativeWinOcclusion",
    "--metrics-recording-only",
    "--password-store=basic",
    "--use-mock-keychain",
    "--no-proxy-server",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--remote-debugging-port=0",
];

/// One window and the session attached to it.
#[derive(Debug)]
pub(crate) struct Target {
    /// Also the id of the page's main frame.
    target: String,
    session: String,
}

pub(crate) fn prepare(command: &mut Command, profile: &Path, options: &Options) -> io::Result<&'static str> {
    command.args(FLAGS);
    command.arg(format!("--user-data-dir={}", profile.display()));
    let (width, height) = options.viewport;
    command.arg(format!("--window-size={width},{height}"));
    if options.accept_insecure_certs {
        command.arg("--ignore-certificate-errors");
    }
    if options.fake_media_devices {
        command.args(["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]);
    }
    if cfg!(target_os = "linux") {
        // The shared-memory folder of a container is often 64 MiB, too small for video frames.
        command.arg("--disable-dev-shm-usage");
    }
    command.arg("about:blank");
    Ok("DevTools listening on ")
}

pub(crate) async fn connect(endpoint: &str, options: &Options) -> Result<(Arc<Wire>, String), BrowserError> {
    let wire = Wire::connect(endpoint, options.command_timeout, console_line).await?;
    let version = wire.call(None, "Browser.getVersion", json!({})).await?;
    let product = version["product"].as_str().unwrap_or("unknown").to_owned();
    Ok((wire, product))
}

pub(crate) async fn open(wire: &Wire, options: &Options) -> Result<Target, BrowserError> {
    // A second tab of one window would hide the first, and a hidden page draws no frames.
    let created = wire.call(None, "Target.createTarget", json!({ "url": "about:blank", "newWindow": true })).await?;
    let target = text(&created, "targetId")?;
    let attached = wire.call(None, "Target.attachToTarget", json!({ "targetId": target, "flatten": true })).await?;
    let page = Target { session: text(&attached, "sessionId")?, target };
    wire.consoles().watch(&page.session);
    for (method, params) in [
        ("Page.enable", json!({})),
        ("Page.setLifecycleEventsEnabled", json!({ "enabled": true })),
        ("Runtime.enable", json!({})),
        ("Log.enable", json!({})),
        ("Inspector.enable", json!({})),
        // Headless windows compete for the one focus; each page shall believe that it has it.
        ("Emulation.setFocusEmulationEnabled", json!({ "enabled": true })),
    ] {
        page.call(wire, method, params).await?;
    }
    page.set_viewport(wire, options.viewport.0, options.viewport.1, options.dark).await?;
    Ok(page)
}

impl Target {
    pub(crate) fn key(&self) -> &str {
        &self.session
    }

    pub(crate) fn closing(&self) -> (&'static str, Value) {
        ("Target.closeTarget", json!({ "targetId": self.target }))
    }

    pub(crate) async fn run(
        &self,
        wire: &Wire,
        script: &str,
        longest: Option<Duration>,
    ) -> Result<Value, BrowserError> {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let answer = match longest {
            Some(longest) => wire.call_within(longest, Some(&self.session), "Runtime.evaluate", params).await?,
            None => self.call(wire, "Runtime.evaluate", params).await?,
        };
        match &answer["exceptionDetails"] {
            Value::Null => Ok(answer["result"]["value"].clone()),
            details => Err(BrowserError::Script(exception(details))),
        }
    }

    pub(crate) async fn navigate(&self, wire: &Wire, url: &str) -> Result<(), BrowserError> {
        let mut events = wire.events();
        let answer = self.call(wire, "Page.navigate", json!({ "url": url })).await?;
        if let Some(reason) = answer["errorText"].as_str() {
            return Err(BrowserError::Navigation { url: url.to_owned(), reason: reason.to_owned() });
        }
        // Without a loader only the fragment changed, and nothing is loaded.
        let Some(loader) = answer["loaderId"].as_str() else { return Ok(()) };
        let loaded = |event: &Event| (self.lifecycle(event, "load")? == loader).then_some(());
        wire.next_event(&mut events, "the load event", loaded).await
    }

    pub(crate) async fn reload(&self, wire: &Wire) -> Result<(), BrowserError> {
        let mut events = wire.events();
        self.call(wire, "Page.reload", json!({})).await?;
        let init = |event: &Event| self.lifecycle(event, "init").map(str::to_owned);
        let loader = wire.next_event(&mut events, "the start of the reload", init).await?;
        let loaded = |event: &Event| (self.lifecycle(event, "load")? == loader).then_some(());
        wire.next_event(&mut events, "the load event", loaded).await
    }

    pub(crate) async fn screenshot(&self, wire: &Wire) -> Result<Value, BrowserError> {
        self.call(wire, "Page.captureScreenshot", json!({ "format": "png" })).await
    }

    pub(crate) async fn set_viewport(
        &self,
        wire: &Wire,
        width: u32,
        height: u32,
        dark: bool,
    ) -> Result<(), BrowserError> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call(wire, "Emulation.setDeviceMetricsOverride", size).await?;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call(wire, "Emulation.setEmulatedMedia", media).await.map(drop)
    }

    async fn call(&self, wire: &Wire, method: &'static str, params: Value) -> Result<Value, BrowserError> {
        wire.call(Some(&self.session), method, params).await
    }

    /// Loader of a lifecycle event of this page's main frame with that name.
    fn lifecycle<'a>(&self, event: &'a Event, name: &str) -> Option<&'a str> {
        let ours = event.method == "Page.lifecycleEvent"
            && event.session.as_deref() == Some(&self.session)
            && event.params["frameId"] == self.target.as_str()
            && event.params["name"] == name;
        if ours { event.params["loaderId"].as_str() } else { None }
    }
}

fn text(answer: &Value, field: &str) -> Result<String, BrowserError> {
    let found = answer[field].as_str().map(str::to_owned);
    found.ok_or_else(|| BrowserError::PeerMisbehaved(format!("an answer without {field}")))
}

fn console_line(event: &Event) -> Option<(String, String)> {
    let params = &event.params;
    let line = match event.method.as_str() {
        "Runtime.consoleAPICalled" => {
            let words = params["args"].as_array().map(Vec::as_slice).unwrap_or_default();
            let words = words.iter().map(remote_value).collect::<Vec<_>>().join(" ");
            format!("[{}] {words}", params["type"].as_str().unwrap_or("log"))
        }
        "Runtime.exceptionThrown" => format!("[exception] {}", exception(&params["exceptionDetails"])),
        "Log.entryAdded" => {
            let entry = &params["entry"];
            let part = |name: &str| entry[name].as_str().unwrap_or_default();
            format!("[{}] {} {}", part("level"), part("text"), part("url"))
        }
        "Inspector.targetCrashed" => "[crash] the page crashed".to_owned(),
        _ => return None,
    };
    Some((event.session.clone().unwrap_or_default(), line.trim_end().to_owned()))
}

/// Message and stack of an exception; a thrown value that is no `Error` has only itself.
fn exception(details: &Value) -> String {
    let thrown = &details["exception"];
    if thrown.is_null() {
        return details["text"].as_str().unwrap_or("unknown exception").to_owned();
    }
    remote_value(thrown)
}

/// A value of the page as people would write it: strings bare, objects by their preview.
fn remote_value(object: &Value) -> String {
    if let Some(properties) = object["preview"]["properties"].as_array()
        && object["subtype"] != "error"
    {
        let parts = properties.iter().map(|property| {
            let value = property["value"].as_str().unwrap_or_default();
            format!("{}: {value}", property["name"].as_str().unwrap_or_default())
        });
        return format!("{{{}}}", parts.collect::<Vec<_>>().join(", "));
    }
    match &object["value"] {
        Value::String(text) => text.clone(),
        Value::Null => {
            let named = object["description"].as_str().or_else(|| object["unserializableValue"].as_str());
            named.or_else(|| object["type"].as_str().filter(|kind| *kind == "undefined")).unwrap_or("null").to_owned()
        }
        value => value.to_string(),
    }
}
