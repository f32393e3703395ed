//! Late ids, ids that are too late, and what remains of a final window.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{Partition, Report, Window};
use verve_tests::clock::WrongClock;
use verve_tests::host::Kind;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

fn counts_and_revisions(ledger: &Ledger, window: Window) -> Vec<(&str, &str)> {
    let records = ledger.of(window).into_iter();
    records.map(|r| (r.value.as_str(), r.header("revision"))).collect()
}

/// Returns a value from `/metrics`.
pub async fn metric(reporter: &Reporter, name: &str) -> Result<u64> {
    let text = http::get(reporter.address(), "/metrics").await?.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in\n{text}"))?.parse()?)
}

/// Waits until no Redis has ids of `window`.
async fn no_ids(site: &Site, window: Window) -> Result<()> {
    wait::until("the ids to be removed", SOON, || async {
        let sets = site.members(window).await.ok()?;
        sets.iter().all(|ids| ids.is_empty()).then_some(())
    })
    .await
}

async fn report(site: &Site, window: Window) -> Result<Report> {
    let json: String = site
        .connection()
        .await?
        .hget(site.keys().reports(site.length), window.start())
        .await?;
    Ok(Report::from_json(&json)?)
}

#[tokio::test]
async fn a_window_reported_after_an_outage_has_its_full_lateness() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "4"]);
    let reporter = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    reporter.process().terminate(SOON).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    // Longer than the allowed lateness of this window, had it been reported in time.
    clock::sleep_until_ms(window.end_ms() + 6_000).await;
    let _reporter = Reporter::ready(&flags).await?;
    ledger.read_to(window, 1, SOON).await?;
    clock::sleep_until_ms(clock::now_ms() + 1_500).await;
    site.add(window, 3..5).await?;
    ledger.read_to(window, 2, SOON).await?;
    assert_eq!(counts_and_revisions(&ledger, window), [("3", "0"), ("5", "1")]);
    Ok(())
}

/// Ids of a final window are kept for a day, logged and counted.
///
/// One more record publishes their number; ids that arrive even later are published by another.
#[tokio::test]
async fn ids_that_come_too_late_are_kept_and_published() -> Result<()> {
    let site = Site::new(1).await?.partitioned(2);
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let reporter = Reporter::ready(&flags).await?;
    let window = clock::next_window(site.length).await;
    // The first one is in another set than the others.
    site.add(window, [-1, 1]).await?;
    ledger.read_to(window, 1, SOON).await?;
    no_ids(&site, window).await?;
    wait::until("the window to be final", SOON, || async {
        report(&site, window).await.ok().filter(|report| report.is_final)
    })
    .await?;
    assert_eq!(metric(&reporter, "verve_late_ids_total").await?, 0);

    // One of them was counted before, which is no longer known.
    site.add(window, [-1, 7]).await?;
    ledger.read_to(window, 2, SOON).await?;
    let key = window.to_string();
    let line = reporter
        .process()
        .wait_for_line(SOON, |line| {
            line.contains("arrived after their window") && line.contains(&key)
        })
        .await?;
    assert!(line.contains("ids=2"), "{line}");
    assert_eq!(metric(&reporter, "verve_late_ids_total").await?, 2);
    no_ids(&site, window).await?;

    // Kept apart as late ids by a reporter that died before it published their number.
    reporter.process().terminate(SOON).await?;
    let [first, second] = [0, 1].map(|number| site.keys().late(window, Partition::Part(number)));
    let () = site.connection().await?.sadd(&first, -2).await?;
    let noted = site.keys().windows_late(site.length);
    let () = site
        .connection()
        .await?
        .zadd(noted, window.start(), window.start())
        .await?;
    let _reporter = Reporter::ready(&flags).await?;
    ledger.read_to(window, 3, SOON).await?;
    ledger.read_for(Duration::from_secs(7)).await;
    let published = ledger.of(window).into_iter();
    let published: Vec<_> = published
        .map(|r| (r.value.as_str(), r.header("revision"), r.header("late")))
        .collect();
    assert_eq!(published, [("2", "0", ""), ("2", "1", "2"), ("2", "2", "3")]);
    let kept = report(&site, window).await?;
    assert_eq!((kept.count, kept.revision, kept.late, kept.is_final), (2, 2, 3, true));
    let mut kept = Vec::new();
    let mut connection = site.connection().await?;
    for late in [first, second] {
        let mut ids: Vec<i64> = connection.smembers(&late).await?;
        ids.sort_unstable();
        let seconds: i64 = connection.ttl(&late).await?;
        kept.push((ids, (86_000..=86_400).contains(&seconds)));
    }
    assert_eq!(kept, [(vec![-2, -1], true), (vec![7], true)]);
    // No pending revision is left, except for the current window.
    wait::until("nothing but the window of the moment", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let pending: u64 = redis.hlen(site.keys().reports_pending(site.length)).await.ok()?;
        (pending <= 1).then_some(())
    })
    .await
}

