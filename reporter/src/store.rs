//! The connections to Redis, one a server, which reconnect by themselves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, Pipeline, RedisResult};
use verve_protocol::{Keys, RedisUrl, RedisUrls, Window};

use crate::health::{Dependency, Health};

/// For opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the answer to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

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
}

impl Store {
    /// Connects lazily: a Redis that is not there yet is waited for.
    pub fn new(urls: &RedisUrls, keys: Keys, health: &Arc<Health>) -> anyhow::Result<Self> {
        let servers = urls.as_slice().iter().map(|url| Server::new(url, health));
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
        let mut sums = vec![0; windows.len()];
        for counts in self.on_all(windows, |pipe, key| pipe.scard(key)).await? {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        Ok(sums)
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

impl Server {
    fn new(url: &RedisUrl, health: &Arc<Health>) -> anyhow::Result<Self> {
        let dependency = Dependency::new(format!("Redis {url}"), health);
        Self::open(url, RESPONSE_TIMEOUT, dependency)
    }

    fn open(url: &RedisUrl, response_timeout: Duration, dependency: Dependency) -> anyhow::Result<Self> {
        let client = redis::Client::open(url.secret()).with_context(|| format!("Redis {url}"))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout))
            .set_number_of_retries(0);
        let connection = ConnectionManager::new_lazy_with_config(client, config)?;
        Ok(Self {
            url: url.clone(),
            connection,
            dependency,
        })
    }

    /// A connection of its own to the same server, for commands that block for up to `longest`.
    pub fn for_blocking(&self, longest: Duration) -> anyhow::Result<Self> {
        Self::open(&self.url, longest + RESPONSE_TIMEOUT, self.dependency.clone())
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> RedisResult<T> {
        let result = command.query_async(&mut self.connection.clone()).await;
        self.observe(result)
    }

    /// Runs a pipeline, atomically if it says so.
    pub async fn run<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        let result = pipe.query_async(&mut self.connection.clone()).await;
        self.observe(result)
    }

    /// Runs a script.
    pub async fn script<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> RedisResult<T> {
        let result = script.invoke_async(&mut self.connection.clone()).await;
        self.observe(result)
    }

    fn observe<T>(&self, result: RedisResult<T>) -> RedisResult<T> {
        match &result {
            Ok(_) => self.dependency.up(),
            // What Redis answers to one command says nothing of Redis; the caller knows what to make of it.
            Err(error) if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => {
                self.dependency.down(error)
            }
            Err(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => self.dependency.down(error),
            Err(_) => {}
        }
        result
    }
}
