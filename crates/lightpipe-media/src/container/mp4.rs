//! Fragmented MP4 (ISO/IEC 14496-12, 14496-15): H.264 and Opus.
//!
//! ```text
//!   ftyp moov │ moof mdat │ moof mdat │ … │ mfra      at the end `moov` is written over: now it tells the durations
//! ```
//!
//! - Samples stand at their capture times: 90 000 ticks a second for pictures, 48 000 for sound. A picture stands until the next. Each
//!   fragment's `tfdt` is absolute, so nothing adds up; a gap in the sound ends the fragment and so stays a gap. Time 0 is
//!   the first keyframe's for both tracks, without edit lists.
//! - Pictures are in the order of their capture, that is without B-frames; WebRTC has none.
//! - Parameter sets stand in the sample entry, `avc1`. When others come (another size), they stay in the samples from then on, and the entry
//!   becomes `avc3`, which says so: every player looks there, and a file that cannot be written over plays as well.
//! - `PreSkip` is 0: [`AudioPacket::captured`] is the time of the first sample that a decoder makes, and a recording begins within a
//!   running stream. Two channels always: Opus may change between one and two with each packet (RFC 7587 §3.4).

use std::collections::VecDeque;
use std::time::Duration;

use mp4_atom as atom;
use mp4_atom::Encode;

use super::index::{Index, Point};
use super::intake::{self, Intake};
use super::timeline::ticks;
use super::{Container, FragmentLimits, MAX_FRAGMENT_SAMPLES, Progress, Tracks, Write};
use crate::access_unit::{AccessUnit, VideoCodec};
use crate::audio::{AudioPacket, SAMPLE_RATE_HZ};
use crate::h264::{self, NalType, Sps};
use crate::time::VIDEO_CLOCK_RATE_HZ;

const VIDEO_ID: u32 = 1;
const AUDIO_ID: u32 = 2;

/// Ticks a second of the times in `mvhd`, `tkhd` and `mehd`: those of [`crate::MediaTime`].
const MOVIE_RATE_HZ: u32 = 1_000_000;

/// Sound that begins so much later than the packet before ends is behind a gap: the shortest packet of Opus. Less is the correction of a
/// clock.
const GAP: Duration = Duration::from_micros(2_500);

/// `sample_depends_on` 2, and 1 with `sample_is_non_sync_sample` (ISO/IEC 14496-12 §8.8.3.1).
const SYNC: u32 = 0x0200_0000;
const NON_SYNC: u32 = 0x0101_0000;

/// Writes fragmented MP4. See [`Container`] for the order of calls.
#[derive(Debug)]
pub struct Mp4Writer {
    intake: Intake,
    limits: FragmentLimits,
    parameters: Parameters,
    video: Track,
    audio: Track,
    /// Bytes of samples that wait for their fragment.
    waiting: usize,
    sequence: u32,
    /// Where `moov` stands.
    moov_at: u64,
    /// Bytes given out.
    end: u64,
    index: Index,
    out: VecDeque<Write>,
}

#[derive(Debug)]
struct Sample {
    at: u64,
    /// Ticks, for a sample without a successor.
    duration: u64,
    data: Vec<u8>,
    sync: bool,
}

#[derive(Debug)]
struct Track {
    rate_hz: u32,
    samples: Vec<Sample>,
    /// Where the last sample ends, ticks.
    end: u64,
}

impl Track {
    const fn new(rate_hz: u32) -> Self {
        Self { rate_hz, samples: Vec::new(), end: 0 }
    }

    /// How long samples have been collected when another comes at `now` ticks.
    fn age(&self, now: u64) -> Duration {
        let first = self.samples.first().map_or(now, |sample| sample.at);
        let ticks = now.saturating_sub(first);
        Duration::from_micros(
            u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(self.rate_hz)).unwrap_or(u64::MAX),
        )
    }
}

impl Mp4Writer {
    /// A writer for a file with these tracks. H.264 only.
    pub fn new(tracks: Tracks, limits: FragmentLimits) -> Self {
        Self {
            intake: Intake::new(tracks),
            limits,
            parameters: Parameters::default(),
            video: Track::new(VIDEO_CLOCK_RATE_HZ),
            audio: Track::new(SAMPLE_RATE_HZ),
            waiting: 0,
            sequence: 0,
            moov_at: 0,
            end: 0,
            index: Index::new(),
            out: VecDeque::new(),
        }
    }

    fn append(&mut self, bytes: Vec<u8>) {
        self.end += bytes.len() as u64;
        self.intake.progress.bytes = self.end;
        self.out.push_back(Write::Append(bytes));
    }

