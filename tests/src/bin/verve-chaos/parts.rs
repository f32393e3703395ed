//! The parts that run, and how they fail and recover.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::Mutex;
use tokio::time::sleep;
use verve_protocol::{CounterName, Keys, Partitions, WindowLengths};
use verve_tests::broker::Broker;
use verve_tests::cluster::{self, Cluster};
use verve_tests::host::{Instance, Kind};
use verve_tests::link::Link;
use verve_tests::process::{Process, Signal};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::store::Connection;
use verve_tests::wait;

use crate::logs::Logs;
use crate::schedule::{self, Fault, PRIMARIES, Part, REPLICAS, Trouble};

/// The topic that the reporters publish to.
pub const TOPIC: &str = "chaos";
/// The path of the fixed callback.
pub const FIXED: &str = "/fixed";
/// The named counters that clients may use, and do use.
const NAMED: (&str, [&str; 2]) = ("campaign-*", ["campaign-1", "campaign-2"]);
const NAMESPACE: &str = "chaos";
/// Enough for some partitions on each node.
const CLUSTER_PARTITIONS: u16 = 4;
const GRACE_MS: &str = "500";
/// The allowed lateness.
///
/// It is longer than a round with all its restarts and the rest after it: see `main`.
const LATE_SECONDS: &str = "120";
/// How long a part may take to end after SIGTERM.
///
/// Reporters complete the work they have begun, even if it takes 10 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the nodes of a cluster may take to agree after the last fault.
const AGREED_WITHIN: Duration = Duration::from_secs(15);

/// All parts. Each can fail independently of the others.
pub struct Parts {
    redis: Redis,
    redis_link: Link,
    pub broker: Mutex<Broker>,
    kafka_link: Arc<Link>,
    hosts: Vec<Mutex<Host>>,
    reporters: Vec<Mutex<Replica>>,
    pub sink: Sink,
    pub keys: Keys,
    /// The counters of the clients; `None` is the one without a name.
    pub counters: Vec<Option<CounterName>>,
    pub lengths: WindowLengths,
    pub partitions: Partitions,
    pub addresses: Vec<SocketAddr>,
}

/// One server, or the nodes of a cluster.
struct Redis {
    is: schedule::Redis,
    urls: Vec<String>,
    nodes: Vec<Mutex<RedisServer>>,
}

impl Redis {
    async fn start(is: schedule::Redis) -> Result<Self> {
        // On disk before each answer: what Redis confirmed to a client survives the death of Redis.
        let options = RedisServer::options().append_only();
        let nodes = match is {
            schedule::Redis::Server => vec![options.start().await?],
            schedule::Redis::Cluster => Cluster::start_with(options, PRIMARIES, 1).await?.into_nodes(),
        };
        Ok(Self {
            is,
            urls: nodes.iter().map(RedisServer::url).collect(),
            nodes: nodes.into_iter().map(Mutex::new).collect(),
        })
    }

    async fn connection(&self) -> Result<Connection> {
        Ok(match self.is {
            schedule::Redis::Server => Connection::Server(self.nodes[0].lock().await.connection().await?),
            schedule::Redis::Cluster => Connection::Cluster(cluster::connection(self.urls.clone()).await?),
        })
    }

    /// Moves slots to one of the primaries.
    async fn move_slots(&self, fault: &Fault) -> Result<()> {
        let moved = u16::try_from(fault.lasts.as_millis())?;
        let shard = usize::from(moved) % PRIMARIES;
        for node in [shard, shard + PRIMARIES] {
            let node = self.nodes[node].lock().await;
            if cluster::primary_of(&node).await?.is_none() {
                return cluster::reshard(moved, "all", &node).await;
            }
        }
        bail!("no node of {shard} is a primary")
    }

    /// Waits until the nodes of the cluster agree on which nodes serve the slots.
    ///
    /// They must also agree that all slots are served.
    /// After failovers, Redis 7.0 sometimes leaves a node that considers the cluster to be down,
    /// although no other node does. An operator repairs that, and so does this function.
    async fn agree(&self, logs: &Logs) -> Result<()> {
        if self.is == schedule::Redis::Server {
            return Ok(());
        }
        if self.agreed().await.is_ok() {
            return Ok(());
        }
        logs.event("the nodes of the cluster do not agree, and are repaired");
        logs.keep("cluster", &format!("{:#?}\n", self.views().await));
        if let Err(error) = cluster::fix(&*self.nodes[0].lock().await).await {
            logs.keep("cluster", &format!("{error:#}\n"));
        }
        let agreed = self.agreed().await;
        if agreed.is_err() {
            logs.keep("cluster", &format!("{:#?}\n", self.views().await));
        }
        agreed
    }