/// Ids of an edge whose clock is ahead are counted in their own window.
///
/// They are reported once it is over; the log announces them before.
#[tokio::test]
async fn ids_of_a_future_window_are_logged_and_counted_in_their_window() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let ahead = clock::current_window(site.length).start() + 10;
    let ahead = site.length.window_starting(ahead).context("a window")?;
    site.add(ahead, 0..3).await?;
    let reporter = Reporter::ready(&flags).await?;
    let key = ahead.to_string();
    reporter
        .process()
        .wait_for_line(SOON, |line| {
            line.contains("clock of an edge host is ahead") && line.contains(&key)
        })
        .await?;
    assert_eq!(metric(&reporter, "verve_windows_ahead_total").await?, 1);
    ledger.read_to(ahead, 1, 2 * SOON).await?;
    assert_eq!(counts_and_revisions(&ledger, ahead), [("3", "0")]);
    Ok(())
}

/// Ids of edges with wrong clocks are in no window of the actual time.
///
/// All of them are reported.
#[tokio::test]
async fn ids_of_edges_with_a_wrong_clock_are_logged() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let reporter = Reporter::ready(&flags).await?;
    let begin = clock::current_window(site.length);
    let (behind, ahead) = (
        site.host(Kind::VerveHost)
            .clock(&WrongClock::ahead(-8)?)
            .start()
            .await?,
        site.host(Kind::VerveHost)
            .clock(&WrongClock::ahead(12)?)
            .start()
            .await?,
    );
    // By then, the current windows of the slow clock are final.
    clock::sleep_until_ms(begin.end_ms() + 11_000).await;
    for (host, ids) in [(&behind, 0..5), (&ahead, 5..12)] {
        for id in ids {
            let answer = http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        }
    }
    reporter
        .process()
        .wait_for_text("arrived after their window", SOON)
        .await?;
    reporter.process().wait_for_text("host is ahead", SOON).await?;
    let published = |ledger: &Ledger| {
        let last = ledger.last();
        let late: u64 = last.values().filter_map(|r| r.header("late").parse::<u64>().ok()).sum();
        let counted: u64 = last.values().filter_map(|r| r.value.parse::<u64>().ok()).sum();
        (late, counted)
    };
    ledger
        .read_until(Duration::from_secs(60), |ledger| published(ledger) == (5, 7))
        .await?;
    Ok(())
}

/// Late ids removed from one set are counted, though another set fails.
#[tokio::test]
async fn ids_that_came_too_late_are_counted_though_one_set_fails() -> Result<()> {
    let site = Site::new(1).await?.partitioned(2);
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let reporter = Reporter::ready(&flags).await?;
    let window = clock::next_window(site.length).await;
    ledger.read_to(window, 1, SOON).await?;
    wait::until("the window to be final", SOON, || async {
        report(&site, window).await.ok().filter(|report| report.is_final)
    })
    .await?;
    reporter.process().terminate(SOON).await?;
    site.add(window, [-1, 1, 7]).await?;
    let blocked = site.keys().late(window, Partition::Part(1));
    let () = site.connection().await?.set(&blocked, "no set").await?;
    // The reporter does not become ready, because Redis refuses a command.
    let reporter = Reporter::start(&flags)?;
    let late = async |ids: u64| {
        wait::until("the ids to be counted", SOON, || async {
            (metric(&reporter, "verve_late_ids_total").await.ok()? == ids).then_some(())
        })
        .await
    };
    late(1).await?;
    let left = site.members(window).await?;
    assert_eq!(left.iter().map(|ids| ids.len()).collect::<Vec<_>>(), [0, 2]);
    let () = site.connection().await?.del(&blocked).await?;
    late(3).await
}