    fn header(&mut self) {
        let ftyp = bytes_of(&atom::Ftyp {
            major_brand: b"iso6".into(),
            minor_version: 0,
            compatible_brands: vec![b"iso6".into(), b"iso5".into(), b"mp41".into()],
        });
        self.moov_at = ftyp.len() as u64;
        let moov = bytes_of(&self.moov(Duration::ZERO));
        self.append([ftyp, moov].concat());
    }

    /// The same length whatever the duration and the name of the sample entry: it is written over.
    fn moov(&self, duration: Duration) -> atom::Moov {
        let duration = duration.as_micros() as u64;
        let known = duration > 0;
        let tracks = self.intake.tracks();
        let video = tracks.video.then(|| {
            let size = self.parameters.size;
            let ticks = if known { self.video.end } else { 0 };
            let mut trak =
                trak(VIDEO_ID, b"vide", VIDEO_CLOCK_RATE_HZ, ticks, duration, self.parameters.sample_entry());
            (trak.tkhd.width, trak.tkhd.height) = (size.0.into(), size.1.into());
            trak.mdia.minf.vmhd = Some(atom::Vmhd::default());
            trak
        });
        let audio = tracks.audio.then(|| {
            let ticks = if known { self.audio.end } else { 0 };
            let mut trak = trak(AUDIO_ID, b"soun", SAMPLE_RATE_HZ, ticks, duration, opus_entry());
            trak.tkhd.volume = 1.into();
            trak.mdia.minf.smhd = Some(atom::Smhd::default());
            trak
        });
        let trak: Vec<_> = video.into_iter().chain(audio).collect();
        let trex = |trak: &atom::Trak| atom::Trex {
            track_id: trak.tkhd.track_id,
            default_sample_description_index: 1,
            ..Default::default()
        };
        atom::Moov {
            mvhd: atom::Mvhd {
                timescale: MOVIE_RATE_HZ,
                duration,
                rate: 1.into(),
                volume: 1.into(),
                next_track_id: AUDIO_ID + 1,
                ..Default::default()
            },
            mvex: Some(atom::Mvex {
                mehd: Some(atom::Mehd { fragment_duration: duration }),
                trex: trak.iter().map(trex).collect(),
            }),
            trak,
            ..Default::default()
        }
    }

    fn rewrite_moov(&mut self, duration: Duration) {
        let bytes = bytes_of(&self.moov(duration));
        self.out.push_back(Write::Patch { offset: self.moov_at, bytes });
    }

    fn push_packet(&mut self, packet: &AudioPacket) {
        let started = self.intake.started();
        let Some(at) = self.intake.packet(packet) else { return };
        if !started {
            self.header();
        }
        let now = ticks(at, SAMPLE_RATE_HZ);
        let gap = now > self.audio.end.saturating_add(ticks(GAP.as_micros() as u64, SAMPLE_RATE_HZ));
        // The last picture has to wait for its successor.
        let picture_age =
            if self.video.samples.len() > 1 { self.video.age(ticks(at, VIDEO_CLOCK_RATE_HZ)) } else { Duration::ZERO };
        let old = self.audio.age(now).max(picture_age) >= self.limits.duration;
        if old || self.full() || (gap && !self.audio.samples.is_empty()) {
            self.cut(None);
        }
        let duration = ticks(intake::duration(packet).as_micros() as u64, SAMPLE_RATE_HZ);
        self.audio.end = now + duration;
        self.waiting += packet.data.len();
        self.audio.samples.push(Sample { at: now, duration, data: packet.data.to_vec(), sync: true });
    }

    fn full(&self) -> bool {
        self.waiting >= self.limits.bytes || self.video.samples.len() + self.audio.samples.len() >= MAX_FRAGMENT_SAMPLES
    }

