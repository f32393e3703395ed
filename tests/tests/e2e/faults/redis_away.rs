//! Tests failures of Redis.
//!
//! The answer is a prompt `ok`, with the id in the spool and later in Redis.
//! Without a spool, the answer is a prompt 503 and never a false `ok`. Everything works as soon as
//! Redis does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::WindowLength;
use verve_protocol::keys::MAX_QUEUED_JOBS;
use verve_tests::host::{Instance, Kind, Options};
use verve_tests::http::Response;
use verve_tests::link::{Hold, Link};
use verve_tests::redis::RedisServer;
use verve_tests::{clock, http, net, paths, wait};

use crate::site::{SOON, Site};

/// For one attempt, of which there are two.
const TIMEOUT: Duration = Duration::from_millis(400);
/// For everything else between request and answer on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

fn options(site: &Site, kind: Kind) -> Options {
    site.host(kind)
        .variable("redis_timeout_ms", &TIMEOUT.as_millis().to_string())
}

async fn start(site: &Site, kind: Kind) -> Result<Instance> {
    options(site, kind).start().await
}

/// Starts a site whose Redis has a password, and an instance with a wrong one.
async fn with_a_stranger(kind: Kind) -> Result<(Site, Instance)> {
    let redis = RedisServer::options().password("right").start().await?;
    let site = Site::with_redis(WindowLength::MAX_SECONDS, redis);
    let wrong = site.redis_urls().replace("right", "wrong");
    let stranger = site.host(kind).variable("redis_urls", &wrong).start().await?;
    Ok((site, stranger))
}

/// Returns the repository's manifest without a database, and so without a spool.
fn without_spool() -> Result<String> {
    let manifest = std::fs::read_to_string(paths::manifest())?;
    let grant = "sqlite_databases = [\"default\"]";
    assert!(manifest.contains(grant));
    Ok(manifest.replace(grant, ""))
}

async fn accept(instance: &Instance, id: i64) -> Result<Response> {
    http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await
}

async fn assert_answer(instance: &Instance, id: i64, status: u16, reason: (&str, &str), context: &str) -> Result<()> {
    let begin = Instant::now();
    let response = accept(instance, id).await?;
    let took = begin.elapsed();
    let body = if status == 200 { "ok" } else { "failed" };
    assert_eq!(
        (response.status, response.text().as_str()),
        (status, body),
        "{context}: {response:?}"
    );
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", &body.len().to_string()),
        ("cache-control", "no-store"),
        reason,
    ] {
        assert_eq!(response.header(name), Some(value), "{context}: {name}");
    }
    let other = ["verve-error", "verve-outcome"]
        .into_iter()
        .find(|name| *name != reason.0);
    assert_eq!(response.header(other.unwrap_or_default()), None, "{context}");
    assert!(took < 2 * TIMEOUT + SLACK, "{context}: took {took:?}");
    Ok(())
}

async fn assert_unavailable(instance: &Instance, id: i64, context: &str) -> Result<()> {
    assert_answer(instance, id, 503, ("verve-error", "unavailable"), context).await
}

async fn assert_spooled(instance: &Instance, id: i64, context: &str) -> Result<()> {
    assert_answer(instance, id, 200, ("verve-outcome", "spooled"), context).await
}

/// Waits until ids go to Redis again.
///
/// After a failure they may go to the spool for a short while.
async fn assert_recovers(instance: &Instance, id: i64, context: &str) -> Result<()> {
    wait::until("recovery", SOON, || async {
        let response = accept(instance, id).await.ok()?;
        let outcome = response.header("verve-outcome")?;
        (response.status == 200 && outcome != "spooled").then_some(())
    })
    .await
    .with_context(|| context.to_owned())
}

