//! Redis, a server or a cluster, and the connection to it, which is made anew by itself.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult,
    TlsCertificates, Value,
};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};
use tokio::time::Instant;
use verve_protocol::{Partitions, RedisUrl, RedisUrls};

use crate::health::{Dependency, Health};
use crate::metrics::{Metrics, RedisMetrics};

/// For opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the answer to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Errors of a server that has become a replica: its address may lead to the new primary already, for new connections.
const MOVED_ON: [&str; 2] = ["READONLY", "MASTERDOWN"];
/// How often a command to a cluster is sent again, to wherever a slot has moved.
const CLUSTER_RETRIES: u32 = 5;
/// The oldest version of Redis that has what the component and the reporter ask of it: `EXPIRE … NX`.
pub const OLDEST: u32 = 7;
/// How long a node of a cluster is held to be away after it did not answer: longer than its next answer may take.
const MISSED: Duration = Duration::from_secs(6);
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

/// Redis: one server, or a cluster.
#[derive(Clone)]
pub struct Server {
    config: RedisConfig,
    connection: Arc<Connection>,
    dependency: Dependency,
    metrics: RedisMetrics,
    /// Whether its commands wait, so that their times say nothing.
    blocks: bool,
    /// What answers in its place, if it is simulated.
    simulated: Option<Arc<dyn Commands>>,
}

/// What Redis is reached by.
struct Connection {
    response_timeout: Duration,
    /// Nothing until it is known whether there is a cluster.
    link: AsyncMutex<Option<Link>>,
    /// When it was last renewed.
    renewed: Mutex<Instant>,
    /// When a node of a cluster was last found away.
    missed: Mutex<Option<Instant>>,
}

impl Connection {
    fn new(response_timeout: Duration, simulated: Option<Arc<dyn Commands>>) -> Arc<Self> {
        Arc::new(Self {
            response_timeout,
            link: AsyncMutex::new(simulated.map(Link::Simulated)),
            renewed: Mutex::new(Instant::now()),
            missed: Mutex::default(),
        })
    }
}

/// A connection of one kind or the other.
#[derive(Clone)]
enum Link {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
    /// None, but something that answers as one would.
    Simulated(Arc<dyn Commands>),
}

/// Runs commands in place of a connection.
pub trait Commands: Send + Sync {
    /// Runs commands one after the other, each with its arguments, and answers each; or fails as connections do.
    fn run(&self, commands: Vec<Vec<String>>) -> RedisFuture<'static, Vec<Value>>;
}

/// A command with its arguments.
fn words(command: &Cmd) -> Vec<String> {
    let words = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        // A cursor, where a scan begins.
        _ => "0".to_owned(),
    });
    words.collect()
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(server) => server.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
            Self::Simulated(simulated) => {
                let answers = simulated.run(vec![words(cmd)]);
                async move { answers.await?.pop().unwrap_or(Value::Nil).extract_error() }.boxed()
            }
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
            Self::Simulated(simulated) => {
                let answers = simulated.run(pipeline.cmd_iter().map(words).collect());
                let is_transaction = pipeline.is_transaction();
                async move {
                    let answers = answers.await?;
                    Ok(if is_transaction {
                        vec![Value::Array(answers)]
                    } else {
                        answers
                    })
                }
                .boxed()
            }
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(server) => server.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
            Self::Simulated(_) => 0,
        }
    }
}

/// Whether the error tells that Redis is not reachable, which its connection says, and not what it answers to one command.
fn is_away(error: &RedisError) -> bool {
    let refused = error.kind() == redis::ErrorKind::AuthenticationFailed;
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refused || is_nowhere(error)
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis {}", self.config.urls)
    }
}

impl Server {
    /// That of `config`, which need not be there yet, or what is `simulated` in its place.
    pub fn new(
        config: &RedisConfig,
        simulated: Option<Arc<dyn Commands>>,
        health: &Arc<Health>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        for url in config.urls.as_slice() {
            config.client(url).with_context(|| format!("Redis {url}"))?;
        }
        Ok(Self {
            connection: Connection::new(RESPONSE_TIMEOUT, simulated.clone()),
            dependency: Dependency::new(format!("Redis {}", config.urls), health),
            metrics: metrics.redis(&config.urls.to_string()),
            config: config.clone(),
            blocks: false,
            simulated,
        })
    }