    /// Gives out what was collected. Without the time of the next picture, the last one stays: how long it stands is not known yet.
    fn cut(&mut self, next_picture: Option<u64>) {
        let kept = if next_picture.is_some() { 0 } else { self.video.samples.len().min(1) };
        let kept = self.video.samples.split_off(self.video.samples.len() - kept);
        let next_picture = next_picture.or_else(|| kept.first().map(|sample| sample.at));
        let pictures = std::mem::replace(&mut self.video.samples, kept);
        let packets = std::mem::take(&mut self.audio.samples);
        self.waiting = self.video.samples.iter().map(|sample| sample.data.len()).sum();
        if pictures.is_empty() && packets.is_empty() {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let len = |samples: &[Sample]| samples.iter().map(|sample| sample.data.len()).sum::<usize>();
        let (picture_len, len) = (len(&pictures), len(&pictures) + len(&packets));
        let build = |data_at: usize| {
            let video = (!pictures.is_empty()).then(|| traf(VIDEO_ID, &pictures, next_picture, data_at));
            let audio = (!packets.is_empty()).then(|| traf(AUDIO_ID, &packets, None, data_at + picture_len));
            let mfhd = atom::Mfhd { sequence_number: self.sequence };
            bytes_of(&atom::Moof { mfhd, traf: video.into_iter().chain(audio).collect() })
        };
        // Twice: where the samples begin depends on the length of what says so.
        let mut bytes = build(build(0).len() + 8);
        // Samples together stay far below 4 GiB: `full` and `MAX_SAMPLE_BYTES`.
        bytes.extend_from_slice(&(len as u32 + 8).to_be_bytes());
        bytes.extend_from_slice(b"mdat");
        for sample in pictures.iter().chain(&packets) {
            bytes.extend_from_slice(&sample.data);
        }
        let entry = if self.intake.tracks().video { pictures.first() } else { packets.first() };
        if let Some(sample) = entry.filter(|sample| sample.sync) {
            self.index.push(sample.at, self.end);
        }
        self.intake.progress.fragments += 1;
        self.append(bytes);
    }

    fn take_picture(&mut self, unit: &AccessUnit) {
        if !self.intake.wants(unit) {
            return;
        }
        let Some(picture) = Picture::read(unit) else {
            self.intake.progress.dropped_bad += 1;
            return;
        };
        let held = if self.intake.started() {
            if picture.sps.iter().any(|sps| Sps::parse(sps).is_err()) {
                self.intake.progress.dropped_bad += 1;
                return;
            }
            if self.parameters.changed(&picture) {
                self.parameters.in_band = true;
                self.rewrite_moov(Duration::ZERO);
            }
            None
        } else {
            let Some(parameters) = Parameters::of(&picture) else {
                self.intake.progress.dropped_before_start += 1;
                return;
            };
            self.parameters = parameters;
            let held = self.intake.start(unit.captured);
            self.header();
            Some(held)
        };
        if let Some(at) = self.intake.picture(unit.captured, picture.idr) {
            self.push_picture(at, &picture);
        }
        for packet in held.into_iter().flatten() {
            self.push_packet(&packet);
        }
    }

    fn push_picture(&mut self, at: u64, picture: &Picture<'_>) {
        let now = ticks(at, VIDEO_CLOCK_RATE_HZ);
        let age = self.video.age(now).max(self.audio.age(ticks(at, SAMPLE_RATE_HZ)));
        let keyframe = picture.idr && !self.video.samples.is_empty();
        if keyframe || age >= self.limits.duration || self.full() {
            self.cut(Some(now));
        }
        let duration = ticks(self.intake.step().as_micros() as u64, VIDEO_CLOCK_RATE_HZ);
        self.video.end = now + duration;
        let data = picture.sample(self.parameters.in_band);
        self.waiting += data.len();
        self.video.samples.push(Sample { at: now, duration, data, sync: picture.idr });
    }
}

impl Container for Mp4Writer {
    fn video(&mut self, unit: &AccessUnit) {
        self.take_picture(unit);
    }

    fn audio(&mut self, packet: &AudioPacket) {
        self.push_packet(packet);
    }

    fn finish(&mut self) {
        if !self.intake.finish() || !self.intake.started() {
            return;
        }
        self.cut(Some(self.video.end));
        let track_id = if self.intake.tracks().video { VIDEO_ID } else { AUDIO_ID };
        let entry = |point: &Point| atom::FragmentInfo {
            time: point.time,
            moof_offset: point.offset,
            traf_number: 1,
            trun_number: 1,
            sample_delta: 1,
        };
        let entries = self.index.points().iter().map(entry).collect();
        let mut mfra = atom::Mfra { tfra: vec![atom::Tfra { track_id, entries }], mfro: atom::Mfro::default() };
        mfra.mfro.parent_size = bytes_of(&mfra).len() as u32;
        self.append(bytes_of(&mfra));
        self.rewrite_moov(self.intake.progress().duration);
    }

    fn poll(&mut self) -> Option<Write> {
        self.out.pop_front()
    }

