//! Redis, Kafka, two hosts and the reporter, started one after the other.
//!
//! They are ended in an order that loses nothing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use verve_tests::cluster::Cluster;
use verve_tests::host::{Instance, Kind};
use verve_tests::kafka::Kafka;
use verve_tests::process::Process;
use verve_tests::redis::RedisServer;
use verve_tests::store::Store;
use verve_tests::{http, net, reporter, wait};

use crate::{Args, show};

/// The topic that the reporter publishes to by default.
pub const TOPIC: &str = "unique-requests";

/// How long a part may take to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// All parts.
pub struct Parts {
    pub redis: Store,
    pub kafka: Kafka,
    pub hosts: Vec<Instance>,
    pub reporter: Reporter,
    _kafka_data: TempDir,
}

/// Starts one server, or a cluster of three primaries with a replica each.
async fn redis(is_cluster: bool) -> Result<Store> {
    Ok(if is_cluster {
        Store::Cluster(Cluster::start(3, 1).await?)
    } else {
        Store::Server(RedisServer::start().await?)
    })
}

/// Returns the value of `partitions`: enough to keep all nodes busy.
pub const fn partitions(redis: &Store) -> &'static str {
    match redis {
        Store::Server(_) => "1",
        Store::Cluster(_) => "16",
    }
}

/// The reporter, on the default port if possible.
pub struct Reporter {
    process: Process,
    pub address: SocketAddr,
}

impl Parts {
    pub async fn start(args: &Args) -> Result<Self> {
        let kafka_data = tempfile::tempdir()?;
        let redis = redis(args.cluster).await.context("Redis")?;
        let kafka = match args.kafka {
            true => {
                let port = net::free_address()?.port();
                let on_line = show::lines_of("kafka", |line| line.starts_with("xtask: "));
                Kafka::real_with(port, kafka_data.path(), Some(on_line)).await?
            }
            false => Kafka::embedded()?,
        };
        kafka.create_topic(TOPIC, 1).await?;
        let mut hosts = Vec::new();
        for port in [3001, 3002] {
            let host = Instance::options(Kind::VerveHost)
                .variable("redis_urls", &redis.urls())
                .variable("partitions", partitions(&redis))
                .variable("window_seconds", &args.window_seconds.seconds().to_string())
                .listen(preferably(port)?)
                .on_line(show::lines_of("host", show::is_warning));
            hosts.push(host.start().await?);
        }
        let reporter = Reporter::start(&redis, &kafka, args).await?;
        Ok(Self {
            redis,
            kafka,
            hosts,
            reporter,
            _kafka_data: kafka_data,
        })
    }

    /// Fails if one of the parts has ended.
    pub fn check(&self) -> Result<()> {
        let hosts = self.hosts.iter().map(|host| ("a host", host.process()));
        let reporter = ("the reporter", &self.reporter.process);
        let kafka = self.kafka.process().map(|process| ("Kafka", process));
        for (name, process) in hosts.chain([reporter]).chain(kafka) {
            if let Some(status) = process.exit_status() {
                bail!("{name} ended: {status}; its log:\n{}", process.log());
            }
        }
        Ok(())
    }

    /// Ends the parts.
    ///
    /// Those that receive requests end first, and those that store the data end last.
    pub async fn stop(self) {
        println!("\nstopping the hosts, the reporter, Kafka and Redis");
        for host in &self.hosts {
            complain("a host", host.terminate().await);
        }
        complain("the reporter", self.reporter.process.terminate(PATIENCE).await);
        if let Some(kafka) = self.kafka.process() {
            complain("Kafka", kafka.terminate(PATIENCE).await);
        }
        for server in self.redis.servers() {
            complain("Redis", server.stop().await);
        }
    }
}

impl Reporter {
    async fn start(redis: &Store, kafka: &Kafka, args: &Args) -> Result<Self> {
        let address = preferably(9090)?;
        let mut command: Command = reporter::command()?;
        command
            .args(["--redis-urls", &redis.urls(), "--partitions", partitions(redis)])
            .args(["--window-seconds", &args.window_seconds.seconds().to_string()])
            .args(["--kafka-brokers", kafka.brokers(), "--kafka-topic", TOPIC])
            .args(["--listen", &address.to_string()])
            // Users who try callbacks have an endpoint on this machine, and so does the demo.
            .args(["--callback-allow", "127.0.0.1"]);
        let on_line = show::lines_of("reporter", show::is_warning);
        let process = Process::spawn_with("verve-reporter", command, Some(on_line))?;
        let ready = wait::until("the reporter to be ready", Duration::from_secs(30), || async {
            if process.exit_status().is_some() {
                return Some(false);
            }
            (http::get(address, "/readyz").await.ok()?.status == 200).then_some(true)
        });
        if !ready.await.with_context(|| format!("its log:\n{}", process.log()))? {
            bail!("the reporter ended; its log:\n{}", process.log());
        }
        Ok(Self { process, address })
    }
}

/// Returns this port of 127.0.0.1, or a free one if the port is taken.
fn preferably(port: u16) -> Result<SocketAddr> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(wanted) {
        Ok(_) => Ok(wanted),
        Err(_) => Ok(net::free_address()?),
    }
}

/// Prints an error and continues, because the other parts must also be ended.
fn complain<T>(name: &str, result: Result<T>) {
    if let Err(error) = result {
        eprintln!("verve-up: {name}: {error:#}");
    }
}
