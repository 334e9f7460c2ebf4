//! Defaults < file < environment < flags, into one [`Config`].
//!
//! All three layers write into a TOML table, which is then read once: so every layer has the same names, the same
//! checks and the same errors.

use std::collections::BTreeMap;
use std::path::Path;

use lightpipe::Config;
use toml::{Table, Value};

use crate::cli::ServeFlags;

/// File read without asking.
const DEFAULT_FILE: &str = "lightpipe.toml";

/// Prefix of our environment variables; `LIGHTPIPE_VIDEO_BITRATE_KBPS` is `video.bitrate_kbps`.
const PREFIX: &str = "LIGHTPIPE_";

/// Sections whose keys are the names of streams.
const NAMED: [&str; 2] = ["sources", "push"];

/// Belongs to a flag of `publish`, not to a key.
const FLAG_VARIABLE: &str = "LIGHTPIPE_WHIP_TOKEN";

/// Names kept for older documents and for platforms that set them.
const ALIASES: &[(&str, &str)] = &[
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("CS_HOST", "server.host"),
    ("CS_PORT", "server.port"),
    ("CS_WIDTH", "video.width"),
    ("CS_HEIGHT", "video.height"),
    ("CS_FPS", "video.fps"),
    ("CS_BITRATE_KBPS", "video.bitrate_kbps"),
    ("CS_STUN_SERVER", "webrtc.stun_server"),
    ("CS_TURN_SERVER", "webrtc.turn_server"),
    ("CS_TURN_USER", "webrtc.turn_user"),
    ("CS_TURN_PASS", "webrtc.turn_pass"),
];

/// Something is wrong with the settings.
#[derive(Debug)]
pub(crate) struct SettingsError(String);

impl SettingsError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SettingsError {}

/// Reads all layers.
pub(crate) fn load(
    flags: &ServeFlags,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Config, SettingsError> {
    let mut table = match &flags.config {
        Some(path) => read_file(path)?,
        None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
        None => Table::new(),
    };
    let environment: BTreeMap<String, String> = environment.collect();
    apply_environment(&mut table, &environment)?;
    apply_flags(&mut table, flags);
    let config: Config = table.try_into().map_err(|e: toml::de::Error| SettingsError(e.message().to_owned()))?;
    config.check().map_err(|e| SettingsError(e.to_string()))?;
    Ok(config)
}

fn read_file(path: &Path) -> Result<Table, SettingsError> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| SettingsError(format!("cannot read {place}: {e}")))?;
    parse_file(&text).map_err(|message| SettingsError(format!("{place}: {message}")))
}

/// Parses a file, so that an error carries its line.
fn parse_file(text: &str) -> Result<Table, String> {
    let table: Table = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    check_keys(&table)?;
    // Read as a whole for types and ranges: these errors know their line, later ones would not.
    let config: Config = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    config.check().map_err(|error| match line_of(text, error.key) {
        Some(line) => format!("line {line}: {error}"),
        None => error.to_string(),
    })?;
    Ok(table)
}

/// The line on which a dotted key is set.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    let mut current = String::new();
    text.lines()
        .position(|line| {
            let line = line.trim();
            let header = line.strip_prefix('[').and_then(|l| l.trim_start_matches('[').split(']').next());
            if let Some(header) = header {
                header.trim().clone_into(&mut current);
            }
            // A key that is a list may be written as [[section.key]], again and again.
            (header.is_some() && current == key)
                || current == section && line.split('=').next().is_some_and(|k| k.trim() == name)
        })
        .map(|index| index + 1)
}

fn defaults() -> Table {
    Table::try_from(Config::default()).expect("the defaults are plain values under string keys")
}

/// Unknown keys are errors that name the nearest one.
fn check_keys(table: &Table) -> Result<(), String> {
    let known = defaults();
    for (section, value) in table {
        let Some(Value::Table(known_section)) = known.get(section) else {
            let nearest = nearest(section, known.keys().map(String::as_str));
            return Err(format!("unknown section [{section}]; did you mean [{nearest}]?"));
        };
        if NAMED.contains(&section.as_str()) {
            continue;
        }
        let Value::Table(keys) = value else { return Err(format!("{section} must be a section, [{section}]")) };
        for key in keys.keys() {
            if !known_section.contains_key(key) {
                let nearest = nearest(key, known_section.keys().map(String::as_str));
                return Err(format!("unknown key {section}.{key}; did you mean {section}.{nearest}?"));
            }
        }
    }
    Ok(())
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    known.min_by_key(|k| strsim::damerau_levenshtein(word, k)).unwrap_or("nothing")
}