    fn progress(&self) -> Progress {
        self.intake.progress()
    }
}

/// Parameter sets of the file's sample entry.
#[derive(Debug, Default)]
struct Parameters {
    avcc: atom::Avcc,
    size: (u16, u16),
    /// Others came since: they stay in the samples.
    in_band: bool,
}

impl Parameters {
    /// Of a keyframe that carries good ones.
    fn of(picture: &Picture<'_>) -> Option<Self> {
        let first = picture.sps.first().filter(|_| picture.idr)?;
        let sps = Sps::parse(first).ok()?;
        // Counts and lengths have 5, 8 and 16 bits in `avcC`.
        let fits = |sets: &[&[u8]], most| (1..=most).contains(&sets.len()) && sets.iter().all(|s| s.len() <= 0xffff);
        if !fits(&picture.sps, 31) || !fits(&picture.pps, 255) {
            return None;
        }
        let owned = |sets: &[&[u8]]| sets.iter().map(|set| set.to_vec()).collect();
        // Baseline, Main and Extended have no more to say (ISO/IEC 14496-15 §5.3.3.1.2).
        let ext = (!matches!(sps.profile_idc, 66 | 77 | 88)).then(|| atom::AvccExt {
            chroma_format: sps.chroma_format_idc,
            bit_depth_luma: sps.bit_depth_luma,
            bit_depth_chroma: sps.bit_depth_chroma,
            sequence_parameter_sets_ext: Vec::new(),
        });
        let avcc = atom::Avcc {
            configuration_version: 1,
            avc_profile_indication: sps.profile_idc,
            profile_compatibility: sps.constraints,
            avc_level_indication: sps.level_idc,
            length_size: 4,
            sequence_parameter_sets: owned(&picture.sps),
            picture_parameter_sets: owned(&picture.pps),
            ext,
        };
        let side = |side: u32| u16::try_from(side).unwrap_or(u16::MAX);
        Some(Self { avcc, size: (side(sps.size.width), side(sps.size.height)), in_band: false })
    }

    /// Whether a picture is the first that needs others.
    fn changed(&self, picture: &Picture<'_>) -> bool {
        let known = |sets: &[&[u8]], ours: &[Vec<u8>]| sets.iter().all(|set| ours.iter().any(|our| our == set));
        let ours = known(&picture.sps, &self.avcc.sequence_parameter_sets)
            && known(&picture.pps, &self.avcc.picture_parameter_sets);
        !self.in_band && !ours
    }

    fn sample_entry(&self) -> atom::Codec {
        let (width, height) = self.size;
        let visual = atom::Visual { data_reference_index: 1, width, height, ..Default::default() };
        let avcc = self.avcc.clone();
        if self.in_band {
            atom::Codec::Avc3(atom::Avc3 { visual, avcc, ..Default::default() })
        } else {
            atom::Codec::Avc1(atom::Avc1 { visual, avcc, ..Default::default() })
        }
    }
}

/// The NAL units of an access unit that matter.
struct Picture<'a> {
    nals: Vec<&'a [u8]>,
    sps: Vec<&'a [u8]>,
    pps: Vec<&'a [u8]>,
    idr: bool,
}

impl<'a> Picture<'a> {
    /// `None` when there is no picture in it.
    fn read(unit: &'a AccessUnit) -> Option<Self> {
        if unit.codec != VideoCodec::H264 {
            return None;
        }
        let mut picture = Self { nals: Vec::new(), sps: Vec::new(), pps: Vec::new(), idr: false };
        let mut slices = false;
        for nal in h264::nals(&unit.data) {
            let kind = NalType::of(nal);
            match kind {
                NalType::Sps => picture.sps.push(nal),
                NalType::Pps => picture.pps.push(nal),
                // The container delimits; what fills serves a constant bitrate.
                NalType::AccessUnitDelimiter
                | NalType::EndOfSequence
                | NalType::EndOfStream
                | NalType::Filler
                | NalType::Other(_) => continue,
                NalType::Slice | NalType::Idr | NalType::Sei => {}
            }
            slices |= kind.is_vcl();
            picture.idr |= kind == NalType::Idr;
            picture.nals.push(nal);
        }
        slices.then_some(picture)
    }

    /// Each NAL unit behind its length.
    fn sample(&self, with_parameters: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.nals.iter().map(|nal| nal.len() + 4).sum());
        for nal in &self.nals {
            if with_parameters || !matches!(NalType::of(nal), NalType::Sps | NalType::Pps) {
                // An access unit is shorter than `MAX_SAMPLE_BYTES`.
                bytes.extend_from_slice(&(nal.len() as u32).to_be_bytes());
                bytes.extend_from_slice(nal);
            }
        }
        bytes
    }
}

fn opus_entry() -> atom::Codec {
    let audio = atom::Audio {
        data_reference_index: 1,
        channel_count: 2,
        sample_size: 16,
        sample_rate: (SAMPLE_RATE_HZ as u16).into(),
    };
    let dops = atom::Dops {
        output_channel_count: 2,
        pre_skip: 0,
        input_sample_rate: SAMPLE_RATE_HZ,
        output_gain: 0,
        channel_mapping: None,
    };
    atom::Codec::Opus(atom::Opus { audio, dops, btrt: None })
}

