//! Connections to Redis: one for each server and thread, shared by its instances.
//!
//! Sharing puts more commands into one write, and a new instance finds an open connection. A
//! connection is no longer shared after it fails or returns an error, or after an instance gives up
//! waiting for an answer on it; the next instance that opens one gets a new connection. An instance
//! that sends a command about the connection itself, such as `ASKING`, has its own connection from
//! then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo as _, RedisResult};
use url::Url;

/// The connections of one thread, by URL. Clones share them.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<String, Shared>>>);

/// A connection that several instances share, or that one instance has alone.
#[derive(Clone)]
pub struct Shared {
    connection: MultiplexedConnection,
    url: Url,
    /// The identity of the connection.
    identity: Arc<()>,
    /// Whether one instance has it alone.
    is_own: bool,
}

impl Connections {
    /// Returns the connection to a server, and opens one if there is none.
    pub async fn get(&self, url: Url) -> RedisResult<Shared> {
        if let Some(shared) = self.all().get(url.as_str()) {
            return Ok(shared.clone());
        }
        let shared = Shared::open(url.clone(), false).await?;
        self.all().insert(url.into(), shared.clone());
        Ok(shared)
    }

    /// Stops sharing a connection.
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

    /// Returns an unshared connection to the same server: itself, or a new one.
    pub async fn own(&self) -> RedisResult<Self> {
        if self.is_own {
            return Ok(self.clone());
        }
        Self::open(self.url.clone(), true).await
    }
}

/// A connection while a command is in flight.
///
/// If the command does not succeed, the connection is no longer shared. It does not succeed either
/// if the sender gives up waiting.
pub struct InUse {
    shared: Shared,
    connections: Connections,
    went_well: bool,
}

impl InUse {
    /// Starts to use one of these connections.
    pub fn new(shared: &Shared, connections: &Connections) -> Self {
        Self {
            shared: shared.clone(),
            connections: connections.clone(),
            went_well: false,
        }
    }

    /// Returns the connection to send the command on.
    pub const fn multiplexed(&mut self) -> &mut MultiplexedConnection {
        &mut self.shared.connection
    }

    /// Marks the command as answered.
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
    // `CLIENT SETINFO` would cost one more round trip, within the time limit of the attempt.
    let settings = server.redis_settings().clone().set_skip_set_lib_name();
    let server = server.set_redis_settings(settings);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = Client::open(server)?;
    client.get_multiplexed_async_connection_with_config(&config).await
}
