//! Which windows are reported, and how often.

use std::time::Duration;

use anyhow::Result;
use redis::AsyncCommands;
use verve_protocol::{Partitions, Window};
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::ledger::{Ledger, values_in_order, windows};
use crate::site::{SOON, Site};

async fn site() -> Result<(Site, Ledger)> {
    Ok((Site::new(1).await?, Ledger::new().await?))
}

#[tokio::test]
async fn empty_windows_are_reported_as_0_in_order() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger.read_until(SOON, |ledger| ledger.read().len() >= 4).await?;
    let values = values_in_order(&site, ledger.read());
    assert!(values.iter().all(|value| value == "0"), "{values:?}");
    for record in ledger.read() {
        let names: Vec<&str> = record.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["duplicates", "requests", "revision", "window-seconds"]);
        assert_eq!(record.header("window-seconds"), "1", "{record:?}");
        assert_eq!(record.header("requests"), "0", "{record:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_window_is_reported_after_its_grace_and_not_before() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let flags = ledger.flags(&site, &["--grace-ms", "1500"]);
    let _reporter = Reporter::ready(&flags).await?;
    let window = clock::next_window(site.length).await;
    // In time, although after the window's end.
    clock::sleep_until_ms(window.end_ms() + 800).await;
    site.add(window, [1, 2, 3]).await?;
    ledger.read_to(window, 1, SOON).await?;
    let record = ledger.of(window)[0];
    assert_eq!((record.value.as_str(), record.header("revision")), ("3", "0"));
    let after = u64::try_from(record.timestamp_ms)?.saturating_sub(window.end_ms());
    assert!((1_500..4_000).contains(&after), "{after} ms after its end");
    Ok(())
}

#[tokio::test]
async fn a_restarted_reporter_reports_the_missed_windows() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    let status = reporter.process().terminate(SOON).await?;
    assert_eq!(status.code(), Some(0), "{}", reporter.process().log());
    // Five windows of 1, 2, 3, 4 and 0 ids, starting with one that is not reported yet.
    let first = clock::next_window(site.length).await;
    let last = windows(first, first.next().next().next().next())[4];
    for (count, window) in (1..5).zip(windows(first, last)) {
        site.add(window, 0..count).await?;
    }
    clock::sleep_until_ms(last.end_ms()).await;

    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger.read_to(last.next(), 1, SOON).await?;
    values_in_order(&site, ledger.read());
    let values: Vec<&str> = windows(first, last)
        .iter()
        .map(|window| ledger.of(*window)[0].value.as_str())
        .collect();
    assert_eq!(values, ["1", "2", "3", "4", "0"]);
    Ok(())
}

#[tokio::test]
async fn a_killed_reporter_loses_and_repeats_nothing() -> Result<()> {
    let (site, mut ledger) = site().await?;
    for _ in 0..3 {
        let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let window = clock::next_window(site.length).await;
        site.add(window, 0..5).await?;
        ledger.read_to(window, 1, Duration::from_secs(30)).await?;
        // Between two reports, so that acknowledged records are also recorded in Redis.
        clock::sleep_until_ms(clock::next_window(site.length).await.start() * 1000 + 800).await;
        reporter.process().kill();
        // The next reporter resumes when this lease has expired.
    }
    let end = clock::current_window(site.length);
    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger.read_to(end, 1, Duration::from_secs(30)).await?;
    values_in_order(&site, ledger.read());
    Ok(())
}

#[tokio::test]
async fn late_ids_are_reported_as_revisions() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let window = clock::current_window(site.length);
    site.add(window, 0..10).await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let expected = [("10", "0"), ("12", "1"), ("13", "2"), ("14", "3")];
    for (times, ids) in [(1, 0..10), (2, 8..12), (3, 12..13)] {
        site.add(window, ids).await?;
        ledger.read_to(window, times, SOON).await?;
    }
    // A restart forgets nothing, and repeats nothing.
    reporter.process().terminate(SOON).await?;
    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    site.add(window, 0..14).await?;
    ledger.read_to(window, 4, SOON).await?;
    ledger.read_for(Duration::from_secs(2)).await;
    assert_eq!(counts_and_revisions(&ledger, window), expected);
    Ok(())
}

#[tokio::test]
async fn ids_may_be_late_for_the_late_period_and_no_longer() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let _reporter = Reporter::ready(&ledger.flags(&site, &["--late-seconds", "2"])).await?;
    let window = clock::current_window(site.length);
    site.add(window, 0..3).await?;
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 3..5).await?;
    ledger.read_to(window, 2, SOON).await?;
    assert_eq!(counts_and_revisions(&ledger, window), [("3", "0"), ("5", "1")]);
    // A set is removed once its window's allowed lateness is over, so sets never leak.
    let key = site.ids(window);
    wait::until("the set to be removed", SOON, || async {
        let there: bool = site.connection().await.ok()?.exists(&key).await.ok()?;
        (!there).then_some(())
    })
    .await?;
    ledger.read_for(Duration::from_secs(2)).await;
    let records = counts_and_revisions(&ledger, window);
    assert_eq!(records, [("3", "0"), ("5", "1")], "a removed set is no correction");
    Ok(())
}

fn counts_and_revisions(ledger: &Ledger, window: Window) -> Vec<(&str, &str)> {
    let records = ledger.of(window).into_iter();
    records.map(|r| (r.value.as_str(), r.header("revision"))).collect()
}

#[tokio::test]
async fn the_count_is_the_sum_of_all_partitions() -> Result<()> {
    let (site, mut ledger) = site().await?;
    let mut site = site.partitioned(3);
    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..12).await?;
    // Until a moment ago, some components used one set for all ids.
    site.partitions = Partitions::default();
    site.add(window, 12..15).await?;
    ledger.read_to(window, 1, SOON).await?;
    assert_eq!(ledger.last()[window.to_string().as_str()].value, "15");
    Ok(())
}

/// An older reporter waits if a newer one has written data in another format.
///
/// It could misread that data.
#[tokio::test]
async fn windows_of_another_format_are_left_unchanged() -> Result<()> {
    let site = Site::new(1).await?;
    let mut redis = site.connection().await?;
    let format = site.keys().format();
    let () = redis.set(&format, 2).await?;
    let reporter = Reporter::start(&site.flags(&[]))?;
    let message = "the data in Redis has format 2, and this version knows 1";
    reporter.process().wait_for_text(message, SOON).await?;
    let ready = http::get(reporter.address(), "/readyz").await?;
    assert!(
        ready.status == 503 && ready.text().contains(message),
        "{}",
        ready.text()
    );
    let reports: u64 = redis.hlen(site.keys().reports(site.length)).await?;
    assert_eq!(reports, 0);
    let () = redis.del(&format).await?;
    wait::until("a report", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let reports: u64 = redis.hlen(site.keys().reports(site.length)).await.ok()?;
        (reports > 0).then_some(())
    })
    .await?;
    let written: String = redis.get(&format).await?;
    assert_eq!(written, "1");
    Ok(())
}
