//! Flags and help texts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use lightpipe::Endpoint;
use lightpipe_netlab::profile::Profile;

const EXAMPLES: &str = "Examples:
  lightpipe                                     cube, pattern, and the desktop where there is a display
  lightpipe --source desktop                    this machine's desktop, at /watch/desktop
  lightpipe --source cam=camera:/dev/video0     a camera under the name cam
  my-renderer | lightpipe --source -            raw RGBA pictures from a pipe
  lightpipe --source 'ffmpeg:-re -i film.mp4'   anything that FFmpeg reads
  lightpipe publish --source cube --whip https://host/whip/cube
                                                the cube to somebody else's server
  lightpipe bench latency                       how old is the picture in a real browser?
  lightpipe check-whep https://host/whep/cam    does that server keep to the protocol?

Exit codes: 0 done; 1 a check found something wrong; 2 wrong flags, file or environment; 3 it could not be done.";

const PUBLISH_EXAMPLES: &str = "Examples:
  lightpipe publish --source desktop --whip https://media.example/whip/me --token SECRET
  CLOUDFLARE_STREAM_TOKEN=… lightpipe publish --source camera --whip https://customer-….example/…/webRTC/publish
  lightpipe publish --source pattern --whip http://127.0.0.1:8889/me/whip --json

Publishes until SIGINT or SIGTERM, and again whenever the server comes back; the session is ended with a DELETE.

Exit codes: 0 ended by a signal; 2 wrong flags, file or environment; 3 the server refuses, or the source cannot start.";

const PLAY_EXAMPLES: &str = "Examples:
  lightpipe play http://127.0.0.1:8080/whep/cube --verbose
  lightpipe play https://media.example/whep/cam --token SECRET -o cam.mp4 --seconds 60
  lightpipe play https://media.example/whep/cam --raw | ffplay -f rawvideo -video_size 1280x720 -
  lightpipe play https://media.example/whep/cam --pcm --seconds 10 > sound.pcm
  lightpipe play https://media.example/whep/cam --live --pcm | aplay -f S16_LE -r 48000 -c 2
  lightpipe play https://media.example/whep/cam --live --json

Plays until SIGINT or SIGTERM, until --seconds are over, or until nobody reads standard output any more. A server that comes back
is connected to again.

Exit codes: 0 ended as above; 2 wrong flags, file or environment; 3 the server refuses, or the output fails.";

const JOIN_EXAMPLES: &str = "Examples:
  lightpipe join --room lab --source camera --name ada
  lightpipe join --room lab --source cube --url ws://media.example:8080/ws --json
  lightpipe join --room lab --listen --sound - | aplay -f S16_LE -r 48000 -c 2
  lightpipe join --room lab --mix --name mixer  each hears all the others in one stream
  lightpipe join --room lab --port 8090         watch the others at /watch/lab.NAME
  lightpipe join --room lab --send film.mp4 --to ada
  lightpipe join --room lab --save ./received

Stays until SIGINT or SIGTERM, or until --seconds are over. A server that comes back is joined again; connections to the others do not
end with it.

Exit codes: 0 ended as above; 2 wrong flags, file or environment; 3 the server refuses (the room is full, the name is taken) or cannot
be reached, or the source cannot start.";

const CHECK_WHIP_EXAMPLES: &str = "Examples:
  lightpipe check-whip https://media.example/whip/cam --token SECRET
  lightpipe check-whip http://127.0.0.1:8889/cam/whip --json

Publishes nothing, but makes and ends a few sessions: choose a stream that nobody publishes to.
docs/conformance.md explains the rows.

Exit codes: 0 no rule is broken; 1 one is; 2 wrong flags; 3 the server cannot be reached.";

const CHECK_WHEP_EXAMPLES: &str = "Examples:
  lightpipe check-whep http://127.0.0.1:8080/whep/cube
  lightpipe check-whep https://media.example/whep/cam --token SECRET --json

