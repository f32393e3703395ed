//! The ports: what the core needs of a host.
//!
//! An adapter implements them. `verve-counter` has the adapters for Spin, and tests have adapters
//! for hosts of their own.
//!
//! Everything runs on one thread. Any future may be dropped at any time, wherever it waits.

use std::time::Duration;

use crate::config::Policy;
use crate::redis_error::RedisError;
use crate::reply::Reply;
use crate::spooled::SpoolError;

/// Connects to Redis servers.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Connector {
    /// A connection to one server.
    type Connection: Connection;

    /// Connects to the server at a URL. The URL includes the password, if there is one.
    ///
    /// # Errors
    /// The failure, as a [`RedisError`].
    async fn connect(&self, url: &str) -> Result<Self::Connection, RedisError>;
}

/// A connection to a Redis server, used by any number of tasks at the same time.
///
/// Commands run in the order in which their futures are first polled. A command whose future is
/// dropped after that may have run.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Connection: 'static {
    /// Runs a command.
    ///
    /// # Errors
    /// The failure, as a [`RedisError`].
    async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError>;
}

/// A value in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// No value, or a value of a type that is not used.
    Null,
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// Opens the SQLite database of the spool, which all instances of a host share.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Disk {
    /// A connection to the database.
    type Database: Database;

    /// Connects to the database.
    ///
    /// # Errors
    /// The failure, as a [`SpoolError`]. In particular, the host may have no database.
    async fn open(&self) -> Result<Self::Database, SpoolError>;
}

/// A connection to the database.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Database: 'static {
    /// Runs a statement, and returns its rows.
    ///
    /// # Errors
    /// The failure, as a [`SpoolError`].
    async fn execute(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError>;
}

/// Provides the time.
pub trait Clock {
    /// Returns the milliseconds since the Unix epoch.
    ///
    /// They may be wrong, and may be set.
    fn now_ms(&self) -> u64;

    /// Returns the milliseconds since some moment, by a clock that is never set.
    ///
    /// It measures durations, within this instance only.
    fn monotonic_ms(&self) -> u64;
}

/// Runs tasks, and lets them wait.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Tasks {
    /// Wakes the waiting task when it is dropped.
    ///
    /// Tasks have no other way to wake each other.
    type Wake: 'static;
    /// Ends work that takes too long.
    type Limit: Limit;

    /// Returns a wake handle, and the future that waits until the handle is dropped.
    fn signal(&self) -> (Self::Wake, impl Future<Output = ()> + 'static);

    /// Runs a task in the background. Must not be called from a destructor (`Drop`).
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Waits for `time`.
    async fn sleep(&self, time: Duration);

    /// Returns a limit that ends work that takes longer than `each`.
    fn limit(&self, each: Duration) -> Self::Limit;
}

/// Ends work that takes too long.
///
/// Each piece of work under one limit may take the same time.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Limit: 'static {
    /// Runs the work. Returns `None` if it takes too long, or if it is ended.
    async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T>;

    /// Ends all work that is under way.
    fn end_all(&self);
}

/// Everything that the core needs of a host.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Host: Connector + Disk + Clock + Tasks + Clone + 'static {
    /// How long an instance lives, and so how it counts.
    const POLICY: Policy;

    /// Returns the value of a variable of the application; `None` if it is not defined.
    ///
    /// # Errors
    /// The host's message, if it cannot provide the value.
    async fn variable(&self, name: &'static str) -> Result<Option<String>, String>;

    /// Returns an unpredictable number.
    fn random(&self) -> u64;
}

/// The pause before a request checks again for a value that another request makes.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Pauses a task that waits for a value that another request makes.
pub(crate) async fn look_again(tasks: &impl Tasks) {
    tasks.sleep(LOOK_AGAIN).await;
}

/// Returns a unique name for a batch of commands.
pub(crate) fn unique_name(host: &impl Host) -> String {
    format!("{:016x}{:016x}", host.random(), host.random())
}
