//! A real Redis Cluster.
//!
//! Its nodes are `redis-server` processes. `redis-cli --cluster` joins them to a cluster.

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::RedisResult;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use tokio::task::spawn_blocking;
use verve_protocol::slot::SLOTS;

use crate::link::Link;
use crate::redis::{Options, RedisServer};
use crate::{net, wait};

/// How long the nodes may take to agree, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of one cluster. Dropping it kills them.
pub struct Cluster {
    nodes: Vec<RedisServer>,
    /// The links of each node. Empty if the nodes are reached directly.
    links: Vec<Links>,
}

/// The links to one node.
struct Links {
    /// Used by clients, and by the replica of the node.
    clients: Link,
    /// Used by the other nodes, for the cluster bus.
    bus: Link,
    /// The source address of the connections that the node opens.
    source: IpAddr,
}

impl Cluster {
    /// Starts a cluster of `primaries` primaries with `replicas` replicas each.
    ///
    /// The order of the nodes is: all primaries, then the replicas in the order of their primaries.
    ///
    /// # Errors
    /// Fails if there is no `redis-server` or `redis-cli`, or if the nodes do not form a cluster.
    pub async fn start(primaries: usize, replicas: usize) -> Result<Self> {
        Self::start_with(RedisServer::options(), primaries, replicas).await
    }

