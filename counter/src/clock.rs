//! The host's clock, and short waits by it.

use std::time::Duration;

use spin_sdk::time::sleep;
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};

/// How soon a request looks again for what another one is making.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The host's clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = system_clock::now();
    u64::try_from(now.seconds).unwrap_or_default() * 1000 + u64::from(now.nanoseconds / 1_000_000)
}

/// Milliseconds since some moment, by a clock that is never set. For how long things last, in this instance alone.
pub fn monotonic_ms() -> u64 {
    monotonic_clock::now() / 1_000_000
}

/// The pause of those who wait for what another request is making.
pub async fn look_again() {
    sleep(LOOK_AGAIN).await;
}
