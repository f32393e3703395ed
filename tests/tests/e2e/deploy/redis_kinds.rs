//! Tests what depends on the version and the kind of Redis.
//!
//! Runs on each available server: Redis 7, Redis 8 and Valkey 8.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use verve_protocol::Partition;
use verve_protocol::keys::UNREPORTED_SECONDS;
use verve_tests::host::{Instance, Kind};
use verve_tests::link::Link;
use verve_tests::redis::{Options, RedisServer};
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, paths, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Runs a test on each server, concurrently.
pub async fn on_each(test: impl AsyncFn(Options, &str) -> Result<()>) -> Result<()> {
    let test = &test;
    let each = paths::redis_servers()?.into_iter().map(|program| async move {
        let name = program.display().to_string();
        let options = RedisServer::options().program(Path::new(&program));
        test(options, &name).await.with_context(|| name.clone())
    });
    futures::future::try_join_all(each).await.map(drop)
}

async fn accept(instance: &Instance, query: &str) -> Result<(u16, String)> {
    let response = http::get(instance.addr(), &format!("/api/verve/accept?{query}")).await?;
    let outcome = response.header("verve-outcome").unwrap_or_default().to_owned();
    Ok((response.status, outcome))
}

/// A primary whose replica follows it over a link.
struct Pair {
    site: Site,
    replica: RedisServer,
    link: Link,
}

impl Pair {
    async fn start(options: Options) -> Result<Self> {
        let primary = options.clone().start().await?;
        let link = Link::start(primary.address()).await?;
        let replica = options.start().await?;
        let mut follow = redis::cmd("REPLICAOF");
        follow.arg("127.0.0.1").arg(link.address().port());
        follow.exec_async(&mut replica.connection().await?).await?;
        let pair = Self {
            site: Site::with_redis(Site::one_window(), primary),
            replica,
            link,
        };
        wait::until("the replica to follow", SOON, || async { pair.waited(1).await.ok() }).await?;
        Ok(pair)
    }

    /// Writes a value, and waits until this many replicas have it.
    async fn waited(&self, replicas: u64) -> Result<()> {
        let mut redis = self.site.connection().await?;
        let pipe = redis::pipe()
            .set("of-another-application", clock::now_ms())
            .ignore()
            .cmd("WAIT")
            .arg(replicas)
            .arg(200)
            .to_owned();
        let [reached]: [u64; 1] = pipe.query_async(&mut redis).await?;
        ensure!(reached >= replicas, "{reached} replicas");
        Ok(())
    }

    async fn host(&self, kind: Kind) -> Result<Instance> {
        let host = self.site.host(kind).variable("redis_wait_replicas", "1");
        host.variable("redis_timeout_ms", "400").start().await
    }

    /// Returns whether the replica has this id of the window.
    async fn has(&self, id: i64) -> Result<bool> {
        let key = self.site.ids(clock::current_window(self.site.length));
        Ok(self.replica.connection().await?.sismember(key, id).await?)
    }
}

/// `ok` means that a replica has the id, also if the primary had it before.
///
/// The id may come from an attempt that was not completed, or from another client.
#[tokio::test]
async fn a_repeated_id_waits_for_the_replicas_too() -> Result<()> {
    on_each(async |options, name| {
        let on_host = async |kind| -> Result<()> {
            let pair = Pair::start(options.clone()).await?;
            let host = pair.host(kind).await?;
            // The replica has just connected, and may be slow at first.
            wait::until("an id on both", SOON, || async {
                (accept(&host, "id=1").await.ok()?.0 == 200).then_some(())
            })
            .await
            .with_context(|| format!("{name} {kind:?}: {}", host.process().log()))?;
            ensure!(pair.has(1).await?, "{name} {kind:?}");
            pair.link.hold();
            let window = clock::current_window(pair.site.length);
            pair.site.add(window, [3]).await?;
            // One id that needs two attempts, and one that the primary already has.
            for id in [2, 3] {
                let answer = accept(&host, &format!("id={id}")).await?;
                let expected = match kind {
                    Kind::VerveHost => (200, "spooled".to_owned()),
                    _ => (503, String::new()),
                };
                assert_eq!(answer, expected, "{name} {kind:?}: {id}\n{}", host.process().log());
            }
            if kind == Kind::VerveHost {
                // They stay in the spool, however often they are drained to the primary.
                tokio::time::sleep(Duration::from_secs(4)).await;
                assert_eq!(host.in_spool("SELECT sum(count) FROM ids")?, 2, "{name}");
            }
            assert!(!pair.has(2).await? && !pair.has(3).await?, "{name} {kind:?}");
            pair.link.restore();
            wait::until("the replica to have all", SOON, || async {
                accept(&host, "id=2").await.ok()?;
                let drained = kind != Kind::VerveHost || host.in_spool("SELECT count(*) FROM ids").ok()? == 0;
                (drained && pair.has(2).await.ok()? && pair.has(3).await.ok()?).then_some(())
            })
            .await
            .with_context(|| format!("{name} {kind:?}: {}", host.process().log()))?;
            Ok(())
        };
        tokio::try_join!(on_host(Kind::VerveHost), on_host(Kind::VerveHostP2)).map(drop)
    })
    .await
}

