//! The time, and names that nobody else uses.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use verve_protocol::{Window, WindowLength};

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
