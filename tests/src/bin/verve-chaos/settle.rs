//! The quiet time at the end.
//!
//! It waits until all work is complete, and reads the results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use rusqlite::OpenFlags;
use tokio::time::{Instant, sleep};
use verve_tests::http;
use verve_tests::kafka::Record;
use verve_tests::store::Connection;

use crate::parts::{FIXED, Parts, TOPIC};
use crate::series::Series;

/// How long it may take until all work is complete.
///
/// Another reporter can take over the jobs of a killed one after 30 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the hosts may take to drain their spools if there are no faults.
///
/// A killed instance that was draining keeps the spool reserved for 10 s more. The machine may be
/// busy with other tests. The only requirement is that the allowed lateness is longer.
const DRAINED_WITHIN: Duration = Duration::from_secs(45);
/// How often to check whether all work is complete.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The results of a run.
#[derive(Default)]
pub struct Observed {
    /// The records of the topic.
    pub records: Vec<Record>,
    /// The jobs that reached their endpoint.
    pub delivered: BTreeSet<u64>,
    /// The jobs that were given up: the dead letters.
    pub dead: BTreeSet<u64>,
    /// The windows and revisions that the fixed callback received.
    pub notified: BTreeSet<(String, u64)>,
    /// The work that is not complete.
    pub left: Vec<String>,
}

