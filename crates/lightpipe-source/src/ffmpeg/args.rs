//! FFmpeg's command line: the one place that knows its options.

use std::time::Duration;

use lightpipe_media::{PixelFormat, Size};

use super::{Container, Film, Fit, Input, Output, SourceError, Video};

/// Age of an x11grab picture when its first byte arrives: the copy from the X server takes this long
/// (measured at 1080p, `design.md` §7).
const X11GRAB_DELAY: Duration = Duration::from_millis(10);

/// Whose devices. An argument, so that every platform's table is tested on every platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// X11, V4L2, and every other Unix.
    Linux,
    /// GDI, Desktop Duplication, DirectShow.
    Windows,
    /// AVFoundation.
    MacOs,
}

impl Platform {
    /// The one that we were built for.
    pub const fn here() -> Self {
        if cfg!(windows) {
            Self::Windows
        } else if cfg!(target_os = "macos") {
            Self::MacOs
        } else {
            Self::Linux
        }
    }
}

/// How the screen is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grabber {
    /// The one that works everywhere on the platform: x11grab, gdigrab, avfoundation.
    #[default]
    Usual,
    /// Linux without X: the graphics card's own picture. Needs CAP_SYS_ADMIN and VAAPI.
    Kms,
    /// Windows: Desktop Duplication. Faster than gdigrab, needs FFmpeg 6 and a graphics adapter.
    Duplication,
}

/// What of the screen to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desktop {
    /// X display (default `$DISPLAY`, else `:0`), screen number on macOS, DRM card for [`Grabber::Kms`].
    pub display: Option<String>,
    /// Only the top left part of this size; the whole screen without. X11 and Windows.
    pub part: Option<Size>,
    /// How.
    pub grabber: Grabber,
}

/// The screen as an input, `fps` pictures a second, with the mouse pointer.
pub fn desktop(platform: Platform, desktop: &Desktop, fps: u32) -> Input {
    let fps = fps.to_string();
    let display = desktop.display.as_deref();
    let part = desktop.part.map(|s| s.to_string());
    let size = part.as_deref().map_or(vec![], |p| vec!["-video_size", p]);
    let plain = |args: Vec<&str>| input(&args, None, Duration::ZERO);
    match (platform, desktop.grabber) {
        (Platform::Linux, Grabber::Kms) => input(
            &["-device", display.unwrap_or("/dev/dri/card0"), "-f", "kmsgrab", "-framerate", &fps, "-i", "-"],
            Some("hwmap=derive_device=vaapi,hwdownload,format=bgr0"),
            Duration::ZERO,
        ),
        (Platform::Linux, _) => {
            let environment = std::env::var("DISPLAY").ok();
            let display = display.or(environment.as_deref()).unwrap_or(":0");
            let mut args = vec!["-f", "x11grab", "-draw_mouse", "1", "-framerate", &fps];
            args.extend(size);
            args.extend(["-i", display]);
            input(&args, None, X11GRAB_DELAY)
        }
        (Platform::Windows, Grabber::Duplication) => {
            let output = display.unwrap_or("0");
            let graph = format!("ddagrab=output_idx={output}:framerate={fps}:draw_mouse=1,hwdownload,format=bgra");
            plain(vec!["-f", "lavfi", "-i", &graph])
        }
        (Platform::Windows, _) => {
            let mut args = vec!["-f", "gdigrab", "-draw_mouse", "1", "-framerate", &fps];
            args.extend(size);
            args.extend(["-i", display.unwrap_or("desktop")]);
            plain(args)
        }
        (Platform::MacOs, _) => {
            let screen = format!("Capture screen {}:none", display.unwrap_or("0"));
            plain(vec![
                "-f",
                "avfoundation",
                "-capture_cursor",
                "1",
                "-pixel_format",
                "bgr0",
                "-framerate",
                &fps,
                "-i",
                &screen,
            ])
        }
    }
}

