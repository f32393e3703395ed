//! `verve-reporter` as a process.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::WrongClock;
use crate::process::{OnLine, Process};
use crate::{http, net, paths, wait};

/// A running reporter. Dropping it kills it.
pub struct Reporter {
    process: Process,
    address: SocketAddr,
}

impl Reporter {
    /// Starts the reporter with the flags `arguments`.
    ///
    /// Its admin server listens on a free port. Use [`Self::wait_ready`] to wait until it is ready.
    ///
    /// # Errors
    /// Fails if it is not built or cannot be started.
    pub fn start<A: AsRef<str>>(arguments: &[A]) -> Result<Self> {
        Self::start_with(arguments, None)
    }

    /// Starts it as [`Self::start`] does, and passes each line of its log to `on_line`.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn start_with<A: AsRef<str>>(arguments: &[A], on_line: Option<OnLine>) -> Result<Self> {
        Self::spawn(command()?, arguments, on_line)
    }

    fn spawn<A: AsRef<str>>(mut command: Command, arguments: &[A], on_line: Option<OnLine>) -> Result<Self> {
        let address = net::free_address()?;
        command.args(["--listen", &address.to_string()]);
        command.args(arguments.iter().map(AsRef::as_ref));
        let process = Process::spawn_with("verve-reporter", command, on_line)?;
        Ok(Self { process, address })
    }

    /// Starts it as [`Self::start`] does, with `clock` as its clock.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn start_by<A: AsRef<str>>(clock: &WrongClock, arguments: &[A]) -> Result<Self> {
        let mut command = command()?;
        clock.give(&mut command);
        Self::spawn(command, arguments, None)
    }

    /// Starts the reporter and waits until it is ready.
    ///
    /// # Errors
    /// See [`Self::start`] and [`Self::wait_ready`].
    pub async fn ready<A: AsRef<str>>(arguments: &[A]) -> Result<Self> {
        let reporter = Self::start(arguments)?;
        reporter.wait_ready(Duration::from_secs(20)).await?;
        Ok(reporter)
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// Fails after `timeout`, or if the process ends. The error contains the log.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let ready = wait::until("/readyz", timeout, || async {
            if let Some(status) = self.process.exit_status() {
                return Some(Err(status));
            }
            (self.status("/readyz").await.ok()? == 200).then_some(Ok(()))
        });
        match ready
            .await
            .with_context(|| format!("its log:\n{}", self.process.log()))?
        {
            Ok(()) => Ok(()),
            Err(status) => bail!("verve-reporter ended: {status}; its log:\n{}", self.process.log()),
        }
    }

    /// Returns the status of the admin server's answer to GET `path`.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub async fn status(&self, path: &str) -> Result<u16> {
        Ok(http::get(self.address, path).await?.status)
    }

    /// Returns the address of the admin server.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

/// Returns a command that runs the reporter without flags from the environment.
///
/// # Errors
/// Fails if the reporter is not built.
pub fn command() -> Result<Command> {
    let mut command = without_settings(Command::new(paths::verve_reporter()?));
    command.env_remove("RUST_LOG");
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    Ok(command)
}

/// Removes the reporter's settings from the environment of `command`.
#[must_use]
pub fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"VERVE_")) {
        command.env_remove(name);
    }
    command
}
