//! Files: written from what our encoders and a live stream give, read by FFmpeg, played by Chromium.

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lightpipe::Size;
use lightpipe_browser::{Browser, Kind, Options, Page};
use lightpipe_codec::openh264::OpenH264;
use lightpipe_codec::opus::OpusEncoder;
use lightpipe_codec::{AudioEncoder, AudioEncoderConfig, Content, EncoderConfig, VideoEncoder};
use lightpipe_media::access_unit::Stages;
use lightpipe_media::audio::{FRAME_SAMPLES, SAMPLE_RATE_HZ, opus_duration};
use lightpipe_media::container::{Container, FragmentLimits, Mp4Writer, Progress, Tracks, WebmWriter, Write};
use lightpipe_media::convert::Converter;
use lightpipe_media::{
    AccessUnit, AudioPacket, FramePool, MediaTime, Outlet, PixelFormat, Stream, VideoCodec, VideoFrame, av1, h264, vp8,
    vp9,
};
use lightpipe_net::{FileRecorder, RecordError, RecordOptions};
use serde_json::Value;
use tempfile::TempDir;

const SIZE: Size = Size::new(320, 180);
const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: Tracks = Tracks { video: true, audio: true };

/// Media in the order in which a stream gives it.
#[derive(Clone)]
enum Media {
    Picture(Arc<AccessUnit>),
    Packet(Arc<AudioPacket>),
}

impl Media {
    fn captured(&self) -> i64 {
        match self {
            Self::Picture(unit) => unit.captured.as_micros(),
            Self::Packet(packet) => packet.captured.as_micros(),
        }
    }
}

fn at(micros: i64) -> MediaTime {
    MediaTime::from_micros(micros)
}

/// A picture that is not like the one before.
fn frame(n: u32, captured: i64, size: Size) -> VideoFrame {
    let mut rgba = FramePool::new().take(size.width as usize * size.height as usize * 4);
    for (at, pixel) in rgba.chunks_exact_mut(4).enumerate() {
        let (x, y) = (at as u32 % size.width, at as u32 / size.width);
        pixel.copy_from_slice(&[(x + n * 3) as u8, (y * 2 + n) as u8, (x / 16 * 16 + y / 16 * 16) as u8, 255]);
    }
    VideoFrame::packed(at(captured), size, PixelFormat::Rgba, rgba).expect("the length is right")
}

/// Pictures by our encoder at these times, a keyframe first and then every 60.
fn pictures(times: &[i64], size: Size) -> Vec<Media> {
    let bitrate_bps = 600_000;
    let config = EncoderConfig { size, fps: 27.0, bitrate_bps, keyframe_interval: 60, content: Content::Camera };
    let mut encoder = OpenH264::new(config).expect("an encoder");
    let converter = Converter::default();
    let mut units = Vec::new();
    for (n, captured) in times.iter().enumerate() {
        let raw = converter.convert(frame(n as u32, *captured, size), size).expect("a good picture");
        encoder.submit(&raw).expect("a good picture");
        while let Some(encoded) = encoder.poll() {
            let (captured, keyframe) = (encoded.captured, encoded.keyframe);
            let stages = Stages::all_at(captured);
            let unit = AccessUnit::new(VideoCodec::H264, encoded.data, captured, keyframe, size, stages);
            units.push(Media::Picture(Arc::new(unit)));
        }
    }
    units
}

