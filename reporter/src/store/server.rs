//! One Redis server, and the connection to it, which is made anew by itself.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, Pipeline, RedisError, RedisResult, TlsCertificates};
use verve_protocol::{Partitions, RedisUrl, RedisUrls};

use crate::health::{Dependency, Health};
use crate::metrics::{Metrics, RedisMetrics};

/// For opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the answer to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Errors of a server that has become a replica: its address may lead to the new primary already, for new connections.
const MOVED_ON: [&str; 2] = ["READONLY", "MASTERDOWN"];
/// How often a connection is renewed for such an error.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Where the Redis servers are.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    pub urls: RedisUrls,
    /// Certificates for those that speak TLS; without them those of this machine.
    pub tls: Option<TlsCertificates>,
    /// How many sets the ids of a window are in.
    pub partitions: Partitions,
}

impl RedisConfig {
    /// How to connect to one of them.
    fn client(&self, url: &RedisUrl) -> RedisResult<Client> {
        match &self.tls {
            Some(tls) if url.is_tls() => Client::build_with_tls(url.secret(), tls.clone()),
            _ => Client::open(url.secret()),
        }
    }

    /// Says what is wrong with the certificates.
    ///
    /// # Errors
    /// If they are not readable, or no server speaks TLS. Their content is not shown.
    pub fn check(&self) -> Result<(), String> {
        let Some(url) = self.urls.as_slice().iter().find(|url| url.is_tls()) else {
            return match self.tls {
                Some(_) => Err("certificates are for rediss://, of which there is none".to_owned()),
                None => Ok(()),
            };
        };
        self.client(url)
            .map(drop)
            .map_err(|error| format!("not a certificate, or not its key, in PEM: {error}"))
    }
}

/// One Redis server.
#[derive(Clone)]
pub struct Server {
    url: RedisUrl,
    client: Client,
    connection: Arc<Mutex<Connection>>,
    dependency: Dependency,
    metrics: RedisMetrics,
    /// Whether its commands wait, so that their times say nothing.
    blocks: bool,
}

/// What a server is reached by.
struct Connection {
    manager: ConnectionManager,
    response_timeout: Duration,
    made: Instant,
}

impl Connection {
    fn new(client: &Client, response_timeout: Duration) -> anyhow::Result<Arc<Mutex<Self>>> {
        Ok(Arc::new(Mutex::new(Self {
            manager: connect(client, response_timeout)?,
            response_timeout,
            made: Instant::now(),
        })))
    }
}

/// Whether the error tells that Redis is not reachable, which its connection says, and not what it answers to one command.
fn is_away(error: &RedisError) -> bool {
    let refused = error.kind() == redis::ErrorKind::AuthenticationFailed;
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refused
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis {}", self.url)
    }
}

impl Server {
    /// One of those of `config`, which need not be there yet.
    pub fn new(url: &RedisUrl, config: &RedisConfig, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        let client = config.client(url).with_context(|| format!("Redis {url}"))?;
        let dependency = Dependency::new(format!("Redis {url}"), health);
        Ok(Self {
            url: url.clone(),
            connection: Connection::new(&client, RESPONSE_TIMEOUT)?,
            client,
            dependency,
            metrics: metrics.redis(&url.to_string()),
            blocks: false,
        })
    }

    /// A connection of its own to the same server, for commands that block for up to `longest`.
    pub fn for_blocking(&self, longest: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Connection::new(&self.client, longest + RESPONSE_TIMEOUT)?,
            blocks: true,
            ..self.clone()
        })
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> RedisResult<T> {
        self.observe(command.query_async(&mut self.connection())).await
    }

    /// Runs a pipeline, atomically if it says so.
    pub async fn run<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        self.observe(pipe.query_async(&mut self.connection())).await
    }

    /// Runs a script.
    pub async fn script<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> RedisResult<T> {
        self.observe(script.invoke_async(&mut self.connection())).await
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
            Err(error) => {
                self.metrics.refused.inc();
                // Of a pipeline: each command has an answer of its own.
                let answers = error.clone().into_server_errors();
                let (kind, detail) = match answers.as_deref().and_then(<[_]>::first) {
                    Some((_, error)) => (error.code(), error.details().unwrap_or_default().to_owned()),
                    None => ("ERR", error.to_string()),
                };
                // The caller makes the group, or has made it; what was waited for is gone.
                if !["NOGROUP", "BUSYGROUP", "UNBLOCKED"].contains(&kind) {
                    if MOVED_ON.contains(&kind) {
                        self.renew();
                    }
                    self.dependency.refuses(kind, format!("{kind}: {detail}"));
                }
            }
        }
        result
    }

    /// Opens a new connection in place of this one: its address may lead to another server by now.
    fn renew(&self) {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.made.elapsed() < RENEW_EVERY {
            return;
        }
        // Else the one that is there goes on.
        if let Ok(manager) = connect(&self.client, connection.response_timeout) {
            (connection.manager, connection.made) = (manager, Instant::now());
        }
    }

    fn connection(&self) -> ConnectionManager {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.manager.clone()
    }
}

/// Connects lazily, and again whenever the connection is lost.
fn connect(client: &Client, response_timeout: Duration) -> anyhow::Result<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(response_timeout))
        .set_number_of_retries(0);
    Ok(ConnectionManager::new_lazy_with_config(client.clone(), config)?)
}
