//! Asking what the reporter depends on whether it is there, where nothing else asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::machine_ms;
use crate::health::Health;
use crate::kafka::Publisher;
use crate::store::Store;

/// How often.
const EVERY: Duration = Duration::from_secs(2);

/// Asks Redis and Kafka regularly, until a stop is asked for. A clock of this machine that differs from Redis' by more than `tolerance` is a problem.
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

/// Compares this machine's clock with Redis', and so asks whether Redis is there. Windows are reported by the latter, but whoever looks at logs, and
/// those who check signatures, go by the former.
async fn look_at_clock(health: &Health, store: &Store, tolerance: Duration) {
    let asked = Instant::now();
    // Whatever else it may be is said by its connection.
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
