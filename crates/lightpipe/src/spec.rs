//! Source specifications as people write them: `[NAME=]SPEC`.

use std::str::FromStr;

use lightpipe_signal::message::is_name;

use crate::endpoint::{Endpoint, EndpointError};

/// Where pictures come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceSpec {
    /// The rotating cube.
    Cube,
    /// The test picture and its beep.
    Pattern {
        /// How much faster than ours the beep's sample clock runs, parts per million.
        drift_ppm: i32,
    },
    /// The desktop, of a display if named.
    Desktop(Option<String>),
    /// A camera, the first one if not named.
    Camera(Option<String>),
    /// An audio input or an output's monitor; the default input if not named, `monitor` is the default output's. Sound only.
    Mic(Option<String>),
    /// FFmpeg arguments with an input.
    Ffmpeg(String),
    /// A shell command that writes pictures to its standard output.
    Exec(String),
    /// A media file, played in a loop at its own speed.
    File(String),
    /// A stream of a WHEP server.
    Whep(Endpoint),
    /// Our standard input.
    Stdin,
}

/// Why text is no source specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No such kind.
    #[error(
        "unknown source {0:?}; sources are cube, pattern, desktop[:DISPLAY], camera[:DEVICE], mic[:DEVICE], ffmpeg:ARGS, exec:COMMAND, file:PATH, whep:URL and -"
    )]
    Unknown(String),
    /// The part after the colon is missing.
    #[error("{0}: needs something after the colon, as in {1}")]
    Incomplete(&'static str, &'static str),
    /// The part after the colon is not understood.
    #[error("{0}: after the colon comes {1}")]
    BadOption(&'static str, &'static str),
    /// What follows `whep:` is no URL.
    #[error("whep: {0}")]
    Endpoint(EndpointError),
    /// Not a stream name.
    #[error("{0:?} is no stream name: 1 to 64 letters, digits, '_' or '-'")]
    BadName(String),
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest.to_owned()).filter(|r| !r.is_empty())),
            None => (text, None),
        };
        let needed = |kind, example| rest.clone().ok_or(SpecError::Incomplete(kind, example));
        match kind {
            "cube" if rest.is_none() => Ok(Self::Cube),
            "pattern" => match rest.as_deref() {
                None => Ok(Self::Pattern { drift_ppm: 0 }),
                Some(option) => option
                    .strip_prefix("drift=")
                    .and_then(|ppm| ppm.parse().ok())
                    .filter(|ppm| (-1000..=1000).contains(ppm))
                    .map(|drift_ppm| Self::Pattern { drift_ppm })
                    .ok_or(SpecError::BadOption("pattern", "drift=PPM, a whole number from -1000 to 1000")),
            },
            "desktop" => Ok(Self::Desktop(rest)),
            "camera" => Ok(Self::Camera(rest)),
            "mic" => Ok(Self::Mic(rest)),
            "ffmpeg" => needed("ffmpeg", "ffmpeg:-f lavfi -i testsrc2").map(Self::Ffmpeg),
            "exec" => needed("exec", "exec:./my-renderer").map(Self::Exec),
            "file" => needed("file", "file:film.mp4").map(Self::File),
            "-" => Ok(Self::Stdin),
            "whep" => {
                let url = needed("whep", "whep:https://media.example/whep/cam")?;
                url.parse().map(Self::Whep).map_err(SpecError::Endpoint)
            }
            _ => Err(SpecError::Unknown(text.chars().take(80).collect())),
        }
    }
}

impl SourceSpec {
    /// The specification as the API may show it: commands and FFmpeg arguments often hold passwords.
    pub fn public_text(&self, text: &str) -> String {
        match self {
            Self::Ffmpeg(_) | Self::Exec(_) | Self::File(_) | Self::Whep(_) => self.default_name().to_owned(),
            _ => text.to_owned(),
        }
    }

    /// Whether it gives sound and never pictures, so that it can join a stream that has pictures.
    pub const fn is_sound(&self) -> bool {
        matches!(self, Self::Mic(_))
    }