    async fn agreed(&self) -> Result<()> {
        wait::until("the nodes of the cluster to agree", AGREED_WITHIN, || async {
            let views = self.views().await;
            let is_well = |view: &String| *view == views[0] && view.starts_with("cluster_state:ok");
            views.iter().all(is_well).then_some(())
        })
        .await
    }

    /// Returns how each node sees the cluster, or why it does not answer.
    async fn views(&self) -> Vec<String> {
        let mut views = Vec::new();
        for node in &self.nodes {
            let view = cluster::view(&*node.lock().await).await;
            views.push(view.unwrap_or_else(|error| format!("{error:#}")));
        }
        views
    }
}

struct Host(Instance);

struct Replica {
    reporter: Reporter,
    flags: Vec<String>,
}

/// A part that is a process.
trait Runs {
    fn process(&self) -> &Process;
    /// Restarts it with the data it had.
    async fn restart(&mut self) -> Result<()>;
}

impl Parts {
    /// Starts all parts.
    ///
    /// With `named`, there are named counters too.
    pub async fn start(is: schedule::Redis, named: bool, lengths: WindowLengths) -> Result<Self> {
        let redis = Redis::start(is).await.context("Redis")?;
        let redis_link = Link::start(redis.nodes[0].lock().await.address()).await?;
        let broker = Broker::start().await.context("Kafka")?;
        broker.kafka().create_topic(TOPIC, 1).await?;
        let sink = Sink::start().await?;
        // A link to one node of a cluster does not lead to the other nodes.
        let (second, partitions, replicas) = match is {
            schedule::Redis::Server => (format!("redis://{}", redis_link.address()), 1, "0"),
            schedule::Redis::Cluster => (redis.urls.join(","), CLUSTER_PARTITIONS, "1"),
        };
        let partitions = Partitions::try_new(partitions).context("partitions")?;
        let urls = [redis.urls.join(","), second];
        let (mut hosts, mut reporters) = (Vec::new(), Vec::new());
        for url in urls.iter().cycle().take(REPLICAS) {
            let seconds = lengths.to_string();
            let sets = partitions.to_string();
            let variables = [
                ("redis_urls", url.as_str()),
                ("namespace", NAMESPACE),
                ("window_seconds", &seconds),
                ("partitions", &sets),
                ("redis_wait_replicas", replicas),
                ("counters", if named { NAMED.0 } else { "" }),
            ];
            hosts.push(Host(Instance::start(Kind::VerveHost, &variables).await?));
            let fixed = sink.url(FIXED);
            let flags = [
                ["--redis-urls", url],
                ["--namespace", NAMESPACE],
                ["--window-seconds", &seconds],
                ["--partitions", &sets],
                ["--grace-ms", GRACE_MS],
                ["--late-seconds", LATE_SECONDS],
                ["--kafka-brokers", broker.kafka().brokers()],
                ["--kafka-topic", TOPIC],
                ["--callback-url", &fixed],
                ["--callback-allow", "127.0.0.1"],
            ];
            let flags: Vec<String> = flags.concat().into_iter().map(str::to_owned).collect();
            let reporter = Reporter::ready(&flags).await?;
            reporters.push(Replica { reporter, flags });
        }
        let mut counters = vec![None];
        if named {
            for name in NAMED.1 {
                counters.push(Some(name.parse()?));
            }
        }
        Ok(Self {
            addresses: hosts.iter().map(|host| host.0.addr()).collect(),
            redis,
            redis_link,
            partitions,
            kafka_link: Arc::clone(broker.link()),
            broker: Mutex::new(broker),
            hosts: hosts.into_iter().map(Mutex::new).collect(),
            reporters: reporters.into_iter().map(Mutex::new).collect(),
            sink,
            keys: Keys::new(NAMESPACE.parse()?),
            counters,
            lengths,
        })
    }

