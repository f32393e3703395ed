//! Named counters as an application uses them, from the interface to the reporter.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::counter_name::UNUSED_SECONDS;
use verve_protocol::keys::ids_parts;
use verve_protocol::{CounterName, Partition, Window};
use verve_tests::clock::WrongClock;
use verve_tests::host::{Instance, Kind};
use verve_tests::kafka::Record;
use verve_tests::metrics::Metrics;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::ledger::Ledger;
use crate::library::examples::example;
use crate::site::{SOON, Site};

fn name(name: &str) -> CounterName {
    name.parse().expect("a name")
}

/// Returns the last record of a named counter's window.
fn of<'a>(ledger: &'a Ledger, counter: &str, window: Window) -> Option<&'a Record> {
    let key = format!("{counter}/{window}");
    ledger.last().get(key.as_str()).copied()
}

async fn login(instance: &Instance, query: &str) -> Result<u16> {
    Ok(http::get(instance.addr(), &format!("/login?{query}")).await?.status)
}

#[tokio::test]
async fn each_is_counted_and_reported_by_itself() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "login")?.start().await?;
        let window = clock::next_window(site.length).await;
        for query in [
            "player=1&game=chess",
            "player=2&game=chess",
            "player=1&game=chess",
            "player=1&game=go",
            "player=3",
        ] {
            assert_eq!(
                login(&instance, query).await?,
                200,
                "{kind:?}: {}",
                instance.process().log()
            );
        }
        clock::assert_still(site.length, window);
        ledger
            .read_until(SOON, |ledger| {
                of(ledger, "game-chess", window).is_some()
                    && of(ledger, "game-go", window).is_some()
                    && !ledger.of(window).is_empty()
            })
            .await?;
        // The records of the unnamed counter are unchanged.
        assert_eq!(ledger.of(window)[0].value, "3", "{kind:?}");
        assert!(!ledger.of(window)[0].headers.contains_key("counter"), "{kind:?}");
        for (counter, count, requests, duplicates) in [("game-chess", "2", "3", "1"), ("game-go", "1", "1", "0")] {
            let record = of(&ledger, counter, window).context("reported")?;
            assert_eq!(record.value, count, "{kind:?}: {record:?}");
            let headers = ["counter", "window-seconds", "requests", "duplicates"].map(|header| record.header(header));
            assert_eq!(headers, [counter, "2", requests, duplicates], "{kind:?}: {record:?}");
        }

        // Once a counter is known, windows without ids are reported too.
        ledger
            .read_until(SOON, |ledger| of(ledger, "game-chess", window.next()).is_some())
            .await?;
        assert_eq!(of(&ledger, "game-chess", window.next()).context("reported")?.value, "0");

        let counts = http::get(reporter.address(), "/api/counts?counter=game-chess&limit=100").await?;
        let counts: serde_json::Value = serde_json::from_slice(&counts.body)?;
        let found = counts
            .as_array()
            .into_iter()
            .flatten()
            .find(|count| count["window"] == window.to_string());
        assert_eq!(found.context("its count")?["count"], 2, "{kind:?}: {counts}");
        let bad = http::get(reporter.address(), "/api/counts?counter=a/b").await?;
        assert_eq!(bad.status, 400);
        assert!(bad.text().contains("1 to 64"), "{}", bad.text());

        let metrics = Metrics::scrape(&reporter).await?;
        for sample in [
            r#"verve_unique_ids{counter="game-go",window="last"}"#,
            r#"verve_windows_reported_total{counter="game-go"}"#,
            r#"verve_lease_held{counter="game-go"}"#,
            r#"verve_window_overdue_seconds{counter="game-go"}"#,
        ] {
            assert!(metrics.get(sample).is_some(), "{sample}");
        }
        let page = http::get(reporter.address(), "/").await?.text();
        assert!(
            page.contains(r#"<a href="?counter=game-chess">game-chess</a>"#),
            "{page}"
        );
        let page = http::get(reporter.address(), "/?counter=game-chess").await?.text();
        assert!(
            page.contains("game-chess · Verve</title>") && page.contains("api/counts.csv?counter=game-chess"),
            "{page}"
        );
        let row = format!("<tr id=\"w{}\"", window.start());
        let (_, row) = page.split_once(&row).context("the window")?;
        assert!(
            row.split("</tr>").next().unwrap_or_default().contains("<td>2</td>"),
            "{row}"
        );
        let bad = http::get(reporter.address(), "/events?counter=a/b").await?;
        assert_eq!(bad.status, 400, "{}", bad.text());
        let bad = http::get(reporter.address(), "/?counter=a/b").await?;
        assert_eq!(bad.status, 400, "{}", bad.text());
    }
    Ok(())
}

