//! `verve-reporter dead`: lists, retries or drops dead letters for an operator.
//!
//! Ids are those of the entries of the dead stream. A failure is reported on standard error and
//! does not prevent the rest.

mod view;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use redis::streams::{StreamId, StreamRangeReply};
use redis::{RedisError, RedisResult, Script};
use verve_protocol::scripts::RETRY_DEAD;

use crate::command;
use crate::store::Store;
use view::{DeadJob, print};

/// The maximum number of jobs that one command to Redis reads, moves or removes.
///
/// A command for more jobs would block Redis for others.
const BATCH: usize = 500;

/// What to do with dead letters.
#[derive(clap::Subcommand, Clone, Debug)]
#[command(arg_required_else_help = false)]
pub enum DeadCommand {
    /// Show dead callbacks, newest first
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
        /// Maximum number of callbacks to show
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Put dead callbacks back into the queue, with all their attempts again
    Retry(Which),
    /// Remove dead callbacks permanently
    Drop(Which),
}

/// The dead letters to process.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "all"]))]
pub struct Which {
    /// Ids as shown by `dead list`
    #[arg(value_name = "ID")]
    ids: Vec<EntryId>,
    /// All callbacks that are dead now
    #[arg(long)]
    all: bool,
    /// Show the chosen callbacks, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// The id of an entry of the dead stream.
///
/// It consists of the Unix time in milliseconds at which the job was given up, and a number that
/// distinguishes the entries of one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// In Unix milliseconds.
    pub time_ms: u64,
    number: u64,
}

impl FromStr for EntryId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        let id = text.split_once('-').and_then(|(time, n)| {
            Some(Self {
                time_ms: number(time)?,
                number: number(n)?,
            })
        });
        id.ok_or_else(|| "expected an id such as 1795383012345-0".to_owned())
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.time_ms, self.number)
    }
}

/// The outcome for a job that was to be retried or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There is no such job.
    Unknown,
    Done,
    /// The entry has no endpoint.
    NoJob,
}

/// The outcome for all jobs.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    problems: Vec<String>,
}

/// Runs the command, and returns the problems with single jobs.
///
/// A failure of Redis during `retry` or `drop` is one of these problems.
///
/// # Errors
/// If Redis fails during `list`, or if standard output cannot be written.
pub async fn run(store: Store, command: &DeadCommand) -> anyhow::Result<Vec<String>> {
    Dead { store }.run(command).await
}

/// The dead stream.
struct Dead {
    store: Store,
}

impl Dead {
    /// Runs the command, and returns the problems with single jobs.
    async fn run(&self, command: &DeadCommand) -> anyhow::Result<Vec<String>> {
        let (which, verb) = match command {
            DeadCommand::List { json, limit } => {
                let jobs = self.list(*limit as usize).await.map_err(|error| self.failed(&error))?;
                print(&jobs, *json)?;
                return Ok(Vec::new());
            }
            DeadCommand::Retry(which) if which.dry_run => (which, "would retry"),
            DeadCommand::Drop(which) if which.dry_run => (which, "would drop"),
            DeadCommand::Retry(which) => (which, "retried"),
            DeadCommand::Drop(which) => (which, "dropped"),
        };
        let mut tally = Tally::default();
        let done = if which.all {
            self.handle_all(command, &mut tally).await
        } else {
            let ids = BTreeSet::from_iter(&which.ids);
            self.handle(command, ids.into_iter().copied(), &mut tally).await
        };
        // If Redis failed before any job was processed, only that failure is reported.
        if done.is_ok() || tally.done > 0 {
            command::print(&format!("{verb} {}\n", tally.done))?;
        }
        if let Err(error) = done {
            tally.problems.push(self.failed(&error).to_string());
        }
        Ok(tally.problems)
    }

    /// Returns an error of one line: the causes of a Redis error repeat its text.
    fn failed(&self, error: &RedisError) -> anyhow::Error {
        anyhow::anyhow!("{}: {error}", self.store.redis())
    }

    async fn list(&self, limit: usize) -> RedisResult<Vec<DeadJob>> {
        let mut jobs: Vec<DeadJob> = Vec::new();
        while jobs.len() < limit {
            let before = jobs.last().map(|job| job.id);
            let page = self.page(before, BATCH.min(limit - jobs.len())).await?;
            if page.is_empty() {
                break;
            }
            jobs.extend(page.iter().map(|(id, fields)| DeadJob::new(*id, fields)));
        }
        Ok(jobs)
    }

