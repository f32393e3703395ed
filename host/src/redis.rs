//! The host's side of `spin:redis`: connections that the component opens, and the commands it sends on them.
//!
//! As in Spin, commands sent at the same time are pipelined, and there is no time limit on anything: the component has its
//! own. Unlike in Spin, what the component opens is a share of one connection for each server and thread: more commands
//! go in one write, and a new instance finds it open. A connection that fails or brings an error, or that an instance gives up
//! while it waits for an answer, is shared no longer: whoever opens one next gets a fresh one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo as _, RedisError, Value};
use url::Url;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};

use crate::outbound::AllowedHosts;
use crate::spin::bindings::spin::redis::redis::{
    Error, Host, HostConnection, HostConnectionWithStore, RedisParameter, RedisResult,
};

/// The most connections that one instance may have open, as in Spin.
const MAX_CONNECTIONS: usize = 1_024;

/// The connections of one thread, by URL. Clones are the same.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<String, Shared>>>);

/// A connection that several instances use.
#[derive(Clone)]
struct Shared {
    connection: MultiplexedConnection,
    /// Which it is.
    identity: Arc<()>,
}

impl Connections {
    /// The connection to a server, opened if there is none.
    async fn get(&self, url: Url) -> Result<Shared, Error> {
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
    fn forget(&self, shared: &Shared) {
        self.all()
            .retain(|_, other| !Arc::ptr_eq(&other.identity, &shared.identity));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of one instance.
pub struct Redis {
    allowed_hosts: Arc<AllowedHosts>,
    shared: Connections,
    connections: ResourceTable,
}

/// What the component's `connection` stands for.
pub struct Connection {
    shared: Shared,
    /// Commands that are not answered yet.
    waiting: Arc<AtomicUsize>,
}

/// Counts a command for as long as it is there.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Redis {
    /// No connections yet.
    pub fn new(allowed_hosts: Arc<AllowedHosts>, shared: Connections) -> Self {
        let mut connections = ResourceTable::new();
        connections.set_max_capacity(MAX_CONNECTIONS);
        Self {
            allowed_hosts,
            shared,
            connections,
        }
    }
}

impl Host for Redis {}

impl HostConnection for Redis {
    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        let connection = self.connections.delete(connection)?;
        if connection.waiting.load(Ordering::Relaxed) > 0 {
            self.shared.forget(&connection.shared);
        }
        Ok(())
    }
}

impl<T: Send> HostConnectionWithStore<T> for HasSelf<Redis> {
    async fn open(guest: &Accessor<T, Self>, address: String) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let (allowed_hosts, shared) = guest.with(|mut access| {
            let redis = access.get();
            (redis.allowed_hosts.clone(), redis.shared.clone())
        });
        let url = match check(&allowed_hosts, &address) {
            Ok(url) => url,
            Err(error) => return Ok(Err(error)),
        };
        let connection = match shared.get(url).await {
            Ok(shared) => Connection {
                shared,
                waiting: Arc::default(),
            },
            Err(error) => return Ok(Err(error)),
        };
        Ok(guest
            .with(|mut access| access.get().connections.push(connection))
            .map_err(|_| Error::TooManyConnections))
    }

    async fn sadd(
        guest: &Accessor<T, Self>,
        connection: Resource<Connection>,
        key: String,
        values: Vec<String>,
    ) -> wasmtime::Result<Result<u32, Error>> {
        let mut command = redis::cmd("SADD");
        command.arg(key).arg(values);
        let answer = send(guest, &connection, &command).await?;
        Ok(answer.and_then(|answer| match answer {
            Value::Int(added) => u32::try_from(added).map_err(|_| Error::TypeError),
            _ => Err(Error::TypeError),
        }))
    }

    async fn execute(
        guest: &Accessor<T, Self>,
        connection: Resource<Connection>,
        command: String,
        arguments: Vec<RedisParameter>,
    ) -> wasmtime::Result<Result<Vec<RedisResult>, Error>> {
        let mut command = redis::cmd(&command);
        for argument in arguments {
            match argument {
                RedisParameter::Int64(number) => command.arg(number),
                RedisParameter::Binary(bytes) => command.arg(bytes),
            };
        }
        let answer = send(guest, &connection, &command).await?;
        Ok(answer.and_then(|answer| {
            let mut results = Vec::new();
            flatten(answer, &mut results)?;
            Ok(results)
        }))
    }
}

/// The URL of a server that the component may connect to. Parsed once, so that what is checked is what is connected to.
fn check(allowed_hosts: &AllowedHosts, address: &str) -> Result<Url, Error> {
    let url = Url::parse(address).map_err(|_| Error::InvalidAddress)?;
    if !matches!(url.scheme(), "redis" | "rediss") {
        return Err(Error::InvalidAddress);
    }
    if !allowed_hosts.allow(&url) {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(6379));
        let scheme = url.scheme();
        tracing::warn!("the component may not connect to {scheme}://{host}:{port}: see allowed_outbound_hosts");
        return Err(Error::InvalidAddress);
    }
    Ok(url)
}

async fn connect(url: Url) -> Result<MultiplexedConnection, Error> {
    let server = url.into_connection_info().map_err(|_| Error::InvalidAddress)?;
    let server = server.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = Client::open(server).map_err(|_| Error::InvalidAddress)?;
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .map_err(other)
}

/// Sends a command without holding on to the instance, which goes on meanwhile.
async fn send<T: Send>(
    guest: &Accessor<T, HasSelf<Redis>>,
    connection: &Resource<Connection>,
    command: &Cmd,
) -> wasmtime::Result<Result<Value, Error>> {
    let (mut shared, waiting) = guest.with(|mut access| {
        let connection = access.get().connections.get(connection)?;
        wasmtime::error::Ok((connection.shared.clone(), Waiting::new(&connection.waiting)))
    })?;
    let answer = command.query_async(&mut shared.connection).await;
    drop(waiting);
    Ok(answer.map_err(|error: RedisError| {
        // Also what Redis answers: a demoted one's address may lead to another by now, which is found by a fresh connection.
        guest.with(|mut access| access.get().shared.forget(&shared));
        other(error)
    }))
}

/// Spin's answers are flat lists.
fn flatten(value: Value, results: &mut Vec<RedisResult>) -> Result<(), Error> {
    match value {
        Value::Nil => results.push(RedisResult::Nil),
        Value::Int(number) => results.push(RedisResult::Int64(number)),
        Value::BulkString(bytes) => results.push(RedisResult::Binary(bytes)),
        Value::SimpleString(text) => results.push(RedisResult::Status(text)),
        Value::Okay => results.push(RedisResult::Status("OK".to_owned())),
        Value::Array(values) | Value::Set(values) => {
            for value in values {
                flatten(value, results)?;
            }
        }
        // Of the protocol's third version, which nobody asks the server for.
        _ => {
            return Err(Error::Other(
                "the answer has a type that spin:redis cannot express".to_owned(),
            ));
        }
    }
    Ok(())
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::Other(error.to_string())
}