Choose a stream that is live: the last row waits for a picture.
docs/conformance.md explains the rows.

Exit codes: 0 no rule is broken; 1 one is; 2 wrong flags; 3 the server cannot be reached.";

const CHECK_SIGNALING_EXAMPLES: &str = "Examples:
  lightpipe check-signaling ws://127.0.0.1:8080/ws
  lightpipe check-signaling wss://media.example/ws --token SECRET --json

Enters rooms of its own with up to ten peers, and floods one connection; takes a quarter of a minute.
docs/conformance.md explains the rows.

Exit codes: 0 no rule is broken; 1 one is; 2 wrong flags; 3 the server cannot be reached.";

const LAB_EXAMPLES: &str = "Examples:
  lightpipe lab --list
  lightpipe lab --profile lte-weak --seconds 600
  lightpipe lab --profile train,3g,dsl --plot lab.html
  lightpipe lab --rtt 40 --rate 3000 --queue 300 --step 20:800 --step 50:3000 --plot step.svg
  lightpipe lab --profile cable --outage 20:5 --rebind 40 --json -

The session is a real one, and the encoder's place is taken by a model; no time passes. docs/lab.md explains the figures.

Exit codes: 0 done; 1 the session did not survive; 2 wrong flags; 3 a file cannot be written.";

/// Live video from any program into any browser, in well under 100 ms.
#[derive(Debug, Parser)]
#[command(name = "lightpipe", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: ServeFlags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve streams to browsers; this is what happens without a command.
    Serve(ServeFlags),
    /// Publish a stream to somebody else's WHIP server.
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish(PublishFlags),
    /// Play a WHEP server's stream: into a file, or decoded to standard output.
    #[command(after_help = PLAY_EXAMPLES)]
    Play(PlayFlags),
    /// Join a room: a connection to each of its members, both ways.
    #[command(after_help = JOIN_EXAMPLES)]
    Join(JoinFlags),
    /// List cameras and screens.
    Devices(DevicesFlags),
    /// Check ports, encoders, FFmpeg and clock, and say how to fix what is wrong.
    Doctor(DoctorFlags),
    /// Check any WHIP server against RFC 9725, row by row.
    #[command(after_help = CHECK_WHIP_EXAMPLES)]
    CheckWhip(CheckFlags),
    /// Check any WHEP server against draft-ietf-wish-whep-03, row by row, up to a received picture.
    #[command(after_help = CHECK_WHEP_EXAMPLES)]
    CheckWhep(CheckFlags),
    /// Check any WebSocket server against JSON-RPC 2.0 and the rules of rooms, row by row.
    #[command(after_help = CHECK_SIGNALING_EXAMPLES)]
    CheckSignaling(CheckSignalingFlags),
    /// Measure latency or fan-out on this machine.
    #[command(subcommand)]
    Bench(Bench),
    /// Run a session over a bad network in virtual time: freezes, recovery, bitrate against capacity.
    #[command(after_help = LAB_EXAMPLES)]
    Lab(LabFlags),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  lightpipe completions bash > /etc/bash_completion.d/lightpipe")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Flags of `serve`. What is absent leaves the file's and the environment's value alone.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServeFlags {
    /// A stream: [NAME=]SPEC, where SPEC is cube, pattern, desktop[:DISPLAY], camera[:DEVICE], ffmpeg:ARGS, exec:COMMAND, file:PATH, whep:URL or -
    #[arg(long = "source", value_name = "[NAME=]SPEC")]
    pub(crate) sources: Vec<String>,
    /// Configuration file; lightpipe.toml in the current folder is read without asking
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<IpAddr>,
    /// Port for HTTP (TCP) and media (UDP); 0 takes a free one
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Columns of the picture
    #[arg(long)]
    pub(crate) width: Option<u32>,
    /// Rows of the picture
    #[arg(long)]
    pub(crate) height: Option<u32>,
    /// Pictures per second
    #[arg(long)]
    pub(crate) fps: Option<f64>,
    /// Target bitrate, kbit/s
    #[arg(long, value_name = "KBPS")]
    pub(crate) bitrate: Option<u32>,
    /// The sizes that viewers get: off, on, or up to four layers as f:1280x720:2500,h:640x360:500:15 (rid, size, kbit/s, pictures per second)
    #[arg(long, value_name = "off|on|LAYERS")]
    pub(crate) simulcast: Option<String>,
    /// Where there is one size only: fewer and then smaller pictures for a network that carries too little (on), or always the whole (off)
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub(crate) adapt: Option<bool>,
    /// How much of this machine's CPU the encoders may take, as 60%; what does not fit is encoded smaller
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) cpu: Option<u32>,
    /// Who draws the cube
    #[arg(long, value_name = "auto|gpu|cpu")]
    pub(crate) renderer: Option<String>,
    /// Kind of pictures
    #[arg(long, value_name = "camera|screen")]
    pub(crate) content: Option<String>,
    /// Paint the timecode strip into every picture
    #[arg(long)]
    pub(crate) timecode: bool,
    /// Tell viewers this address instead of those of the interfaces (repeat for several)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) advertise: Vec<IpAddr>,
    /// The FFmpeg program
    #[arg(long, value_name = "PATH")]
    pub(crate) ffmpeg: Option<String>,
    /// Write logs as JSON lines
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Flags of `publish`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PublishFlags {
    /// The WHIP endpoint; a token may stand before the host, https://TOKEN@host/path
    #[arg(long, value_name = "URL")]
    pub(crate) whip: Endpoint,
    /// Bearer token; CLOUDFLARE_STREAM_TOKEN is read as well
    #[arg(long, env = "LIGHTPIPE_WHIP_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Wait so long for each track to give something before the offer goes out
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    pub(crate) wait_for_tracks: f64,
    /// Send one size, that which the network carries, instead of all side by side
    #[arg(long)]
    pub(crate) no_simulcast: bool,
    /// Print figures on standard output each second, as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// As of `serve`. With --port the pages are served there, too; without it nothing listens for HTTP
    #[command(flatten)]
    pub(crate) serve: ServeFlags,
}

