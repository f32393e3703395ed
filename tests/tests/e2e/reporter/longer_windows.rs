//! Windows of several lengths, from the same requests.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future;
use serde_json::Value;
use verve_protocol::{Window, WindowLength};
use verve_tests::host::{Instance, Kind};
use verve_tests::kafka::Record;
use verve_tests::link::Link;
use verve_tests::metrics::Metrics;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::{clock, http, wait};

use crate::component::limits::{accept, counted, is};
use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Returns the key of the record of a longer window.
fn key(window: Window) -> String {
    format!("{window}/{}", window.length().iso_8601())
}

/// Returns the last record with this key.
fn of<'a>(ledger: &'a Ledger, key: &str) -> Result<&'a Record> {
    ledger.last().get(key).copied().with_context(|| key.to_owned())
}

/// Starts an instance with windows of these lengths.
async fn instance(site: &Site, kind: Kind, lengths: &str) -> Result<Instance> {
    let host = site.host(kind).variable("window_seconds", lengths);
    host.variable("counters", "game").start().await
}

async fn counts(reporter: &Reporter, path: &str) -> Result<Value> {
    let answer = http::get(reporter.address(), path).await?;
    serde_json::from_slice(&answer.body).with_context(|| answer.text())
}

#[tokio::test]
async fn an_id_is_counted_in_the_window_of_each_length() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::new(2).await?.partitioned(2);
        let longer: WindowLength = clock::length(6);
        let mut ledger = Ledger::new().await?;
        let sink = Sink::start().await?;
        let reporter = Reporter::ready(&ledger.flags(
            &site,
            &[
                "--window-seconds",
                "2,6",
                "--callback-allow",
                "127.0.0.1",
                "--callback-url",
                &sink.url("/fixed"),
                "--callback-lengths",
                "6",
            ],
        ))
        .await?;
        let host = instance(&site, kind, "2,6").await?;
        let window = clock::next_window(longer).await;
        let first = clock::current_window(site.length);
        for (query, outcome) in [
            ("id=1", "new"),
            ("id=2", "new"),
            ("id=2", "duplicate"),
            ("id=3", "new"),
            ("id=1&counter=game", "new"),
        ] {
            assert_eq!(accept(&host, query).await?, is(200, outcome), "{kind:?} {query}");
        }
        clock::assert_still(site.length, first);
        let second = clock::next_window(site.length).await;
        for (query, outcome) in [
            // An id is new again in each main window.
            ("id=1", "new"),
            ("id=4", "new"),
            ("id=1&counter=game", "new"),
            ("id=9&counter=game", "new"),
        ] {
            assert_eq!(accept(&host, query).await?, is(200, outcome), "{kind:?} {query}");
        }
        let open = counts(&reporter, "/api/counts/current").await?;
        clock::assert_still(site.length, second);
        assert_eq!(
            (&open["window_seconds"], &open["count"]),
            (&2.into(), &2.into()),
            "{open}"
        );
        let of_longer = &open["longer"][0];
        assert_eq!(of_longer["window"], window.to_string(), "{open}");
        assert_eq!(
            (&of_longer["window_seconds"], &of_longer["count"]),
            (&6.into(), &4.into()),
            "{open}"
        );

        let named = format!("game/{}", key(window));
        ledger
            .read_until(SOON, |ledger| {
                of(ledger, &key(window)).is_ok() && of(ledger, &named).is_ok()
            })
            .await
            .with_context(|| format!("{kind:?}: {}", host.process().log()))?;
        for (key, expected) in [
            (first.to_string(), ["3", "2", "4", "1"]),
            (second.to_string(), ["2", "2", "2", "0"]),
            (key(window), ["4", "6", "6", "2"]),
            (format!("game/{first}"), ["1", "2", "1", "0"]),
            (format!("game/{second}"), ["2", "2", "2", "0"]),
            (named, ["2", "6", "3", "1"]),
        ] {
            let record = of(&ledger, &key)?;
            let [seconds, requests, duplicates] =
                ["window-seconds", "requests", "duplicates"].map(|name| record.header(name));
            assert_eq!(
                [&record.value, seconds, requests, duplicates],
                expected,
                "{kind:?} {record:?}"
            );
        }

        // The fixed callback is called for windows of the lengths that were asked for alone.
        let called = wait::until("a call", SOON, || async { sink.received().first().cloned() }).await?;
        assert_eq!(called.header("verve-window-seconds"), Some("6"), "{called:?}");
        let calls = sink.received();
        assert!(
            calls
                .iter()
                .all(|call| call.header("verve-window-seconds") == Some("6")),
            "{calls:?}"
        );

        let reported = counts(&reporter, "/api/counts?window_seconds=6&limit=1000").await?;
        let reported = reported.as_array().context("an array")?;
        let found = reported.iter().find(|count| count["window"] == window.to_string());
        assert_eq!(found.context("its count")?["count"], 4, "{kind:?}: {reported:?}");
        let bad = http::get(reporter.address(), "/api/counts?window_seconds=3").await?;
        assert_eq!(bad.status, 400);
        assert!(bad.text().contains("expected one of 2,6"), "{}", bad.text());
        for sample in [
            r#"verve_unique_ids{window_seconds="6",window="last"}"#,
            r#"verve_windows_reported_total{window_seconds="6"}"#,
            r#"verve_windows_reported_total{counter="game",window_seconds="6"}"#,
        ] {
            assert!(Metrics::scrape(&reporter).await?.get(sample).is_some(), "{sample}");
        }
        for (address, shown) in [
            ("/", r#"<a href="?window_seconds=6">Windows of 6 s</a>"#),
            (
                "/?window_seconds=6",
                r#"<a href="?counter=game&amp;window_seconds=6">game</a>"#,
            ),
            (
                "/?window_seconds=6&counter=game",
                r#"<a href="./?counter=game">2</a>, 6 s"#,
            ),
        ] {
            let page = http::get(reporter.address(), address).await?.text();
            assert!(page.contains(shown), "{address}: {page}");
        }
    }
    Ok(())
}

