//! The end of the host: signals, and the time limits of a graceful stop.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The time limit of a graceful stop; requests that still run then are cut off.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The time limit for the components' own work after all responses are sent.
pub const BACKGROUND_LIMIT: Duration = Duration::from_secs(5);

/// The name of the signal that supervisors send to stop a process.
pub const SIGTERM: &str = "SIGTERM";

/// How the host ended.
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
    /// Installs the handlers; from now on these signals do not kill the process.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn try_new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => SIGTERM,
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