fn percent(text: &str) -> Result<u32, String> {
    let percent = text.trim().trim_end_matches('%').trim_end().parse().map_err(|error| format!("{error}"))?;
    if (1..=100).contains(&percent) { Ok(percent) } else { Err("must be 1% to 100%".into()) }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be on or off".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0 to 3600".into()) }
}

/// Flags of `play`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlayFlags {
    /// The WHEP endpoint; a token may stand before the host, https://TOKEN@host/path
    #[arg(value_name = "URL")]
    pub(crate) url: Endpoint,
    /// Bearer token
    #[arg(long, env = "LIGHTPIPE_WHIP_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Write the stream into this file, as it comes: MP4 (H.264 and Opus) or WebM (VP8 and Opus); an existing file is replaced
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Decoded pictures on standard output: I420, one after the other; their size is told on standard error
    #[arg(long)]
    pub(crate) raw: bool,
    /// Decoded sound on standard output: s16le, 48 kHz, stereo; what was lost is concealed
    #[arg(long, conflicts_with = "raw")]
    pub(crate) pcm: bool,
    /// Play in real time: 10 ms of sound each 10 ms through an adaptive jitter buffer, and pictures when their sound is heard
    #[arg(long, conflicts_with = "output")]
    pub(crate) live: bool,
    /// With --live: how it goes, each second and at the end, as a line of JSON on standard error
    #[arg(long, requires = "live")]
    pub(crate) json: bool,
    /// End so many seconds after the first picture or sound
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Tell each second on standard error what comes
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Address for media; every IPv4 interface if not given
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<IpAddr>,
    /// Write logs as JSON lines
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Flags of `join`.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinFlags {
    /// The room: letters, digits, _ and -
    #[arg(long)]
    pub(crate) room: String,
    /// Signalling of the room's server
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/ws", value_parser = signalling)]
    pub(crate) url: http::Uri,
    /// Our name in the room, which nobody else may have: letters, digits, _ and -; one by chance if not given
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// End so many seconds after the room was joined
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Say each line of standard input to everybody, on the data channel for chat
    #[arg(long)]
    pub(crate) chat: bool,
    /// Send this file to each member, once, or to those of --to; may be repeated. A cut is gone over: only the rest is sent again
    #[arg(long, value_name = "FILE")]
    pub(crate) send: Vec<PathBuf>,
    /// To whom --send sends; may be repeated
    #[arg(long, value_name = "NAME", requires = "send")]
    pub(crate) to: Vec<String>,
    /// Take the files that others send, into this folder, which is made where it is missing; without it they are refused
    #[arg(long, value_name = "FOLDER")]
    pub(crate) save: Option<PathBuf>,
    /// Play the others in real time, each through an adaptive jitter buffer and all in step. With --json one reads how that goes. While somebody mixes the room
    /// only that is heard
    #[arg(long, group = "ears")]
    pub(crate) listen: bool,
    /// With --listen: hear nobody else than this one; may be given more than once
    #[arg(long, value_name = "NAME", requires = "listen")]
    pub(crate) from: Vec<String>,
    /// Mix the room: each member is sent all the others and not himself, in one channel, and is told who speaks
    #[arg(long, group = "ears", conflicts_with = "sources")]
    pub(crate) mix: bool,
    /// With --listen or --mix: write what is heard, all together, into this WAV file; - is standard output, as s16le, and events are told on standard error
    #[arg(long, value_name = "FILE", requires = "ears")]
    pub(crate) sound: Option<PathBuf>,
    /// Print events, and figures each second, on standard output as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// As of `serve`. With --port the pages are served there, too, where the others can be watched as ROOM.NAME
    #[command(flatten)]
    pub(crate) serve: ServeFlags,
}

