//! Tests a disk that fails too: without Redis and without a writable spool.
//!
//! The answer is a prompt 503 and an error in the log. No id that was answered `ok` is missing once
//! both work again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use verve_tests::host::{Instance, Kind};
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site};

/// How long SQLite waits for other writers, as documented.
const BUSY: Duration = Duration::from_secs(2);
/// For one of the two attempts at Redis.
const TIMEOUT_MS: u32 = 300;
/// For everything else between request and answer on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Sends an id. Returns its outcome, or the error if it is refused.
async fn accept(instance: &Instance, id: i64) -> Result<String> {
    let response = http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await?;
    let reason = |name| response.header(name).map(str::to_owned);
    let (body, reason) = match response.status {
        200 => ("ok", reason("verve-outcome")),
        _ => ("failed", reason("verve-error")),
    };
    assert_eq!(response.text(), body, "{response:?}");
    reason.context("a reason")
}

/// Waits until exactly the ids that were answered `ok` are in the window.
///
/// Some of them were sent while nothing could be written.
async fn assert_counted(site: &Site, accepted: &[i64]) -> Result<()> {
    let window = clock::current_window(site.length);
    let expected = accepted.iter().map(ToString::to_string).collect();
    wait::until("the ids", SOON, || async {
        site.members(window).await.ok().filter(|sets| sets[0] == expected)
    })
    .await
    .with_context(|| format!("{accepted:?}"))?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_logged_once_a_second() -> Result<()> {
    let mut site = Site::with_one_window().await?;
    let host = site
        .host(Kind::VerveHost)
        .variable("redis_timeout_ms", &TIMEOUT_MS.to_string());
    let instance = host.survives_file_limit().start().await?;
    let mut accepted = Vec::new();
    assert_eq!(accept(&instance, 0).await?, "new");
    site.redis.kill();
    // First full before the spool is ever written to, then while the spool is in use.
    let mut id = 0;
    for round in 0..2 {
        instance.limit_files(Some(if round == 0 { 1 } else { 8192 }))?;
        let begin = Instant::now();
        let (mut refused, mut lines) = (0, instance.process().lines().len());
        while begin.elapsed() < Duration::from_secs(3) {
            id += 1;
            let asked = Instant::now();
            match accept(&instance, id).await?.as_str() {
                "unavailable" => refused += 1,
                // As many as the file has room for.
                "spooled" => accepted.push(id),
                other => panic!("{other}"),
            }
            assert!(asked.elapsed() < BUSY + SLACK, "id {id}: {:?}", asked.elapsed());
        }
        assert!(refused > 10, "round {round}: {refused} refused");
        let written = instance.process().lines().split_off(lines);
        lines = written.iter().filter(|line| line.contains("not recorded")).count();
        // Each instance of the component logs it at most once a second, and there is one instance
        // for each processor.
        let seconds = usize::try_from(begin.elapsed().as_secs())? + 2;
        let most = seconds * std::thread::available_parallelism()?.get();
        assert!((1..=most).contains(&lines), "round {round}: {written:#?}");
        assert!(written.iter().any(|line| line.contains("spool: ")), "{written:#?}");
        instance.limit_files(None)?;
        id += 1;
        assert_eq!(accept(&instance, id).await?, "spooled", "round {round}");
        accepted.push(id);
    }
    // A refused id was not stored anywhere, so it is in no window.
    site.redis.restart().await?;
    assert_counted(&site, &accepted).await?;
    wait::until("an empty spool", SOON, || async {
        (instance.in_spool("SELECT total FROM size").ok()? == 0).then_some(())
    })
    .await
}

#[tokio::test]
async fn a_spool_that_another_one_has_locked() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let host = site.host(kind).variable("redis_timeout_ms", &TIMEOUT_MS.to_string());
        let instance = host.start().await?;
        site.redis.kill();
        assert_eq!(accept(&instance, 1).await?, "spooled", "{kind:?}");
        let locked = instance.spool()?;
        locked.execute_batch("BEGIN IMMEDIATE")?;
        let asked = Instant::now();
        assert_eq!(accept(&instance, 2).await?, "unavailable", "{kind:?}");
        let took = asked.elapsed();
        assert!(took >= BUSY && took < BUSY + SLACK, "{kind:?}: {took:?}");
        // A request that waits for less than that is accepted.
        let (accepted, ()) = tokio::join!(accept(&instance, 3), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            locked.execute_batch("COMMIT").expect("unlocked");
        });
        assert_eq!(accepted?, "spooled", "{kind:?}");
        site.redis.restart().await?;
        assert_counted(&site, &[1, 3]).await?;
    }
    Ok(())
}
