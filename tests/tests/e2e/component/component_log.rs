//! What the component logs, and what it never logs.

use std::time::Duration;

use anyhow::{Context, Result};
use verve_protocol::WindowLength;
use verve_tests::host::{Instance, Kind};
use verve_tests::http;
use verve_tests::redis::RedisServer;

use crate::site::{SOON, Site};

/// Ids that cannot be confused with other text in a log.
const ID: &str = "314159265358979";
const OTHER_ID: &str = "271828182845904";

async fn accept(instance: &Instance, id: &str) -> Result<u16> {
    Ok(http::get(instance.addr(), &format!("/api/verve/accept?id={id}"))
        .await?
        .status)
}

#[tokio::test]
async fn all_logs_each_id_and_outcome() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).variable("log", "all").start().await?;
        for outcome in ["new", "duplicate"] {
            assert_eq!(accept(&instance, ID).await?, 200);
            let logged = |line: &str| line.contains(ID) && line.contains(outcome);
            let line = instance.process().wait_for_line(SOON, logged).await;
            line.with_context(|| format!("{kind:?} {outcome}"))?;
        }
        site.redis.kill();
        assert_eq!(accept(&instance, OTHER_ID).await?, 200);
        instance.process().wait_for_text(OTHER_ID, SOON).await?;
    }
    Ok(())
}

#[tokio::test]
async fn error_logs_failures_alone_and_off_logs_nothing() -> Result<()> {
    for kind in Kind::available() {
        for (log, logs_errors) in [("error", true), ("off", false)] {
            let site = Site::with_one_window().await?;
            let instance = site.host(kind).variable("log", log).start().await?;
            let process = instance.process();
            // The host may still log that it serves.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let begin = process.lines().len();
            assert_eq!(accept(&instance, ID).await?, 200);
            assert_eq!(accept(&instance, ID).await?, 200);
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(process.lines().len(), begin, "{kind:?} {log}: {}", process.log());

            site.redis.kill();
            assert_eq!(accept(&instance, OTHER_ID).await?, 200);
            if logs_errors {
                let is_new = |line: &str| !process.lines()[..begin].iter().any(|old| old == line);
                process.wait_for_line(SOON, is_new).await?;
            } else {
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(process.lines().len(), begin, "{kind:?} {log}: {}", process.log());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn passwords_are_never_logged() -> Result<()> {
    const PASSWORD: &str = "hunter2hunter2";
    for kind in Kind::available() {
        let redis = RedisServer::options().password(PASSWORD).start().await?;
        let site = Site::with_redis(WindowLength::MAX_SECONDS, redis);
        let wrong = site.redis_urls().replace(PASSWORD, &format!("{PASSWORD}x"));
        let broken = format!("redis://:{PASSWORD}@");
        let mut instances = Vec::new();
        for (urls, status) in [(site.redis_urls(), 200), (wrong, 200), (broken, 503)] {
            let options = site.host(kind).variable("log", "all");
            let instance = options.variable("redis_urls", &urls).start().await?;
            assert_eq!(accept(&instance, ID).await?, status, "{kind:?}");
            instances.push((instance, status));
        }
        site.redis.kill();
        for (instance, status) in instances {
            assert_eq!(accept(&instance, OTHER_ID).await?, status, "{kind:?}");
            let log = instance.process().log();
            assert!(!log.contains(PASSWORD), "{kind:?}: {log}");
        }
    }
    Ok(())
}
