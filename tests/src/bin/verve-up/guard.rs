//! The process that the user starts. It does nothing but guard the one that does the work.
//!
//! A Ctrl-C reaches every process of the terminal's foreground group at once; what is to end in order must not be among
//! them. So the worker and all it starts are a group of their own, and the guard tells the worker to stop by closing its
//! standard input. That also happens when the guard is killed. When the worker is, the guard kills the rest of its group.

use std::env;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Runs this program again as the worker and waits for it; its exit code is ours.
#[tokio::main(flavor = "current_thread")]
pub async fn run() -> Result<ExitCode> {
    // Before there is a worker: from here on no signal ends this process and leaves that one alone.
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
        // A second signal is from somebody in a hurry.
        if lifeline.take().is_none() {
            let _ = killpg(group, Signal::SIGKILL);
        }
    };
    // Nobody is left of it, unless the worker came to a sudden end.
    let _ = killpg(group, Signal::SIGKILL);
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
