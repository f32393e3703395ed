//! Tests Verve on a Redis Cluster: same counts, while slots move and nodes die.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use redis::AsyncCommands;
use tokio::time::sleep;
use verve_protocol::slot::slot;
use verve_tests::authority::Authority;
use verve_tests::cluster::Cluster;
use verve_tests::host::{Instance, Kind};
use verve_tests::process::Process;
use verve_tests::redis::{Options, RedisServer};
use verve_tests::reporter::{self, Reporter};
use verve_tests::sink::Sink;
use verve_tests::store::Store;
use verve_tests::{clock, http, net, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// For conditions that require the nodes to agree.
const LATER: Duration = Duration::from_secs(60);

/// A site on a cluster, and its reports.
struct Clustered {
    site: Site,
    ledger: Ledger,
    reporter: Reporter,
}

impl Clustered {
    async fn new(cluster: Cluster, partitions: u16, more: &[&str]) -> Result<Self> {
        let site = Site::with_cluster(2, cluster).partitioned(partitions);
        let ledger = Ledger::new().await?;
        let reporter = Reporter::ready(&ledger.flags(&site, more)).await?;
        Ok(Self { site, ledger, reporter })
    }

    fn cluster(&mut self) -> Result<&mut Cluster> {
        self.site.redis.cluster()
    }

    async fn host(&self, kind: Kind, variables: &[(&str, &str)]) -> Result<Instance> {
        let mut host = self.site.host(kind).variable("redis_timeout_ms", "1000");
        for (name, value) in variables {
            host = host.variable(name, value);
        }
        host.start().await
    }

    /// Reads until the records contain `ids` ids in all, and at most `others` more.
    ///
    /// An id that was answered `failed` may have been recorded nevertheless.
    async fn all_counted(&mut self, ids: usize, others: usize) -> Result<()> {
        let read = self.ledger.read_until(LATER, |ledger| total(ledger) >= ids).await;
        read.with_context(|| self.reporter.process().log())?;
        self.ledger.read_for(Duration::from_secs(3)).await;
        let total = total(&self.ledger);
        assert!(
            (ids..=ids + others).contains(&total),
            "{total} of {ids}, and {others} others"
        );
        Ok(())
    }
}

/// Returns the sum of the last counts of all windows.
fn total(ledger: &Ledger) -> usize {
    let last = ledger.last();
    let counts = last.values().filter_map(|record| record.value.parse::<usize>().ok());
    counts.sum()
}

/// The accepted ids, and the other answers.
type Sent = (BTreeSet<i64>, Vec<String>);

/// Sends new ids to each host, one after the other, until it is stopped.
///
/// Returns the accepted ids, and the other answers.
struct Traffic {
    stop: Arc<AtomicBool>,
    senders: Vec<tokio::task::JoinHandle<Result<Sent>>>,
}

impl Traffic {
    fn start(hosts: &[&Instance]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let senders = hosts.iter().zip(0..).map(|(host, number)| {
            let (address, stop) = (host.addr(), stop.clone());
            tokio::spawn(async move {
                let (mut accepted, mut other) = (BTreeSet::new(), Vec::new());
                let mut id = number * 1_000_000;
                while !stop.load(Ordering::Relaxed) {
                    id += 1;
                    let answer = http::get(address, &format!("/api/verve/accept?id={id}")).await?;
                    if answer.status == 200 {
                        accepted.insert(id);
                    } else {
                        other.push(format!("{id}: {}", answer.status));
                    }
                    sleep(Duration::from_millis(2)).await;
                }
                Ok((accepted, other))
            })
        });
        Self {
            senders: senders.collect(),
            stop,
        }
    }

    async fn stop(self) -> Result<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut accepted, mut others) = (0, Vec::new());
        for sender in self.senders {
            let (ids, other) = sender.await??;
            accepted += ids.len();
            others.extend(other);
        }
        Ok((accepted, others))
    }
}

