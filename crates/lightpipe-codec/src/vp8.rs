//! VP8 by libvpx (BSD-3), for viewers that do not decode H.264.
//!
//! The library is the system's, found by pkg-config; its version's structures are checked by the library itself when an
//! encoder is made. Pictures go in and come out of the same call: nothing is looked ahead at, nothing is dropped.

#![allow(unsafe_code)] // FFI; each block says what it relies on.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Instant;

use lightpipe_media::{PixelFormat, Size, VideoCodec, VideoFrame};
use vpx_sys as sys;

use crate::encoder::{Content, EncodeError, Encoded, EncoderConfig, VideoEncoder};

const BACKEND: &str = "libvpx";

/// Largest side of a raw picture; VP8 itself ends at 16 383.
const MAX_SIDE: u32 = VideoFrame::MAX_SIDE;

/// Ticks per second of the times that the library is told. They are made of the expected frame rate, not of capture times: the
/// rate control takes the distance of two pictures for its budget, and a source that pauses must not fill it.
const TIMEBASE: u32 = 90_000;

/// Negative: this speed, whatever the machine does meanwhile. Positive ones adapt to a deadline that a busy machine never keeps,
/// and then the picture changes with the load. At 720p and 2.5 Mbit/s, 12 takes 1.2 times the CPU of OpenH264, 8 takes 1.6 times and is
/// 0.15 dB better, 4 takes 2.3 times and is 0.23 dB better (the scene of `examples/encoders`).
const CPU_USED: c_int = -12;

/// Most bytes of a keyframe, in percent of an ordinary picture's share. Uncapped, a keyframe of a hard picture keeps the line busy
/// for a second; much lower, the picture turns to blocks whenever somebody joins.
const MAX_KEYFRAME_PERCENT: c_int = 450;

/// Pictures of more samples are worth a second thread, where the machine has one to spare.
const TWO_THREADS_FROM: u32 = 640 * 480;

/// A libvpx encoder instance.
pub struct Vp8 {
    /// Boxed, because the library keeps its address.
    context: Box<sys::vpx_codec_ctx_t>,
    /// Boxed for the same reason.
    settings: Box<sys::vpx_codec_enc_cfg_t>,
    config: EncoderConfig,
    force_keyframe: bool,
    since_keyframe: u32,
    /// Of the next picture, in ticks of [`TIMEBASE`].
    time: i64,
    ready: Option<Encoded>,
}

// SAFETY: the library keeps no thread-local state; an instance may be used from any one thread at a time, and
// `&mut self` on every call guarantees one at a time. Its own worker threads wait outside of calls.
unsafe impl Send for Vp8 {}

impl std::fmt::Debug for Vp8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vp8").field("config", &self.config).finish_non_exhaustive()
    }
}

fn check(call: &'static str, code: sys::vpx_codec_err_t) -> Result<(), EncodeError> {
    if code == sys::vpx_codec_err_t::VPX_CODEC_OK {
        return Ok(());
    }
    Err(EncodeError::Backend { backend: BACKEND, call, code: code as i64 })
}

