//! What is in the spool, and what it fails by.

use thiserror::Error;
use verve_protocol::{CounterName, Id, Keys};

/// From how many ids on no more rows are added to those brought to Redis together.
pub const MOST_SPOOLED: usize = 1000;

/// Why the spool has not done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpoolError {
    /// Instances that serve one request each have none.
    #[error("spool: there is none for WASI 0.2")]
    None,
    /// The host has no database.
    #[error("spool: the host has no SQLite database \"default\"")]
    NoDatabase,
    /// The component may not use it.
    #[error("spool: the manifest does not grant sqlite_databases = [\"default\"]")]
    NotGranted,
    /// What is in it would not survive.
    #[error("spool: the host keeps the database in memory, where it does not survive")]
    InMemory,
    /// There is no room for more than so many ids and callback jobs.
    #[error("spool: full: it holds at most {0} ids (spool_limit)")]
    Full(u64),
    /// There is no room on the disk.
    #[error("spool: full")]
    DiskFull,
    /// Others write for too long; in SQLite's words.
    #[error("spool: {0}")]
    Locked(String),
    /// Nothing came in time.
    #[error("spool: no answer within {within_ms} ms")]
    NoAnswer {
        /// The time, in milliseconds.
        within_ms: u64,
    },
    /// What is in it is for another namespace or Redis.
    #[error("spool: what is in it is for {whose}, and this host counts for {ours}; it is left alone")]
    Foreign {
        /// Its owner.
        whose: String,
        /// What this instance counts for.
        ours: String,
    },
    /// Another version has made it.
    #[error("spool: it is of format {found}, and this version knows {known}; it is left alone")]
    Format {
        /// Its `user_version`.
        found: i64,
        /// The one that this version makes.
        known: i64,
    },
    /// Somebody else has made it theirs, twice.
    #[error("spool: somebody else's by now")]
    TakenOver,
    /// Nothing can be done with it; in the words of SQLite or the host.
    #[error("spool: {0}")]
    Broken(String),
}

impl SpoolError {
    /// Reads what SQLite says that a statement failed by.
    #[must_use]
    pub fn told(message: String) -> Self {
        // `SQLITE_BUSY` is "database is locked", and `SQLITE_LOCKED` "database table is locked".
        if message.contains("locked") {
            Self::Locked(message)
        } else {
            Self::Broken(message)
        }
    }

    /// Whether the host has no spool for this component, which is no matter as long as nothing has to be spooled.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NoDatabase | Self::NotGranted | Self::InMemory)
    }
}

/// Spooled ids of one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpooledIds {
    /// The rows that they are in, each a JSON array of all that is in it.
    pub rows: Vec<String>,
    /// The ids.
    pub ids: Vec<Id>,
}

impl SpooledIds {
    /// Of rows of the spool, each with its ids, those that are brought to Redis together: the first, until there are so many ids.
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
    /// Its name, unlike that of any other. Of a named counter's batch it begins with that counter's name and a `/`.
    pub name: String,
    /// Each a JSON array of the command and its arguments.
    pub commands: Vec<String>,
}

/// The command, as in a [`Batch`], that adds a callback job begins so.
pub const ADDS_A_JOB: &str = r#"["XADD""#;

impl Batch {
    /// Commands about these keys, under a name unlike that of any other batch.
    #[must_use]
    pub fn new(keys: &Keys, name: String, commands: Vec<String>) -> Self {
        let name = match keys.counter() {
            None => name,
            Some(counter) => format!("{counter}/{name}"),
        };
        Self { name, commands }
    }

    /// The named counter whose keys it is about, if it is one's: they are where a cluster has that counter's keys.
    #[must_use]
    pub fn counter(&self) -> Option<CounterName> {
        self.name.split_once('/')?.0.parse().ok()
    }

    /// The keys of its commands, each as often as there are commands of it. They have no characters that JSON would escape.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().filter_map(|command| command.split('"').nth(3))
    }

    /// Whether it may add callback jobs.
    #[must_use]
    pub fn has_jobs(&self) -> bool {
        self.commands.iter().any(|command| command.starts_with(ADDS_A_JOB))
    }
}

/// What is in the spool.
#[derive(Debug, Default)]
pub struct Contents {
    /// Whether there are ids or commands.
    pub any: bool,
    /// Until when what is the case: see `tell` of the spool.
    pub state: Vec<(String, u64)>,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::alike::MOST;

    #[test]
    fn what_sqlite_says_is_read() {
        let locked = SpoolError::told("database is locked".to_owned());
        assert_eq!(locked, SpoolError::Locked("database is locked".to_owned()));
        assert_eq!(locked.to_string(), "spool: database is locked");
        let broken = SpoolError::told("disk I/O error".to_owned());
        assert_eq!(broken, SpoolError::Broken("disk I/O error".to_owned()));
    }

    proptest! {
        /// Each row is brought once, with all its ids, in the spool's order, and neither too much nor needlessly little at once.
        #[test]
        fn spooled_rows_are_brought_once_and_in_order(sizes in vec(1..=MOST, 0..40)) {
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