    /// Name of a stream whose user gave none.
    pub const fn default_name(&self) -> &'static str {
        match self {
            Self::Cube => "cube",
            Self::Pattern { .. } => "pattern",
            Self::Desktop(_) => "desktop",
            Self::Camera(_) => "camera",
            Self::Mic(_) => "mic",
            Self::Ffmpeg(_) => "ffmpeg",
            Self::Exec(_) => "exec",
            Self::File(_) => "file",
            Self::Whep(_) => "whep",
            Self::Stdin => "stdin",
        }
    }
}

/// A source and the stream that it feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// The stream's name.
    pub name: String,
    /// The source.
    pub spec: SourceSpec,
    /// As it was written, for people.
    pub text: String,
}

impl FromStr for NamedSource {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // `=` before any `:` separates a name; later ones belong to FFmpeg arguments and commands.
        let named = text.split_once('=').filter(|(name, _)| !name.contains(':') && *name != "-");
        let (name, spec_text) = named.map_or((None, text), |(name, spec)| (Some(name), spec));
        let spec: SourceSpec = spec_text.parse()?;
        let name = stream_name(name.unwrap_or_else(|| spec.default_name()))?;
        Ok(Self { name, spec, text: spec_text.to_owned() })
    }
}

/// Checks a stream name. The same rule as for peer ids: every stream is a peer of every room.
pub fn stream_name(name: &str) -> Result<String, SpecError> {
    if is_name(name) { Ok(name.to_owned()) } else { Err(SpecError::BadName(name.chars().take(80).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, SourceSpec), SpecError>) {
        let got = text.parse::<NamedSource>().map(|s| (s.name, s.spec));
        assert_eq!(got, expected.map(|(name, spec)| (name.to_owned(), spec)), "{text:?}");
    }

    #[test]
    fn specifications_as_people_write_them() {
        check("cube", Ok(("cube", SourceSpec::Cube)));
        check("pattern", Ok(("pattern", SourceSpec::Pattern { drift_ppm: 0 })));
        check("p=pattern:drift=-100", Ok(("p", SourceSpec::Pattern { drift_ppm: -100 })));
        let drift = SpecError::BadOption("pattern", "drift=PPM, a whole number from -1000 to 1000");
        check("pattern:drift=5000", Err(drift.clone()));
        check("pattern:loud", Err(drift));
        check("desktop", Ok(("desktop", SourceSpec::Desktop(None))));
        check("desktop::99", Ok(("desktop", SourceSpec::Desktop(Some(":99".into())))));
        check("screen=desktop::99.0", Ok(("screen", SourceSpec::Desktop(Some(":99.0".into())))));
        check("camera:/dev/video0", Ok(("camera", SourceSpec::Camera(Some("/dev/video0".into())))));
        check(
            "ffmpeg:-f lavfi -i testsrc2=size=640x480",
            Ok(("ffmpeg", SourceSpec::Ffmpeg("-f lavfi -i testsrc2=size=640x480".into()))),
        );
        check("t=exec:./render --fps=30", Ok(("t", SourceSpec::Exec("./render --fps=30".into()))));
        let endpoint: Endpoint = "https://key@media.example/whep/cam?x=1".parse().expect("an endpoint");
        check("far=whep:https://key@media.example/whep/cam?x=1", Ok(("far", SourceSpec::Whep(endpoint))));
        check("whep:", Err(SpecError::Incomplete("whep", "whep:https://media.example/whep/cam")));
        check("-", Ok(("stdin", SourceSpec::Stdin)));
        check("pipe=-", Ok(("pipe", SourceSpec::Stdin)));
        check("exec:", Err(SpecError::Incomplete("exec", "exec:./my-renderer")));
        check("cubes", Err(SpecError::Unknown("cubes".into())));
        check("a.b=cube", Err(SpecError::BadName("a.b".into())));
        check("a/b=cube", Err(SpecError::BadName("a/b".into())));
        check("=cube", Err(SpecError::BadName(String::new())));
        check("mic", Ok(("mic", SourceSpec::Mic(None))));
        check("talk=mic:monitor", Ok(("talk", SourceSpec::Mic(Some("monitor".into())))));
        check("mic:alsa_input.usb-1", Ok(("mic", SourceSpec::Mic(Some("alsa_input.usb-1".into())))));
    }
}