/// A set expires a day after its window's end, for every window length.
///
/// The same holds for the statistics.
#[tokio::test]
async fn sets_expire_a_day_after_their_windows_end() -> Result<()> {
    on_each(async |options, name| {
        let redis = options.start().await?;
        let mut connection = redis.connection().await?;
        let mut site = Site::with_redis(1, redis);
        for kind in [Kind::VerveHost, Kind::VerveHostP2] {
            for seconds in [1, 60, 3_600, 86_400] {
                for partitions in [1, 4] {
                    site = site.partitioned(partitions);
                    site.length = clock::length(seconds);
                    site.namespace = clock::unique("expiry");
                    let host = site.host(kind).start().await?;
                    for id in 0..8 {
                        assert_eq!(accept(&host, &format!("id={id}")).await?.0, 200, "{name} {kind:?}");
                    }
                    let (mut expiries, mut of_stats) = (Vec::new(), Vec::new());
                    wait::until("the statistics", SOON, || {
                        let (mut connection, pattern) = (connection.clone(), format!("*{}*:stats:*", site.namespace));
                        async move {
                            connection
                                .keys(pattern)
                                .await
                                .ok()
                                .filter(|keys: &Vec<String>| !keys.is_empty())
                        }
                    })
                    .await?;
                    let keys: Vec<String> = connection.keys(format!("*{}*", site.namespace)).await?;
                    for key in keys {
                        let at: i64 = redis::cmd("EXPIRETIME").arg(&key).query_async(&mut connection).await?;
                        if key.contains(":ids:") {
                            let window = verve_protocol::keys::ids_parts(&key).context("a set")?;
                            expiries.push((key.clone(), at - (window.1 + window.2).cast_signed()));
                        } else if key.contains(":stats:") {
                            let start: i64 = key.rsplit(':').next().context("a start")?.parse()?;
                            of_stats.push((key, at - start - i64::from(seconds)));
                        }
                    }
                    let day = UNREPORTED_SECONDS.cast_signed();
                    // Statistics are flushed a little later.
                    let near = |after: i64| (day - 2..=day + 5).contains(&after);
                    assert!(
                        !expiries.is_empty() && expiries.iter().all(|(_, after)| *after == day),
                        "{name} {kind:?}: {expiries:?}"
                    );
                    assert!(
                        of_stats.iter().all(|(_, after)| near(*after)),
                        "{name} {kind:?}: {of_stats:?}"
                    );
                }
            }
        }
        Ok(())
    })
    .await
}

/// A full Redis that evicts nothing gets room when ids are reported.
///
/// Another replica of the reporter takes over meanwhile.
#[tokio::test]
async fn reports_free_the_memory_of_a_full_redis() -> Result<()> {
    on_each(async |options, name| {
        let redis = options.start().await?;
        let site = Site::with_redis(1, redis);
        let mut ledger = Ledger::new().await?;
        let flags = ledger.flags(&site, &["--late-seconds", "1"]);
        let first = Reporter::ready(&flags).await?;
        let window = clock::next_window(site.length).await;
        // About 3 MB of ids that must be removed.
        let mut connection = site.connection().await?;
        for from in (0..50_000).step_by(1000) {
            let ids: Vec<i64> = (from..from + 1000).map(|id| id * 1_000_003).collect();
            let _: u64 = connection.sadd(site.ids(window), ids).await?;
        }
        first.process().kill();
        site.redis.set("maxmemory", "1").await?;
        let second = Reporter::start(&flags)?;
        ledger
            .read_to(window, 1, Duration::from_secs(30))
            .await
            .with_context(|| second.process().log())?;
        assert_eq!(ledger.of(window)[0].value, "50000", "{name}");
        wait::until("the ids to be removed", SOON, || async {
            let mut connection = site.connection().await.ok()?;
            let keys = site.keys();
            let left: u64 = redis::cmd("EXISTS")
                .arg(site.ids(window))
                .arg(keys.closed(window, Partition::Whole))
                .query_async(&mut connection)
                .await
                .ok()?;
            (left == 0).then_some(())
        })
        .await
        .with_context(|| format!("{name}: {}", second.process().log()))
    })
    .await
}
