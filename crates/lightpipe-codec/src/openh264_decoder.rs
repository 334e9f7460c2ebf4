//! The decoder of OpenH264 (BSD-2): Baseline and Main, I420 out, no delay.

#![allow(unsafe_code)] // FFI; each block says what it relies on.

use std::ptr;

use lightpipe_media::{AccessUnit, FramePool, PixelFormat, Size, VideoFrame};
use openh264_sys2 as sys;

use crate::decoder::{DecodeError, VideoDecoder};

const BACKEND: &str = "openh264";

/// An OpenH264 decoder instance.
pub struct OpenH264Decoder {
    decoder: *mut sys::ISVCDecoder,
    pool: FramePool,
}

// SAFETY: the library keeps no thread-local state; an instance may be used from any one thread at a time, and
// `&mut self` on every call guarantees one at a time.
unsafe impl Send for OpenH264Decoder {}

impl std::fmt::Debug for OpenH264Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenH264Decoder")
    }
}

impl OpenH264Decoder {
    /// A decoder.
    pub fn new() -> Result<Self, DecodeError> {
        let failed = |call, code: i64| Err(DecodeError::Backend { backend: BACKEND, call, code });
        let mut decoder = ptr::null_mut();
        // SAFETY: the out pointer is valid for the call.
        let code = unsafe { sys::source::APILoader::WelsCreateDecoder(&raw mut decoder) };
        if code != 0 || decoder.is_null() {
            return failed("WelsCreateDecoder", code as i64);
        }
        let this = Self { decoder, pool: FramePool::new() };
        // A damaged picture is an error here, not a patched one: who wants the next best asks for a keyframe.
        let mut parameters = sys::SDecodingParam { eEcActiveIdc: sys::ERROR_CON_DISABLE, ..Default::default() };
        parameters.sVideoProperty.eVideoBsType = sys::VIDEO_BITSTREAM_AVC;
        let mut quiet = sys::WELS_LOG_QUIET;
        // SAFETY: `decoder` and its vtable are valid until Drop; the pointers outlive the calls, and the library copies what they point to.
        let code = unsafe {
            let methods = &**decoder;
            if let Some(set_option) = methods.SetOption {
                set_option(decoder, sys::DECODER_OPTION_TRACE_LEVEL, (&raw mut quiet).cast());
            }
            methods.Initialize.map_or(-1, |initialize| initialize(decoder, &raw const parameters))
        };
        if code != 0 {
            return failed("Initialize", code as i64);
        }
        Ok(this)
    }

    /// Copies the picture out of the library's buffer, which the next call overwrites.
    fn picture(&self, unit: &AccessUnit, planes: [*mut u8; 3], info: &sys::SSysMEMBuffer) -> Option<VideoFrame> {
        let positive = |n: i32| u32::try_from(n).ok();
        let size = Size::new(positive(info.iWidth)?, positive(info.iHeight)?);
        let strides = [info.iStride[0], info.iStride[1], info.iStride[1]].map(|s| usize::try_from(s).unwrap_or(0));
        let buffer = self.pool.take(PixelFormat::I420.packed_len(size));
        let mut frame = VideoFrame::packed(unit.captured, size, PixelFormat::I420, buffer).ok()?;
        frame.received = unit.stages.received;
        for (index, (plane, stride)) in planes.into_iter().zip(strides).enumerate() {
            let layout = frame.layout(index);
            let row_len = if index == 0 { size.width as usize } else { size.width.div_ceil(2) as usize };
            if plane.is_null() || stride < row_len {
                return None;
            }
            for (row, out) in frame.plane_mut(index).chunks_mut(layout.stride).enumerate() {
                // SAFETY: the library reports planes of `rows` rows that are `stride` apart and at least as long as the picture is wide;
                // they stay valid until the next call on the instance.
                let from = unsafe { std::slice::from_raw_parts(plane.add(row * stride), row_len) };
                out[..row_len].copy_from_slice(from);
            }
        }
        Some(frame)
    }
}