/// Waits until each spool has been empty once, while traffic continues.
pub async fn drained(parts: &Parts) -> Result<()> {
    let deadline = Instant::now() + DRAINED_WITHIN;
    let mut spools = parts.spools().await;
    loop {
        let mut left = Vec::new();
        for spool in spools {
            if spooled(&spool)? > 0 {
                left.push(spool);
            }
        }
        spools = left;
        if spools.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{} of the spools not empty after {DRAINED_WITHIN:?} in which all was well",
            spools.len()
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until the work for these series and jobs is complete.
///
/// Or until the time is over.
pub async fn settle(parts: &Parts, all: &[Series], jobs: &BTreeSet<u64>) -> Result<Observed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A host drains its spool after each response, also after this one, whose request counts no
        // id.
        for host in &parts.addresses {
            http::get(*host, "/api/verve/accept?id=none").await?;
        }
        let seen = look(parts, all, jobs).await?;
        if seen.left.is_empty() || Instant::now() >= deadline {
            return Ok(seen);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Checks in the order in which ids and jobs move.
///
/// So all that is moving is seen at least once.
async fn look(parts: &Parts, all: &[Series], jobs: &BTreeSet<u64>) -> Result<Observed> {
    let mut seen = Observed::default();
    for (n, spool) in parts.spools().await.iter().enumerate() {
        let rows = spooled(spool)?;
        if rows > 0 {
            seen.left
                .push(format!("{rows} ids and commands in the spool of host-{n}"));
        }
    }
    let mut redis = parts.connection().await?;
    let mut counts_of = Vec::new();
    for series in all {
        counts_of.push(counts(parts, series, &mut redis).await?);
    }
    callbacks(parts, jobs, &mut redis, &mut seen).await?;
    seen.records = parts.broker.lock().await.kafka().read_all(TOPIC).await?;
    // Last, because each report is sent to the callback after its record is published.
    notifications(parts, all, &mut seen)?;
    for (series, counts) in all.iter().zip(counts_of) {
        let records = series.records(&seen.records);
        let last: BTreeMap<String, u64> = records
            .iter()
            .map(|record| Ok((record.key.clone(), record.value.parse()?)))
            .collect::<Result<_>>()?;
        let of = series.name();
        // A named counter is unknown before the first id is added to it.
        let unknown = |window: &str| series.is_named() && last.keys().next().is_some_and(|first| **first > *window);
        for (window, count) in series.windows.iter().map(ToString::to_string).zip(counts) {
            match last.get(&window) {
                None if count == 0 && unknown(&window) => {}
                None => seen.left.push(format!("no record of {window}{of}")),
                // A smaller count is normal: the ids of an old window have expired.
                Some(recorded) if count > *recorded => {
                    seen.left
                        .push(format!("{window}{of} has {count} ids, its record has {recorded}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(seen)
}

/// Returns the records that the fixed callback gets: of the first series.
pub fn fixed_records(all: &[Series], seen: &Observed) -> Vec<Record> {
    all.first()
        .map(|first| first.records(&seen.records))
        .unwrap_or_default()
}

/// Reads what the fixed callback received.
///
/// Adds the windows whose last revision it has not received to the work that is not complete.
fn notifications(parts: &Parts, all: &[Series], seen: &mut Observed) -> Result<()> {
    for received in parts.sink.received() {
        if received.target == FIXED {
            let revision = received.header("verve-revision").context("a revision")?.parse()?;
            let window = received.header("verve-window").unwrap_or_default().to_owned();
            seen.notified.insert((window, revision));
        }
    }
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let records = fixed_records(all, seen);
    for record in &records {
        last.insert(&record.key, record.header("revision").parse()?);
    }
    for (window, revision) in last {
        if !seen.notified.contains(&(window.to_owned(), revision)) {
            seen.left
                .push(format!("revision {revision} of {window} has no callback"));
        }
    }
    Ok(())
}

async fn counts(parts: &Parts, series: &Series, redis: &mut Connection) -> Result<Vec<u64>> {
    let (mut counts, keys) = (Vec::new(), series.keys(&parts.keys));
    for window in &series.windows {
        let mut count = 0;
        for partition in parts.partitions.all() {
            count += redis.scard::<_, u64>(keys.ids(*window, partition)).await?;
        }
        counts.push(count);
    }
    Ok(counts)
}

async fn callbacks(parts: &Parts, jobs: &BTreeSet<u64>, redis: &mut Connection, seen: &mut Observed) -> Result<()> {
    // An entry leaves the stream once its job is settled, so these are new and pending jobs.
    let waiting: u64 = redis.xlen(parts.keys.callbacks()).await?;
    let retried: u64 = redis.zcard(parts.keys.callbacks_retry()).await?;
    for (count, place) in [(waiting, "the stream"), (retried, "the retry set")] {
        if count > 0 {
            seen.left.push(format!("{count} callback jobs in {place}"));
        }
    }
    let dead: StreamRangeReply = redis.xrange_all(parts.keys.callbacks_dead()).await?;
    seen.dead = dead
        .ids
        .iter()
        .filter_map(|entry| job(&entry.get::<String>("endpoint")?))
        .collect();
    let received = parts.sink.received();
    seen.delivered
        .extend(received.iter().filter_map(|received| job(&received.target)));
    let lost = jobs
        .difference(&seen.delivered)
        .filter(|job| !seen.dead.contains(job))
        .count();
    if lost > 0 {
        seen.left
            .push(format!("{lost} callbacks neither delivered nor given up on"));
    }
    Ok(())
}

/// Returns the job that has this endpoint.
fn job(endpoint: &str) -> Option<u64> {
    let (_, job) = endpoint.split_once("/job/")?;
    job.split('?').next()?.parse().ok()
}

/// Returns how many ids and commands are in a spool.
fn spooled(spool: &Path) -> Result<i64> {
    let context = || format!("the spool {}", spool.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = rusqlite::Connection::open_with_flags(spool, flags).with_context(context)?;
    database.busy_timeout(Duration::from_secs(5))?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('ids', 'commands')";
    let tables: i64 = database.query_row(tables, [], |row| row.get(0)).with_context(context)?;
    if tables < 2 {
        // Without tables, nothing was ever spooled or searched for.
        return Ok(0);
    }
    let rows = "SELECT (SELECT count(*) FROM ids) + (SELECT count(*) FROM commands)";
    database.query_row(rows, [], |row| row.get(0)).with_context(context)
}
