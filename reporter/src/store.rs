//! The data of windows in Redis. Its connection is a [`Server`].

mod server;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use redis::{FromRedisValue, Pipeline, RedisResult, Script};
use verve_protocol::keys::{FORMAT, UNREPORTED_SECONDS, progress, stats};
use verve_protocol::scripts::{CLOSE, PUT_ASIDE, REMOVE_CLOSED, TIME};
use verve_protocol::{CounterName, Keys, Partition, Partitions, Report, Window, WindowLength};

use crate::clock::RedisClock;
use crate::health::Health;
use crate::metrics::{Metrics, OUTCOMES};
pub use server::{Commands, Node, OLDEST, RedisConfig, Server, is_away};

/// The most reports in one command, so that other commands do not wait long.
pub const BATCH: usize = 1000;

/// The most commands and scripts in progress concurrently, for the same reason.
pub const AT_ONCE: usize = 500;

/// How long Redis remembers that a window was closed.
/// This is longer than a pause of a reporter.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Redis, and how it holds the ids of windows.
#[derive(Clone)]
pub struct Store {
    /// The names of the keys.
    pub keys: Keys,
    partitions: Partitions,
    redis: Server,
}

impl Store {
    /// Creates a store that connects lazily: Redis need not be reachable yet.
    pub fn new(config: &RedisConfig, keys: Keys, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        Ok(Self {
            keys,
            partitions: config.partitions,
            redis: Server::new(config, None, health, metrics)?,
        })
    }

    /// Creates a store on this connection to Redis.
    pub fn by(redis: Server, keys: Keys, partitions: Partitions) -> Self {
        Self {
            keys,
            partitions,
            redis,
        }
    }

    /// Returns the store of another counter, if one is named, on the same connection.
    pub fn of(&self, counter: Option<&CounterName>) -> Self {
        let mut store = self.clone();
        if let Some(counter) = counter {
            store.keys = store.keys.named(counter.clone());
        }
        store
    }

    /// Returns the connection.
    pub fn redis(&self) -> &Server {
        &self.redis
    }

    /// Returns how many sets hold the ids of a window.
    pub fn partitions(&self) -> Partitions {
        self.partitions
    }

    /// Returns the sets in which a window may have ids.
    pub fn sets(&self) -> impl Iterator<Item = Partition> + Clone {
        self.partitions.with_former()
    }

    /// Returns the number of unique ids of each window.
    pub async fn counts(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let keys = &self.keys;
        let counts = self.of_each(windows, |pipe, window, set| {
            pipe.scard(keys.ids(window, set))
                .scard(keys.closed(window, set))
                .exists(keys.closing(window, set))
        });
        // Ids that were added after a window was closed came too late.
        let count = |answers: &[u64]| match answers {
            [ids, _, 0] => *ids,
            [_, closed, _] => *closed,
            _ => 0,
        };
        let counts: Vec<u64> = counts.await?.chunks(3).map(count).collect();
        Ok(self.sums(&counts))
    }

    /// Returns how many ids came after each window was final, as far as they are kept.
    pub async fn late(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        self.sizes(windows, |window, set| self.keys.late(window, set)).await
    }

    /// Returns how many ids are left in the sets of these windows.
    /// Ids that were moved out of these sets do not count.
    pub async fn counts_left(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        self.sizes(windows, |window, set| self.keys.ids(window, set)).await
    }

    /// Returns for each window the total size of its sets under these keys.
    async fn sizes(&self, windows: &[Window], key: impl Fn(Window, Partition) -> String) -> RedisResult<Vec<u64>> {
        let counts = self.of_each(windows, |pipe, window, set| pipe.scard(key(window, set)));
        Ok(self.sums(&counts.await?))
    }

    /// Closes windows, so that no ids are added, and returns the unique ids of each.
    pub async fn close(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let keys = |window, set| {
            [
                self.keys.ids(window, set),
                self.keys.closed(window, set),
                self.keys.closing(window, set),
            ]
        };
        let kept = Duration::from_secs(UNREPORTED_SECONDS);
        let closed = self.script_on_each(CLOSE, windows, keys, kept).await;
        Ok(self.sums(&closed.into_iter().collect::<RedisResult<Vec<u64>>>()?))
    }

    /// Removes the closed sets of windows, which are final.
    pub async fn remove_closed(&self, windows: &[Window]) -> RedisResult<()> {
        let keys = |window, set| [self.keys.closed(window, set), self.keys.closing(window, set)];
        let removed = self
            .script_on_each::<u8, 2>(REMOVE_CLOSED, windows, keys, REMEMBERED)
            .await;
        removed.into_iter().try_for_each(|removed| removed.map(drop))
    }

