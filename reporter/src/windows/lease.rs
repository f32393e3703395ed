//! The lease: which replica reports windows now.
//!
//! A string in Redis holds the replica's name and expires unless it is renewed. Each script that
//! records something checks the lease too, so that a replica whose lease expired during a pause
//! changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use redis::Script;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use verve_protocol::WindowLength;
use verve_protocol::scripts::{ACQUIRE_LEASE, RELEASE_LEASE, RENEW_LEASE};

use super::ports::Held;
use crate::clock::millis;
use crate::health::Health;
use crate::periods::Periods;
use crate::store::Store;

/// An acquired lease.
/// It is renewed in the background until it is lost, released or dropped.
pub struct Lease {
    store: Store,
    key: String,
    holder: String,
    /// Whether the first attempt failed.
    /// Another replica had the lease, or Redis did not answer.
    waited_for: bool,
    state: Arc<State>,
    renewing: JoinHandle<()>,
}

struct State {
    /// Until when the lease is certainly held.
    /// This is counted from before the request that renewed it was sent.
    held_until: Mutex<Instant>,
    lost: Notify,
}

impl Lease {
    /// Waits for the lease of windows of this length, and acquires it.
    /// Waits until no other replica holds it, and until the data in Redis is of a known format.
    pub async fn acquire(store: &Store, health: &Health, length: WindowLength, holder: &str, periods: Periods) -> Self {
        let (key, script) = (store.keys.lease(length), Script::new(ACQUIRE_LEASE));
        let mut acquire = script.key(&key);
        acquire.arg(holder).arg(millis(periods.lease));
        let mut waited_for = false;
        let held_until = loop {
            let asked = Instant::now();
            let acquired = async {
                let format = store.other_format().await?;
                let is_known = format.is_none();
                health.set_problem("keys", format);
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
            waited_for = true;
            tokio::time::sleep(periods.try_lease()).await;
        };
        store.record_format().await;
        let state = Arc::new(State {
            held_until: Mutex::new(held_until),
            lost: Notify::new(),
        });
        let renewing = renew(store.clone(), key.clone(), holder.to_owned(), state.clone(), periods);
        let renewing = tokio::spawn(renewing);
        Self {
            store: store.clone(),
            key,
            holder: holder.to_owned(),
            waited_for,
            state,
            renewing,
        }
    }

    /// Returns the key of the lease.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the name of the holder.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Returns whether the lease was not available immediately.
    pub const fn was_waited_for(&self) -> bool {
        self.waited_for
    }

    /// Waits until the lease is lost.
    pub async fn lost(&self) {
        self.state.lost.notified().await;
    }

    /// Releases the lease, so that another replica can take over immediately.
    pub async fn release(self) {
        let script = Script::new(RELEASE_LEASE);
        let mut release = script.key(&self.key);
        // If Redis is unreachable, the lease expires automatically.
        let _ = self.store.redis().script::<u8>(release.arg(&self.holder)).await;
    }
}

impl Held for Lease {
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
        Instant::now() < *self.held_until.lock().unwrap_or_else(PoisonError::into_inner)
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
            Ok(1) => *state.held_until.lock().unwrap_or_else(PoisonError::into_inner) = asked + periods.lease,
            Ok(_) => break,
            Err(_) if state.is_held() => {}
            Err(_) => break,
        }
    }
    state.lost.notify_one();
}