    /// Starts a cluster as [`Self::start`] does, with these options for each node.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_with(options: Options, primaries: usize, replicas: usize) -> Result<Self> {
        Self::start_each(vec![options; primaries * (1 + replicas)], replicas).await
    }

    /// Starts a cluster as [`Self::start`] does, with one node for each of the options.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn start_each(options: Vec<Options>, replicas: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for options in options {
            nodes.push(node(options).await?);
        }
        Self::of(nodes, Vec::new(), replicas).await
    }

    /// Starts a cluster as [`Self::start`] does, with each node behind links.
    ///
    /// As behind a NAT, the nodes announce other ports than those they listen on. They also
    /// announce a hostname.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub async fn behind_links(primaries: usize, replicas: usize) -> Result<Self> {
        let (mut nodes, mut links) = (Vec::new(), Vec::new());
        for number in 1..=primaries * (1 + replicas) {
            let [port, bus] = [net::free_address()?, net::free_address()?];
            let (clients_link, bus_link) = (Link::start(port).await?, Link::start(bus).await?);
            let source = IpAddr::from([127, 0, 1, u8::try_from(number)?]);
            let mut options = RedisServer::options().port(port.port());
            for (name, value) in [
                ("--cluster-port", bus.port().to_string()),
                ("--cluster-announce-port", clients_link.address().port().to_string()),
                ("--cluster-announce-bus-port", bus_link.address().port().to_string()),
                ("--cluster-announce-hostname", "localhost".to_owned()),
                ("--cluster-preferred-endpoint-type", "hostname".to_owned()),
                ("--bind-source-addr", source.to_string()),
            ] {
                options = options.argument(name).argument(&value);
            }
            nodes.push(of_cluster(options).start().await?);
            links.push(Links {
                clients: clients_link,
                bus: bus_link,
                source,
            });
        }
        Self::of(nodes, links, replicas).await
    }

    async fn of(nodes: Vec<RedisServer>, links: Vec<Links>, replicas: usize) -> Result<Self> {
        let primaries = nodes.len() / (1 + replicas);
        let mut cluster = Self { nodes, links };
        let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_string()).collect();
        let replicas = replicas.to_string();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", &replicas, "--cluster-yes"]);
        cli(&create).await?;
        cluster.wait_ready().await?;
        cluster.sort(primaries).await?;
        Ok(cluster)
    }

    /// Sorts the replicas in the order of their primaries.
    async fn sort(&mut self, primaries: usize) -> Result<()> {
        let ports: Vec<u16> = (0..primaries).map(|node| self.announced(node).port()).collect();
        let links = self.links.drain(..).map(Some).chain(iter::repeat_with(|| None));
        let mut placed = Vec::new();
        for (number, (node, links)) in self.nodes.drain(..).zip(links).enumerate() {
            let primary = primary_of(&node).await?;
            // The sort is stable, so the replicas of one primary keep their order.
            let place = match ports.iter().position(|port| primary == Some(*port)) {
                None => number,
                Some(place) => primaries + place,
            };
            placed.push((place, node, links));
        }
        placed.sort_by_key(|(place, ..)| *place);
        for (_, node, links) in placed {
            self.nodes.push(node);
            self.links.extend(links);
        }
        Ok(())
    }

    /// Returns the address that a node announces.
    fn announced(&self, node: usize) -> SocketAddr {
        let links = self.links.get(node);
        links.map_or_else(|| self.nodes[node].address(), |links| links.clients.address())
    }

    /// Isolates a node from clients and all other nodes, until [`Self::join`].
    pub fn isolate(&self, node: usize) {
        let source = self.links.get(node).map(|links| links.source);
        for (number, links) in self.links.iter().enumerate() {
            for link in [&links.clients, &links.bus] {
                match source {
                    Some(source) if number != node => link.hold_from(source),
                    _ => link.hold(),
                }
            }
        }
    }

    /// Holds the connections that a node opens to client ports of the others.
    ///
    /// This lasts until [`Self::join`]. The node no longer follows its primary. Everyone else still
    /// reaches the node.
    pub fn mute(&self, node: usize) {
        if let Some(source) = self.links.get(node).map(|links| links.source) {
            self.links.iter().for_each(|links| links.clients.hold_from(source));
        }
    }

    /// Ends all connections of clients and of its replica to a node.
    ///
    /// New ones end immediately, until [`Self::join`].
    pub fn cut(&self, node: usize) {
        if let Some(links) = self.links.get(node) {
            links.clients.cut();
        }
    }

    /// Reverts [`Self::isolate`], [`Self::mute`] and [`Self::cut`].
    pub fn join(&self) {
        for links in &self.links {
            links.clients.restore();
            links.bus.restore();
        }
    }

    /// Returns the nodes as separate servers.
    #[must_use]
    pub fn into_nodes(self) -> Vec<RedisServer> {
        self.nodes
    }

    /// Returns the nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Restarts a killed node with the data and the cluster state it had.
    ///
    /// # Errors
    /// Fails if the node does not start.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].restart().await
    }

    /// Kills the nodes that still run, and restarts all nodes.
    ///
    /// # Errors
    /// Fails if a node does not start, or if the nodes do not form the cluster again.
    pub async fn restart_all(&mut self) -> Result<()> {
        self.nodes.iter().for_each(RedisServer::kill);
        for node in &mut self.nodes {
            node.restart().await?;
        }
        self.wait_ready().await
    }

    /// Returns the URLs of all nodes, for `redis_urls`.
    #[must_use]
    pub fn urls(&self) -> String {
        let nodes = (0..self.nodes.len()).map(|node| format!("redis://{}", self.announced(node)));
        nodes.collect::<Vec<_>>().join(",")
    }

    /// Opens a connection that finds the node of each key.
    ///
    /// # Errors
    /// Fails if no node answers.
    pub async fn connection(&self) -> Result<ClusterConnection> {
        connection(self.nodes.iter().map(RedisServer::url)).await
    }

    /// Moves `slots` slots from one node to another, while the cluster stays in use.
    ///
    /// # Errors
    /// Fails if a node or `redis-cli` fails.
    pub async fn reshard(&self, slots: u16, from: usize, to: usize) -> Result<()> {
        let from = id(&self.nodes[from]).await?;
        reshard(slots, &from, &self.nodes[to]).await
    }

    /// Begins to move a slot, and leaves the keys of the slot where they are.
    ///
    /// `from` redirects clients to `to` for the keys that it does not have yet.
    ///
    /// # Errors
    /// Fails if a node refuses.
    pub async fn begin_to_move(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        for (node, is, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let mut set_slot = redis::cmd("CLUSTER");
            set_slot
                .arg("SETSLOT")
                .arg(slot)
                .arg(is)
                .arg(id(&self.nodes[other]).await?);
            let () = set_slot.query_async(&mut self.nodes[node].connection().await?).await?;
        }
        Ok(())
    }

    /// Adds an empty node, and moves `slots` slots of the other nodes to it.
    ///
    /// # Errors
    /// Fails if a node or `redis-cli` fails.
    pub async fn grow(&mut self, slots: u16) -> Result<()> {
        let node = node(RedisServer::options()).await?;
        let [new, known] = [node.address(), self.nodes[0].address()].map(|address| address.to_string());
        cli(&["--cluster", "add-node", &new, &known]).await?;
        self.nodes.push(node);
        // The other nodes must know the new node before slots can move to it. Otherwise a move may
        // stop halfway, and `redis-cli` refuses all further ones.
        self.wait_ready().await?;
        let node = self.nodes.last().context("a node")?;
        let new = id(node).await?;
        wait::until("the new node to be known", PATIENCE, || async {
            for other in &self.nodes {
                ask(other, "NODES").await.ok()?.contains(&new).then_some(())?;
            }
            Some(())
        })
        .await?;
        wait::until("slots to move to the new node", PATIENCE, || async {
            let moved = reshard(slots, "all", node).await;
            if moved.is_err() {
                fix(node).await.ok()?;
            }
            moved.ok()
        })
        .await
    }

    /// Moves all slots of a node to another one, and removes the node.
    ///
    /// # Errors
    /// Fails if a node or `redis-cli` fails.
    pub async fn shrink(&mut self, node: usize, to: usize) -> Result<()> {
        self.reshard(SLOTS, node, to).await?;
        let gone = self.nodes.remove(node);
        let (known, name) = (self.nodes[0].address().to_string(), id(&gone).await?);
        cli(&["--cluster", "del-node", &known, &name]).await
    }

    /// Imports all keys of a single server into the cluster.
    ///
    /// # Errors
    /// Fails if `redis-cli` fails.
    pub async fn import(&self, server: &RedisServer) -> Result<()> {
        let (to, from) = (self.nodes[0].address().to_string(), server.address().to_string());
        cli(&["--cluster", "import", &to, "--cluster-from", &from]).await
    }

    /// Returns whether a node owns the slot of a key: it has or would have the key.
    ///
    /// # Errors
    /// Fails if the node does not answer.
    pub async fn has(&self, node: usize, key: &str) -> Result<bool> {
        // Any other node answers with an error.
        let had: RedisResult<bool> = redis::cmd("EXISTS")
            .arg(key)
            .query_async(&mut self.nodes[node].connection().await?)
            .await;
        Ok(had.is_ok())
    }

    /// Returns how many keys each node has.
    ///
    /// # Errors
    /// Fails if a node does not answer.
    pub async fn sizes(&self) -> Result<Vec<u64>> {
        let mut sizes = Vec::new();
        for node in &self.nodes {
            sizes.push(redis::cmd("DBSIZE").query_async(&mut node.connection().await?).await?);
        }
        Ok(sizes)
    }

    /// Waits until each node reports the cluster state `ok`.
    ///
    /// # Errors
    /// Fails if that takes too long.
    pub async fn wait_ready(&self) -> Result<()> {
        for node in 0..self.nodes.len() {
            self.wait_ready_at(node).await?;
        }
        Ok(())
    }

    /// Waits until this node reports the cluster state `ok`.
    ///
    /// # Errors
    /// Fails if that takes too long.
    pub async fn wait_ready_at(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        wait::until("the cluster", PATIENCE, || async {
            let info = ask(node, "INFO").await.ok()?;
            info.contains("cluster_state:ok").then_some(())
        })
        .await
        .with_context(|| node.process().log())
    }
}

