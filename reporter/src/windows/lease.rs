//! The lease: which replica reports the windows of all counters now.
//!
//! A string in Redis holds the replica's name and expires unless it is renewed. Each script that
//! records something checks the lease too, so that a replica whose lease expired during a pause
//! changes nothing.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Script;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use verve_protocol::WindowLength;
use verve_protocol::scripts::{ACQUIRE_LEASE, RELEASE_LEASE, RENEW_LEASE};

use super::ports::Held as _;
use crate::clock::millis;
use crate::health::Health;
use crate::kafka::{Publish, Sessions, SharedSession};
use crate::periods::Periods;
use crate::store::Store;

/// The lease while this replica holds it, for those who report with it.
pub struct Leases<S> {
    held: watch::Receiver<Option<Held<S>>>,
    /// Wakes those who wait, in the order in which they began to.
    ///
    /// The channel would wake them in any order, and simulations of a seed would differ.
    changed: Arc<Notify>,
}

/// A lease, and the session by which its holder publishes.
struct Held<S> {
    lease: Arc<Lease>,
    session: SharedSession<S>,
}

impl<S> Clone for Leases<S> {
    fn clone(&self) -> Self {
        Self {
            held: self.held.clone(),
            changed: self.changed.clone(),
        }
    }
}

impl<S: Publish> Leases<S> {
    /// Waits until this replica holds the lease.
    pub async fn next(&self) -> (Arc<Lease>, SharedSession<S>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the look, so that no change is missed.
            changed.as_mut().enable();
            if let Some(held) = self.held.borrow().as_ref().filter(|held| held.lease.is_held()) {
                return (held.lease.clone(), held.session.of_another());
            }
            changed.await;
        }
    }

    /// Returns whether this replica holds the lease now.
    pub fn are_held(&self) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| held.lease.is_held())
    }
}

/// Acquires the lease whenever no other replica holds it.
pub struct LeaseKeeper<K: Sessions> {
    store: Store,
    health: Arc<Health>,
    length: WindowLength,
    replica: String,
    periods: Periods,
    kafka: K,
    held: watch::Sender<Option<Held<K::Session>>>,
    changed: Arc<Notify>,
}

impl<K: Sessions> LeaseKeeper<K> {
    /// Creates the keeper of the lease for windows of this length.
    ///
    /// `replica` is the holder's name, and `kafka` is where it publishes.
    pub fn new(
        store: Store,
        health: Arc<Health>,
        length: WindowLength,
        periods: Periods,
        replica: String,
        kafka: K,
    ) -> (Self, Leases<K::Session>) {
        let (sender, held) = watch::channel(None);
        let changed = Arc::<Notify>::default();
        let keeper = Self {
            store,
            health,
            length,
            replica,
            periods,
            kafka,
            held: sender,
            changed: changed.clone(),
        };
        (keeper, Leases { held, changed })
    }