impl VideoDecoder for OpenH264Decoder {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn decode(&mut self, unit: &AccessUnit) -> Result<Option<VideoFrame>, DecodeError> {
        let Ok(len) = i32::try_from(unit.data.len()) else { return Ok(None) };
        let mut planes = [ptr::null_mut::<u8>(); 3];
        // SAFETY: all-zero bytes are a valid value of this plain C struct.
        let mut info: sys::SBufferInfo = unsafe { std::mem::zeroed() };
        // SAFETY: `decoder` and its vtable are valid until Drop; the bytes are `len` long; the out pointers are valid for the call.
        let state = unsafe {
            let decode = (**self.decoder).DecodeFrameNoDelay;
            decode
                .map_or(-1, |decode| decode(self.decoder, unit.data.as_ptr(), len, planes.as_mut_ptr(), &raw mut info))
        };
        if state != 0 {
            return Err(DecodeError::Damaged { backend: BACKEND, state: i64::from(state) });
        }
        if info.iBufferStatus != 1 {
            return Ok(None);
        }
        // SAFETY: with status 1 the library filled the buffer description, the union's only member.
        let memory = unsafe { info.UsrData.sSystemBuffer };
        Ok(self.picture(unit, planes, &memory))
    }
}

impl Drop for OpenH264Decoder {
    fn drop(&mut self) {
        // SAFETY: made by WelsCreateDecoder, used nowhere after this. Uninitialize is part of the library's contract before destruction.
        unsafe {
            if let Some(uninitialize) = (**self.decoder).Uninitialize {
                uninitialize(self.decoder);
            }
            sys::source::APILoader::WelsDestroyDecoder(self.decoder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{Content, EncoderConfig, VideoEncoder};
    use crate::openh264::OpenH264;
    use lightpipe_media::{MediaTime, Stages, VideoCodec};

    const SIZE: Size = Size::new(322, 182); // the library pads to whole macroblocks and crops

    fn encoded(count: u32) -> Vec<(VideoFrame, AccessUnit)> {
        let pool = FramePool::new();
        let config = EncoderConfig {
            size: SIZE,
            fps: 30.0,
            bitrate_bps: 2_000_000,
            keyframe_interval: 0,
            content: Content::Camera,
        };
        let mut encoder = OpenH264::new(config).expect("encoder");
        let mut picture = |n: u32| {
            let at = MediaTime::from_micros(i64::from(n) * 33_333);
            let mut frame =
                VideoFrame::packed(at, SIZE, PixelFormat::I420, pool.take(PixelFormat::I420.packed_len(SIZE)))
                    .expect("fits");
            let stride = frame.layout(0).stride;
            for (row, line) in frame.plane_mut(0).chunks_mut(stride).enumerate() {
                for (column, sample) in line.iter_mut().enumerate() {
                    *sample = (16 + (row + column / 2 + n as usize * 3) % 200) as u8;
                }
            }
            frame.plane_mut(1).fill(90);
            frame.plane_mut(2).fill(160);
            encoder.submit(&frame).expect("encodes");
            let out = encoder.poll().expect("a picture");
            let unit = AccessUnit::new(VideoCodec::H264, out.data, at, out.keyframe, SIZE, Stages::all_at(at));
            (frame, unit)
        };
        (0..count).map(&mut picture).collect()
    }

    #[test]
    fn pictures_come_back_at_once_in_order_and_alike() {
        let mut decoder = OpenH264Decoder::new().expect("decoder");
        for (frame, unit) in encoded(10) {
            let decoded = decoder.decode(&unit).expect("decodes").expect("a picture");
            assert_eq!((decoded.size(), decoded.captured), (SIZE, frame.captured));
            for plane in 0..3 {
                let pairs = decoded.plane(plane).iter().zip(frame.plane(plane));
                let error: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
                let mean = error / frame.plane(plane).len() as f64;
                assert!(mean < 10.0, "plane {plane}: mean squared error {mean}");
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_the_next_keyframe_repairs_it() {
        let units: Vec<AccessUnit> = encoded(5).into_iter().map(|(_, unit)| unit).collect();
        let mut decoder = OpenH264Decoder::new().expect("decoder");
        assert!(decoder.decode(&units[1]).is_err(), "no keyframe yet");
        assert!(decoder.decode(&units[0]).expect("decodes").is_some());
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            let mut data = units[2].data.to_vec();
            for _ in 0..random.usize(1..20) {
                let at = random.usize(..data.len());
                data[at] = random.u8(..);
            }
            data.truncate(random.usize(1..=data.len()));
            let damaged = AccessUnit::new(VideoCodec::H264, data, units[2].captured, false, SIZE, units[2].stages);
            let _ = decoder.decode(&damaged);
        }
        assert!(decoder.decode(&units[0]).expect("decodes").is_some());
        assert!(decoder.decode(&units[1]).expect("decodes").is_some());
    }
}