    /// Returns the kind of Redis.
    pub const fn redis(&self) -> schedule::Redis {
        self.redis.is
    }

    /// Opens a connection to Redis.
    pub async fn connection(&self) -> Result<Connection> {
        self.redis.connection().await
    }

    /// Makes a part fail, and lets it recover.
    pub async fn suffer(&self, fault: &Fault, logs: &Logs) -> Result<()> {
        let suffered = match fault.part {
            Part::Redis(n) => suffer(&self.redis.nodes[n], fault, logs).await,
            Part::Slots => self.redis.move_slots(fault).await,
            Part::Kafka => suffer(&self.broker, fault, logs).await,
            Part::Host(n) => suffer(&self.hosts[n], fault, logs).await,
            Part::Reporter(n) => suffer(&self.reporters[n], fault, logs).await,
            Part::RedisLink => disturb(&self.redis_link, fault).await,
            Part::KafkaLink => disturb(&self.kafka_link, fault).await,
        };
        suffered.with_context(|| format!("{} {}", fault.part, fault.trouble))
    }

    /// Waits until Redis is well again after the faults.
    pub async fn well(&self, logs: &Logs) -> Result<()> {
        self.redis.agree(logs).await
    }

    /// Fails if a part has ended although nothing ended it.
    pub async fn check(&self) -> Result<()> {
        for (part, alive) in self.for_each(|process| process.exit_status().is_none()).await {
            ensure!(alive, "{part} has ended unexpectedly");
        }
        Ok(())
    }

    /// Adds the output of the parts since their last start to `logs`.
    pub async fn collect(&self, logs: &Logs) {
        for (part, log) in self.for_each(Process::log).await {
            logs.add(&part, &log);
        }
    }

    /// Returns the spools: each host's database.
    pub async fn spools(&self) -> Vec<PathBuf> {
        let mut spools = Vec::new();
        for host in &self.hosts {
            spools.push(host.lock().await.0.folder().join(".spin/sqlite_db.db"));
        }
        spools
    }

    async fn for_each<T>(&self, look: impl Fn(&Process) -> T) -> Vec<(Part, T)> {
        let mut seen = Vec::new();
        let mut see = |part, process: &Process| seen.push((part, look(process)));
        for (n, node) in self.redis.nodes.iter().enumerate() {
            see(Part::Redis(n), node.lock().await.process());
        }
        see(Part::Kafka, self.broker.lock().await.process());
        for (n, host) in self.hosts.iter().enumerate() {
            see(Part::Host(n), host.lock().await.process());
        }
        for (n, reporter) in self.reporters.iter().enumerate() {
            see(Part::Reporter(n), reporter.lock().await.process());
        }
        seen
    }
}

async fn suffer<R: Runs>(part: &Mutex<R>, fault: &Fault, logs: &Logs) -> Result<()> {
    let mut part = part.lock().await;
    let process = part.process();
    match fault.trouble {
        Trouble::Pause => {
            process.pause()?;
            sleep(fault.lasts).await;
            process.signal(Signal::SIGCONT)?;
            return Ok(());
        }
        Trouble::Stop => drop(process.terminate(PATIENCE).await?),
        _ => process.kill(),
    }
    logs.add(&fault.part, &process.log());
    sleep(fault.lasts).await;
    part.restart().await
}

async fn disturb(link: &Link, fault: &Fault) -> Result<()> {
    match fault.trouble {
        Trouble::Hold => link.hold(),
        _ => link.cut(),
    }
    sleep(fault.lasts).await;
    link.restore();
    Ok(())
}

impl Runs for RedisServer {
    fn process(&self) -> &Process {
        self.process()
    }

    async fn restart(&mut self) -> Result<()> {
        self.restart().await
    }
}

impl Runs for Broker {
    fn process(&self) -> &Process {
        self.process()
    }

    async fn restart(&mut self) -> Result<()> {
        self.restart().await
    }
}

impl Runs for Host {
    fn process(&self) -> &Process {
        self.0.process()
    }

    async fn restart(&mut self) -> Result<()> {
        self.0.restart().await
    }
}

impl Runs for Replica {
    fn process(&self) -> &Process {
        self.reporter.process()
    }

    async fn restart(&mut self) -> Result<()> {
        self.reporter = Reporter::start(&self.flags)?;
        Ok(())
    }
}
