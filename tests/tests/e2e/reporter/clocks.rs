//! Clocks that are wrong or are set, with long and short windows.
//!
//! The clock of Redis decides.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{Partition, Window, WindowLength};
use verve_tests::clock::WrongClock;
use verve_tests::host::{Instance, Kind};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::ledger::Ledger;
use crate::reporter::late::metric;
use crate::site::{SOON, Site};

const DAY_MS: u64 = 86_400_000;

/// A site whose parts all use one clock, which is in the past.
///
/// A broker accepts no records from the future.
struct Past {
    clock: WrongClock,
    site: Site,
    ledger: Ledger,
}

impl Past {
    async fn new(seconds: u32) -> Result<Self> {
        let clock = WrongClock::right()?;
        let redis = RedisServer::options().clock(&clock).start().await?;
        Ok(Self {
            clock,
            site: Site::with_redis(seconds, redis),
            ledger: Ledger::new().await?,
        })
    }

    /// Sets the clock to a time in Unix milliseconds.
    fn set(&self, ms: u64) -> Result<()> {
        let ahead_ms = ms.cast_signed() - clock::now_ms().cast_signed();
        self.clock.set(ahead_ms.div_euclid(1000))
    }

    async fn host(&self, kind: Kind) -> Result<Instance> {
        self.site.host(kind).clock(&self.clock).start().await
    }

    async fn reporter(&self) -> Result<Reporter> {
        let reporter = Reporter::start_by(&self.clock, &self.ledger.flags(&self.site, &[]))?;
        reporter.wait_ready(SOON).await?;
        Ok(reporter)
    }

    /// Sends seven ids to a host, starting five seconds into a window.
    async fn count_seven(&self, kind: Kind, window: Window) -> Result<()> {
        self.set(window.start() * 1000 + 5_000)?;
        let host = self.host(kind).await?;
        for id in 0..7 {
            assert_eq!(accept(&host, id).await?, "new", "{kind:?} {}", host.process().log());
        }
        // Statistics arrive a little later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(())
    }
}

async fn accept(instance: &Instance, id: i64) -> Result<String> {
    let response = http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await?;
    Ok(response.header("verve-outcome").unwrap_or_default().to_owned())
}

/// Ids from the start of a day-long window are still there at its end.
///
/// No other ids arrive during the day.
#[tokio::test]
async fn a_window_of_a_day_is_reported_whole() -> Result<()> {
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let mut past = Past::new(WindowLength::MAX_SECONDS).await?;
        let day = past.site.length.window_at_ms(clock::now_ms() - 2 * DAY_MS);
        past.count_seven(kind, day).await?;
        past.set(day.end_ms() + 20_000)?;
        let _reporter = past.reporter().await?;
        past.ledger.read_to(day, 1, SOON).await?;
        let record = past.ledger.of(day)[0];
        assert_eq!(
            (record.value.as_str(), record.header("requests")),
            ("7", "7"),
            "{kind:?}"
        );
    }
    Ok(())
}

/// After an outage of less than a day, all missed windows are reported.
///
/// Windows whose ids may have expired are lost, and none is reported as 0.
#[tokio::test]
async fn longer_windows_are_reported_whole_or_lost() -> Result<()> {
    for (seconds, down_s, expected) in [
        // Seconds from the end of the first of three windows to the restart, and the count reported
        // for each.
        (21_600, 67_200, [Some("7"), Some("7"), Some("7")]),
        (3_600, 88_200, [None, Some("7"), Some("7")]),
        (3_600, 93_000, [None, None, Some("7")]),
    ] {
        let mut past = Past::new(seconds).await?;
        let length = past.site.length;
        let first = length.window_at_ms(clock::now_ms() - 3 * DAY_MS);
        let windows = [first, first.next(), first.next().next()];
        // Another reporter reported the window before.
        past.set(first.start() * 1000 + 10_000)?;
        let before = past.reporter().await?;
        wait::until("it to be noted where it began", SOON, || async {
            let mut redis = past.site.connection().await.ok()?;
            let from: bool = redis.exists(past.site.keys().reports_from(length)).await.ok()?;
            from.then_some(())
        })
        .await?;
        before.process().terminate(SOON).await?;
        for window in windows {
            past.count_seven(Kind::VerveHost, window).await?;
        }
        past.set(first.end_ms() + down_s * 1000)?;
        let reporter = past.reporter().await?;
        let last = windows[2];
        past.ledger.read_to(last, 1, SOON).await?;
        let reported = windows.map(|window| past.ledger.of(window).first().map(|record| record.value.as_str()));
        assert_eq!(reported, expected, "{seconds} {down_s}: {}", past.ledger);
        let lost = expected.iter().filter(|count| count.is_none()).count() as u64;
        assert_eq!(
            metric(&reporter, "verve_windows_lost_total").await?,
            lost,
            "{seconds} {down_s}"
        );
    }
    Ok(())
}