fn apply_environment(table: &mut Table, environment: &BTreeMap<String, String>) -> Result<(), SettingsError> {
    for (variable, dotted) in ALIASES {
        if let Some(text) = environment.get(*variable) {
            set_text(table, dotted, text, variable)?;
        }
    }
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix(PREFIX).filter(|_| variable != FLAG_VARIABLE) else { continue };
        let wanted = rest.to_ascii_lowercase();
        let known = all_keys();
        let found = known.iter().find(|dotted| dotted.replacen('.', "_", 1) == wanted);
        let Some(dotted) = found else {
            let names: Vec<String> = known.iter().map(|k| k.replacen('.', "_", 1)).collect();
            let nearest = nearest(&wanted, names.iter().map(String::as_str)).to_ascii_uppercase();
            return Err(SettingsError(format!("unknown variable {variable}; did you mean {PREFIX}{nearest}?")));
        };
        set_text(table, dotted, text, variable)?;
    }
    Ok(())
}

fn all_keys() -> Vec<String> {
    defaults()
        .iter()
        .filter(|(section, _)| !NAMED.contains(&section.as_str()))
        .flat_map(|(section, keys)| {
            keys.as_table().into_iter().flat_map(Table::keys).map(move |key| format!("{section}.{key}"))
        })
        .collect()
}

/// Sets a key from text, in the type of its default.
fn set_text(table: &mut Table, dotted: &str, text: &str, variable: &str) -> Result<(), SettingsError> {
    let (section, key) = dotted.split_once('.').expect("keys have a section");
    let default = defaults().get(section).and_then(|s| s.get(key)).cloned().expect("the key is one of the defaults'");
    let bad = |wanted: &str| SettingsError(format!("{variable}={text}: must be {wanted}"));
    let value = match default {
        Value::Integer(_) => Value::Integer(text.trim().parse().map_err(|_| bad("a whole number"))?),
        Value::Float(_) => Value::Float(text.trim().parse().map_err(|_| bad("a number"))?),
        Value::Boolean(_) => Value::Boolean(match text.trim() {
            "true" | "1" | "yes" | "on" => true,
            "false" | "0" | "no" | "off" => false,
            _ => return Err(bad("true or false")),
        }),
        Value::Array(_) => words(text),
        _ => Value::String(text.into()),
    };
    set(table, dotted, value);
    Ok(())
}

/// What stands between commas.
fn words(text: &str) -> Value {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| Value::String(word.into())).collect::<Vec<_>>().into()
}

fn set(table: &mut Table, dotted: &str, value: Value) {
    let (section, key) = dotted.split_once('.').expect("keys have a section");
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(keys) = entry {
        keys.insert(key.into(), value);
    }
}