/// A camera as an input. `size` and `fps` are asked of the device; V4L2 takes the nearest it has, the
/// others refuse what they do not have, so leave them out there unless the user named them.
///
/// The age of its pictures is not known: exposure and USB add 20 to 60 ms that nobody here can see.
pub fn camera(platform: Platform, device: Option<&str>, size: Option<Size>, fps: Option<u32>) -> Input {
    let size = size.map(|s| s.to_string());
    let fps = fps.map(|f| f.to_string());
    let (format, url) = match platform {
        Platform::Linux => ("v4l2", device.unwrap_or("/dev/video0").to_owned()),
        // Without a name there is no first camera in DirectShow: `devices` lists them.
        Platform::Windows => ("dshow", format!("video={}", device.unwrap_or_default())),
        Platform::MacOs => ("avfoundation", format!("{}:none", device.unwrap_or("0"))),
    };
    let mut args = vec!["-f", format];
    if let Some(size) = &size {
        args.extend(["-video_size", size]);
    }
    if let Some(fps) = &fps {
        args.extend(["-framerate", fps]);
    }
    args.extend(["-i", &url]);
    input(&args, None, Duration::ZERO)
}

/// An FFmpeg filter graph as an input, in real time: test pictures.
pub fn lavfi(graph: &str) -> Input {
    input(&["-re", "-f", "lavfi", "-i", graph], None, Duration::ZERO)
}

/// Why a user's FFmpeg arguments cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// A quote without its partner.
    #[error("the quote {quote} at byte {at} is never closed")]
    OpenQuote {
        /// `'` or `"`.
        quote: char,
        /// Where it opened.
        at: usize,
    },
    /// A backslash with nothing behind it.
    #[error("the backslash at the end escapes nothing")]
    TrailingBackslash,
    /// No input among the arguments.
    #[error("no input: name one with `-i`, as in `ffmpeg:-f v4l2 -i /dev/video0`")]
    NoInput,
    /// `-i` is the last word.
    #[error("`-i` without an input behind it")]
    NothingToRead,
}

/// A user's arguments (`ffmpeg:ARGS`), and whether they encode.
///
/// One word that is no option is an input by itself. Whatever stands behind the last `-i URL` is an output
/// option: when it chooses a video codec (`-c:v copy`, `-vcodec libx264` …) the child's H.264 is passed on,
/// else it writes raw pictures and we encode.
pub fn user(args: &str) -> Result<(Input, bool), ArgsError> {
    let mut words = split_words(args)?;
    if let [url] = &words[..]
        && !url.starts_with('-')
    {
        words.insert(0, "-i".to_owned());
    }
    let last = words.iter().rposition(|w| w == "-i").ok_or(ArgsError::NoInput)?;
    if last + 1 == words.len() {
        return Err(ArgsError::NothingToRead);
    }
    let encodes = words[last + 2..].iter().any(|w| {
        matches!(w.as_str(), "-c" | "-codec" | "-vcodec") || w.starts_with("-c:v") || w.starts_with("-codec:v")
    });
    let input = Input { args: words, filter: None, capture_delay: Duration::ZERO };
    Ok((input, encodes))
}

/// Devices that give no sound, or that nobody can open a second time for it.
const NO_SOUND: &[&str] = &[
    "v4l2",
    "video4linux2",
    "x11grab",
    "kmsgrab",
    "fbdev",
    "gdigrab",
    "dshow",
    "avfoundation",
    "decklink",
    "rawvideo",
    "h264",
    "hevc",
    "mjpeg",
    "image2",
    "image2pipe",
    "yuv4mpegpipe",
];

/// Devices that give nothing but sound.
const NO_PICTURES: &[&str] = &["alsa", "pulse", "oss", "sndio", "jack", "openal"];

/// A user's arguments, input by input, and what stands behind the last one.
struct Parts<'a> {
    inputs: Vec<&'a [String]>,
    after: &'a [String],
}

fn parts(words: &[String]) -> Parts<'_> {
    let mut inputs = Vec::new();
    let mut rest = words;
    while let Some(at) = rest.iter().position(|w| w == "-i").filter(|at| at + 1 < rest.len()) {
        let (input, after) = rest.split_at(at + 2);
        inputs.push(input);
        rest = after;
    }
    Parts { inputs, after: rest }
}

fn value_of<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|w| w == option)?;
    words.get(at + 1).map(String::as_str)
}