#[tokio::test]
async fn ids_of_a_window_before_the_first_report_are_reported() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let reporter = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| ledger.read().len() >= 2).await?;
    // Spooled while neither Redis nor a reporter was running yet.
    let before = clock::current_window(site.length).start() - 60;
    let before = site.length.window_starting(before).context("a window")?;
    site.add(before, 0..3).await?;
    reporter.process().terminate(SOON).await?;
    let _reporter = Reporter::ready(&flags).await?;
    ledger.read_to(before, 1, SOON).await?;
    site.add(before, 3..4).await?;
    ledger.read_to(before, 2, SOON).await?;
    assert_eq!(counts_and_revisions(&ledger, before), [("3", "0"), ("4", "1")]);
    Ok(())
}

#[tokio::test]
async fn reports_are_kept_for_a_week() -> Result<()> {
    const DAY: u64 = 86_400;
    let site = Site::new(60).await?;
    let reports = site.keys().reports(site.length);
    let today = clock::current_window(site.length);
    let now = today.start();
    let final_report = Report {
        count: 1,
        revision: 0,
        time: now * 1000,
        first: now * 1000,
        is_final: true,
        ..Report::default()
    };
    let open_report = Report {
        is_final: false,
        ..final_report
    };
    let mut redis = site.connection().await?;
    let written = [
        (now - 9 * DAY, final_report),
        (now - 8 * DAY, final_report),
        (now - 8 * DAY + 60, open_report),
        (now - 6 * DAY, final_report),
        (now - 60, final_report),
    ];
    for (start, report) in written {
        let () = redis.hset(&reports, start, report.to_json()).await?;
    }
    let reporter = site.reporter(&[]).await?;
    reporter.process().wait_for_text("removed old reports", SOON).await?;
    let mut left: Vec<u64> = redis.hkeys(&reports).await?;
    left.sort_unstable();
    left.retain(|start| *start < now);
    assert_eq!(left, [now - 8 * DAY + 60, now - 6 * DAY, now - 60]);
    Ok(())
}

#[tokio::test]
async fn metrics_show_what_was_reported() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let window = clock::current_window(site.length);
    site.add(window, 0..3).await?;
    let leader = Reporter::ready(&flags).await?;
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 3..4).await?;
    ledger.read_to(window, 2, SOON).await?;
    let other = Reporter::ready(&flags).await?;
    leader
        .process()
        .wait_for_line(SOON, |line| line.contains("window corrected"))
        .await?;
    assert_eq!(metric(&leader, "verve_window_revisions_total").await?, 1);
    assert!(metric(&leader, "verve_windows_reported_total").await? >= 1);
    assert_eq!(metric(&leader, "verve_windows_lost_total").await?, 0);
    assert_eq!(metric(&leader, "verve_lease_held").await?, 1);
    assert_eq!(metric(&other, "verve_lease_held").await?, 0);
    let response = http::get(leader.address(), "/metrics").await?;
    let text = response.text();
    let media_type = response.header("content-type").unwrap_or_default();
    assert!(media_type.starts_with("text/plain; version=0.0.4"), "{media_type}");
    assert!(text.contains("# TYPE verve_late_ids_total counter\n"), "{text}");
    drop(leader);
    wait::until("the other to lead", SOON, || async {
        (metric(&other, "verve_lease_held").await.ok()? == 1).then_some(())
    })
    .await
}