fn apply_flags(table: &mut Table, flags: &ServeFlags) {
    let integer = |n: u32| Value::Integer(n.into());
    let text = |t: &String| Value::String(t.clone());
    let settings: [(&str, Option<Value>); 12] = [
        ("server.host", flags.host.map(|h| Value::String(h.to_string()))),
        ("server.port", flags.port.map(|p| Value::Integer(p.into()))),
        ("video.width", flags.width.map(integer)),
        ("video.height", flags.height.map(integer)),
        ("video.fps", flags.fps.map(Value::Float)),
        ("video.bitrate_kbps", flags.bitrate.map(integer)),
        ("simulcast.cpu_percent", flags.cpu.map(integer)),
        ("video.renderer", flags.renderer.as_ref().map(text)),
        ("video.content", flags.content.as_ref().map(text)),
        ("video.adapt", flags.adapt.map(Value::Boolean)),
        ("video.timecode", flags.timecode.then_some(Value::Boolean(true))),
        ("ffmpeg.path", flags.ffmpeg.as_ref().map(text)),
    ];
    for (dotted, value) in settings {
        if let Some(value) = value {
            set(table, dotted, value);
        }
    }
    match flags.simulcast.as_deref() {
        None => {}
        Some(word @ ("on" | "off")) => set(table, "simulcast.enabled", Value::Boolean(word == "on")),
        Some(layers) => {
            set(table, "simulcast.enabled", Value::Boolean(true));
            set(table, "simulcast.layers", words(layers));
        }
    }
    if !flags.advertise.is_empty() {
        let addresses: Vec<Value> = flags.advertise.iter().map(|a| Value::String(a.to_string())).collect();
        set(table, "server.advertise", addresses.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[track_caller]
    fn check_file(text: &str, expected: &str) {
        let error = parse_file(text).expect_err("refused");
        assert!(error.contains(expected), "{text:?} gave {error:?}");
    }

    #[test]
    fn mistakes_in_a_file_are_named_with_their_place() {
        check_file("[video]\nfps = 0\n", "line 2: video.fps = 0: must be 1 to 240");
        check_file("[video]\nwidht = 5\n", "unknown key video.widht; did you mean video.width?");
        check_file("[vidoe]\n", "unknown section [vidoe]; did you mean [video]?");
        check_file("[video]\nfps = \"fast\"\n", "line 2");
        check_file("[server]\nport = 70000\n", "line 2");
        check_file("video = 3\n", "video must be a section");
        check_file("[video\n", "line 1");
        check_file("[sources]\na = 3\n", "a source, or a list of one source of pictures and one of sound");
        check_file("[video]\ncontent = \"film\"\n", "camera");
        let layers = "[simulcast]\nenabled = true\nlayers = [\"f:641x360:500\"]\n";
        check_file(layers, "line 3: simulcast.layers = f:641x360:500: must be of even sides, 16 to 4096");
        let layer = "[[simulcast.layers]]\nrid = \"f\"\nwidth = 640\nheight = 360\nbitrate_kbps = 1\n";
        check_file(layer, "line 1: simulcast.layers = f:640x360:1: must be of 10 to 100000 kbit/s");
        check_file("[simulcast]\nlayers = [{ rid = \"f\", widht = 3 }]\n", "unknown field `widht`");
    }

    #[test]
    fn file_environment_and_flags_override_in_this_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.toml");
        std::fs::write(
            &path,
            "[video]\nfps = 24\nwidth = 640\nbitrate_kbps = 900\n[sources]\na = \"cube\"\nb = [\"camera\", \"mic\"]\n",
        )
        .expect("writes");
        let flags = ServeFlags { config: Some(path), fps: Some(60.0), ..ServeFlags::default() };
        let variables = [
            ("LIGHTPIPE_VIDEO_BITRATE_KBPS", "1200"),
            ("CS_FPS", "50"),
            ("PORT", "9000"),
            ("LIGHTPIPE_SERVER_ADVERTISE", "192.0.2.1, 192.0.2.2"),
            ("HOME", "x"),
        ];
        let config = load(&flags, environment(&variables)).expect("loads");
        assert_eq!(config.video.fps, 60.0, "flag");
        assert_eq!(config.video.bitrate_kbps, 1200, "environment");
        assert_eq!(config.video.width, 640, "a flag that is absent does not overwrite the file");
        assert_eq!(config.video.height, 720, "default");
        assert_eq!((config.server.port, config.server.advertise.len()), (9000, 2));
        assert_eq!(config.sources["a"].iter().collect::<Vec<_>>(), ["cube"]);
        assert_eq!(config.sources["b"].iter().collect::<Vec<_>>(), ["camera", "mic"]);
    }

    #[track_caller]
    fn check_simulcast(flag: Option<&str>, variables: &[(&str, &str)], expected: (bool, &[&str])) {
        let flags = ServeFlags { simulcast: flag.map(str::to_owned), ..ServeFlags::default() };
        let simulcast = load(&flags, environment(variables)).expect("loads").simulcast;
        let layers: Vec<String> = simulcast.layers.iter().map(ToString::to_string).collect();
        assert_eq!(
            (simulcast.enabled, layers.iter().map(String::as_str).collect::<Vec<_>>()),
            (expected.0, expected.1.to_vec())
        );
    }

    #[test]
    fn layers_come_from_the_environment_and_from_the_flag() {
        let two = ("LIGHTPIPE_SIMULCAST_LAYERS", "f:1280x720:2000, h:640x360:500:15");
        let off = ("LIGHTPIPE_SIMULCAST_ENABLED", "off");
        check_simulcast(None, &[], (true, &[]));
        check_simulcast(None, &[two], (true, &["f:1280x720:2000", "h:640x360:500:15"]));
        check_simulcast(Some("off"), &[two], (false, &["f:1280x720:2000", "h:640x360:500:15"]));
        check_simulcast(Some("on"), &[off], (true, &[]));
        check_simulcast(Some("q:320x180:150"), &[two, off], (true, &["q:320x180:150"]));
        let wrong = ServeFlags { simulcast: Some("none".into()), ..ServeFlags::default() };
        let error = load(&wrong, environment(&[])).expect_err("refused");
        assert!(error.to_string().contains("\"none\" is no layer; write rid:WIDTHxHEIGHT:KBPS"), "{error}");
    }

    #[track_caller]
    fn check_environment(pair: (&str, &str), expected: &str) {
        let error = load(&ServeFlags::default(), environment(&[pair])).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn mistakes_in_the_environment_are_named() {
        check_environment(
            ("LIGHTPIPE_VIDEO_FPZ", "3"),
            "unknown variable LIGHTPIPE_VIDEO_FPZ; did you mean LIGHTPIPE_VIDEO_FPS?",
        );
        check_environment(("PORT", "http"), "PORT=http: must be a whole number");
        check_environment(
            ("LIGHTPIPE_VIDEO_TIMECODE", "maybe"),
            "LIGHTPIPE_VIDEO_TIMECODE=maybe: must be true or false",
        );
        check_environment(("CS_FPS", "0"), "video.fps = 0: must be 1 to 240");
    }

    #[test]
    fn the_sample_file_holds_every_key_with_its_default() {
        let sample = include_str!("../../../lightpipe.sample.toml");
        let table = parse_file(sample).expect("the sample parses");
        let config: Config = table.clone().try_into().expect("and is a configuration");
        assert_eq!(config, Config::default());
        for (section, keys) in &defaults() {
            for key in keys.as_table().into_iter().flat_map(Table::keys) {
                assert!(
                    table.get(section).and_then(|s| s.get(key)).is_some(),
                    "{section}.{key} is missing in the sample"
                );
            }
        }
    }
}