#[tokio::test]
async fn ids_of_a_named_counter_are_spooled_with_its_name() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "login")?.start().await?;
        site.redis.kill();
        let window = clock::next_window(site.length).await;
        // This counter is not yet in Redis.
        assert_eq!(
            login(&instance, "player=1&game=chess").await?,
            200,
            "{kind:?}: {}",
            instance.process().log()
        );
        assert_eq!(login(&instance, "player=2&game=chess").await?, 200, "{kind:?}");
        site.redis.restart().await?;
        ledger
            .read_until(Duration::from_secs(30), |ledger| {
                let counts = [window, window.next(), window.next().next()];
                let counts = counts.iter().filter_map(|window| of(ledger, "game-chess", *window));
                counts
                    .map(|record| record.value.parse::<u64>().unwrap_or_default())
                    .sum::<u64>()
                    == 2
            })
            .await
            .with_context(|| instance.process().log())?;
    }
    Ok(())
}

/// Returns the windows of a named counter that have records.
fn windows_of(ledger: &Ledger, counter: &str) -> Vec<String> {
    let keys = ledger.last().into_keys();
    let named = keys.filter_map(|key| Some(key.strip_prefix(counter)?.strip_prefix('/')?.to_owned()));
    named.collect()
}

#[tokio::test]
async fn an_idle_counter_is_not_reported_until_it_has_ids_again() -> Result<()> {
    let site = Site::new(2).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ["--idle-seconds", "10", "--late-seconds", "0"];
    let _reporter = Reporter::ready(&ledger.flags(&site, &flags)).await?;
    let kind = *Kind::available().first().context("a host")?;
    let instance = example(&site, kind, "login")?.start().await?;
    let first = clock::next_window(site.length).await;
    assert_eq!(login(&instance, "player=1&game=chess").await?, 200);
    clock::assert_still(site.length, first);
    let windows: Vec<Window> = std::iter::successors(Some(first), |window| Some(window.next()))
        .take(9)
        .collect();
    let within = Duration::from_secs(40);
    ledger
        .read_until(within, |ledger| !ledger.of(windows[8]).is_empty())
        .await?;
    // The window with the id, and those that began in the 10 seconds after it.
    let mut expected: Vec<String> = windows[..6].iter().map(Window::to_string).collect();
    assert_eq!(windows_of(&ledger, "game-chess"), expected);

    let again = clock::next_window(site.length).await;
    assert_eq!(login(&instance, "player=1&game=chess").await?, 200);
    clock::assert_still(site.length, again);
    ledger
        .read_until(within, |ledger| of(ledger, "game-chess", again).is_some())
        .await?;
    expected.push(again.to_string());
    let reported = windows_of(&ledger, "game-chess");
    assert_eq!(reported[..7], expected);
    assert_eq!(of(&ledger, "game-chess", again).context("reported")?.value, "1");
    Ok(())
}

#[tokio::test]
async fn the_maximum_number_of_counters_works() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::new(60).await?;
        let mut redis = site.connection().await?;
        let now = clock::current_window(site.length).start();
        let names: Vec<(u64, String)> = (0..1000).map(|number| (now, format!("game-{number}"))).collect();
        let _: u64 = redis.zadd_multiple(site.keys().counters(), &names).await?;
        let instance = example(&site, kind, "login")?.start().await?;
        assert_eq!(
            login(&instance, "player=1&game=7").await?,
            200,
            "{kind:?}: {}",
            instance.process().log()
        );
        assert_eq!(login(&instance, "player=1&game=one-more").await?, 503, "{kind:?}");
        instance.process().wait_for_text("already has", SOON).await?;
        // It left no key in Redis.
        let keys: Vec<String> = redis::cmd("KEYS").arg("*one-more*").query_async(&mut redis).await?;
        assert_eq!(keys, Vec::<String>::new(), "{kind:?}");
        // An invalid name.
        let refused = http::get(instance.addr(), "/login?player=1&game=a/b").await?;
        assert_eq!(refused.status, 400, "{kind:?}");
        assert!(refused.text().contains("1 to 64"), "{kind:?}: {}", refused.text());
    }
    Ok(())
}

