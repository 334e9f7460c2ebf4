//! The cube drawn by wgpu into an offscreen texture, and read back.
//!
//! The shapes lie in one vertex buffer; per picture only the pose changes. Faces that look away are culled, so
//! there is no depth buffer, as in the rasteriser. A picture is waited for: handing out the one before would
//! save that wait and cost a whole frame of latency.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use lightpipe_media::convert::to_i420;
use lightpipe_media::{FramePool, MediaTime, PixelFormat, Size, VideoFrame};

use super::scene::{self, Pose, Shape};
use crate::ticker::StartError;

/// Whether looking for a real graphics card is worth the 100 ms that the drivers take to load: on Linux a card has a
/// device node, elsewhere we always look.
pub(super) fn may_exist() -> bool {
    if cfg!(not(target_os = "linux")) {
        return true;
    }
    let render_node = std::fs::read_dir("/dev/dri").is_ok_and(|mut nodes| {
        nodes.any(|node| node.is_ok_and(|n| n.file_name().to_string_lossy().starts_with("renderD")))
    });
    render_node || std::path::Path::new("/dev/nvidia0").exists()
}

/// Which adapters will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adapter {
    /// Anything that draws.
    Any,
    /// No software driver.
    RealGpu,
}

/// Draws pictures of one size.
#[derive(Debug)]
pub(super) struct Gpu {
    description: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// What wgpu reported outside of a call's own result. Its default is to panic.
    failure: Arc<Mutex<Option<String>>>,
    stage_pipeline: wgpu::RenderPipeline,
    shape_pipeline: wgpu::RenderPipeline,
    bindings: wgpu::BindGroup,
    uniforms: wgpu::Buffer,
    vertices: wgpu::Buffer,
    vertex_count: u32,
    /// One direction per face; its index is the slot of its light.
    normals: Vec<[f32; 3]>,
    samples: wgpu::TextureView,
    target: wgpu::Texture,
    readback: wgpu::Buffer,
    size: Size,
    pool: FramePool,
}

/// Plain 8-bit R'G'B'A: blending at edges happens in the same numbers as in the rasteriser.
const FORMAT: wgpu::TextureFormat = wgpu::TextureFormat::Rgba8Unorm;

/// Samples per pixel; 4 is what every adapter offers.
const SAMPLES: u32 = 4;

/// Lights of six faces, then two slots of full light for the lines along the edges.
const LIGHTS: usize = 8;

/// Rotation rows with the centre, focal lengths and light of the stage, lights.
const UNIFORM_FLOATS: usize = 3 * 4 + 4 + LIGHTS;

/// Position, colour, slot of the light.
const VERTEX_FLOATS: usize = 7;

/// Longest wait for a picture. A driver that takes longer has hung.
const READBACK_TIMEOUT: Duration = Duration::from_secs(2);