/// A ws URL, complete.
fn signalling(text: &str) -> Result<http::Uri, String> {
    let url: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme_str() {
        Some("ws") if url.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        Some("wss") => Err("signalling over TLS is not there yet; ws:// it is".into()),
        _ => Err("signalling begins with ws://, as ws://127.0.0.1:8080/ws".into()),
    }
}

/// Flags of `devices`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DevicesFlags {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The FFmpeg program
    #[arg(long, default_value = "ffmpeg")]
    pub(crate) ffmpeg: String,
}

/// Flags of `doctor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorFlags {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Port to check
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// The FFmpeg program
    #[arg(long, default_value = "ffmpeg")]
    pub(crate) ffmpeg: String,
}

/// Flags of `check-whip` and `check-whep`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckFlags {
    /// The endpoint, where offers are posted
    #[arg(value_parser = endpoint)]
    pub(crate) url: http::Uri,
    /// Bearer token; with one, refusals of a wrong and of no token are checked, too
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `check-signaling`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckSignalingFlags {
    /// The WebSocket
    #[arg(value_parser = web_socket)]
    pub(crate) url: http::Uri,
    /// Bearer token
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A ws or wss URL, complete; of http and https the one that goes with it.
fn web_socket(text: &str) -> Result<http::Uri, String> {
    let text = match text.split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(("https", rest)) => format!("wss://{rest}"),
        Some(("ws" | "wss", _)) => text.to_owned(),
        _ => return Err("a WebSocket's URL begins with ws:// or wss://".into()),
    };
    let url: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    if url.host().is_some_and(|host| !host.is_empty()) { Ok(url) } else { Err("the URL has no host".into()) }
}

