//! GStreamer's elements for WHIP and WHEP as a shared object: the entry point of their crate becomes ours.

pub use gstrswebrtc;
