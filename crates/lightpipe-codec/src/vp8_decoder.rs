//! The VP8 decoder of libvpx (BSD-3), I420 out, no delay.

#![allow(unsafe_code)] // FFI; each block says what it relies on.

use std::os::raw::c_int;
use std::ptr;

use lightpipe_media::{AccessUnit, FramePool, PixelFormat, Size, VideoFrame};
use vpx_sys as sys;

use crate::decoder::{DecodeError, VideoDecoder};

const BACKEND: &str = "libvpx";

/// A VP8 decoder instance.
pub struct Vp8Decoder {
    /// Boxed, because the library remembers where it is.
    context: Box<sys::vpx_codec_ctx_t>,
    pool: FramePool,
}

// SAFETY: the library keeps no thread-local state; an instance may be used from any one thread at a time, and
// `&mut self` on every call guarantees one at a time.
unsafe impl Send for Vp8Decoder {}

impl std::fmt::Debug for Vp8Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vp8Decoder")
    }
}

impl Vp8Decoder {
    /// A decoder.
    pub fn new() -> Result<Self, DecodeError> {
        let mut context = Box::<sys::vpx_codec_ctx_t>::default();
        // SAFETY: the context is zeroed as the library wants it; without settings the decoder takes its defaults.
        let code = unsafe {
            let version = sys::VPX_DECODER_ABI_VERSION as c_int;
            sys::vpx_codec_dec_init_ver(&raw mut *context, sys::vpx_codec_vp8_dx(), ptr::null(), 0, version)
        };
        if code != sys::vpx_codec_err_t::VPX_CODEC_OK {
            return Err(DecodeError::Backend { backend: BACKEND, call: "vpx_codec_dec_init", code: code as i64 });
        }
        Ok(Self { context, pool: FramePool::new() })
    }

    /// Copies the picture out of the library's buffer, which the next call overwrites.
    fn picture(&self, unit: &AccessUnit, image: &sys::vpx_image_t) -> Option<VideoFrame> {
        let size = Size::new(image.d_w, image.d_h);
        let buffer = self.pool.take(PixelFormat::I420.packed_len(size));
        let mut frame = VideoFrame::packed(unit.captured, size, PixelFormat::I420, buffer).ok()?;
        frame.received = unit.stages.received;
        for plane in 0..3 {
            let stride = frame.layout(plane).stride;
            let row_len = (if plane == 0 { size.width } else { size.width.div_ceil(2) }) as usize;
            let between = usize::try_from(image.stride[plane]).ok().filter(|between| *between >= row_len)?;
            if image.planes[plane].is_null() {
                return None;
            }
            for (row, out) in frame.plane_mut(plane).chunks_mut(stride).enumerate() {
                // SAFETY: the library's planes have the picture's rows, `between` apart and at least as long as the picture is wide; they stay
                // valid until the next call on the instance.
                let from = unsafe { std::slice::from_raw_parts(image.planes[plane].add(row * between), row_len) };
                out[..row_len].copy_from_slice(from);
            }
        }
        Some(frame)
    }
}

impl VideoDecoder for Vp8Decoder {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn decode(&mut self, unit: &AccessUnit) -> Result<Option<VideoFrame>, DecodeError> {
        // To libvpx no bytes are a request to flush.
        let Some(len) = u32::try_from(unit.data.len()).ok().filter(|len| *len > 0) else { return Ok(None) };
        // SAFETY: an initialised instance; the bytes outlive the call.
        let code =
            unsafe { sys::vpx_codec_decode(&raw mut *self.context, unit.data.as_ptr(), len, ptr::null_mut(), 0) };
        if code != sys::vpx_codec_err_t::VPX_CODEC_OK {
            return Err(DecodeError::Damaged { backend: BACKEND, state: code as i64 });
        }
        let mut position = ptr::null();
        // SAFETY: an initialised instance; the image is the library's until the next call on it.
        let image = unsafe { sys::vpx_codec_get_frame(&raw mut *self.context, &raw mut position).as_ref() };
        Ok(image.and_then(|image| self.picture(unit, image)))
    }
}

impl Drop for Vp8Decoder {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, used nowhere after this.
        unsafe { sys::vpx_codec_destroy(&raw mut *self.context) };
    }
}