/// Ten seconds and more of a tone in packets of 20 ms by our encoder; three packets are lost.
fn packets(from: i64, until: i64) -> Vec<Media> {
    let mut encoder = OpusEncoder::new(AudioEncoderConfig::default()).expect("an encoder");
    let mut packets = Vec::new();
    for n in 0.. {
        let captured = from + n * 20_000;
        if captured >= until {
            break;
        }
        let first = n as usize * FRAME_SAMPLES;
        let tone = |at: usize| (at as f32 * 440.0 * std::f32::consts::TAU / SAMPLE_RATE_HZ as f32).sin() * 0.2;
        let samples: Vec<f32> = (first..first + FRAME_SAMPLES).flat_map(|at| [tone(at); 2]).collect();
        let data = encoder.encode(&samples).expect("a good block");
        if (250..253).contains(&n) {
            continue;
        }
        let duration = opus_duration(&data);
        let (captured, data) = (at(captured), data.into());
        let packet = AudioPacket { data, captured, duration, encoded: captured, starts_talkspurt: false, origin: None };
        packets.push(Media::Packet(Arc::new(packet)));
    }
    packets
}

/// Capture times 20 to 55 ms apart, as a busy screen has them, starting at 7 s.
fn irregular(until: i64) -> Vec<i64> {
    let mut seed = 7u64;
    let mut times = vec![7_000_000];
    while *times.last().expect("one") < until {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        times.push(times.last().expect("one") + 20_000 + (seed >> 33) as i64 % 35_000);
    }
    times
}

fn in_order(mut media: Vec<Media>) -> Vec<Media> {
    media.sort_by_key(Media::captured);
    media
}

