//! Firefox by WebDriver BiDi, without geckodriver.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::wire::{Event, Wire};
use crate::{BrowserError, Kind, Options};

/// Preferences of every profile: nothing that calls out, nothing that asks, media that plays by itself.
/// `media.peerconnection.ice.obfuscate_host_addresses` keeps its default, so that pages offer mDNS candidates as they
/// do for people.
const PREFS: &[(&str, &str)] = &[
    ("app.normandy.enabled", "false"),
    ("app.update.auto", "false"),
    ("app.update.disabledForTesting", "true"),
    ("app.update.enabled", "false"),
    ("browser.aboutwelcome.enabled", "false"),
    ("browser.contentblocking.introCount", "99"),
    ("browser.discovery.enabled", "false"),
    ("browser.newtabpage.activity-stream.feeds.system.topstories", "false"),
    ("browser.newtabpage.activity-stream.feeds.topsites", "false"),
    ("browser.newtabpage.enabled", "false"),
    ("browser.ping-centre.telemetry", "false"),
    ("browser.region.network.url", "\"\""),
    ("browser.region.update.enabled", "false"),
    ("browser.safebrowsing.blockedURIs.enabled", "false"),
    ("browser.safebrowsing.downloads.enabled", "false"),
    ("browser.safebrowsing.malware.enabled", "false"),
    ("browser.safebrowsing.phishing.enabled", "false"),
    ("browser.safebrowsing.update.enabled", "false"),
    ("browser.search.update", "false"),
    ("browser.sessionstore.resume_from_crash", "false"),
    ("browser.shell.checkDefaultBrowser", "false"),
    ("browser.startup.homepage_override.mstone", "\"ignore\""),
    ("browser.startup.page", "0"),
    ("browser.tabs.warnOnClose", "false"),
    ("browser.topsites.contile.enabled", "false"),
    ("captivedetect.canonicalURL", "\"\""),
    ("datareporting.healthreport.uploadEnabled", "false"),
    ("datareporting.policy.dataSubmissionEnabled", "false"),
    ("datareporting.policy.dataSubmissionPolicyBypassNotification", "true"),
    ("dom.disable_open_during_load", "false"),
    // A window that does not have the focus is throttled otherwise, and only one of several has it.
    ("dom.min_background_timeout_value", "4"),
    ("dom.timeout.enable_budget_timer_throttling", "false"),
    ("extensions.blocklist.enabled", "false"),
    ("extensions.getAddons.cache.enabled", "false"),
    ("extensions.systemAddon.update.enabled", "false"),
    ("extensions.update.enabled", "false"),
    ("focusmanager.testmode", "true"),
    ("geo.provider.testing", "true"),
    ("layout.css.devPixelsPerPx", "\"1.0\""),
    ("media.autoplay.blocking_policy", "0"),
    ("media.autoplay.default", "0"),
    // The OpenH264 and Widevine plugins would be downloaded.
    ("media.gmp-manager.updateEnabled", "false"),
    ("media.gmp-manager.url", "\"\""),
    ("media.gmp-provider.enabled", "false"),
    ("messaging-system.rsexperimentloader.enabled", "false"),
    ("network.captive-portal-service.enabled", "false"),
    ("network.connectivity-service.enabled", "false"),
    ("network.dns.disablePrefetch", "true"),
    ("network.http.speculative-parallel-limit", "0"),
    ("network.predictor.enabled", "false"),
    ("network.prefetch-next", "false"),
    ("network.proxy.type", "0"),
    ("network.trr.mode", "5"),
    ("services.settings.server", "\"data:,\""),
    ("startup.homepage_welcome_url", "\"about:blank\""),
    ("termsofuse.bypassNotification", "true"),
    ("toolkit.cosmeticAnimations.enabled", "false"),
    ("toolkit.startup.max_resumed_crashes", "-1"),
    ("toolkit.telemetry.enabled", "false"),
    ("toolkit.telemetry.server", "\"\""),
    ("toolkit.telemetry.unified", "false"),
];

/// H.264 for WebRTC through the system's FFmpeg. The first lets the platform's decoder take part, the second (1 =
/// "allowed") overrules the block list, which has H.264 off wherever there is no known GPU.
const SYSTEM_H264_PREFS: &[(&str, &str)] =
    &[("media.webrtc.hw.h264.enabled", "true"), ("gfx.blacklist.webrtc.hw.acceleration.h264", "1")];

const FAKE_MEDIA_PREFS: &[(&str, &str)] = &[
    ("media.navigator.streams.fake", "true"),
    ("media.navigator.permission.disabled", "true"),
    ("media.getusermedia.insecure.enabled", "true"),
];

/// One window; BiDi calls it a browsing context.
#[derive(Debug)]
pub(crate) struct Target {
    context: String,
    /// The colour scheme of the profile.
    dark: bool,
}

pub(crate) fn prepare(command: &mut Command, profile: &Path, options: &Options) -> io::Result<&'static str> {
    fs::write(profile.join("user.js"), user_js(options))?;
    command.args(["--headless", "--no-remote", "--new-instance", "--remote-debugging-port", "0", "--profile"]);
    command.arg(profile);
    // A crash shall end the process, not leave a reporter that waits for somebody.
    command.env("MOZ_CRASHREPORTER_DISABLE", "1");
    let (width, height) = options.viewport;
    command.env("MOZ_HEADLESS_WIDTH", width.to_string()).env("MOZ_HEADLESS_HEIGHT", height.to_string());
    Ok("WebDriver BiDi listening on ")
}