    /// Keeps ids apart as late ids that came after these windows were final.
    /// Returns how many ids of each window were moved, in the sets that succeeded, and whether all
    /// sets succeeded.
    pub async fn put_aside(&self, windows: &[Window]) -> (Vec<u64>, RedisResult<()>) {
        let keys = |window, set| [self.keys.ids(window, set), self.keys.late(window, set)];
        let kept = Duration::from_secs(UNREPORTED_SECONDS);
        let moved = self.script_on_each::<u64, 2>(PUT_ASIDE, windows, keys, kept).await;
        let counts: Vec<u64> = moved.iter().map(|moved| *moved.as_ref().unwrap_or(&0)).collect();
        (
            self.sums(&counts),
            moved.into_iter().try_for_each(|moved| moved.map(drop)),
        )
    }

    /// Runs a script for each set of each window, with `N` keys and a time in seconds.
    async fn script_on_each<T: FromRedisValue, const N: usize>(
        &self,
        script: &str,
        windows: &[Window],
        keys: impl Fn(Window, Partition) -> [String; N],
        time: Duration,
    ) -> Vec<RedisResult<T>> {
        let script = Script::new(script);
        let answers = self.each(windows).map(|(window, set)| {
            let mut invocation = script.arg(time.as_secs());
            for key in keys(window, set) {
                invocation.key(key);
            }
            async move { self.redis.script(&invocation).await }
        });
        stream::iter(answers).buffered(AT_ONCE).collect().await
    }

    /// Returns each set of each window, in order.
    fn each(&self, windows: &[Window]) -> impl Iterator<Item = (Window, Partition)> {
        let sets = self.sets();
        let windows = windows.iter().copied();
        windows.flat_map(move |window| sets.clone().map(move |set| (window, set)))
    }

    /// Returns for each window the sum over all its sets.
    fn sums(&self, counts: &[u64]) -> Vec<u64> {
        counts
            .chunks(self.sets().count())
            .map(|counts| counts.iter().sum())
            .collect()
    }

