//! The component's stdout and stderr, passed line by line to the host's log.
//!
//! Lines of instances that write at the same time do not mix.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// The maximum length of a line in bytes. A longer line is split.
const LONGEST_LINE: usize = 64 * 1024;

/// The time for which no instance can log the same warning again.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// The maximum number of warnings whose time is remembered.
const KNOWN: usize = 256;

/// An output of the component.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Messages of the component, logged as `INFO`.
    Stdout,
    /// Warnings, logged as `WARN` unless the same warning was logged recently.
    Stderr,
}

/// Returns whether a line repeats a recent warning of Verve's own component.
///
/// Several instances may write the same warning. All lines of other components are logged.
fn is_repeated(line: &str) -> bool {
    line.starts_with("verve: ") && !should_log(line)
}

/// Returns whether a warning was not logged recently, and remembers it if so.
pub fn should_log(warning: &str) -> bool {
    static LOGGED: LazyLock<Mutex<HashMap<String, Instant>>> = LazyLock::new(Mutex::default);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.get(warning).is_some_and(|when| when.elapsed() < REPEAT_AFTER) {
        return false;
    }
    if logged.len() >= KNOWN {
        logged.clear();
    }
    logged.insert(warning.to_owned(), Instant::now());
    true
}

/// One output of one instance.
///
/// Clones write to the same line. Dropping the last clone ends the line.
#[derive(Clone)]
pub struct Output(Arc<Lines>);

struct Lines {
    target: Target,
    pending: Mutex<Vec<u8>>,
}

impl Output {
    /// Returns an output to which nothing was written yet.
    pub fn new(target: Target) -> Self {
        Self(Arc::new(Lines {
            target,
            pending: Mutex::default(),
        }))
    }

    fn write(&self, bytes: &[u8]) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend_from_slice(bytes);
        if let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') {
            self.0.target.write(&pending[..=end]);
            pending.drain(..=end);
        }
        if pending.len() > LONGEST_LINE {
            pending.push(b'\n');
            self.0.target.write(&pending);
            pending.clear();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let pending = self.pending.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !pending.is_empty() {
            pending.push(b'\n');
            self.target.write(pending);
        }
    }
}

impl Target {
    fn write(self, lines: &[u8]) {
        for line in String::from_utf8_lossy(lines).lines() {
            match self {
                Self::Stdout => tracing::info!("{line}"),
                Self::Stderr if is_repeated(line) => {}
                Self::Stderr => tracing::warn!("{line}"),
            }
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// For WASI 0.3.
impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// For WASI 0.2, which Rust's standard library uses.
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        Self::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(LONGEST_LINE)
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}