/// Waits until exactly these ids are in the current window, on all Redis together.
async fn assert_ids(site: &Site, ids: impl IntoIterator<Item = i64>, context: &str) -> Result<()> {
    let ids: BTreeSet<String> = ids.into_iter().map(|id| id.to_string()).collect();
    let window = clock::current_window(site.length);
    let found = async || {
        Some(
            site.members(window)
                .await
                .ok()?
                .into_iter()
                .flatten()
                .collect::<BTreeSet<_>>(),
        )
    };
    wait::until("the ids", SOON, || async {
        found().await.filter(|found| *found == ids)
    })
    .await
    .with_context(|| format!("{context}: expected {ids:?}"))?;
    Ok(())
}

#[tokio::test]
async fn redis_that_is_down() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        assert_eq!(accept(&instance, 1).await?.status, 200, "{kind:?}");
        site.redis.kill();
        assert_spooled(&instance, 2, &format!("{kind:?}, on a connection that broke")).await?;
        assert_spooled(&instance, 3, &format!("{kind:?}, where nobody listens")).await?;
        assert_spooled(&instance, 3, &format!("{kind:?}, again")).await?;
        // It restarts without its data.
        site.redis.restart().await?;
        assert_recovers(&instance, 4, &format!("{kind:?}")).await?;
        assert_ids(&site, [2, 3, 4], &format!("{kind:?}")).await?;
    }
    Ok(())
}

