//! The reporting of windows, on a Redis and a Kafka that are simulated. For the project's own tests: it is no part of what the reporter promises.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use verve_protocol::{Keys, Partitions, WindowLength};

use crate::health::Health;
pub use crate::kafka::{Begun, Publish, Sessions, Unpublished};
use crate::metrics::Metrics;
use crate::periods::Periods;
pub use crate::store::Commands;
use crate::store::{RedisConfig, Store};
use crate::windows::{Pace, Reporter, WindowsConfig};

/// What of the settings matters to windows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What all keys begin with.
    pub keys: Keys,
    /// How many sets a window's ids are in.
    pub partitions: Partitions,
    /// How long windows are.
    pub length: WindowLength,
    /// From a window's end to its first report.
    pub grace: Duration,
    /// From a window's first report on: how long late ids correct it.
    pub late: Duration,
}

/// A replica called so, which reports windows until it is stopped or dropped.
///
/// # Panics
/// Never: the address that it calls Redis by is valid.
pub async fn report<K: Sessions>(
    settings: Settings,
    redis: Arc<dyn Commands>,
    kafka: K,
    replica: String,
    stop: CancellationToken,
) {
    let periods = Periods::default();
    let (health, metrics) = (Arc::new(Health::new(periods.quiet)), Metrics::default());
    let config = RedisConfig {
        urls: "redis://simulated".parse().expect("an address"),
        tls: None,
        partitions: settings.partitions,
    };
    let store = Store::simulated(&config, settings.keys, redis, &health, &metrics).expect("an address");
    let windows = WindowsConfig {
        length: settings.length,
        grace: settings.grace,
        late: settings.late,
        callback: None,
        periods,
    };
    Reporter::new(windows, store, health, kafka, &metrics, replica, Pace::default())
        .run(stop)
        .await;
}