/// Tests an id that is too late for its main window alone.
#[tokio::test]
async fn what_is_too_late_for_its_main_window_is_counted_in_the_longer_one() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_redis(2, RedisServer::start().await?);
        let longer = clock::length(12);
        let mut ledger = Ledger::new().await?;
        let flags = ["--window-seconds", "2,12", "--late-seconds", "0"];
        let _reporter = Reporter::ready(&ledger.flags(&site, &flags)).await?;
        let link = Link::start(site.redis.server().address()).await?;
        let host = site
            .host(kind)
            .variable("redis_urls", &format!("redis://{}", link.address()));
        let host = host
            .variable("redis_timeout_ms", "300")
            .variable("window_seconds", "2,12")
            .start()
            .await?;
        let window = clock::next_window(longer).await;
        let first = clock::current_window(site.length);
        assert_eq!(accept(&host, "id=1").await?, is(200, "new"), "{kind:?}");
        link.cut();
        assert_eq!(accept(&host, "id=2").await?, is(200, "spooled"), "{kind:?}");
        clock::assert_still(site.length, first);
        ledger.read_to(first, 1, SOON).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        link.restore();
        ledger
            .read_until(SOON, |ledger| {
                of(ledger, &key(window)).is_ok_and(|record| record.value == "2")
            })
            .await
            .with_context(|| host.process().log())?;
        clock::assert_still(longer, window.next());
        assert_eq!(of(&ledger, &first.to_string())?.value, "1", "{kind:?}");
        assert!(!of(&ledger, &key(window))?.headers.contains_key("late"), "{kind:?}");
        ledger
            .read_until(SOON, |ledger| {
                of(ledger, &first.to_string()).is_ok_and(|record| record.headers.contains_key("late"))
            })
            .await?;
    }
    Ok(())
}

/// Tests the documented change of the lengths, while requests go on.
#[tokio::test]
async fn the_lengths_change_while_it_runs() -> Result<()> {
    let kind = *Kind::available().first().context("a host")?;
    let site = Site::new(2).await?;
    let longer = clock::length(6);
    let mut ledger = Ledger::new().await?;
    let before = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let host = instance(&site, kind, "2").await?;
    let mut sent: Vec<(Window, i64)> = Vec::new();
    let mut send = async |host: &Instance, id: i64| -> Result<()> {
        let window = clock::current_window(site.length);
        assert_eq!(accept(host, &format!("id={id}")).await?, is(200, "new"));
        clock::assert_still(site.length, window);
        sent.push((window, id));
        anyhow::Ok(())
    };
    clock::next_window(site.length).await;
    send(&host, 1).await?;
    // First the reporters, then the hosts.
    let _after = Reporter::start(&ledger.flags(&site, &["--window-seconds", "2,6"]))?;
    before.process().terminate(SOON).await?;
    clock::next_window(site.length).await;
    send(&host, 2).await?;
    let host = instance(&site, kind, "2,6").await?;
    let window = clock::next_window(longer).await;
    for id in 3..6 {
        send(&host, id).await?;
        clock::next_window(site.length).await;
    }
    // First the hosts, then the reporters, once the last longer window is final.
    let host = instance(&site, kind, "2").await?;
    send(&host, 6).await?;
    let last = sent.last().context("sent")?.0;
    ledger
        .read_until(SOON, |ledger| {
            of(ledger, &key(window)).is_ok() && !ledger.of(last).is_empty()
        })
        .await?;
    assert_eq!(of(&ledger, &key(window))?.value, "3");
    for (window, id) in sent {
        assert_eq!(of(&ledger, &window.to_string())?.value, "1", "{id}");
    }
    Ok(())
}

/// Tests that an id beyond the limit of its main window is in no longer one.
#[tokio::test]
async fn an_id_beyond_a_limit_is_in_no_window() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::new(10).await?;
        let longer = clock::length(30);
        let host = site
            .host(kind)
            .variable("window_seconds", "10,30")
            .variable("window_limit", "2");
        let host = host.start().await?;
        let window = clock::next_window(site.length).await;
        for (query, expected) in [
            ("id=1", is(200, "new")),
            ("id=2", is(200, "new")),
            ("id=3", is(429, "window-limit")),
            ("id=1", is(200, "duplicate")),
        ] {
            assert_eq!(accept(&host, query).await?, expected, "{kind:?} {query}");
        }
        // Ids that are recorded together, with known ones among them.
        let queries: Vec<String> = (1..20).map(|id| format!("id={}", 1 + id % 7)).collect();
        let answers = future::join_all(queries.iter().map(|query| accept(&host, query))).await;
        for (query, answer) in queries.iter().zip(answers) {
            let expected = if ["id=1", "id=2"].contains(&query.as_str()) {
                is(200, "duplicate")
            } else {
                is(429, "window-limit")
            };
            assert_eq!(answer?, expected, "{kind:?} {query}");
        }
        clock::assert_still(site.length, window);
        for of_length in [window, window.within(longer)] {
            assert_eq!(
                site.members(of_length).await?[0],
                ["1".to_owned(), "2".to_owned()].into(),
                "{kind:?}"
            );
            let expected = [("requests", 23), ("new", 2), ("limited", 15), ("duplicate", 6)];
            counted(&site, &site.keys(), of_length, &expected)
                .await
                .with_context(|| format!("{kind:?}"))?;
        }
    }
    Ok(())
}
