//! The spool: what was accepted while Redis is unreachable, until it is drained.
//!
//! It is the host's SQLite database `default`, and has these tables:
//!
//! - `ids`: ids of one set that were recorded together, by the key of the set
//! - `commands`: commands that may run only once, such as the `XADD` of a callback job. They are
//!   taken in batches. A batch has a name, its idempotency key, by which Redis knows whether it has
//!   run
//! - `size`: the number of ids and callback jobs, kept by triggers. Beyond a limit nothing is added
//! - `drained`: the number of ids that were drained since the spool was last empty, kept by a
//!   trigger, and the name under which this number is reported to Redis
//! - `state`: messages from one instance to the others, each valid until a moment: which server is
//!   unreachable, which instance drains
//! - `owner`: the namespace and the Redis that all content is for, the version that made this
//!   entry, and a name that is new with each owner. An instance that counts for another namespace
//!   or Redis neither adds nor drains anything, unless the spool is empty: then that instance
//!   becomes the owner
//!
//! The format is in SQLite's `user_version`. A spool of another format is not touched.
//!
//! In WAL mode with `synchronous=NORMAL`, acknowledged content survives the death of every process.
//! After a power failure of the machine, all but the last moments survive. An in-memory database
//! would keep nothing, and is not accepted.

use std::rc::Rc;

use verve_protocol::{Id, RedisUrls, SpoolState};

use crate::config::Config;
use crate::ports::{Cell, Database as _, Host, look_again, unique_name};
use crate::single_flight::SingleFlight;
use crate::spooled::{Batch, Contents, SpoolError, SpooledIds};

/// How long SQLite waits for other writers, in milliseconds.
///
/// If Redis is unreachable, a request is answered within twice the Redis timeout plus this time.
const BUSY_TIMEOUT_MS: u32 = 2000;
/// The maximum number of rows or commands in a batch.
const BATCH: i64 = 500;
/// The maximum number of batches that run in parallel.
const BATCHES: i64 = 16;

/// The `user_version` of the database.
///
/// It increases by one with each change that another version would misread.
const FORMAT: i64 = 1;

/// The statements that create the database.
const SCHEMA: [&str; 14] = [
    "CREATE TABLE IF NOT EXISTS ids (number INTEGER PRIMARY KEY, key TEXT NOT NULL, ids TEXT NOT NULL, count INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS keyed ON ids (key)",
    "CREATE TABLE IF NOT EXISTS commands (number INTEGER PRIMARY KEY, batch TEXT, command TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS begun ON commands (batch) WHERE batch IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS size (one INTEGER PRIMARY KEY CHECK (one = 1), total INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO size VALUES (1, 0)",
    "CREATE TRIGGER IF NOT EXISTS ids_added AFTER INSERT ON ids BEGIN UPDATE size SET total = total + new.count; END",
    "CREATE TRIGGER IF NOT EXISTS ids_removed AFTER DELETE ON ids BEGIN UPDATE size SET total = total - old.count; END",
    "CREATE TRIGGER IF NOT EXISTS command_added AFTER INSERT ON commands \
        WHEN new.command LIKE '[\"XADD\"%' BEGIN UPDATE size SET total = total + 1; END",
    "CREATE TRIGGER IF NOT EXISTS command_removed AFTER DELETE ON commands \
        WHEN old.command LIKE '[\"XADD\"%' BEGIN UPDATE size SET total = total - 1; END",
    "CREATE TABLE IF NOT EXISTS drained (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, total INTEGER NOT NULL)",
    "CREATE TRIGGER IF NOT EXISTS ids_drained AFTER DELETE ON ids BEGIN UPDATE drained SET total = total + old.count; END",
    "CREATE TABLE IF NOT EXISTS owner (one INTEGER PRIMARY KEY CHECK (one = 1), namespace TEXT NOT NULL, redis TEXT NOT NULL, \
        version TEXT NOT NULL, name TEXT NOT NULL)",
];

/// The database, opened at the first use.
pub struct Spool<H: Host> {
    host: H,
    database: SingleFlight<Rc<Opened<H>>, SpoolError>,
    /// The maximum number of ids and callback jobs.
    limit: u64,
    /// The namespace that the ids and jobs are for.
    namespace: String,
    redis: RedisUrls,
}

/// The open database.
struct Opened<H: Host> {
    connection: H::Database,
    /// The name of its owner: this host.
    owner: String,
}