/// While the leader cannot publish, it keeps ids from expiring.
///
/// This includes the ids of the windows that it watches.
#[tokio::test]
async fn ids_that_are_needed_are_kept_from_expiring() -> Result<()> {
    let mut past = Past::new(60).await?;
    let first = past.site.length.window_at_ms(clock::now_ms() - 3 * DAY_MS);
    past.count_seven(Kind::VerveHost, first).await?;
    past.set(first.end_ms() - 2_000)?;
    let flags = past.site.flags(&["--kafka-brokers", "127.0.0.1:1"]);
    let reporter = Reporter::start_by(&past.clock, &flags)?;
    let ids = past.site.ids(first);
    // It has led for a while; the ids would expire in an hour.
    past.set(first.end_ms() + DAY_MS - 3_600_000)?;
    reporter.process().kill();
    let reporter = Reporter::start_by(&past.clock, &flags)?;
    wait::until("the ids to be kept", SOON, || async {
        let (mut redis, keys) = (past.site.connection().await.ok()?, past.site.keys());
        let seconds: i64 = redis.ttl(&ids).await.ok()?;
        // Recorded once all are kept.
        let progress = keys.reports_progress(past.site.length);
        let kept: bool = redis.hexists(progress, "kept").await.ok()?;
        (seconds > 80_000 && kept).then_some(())
    })
    .await
    .with_context(|| reporter.process().log())?;
    reporter.process().kill();
    past.set(first.end_ms() + DAY_MS + 3_600_000)?;
    let reporter = past.reporter().await?;
    past.ledger.read_to(first, 1, SOON).await?;
    assert_eq!(past.ledger.of(first)[0].value, "7");
    assert_eq!(metric(&reporter, "verve_windows_lost_total").await?, 0);
    Ok(())
}

/// The clock of the reporter's machine does not count; its error is reported.
#[tokio::test]
async fn the_clock_of_the_reporter_is_not_used() -> Result<()> {
    for ahead_s in [1_800, -1_800] {
        let site = Site::new(1).await?;
        let mut ledger = Ledger::new().await?;
        let clock = WrongClock::ahead(ahead_s)?;
        let reporter = Reporter::start_by(&clock, &ledger.flags(&site, &[]))?;
        let way = if ahead_s > 0 {
            "1800.0 s ahead of Redis'"
        } else {
            "1800.0 s behind Redis'"
        };
        reporter
            .process()
            .wait_for_line(SOON, |line| line.contains("clock") && line.contains(way))
            .await?;
        let window = clock::next_window(site.length).await;
        site.add(window, 0..3).await?;
        ledger
            .read_to(window, 1, SOON)
            .await
            .with_context(|| reporter.process().log())?;
        clock::sleep_until_ms(window.end_ms() + 3_000).await;
        let now = clock::current_window(site.length).to_string();
        assert_eq!(ledger.of(window)[0].value, "3", "{ahead_s}");
        ledger.read_for(Duration::from_secs(1)).await;
        assert!(
            ledger.read().iter().all(|record| record.key <= now),
            "{ahead_s}: {ledger}"
        );
        let ready = http::get(reporter.address(), "/readyz").await?;
        assert!(ready.status == 503 && ready.text().contains("clock:"), "{ready:?}");
        // The API and the page also take the open window from the clock of Redis.
        let current = http::get(reporter.address(), "/api/counts/current").await?.text();
        let current: serde_json::Value = serde_json::from_str(&current)?;
        let start = current["start"].as_u64().context("a start")?;
        assert!(start.abs_diff(clock::now_ms() / 1000) < 10, "{current}");
        clock.set(0)?;
        reporter.wait_ready(SOON).await?;
    }
    Ok(())
}