/// Connects to the cluster of the nodes at `urls`; the connection finds each key.
///
/// # Errors
/// Fails if no node answers.
pub async fn connection(urls: impl IntoIterator<Item = String>) -> Result<ClusterConnection> {
    let client = ClusterClient::builder(urls)
        .connection_timeout(PATIENCE)
        .response_timeout(PATIENCE)
        .build()?;
    Ok(client.get_async_connection().await?)
}

/// Moves `slots` slots to the node `to`.
///
/// `from` is the id of the node that gives them, or `all`.
///
/// # Errors
/// Fails if a node or `redis-cli` fails.
pub async fn reshard(slots: u16, from: &str, to: &RedisServer) -> Result<()> {
    let (to, address, slots) = (id(to).await?, to.address().to_string(), slots.to_string());
    let reshard = [
        "--cluster",
        "reshard",
        &address,
        "--cluster-from",
        from,
        "--cluster-to",
        &to,
    ];
    let how = ["--cluster-slots", &slots, "--cluster-yes"];
    cli(&[&reshard[..], &how].concat()).await
}

/// Describes how a node sees the cluster.
///
/// The text contains whether all slots are served, and by which node each.
/// Nodes that agree return the same text.
///
/// # Errors
/// Fails if the node does not answer.
pub async fn view(node: &RedisServer) -> Result<String> {
    let (info, nodes) = (ask(node, "INFO").await?, ask(node, "NODES").await?);
    let state = info.lines().find(|line| line.starts_with("cluster_state"));
    // The fields of a line: id, address, flags, primary, ping, pong, epoch, link, then slots.
    let owners: BTreeMap<&str, Vec<&str>> = nodes
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let id = fields.next()?;
            // A slot that moves is in brackets, at the two nodes that move it.
            let slots: Vec<&str> = fields.skip(7).filter(|slots| !slots.starts_with('[')).collect();
            (!slots.is_empty()).then_some((id, slots))
        })
        .collect();
    Ok(format!("{} {owners:?}", state.unwrap_or_default()))
}

/// Repairs the slots of a cluster, as an operator does, by one of its nodes.
///
/// # Errors
/// Fails if `redis-cli` fails.
pub async fn fix(node: &RedisServer) -> Result<()> {
    cli(&["--cluster", "fix", &node.address().to_string(), "--cluster-yes"]).await
}

/// Returns the id of a node in the cluster.
async fn id(node: &RedisServer) -> Result<String> {
    ask(node, "MYID").await
}

/// Sends a subcommand of `CLUSTER` without arguments.
async fn ask(node: &RedisServer, what: &str) -> Result<String> {
    let mut connection = node.connection().await?;
    Ok(redis::cmd("CLUSTER").arg(what).query_async(&mut connection).await?)
}

/// Returns the port of the primary that a node follows; `None` for a primary.
///
/// # Errors
/// Fails if the node does not answer.
pub async fn primary_of(node: &RedisServer) -> Result<Option<u16>> {
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    let reply: String = info.query_async(&mut node.connection().await?).await?;
    let port = reply.lines().find_map(|line| line.strip_prefix("master_port:"));
    Ok(port.map(str::parse).transpose()?)
}

async fn node(options: Options) -> Result<RedisServer> {
    let bus = net::free_address()?.port().to_string();
    of_cluster(options.argument("--cluster-port").argument(&bus))
        .start()
        .await
}

fn of_cluster(options: Options) -> Options {
    let arguments = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "2000",
        "--repl-diskless-sync-delay",
        "0",
    ];
    arguments.into_iter().fold(options, Options::argument)
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