/// The user's input for the child that gives the pictures: without devices that give none, so that the other child can open them.
pub fn pictures(input: &Input) -> Input {
    let Parts { inputs, after } = parts(&input.args);
    let silent = |words: &&[String]| !value_of(words, "-f").is_some_and(|f| NO_PICTURES.contains(&f));
    let kept: Vec<&[String]> = inputs.iter().copied().filter(silent).collect();
    // The user's `-map` counts the inputs as they are.
    if kept.is_empty() || after.iter().any(|w| w == "-map") {
        return input.clone();
    }
    Input { args: [kept.concat(), after.to_vec()].concat(), ..input.clone() }
}

/// The user's input for the child that gives the sound, with what of the output options is about sound. `None` where there can be none: no
/// input that could have some, or `-an`.
pub fn sound(input: &Input) -> Option<Input> {
    let Parts { inputs, after } = parts(&input.args);
    let options = sound_options(after)?;
    let loud = |words: &&[String]| {
        let url = words.last().map_or("", String::as_str);
        !matches!(url, "-" | "pipe:" | "pipe:0") && !value_of(words, "-f").is_some_and(|f| NO_SOUND.contains(&f))
    };
    let kept: Vec<&[String]> = inputs.into_iter().filter(loud).collect();
    if kept.is_empty() {
        return None;
    }
    Some(Input { args: [kept.concat(), options].concat(), filter: None, capture_delay: input.capture_delay })
}

/// What of a user's output options is about sound; `None` where there shall be none.
pub fn sound_options(after: &[String]) -> Option<Vec<String>> {
    let of_sound = |pair: &&[String]| match pair[0].as_str() {
        "-af" | "-filter:a" => true,
        "-map" => pair[1].contains(":a"),
        _ => false,
    };
    let wanted = !after.iter().any(|w| w == "-an");
    wanted.then(|| after.windows(2).filter(of_sound).flatten().cloned().collect())
}

/// The file, the options in front of it and those behind it, when all that a user says is to play a local file at its own speed.
pub fn as_film(input: &Input) -> Option<(String, Vec<String>, Vec<String>)> {
    let Parts { inputs, after } = parts(&input.args);
    let [words] = inputs[..] else { return None };
    let (options, url) = words.split_at(words.len() - 2);
    let path = url[1].strip_prefix("file:").unwrap_or(&url[1]);
    let path = std::fs::canonicalize(path).ok().filter(|path| path.is_file())?.to_str()?.to_owned();
    let mut kept = Vec::new();
    let mut paced = false;
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-re" => paced = true,
            "-stream_loop" => _ = words.next().filter(|n| *n == "-1")?,
            // What changes the file's times, or how it is read.
            "-f" | "-ss" | "-sseof" | "-t" | "-to" | "-itsoffset" | "-itsscale" | "-readrate" => return None,
            _ => kept.push(word.clone()),
        }
    }
    // In a line in ffconcat a path has no end but the line's.
    (paced && !path.contains('\n')).then(|| (path, kept, after.to_vec()))
}

/// Bytes of a list of files that go onto a command line; Linux has 128 KiB for one argument.
const MAX_LIST_LEN: usize = 64 * 1024;

/// A day of a film is enough for one child; the next begins where it ends.
const LIST_SPAN: Duration = Duration::from_secs(24 * 3600);

/// A film from a position on, again and again, with the options `after` it.
///
/// FFmpeg's `-stream_loop` begins again when the tracks that it reads have ended, which is another time for pictures than for sound. In
/// a list the length of every turn is written down.
pub fn film(film: &Film, from: Duration, after: &[String]) -> Vec<String> {
    let length = film.timeline.length();
    let begin = Duration::from_micros((from.as_micros() % length.as_micros()) as u64);
    let turn = format!("file 'file:{}'\nduration {:.6}\n", film.path.replace('\'', "'\\''"), length.as_secs_f64());
    let turns = (LIST_SPAN.as_micros() / length.as_micros() + 2).min((MAX_LIST_LEN / turn.len()).max(2) as u128);
    let list = format!("data:text/plain,ffconcat version 1.0\n{}", turn.repeat(turns as usize));
    let mut args = film.options.clone();
    if !begin.is_zero() {
        args.extend(["-ss".to_owned(), format!("{:.6}", begin.as_secs_f64())]);
    }
    args.extend(strings(&["-f", "concat", "-safe", "0", "-protocol_whitelist", "data,file,crypto", "-i", &list]));
    args.extend_from_slice(after);
    args
}