#[tokio::test]
async fn ids_and_callbacks_of_both_builds() -> Result<()> {
    let cluster = Cluster::start(3, 0).await?;
    let mut on = Clustered::new(cluster, 16, &["--callback-allow", "127.0.0.1"]).await?;
    let sink = Sink::start().await?;
    for (kind, first) in [(Kind::VerveHost, 0), (Kind::VerveHostP2, 100)] {
        let host = on.host(kind, &[]).await?;
        for id in first..first + 60 {
            let endpoint = if id % 10 == 0 {
                format!("&endpoint={}", sink.url(&format!("/{id}")))
            } else {
                String::new()
            };
            let answer = http::get(host.addr(), &format!("/api/verve/accept?id={id}{endpoint}")).await?;
            assert_eq!(
                answer.header("verve-outcome"),
                Some("new"),
                "{kind:?} {id}: {}",
                host.process().log()
            );
        }
    }
    on.all_counted(120, 0).await?;
    for id in [0, 50, 100, 150] {
        sink.wait_for(&format!("/{id}"), 1, SOON).await?;
    }
    // The keys of one script are on one node, and the ids are on all nodes.
    let sizes = on.cluster()?.sizes().await?;
    assert!(sizes.iter().all(|keys| *keys >= 3), "{sizes:?}");
    // Final sets are removed on every node, and ids that are too late are found on every node.
    let window = clock::current_window(on.site.length).start() - 600;
    let window = on.site.length.window_starting(window).context("a window")?;
    let mut redis = on.site.connection().await?;
    on.site.index(window).await?;
    for partition in on.site.partitions.all() {
        let key = on.site.keys().ids(window, partition);
        let () = redis.sadd(&key, partition.number()).await?;
    }
    on.ledger.read_to(window, 1, SOON).await?;
    assert_eq!(on.ledger.last()[window.to_string().as_str()].value, "16");
    Ok(())
}

/// Limits, duplicates and statistics are as on a single server.
#[tokio::test]
async fn answers_are_the_same() -> Result<()> {
    let cluster = Cluster::start(3, 0).await?;
    let on = Clustered::new(cluster, 1, &[]).await?;
    let limits = [
        ("window_limit", "3"),
        ("endpoint_limit", "1"),
        ("window_seconds", "86400"),
    ];
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let namespace = clock::unique("answers");
        let variables = [&limits[..], &[("namespace", namespace.as_str())]].concat();
        let host = on.host(kind, &variables).await?;
        for (query, expected) in [
            ("id=1", "new"),
            ("id=1", "duplicate"),
            ("id=2&endpoint=http%3A%2F%2Fe.com%2F", "new"),
            ("id=3&endpoint=http%3A%2F%2Fe.com%2F", "endpoint-limit"),
            // Refused ids were not recorded.
            ("id=4", "new"),
            ("id=5", "window-limit"),
            ("id=1", "duplicate"),
            ("id=x", "invalid-id"),
        ] {
            let answer = http::get(host.addr(), &format!("/api/verve/accept?{query}")).await?;
            let outcome = answer.header("verve-outcome").or_else(|| answer.header("verve-error"));
            assert_eq!(outcome, Some(expected), "{kind:?} {query}: {}", host.process().log());
        }
    }
    Ok(())
}

/// Changes a cluster while hosts of both builds record ids.
///
/// Everything must be counted.
async fn under_traffic(change: impl AsyncFn(&mut Cluster) -> Result<()>) -> Result<()> {
    let cluster = Cluster::start(3, 0).await?;
    let mut on = Clustered::new(cluster, 16, &[]).await?;
    let hosts = [
        on.host(Kind::VerveHost, &[]).await?,
        on.host(Kind::VerveHostP2, &[]).await?,
    ];
    let traffic = Traffic::start(&[&hosts[0], &hosts[1]]);
    change(on.cluster()?).await?;
    let (accepted, others) = traffic.stop().await?;
    assert!(accepted > 200, "{accepted}: {others:?}");
    on.all_counted(accepted, others.len())
        .await
        .with_context(|| hosts[0].process().log())
}

