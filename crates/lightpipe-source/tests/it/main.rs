//! What the sources deliver, end to end.

mod cube;
mod exec;
mod ffmpeg;
mod lab;
mod pattern;
