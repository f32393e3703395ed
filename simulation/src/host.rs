//! The core's ports on simulated machines.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::{Value as SqlValue, ValueRef};
use verve_counter_core::config::Policy;
use verve_counter_core::ports::{
    Cell as DatabaseCell, Clock, Connection, Connector, Database, Disk, Host, Limit, Tasks,
};
use verve_counter_core::redis_error::RedisError;
use verve_counter_core::reply::Reply;
use verve_counter_core::spooled::SpoolError;
use verve_protocol::RedisUrls;

use crate::executor::Signal;
use crate::mutation::Into;
use crate::redis::{Link, Server};
use crate::world::{Line, World, before};

/// The state of a machine that survives its processes.
struct Kept {
    disk: rusqlite::Connection,
    /// The error of every operation on the disk, while the disk fails.
    fault: RefCell<Option<SpoolError>>,
    /// The offset of the machine's clock from the true time, in milliseconds.
    offset_ms: Cell<i64>,
    /// How fast that offset changes, in millionths of the time since it was set.
    drift_ppm: Cell<i64>,
    /// The true time at which the offset was set, in microseconds.
    set_us: Cell<u64>,
    /// Whether the machine reaches the servers.
    link: Cell<Link>,
}

type Variables = BTreeMap<&'static str, String>;

