//! WebM (RFC 9559 and the WebM Project's guidelines): VP8, VP9 or AV1, and Opus.
//!
//! ```text
//!   EBML Segment( Void Info Tracks │ Cluster │ Cluster │ … │ Cues )      at the end: `Void` becomes `SeekHead`, `Info` tells the duration
//! ```
//!
//! Times are capture times to the millisecond, which is what WebM has. Clusters say their length, so that one that is cut off is
//! told from one that is whole. The file's segment has no length until it is finished, as in a live stream.

use std::collections::VecDeque;
use std::time::Duration;

use super::ebml::{self, element, float, master, uint, uint64};
use super::index::Index;
use super::intake::Intake;
use super::{Container, FragmentLimits, MAX_FRAGMENT_SAMPLES, Progress, Tracks, Write};
use crate::access_unit::{AccessUnit, VideoCodec};
use crate::audio::{AudioPacket, SAMPLE_RATE_HZ};
use crate::frame::Size;
use crate::{av1, vp8, vp9};

const VIDEO_NUMBER: u8 = 1;
const AUDIO_NUMBER: u8 = 2;

/// A block's time counts from its cluster's in 16 bits, milliseconds (RFC 9559 §10.2).
const MAX_CLUSTER: Duration = Duration::from_secs(30);

/// Sound that a decoder needs before what it makes is right, nanoseconds (RFC 7845 §4.6).
const SEEK_PRE_ROLL_NS: u64 = 80_000_000;

/// Identification header of Opus (RFC 7845 §5.1), two channels, no pre-skip: see [`super::mp4`].
const OPUS_HEAD: [u8; 19] = {
    let [a, b, c, d] = SAMPLE_RATE_HZ.to_le_bytes();
    [b'O', b'p', b'u', b's', b'H', b'e', b'a', b'd', 1, 2, 0, 0, a, b, c, d, 0, 0, 0]
};

mod id {
    pub(super) const EBML: u32 = 0x1a45_dfa3;
    pub(super) const EBML_VERSION: u32 = 0x4286;
    pub(super) const EBML_READ_VERSION: u32 = 0x42f7;
    pub(super) const EBML_MAX_ID_LENGTH: u32 = 0x42f2;
    pub(super) const EBML_MAX_SIZE_LENGTH: u32 = 0x42f3;
    pub(super) const DOC_TYPE: u32 = 0x4282;
    pub(super) const DOC_TYPE_VERSION: u32 = 0x4287;
    pub(super) const DOC_TYPE_READ_VERSION: u32 = 0x4285;
    pub(super) const SEGMENT: u32 = 0x1853_8067;
    pub(super) const SEEK_HEAD: u32 = 0x114d_9b74;
    pub(super) const SEEK: u32 = 0x4dbb;
    pub(super) const SEEK_ID: u32 = 0x53ab;
    pub(super) const SEEK_POSITION: u32 = 0x53ac;
    pub(super) const INFO: u32 = 0x1549_a966;
    pub(super) const TIMESTAMP_SCALE: u32 = 0x2a_d7b1;
    pub(super) const DURATION: u32 = 0x4489;
    pub(super) const MUXING_APP: u32 = 0x4d80;
    pub(super) const WRITING_APP: u32 = 0x5741;
    pub(super) const TRACKS: u32 = 0x1654_ae6b;
    pub(super) const TRACK_ENTRY: u32 = 0xae;
    pub(super) const TRACK_NUMBER: u32 = 0xd7;
    pub(super) const TRACK_UID: u32 = 0x73c5;
    pub(super) const TRACK_TYPE: u32 = 0x83;
    pub(super) const FLAG_LACING: u32 = 0x9c;
    pub(super) const CODEC_ID: u32 = 0x86;
    pub(super) const CODEC_PRIVATE: u32 = 0x63a2;
    pub(super) const SEEK_PRE_ROLL: u32 = 0x56bb;
    pub(super) const VIDEO: u32 = 0xe0;
    pub(super) const PIXEL_WIDTH: u32 = 0xb0;
    pub(super) const PIXEL_HEIGHT: u32 = 0xba;
    pub(super) const AUDIO: u32 = 0xe1;
    pub(super) const SAMPLING_FREQUENCY: u32 = 0xb5;
    pub(super) const CHANNELS: u32 = 0x9f;
    pub(super) const CLUSTER: u32 = 0x1f43_b675;
    pub(super) const TIMESTAMP: u32 = 0xe7;
    pub(super) const SIMPLE_BLOCK: u32 = 0xa3;
    pub(super) const CUES: u32 = 0x1c53_bb6b;
    pub(super) const CUE_POINT: u32 = 0xbb;
    pub(super) const CUE_TIME: u32 = 0xb3;
    pub(super) const CUE_TRACK_POSITIONS: u32 = 0xb7;
    pub(super) const CUE_TRACK: u32 = 0xf7;
    pub(super) const CUE_CLUSTER_POSITION: u32 = 0xf1;
}

