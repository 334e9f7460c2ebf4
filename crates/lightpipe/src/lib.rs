//! Live video from any program into any browser, in a few lines.
//!
//! ```no_run
//! use lightpipe::{Config, PixelFormat, Server, Size};
//!
//! let server = Server::start(Config::default())?;
//! let scene = server.frames("scene", Size::new(640, 360), 30.0)?;
//! println!("open {}", server.url());
//! loop {
//!     let pixels = vec![128; 640 * 360 * 4]; // your renderer's picture
//!     scene.push(PixelFormat::Rgba, &pixels)?;
//!     # break;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
mod endpoint;
mod frames;
mod room;
mod server;
mod simulcast;
mod source;
pub mod spec;

pub use config::Config;
pub use endpoint::{Endpoint, EndpointError};
pub use frames::{AudioSender, FrameSender, SoundError};
pub use lightpipe_codec::{Audience, ConferenceConfig, Participant};
pub use lightpipe_media::frame::FrameError;
pub use lightpipe_media::{Event, EventKind, EventLog, PixelFormat, Size};
pub use lightpipe_net::{
    Client, ClientState, ClientStatus, Company, FileDirection, FileError, FileInfo, FileState, Mesh, MeshConfig,
    MeshError, MeshEvent, MeshHandle, MeshPeer, ReceiveFiles,
};
pub use lightpipe_rtc::{ChannelError, ChannelEvent, ChannelInit, Delivery, Message};
pub use room::RoomSound;
pub use server::{Server, ServerError};
pub use spec::{NamedSource, SourceSpec, SpecError};
