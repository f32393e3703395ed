//! Probes Redis and Kafka regularly, because nothing else may send them requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::machine_ms;
use crate::health::Health;
use crate::kafka::Publisher;
use crate::store::Store;

/// The interval of the probes.
const EVERY: Duration = Duration::from_secs(2);

/// Probes Redis and Kafka until a stop is requested.
///
/// A difference of more than `tolerance` between the clocks of this machine and Redis is a problem.
pub async fn watch(
    health: Arc<Health>,
    store: Store,
    publisher: Publisher,
    tolerance: Duration,
    stop: CancellationToken,
) {
    loop {
        futures::join!(look_at_clock(&health, &store, tolerance), publisher.ping());
        health.settle(Instant::now());
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Compares this machine's clock with Redis', which also probes Redis.
///
/// Windows are reported by the clock of Redis, but log lines and the checks of signatures use the
/// clock of this machine.
async fn look_at_clock(health: &Health, store: &Store, tolerance: Duration) {
    let asked = Instant::now();
    // The connection reports all other problems.
    let Ok(clock) = store.clock().await else {
        return;
    };
    let (ours, took) = (machine_ms(), asked.elapsed());
    let (ours, theirs) = (Duration::from_millis(ours), Duration::from_millis(clock.now_ms()));
    let differs = ours.abs_diff(theirs);
    let problem = (differs > tolerance + took).then(|| {
        let way = if ours > theirs { "ahead of" } else { "behind" };
        format!(
            "this machine's is {:.1} s {way} Redis'; set both by NTP",
            differs.as_secs_f64()
        )
    });
    health.set_problem("clock", problem);
}
