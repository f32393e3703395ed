//! A test's own Verve: its Redis servers, namespace and window length.

use std::collections::BTreeSet;
use std::env;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use verve_protocol::keys::indexed;
use verve_protocol::{CallbackJob, Id, Keys, Method, Partition, Partitions, Window, WindowLength};
use verve_tests::clock;
use verve_tests::cluster::Cluster;
use verve_tests::host::{self, Instance, Kind};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::store::{Connection, Store};
use verve_tests::wait;

/// Long enough for any immediate reaction, on a machine busy with all other tests.
pub const SOON: Duration = Duration::from_secs(15);

/// The variable that moves sites to a cluster, unless they need a certain Redis.
const ON_CLUSTER: &str = "VERVE_TESTS_ON_CLUSTER";

/// The parts that belong together, and their common names.
pub struct Site {
    pub redis: Store,
    pub namespace: String,
    pub length: WindowLength,
    pub partitions: Partitions,
}

impl Site {
    /// Starts a site on one Redis server.
    ///
    /// If the variable [`ON_CLUSTER`] is set, it is on a cluster of three primaries with a replica
    /// each.
    pub async fn new(window_seconds: u32) -> Result<Self> {
        Ok(if env::var_os(ON_CLUSTER).is_some() {
            Self::with_cluster(window_seconds, Cluster::start(3, 1).await?)
        } else {
            Self::with_redis(window_seconds, RedisServer::start().await?)
        })
    }

    /// Returns a site on this server.
    pub fn with_redis(window_seconds: u32, redis: RedisServer) -> Self {
        Self::with_store(window_seconds, Store::Server(redis))
    }

    /// Returns a site on this cluster.
    pub fn with_cluster(window_seconds: u32, redis: Cluster) -> Self {
        Self::with_store(window_seconds, Store::Cluster(redis))
    }

    fn with_store(window_seconds: u32, redis: Store) -> Self {
        Self {
            redis,
            namespace: clock::unique("e2e"),
            length: clock::length(window_seconds),
            partitions: Partitions::default(),
        }
    }

    /// Returns the same site, with each window's ids in this many sets.
    pub fn partitioned(mut self, partitions: u16) -> Self {
        self.partitions = Partitions::try_new(partitions).expect("a valid count");
        self
    }

    /// Starts a site whose windows do not end while a test runs.
    pub async fn with_one_window() -> Result<Self> {
        Self::new(Self::one_window()).await
    }

    /// Returns a window length in seconds whose windows do not end while a test runs.
    pub fn one_window() -> u32 {
        // Two long lengths whose windows hardly ever end at the same time.
        let far = |seconds: &u32| {
            let now_ms = clock::now_ms();
            clock::length(*seconds).window_at_ms(now_ms).end_ms() > now_ms + 120_000
        };
        [86_400, 77_777].into_iter().find(far).unwrap_or(70_000)
    }

    pub fn redis_urls(&self) -> String {
        self.redis.urls()
    }

    pub fn keys(&self) -> Keys {
        Keys::new(self.namespace.parse().expect("a namespace"))
    }

    /// Returns the options of an instance of this site.
    pub fn host(&self, kind: Kind) -> host::Options {
        Instance::options(kind)
            .variable("redis_urls", &self.redis_urls())
            .variable("namespace", &self.namespace)
            .variable("window_seconds", &self.length.to_string())
            .variable("partitions", &self.partitions.to_string())
            // Long, because the machine may be slow; tests of the timeout set another value.
            .variable("redis_timeout_ms", "5000")
    }

