//! A real Redis Cluster: its nodes are `redis-server` processes, put together by `redis-cli --cluster`.

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

/// For what the nodes have to agree on, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes of one cluster. Dropping it kills them.
pub struct Cluster {
    nodes: Vec<RedisServer>,
    /// Of each node, if all that reaches it passes through links.
    links: Vec<Links>,
}

/// What leads to one node.
struct Links {
    /// For clients, and for the node that follows it.
    clients: Link,
    /// For what the nodes tell each other.
    bus: Link,
    /// Where the node's own connections come from.
    source: IpAddr,
}

impl Cluster {
    /// So many primaries, each with so many replicas: first all primaries, then a replica of each in the same order, and so on.
    ///
    /// # Errors
    /// When there is no `redis-server` or `redis-cli`, or the nodes do not come together.
    pub async fn start(primaries: usize, replicas: usize) -> Result<Self> {
        Self::start_with(RedisServer::options(), primaries, replicas).await
    }

    /// The same, of nodes with these options.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(options: Options, primaries: usize, replicas: usize) -> Result<Self> {
        Self::start_each(vec![options; primaries * (1 + replicas)], replicas).await
    }

    /// The same, of as many nodes as there are options.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_each(options: Vec<Options>, replicas: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        for options in options {
            nodes.push(node(options).await?);
        }
        Self::of(nodes, Vec::new(), replicas).await
    }

    /// The same, of nodes that are at other ports than those they listen on, as behind a NAT, and that announce a name.
    ///
    /// # Errors
    /// As [`Self::start`].
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

    /// Puts the replicas in the order of their primaries.
    async fn sort(&mut self, primaries: usize) -> Result<()> {
        let ports: Vec<u16> = (0..primaries).map(|node| self.announced(node).port()).collect();
        let links = self.links.drain(..).map(Some).chain(iter::repeat_with(|| None));
        let mut placed = Vec::new();
        for (number, (node, links)) in self.nodes.drain(..).zip(links).enumerate() {
            let primary = primary_of(&node).await?;
            // Those of a primary stay in order, as the sort is stable: each time one of each.
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

    /// Where a node says it is.
    fn announced(&self, node: usize) -> SocketAddr {
        let links = self.links.get(node);
        links.map_or_else(|| self.nodes[node].address(), |links| links.clients.address())
    }

    /// Cuts a node off from everybody, until [`Self::join`].
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

    /// Keeps from all others what one node asks of them: it follows its primary no more, and everybody else reaches it.
    pub fn mute(&self, node: usize) {
        if let Some(source) = self.links.get(node).map(|links| links.source) {
            self.links.iter().for_each(|links| links.clients.hold_from(source));
        }
    }

    /// Ends all connections of clients and of its replica with a node, until [`Self::join`].
    pub fn cut(&self, node: usize) {
        if let Some(links) = self.links.get(node) {
            links.clients.cut();
        }
    }

    /// Undoes [`Self::isolate`], [`Self::mute`] and [`Self::cut`].
    pub fn join(&self) {
        for links in &self.links {
            links.clients.mend();
            links.bus.mend();
        }
    }

    /// Its nodes, each by itself.
    #[must_use]
    pub fn into_nodes(self) -> Vec<RedisServer> {
        self.nodes
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Starts a node again that was killed, with what it knew.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        self.nodes[node].restart().await
    }

    /// Starts all nodes again that were killed, or are to be.
    ///
    /// # Errors
    /// When they do not come up, or together.
    pub async fn restart_all(&mut self) -> Result<()> {
        self.nodes.iter().for_each(RedisServer::kill);
        for node in &mut self.nodes {
            node.restart().await?;
        }
        self.wait_ready().await
    }

    /// All of them, for `redis_urls`.
    #[must_use]
    pub fn urls(&self) -> String {
        let nodes = (0..self.nodes.len()).map(|node| format!("redis://{}", self.announced(node)));
        nodes.collect::<Vec<_>>().join(",")
    }

    /// A connection that finds each key.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn connection(&self) -> Result<ClusterConnection> {
        connection(self.nodes.iter().map(RedisServer::url)).await
    }

    /// Moves so many slots from one node to another, while all goes on.
    ///
    /// # Errors
    /// When that fails.
    pub async fn reshard(&self, slots: u16, from: usize, to: usize) -> Result<()> {
        let from = id(&self.nodes[from]).await?;
        reshard(slots, &from, &self.nodes[to]).await
    }

    /// Begins to move a slot, whose keys stay where they are: those that are not there yet are on their way.
    ///
    /// # Errors
    /// When a node refuses.
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

    /// Adds an empty node, and gives it so many slots of the others.
    ///
    /// # Errors
    /// When that fails.
    pub async fn grow(&mut self, slots: u16) -> Result<()> {
        let node = node(RedisServer::options()).await?;
        let [new, known] = [node.address(), self.nodes[0].address()].map(|address| address.to_string());
        cli(&["--cluster", "add-node", &new, &known]).await?;
        self.nodes.push(node);
        // Until the others know it.
        self.wait_ready().await?;
        let node = self.nodes.last().context("a node")?;
        wait::until("the new node to be known", PATIENCE, || async {
            reshard(slots, "all", node).await.ok()
        })
        .await
    }

    /// Gives the slots of a node to another one, and takes it out.
    ///
    /// # Errors
    /// When that fails.
    pub async fn shrink(&mut self, node: usize, to: usize) -> Result<()> {
        self.reshard(SLOTS, node, to).await?;
        let gone = self.nodes.remove(node);
        let (known, name) = (self.nodes[0].address().to_string(), id(&gone).await?);
        cli(&["--cluster", "del-node", &known, &name]).await
    }

    /// Brings all keys of a server by itself here.
    ///
    /// # Errors
    /// When that fails.
    pub async fn import(&self, server: &RedisServer) -> Result<()> {
        let (to, from) = (self.nodes[0].address().to_string(), server.address().to_string());
        cli(&["--cluster", "import", &to, "--cluster-from", &from]).await
    }

    /// Whether a node is the one that has this key, or would have it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn has(&self, node: usize, key: &str) -> Result<bool> {
        // Any other node answers by an error.
        let had: RedisResult<bool> = redis::cmd("EXISTS")
            .arg(key)
            .query_async(&mut self.nodes[node].connection().await?)
            .await;
        Ok(had.is_ok())
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

    /// Waits until each node says that all is well.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn wait_ready(&self) -> Result<()> {
        for node in 0..self.nodes.len() {
            self.wait_ready_at(node).await?;
        }
        Ok(())
    }

    /// Waits until this node says that all is well.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn wait_ready_at(&self, node: usize) -> Result<()> {
        let node = &self.nodes[node];
        let mut info = redis::cmd("CLUSTER");
        info.arg("INFO");
        wait::until("the cluster", PATIENCE, || async {
            let said: String = info.query_async(&mut node.connection().await.ok()?).await.ok()?;
            said.contains("cluster_state:ok").then_some(())
        })
        .await
        .with_context(|| node.process().log())
    }
}

/// A connection to the cluster of the nodes at `urls` that finds each key.
///
/// # Errors
/// When no node answers.
pub async fn connection(urls: impl IntoIterator<Item = String>) -> Result<ClusterConnection> {
    let client = ClusterClient::builder(urls)
        .connection_timeout(PATIENCE)
        .response_timeout(PATIENCE)
        .build()?;
    Ok(client.get_async_connection().await?)
}

/// Moves so many slots to the node at `to`, from the node of this id, or from `all`.
///
/// # Errors
/// When that fails.
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

/// What a node is called among them.
async fn id(node: &RedisServer) -> Result<String> {
    let mut my_id = redis::cmd("CLUSTER");
    my_id.arg("MYID");
    Ok(my_id.query_async(&mut node.connection().await?).await?)
}

/// The port of the primary that a node follows; nothing if it is one itself.
///
/// # Errors
/// When it does not answer.
pub async fn primary_of(node: &RedisServer) -> Result<Option<u16>> {
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    let said: String = info.query_async(&mut node.connection().await?).await?;
    let port = said.lines().find_map(|line| line.strip_prefix("master_port:"));
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
