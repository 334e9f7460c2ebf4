//! What the README says about the facade is what the facade's own documentation compiles.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines between the first line that starts with `open` and the next fence.
fn block(text: &str, open: &str) -> Vec<String> {
    let inside = text.lines().skip_while(|line| !line.starts_with(open)).skip(1);
    inside.take_while(|line| !line.starts_with("```")).map(str::to_owned).collect()
}

#[test]
fn the_readme_shows_the_snippet_that_the_documentation_tests() {
    let source = read("src/lib.rs");
    let docs: String = source
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    // Lines that rustdoc compiles and does not show are not the reader's.
    let tested: Vec<String> =
        block(&docs, "```no_run").into_iter().filter(|line| !line.trim_start().starts_with("# ")).collect();
    assert!(!tested.is_empty());
    assert_eq!(block(&read("../../README.md"), "```rust"), tested);
}

#[test]
fn the_sources_in_the_readme_parse() {
    let readme = read("../../README.md");
    let specs: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `--source ")?.split_once("` |").map(|(spec, _)| spec))
        .collect();
    assert!(specs.len() >= 8, "{specs:?}");
    for spec in specs {
        let spec = spec.trim_matches('\'');
        spec.parse::<lightpipe::NamedSource>().unwrap_or_else(|error| panic!("{spec}: {error}"));
    }
}