impl Vp8 {
    /// An encoder for pictures as `config` says.
    pub fn new(config: EncoderConfig) -> Result<Self, EncodeError> {
        let Size { width, height } = config.size;
        let sides = 16..=MAX_SIDE;
        if config.size != config.size.to_even() || !sides.contains(&width) || !sides.contains(&height) {
            let what = format!("a picture of {}: both sides must be even and 16 to {MAX_SIDE}", config.size);
            return Err(EncodeError::Unsupported { backend: BACKEND, what });
        }
        // SAFETY: answers a pointer to a static description of the codec.
        let codec = unsafe { sys::vpx_codec_vp8_cx() };
        let mut defaults = MaybeUninit::uninit();
        // SAFETY: the out pointer is valid for the call, which writes the whole structure when it succeeds.
        check("vpx_codec_enc_config_default", unsafe {
            sys::vpx_codec_enc_config_default(codec, defaults.as_mut_ptr(), 0)
        })?;
        // SAFETY: written above.
        let mut settings = Box::new(unsafe { defaults.assume_init() });
        fill(&mut settings, &config);
        let mut context = Box::<sys::vpx_codec_ctx_t>::default();
        // SAFETY: both pointers are to boxes that live as long as the instance. The version is that of the bindings' structures;
        // the library refuses another one than its own.
        check("vpx_codec_enc_init", unsafe {
            let version = sys::VPX_ENCODER_ABI_VERSION as c_int;
            sys::vpx_codec_enc_init_ver(&raw mut *context, codec, &raw const *settings, 0, version)
        })?;
        let mut this =
            Self { context, settings, config, force_keyframe: false, since_keyframe: 0, time: 0, ready: None };
        let screen = config.content == Content::Screen;
        use sys::vp8e_enc_control_id as id;
        this.control(id::VP8E_SET_CPUUSED, CPU_USED)?;
        this.control(id::VP8E_SET_NOISE_SENSITIVITY, 0)?;
        this.control(id::VP8E_SET_SCREEN_CONTENT_MODE, c_int::from(screen))?;
        // Blocks that changed less than this are taken from the picture before. On a screen even faint noise is none.
        this.control(id::VP8E_SET_STATIC_THRESHOLD, if screen { 100 } else { 1 })?;
        this.control(id::VP8E_SET_MAX_INTRA_BITRATE_PCT, MAX_KEYFRAME_PERCENT)?;
        Ok(this)
    }

    fn control(&mut self, id: sys::vp8e_enc_control_id, value: c_int) -> Result<(), EncodeError> {
        // SAFETY: an initialised instance; every control that we use takes one int.
        check("vpx_codec_control", unsafe { sys::vpx_codec_control_(&raw mut *self.context, id as c_int, value) })
    }

    /// Collects the bytes of the last call, and whether they are a keyframe.
    fn frame(&mut self) -> (Vec<u8>, bool) {
        let (mut data, mut keyframe) = (Vec::new(), false);
        let mut position = ptr::null();
        loop {
            // SAFETY: an initialised instance; the position is the library's own, null at first.
            let packet = unsafe { sys::vpx_codec_get_cx_data(&raw mut *self.context, &raw mut position).as_ref() };
            let Some(packet) = packet else { return (data, keyframe) };
            if packet.kind != sys::vpx_codec_cx_pkt_kind::VPX_CODEC_CX_FRAME_PKT {
                continue;
            }
            // SAFETY: the kind says which member of the union is there. Its `sz` bytes stay valid until the next call.
            unsafe {
                let frame = packet.data.frame;
                if !frame.buf.is_null() {
                    data.extend_from_slice(std::slice::from_raw_parts(frame.buf.cast::<u8>(), frame.sz as usize));
                }
                keyframe |= frame.flags & sys::VPX_FRAME_IS_KEY != 0;
            }
        }
    }
}

fn fill(settings: &mut sys::vpx_codec_enc_cfg_t, config: &EncoderConfig) {
    let Size { width, height } = config.size;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    settings.g_w = width;
    settings.g_h = height;
    settings.g_threads = if width * height > TWO_THREADS_FROM && cores > 2 { 2 } else { 1 };
    settings.g_timebase = sys::vpx_rational { num: 1, den: TIMEBASE as c_int };
    settings.g_pass = sys::vpx_enc_pass::VPX_RC_ONE_PASS;
    settings.g_lag_in_frames = 0;
    // A picture that a viewer misses is repaired or replaced by a keyframe, never shown around: nothing to be resilient against.
    settings.g_error_resilient = 0;
    // Keyframes come when a viewer or the interval asks, which we count ourselves.
    settings.kf_mode = sys::vpx_kf_mode::VPX_KF_FIXED;
    settings.rc_end_usage = sys::vpx_rc_mode::VPX_CBR;
    settings.rc_target_bitrate = to_kbps(config.bitrate_bps);
    // A skipped or smaller picture is a visible stutter; one of coarse steps is not. So all of them may be taken.
    settings.rc_dropframe_thresh = 0;
    settings.rc_resize_allowed = 0;
    settings.rc_min_quantizer = 2;
    settings.rc_max_quantizer = 63;
    // A budget of half a second, in ms: longer, and what a hard scene overdraws arrives late.
    settings.rc_buf_sz = 1000;
    settings.rc_buf_initial_sz = 500;
    settings.rc_buf_optimal_sz = 600;
    settings.rc_undershoot_pct = 100;
    settings.rc_overshoot_pct = 15;
}

