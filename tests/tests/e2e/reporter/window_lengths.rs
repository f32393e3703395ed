//! Settings of hosts and reporters that must match, while they change.
//!
//! These are window lengths and partitions. Also tests how much a leader has to read.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::keys::indexed;
use verve_protocol::{Method, Report};
use verve_tests::metrics::Metrics;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::{clock, http, wait};

use crate::ledger::Ledger;
use crate::reporter::late::metric;
use crate::site::{SOON, Site};

/// Tests the documented change of the window length.
///
/// Hosts and reporters of both lengths run concurrently for a while.
#[tokio::test]
async fn two_window_lengths_beside_each_other() -> Result<()> {
    let mut site = Site::new(2).await?;
    let (mut shorter, mut longer) = (Ledger::new().await?, Ledger::new().await?);
    let sink = Sink::start().await?;
    let private = ["--callback-allow", "127.0.0.1"];
    let _shorter = Reporter::ready(&shorter.flags(&site, &private)).await?;
    site.length = clock::length(3);
    let _longer = Reporter::ready(&longer.flags(&site, &private)).await?;
    // Each reporter leads for its own length.
    for (length, ledger) in [(2, &mut shorter), (3, &mut longer)] {
        site.length = clock::length(length);
        let window = clock::next_window(site.length).await;
        site.add(window, 0..length.into()).await?;
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, length.to_string());
        assert_eq!(ledger.of(window)[0].header("window-seconds"), length.to_string());
    }
    // The reporter that takes a job sends the count of its window, of any length.
    for length in [2, 3] {
        site.length = clock::length(length);
        let window = clock::next_window(site.length).await;
        site.add(window, 0..10 * i64::from(length)).await?;
        for n in 0..8 {
            site.add_job(&sink.url(&format!("/{length}/{n}")), Method::Get, window)
                .await?;
        }
    }
    wait::until("all calls", SOON, || async {
        (sink.received().len() >= 16).then_some(())
    })
    .await?;
    for call in sink.received() {
        let count = if call.target.starts_with("/2/") { 20 } else { 30 };
        assert!(call.target.ends_with(&format!("unique_count={count}")), "{call:?}");
    }
    let dead: u64 = site.connection().await?.xlen(site.keys().callbacks_dead()).await?;
    assert_eq!(dead, 0);
    Ok(())
}

/// A reporter with fewer partitions than the edge hosts would undercount.
///
/// It logs an error and is not ready until this is fixed.
#[tokio::test]
async fn a_reporter_with_fewer_partitions_than_the_hosts() -> Result<()> {
    for few in [1, 2] {
        let site = Site::new(2).await?.partitioned(4);
        let window = clock::next_window(site.length).await;
        site.add(window, 0..40).await?;
        let reporter = Reporter::start(&site.flags(&["--partitions", &few.to_string()]))?;
        let line = reporter
            .process()
            .wait_for_line(SOON, |line| line.contains("--partitions"))
            .await?;
        assert!(
            line.contains("ERROR") && line.contains(&format!("--partitions is {few}")),
            "{line}"
        );
        let ready = http::get(reporter.address(), "/readyz").await?;
        assert!(ready.status == 503 && ready.text().contains("partitions:"), "{ready:?}");
        let metrics = Metrics::scrape(&reporter).await?;
        assert_eq!(metrics.get("verve_uncounted_partitions"), Some(1.0));
        reporter.process().kill();
        let right = site.reporter(&[]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            Metrics::scrape(&right).await?.get("verve_uncounted_partitions"),
            Some(0.0)
        );
        assert_eq!(right.status("/readyz").await?, 200);
    }
    Ok(())
}

/// A new leader reads only the reports that may change.
///
/// There is a week of windows of one second.
#[tokio::test]
async fn a_reporter_that_takes_over_reads_little() -> Result<()> {
    const WEEK: u64 = 7 * 86_400;
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let first = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    first.process().terminate(SOON).await?;
    let final_report = Report {
        count: 1,
        is_final: true,
        ..Report::default()
    };
    let (mut redis, key) = (site.connection().await?, site.keys().reports(site.length));
    let now = clock::now_ms() / 1000;
    for from in (now - WEEK + 60..now - 60).step_by(10_000) {
        let reports: Vec<(u64, String)> = (from..(from + 10_000).min(now - 60))
            .map(|start| (start, final_report.to_json()))
            .collect();
        let () = redis.hset_multiple(&key, &reports).await?;
    }
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut redis).await?;
    let begin = clock::now_ms();
    let second = Reporter::ready(&flags).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    ledger.read_to(window, 1, SOON).await?;
    assert!(clock::now_ms() - begin < 10_000, "{}", second.process().log());
    // Sweeps are included.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let bytes: String = redis::cmd("INFO").arg("stats").query_async(&mut redis).await?;
    let sent = bytes
        .lines()
        .find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    let sent: u64 = sent.context("bytes")?.trim().parse()?;
    assert!(sent < 3_000_000, "{sent} bytes read");
    Ok(())
}

/// Many windows in the future do not delay the reports that are due.
///
/// They come from an edge host whose clock is ahead.
#[tokio::test]
async fn many_windows_ahead_do_not_delay_what_is_due() -> Result<()> {
    let site = Site::new(1).await?;
    let mut redis = site.connection().await?;
    let now = clock::current_window(site.length).start();
    for from in (now + 3_600..now + 63_600).step_by(1000) {
        let mut pipe = redis::pipe();
        for start in from..from + 1000 {
            let window = site.length.window_starting(start).context("a window")?;
            pipe.zadd(site.keys().windows(site.length), indexed(window, 1), 1)
                .ignore();
            pipe.sadd(site.ids(window), 1).ignore();
        }
        let () = pipe.query_async(&mut redis).await?;
    }
    let mut ledger = Ledger::new().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    reporter.process().wait_for_text("host is ahead", SOON).await?;
    wait::until("all to be found", SOON, || async {
        (metric(&reporter, "verve_windows_ahead_total").await.ok()? == 60_000).then_some(())
    })
    .await?;
    ledger.read_for(Duration::from_secs(12)).await;
    let lags: Vec<i64> = ledger
        .read()
        .iter()
        .skip(2)
        .map(|record| {
            let window = crate::ledger::window_of(&site, &record.key);
            record.timestamp_ms - window.end_ms().cast_signed()
        })
        .collect();
    assert!(lags.len() >= 8 && lags.iter().all(|lag| *lag < 2_500), "{lags:?}");
    // They are kept until they are due.
    let last = site.length.window_starting(now + 63_599).context("a window")?;
    let seconds: i64 = site.connection().await?.ttl(site.ids(last)).await?;
    assert!(seconds > 86_400 + 60_000, "{seconds}");
    Ok(())
}
