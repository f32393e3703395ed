//! The operator's limits: ids per window, and callback jobs per endpoint in it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures::future;
use redis::AsyncCommands;
use verve_protocol::{Keys, Window};
use verve_tests::host::{Instance, Kind};
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site};

/// Returns the status and the outcome or error of the answer.
pub async fn accept(host: &Instance, query: &str) -> Result<(u16, String)> {
    let answer = http::get(host.addr(), &format!("/api/verve/accept?{query}")).await?;
    let outcome = answer.header("verve-outcome").or_else(|| answer.header("verve-error"));
    let outcome = outcome.context("no reason")?.to_owned();
    assert_eq!(answer.text(), if answer.status == 200 { "ok" } else { "failed" });
    Ok((answer.status, outcome))
}

pub fn is(status: u16, outcome: &str) -> (u16, String) {
    (status, outcome.to_owned())
}

#[tokio::test]
async fn a_window_takes_as_many_ids_as_it_may() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        // Two instances of the site, and enough concurrent requests that they record several ids
        // together.
        let hosts =
            future::try_join_all([(); 2].map(|()| site.host(kind).variable("window_limit", "50").start())).await?;
        let window = clock::current_window(site.length);
        let requests = (0..200).map(|n| {
            let host = &hosts[n % 2];
            async move { accept(host, &format!("id={}", n / 2)).await }
        });
        let mut answers = BTreeMap::<_, usize>::new();
        for answer in future::try_join_all(requests).await? {
            *answers.entry(answer).or_default() += 1;
        }
        let of = |answer| answers.get(&answer).copied().unwrap_or_default();
        assert_eq!(of(is(200, "new")), 50, "{kind:?}: {answers:?}");
        assert_eq!(of(is(200, "duplicate")), 50, "{kind:?}: {answers:?}");
        assert_eq!(of(is(429, "window-limit")), 100, "{kind:?}: {answers:?}");
        let members = site.members(window).await?.remove(0);
        assert_eq!(members.len(), 50, "{kind:?}");
        // Recorded ids are still answered `duplicate`; other ids are still refused.
        for id in &members {
            assert_eq!(
                accept(&hosts[0], &format!("id={id}")).await?,
                is(200, "duplicate"),
                "{kind:?}"
            );
        }
        assert_eq!(accept(&hosts[1], "id=-1").await?, is(429, "window-limit"), "{kind:?}");
        counted(
            &site,
            &site.keys(),
            window,
            &[("limited", 101), ("new", 50), ("requests", 251)],
        )
        .await
        .with_context(|| format!("{kind:?}"))?;
        let log = hosts[1].process().log();
        assert!(
            log.contains("not recorded") && log.contains("window_limit"),
            "{kind:?}: {log}"
        );
    }
    Ok(())
}

/// Each partition takes its share.
#[tokio::test]
async fn partitions_share_the_limit() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?.partitioned(2);
        let host = site.host(kind).variable("window_limit", "20").start().await?;
        let window = clock::current_window(site.length);
        let mut refused = 0;
        for id in 0..60 {
            refused += u64::from(accept(&host, &format!("id={id}")).await? == is(429, "window-limit"));
        }
        let sizes: Vec<usize> = site.members(window).await?.iter().map(|ids| ids.len()).collect();
        assert_eq!((sizes.as_slice(), refused), (&[10, 10][..], 40), "{kind:?}");
        counted(
            &site,
            &site.keys(),
            window,
            &[("limited", 40), ("new", 20), ("requests", 60)],
        )
        .await
        .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_gets_as_many_jobs_as_it_may() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let host = site.host(kind).variable("endpoint_limit", "2").start().await?;
        let window = clock::current_window(site.length);
        for (id, endpoint, expected) in [
            (1, "e", is(200, "new")),
            (1, "e", is(200, "duplicate")),
            (1, "e", is(429, "endpoint-limit")),
            (2, "e", is(429, "endpoint-limit")),
            (3, "f", is(200, "new")),
            (3, "e", is(429, "endpoint-limit")),
        ] {
            let query = format!("id={id}&endpoint=http%3A%2F%2F{endpoint}.com%2F");
            assert_eq!(accept(&host, &query).await?, expected, "{kind:?} {query}");
        }
        // Requests without an endpoint are not limited, and refused ids are not recorded.
        assert_eq!(accept(&host, "id=4").await?, is(200, "new"), "{kind:?}");
        let ids = ["1", "3", "4"].map(str::to_owned);
        assert_eq!(site.members(window).await?[0], ids.into(), "{kind:?}");
        assert_eq!(site.stream(&site.keys().callbacks()).await?.len(), 3, "{kind:?}");
        counted(&site, &site.keys(), window, &[("limited", 3), ("requests", 7)])
            .await
            .with_context(|| format!("{kind:?}"))?;
        let mut redis = site.connection().await?;
        let endpoints = site.keys().endpoints(window);
        let (known, expiry): (usize, i64) = (redis.hlen(&endpoints).await?, redis.ttl(&endpoints).await?);
        assert_eq!(known, 2, "{kind:?}");
        assert!((1..=86_460).contains(&expiry), "{kind:?}: {expiry}");
    }
    Ok(())
}

/// A manifest from before the limits existed has no such variables.
#[tokio::test]
async fn without_the_variables_there_is_no_limit() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let manifest = kind.manifest()?;
        let lines = manifest.lines().filter(|line| !line.contains("_limit = "));
        let manifest = lines.collect::<Vec<_>>().join("\n");
        assert!(!manifest.contains("window_limit"));
        // `spool_limit` existed from the beginning.
        let manifest = manifest.replace(
            "[component.accept.variables]",
            "[component.accept.variables]\nspool_limit = \"1000\"",
        );
        let host = site.host(kind).manifest(manifest).start().await?;
        assert_eq!(
            accept(&host, "id=1").await?,
            is(200, "new"),
            "{kind:?}: {}",
            host.process().log()
        );
    }
    Ok(())
}

/// Waits until the statistics of a counter's window have these values.
pub async fn counted(site: &Site, of: &Keys, window: Window, expected: &[(&str, u64)]) -> Result<()> {
    let stats = of.stats(window);
    let read = async || -> Option<BTreeMap<String, u64>> { site.connection().await.ok()?.hgetall(&stats).await.ok() };
    let reached = wait::until("statistics", SOON, || async {
        let counts = read().await?;
        let agrees = |(name, n): &(&str, u64)| counts.get(*name) == Some(n);
        expected.iter().all(agrees).then_some(())
    });
    reached.await.with_context(|| format!("{expected:?}"))
}
