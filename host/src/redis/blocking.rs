//! The same interface for components of WASI 0.2, with a time limit.
//!
//! These components wait for each answer, and cannot give up on their own.

use std::time::Duration;

use tokio::time::timeout;
use wasmtime::component::Resource;

use super::{Redis, cmd, connect, flat, is_of_connection, other, query};
use crate::pool::Shared;
use crate::spin::bindings::fermyon::spin::redis::{Error, Host, HostConnection, RedisParameter, RedisResult};
use crate::spin::bindings::spin::redis::redis as current;

/// The time limit for connecting, and for the answer to a command.
const WITHIN: Duration = Duration::from_secs(1);

impl Host for Redis {}

impl HostConnection for Redis {
    async fn open(&mut self, address: String) -> wasmtime::Result<Result<Resource<Shared>, Error>> {
        let connected = within(connect(&self.allowed_hosts, &self.shared, &address)).await;
        Ok(connected.map_err(Error::from).and_then(|connection| {
            let connection = self.connections.push(connection);
            connection.map_err(|_| Error::TooManyConnections)
        }))
    }

    async fn execute(
        &mut self,
        connection: Resource<Shared>,
        command: String,
        arguments: Vec<RedisParameter>,
    ) -> wasmtime::Result<Result<Vec<RedisResult>, Error>> {
        if is_of_connection(&command) {
            let shared = self.connections.get(&connection)?.clone();
            match within(async { shared.own().await.map_err(other) }).await {
                Ok(own) => self.put(&connection, own)?,
                Err(error) => return Ok(Err(error.into())),
            }
        }
        let command = cmd(&command, arguments.into_iter().map(current::RedisParameter::from));
        let answer = within(query(self.in_use(&connection)?, &command)).await;
        let results = answer.and_then(flat).map_err(Error::from);
        Ok(results.map(|results| results.into_iter().map(RedisResult::from).collect()))
    }

    async fn drop(&mut self, connection: Resource<Shared>) -> wasmtime::Result<()> {
        self.connections.delete(connection)?;
        Ok(())
    }
}

async fn within<T>(work: impl Future<Output = Result<T, current::Error>>) -> Result<T, current::Error> {
    let late = |_| Err(other(format!("no answer within {} s", WITHIN.as_secs())));
    timeout(WITHIN, work).await.unwrap_or_else(late)
}

impl From<current::Error> for Error {
    fn from(error: current::Error) -> Self {
        match error {
            current::Error::InvalidAddress => Self::InvalidAddress,
            current::Error::TooManyConnections => Self::TooManyConnections,
            current::Error::TypeError => Self::TypeError,
            current::Error::Other(message) => Self::Other(message),
        }
    }
}

impl From<RedisParameter> for current::RedisParameter {
    fn from(parameter: RedisParameter) -> Self {
        match parameter {
            RedisParameter::Int64(number) => Self::Int64(number),
            RedisParameter::Binary(bytes) => Self::Binary(bytes),
        }
    }
}

impl From<current::RedisResult> for RedisResult {
    fn from(result: current::RedisResult) -> Self {
        match result {
            current::RedisResult::Nil => Self::Nil,
            current::RedisResult::Status(text) => Self::Status(text),
            current::RedisResult::Int64(number) => Self::Int64(number),
            current::RedisResult::Binary(bytes) => Self::Binary(bytes),
        }
    }
}
