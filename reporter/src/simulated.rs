//! A replica of the reporter, on a Redis, a Kafka and endpoints that are simulated. For the project's own tests: it is no part of what the reporter
//! promises.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, OptionFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use verve_protocol::{Endpoint, Keys, Method, Partitions, WindowLength};

pub use crate::callbacks::{Call, Failure};
use crate::callbacks::{Callbacks, CallbacksConfig, Policy};
use crate::health::Health;
pub use crate::kafka::{Begun, Publish, Sessions, Unpublished};
use crate::metrics::Metrics;
use crate::named::{Named, Parts};
use crate::periods::Periods;
pub use crate::store::Commands;
use crate::store::{RedisConfig, Server, Store};
use crate::windows::{Pace, Reporter, WindowsConfig};

/// What of the settings matters here.
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
    /// Whether named counters are looked for.
    pub has_named: bool,
    /// Whether callbacks are delivered.
    pub has_callbacks: bool,
    /// The fixed callback.
    pub callback: Option<(Endpoint, Method)>,
    /// How often a callback is tried.
    pub attempts: u32,
}

/// What a replica says of what it depends on, as `/readyz` does.
#[derive(Clone, Debug)]
pub struct State(Arc<Health>);

impl Default for State {
    fn default() -> Self {
        Self(Arc::new(Health::new(Periods::default().quiet)))
    }
}

impl State {
    /// What is wrong.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.0.settle(Instant::now());
        let problems = self.0.problems().into_iter();
        problems
            .map(|(name, problem)| format!("{name}: {}", problem.error))
            .collect()
    }
}

/// A replica called so, which runs until it is stopped or dropped. What it has spawned then goes on, as far as its connections let it.
///
/// # Panics
/// Never: the address that it calls Redis by is valid.
pub async fn report<K: Sessions, C: Call>(
    settings: Settings,
    redis: Arc<dyn Commands>,
    kafka: K,
    endpoints: C,
    replica: String,
    State(health): State,
    stop: CancellationToken,
) {
    let (periods, pace) = (Periods::default(), Pace::default());
    let metrics = Metrics::default();
    let config = RedisConfig {
        urls: "redis://simulated".parse().expect("an address"),
        tls: None,
        partitions: settings.partitions,
    };
    let redis = Server::new(&config, Some(redis), &health, &metrics).expect("an address");
    let store = Store::by(redis, settings.keys, settings.partitions);
    let windows = WindowsConfig {
        length: settings.length,
        grace: settings.grace,
        late: settings.late,
        callback: settings.callback,
        periods,
    };
    let named = settings.has_named.then(|| {
        let parts = Parts {
            config: windows.clone(),
            store: store.clone(),
            health: health.clone(),
            publisher: kafka.clone(),
            metrics: metrics.clone(),
            replica: replica.clone(),
            pace: pace.clone(),
        };
        Named::new(parts).0.run(stop.clone())
    });
    let callbacks = settings.has_callbacks.then(|| {
        let config = CallbacksConfig {
            policy: Policy::default(),
            signer: None,
            attempts: settings.attempts,
            backoff: Duration::from_secs(1),
            periods,
        };
        let (store, metrics) = (store.clone(), metrics.clone());
        Callbacks::new(&config, endpoints, settings.length, store, metrics, replica.clone()).run(stop.clone())
    });
    let windows = Reporter::new(windows, store, health, kafka, &metrics, replica, pace).run(stop);
    future::join3(windows, OptionFuture::from(named), OptionFuture::from(callbacks)).await;
}