/// Writes WebM. See [`Container`] for the order of calls.
#[derive(Debug)]
pub struct WebmWriter {
    codec: VideoCodec,
    intake: Intake,
    limits: FragmentLimits,
    size: Size,
    /// What a decoder must know beforehand; AV1 only.
    codec_private: Vec<u8>,
    blocks: Vec<Block>,
    waiting: usize,
    /// Where the segment's data begins; positions in the file count from here.
    segment_at: u64,
    /// Where `Info` stands.
    info_at: u64,
    /// Bytes given out.
    end: u64,
    index: Index,
    out: VecDeque<Write>,
}

#[derive(Debug)]
struct Block {
    track: u8,
    /// Milliseconds.
    at: u64,
    data: Vec<u8>,
    keyframe: bool,
}

impl WebmWriter {
    /// A writer for a file with these tracks, the pictures in VP8, VP9 or AV1.
    pub fn new(codec: VideoCodec, tracks: Tracks, limits: FragmentLimits) -> Self {
        Self {
            codec,
            intake: Intake::new(tracks),
            limits: FragmentLimits { duration: limits.duration.min(MAX_CLUSTER), ..limits },
            size: Size::new(0, 0),
            codec_private: Vec::new(),
            blocks: Vec::new(),
            waiting: 0,
            segment_at: 0,
            info_at: 0,
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
        let mut bytes = master(
            id::EBML,
            &[
                uint(id::EBML_VERSION, 1),
                uint(id::EBML_READ_VERSION, 1),
                uint(id::EBML_MAX_ID_LENGTH, 4),
                uint(id::EBML_MAX_SIZE_LENGTH, 8),
                element(id::DOC_TYPE, b"webm"),
                // SeekPreRoll came with version 4; a reader of version 2 needs none of it.
                uint(id::DOC_TYPE_VERSION, 4),
                uint(id::DOC_TYPE_READ_VERSION, 2),
            ],
        );
        bytes.extend(ebml::id_bytes(id::SEGMENT));
        bytes.extend(ebml::UNKNOWN_SIZE);
        self.segment_at = bytes.len() as u64;
        bytes.extend(ebml::void(seek_head(0, 0, 0).len()));
        self.info_at = bytes.len() as u64;
        bytes.extend(info(None));
        bytes.extend(self.tracks());
        self.append(bytes);
    }

    fn tracks(&self) -> Vec<u8> {
        let entry = |number: u8, kind: u64, codec: &[u8], rest: Vec<u8>| {
            let (number, lacing) = (u64::from(number), uint(id::FLAG_LACING, 0));
            let (uid, kind) = (uint(id::TRACK_UID, number), uint(id::TRACK_TYPE, kind));
            let children = [uint(id::TRACK_NUMBER, number), uid, kind, lacing, element(id::CODEC_ID, codec), rest];
            master(id::TRACK_ENTRY, &children)
        };
        let tracks = self.intake.tracks();
        let video = tracks.video.then(|| {
            let (width, height) = (u64::from(self.size.width), u64::from(self.size.height));
            let size = [uint(id::PIXEL_WIDTH, width), uint(id::PIXEL_HEIGHT, height)];
            let name: &[u8] = match self.codec {
                VideoCodec::Vp9 => b"V_VP9",
                VideoCodec::Av1 => b"V_AV1",
                _ => b"V_VP8",
            };
            let private = match &self.codec_private[..] {
                [] => Vec::new(),
                known => element(id::CODEC_PRIVATE, known),
            };
            entry(VIDEO_NUMBER, 1, name, [private, master(id::VIDEO, &size)].concat())
        });
        let audio = tracks.audio.then(|| {
            let form = [float(id::SAMPLING_FREQUENCY, f64::from(SAMPLE_RATE_HZ)), uint(id::CHANNELS, 2)];
            let rest = [
                element(id::CODEC_PRIVATE, &OPUS_HEAD),
                uint(id::SEEK_PRE_ROLL, SEEK_PRE_ROLL_NS),
                master(id::AUDIO, &form),
            ];
            entry(AUDIO_NUMBER, 2, b"A_OPUS", rest.concat())
        });
        master(id::TRACKS, &video.into_iter().chain(audio).collect::<Vec<_>>())
    }

    fn push_packet(&mut self, packet: &AudioPacket) {
        let started = self.intake.started();
        let Some(at) = self.intake.packet(packet) else { return };
        if !started {
            self.header();
        }
        // Each packet of sound is a point to seek to where there are no pictures; one a cluster is enough.
        self.push(AUDIO_NUMBER, at, packet.data.to_vec(), true);
    }

    fn push(&mut self, track: u8, micros: u64, data: Vec<u8>, keyframe: bool) {
        let at = (micros + 500) / 1000;
        let (first, last) =
            self.blocks.iter().fold((at, at), |(first, last), block| (first.min(block.at), last.max(block.at)));
        let picture = track == VIDEO_NUMBER && keyframe;
        if u128::from(last - first) >= self.limits.duration.as_millis()
            || self.waiting >= self.limits.bytes
            || self.blocks.len() >= MAX_FRAGMENT_SAMPLES
            || (picture && !self.blocks.is_empty())
        {
            self.cut();
        }
        self.waiting += data.len();
        self.blocks.push(Block { track, at, data, keyframe });
    }

    /// Gives out what was collected.
    fn cut(&mut self) {
        let mut blocks = std::mem::take(&mut self.blocks);
        self.waiting = 0;
        blocks.sort_by_key(|block| block.at);
        let Some(first) = blocks.first().map(|block| block.at) else { return };
        let mut data = uint(id::TIMESTAMP, first);
        for block in &blocks {
            // `push` keeps them within `MAX_CLUSTER`.
            let offset = i16::try_from(block.at - first).unwrap_or(i16::MAX).to_be_bytes();
            let head = [0x80 | block.track, offset[0], offset[1], if block.keyframe { 0x80 } else { 0 }];
            data.extend(element(id::SIMPLE_BLOCK, &[&head, &block.data[..]].concat()));
        }
        let seek_to = if self.intake.tracks().video { VIDEO_NUMBER } else { AUDIO_NUMBER };
        if let Some(block) = blocks.iter().find(|block| block.track == seek_to && block.keyframe) {
            self.index.push(block.at, self.end - self.segment_at);
        }
        self.intake.progress.fragments += 1;
        self.append(element(id::CLUSTER, &data));
    }

    fn take_picture(&mut self, unit: &AccessUnit) {
        if !self.intake.wants(unit) {
            return;
        }
        let data = &unit.data;
        let (keyframe, size) = match unit.codec {
            VideoCodec::Vp8 => (vp8::is_keyframe(data), vp8::size_of(data)),
            // Of several layers the frame tells the lowest one's size, the descriptors told the highest one's.
            VideoCodec::Vp9 => (vp9::is_keyframe(data), vp9::size_of(data).and(Some(unit.size))),
            VideoCodec::Av1 => {
                let keyframe = av1::is_keyframe(data);
                (keyframe, av1::size_of(data).filter(|_| keyframe))
            }
            _ => (false, None),
        };
        let private = if unit.codec == VideoCodec::Av1 { av1::configuration(data) } else { Some(Vec::new()) };
        if unit.codec != self.codec || (keyframe && (size.is_none() || private.is_none())) {
            self.intake.progress.dropped_bad += 1;
            return;
        }
        let mut held = VecDeque::new();
        if !self.intake.started() {
            let Some(size) = size else {
                self.intake.progress.dropped_before_start += 1;
                return;
            };
            self.size = size;
            self.codec_private = private.unwrap_or_default();
            held = self.intake.start(unit.captured);
            self.header();
        }
        if let Some(at) = self.intake.picture(unit.captured, size.is_some()) {
            self.push(VIDEO_NUMBER, at, unit.data.to_vec(), size.is_some());
        }
        for packet in held {
            self.push_packet(&packet);
        }
    }
}

impl Container for WebmWriter {
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
        self.cut();
        let track = if self.intake.tracks().video { VIDEO_NUMBER } else { AUDIO_NUMBER };
        let cues_at = self.end - self.segment_at;
        let points: Vec<_> = self.index.points().iter().map(|point| cue(track, point.time, point.offset)).collect();
        // An empty one is not allowed (RFC 9559 §5.1.5.1).
        if !points.is_empty() {
            self.append(master(id::CUES, &points));
        }
        let info = info(Some(self.intake.progress().duration));
        let info_at = self.info_at - self.segment_at;
        let head = seek_head(info_at, info_at + info.len() as u64, cues_at);
        let size = ebml::long_size(self.end - self.segment_at);
        self.out.push_back(Write::Patch { offset: self.info_at, bytes: info });
        if !points.is_empty() {
            self.out.push_back(Write::Patch { offset: self.segment_at, bytes: head });
        }
        self.out.push_back(Write::Patch { offset: self.segment_at - size.len() as u64, bytes: size.to_vec() });
    }

