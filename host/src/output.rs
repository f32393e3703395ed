//! The component's stdout and stderr, passed on line by line, so that lines of instances that write at the same time do
//! not mix.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// A line longer than this, in bytes, is broken up.
const LONGEST_LINE: usize = 64 * 1024;

/// Where a line goes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The host's stdout.
    Stdout,
    /// The host's stderr.
    Stderr,
}

/// One output of one instance. Clones write to the same line; the last of them to be dropped ends it.
#[derive(Clone)]
pub struct Output(Arc<Lines>);

struct Lines {
    target: Target,
    pending: Mutex<Vec<u8>>,
}

impl Output {
    /// An output with nothing written yet.
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
        // A log that nobody reads any more must not stop requests.
        let _ = match self {
            Self::Stdout => io::stdout().lock().write_all(lines),
            Self::Stderr => io::stderr().lock().write_all(lines),
        };
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