    /// Returns the reporter's flags for this site, plus `more`.
    pub fn flags(&self, more: &[&str]) -> Vec<String> {
        let own = [
            ("--redis-urls", self.redis_urls()),
            ("--namespace", self.namespace.clone()),
            ("--window-seconds", self.length.to_string()),
            ("--partitions", self.partitions.to_string()),
            ("--grace-ms", "300".to_owned()),
            // Leases of 2 s, calls and quiet periods of 3.3 s, claims of 10 s, to keep the tests
            // short.
            ("--divide-periods", "3".to_owned()),
        ];
        // A flag of the test replaces the default.
        let own = own.into_iter().filter(|(name, _)| !more.contains(name));
        let own = own.flat_map(|(name, value)| [name.to_owned(), value]);
        own.chain(more.iter().map(|&flag| flag.to_owned())).collect()
    }

    /// Starts a reporter of this site, and waits until it is ready.
    pub async fn reporter(&self, more: &[&str]) -> Result<Reporter> {
        Reporter::ready(&self.flags(more)).await
    }

    /// Opens a connection to the site's Redis.
    pub async fn connection(&self) -> Result<Connection> {
        self.redis.connection().await
    }

    /// Returns the key of a window that has one set of ids.
    pub fn ids(&self, window: Window) -> String {
        self.keys().ids(window, Partition::Whole)
    }

    /// Adds ids to a window directly in Redis, each to its set.
    pub async fn add(&self, window: Window, ids: impl IntoIterator<Item = i64>) -> Result<()> {
        let mut redis = self.connection().await?;
        self.index(window).await?;
        for id in ids {
            let partition = Id(id).partition(self.partitions);
            let () = redis.sadd(self.keys().ids(window, partition), id).await?;
        }
        Ok(())
    }

    /// Registers a window that has ids, as the client that adds the first id does.
    pub async fn index(&self, window: Window) -> Result<()> {
        let member = indexed(window, self.partitions.count());
        let key = self.keys().windows(self.length);
        let () = self.connection().await?.zadd(key, member, clock::now_ms()).await?;
        Ok(())
    }

    /// Adds a callback job to the stream directly in Redis.
    pub async fn add_job(&self, endpoint: &str, method: Method, window: Window) -> Result<()> {
        let job = CallbackJob {
            counter: None,
            endpoint: endpoint.parse()?,
            method,
            window,
            revision: None,
        };
        let () = self
            .connection()
            .await?
            .xadd(self.keys().callbacks(), "*", &job.to_fields())
            .await?;
        Ok(())
    }

    /// Returns the members of each of a window's sets.
    pub async fn members(&self, window: Window) -> Result<Vec<BTreeSet<String>>> {
        let (mut redis, mut members) = (self.connection().await?, Vec::new());
        for partition in self.partitions.all() {
            members.push(redis.smembers(self.keys().ids(window, partition)).await?);
        }
        Ok(members)
    }

    /// Returns the fields of the entries of a stream, in order.
    pub async fn stream(&self, key: &str) -> Result<Vec<Vec<(String, String)>>> {
        let reply: StreamRangeReply = self.connection().await?.xrange_all(key).await?;
        let text = |value: &redis::Value| redis::from_redis_value_ref::<String>(value);
        let entry = |map: &std::collections::HashMap<String, redis::Value>| {
            let fields = map.iter().map(|(name, value)| Ok((name.clone(), text(value)?)));
            let mut fields = fields.collect::<Result<Vec<_>>>()?;
            fields.sort();
            Ok(fields)
        };
        reply.ids.iter().map(|id| entry(&id.map)).collect()
    }

    /// Waits until there are `count` dead letters, and returns their fields.
    pub async fn dead(&self, count: usize, timeout: Duration) -> Result<Vec<Vec<(String, String)>>> {
        let key = self.keys().callbacks_dead();
        wait::until("dead callback jobs", timeout, || async {
            self.stream(&key).await.ok().filter(|jobs| jobs.len() >= count)
        })
        .await
        .with_context(|| format!("{count} jobs in {key}"))
    }
}

/// Returns one field of a stream's entry.
pub fn field<'a>(entry: &'a [(String, String)], name: &str) -> &'a str {
    let found = entry.iter().find(|(n, _)| n == name);
    found.map_or("", |(_, value)| value)
}
