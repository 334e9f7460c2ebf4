//! OpenH264 (BSD-2), driven through its C interface: the safe wrapper has no bitrate setter.
//!
//! Constrained Baseline, one slice, one thread, no B-frames; a forced keyframe comes out of the same call.

#![allow(unsafe_code)] // FFI; each block says what it relies on.

use std::ptr;
use std::time::Instant;

use lightpipe_media::{PixelFormat, Size, VideoCodec, VideoFrame};
use openh264_sys2 as sys;

use crate::encoder::{Content, EncodeError, Encoded, EncoderConfig, VideoEncoder};

const BACKEND: &str = "openh264";

/// Largest side that the library takes.
const MAX_SIDE: u32 = 4096;

/// An OpenH264 encoder instance.
pub struct OpenH264 {
    encoder: *mut sys::ISVCEncoder,
    config: EncoderConfig,
    force_keyframe: bool,
    ready: Option<Encoded>,
    /// 20 KiB that the library fills on each call; boxed so that moving the encoder is cheap.
    info: Box<sys::SFrameBSInfo>,
}

// SAFETY: the library keeps no thread-local state; an instance may be used from any one thread at a time, and
// `&mut self` on every call guarantees one at a time.
unsafe impl Send for OpenH264 {}

impl std::fmt::Debug for OpenH264 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenH264").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Calls a method of the instance's C vtable.
macro_rules! call {
    ($self:expr, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: `encoder` was made by WelsCreateSVCEncoder and is destroyed in Drop only, so it and its vtable are
        // valid here; the pointers passed along outlive the call, and the library keeps none of them.
        let code = unsafe {
            match (**$self.encoder).$method {
                Some(function) => function($self.encoder $(, $argument)*),
                None => -1,
            }
        };
        if code == 0 { Ok(()) } else {
            Err(EncodeError::Backend { backend: BACKEND, call: stringify!($method), code: i64::from(code) })
        }
    }};
}

impl OpenH264 {
    /// An encoder for pictures as `config` says.
    pub fn new(config: EncoderConfig) -> Result<Self, EncodeError> {
        let Size { width, height } = config.size;
        let sides = 16..=MAX_SIDE;
        if config.size != config.size.to_even() || !sides.contains(&width) || !sides.contains(&height) {
            let what = format!("a picture of {}: both sides must be even and 16 to {MAX_SIDE}", config.size);
            return Err(EncodeError::Unsupported { backend: BACKEND, what });
        }
        let mut encoder = ptr::null_mut();
        // SAFETY: the out pointer is valid for the call.
        let code = unsafe { sys::source::APILoader::WelsCreateSVCEncoder(&raw mut encoder) };
        if code != 0 || encoder.is_null() {
            return Err(EncodeError::Backend { backend: BACKEND, call: "WelsCreateSVCEncoder", code: i64::from(code) });
        }
        let this = Self { encoder, config, force_keyframe: false, ready: None, info: Box::default() };
        let mut quiet = sys::WELS_LOG_QUIET;
        this.set_option(sys::ENCODER_OPTION_TRACE_LEVEL, &mut quiet)?;
        let mut parameters = sys::SEncParamExt::default();
        call!(this, GetDefaultParams, &raw mut parameters)?;
        this.fill(&mut parameters);
        call!(this, InitializeExt, &raw const parameters)?;
        let mut format = sys::videoFormatI420;
        this.set_option(sys::ENCODER_OPTION_DATAFORMAT, &mut format)?;
        Ok(this)
    }

