//! When Redis fails: a prompt 503 and never a false `ok`; and all is well as soon as Redis is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{Id, WindowLength};
use verve_tests::host::{Instance, Kind};
use verve_tests::http::Response;
use verve_tests::redis::RedisServer;
use verve_tests::{clock, http, net, wait};

use crate::site::{SOON, Site};

/// For one attempt, of which there are two.
const TIMEOUT: Duration = Duration::from_millis(400);
/// For everything else that happens between request and answer on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

async fn start(site: &Site, kind: Kind) -> Result<Instance> {
    let timeout = TIMEOUT.as_millis().to_string();
    site.host(kind).variable("redis_timeout_ms", &timeout).start().await
}

async fn accept(instance: &Instance, id: i64) -> Result<Response> {
    http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await
}

async fn assert_unavailable(instance: &Instance, id: i64, context: &str) -> Result<()> {
    let begin = Instant::now();
    let response = accept(instance, id).await?;
    let took = begin.elapsed();
    assert_eq!(
        (response.status, response.text().as_str()),
        (503, "failed"),
        "{context}"
    );
    for (name, value) in [
        ("verve-error", Some("unavailable")),
        ("verve-outcome", None),
        ("content-type", Some("text/plain; charset=utf-8")),
        ("content-length", Some("6")),
        ("cache-control", Some("no-store")),
    ] {
        assert_eq!(response.header(name), value, "{context}: {name}");
    }
    assert!(took < 2 * TIMEOUT + SLACK, "{context}: took {took:?}");
    Ok(())
}

/// After a failure, requests may be refused for a short while yet.
async fn assert_recovers(instance: &Instance, id: i64, context: &str) -> Result<()> {
    wait::until("recovery", SOON, || async {
        let response = accept(instance, id).await.ok()?;
        (response.status == 200).then_some(())
    })
    .await
    .with_context(|| context.to_owned())
}

#[tokio::test]
async fn redis_that_is_down() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        assert_eq!(accept(&instance, 1).await?.status, 200, "{kind:?}");
        site.redis[0].kill();
        assert_unavailable(&instance, 2, &format!("{kind:?}, on a connection that broke")).await?;
        assert_unavailable(&instance, 3, &format!("{kind:?}, where nobody listens")).await?;
        site.redis[0].restart().await?;
        assert_recovers(&instance, 4, &format!("{kind:?}")).await?;
        let window = clock::current_window(site.length);
        assert_eq!(site.members(window).await?, [["4".to_owned()].into()], "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_was_never_up() -> Result<()> {
    for kind in Kind::available() {
        let address = net::free_address()?;
        let instance = Instance::options(kind)
            .variable("redis_urls", &format!("redis://{address}"))
            .start()
            .await?;
        assert_unavailable(&instance, 1, &format!("{kind:?}")).await?;
        let _redis = RedisServer::options().port(address.port()).start().await?;
        assert_recovers(&instance, 1, &format!("{kind:?}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_accepts_and_never_answers() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        // Never asked before: the connection is not open yet.
        site.redis[0].pause()?;
        assert_unavailable(&instance, 1, &format!("{kind:?}, connecting")).await?;
        site.redis[0].resume()?;
        assert_recovers(&instance, 2, &format!("{kind:?}")).await?;
        // Now it is.
        site.redis[0].pause()?;
        assert_unavailable(&instance, 3, &format!("{kind:?}, connected")).await?;
        assert_unavailable(&instance, 4, &format!("{kind:?}, again")).await?;
        site.redis[0].resume()?;
        assert_recovers(&instance, 5, &format!("{kind:?}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn redis_that_answers_errors() -> Result<()> {
    for kind in Kind::available() {
        // A wrong password, and a right one.
        let redis = RedisServer::options().password("right").start().await?;
        let site = Site::with_redis(WindowLength::MAX_SECONDS, vec![redis]);
        let wrong = site.redis_urls().replace("right", "wrong");
        let instance = site.host(kind).variable("redis_urls", &wrong).start().await?;
        assert_unavailable(&instance, 1, &format!("{kind:?}, wrong password")).await?;
        let instance = start(&site, kind).await?;
        assert_eq!(accept(&instance, 1).await?.status, 200, "{kind:?}, right password");

        // No memory left.
        let mut redis = site.first().await?;
        let limit = async |bytes: &str| -> Result<()> {
            let mut redis = site.first().await?;
            let mut set = redis::cmd("CONFIG");
            Ok(set
                .arg("SET")
                .arg("maxmemory")
                .arg(bytes)
                .exec_async(&mut redis)
                .await?)
        };
        limit("1").await?;
        assert_unavailable(&instance, 2, &format!("{kind:?}, no memory")).await?;
        limit("0").await?;
        assert_recovers(&instance, 3, &format!("{kind:?}")).await?;

        // A job that cannot be written: its request must not be told `ok`.
        let () = redis.set(site.keys().callbacks(), "not a stream").await?;
        let target = "/api/verve/accept?id=4&endpoint=http://e.com/";
        let response = http::get(instance.addr(), target).await?;
        assert_eq!(response.status, 503, "{kind:?}, no stream: {response:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_restart_of_redis_is_not_noticed() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        for id in 0..5 {
            let response = accept(&instance, id).await?;
            assert_eq!(response.status, 200, "{kind:?}, request {id}: {response:?}");
            // The connection is dead from here on; the next request is to find that out and go on.
            site.redis[0].restart().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_of_three_redis_is_down() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        site.redis.push(RedisServer::start().await?);
        site.redis.push(RedisServer::start().await?);
        let instance = start(&site, kind).await?;
        site.redis[1].kill();
        for id in 0..12 {
            let context = format!("{kind:?} id {id}");
            if Id(id).shard(3) == 1 {
                assert_unavailable(&instance, id, &context).await?;
            } else {
                assert_eq!(accept(&instance, id).await?.status, 200, "{context}");
            }
        }
        site.redis[1].restart().await?;
        let lost = (0..12).find(|id| Id(*id).shard(3) == 1).expect("one of twelve");
        assert_recovers(&instance, lost, &format!("{kind:?}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn bad_variables() -> Result<()> {
    for kind in Kind::available() {
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
            assert_unavailable(&instance, 1, &context).await?;
            instance.process().wait_for_text(name, SOON).await.context(context)?;
        }
    }
    Ok(())
}