fn values(variables: &[(&'static str, &str)]) -> Rc<Variables> {
    let values = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
    Rc::new(values.collect())
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// How long a host with blocking calls waits for a server.
const BLOCKS_FOR: Duration = Duration::from_secs(1);

/// An edge host.
///
/// If `BLOCKS`, it serves one request with blocking calls, as in WASI 0.2.
#[derive(Clone)]
pub struct Machine<const BLOCKS: bool = false> {
    world: Rc<World>,
    kept: Rc<Kept>,
    variables: Rc<Variables>,
    /// With blocking calls: the tasks to run after the request.
    later: Rc<RefCell<Vec<Task>>>,
}

impl Machine {
    /// Creates a machine with these variables and an empty disk.
    ///
    /// # Panics
    /// If SQLite has no memory.
    #[must_use]
    pub fn new(world: &Rc<World>, variables: &[(&'static str, &str)]) -> Self {
        let disk = rusqlite::Connection::open_in_memory().expect("memory");
        // Without this setting, SQLite prepares a statement again for each value, since another
        // plan might be better for it.
        disk.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
            .expect("a setting that SQLite has");
        disk.set_prepared_statement_cache_capacity(100);
        Self {
            world: Rc::clone(world),
            kept: Rc::new(Kept {
                disk,
                fault: RefCell::default(),
                offset_ms: Cell::default(),
                drift_ppm: Cell::default(),
                set_us: Cell::default(),
                link: Cell::default(),
            }),
            variables: values(variables),
            later: Rc::default(),
        }
    }

    /// Returns the same machine with other variables.
    #[must_use]
    pub fn configured(&self, variables: &[(&'static str, &str)]) -> Self {
        Self {
            variables: values(variables),
            ..self.clone()
        }
    }

    /// Returns the same machine for one request with blocking calls.
    ///
    /// It has no time limit except the host's, and no disk. [`Machine::finish`] runs the tasks that
    /// were spawned.
    #[must_use]
    pub fn blocking(&self) -> Machine<true> {
        Machine {
            world: self.world.clone(),
            kept: self.kept.clone(),
            variables: self.variables.clone(),
            later: Rc::default(),
        }
    }
}

impl Machine<true> {
    /// Runs the tasks that were left for the time after the request.
    pub async fn finish(&self) {
        loop {
            let next = self.later.borrow_mut().pop();
            let Some(task) = next else {
                return;
            };
            task.await;
        }
    }
}

impl<const BLOCKS: bool> Machine<BLOCKS> {
    /// Makes every operation on the disk fail with this error, or none.
    pub fn set_disk_fault(&self, fault: Option<SpoolError>) {
        self.kept.fault.replace(fault);
    }

    /// Sets the clock to this offset from the true time, in milliseconds.
    pub fn set_clock(&self, offset_ms: i64) {
        self.kept.offset_ms.set(offset_ms);
        self.kept.set_us.set(self.world.now_us());
    }

    /// Lets the clock drift from now on, in millionths of the time.
    pub fn set_drift(&self, ppm: i64) {
        self.set_clock(self.offset_ms());
        self.kept.drift_ppm.set(ppm);
    }

    /// Returns the offset of the clock from the true time, in milliseconds.
    fn offset_ms(&self) -> i64 {
        let since_us = i64::try_from(self.world.now_us() - self.kept.set_us.get()).unwrap_or(i64::MAX);
        self.kept.offset_ms.get() + since_us.saturating_mul(self.kept.drift_ppm.get()) / 1_000_000_000
    }

    /// Sets the state of the link to all servers.
    pub fn set_link(&self, link: Link) {
        self.kept.link.set(link);
    }

    /// Executes a statement on the disk.
    ///
    /// # Panics
    /// If the statement is invalid.
    pub fn change_disk(&self, statement: &str) {
        self.kept.disk.execute_batch(statement).expect("a statement");
    }

    /// Returns how many rows a table on the disk has; 0 if there is no such table.
    #[must_use]
    pub fn rows(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        self.kept
            .disk
            .query_row(&count, [], |row| row.get(0))
            .unwrap_or_default()
    }
}

/// A connection to a server.
pub struct Client<const BLOCKS: bool> {
    machine: Machine<BLOCKS>,
    server: Rc<Server>,
    /// The start of the server that the connection belongs to.
    start: u64,
    line: Line,
    /// The number of this client at the server.
    number: u64,
    /// Whether the previous command was `ASKING`.
    is_asking: Rc<Cell<bool>>,
}

impl<const BLOCKS: bool> Connector for Machine<BLOCKS> {
    type Connection = Client<BLOCKS>;

    async fn connect(&self, url: &str) -> Result<Client<BLOCKS>, RedisError> {
        let url: RedisUrls = url.parse().map_err(|_| RedisError::InvalidAddress)?;
        let servers = self.world.servers.iter();
        let server = servers
            .clone()
            .find(|server| server.host == url.first().host())
            .cloned();
        let line = Line::default();
        let (found, kept) = (server.clone(), self.kept.clone());
        let link = move || found.as_ref().map(|server| server.link.get().and(kept.link.get()));
        let connected = self.world.message(&line, move || match link() {
            Some(Link::Up | Link::Deaf) => Some(true),
            Some(Link::Refused) | None => Some(false),
            Some(Link::Silent) => None,
        });
        let connected = if BLOCKS {
            before(&self.world.alarm(BLOCKS_FOR), connected).await.unwrap_or(false)
        } else {
            connected.await
        };
        match (connected, server) {
            (true, Some(server)) => Ok(Client {
                machine: self.clone(),
                start: server.starts.get(),
                server,
                line,
                number: self.world.next_client(),
                is_asking: Rc::default(),
            }),
            _ => Err(RedisError::from_message("Connection refused (os error 111)".to_owned())),
        }
    }
}

impl<const BLOCKS: bool> Connection for Client<BLOCKS> {
    async fn execute(
        &self,
        command: &str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Vec<Reply>, RedisError> {
        let words: Vec<String> = std::iter::once(command.to_owned()).chain(arguments).collect();
        let (server, world, start) = (self.server.clone(), self.machine.world.clone(), self.start);
        let (is_asking, number) = (self.is_asking.clone(), self.number);
        let kept = self.machine.kept.clone();
        let answered = self.machine.world.message(&self.line, move || {
            let link = match start == server.starts.get() {
                true => server.link.get().and(kept.link.get()),
                false => Link::Refused,
            };
            link.carry(Err("Connection reset by peer (os error 104)".to_owned()), || {
                let is_asked = is_asking.replace(words[0] == "ASKING");
                world.execute(&server, &words, is_asked, number).flat()
            })
        });
        let answer = if BLOCKS {
            (before(&self.machine.world.alarm(BLOCKS_FOR), answered).await)
                .unwrap_or_else(|| Err("timed out".to_owned()))
        } else {
            answered.await
        };
        answer.map_err(RedisError::from_message)
    }
}

/// A connection to the machine's database.
pub struct File<const BLOCKS: bool> {
    machine: Machine<BLOCKS>,
    line: Line,
}

impl<const BLOCKS: bool> Disk for Machine<BLOCKS> {
    type Database = File<BLOCKS>;

    async fn open(&self) -> Result<File<BLOCKS>, SpoolError> {
        if BLOCKS {
            return Err(SpoolError::None);
        }
        if let Some(fault) = self.kept.fault.borrow().clone() {
            return Err(fault);
        }
        Ok(File {
            machine: self.clone(),
            line: Line::default(),
        })
    }
}

impl<const BLOCKS: bool> Database for File<BLOCKS> {
    async fn execute(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = DatabaseCell>,
    ) -> Result<Vec<Vec<DatabaseCell>>, SpoolError> {
        let mutated = self.machine.world.mutated(statement);
        let (kept, statement) = (
            self.machine.kept.clone(),
            mutated.unwrap_or_else(|| statement.to_owned()),
        );
        let values: Vec<SqlValue> = (values.into_iter())
            .map(|cell| match cell {
                DatabaseCell::Null => SqlValue::Null,
                DatabaseCell::Integer(number) => SqlValue::Integer(number),
                DatabaseCell::Text(text) => SqlValue::Text(text),
            })
            .collect();
        let fails_late = self.machine.world.executor.below(2) == 0;
        let done = self.machine.world.on_disk(&self.line, move || {
            if let Some(fault) = kept.fault.borrow().clone() {
                if fails_late && matches!(fault, SpoolError::Broken(_)) {
                    // An operation can take effect and still return an error.
                    let _ = run(&kept.disk, &statement, values);
                }
                return Some(Err(fault));
            }
            Some(run(&kept.disk, &statement, values).map_err(|error| SpoolError::from_message(error.to_string())))
        });
        done.await
    }
}

fn run(
    disk: &rusqlite::Connection,
    statement: &str,
    values: Vec<SqlValue>,
) -> rusqlite::Result<Vec<Vec<DatabaseCell>>> {
    if statement.starts_with("PRAGMA journal_mode") {
        // The database is in memory, where WAL does not exist; the machine does not lose it.
        return Ok(vec![vec![DatabaseCell::Text("wal".to_owned())]]);
    }
    let mut statement = disk.prepare_cached(statement)?;
    let columns = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let cells = (0..columns).map(|column| {
            Ok(match row.get_ref(column)? {
                ValueRef::Integer(number) => DatabaseCell::Integer(number),
                ValueRef::Text(text) => DatabaseCell::Text(String::from_utf8_lossy(text).into_owned()),
                _ => DatabaseCell::Null,
            })
        });
        all.push(cells.collect::<rusqlite::Result<_>>()?);
    }
    Ok(all)
}

impl<const BLOCKS: bool> Clock for Machine<BLOCKS> {
    fn now_ms(&self) -> u64 {
        (self.world.now_us() / 1000).saturating_add_signed(self.offset_ms())
    }

    fn monotonic_ms(&self) -> u64 {
        // Does not begin at 0, since a host's clock does not begin with the instance.
        1_000_000 + u64::try_from(self.world.executor.now().as_millis()).unwrap_or_default()
    }
}

/// Sets its signal when it is dropped.
pub struct Wake {
    signal: Signal,
    world: Rc<World>,
}

impl Drop for Wake {
    fn drop(&mut self) {
        let is_given_up = self.world.executor.is_dropping();
        if is_given_up && self.world.has(|into| matches!(into, Into::NoWake)) {
            return;
        }
        let signal = self.signal.clone();
        self.world.executor.after(Duration::ZERO, move || signal.set());
    }
}

/// A time limit for each piece of work.
pub struct Limits<const BLOCKS: bool> {
    each: Duration,
    machine: Machine<BLOCKS>,
    under_way: RefCell<Vec<Signal>>,
}

impl<const BLOCKS: bool> Limit for Limits<BLOCKS> {
    async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if BLOCKS {
            return Some(work.await);
        }
        if self.machine.world.has(|into| matches!(into, Into::NoLimit)) {
            return Some(work.await);
        }
        let over = self.machine.world.alarm(self.each);
        self.under_way.borrow_mut().push(over.clone());
        before(&over, work).await
    }

    fn end_all(&self) {
        for signal in self.under_way.take() {
            self.machine.world.executor.after(Duration::ZERO, move || signal.set());
        }
    }
}

impl<const BLOCKS: bool> Tasks for Machine<BLOCKS> {
    type Wake = Wake;
    type Limit = Limits<BLOCKS>;

    fn signal(&self) -> (Wake, impl Future<Output = ()> + 'static) {
        let signal = Signal::default();
        let wake = Wake {
            signal: signal.clone(),
            world: self.world.clone(),
        };
        (wake, async move { signal.wait().await })
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if BLOCKS {
            self.later.borrow_mut().push(Box::pin(task));
        } else {
            self.world.executor.spawn(task);
        }
    }

    async fn sleep(&self, time: Duration) {
        self.world.alarm(time).wait().await;
    }

    fn limit(&self, each: Duration) -> Limits<BLOCKS> {
        Limits {
            each,
            machine: self.clone(),
            under_way: RefCell::default(),
        }
    }
}

impl<const BLOCKS: bool> Host for Machine<BLOCKS> {
    const POLICY: Policy = if BLOCKS { Policy::PerRequest } else { Policy::LongLived };

    async fn variable(&self, name: &'static str) -> Result<Option<String>, String> {
        Ok(self.variables.get(name).cloned())
    }

    fn random(&self) -> u64 {
        self.world.executor.random()
    }
}