/// A track without samples of its own. `ticks` and `duration` are its end by its own clock and the movie's.
fn trak(id: u32, handler: &[u8; 4], rate_hz: u32, ticks: u64, duration: u64, entry: atom::Codec) -> atom::Trak {
    let here = atom::DrefEntry::Url(atom::Url::default());
    let stbl = atom::Stbl {
        stsd: atom::Stsd { codecs: vec![entry] },
        stco: Some(atom::Stco::default()),
        ..Default::default()
    };
    atom::Trak {
        tkhd: atom::Tkhd { track_id: id, duration, enabled: true, in_movie: true, ..Default::default() },
        mdia: atom::Mdia {
            mdhd: atom::Mdhd { timescale: rate_hz, duration: ticks, language: "und".to_owned(), ..Default::default() },
            hdlr: atom::Hdlr { handler: handler.into(), name: "lightpipe".to_owned() },
            minf: atom::Minf {
                dinf: atom::Dinf { dref: atom::Dref { entries: vec![here] } },
                stbl,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

/// Samples of one track, one behind the other from `data_at` bytes behind the beginning of `moof`.
fn traf(track_id: u32, samples: &[Sample], next: Option<u64>, data_at: usize) -> atom::Traf {
    let ends = samples.iter().skip(1).map(|sample| Some(sample.at)).chain([next]);
    let entry = |(sample, end): (&Sample, Option<u64>)| {
        let duration = end.map_or(sample.duration, |end| end.saturating_sub(sample.at));
        atom::TrunEntry {
            duration: Some(u32::try_from(duration).unwrap_or(u32::MAX)),
            size: Some(sample.data.len() as u32),
            flags: Some(if sample.sync { SYNC } else { NON_SYNC }),
            cts: None,
        }
    };
    let run = atom::Trun {
        data_offset: Some(data_at as i32),
        samples: atom::TrunSamples::Explicit(samples.iter().zip(ends).map(entry).collect()),
    };
    atom::Traf {
        tfhd: atom::Tfhd { track_id, default_base_is_moof: true, ..Default::default() },
        tfdt: Some(atom::Tfdt { base_media_decode_time: samples.first().map_or(0, |sample| sample.at) }),
        trun: vec![run],
        ..Default::default()
    }
}

/// The bytes of a box.
fn bytes_of(value: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Refused are boxes of 4 GiB, too many brands and the like; what we build is bounded.
    value.encode(&mut bytes).expect("every value fits into its field");
    bytes
}

#[cfg(test)]
mod tests {
    use mp4_atom::{Any, DecodeMaybe};

    use super::*;
    use crate::access_unit::Stages;
    use crate::frame::Size;
    use crate::time::MediaTime;

    /// 1280×720 Baseline by OpenH264, and 640×480 by x264.
    const SPS: &[u8] = &[0x67, 0x42, 0xc0, 0x1f, 0x8c, 0x8d, 0x40, 0x28, 0x02, 0xdd, 0x00, 0xf0, 0x08, 0x84, 0x6a];
    const OTHER_SPS: &[u8] = &[
        0x67, 0x64, 0x00, 0x28, 0xac, 0xd9, 0x40, 0x78, 0x02, 0x27, 0xe5, 0xc0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04,
        0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc6, 0x58,
    ];
    const PPS: &[u8] = &[0x68, 0xce, 0x3c, 0x80];
    const IDR: &[u8] = &[0x65, 0x88, 0x84];
    const P: &[u8] = &[0x41, 0x9a, 0x24];
    const BOTH: Tracks = Tracks { video: true, audio: true };

    fn at(ms: i64) -> MediaTime {
        MediaTime::from_micros(ms * 1000)
    }

    fn unit(ms: i64, nals: &[&[u8]]) -> AccessUnit {
        let data: Vec<u8> = nals.iter().flat_map(|nal| h264::START_CODE.iter().chain(*nal)).copied().collect();
        AccessUnit::new(
            VideoCodec::H264,
            data,
            at(ms),
            nals.contains(&IDR),
            Size::new(1280, 720),
            Stages::all_at(at(ms)),
        )
    }

    fn packet(ms: i64) -> AudioPacket {
        let duration = Duration::from_millis(20);
        AudioPacket {
            data: [0xfc, 1, 2].into(),
            captured: at(ms),
            duration,
            encoded: at(ms),
            starts_talkspurt: false,
            origin: None,
        }
    }

    /// The file so far.
    fn take(writer: &mut Mp4Writer, file: &mut Vec<u8>) {
        while let Some(write) = writer.poll() {
            match write {
                Write::Append(bytes) => file.extend(bytes),
                Write::Patch { offset, bytes } => {
                    file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    }

    /// One sample as a reader finds it: track, time and duration in ticks, keyframe, bytes.
    type Found = (u32, u64, u32, bool, Vec<u8>);

    fn read(file: &[u8]) -> (atom::Moov, Vec<Vec<Found>>, Option<atom::Mfra>) {
        let (mut moov, mut fragments, mut mfra, mut rest) = (None, Vec::new(), None, file);
        let mut moof: Option<(usize, atom::Moof)> = None;
        loop {
            let start = file.len() - rest.len();
            match Any::decode_maybe(&mut rest).expect("whole boxes") {
                None => break,
                Some(Any::Ftyp(ftyp)) => assert_eq!((start, ftyp.major_brand), (0, b"iso6".into())),
                Some(Any::Moov(found)) => moov = Some(found),
                Some(Any::Moof(found)) => moof = Some((start, found)),
                Some(Any::Mfra(found)) => mfra = Some(found),
                Some(Any::Mdat(mdat)) => {
                    let (moof_at, moof) = moof.take().expect("moof before mdat");
                    assert_eq!(moof.mfhd.sequence_number as usize, fragments.len() + 1);
                    let mut samples = Vec::new();
                    let mut expected = start + 8;
                    for traf in &moof.traf {
                        assert!(traf.tfhd.default_base_is_moof);
                        let mut time = traf.tfdt.as_ref().expect("tfdt").base_media_decode_time;
                        let run = &traf.trun[0];
                        let mut data = moof_at + run.data_offset.expect("an offset") as usize;
                        assert_eq!(data, expected, "samples lie behind each other");
                        for entry in run.samples.iter() {
                            let (duration, size) = (entry.duration.expect("said"), entry.size.expect("said") as usize);
                            let sync = entry.flags == Some(SYNC);
                            samples.push((traf.tfhd.track_id, time, duration, sync, file[data..data + size].to_vec()));
                            time += u64::from(duration);
                            data += size;
                        }
                        expected = data;
                    }
                    assert_eq!(expected, start + 8 + mdat.data.len(), "nothing else is in mdat");
                    fragments.push(samples);
                }
                Some(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(rest, b"");
        (moov.expect("moov"), fragments, mfra)
    }

    /// Feeds pictures and packets.
    fn write(tracks: Tracks, media: &[Media]) -> (Vec<u8>, Mp4Writer) {
        let mut writer = Mp4Writer::new(tracks, FragmentLimits::default());
        let mut file = Vec::new();
        for item in media {
            match *item {
                Media::Key(ms) => writer.video(&unit(ms, &[SPS, PPS, IDR])),
                Media::Delta(ms) => writer.video(&unit(ms, &[P])),
                Media::Sound(ms) => writer.audio(&packet(ms)),
            }
            take(&mut writer, &mut file);
        }
        (file, writer)
    }

    #[derive(Debug, Clone, Copy)]
    enum Media {
        Key(i64),
        Delta(i64),
        Sound(i64),
    }
    use Media::{Delta, Key, Sound};

    /// Times and durations of samples, in ms.
    type Times<'a> = &'a [(u64, u64)];

    /// Times by fragment: video, then sound.
    #[track_caller]
    fn check(media: &[Media], expected: &[(Times<'_>, Times<'_>)]) {
        let (mut file, mut writer) = write(BOTH, media);
        writer.finish();
        take(&mut writer, &mut file);
        let (_, fragments, _) = read(&file);
        let times = |samples: &[Found], track, per_ms| -> Vec<(u64, u64)> {
            let of_track = samples.iter().filter(|(id, ..)| *id == track);
            of_track.map(|(_, time, duration, ..)| (time / per_ms, u64::from(*duration) / per_ms)).collect()
        };
        let got: Vec<_> =
            fragments.iter().map(|samples| (times(samples, VIDEO_ID, 90), times(samples, AUDIO_ID, 48))).collect();
        let got: Vec<_> = got.iter().map(|(video, audio)| (&video[..], &audio[..])).collect();
        assert_eq!(got, expected, "{media:?}");
    }

    #[test]
    fn samples_stand_at_their_capture_times() {
        // Irregular pictures; the last stands as long as the one before. Sound of before the first picture is left out.
        check(
            &[Sound(990), Key(1000), Sound(1010), Delta(1033), Sound(1030), Delta(1100)],
            &[(&[(0, 33), (33, 67), (100, 67)], &[(10, 20), (30, 20)])],
        );
        // Sound that is ahead of the first keyframe waits for it.
        check(&[Sound(990), Sound(1010), Delta(999), Key(1000)], &[(&[(0, 33)], &[(10, 20)])]);
        // A fragment ends in front of each keyframe, and after a second.
        check(
            &[Key(0), Delta(40), Key(80), Delta(1090), Delta(1130)],
            &[(&[(0, 40), (40, 40)], &[]), (&[(80, 1010)], &[]), (&[(1090, 40), (1130, 40)], &[])],
        );
        // A lost packet is a gap behind which a fragment begins; the last picture waits for its successor.
        check(
            &[Key(0), Sound(0), Sound(20), Delta(40), Sound(60), Delta(80)],
            &[(&[(0, 40)], &[(0, 20), (20, 20)]), (&[(40, 40), (80, 40)], &[(60, 20)])],
        );
        // Less than a packet's worth is the correction of a clock.
        check(&[Key(0), Sound(0), Sound(21), Sound(40)], &[(&[(0, 33)], &[(0, 21), (21, 19), (40, 20)])]);
        // Pictures stop, sound goes on, pictures come back.
        check(
            &[Key(0), Delta(40), Sound(0), Sound(500), Sound(1000), Sound(1500), Delta(1600)],
            &[
                (&[(0, 40)], &[(0, 20)]),
                (&[], &[(500, 20)]),
                (&[], &[(1000, 20)]),
                (&[(40, 1560)], &[(1500, 20)]),
                (&[(1600, 40)], &[]),
            ],
        );
    }

    #[test]
    fn a_finished_file_tells_its_durations_and_an_unfinished_one_none() {
        let (mut file, mut writer) = write(BOTH, &[Key(500), Sound(505), Delta(540), Key(580), Sound(525), Delta(620)]);
        let (moov, fragments, mfra) = read(&file);
        assert_eq!((moov.mvhd.duration, fragments.len(), mfra), (0, 1, None));
        let len = file.len();
        writer.finish();
        writer.finish();
        writer.video(&unit(700, &[P]));
        writer.audio(&packet(700));
        take(&mut writer, &mut file);
        assert!(file.len() > len);
        let (moov, fragments, mfra) = read(&file);
        assert_eq!(fragments.len(), 2);
        assert_eq!(moov.mvhd.duration, 160_000);
        assert_eq!(
            moov.mvex.as_ref().and_then(|mvex| mvex.mehd.as_ref()).map(|mehd| mehd.fragment_duration),
            Some(160_000)
        );
        let tracks: Vec<_> = moov.trak.iter().map(|t| (t.mdia.mdhd.timescale, t.mdia.mdhd.duration)).collect();
        assert_eq!(tracks, [(90_000, 160 * 90), (48_000, 45 * 48)]);
        let mfra = mfra.expect("an index");
        let times: Vec<_> =
            mfra.tfra[0].entries.iter().map(|e| (e.time / 90, &file[e.moof_offset as usize + 4..][..4])).collect();
        assert_eq!(times, [(0, &b"moof"[..]), (80, &b"moof"[..])]);
        assert_eq!(&file[file.len() - mfra.mfro.parent_size as usize + 4..][..4], b"mfra");
        let progress = writer.progress();
        assert_eq!((progress.pictures, progress.keyframes, progress.packets, progress.fragments), (4, 2, 2, 2));
        assert_eq!((progress.bytes, progress.duration), (file.len() as u64, Duration::from_millis(160)));
    }

    #[test]
    fn parameter_sets_stand_in_the_entry_until_others_come() {
        let mut writer = Mp4Writer::new(Tracks { video: true, audio: false }, FragmentLimits::default());
        let mut file = Vec::new();
        let aud: &[u8] = &[9, 0xf0];
        writer.video(&unit(0, &[aud, SPS, PPS, IDR]));
        writer.video(&unit(40, &[SPS, PPS, IDR]));
        writer.video(&unit(80, &[P]));
        take(&mut writer, &mut file);
        let (moov, fragments, _) = read(&file);
        assert_eq!(fragments[0][0].4, [0, 0, 0, 3, 0x65, 0x88, 0x84]);
        let atom::Codec::Avc1(entry) = &moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else { panic!("avc1") };
        assert_eq!(entry.avcc.sequence_parameter_sets, [SPS]);
        assert_eq!(entry.avcc.picture_parameter_sets, [PPS]);
        assert_eq!((entry.visual.width, entry.visual.height, entry.avcc.ext.is_some()), (1280, 720, false));
        writer.video(&unit(120, &[OTHER_SPS, PPS, IDR]));
        writer.video(&unit(160, &[SPS, PPS, IDR]));
        writer.finish();
        take(&mut writer, &mut file);
        let (moov, fragments, _) = read(&file);
        assert!(matches!(moov.trak[0].mdia.minf.stbl.stsd.codecs[0], atom::Codec::Avc3(_)));
        let lens: Vec<Vec<usize>> = fragments.iter().map(|f| f.iter().map(|s| s.4.len()).collect()).collect();
        let all = |sps: &[u8]| 12 + sps.len() + PPS.len() + IDR.len();
        assert_eq!(lens, [vec![7], vec![7, 7], vec![all(OTHER_SPS)], vec![all(SPS)]]);
    }

    #[test]
    fn high_profile_tells_its_chroma() {
        let mut writer = Mp4Writer::new(Tracks { video: true, audio: false }, FragmentLimits::default());
        let mut file = Vec::new();
        writer.video(&unit(0, &[OTHER_SPS, PPS, IDR]));
        take(&mut writer, &mut file);
        let (moov, ..) = read(&file);
        let atom::Codec::Avc1(entry) = &moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else { panic!("avc1") };
        assert_eq!((entry.visual.width, entry.visual.height), (1920, 1080));
        assert_eq!(entry.avcc.ext, Some(atom::AvccExt::default()), "4:2:0, 8 bits");
    }

    #[test]
    fn what_is_no_picture_is_dropped_and_counted() {
        let mut writer = Mp4Writer::new(BOTH, FragmentLimits::default());
        let mut file = Vec::new();
        for nals in [&[P][..], &[IDR], &[PPS, IDR], &[SPS, IDR], &[&[0x67, 0x42], PPS, IDR]] {
            writer.video(&unit(0, nals));
        }
        assert_eq!(writer.progress().dropped_before_start, 5);
        for nals in [&[][..], &[SPS, PPS], &[&[9]], &[&[0x1f, 1, 2]]] {
            writer.video(&unit(0, nals));
        }
        let vp8 = AccessUnit::new(VideoCodec::Vp8, [1, 2, 3], at(0), true, Size::new(16, 16), Stages::all_at(at(0)));
        writer.video(&vp8);
        writer.audio(&AudioPacket { data: [].into(), ..packet(0) });
        assert_eq!(writer.progress().dropped_bad, 6);
        writer.finish();
        take(&mut writer, &mut file);
        assert!(file.is_empty() && !writer.progress().started, "no keyframe, no file");

        let mut writer = Mp4Writer::new(BOTH, FragmentLimits::default());
        writer.video(&unit(0, &[SPS, PPS, IDR]));
        writer.video(&unit(40, &[&[0x67, 0x42], PPS, IDR]));
        writer.video(&unit(80, &[P]));
        let progress = writer.progress();
        assert_eq!((progress.dropped_bad, progress.pictures), (1, 2));
    }

    #[test]
    fn a_fragment_that_grows_too_large_ends_early() {
        let limits = FragmentLimits { bytes: 10_000, ..Default::default() };
        let mut writer = Mp4Writer::new(BOTH, limits);
        let mut file = Vec::new();
        writer.video(&unit(0, &[SPS, PPS, IDR]));
        let large = [P, &[0x55; 4000]].concat();
        for n in 1..10 {
            writer.video(&unit(n, &[&large]));
            writer.audio(&packet(n * 20));
            assert!(writer.waiting < 14_100, "{}", writer.waiting);
        }
        writer.finish();
        take(&mut writer, &mut file);
        let (_, fragments, _) = read(&file);
        assert!(fragments.len() >= 3);
        assert_eq!(fragments.iter().map(Vec::len).sum::<usize>(), 19);
    }

    #[test]
    fn sound_alone_starts_with_its_first_packet() {
        let tracks = Tracks { video: false, audio: true };
        let (mut file, mut writer) = write(tracks, &[Sound(70), Key(71), Sound(90), Sound(110)]);
        writer.finish();
        take(&mut writer, &mut file);
        let (moov, fragments, mfra) = read(&file);
        assert_eq!(moov.trak.len(), 1);
        let atom::Codec::Opus(entry) = &moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else { panic!("Opus") };
        assert_eq!((entry.dops.pre_skip, entry.dops.output_channel_count), (0, 2));
        let times: Vec<_> = fragments[0].iter().map(|(_, time, ..)| time / 48).collect();
        assert_eq!(times, [0, 20, 40]);
        assert_eq!(mfra.expect("an index").tfra[0].entries.len(), 1);
        assert_eq!(writer.progress().duration, Duration::from_millis(60));
    }
}