/// Windows reported before they began are counted again.
///
/// The clock of Redis was ahead for a while.
#[tokio::test]
async fn a_redis_whose_clock_was_ahead_is_recovered_from() -> Result<()> {
    let clock = WrongClock::right()?;
    let redis = RedisServer::options().clock(&clock).start().await?;
    let site = Site::with_redis(1, redis);
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let reporter = Reporter::ready(&flags).await?;
    clock.set(40)?;
    let ahead = site.length.window_at_ms(clock::now_ms() + 15_000);
    ledger.read_to(ahead, 1, Duration::from_secs(30)).await?;
    // Until it is final, with 0.
    wait::until("the window to be final", SOON, || async {
        let key = site.keys().reports(site.length);
        let report: String = site.connection().await.ok()?.hget(key, ahead.start()).await.ok()?;
        report.contains(r#""final":true"#).then_some(())
    })
    .await?;
    clock.set(0)?;
    reporter.process().wait_for_text("clock was set back", SOON).await?;
    reporter.process().wait_for_text("they are counted again", SOON).await?;
    clock::sleep_until_ms(ahead.start() * 1000).await;
    site.add(ahead, 0..5).await?;
    ledger
        .read_to(ahead, 2, SOON)
        .await
        .with_context(|| reporter.process().log())?;
    let records: Vec<(&str, &str)> = ledger
        .of(ahead)
        .iter()
        .map(|r| (r.value.as_str(), r.header("revision")))
        .collect();
    assert_eq!(records, [("0", "0"), ("5", "1")]);
    Ok(())
}

/// With a clock that is days ahead, the windows up to it are lost.
///
/// With the right clock, windows are reported as soon as they have ended.
#[tokio::test]
async fn a_redis_whose_clock_was_days_ahead_is_recovered_from() -> Result<()> {
    let clock = WrongClock::right()?;
    let redis = RedisServer::options().clock(&clock).start().await?;
    let site = Site::with_redis(1, redis);
    let mut ledger = Ledger::new().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    reporter.process().wait_for_text("window reported", SOON).await?;
    clock.set(2 * 86_400)?;
    reporter.process().wait_for_text("windows not reported", SOON).await?;
    clock.set(0)?;
    reporter.process().wait_for_text("clock was set back", SOON).await?;
    let window = site.length.window_at_ms(clock::now_ms() + 2_000);
    clock::sleep_until_ms(window.start() * 1000).await;
    site.add(window, 0..5).await?;
    ledger
        .read_to(window, 1, SOON)
        .await
        .with_context(|| reporter.process().log())?;
    assert_eq!(ledger.of(window)[0].value, "5");
    Ok(())
}

/// An edge host whose clock is set back works again as soon as Redis does.
#[tokio::test]
async fn an_edge_clock_that_is_set_back() -> Result<()> {
    for kind in Kind::available() {
        let clock = WrongClock::right()?;
        let mut site = Site::with_one_window().await?;
        let host = site.host(kind).clock(&clock).variable("redis_timeout_ms", "300");
        let mut host = host.start().await?;
        assert_eq!(accept(&host, 1).await?, "new", "{kind:?}");
        site.redis.kill();
        assert_eq!(accept(&host, 2).await?, "spooled", "{kind:?}");
        clock.set(-7_200)?;
        site.redis.restart().await?;
        let recorded = async |host: &Instance, id: i64| {
            wait::until("an id to go to Redis", SOON, || async {
                (accept(host, id).await.ok()? != "spooled").then_some(())
            })
            .await
            .with_context(|| format!("{kind:?}: {}", host.process().log()))
        };
        recorded(&host, 3).await?;
        // Later instances ignore stored times that lie in the future since the clock was set.
        let later = clock::now_ms() + 7_200_000;
        let node = site.redis.server().url();
        for name in [node.as_str(), "draining", "jobs full"] {
            let row = "INSERT OR REPLACE INTO state VALUES (?, ?)";
            host.spool()?.execute(row, (name, later.cast_signed()))?;
        }
        host.spool()?.execute(
            "INSERT INTO ids (key, ids, count) VALUES (?, '77', 1)",
            [site.ids(clock::current_window(site.length))],
        )?;
        host.restart().await?;
        assert_ne!(accept(&host, 4).await?, "spooled", "{kind:?}: {}", host.process().log());
        // One instance probes the node again, and others may spool until it has an answer.
        recorded(&host, 5).await?;
        let response = http::get(host.addr(), "/api/verve/accept?id=6&endpoint=http://e.com/").await?;
        assert_eq!(response.header("verve-outcome"), Some("new"), "{kind:?}");
        wait::until("the spool to be drained", SOON, || async {
            let window = clock::current_window(site.length);
            let ids = site.members(window).await.ok()?;
            let jobs = site.stream(&site.keys().callbacks()).await.ok()?;
            (ids[0].contains("77") && jobs.len() == 1).then_some(())
        })
        .await
        .with_context(|| format!("{kind:?}: {}", host.process().log()))?;
    }
    Ok(())
}

/// One old set does not make the first reporter catch up on half a century.
///
/// It comes from an edge host without a clock.
#[tokio::test]
async fn the_first_reporter_starts_no_earlier_than_ids_are_kept() -> Result<()> {
    let site = Site::new(60).await?;
    let mut ledger = Ledger::new().await?;
    let first = site.length.window_at_ms(0);
    site.add(first, [1, 2]).await?;
    let before = site.length.window_at_ms(clock::now_ms() - 600_000);
    site.add(before, [3]).await?;
    let flags = ledger.flags(&site, &[]);
    let reporter = Reporter::ready(&flags).await?;
    ledger.read_to(before, 1, SOON).await?;
    ledger.read_for(Duration::from_secs(3)).await;
    assert!(ledger.read().len() <= 12, "{ledger}");
    assert_eq!(ledger.read()[0].key, before.to_string());
    let line = reporter
        .process()
        .wait_for_text("arrived after their window", SOON)
        .await?;
    assert!(
        line.contains("1970-01-01T00:00:00Z") && line.contains("ids=2"),
        "{line}"
    );
    assert_eq!(metric(&reporter, "verve_windows_lost_total").await?, 0);
    let late = site.keys().late(first, Partition::Whole);
    let kept: u64 = site.connection().await?.scard(late).await?;
    assert_eq!(kept, 2);
    Ok(())
}

/// Windows that are far in the future: their ids are not kept forever.
#[tokio::test]
async fn a_set_of_another_century_expires() -> Result<()> {
    let site = Site::new(60).await?;
    let clock = WrongClock::ahead(75 * 365 * 86_400)?;
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let host = site.host(kind).clock(&clock).start().await?;
        assert_eq!(accept(&host, 1).await?.replace("duplicate", "new"), "new", "{kind:?}");
    }
    let ahead = site.length.window_at_ms(clock::now_ms() + 75 * 365 * DAY_MS);
    let reporter = site.reporter(&[]).await?;
    reporter.process().wait_for_text("host is ahead", SOON).await?;
    let expiries = async || {
        let mut expiries = Vec::new();
        for window in [ahead, ahead.next()] {
            let mut at = redis::cmd("EXPIRETIME");
            let at: i64 = at
                .arg(site.ids(window))
                .query_async(&mut site.connection().await?)
                .await?;
            expiries.extend((at != -2).then_some(at - (clock::now_ms() / 1000).cast_signed()));
        }
        anyhow::Ok(expiries)
    };
    let before = expiries().await?;
    assert!(
        !before.is_empty() && before.iter().all(|s| (600_000..=691_200).contains(s)),
        "{before:?}"
    );
    // Several sweeps later it is closer by that time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = expiries().await?;
    assert!(
        after.iter().zip(&before).all(|(after, before)| after + 3 < *before),
        "{before:?} {after:?}"
    );
    Ok(())
}
