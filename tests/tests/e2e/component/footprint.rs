//! What a request stores in Redis, and how many commands it costs there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Id;
use verve_tests::host::{Instance, Kind};
use verve_tests::redis::RedisServer;
use verve_tests::{clock, http, load, wait};

use crate::site::{SOON, Site};

async fn accept(instance: &Instance, query: &str) -> Result<String> {
    let response = http::get(instance.addr(), &format!("/api/verve/accept?{query}")).await?;
    anyhow::ensure!(response.status == 200, "{query}: {response:?}");
    Ok(response.header("verve-outcome").unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_set_of_canonical_ids_that_expires_a_day_after_its_window() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        for (query, outcome) in [("id=007", "new"), ("id=-5", "new"), ("id=7", "duplicate")] {
            assert_eq!(accept(&instance, query).await?, outcome, "{kind:?} {query}");
        }
        let window = clock::current_window(site.length);
        let key = format!("{}:ids:{}:{}", site.namespace, site.length, window.start());
        let mut redis = site.connection().await?;
        let members: Vec<String> = redis.smembers(&key).await?;
        let members: std::collections::BTreeSet<_> = members.iter().map(String::as_str).collect();
        assert_eq!(members, ["-5", "7"].into(), "{kind:?}");
        // The expiry may be set after the answer.
        let ttl: i64 = wait::until("the set's expiry", SOON, || async {
            let mut redis = site.connection().await.ok()?;
            redis.ttl(&key).await.ok().filter(|ttl| *ttl > 0)
        })
        .await?;
        let at = window.end() + 86_400;
        let left = at.saturating_sub(clock::now_ms() / 1000).cast_signed();
        assert!((left - 2..left + 10).contains(&ttl), "{kind:?}: {ttl}");
    }
    Ok(())
}

#[tokio::test]
async fn an_id_belongs_to_the_window_of_its_moment() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::new(1).await?;
        let instance = site.host(kind).start().await?;
        for _ in 0..3 {
            let window = clock::next_window(site.length).await;
            assert_eq!(accept(&instance, "id=5").await?, "new", "{kind:?}: new in each window");
            if clock::current_window(site.length) == window {
                assert_eq!(site.members(window).await?, [["5".to_owned()].into()], "{kind:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn statistics_add_up() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        for query in ["id=1", "id=2", "id=2", "id=3"] {
            accept(&instance, query).await?;
        }
        for query in ["id=x", "", "id=1&method=put"] {
            http::get(instance.addr(), &format!("/api/verve/accept?{query}")).await?;
        }
        let key = site.keys().stats(clock::current_window(site.length));
        let wanted = [("requests", 7), ("new", 3), ("duplicate", 1), ("invalid", 3)];
        let wanted: HashMap<String, u64> = wanted.map(|(name, n)| (name.to_owned(), n)).into();
        let stats = wait::until("the statistics", SOON, || async {
            let stats: HashMap<String, u64> = site.connection().await.ok()?.hgetall(&key).await.ok()?;
            (stats.get("requests") == Some(&7)).then_some(stats)
        })
        .await
        .with_context(|| format!("{kind:?}"))?;
        let stats: HashMap<_, _> = stats.into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(stats, wanted, "{kind:?}");
        let ttl: i64 = site.connection().await?.ttl(&key).await?;
        assert!(
            (86_000..=172_800).contains(&ttl),
            "{kind:?}: statistics expire in {ttl} s"
        );
    }
    Ok(())
}

/// Returns how often each Redis command has been called so far.
pub async fn calls(redis: &RedisServer) -> Result<HashMap<String, u64>> {
    let text: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis.connection().await?)
        .await?;
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