    fn fill(&self, p: &mut sys::SEncParamExt) {
        let config = &self.config;
        let (width, height) = (config.size.width as i32, config.size.height as i32);
        let bitrate = to_c_bitrate(config.bitrate_bps);
        p.iUsageType = match config.content {
            Content::Camera => sys::CAMERA_VIDEO_REAL_TIME,
            Content::Screen => sys::SCREEN_CONTENT_REAL_TIME,
        };
        p.iPicWidth = width;
        p.iPicHeight = height;
        p.iTargetBitrate = bitrate;
        p.iRCMode = sys::RC_BITRATE_MODE;
        p.fMaxFrameRate = config.fps as f32;
        p.iTemporalLayerNum = 1;
        p.iSpatialLayerNum = 1;
        p.iComplexityMode = sys::LOW_COMPLEXITY;
        p.uiIntraPeriod = config.keyframe_interval;
        p.iNumRefFrame = 1;
        p.eSpsPpsIdStrategy = sys::CONSTANT_ID;
        p.bEnableSSEI = false;
        p.iEntropyCodingModeFlag = 0; // CAVLC: Constrained Baseline has no CABAC.
        // A skipped picture is a visible stutter; a picture that is some bytes too large is not.
        p.bEnableFrameSkip = false;
        p.iMultipleThreadIdc = 1;
        p.bEnableDenoise = false;
        p.bEnableFrameCroppingFlag = true;
        // Keyframes come when a viewer or the interval asks, never by surprise.
        p.bEnableSceneChangeDetect = false;
        p.bEnableLongTermReference = false;
        let layer = &mut p.sSpatialLayers[0];
        layer.iVideoWidth = width;
        layer.iVideoHeight = height;
        layer.fFrameRate = config.fps as f32;
        layer.iSpatialBitrate = bitrate;
        layer.iMaxSpatialBitrate = 0; // UNSPECIFIED_BIT_RATE
        layer.uiProfileIdc = sys::PRO_BASELINE;
        layer.uiLevelIdc = 0; // LEVEL_UNKNOWN: chosen by size and rate
        layer.sSliceArgument.uiSliceMode = sys::SM_SINGLE_SLICE;
        // BT.709, limited range, said in the bitstream: a receiver that guesses turns colours.
        layer.bVideoSignalTypePresent = true;
        layer.uiVideoFormat = 5; // unspecified
        layer.bFullRange = false;
        layer.bColorDescriptionPresent = true;
        layer.uiColorPrimaries = 1;
        layer.uiTransferCharacteristics = 1;
        layer.uiColorMatrix = 1;
    }

    fn set_option<T>(&self, option: sys::ENCODER_OPTION, value: &mut T) -> Result<(), EncodeError> {
        call!(self, SetOption, option, ptr::from_mut(value).cast())
    }

    /// Collects the NAL units of the last call.
    fn bitstream(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(usize::try_from(self.info.iFrameSizeInBytes).unwrap_or(0));
        let layers = usize::try_from(self.info.iLayerNum).unwrap_or(0);
        for layer in self.info.sLayerInfo.iter().take(layers) {
            let nals = usize::try_from(layer.iNalCount).unwrap_or(0);
            if nals == 0 || layer.pBsBuf.is_null() || layer.pNalLengthInByte.is_null() {
                continue;
            }
            // SAFETY: after a successful EncodeFrame the library guarantees iNalCount lengths at pNalLengthInByte and
            // their sum of bytes at pBsBuf, valid until the next call on this instance.
            let bytes = unsafe {
                let lengths = std::slice::from_raw_parts(layer.pNalLengthInByte, nals);
                let total: usize = lengths.iter().map(|l| usize::try_from(*l).unwrap_or(0)).sum();
                std::slice::from_raw_parts(layer.pBsBuf, total)
            };
            data.extend_from_slice(bytes);
        }
        data
    }
}

fn to_c_bitrate(bps: u64) -> i32 {
    i32::try_from(bps.max(10_000)).unwrap_or(i32::MAX)
}

impl VideoEncoder for OpenH264 {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn codec(&self) -> VideoCodec {
        VideoCodec::H264
    }

