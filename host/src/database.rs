//! The SQLite database `default`: a file that outlives the host, as in Spin.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use rusqlite::limits::Limit;

/// The name of the only database.
pub const DATABASE: &str = "default";

/// The file name, as in Spin, so that one host can continue with the other's data.
const FILE_NAME: &str = "sqlite_db.db";

/// The file of the database `default`. Clones refer to the same database.
#[derive(Clone)]
pub struct Database {
    file: PathBuf,
    /// Stays open while the host runs.
    ///
    /// Otherwise closing the last connection would make SQLite clean up, while an instance waits.
    _kept_open: Arc<Mutex<rusqlite::Connection>>,
}

impl Database {
    /// Opens the database in a folder, and creates both if they do not exist.
    ///
    /// # Errors
    /// If the folder cannot be created, or the file cannot be opened as a database. The message
    /// names the file.
    pub fn try_new(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join(FILE_NAME);
        let context = || format!("cannot open the SQLite database {}", file.display());
        fs::create_dir_all(folder).with_context(context)?;
        let connection = open(&file).with_context(context)?;
        // SQLite reads the file only at the first statement, so this one detects an invalid file.
        let look = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        look.with_context(context)?;
        Ok(Self {
            file,
            _kept_open: Arc::new(Mutex::new(connection)),
        })
    }

    /// Opens a connection to the database.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn connect(&self) -> rusqlite::Result<Connection> {
        let connection = open(&self.file)?;
        Ok(Connection {
            connection: Arc::new(Mutex::new(connection)),
            opened: identity(&self.file),
            file: self.file.clone(),
        })
    }
}

/// The host's side of the component's `connection`. Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    /// The connection itself.
    pub connection: Arc<Mutex<rusqlite::Connection>>,
    file: PathBuf,
    /// The identity of the opened file.
    opened: Option<(u64, u64)>,
}

impl Connection {
    /// Returns whether the file was removed or replaced since it was opened.
    ///
    /// Data that is written after that is lost when the host ends. SQLite itself checks this only
    /// without WAL.
    #[must_use]
    pub fn is_of_removed_file(&self) -> bool {
        self.opened.is_none() || identity(&self.file) != self.opened
    }
}

/// Returns the identity of the file at this path: device and inode.
fn identity(file: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(file).ok()?;
    Some((file.dev(), file.ino()))
}

fn open(file: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(file)?;
    // ATTACH would reach other files, and `VACUUM INTO` is a case of it. An authorizer is no
    // alternative: it does not see a file name that is passed as a parameter.
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_database() {
        let folder = std::env::temp_dir().join(format!("verve-host-database-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(FILE_NAME), "x".repeat(5000)).expect("a file");
        let error = Database::try_new(&folder)
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        assert!(error.contains(FILE_NAME) && error.contains("not a database"), "{error}");
        let error = Database::try_new(&folder.join(FILE_NAME))
            .err()
            .map(|error| format!("{error:#}"));
        assert!(error.is_some_and(|error| error.contains("cannot open the SQLite database")));
        let _ = fs::remove_dir_all(&folder);
    }
}
