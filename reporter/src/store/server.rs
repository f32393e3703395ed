//! Redis, a server or a cluster, with a connection that reconnects automatically.

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

/// The timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout for the answer to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Errors of a server that has become a replica.
/// New connections to its address may already lead to the new primary.
const MOVED_ON: [&str; 2] = ["READONLY", "MASTERDOWN"];
/// How often a command to a cluster is sent again after its slot has moved.
const CLUSTER_RETRIES: u32 = 5;
/// The oldest version of Redis that supports `EXPIRE … NX`.
/// The component and the reporter need it.
pub const OLDEST: u32 = 7;
/// How long a cluster node counts as unreachable after it did not answer.
/// This is longer than its next answer may take.
const MISSED: Duration = Duration::from_secs(6);
/// The shortest time between two renewals of a connection for such an error.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Where the Redis servers are.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    pub urls: RedisUrls,
    /// Certificates for servers with TLS. Without them, those of this machine apply.
    pub tls: Option<TlsCertificates>,
    /// How many sets hold the ids of a window.
    pub partitions: Partitions,
}

impl RedisConfig {
    /// Creates a client for one of the servers.
    fn client(&self, url: &RedisUrl) -> RedisResult<Client> {
        match &self.tls {
            Some(tls) if url.is_tls() => Client::build_with_tls(url.secret(), tls.clone()),
            _ => Client::open(url.secret()),
        }
    }

    /// Checks the certificates, and describes the problem if there is one.
    ///
    /// # Errors
    /// If they are not readable, or no server uses TLS. The error does not show their content.
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
    /// Whether its commands block, so that their times are not measured.
    blocks: bool,
    /// The simulation that answers instead of Redis, if Redis is simulated.
    simulated: Option<Arc<dyn Commands>>,
}

/// The connection to Redis, and its state.
struct Connection {
    response_timeout: Duration,
    /// `None` until it is known whether Redis is a cluster.
    link: AsyncMutex<Option<Link>>,
    /// When the connection was last renewed.
    renewed: Mutex<Instant>,
    /// When a node of a cluster was last found unreachable.
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

/// A connection of one of these kinds.
#[derive(Clone)]
enum Link {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
    /// No connection, but a simulation that answers like one.
    Simulated(Arc<dyn Commands>),
}

/// Runs commands instead of a connection.
pub trait Commands: Send + Sync {
    /// Runs commands in order, each with its arguments, and returns each answer.
    /// It fails like a connection.
    fn run(&self, commands: Vec<Vec<String>>) -> RedisFuture<'static, Vec<Value>>;
}

/// Returns a command and its arguments as words.
fn words(command: &Cmd) -> Vec<String> {
    let words = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        // A cursor, at the beginning of a scan.
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

/// Returns whether the error means that Redis is unreachable.
/// Such an error comes from the connection and is not the answer to one command.
pub fn is_away(error: &RedisError) -> bool {
    let refused = error.kind() == redis::ErrorKind::AuthenticationFailed;
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refused || is_nowhere(error)
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis {}", self.config.urls)
    }
}

impl Server {
    /// Creates the Redis of `config`, or the one that is `simulated` instead.
    /// It need not be reachable yet.
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

    /// Returns whether the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        self.config.urls.first().is_tls()
    }

    /// Returns a separate connection for commands that block for up to `longest`.
    /// It leads to the same Redis.
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

    /// Runs a pipeline, atomically if it is a transaction.
    pub async fn run<T: FromRedisValue>(&self, pipe: &Pipeline) -> RedisResult<T> {
        self.observe(async { pipe.query_async(&mut self.link().await?).await })
            .await
    }

    /// Runs a script.
    pub async fn script<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> RedisResult<T> {
        self.observe(async { script.invoke_async(&mut self.link().await?).await })
            .await
    }

    /// Returns the nodes, to run commands on each one alone.
    ///
    /// # Errors
    /// If the list of the nodes is not available.
    pub async fn nodes(&self) -> RedisResult<Vec<Node<'_>>> {
        let link = match self.link().await {
            // An existing connection does not show that Redis is reachable now.
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
                    // Empty if the node means the host that was asked.
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
                // In a pipeline, each command has its own answer.
                let answers = error.clone().into_server_errors();
                let (kind, detail) = match answers.as_deref().and_then(<[_]>::first) {
                    Some((_, error)) => (error.code(), error.details().unwrap_or_default().to_owned()),
                    None => ("ERR", error.to_string()),
                };
                // Not problems: the caller creates the group, the group exists, or the awaited key
                // is gone.
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

    /// Drops a connection of this kind, so that the next command opens a new one.
    /// Its address may lead to another server by now, or the map of the cluster may have changed.
    async fn renew(&self, is: impl Fn(&Link) -> bool) {
        let mut link = self.connection.link.lock().await;
        let mut renewed = self.connection.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() >= RENEW_EVERY && link.as_ref().is_some_and(is) {
            *renewed = Instant::now();
            // The next command connects.
            *link = None;
        }
    }

    /// Notes that a command did not reach its cluster node, and renews the client.
    /// The client may wait for ever for the nodes to agree on their slots.
    async fn miss_a_node(&self) {
        if matches!(*self.connection.link.lock().await, Some(Link::Cluster(_))) {
            *self.connection.missed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.renew(|link| matches!(link, Link::Cluster(_))).await;
        }
    }

    /// Returns whether a cluster node was unreachable a moment ago.
    /// Then answers of other nodes do not mean that Redis is reachable again.
    fn is_missing_a_node(&self) -> bool {
        let missed = self.connection.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.is_some_and(|missed| missed.elapsed() < MISSED)
    }

    /// Returns the connection. Without one, finds out whether Redis is a cluster.
    async fn link(&self) -> RedisResult<Link> {
        let mut link = self.connection.link.lock().await;
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        let made = self.connect().await?;
        *link = Some(made.clone());
        Ok(made)
    }

    /// Connects: asks the named nodes in order whether they belong to a cluster.
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
            // The cluster's client accepts certificates only with another TLS library.
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

/// One node of Redis, for commands that do not concern one key.
pub struct Node<'a> {
    server: &'a Server,
    /// Its address, if it belongs to a cluster.
    url: Option<RedisUrl>,
    /// A separate connection.
    /// The cluster's client would ask another node while this one is unreachable.
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
    /// Returns whether it belongs to a cluster.
    pub const fn is_of_cluster(&self) -> bool {
        self.url.is_some()
    }

    /// Runs one command on this node.
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

/// Returns whether the cluster's client has found no node.
fn is_nowhere(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::ClusterConnectionNotFound
}

/// Fails if the cluster prefers names, and a primary announces none.
/// The client does not find such a node, and does not report that.
async fn check_names(mut connection: MultiplexedConnection) -> RedisResult<()> {
    let slots: RedisResult<Vec<Vec<Value>>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await;
    let is_unknown = |range: &Vec<Value>| {
        let primary = range.get(2).and_then(|node| node.as_sequence());
        matches!(primary.and_then(<[Value]>::first), Some(Value::BulkString(host)) if host == b"?")
    };
    // The client finds all other problems.
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

/// Returns the version in the answer to `INFO`, if it is too old.
fn too_old(info: &str) -> Option<&str> {
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))?
        .trim_end();
    let major: u32 = version.split('.').next()?.parse().ok()?;
    (major < OLDEST).then_some(version)
}

/// Opens a connection to one server.
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
    fn a_version_that_is_too_old_is_reported() {
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
