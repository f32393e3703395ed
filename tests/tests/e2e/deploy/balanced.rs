//! Tests the site that `deploy/` describes, without containers.
//!
//! It has nginx with the shipped configuration, three hosts, a Redis that keeps its data, Kafka,
//! and two reporters.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use verve_tests::host::{Instance, Kind};
use verve_tests::nginx::Nginx;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, load, net, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// All traffic of a test is sent within one window, so its count is known.
const WINDOW_SECONDS: u32 = 12;
const TRAFFIC_MS: u64 = 10_000;
const BATCHES: i64 = 8;
const BATCH: i64 = 750;

async fn site() -> Result<Site> {
    let redis = RedisServer::options().append_only();
    Ok(Site::with_redis(WINDOW_SECONDS, redis.start().await?))
}

async fn hosts(site: &Site, kind: Kind) -> Result<Vec<Instance>> {
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(site.host(kind).start().await?);
    }
    Ok(hosts)
}

async fn before(hosts: &[Instance]) -> Result<Nginx> {
    let addresses: Vec<SocketAddr> = hosts.iter().map(Instance::addr).collect();
    Nginx::start(&addresses).await
}

/// Returns the ids of a batch.
///
/// Two thirds of them are repeated in it, and some in the next batch.
fn ids(batch: i64) -> Vec<i64> {
    (0..BATCH).map(|n| batch * 200 + n * 7 % 250).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_dies_under_load_and_the_count_is_exact() -> Result<()> {
    for kind in Kind::available() {
        let site = site().await?;
        let mut ledger = Ledger::new().await?;
        let hosts = hosts(&site, kind).await?;
        let nginx = before(&hosts).await?;
        let flags = ledger.flags(&site, &[]);
        let _reporters = [Reporter::ready(&flags).await?, Reporter::ready(&flags).await?];

        let mut window = clock::current_window(site.length);
        if window.end_ms() < clock::now_ms() + TRAFFIC_MS {
            window = clock::next_window(site.length).await;
        }
        let mut sent = BTreeSet::new();
        for batch in 0..BATCHES {
            let ids = ids(batch);
            let targets = ids.iter().map(|id| format!("/api/verve/accept?id={id}")).collect();
            let kill = async {
                if batch == 2 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    hosts[0].process().kill();
                }
            };
            let entrance = [nginx.addr()];
            let (answers, ()) = tokio::join!(load::run(&entrance, 40, targets), kill);
            for (id, answer) in ids.iter().zip(answers?) {
                ensure!(answer.status == 200, "{kind:?}: id {id}: {answer:?}");
            }
            sent.extend(ids);
        }
        let sent_in = clock::current_window(site.length);
        assert_eq!(sent_in, window, "this machine is too slow for this test");
        // Proves that the host died with requests in flight, and that nginx asked others instead.
        let log = nginx.process().log();
        let dead = format!("upstream: \"http://{}/", hosts[0].addr());
        let in_flight = |line: &str| line.contains("reading response header from upstream") && line.contains(&dead);
        assert!(log.lines().any(in_flight), "{kind:?}: {log}");

        ledger.read_to(window, 1, Duration::from_secs(60)).await?;
        ledger.read_for(Duration::from_secs(2)).await;
        let records: Vec<_> = ledger
            .of(window)
            .iter()
            .map(|r| (&*r.value, r.header("revision")))
            .collect();
        assert_eq!(records, [(&*sent.len().to_string(), "0")], "{kind:?}: {ledger}");
        let members = sent.iter().map(ToString::to_string).collect();
        assert_eq!(site.members(window).await?, [members], "{kind:?}");
    }
    Ok(())
}

/// Restarts the hosts one after the other, as an update does.
///
/// This balancer ignores the health check: if a host does not respond, it asks another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_host_is_restarted_under_load_and_no_request_fails() -> Result<()> {
    let site = site().await?;
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(site.host(Kind::VerveHost).stop_grace("2s").start().await?);
    }
    let addresses: Vec<SocketAddr> = hosts.iter().map(Instance::addr).collect();
    let nginx = Nginx::start(&addresses).await?;
    let entrance = [nginx.addr()];
    let over = AtomicBool::new(false);
    let load = async {
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            let targets = (sent..sent + 1000)
                .map(|id| format!("/api/verve/accept?id={id}"))
                .collect();
            for answer in load::run(&entrance, 40, targets).await? {
                ensure!(answer.status == 200, "after {sent}: {answer:?}");
            }
            sent += 1000;
        }
        anyhow::Ok(sent)
    };
    let restarts = async {
        for host in &mut hosts {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let unhealthy = wait::until("the health check to fail", SOON, || async {
                let health = http::get(host.addr(), "/.well-known/spin/health").await.ok()?;
                let closes = health.header("connection") == Some("close");
                (health.status == 503 && closes).then_some(())
            });
            let (stopped, unhealthy) = tokio::join!(host.process().terminate(SOON), unhealthy);
            unhealthy?;
            ensure!(stopped?.success(), "{}", host.process().log());
            host.restart().await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (sent, restarted) = tokio::join!(load, restarts);
    restarted?;
    ensure!(sent? > 3000);
    Ok(())
}

#[tokio::test]
async fn answers_come_through_as_the_component_gave_them() -> Result<()> {
    for kind in Kind::available() {
        let site = site().await?;
        let hosts = hosts(&site, kind).await?;
        let nginx = before(&hosts).await?;
        // The longest possible endpoint, with each byte of its path percent-encoded.
        let host = "http://e.com/";
        let path = "%2F".repeat(2048 - host.len());
        let long = format!("id=1&endpoint=http%3A%2F%2Fe.com%2F{path}");
        for (query, status, name, value) in [
            ("id=1", 200, "verve-outcome", "new"),
            ("id=x", 400, "verve-error", "invalid-id"),
            (&long, 200, "verve-outcome", "duplicate"),
        ] {
            let answer = http::get(nginx.addr(), &format!("/api/verve/accept?{query}")).await?;
            assert_eq!(answer.status, status, "{kind:?} {query}: {answer:?}");
            assert_eq!(answer.header(name), Some(value), "{kind:?} {query}: {answer:?}");
            assert_eq!(
                answer.header("cache-control"),
                Some("no-store"),
                "{kind:?} {query}: {answer:?}"
            );
            assert!(
                answer.header("content-length").is_some(),
                "{kind:?} {query}: {answer:?}"
            );
        }
        for path in ["/", "/api/verve/accept/more", "/.well-known/spin/health"] {
            let answer = http::get(nginx.addr(), path).await?;
            assert_eq!(answer.status, 404, "{kind:?} {path}: nothing else is reached");
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_a_host_it_answers_failed() -> Result<()> {
    let nobody = [net::free_address()?, net::free_address()?, net::free_address()?];
    let nginx = Nginx::start(&nobody).await?;
    // The second request finds all hosts marked as failed.
    for attempt in 0..10 {
        let answer = http::get(nginx.addr(), "/api/verve/accept?id=1").await?;
        let context = format!("{attempt}: {answer:?}");
        assert_eq!((answer.status, answer.text().as_str()), (503, "failed"), "{context}");
        assert_eq!(answer.header("verve-error"), Some("unavailable"), "{context}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{context}");
        let content_type = answer.header("content-type").context("a content type")?;
        assert_eq!(content_type, "text/plain; charset=utf-8", "{context}");
    }
    Ok(())
}
