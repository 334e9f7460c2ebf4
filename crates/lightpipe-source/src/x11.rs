//! Source `desktop` on an X server: its screen read directly, through shared memory where the server is local.
//!
//! For each picture one message goes to the server and one comes back: the rows that changed since the last one (DAMAGE), into
//! memory that both share (MIT-SHM), and the pointer (XFIXES). A picture is taken when the schedule says, not when a child
//! process happens to run, so it can follow the phase of its viewer's display. Against FFmpeg's x11grab: 2.5 instead of 10 ms
//! for a 1080p picture, 0.3 on a desktop where nothing moves (`design.md` §7).
//!
//! The X server may end and come back: the source says so, and goes on with the next one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoFrame};
use x11rb::connection::{Connection as _, RequestConnection as _};
use x11rb::errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError};
use x11rb::protocol::Event;
use x11rb::protocol::damage::{self, ConnectionExt as _, ReportLevel};
use x11rb::protocol::shm::{self, ConnectionExt as _};
use x11rb::protocol::xfixes::{ConnectionExt as _, GetCursorImageReply};
use x11rb::protocol::xproto::{
    ChangeWindowAttributesAux, ConnectionExt as _, EventMask, ImageFormat, ImageOrder, Window,
};
use x11rb::rust_connection::RustConnection;

use crate::ticker::{PacedSource, PictureMaker, StartError, check_picture};
use crate::{SourceHandle, VideoSink};

/// Pause between attempts to reach a server that is not there.
const RETRY: Duration = Duration::from_secs(1);

/// A whole picture is read this often, whatever DAMAGE says: some drivers draw without telling.
const WHOLE_PICTURE: Duration = Duration::from_secs(1);

/// Bytes of a pixel in every picture that we read.
const PIXEL_BYTES: usize = 4;

/// What of which server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Display, as in `:0`; `$DISPLAY` without.
    pub display: Option<String>,
    /// Pictures per second, above 0 and up to 240.
    pub fps: f64,
}

/// Why a screen cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum X11Error {
    /// No server there, or it does not let us in.
    #[error(
        "cannot open X display {display} ({reason}): check that the server runs, and that DISPLAY and XAUTHORITY are those of its user"
    )]
    Open {
        /// Which.
        display: String,
        /// The library's words.
        reason: String,
    },
    /// A screen of an older time.
    #[error(
        "X display {display} has {bits} bits a pixel, 32 are needed: 'ffmpeg:-f x11grab -i {display}' reads it through FFmpeg"
    )]
    Depth {
        /// Which.
        display: String,
        /// What it has.
        bits: u8,
    },
    /// A screen that is no picture.
    #[error("X display {display} is {size}: both sides must be 16 to 8192")]
    BadSize {
        /// Which.
        display: String,
        /// Its size.
        size: Size,
    },
    /// The connection ended, or the server refused a request.
    #[error("X display {display} was lost: {reason}")]
    Lost {
        /// Which.
        display: String,
        /// The library's words.
        reason: String,
    },
}

/// Size of a display's screen.
pub fn screen_size(display: Option<&str>) -> Result<Size, X11Error> {
    Screen::open(display).map(|screen| screen.size)
}

/// Starts the source. A server that is not there (yet) is the stream's health, not an error.
pub fn start(config: Config, sink: VideoSink) -> Result<Box<dyn SourceHandle>, StartError> {
    check_picture(Size::new(16, 16), config.fps)?;
    let grabber = Grabber { display: config.display, screen: None, pool: FramePool::new() };
    Ok(Box::new(PacedSource::spawn_maker("desktop", config.fps, sink, grabber)?))
}

/// Pictures of a screen, over a connection that may have to be made again.
struct Grabber {
    display: Option<String>,
    screen: Option<Screen>,
    pool: FramePool,
}

impl Grabber {
    /// A failed connection is given up; the next call makes another.
    fn with_screen<T>(&mut self, call: impl FnOnce(&mut Screen) -> Result<T, Broken>) -> Result<T, String> {
        let mut screen = match self.screen.take() {
            Some(screen) => screen,
            None => Screen::open(self.display.as_deref()).map_err(|e| e.to_string())?,
        };
        match call(&mut screen) {
            Ok(made) => {
                self.screen = Some(screen);
                Ok(made)
            }
            Err(Broken(reason)) => Err(X11Error::Lost { display: screen.display, reason }.to_string()),
        }
    }
}

