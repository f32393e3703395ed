//! `verve-reporter`, as a process.

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
    /// Starts it with the flags `arguments`, its admin server on a free port; [`Self::wait_ready`] waits for it.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    pub fn start<A: AsRef<str>>(arguments: &[A]) -> Result<Self> {
        Self::start_with(arguments, None)
    }

    /// The same, and `on_line` is called with each line of its log.
    ///
    /// # Errors
    /// As [`Self::start`].
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

    /// The same, going by this clock.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_by<A: AsRef<str>>(clock: &WrongClock, arguments: &[A]) -> Result<Self> {
        let mut command = command()?;
        clock.give(&mut command);
        Self::spawn(command, arguments, None)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::wait_ready`].
    pub async fn ready<A: AsRef<str>>(arguments: &[A]) -> Result<Self> {
        let reporter = Self::start(arguments)?;
        reporter.wait_ready(Duration::from_secs(20)).await?;
        Ok(reporter)
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// After `timeout`, or when the process ends; with its log.
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

    /// The status that its admin server answers to GET `path` with.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn status(&self, path: &str) -> Result<u16> {
        Ok(http::get(self.address, path).await?.status)
    }

    /// Where its admin server listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

/// A command that runs the reporter with none of the flags that the environment may hold for it.
///
/// # Errors
/// When it is not built.
pub fn command() -> Result<Command> {
    let mut command = without_settings(Command::new(paths::verve_reporter()?));
    command.env_remove("RUST_LOG");
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    Ok(command)
}

/// The command with none of the reporter's settings that the environment may hold.
#[must_use]
pub fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"VERVE_")) {
        command.env_remove(name);
    }
    command
}
