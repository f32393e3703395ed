//! The host's side of `spin:redis`: the component's connections and commands.
//!
//! As in Spin, commands that are sent at the same time are pipelined, and nothing has a time limit:
//! the component has its own limits. Unlike in Spin, a connection that the component opens is
//! shared: see [`crate::pool`].

mod blocking;

use std::sync::Arc;

use redis::{Cmd, ErrorKind, RedisError, Value};
use url::Url;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};

use crate::outbound::AllowedHosts;
use crate::output::should_log;
use crate::pool::{Connections, InUse, Shared};
use crate::spin::bindings::spin::redis::redis::{
    Error, Host, HostConnection, HostConnectionWithStore, RedisParameter, RedisResult,
};

/// The maximum number of open connections of one instance, as in Spin.
const MAX_CONNECTIONS: usize = 1_024;

/// Commands that change their connection for the commands that follow.
const OF_CONNECTION: [&str; 24] = [
    "ASKING",
    "AUTH",
    "CLIENT",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "REPLCONF",
    "RESET",
    "SELECT",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "SYNC",
    "UNSUBSCRIBE",
    "UNWATCH",
    "WATCH",
];

/// The connections of one instance.
pub struct Redis {
    allowed_hosts: Arc<AllowedHosts>,
    shared: Connections,
    connections: ResourceTable,
}

impl Redis {
    /// Returns the state of a new instance, without connections.
    pub fn new(allowed_hosts: Arc<AllowedHosts>, shared: Connections) -> Self {
        let mut connections = ResourceTable::new();
        connections.set_max_capacity(MAX_CONNECTIONS);
        Self {
            allowed_hosts,
            shared,
            connections,
        }
    }

    fn in_use(&self, connection: &Resource<Shared>) -> wasmtime::Result<InUse> {
        let connection = self.connections.get(connection)?;
        Ok(InUse::new(connection, &self.shared))
    }

    fn put(&mut self, at: &Resource<Shared>, connection: Shared) -> wasmtime::Result<()> {
        *self.connections.get_mut(at)? = connection;
        Ok(())
    }
}

impl Host for Redis {}

impl HostConnection for Redis {
    async fn drop(&mut self, connection: Resource<Shared>) -> wasmtime::Result<()> {
        self.connections.delete(connection)?;
        Ok(())
    }
}

impl<T: Send> HostConnectionWithStore<T> for HasSelf<Redis> {
    async fn open(guest: &Accessor<T, Self>, address: String) -> wasmtime::Result<Result<Resource<Shared>, Error>> {
        let (allowed_hosts, shared) = guest.with(|mut access| {
            let redis = access.get();
            (redis.allowed_hosts.clone(), redis.shared.clone())
        });
        let connection = match connect(&allowed_hosts, &shared, &address).await {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(error)),
        };
        Ok(guest
            .with(|mut access| access.get().connections.push(connection))
            .map_err(|_| Error::TooManyConnections))
    }

    async fn sadd(
        guest: &Accessor<T, Self>,
        connection: Resource<Shared>,
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
        connection: Resource<Shared>,
        command: String,
        arguments: Vec<RedisParameter>,
    ) -> wasmtime::Result<Result<Vec<RedisResult>, Error>> {
        if is_of_connection(&command) {
            let shared = guest.with(|mut access| access.get().connections.get(&connection).cloned())?;
            match shared.own().await {
                Ok(own) => guest.with(|mut access| access.get().put(&connection, own))?,
                Err(error) => return Ok(Err(other(error))),
            }
        }
        let answer = send(guest, &connection, &cmd(&command, arguments)).await?;
        Ok(answer.and_then(flat))
    }
}

/// Connects to a server, if the component may connect to it.
async fn connect(allowed_hosts: &AllowedHosts, shared: &Connections, address: &str) -> Result<Shared, Error> {
    let url = check(allowed_hosts, address)?;
    shared.get(url).await.map_err(|error| match error.kind() {
        ErrorKind::InvalidClientConfig => Error::InvalidAddress,
        _ => other(error),
    })
}

/// Returns whether a command needs an unshared connection.
fn is_of_connection(command: &str) -> bool {
    OF_CONNECTION.iter().any(|name| name.eq_ignore_ascii_case(command))
}

/// Builds a command from its name and arguments.
fn cmd(name: &str, arguments: impl IntoIterator<Item = RedisParameter>) -> Cmd {
    let mut command = redis::cmd(name);
    for argument in arguments {
        match argument {
            RedisParameter::Int64(number) => command.arg(number),
            RedisParameter::Binary(bytes) => command.arg(bytes),
        };
    }
    command
}

/// Parses the URL of a server, and checks that the component may connect to it.
///
/// The URL is parsed once, so that the checked address is the one that is connected to.
fn check(allowed_hosts: &AllowedHosts, address: &str) -> Result<Url, Error> {
    let url = Url::parse(address).map_err(|_| Error::InvalidAddress)?;
    if !matches!(url.scheme(), "redis" | "rediss") {
        return Err(Error::InvalidAddress);
    }
    if !allowed_hosts.allow(&url) {
        let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(6379));
        let scheme = url.scheme();
        let warning = format!("the component may not connect to {scheme}://{host}:{port}: see allowed_outbound_hosts");
        if should_log(&warning) {
            tracing::warn!("{warning}");
        }
        return Err(Error::InvalidAddress);
    }
    Ok(url)
}

/// Sends a command without blocking the instance, which continues meanwhile.
async fn send<T: Send>(
    guest: &Accessor<T, HasSelf<Redis>>,
    connection: &Resource<Shared>,
    command: &Cmd,
) -> wasmtime::Result<Result<Value, Error>> {
    let connection = guest.with(|mut access| access.get().in_use(connection))?;
    Ok(query(connection, command).await)
}

/// Sends a command, and waits for the answer.
async fn query(mut connection: InUse, command: &Cmd) -> Result<Value, Error> {
    let answer = command.query_async(connection.multiplexed()).await;
    // An error reply of Redis counts as a failure too: after a demotion the address may lead to
    // another server, which only a new connection finds.
    if answer.is_ok() {
        connection.answered();
    }
    answer.map_err(|error: RedisError| other(error))
}

/// Flattens an answer into a list, as Spin does.
fn flat(answer: Value) -> Result<Vec<RedisResult>, Error> {
    let mut results = Vec::new();
    flatten(answer, &mut results)?;
    Ok(results)
}

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
        // Types of RESP3, which the host does not request.
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
