//! Asking what the reporter depends on whether it is there, where nothing else asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::kafka::Publisher;
use crate::store::Store;

/// How often.
const EVERY: Duration = Duration::from_secs(2);

/// Asks Redis and Kafka regularly, until a stop is asked for.
pub async fn watch(health: Arc<Health>, store: Store, publisher: Publisher, stop: CancellationToken) {
    loop {
        futures::join!(store.ping(), publisher.ping());
        health.settle(Instant::now());
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}