    /// Returns for each window its requests, and how many of them were duplicates.
    /// Only the component's statistics that have arrived and have not expired are included.
    pub async fn requests(&self, windows: &[Window]) -> RedisResult<Vec<[u64; 2]>> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for window in windows {
            pipe.cmd("HMGET")
                .arg(self.keys.stats(*window))
                .arg(stats::REQUESTS)
                .arg(stats::DUPLICATE);
        }
        let found: Vec<[Option<u64>; 2]> = self.redis.run(&pipe).await?;
        Ok(found
            .into_iter()
            .map(|found| found.map(Option::unwrap_or_default))
            .collect())
    }

    /// Returns for each window its requests by [`OUTCOMES`], from the same statistics.
    pub async fn outcomes(&self, windows: &[Window]) -> RedisResult<Vec<[u64; OUTCOMES.len()]>> {
        let mut pipe = redis::pipe();
        for window in windows {
            pipe.cmd("HMGET").arg(self.keys.stats(*window)).arg(&OUTCOMES);
        }
        let found: Vec<[Option<u64>; OUTCOMES.len()]> = self.redis.run(&pipe).await?;
        let counts = found.into_iter().map(|found| found.map(Option::unwrap_or_default));
        Ok(counts.collect())
    }

    /// Returns the report of each of these windows, which have the same length.
    pub async fn reports(&self, windows: &[Window]) -> RedisResult<Vec<Option<Report>>> {
        let mut reports = Vec::with_capacity(windows.len());
        for windows in windows.chunks(BATCH) {
            let mut hmget = redis::cmd("HMGET");
            hmget.arg(self.keys.reports(windows[0].length()));
            for window in windows {
                hmget.arg(window.start());
            }
            let values: Vec<Option<String>> = self.redis.command(&hmget).await?;
            reports.extend(values.iter().map(|json| Report::from_json(json.as_deref()?).ok()));
        }
        Ok(reports)
    }

    /// Returns the first window whose report was not removed with older ones.
    ///
    /// `None` if no leader has noted it.
    pub async fn kept_from(&self, length: WindowLength) -> RedisResult<Option<Window>> {
        let start = self.progress(length, progress::TRIMMED).await?;
        Ok(start.and_then(|start| length.window_starting(start)))
    }

    /// Returns the newest window of this length with a report.
    pub async fn newest(&self, length: WindowLength) -> RedisResult<Option<Window>> {
        let start = self.progress(length, progress::NEWEST).await?;
        Ok(start.and_then(|start| length.window_starting(start)))
    }

    /// Reads a field of the leader's progress.
    pub async fn progress(&self, length: WindowLength, field: &str) -> RedisResult<Option<u64>> {
        let mut hget = redis::cmd("HGET");
        hget.arg(self.keys.reports_progress(length)).arg(field);
        self.redis.command(&hget).await
    }

    /// Returns how many reports of this length there are.
    pub async fn number_of_reports(&self, length: WindowLength) -> RedisResult<u64> {
        self.redis
            .command(redis::cmd("HLEN").arg(self.keys.reports(length)))
            .await
    }

    /// Returns the names of all counters that are registered, idle or not.
    pub async fn registered(&self) -> RedisResult<BTreeSet<CounterName>> {
        let mut names = BTreeSet::new();
        // Names that are not valid are ignored: no instance has registered them.
        let add = |name: String, _| names.extend(name.parse::<CounterName>());
        self.scan("ZSCAN", &self.keys.counters(), add).await?;
        Ok(names)
    }

    /// Reads a sorted set with `ZSCAN`, or a hash with `HSCAN`, in batches.
    /// Gives each member with its score, or each field with its value.
    pub async fn scan(&self, command: &str, key: &str, mut with: impl FnMut(String, String)) -> RedisResult<()> {
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd(command);
            scan.arg(key).arg(cursor).arg("COUNT").arg(BATCH);
            let (next, found): (u64, Vec<(String, String)>) = self.redis.command(&scan).await?;
            found.into_iter().for_each(|(name, value)| with(name, value));
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Keeps the ids of windows from expiring for at least `after`.
    pub async fn keep_ids(&self, windows: &[Window], after: impl Fn(Window) -> Duration) -> RedisResult<()> {
        let keep = self.of_each(windows, |pipe, window, set| {
            let (key, seconds) = (self.keys.ids(window, set), after(window).as_secs());
            for condition in ["NX", "GT"] {
                pipe.cmd("EXPIRE").arg(&key).arg(seconds).arg(condition);
            }
            pipe
        });
        keep.await.map(drop)
    }

    /// Reopens windows that were closed before they ended, to count them again.
    pub async fn reopen(&self, windows: &[Window]) -> RedisResult<()> {
        let reopen = self.of_each(windows, |pipe, window, set| pipe.del(self.keys.closing(window, set)));
        reopen.await.map(drop)
    }

    /// Describes the format of the keys, if this version does not know it.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn other_format(&self) -> RedisResult<Option<String>> {
        let mut get = redis::cmd("GET");
        let format: Option<String> = self.redis.command(get.arg(self.keys.format())).await?;
        Ok(format.filter(|format| *format != FORMAT.to_string()).map(|format| {
            format!(
                "the data in Redis has format {format}, and this version knows {FORMAT}: run the version that wrote it"
            )
        }))
    }

    /// Records the format of the keys, unless one is recorded.
    /// Redis may refuse this, for example if it is full: then the next leader records it.
    pub async fn record_format(&self) {
        let mut set = redis::cmd("SET");
        set.arg(self.keys.format()).arg(FORMAT).arg("NX");
        if let Err(error) = self.redis.command::<Option<String>>(&set).await {
            tracing::debug!("cannot record the format of the keys: {error}");
        }
    }

    /// Reads Redis' clock. On a cluster, it is that of the node with the reports.
    pub async fn clock(&self) -> RedisResult<RedisClock> {
        let script = Script::new(TIME);
        let time = script.key(self.keys.counters());
        let (seconds, micros): (u64, u64) = self.redis.script(&time).await?;
        Ok(RedisClock::read_now(seconds * 1000 + micros / 1000))
    }

    /// Runs commands for each set of each window.
    async fn of_each(
        &self,
        windows: &[Window],
        commands: impl Fn(&mut Pipeline, Window, Partition) -> &mut Pipeline,
    ) -> RedisResult<Vec<u64>> {
        let answers = self.each(windows).map(|(window, set)| {
            let mut pipe = redis::pipe();
            commands(&mut pipe, window, set);
            async move { self.redis.run::<Vec<u64>>(&pipe).await }
        });
        let answers: Vec<Vec<u64>> = stream::iter(answers).buffered(AT_ONCE).try_collect().await?;
        Ok(answers.concat())
    }
}