fn user_js(options: &Options) -> String {
    let scheme = if options.dark { "0" } else { "1" };
    let colours = [("layout.css.prefers-color-scheme.content-override", scheme)];
    let h264 = if options.firefox_system_h264 { SYSTEM_H264_PREFS } else { &[] };
    let media = if options.fake_media_devices { FAKE_MEDIA_PREFS } else { &[] };
    let own = options.firefox_prefs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let all = PREFS.iter().chain(&colours).chain(h264).chain(media).copied().chain(own);
    all.fold(String::new(), |mut text, (name, value)| {
        _ = writeln!(text, "user_pref(\"{name}\", {value});");
        text
    })
}

pub(crate) async fn connect(endpoint: &str, options: &Options) -> Result<(Arc<Wire>, String), BrowserError> {
    let url = format!("{}/session", endpoint.trim_end_matches('/'));
    let wire = Wire::connect(&url, options.command_timeout, console_line).await?;
    let wanted = json!({ "alwaysMatch": {
        "acceptInsecureCerts": options.accept_insecure_certs,
        "unhandledPromptBehavior": { "default": "accept" },
    }});
    let session = wire.call(None, "session.new", json!({ "capabilities": wanted })).await?;
    let part = |name: &str| session["capabilities"][name].as_str().unwrap_or("unknown").to_owned();
    wire.call(None, "session.subscribe", json!({ "events": ["log.entryAdded"] })).await?;
    Ok((wire, format!("{}/{}", part("browserName"), part("browserVersion"))))
}

pub(crate) async fn open(wire: &Wire, options: &Options) -> Result<Target, BrowserError> {
    let created = wire.call(None, "browsingContext.create", json!({ "type": "window" })).await?;
    let context = created["context"].as_str().map(str::to_owned);
    let context = context.ok_or_else(|| BrowserError::PeerMisbehaved("a window without context".to_owned()))?;
    let page = Target { context, dark: options.dark };
    wire.consoles().watch(&page.context);
    page.set_viewport(wire, options.viewport.0, options.viewport.1, options.dark).await?;
    Ok(page)
}

impl Target {
    pub(crate) fn key(&self) -> &str {
        &self.context
    }

    pub(crate) fn closing(&self) -> (&'static str, Value) {
        ("browsingContext.close", json!({ "context": self.context }))
    }

    pub(crate) async fn run(
        &self,
        wire: &Wire,
        script: &str,
        longest: Option<Duration>,
    ) -> Result<Value, BrowserError> {
        let params = json!({
            "expression": script,
            "target": { "context": self.context },
            "awaitPromise": true,
            "resultOwnership": "none",
            "userActivation": true,
        });
        let answer = match longest {
            Some(longest) => wire.call_within(longest, None, "script.evaluate", params).await?,
            None => wire.call(None, "script.evaluate", params).await?,
        };
        if answer["type"] == "exception" {
            return Err(BrowserError::Script(exception(&answer["exceptionDetails"])));
        }
        // Only strings and undefined come out of our scripts; the latter has no value.
        Ok(answer["result"]["value"].clone())
    }

    pub(crate) async fn navigate(&self, wire: &Wire, url: &str) -> Result<(), BrowserError> {
        let params = json!({ "context": self.context, "url": url, "wait": "complete" });
        match wire.call(None, "browsingContext.navigate", params).await {
            Ok(_) => Ok(()),
            Err(BrowserError::Refused { message, .. }) => {
                Err(BrowserError::Navigation { url: url.to_owned(), reason: message })
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn reload(&self, wire: &Wire) -> Result<(), BrowserError> {
        let params = json!({ "context": self.context, "wait": "complete" });
        wire.call(None, "browsingContext.reload", params).await.map(drop)
    }

    pub(crate) async fn screenshot(&self, wire: &Wire) -> Result<Value, BrowserError> {
        wire.call(None, "browsingContext.captureScreenshot", json!({ "context": self.context })).await
    }

    pub(crate) async fn set_viewport(
        &self,
        wire: &Wire,
        width: u32,
        height: u32,
        dark: bool,
    ) -> Result<(), BrowserError> {
        let params = json!({
            "context": self.context,
            "viewport": { "width": width, "height": height },
            "devicePixelRatio": 1,
        });
        wire.call(None, "browsingContext.setViewport", params).await?;
        if dark != self.dark {
            let what = "change prefers-color-scheme of a running browser; launch it with Options::dark";
            return Err(BrowserError::Unsupported { kind: Kind::Firefox, what });
        }
        Ok(())
    }
}

fn console_line(event: &Event) -> Option<(String, String)> {
    if event.method != "log.entryAdded" {
        return None;
    }
    let entry = &event.params;
    let context = entry["source"]["context"].as_str()?.to_owned();
    let text = entry["text"].as_str().unwrap_or_default();
    // An uncaught exception has the type "javascript", a call of console.log the type "console".
    let line = if entry["type"] == "javascript" && entry["level"] == "error" {
        format!("[exception] {text}{}", frames(&entry["stackTrace"]))
    } else {
        let level = entry["method"].as_str().or_else(|| entry["level"].as_str()).unwrap_or("log");
        format!("[{}] {text}", if level == "warn" { "warning" } else { level })
    };
    Some((context, line))
}

fn exception(details: &Value) -> String {
    let text = details["text"].as_str().unwrap_or("unknown exception");
    format!("{text}{}", frames(&details["stackTrace"]))
}

/// One line per frame, in the words that Chromium uses.
fn frames(trace: &Value) -> String {
    let frames = trace["callFrames"].as_array().map(Vec::as_slice).unwrap_or_default();
    frames.iter().fold(String::new(), |mut text, frame| {
        let name = frame["functionName"].as_str().filter(|name| !name.is_empty()).unwrap_or("<anonymous>");
        let url = frame["url"].as_str().unwrap_or_default();
        _ = write!(text, "\n    at {name} ({url}:{}:{})", frame["lineNumber"], frame["columnNumber"]);
        text
    })
}