    fn poll(&mut self) -> Option<Write> {
        self.out.pop_front()
    }

    fn progress(&self) -> Progress {
        self.intake.progress()
    }
}

/// As long with a duration as without one.
fn info(duration: Option<Duration>) -> Vec<u8> {
    let known = duration.map(|duration| float(id::DURATION, duration.as_secs_f64() * 1000.0));
    let duration = known.unwrap_or_else(|| ebml::void(float(id::DURATION, 0.0).len()));
    let (scale, app) = (uint(id::TIMESTAMP_SCALE, 1_000_000), b"lightpipe");
    master(id::INFO, &[scale, duration, element(id::MUXING_APP, app), element(id::WRITING_APP, app)])
}

/// Where the parts are, counted from the beginning of the segment's data. Of one length.
fn seek_head(info: u64, tracks: u64, cues: u64) -> Vec<u8> {
    let seek = |(id, at): (u32, u64)| {
        master(id::SEEK, &[element(id::SEEK_ID, &ebml::id_bytes(id)), uint64(id::SEEK_POSITION, at)])
    };
    master(id::SEEK_HEAD, &[(id::INFO, info), (id::TRACKS, tracks), (id::CUES, cues)].map(seek))
}

fn cue(track: u8, time: u64, cluster: u64) -> Vec<u8> {
    let position = [uint(id::CUE_TRACK, u64::from(track)), uint(id::CUE_CLUSTER_POSITION, cluster)];
    master(id::CUE_POINT, &[uint(id::CUE_TIME, time), master(id::CUE_TRACK_POSITIONS, &position)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_unit::Stages;
    use crate::time::MediaTime;

    /// An element's id, where its data begins in the file, and its data. Sizes that are unknown reach to the end.
    fn elements(file: &[u8], mut at: usize, end: usize) -> Vec<(u32, usize, &[u8])> {
        let mut found = Vec::new();
        while at < end {
            let id_len = file[at].leading_zeros() as usize + 1;
            let id = file[at..at + id_len].iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
            at += id_len;
            let size_len = file[at].leading_zeros() as usize + 1;
            let size = file[at..at + size_len].iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
            let size = size & ((1 << (7 * size_len)) - 1);
            at += size_len;
            let len = if size == (1 << (7 * size_len)) - 1 { end - at } else { size as usize };
            found.push((id, at, &file[at..at + len]));
            at += len;
        }
        assert_eq!(at, end, "elements fill their parent");
        found
    }

    fn child(file: &[u8], of: &(u32, usize, &[u8]), id: u32) -> u64 {
        let children = elements(file, of.1, of.1 + of.2.len());
        let data = children.iter().find(|child| child.0 == id).expect("a child").2;
        data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn media(ms: i64) -> (AccessUnit, AudioPacket) {
        let at = MediaTime::from_micros(ms * 1000);
        let keyframe = ms % 2000 == 0;
        let data: &[u8] = if keyframe { &[0x10, 2, 0, 0x9d, 1, 0x2a, 0x80, 2, 0x68, 1, 7] } else { &[0x11, 2, 3] };
        let duration = Duration::from_millis(20);
        (
            AccessUnit::new(VideoCodec::Vp8, data, at, keyframe, Size::new(640, 360), Stages::all_at(at)),
            AudioPacket {
                data: [0xfc, 1].into(),
                captured: at,
                duration,
                encoded: at,
                starts_talkspurt: false,
                origin: None,
            },
        )
    }

    #[test]
    fn clusters_begin_with_keyframes_or_after_a_second_and_the_end_tells_where_they_are() {
        let mut writer =
            WebmWriter::new(VideoCodec::Vp8, Tracks { video: true, audio: true }, FragmentLimits::default());
        let mut file = Vec::new();
        let mut take = |writer: &mut WebmWriter| {
            while let Some(write) = writer.poll() {
                match write {
                    Write::Append(bytes) => file.extend(bytes),
                    Write::Patch { offset, bytes } => {
                        file[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
            file.clone()
        };
        for ms in (1960..5000).step_by(40) {
            let (unit, packet) = media(ms);
            writer.video(&unit);
            writer.audio(&packet);
        }
        let file = take(&mut writer);
        let top = elements(&file, 0, file.len());
        assert_eq!(top.iter().map(|e| e.0).collect::<Vec<_>>(), [id::EBML, id::SEGMENT]);
        let ids = |file: &[u8]| -> Vec<u32> {
            let segment = elements(file, 0, file.len())[1];
            elements(file, segment.1, file.len()).iter().map(|e| e.0).collect()
        };
        assert_eq!(ids(&file), [0xec, id::INFO, id::TRACKS, id::CLUSTER, id::CLUSTER], "a cluster is still open");

        writer.finish();
        writer.finish();
        let file = take(&mut writer);
        assert_eq!(ids(&file), [id::SEEK_HEAD, id::INFO, id::TRACKS, id::CLUSTER, id::CLUSTER, id::CLUSTER, id::CUES]);
        let segment = elements(&file, 0, file.len())[1];
        let parts = elements(&file, segment.1, file.len());
        assert_eq!(f64::from_bits(child(&file, &parts[1], id::DURATION)), 3000.0);
        let clusters: Vec<_> = parts.iter().filter(|part| part.0 == id::CLUSTER).collect();
        let times: Vec<u64> = clusters.iter().map(|cluster| child(&file, cluster, id::TIMESTAMP)).collect();
        assert_eq!(times, [0, 1000, 2000]);
        for cluster in &clusters {
            let all = elements(&file, cluster.1, cluster.1 + cluster.2.len());
            let offsets: Vec<i16> =
                all.iter().skip(1).map(|block| i16::from_be_bytes([block.2[1], block.2[2]])).collect();
            assert!(all.len() == 51 && offsets.is_sorted(), "{offsets:?}");
        }
        // The index names the clusters with keyframes, the seek head the index.
        let cues = parts.last().expect("cues");
        let points = elements(&file, cues.1, file.len());
        assert_eq!(points.iter().map(|point| child(&file, point, id::CUE_TIME)).collect::<Vec<_>>(), [0, 2000]);
        let named = |at: u64| elements(&file, segment.1 + at as usize, file.len())[0].0;
        for point in &points {
            let inner = elements(&file, point.1, point.1 + point.2.len());
            assert_eq!(named(child(&file, &inner[1], id::CUE_CLUSTER_POSITION)), id::CLUSTER);
        }
        let seeks = elements(&file, parts[0].1, parts[0].1 + parts[0].2.len());
        for seek in &seeks {
            assert_eq!(u64::from(named(child(&file, seek, id::SEEK_POSITION))), child(&file, seek, id::SEEK_ID));
        }
        assert_eq!(seeks.len(), 3);
        assert_eq!((writer.progress().pictures, writer.progress().dropped_before_start), (75, 1 + 1));
    }
}