impl<H: Host> Spool<H> {
    /// Returns a spool for at most `limit` ids and callback jobs.
    ///
    /// It is opened at the first use. Its owner has the namespace and Redis of `config`.
    pub fn new(host: &H, limit: u64, config: &Config) -> Self {
        Self {
            host: host.clone(),
            database: SingleFlight::default(),
            limit,
            namespace: config.keys.namespace().to_string(),
            redis: config.redis_urls.clone(),
        }
    }

    /// Adds ids of a set, as one row. They may already be in the spool.
    ///
    /// The row is written once, at the end of the table, for any number of ids.
    pub async fn add_ids(&self, key: String, ids: &[Id]) -> Result<(), SpoolError> {
        let insert = "INSERT INTO ids (key, ids, count) SELECT ?2, ?3, ?4 \
            WHERE (SELECT total FROM size) + ?4 <= ?5 AND (SELECT name FROM owner) = ?1 RETURNING 1";
        let row = [
            Cell::Text(key),
            Cell::Text(listed(ids)),
            integer(ids.len() as u64),
            integer(self.limit),
        ];
        self.add(insert, row).await
    }

    /// Runs a statement that adds, if there is room and if the database is ours.
    async fn add(&self, insert: &str, values: impl IntoIterator<Item = Cell> + Clone) -> Result<(), SpoolError> {
        for _ in 0..2 {
            if !self.run_as_owner(insert, values.clone()).await?.is_empty() {
                return Ok(());
            }
            let is_ours = "SELECT 1 FROM owner WHERE name = ?1";
            if !self.run_as_owner(is_ours, []).await?.is_empty() {
                return Err(SpoolError::Full(self.limit));
            }
            // Another owner took the database over while it was empty. Perhaps it is empty again.
            self.database.clear_if(|_| true);
        }
        Err(SpoolError::TakenOver)
    }

