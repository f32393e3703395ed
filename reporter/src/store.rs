//! The connections to Redis, one a server, which reconnect by themselves.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, Pipeline, RedisError, RedisResult, Script};
use verve_protocol::{Keys, RedisUrl, RedisUrls, Report, Window};

use crate::health::{Dependency, Health};
use crate::metrics::{Metrics, RedisMetrics};

/// For opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the answer to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most reports asked for at once, so that other commands need not wait for long.
const BATCH: usize = 1000;

/// Removes sets, and answers how many members each had more than were counted. What was counted is only subtracted the first time
/// that a set is removed: a second reporter that does the same sees what came since.
///
/// KEYS: for each set its key, and that which tells of its removal. ARGV: seconds to keep the latter, then for each set how many
/// were counted.
const REMOVE: &str = r"
local more = {}
for i = 1, #KEYS / 2 do
  local set, removed, counted = KEYS[2 * i - 1], KEYS[2 * i], tonumber(ARGV[i + 1])
  if counted > 0 and not redis.call('SET', removed, 1, 'NX', 'EX', ARGV[1]) then counted = 0 end
  more[i] = math.max(redis.call('SCARD', set) - counted, 0)
  redis.call('UNLINK', set)
end
return more";

/// How long a removal is remembered: longer than a reporter is paused.
const REMOVED: Duration = Duration::from_secs(3600);

/// All Redis servers, in the order of `--redis-urls`.
#[derive(Clone)]
pub struct Store {
    /// The names of the keys.
    pub keys: Keys,
    servers: Arc<[Server]>,
}

/// One Redis server.
#[derive(Clone)]
pub struct Server {
    url: RedisUrl,
    connection: ConnectionManager,
    dependency: Dependency,
    metrics: RedisMetrics,
    /// Whether its commands wait, so that their times say nothing.
    blocks: bool,
}

impl Store {
    /// Connects lazily: a Redis that is not there yet is waited for.
    pub fn new(urls: &RedisUrls, keys: Keys, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        let servers = urls.as_slice().iter().map(|url| Server::new(url, health, metrics));
        Ok(Self {
            keys,
            servers: servers.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The server of callback jobs, statistics, reports and the lease.
    pub fn first(&self) -> &Server {
        &self.servers[0]
    }

    /// The unique ids of each window: the sums over all servers.
    pub async fn counts(&self, windows: &[Window]) -> RedisResult<Vec<u64>> {
        let counts = self.counts_by_server(windows).await?;
        Ok(counts.iter().map(|counts| counts.iter().sum()).collect())
    }

    /// The unique ids of each window on each server.
    pub async fn counts_by_server(&self, windows: &[Window]) -> RedisResult<Vec<Vec<u64>>> {
        let counts = self.on_all(windows, |pipe, key| pipe.scard(key)).await?;
        let of = |i: usize| counts.iter().filter_map(|counts| counts.get(i).copied()).collect();
        Ok((0..windows.len()).map(of).collect())
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

    /// Removes the ids of windows, of which so many were counted on each server. Answers how many there were more, on the
    /// servers that answered, and whether one did not.
    pub async fn remove_ids(&self, windows: &[(Window, Vec<u64>)]) -> (Vec<u64>, RedisResult<()>) {
        let script = Script::new(REMOVE);
        let removals = self.servers.iter().enumerate().map(async |(i, server)| {
            let mut remove = script.prepare_invoke();
            remove.arg(REMOVED.as_secs());
            for (window, counted) in windows {
                remove.key(self.keys.ids(*window)).key(self.keys.removed(*window));
                remove.arg(counted.get(i).copied().unwrap_or_default());
            }
            server.script::<Vec<u64>>(&remove).await
        });
        let (mut more, mut result) = (vec![0; windows.len()], Ok(()));
        for removed in future::join_all(removals).await {
            match removed {
                Ok(removed) => more.iter_mut().zip(removed).for_each(|(sum, n)| *sum += n),
                Err(error) => result = Err(error),
            }
        }
        (more, result)
    }

    /// Lets the ids of windows expire after `after`.
    pub async fn expire_ids(&self, windows: &[Window], after: Duration) -> RedisResult<()> {
        let seconds = after.as_secs().cast_signed();
        self.on_all(windows, |pipe, key| pipe.expire(key, seconds))
            .await
            .map(drop)
    }

    /// One command for each window's set of ids, on every server; answers by server.
    async fn on_all(
        &self,
        windows: &[Window],
        command: impl Fn(&mut Pipeline, String) -> &mut Pipeline,
    ) -> RedisResult<Vec<Vec<u64>>> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for window in windows {
            command(&mut pipe, self.keys.ids(*window));
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

/// Whether the error tells that Redis is not reachable, which its connection says, and not what it answers to one command.
pub fn is_away(error: &RedisError) -> bool {
    let refused = error.kind() == redis::ErrorKind::AuthenticationFailed;
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refused
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis {}", self.url)
    }
}

impl Server {
    fn new(url: &RedisUrl, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        let dependency = Dependency::new(format!("Redis {url}"), health);
        Ok(Self {
            url: url.clone(),
            connection: connect(url, RESPONSE_TIMEOUT)?,
            dependency,
            metrics: metrics.redis(&url.to_string()),
            blocks: false,
        })
    }

    /// A connection of its own to the same server, for commands that block for up to `longest`.
    pub fn for_blocking(&self, longest: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            connection: connect(&self.url, longest + RESPONSE_TIMEOUT)?,
            blocks: true,
            ..self.clone()
        })
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> RedisResult<T> {
        self.observe(command.query_async(&mut self.connection.clone())).await
    }

    /// Runs a pipeline, atomically if it says so.
    pub async fn run<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        self.observe(pipe.query_async(&mut self.connection.clone())).await
    }

    /// Runs a script.
    pub async fn script<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> RedisResult<T> {
        self.observe(script.invoke_async(&mut self.connection.clone())).await
    }

    async fn observe<T>(&self, asked: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let start = Instant::now();
        let result = asked.await;
        if !self.blocks {
            self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        }
        match &result {
            Ok(_) => self.dependency.up(),
            Err(error) if is_away(error) => {
                self.metrics.away.inc();
                self.dependency.down(error);
            }
            // What Redis answers to one command says nothing of Redis; the caller knows what to make of it.
            Err(_) => drop(self.metrics.refused.inc()),
        }
        result
    }
}

/// Connects lazily, and again whenever the connection is lost.
fn connect(url: &RedisUrl, response_timeout: Duration) -> anyhow::Result<ConnectionManager> {
    let client = redis::Client::open(url.secret()).with_context(|| format!("Redis {url}"))?;
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(response_timeout))
        .set_number_of_retries(0);
    Ok(ConnectionManager::new_lazy_with_config(client, config)?)
}
