//! What is in Redis of windows, on all servers together. Each of them, and the connection to it, is a [`Server`].

mod server;

use std::sync::Arc;
use std::time::Duration;

use futures::future;
use redis::{FromRedisValue, Pipeline, RedisResult, Script};
use verve_protocol::keys::{UNREPORTED_SECONDS, stats};
use verve_protocol::{Keys, Report, Window};

use crate::health::Health;
use crate::metrics::Metrics;
pub use server::{RedisConfig, Server};

/// The most reports asked for at once, so that other commands need not wait for long.
pub const BATCH: usize = 1000;

/// Closes windows: moves their ids aside, so that none is added to them any more, and answers how many each has. Done again, or by
/// a reporter that has lost the lease meanwhile, it changes nothing, also when there was no id to move.
///
/// KEYS: for each window its ids, where they go, and what tells that it was closed. ARGV: seconds to keep the latter two.
const CLOSE: &str = r"
local counts = {}
for i = 1, #KEYS, 3 do
  local ids, closed, closing = KEYS[i], KEYS[i + 1], KEYS[i + 2]
  local first = redis.call('SET', closing, 1, 'NX', 'EX', ARGV[1])
  if first and redis.call('EXISTS', closed) == 0 and redis.call('EXISTS', ids) == 1 then
    redis.call('RENAME', ids, closed)
    redis.call('EXPIRE', closed, ARGV[1])
  end
  counts[#counts + 1] = redis.call('SCARD', closed)
end
return counts";

/// Removes the ids of closed windows. That they were closed is remembered for longer: a reporter that was paused before it closed
/// one of them would otherwise close what came since.
///
/// KEYS: for each window its closed ids, and what tells that it was closed. ARGV: seconds to remember it.
const REMOVE: &str = r"
for i = 1, #KEYS, 2 do
  redis.call('SET', KEYS[i + 1], 1, 'EX', ARGV[1])
  redis.call('UNLINK', KEYS[i])
end
return 1";

/// How long it is remembered that a window was closed: longer than a reporter is paused.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Puts ids aside that came after their window was final, and answers how many.
///
/// KEYS: for each window its ids, and where they go. ARGV: seconds to keep them.
const PUT_ASIDE: &str = r"
local moved = {}
for i = 1, #KEYS, 2 do
  local ids, late = KEYS[i], KEYS[i + 1]
  local before = redis.call('SCARD', late)
  if redis.call('EXISTS', ids) == 1 then
    redis.call('SUNIONSTORE', late, late, ids)
    redis.call('EXPIRE', late, ARGV[1])
    redis.call('UNLINK', ids)
  end
  moved[#moved + 1] = redis.call('SCARD', late) - before
end
return moved";

/// All Redis servers, in the order of `--redis-urls`.
#[derive(Clone)]
pub struct Store {
    /// The names of the keys.
    pub keys: Keys,
    servers: Arc<[Server]>,
}

impl Store {
    /// Connects lazily: a Redis that is not there yet is waited for.
    pub fn new(config: &RedisConfig, keys: Keys, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        let servers = config.urls.as_slice().iter();
        let servers = servers.map(|url| Server::new(url, config, health, metrics));
        Ok(Self {
            keys,
            servers: servers.collect::<anyhow::Result<_>>()?,
        })
    }

    /// All servers, in order.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The server of callback jobs, statistics, reports and the lease.
    pub fn first(&self) -> &Server {
        &self.servers[0]
    }

    /// The unique ids of each window: the sums over all servers.
    pub async fn counts(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let keys = &self.keys;
        let counts = self.on_all(windows, |pipe, window| {
            pipe.scard(keys.ids(window))
                .scard(keys.closed(window))
                .exists(keys.closing(window))
        });
        // What came since a window was closed came too late.
        let count = |answers: &[u64]| match answers {
            [ids, _, 0] => *ids,
            [_, closed, _] => *closed,
            _ => 0,
        };
        let counts = counts.await?.into_iter();
        Ok(sums(
            windows.len(),
            counts.map(|counts| counts.chunks(3).map(count).collect()),
        ))
    }

    /// How many ids came after each of these windows was final, as far as they are kept.
    pub async fn late(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let counts = self.on_all(windows, |pipe, window| pipe.scard(self.keys.late(window)));
        Ok(sums(windows.len(), counts.await?))
    }

    /// Closes windows: nothing is added to them any more. Answers the unique ids of each.
    pub async fn close(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let keys = |window| {
            [
                self.keys.ids(window),
                self.keys.closed(window),
                self.keys.closing(window),
            ]
        };
        let kept = Duration::from_secs(UNREPORTED_SECONDS);
        let closed = self.script_on_all(CLOSE, windows, keys, kept).await;
        let closed: Vec<Vec<u64>> = closed.into_iter().collect::<RedisResult<_>>()?;
        Ok(sums(windows.len(), closed))
    }

    /// Removes closed windows, which are final.
    pub async fn remove_closed(&self, windows: &[Window]) -> RedisResult<()> {
        let keys = |window| [self.keys.closed(window), self.keys.closing(window)];
        let removed = self.script_on_all::<u8, 2>(REMOVE, windows, keys, REMEMBERED).await;
        removed.into_iter().try_for_each(|removed| removed.map(drop))
    }

    /// Puts aside what came after these windows were final. Answers how many ids, on the servers that answered, and whether one
    /// did not.
    pub async fn put_aside(&self, windows: &[Window]) -> (Vec<u64>, RedisResult<()>) {
        let keys = |window| [self.keys.ids(window), self.keys.late(window)];
        let kept = Duration::from_secs(UNREPORTED_SECONDS);
        let moved: Vec<RedisResult<Vec<u64>>> = self.script_on_all(PUT_ASIDE, windows, keys, kept).await;
        let (moved, failed): (Vec<_>, Vec<_>) = moved.into_iter().partition(Result::is_ok);
        let moved = sums(windows.len(), moved.into_iter().flatten());
        (moved, failed.into_iter().try_for_each(|failed| failed.map(drop)))
    }

    /// Runs a script for windows on every server: with so many keys for each window, and a time in seconds.
    async fn script_on_all<T: FromRedisValue, const N: usize>(
        &self,
        script: &str,
        windows: &[Window],
        keys: impl Fn(Window) -> [String; N],
        time: Duration,
    ) -> Vec<RedisResult<T>> {
        let script = Script::new(script);
        let mut invocation = script.arg(time.as_secs());
        for key in windows.iter().flat_map(|window| keys(*window)) {
            invocation.key(key);
        }
        future::join_all(self.servers.iter().map(|server| server.script(&invocation))).await
    }

    /// For each window how many requests, and how many of them duplicates, as far as the component's statistics have arrived and
    /// have not expired.
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
        let found: Vec<[Option<u64>; 2]> = self.first().run(&pipe).await?;
        Ok(found
            .into_iter()
            .map(|found| found.map(Option::unwrap_or_default))
            .collect())
    }

    /// What was reported of each window.
    pub async fn reports(&self, windows: &[Window]) -> RedisResult<Vec<Option<Report>>> {
        let mut reports = Vec::with_capacity(windows.len());
        for windows in windows.chunks(BATCH) {
            let mut hmget = redis::cmd("HMGET");
            hmget.arg(self.keys.reports(windows[0].length()));
            for window in windows {
                hmget.arg(window.start());
            }
            let values: Vec<Option<String>> = self.first().command(&hmget).await?;
            reports.extend(values.iter().map(|json| Report::from_json(json.as_deref()?).ok()));
        }
        Ok(reports)
    }

    /// Lets the ids of windows expire after `after`.
    pub async fn expire_ids(&self, windows: &[Window], after: Duration) -> RedisResult<()> {
        let seconds = after.as_secs().cast_signed();
        self.on_all(windows, |pipe, window| pipe.expire(self.keys.ids(window), seconds))
            .await
            .map(drop)
    }

    /// Commands for each window, on every server; answers by server.
    async fn on_all(
        &self,
        windows: &[Window],
        commands: impl Fn(&mut Pipeline, Window) -> &mut Pipeline,
    ) -> RedisResult<Vec<Vec<u64>>> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for window in windows {
            commands(&mut pipe, *window);
        }
        future::try_join_all(self.servers.iter().map(|server| server.run(&pipe))).await
    }

    /// All keys that begin with `prefix`, on every server.
    pub async fn scan(&self, prefix: &str) -> RedisResult<Vec<String>> {
        let mut found = Vec::new();
        for server in self.servers.iter() {
            let mut cursor = 0u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{prefix}*"))
                    .arg("COUNT")
                    .arg(1000);
                let (next, keys): (u64, Vec<String>) = server.command(&scan).await?;
                found.extend(keys);
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(found)
    }

    /// Asks every server whether it is there.
    pub async fn ping(&self) {
        let ping = redis::cmd("PING");
        future::join_all(self.servers.iter().map(|server| server.command::<String>(&ping))).await;
    }
}

/// For each of so many windows the sum over all servers.
fn sums(windows: usize, by_server: impl IntoIterator<Item = Vec<u64>>) -> Vec<u64> {
    let mut sums = vec![0; windows];
    for counts in by_server {
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sums
}