#[tokio::test]
async fn one_that_cannot_be_reported_is_named_and_holds_up_no_other() -> Result<()> {
    let site = Site::new(2).await?;
    let mut ledger = Ledger::new().await?;
    let mut redis = site.connection().await?;
    let window = clock::next_window(site.length).await;
    let bad = site.keys().named(name("bad")).ids(window, Partition::Whole);
    let () = redis.set(&bad, "not a set").await?;
    for counter in ["bad", "good"] {
        for key in [site.keys().counters(), site.keys().counters_in_use(site.length)] {
            let _: u64 = redis.zadd(key, counter, window.start()).await?;
        }
    }
    let good = site.keys().named(name("good")).ids(window, Partition::Whole);
    let _: u64 = redis.sadd(good, 5).await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger
        .read_until(SOON, |ledger| of(ledger, "good", window).is_some())
        .await?;
    wait::until("the problem", SOON, || async {
        let ready = http::get(reporter.address(), "/readyz").await.ok()?;
        let is_named = ready
            .text()
            .contains("counter bad, windows of 2 s: they cannot be reported: ");
        let metrics = Metrics::scrape(&reporter).await.ok()?;
        let overdue = metrics.get(r#"verve_window_overdue_seconds{counter="bad"}"#)?;
        (ready.status == 503 && is_named && overdue >= 1.0).then_some(())
    })
    .await?;
    assert!(of(&ledger, "bad", window).is_none());

    let _: u64 = redis.del(&bad).await?;
    ledger
        .read_until(SOON, |ledger| of(ledger, "bad", window).is_some())
        .await?;
    reporter.wait_ready(2 * SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_counter_without_new_ids_is_removed() -> Result<()> {
    let site = Site::new(2).await?;
    let mut ledger = Ledger::new().await?;
    let mut redis = site.connection().await?;
    let (counters, in_use) = (site.keys().counters(), site.keys().counters_in_use(site.length));
    let now = clock::current_window(site.length).start();
    for (counter, used) in [("old", now - UNUSED_SECONDS - 60), ("new", now)] {
        for key in [&counters, &in_use] {
            let _: u64 = redis.zadd(key, counter, used).await?;
        }
    }
    let old = site.keys().named(name("old"));
    let report = verve_protocol::Report::default().to_json();
    let _: u64 = redis.hset(old.reports(site.length), now - 2, report).await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    reporter.process().wait_for_text("forgotten", SOON).await?;
    wait::until("the counter to be forgotten", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let names: Vec<String> = redis.zrange(site.keys().counters(), 0, -1).await.ok()?;
        let metrics = Metrics::scrape(&reporter).await.ok()?;
        let has_metric = |counter: &str| {
            metrics
                .get(&format!(r#"verve_lease_held{{counter="{counter}"}}"#))
                .is_some()
        };
        (names == ["new"] && has_metric("new") && !has_metric("old")).then_some(())
    })
    .await?;
    let left: bool = redis.exists(old.reports(site.length)).await?;
    assert!(!left, "what was reported of it is there still");

    // Ids are added to it again: it starts again without earlier windows.
    let window = clock::next_window(site.length).await;
    for key in [&counters, &in_use] {
        let _: u64 = redis.zadd(key, "old", window.start()).await?;
    }
    let _: u64 = redis.sadd(old.ids(window, Partition::Whole), 5).await?;
    ledger
        .read_until(SOON, |ledger| of(ledger, "old", window).is_some())
        .await?;
    assert_eq!(of(&ledger, "old", window).context("reported")?.value, "1");
    let of_old = ledger.last().keys().filter(|key| key.starts_with("old/")).count();
    assert!(of_old <= 4, "{ledger}");
    Ok(())
}

/// The page and the metrics do not grow with the number of counters.
#[tokio::test]
async fn many_counters_are_shown_in_pages_and_their_metrics_summed_up() -> Result<()> {
    let site = Site::with_one_window().await?;
    let mut redis = site.connection().await?;
    let window = clock::current_window(site.length);
    for number in 0..120_u64 {
        let counter = format!("campaign-{number:03}");
        for key in [site.keys().counters(), site.keys().counters_in_use(site.length)] {
            let _: u64 = redis.zadd(key, &counter, window.start()).await?;
        }
        let key = site.keys().named(name(&counter)).ids(window, Partition::Whole);
        let _: u64 = redis.sadd(key, (0..=number).collect::<Vec<u64>>()).await?;
    }
    let reporter = site.reporter(&["--metrics-counters", "20"]).await?;
    let page = async |query: &str| {
        http::get(reporter.address(), &format!("/{query}"))
            .await
            .map(|page| page.text())
    };
    let all = wait::until("the counters on the page", SOON, || async {
        page("").await.ok().filter(|page| page.contains("1 to 50 of 120"))
    })
    .await?;
    let rows = |page: &str| page.matches(r#"<a href="?counter="#).count();
    assert_eq!(rows(&all), 50);
    // Those with most ids come first.
    let at = |counter: &str| all.find(&format!(">{counter}<"));
    assert!(at("campaign-119") < at("campaign-118") && at("campaign-070").is_some() && at("campaign-069").is_none());
    assert!(all.contains(r#"<a href="?find=&amp;page=2#named">"#), "{all}");
    let last = page("?page=3").await?;
    assert!(rows(&last) == 20 && last.contains("101 to 120 of 120"), "{last}");
    let found = page("?find=-00").await?;
    assert!(rows(&found) == 10 && found.contains("1 to 10 of 10"), "{found}");
    assert!(page("?page=9").await?.contains("None of 120"));
    assert_eq!(http::get(reporter.address(), "/?page=0").await?.status, 400);

    let metrics = Metrics::scrape(&reporter).await?;
    let unique = |counter: &str| metrics.get(&format!(r#"verve_unique_ids{{counter="{counter}",window="current"}}"#));
    let own: Vec<f64> = (0..120)
        .filter_map(|number| unique(&format!("campaign-{number:03}")))
        .collect();
    let others = unique("other").context("the sum of the others")?;
    assert_eq!(
        (own.len(), own.iter().sum::<f64>() + others),
        (20, f64::from(120 * 121 / 2))
    );
    Ok(())
}

#[tokio::test]
async fn another_replica_takes_over() -> Result<()> {
    let site = Site::new(2).await?;
    let mut ledger = Ledger::new().await?;
    let first = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let _second = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let instance = example(&site, Kind::VerveHost, "login")?.start().await?;
    let window = clock::next_window(site.length).await;
    assert_eq!(login(&instance, "player=1&game=chess").await?, 200);
    ledger
        .read_until(SOON, |ledger| of(ledger, "game-chess", window).is_some())
        .await?;
    first.process().kill();
    let window = clock::next_window(site.length).await;
    assert_eq!(login(&instance, "player=1&game=chess").await?, 200);
    clock::assert_still(site.length, window);
    ledger
        .read_until(Duration::from_secs(30), |ledger| {
            of(ledger, "game-chess", window).is_some()
        })
        .await?;
    assert_eq!(of(&ledger, "game-chess", window).context("reported")?.value, "1");
    Ok(())
}

#[tokio::test]
async fn an_application_of_wasi_0_2_has_them_too() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "ingest")?.start().await?;
        // The first request includes the start of the interpreter.
        assert_eq!(
            http::get(instance.addr(), "/ingest?device=x").await?.status,
            400,
            "{kind:?}"
        );
        let window = clock::next_window(site.length).await;
        let answered = http::get(instance.addr(), "/ingest?device=1&device=2&fleet=north").await?;
        assert_eq!(
            (answered.status, answered.text().as_str()),
            (200, r#"["new", "new"]"#),
            "{kind:?}: {}",
            instance.process().log()
        );
        let answered = http::get(instance.addr(), "/ingest?device=1&fleet=a+b").await?;
        assert_eq!(answered.status, 400, "{kind:?}: {}", answered.text());
        clock::assert_still(site.length, window);
        ledger
            .read_until(SOON, |ledger| of(ledger, "north", window).is_some())
            .await?;
        assert_eq!(of(&ledger, "north", window).context("reported")?.value, "2", "{kind:?}");
    }
    Ok(())
}

/// A counter that was unused for days, with ids spooled before that.
///
/// Its old windows keep their reports, and ids that are too late are reported.
#[tokio::test]
async fn a_counter_that_is_used_again_after_days() -> Result<()> {
    const DAY_MS: u64 = 86_400_000;
    let redis_clock = WrongClock::right()?;
    let redis = RedisServer::options().clock(&redis_clock).start().await?;
    let site = Site::with_redis(60, redis);
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &["--late-seconds", "1"]);
    let set = |days: i64| redis_clock.set(-days * 86_400);
    let reporter = || Reporter::start_by(&redis_clock, &flags);

    // Five players, twelve days ago, and their report.
    set(12)?;
    let window = site.length.window_at_ms(clock::now_ms() - 12 * DAY_MS);
    let instance = example(&site, Kind::VerveHost, "login")?.clock(&redis_clock);
    let mut instance = instance.start().await?;
    for player in 0..5 {
        assert_eq!(login(&instance, &format!("player={player}&game=chess")).await?, 200);
    }
    let counted = site.keys().named(name("game-chess"));
    let mut redis = site.connection().await?;
    let keys: Vec<String> = redis.keys(format!("{}/game-chess:ids:*", site.namespace)).await?;
    let window = keys
        .first()
        .and_then(|key| site.length.window_starting(ids_parts(key)?.2))
        .unwrap_or(window);
    let first = reporter()?;
    redis_clock.set(-12 * 86_400 + 70)?;
    ledger
        .read_until(SOON, |ledger| of(ledger, "game-chess", window).is_some())
        .await?;
    let published = of(&ledger, "game-chess", window).context("reported")?;
    assert_eq!((published.value.as_str(), published.header("revision")), ("5", "0"));
    wait::until("the window to be final", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let report: String = redis.hget(counted.reports(site.length), window.start()).await.ok()?;
        report.contains(r#""final":true"#).then_some(())
    })
    .await
    .with_context(|| first.process().log())?;
    first.process().kill();

    for (days_ago, number) in [(9, 1), (0, 2)] {
        // Three more ids of that window are drained from a spool.
        instance.process().kill();
        let row = "INSERT INTO ids (key, ids, count) VALUES (?, ?, 3)";
        let ids = format!("{number}01,{number}02,{number}03");
        let key = counted.ids(window, Partition::Whole);
        instance.spool()?.execute(row, (key, ids))?;
        set(days_ago)?;
        // Three days later the counter is still known; nine days after that it is not.
        let reporter = reporter()?;
        let forgotten = wait::until("it to be forgotten", Duration::from_secs(4), || async {
            let mut redis = site.connection().await.ok()?;
            let count: u64 = redis.zcard(site.keys().counters()).await.ok()?;
            (count == 0).then_some(())
        });
        assert_eq!(forgotten.await.is_ok(), days_ago == 0, "{}", reporter.process().log());
        instance.restart().await?;
        assert_eq!(login(&instance, "player=1").await?, 200);
        let line = reporter
            .process()
            .wait_for_line(2 * SOON, |line| {
                line.contains("arrived after their window") && line.contains("game-chess")
            })
            .await?;
        assert!(line.contains("ids=3") && line.contains(&window.to_string()), "{line}");
        if days_ago == 9 {
            // Its report still exists.
            let key = format!("game-chess/{window}");
            ledger
                .read_until(SOON, |ledger| ledger.last()[key.as_str()].header("revision") == "1")
                .await?;
            let last = ledger.last()[key.as_str()];
            assert_eq!((last.value.as_str(), last.header("late")), ("5", "3"));
        }
        reporter.process().kill();
    }
    ledger.read_for(Duration::from_secs(2)).await;
    let last = of(&ledger, "game-chess", window).context("reported")?;
    assert_eq!(last.value, "5", "{ledger}");
    site.redis.kill();
    Ok(())
}

/// A Redis that has lost the list of counters gets them again.
///
/// This happens in the same window.
#[tokio::test]
async fn a_redis_that_lost_its_data_is_given_reports_again() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::new(86_400).await?;
        let instance = example(&site, kind, "login")?.start().await?;
        assert_eq!(login(&instance, "player=1&game=chess").await?, 200);
        site.redis.restart().await?;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        for player in 1..3 {
            assert_eq!(login(&instance, &format!("player={player}&game=chess")).await?, 200);
        }
        let mut redis = site.connection().await?;
        let names: Vec<String> = redis.zrange(site.keys().counters(), 0, -1).await?;
        assert_eq!(names, ["game-chess"], "{kind:?}");
        let indexed: u64 = redis
            .zcard(site.keys().named(name("game-chess")).windows(site.length))
            .await?;
        assert!(indexed >= 1, "{kind:?}");
    }
    Ok(())
}
