//! Connections to Redis: one for each server and thread, of which component instances have a share.
//!
//! More commands go in one write that way, and a new instance finds it open. A connection that fails or brings an error, or that an
//! instance gives up while it waits for an answer, is shared no longer: whoever opens one next gets a fresh one. Whoever sends a command that
//! is about the connection itself, such as `ASKING`, has one of its own from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, RedisResult};
use url::Url;

/// The connections of one thread, by URL. Clones are the same.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<String, Shared>>>);

/// A connection that several instances use, or one has to itself.
#[derive(Clone)]
pub struct Shared {
    connection: MultiplexedConnection,
    url: Url,
    /// Which it is.
    identity: Arc<()>,
    /// Whether one instance has it to itself.
    is_own: bool,
}

impl Connections {
    /// The connection to a server, opened if there is none.
    pub async fn get(&self, url: Url) -> RedisResult<Shared> {
        if let Some(shared) = self.all().get(url.as_str()) {
            return Ok(shared.clone());
        }
        let shared = Shared::open(url.clone(), false).await?;
        self.all().insert(url.into(), shared.clone());
        Ok(shared)
    }

    /// Shares it no longer.
    fn forget(&self, shared: &Shared) {
        self.all()
            .retain(|_, other| !Arc::ptr_eq(&other.identity, &shared.identity));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    async fn open(url: Url, is_own: bool) -> RedisResult<Self> {
        Ok(Self {
            connection: connect(url.clone()).await?,
            url,
            identity: Arc::default(),
            is_own,
        })
    }

    /// A connection to the same server which nobody shares: another one, unless this is one.
    pub async fn own(&self) -> RedisResult<Self> {
        if self.is_own {
            return Ok(self.clone());
        }
        Self::open(self.url.clone(), true).await
    }
}

/// A connection while a command is on its way. Unless that goes well it is shared no longer, and it does not go well either if whoever
/// sent the command gives up waiting.
pub struct InUse {
    shared: Shared,
    connections: Connections,
    went_well: bool,
}

impl InUse {
    /// Uses one of these connections.
    pub fn new(shared: &Shared, connections: &Connections) -> Self {
        Self {
            shared: shared.clone(),
            connections: connections.clone(),
            went_well: false,
        }
    }

    /// To send the command on.
    pub const fn multiplexed(&mut self) -> &mut MultiplexedConnection {
        &mut self.shared.connection
    }

    /// The command was answered.
    pub fn answered(mut self) {
        self.went_well = true;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if !self.went_well {
            self.connections.forget(&self.shared);
        }
    }
}

async fn connect(url: Url) -> RedisResult<MultiplexedConnection> {
    let server = url.into_connection_info()?;
    let server = server.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    // Without telling Redis who it is: that would be a round trip more, of the time that an attempt has.
    let settings = server.redis_settings().clone().set_skip_set_lib_name();
    let server = server.set_redis_settings(settings);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = Client::open(server)?;
    client.get_multiplexed_async_connection_with_config(&config).await
}
