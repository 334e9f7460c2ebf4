//! GStreamer's elements for WHIP and WHEP as one shared object: their entry points become ours.

pub use {gstrswebrtc, gstwebrtchttp};