fn to_kbps(bps: u64) -> u32 {
    u32::try_from(bps / 1000).unwrap_or(u32::MAX).clamp(10, i32::MAX as u32 / 1000)
}

impl VideoEncoder for Vp8 {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn codec(&self) -> VideoCodec {
        VideoCodec::Vp8
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
        let interval = self.config.keyframe_interval;
        let due = interval > 0 && self.since_keyframe >= interval;
        let flags = if std::mem::take(&mut self.force_keyframe) || due { sys::VPX_EFLAG_FORCE_KF } else { 0 };
        let Size { width, height } = self.config.size;
        let mut picture = sys::vpx_image_t {
            fmt: sys::vpx_img_fmt::VPX_IMG_FMT_I420,
            bit_depth: 8,
            bps: 12,
            w: width,
            h: height,
            d_w: width,
            d_h: height,
            x_chroma_shift: 1,
            y_chroma_shift: 1,
            ..sys::vpx_image_t::default()
        };
        for plane in 0..3 {
            picture.stride[plane] = frame.layout(plane).stride as c_int;
            // The library's type is mutable, but it takes a const picture, copies the planes and keeps no pointer.
            picture.planes[plane] = frame.plane(plane).as_ptr().cast_mut();
        }
        let ticks = (f64::from(TIMEBASE) / self.config.fps.clamp(1.0, 1000.0)).round();
        // SAFETY: an initialised instance; the planes hold what size and strides say, see `VideoFrame`, and outlive the call.
        check("vpx_codec_encode", unsafe {
            sys::vpx_codec_encode(
                &raw mut *self.context,
                &raw const picture,
                self.time,
                ticks as _,
                flags.into(),
                sys::VPX_DL_REALTIME.into(),
            )
        })?;
        self.time += ticks as i64;
        let (data, keyframe) = self.frame();
        self.since_keyframe = if keyframe { 1 } else { self.since_keyframe + 1 };
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
        self.settings.rc_target_bitrate = to_kbps(bps);
        // SAFETY: an initialised instance and the settings that it was made with, but for the bitrate.
        check("vpx_codec_enc_config_set", unsafe {
            sys::vpx_codec_enc_config_set(&raw mut *self.context, &raw const *self.settings)
        })?;
        self.config.bitrate_bps = bps;
        Ok(())
    }

    fn set_fps(&mut self, fps: f64) -> Result<(), EncodeError> {
        // The library learns it from the times of the next pictures.
        self.config.fps = fps;
        Ok(())
    }

    fn config(&self) -> &EncoderConfig {
        &self.config
    }
}