    /// Runs until a stop is requested.
    ///
    /// The lease is released when all [`Leases`] are dropped, so that what is in Kafka is recorded
    /// in Redis first.
    pub async fn run(self, stop: CancellationToken) {
        while let Some(lease) = stop.run_until_cancelled(self.acquire()).await {
            tracing::info!(replica = self.replica, "holding the lease: reporting windows");
            let lease = Arc::new(lease);
            self.held.send_replace(Some(Held {
                lease: lease.clone(),
                session: SharedSession::new(self.kafka.session()),
            }));
            self.changed.notify_waiters();
            tokio::select! {
                biased;
                () = lease.lost() => {}
                // A stop lets the current steps finish.
                () = self.held.closed() => {}
            }
            self.held.send_replace(None);
            if !stop.is_cancelled() {
                tracing::warn!(replica = self.replica, "lost the lease");
            }
            lease.release().await;
            drop(lease);
            // Longer than other replicas take to acquire it: they may reach what this one does not.
            let pause = 2 * self.periods.try_lease();
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// Waits for the lease of windows of this length, and acquires it.
    /// Waits until no other replica holds it, and until the data in Redis is of a known format.
    async fn acquire(&self) -> Lease {
        let (store, periods) = (&self.store, self.periods);
        let (key, script) = (store.keys.lease(self.length), Script::new(ACQUIRE_LEASE));
        let mut acquire = script.key(&key);
        acquire.arg(&self.replica).arg(millis(periods.lease));
        let held_until = loop {
            let asked = Instant::now();
            let acquired = async {
                let format = store.other_format().await?;
                let is_known = format.is_none();
                self.health.set_problem("keys", format);
                if !is_known {
                    return Ok(0);
                }
                store.redis().script::<u8>(&acquire).await
            };
            match acquired.await {
                Ok(1) => break asked + periods.lease,
                Ok(_) => {}
                // `health` logs it.
                Err(error) => tracing::debug!("cannot get the lease: {error}"),
            }
            tokio::time::sleep(periods.try_lease()).await;
        };
        store.record_format().await;
        let state = Arc::new(State {
            held_until: Mutex::new(held_until),
            lost: CancellationToken::new(),
        });
        let renewing = renew(store.clone(), key.clone(), self.replica.clone(), state.clone(), periods);
        let renewing = tokio::spawn(renewing);
        Lease {
            store: store.clone(),
            key,
            holder: self.replica.clone(),
            since: Instant::now(),
            state,
            renewing,
        }
    }
}

/// An acquired lease.
/// It is renewed in the background until it is lost, released or dropped.
pub struct Lease {
    store: Store,
    key: String,
    holder: String,
    /// When it was acquired.
    since: Instant,
    state: Arc<State>,
    renewing: JoinHandle<()>,
}

struct State {
    /// Until when the lease is certainly held.
    /// This is counted from before the request that renewed it was sent.
    held_until: Mutex<Instant>,
    lost: CancellationToken,
}

impl Lease {
    /// Returns the key of the lease.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the name of the holder.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Waits until the lease is lost.
    pub async fn lost(&self) {
        self.state.lost.cancelled().await;
    }

    /// Returns for how long it has been held.
    pub fn held_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// Gives up the lease.
    ///
    /// Another replica has it, has begun to publish, or may reach more of Redis.
    pub fn give_up(&self) {
        self.state.lost.cancel();
    }

    /// Releases the lease, so that another replica can take over immediately.
    async fn release(&self) {
        let script = Script::new(RELEASE_LEASE);
        let mut release = script.key(&self.key);
        // If Redis is unreachable, the lease expires automatically.
        let _ = self.store.redis().script::<u8>(release.arg(&self.holder)).await;
    }
}

impl super::ports::Held for Lease {
    fn is_held(&self) -> bool {
        self.state.is_held()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl State {
    fn is_held(&self) -> bool {
        !self.lost.is_cancelled() && Instant::now() < *self.held_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn renew(store: Store, key: String, holder: String, state: Arc<State>, periods: Periods) {
    let script = Script::new(RENEW_LEASE);
    loop {
        tokio::time::sleep(periods.renew_lease()).await;
        let asked = Instant::now();
        let mut renew = script.key(&key);
        match store
            .redis()
            .script::<u8>(renew.arg(&holder).arg(millis(periods.lease)))
            .await
        {
            // A lease that has expired is not held again: those who report wait for the next one.
            _ if !state.is_held() => break,
            Ok(1) => *state.held_until.lock().unwrap_or_else(PoisonError::into_inner) = asked + periods.lease,
            Ok(_) => break,
            Err(_) => {}
        }
    }
    state.lost.cancel();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt as _;
    use redis::{RedisFuture, Value};
    use verve_protocol::{Keys, Partitions};

    use super::*;
    use crate::kafka::Publisher;
    use crate::metrics::Metrics;
    use crate::store::{Commands, RedisConfig, Server};

    /// A Redis that answers the first renewal after the lease has expired.
    #[derive(Default)]
    struct SlowOnce(AtomicBool);

    impl Commands for SlowOnce {
        fn run(&self, commands: Vec<Vec<String>>) -> RedisFuture<'static, Vec<Value>> {
            let renew = Script::new(RENEW_LEASE);
            let is_renewal = commands.iter().flatten().any(|word| word == renew.get_hash());
            let is_slow = is_renewal && !self.0.swap(true, Ordering::Relaxed);
            let answer = |command: Vec<String>| match command[0].as_str() {
                "GET" => Value::Nil,
                _ => Value::Int(1),
            };
            let answers = commands.into_iter().map(answer).collect();
            async move {
                if is_slow {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                Ok(answers)
            }
            .boxed()
        }
    }

    /// A renewal that arrives too late does not make an expired lease valid again.
    ///
    /// Those who wait for the lease at that time would not be woken.
    #[tokio::test(start_paused = true)]
    async fn an_expired_lease_is_followed_by_another() {
        let (periods, health) = (Periods::default(), Arc::new(Health::new(Duration::from_secs(10))));
        let config = RedisConfig {
            urls: "redis://simulated".parse().expect("an address"),
            tls: None,
            partitions: Partitions::default(),
        };
        let redis = Server::new(
            &config,
            Some(Arc::new(SlowOnce::default())),
            &health,
            &Metrics::default(),
        );
        let keys = Keys::new("verve".parse().expect("a namespace"));
        let store = Store::by(redis.expect("an address"), keys, Partitions::default());
        let length = WindowLength::try_new(60).expect("a length");
        let (keeper, leases) = LeaseKeeper::new(
            store,
            health,
            length,
            periods,
            "replica".to_owned(),
            Publisher::without_kafka(),
        );
        tokio::spawn(keeper.run(CancellationToken::new()));
        let (first, _) = leases.next().await;
        // The renewal after 2 s is answered after 7 s, and the lease expires after 6 s.
        tokio::time::sleep(Duration::from_millis(6500)).await;
        assert!(!first.is_held());
        let next = tokio::time::timeout(Duration::from_secs(10), leases.next()).await;
        let (next, _) = next.expect("in time");
        assert!(next.is_held() && !first.is_held());
    }
}
