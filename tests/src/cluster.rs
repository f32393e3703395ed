//! A real Redis Cluster: its nodes are `redis-server` processes, put together by `redis-cli --cluster`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use tokio::task::spawn_blocking;

use crate::redis::RedisServer;
use crate::{net, wait};

/// For what the nodes have to agree on, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of one cluster. Dropping it kills them.
pub struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    /// So many primaries, each with so many replicas; the primaries come first.
    ///
    /// # Errors
    /// When there is no `redis-server` or `redis-cli`, or the nodes do not come together.
    pub async fn start(primaries: usize, replicas: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..primaries * (1 + replicas) {
            nodes.push(node().await?);
        }
        let cluster = Self { nodes };
        let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_string()).collect();
        let replicas = replicas.to_string();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", &replicas, "--cluster-yes"]);
        cli(&create).await?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Ends all nodes properly.
    ///
    /// # Errors
    /// When one does not end within seconds.
    pub async fn stop(&self) -> Result<()> {
        for node in &self.nodes {
            node.stop().await?;
        }
        Ok(())
    }

    /// Starts a node again that was killed, with what it knew.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].restart().await
    }

    /// All of them, for `redis_urls`.
    #[must_use]
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(RedisServer::url).collect();
        urls.join(",")
    }

    /// A connection that finds each key.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn connection(&self) -> Result<ClusterConnection> {
        let client = ClusterClient::builder(self.nodes.iter().map(RedisServer::url))
            .connection_timeout(PATIENCE)
            .response_timeout(PATIENCE)
            .build()?;
        Ok(client.get_async_connection().await?)
    }

    /// Moves so many slots from one node to another, while all goes on.
    ///
    /// # Errors
    /// When that fails.
    pub async fn reshard(&self, slots: u16, from: usize, to: usize) -> Result<()> {
        let (from, to) = (self.id(from).await?, self.id(to).await?);
        let (address, slots) = (self.nodes[0].address().to_string(), slots.to_string());
        let reshard = [
            "--cluster",
            "reshard",
            &address,
            "--cluster-from",
            &from,
            "--cluster-to",
            &to,
        ];
        let how = ["--cluster-slots", &slots, "--cluster-yes"];
        cli(&[&reshard[..], &how].concat()).await
    }

    /// Brings all keys of a server by itself here.
    ///
    /// # Errors
    /// When that fails.
    pub async fn import(&self, server: &RedisServer) -> Result<()> {
        let (to, from) = (self.nodes[0].address().to_string(), server.address().to_string());
        cli(&["--cluster", "import", &to, "--cluster-from", &from]).await
    }

    async fn id(&self, node: usize) -> Result<String> {
        let mut my_id = redis::cmd("CLUSTER");
        my_id.arg("MYID");
        Ok(my_id.query_async(&mut self.nodes[node].connection().await?).await?)
    }

    /// How many keys each node has.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn sizes(&self) -> Result<Vec<u64>> {
        let mut sizes = Vec::new();
        for node in &self.nodes {
            sizes.push(redis::cmd("DBSIZE").query_async(&mut node.connection().await?).await?);
        }
        Ok(sizes)
    }

    async fn wait_ready(&self) -> Result<()> {
        let mut info = redis::cmd("CLUSTER");
        info.arg("INFO");
        for node in &self.nodes {
            wait::until("the cluster", PATIENCE, || async {
                let said: String = info.query_async(&mut node.connection().await.ok()?).await.ok()?;
                said.contains("cluster_state:ok").then_some(())
            })
            .await
            .with_context(|| node.process().log())?;
        }
        Ok(())
    }
}

async fn node() -> Result<RedisServer> {
    let bus = net::free_address()?.port().to_string();
    let mut options = RedisServer::options();
    for argument in [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "2000",
        "--repl-diskless-sync-delay",
        "0",
    ] {
        options = options.argument(argument);
    }
    options.start().await
}

async fn cli(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("redis-cli");
    command.args(arguments);
    let output = spawn_blocking(move || command.output()).await?.context("redis-cli")?;
    ensure!(
        output.status.success(),
        "redis-cli: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
