//! The time, and names that nobody else uses.

use std::fs;
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tempfile::TempDir;
use verve_protocol::{Window, WindowLength};

use crate::paths;

/// A clock that can be set while programs run by it (libfaketime). Clones are the same clock. How time passes for them does not change.
#[derive(Clone, Debug)]
pub struct WrongClock(Arc<TempDir>);

impl WrongClock {
    /// A clock that is right.
    ///
    /// # Errors
    /// When it cannot be kept in a file.
    pub fn right() -> Result<Self> {
        let clock = Self(Arc::new(tempfile::tempdir()?));
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to so many seconds ahead, or behind where that is less than 0.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, ahead_s: i64) -> Result<()> {
        // In one step, so that nobody reads half of it.
        let (new, file) = (self.0.path().join("new"), self.0.path().join("clock"));
        fs::write(&new, format!("{ahead_s:+}s\n"))?;
        Ok(fs::rename(new, file)?)
    }

    /// Has a program that is not started yet go by it.
    ///
    /// # Errors
    /// When there is no libfaketime.
    pub fn give(&self, command: &mut Command) -> Result<()> {
        command
            .env("LD_PRELOAD", paths::libfaketime()?)
            .env("FAKETIME_TIMESTAMP_FILE", self.0.path().join("clock"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Ok(())
    }
}

/// Now, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// A window length of `seconds`.
///
/// # Panics
/// When there is no such length: tests only.
#[must_use]
pub fn length(seconds: u32) -> WindowLength {
    WindowLength::try_new(seconds).expect("a valid window length")
}

/// The window that is open now.
#[must_use]
pub fn current_window(length: WindowLength) -> Window {
    length.window_at_ms(now_ms())
}

/// Asserts that a window is open still, as a test needs whose requests are all to be of one.
///
/// # Panics
/// When it is not.
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

/// `prefix` with something behind it that makes it unlike every other name, of this run and of others.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{:x}-{:x}-{n}", process::id(), now_ms())
}
