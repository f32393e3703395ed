//! The process that the user starts. It only guards the worker process.
//!
//! A Ctrl-C reaches every process of the terminal's foreground group at the same time. Processes
//! that must end in order must not be in this group. So the worker and all its children have a
//! group of their own, and the guard closes the worker's standard input to stop it. This also
//! happens if the guard is killed. If the worker is killed, the guard kills the rest of the
//! worker's group.

use std::env;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Runs this program again as the worker, waits for it, and returns its exit code.
#[tokio::main(flavor = "current_thread")]
pub async fn run() -> Result<ExitCode> {
    // Before the worker starts: from here on, no signal ends this process while the worker runs on.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut worker = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .arg("--guarded")
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = worker
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .context("the worker has no id")?;
    let group = Pid::from_raw(group);
    let mut lifeline = worker.stdin.take();
    let status = loop {
        tokio::select! {
            status = worker.wait() => break status?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        // The user who sends a second signal does not want to wait.
        if lifeline.take().is_none() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    };
    // The group is empty, unless the worker ended unexpectedly.
    let _ = killpg(group, Signal::SIGKILL);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