/// An http or https URL, complete.
fn endpoint(text: &str) -> Result<http::Uri, String> {
    let url: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme_str() {
        Some("http" | "https") if url.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        _ => Err("an endpoint begins with http:// or https://".into()),
    }
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Age of the picture on a real browser's canvas, with every stage on the way
    Latency(LatencyFlags),
    /// Cost per viewer and packet with many native viewers, beside the floor of encryption and system call
    Fanout(FanoutFlags),
    /// CPU per picture of the best layer alone, of all layers, and with many outlets; no network
    Ladder(LadderFlags),
    /// CPU of a conference: everybody decoded, mixed for everybody else, and encoded; no network
    Mix(MixFlags),
    /// Native viewers for a fan-out measurement (started by `bench fanout` in a process of its own)
    #[command(hide = true)]
    Viewers(ViewersFlags),
    /// The test picture as raw I420 on standard output (the source of `bench latency --through`)
    #[command(hide = true)]
    Frames(FramesFlags),
}

/// Flags of `bench frames`.
#[derive(Debug, Clone, Args)]
pub(crate) struct FramesFlags {
    /// Columns of the picture
    #[arg(long)]
    pub(crate) width: u32,
    /// Rows of the picture
    #[arg(long)]
    pub(crate) height: u32,
    /// Pictures per second
    #[arg(long)]
    pub(crate) fps: f64,
}

/// Flags of `bench latency`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LatencyFlags {
    /// Frame rates to measure
    #[arg(long, value_delimiter = ',', default_value = "30,60")]
    pub(crate) fps: Vec<f64>,
    /// Seconds measured per frame rate
    #[arg(long, default_value_t = 20)]
    pub(crate) seconds: u64,
    /// Columns of the picture
    #[arg(long, default_value_t = 1280)]
    pub(crate) width: u32,
    /// Rows of the picture
    #[arg(long, default_value_t = 720)]
    pub(crate) height: u32,
    /// Browser
    #[arg(long, default_value = "chromium", value_parser = ["chromium", "firefox"])]
    pub(crate) browser: String,
    /// Let the picture come from a child process with FFmpeg: raw, or encoded by libx264 as NUT or plain Annex-B
    #[arg(long, value_enum)]
    pub(crate) through: Option<Through>,
    /// Measure how long joining takes as well, this many times
    #[arg(long, default_value_t = 0)]
    pub(crate) joins: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Fail (exit code 1) when the design's limits are missed
    #[arg(long)]
    pub(crate) gate: bool,
}

/// How pictures of a child process come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Through {
    /// RGBA
    Raw,
    /// H.264 with its timestamps, in NUT
    Nut,
    /// H.264 as plain Annex-B
    Annexb,
}