impl PictureMaker for Grabber {
    fn idle(&mut self) -> Result<(), String> {
        self.with_screen(Screen::listen)
    }

    fn picture(&mut self, at: MediaTime) -> Result<VideoFrame, String> {
        let pool = self.pool.clone();
        self.with_screen(|screen| {
            screen.listen()?;
            let pointer = screen.read()?;
            screen.picture(at, &pool, pointer.as_ref())
        })
    }

    fn retry(&self) -> Option<Duration> {
        Some(RETRY)
    }
}

/// Why a connection is of no use any more.
struct Broken(String);

impl From<ConnectionError> for Broken {
    fn from(error: ConnectionError) -> Self {
        Self(error.to_string())
    }
}

impl From<ReplyError> for Broken {
    fn from(error: ReplyError) -> Self {
        Self(error.to_string())
    }
}

impl From<ReplyOrIdError> for Broken {
    fn from(error: ReplyOrIdError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// An open screen and its last picture.
struct Screen {
    display: String,
    connection: RustConnection,
    root: Window,
    size: Size,
    pixels: Pixels,
    damage: Option<damage::Damage>,
    has_pointer: bool,
    /// Rows that changed since they were read: first, and one behind the last.
    changed: Option<(u32, u32)>,
    whole_at: Option<Instant>,
}

/// Where the screen's pixels are: BGRX, row by row.
enum Pixels {
    /// In a segment that the server writes into.
    Shared { segment: shm::Seg, memory: File },
    /// Sent by a server that shares no memory: one on another machine.
    Sent(Vec<u8>),
}

impl Screen {
    fn open(display: Option<&str>) -> Result<Self, X11Error> {
        let environment = std::env::var("DISPLAY").ok().filter(|d| !d.is_empty());
        let display = display.map(str::to_owned).or(environment).unwrap_or_else(|| ":0".to_owned());
        let failed = |error: ConnectError| X11Error::Open { display: display.clone(), reason: error.to_string() };
        let (connection, number) = RustConnection::connect(Some(&display)).map_err(failed)?;
        let setup = connection.setup();
        let Some(screen) = setup.roots.get(number) else {
            return Err(X11Error::Open { display, reason: format!("it has no screen {number}") });
        };
        let (root, depth) = (screen.root, screen.root_depth);
        let bits = setup.pixmap_formats.iter().find(|f| f.depth == depth).map_or(0, |f| f.bits_per_pixel);
        if bits != 32 || setup.image_byte_order != ImageOrder::LSB_FIRST {
            return Err(X11Error::Depth { display, bits });
        }
        let size = Size::new(u32::from(screen.width_in_pixels), u32::from(screen.height_in_pixels));
        let mut screen = Self {
            display,
            connection,
            root,
            size,
            pixels: Pixels::Sent(Vec::new()),
            damage: None,
            has_pointer: false,
            changed: None,
            whole_at: None,
        };
        match screen.prepare() {
            Ok(()) if check_picture(screen.size, 1.0).is_ok() => Ok(screen),
            Ok(()) => Err(X11Error::BadSize { display: screen.display, size: screen.size }),
            Err(Broken(reason)) => Err(X11Error::Open { display: screen.display, reason }),
        }
    }

    /// Asks for what the server has of the extensions. All can be missing.
    fn prepare(&mut self) -> Result<(), Broken> {
        let connection = &self.connection;
        let has = |name| Ok::<_, Broken>(connection.extension_information(name)?.is_some());
        // DAMAGE builds on XFIXES, and both want to be told our version first.
        self.has_pointer = has("XFIXES")? && connection.xfixes_query_version(4, 0)?.reply().is_ok();
        if self.has_pointer && has("DAMAGE")? && connection.damage_query_version(1, 1)?.reply().is_ok() {
            let id = connection.generate_id()?;
            connection.damage_create(id, self.root, ReportLevel::BOUNDING_BOX)?.check()?;
            self.damage = Some(id);
        }
        let watch = ChangeWindowAttributesAux::new().event_mask(EventMask::STRUCTURE_NOTIFY);
        connection.change_window_attributes(self.root, &watch)?.check()?;
        self.allocate()
    }

    /// Room for a picture of the current size.
    fn allocate(&mut self) -> Result<(), Broken> {
        if let Pixels::Shared { segment, .. } = self.pixels {
            self.connection.shm_detach(segment)?;
        }
        self.whole_at = None;
        let bytes = self.size.width as usize * self.size.height as usize * PIXEL_BYTES;
        // No failure: such a server is asked for the pixels instead.
        self.pixels = self.share(bytes).unwrap_or_else(|_| Pixels::Sent(vec![0; bytes]));
        Ok(())
    }

    /// A memory file that the server may write into (MIT-SHM 1.2). Read by `pread`: one copy, as from a mapping.
    fn share(&self, bytes: usize) -> Result<Pixels, Broken> {
        if self.connection.extension_information(shm::X11_EXTENSION_NAME)?.is_none() {
            return Err(Broken("no MIT-SHM".into()));
        }
        self.connection.shm_query_version()?.reply()?;
        let memory = rustix::fs::memfd_create("lightpipe-x11", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .map(File::from)?;
        memory.set_len(bytes as u64)?;
        let segment = self.connection.generate_id()?;
        let theirs: OwnedFd = memory.try_clone()?.into();
        self.connection.shm_attach_fd(segment, theirs, false)?.check()?;
        Ok(Pixels::Shared { segment, memory })
    }

    /// Takes what the server said since the last time.
    fn listen(&mut self) -> Result<(), Broken> {
        let mut resized = None;
        while let Some(event) = self.connection.poll_for_event()? {
            match event {
                Event::DamageNotify(notice) => {
                    let first = u32::try_from(notice.area.y).unwrap_or(0);
                    self.mark(first, first + u32::from(notice.area.height));
                }
                Event::ConfigureNotify(notice) if notice.window == self.root => {
                    resized = Some(Size::new(u32::from(notice.width), u32::from(notice.height)));
                }
                Event::Error(error) => return Err(Broken(format!("{error:?}"))),
                _ => {}
            }
        }
        if let Some(size) = resized.filter(|size| *size != self.size) {
            check_picture(size, 1.0).map_err(|e| Broken(e.to_string()))?;
            self.size = size;
            self.changed = None;
            self.allocate()?;
        }
        Ok(())
    }

    fn mark(&mut self, first: u32, end: u32) {
        let (first, end) = (first.min(self.size.height), end.min(self.size.height));
        if first < end {
            self.changed = Some(self.changed.map_or((first, end), |(a, b)| (a.min(first), b.max(end))));
        }
    }

    /// Reads what changed into [`Self::pixels`]; answers the pointer.
    fn read(&mut self) -> Result<Option<GetCursorImageReply>, Broken> {
        let now = Instant::now();
        let whole_due = self.whole_at.is_none_or(|at| now.saturating_duration_since(at) >= WHOLE_PICTURE);
        if whole_due || self.damage.is_none() {
            self.whole_at = Some(now);
            self.mark(0, self.size.height);
        }
        let rows = self.changed.take();
        let (connection, root) = (&self.connection, self.root);
        let (width, stride) = (self.size.width as u16, self.size.width as usize * PIXEL_BYTES);
        if let (Some(damage), true) = (self.damage, rows.is_some()) {
            // Before the read: what is drawn after this line is reported again.
            connection.damage_subtract(damage, x11rb::NONE, x11rb::NONE)?;
        }
        // Both requests leave before the first answer is waited for.
        let (top, height) = rows.map_or((0, 0), |(first, end)| (first as i16, (end - first) as u16));
        let offset = top as usize * stride;
        let (mut shared, mut sent) = (None, None);
        match &self.pixels {
            Pixels::Shared { segment, .. } if height > 0 => {
                let format = ImageFormat::Z_PIXMAP.into();
                shared =
                    Some(connection.shm_get_image(root, 0, top, width, height, !0, format, *segment, offset as u32)?);
            }
            Pixels::Sent(_) if height > 0 => {
                sent = Some(connection.get_image(ImageFormat::Z_PIXMAP, root, 0, top, width, height, !0)?);
            }
            _ => {}
        }
        let pointer = if self.has_pointer { Some(connection.xfixes_get_cursor_image()?) } else { None };
        if let Some(answer) = shared {
            answer.reply()?;
        }
        let sent = sent.map(|answer| answer.reply()).transpose()?;
        // A server without a pointer answers with an error; the picture is good without it.
        let pointer = pointer.and_then(|answer| answer.reply().ok());
        if let (Pixels::Sent(pixels), Some(sent)) = (&mut self.pixels, sent) {
            let part = pixels.get_mut(offset..).unwrap_or_default();
            let bytes = part.len().min(sent.data.len());
            part[..bytes].copy_from_slice(&sent.data[..bytes]);
        }
        Ok(pointer)
    }

    fn picture(
        &self,
        at: MediaTime,
        pool: &FramePool,
        pointer: Option<&GetCursorImageReply>,
    ) -> Result<VideoFrame, Broken> {
        let mut buffer = pool.take(PixelFormat::Bgra.packed_len(self.size));
        match &self.pixels {
            Pixels::Shared { memory, .. } => memory.read_exact_at(&mut buffer, 0)?,
            Pixels::Sent(pixels) => buffer.copy_from_slice(pixels),
        }
        if let Some(pointer) = pointer {
            draw_pointer(&mut buffer, self.size, pointer);
        }
        VideoFrame::packed(at, self.size, PixelFormat::Bgra, buffer).map_err(|e| Broken(e.to_string()))
    }
}

/// Lays the pointer (premultiplied ARGB, its hot spot at x, y) over a BGRX picture.
fn draw_pointer(picture: &mut [u8], size: Size, pointer: &GetCursorImageReply) {
    let (left, top) = (i32::from(pointer.x) - i32::from(pointer.xhot), i32::from(pointer.y) - i32::from(pointer.yhot));
    let width = usize::from(pointer.width).max(1);
    let rows = pointer.cursor_image.chunks_exact(width).take(usize::from(pointer.height));
    for (y, row) in (top..).zip(rows) {
        let Some(y) = u32::try_from(y).ok().filter(|y| *y < size.height) else { continue };
        for (x, argb) in (left..).zip(row) {
            let Some(x) = u32::try_from(x).ok().filter(|x| *x < size.width) else { continue };
            let at = (y as usize * size.width as usize + x as usize) * PIXEL_BYTES;
            let Some(pixel) = picture.get_mut(at..at + 3) else { continue };
            let [b, g, r, a] = argb.to_le_bytes();
            for (under, over) in pixel.iter_mut().zip([b, g, r]) {
                let rest = (u16::from(*under) * u16::from(255 - a) + 127) / 255;
                *under = over.saturating_add(rest as u8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(x: i16, y: i16, pixels: &[u32]) -> GetCursorImageReply {
        GetCursorImageReply {
            x,
            y,
            width: 2,
            height: 2,
            xhot: 1,
            yhot: 1,
            cursor_image: pixels.to_vec(),
            ..GetCursorImageReply::default()
        }
    }

    #[test]
    fn the_pointer_is_blended_around_its_hot_spot_and_cut_at_the_edges() {
        let size = Size::new(4, 3);
        // Opaque red, half-transparent white, nothing, opaque blue.
        let image = [0xffff_0000, 0x8080_8080, 0, 0xff00_00ff];
        for (x, y, expected) in [
            (1, 1, vec![(0, [0, 0, 255]), (1, [178, 178, 178]), (5, [255, 0, 0])]),
            (0, 0, vec![(0, [255, 0, 0])]),
            (4, 3, vec![(11, [0, 0, 255])]),
            (-9, 2, vec![]),
            (i16::MAX, i16::MIN, vec![]),
        ] {
            let mut picture = vec![100; 4 * 3 * PIXEL_BYTES];
            draw_pointer(&mut picture, size, &pointer(x, y, &image));
            let changed: Vec<_> = picture
                .chunks_exact(PIXEL_BYTES)
                .enumerate()
                .filter(|(_, p)| p[..3] != [100; 3])
                .map(|(n, p)| (n, [p[0], p[1], p[2]]))
                .collect();
            assert_eq!(changed, expected, "hot spot at {x}, {y}");
        }
    }

    #[test]
    fn a_pointer_with_fewer_pixels_than_it_says_is_drawn_as_far_as_it_goes() {
        let mut picture = vec![0; 4 * 3 * PIXEL_BYTES];
        draw_pointer(&mut picture, Size::new(4, 3), &pointer(1, 1, &[0xffff_ffff]));
        draw_pointer(&mut picture, Size::new(4, 3), &GetCursorImageReply::default());
        assert!(picture.iter().all(|b| *b == 0), "half a row is none");
    }

    #[test]
    fn a_display_that_is_not_there_is_named_with_what_helps() {
        let error = screen_size(Some(":4711")).expect_err("no such display").to_string();
        assert!(error.contains(":4711") && error.contains("XAUTHORITY"), "{error}");
    }
}
