//! Dependencies point down only, and the thinking crates see no runtime, no socket and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::repository;

/// A crate may depend on crates with a smaller number. `ARCHITECTURE.md` says what each holds.
const LAYERS: &[(&str, u8)] = &[
    ("lightpipe-media", 0),
    ("lightpipe-signal", 1),
    ("lightpipe-codec", 1),
    ("lightpipe-source", 1),
    ("lightpipe-browser", 1),
    ("lightpipe-pipeline", 2),
    ("lightpipe-rtc", 2),
    ("lightpipe-net", 3),
    ("lightpipe-netlab", 3),
    ("lightpipe-testkit", 4),
    ("lightpipe", 4),
    ("lightpipe-cli", 5),
    ("xtask", 5),
];

/// Direct dependencies by crate; development dependencies apart, because tests may look upwards.
struct Graph {
    normal: BTreeMap<String, BTreeSet<String>>,
    dev: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
            .arg(repository().join("Cargo.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut graph = Self { normal: BTreeMap::new(), dev: BTreeMap::new() };
        for package in metadata["packages"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap().to_owned();
            let of = |dev: bool| {
                let all = package["dependencies"].as_array().unwrap().iter();
                let wanted = all.filter(|dependency| (dependency["kind"] == "dev") == dev);
                wanted.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
            };
            graph.dev.insert(name.clone(), of(true));
            graph.normal.insert(name, of(false));
        }
        graph
    }

    /// Everything that a crate brings in, followed through the crates of this repository.
    fn reach(&self, name: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(next) = open.pop() {
            for dependency in self.normal.get(&next).into_iter().flatten() {
                if seen.insert(dependency.clone()) {
                    open.push(dependency.clone());
                }
            }
        }
        seen
    }
}

fn layer(name: &str) -> Option<u8> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

#[test]
fn dependencies_point_down() {
    let graph = Graph::read();
    for (name, dependencies) in &graph.normal {
        let own = layer(name).unwrap_or_else(|| panic!("{name} has no layer: add it to LAYERS"));
        for dependency in dependencies.iter().filter(|dependency| graph.normal.contains_key(*dependency)) {
            assert!(layer(dependency) < Some(own), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_peer_engine_sees_only_media_and_signalling() {
    let graph = Graph::read();
    let ours = graph.normal["lightpipe-rtc"].iter().filter(|name| graph.normal.contains_key(*name));
    for name in ours {
        assert!(["lightpipe-media", "lightpipe-signal"].contains(&name.as_str()), "lightpipe-rtc depends on {name}");
    }
}

#[test]
fn thinking_crates_see_no_runtime_and_no_socket() {
    let graph = Graph::read();
    for name in ["lightpipe-media", "lightpipe-signal", "lightpipe-rtc", "lightpipe-netlab"] {
        let reach = graph.reach(name);
        for banned in ["tokio", "mio", "socket2", "axum"] {
            assert!(!reach.contains(banned), "{name} must not see {banned}");
        }
    }
}

#[test]
fn each_outside_name_has_its_one_user() {
    let graph = Graph::read();
    for (outside, user) in [
        ("str0m", "lightpipe-rtc"),
        ("aws-lc-sys", "lightpipe-rtc"),
        ("clap", "lightpipe-cli"),
        ("anyhow", "lightpipe-cli"),
    ] {
        for (name, dependencies) in &graph.normal {
            assert!(!dependencies.contains(outside) || name == user, "{name} names {outside}, only {user} may");
        }
    }
}

#[test]
fn the_testkit_is_for_tests() {
    let graph = Graph::read();
    for (name, dependencies) in &graph.normal {
        assert!(!dependencies.contains("lightpipe-testkit"), "{name} needs the testkit outside of tests");
    }
    for dependencies in graph.normal.values().chain(graph.dev.values()) {
        assert!(!dependencies.contains("xtask"));
    }
}
