//! Source `cube`: a rotating cube, rendered headless. What lightpipe shows when it is given nothing else.
//!
//! Two renderers draw the same scene: the built-in CPU rasteriser, and wgpu (feature `gpu`) where there is an
//! adapter. The angle is a function of media time, and nothing is rendered while nobody watches.

#[cfg(feature = "gpu")]
mod gpu;
mod rasteriser;
mod scene;

use lightpipe_media::{MediaTime, Size, VideoFrame, timecode};

use self::rasteriser::Rasteriser;
use crate::ticker::{PacedSource, StartError, check_picture, unix_ms};
use crate::{SourceHandle, VideoSink};

/// Who draws the cube: `--renderer auto|gpu|cpu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Renderer {
    /// The GPU if there is a real one, else the CPU: a software driver is slower than our own rasteriser.
    #[default]
    Auto,
    /// Any graphics adapter, software drivers too; without one the source does not start.
    Gpu,
    /// The built-in rasteriser.
    Cpu,
}

/// How the cube is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Size of the picture; odd sides are rounded down. Default 1280×720.
    pub size: Size,
    /// Pictures per second, above 0 and up to 240. Default 30.
    pub fps: f64,
    /// Who draws. Default [`Renderer::Auto`].
    pub renderer: Renderer,
    /// Paint the timecode strip over the top left corner ([`lightpipe_media::timecode`]). Default false.
    pub timecode: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { size: Size::new(1280, 720), fps: 30.0, renderer: Renderer::default(), timecode: false }
    }
}

/// Draws the cube at given times. [`start`] puts one behind a clock; tests and tools use it directly.
#[derive(Debug)]
pub struct Cube {
    backend: Backend,
    /// Size for the rasteriser that takes over when the GPU fails in mid-flight; `None` if the GPU is a must.
    #[cfg(feature = "gpu")]
    fall_back: Option<Size>,
}

#[derive(Debug)]
enum Backend {
    Cpu(Box<Rasteriser>),
    #[cfg(feature = "gpu")]
    Gpu(Box<gpu::Gpu>),
}

impl Cube {
    /// A cube of `size` (odd sides are rounded down), drawn by `renderer`.
    pub fn new(size: Size, renderer: Renderer) -> Result<Self, StartError> {
        let size = size.to_even();
        check_picture(size, 1.0)?;
        Ok(Self {
            backend: Backend::choose(size, renderer)?,
            #[cfg(feature = "gpu")]
            fall_back: (renderer == Renderer::Auto).then_some(size),
        })
    }

    /// The picture of a time, I420. Waits for the GPU: what comes back is this picture, never the one before.
    pub fn render(&mut self, at: MediaTime) -> Result<VideoFrame, String> {
        match &mut self.backend {
            Backend::Cpu(rasteriser) => Ok(rasteriser.render(at)),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => match (gpu.render(at), self.fall_back) {
                (Err(_), Some(size)) => {
                    let mut rasteriser = Rasteriser::new(size);
                    let frame = rasteriser.render(at);
                    self.backend = Backend::Cpu(Box::new(rasteriser));
                    Ok(frame)
                }
                (outcome, _) => outcome,
            },
        }
    }

    /// Who draws, in words: `cpu`, or the adapter's name and its API.
    pub fn renderer(&self) -> String {
        match &self.backend {
            Backend::Cpu(_) => "cpu".to_owned(),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.describe(),
        }
    }
}

impl Backend {
    #[cfg(feature = "gpu")]
    fn choose(size: Size, renderer: Renderer) -> Result<Self, StartError> {
        let gpu = match renderer {
            Renderer::Cpu => None,
            Renderer::Auto if !gpu::may_exist() => None,
            Renderer::Auto => gpu::Gpu::new(size, gpu::Adapter::RealGpu).ok(),
            Renderer::Gpu => Some(gpu::Gpu::new(size, gpu::Adapter::Any)?),
        };
        Ok(gpu.map_or_else(|| Self::Cpu(Box::new(Rasteriser::new(size))), |gpu| Self::Gpu(Box::new(gpu))))
    }

    #[cfg(not(feature = "gpu"))]
    fn choose(size: Size, renderer: Renderer) -> Result<Self, StartError> {
        if renderer == Renderer::Gpu {
            return Err(StartError::BuiltWithoutGpu);
        }
        Ok(Self::Cpu(Box::new(Rasteriser::new(size))))
    }
}

/// Starts the source. The GPU, where one is wanted, is set up before this returns (up to about a second).
pub fn start(config: Config, sink: VideoSink) -> Result<Box<dyn SourceHandle>, StartError> {
    let size = config.size.to_even();
    check_picture(size, config.fps)?;
    let mut cube = Cube::new(size, config.renderer)?;
    let clock = sink.clock;
    let render = move |at| {
        let mut frame = cube.render(at)?;
        if config.timecode {
            timecode::paint(&mut frame, unix_ms(&clock, at));
        }
        Ok(frame)
    };
    Ok(Box::new(PacedSource::spawn("cube", config.fps, sink, render)?))
}
