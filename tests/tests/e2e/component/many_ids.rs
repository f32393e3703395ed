//! Many ids in one call for WASI 0.2, where each round trip to Redis blocks.
//!
//! Uses the example `ingest`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{Window, WindowLength};
use verve_tests::host::{Instance, Kind};
use verve_tests::link::{Hold, Link};
use verve_tests::redis::RedisServer;
use verve_tests::{clock, http};

use crate::component::footprint::calls;
use crate::library::examples::{example, example_with};
use crate::site::{SOON, Site};

/// Adds devices, and returns the status and the outcome of each device.
async fn ingest(instance: &Instance, devices: impl IntoIterator<Item = u32>) -> Result<(u16, Vec<String>)> {
    let devices: Vec<String> = devices.into_iter().map(|device| format!("device={device}")).collect();
    let answered = http::get(instance.addr(), &format!("/ingest?{}", devices.join("&"))).await?;
    let outcomes = serde_json::from_slice(&answered.body);
    let outcomes = outcomes.with_context(|| format!("{}; {}", answered.text(), instance.process().log()))?;
    Ok((answered.status, outcomes))
}

async fn stats(site: &Site, window: Window) -> Result<BTreeMap<String, u64>> {
    Ok(site.connection().await?.hgetall(site.keys().stats(window)).await?)
}

fn wanted<const N: usize>(stats: [(&str, u64); N]) -> BTreeMap<String, u64> {
    stats.map(|(field, n)| (field.to_owned(), n)).into()
}

#[tokio::test]
async fn they_are_recorded_by_few_scripts() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let instance = example(&site, kind, "ingest")?.start().await?;
        let window = clock::current_window(site.length);
        // More ids than one script takes, and two of them twice.
        let devices = (0..600).chain([5, 599]);
        let (status, outcomes) = ingest(&instance, devices).await?;
        assert_eq!(status, 200, "{kind:?}: {outcomes:?}");
        assert!(
            outcomes[..600].iter().all(|outcome| outcome == "new"),
            "{kind:?}: {outcomes:?}"
        );
        assert_eq!(outcomes[600..], ["duplicate", "duplicate"], "{kind:?}");
        assert_eq!(site.members(window).await?[0].len(), 600, "{kind:?}");
        let counted = wanted([("requests", 602), ("new", 600), ("duplicate", 2)]);
        assert_eq!(stats(&site, window).await?, counted, "{kind:?}");
        let keys = [site.keys().stats(window), site.ids(window)];
        let mut redis = site.connection().await?;
        for key in keys {
            let ttl: i64 = redis.ttl(&key).await?;
            assert!((86_000..=172_800).contains(&ttl), "{kind:?}: {key} expires in {ttl} s");
        }
        if site.redis.servers().len() == 1 {
            // One script for 500 ids, one for the others, one for the statistics of all.
            let calls = calls(site.redis.server()).await?;
            assert_eq!(calls.get("eval"), Some(&3), "{kind:?}: {calls:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_partition_takes_its_share() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?.partitioned(2);
        let variables = [("partitions", "2"), ("window_limit", "20")];
        let instance = example_with(&site, kind, "ingest", &variables)?.start().await?;
        let window = clock::current_window(site.length);
        assert_eq!(ingest(&instance, [0]).await?, (200, vec!["new".to_owned()]), "{kind:?}");
        let (status, outcomes) = ingest(&instance, 0..60).await?;
        assert_eq!((status, outcomes[0].as_str()), (503, "duplicate"), "{kind:?}");
        let of = |name: &str| outcomes.iter().filter(|outcome| *outcome == name).count();
        assert_eq!((of("new"), of("failed")), (19, 40), "{kind:?}: {outcomes:?}");
        // Each answer belongs to the right device.
        let members = site.members(window).await?;
        assert_eq!(
            members.iter().map(|set| set.len()).collect::<Vec<_>>(),
            [10, 10],
            "{kind:?}"
        );
        for (device, outcome) in outcomes.iter().enumerate() {
            let is_there = members.iter().any(|set| set.contains(&device.to_string()));
            assert_eq!(is_there, outcome != "failed", "{kind:?}: {device}");
        }
        let counted = wanted([("requests", 61), ("new", 20), ("duplicate", 1), ("limited", 40)]);
        assert_eq!(stats(&site, window).await?, counted, "{kind:?}");
    }
    Ok(())
}

/// An id whose answer from Redis is lost is counted once.
///
/// Redis has recorded the ids; the next attempt finds them there.
#[tokio::test]
async fn a_lost_answer_counts_none_twice() -> Result<()> {
    let site = Site::with_redis(WindowLength::MAX_SECONDS, RedisServer::start().await?);
    let link = Link::start(site.redis.server().address()).await?;
    let url = format!("redis://{}", link.address());
    let host = example(&site, Kind::VerveHost, "ingest")?.variable("redis_urls", &url);
    let instance = host.start().await?;
    let window = clock::current_window(site.length);
    let mut gate = link.gate(&["EVAL"], Hold::Answer);
    let (status, outcomes) = ingest(&instance, 0..3).await?;
    gate.reached(SOON).await?;
    drop(gate);
    assert_eq!((status, outcomes), (200, vec!["duplicate".to_owned(); 3]));
    ingest(&instance, 2..5).await?;
    let counted = wanted([("requests", 6), ("new", 2), ("duplicate", 4)]);
    assert_eq!(stats(&site, window).await?, counted);
    assert_eq!(site.members(window).await?[0].len(), 5);
    let ttl: i64 = site.connection().await?.ttl(site.ids(window)).await?;
    assert!(ttl > 0, "{ttl}");
    Ok(())
}