/// Splits a line into words as a shell does: blanks separate; `'…'` is literal; in `"…"` a backslash escapes
/// `"` and `\`; elsewhere it escapes anything. No variables, no globs.
pub fn split_words(line: &str) -> Result<Vec<String>, ArgsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => {
                let (_, escaped) = chars.next().ok_or(ArgsError::TrailingBackslash)?;
                word.get_or_insert_default().push(escaped);
            }
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                let open = || ArgsError::OpenQuote { quote, at };
                loop {
                    match chars.next().ok_or_else(open)?.1 {
                        c if c == quote => break,
                        '\\' if quote == '"' => match chars.next().ok_or_else(open)?.1 {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Everything behind the program's name. Pictures of a film come with the film's times.
pub fn command_line(input: &Input, film: bool, output: &Output) -> Result<Vec<String>, SourceError> {
    let mut args = strings(&["-hide_banner", "-nostats", "-loglevel", "warning"]);
    if !film {
        // Frame threads would hold pictures back in the decoder; this flag rules them out. A film waits for us.
        args.extend(strings(&["-flags", "low_delay"]));
    }
    args.extend(input.args.iter().cloned());
    args.extend(strings(&["-an", "-sn", "-dn"]));
    let mut filters: Vec<String> = input.filter.iter().cloned().collect();
    match output {
        Output::Raw { size, fps, pixels, fit } => {
            if !(1..=240).contains(fps) {
                return Err(SourceError::BadFps(*fps));
            }
            let pix_fmt = pix_fmt(*pixels).ok_or(SourceError::PixelFormat(*pixels))?;
            if film {
                // Pictures that are too many go, none is made up, and times stay what they are.
                let apart = 0.9 / f64::from(*fps);
                filters.push(format!("select='isnan(prev_selected_t)+gte(t-prev_selected_t,{apart:.6})'"));
                filters.extend(fitting(*size, *fit, *pixels));
                args.extend(video_filter(&filters));
                args.extend(strings(&["-fps_mode", "passthrough", "-enc_time_base", "1:90000"]));
                args.extend(strings(&["-threads", "1", "-c:v", "rawvideo", "-pix_fmt", pix_fmt, "-f", "nut"]));
                args.extend(strings(&["-flush_packets", "1", "pipe:1"]));
                return Ok(args);
            }
            filters.extend(fitting(*size, *fit, *pixels));
            args.extend(video_filter(&filters));
            // `-r` with `vfr` drops what is too early and invents nothing: pictures are 3 ms old at their
            // first byte (720p at 10 fps). The `fps` filter holds every picture until the next (108 ms);
            // `cfr` repeats pictures, which we would encode again.
            args.extend(strings(&["-fps_mode", "vfr", "-r", &fps.to_string()]));
            // With threads of its own FFmpeg's raw "encoder" holds a picture back, too (106 ms).
            args.extend(strings(&["-threads", "1", "-f", "rawvideo"]));
            args.extend(strings(&["-pix_fmt", pix_fmt]));
        }
        Output::Encoded { container, video } => {
            match video {
                Video::Copy => args.extend(strings(&["-c:v", "copy"])),
                Video::AsGiven => {}
                Video::X264 { size, bitrate_bps, keyframe_every } => {
                    if let Some(size) = size {
                        filters.extend(fitting(*size, Fit::Pad, PixelFormat::I420));
                    }
                    args.extend(video_filter(&filters));
                    // `zerolatency` drops the look-ahead of four pictures; its rate control needs a
                    // buffer, here half a second's worth, or an IDR takes any size.
                    let (bitrate, buffer) = (bitrate_bps.to_string(), (bitrate_bps / 2).to_string());
                    args.extend(strings(&["-c:v", "libx264", "-preset", "ultrafast"]));
                    args.extend(strings(&["-tune", "zerolatency", "-profile:v", "baseline"]));
                    args.extend(strings(&["-pix_fmt", "yuv420p", "-bf", "0"]));
                    args.extend(strings(&["-g", &keyframe_every.to_string()]));
                    args.extend(strings(&["-b:v", &bitrate, "-maxrate", &bitrate]));
                    args.extend(strings(&["-bufsize", &buffer]));
                }
            }
            args.extend(strings(&[
                "-f",
                match container {
                    Container::Nut => "nut",
                    Container::AnnexB => "h264",
                },
            ]));
        }
    }
    args.extend(strings(&["-flush_packets", "1", "pipe:1"]));
    Ok(args)
}

/// Everything behind the program's name, for sound: 16-bit samples at 48 kHz, each packet with its time.
pub fn sound_line(input: &[String], channels: usize) -> Vec<String> {
    let mut args = strings(&["-hide_banner", "-nostats", "-loglevel", "warning"]);
    args.extend_from_slice(input);
    args.extend(strings(&["-vn", "-sn", "-dn", "-c:a", "pcm_s16le", "-ar", "48000", "-ac", &channels.to_string()]));
    args.extend(strings(&["-threads", "1", "-f", "nut", "-flush_packets", "1", "pipe:1"]));
    args
}

/// The command line that reads one picture and only talks about it.
pub(super) fn probe(input: &Input) -> Vec<String> {
    let mut args = strings(&["-hide_banner", "-nostdin", "-nostats"]);
    args.extend(input.args.iter().cloned());
    args.extend(strings(&["-frames:v", "1", "-an", "-f", "null", "-"]));
    args
}

/// FFmpeg's name of a pixel format.
fn pix_fmt(pixels: PixelFormat) -> Option<&'static str> {
    Some(match pixels {
        PixelFormat::I420 => "yuv420p",
        PixelFormat::Nv12 => "nv12",
        PixelFormat::Rgba => "rgb0",
        PixelFormat::Bgra => "bgr0",
        _ => return None,
    })
}

/// The filters that give every picture one size.
fn fitting(size: Size, fit: Fit, pixels: PixelFormat) -> Option<String> {
    let Size { width, height } = size;
    // Our own YUV is BT.709, limited range; FFmpeg's default for a picture from RGB is BT.601.
    let color = match pixels {
        PixelFormat::I420 | PixelFormat::Nv12 => ":out_color_matrix=bt709:out_range=tv",
        _ => "",
    };
    match fit {
        Fit::Exact if color.is_empty() => None,
        Fit::Exact => Some(format!("scale={}", &color[1..])),
        Fit::Stretch => Some(format!("scale={width}:{height}:flags=fast_bilinear{color}")),
        Fit::Pad => Some(format!(
            "scale={width}:{height}:force_original_aspect_ratio=decrease:flags=fast_bilinear{color},\
             pad={width}:{height}:-1:-1"
        )),
    }
}

fn video_filter(filters: &[String]) -> Vec<String> {
    if filters.is_empty() {
        return Vec::new();
    }
    strings(&["-vf", &filters.join(",")])
}

fn input(args: &[&str], filter: Option<&str>, capture_delay: Duration) -> Input {
    Input { args: strings(args), filter: filter.map(str::to_owned), capture_delay }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_words(line: &str, expected: Result<&[&str], ArgsError>) {
        assert_eq!(split_words(line), expected.map(strings), "{line}");
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        check_words("", Ok(&[]));
        check_words("  a  b\tc ", Ok(&["a", "b", "c"]));
        check_words("-i 'my file.mp4'", Ok(&["-i", "my file.mp4"]));
        check_words(r#"-vf "drawtext=text='a b'""#, Ok(&["-vf", "drawtext=text='a b'"]));
        check_words(r#"a"b c"d'e f'"#, Ok(&["ab cde f"]));
        check_words(r#"'' """#, Ok(&["", ""]));
        check_words(r"a\ b \'c \\", Ok(&["a b", "'c", r"\"]));
        check_words(r#""a\"b\\c\d""#, Ok(&[r#"a"b\c\d"#]));
        check_words(r"'a\b'", Ok(&[r"a\b"]));
        check_words("é 'ü ö'", Ok(&["é", "ü ö"]));
        check_words("a 'b", Err(ArgsError::OpenQuote { quote: '\'', at: 2 }));
        check_words(r#""a\"#, Err(ArgsError::OpenQuote { quote: '"', at: 0 }));
        check_words(r"a \", Err(ArgsError::TrailingBackslash));
    }

    #[track_caller]
    fn check_user(line: &str, expected: Result<(&str, bool), ArgsError>) {
        let got = user(line).map(|(input, encodes)| (input.args.join(" "), encodes));
        assert_eq!(got, expected.map(|(a, e)| (a.to_owned(), e)), "{line}");
    }

    #[test]
    fn user_arguments_decide_who_encodes() {
        check_user("rtsp://cam/1", Ok(("-i rtsp://cam/1", false)));
        check_user("-f v4l2 -i /dev/video2", Ok(("-f v4l2 -i /dev/video2", false)));
        check_user("-c:v h264_cuvid -i a.mp4", Ok(("-c:v h264_cuvid -i a.mp4", false)));
        for codec in ["-c:v copy", "-c copy", "-vcodec copy", "-codec:v:0 libx264"] {
            let line = format!("-re -i a.mp4 {codec}");
            check_user(&line, Ok((&line, true)));
        }
        check_user("", Err(ArgsError::NoInput));
        check_user("-f lavfi testsrc", Err(ArgsError::NoInput));
        check_user("-f lavfi -i", Err(ArgsError::NothingToRead));
        check_user("'a", Err(ArgsError::OpenQuote { quote: '\'', at: 0 }));
    }

    #[track_caller]
    fn check_split(line: &str, of_pictures: &str, of_sound: Option<&str>) {
        let (input, _) = user(line).expect("good arguments");
        assert_eq!(pictures(&input).args.join(" "), of_pictures, "{line}");
        assert_eq!(sound(&input).map(|input| input.args.join(" ")).as_deref(), of_sound, "{line}");
    }

    #[test]
    fn each_medium_has_its_own_input() {
        check_split("rtsp://cam/1", "-i rtsp://cam/1", Some("-i rtsp://cam/1"));
        check_split("-i a.mp4 -c:v copy -map 0:v", "-i a.mp4 -c:v copy -map 0:v", Some("-i a.mp4"));
        check_split(
            "-i a.mp4 -af volume=2 -map 0:a:1",
            "-i a.mp4 -af volume=2 -map 0:a:1",
            Some("-i a.mp4 -af volume=2 -map 0:a:1"),
        );
        check_split("-i a.mp4 -an", "-i a.mp4 -an", None);
        check_split("-f v4l2 -i /dev/video2", "-f v4l2 -i /dev/video2", None);
        check_split("-f mpegts -i pipe:0", "-f mpegts -i pipe:0", None);
        check_split(
            "-f v4l2 -i /dev/video2 -f alsa -i hw:1 -vf hflip",
            "-f v4l2 -i /dev/video2 -vf hflip",
            Some("-f alsa -i hw:1"),
        );
        check_split(
            "-f v4l2 -i /dev/video2 -f alsa -i hw:1 -map 0:v",
            "-f v4l2 -i /dev/video2 -f alsa -i hw:1 -map 0:v",
            Some("-f alsa -i hw:1"),
        );
        check_split(
            "-re -f lavfi -i testsrc2[out0];sine[out1]",
            "-re -f lavfi -i testsrc2[out0];sine[out1]",
            Some("-re -f lavfi -i testsrc2[out0];sine[out1]"),
        );
        assert_eq!(
            sound_line(&strings(&["-i", "a.mp4"]), 2).join(" "),
            "-hide_banner -nostats -loglevel warning -i a.mp4 -vn -sn -dn -c:a pcm_s16le -ar 48000 -ac 2 \
             -threads 1 -f nut -flush_packets 1 pipe:1"
        );
    }

    #[test]
    fn local_files_at_their_own_speed_are_films() {
        let file = std::env::temp_dir().join(format!("lightpipe it's {}.mp4", std::process::id()));
        std::fs::write(&file, "").expect("a new file");
        let path = std::fs::canonicalize(&file).expect("it is there").display().to_string();
        let film_in = |options: &str, after: &str| {
            let words = [strings(&options.split_whitespace().collect::<Vec<_>>()), vec!["-i".into(), path.clone()]];
            let after = strings(&after.split_whitespace().collect::<Vec<_>>());
            let args = [words.concat(), after].concat();
            as_film(&Input { args, filter: None, capture_delay: Duration::ZERO })
        };
        let found = |options: &str, after: &str| {
            Some((
                path.clone(),
                strings(&options.split_whitespace().collect::<Vec<_>>()),
                strings(&after.split_whitespace().collect::<Vec<_>>()),
            ))
        };
        assert_eq!(film_in("-re -stream_loop -1", ""), found("", ""));
        assert_eq!(film_in("-re -c:v h264_cuvid", "-c:v copy"), found("-c:v h264_cuvid", "-c:v copy"));
        for options in ["", "-stream_loop -1", "-re -stream_loop 3", "-re -ss 5", "-re -f mp4"] {
            assert_eq!(film_in(options, ""), None, "{options}");
        }
        std::fs::remove_file(&file).expect("the file just made");
        assert_eq!(film_in("-re", ""), None, "it is gone");

        let played = Film {
            path: "/a b/it's.mp4".into(),
            options: strings(&["-c:v", "h264"]),
            timeline: std::sync::Arc::new(super::super::Timeline::new(Duration::from_millis(5010))),
        };
        let line = film(&played, Duration::from_millis(12_000), &strings(&["-vf", "hflip"]));
        let (list, rest) = (line[11].clone(), [&line[..11], &line[12..]].concat());
        assert_eq!(
            rest.join(" "),
            "-c:v h264 -ss 1.980000 -f concat -safe 0 -protocol_whitelist data,file,crypto -i -vf hflip"
        );
        let turn = "file 'file:/a b/it'\\''s.mp4'\nduration 5.010000\n";
        assert!(list.starts_with(&format!("data:text/plain,ffconcat version 1.0\n{turn}{turn}")), "{list}");
        assert!(list.len() <= MAX_LIST_LEN + 100);
        assert!(!film(&played, Duration::ZERO, &[]).contains(&"-ss".to_owned()));
    }

    #[test]
    fn pictures_of_a_film_keep_their_times() {
        let output = Output::Raw { size: Size::new(640, 360), fps: 30, pixels: PixelFormat::I420, fit: Fit::Stretch };
        let input = Input { args: strings(&["-i", "list"]), filter: None, capture_delay: Duration::ZERO };
        let line = command_line(&input, true, &output).expect("a good output");
        assert_eq!(
            line.join(" "),
            "-hide_banner -nostats -loglevel warning -i list -an -sn -dn \
             -vf select='isnan(prev_selected_t)+gte(t-prev_selected_t,0.030000)',\
             scale=640:360:flags=fast_bilinear:out_color_matrix=bt709:out_range=tv \
             -fps_mode passthrough -enc_time_base 1:90000 -threads 1 -c:v rawvideo -pix_fmt yuv420p -f nut \
             -flush_packets 1 pipe:1"
        );
    }

    #[track_caller]
    fn check_desktop(platform: Platform, wish: &Desktop, expected: &str) {
        assert_eq!(desktop(platform, wish, 30).args.join(" "), expected);
    }

    #[test]
    fn desktop_inputs() {
        let screen = |display: &str| Desktop { display: Some(display.to_owned()), ..Desktop::default() };
        check_desktop(Platform::Linux, &screen(":7.1"), "-f x11grab -draw_mouse 1 -framerate 30 -i :7.1");
        check_desktop(
            Platform::Linux,
            &Desktop { part: Some(Size::new(640, 480)), ..screen(":7") },
            "-f x11grab -draw_mouse 1 -framerate 30 -video_size 640x480 -i :7",
        );
        let kms = Desktop { grabber: Grabber::Kms, ..Desktop::default() };
        check_desktop(Platform::Linux, &kms, "-device /dev/dri/card0 -f kmsgrab -framerate 30 -i -");
        assert_eq!(
            desktop(Platform::Linux, &kms, 30).filter.as_deref(),
            Some("hwmap=derive_device=vaapi,hwdownload,format=bgr0")
        );
        check_desktop(Platform::Windows, &Desktop::default(), "-f gdigrab -draw_mouse 1 -framerate 30 -i desktop");
        check_desktop(
            Platform::Windows,
            &Desktop { grabber: Grabber::Duplication, ..Desktop::default() },
            "-f lavfi -i ddagrab=output_idx=0:framerate=30:draw_mouse=1,hwdownload,format=bgra",
        );
        check_desktop(
            Platform::MacOs,
            &screen("1"),
            "-f avfoundation -capture_cursor 1 -pixel_format bgr0 -framerate 30 -i Capture screen 1:none",
        );
    }

    #[test]
    fn camera_inputs() {
        let size = Some(Size::new(1280, 720));
        for (platform, device, size, fps, expected) in [
            (Platform::Linux, None, None, None, "-f v4l2 -i /dev/video0"),
            (
                Platform::Linux,
                Some("/dev/video2"),
                size,
                Some(30),
                "-f v4l2 -video_size 1280x720 -framerate 30 -i /dev/video2",
            ),
            (Platform::Windows, Some("HD Webcam"), None, Some(30), "-f dshow -framerate 30 -i video=HD Webcam"),
            (Platform::MacOs, None, size, None, "-f avfoundation -video_size 1280x720 -i 0:none"),
        ] {
            let got = camera(platform, device, size, fps).args.join(" ");
            assert_eq!(got, expected);
        }
    }

    #[track_caller]
    fn check_line(output: &Output, expected: &str) {
        let line = command_line(&lavfi("testsrc2"), false, output).expect("a good output");
        let common = "-hide_banner -nostats -loglevel warning -flags low_delay \
                      -re -f lavfi -i testsrc2 -an -sn -dn";
        assert_eq!(line.join(" "), format!("{common} {expected} -flush_packets 1 pipe:1"));
    }

    #[test]
    fn raw_pipes_have_one_thread_and_a_known_size() {
        let raw = |pixels, fit| Output::Raw { size: Size::new(640, 360), fps: 30, pixels, fit };
        check_line(&raw(PixelFormat::Bgra, Fit::Exact), "-fps_mode vfr -r 30 -threads 1 -f rawvideo -pix_fmt bgr0");
        check_line(
            &raw(PixelFormat::Bgra, Fit::Pad),
            "-vf scale=640:360:force_original_aspect_ratio=decrease:flags=fast_bilinear,pad=640:360:-1:-1 \
             -fps_mode vfr -r 30 -threads 1 -f rawvideo -pix_fmt bgr0",
        );
        check_line(
            &raw(PixelFormat::Nv12, Fit::Stretch),
            "-vf scale=640:360:flags=fast_bilinear:out_color_matrix=bt709:out_range=tv \
             -fps_mode vfr -r 30 -threads 1 -f rawvideo -pix_fmt nv12",
        );
        check_line(
            &raw(PixelFormat::I420, Fit::Exact),
            "-vf scale=out_color_matrix=bt709:out_range=tv \
             -fps_mode vfr -r 30 -threads 1 -f rawvideo -pix_fmt yuv420p",
        );
        for fps in [0, 241] {
            let output = Output::Raw { size: Size::new(640, 360), fps, pixels: PixelFormat::Bgra, fit: Fit::Pad };
            let refused = command_line(&lavfi("testsrc2"), false, &output);
            assert!(matches!(refused, Err(SourceError::BadFps(n)) if n == fps));
        }
    }

    #[test]
    fn encoded_pipes_write_nut_without_delay() {
        check_line(&Output::Encoded { container: Container::Nut, video: Video::Copy }, "-c:v copy -f nut");
        check_line(&Output::Encoded { container: Container::AnnexB, video: Video::AsGiven }, "-f h264");
        check_line(
            &Output::Encoded {
                container: Container::Nut,
                video: Video::X264 { size: None, bitrate_bps: 2_500_000, keyframe_every: 60 },
            },
            "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -pix_fmt yuv420p -bf 0 \
             -g 60 -b:v 2500000 -maxrate 2500000 -bufsize 1250000 -f nut",
        );
    }
}