/// The same without a spool: WASI 0.2, or a manifest that grants no database.
///
/// Only the spooling is missing.
#[tokio::test]
async fn redis_that_is_down_without_a_spool() -> Result<()> {
    for kind in Kind::every() {
        let mut site = Site::with_one_window().await?;
        let options = options(&site, kind);
        let instance = if kind.is_p2() {
            options
        } else {
            options.manifest(without_spool()?)
        };
        let instance = instance.start().await?;
        assert_eq!(
            accept(&instance, 1).await?.header("verve-outcome"),
            Some("new"),
            "{kind:?}"
        );
        site.redis.kill();
        assert_unavailable(&instance, 2, &format!("{kind:?}, on a connection that broke")).await?;
        assert_unavailable(&instance, 2, &format!("{kind:?}, where nobody listens")).await?;
        site.redis.restart().await?;
        assert_recovers(&instance, 3, &format!("{kind:?}")).await?;
        assert_ids(&site, [3], &format!("{kind:?}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_was_never_up() -> Result<()> {
    for kind in Kind::available() {
        let address = net::free_address()?;
        let url = format!("redis://{address}");
        let spooling = Instance::start(kind, &[("redis_urls", &url)]).await?;
        let failing = Instance::options(kind)
            .variable("redis_urls", &url)
            .manifest(without_spool()?);
        let failing = failing.start().await?;
        assert_spooled(&spooling, 1, &format!("{kind:?}")).await?;
        assert_unavailable(&failing, 1, &format!("{kind:?}")).await?;
        let _redis = RedisServer::options().port(address.port()).start().await?;
        assert_recovers(&spooling, 1, &format!("{kind:?}")).await?;
        assert_recovers(&failing, 2, &format!("{kind:?}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_accepts_and_never_answers() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let spooling = start(&site, kind).await?;
        let failing = options(&site, kind).manifest(without_spool()?).start().await?;
        // Never used before, so the connection is not open yet.
        site.redis.pause()?;
        assert_spooled(&spooling, 1, &format!("{kind:?}, connecting")).await?;
        assert_unavailable(&failing, 10, &format!("{kind:?}, connecting")).await?;
        site.redis.resume()?;
        assert_recovers(&spooling, 2, &format!("{kind:?}")).await?;
        assert_recovers(&failing, 2, &format!("{kind:?}")).await?;
        // Now the connection is open.
        site.redis.pause()?;
        assert_spooled(&spooling, 3, &format!("{kind:?}, connected")).await?;
        assert_spooled(&spooling, 4, &format!("{kind:?}, again")).await?;
        assert_unavailable(&failing, 11, &format!("{kind:?}, connected")).await?;
        site.redis.resume()?;
        assert_recovers(&spooling, 5, &format!("{kind:?}")).await?;
        assert_recovers(&failing, 5, &format!("{kind:?}")).await?;
        // Ids that were answered 503 may have arrived in Redis.
        let window = clock::current_window(site.length);
        wait::until("spooled ids", SOON, || async {
            let ids = site.members(window).await.ok()?.pop()?;
            (1..=5).all(|id: i64| ids.contains(&id.to_string())).then_some(())
        })
        .await
        .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_answers_errors() -> Result<()> {
    for kind in Kind::available() {
        // First with a wrong password, then with the right one.
        let (site, instance) = with_a_stranger(kind).await?;
        assert_spooled(&instance, 1, &format!("{kind:?}, wrong password")).await?;
        let instance = start(&site, kind).await?;
        assert_eq!(accept(&instance, 1).await?.status, 200, "{kind:?}, right password");

        // A replica can be read, but not written.
        let replicate = async |host: &str, port: &str| -> Result<()> {
            let mut redis = site.connection().await?;
            Ok(redis::cmd("REPLICAOF")
                .arg(host)
                .arg(port)
                .exec_async(&mut redis)
                .await?)
        };
        replicate("127.0.0.1", "1").await?;
        assert_spooled(&instance, 2, &format!("{kind:?}, a replica")).await?;
        replicate("NO", "ONE").await?;
        assert_recovers(&instance, 3, &format!("{kind:?}")).await?;
        assert_ids(&site, 1..=3, &format!("{kind:?}, a replica")).await?;

        // If a job cannot be written, its request is answered `ok` only if the job is in the spool.
        let mut redis = site.connection().await?;
        let () = redis.set(site.keys().callbacks(), "not a stream").await?;
        let target = "/api/verve/accept?id=6&endpoint=http://e.com/";
        let failing = options(&site, kind).manifest(without_spool()?).start().await?;
        let response = http::get(failing.addr(), target).await?;
        assert_eq!(response.status, 503, "{kind:?}, no stream: {response:?}");
        assert_eq!(
            http::get(instance.addr(), target).await?.status,
            200,
            "{kind:?}, no stream"
        );
        let () = redis.del(site.keys().callbacks()).await?;
        let jobs = wait::until("the job", SOON, || async {
            // Occasional requests, after which the spool is drained.
            accept(&instance, 6).await.ok()?;
            Some(site.stream(&site.keys().callbacks()).await.ok()?).filter(|jobs| !jobs.is_empty())
        });
        assert_eq!(jobs.await?.len(), 1, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_has_no_memory_left() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        assert_eq!(accept(&instance, 1).await?.status, 200, "{kind:?}");
        site.redis.set("maxmemory", "1").await?;
        assert_spooled(&instance, 2, &format!("{kind:?}")).await?;
        site.redis.set("maxmemory", "0").await?;
        assert_recovers(&instance, 3, &format!("{kind:?}")).await?;
        assert_ids(&site, [1, 2, 3], &format!("{kind:?}")).await?;
    }
    Ok(())
}

/// A build without a spool answers 503 in time on any failure, and recovers.
///
/// The build for WASI 0.2 cannot limit the time itself; there the host does.
#[tokio::test]
async fn redis_that_fails_in_any_way_without_a_spool() -> Result<()> {
    for kind in Kind::every().into_iter().filter(|kind| kind.is_p2()) {
        let (site, stranger) = with_a_stranger(kind).await?;
        assert_unavailable(&stranger, 1, &format!("{kind:?}, wrong password")).await?;
        let instance = start(&site, kind).await?;
        // Spin has no time limit.
        if kind == Kind::VerveHostP2 {
            site.redis.pause()?;
            let response = accept(&instance, 2).await?;
            assert_eq!(response.status, 503, "{kind:?}: {response:?}");
            site.redis.resume()?;
            assert_recovers(&instance, 2, &format!("{kind:?}, paused")).await?;
        }
        site.redis.set("maxmemory", "1").await?;
        assert_unavailable(&instance, 3, &format!("{kind:?}, no memory")).await?;
        site.redis.set("maxmemory", "0").await?;
        assert_recovers(&instance, 4, &format!("{kind:?}")).await?;
        // A request whose callback job cannot be added is refused, although its id is recorded.
        let mut redis = site.connection().await?;
        let () = redis.set(site.keys().callbacks(), "not a stream").await?;
        let target = "/api/verve/accept?id=5&endpoint=http://e.com/";
        assert_eq!(http::get(instance.addr(), target).await?.status, 503, "{kind:?}");
        let () = redis.del(site.keys().callbacks()).await?;
        let fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'a', 'b') end";
        let mut eval = redis::cmd("EVAL");
        eval.arg(fill).arg(1).arg(site.keys().callbacks()).arg(MAX_QUEUED_JOBS);
        eval.exec_async(&mut redis).await?;
        assert_eq!(http::get(instance.addr(), target).await?.status, 503, "{kind:?}, full");
        assert_eq!(accept(&instance, 5).await?.status, 200, "{kind:?}");
        let () = redis.del(site.keys().callbacks()).await?;
        assert_eq!(http::get(instance.addr(), target).await?.status, 200, "{kind:?}");
    }
    Ok(())
}

/// Redis has recorded a request, and its answer is lost.
#[tokio::test]
async fn a_lost_answer_counts_a_request_once_on_wasi_0_2() -> Result<()> {
    let site = Site::with_redis(WindowLength::MAX_SECONDS, RedisServer::start().await?);
    let link = Link::start(site.redis.server().address()).await?;
    let url = format!("redis://{}", link.address());
    // Spin waits for the answer without a limit.
    let host = site.host(Kind::VerveHostP2).variable("redis_urls", &url);
    let instance = host.start().await?;
    let mut gate = link.gate(&["EVAL"], Hold::Answer);
    let response = accept(&instance, 1).await?;
    gate.reached(SOON).await?;
    assert_eq!(response.header("verve-outcome"), Some("duplicate"), "{response:?}");
    drop(gate);
    assert_eq!(accept(&instance, 2).await?.header("verve-outcome"), Some("new"));
    let stats: BTreeMap<String, u64> = (site.connection().await?)
        .hgetall(site.keys().stats(clock::current_window(site.length)))
        .await?;
    let wanted = [("new", 2), ("requests", 2)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(stats, wanted.into());
    Ok(())
}

/// For a single server; the nodes of a cluster need a moment to agree again.
#[tokio::test]
async fn a_restart_of_redis_is_not_noticed() -> Result<()> {
    for kind in Kind::every() {
        let mut site = Site::with_redis(WindowLength::MAX_SECONDS, RedisServer::start().await?);
        let instance = site.host(kind).start().await?;
        for id in 0..5 {
            let response = accept(&instance, id).await?;
            assert_eq!(response.status, 200, "{kind:?}, request {id}: {response:?}");
            // The connection is now dead; the next request must detect this and reconnect.
            site.redis.restart().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn bad_variables() -> Result<()> {
    for kind in Kind::every() {
        for (name, value) in [
            ("window_seconds", "abc"),
            ("window_seconds", "0"),
            ("redis_urls", "http://127.0.0.1:6379"),
            ("namespace", "a b"),
            ("callback_method", "put"),
            ("redis_timeout_ms", "soon"),
            ("log", "loud"),
        ] {
            let instance = Instance::start(kind, &[(name, value)]).await?;
            let context = format!("{kind:?} {name}={value}");
            assert_answer(&instance, 1, 503, ("verve-error", "misconfigured"), &context).await?;
            instance.process().wait_for_text(name, SOON).await.context(context)?;
        }
    }
    Ok(())
}