impl Drop for Vp8 {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, used nowhere after this. The only failure is an instance that was not.
        unsafe { sys::vpx_codec_destroy(&raw mut *self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::VideoDecoder;
    use crate::vp8_decoder::Vp8Decoder;
    use lightpipe_media::{AccessUnit, FramePool, MediaTime, Stages, vp8};

    const SIZE: Size = Size::new(320, 180);

    fn config() -> EncoderConfig {
        EncoderConfig { size: SIZE, fps: 30.0, bitrate_bps: 500_000, keyframe_interval: 60, content: Content::Camera }
    }

    fn at(n: u32) -> MediaTime {
        MediaTime::from_micros(i64::from(n) * 33_333)
    }

    fn painted(size: Size, n: u32, mut paint: impl FnMut(usize, u32, u32) -> u8) -> VideoFrame {
        let buffer = FramePool::new().take(PixelFormat::I420.packed_len(size));
        let mut frame = VideoFrame::packed(at(n), size, PixelFormat::I420, buffer).expect("the pool gave enough");
        for plane in 0..3 {
            let stride = frame.layout(plane).stride;
            for (y, row) in frame.plane_mut(plane).chunks_mut(stride).enumerate() {
                row.iter_mut().enumerate().for_each(|(x, sample)| *sample = paint(plane, x as u32, y as u32));
            }
        }
        frame
    }

    /// Noise that moves, so that the rate control has something to do.
    fn noise(n: u32) -> VideoFrame {
        painted(SIZE, n, |plane, x, y| {
            let i = y * SIZE.width + x;
            let noise = (i.wrapping_mul(2_654_435_761) >> 24) as u8 / 2;
            if plane == 0 { noise.wrapping_add((i + n * 7) as u8 / 2) } else { 128 }
        })
    }

    /// A scene as cameras see them: gradients, and a disc that moves over them.
    fn scene(size: Size, n: u32) -> VideoFrame {
        painted(size, n, |plane, x, y| {
            let shift = u32::from(plane > 0);
            let (x, y) = ((x << shift) as i32, (y << shift) as i32);
            let (away_x, away_y) = (x - 40 - n as i32 * 3, y - size.height as i32 / 2);
            let inside = away_x * away_x + away_y * away_y < 30 * 30;
            match plane {
                0 if inside => 200,
                0 => (40 + (x + y) / 16) as u8,
                1 => {
                    if inside {
                        90
                    } else {
                        128 + (x / 64) as u8
                    }
                }
                _ => {
                    if inside {
                        180
                    } else {
                        120
                    }
                }
            }
        })
    }

    fn encode(encoder: &mut Vp8, frame: &VideoFrame) -> Encoded {
        encoder.submit(frame).expect("encodes");
        encoder.poll().expect("nothing is dropped, so every picture comes out")
    }

    /// The decoded planes of a picture, rows without padding.
    fn decode(decoder: &mut Vp8Decoder, encoded: &Encoded, size: Size) -> [Vec<u8>; 3] {
        let stages = Stages::all_at(encoded.captured);
        let data = encoded.data.clone();
        let unit = AccessUnit::new(VideoCodec::Vp8, data, encoded.captured, encoded.keyframe, size, stages);
        let frame = decoder.decode(&unit).expect("decodes").expect("a picture");
        assert_eq!((frame.size(), frame.captured), (size, encoded.captured));
        std::array::from_fn(|plane| {
            let layout = frame.layout(plane);
            frame.plane(plane).chunks(layout.stride).flat_map(|row| &row[..layout.row_bytes]).copied().collect()
        })
    }

    /// Peak signal-to-noise ratio of a decoded plane, dB.
    fn psnr(frame: &VideoFrame, plane: usize, decoded: &[u8]) -> f64 {
        let layout = frame.layout(plane);
        let rows = frame.plane(plane).chunks(layout.stride);
        let original: Vec<u8> = rows.flat_map(|row| &row[..layout.row_bytes]).copied().collect();
        assert_eq!(original.len(), decoded.len());
        let squares = original.iter().zip(decoded).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
        10.0 * (255.0 * 255.0 * original.len() as f64 / squares.max(1.0)).log10()
    }

    #[test]
    fn first_picture_is_a_keyframe_of_the_right_size() {
        let mut encoder = Vp8::new(config()).expect("encoder");
        let first = encode(&mut encoder, &noise(0));
        assert!(first.keyframe && vp8::is_keyframe(&first.data));
        assert_eq!(vp8::size_of(&first.data), Some(SIZE));
        assert!(!encode(&mut encoder, &noise(1)).keyframe);
    }

    #[track_caller]
    fn check_decodes(size: Size, content: Content) {
        let bitrate_bps = 500_000.max(u64::from(size.width * size.height) * 2);
        let mut encoder = Vp8::new(EncoderConfig { size, content, bitrate_bps, ..config() }).expect("encoder");
        let mut decoder = Vp8Decoder::new().expect("a decoder");
        for n in 0..40 {
            let frame = scene(size, n);
            let encoded = encode(&mut encoder, &frame);
            let planes = decode(&mut decoder, &encoded, size);
            for (plane, decoded) in planes.iter().enumerate() {
                let psnr = psnr(&frame, plane, decoded);
                // The rate control believes every scene hard until it has seen some pictures of it.
                let least = if n < 15 { 30.0 } else { 38.0 };
                assert!(psnr > least, "picture {n}, plane {plane} of {size}, {content:?}: {psnr:.1} dB");
            }
        }
    }

    #[test]
    fn a_decoder_shows_what_went_in() {
        // Two threads, one, and sides that are no multiple of a macroblock.
        for size in [Size::new(1280, 720), SIZE, Size::new(318, 182), Size::new(16, 16)] {
            check_decodes(size, Content::Camera);
        }
        check_decodes(SIZE, Content::Screen);
    }

    #[test]
    fn forced_keyframe_comes_out_of_the_same_call() {
        let mut encoder = Vp8::new(config()).expect("encoder");
        for n in 0..5 {
            assert_eq!(encode(&mut encoder, &noise(n)).keyframe, n == 0);
        }
        encoder.force_keyframe();
        let forced = encode(&mut encoder, &noise(5));
        assert!(forced.keyframe && vp8::is_keyframe(&forced.data));
        assert_eq!(forced.captured, at(5), "capture time is carried through");
        assert!(!encode(&mut encoder, &noise(6)).keyframe);
        // Whoever begins here sees the picture.
        decode(&mut Vp8Decoder::new().expect("a decoder"), &forced, SIZE);
    }

    #[test]
    fn keyframes_are_no_further_apart_than_the_interval_and_no_nearer() {
        let keyframes = |interval| -> Vec<u32> {
            let mut encoder = Vp8::new(EncoderConfig { keyframe_interval: interval, ..config() }).expect("encoder");
            // Every seventh picture is another scene.
            let picture = |n: u32| if (n / 7).is_multiple_of(2) { noise(n) } else { scene(SIZE, n) };
            (0..31).filter(|n| encode(&mut encoder, &picture(*n)).keyframe).collect()
        };
        assert_eq!(keyframes(10), [0, 10, 20, 30]);
        assert_eq!(keyframes(0), [0]);
    }

    #[test]
    fn bitrate_changes_live_without_a_keyframe_and_is_kept() {
        let mut encoder =
            Vp8::new(EncoderConfig { bitrate_bps: 1_000_000, keyframe_interval: 0, ..config() }).expect("encoder");
        let mut n = 0;
        let mut bits_per_second = |encoder: &mut Vp8, pictures: u32| {
            let bytes: usize = (0..pictures)
                .map(|_| {
                    let out = encode(encoder, &noise(n));
                    assert!(n == 0 || !out.keyframe, "picture {n}");
                    n += 1;
                    out.data.len()
                })
                .sum();
            bytes as f64 * 8.0 * encoder.config().fps / f64::from(pictures)
        };
        let near = |got: f64, wanted: f64| assert!((got / wanted - 1.0).abs() < 0.1, "{got:.0} for {wanted:.0} bit/s");
        bits_per_second(&mut encoder, 60);
        near(bits_per_second(&mut encoder, 90), 1_000_000.0);
        encoder.set_bitrate(700_000).expect("accepts");
        bits_per_second(&mut encoder, 60);
        near(bits_per_second(&mut encoder, 90), 700_000.0);
        assert_eq!(encoder.config().bitrate_bps, 700_000);
        // Twice as many pictures a second, each half as large.
        encoder.set_fps(60.0).expect("accepts");
        bits_per_second(&mut encoder, 60);
        near(bits_per_second(&mut encoder, 120), 700_000.0);
    }

    #[track_caller]
    fn check_refused(size: Size) {
        let refused = Vp8::new(EncoderConfig { size, ..config() });
        assert!(matches!(refused, Err(EncodeError::Unsupported { .. })), "{size}");
    }

    #[test]
    fn impossible_sizes_and_wrong_pictures_are_named() {
        check_refused(Size::new(0, 0));
        check_refused(Size::new(321, 180));
        check_refused(Size::new(8, 8));
        check_refused(Size::new(9000, 16));
        let mut encoder = Vp8::new(EncoderConfig { size: Size::new(64, 64), ..config() }).expect("encoder");
        let error = encoder.submit(&noise(0)).expect_err("another size");
        assert_eq!(error.to_string(), "the encoder is set up for 64x64 I420, the picture is 320x180 I420");
    }
}