impl Gpu {
    /// `size` has been checked and is even.
    pub(super) fn new(size: Size, wanted: Adapter) -> Result<Self, StartError> {
        let adapter = find_adapter(wanted)?;
        let info = adapter.get_info();
        let description = format!("{} ({})", info.name, info.backend);
        let failed = |reason: String| StartError::AdapterFailed { adapter: description.clone(), reason };
        let limits = wgpu::Limits::downlevel_webgl2_defaults().using_resolution(adapter.limits());
        if size.width.max(size.height) > limits.max_texture_dimension_2d {
            return Err(failed(format!("its largest side is {} px", limits.max_texture_dimension_2d)));
        }
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("cube"),
            required_limits: limits,
            ..Default::default()
        });
        let (device, queue) = pollster::block_on(request).map_err(|error| failed(error.to_string()))?;
        let failure = Arc::new(Mutex::new(None));
        device.on_uncaptured_error(Arc::new({
            let failure = Arc::clone(&failure);
            move |error: wgpu::Error| *lock(&failure) = Some(error.to_string())
        }));
        let gpu = Self::on_device(size, description.clone(), device, queue, Arc::clone(&failure));
        let reason = lock(&failure).take();
        reason.map_or(Ok(gpu), |reason| Err(failed(reason)))
    }

    fn on_device(
        size: Size,
        description: String,
        device: wgpu::Device,
        queue: wgpu::Queue,
        failure: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let extent = wgpu::Extent3d { width: size.width, height: size.height, depth_or_array_layers: 1 };
        let texture = |label, sample_count, usage| {
            device.create_texture(&wgpu::TextureDescriptor {
                label: Some(label),
                size: extent,
                mip_level_count: 1,
                sample_count,
                dimension: wgpu::TextureDimension::D2,
                format: FORMAT,
                usage,
                view_formats: &[],
            })
        };
        let buffer = |label, size: usize, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: size as u64,
                usage,
                mapped_at_creation: false,
            })
        };
        let usage = wgpu::TextureUsages::RENDER_ATTACHMENT;
        let samples = texture("samples", SAMPLES, usage).create_view(&Default::default());
        let target = texture("picture", 1, usage | wgpu::TextureUsages::COPY_SRC);
        let stage = texture("stage", 1, wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST);
        let layout =
            wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(size.width * 4), rows_per_image: None };
        queue.write_texture(stage.as_image_copy(), &scene::stage(size), layout, extent);

        let shapes = scene::shapes();
        let mut normals: Vec<[f32; 3]> = shapes.iter().map(|shape| shape.normal).collect();
        normals.dedup();
        let mesh = mesh(&shapes, &normals);
        let vertices = buffer("shapes", mesh.len() * 4, wgpu::BufferUsages::VERTEX | wgpu::BufferUsages::COPY_DST);
        queue.write_buffer(&vertices, 0, &bytes(&mesh));
        let uniforms = buffer("pose", UNIFORM_FLOATS * 4, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST);
        let readback = buffer(
            "readback",
            padded_row(size) * size.height as usize,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        );

        let entries = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &[
                wgpu::BindGroupLayoutEntry {
                    binding: 0,
                    visibility: wgpu::ShaderStages::VERTEX_FRAGMENT,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Uniform,
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                },
                wgpu::BindGroupLayoutEntry {
                    binding: 1,
                    visibility: wgpu::ShaderStages::FRAGMENT,
                    ty: wgpu::BindingType::Texture {
                        sample_type: wgpu::TextureSampleType::Float { filterable: false },
                        view_dimension: wgpu::TextureViewDimension::D2,
                        multisampled: false,
                    },
                    count: None,
                },
            ],
        });
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &entries,
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: uniforms.as_entire_binding() },
                wgpu::BindGroupEntry {
                    binding: 1,
                    resource: wgpu::BindingResource::TextureView(&stage.create_view(&Default::default())),
                },
            ],
        });
        let shader = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("cube"),
            source: wgpu::ShaderSource::Wgsl(SHADER.into()),
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&entries)],
            immediate_size: 0,
        });
        let attributes = wgpu::vertex_attr_array![0 => Float32x3, 1 => Float32x3, 2 => Float32];
        let pipeline = |vertex, fragment, buffers: &[Option<wgpu::VertexBufferLayout<'_>>]| {
            device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
                label: Some(vertex),
                layout: Some(&layout),
                vertex: wgpu::VertexState {
                    module: &shader,
                    entry_point: Some(vertex),
                    compilation_options: Default::default(),
                    buffers,
                },
                primitive: wgpu::PrimitiveState {
                    front_face: wgpu::FrontFace::Ccw,
                    cull_mode: Some(wgpu::Face::Back),
                    ..Default::default()
                },
                depth_stencil: None,
                multisample: wgpu::MultisampleState { count: SAMPLES, ..Default::default() },
                fragment: Some(wgpu::FragmentState {
                    module: &shader,
                    entry_point: Some(fragment),
                    compilation_options: Default::default(),
                    targets: &[Some(FORMAT.into())],
                }),
                multiview_mask: None,
                cache: None,
            })
        };
        let vertex_layout = wgpu::VertexBufferLayout {
            array_stride: (VERTEX_FLOATS * 4) as u64,
            step_mode: wgpu::VertexStepMode::Vertex,
            attributes: &attributes,
        };
        Self {
            stage_pipeline: pipeline("stage_corner", "stage_pixel", &[]),
            shape_pipeline: pipeline("shape_corner", "shape_pixel", &[Some(vertex_layout)]),
            vertex_count: (mesh.len() / VERTEX_FLOATS) as u32,
            description,
            device,
            queue,
            failure,
            bindings,
            uniforms,
            vertices,
            normals,
            samples,
            target,
            readback,
            size,
            pool: FramePool::new(),
        }
    }

    /// Name and API of the adapter.
    pub(super) fn describe(&self) -> String {
        self.description.clone()
    }

    /// The picture of a time, I420.
    pub(super) fn render(&self, at: MediaTime) -> Result<VideoFrame, String> {
        let pose = Pose::at(at, self.size);
        self.queue.write_buffer(&self.uniforms, 0, &bytes(&self.uniform_values(&pose)));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.draw(&mut encoder);
        encoder.copy_texture_to_buffer(
            self.target.as_image_copy(),
            wgpu::TexelCopyBufferInfo {
                buffer: &self.readback,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(padded_row(self.size) as u32),
                    rows_per_image: None,
                },
            },
            self.target.size(),
        );
        let submission = self.queue.submit([encoder.finish()]);
        let (mapped, outcome) = mpsc::sync_channel(1);
        // The receiver is gone only when the wait below has timed out.
        self.readback.map_async(wgpu::MapMode::Read, .., move |result| _ = mapped.send(result));
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(READBACK_TIMEOUT) };
        self.device.poll(wait).map_err(|error| self.reason(&error.to_string()))?;
        match outcome.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.reason(&error.to_string())),
            Err(_) => return Err(self.reason("the picture did not come back")),
        }
        let frame = self.copy_out(at);
        self.readback.unmap();
        frame
    }

    fn draw(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("cube"),
            color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                view: &self.samples,
                depth_slice: None,
                resolve_target: Some(&self.target.create_view(&Default::default())),
                ops: wgpu::Operations {
                    load: wgpu::LoadOp::Clear(wgpu::Color::BLACK),
                    // Only the resolved picture is wanted.
                    store: wgpu::StoreOp::Discard,
                },
            })],
            ..Default::default()
        });
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.set_pipeline(&self.stage_pipeline);
        pass.draw(0..3, 0..1);
        pass.set_pipeline(&self.shape_pipeline);
        pass.set_vertex_buffer(0, self.vertices.slice(..));
        pass.draw(0..self.vertex_count, 0..1);
    }

    fn uniform_values(&self, pose: &Pose) -> [f32; UNIFORM_FLOATS] {
        let mut values = [1.0; UNIFORM_FLOATS];
        for (n, row) in pose.rotation.iter().enumerate() {
            values[n * 4..n * 4 + 3].copy_from_slice(row);
            values[n * 4 + 3] = pose.centre[n];
        }
        let fall = scene::LIGHT_FALL / self.size.height as f32;
        values[12..16].copy_from_slice(&[pose.focal[0], pose.focal[1], scene::LIGHT_TOP, fall]);
        for (light, normal) in values[16..].iter_mut().zip(&self.normals) {
            *light = pose.light(*normal);
        }
        values
    }

    /// Takes the mapped picture. It is copied once before it is converted: memory that a GPU shares may
    /// be uncached, and the conversion reads each row twice.
    fn copy_out(&self, at: MediaTime) -> Result<VideoFrame, String> {
        let mapped = self.readback.get_mapped_range(..).map_err(|error| error.to_string())?;
        let row = self.size.width as usize * 4;
        let mut buffer = self.pool.take(PixelFormat::Rgba.packed_len(self.size));
        for (to, from) in buffer.chunks_exact_mut(row).zip(mapped.chunks(padded_row(self.size))) {
            to.copy_from_slice(&from[..row]);
        }
        let rgba = VideoFrame::packed(at, self.size, PixelFormat::Rgba, buffer).map_err(|error| error.to_string())?;
        to_i420(&rgba, &self.pool, self.size).map_err(|error| error.to_string())
    }

    fn reason(&self, error: &str) -> String {
        let reported = lock(&self.failure).take();
        format!("{}: {}", self.description, reported.as_deref().unwrap_or(error))
    }
}

