//! The streams of a process, by name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightpipe_media::Stream;

/// A stream and what is known of its origin.
#[derive(Debug, Clone)]
pub struct StreamEntry {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Its source, for people: `cube`, `desktop:0`, `frames`, ….
    pub source: String,
}

/// All streams, in the order in which they were added; the first is the default one. Cloning shares the list.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    entries: Arc<Mutex<Vec<StreamEntry>>>,
}

/// The name is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is a stream {0:?} already")]
pub struct NameTaken(pub String);

impl Streams {
    /// No streams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a stream.
    pub fn add(&self, stream: Arc<Stream>, source: impl Into<String>) -> Result<(), NameTaken> {
        let mut entries = self.lock();
        if entries.iter().any(|e| e.stream.name() == stream.name()) {
            return Err(NameTaken(stream.name().into()));
        }
        entries.push(StreamEntry { stream, source: source.into() });
        Ok(())
    }

    /// Says of a stream's origin what is known by now.
    pub fn set_source(&self, name: &str, source: impl Into<String>) {
        if let Some(entry) = self.lock().iter_mut().find(|e| e.stream.name() == name) {
            entry.source = source.into();
        }
    }

    /// Takes a stream off the list.
    pub fn remove(&self, name: &str) {
        self.lock().retain(|e| e.stream.name() != name);
    }

    /// The stream of that name.
    pub fn find(&self, name: &str) -> Option<Arc<Stream>> {
        self.lock().iter().find(|e| e.stream.name() == name).map(|e| Arc::clone(&e.stream))
    }

    /// The first stream.
    pub fn default_stream(&self) -> Option<Arc<Stream>> {
        self.lock().first().map(|e| Arc::clone(&e.stream))
    }

    /// All of them.
    pub fn all(&self) -> Vec<StreamEntry> {
        self.lock().clone()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.lock().iter().map(|e| e.stream.name().to_owned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StreamEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
