//! The time, clocks that can be set, and unique names.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use verve_protocol::{Window, WindowLength};

/// The C source of the preloaded library that gives a program such a clock.
const SHIM: &str = include_str!("wrong_clock.c");

/// A clock that can be set while programs use it. Clones are the same clock.
///
/// It changes the time of day, but not how fast time passes.
#[derive(Clone, Debug)]
pub struct WrongClock(Arc<TempDir>);

impl WrongClock {
    /// Creates a clock with the correct time.
    ///
    /// # Errors
    /// Fails if there is no C compiler.
    pub fn right() -> Result<Self> {
        let clock = Self(Arc::new(tempfile::tempdir()?));
        let source = clock.file("shim.c");
        fs::write(&source, SHIM)?;
        fs::write(clock.file("clock"), 0_i64.to_ne_bytes())?;
        let mut compile = Command::new("cc");
        compile
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(clock.file("shim.so"));
        let status = compile.arg(&source).arg("-ldl").status().context("cc")?;
        ensure!(status.success(), "cc: {status}");
        Ok(clock)
    }

    /// Creates a clock that is `seconds` seconds ahead.
    ///
    /// # Errors
    /// See [`Self::right`].
    pub fn ahead(seconds: i64) -> Result<Self> {
        let clock = Self::right()?;
        clock.set(seconds)?;
        Ok(clock)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Sets the clock to `ahead_s` seconds ahead, or behind if the value is negative.
    ///
    /// # Errors
    /// Fails if its file cannot be written.
    pub fn set(&self, ahead_s: i64) -> Result<()> {
        // Written in place, because the programs have mapped the file into memory.
        let file = fs::OpenOptions::new().write(true).open(self.file("clock"))?;
        Ok(file.write_all_at(&ahead_s.to_ne_bytes(), 0)?)
    }

    /// Makes a program that has not started yet use this clock.
    pub fn give(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", self.file("shim.so"))
            .env("WRONG_CLOCK", self.file("clock"));
    }
}

/// Returns the current time in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Returns a window length of `seconds`.
///
/// # Panics
/// Panics if the length is not valid. For tests only.
#[must_use]
pub fn length(seconds: u32) -> WindowLength {
    WindowLength::try_new(seconds).expect("a valid window length")
}

/// Returns the window that is open now.
#[must_use]
pub fn current_window(length: WindowLength) -> Window {
    length.window_at_ms(now_ms())
}

/// Asserts that a window is still open.
///
/// Tests use this if all their requests must belong to one window.
///
/// # Panics
/// Panics if the window is not open.
#[track_caller]
pub fn assert_still(length: WindowLength, window: Window) {
    assert_eq!(current_window(length), window, "this machine is too slow for this test");
}

/// Sleeps until `ms` after the Unix epoch.
pub async fn sleep_until_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms.saturating_sub(now_ms()))).await;
}

/// Waits for the start of the next window and returns that window.
pub async fn next_window(length: WindowLength) -> Window {
    let next = current_window(length).next();
    sleep_until_ms(next.start() * 1000).await;
    next
}

/// Returns `prefix` with a suffix that makes it unique, in this and other runs.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{:x}-{:x}-{n}", process::id(), now_ms())
}