    async fn handle_all(&self, command: &DeadCommand, tally: &mut Tally) -> RedisResult<()> {
        // From the newest to the oldest, so that jobs that become dead meanwhile are left out.
        let mut before = None;
        loop {
            let ids: Vec<EntryId> = self.page(before, BATCH).await?.into_iter().map(|(id, _)| id).collect();
            let Some(last) = ids.last() else {
                return Ok(());
            };
            before = Some(*last);
            let outcomes = self.handle_batch(command, &ids).await?;
            // Another process has retried or dropped the unknown ones meanwhile.
            let known = std::iter::zip(ids, outcomes).filter(|(_, outcome)| *outcome != Outcome::Unknown);
            tally.add(known);
        }
    }

    async fn handle(
        &self,
        command: &DeadCommand,
        ids: impl Iterator<Item = EntryId>,
        tally: &mut Tally,
    ) -> RedisResult<()> {
        let ids: Vec<EntryId> = ids.collect();
        for batch in ids.chunks(BATCH) {
            let outcomes = self.handle_batch(command, batch).await?;
            tally.add(std::iter::zip(batch.iter().copied(), outcomes));
        }
        Ok(())
    }

    async fn handle_batch(&self, command: &DeadCommand, ids: &[EntryId]) -> RedisResult<Vec<Outcome>> {
        let (keys, redis) = (&self.store.keys, self.store.redis());
        if let DeadCommand::Retry(which) | DeadCommand::Drop(which) = command
            && which.dry_run
        {
            return self.look_at(command, ids).await;
        }
        let outcomes: Vec<u8> = if let DeadCommand::Retry(_) = command {
            let script = Script::new(RETRY_DEAD);
            let mut retry = script.key(keys.callbacks_dead());
            retry.key(keys.callbacks());
            for id in ids {
                retry.arg(id.to_string());
            }
            redis.script(&retry).await?
        } else {
            let mut removed = redis::pipe();
            for id in ids {
                removed.xdel(keys.callbacks_dead(), &[id.to_string()]);
            }
            redis.run(&removed).await?
        };
        Ok(outcomes.into_iter().map(Outcome::from_code).collect())
    }

    /// Prints the jobs of a dry run, and returns what their outcomes would be.
    async fn look_at(&self, command: &DeadCommand, ids: &[EntryId]) -> RedisResult<Vec<Outcome>> {
        let mut read = redis::pipe();
        for id in ids {
            let id = id.to_string();
            read.xrange(self.store.keys.callbacks_dead(), &id, &id);
        }
        let entries: Vec<StreamRangeReply> = self.store.redis().run(&read).await?;
        let retry = matches!(command, DeadCommand::Retry(_));
        let mut lines = String::new();
        let outcomes = entries.iter().map(|entry| match entry.ids.first().and_then(fields) {
            None => Outcome::Unknown,
            Some((_, fields)) if retry && !fields.contains_key("endpoint") => Outcome::NoJob,
            Some((id, fields)) => {
                lines += &DeadJob::new(id, &fields).line();
                lines += "\n";
                Outcome::Done
            }
        });
        let outcomes = outcomes.collect();
        command::print(&lines)?;
        Ok(outcomes)
    }

    /// Returns the newest jobs, or the newest before `before` if it is given.
    async fn page(
        &self,
        before: Option<EntryId>,
        count: usize,
    ) -> RedisResult<Vec<(EntryId, HashMap<String, String>)>> {
        let mut read = redis::cmd("XREVRANGE");
        read.arg(self.store.keys.callbacks_dead());
        read.arg(before.map_or_else(|| "+".to_owned(), |id| format!("({id}")));
        read.arg("-").arg("COUNT").arg(count);
        let reply: StreamRangeReply = self.store.redis().command(&read).await?;
        Ok(reply.ids.iter().filter_map(fields).collect())
    }
}

/// Returns the id and those fields of an entry that are text.
fn fields(entry: &StreamId) -> Option<(EntryId, HashMap<String, String>)> {
    let names = entry.map.keys();
    let fields = names.filter_map(|name| Some((name.clone(), entry.get(name)?)));
    Some((entry.id.parse().ok()?, fields.collect()))
}

impl Outcome {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Unknown,
            1 => Self::Done,
            _ => Self::NoJob,
        }
    }
}

impl Tally {
    fn add(&mut self, outcomes: impl Iterator<Item = (EntryId, Outcome)>) {
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Done => self.done += 1,
                Outcome::Unknown => self.problems.push(format!("{id}: no such dead callback")),
                Outcome::NoJob => self
                    .problems
                    .push(format!("{id}: no callback job; it can only be dropped")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_numbers() {
        for good in ["0-0", "1795383012345-12", "18446744073709551615-18446744073709551615"] {
            assert_eq!(good.parse::<EntryId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-0",
            "1-0-0",
            "1-x",
            " 1-0",
            "18446744073709551616-0",
        ] {
            assert!(bad.parse::<EntryId>().is_err(), "{bad:?}");
        }
    }
}
