//! Connections to Redis: one for each server and thread, of which component instances have a share.
//!
//! More commands go in one write that way, and a new instance finds it open. A connection that fails or brings an error, or that an
//! instance gives up while it waits for an answer, is shared no longer: whoever opens one next gets a fresh one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, RedisResult};
use url::Url;

/// The connections of one thread, by URL. Clones are the same.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<String, Shared>>>);

/// A connection that several instances use.
#[derive(Clone)]
pub struct Shared {
    /// To send commands on.
    pub connection: MultiplexedConnection,
    /// Which it is.
    identity: Arc<()>,
}

impl Connections {
    /// The connection to a server, opened if there is none.
    pub async fn get(&self, url: Url) -> RedisResult<Shared> {
        if let Some(shared) = self.all().get(url.as_str()) {
            return Ok(shared.clone());
        }
        let shared = Shared {
            connection: connect(url.clone()).await?,
            identity: Arc::default(),
        };
        self.all().insert(url.into(), shared.clone());
        Ok(shared)
    }

    /// Shares it no longer.
    pub fn forget(&self, shared: &Shared) {
        self.all()
            .retain(|_, other| !Arc::ptr_eq(&other.identity, &shared.identity));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the component's `connection` stands for.
pub struct Connection {
    /// Its share of what others use too.
    pub shared: Shared,
    /// Commands that are not answered yet.
    pub waiting: Arc<AtomicUsize>,
}

/// Counts a command for as long as it is there.
pub struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// One more of these.
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(url: Url) -> RedisResult<MultiplexedConnection> {
    let server = url.into_connection_info()?;
    let server = server.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = Client::open(server)?;
    client.get_multiplexed_async_connection_with_config(&config).await
}