/// What a writer makes of media: the finished file, and the one that a kill before the end leaves behind.
fn write(mut writer: impl Container, media: &[Media]) -> (Vec<u8>, Vec<u8>, Progress) {
    let mut file = Vec::new();
    let apply = |writer: &mut dyn Container, file: &mut Vec<u8>| {
        while let Some(write) = writer.poll() {
            match write {
                Write::Append(bytes) => file.extend(bytes),
                Write::Patch { offset, bytes } => {
                    file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    };
    for item in media {
        match item {
            Media::Picture(unit) => writer.video(unit),
            Media::Packet(packet) => writer.audio(packet),
        }
        apply(&mut writer, &mut file);
    }
    let killed = file.clone();
    writer.finish();
    apply(&mut writer, &mut file);
    (file, killed, writer.progress())
}

/// What ffprobe finds in a file.
#[track_caller]
fn ffprobe(path: &Path, more: &[&str]) -> Value {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-of", "json", "-show_format", "-show_streams", "-show_packets"])
        .args(more)
        .arg(path)
        .output()
        .expect("ffprobe is installed");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Decodes all of a file. What FFmpeg has to complain about.
fn decode_errors(path: &Path) -> String {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-v", "warning", "-i"])
        .arg(path)
        // The tick of `null` is a picture of constant rate, which ours have not.
        .args(["-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-f", "null", "-"])
        .output()
        .expect("ffmpeg is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// Presentation times of a kind of packet, seconds.
fn times(probe: &Value, kind: &str) -> Vec<f64> {
    let all = probe["packets"].as_array().expect("packets").iter();
    let mut times: Vec<f64> = all.filter(|p| p["codec_type"] == kind).map(|p| number(&p["pts_time"])).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Each sample is there at its capture time, seconds from the first picture.
#[track_caller]
fn assert_times(probe: &Value, kind: &str, expected: &[f64]) {
    let got = times(probe, kind);
    assert_eq!(got.len(), expected.len(), "{kind}");
    let off = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max);
    assert!(off < 0.001, "{kind}: {off} s off");
}

/// Capture times of pictures or packets, seconds from the origin.
fn captured(media: &[Media], pictures: bool, origin: i64) -> Vec<f64> {
    let kind = media.iter().filter(|item| matches!(item, Media::Picture(_)) == pictures);
    let after = kind.map(Media::captured).filter(|captured| *captured >= origin);
    after.map(|captured| (captured - origin) as f64 / 1e6).collect()
}

/// The file and its streams end where the last picture has stood as long as the one before, and the last packet was heard.
#[track_caller]
fn assert_durations(probe: &Value, progress: &Progress) {
    let (shown, heard) = (times(probe, "video"), times(probe, "audio"));
    let video = shown.windows(2).last().map_or(0.0, |pair| pair[1] * 2.0 - pair[0]);
    let audio = heard.last().map_or(0.0, |last| last + 0.02);
    let check = |what: &str, got: f64, expected: f64| {
        assert!((got - expected).abs() < 0.0015, "{what}: {got} s in place of {expected}");
    };
    check("file", number(&probe["format"]["duration"]), video.max(audio));
    check("counters", progress.duration.as_secs_f64(), video.max(audio));
    // Streams of WebM have no duration of their own.
    for stream in probe["streams"].as_array().expect("streams").iter().filter(|s| s["duration"].is_string()) {
        let end = if stream["codec_type"] == "video" { video } else { audio };
        check("stream", number(&stream["duration"]), end);
    }
}

/// Where the fragments of an MP4 file end, and how many pictures are in the file up to there.
fn fragment_ends(file: &[u8]) -> Vec<(usize, usize)> {
    let (mut at, mut pictures, mut ends) = (0, 0, Vec::new());
    while let Some(header) = file.get(at..at + 8) {
        let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match &header[4..] {
            // The first track run is the pictures', where there are any.
            b"moof" => {
                let moof = &file[at..at + len];
                let find = |name: &[u8]| moof.windows(4).position(|window| window == name).expect("a box");
                let word = |at: usize| u32::from_be_bytes([moof[at], moof[at + 1], moof[at + 2], moof[at + 3]]);
                if word(find(b"tfhd") + 8) == 1 {
                    pictures += word(find(b"trun") + 8) as usize;
                }
            }
            b"mdat" => ends.push((at + len, pictures)),
            _ => {}
        }
        at += len;
    }
    ends
}

#[test]
fn irregular_pictures_and_broken_sound_come_out_of_an_mp4_as_they_were_captured() {
    let times = irregular(17_000_000);
    let media = in_order([pictures(&times, SIZE), packets(6_911_000, 17_000_000)].concat());
    let (file, killed, progress) = write(Mp4Writer::new(BOTH, FragmentLimits::default()), &media);
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("out.mp4");
    std::fs::write(&path, &file).expect("room");

    let probe = ffprobe(&path, &["-count_frames"]);
    let origin = media.iter().find(|item| matches!(item, Media::Picture(_))).expect("one").captured();
    let (shown, heard) = (captured(&media, true, origin), captured(&media, false, origin));
    assert_times(&probe, "video", &shown);
    assert_times(&probe, "audio", &heard);
    let frames = |index: usize| probe["streams"][index]["nb_read_frames"].as_str().map(str::to_owned);
    assert_eq!((frames(0), frames(1)), (Some(shown.len().to_string()), Some(heard.len().to_string())));
    assert_durations(&probe, &progress);
    assert_eq!((progress.pictures, progress.packets), (shown.len() as u64, heard.len() as u64));
    assert_eq!(decode_errors(&path), "");

    // A kill, or a disk that kept the first part only: all whole fragments play.
    let ends = fragment_ends(&killed);
    assert!(ends.len() >= 10 && ends.last().map(|end| end.0) == Some(killed.len()));
    let last = ends.last().expect("one").1;
    assert!(last + 60 > shown.len(), "a kill loses a fragment at most: {last} of {}", shown.len());
    let mut seed = 1usize;
    for _ in 0..12 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = ends[0].0 + (seed >> 20) % (killed.len() - ends[0].0);
        std::fs::write(&path, &killed[..len]).expect("room");
        let whole = ends.iter().rev().find(|end| end.0 <= len).expect("the first one").1;
        let probe = ffprobe(&path, &["-count_frames", "-select_streams", "v"]);
        let read: usize = number(&probe["streams"][0]["nb_read_frames"]) as usize;
        assert!(read >= whole, "cut at {len} of {}: {read} pictures, {whole} are in whole fragments", killed.len());
    }
}

#[test]
fn a_change_of_size_and_a_restarted_clock_play_in_one_mp4() {
    // The publisher comes back smaller, on a clock that says it is two hours earlier.
    let first: Vec<i64> = (0..60).map(|n| 9_000_000_000 + n * 40_000).collect();
    let second: Vec<i64> = (0..60).map(|n| 1_800_000_000 + n * 40_000).collect();
    let small = Size::new(160, 96);
    let mut media = pictures(&first, SIZE);
    media.extend(pictures(&second, small));
    let (file, _, progress) =
        write(Mp4Writer::new(Tracks { video: true, audio: false }, FragmentLimits::default()), &media);
    assert_eq!(progress.clock_jumps, 1);
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("out.mp4");
    std::fs::write(&path, &file).expect("room");
    let probe = ffprobe(&path, &["-show_frames"]);
    assert_eq!(probe["streams"][0]["codec_tag_string"], "avc3");
    let frames: Vec<&Value> =
        probe["packets_and_frames"].as_array().expect("frames").iter().filter(|f| f["type"] == "frame").collect();
    assert_eq!(frames.len(), 120);
    for (n, frame) in frames.iter().enumerate() {
        assert!((number(&frame["pts_time"]) - n as f64 * 0.04).abs() < 0.001, "picture {n}: {frame}");
        let size = if n < 60 { SIZE } else { small };
        assert_eq!(
            (frame["width"].as_u64(), frame["height"].as_u64()),
            (Some(size.width.into()), Some(size.height.into()))
        );
    }
    assert_eq!(decode_errors(&path), "");
}

/// Pictures of a codec that WebM has, by FFmpeg: one each 40 ms, a keyframe every second; a stream of 10 s.
fn for_webm(codec: VideoCodec) -> Vec<Media> {
    let encoder = match codec {
        VideoCodec::Vp8 => "libvpx -deadline realtime -auto-alt-ref 0",
        VideoCodec::Vp9 => "libvpx-vp9 -deadline realtime -lag-in-frames 0",
        _ => "libaom-av1 -usage realtime -lag-in-frames 0",
    };
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=10", "-c:v"])
        .args(encoder.split(' '))
        .args(["-cpu-used", "8", "-g", "25", "-f", "ivf", "-"])
        .output()
        .expect("ffmpeg is installed");
    let ivf = output.stdout;
    let (mut at, mut units) = (32, Vec::new());
    while let Some(header) = ivf.get(at..at + 12) {
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let data = &ivf[at + 12..at + 12 + len];
        let captured = MediaTime::from_micros(7_000_000 + units.len() as i64 * 40_000);
        let (data, keyframe) = match codec {
            VideoCodec::Vp8 => (data, vp8::is_keyframe(data)),
            VideoCodec::Vp9 => (data, vp9::is_keyframe(data)),
            // The delimiter in front is no part of an access unit.
            _ => (&data[2..], av1::is_keyframe(&data[2..])),
        };
        let unit = AccessUnit::new(codec, data, captured, keyframe, SIZE, Stages::all_at(captured));
        units.push(Media::Picture(Arc::new(unit)));
        at += 12 + len;
    }
    assert_eq!(units.len(), 250, "{codec:?}");
    units
}

#[track_caller]
fn check_webm(codec: VideoCodec) {
    let media = in_order([for_webm(codec), packets(6_911_000, 17_000_000)].concat());
    let (file, killed, progress) = write(WebmWriter::new(codec, BOTH, FragmentLimits::default()), &media);
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("out.webm");
    std::fs::write(&path, &file).expect("room");
    let probe = ffprobe(&path, &[]);
    assert_eq!(probe["format"]["format_name"], "matroska,webm");
    assert_eq!(probe["streams"][0]["codec_name"], codec.name());
    let (shown, heard) = (captured(&media, true, 7_000_000), captured(&media, false, 7_000_000));
    assert_times(&probe, "video", &shown);
    assert_times(&probe, "audio", &heard);
    assert_durations(&probe, &progress);
    assert_eq!((progress.keyframes, progress.pictures, progress.packets), (10, 250, heard.len() as u64));
    assert_eq!(decode_errors(&path), "");
    // Nine of ten clusters are whole.
    std::fs::write(&path, &killed[..killed.len() - 1000]).expect("room");
    assert!(times(&ffprobe(&path, &[]), "video").len() >= 200);
}

#[test]
fn pictures_and_sound_come_out_of_a_webm_as_they_were_captured() {
    [VideoCodec::Vp8, VideoCodec::Vp9, VideoCodec::Av1].into_iter().for_each(check_webm);
}

/// Serves a page and files; the thread ends with the test.
fn serve(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let len = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..len]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let body = files.iter().find(|(name, _)| path == format!("/{name}")).map(|(_, bytes)| &bytes[..]);
            let body = body.unwrap_or(b"<!doctype html><title>files</title>");
            let kind = if path.contains('.') { "application/octet-stream" } else { "text/html" };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
            let _ = stream.write_all(body);
        }
    });
    url
}

/// Loads a file into a `<video>` and plays it from its beginning; then from 80 % on to its end.
async fn play(page: &Page, file: &str, kind: &str, duration: f64) {
    let load = format!(
        "(async () => {{
  const bytes = await (await fetch('/{file}')).arrayBuffer();
  const video = Object.assign(document.createElement('video'), {{ muted: true }});
  video.src = URL.createObjectURL(new Blob([bytes], {{ type: '{kind}' }}));
  document.body.replaceChildren(video);
  window.video = video;
  await video.play();
}})()"
    );
    page.evaluate(&load).await.unwrap_or_else(|error| panic!("{file}: {error}"));
    page.wait_until("video.currentTime > 1", PATIENCE).await.unwrap_or_else(|error| panic!("{file}: {error}"));
    let state = page.evaluate("({ duration: video.duration, error: video.error?.message ?? null, sound: video.webkitAudioDecodedByteCount > 0 || video.mozHasAudio === true, pictures: video.getVideoPlaybackQuality().totalVideoFrames })").await.expect("an object");
    assert_eq!(state["error"], Value::Null, "{file}");
    assert!((state["duration"].as_f64().unwrap_or(0.0) - duration).abs() < 0.06, "{file}: {state}");
    assert!(state["sound"] == true && state["pictures"].as_u64() > Some(10), "{file}: {state}");
    page.evaluate(&format!("void (video.currentTime = {})", duration * 0.8)).await.expect("a number");
    page.wait_until("video.ended", PATIENCE).await.unwrap_or_else(|error| panic!("{file}: {error}"));
    let shown = page
        .evaluate("[video.currentTime, video.error?.message ?? null, video.played.length]")
        .await
        .expect("an array");
    assert!((shown[0].as_f64().unwrap_or(0.0) - duration).abs() < 0.06 && shown[1].is_null(), "{file}: {shown}");
    assert_eq!(shown[2], 2, "{file}: the middle was skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_play_and_seek_in_both_containers_and_play_what_a_kill_left() {
    let media = in_order([pictures(&irregular(17_000_000), SIZE), packets(6_911_000, 17_000_000)].concat());
    let (mp4, killed, progress) = write(Mp4Writer::new(BOTH, FragmentLimits::default()), &media);
    let webm = |codec| {
        let media = in_order([for_webm(codec), packets(6_911_000, 17_000_000)].concat());
        write(WebmWriter::new(codec, BOTH, FragmentLimits::default()), &media).0
    };
    let webms = [("vp8.webm", VideoCodec::Vp8), ("vp9.webm", VideoCodec::Vp9), ("av1.webm", VideoCodec::Av1)];
    let mut resized = pictures(&irregular(9_000_000), SIZE);
    let rest: Vec<i64> = irregular(13_000_000).into_iter().map(|time| time + 2_100_000).collect();
    resized.extend(pictures(&rest, Size::new(640, 360)));
    resized.extend(packets(7_000_000, 15_000_000));
    let (resized, _, both) = write(Mp4Writer::new(BOTH, FragmentLimits::default()), &in_order(resized));

    let mut files = vec![("a.mp4", mp4), ("resized.mp4", resized), ("killed.mp4", killed)];
    files.extend(webms.map(|(name, codec)| (name, webm(codec))));
    let url = serve(files);
    for kind in Kind::ALL {
        let browser = Browser::launch(kind, Options::default()).await.expect("both browsers are installed");
        let page = browser.open(&url).await.expect("a page");
        play(&page, "a.mp4", "video/mp4", progress.duration.as_secs_f64()).await;
        for (name, _) in webms {
            play(&page, name, "video/webm", 10.0).await;
        }
        play(&page, "resized.mp4", "video/mp4", both.duration.as_secs_f64()).await;
        assert_eq!(
            page.evaluate("[video.videoWidth, video.videoHeight]").await.expect("numbers"),
            serde_json::json!([640, 360])
        );
        // It knows no duration; it plays.
        let load = "(async () => { const bytes = await (await fetch('/killed.mp4')).arrayBuffer(); const blob = new Blob([bytes], { type: 'video/mp4' }); video.src = URL.createObjectURL(blob); await video.play(); })()";
        page.evaluate(load).await.expect("it plays");
        page.wait_until("video.currentTime > 2", PATIENCE).await.expect("it goes on");
        browser.close().await.expect("it ends");
    }
}

