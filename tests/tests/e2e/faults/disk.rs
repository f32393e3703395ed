//! When the disk fails too: without Redis and without a spool that can be written, a prompt and loud 503; and nothing that was
//! answered `ok` is missing once both are back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use verve_tests::host::{Instance, Kind};
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site};

/// How long SQLite waits for others who write, as documented.
const BUSY: Duration = Duration::from_secs(2);
/// For one attempt at Redis, of which there are two.
const TIMEOUT_MS: u32 = 300;
/// For everything else that happens between request and answer on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Has an id accepted or refused. Returns its outcome, or why there is none.
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

/// The ids that were answered `ok`, some of them at a time when nothing could be written.
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
async fn a_disk_that_takes_no_more_refuses_once_a_second_aloud() -> Result<()> {
    let mut site = Site::with_one_window().await?;
    let host = site
        .host(Kind::VerveHost)
        .variable("redis_timeout_ms", &TIMEOUT_MS.to_string());
    let instance = host.survives_file_limit().start().await?;
    let mut accepted = Vec::new();
    assert_eq!(accept(&instance, 0).await?, "new");
    site.redis.kill();
    // Full before the spool has been written to at all, and then while it is in use.
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
                // What the file has room for.
                "spooled" => accepted.push(id),
                other => panic!("{other}"),
            }
            assert!(asked.elapsed() < BUSY + SLACK, "id {id}: {:?}", asked.elapsed());
        }
        assert!(refused > 10, "round {round}: {refused} refused");
        let written = instance.process().lines().split_off(lines);
        lines = written.iter().filter(|line| line.contains("not recorded")).count();
        // Each instance of the component says it once a second at most, and there is one for each processor.
        let seconds = usize::try_from(begin.elapsed().as_secs())? + 2;
        let most = seconds * std::thread::available_parallelism()?.get();
        assert!((1..=most).contains(&lines), "round {round}: {written:#?}");
        assert!(written.iter().any(|line| line.contains("spool: ")), "{written:#?}");
        instance.limit_files(None)?;
        id += 1;
        assert_eq!(accept(&instance, id).await?, "spooled", "round {round}");
        accepted.push(id);
    }
    // What is refused is in no window, since it could not be.
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
        // One who has to wait for less than that is answered well.
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
