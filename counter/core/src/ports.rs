//! What the core needs of a host. Who implements these has it run there: `verve-counter` does for Spin, and tests do for hosts of their own.
//!
//! Everything is of one thread. Any future may be dropped at any time, wherever it waits.

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

    /// Connects to the server at a URL with its password, if it has one.
    ///
    /// # Errors
    /// In the words of [`RedisError`].
    async fn connect(&self, url: &str) -> Result<Self::Connection, RedisError>;
}

/// A connection to a Redis server, used by any number of tasks at the same time. Commands run in the order in which their futures are first polled; one that is
/// dropped afterwards may have run.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Connection: 'static {
    /// Runs a command.
    ///
    /// # Errors
    /// In the words of [`RedisError`].
    async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError>;
}

/// A value in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// None, or of a kind that is not used.
    Null,
    /// A number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// Opens the SQLite database of the spool, which all instances of a host share.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Disk {
    /// A connection to it.
    type Database: Database;

    /// Connects to it.
    ///
    /// # Errors
    /// In the words of [`SpoolError`]: most of all that there is none.
    async fn open(&self) -> Result<Self::Database, SpoolError>;
}

/// A connection to the database.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Database: 'static {
    /// Runs a statement, and answers its rows.
    ///
    /// # Errors
    /// In the words of [`SpoolError`].
    async fn execute(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError>;
}

/// Tells the time.
pub trait Clock {
    /// In milliseconds since the Unix epoch. It may be wrong, and may be set.
    fn now_ms(&self) -> u64;

    /// In milliseconds since some moment, by a clock that is never set. For how long things last, in this instance alone.
    fn monotonic_ms(&self) -> u64;
}

/// Runs tasks, and has them wait.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Tasks {
    /// Who waits for it goes on once it is dropped. No other way there is for one task to wake another.
    type Wake: 'static;
    /// Ends what takes too long.
    type Limit: Limit;

    /// What wakes, and what waits for that.
    fn signal(&self) -> (Self::Wake, impl Future<Output = ()> + 'static);

    /// Runs a task in the background. Not to be called while something is dropped.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Waits.
    async fn sleep(&self, time: Duration);

    /// What ends work that takes longer than that.
    fn limit(&self, each: Duration) -> Self::Limit;
}

/// Ends what takes too long: all that is limited by it, each after the same time.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Limit: 'static {
    /// Does the work, or gives it up when it takes too long.
    async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T>;

    /// Has all that is under way given up now.
    fn end_all(&self);
}

/// All that the core needs of a host.
#[allow(async_fn_in_trait, reason = "everything is of one thread")]
pub trait Host: Connector + Disk + Clock + Tasks + Clone + 'static {
    /// What its instances are for.
    const POLICY: Policy;

    /// The value of a variable of the application; `None` if it has none of that name.
    ///
    /// # Errors
    /// If the host does not tell it; in its words.
    async fn variable(&self, name: &'static str) -> Result<Option<String>, String>;

    /// A number that nobody can foresee.
    fn random(&self) -> u64;
}

/// How soon a request looks again for what another one is making.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The pause of those who wait for what another request is making.
pub(crate) async fn look_again(tasks: &impl Tasks) {
    tasks.sleep(LOOK_AGAIN).await;
}

/// A name that nothing else has, of a batch of commands.
pub(crate) fn unique_name(host: &impl Host) -> String {
    format!("{:016x}{:016x}", host.random(), host.random())
}
