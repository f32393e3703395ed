//! Waits for a condition.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Calls `attempt` every 10 ms until it returns a value.
///
/// # Errors
/// Fails after `timeout`. The error contains `what`.
pub async fn until<T, F>(what: &str, timeout: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = attempt().await {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} in vain for {what}");
        }
        sleep(Duration::from_millis(10)).await;
    }
}
