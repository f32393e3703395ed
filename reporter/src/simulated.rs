//! A replica of the reporter on a simulated Redis, Kafka and endpoints.
//!
//! It is for the project's own tests, and is not part of what the reporter promises.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, OptionFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use verve_protocol::{Endpoint, Keys, Method, Partitions, WindowLengths};

pub use crate::callbacks::{Call, Failure};
use crate::callbacks::{Callbacks, CallbacksConfig, Policy};
use crate::health::Health;
pub use crate::kafka::{Begun, CounterRecord, Publish, Sessions, Unpublished};
use crate::metrics::Metrics;
use crate::named::{Named, Parts};
use crate::periods::Periods;
pub use crate::store::Commands;
use crate::store::{RedisConfig, Server, Store};
use crate::windows::{KeepReports, LeaseKeeper, SweepThrottle, WindowsConfig};

/// The settings that matter in a simulation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The prefix of all keys.
    pub keys: Keys,
    /// How many sets hold the ids of a window.
    pub partitions: Partitions,
    /// The lengths of windows.
    pub lengths: WindowLengths,
    /// The time from a window's end to its first report.
    pub grace: Duration,
    /// The allowed lateness: how long after its first report late ids correct a window.
    pub late: Duration,
    /// How long a named counter is reported after its last window with ids.
    pub idle: Duration,
    /// Whether the replica looks for named counters.
    pub has_named: bool,
    /// Whether callbacks are delivered.
    pub has_callbacks: bool,
    /// The fixed callback.
    pub callback: Option<(Endpoint, Method)>,
    /// How many times a callback is tried.
    pub attempts: u32,
}

/// What a replica reports about its dependencies, as `/readyz` does.
#[derive(Clone, Debug)]
pub struct State(Arc<Health>);

impl Default for State {
    fn default() -> Self {
        Self(Arc::new(Health::new(Periods::default().quiet)))
    }
}

impl State {
    /// Returns the current problems.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.0.settle(Instant::now());
        let problems = self.0.problems().into_iter();
        problems
            .map(|(name, problem)| format!("{name}: {}", problem.error))
            .collect()
    }
}

/// Runs a replica with the name `replica` until it is stopped or dropped.
/// Tasks that it has spawned then go on as far as their connections let them.
///
/// # Panics
/// Never: the address that it uses for Redis is valid.
pub async fn report<K: Sessions, C: Call>(
    settings: Settings,
    redis: Arc<dyn Commands>,
    kafka: K,
    endpoints: C,
    replica: String,
    State(health): State,
    stop: CancellationToken,
) {
    let periods = Periods::default();
    let metrics = Metrics::default();
    let config = RedisConfig {
        urls: "redis://simulated".parse().expect("an address"),
        tls: None,
        partitions: settings.partitions,
    };
    let redis = Server::new(&config, Some(redis), &health, &metrics).expect("an address");
    let store = Store::by(redis, settings.keys, settings.partitions);
    let length = settings.lengths.main();
    let windows = WindowsConfig {
        length,
        is_main: true,
        grace: settings.grace,
        late: settings.late,
        idle: settings.idle,
        keep_reports: KeepReports::default(),
        callback: settings.callback,
        periods,
    };
    let (keeper, leases) = LeaseKeeper::new(store.clone(), health.clone(), length, periods, replica.clone(), kafka);
    let parts = Parts {
        config: windows,
        callback_lengths: vec![length],
        store: store.clone(),
        health,
        metrics: metrics.clone(),
        leases,
        throttle: SweepThrottle::default(),
        own_metrics: 100,
    };
    // The series of longer windows are found like named counters.
    let watched = settings.lengths.all().filter(|of| settings.has_named || *of != length);
    let named = watched.map(|length| {
        let named = Named::new(parts.clone(), &settings.lengths, length).0;
        named.run(stop.clone())
    });
    let named = future::join_all(named.collect::<Vec<_>>());
    let callbacks = settings.has_callbacks.then(|| {
        let config = CallbacksConfig {
            policy: Policy::default(),
            signer: None,
            attempts: settings.attempts,
            backoff: Duration::from_secs(1),
            periods,
        };
        Callbacks::new(&config, endpoints, length, store, metrics, replica).run(stop.clone())
    });
    let keeper = keeper.run(stop.clone());
    let windows = parts.unnamed().run(stop);
    let callbacks = OptionFuture::from(callbacks);
    future::join4(keeper, windows, named, callbacks).await;
}
