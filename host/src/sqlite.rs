//! The host's side of `spin:sqlite`, on the database `default`.
//!
//! The component sets the durability by its PRAGMAs. This module adds two guarantees: statements
//! run outside the event loop, and those of one connection run one after the other; no statement
//! reaches any file except that of the database.

use std::sync::PoisonError;

use rusqlite::types::{Value as Stored, ValueRef};
use wasmtime::component::{Accessor, FutureReader, HasSelf, Resource, ResourceTable, StreamReader};

use crate::database::{Connection, DATABASE, Database};
use crate::spin::bindings::spin::sqlite::sqlite::{
    Error, Host, HostConnection, HostConnectionWithStore, RowResult, Value,
};

/// The maximum number of open connections of one instance, as in Spin.
const MAX_CONNECTIONS: usize = 256;

/// The error for a database whose file was removed or replaced.
const REMOVED: &str = "the database's file was removed or replaced while it was open";

/// The connections of one instance.
pub struct Sqlite {
    database: Option<Database>,
    connections: ResourceTable,
}

impl Sqlite {
    /// Returns the state of a new instance, without connections.
    ///
    /// `database` is `None` if the manifest grants none.
    pub fn new(database: Option<Database>) -> Self {
        let mut connections = ResourceTable::new();
        connections.set_max_capacity(MAX_CONNECTIONS);
        Self { database, connections }
    }
}

impl Host for Sqlite {}

impl HostConnection for Sqlite {
    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.connections.delete(connection)?;
        Ok(())
    }
}

type Executed = (Vec<String>, StreamReader<RowResult>, FutureReader<Result<(), Error>>);

impl<T: Send + 'static> HostConnectionWithStore<T> for HasSelf<Sqlite> {
    async fn open_async(
        guest: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Connection>, Error>> {
        let granted = guest.with(|mut access| access.get().database.clone());
        let Some(database) = granted.filter(|_| name == DATABASE) else {
            return Ok(Err(Error::AccessDenied));
        };
        let opened = blocking(move || database.connect()).await?;
        Ok(opened.map_err(|error| describe(&error)).and_then(|connection| {
            guest
                .with(|mut access| access.get().connections.push(connection))
                .map_err(|_| Error::Io("too many open connections".to_owned()))
        }))
    }

    async fn execute_async(
        guest: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Executed, Error>> {
        let connection = guest.with(|mut access| {
            let connection = access.get().connections.get(&connection)?;
            wasmtime::error::Ok(connection.clone())
        })?;
        let ran = blocking(move || {
            if connection.is_of_removed_file() {
                return Err(Error::Io(REMOVED.to_owned()));
            }
            // A statement that panicked has left no partial change: SQLite has rolled it back.
            let connection = connection.connection.lock().unwrap_or_else(PoisonError::into_inner);
            execute(&connection, &statement, parameters).map_err(|error| describe(&error))
        })
        .await?;
        // As in Spin, an error of the statement follows at the end of its rows.
        let (columns, rows, ended) = match ran {
            Ok((columns, rows)) => (columns, rows, Ok(())),
            Err(error) => (Vec::new(), Vec::new(), Err(error)),
        };
        guest.with(|mut access| {
            let rows = StreamReader::new(&mut access, rows)?;
            let ended = FutureReader::new(&mut access, std::future::ready(wasmtime::error::Ok(ended)))?;
            Ok(Ok((columns, rows, ended)))
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> wasmtime::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

fn execute(
    connection: &rusqlite::Connection,
    statement: &str,
    parameters: Vec<Value>,
) -> rusqlite::Result<(Vec<String>, Vec<RowResult>)> {
    let mut statement = connection.prepare_cached(statement)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let parameters = parameters.into_iter().map(|value| match value {
        Value::Integer(number) => Stored::Integer(number),
        Value::Real(number) => Stored::Real(number),
        Value::Text(text) => Stored::Text(text),
        Value::Blob(bytes) => Stored::Blob(bytes),
        Value::Null => Stored::Null,
    });
    let mut found = statement.query(rusqlite::params_from_iter(parameters))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let values = (0..columns.len()).map(|column| Ok(value(row.get_ref(column)?)));
        rows.push(RowResult {
            values: values.collect::<rusqlite::Result<_>>()?,
        });
    }
    Ok((columns, rows))
}

fn value(stored: ValueRef<'_>) -> Value {
    match stored {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn describe(error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => Error::DatabaseFull,
        _ => Error::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn folder() -> PathBuf {
        let name = format!(
            "verve-host-sqlite-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn run(connection: &rusqlite::Connection, statement: &str, values: Vec<Value>) -> Result<Vec<Vec<String>>, Error> {
        let (_, rows) = execute(connection, statement, values).map_err(|error| describe(&error))?;
        let shown = rows.into_iter();
        Ok(shown
            .map(|row| row.values.iter().map(|value| format!("{value:?}")).collect())
            .collect())
    }

    #[test]
    fn values_of_every_type_come_back_and_survive_the_connection() {
        let folder = folder();
        let database = Database::try_new(&folder.join("made")).expect("a database");
        let connection = database.connect().expect("a connection");
        let connection = connection.connection.lock().expect("its own");
        run(&connection, "CREATE TABLE t (a, b, c, d, e)", vec![]).expect("a table");
        let values = || {
            vec![
                Value::Integer(i64::MIN),
                Value::Real(0.5),
                Value::Text("ä".to_owned()),
                Value::Blob(vec![0, 255]),
                Value::Null,
            ]
        };
        run(&connection, "INSERT INTO t VALUES (?, ?, ?, ?, ?)", values()).expect("a row");
        drop(connection);
        drop(database);

        let database = Database::try_new(&folder.join("made")).expect("the database");
        let connection = database.connect().expect("a connection");
        let connection = connection.connection.lock().expect("its own");
        let rows = run(&connection, "SELECT * FROM t", vec![]).expect("rows");
        let expected: Vec<String> = values().iter().map(|value| format!("{value:?}")).collect();
        assert_eq!(rows, [expected]);
        let _ = fs::remove_dir_all(&folder);
    }

    #[test]
    fn a_file_that_was_removed_is_noticed() {
        let folder = folder();
        let database = Database::try_new(&folder).expect("a database");
        let connection = database.connect().expect("a connection");
        assert!(!connection.is_of_removed_file());
        fs::remove_file(folder.join("sqlite_db.db")).expect("the file");
        assert!(connection.is_of_removed_file());
        let again = database.connect().expect("a connection");
        assert!(
            !again.is_of_removed_file() && connection.is_of_removed_file(),
            "another file"
        );
        let _ = fs::remove_dir_all(&folder);
    }

    #[test]
    fn no_statement_reaches_another_file() {
        let folder = folder();
        let database = Database::try_new(&folder).expect("a database");
        let connection = database.connect().expect("a connection");
        let connection = connection.connection.lock().expect("its own");
        let other = folder.join("other.db");
        for statement in ["ATTACH ? AS other", "VACUUM INTO ?"] {
            let named = vec![Value::Text(other.display().to_string())];
            let refused = run(&connection, statement, named);
            assert!(
                matches!(&refused, Err(Error::Io(message)) if message.contains("too many attached")),
                "{statement}: {refused:?}"
            );
            assert!(!other.exists(), "{statement}");
        }
        let _ = fs::remove_dir_all(&folder);
    }
}