    fn accepts(&self) -> &'static [PixelFormat] {
        &[PixelFormat::I420]
    }

    fn submit(&mut self, frame: &VideoFrame) -> Result<(), EncodeError> {
        if frame.format() != PixelFormat::I420 || frame.size() != self.config.size {
            return Err(EncodeError::WrongPicture {
                expected: format!("{} I420", self.config.size),
                got: format!("{} {:?}", frame.size(), frame.format()),
            });
        }
        let started = Instant::now();
        if std::mem::take(&mut self.force_keyframe) {
            call!(self, ForceIntraFrame, true)?;
        }
        let mut picture = sys::SSourcePicture {
            iColorFormat: sys::videoFormatI420,
            iPicWidth: self.config.size.width as i32,
            iPicHeight: self.config.size.height as i32,
            uiTimeStamp: frame.captured.as_micros() / 1000,
            ..sys::SSourcePicture::default()
        };
        for plane in 0..3 {
            picture.iStride[plane] = frame.layout(plane).stride as i32;
            // The library's type is mutable, but EncodeFrame takes a const picture and only reads the planes.
            picture.pData[plane] = frame.plane(plane).as_ptr().cast_mut();
        }
        call!(self, EncodeFrame, &raw const picture, &raw mut *self.info)?;
        let keyframe = self.info.eFrameType == sys::videoFrameTypeIDR;
        let data = self.bitstream();
        self.ready =
            (!data.is_empty()).then(|| Encoded { data, keyframe, captured: frame.captured, took: started.elapsed() });
        Ok(())
    }

    fn poll(&mut self) -> Option<Encoded> {
        self.ready.take()
    }

    fn force_keyframe(&mut self) {
        self.force_keyframe = true;
    }

    fn set_bitrate(&mut self, bps: u64) -> Result<(), EncodeError> {
        let mut info = sys::SBitrateInfo { iLayer: sys::SPATIAL_LAYER_ALL, iBitrate: to_c_bitrate(bps) };
        self.set_option(sys::ENCODER_OPTION_BITRATE, &mut info)?;
        self.config.bitrate_bps = bps;
        Ok(())
    }

    fn set_fps(&mut self, fps: f64) -> Result<(), EncodeError> {
        let mut rate = fps as f32;
        self.set_option(sys::ENCODER_OPTION_FRAME_RATE, &mut rate)?;
        self.config.fps = fps;
        Ok(())
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

impl Drop for OpenH264 {
    fn drop(&mut self) {
        // SAFETY: made by WelsCreateSVCEncoder, used nowhere after this. Uninitialize is part of the library's contract
        // before destruction and harmless on an instance that was never initialized.
        unsafe {
            if let Some(uninitialize) = (**self.encoder).Uninitialize {
                uninitialize(self.encoder);
            }
            sys::source::APILoader::WelsDestroySVCEncoder(self.encoder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightpipe_media::h264::{self, NalType, Sps};
    use lightpipe_media::{FramePool, MediaTime};

    const SIZE: Size = Size::new(320, 180);

    fn config() -> EncoderConfig {
        EncoderConfig { size: SIZE, fps: 30.0, bitrate_bps: 500_000, keyframe_interval: 60, content: Content::Camera }
    }

    /// Noise that moves, so that the rate control has something to do.
    fn picture(pool: &FramePool, n: u32) -> VideoFrame {
        let mut frame = VideoFrame::packed(
            MediaTime::from_micros(i64::from(n) * 33_333),
            SIZE,
            PixelFormat::I420,
            pool.take(PixelFormat::I420.packed_len(SIZE)),
        )
        .expect("the pool gave enough");
        for (i, byte) in frame.plane_mut(0).iter_mut().enumerate() {
            let i = i as u32;
            *byte = ((i.wrapping_mul(2_654_435_761) >> 24) as u8 / 2).wrapping_add((i + n * 7) as u8 / 2);
        }
        frame.plane_mut(1).fill(128);
        frame.plane_mut(2).fill(128);
        frame
    }

    fn encode(encoder: &mut OpenH264, frame: &VideoFrame) -> Encoded {
        encoder.submit(frame).expect("encodes");
        encoder.poll().expect("frame skip is off, so every picture comes out")
    }

    #[test]
    fn first_picture_is_a_constrained_baseline_idr_of_the_right_size() {
        let pool = FramePool::new();
        let mut encoder = OpenH264::new(config()).expect("encoder");
        let first = encode(&mut encoder, &picture(&pool, 0));
        assert!(first.keyframe);
        let kinds: Vec<NalType> = h264::nals(&first.data).map(NalType::of).collect();
        assert_eq!(kinds, [NalType::Sps, NalType::Pps, NalType::Idr], "parameter sets first, one slice");
        let sps = Sps::parse(h264::nals(&first.data).next().expect("SPS")).expect("parses");
        assert_eq!((sps.profile_idc, sps.size), (66, SIZE));
        assert_eq!(sps.constraints & 0x40, 0x40, "constraint_set1: Constrained Baseline");
    }

    #[test]
    fn forced_keyframe_comes_out_of_the_same_call() {
        let pool = FramePool::new();
        let mut encoder = OpenH264::new(config()).expect("encoder");
        for n in 0..5 {
            assert_eq!(encode(&mut encoder, &picture(&pool, n)).keyframe, n == 0);
        }
        encoder.force_keyframe();
        let forced = encode(&mut encoder, &picture(&pool, 5));
        assert!(forced.keyframe && h264::is_keyframe(&forced.data));
        assert_eq!(forced.captured, MediaTime::from_micros(5 * 33_333), "capture time is carried through");
        assert!(!encode(&mut encoder, &picture(&pool, 6)).keyframe);
    }

    #[test]
    fn keyframes_are_no_further_apart_than_the_interval() {
        let pool = FramePool::new();
        let mut encoder = OpenH264::new(EncoderConfig { keyframe_interval: 10, ..config() }).expect("encoder");
        let keyframes: Vec<u32> = (0..31).filter(|n| encode(&mut encoder, &picture(&pool, *n)).keyframe).collect();
        assert_eq!(keyframes, [0, 10, 20, 30]);
    }

    #[test]
    fn bitrate_changes_live_without_a_keyframe() {
        let pool = FramePool::new();
        let mut encoder =
            OpenH264::new(EncoderConfig { bitrate_bps: 2_000_000, keyframe_interval: 0, ..config() }).expect("encoder");
        let bytes = |encoder: &mut OpenH264, from: u32, to: u32| -> usize {
            (from..to)
                .map(|n| {
                    let out = encode(encoder, &picture(&pool, n));
                    assert!(n == 0 || !out.keyframe, "picture {n}");
                    out.data.len()
                })
                .sum()
        };
        bytes(&mut encoder, 0, 30);
        let high = bytes(&mut encoder, 30, 90);
        encoder.set_bitrate(500_000).expect("accepts");
        bytes(&mut encoder, 90, 95);
        let low = bytes(&mut encoder, 95, 155);
        assert!(low * 2 < high, "{low} bytes at 500 kbit/s, {high} at 2 Mbit/s");
        assert_eq!(encoder.config().bitrate_bps, 500_000);
    }

    #[track_caller]
    fn check_refused(size: Size) {
        let refused = OpenH264::new(EncoderConfig { size, ..config() });
        assert!(matches!(refused, Err(EncodeError::Unsupported { .. })), "{size}");
    }

    #[test]
    fn impossible_sizes_and_wrong_pictures_are_named() {
        check_refused(Size::new(0, 0));
        check_refused(Size::new(321, 180));
        check_refused(Size::new(8, 8));
        check_refused(Size::new(5000, 16));
        let pool = FramePool::new();
        let mut encoder = OpenH264::new(EncoderConfig { size: Size::new(64, 64), ..config() }).expect("encoder");
        let error = encoder.submit(&picture(&pool, 0)).expect_err("another size");
        assert_eq!(error.to_string(), "the encoder is set up for 64x64 I420, the picture is 320x180 I420");
    }
}
