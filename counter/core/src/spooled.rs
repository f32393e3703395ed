//! The content of the spool, and the failures of the spool.

use thiserror::Error;
use verve_protocol::{CounterName, Id, Keys};

/// The number of ids from which no more rows are drained together.
pub const MOST_SPOOLED: usize = 1000;

/// Why the spool did not do what was requested.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpoolError {
    /// Instances that serve one request each have no spool.
    #[error("spool: there is none for WASI 0.2")]
    None,
    /// The host has no database.
    #[error("spool: the host has no SQLite database \"default\"")]
    NoDatabase,
    /// The component is not permitted to use the database.
    #[error("spool: the manifest does not grant sqlite_databases = [\"default\"]")]
    NotGranted,
    /// The content would not survive.
    #[error("spool: the host keeps the database in memory, where it does not survive")]
    InMemory,
    /// There is no room for more than this number of ids and callback jobs.
    #[error("spool: full: it holds at most {0} ids (spool_limit)")]
    Full(u64),
    /// There is no room on the disk.
    #[error("spool: full")]
    DiskFull,
    /// Other writers took too long. The message is that of SQLite.
    #[error("spool: {0}")]
    Locked(String),
    /// There was no answer in time.
    #[error("spool: no answer within {within_ms} ms")]
    NoAnswer {
        /// The time, in milliseconds.
        within_ms: u64,
    },
    /// The content is for another namespace or Redis.
    #[error("spool: it belongs to {whose}, and this host counts for {ours}; it is not used")]
    Foreign {
        /// What its owner counts for.
        whose: String,
        /// What this instance counts for.
        ours: String,
    },
    /// Another version made the database.
    #[error("spool: its format is {found}, and this version knows {known}; it is not used")]
    Format {
        /// Its `user_version`.
        found: i64,
        /// The format of this version.
        known: i64,
    },
    /// Another owner took the database over, twice.
    #[error("spool: it has another owner by now")]
    TakenOver,
    /// The database is not usable. The message is that of SQLite or the host.
    #[error("spool: {0}")]
    Broken(String),
}

impl SpoolError {
    /// Parses the message of SQLite about a failed statement.
    #[must_use]
    pub fn from_message(message: String) -> Self {
        // `SQLITE_BUSY` is "database is locked", and `SQLITE_LOCKED` "database table is locked".
        if message.contains("locked") {
            Self::Locked(message)
        } else {
            Self::Broken(message)
        }
    }

    /// Whether the host has no spool for this component.
    ///
    /// This is not a problem until something must be spooled.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NoDatabase | Self::NotGranted | Self::InMemory)
    }
}

/// Spooled ids of one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpooledIds {
    /// The rows of these ids, each a JSON array of everything in the row.
    pub rows: Vec<String>,
    /// The ids.
    pub ids: Vec<Id>,
}

impl SpooledIds {
    /// Returns the ids of the first rows, as many as are drained together.
    ///
    /// It takes row after row until there are at least `most` ids.
    pub fn leading(rows: impl IntoIterator<Item = (String, Vec<Id>)>, most: usize) -> Self {
        let mut leading = Self::default();
        for (row, ids) in rows {
            leading.rows.push(row);
            leading.ids.extend(ids);
            if leading.ids.len() >= most {
                break;
            }
        }
        leading
    }
}

/// Commands that run together, once.
#[derive(Debug)]
pub struct Batch {
    /// Its unique name, the idempotency key.
    ///
    /// For a batch of a named counter, it begins with the counter's name and a `/`.
    pub name: String,
    /// Each a JSON array of the command and its arguments.
    pub commands: Vec<String>,
}

/// The beginning of a command, as in a [`Batch`], that adds a callback job.
pub const ADDS_A_JOB: &str = r#"["XADD""#;

impl Batch {
    /// Returns a batch of commands about these keys. `name` must be unique.
    #[must_use]
    pub fn new(keys: &Keys, name: String, commands: Vec<String>) -> Self {
        let name = match keys.counter() {
            None => name,
            Some(counter) => format!("{counter}/{name}"),
        };
        Self { name, commands }
    }

    /// Returns the named counter whose keys the batch is about, if there is one.
    ///
    /// In a cluster, the batch runs on the node that has this counter's keys.
    #[must_use]
    pub fn counter(&self) -> Option<CounterName> {
        self.name.split_once('/')?.0.parse().ok()
    }

    /// Returns the key of each command, also repeatedly.
    ///
    /// Keys have no characters that JSON would escape.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().filter_map(|command| command.split('"').nth(3))
    }

    /// Whether it may add callback jobs.
    #[must_use]
    pub fn has_jobs(&self) -> bool {
        self.commands.iter().any(|command| command.starts_with(ADDS_A_JOB))
    }
}

/// The content of the spool.
#[derive(Debug, Default)]
pub struct Contents {
    /// Whether there are ids or commands.
    pub any: bool,
    /// The messages of other instances, each with its end: see `mark` of the spool.
    pub state: Vec<(String, u64)>,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::alike::MOST;

    #[test]
    fn answers_of_sqlite_are_parsed() {
        let locked = SpoolError::from_message("database is locked".to_owned());
        assert_eq!(locked, SpoolError::Locked("database is locked".to_owned()));
        assert_eq!(locked.to_string(), "spool: database is locked");
        let broken = SpoolError::from_message("disk I/O error".to_owned());
        assert_eq!(broken, SpoolError::Broken("disk I/O error".to_owned()));
    }

    proptest! {
        /// Each row is drained once, with all its ids, in the spool's order.
        ///
        /// No step takes too many ids, or fewer than necessary.
        #[test]
        fn spooled_rows_are_drained_once_and_in_order(sizes in vec(1..=MOST, 0..40)) {
            let rows = sizes.iter().enumerate().map(|(number, size)| (number.to_string(), vec![Id(7); *size]));
            let rows: Vec<(String, Vec<Id>)> = rows.collect();
            let mut unread = rows.as_slice();
            while !unread.is_empty() {
                let together = SpooledIds::leading(unread.to_vec(), MOST_SPOOLED);
                let (read, later) = unread.split_at(together.rows.len());
                prop_assert!(read.iter().map(|(row, _)| row).eq(&together.rows));
                prop_assert_eq!(together.ids.len(), read.iter().map(|(_, ids)| ids.len()).sum::<usize>());
                prop_assert!(together.ids.len() < MOST_SPOOLED + MOST);
                prop_assert!(later.is_empty() || together.ids.len() >= MOST_SPOOLED);
                unread = later;
            }
            prop_assert_eq!(SpooledIds::leading([], MOST_SPOOLED), SpooledIds::default());
        }
    }
}
