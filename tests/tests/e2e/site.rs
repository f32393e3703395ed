//! One Verve of a test's own: its Redis servers, namespace and window length.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use redis::streams::StreamRangeReply;
use verve_protocol::{CallbackJob, Keys, Method, Window, WindowLength};
use verve_tests::clock;
use verve_tests::host::{self, Instance, Kind};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::wait;

/// Long enough for anything that happens at once, on a machine that is busy with all the other tests.
pub const SOON: Duration = Duration::from_secs(15);

/// The parts that belong together, and the names they share.
pub struct Site {
    pub redis: Vec<RedisServer>,
    pub namespace: String,
    pub length: WindowLength,
}

impl Site {
    /// A site on one Redis.
    pub async fn new(window_seconds: u32) -> Result<Self> {
        Ok(Self::with_redis(window_seconds, vec![RedisServer::start().await?]))
    }

    /// A site on these Redis servers.
    pub fn with_redis(window_seconds: u32, redis: Vec<RedisServer>) -> Self {
        Self {
            redis,
            namespace: clock::unique("e2e"),
            length: clock::length(window_seconds),
        }
    }

    /// A site whose windows do not end while a test runs.
    pub async fn with_one_window() -> Result<Self> {
        // Two long lengths, whose windows hardly ever end at the same time.
        let far = |seconds: &u32| {
            let now_ms = clock::now_ms();
            clock::length(*seconds).window_at_ms(now_ms).end_ms() > now_ms + 120_000
        };
        let seconds = [86_400, 77_777].into_iter().find(far).unwrap_or(70_000);
        Self::new(seconds).await
    }

    pub fn redis_urls(&self) -> String {
        let urls: Vec<String> = self.redis.iter().map(RedisServer::url).collect();
        urls.join(",")
    }

    pub fn keys(&self) -> Keys {
        Keys::new(self.namespace.parse().expect("a namespace"))
    }

    /// The options of an instance of this site.
    pub fn host(&self, kind: Kind) -> host::Options {
        Instance::options(kind)
            .variable("redis_urls", &self.redis_urls())
            .variable("namespace", &self.namespace)
            .variable("window_seconds", &self.length.to_string())
            // Not what is under test, except where a test says otherwise: the machine may be slow.
            .variable("redis_timeout_ms", "5000")
    }

    /// The reporter's flags for this site, and `more`.
    pub fn flags(&self, more: &[&str]) -> Vec<String> {
        let own = [
            ("--redis-urls", self.redis_urls()),
            ("--namespace", self.namespace.clone()),
            ("--window-seconds", self.length.to_string()),
            ("--grace-ms", "300".to_owned()),
        ];
        // A flag that a test names is the test's.
        let own = own.into_iter().filter(|(name, _)| !more.contains(name));
        let own = own.flat_map(|(name, value)| [name.to_owned(), value]);
        own.chain(more.iter().map(|&flag| flag.to_owned())).collect()
    }

    /// A reporter of this site that is ready.
    pub async fn reporter(&self, more: &[&str]) -> Result<Reporter> {
        Reporter::ready(&self.flags(more)).await
    }

    /// A connection to the first Redis.
    pub async fn first(&self) -> Result<MultiplexedConnection> {
        self.redis.first().context("a Redis")?.connection().await
    }

    /// Puts ids into a window behind the component's back, on the first Redis.
    pub async fn add(&self, window: Window, ids: impl IntoIterator<Item = i64>) -> Result<()> {
        let ids: Vec<i64> = ids.into_iter().collect();
        if !ids.is_empty() {
            let () = self.first().await?.sadd(self.keys().ids(window), ids).await?;
        }
        Ok(())
    }

    /// Puts a callback job into the stream behind the component's back.
    pub async fn add_job(&self, endpoint: &str, method: Method, window: Window) -> Result<()> {
        let job = CallbackJob {
            endpoint: endpoint.parse()?,
            method,
            window,
            revision: None,
        };
        let () = self
            .first()
            .await?
            .xadd(self.keys().callbacks(), "*", &job.to_fields())
            .await?;
        Ok(())
    }

    /// The members of a window's set, on each Redis.
    pub async fn members(&self, window: Window) -> Result<Vec<BTreeSet<String>>> {
        let mut sets = Vec::new();
        for redis in &self.redis {
            sets.push(redis.connection().await?.smembers(self.keys().ids(window)).await?);
        }
        Ok(sets)
    }

    /// The fields of the entries of a stream, in order.
    pub async fn stream(&self, key: &str) -> Result<Vec<Vec<(String, String)>>> {
        let reply: StreamRangeReply = self.first().await?.xrange_all(key).await?;
        let text = |value: &redis::Value| redis::from_redis_value_ref::<String>(value);
        let entry = |map: &std::collections::HashMap<String, redis::Value>| {
            let fields = map.iter().map(|(name, value)| Ok((name.clone(), text(value)?)));
            let mut fields = fields.collect::<Result<Vec<_>>>()?;
            fields.sort();
            Ok(fields)
        };
        reply.ids.iter().map(|id| entry(&id.map)).collect()
    }

    /// Waits until `count` jobs were given up on, and returns their fields.
    pub async fn dead(&self, count: usize, timeout: Duration) -> Result<Vec<Vec<(String, String)>>> {
        let key = self.keys().callbacks_dead();
        wait::until("dead callback jobs", timeout, || async {
            self.stream(&key).await.ok().filter(|jobs| jobs.len() >= count)
        })
        .await
        .with_context(|| format!("{count} jobs in {key}"))
    }
}

/// One field of a stream's entry.
pub fn field<'a>(entry: &'a [(String, String)], name: &str) -> &'a str {
    let found = entry.iter().find(|(n, _)| n == name);
    found.map_or("", |(_, value)| value)
}
