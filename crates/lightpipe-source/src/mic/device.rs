//! Audio inputs by `cpal`: WASAPI, CoreAudio. Monitors are what WASAPI calls loopback: an output, opened for recording.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{FromSample, Sample, SampleFormat, SizedSample, StreamConfig};

use super::{Config, MONITOR, MicError};
use crate::devices::{Device, DeviceKind};

/// How long the system may take to open a device.
const OPENING: Duration = Duration::from_secs(5);

/// A device that is open.
pub(super) struct Open {
    errors: Receiver<String>,
    /// Recording ends with it.
    _stream: cpal::Stream,
}

impl Open {
    pub(super) fn new(
        config: &Config,
        take: impl FnMut(u32, usize, Vec<f32>) + Send + 'static,
    ) -> Result<Self, MicError> {
        let (device, kind) = find(config.device.as_deref())?;
        let refused = |error: &dyn std::fmt::Display| MicError::Refused(error.to_string());
        let found = match kind {
            DeviceKind::Monitor => device.default_output_config(),
            _ => device.default_input_config(),
        }
        .map_err(|error| refused(&error))?;
        // One is enough: the device is given up with it.
        let (sender, errors) = sync_channel(1);
        let (format, wanted) = (found.sample_format(), found.config());
        let stream = match format {
            SampleFormat::F32 => build::<f32>(&device, wanted, take, sender),
            SampleFormat::I16 => build::<i16>(&device, wanted, take, sender),
            SampleFormat::I32 => build::<i32>(&device, wanted, take, sender),
            SampleFormat::U16 => build::<u16>(&device, wanted, take, sender),
            SampleFormat::U8 => build::<u8>(&device, wanted, take, sender),
            other => return Err(refused(&format!("it gives samples as {other}"))),
        }
        .map_err(|error| refused(&error))?;
        stream.play().map_err(|error| refused(&error))?;
        Ok(Self { errors, _stream: stream })
    }

    /// Whether it is still there.
    pub(super) fn check(&self) -> Result<(), MicError> {
        match self.errors.try_recv() {
            Ok(error) => Err(MicError::Gone(error)),
            Err(TryRecvError::Disconnected) => Err(MicError::Gone("the system closed it".to_owned())),
            Err(TryRecvError::Empty) => Ok(()),
        }
    }
}

fn build<T: SizedSample>(
    device: &cpal::Device,
    config: StreamConfig,
    mut take: impl FnMut(u32, usize, Vec<f32>) + Send + 'static,
    errors: SyncSender<String>,
) -> Result<cpal::Stream, cpal::Error>
where
    f32: FromSample<T>,
{
    let (rate_hz, channels) = (config.sample_rate, usize::from(config.channels));
    device.build_input_stream(
        config,
        move |samples: &[T], _: &cpal::InputCallbackInfo| {
            take(rate_hz, channels, samples.iter().map(|sample| f32::from_sample(*sample)).collect());
        },
        move |error| {
            // A hole in the sound is no end.
            if error.kind() != cpal::ErrorKind::Xrun {
                _ = errors.try_send(error.to_string());
            }
        },
        Some(OPENING),
    )
}

pub(super) fn list() -> Vec<Device> {
    let named = |(device, kind): (cpal::Device, DeviceKind)| {
        let id = shown(&device)?;
        Some(Device { kind, name: id.clone(), id })
    };
    all().into_iter().filter_map(named).collect()
}

/// Inputs, then outputs as monitors.
fn all() -> Vec<(cpal::Device, DeviceKind)> {
    let host = cpal::default_host();
    let inputs = host.input_devices().into_iter().flatten().map(|device| (device, DeviceKind::Microphone));
    // CoreAudio records no outputs.
    let outputs = host.output_devices().into_iter().flatten().filter(|_| cfg!(windows));
    inputs.chain(outputs.map(|device| (device, DeviceKind::Monitor))).collect()
}

fn find(wanted: Option<&str>) -> Result<(cpal::Device, DeviceKind), MicError> {
    let host = cpal::default_host();
    match wanted {
        None => host.default_input_device().map(|device| (device, DeviceKind::Microphone)).ok_or(MicError::NoDefault),
        Some(MONITOR) if cfg!(windows) => {
            host.default_output_device().map(|device| (device, DeviceKind::Monitor)).ok_or(MicError::NoDefault)
        }
        Some(wanted) => {
            let mut devices = all();
            let known: Vec<String> = devices.iter().filter_map(|(device, _)| shown(device)).collect();
            match known.iter().position(|name| name == wanted) {
                Some(at) => Ok(devices.swap_remove(at)),
                None => Err(MicError::NoDevice { wanted: wanted.to_owned(), known: known.join(", ") }),
            }
        }
    }
}

/// What people call it.
fn shown(device: &cpal::Device) -> Option<String> {
    device.description().ok().map(|description| description.name().to_owned())
}
