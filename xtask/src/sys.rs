//! Folders, and running other programs.

use std::env;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};

/// Returns the top folder of the workspace.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        // Cargo sets the folder when it runs this program: several clones may share a target
        // folder, and so this very file.
        let at_run_time = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let mut xtask = at_run_time.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        xtask.pop();
        xtask
    });
    &ROOT
}

/// Returns the folder that cargo builds native programs into.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Returns the path of a native program of the workspace.
pub fn binary(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Returns the folder for downloads, which is kept between clones.
///
/// It is `$XDG_CACHE_HOME/verve`, or `~/.cache/verve`.
pub fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let base = base.context("set XDG_CACHE_HOME or HOME: downloads are cached there")?;
    Ok(base.join("verve"))
}

/// Prints a line about the current step to stderr, beside cargo's own progress.
pub fn log(line: &str) {
    eprintln!("xtask: {line}");
}

/// Runs `command` and shows its output.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs `command`, and returns its standard error, which is shown after its end.
pub fn stderr(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    eprint!("{text}");
    if !output.status.success() {
        bail!("{} failed: {}", shown(command), output.status);
    }
    Ok(text)
}

/// Returns whether `program` with `args` runs and succeeds; its output is dropped.
pub fn succeeds<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> bool {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Returns what `program` with `args` prints; `None` if it fails.
///
/// That is standard output, followed by standard error.
pub fn output<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&text).trim().to_owned())
}

/// Returns what git prints about this repository; `None` without repository or git.
pub fn git(args: &[&str]) -> Option<String> {
    output("git", &[&["-C", root().to_str()?], args].concat())
}

/// Returns the path of `program` by the PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The ports that [`free_port`] chooses from.
///
/// They are below the ports that tests use, and below those that Linux gives to outgoing
/// connections: one of these could be taken at any moment between the choice and the use.
const PORTS: Range<u16> = 5_000..10_000;

/// Returns a port of 127.0.0.1 that no program listens on.
///
/// Each process starts its search at a different port.
pub fn free_port() -> Result<u16> {
    let count = u32::from(PORTS.end - PORTS.start);
    let begin = process::id().wrapping_mul(97) % count;
    let ports = (0..count).map(|n| PORTS.start + u16::try_from((begin + n) % count).unwrap_or_default());
    let mut free = ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.next().context("no free port of 127.0.0.1")
}

/// Returns a command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
