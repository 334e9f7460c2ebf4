//! What the sources deliver, end to end.

mod cube;
mod exec;
mod ffmpeg;
mod film;
mod lab;
mod pattern;
