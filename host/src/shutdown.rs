//! How the host ends: signals, and how long each part of a graceful stop may take.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The longest graceful stop; what is still running then is cut off.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How long components may go on with work of their own once every response has been sent.
pub const BACKGROUND_LIMIT: Duration = Duration::from_secs(5);

/// The name of the signal by which supervisors stop a process.
pub const SIGTERM: &str = "SIGTERM";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Each request in flight was answered.
    Gracefully,
    /// A second signal or [`LIMIT`] came first.
    Cut,
}

/// The signals that ask the host to stop: SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn try_new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and tells its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => SIGTERM,
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
