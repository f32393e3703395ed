//! Named counters of requests.
//!
//! Which ones they may use, and what is counted for them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::{CounterName, Partition, Window};
use verve_tests::clock;
use verve_tests::host::Kind;
use verve_tests::sink::Sink;

use super::limits::{accept, counted, is};
use crate::site::{SOON, Site};

/// Returns the ids of a named counter's window.
async fn ids(site: &Site, name: &str, window: Window) -> Result<BTreeSet<i64>> {
    let key = site.keys().named(name.parse()?).ids(window, Partition::Whole);
    Ok(site.connection().await?.smembers(key).await?)
}

#[tokio::test]
async fn a_request_is_counted_for_the_counter_that_it_names() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let host = site.host(kind).variable("counters", "game, campaign-*").start().await?;
        let window = clock::current_window(site.length);
        for (query, expected) in [
            ("id=1&counter=campaign-7", is(200, "new")),
            ("id=1&counter=campaign-7", is(200, "duplicate")),
            ("counter=campaign-8&id=1", is(200, "new")),
            ("id=1&counter=g%61me", is(200, "new")),
            ("id=1", is(200, "new")),
            ("id=2&counter=campaign-7", is(200, "new")),
            ("id=3&counter=games", is(400, "unknown-counter")),
            ("id=3&counter=campaign", is(400, "unknown-counter")),
            ("id=3&counter=Game", is(400, "unknown-counter")),
            ("id=3&counter=", is(400, "invalid-counter")),
            ("id=3&counter=game%2F7", is(400, "invalid-counter")),
            ("id=3&counter=*", is(400, "invalid-counter")),
            ("id=3&counter=game&counter=game", is(400, "repeated-parameter")),
            ("id=x&counter=games", is(400, "invalid-id")),
            ("id=3&counter=games&endpoint=x", is(400, "invalid-endpoint")),
        ] {
            assert_eq!(accept(&host, query).await?, expected, "{kind:?} {query}");
        }
        assert_eq!(ids(&site, "campaign-7", window).await?, [1, 2].into(), "{kind:?}");
        assert_eq!(ids(&site, "campaign-8", window).await?, [1].into(), "{kind:?}");
        assert_eq!(ids(&site, "game", window).await?, [1].into(), "{kind:?}");
        assert_eq!(site.members(window).await?[0], ["1".to_owned()].into(), "{kind:?}");
        let names: Vec<String> = site.connection().await?.zrange(site.keys().counters(), 0, -1).await?;
        let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(names, ["campaign-7", "campaign-8", "game"].into(), "{kind:?}");
        // What is refused counts as invalid, and for no named counter.
        counted(
            &site,
            &site.keys(),
            window,
            &[("requests", 10), ("new", 1), ("invalid", 9)],
        )
        .await
        .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn without_the_variable_no_request_names_a_counter() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let manifest = kind.manifest()?;
        let lines = manifest.lines().filter(|line| !line.starts_with("counters = "));
        let older = lines.collect::<Vec<_>>().join("\n");
        assert!(older.len() < manifest.len());
        for manifest in [manifest, older] {
            let host = site.host(kind).manifest(manifest).start().await?;
            assert_eq!(
                accept(&host, "id=1&counter=game").await?,
                is(400, "unknown-counter"),
                "{kind:?}: {}",
                host.process().log()
            );
        }
        let names: usize = site.connection().await?.zcard(site.keys().counters()).await?;
        assert_eq!(names, 0, "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_callback_has_the_count_of_its_counter() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let sink = Sink::start().await?;
        let host = site.host(kind).variable("counters", "*").start().await?;
        let _reporter = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
        let window = clock::current_window(site.length);
        let endpoint = format!("endpoint=http%3A%2F%2F127.0.0.1%3A{}%2F", sink.port());
        for id in 1..=3 {
            assert_eq!(accept(&host, &format!("id={id}&counter=game-7")).await?, is(200, "new"));
        }
        for (path, query, outcome) in [
            ("game", "id=4&counter=game-7&method=post", "new"),
            ("other", "id=4&counter=game-8", "new"),
            ("all", "id=4&method=post", "new"),
            ("again", "id=4&counter=game-7&method=post", "duplicate"),
        ] {
            let query = format!("{query}&{endpoint}{path}");
            assert_eq!(accept(&host, &query).await?, is(200, outcome), "{kind:?} {query}");
        }
        for (path, counter, body) in [
            ("/game", Some("game-7"), r#"{"unique_count":4}"#),
            ("/other", Some("game-8"), ""),
            ("/all", None, r#"{"unique_count":1}"#),
            ("/again", Some("game-7"), r#"{"unique_count":4}"#),
        ] {
            let received = sink.wait_for(path, 1, SOON).await?.remove(0);
            assert_eq!(received.header("verve-counter"), counter, "{kind:?}: {received:?}");
            assert_eq!(
                received.header("verve-window"),
                Some(window.to_string().as_str()),
                "{kind:?}"
            );
            assert_eq!(received.body, body, "{kind:?} {path}");
        }
        let other = sink.wait_for("/other", 1, SOON).await?.remove(0);
        assert_eq!(other.target, "/other?unique_count=1", "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_operator_limits_the_number_of_counters() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let options = site.host(kind).variable("counters", "*");
        let host = options.variable("counter_limit", "2").start().await?;
        for (query, expected) in [
            ("id=1&counter=a", is(200, "new")),
            ("id=1&counter=b", is(200, "new")),
            ("id=1&counter=c", is(429, "counter-limit")),
            ("id=2&counter=a", is(200, "new")),
            ("id=1", is(200, "new")),
        ] {
            assert_eq!(accept(&host, query).await?, expected, "{kind:?} {query}");
        }
    }
    Ok(())
}

/// One endpoint has one number of jobs, whichever counters ask for them.
#[tokio::test]
async fn the_limit_of_an_endpoint_is_for_all_counters() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let options = site.host(kind).variable("counters", "*");
        let host = options.variable("endpoint_limit", "2").start().await?;
        let window = clock::current_window(site.length);
        let game: CounterName = "game".parse()?;
        for (query, expected) in [
            ("id=1&counter=game", is(200, "new")),
            ("id=1", is(200, "new")),
            ("id=2&counter=game", is(429, "endpoint-limit")),
            ("id=2&counter=other", is(429, "endpoint-limit")),
        ] {
            let query = format!("{query}&endpoint=http%3A%2F%2Fe.com%2F");
            assert_eq!(accept(&host, &query).await?, expected, "{kind:?} {query}");
        }
        assert_eq!(ids(&site, "game", window).await?, [1].into(), "{kind:?}");
        let jobs = site.stream(&site.keys().callbacks()).await?;
        let named = jobs.iter().map(|job| crate::site::field(job, "counter"));
        assert_eq!(named.collect::<Vec<_>>(), ["game", ""], "{kind:?}");
        let of_game = site.keys().named(game);
        counted(&site, &of_game, window, &[("requests", 2), ("new", 1), ("limited", 1)])
            .await
            .with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}