fn find_adapter(wanted: Adapter) -> Result<wgpu::Adapter, StartError> {
    let mut reason = String::new();
    // GL second: probing for EGL makes some drivers write warnings to stderr.
    for backends in [wgpu::Backends::PRIMARY, wgpu::Backends::GL] {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        // The default turns validation layers on in debug builds and prints what they miss.
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let request = instance.request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        });
        match pollster::block_on(request) {
            Ok(adapter) => {
                let info = adapter.get_info();
                if wanted == Adapter::Any || info.device_type != wgpu::DeviceType::Cpu {
                    return Ok(adapter);
                }
                reason = format!("{} is a software driver", info.name);
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(StartError::NoAdapter { reason })
}

/// Every shape as a fan of triangles.
fn mesh(shapes: &[Shape], normals: &[[f32; 3]]) -> Vec<f32> {
    let mut mesh = Vec::new();
    for shape in shapes {
        let face = normals.iter().position(|normal| *normal == shape.normal);
        let slot = face.filter(|_| !shape.is_edge).unwrap_or(LIGHTS - 1);
        for pair in shape.points[1..].windows(2) {
            for point in [shape.points[0], pair[0], pair[1]] {
                mesh.extend(point.into_iter().chain(shape.colour).chain([slot as f32]));
            }
        }
    }
    mesh
}

/// Bytes of a row in the readback buffer: WebGPU wants a multiple of 256.
fn padded_row(size: Size) -> usize {
    (size.width as usize * 4).next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT as usize)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn lock(failure: &Mutex<Option<String>>) -> std::sync::MutexGuard<'_, Option<String>> {
    failure.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHADER: &str = r"
struct Scene {
    rows: array<vec4<f32>, 3>,   // rotation to view space; w: the cube's centre
    view: vec4<f32>,             // focal lengths across and up; light at the top, its change per row
    lights: array<vec4<f32>, 2>,
}
@group(0) @binding(0) var<uniform> scene: Scene;
@group(0) @binding(1) var stage: texture_2d<f32>;

// One triangle that covers the picture.
@vertex fn stage_corner(@builtin(vertex_index) n: u32) -> @builtin(position) vec4<f32> {
    return vec4(f32(n & 1u) * 4.0 - 1.0, f32(n >> 1u) * 4.0 - 1.0, 0.5, 1.0);
}

@fragment fn stage_pixel(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    return textureLoad(stage, vec2<i32>(at.xy), 0);
}

struct Corner {
    @builtin(position) position: vec4<f32>,
    @location(0) @interpolate(flat) colour: vec3<f32>,
}

@vertex fn shape_corner(
    @location(0) position: vec3<f32>,
    @location(1) colour: vec3<f32>,
    @location(2) slot: f32,
) -> Corner {
    let p = vec4(position, 1.0);
    let view = vec3(dot(scene.rows[0], p), dot(scene.rows[1], p), dot(scene.rows[2], p));
    let n = u32(slot);
    var corner: Corner;
    // No depth buffer: any depth inside the clip volume will do.
    corner.position = vec4(scene.view.x * view.x, scene.view.y * view.y, -0.5 * view.z, -view.z);
    corner.colour = colour * scene.lights[n / 4u][n % 4u];
    return corner;
}

@fragment fn shape_pixel(corner: Corner) -> @location(0) vec4<f32> {
    let light = scene.view.z + scene.view.w * corner.position.y;
    return vec4(corner.colour * light, 1.0);
}
";