    /// Whether it is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        self.config.urls.first().is_tls()
    }

    /// A connection of its own to the same Redis, for commands that block for up to `longest`.
    pub fn for_blocking(&self, longest: Duration) -> Self {
        Self {
            connection: Connection::new(longest + RESPONSE_TIMEOUT, self.simulated.clone()),
            blocks: true,
            ..self.clone()
        }
    }

    /// Runs one command.
    pub async fn command<T: FromRedisValue>(&self, command: &redis::Cmd) -> RedisResult<T> {
        self.observe(async { command.query_async(&mut self.link().await?).await })
            .await
    }

    /// Runs a pipeline, atomically if it says so.
    pub async fn run<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        self.observe(async { pipe.query_async(&mut self.link().await?).await })
            .await
    }

    /// Runs a script.
    pub async fn script<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> RedisResult<T> {
        self.observe(async { script.invoke_async(&mut self.link().await?).await })
            .await
    }

    /// What can be asked one node alone.
    ///
    /// # Errors
    /// If it is not known which nodes there are.
    pub async fn nodes(&self) -> RedisResult<Vec<Node<'_>>> {
        let link = match self.link().await {
            // Which says nothing of whether Redis is there now.
            Ok(link) => link,
            Err(error) => return self.observe(async { Err(error) }).await,
        };
        let node = |url: Option<RedisUrl>| Node {
            server: self,
            url,
            connection: OnceCell::new(),
        };
        match link {
            Link::Server(_) | Link::Simulated(_) => Ok(vec![node(None)]),
            Link::Cluster(_) => {
                let slots: Vec<Vec<Value>> = self.command(redis::cmd("CLUSTER").arg("SLOTS")).await?;
                let primaries = slots.iter().filter_map(|range| {
                    let primary: Vec<Value> = redis::from_redis_value_ref(range.get(2)?).ok()?;
                    // Nothing where a node means the host that was asked.
                    let host: Option<String> = redis::from_redis_value_ref(primary.first()?).ok()?;
                    Some((
                        host.unwrap_or_default(),
                        redis::from_redis_value_ref(primary.get(1)?).ok()?,
                    ))
                });
                let primaries: BTreeSet<(String, u16)> = primaries.collect();
                let first = self.config.urls.first();
                let urls = primaries.iter().filter_map(|(host, port)| first.of_node(host, *port));
                Ok(urls.map(Some).map(node).collect())
            }
        }
    }

    async fn observe<T>(&self, asked: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let start = Instant::now();
        let result = asked.await;
        if !self.blocks {
            self.metrics.seconds.observe(start.elapsed().as_secs_f64());
        }
        match &result {
            Ok(_) if self.is_missing_a_node() => {}
            Ok(_) => self.dependency.up(),
            Err(error) if is_away(error) => {
                self.metrics.away.inc();
                if is_nowhere(error) && error.detail().is_none() {
                    self.dependency
                        .down("no node of the cluster that can be reached has the slots that are asked for");
                } else {
                    self.dependency.down(error);
                }
                self.miss_a_node().await;
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
                        self.renew(|link| matches!(link, Link::Server(_))).await;
                    }
                    self.dependency.refuses(kind, format!("{kind}: {detail}"));
                }
            }
        }
        result
    }

    /// Opens a new connection in place of one of this kind: the address may lead to another server by now, or the map of the cluster be
    /// another one.
    async fn renew(&self, is: impl Fn(&Link) -> bool) {
        let mut link = self.connection.link.lock().await;
        let mut renewed = self.connection.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() >= RENEW_EVERY && link.as_ref().is_some_and(is) {
            *renewed = Instant::now();
            // Made by the next command.
            *link = None;
        }
    }

    /// Notes that a command failed to reach its node of a cluster. The client may wait for ever for the nodes to agree on their slots,
    /// so it is made anew.
    async fn miss_a_node(&self) {
        if matches!(*self.connection.link.lock().await, Some(Link::Cluster(_))) {
            *self.connection.missed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.renew(|link| matches!(link, Link::Cluster(_))).await;
        }
    }

    /// Whether a node of a cluster was away a moment ago: then it is no news that others answer.
    fn is_missing_a_node(&self) -> bool {
        let missed = self.connection.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.is_some_and(|missed| missed.elapsed() < MISSED)
    }

    /// The connection. Without one, finds out whether there is a cluster.
    async fn link(&self) -> RedisResult<Link> {
        let mut link = self.connection.link.lock().await;
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        let made = self.connect().await?;
        *link = Some(made.clone());
        Ok(made)
    }

    /// Asks the named nodes, one after the other, whether they are of a cluster.
    async fn connect(&self) -> RedisResult<Link> {
        let urls = self.config.urls.as_slice();
        let mut failed = None;
        for url in urls {
            let client = self.config.client(url)?;
            let asked = async {
                let mut connection = connect(&client).await?;
                let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
                if let Some(version) = too_old(&info) {
                    tracing::warn!(
                        "{self} is version {version}, and Verve needs {OLDEST} or newer: sets of ids never expire"
                    );
                }
                let is_cluster = info.contains("cluster_enabled:1");
                RedisResult::Ok((connection, is_cluster))
            };
            match asked.await {
                Ok((connection, true)) => {
                    check_names(connection).await?;
                    return self.connect_to_cluster().await.map(Link::Cluster);
                }
                Ok((_, false)) if urls.len() == 1 => return self.connect_to_server(client).map(Link::Server),
                Ok((_, false)) => {
                    let what = "is no node of a cluster, but one of several in --redis-urls";
                    return Err((redis::ErrorKind::InvalidClientConfig, what).into());
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| (redis::ErrorKind::InvalidClientConfig, "no URL").into()))
    }

    async fn connect_to_cluster(&self) -> RedisResult<ClusterConnection> {
        let urls = self.config.urls.as_slice();
        if self.config.tls.is_some() {
            // The client takes them with another TLS library only.
            let what =
                "--redis-ca-file and the like are for one server; for a cluster, name the authority by SSL_CERT_FILE";
            return Err((redis::ErrorKind::InvalidClientConfig, what).into());
        }
        let builder = ClusterClient::builder(urls.iter().map(RedisUrl::secret))
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(self.connection.response_timeout)
            .retries(CLUSTER_RETRIES);
        builder.build()?.get_async_connection().await
    }

    /// Connects lazily, and again whenever the connection is lost.
    fn connect_to_server(&self, client: Client) -> RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.connection.response_timeout))
            .set_number_of_retries(0);
        ConnectionManager::new_lazy_with_config(client, config)
    }
}

