//! Tests the limits of stored data.
//!
//! A full retry set holds new callbacks back, and the newest dead letters are kept.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use verve_tests::host::Kind;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, http, wait};

use crate::faults::queue_traps::{TWICE, add_job};
use crate::site::{SOON, Site};

/// As documented: the maximum number of jobs in the retry set, and of dead letters.
const MAX_RETRY: u64 = 1_000_000;
const MAX_DEAD: u64 = 100_000;

#[tokio::test]
async fn a_full_retry_set_holds_new_jobs_back_until_there_is_room() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let (callbacks, retry) = (site.keys().callbacks(), site.keys().callbacks_retry());
    let mut redis = site.connection().await?;
    // One free entry, for two jobs that fail. In parts, so that a busy machine answers each in
    // time.
    let members: Vec<(u64, u64)> = (1..MAX_RETRY).map(|n| (4_000_000_000_000, n)).collect();
    for part in members.chunks(10_000) {
        let () = redis.zadd_multiple(&retry, part).await?;
    }
    let reporter = site
        .reporter(&["--callback-allow", "127.0.0.1", "--callback-backoff-ms", "60000"])
        .await?;
    for path in ["/one", "/two"] {
        sink.answer(path, [Answer::status(500).after(Duration::from_secs(1))]);
        add_job(&site, &sink.url(path)).await?;
    }
    for path in ["/one", "/two"] {
        sink.wait_for(path, 1, SOON).await?;
    }
    reporter.process().wait_for_text("until there is room", SOON).await?;
    add_job(&site, &sink.url("/new")).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (waiting, new): (u64, u64) = (redis.zcard(&retry).await?, redis.xlen(&callbacks).await?);
    assert_eq!((waiting, new), (MAX_RETRY, 2), "the bound holds, and no job is lost");
    assert!(sink.received_at("/new").is_empty(), "held back");
    let logged = reporter.process().log().matches("until there is room").count();
    assert_eq!(logged, 1, "logged once: {}", reporter.process().log());

    let () = redis.zrem(&retry, 1).await?;
    sink.wait_for("/new", 1, Duration::from_secs(5)).await?;
    Ok(())
}

#[tokio::test]
async fn the_newest_dead_letters_are_kept_and_dropping_others_is_logged() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let dead = site.keys().callbacks_dead();
    let mut redis = site.connection().await?;
    let fill = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], n .. '-0', 'endpoint', 'http://e.com/') end";
    let fill = redis::Script::new(fill);
    let () = fill.key(&dead).arg(MAX_DEAD + 2).invoke_async(&mut redis).await?;
    let reporter = site.reporter(&TWICE).await?;
    sink.answer("/job", [Answer::status(500)]);
    add_job(&site, &sink.url("/job")).await?;
    let line = reporter.process().wait_for_text("were dropped", SOON).await?;
    assert!(line.contains("WARN") && line.contains("dropped=3"), "{line}");
    assert_eq!(redis.xlen::<_, u64>(&dead).await?, MAX_DEAD);
    let oldest: StreamRangeReply = redis.xrange_count(&dead, "-", "+", 1).await?;
    assert_eq!(oldest.ids[0].id, "4-0");
    let newest: StreamRangeReply = redis.xrevrange_count(&dead, "+", "-", 1).await?;
    assert_eq!(newest.ids[0].get::<String>("endpoint"), Some(sink.url("/job")));
    Ok(())
}

/// Every key expires, unless its size is bounded in another way.
#[tokio::test]
async fn every_other_key_expires() -> Result<()> {
    let site = Site::new(1).await?;
    let sink = Sink::start().await?;
    sink.answer("/flaky", [Answer::status(503), Answer::status(404)]);
    let flags = [
        "--late-seconds",
        "1",
        "--callback-allow",
        "127.0.0.1",
        "--callback-attempts",
        "2",
    ];
    let reporter = site.reporter(&flags).await?;
    let host = site.host(Kind::VerveHost).variable("redis_timeout_ms", "300");
    let host = host.start().await?;
    let accept = async |id: i64, outcome: &str| -> Result<()> {
        let endpoint = sink.url("/flaky");
        let target = format!("/api/verve/accept?id={id}&endpoint={endpoint}");
        let response = http::get(host.addr(), &target).await?;
        assert_eq!(response.header("verve-outcome"), Some(outcome), "id {id}");
        Ok(())
    };
    let window = clock::next_window(site.length).await;
    accept(1, "new").await?;
    site.redis.pause()?;
    accept(2, "spooled").await?;
    site.redis.resume()?;
    wait::until("the window to be final", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let report: String = redis
            .hget(site.keys().reports(site.length), window.start())
            .await
            .ok()?;
        report.contains("\"final\":true").then_some(())
    })
    .await
    .with_context(|| reporter.process().log())?;
    // Ids that are too late.
    site.add(window, [9]).await?;
    reporter
        .process()
        .wait_for_text("arrived after their window", SOON)
        .await?;
    site.dead(1, SOON).await?;
    let keys = site.keys();
    let bounded = [
        keys.callbacks(),
        keys.callbacks_retry(),
        keys.callbacks_dead(),
        keys.reports(site.length),
        keys.reports_open(site.length),
        // A few numbers.
        keys.format(),
        keys.reports_from(site.length),
        keys.reports_progress(site.length),
    ];
    let mut redis = site.connection().await?;
    let all: Vec<String> = redis.keys(format!("*{}*", site.namespace)).await?;
    assert!(all.iter().any(|key| key.ends_with(":late")), "{all:?}");
    assert!(all.iter().any(|key| key.contains("spooled")), "{all:?}");
    for key in all.iter().filter(|key| !bounded.contains(key)) {
        // A set that was just added to may get its expiry a moment later; a key may be removed
        // meanwhile.
        wait::until("an expiry", SOON, || async {
            let ttl: i64 = site.connection().await.ok()?.ttl(key).await.ok()?;
            (ttl != -1).then_some(())
        })
        .await
        .with_context(|| format!("{key} stays for ever: {all:?}"))?;
    }
    Ok(())
}
