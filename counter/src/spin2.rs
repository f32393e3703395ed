//! The core's ports for Spin 2 and similar hosts, with WASI 0.2.
//!
//! This module knows nothing of ids. Each call to the host blocks the instance, which serves one
//! request. Therefore every future is ready immediately, there is no spool, and nothing waits for
//! anything else.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use verve_counter_core::config::Policy;
use verve_counter_core::ports::{Cell, Clock, Connection, Connector, Database, Disk, Host, Limit, Tasks};
use verve_counter_core::redis_error::RedisError;
use verve_counter_core::reply::Reply;
use verve_counter_core::spooled::SpoolError;

use bindings::fermyon::spin::redis::{self, RedisParameter, RedisResult};
use bindings::fermyon::spin::variables;
use bindings::wasi::random0_2_0::random::get_random_u64;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/counter-wasip2",
        generate_all,
    });
}

/// The maximum number of polls of a future that has nothing to wait for.
///
/// More than one may be necessary, because some futures yield.
const MOST_POLLS: u32 = 1000;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The host that runs this component.
#[derive(Clone)]
pub struct Spin2 {
    begin: Instant,
    /// Background tasks, which run when the client no longer waits for the instance.
    tasks: Rc<RefCell<Vec<Task>>>,
}

impl Spin2 {
    /// Creates the host, without background tasks.
    pub fn new() -> Self {
        Self {
            begin: Instant::now(),
            tasks: Rc::default(),
        }
    }

    /// Runs the background tasks to their end.
    pub fn finish(&self) {
        loop {
            let Some(task) = self.tasks.borrow_mut().pop() else {
                return;
            };
            done(task);
        }
    }
}

/// Returns the result of work that has nothing to wait for.
pub fn done<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..MOST_POLLS {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
    }
    unreachable!("it waits, though there is nothing to wait for")
}

/// A connection to Redis.
pub struct Server(redis::Connection);

impl Connector for Spin2 {
    type Connection = Server;

    async fn connect(&self, url: &str) -> Result<Server, RedisError> {
        redis::Connection::open(url).map(Server).map_err(failed)
    }
}

impl Connection for Server {
    async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError> {
        let arguments = arguments.into_iter();
        let arguments: Vec<RedisParameter> = arguments
            .map(|argument| RedisParameter::Binary(argument.into_bytes()))
            .collect();
        let replies = self.0.execute(command, &arguments).map_err(failed)?;
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

/// The database, which does not exist.
pub enum NoDatabase {}

impl Disk for Spin2 {
    type Database = NoDatabase;

    async fn open(&self) -> Result<NoDatabase, SpoolError> {
        Err(SpoolError::None)
    }
}

impl Database for NoDatabase {
    async fn execute(
        &self,
        _statement: &str,
        _values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError> {
        match *self {}
    }
}

impl Clock for Spin2 {
    fn now_ms(&self) -> u64 {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_millis() as u64
    }

    fn monotonic_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

/// No time limit: only the host may limit the time.
pub struct NoLimit;

impl Limit for NoLimit {
    async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        Some(work.await)
    }

    fn end_all(&self) {}
}

impl Tasks for Spin2 {
    type Wake = ();
    type Limit = NoLimit;

    fn signal(&self) -> ((), impl Future<Output = ()> + 'static) {
        ((), async {})
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(Box::pin(task));
    }

    async fn sleep(&self, _time: Duration) {}

    fn limit(&self, _each: Duration) -> NoLimit {
        NoLimit
    }
}

impl Host for Spin2 {
    const POLICY: Policy = Policy::PerRequest;

    async fn variable(&self, name: &'static str) -> Result<Option<String>, String> {
        match variables::get(name) {
            Ok(value) => Ok(Some(value)),
            Err(variables::Error::Undefined(_)) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn random(&self) -> u64 {
        get_random_u64()
    }
}