/// One node of Redis, for what is not about one key.
pub struct Node<'a> {
    server: &'a Server,
    /// Where it is, if it is of a cluster.
    url: Option<RedisUrl>,
    /// By itself: the cluster's client would ask another node while this one is away.
    connection: OnceCell<MultiplexedConnection>,
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "Redis {url}, of a cluster"),
            None => self.server.fmt(f),
        }
    }
}

impl Node<'_> {
    /// Whether it is one of a cluster.
    pub const fn is_of_cluster(&self) -> bool {
        self.url.is_some()
    }

    /// Runs one command here.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let Some(url) = &self.url else {
            return self.server.command(command).await;
        };
        let asked = async {
            let connect = async || connect(&self.server.config.client(url)?).await;
            let connection = self.connection.get_or_try_init(connect).await?;
            command.query_async(&mut connection.clone()).await
        };
        self.server.observe(asked).await
    }
}

/// Whether the cluster's client has found no node.
fn is_nowhere(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::ClusterConnectionNotFound
}

/// Finds out whether the cluster prefers names, and a primary announces none: to the client such a node is nowhere, and it would not say so.
async fn check_names(mut connection: MultiplexedConnection) -> RedisResult<()> {
    let slots: RedisResult<Vec<Vec<Value>>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await;
    let is_unknown = |range: &Vec<Value>| {
        let primary = range.get(2).and_then(|node| node.as_sequence());
        matches!(primary.and_then(<[Value]>::first), Some(Value::BulkString(host)) if host == b"?")
    };
    // What else may be wrong the client finds out.
    if !slots.unwrap_or_default().iter().any(is_unknown) {
        return Ok(());
    }
    let detail = "the cluster prefers names, and nodes of it announce none: set cluster-announce-hostname, or another cluster-preferred-endpoint-type";
    Err((
        redis::ErrorKind::ClusterConnectionNotFound,
        "a node is nowhere",
        detail.to_owned(),
    )
        .into())
}

/// The version, by the answer to `INFO`, if that is too old.
fn too_old(info: &str) -> Option<&str> {
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))?
        .trim_end();
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major < OLDEST).then_some(version)
}

/// A connection to one server.
async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

#[cfg(test)]
mod tests {
    use super::too_old;

    #[test]
    fn a_version_that_is_too_old_is_told() {
        for (info, expected) in [
            (
                "# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n",
                Some("6.2.14"),
            ),
            ("redis_version:7.0.0\r\n", None),
            ("redis_version:255.255.255\r\n", None),
            ("redis_version:unstable\r\n", None),
            ("", None),
        ] {
            assert_eq!(too_old(info), expected, "{info}");
        }
    }
}