#[tokio::test]
async fn an_id_costs_a_command_at_most_and_a_repeated_one_none() -> Result<()> {
    const IDS: u64 = 2_000;
    // In Spin, an instance of the component serves this many requests, and starts with a few
    // commands of its own.
    const IN_SPIN: u64 = 128;
    let as_in_spin = [
        "--max-instance-reuse-count",
        "128",
        "--max-instance-concurrent-reuse-count",
        "16",
    ];
    let mut hosts: Vec<(Kind, &[&str])> = Kind::available().into_iter().map(|kind| (kind, &[][..])).collect();
    hosts.push((Kind::VerveHost, &as_in_spin));
    for (kind, flags) in hosts {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).flags(flags).start().await?;
        let is_long_lived = kind == Kind::VerveHost && flags.is_empty();
        let most = if is_long_lived {
            IDS / 10
        } else {
            40 * IDS.div_ceil(IN_SPIN)
        };
        let targets = (0..IDS).map(|id| format!("/api/verve/accept?id={id}")).collect();
        let answers = load::run(&[instance.addr()], 32, targets).await?;
        assert!(answers.iter().all(|a| a.outcome.as_deref() == Some("new")), "{kind:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        // All commands are included: scripts and the commands in them, expiry, statistics and
        // connecting, which happen once for each instance of the component.
        let total = async || Ok::<u64, anyhow::Error>(calls(site.redis.server()).await?.into_values().sum());
        let of_ids = total().await?;
        assert!(
            of_ids <= IDS + most,
            "{kind:?}: {of_ids}: {:?}",
            calls(site.redis.server()).await?
        );

        // All from one client, and so by one instance of the component, which knows these ids.
        let begin = Instant::now();
        let targets = (0..100)
            .map(|i| format!("/api/verve/accept?id={}", 10_000 + i % 10))
            .collect();
        let answers = load::run(&[instance.addr()], 1, targets).await?;
        let new = answers.iter().filter(|a| a.outcome.as_deref() == Some("new")).count();
        assert_eq!(new, 10, "{kind:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let of_repeats = total().await? - of_ids;
        // Ten new ids, and statistics five times a second for as long as the requests take.
        let most = 40 + 25 * begin.elapsed().as_secs();
        assert!(of_repeats < most, "{kind:?}: {of_repeats} commands for 100 requests");
    }
    Ok(())
}

#[tokio::test]
async fn partitions_share_the_ids() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?.partitioned(3);
        let instance = site.host(kind).start().await?;
        let ids: Vec<i64> = (0..60).chain([i64::MIN, i64::MAX, -1]).collect();
        for id in &ids {
            let query = format!("id={id}&endpoint=http://e.com/");
            assert_eq!(accept(&instance, &query).await?, "new", "{kind:?} {id}");
        }
        let window = clock::current_window(site.length);
        let sets = site.members(window).await?;
        for (partition, members) in site.partitions.all().zip(sets) {
            let here = ids.iter().filter(|id| Id(**id).partition(site.partitions) == partition);
            let here = here.map(ToString::to_string).collect();
            assert_eq!(members, here, "{kind:?} {partition:?}");
            let ttl: i64 = wait::until("each set's expiry", SOON, || async {
                let key = site.keys().ids(window, partition);
                let mut redis = site.connection().await.ok()?;
                redis.ttl(key).await.ok().filter(|ttl| *ttl > 0)
            })
            .await?;
            assert!((86_000..=172_800).contains(&ttl), "{kind:?}: {ttl}");
        }
    }
    Ok(())
}

/// An instance's dedup cache ends with the Redis that it describes.
///
/// A Redis that comes back without its data gets the ids again.
#[tokio::test]
async fn a_redis_without_its_data_is_given_the_ids_again() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        let window = clock::current_window(site.length);
        for outcome in ["new", "duplicate", "duplicate"] {
            assert_eq!(accept(&instance, "id=1").await?, outcome, "{kind:?}");
        }
        site.redis.restart().await?;
        let restarted = Instant::now();
        // The same instance, kept busy by ids that it knows.
        while accept(&instance, "id=1").await? == "duplicate" {
            assert!(
                restarted.elapsed() < Duration::from_secs(3),
                "{kind:?}: it is not recorded again"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        wait::until("the id to be there", SOON, || async {
            site.members(window).await.ok().filter(|sets| sets[0].contains("1"))
        })
        .await?;
        assert_eq!(site.members(window).await?[0], ["1".to_owned()].into(), "{kind:?}");
        assert_eq!(accept(&instance, "id=1").await?, "duplicate", "{kind:?}");
    }
    Ok(())
}
