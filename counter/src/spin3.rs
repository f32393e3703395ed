//! The core's ports for Spin 3 and similar hosts, with WASI 0.3.
//!
//! This module knows nothing of ids. To the host, each call of an exported function is a separate
//! task. `wit-bindgen` drives it without its feature `inter-task-wakeup`, which wasmtime 48 and
//! later refuse: no task may wake another one with Rust's own means. But streams belong to the
//! host. A waiting task therefore reads from a stream that carries nothing, and wakes when the
//! writing end is dropped. This can be removed when `wit-bindgen` wakes tasks in a way that hosts
//! accept.

mod limit;

use std::time::Duration;

use spin_sdk::redis::{self, RedisParameter, RedisResult};
use spin_sdk::sqlite::{self, Value};
use spin_sdk::wasip3::clocks::{monotonic_clock, system_clock};
use spin_sdk::wasip3::random::random::get_random_u64;
use spin_sdk::wasip3::wit_bindgen::StreamWriter;
use spin_sdk::wasip3::wit_stream;
use spin_sdk::{time, variables};
use verve_counter_core::config::Policy;
use verve_counter_core::ports::{Cell, Clock, Connection, Connector, Database, Disk, Host, Tasks};
use verve_counter_core::redis_error::RedisError;
use verve_counter_core::reply::Reply;
use verve_counter_core::spooled::SpoolError;

use limit::Limits;

/// The host that runs this component.
#[derive(Clone, Copy, Debug)]
pub struct Spin3;

/// A connection to Redis.
pub struct Server(redis::Connection);

impl Connector for Spin3 {
    type Connection = Server;

    async fn connect(&self, url: &str) -> Result<Server, RedisError> {
        redis::Connection::open(url).await.map(Server).map_err(failed)
    }
}

impl Connection for Server {
    async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError> {
        let arguments = arguments.into_iter();
        let arguments = arguments.map(|argument| RedisParameter::Binary(argument.into_bytes()));
        let replies = self.0.execute(command, arguments).await.map_err(failed)?;
        Ok(replies.into_iter().map(reply).collect())
    }
}

fn reply(result: RedisResult) -> Reply {
    match result {
        RedisResult::Nil => Reply::Nothing,
        RedisResult::Int64(number) => Reply::Number(number),
        RedisResult::Status(text) => Reply::Text(text),
        RedisResult::Binary(bytes) => Reply::of_bytes(bytes),
    }
}

fn failed(error: redis::Error) -> RedisError {
    match error {
        redis::Error::InvalidAddress => RedisError::InvalidAddress,
        redis::Error::TooManyConnections => RedisError::TooManyConnections,
        redis::Error::TypeError => RedisError::UnexpectedType,
        redis::Error::Other(message) => RedisError::from_message(message),
    }
}

/// A connection to the host's database.
pub struct File(sqlite::Connection);

impl Disk for Spin3 {
    type Database = File;

    async fn open(&self) -> Result<File, SpoolError> {
        sqlite::Connection::open_default().await.map(File).map_err(refused)
    }
}

impl Database for File {
    async fn execute(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError> {
        let values = values.into_iter().map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Integer(number) => Value::Integer(number),
            Cell::Text(text) => Value::Text(text),
        });
        let result = self.0.execute(statement, values).await.map_err(refused)?;
        let rows = result.collect().await.map_err(refused)?;
        let rows = rows.into_iter().map(|row| row.values.into_iter().map(cell).collect());
        Ok(rows.collect())
    }
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Integer(number) => Cell::Integer(number),
        Value::Text(text) => Cell::Text(text),
        Value::Real(_) | Value::Blob(_) | Value::Null => Cell::Null,
    }
}

fn refused(error: sqlite::Error) -> SpoolError {
    match error {
        sqlite::Error::NoSuchDatabase => SpoolError::NoDatabase,
        sqlite::Error::AccessDenied => SpoolError::NotGranted,
        sqlite::Error::InvalidConnection => SpoolError::Broken("the connection is not valid".to_owned()),
        sqlite::Error::DatabaseFull => SpoolError::DiskFull,
        sqlite::Error::Io(message) => SpoolError::from_message(message),
    }
}

impl Clock for Spin3 {
    fn now_ms(&self) -> u64 {
        let now = system_clock::now();
        u64::try_from(now.seconds).unwrap_or_default() * 1000 + u64::from(now.nanoseconds / 1_000_000)
    }

    fn monotonic_ms(&self) -> u64 {
        monotonic_clock::now() / 1_000_000
    }
}

impl Tasks for Spin3 {
    type Wake = StreamWriter<u8>;
    type Limit = Limits;

    fn signal(&self) -> (StreamWriter<u8>, impl Future<Output = ()> + 'static) {
        let (wake, mut woken) = wit_stream::new();
        let woken = async move {
            woken.read(Vec::with_capacity(1)).await;
        };
        (wake, woken)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // The next task that is polled finds it. Therefore nothing is spawned while a value is
        // dropped.
        wit_bindgen::spawn(task);
    }

    async fn sleep(&self, time: Duration) {
        time::sleep(time).await;
    }

    fn limit(&self, each: Duration) -> Limits {
        Limits::new(each)
    }
}

impl Host for Spin3 {
    const POLICY: Policy = Policy::LongLived;

    async fn variable(&self, name: &'static str) -> Result<Option<String>, String> {
        match variables::get(name).await {
            Ok(value) => Ok(Some(value)),
            Err(variables::Error::Undefined(_)) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn random(&self) -> u64 {
        get_random_u64()
    }
}
