//! `/metrics`, `/healthz`, `/readyz`, as a monitoring system reads them.

use std::collections::{BTreeMap, BTreeSet};

use crate::lab::{LAVFI, PATIENCE, Viewer, serve, shared, until};

/// Samples by name with labels; panics where the text breaks the exposition format.
#[track_caller]
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()), "a second HELP: {line}");
            assert!(help.len() > 10, "{line}");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "TYPE follows HELP: {line}");
            assert!(["counter", "gauge", "summary", "histogram"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned(), kind.to_owned()).is_none(), "a second TYPE: {line}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let name = key.split('{').next().unwrap();
            let kind = typed.get(&family).unwrap_or_else(|| panic!("no TYPE before: {line}"));
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("under {family}: {line}"));
            assert!(suffix.is_empty() || (kind == "summary" && ["_sum", "_count"].contains(&suffix)), "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "counters end in _total, others do not: {line}");
            assert!(name.starts_with("lightpipe_"), "{line}");
            if let Some(labels) = key.strip_prefix(name).filter(|l| !l.is_empty()) {
                assert!(labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
            }
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(samples.insert(key.to_owned(), value).is_none(), "the same sample twice: {line}");
        }
    }
    assert_eq!(helped, typed.into_keys().collect(), "each family has both");
    samples
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_parse_have_no_duplicates_and_move() {
    let _machine = shared().await;
    let server = serve(&["pattern", &format!("cam={LAVFI}")]).start();
    let page = || {
        let answer = server.get("/metrics");
        assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"), "{answer:?}");
        parse(&answer.body)
    };
    let before = page();
    assert_eq!(before["lightpipe_stream_viewers{stream=\"pattern\"}"], 0.0);
    let viewer = Viewer::join(&server, "pattern");
    let other = Viewer::join(&server, "cam");
    viewer.wait_pictures(60, PATIENCE);
    other.wait_pictures(30, PATIENCE);
    // Peers and engine counters are as of the last second.
    let after = until("counters of the engine", PATIENCE, || {
        let page = page();
        (page["lightpipe_datagrams_sent_total"] > 90.0).then_some(page)
    });
    assert!(after.keys().collect::<BTreeSet<_>>().is_superset(&before.keys().collect()), "no sample goes away");
    assert_eq!(after["lightpipe_stream_viewers{stream=\"pattern\"}"], 1.0);
    assert_eq!(after["lightpipe_stream_up{stream=\"cam\"}"], 1.0);
    assert_eq!(after["lightpipe_peers{state=\"connected\"}"], 2.0);
    for name in
        ["lightpipe_frames_published_total", "lightpipe_published_bytes_total", "lightpipe_keyframes_published_total"]
    {
        for stream in ["pattern", "cam"] {
            let key = format!("{name}{{stream=\"{stream}\",codec=\"h264\",layer=\"\"}}");
            assert!(after[&key] > before[&key], "{key}");
            let other = key.replace("h264", "vp8");
            let unused = if cfg!(feature = "vpx") { Some(0.0) } else { None };
            assert_eq!(after.get(&other).copied(), unused, "nobody takes {other}");
        }
    }
    assert!(
        after["lightpipe_stage_seconds_count{stream=\"pattern\",codec=\"h264\",layer=\"\",stage=\"encode\"}"] >= 60.0
    );
    assert!(after["lightpipe_send_calls_total"] <= after["lightpipe_datagrams_sent_total"]);
    viewer.close();
    other.close();
    server.wait_peers(0, PATIENCE);
    let ended = page();
    assert_eq!(ended["lightpipe_sessions_ended_total{cause=\"closed_by_peer\"}"], 2.0);
    for (key, value) in &after {
        if key.split('{').next().is_some_and(|name| name.ends_with("_total")) {
            assert!(ended[key] >= *value, "a counter went back: {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_ends_when_every_source_has_failed_and_returns_with_one() {
    let _machine = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("go");
    // Fails until the marker is there.
    let command = format!(
        "x=exec:test -e {0} && exec ffmpeg -v error -re -f lavfi -i testsrc2=size=320x180:rate=30 -pix_fmt rgba -f rawvideo - ; echo no camera >&2; exit 1",
        marker.display()
    );
    let server = serve(&[&command]).start();
    assert_eq!(server.get("/healthz").status, 200);
    let not_ready = until("not ready", PATIENCE, || Some(server.get("/readyz")).filter(|a| a.status == 503));
    assert!(not_ready.body.contains("failed"), "{not_ready:?}");
    assert_eq!(server.get("/healthz").status, 200, "alive all the same");
    let stream = server.stream("x");
    assert_eq!(stream["health"], "failed");
    assert!(stream["reason"].as_str().unwrap().contains("no camera"), "the child's own last words: {stream}");
    std::fs::write(&marker, "").unwrap();
    until("ready", PATIENCE, || (server.get("/readyz").status == 200).then_some(()));
    assert_eq!(server.stream("x")["health"], "live");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_source_of_two_leaves_the_server_ready() {
    let _machine = shared().await;
    let server = serve(&["pattern", "gone=exec:exit 1"]).start();
    until("the failure", PATIENCE, || (server.stream("gone")["health"] == "failed").then_some(()));
    assert_eq!(server.get("/readyz").status, 200);
}