#[tokio::test]
async fn slots_move_under_traffic() -> Result<()> {
    under_traffic(async |cluster| {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            cluster.reshard(2000, from, to).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_node_joins_and_another_leaves() -> Result<()> {
    under_traffic(async |cluster| {
        cluster.grow(4000).await?;
        // The first node is the one that all clients ask first.
        cluster.shrink(0, 1).await?;
        sleep(Duration::from_secs(3)).await;
        Ok(())
    })
    .await
}

/// The nodes announce a name and ports that are not their own.
#[tokio::test]
async fn a_node_is_cut_off() -> Result<()> {
    let cluster = Cluster::behind_links(3, 1).await?;
    let mut on = Clustered::new(cluster, 16, &[]).await?;
    let host = on.host(Kind::VerveHost, &[("redis_wait_replicas", "1")]).await?;
    let traffic = Traffic::start(&[&host]);
    sleep(Duration::from_secs(3)).await;
    for node in [1, 0] {
        on.cluster()?.isolate(node);
        // Its replica becomes the primary meanwhile.
        sleep(Duration::from_secs(6)).await;
        on.cluster()?.join();
        on.cluster()?.wait_ready().await?;
        sleep(Duration::from_secs(3)).await;
    }
    let (accepted, others) = traffic.stop().await?;
    assert!(others.is_empty(), "{others:?}");
    assert!(accepted > 200, "{accepted}");
    on.all_counted(accepted, 0).await.with_context(|| host.process().log())
}

/// A primary dies before its replica has the last id.
///
/// The id is lost, unless the host waits for the replica.
#[tokio::test]
async fn writes_that_a_dead_primary_did_not_replicate() -> Result<()> {
    for (replicas, lost) in [("1", false), ("0", true)] {
        let cluster = Cluster::behind_links(3, 1).await?;
        let mut on = Clustered::new(cluster, 1, &[]).await?;
        let host = on
            .host(
                Kind::VerveHost,
                &[("redis_wait_replicas", replicas), ("redis_timeout_ms", "400")],
            )
            .await?;
        let window = clock::next_window(on.site.length).await;
        let key = on.site.ids(window);
        let mut primary = 0;
        while !on.cluster()?.has(primary, &key).await? {
            primary += 1;
        }
        let accept = async |id: i64| http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await;
        assert_eq!(accept(1).await?.status, 200);
        on.cluster()?.mute(primary + 3);
        sleep(Duration::from_millis(100)).await;
        let outcome = accept(2).await?;
        clock::assert_still(on.site.length, window);
        let header = outcome.header("verve-outcome");
        assert_eq!(header, Some(if lost { "new" } else { "spooled" }), "{outcome:?}");
        on.site.redis.servers()[primary].kill();
        // Data in transit is lost with it.
        on.cluster()?.cut(primary);
        sleep(Duration::from_millis(200)).await;
        on.cluster()?.join();
        let taken_over = wait::until("the replica to take over", LATER, || async {
            let Store::Cluster(cluster) = &on.site.redis else {
                return None;
            };
            cluster.has(primary + 3, &key).await.ok().filter(|has| *has)
        });
        taken_over.await?;
        // Without the old primary there is no replica to wait for.
        on.cluster()?.restart(primary).await?;
        let counted = if lost { 1 } else { 2 };
        on.all_counted(counted, 0).await.with_context(|| host.process().log())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_primary_dies_and_its_replica_takes_over() -> Result<()> {
    let cluster = Cluster::start(3, 1).await?;
    let mut on = Clustered::new(cluster, 16, &[]).await?;
    let host = on.host(Kind::VerveHost, &[("redis_wait_replicas", "1")]).await?;
    let traffic = Traffic::start(&[&host]);
    sleep(Duration::from_secs(3)).await;
    on.site.redis.servers()[1].kill();
    // Until another node has its slots.
    on.cluster()?.wait_ready_at(0).await?;
    sleep(Duration::from_secs(4)).await;
    // It returns as a replica, for which the spooled ids have waited.
    on.cluster()?.restart(1).await?;
    let (accepted, others) = traffic.stop().await?;
    assert!(others.is_empty(), "{others:?}");
    on.all_counted(accepted, 0).await.with_context(|| host.process().log())
}

/// The nodes use TLS, also among themselves.
///
/// They are known by the name in their certificate.
#[tokio::test]
async fn over_tls() -> Result<()> {
    let authority = Authority::new()?;
    let server = authority.vouch_for("server", "DNS:localhost")?;
    let shown = |path: &Path| path.display().to_string();
    let (mut nodes, mut urls) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let port = net::free_address()?.port().to_string();
        let options = [
            ("--tls-port", port.as_str()),
            ("--tls-cert-file", &shown(&server.certificate)),
            ("--tls-key-file", &shown(&server.key)),
            ("--tls-ca-cert-file", &shown(&authority.certificate())),
            ("--tls-auth-clients", "no"),
            ("--tls-cluster", "yes"),
            ("--cluster-announce-hostname", "localhost"),
            ("--cluster-preferred-endpoint-type", "hostname"),
        ];
        let add = |node: Options, (name, value): (&str, &str)| node.argument(name).argument(value);
        nodes.push(options.into_iter().fold(RedisServer::options(), add));
        urls.push(format!("rediss://localhost:{port}"));
    }
    let (site, urls) = (
        Site::with_cluster(2, Cluster::start_each(nodes, 0).await?).partitioned(16),
        urls.join(","),
    );
    let mut ledger = Ledger::new().await?;
    let mut command = reporter::command()?;
    command.env("SSL_CERT_FILE", authority.certificate());
    command.args(["--listen", &net::free_address()?.to_string()]);
    command.args(ledger.flags(&site, &["--redis-urls", &urls]));
    let reporter = Process::spawn("verve-reporter", command)?;
    for (kind, first) in [(Kind::VerveHost, 0), (Kind::VerveHostP2, 100)] {
        let host = site.host(kind).variable("redis_urls", &urls);
        let host = host.environment("SSL_CERT_FILE", &shown(&authority.certificate()));
        let host = host.start().await?;
        for id in first..first + 40 {
            let answer = http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
            let outcome = answer.header("verve-outcome");
            assert_eq!(outcome, Some("new"), "{kind:?} {id}: {}", host.process().log());
        }
    }
    let read = ledger.read_until(LATER, |ledger| total(ledger) == 80).await;
    read.with_context(|| reporter.log())
}

#[tokio::test]
async fn the_doctor_checks_each_node_and_every_slot() -> Result<()> {
    let saved = RedisServer::options().argument("--save").argument("3600 1");
    let cluster = Cluster::start_with(saved, 3, 0).await?;
    let site = Site::with_cluster(60, cluster).partitioned(16);
    site.add(clock::current_window(site.length), 0..200).await?;
    let doctor = async |more: &[&str]| -> Result<String> {
        let mut command = reporter::command()?;
        command.arg("doctor").args(site.flags(more));
        let process = Process::spawn("verve-reporter doctor", command)?;
        process.wait(LATER).await?;
        Ok(process.log())
    };
    let output = doctor(&[]).await?;
    assert!(
        !output.contains("problem") && output.contains("3 primaries have all 16384 slots"),
        "{output}"
    );
    assert_eq!(output.matches("has no replica").count(), 3, "{output}");
    assert!(output.contains("components write windows of 60 s"), "{output}");
    // The doctor's checks cover every node.
    let output = doctor(&["--partitions", "8"]).await?;
    assert!(output.contains("other partitions than the 8"), "{output}");
    site.redis.servers()[2].kill();
    let output = doctor(&[]).await?;
    let away = site.redis.servers()[2].address().to_string();
    assert!(
        output.contains(&format!("problem  Redis redis://{away}, of a cluster")),
        "{output}"
    );
    Ok(())
}

/// As in `docs/operations.md`.
#[tokio::test]
async fn from_one_server_to_a_cluster() -> Result<()> {
    let site = Site::with_redis(2, RedisServer::start().await?);
    let mut ledger = Ledger::new().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let before = clock::next_window(site.length).await;
    site.add(before, 0..5).await?;
    ledger.read_to(before, 1, SOON).await?;
    reporter.process().terminate(SOON).await?;
    site.add(before, 5..7).await?;
    let unreported = clock::current_window(site.length);
    site.add(unreported, 0..3).await?;

    let cluster = Cluster::start(3, 0).await?;
    cluster.import(site.redis.server()).await?;
    let _reporter = Reporter::ready(&ledger.flags(&site, &["--redis-urls", &cluster.urls()])).await?;
    ledger.read_to(before, 2, SOON).await?;
    ledger.read_to(unreported, 1, SOON).await?;
    let published = |window| {
        ledger
            .of(window)
            .into_iter()
            .map(|record| (record.value.as_str(), record.header("revision")))
    };
    assert!(published(before).eq([("5", "0"), ("7", "1")]), "{ledger}");
    assert!(published(unreported).eq([("3", "0")]), "{ledger}");
    Ok(())
}

/// Tests that `ASKING` and the command that follows it are sent together.
///
/// It makes a node accept a key that is being moved to it, but only for the next command on the
/// connection.
#[tokio::test]
async fn a_key_of_a_moving_slot_is_asked_for_right_after_asking() -> Result<()> {
    let cluster = Cluster::start(3, 0).await?;
    let mut site = Site::with_cluster(86_400, cluster);
    let key = site.ids(clock::current_window(site.length));
    let cluster = site.redis.cluster()?;
    let mut from = 0;
    while !cluster.has(from, &key).await? {
        from += 1;
    }
    cluster.begin_to_move(slot(&key), from, (from + 1) % 3).await?;
    // A third node, which neither has nor gets the key: it redirects to the old owner, which
    // redirects to the new one.
    let third = format!("redis://{}", cluster.nodes()[(from + 2) % 3].address());
    for (kind, first) in [(Kind::VerveHost, 0), (Kind::VerveHostP2, 1_000)] {
        let host = site.host(kind).variable("redis_urls", &third);
        let host = host.variable("redis_timeout_ms", "2000").start().await?;
        let ids = (first..first + 400).map(|id| {
            let query = format!("/api/verve/accept?id={id}");
            let address = host.addr();
            async move { http::get(address, &query).await }
        });
        let answers: Vec<_> = futures::stream::iter(ids).buffer_unordered(50).try_collect().await?;
        for answer in answers {
            let outcome = answer.header("verve-outcome");
            assert_eq!(outcome, Some("new"), "{kind:?}: {}", host.process().log());
        }
    }
    Ok(())
}

/// Tests nodes that all have these options; the host may only use `allowed`.
///
/// The host is given only an address at `allowed`. All ids are recorded on the right nodes, also
/// after slots have moved.
async fn reached_at(options: &[(&str, &str)], allowed: &str) -> Result<()> {
    let mut of_node = RedisServer::options();
    for (name, value) in options {
        of_node = of_node.argument(name).argument(value);
    }
    let cluster = Cluster::start_with(of_node, 3, 0).await?;
    let first = format!("redis://{allowed}:{}", cluster.nodes()[0].address().port());
    let mut site = Site::with_cluster(86_400, cluster).partitioned(16);
    let mut id = 0;
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let context = format!("{options:?}, {kind:?}");
        let manifest = kind.manifest()?.replace("redis://*:*", &format!("redis://{allowed}:*"));
        let host = site.host(kind).manifest(manifest).variable("redis_urls", &first);
        let host = host.variable("redis_timeout_ms", "1000").start().await?;
        let mut accept_all = async |patience: Duration| {
            for _ in 0..40 {
                wait::until("an id to be recorded", patience, || {
                    id += 1;
                    let query = format!("/api/verve/accept?id={id}");
                    let address = host.addr();
                    async move {
                        let answer = http::get(address, &query).await.ok()?;
                        (answer.header("verve-outcome") == Some("new")).then_some(())
                    }
                })
                .await
                .with_context(|| format!("{context}: {}", host.process().log()))?;
            }
            anyhow::Ok(())
        };
        accept_all(Duration::ZERO).await?;
        let cluster = site.redis.cluster()?;
        cluster.reshard(2_000, 0, 1).await?;
        cluster.reshard(2_000, 1, 2).await?;
        accept_all(SOON).await?;
        wait::until("an empty spool", SOON, || async {
            match kind {
                Kind::VerveHost => (host.in_spool("SELECT total FROM size").ok()? == 0).then_some(()),
                _ => Some(()),
            }
        })
        .await?;
    }
    let sizes = site.redis.cluster()?.sizes().await?;
    assert!(sizes.iter().sum::<u64>() > 10, "{sizes:?}");
    Ok(())
}

const PREFERRED: &str = "--cluster-preferred-endpoint-type";
const NAME: &str = "--cluster-announce-hostname";

#[tokio::test]
async fn an_announced_name_cannot_be_resolved() -> Result<()> {
    reached_at(&[(NAME, "nowhere.invalid")], "127.0.0.1").await?;
    reached_at(&[(NAME, "nowhere.invalid"), (PREFERRED, "hostname")], "127.0.0.1").await
}

#[tokio::test]
async fn the_address_is_unreachable_and_the_name_is_not() -> Result<()> {
    reached_at(&[(NAME, "localhost")], "localhost").await
}

#[tokio::test]
async fn nodes_without_a_host_are_at_the_address_that_answered() -> Result<()> {
    reached_at(&[(PREFERRED, "unknown-endpoint")], "localhost").await
}

#[tokio::test]
async fn names_are_preferred_and_none_is_announced() -> Result<()> {
    reached_at(&[(PREFERRED, "hostname")], "127.0.0.1").await
}

/// The reporter's client cannot reach nodes without a name, and logs why.
#[tokio::test]
async fn a_reporter_logs_that_nodes_announce_no_hostname() -> Result<()> {
    let cluster = Cluster::start_with(RedisServer::options().argument(PREFERRED).argument("hostname"), 3, 0).await?;
    let site = Site::with_cluster(60, cluster);
    let reporter = Reporter::start(&site.flags(&[]))?;
    reporter
        .process()
        .wait_for_text("cluster-announce-hostname", SOON)
        .await?;
    let mut command = reporter::command()?;
    command.arg("doctor").args(site.flags(&[]));
    let doctor = Process::spawn("verve-reporter doctor", command)?;
    assert_eq!(doctor.wait(LATER).await?.code(), Some(1));
    assert!(doctor.log().contains("have each node announce one"), "{}", doctor.log());
    Ok(())
}

#[tokio::test]
async fn several_servers_that_are_no_cluster() -> Result<()> {
    let site = Site::with_redis(60, RedisServer::start().await?);
    let other = RedisServer::start().await?;
    let urls = format!("{},{}", site.redis_urls(), other.url());
    let host = site.host(Kind::VerveHost).variable("redis_urls", &urls).start().await?;
    let answer = http::get(host.addr(), "/api/verve/accept?id=1").await?;
    assert_eq!(answer.header("verve-outcome"), Some("spooled"));
    host.process().wait_for_text("are no cluster", SOON).await?;
    let reporter = Reporter::start(&site.flags(&["--redis-urls", &urls]))?;
    reporter
        .process()
        .wait_for_text("is no node of a cluster", SOON)
        .await?;
    Ok(())
}
