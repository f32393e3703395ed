//! The host's side of `spin:redis`: connections that the component opens, and the commands it sends on them.
//!
//! As in Spin, each `open` makes a new connection, commands sent at the same time on one connection are pipelined, and
//! there is no time limit on anything: the component has its own. A connection ends when the component drops it and the
//! commands in flight are answered.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo as _, Value};
use url::Url;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};

use crate::outbound::AllowedHosts;
use crate::spin::bindings::spin::redis::redis::{
    Error, Host, HostConnection, HostConnectionWithStore, RedisParameter, RedisResult,
};

/// The most connections that one instance may have open, as in Spin.
const MAX_CONNECTIONS: usize = 1_024;

/// The connections of one instance.
pub struct Redis {
    allowed_hosts: Arc<AllowedHosts>,
    connections: ResourceTable,
}

/// What the component's `connection` stands for.
pub struct Connection(MultiplexedConnection);

impl Redis {
    /// No connections yet.
    pub fn new(allowed_hosts: Arc<AllowedHosts>) -> Self {
        let mut connections = ResourceTable::new();
        connections.set_max_capacity(MAX_CONNECTIONS);
        Self {
            allowed_hosts,
            connections,
        }
    }
}

impl Host for Redis {}

impl HostConnection for Redis {
    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.connections.delete(connection)?;
        Ok(())
    }
}

impl<T: Send> HostConnectionWithStore<T> for HasSelf<Redis> {
    async fn open(guest: &Accessor<T, Self>, address: String) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let allowed_hosts = guest.with(|mut access| access.get().allowed_hosts.clone());
        let connection = match connect(&allowed_hosts, &address).await {
            Ok(connection) => connection,
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

async fn connect(allowed_hosts: &AllowedHosts, address: &str) -> Result<Connection, Error> {
    // Parsed once, so that what is checked is what is connected to.
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
    let server = url.into_connection_info().map_err(|_| Error::InvalidAddress)?;
    let server = server.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = Client::open(server).map_err(|_| Error::InvalidAddress)?;
    let connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .map_err(other)?;
    Ok(Connection(connection))
}

/// Sends a command without holding on to the instance, which goes on meanwhile.
async fn send<T: Send>(
    guest: &Accessor<T, HasSelf<Redis>>,
    connection: &Resource<Connection>,
    command: &Cmd,
) -> wasmtime::Result<Result<Value, Error>> {
    let mut connection = guest.with(|mut access| {
        let connection = access.get().connections.get(connection)?;
        wasmtime::error::Ok(connection.0.clone())
    })?;
    Ok(command.query_async(&mut connection).await.map_err(other))
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