/// Notes the capture times of what a stream gives, and which pictures are keyframes.
#[derive(Default)]
struct Notes {
    pictures: Mutex<Vec<(i64, bool)>>,
    packets: Mutex<Vec<i64>>,
}

impl Outlet for Notes {
    fn deliver(&self, unit: &Arc<AccessUnit>) {
        self.pictures.lock().expect("no panic").push((unit.captured.as_micros(), unit.keyframe));
    }

    fn deliver_audio(&self, packet: &Arc<AudioPacket>) {
        self.packets.lock().expect("no panic").push(packet.captured.as_micros());
    }
}

#[track_caller]
fn wait_for(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn fifteen_seconds_of_a_live_pattern_are_in_the_file_to_the_frame() {
    let mut config = lightpipe::Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    (config.video.width, config.video.height) = (SIZE.width, SIZE.height);
    config.sources.insert("pattern".to_owned(), lightpipe::config::SourceTexts::One("pattern".to_owned()));
    let server = lightpipe::Server::start(config).expect("a free port");
    let stream = server.streams().find("pattern").expect("a stream");
    let notes = Arc::new(Notes::default());
    let noting = stream.subscribe(Arc::clone(&notes) as Arc<dyn Outlet>);
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("live.mp4");
    let recorder = FileRecorder::start(&stream, &path, RecordOptions::default()).expect("a new file");
    wait_for("fifteen seconds", || recorder.stats().progress.duration >= Duration::from_secs(15));
    let while_running = ffprobe(&path, &[]);
    let written = times(&while_running, "video").last().copied();
    assert!(written > Some(12.0), "what is written so far plays: {written:?}");
    let stats = recorder.finish().expect("a whole file");
    drop(noting);

    let probe = ffprobe(&path, &[]);
    assert_eq!((stats.dropped_pictures, stats.dropped_packets, stats.progress.dropped_bad), (0, 0, 0));
    assert_durations(&probe, &stats.progress);
    assert_eq!(decode_errors(&path), "");
    // Each picture and each packet that the stream gave since the recorder's first keyframe, at its own time.
    let (pictures, packets) = (notes.pictures.lock().expect("no panic"), notes.packets.lock().expect("no panic"));
    let (shown, heard) = (times(&probe, "video"), times(&probe, "audio"));
    assert!(shown.len() as u64 == stats.progress.pictures && heard.len() as u64 == stats.progress.packets);
    let same = |given: &[i64], found: &[f64], origin: i64| {
        let off = |(found, given): (&f64, &i64)| (found - (given - origin) as f64 / 1e6).abs() < 0.001;
        given.len() >= found.len() && !found.is_empty() && found.iter().zip(given).all(off)
    };
    let begins = |&&(origin, from): &&(i64, usize)| {
        let heard_from = packets.iter().position(|packet| *packet >= origin).unwrap_or(packets.len());
        let all: Vec<i64> = pictures[from..].iter().map(|picture| picture.0).collect();
        same(&all, &shown, origin) && same(&packets[heard_from..], &heard, origin)
    };
    let keyframes = pictures.iter().enumerate().filter(|(_, picture)| picture.1).map(|(n, picture)| (picture.0, n));
    let keyframes: Vec<(i64, usize)> = keyframes.collect();
    assert!(keyframes.iter().any(|keyframe| begins(&keyframe)), "{} of {} pictures", shown.len(), pictures.len());
}

/// A viewer whose network carries next to nothing.
struct Far;

impl Outlet for Far {
    fn deliver(&self, _: &Arc<AccessUnit>) {}

    fn has_network(&self) -> bool {
        true
    }
}

#[test]
fn a_recording_beside_a_slow_viewer_has_the_whole_picture_from_its_first_to_its_last() {
    let mut config = lightpipe::Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    config.simulcast.enabled = false;
    (config.video.width, config.video.height) = (640, 360);
    config.sources.insert("pattern".to_owned(), lightpipe::config::SourceTexts::One("pattern".to_owned()));
    let server = lightpipe::Server::start(config).expect("a free port");
    let stream = server.streams().find("pattern").expect("a stream");
    let viewer = stream.subscribe(Arc::new(Far));
    viewer.set_bitrate(Some(60_000));
    wait_for("smaller pictures", || stream.stats().size == Some(SIZE));

    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("whole.mp4");
    let recorder = FileRecorder::start(&stream, &path, RecordOptions::default()).expect("a new file");
    wait_for("two seconds", || recorder.stats().progress.duration >= Duration::from_secs(2));
    let stats = recorder.finish().expect("a whole file");
    wait_for("smaller pictures again", || stream.stats().size == Some(SIZE));

    let probe = ffprobe(&path, &["-select_streams", "v", "-show_frames"]);
    // Beside the packets that it always asks for.
    let frames = probe["packets_and_frames"].as_array().expect("frames").iter().filter(|one| one["type"] == "frame");
    let frames: Vec<&Value> = frames.collect();
    assert_eq!(frames.len() as u64, stats.progress.pictures);
    assert!(stats.progress.pictures >= 50, "{stats:?}");
    assert!(frames.iter().all(|frame| frame["width"] == 640 && frame["height"] == 360), "one size");
    assert_eq!(probe["streams"][0]["codec_tag_string"], "avc1", "with one set of parameters");
}

#[test]
fn a_full_disk_ends_the_recording_with_its_name_and_leaves_the_stream_alone() {
    let stream = Stream::new("s", VideoCodec::H264);
    let recorder = FileRecorder::start(&stream, "/dev/full", RecordOptions::default()).expect("it opens");
    assert_eq!(stream.outlets(), 1);
    for item in pictures(&[0, 40_000, 80_000], SIZE) {
        let Media::Picture(unit) = item else { continue };
        stream.publish(&unit);
    }
    wait_for("an error", || recorder.error().is_some());
    wait_for("the outlet is gone", || stream.outlets() == 0);
    let error = recorder.finish().expect_err("nothing was written");
    assert!(
        matches!(&error, RecordError::Write { written: 0, error, .. } if error.kind() == std::io::ErrorKind::StorageFull)
    );
    assert!(error.to_string().starts_with("cannot write /dev/full behind 0 bytes: No space left"), "{error}");
}

#[test]
fn what_cannot_be_recorded_is_refused_by_name() {
    let folder = TempDir::new().expect("a folder");
    let start = |stream: &Arc<Stream>, name: &str| {
        FileRecorder::start(stream, folder.path().join(name), RecordOptions::default())
    };
    let h264 = Stream::new("s", VideoCodec::H264);
    let error = start(&h264, "no/such/folder.mp4").expect_err("refused").to_string();
    assert!(error.contains("No such file or directory"), "{error}");

    // Which codec comes is known when it comes: the stream of another server has none before.
    let refused = |unit: &Media, name: &str| {
        let recorder = start(&h264, name).expect("a new file");
        let Media::Picture(unit) = unit else { panic!("a picture") };
        h264.publish(unit);
        recorder.finish().expect_err("refused").to_string()
    };
    let (avc, vp8) = (pictures(&[0], SIZE).remove(0), for_webm(VideoCodec::Vp8).remove(0));
    assert!(refused(&vp8, "a.MP4").ends_with("cannot hold the stream's vp8: name the file .webm"));
    assert!(refused(&avc, "a.webm").ends_with("cannot hold the stream's h264: name the file .mp4"));

    let path = folder.path().join("changed");
    let recorder = start(&h264, "changed").expect("a new file");
    for unit in [&vp8, &avc] {
        let Media::Picture(unit) = unit else { panic!("a picture") };
        h264.publish(unit);
    }
    let error = recorder.finish().expect_err("another codec").to_string();
    assert!(error.starts_with("the stream changed from vp8 to h264: "), "{error}");
    assert_eq!(times(&ffprobe(&path, &[]), "video"), [0.0], "what came before is in the file");

    let nothing = start(&h264, "empty.mp4").expect("a new file").finish().expect_err("no keyframe");
    assert_eq!(nothing.to_string(), "nothing was recorded: the stream gave no keyframe");
}

/// A disk that stands still, played by a FIFO that nobody reads.
#[test]
fn a_slow_disk_costs_whole_groups_of_pictures_and_asks_for_a_keyframe() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().expect("coreutils").success());
    // For reading and writing: opening waits for nobody, and the pipe never ends.
    let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a FIFO");
    let stream = Stream::new("s", VideoCodec::H264);
    let recorder = FileRecorder::start(&stream, &path, RecordOptions::default()).expect("it opens");
    assert!(stream.demand(at(0)).keyframe, "a recording begins with one");
    let Media::Picture(key) = pictures(&[0], SIZE).remove(0) else { panic!("a picture") };
    let publish = |n: i64, keyframe: bool| {
        let mut data = if keyframe { key.data.to_vec() } else { [&h264::START_CODE[..], &[0x41, 0x9a]].concat() };
        data.resize(1 << 20, 0x55);
        let captured = at(n * 40_000);
        let stages = Stages::all_at(captured);
        stream.publish(&Arc::new(AccessUnit::new(VideoCodec::H264, data, captured, keyframe, SIZE, stages)));
    };
    for n in 0..100 {
        publish(n, n == 0);
    }
    let dropped = recorder.stats().dropped_pictures;
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while fifo.read(&mut bytes).is_ok_and(|len| len > 0) {}
    });
    assert!(dropped > 50, "a stream does not wait for a disk: {dropped}");
    wait_for("a keyframe is asked for", || stream.demand(at(100_000_000)).keyframe);
    publish(100, false);
    publish(101, true);
    publish(102, false);
    let stats = recorder.finish().expect("the disk works again");
    assert_eq!((stats.dropped_pictures, stats.keyframe_requests), (dropped + 1, 1), "one that refers to a missing one");
    let progress = stats.progress;
    assert_eq!((progress.pictures, progress.keyframes), (100 - dropped + 2, 2));
}