    /// Adds a command.
    pub async fn add_command(&self, words: Vec<String>) -> Result<(), SpoolError> {
        let insert = format!(
            "INSERT INTO commands (command) SELECT json_array({}) \
            WHERE (SELECT total FROM size) < ?2 AND (SELECT name FROM owner) = ?1 RETURNING 1",
            (3..words.len() + 3)
                .map(|n| format!("?{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let values = [integer(self.limit)]
            .into_iter()
            .chain(words.into_iter().map(Cell::Text));
        self.add(&insert, values).await
    }

    /// Adds a batch of commands.
    ///
    /// It may have run already, and may already be in the spool.
    ///
    /// There must be room for `room` ids or jobs.
    pub async fn add_batch(&self, batch: &Batch, room: usize) -> Result<(), SpoolError> {
        let insert = "INSERT INTO commands (batch, command) SELECT ?2, value FROM json_each(?3) \
            WHERE (SELECT total FROM size) + ?4 <= ?5 AND (SELECT name FROM owner) = ?1 \
            AND NOT EXISTS (SELECT 1 FROM commands WHERE batch = ?2) RETURNING 1";
        let name = || Cell::Text(batch.name.clone());
        let row = [
            name(),
            Cell::Text(format!("[{}]", batch.commands.join(","))),
            integer(room as u64),
            integer(self.limit),
        ];
        let added = self.add(insert, row).await;
        if matches!(added, Err(SpoolError::Full(_))) {
            // An earlier attempt may have added it although it failed.
            let is_there = "SELECT 1 FROM commands WHERE batch = ?1 LIMIT 1";
            if !self.run(is_there, [name()]).await?.is_empty() {
                return Ok(());
            }
        }
        added
    }

    /// Returns the keys of the sets with ids in the spool, the oldest windows first.
    pub async fn sets(&self) -> Result<Vec<String>, SpoolError> {
        let select = "SELECT DISTINCT key FROM ids WHERE (SELECT name FROM owner) = ?1 ORDER BY key";
        let rows = self.run_as_owner(select, []).await?;
        let keys = rows.into_iter().flatten().filter_map(|value| match value {
            Cell::Text(key) => Some(key),
            _ => None,
        });
        Ok(keys.collect())
    }

    /// Returns the first ids of a set, as many as are drained together.
    ///
    /// These are the ids of the first rows, until there are at least `most` ids.
    pub async fn ids(&self, key: &str, most: usize) -> Result<SpooledIds, SpoolError> {
        let select = "SELECT json_array(number, key, ids), ids FROM ids \
            WHERE key = ?2 AND (SELECT name FROM owner) = ?1 ORDER BY number LIMIT ?3";
        let rows = self
            .run_as_owner(select, [Cell::Text(key.to_owned()), Cell::Integer(BATCH)])
            .await?;
        let rows = rows.into_iter().filter_map(|row| match row.as_slice() {
            [Cell::Text(row), Cell::Text(ids)] => Some((
                row.clone(),
                ids.split(',').filter_map(|id| id.parse().ok()).map(Id).collect(),
            )),
            _ => None,
        });
        Ok(SpooledIds::leading(rows, most))
    }

    /// Removes ids that [`Spool::ids`] returned.
    ///
    /// It compares the content of the rows too: after another instance has removed a row, a new row
    /// may have its number.
    pub async fn remove_ids(&self, ids: &SpooledIds) -> Result<(), SpoolError> {
        let delete = "DELETE FROM ids WHERE number IN (SELECT value ->> 0 FROM json_each(?1)) \
            AND json_array(number, key, ids) IN (SELECT value FROM json_each(?1))";
        self.run(delete, [Cell::Text(format!("[{}]", ids.rows.join(",")))])
            .await
            .map(drop)
    }

    /// Returns the batches to run now: those that were begun, or else a new one.
    pub async fn batches(&self) -> Result<Vec<Batch>, SpoolError> {
        let begun = "SELECT batch, command FROM commands WHERE batch IN \
            (SELECT DISTINCT batch FROM commands WHERE batch IS NOT NULL ORDER BY batch LIMIT ?2) \
            AND (SELECT name FROM owner) = ?1 ORDER BY batch, number";
        let mut rows = self.run_as_owner(begun, [Cell::Integer(BATCHES)]).await?;
        if rows.is_empty() {
            let name = Cell::Text(unique_name(&self.host));
            // In one statement, so that no other instance begins a batch with some of the same
            // commands.
            let begin = "UPDATE commands SET batch = ?2 \
                WHERE number IN (SELECT number FROM commands WHERE batch IS NULL ORDER BY number LIMIT ?3) \
                AND NOT EXISTS (SELECT 1 FROM commands WHERE batch IS NOT NULL) AND (SELECT name FROM owner) = ?1";
            self.run_as_owner(begin, [name, Cell::Integer(BATCH)]).await?;
            rows = self.run_as_owner(begun, [Cell::Integer(BATCHES)]).await?;
        }
        let mut batches: Vec<Batch> = Vec::new();
        for row in rows {
            let [Cell::Text(name), Cell::Text(command)] = row.as_slice() else {
                continue;
            };
            match batches.last_mut().filter(|batch| batch.name == *name) {
                Some(batch) => batch.commands.push(command.clone()),
                None => batches.push(Batch {
                    name: name.clone(),
                    commands: vec![command.clone()],
                }),
            }
        }
        Ok(batches)
    }

    /// Removes batches that have run.
    pub async fn remove_batches(&self, names: &[&str]) -> Result<(), SpoolError> {
        let delete = "DELETE FROM commands WHERE batch IN (SELECT value FROM json_each(?))";
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let names = Cell::Text(format!("[{}]", names.join(",")));
        self.run(delete, [names]).await.map(drop)
    }

    /// Returns the name of the spool, how much is in it and how much was drained.
    pub async fn state(&self, recorded_s: u64) -> Result<Option<(String, SpoolState)>, SpoolError> {
        let select = "SELECT name, size.total, drained.total FROM drained, size";
        let rows = self.run(select, []).await?;
        Ok(match rows.first().map(Vec::as_slice) {
            Some([Cell::Text(name), Cell::Integer(depth), Cell::Integer(drained)]) => {
                let state = SpoolState {
                    depth: depth.cast_unsigned(),
                    drained: drained.cast_unsigned(),
                    recorded_s,
                };
                Some((name.clone(), state))
            }
            _ => None,
        })
    }

    /// Gives an empty spool a new name.
    ///
    /// `drained` is the number that was reported under the old name `name`.
    pub async fn rename(&self, name: &str, drained: u64) -> Result<(), SpoolError> {
        let update = "UPDATE drained SET name = ?3, total = total - ?2 \
            WHERE name = ?1 AND (SELECT total FROM size) = 0";
        let row = [Cell::Text(name.to_owned()), integer(drained), self.new_name()];
        self.run(update, row).await.map(drop)
    }

    /// Returns the content of the spool.
    pub async fn contents(&self) -> Result<Contents, SpoolError> {
        let select = "SELECT name, until FROM state \
            UNION ALL SELECT '', 0 WHERE EXISTS (SELECT 1 FROM ids) OR EXISTS (SELECT 1 FROM commands)";
        let rows = match self.run(select, []).await {
            // The first request that needs the spool reports this.
            Err(error) if error.is_absence() => Vec::new(),
            rows => rows?,
        };
        let mut contents = Contents::default();
        for row in rows {
            match row.as_slice() {
                [Cell::Text(name), _] if name.is_empty() => contents.any = true,
                [Cell::Text(name), Cell::Integer(until)] => {
                    contents.state.push((name.clone(), until.cast_unsigned()));
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    /// Notifies other instances that the state `name` holds until the moment `until`.
    pub async fn mark(&self, name: &str, until: u64) -> Result<(), SpoolError> {
        let upsert = "INSERT INTO state VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET until = excluded.until";
        self.run(upsert, [Cell::Text(name.to_owned()), integer(until)])
            .await
            .map(drop)
    }

    /// Marks `name` from `now` on for `for_ms`, unless another instance has it.
    ///
    /// Another instance has it if its mark has not ended. A mark that ends later than this one
    /// would was made before the clock was set back, and is ignored. Returns whether this instance
    /// has it now.
    pub async fn claim(&self, name: &str, now: u64, for_ms: u64) -> Result<bool, SpoolError> {
        let upsert = "INSERT INTO state VALUES (?1, ?3) ON CONFLICT (name) DO UPDATE SET until = excluded.until \
            WHERE until <= ?2 OR until > ?3 RETURNING 1";
        let row = [Cell::Text(name.to_owned()), integer(now), integer(now + for_ms)];
        let rows = self.run(upsert, row).await?;
        Ok(!rows.is_empty())
    }

    /// Removes a mark.
    pub async fn unmark(&self, name: &str) -> Result<(), SpoolError> {
        self.run("DELETE FROM state WHERE name = ?", [Cell::Text(name.to_owned())])
            .await
            .map(drop)
    }

    async fn run(&self, statement: &str, values: impl IntoIterator<Item = Cell>) -> Result<Vec<Vec<Cell>>, SpoolError> {
        let database = self.database().await?;
        self.execute(&database, statement, values).await
    }

    /// Runs a statement whose first value is our name as the owner.
    async fn run_as_owner(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError> {
        let database = self.database().await?;
        let values = [Cell::Text(database.owner.clone())].into_iter().chain(values);
        self.execute(&database, statement, values).await
    }

    /// Runs a statement.
    ///
    /// If it fails, the next one uses a new connection, which may fix the cause, such as a removed
    /// file.
    async fn execute(
        &self,
        database: &Rc<Opened<H>>,
        statement: &str,
        values: impl IntoIterator<Item = Cell>,
    ) -> Result<Vec<Vec<Cell>>, SpoolError> {
        let result = database.connection.execute(statement, values).await;
        if result.is_err() {
            self.database.clear_if(|kept| Rc::ptr_eq(kept, database));
        }
        result
    }

    async fn database(&self) -> Result<Rc<Opened<H>>, SpoolError> {
        let open = async || {
            let connection = self.open().await?;
            let owner = self.own(&connection).await?;
            Ok(Rc::new(Opened { connection, owner }))
        };
        self.database.get_on(&self.host, open).await
    }

    /// Returns a unique name.
    fn new_name(&self) -> Cell {
        Cell::Text(format!("{:016x}", self.host.random()))
    }

    /// Makes sure that the database is ours, and returns our name as its owner.
    async fn own(&self, connection: &H::Database) -> Result<String, SpoolError> {
        if let Some((name, _)) = self.owner(connection).await?.filter(|(_, is_us)| *is_us) {
            return Ok(name);
        }
        // In one statement, because meanwhile content may be added, or another instance of this
        // host may become the owner.
        let become_owner = "INSERT INTO owner VALUES (1, ?1, ?2, ?3, ?4) \
            ON CONFLICT (one) DO UPDATE SET (namespace, redis, version, name) \
            = (excluded.namespace, excluded.redis, excluded.version, excluded.name) \
            WHERE (namespace, redis) <> (excluded.namespace, excluded.redis) \
            AND NOT EXISTS (SELECT 1 FROM ids) AND NOT EXISTS (SELECT 1 FROM commands)";
        let ours = [
            Cell::Text(self.namespace.clone()),
            Cell::Text(self.redis.to_string()),
            Cell::Text(env!("CARGO_PKG_VERSION").to_owned()),
            self.new_name(),
        ];
        connection.execute(become_owner, ours).await?;
        match self.owner(connection).await? {
            Some((name, true)) => Ok(name),
            Some((whose, false)) => Err(SpoolError::Foreign {
                whose,
                ours: counts_for(&self.namespace, &self.redis.to_string()),
            }),
            None => Err(SpoolError::Broken("the table owner is empty".to_owned())),
        }
    }

    /// Returns the owner of the database, and whether it is us.
    ///
    /// The text is the name of the owner if it is us, and otherwise what it counts for.
    async fn owner(&self, connection: &H::Database) -> Result<Option<(String, bool)>, SpoolError> {
        let found = connection
            .execute("SELECT name, namespace, redis FROM owner", [])
            .await?;
        Ok(match found.first().map(Vec::as_slice) {
            Some([Cell::Text(name), Cell::Text(namespace), Cell::Text(redis)]) => {
                Some(match self.is_of(namespace, redis) {
                    true => (name.clone(), true),
                    false => (counts_for(namespace, redis), false),
                })
            }
            // No owner yet: the database is new, or an earlier version made it.
            _ => None,
        })
    }

    /// Returns whether this owner is us.
    ///
    /// It then has the same namespace, and a server in common with us. One common server is enough,
    /// because the nodes of a cluster change.
    fn is_of(&self, namespace: &str, redis: &str) -> bool {
        let servers: Vec<String> = self.redis.as_slice().iter().map(ToString::to_string).collect();
        namespace == self.namespace && redis.split(',').any(|server| servers.iter().any(|ours| ours == server))
    }

    async fn open(&self) -> Result<H::Database, SpoolError> {
        let connection = self.host.open().await?;
        connection
            .execute(&format!("PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}"), [])
            .await?;
        let found = "SELECT (SELECT user_version FROM pragma_user_version), \
        count(*) = 1 AND (SELECT journal_mode FROM pragma_journal_mode) = 'wal' FROM sqlite_schema WHERE name = 'owner'";
        let found = connection.execute(found, []).await?;
        let (format, is_made) = match found.first().map(Vec::as_slice) {
            Some([Cell::Integer(format), Cell::Integer(is_made)]) => (*format, *is_made == 1),
            _ => return Err(SpoolError::Broken("it has no format number".to_owned())),
        };
        // 0 is a database that was not made yet, or not completely.
        if ![0, FORMAT].contains(&format) {
            return Err(SpoolError::Format {
                found: format,
                known: FORMAT,
            });
        }
        // Later instances skip this. The format, which is written last, and the last table show
        // that it is done.
        if format == 0 || !is_made {
            let mode = self.make_wal(&connection).await?;
            if let Some([Cell::Text(mode)]) = mode.first().map(Vec::as_slice)
                && matches!(mode.as_str(), "memory" | "off")
            {
                return Err(SpoolError::InMemory);
            }
            for statement in SCHEMA {
                connection.execute(statement, []).await?;
            }
            connection
                .execute("INSERT OR IGNORE INTO drained VALUES (1, ?1, 0)", [self.new_name()])
                .await?;
            connection
                .execute(&format!("PRAGMA user_version = {FORMAT}"), [])
                .await?;
        }
        connection.execute("PRAGMA synchronous = NORMAL", []).await?;
        Ok(connection)
    }

    /// Switches the database to WAL mode.
    ///
    /// Two instances that do this at the same time block each other, and SQLite does not wait then.
    async fn make_wal(&self, connection: &H::Database) -> Result<Vec<Vec<Cell>>, SpoolError> {
        let mut locked = SpoolError::Locked(String::new());
        for _ in 0..BUSY_TIMEOUT_MS {
            match connection.execute("PRAGMA journal_mode = WAL", []).await {
                Err(error @ SpoolError::Locked(_)) => {
                    locked = error;
                    look_again(&self.host).await;
                }
                done => return done,
            }
        }
        Err(locked)
    }
}

fn listed<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn integer(value: u64) -> Cell {
    Cell::Integer(value.cast_signed())
}

/// Describes what a database counts for.
fn counts_for(namespace: &str, redis: &str) -> String {
    format!("namespace {namespace} on {redis}")
}
