//! Tests how many reports are kept.

use anyhow::Result;
use redis::AsyncCommands;
use verve_protocol::{Keys, Method, Report, Window};
use verve_tests::clock::WrongClock;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::{clock, http, wait};

use crate::ledger::Ledger;
use crate::reporter::late::metric;
use crate::site::{SOON, Site, field};

/// Writes final reports of so many windows before `until`.
///
/// They are as of a leader that has ended.
async fn report(site: &Site, keys: &Keys, number: u64, until: Window) -> Result<()> {
    let report = Report {
        count: 1,
        time: until.start() * 1000,
        is_final: true,
        ..Report::default()
    };
    let starts = (1..=number).map(|n| until.start() - n * site.length.seconds());
    let reports: Vec<(u64, String)> = starts.map(|start| (start, report.to_json())).collect();
    let mut redis = site.connection().await?;
    let () = redis.hset_multiple(keys.reports(site.length), &reports).await?;
    let progress = keys.reports_progress(site.length);
    let () = redis.hset(progress, "newest", reports[0].0).await?;
    Ok(())
}

/// Returns the starts of the windows that have reports, before `until`.
async fn reported(site: &Site, keys: &Keys, until: Window) -> Result<Vec<u64>> {
    let starts: Vec<u64> = site.connection().await?.hkeys(keys.reports(site.length)).await?;
    let mut starts: Vec<u64> = starts.into_iter().filter(|start| *start < until.start()).collect();
    starts.sort_unstable();
    Ok(starts)
}

/// Ids and callbacks of their windows may still come.
#[tokio::test]
async fn the_oldest_reports_are_removed_if_there_are_too_many() -> Result<()> {
    let site = Site::new(60).await?;
    let mut ledger = Ledger::new().await?;
    let window = |start| site.length.window_starting(start).expect("the start of a window");
    // Reports of two days are kept in any case.
    let now = clock::current_window(site.length);
    let old = window(now.start() - 2 * 86_400);
    let ago = |windows: u64| old.start() - windows * site.length.seconds();
    let (unnamed, idle, few) = (
        site.keys(),
        site.keys().named("idle".parse()?),
        site.keys().named("few".parse()?),
    );
    report(&site, &unnamed, 700, old).await?;
    report(&site, &unnamed, 1, now).await?;
    report(&site, &idle, 600, old).await?;
    report(&site, &few, 20, old).await?;
    let mut redis = site.connection().await?;
    for counter in ["idle", "few"] {
        let () = redis.zadd(unnamed.counters(), counter, now.start()).await?;
    }
    let flags = ledger.flags(&site, &["--keep-reports", "604800,1000"]);
    let reporter = Reporter::ready(&flags).await?;
    reporter
        .process()
        .wait_for_text("removed the oldest reports", SOON)
        .await?;
    // 490 for each of two, and 20 of the third.
    let expected: Vec<u64> = (1..=490).rev().map(ago).collect();
    assert_eq!(reported(&site, &idle, old).await?, expected);
    assert_eq!(reported(&site, &few, old).await?, expected[470..]);
    // Some of them are newer.
    let left = reported(&site, &unnamed, old).await?;
    assert!(
        expected.ends_with(&left) && (480..490).contains(&left.len()),
        "{left:?}"
    );
    let counts = http::get(reporter.address(), "/api/counts?counter=idle&limit=10080").await?;
    assert_eq!(
        serde_json::from_slice::<Vec<serde_json::Value>>(&counts.body)?.len(),
        490
    );

    let removed = window(ago(600));
    site.add(removed, 0..3).await?;
    site.add_job("http://127.0.0.1:9/hook", Method::Post, removed).await?;
    let dead = site.dead(1, SOON).await?;
    assert!(field(&dead[0], "error").contains("--keep-reports"), "{dead:?}");
    wait::until("the late ids", SOON, || async {
        (metric(&reporter, "verve_late_ids_total").await.ok()? == 3).then_some(())
    })
    .await?;
    ledger.read_for(SOON / 10).await;
    assert!(ledger.of(removed).is_empty(), "{:?}", ledger.of(removed));
    Ok(())
}

#[tokio::test]
async fn a_clock_that_was_ahead_hides_no_reports() -> Result<()> {
    let clock = WrongClock::right()?;
    let redis = RedisServer::options().clock(&clock).start().await?;
    let site = Site::with_redis(1, redis);
    clock.set(3 * 86_400)?;
    let sink = Sink::start().await?;
    let reporter = Reporter::start(&site.flags(&["--callback-allow", "127.0.0.1"]))?;
    reporter.process().wait_for_text("window reported", SOON).await?;
    clock.set(0)?;
    reporter.process().wait_for_text("clock was set back", SOON).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    site.add_job(&sink.url("/hook"), Method::Post, window).await?;
    let called = sink.wait_for("/hook", 1, SOON).await?;
    assert_eq!(called[0].body, r#"{"unique_count":3}"#);
    wait::until("the window's report", SOON, || async {
        let counts = http::get(reporter.address(), "/api/counts").await.ok()?;
        let counts: Vec<serde_json::Value> = serde_json::from_slice(&counts.body).ok()?;
        let count = counts.into_iter().find(|count| count["start"] == window.start())?;
        (count["count"] == 3).then_some(())
    })
    .await?;
    let progress = site.keys().reports_progress(site.length);
    let trimmed: u64 = site.connection().await?.hget(progress, "trimmed").await?;
    assert!(trimmed <= window.start(), "reports since {trimmed} are not removed");
    Ok(())
}