/// Flags of `bench fanout`.
#[derive(Debug, Clone, Args)]
pub(crate) struct FanoutFlags {
    /// Numbers of viewers
    #[arg(long, value_delimiter = ',', default_value = "1,10,50,100")]
    pub(crate) viewers: Vec<usize>,
    /// Seconds measured per number
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Target bitrate, kbit/s
    #[arg(long, default_value_t = 2500)]
    pub(crate) bitrate: u32,
    /// With bandwidth estimation
    #[arg(long)]
    pub(crate) estimate: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `bench ladder`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LadderFlags {
    /// Pictures measured
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pictures: u32,
    /// Columns of the picture
    #[arg(long, default_value_t = 1280)]
    pub(crate) width: u32,
    /// Rows of the picture
    #[arg(long, default_value_t = 720)]
    pub(crate) height: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `bench mix`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MixFlags {
    /// Who talks
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) talkers: u32,
    /// Who only listens
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) listeners: u32,
    /// Seconds of sound
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) seconds: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `lab`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabFlags {
    /// Networks, by name; with none, a perfect one for the flags below to spoil
    #[arg(long = "profile", value_name = "NAME", value_delimiter = ',', default_value = "perfect", value_parser = profile)]
    pub(crate) profiles: Vec<Profile>,
    /// List the profiles, and where their figures come from
    #[arg(long)]
    pub(crate) list: bool,
    /// Virtual seconds
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Decides losses, jitter and sizes of pictures
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// One encoding of 2.5 Mbit/s in the place of a ladder of three
    #[arg(long)]
    pub(crate) single: bool,
    /// A long TCP transfer beside the session
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Packets lost, percent
    #[arg(long, value_name = "PERCENT", value_parser = share_of_packets)]
    pub(crate) loss: Option<f64>,
    /// Mean length of bursts in which they are lost, packets
    #[arg(long, value_name = "PACKETS", requires = "loss")]
    pub(crate) bursts: Option<f64>,
    /// Round trip, ms
    #[arg(long, value_name = "MS")]
    pub(crate) rtt: Option<u64>,
    /// Jitter of each direction, ms
    #[arg(long, value_name = "MS")]
    pub(crate) jitter: Option<u64>,
    /// Rate towards the viewer, kbit/s
    #[arg(long, value_name = "KBPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// What may wait before the narrowest place, ms
    #[arg(long, value_name = "MS")]
    pub(crate) queue: Option<u64>,
    /// Packets overtaken by later ones, percent
    #[arg(long, value_name = "PERCENT", value_parser = share_of_packets)]
    pub(crate) reorder: Option<f64>,
    /// Packets that come twice, percent
    #[arg(long, value_name = "PERCENT", value_parser = share_of_packets)]
    pub(crate) duplicate: Option<f64>,
    /// From a second on another rate towards the viewer, kbit/s
    #[arg(long = "step", value_name = "SECOND:KBPS")]
    pub(crate) steps: Vec<crate::lab::At>,
    /// At a second nothing comes through, for so many
    #[arg(long = "outage", value_name = "SECOND:SECONDS")]
    pub(crate) outages: Vec<crate::lab::At>,
    /// At a second the NAT in front of the viewer forgets its port
    #[arg(long = "rebind", value_name = "SECOND")]
    pub(crate) rebinds: Vec<f64>,
    /// At a second the viewer has another address
    #[arg(long = "move", value_name = "SECOND")]
    pub(crate) moves: Vec<f64>,
    /// Write everything as JSON; - is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw it: a page, or one picture if the name ends in .svg
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| "`lightpipe lab --list` names them".to_owned())
}

fn share_of_packets(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(|| "0 to 100".to_owned())
}

/// Flags of `bench viewers`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ViewersFlags {
    /// Base URL of the server
    #[arg(long)]
    pub(crate) url: String,
    /// Stream to watch
    #[arg(long)]
    pub(crate) stream: String,
    /// Number of viewers
    #[arg(long)]
    pub(crate) count: usize,
    /// Seconds to measure once all are connected
    #[arg(long)]
    pub(crate) seconds: u64,
}

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    clap_complete::generate(shell, &mut Cli::command(), "lightpipe", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_are_complete_urls() {
        for (text, good) in [
            ("http://127.0.0.1:8080/whep/cube", true),
            ("https://[::1]/whip?key=1", true),
            ("HTTPS://media.example/x", true),
            ("127.0.0.1:8080", false),
            ("/whep/cube", false),
            ("ftp://media.example/x", false),
            ("", false),
        ] {
            assert_eq!(endpoint(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn a_share_of_the_cpu_is_a_percentage() {
        for (text, expected) in
            [("60%", Some(60)), ("60", Some(60)), ("100 %", Some(100)), ("0", None), ("101%", None), ("all", None)]
        {
            assert_eq!(percent(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn flags_work_with_and_without_the_word_serve() {
        let plain = Cli::try_parse_from(["lightpipe", "--source", "cube", "--port", "0"]).expect("parses");
        assert!(plain.command.is_none());
        assert_eq!((plain.serve.sources, plain.serve.port), (vec!["cube".to_owned()], Some(0)));
        let word =
            Cli::try_parse_from(["lightpipe", "serve", "--source", "a=ffmpeg:-i x=y", "--fps", "60"]).expect("parses");
        let Some(Command::Serve(flags)) = word.command else { panic!("serve") };
        assert_eq!(flags.fps, Some(60.0));
    }
}
