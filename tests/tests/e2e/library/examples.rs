//! Tests the documented `examples`: other applications that use Verve's library.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Window;
use verve_tests::host::{Instance, Kind, Options};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, examples, http, paths, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Returns an example's application, on this site's Redis.
pub fn example(site: &Site, kind: Kind, name: &str) -> Result<Options> {
    example_with(site, kind, name, &[])
}

/// Returns an example's application, with additional variables.
pub fn example_with(site: &Site, kind: Kind, name: &str, more: &[(&str, &str)]) -> Result<Options> {
    let (urls, seconds) = (site.redis_urls(), site.length.to_string());
    let usual = [
        ("redis_urls", urls.as_str()),
        ("namespace", &site.namespace),
        ("window_seconds", &seconds),
    ];
    examples::options(kind, name, &[&usual, more].concat())
}

/// Tests that the project of docs/library.md does what the page describes.
///
/// Its component is built from that page.
#[tokio::test]
async fn the_project_of_the_page_works_as_documented() -> Result<()> {
    let page = fs::read_to_string(paths::repository().join("docs/library.md"))?;
    let (_, manifest) = page.split_once("\n`spin.toml`:\n\n```toml\n").context("a manifest")?;
    let (manifest, rest) = manifest.split_once("```").context("its end")?;
    let answers = answers_in(rest)?;
    assert_eq!(answers.len(), 2, "{answers:?}");
    for kind in Kind::available().into_iter().filter(|kind| *kind != Kind::VerveHostP2) {
        let redis = RedisServer::start().await?;
        let manifest = manifest.replace("127.0.0.1:6379", &redis.address().to_string());
        let instance = Instance::options(kind).manifest(manifest).start().await?;
        for (path, answer) in &answers {
            let answered = http::get(instance.addr(), path).await?;
            assert_eq!(&answered.text(), answer, "{kind:?}: {}", instance.process().log());
        }
        let mut connection = redis.connection().await?;
        let keys: Vec<String> = connection.keys("verve:ids:60:*").await?;
        assert_eq!(keys.len(), 1, "{kind:?}: {keys:?}");
        assert_eq!(connection.scard::<_, u64>(&keys[0]).await?, 1, "{kind:?}");
    }
    Ok(())
}

/// Returns the requested paths and the answers in a page's console block.
fn answers_in(page: &str) -> Result<Vec<(String, String)>> {
    let (_, console) = page.split_once("```console\n").context("no console")?;
    let (console, _) = console.split_once("```").context("it has no end")?;
    let commands = console.split("$ curl ").skip(1).map(|command| {
        let (command, answer) = command.split_once("'\n").context("no answer")?;
        let (_, path) = command.split_once("'http://127.0.0.1:3000").context("no path")?;
        Ok((path.to_owned(), answer.to_owned()))
    });
    commands.collect()
}

/// Each example answers as its README shows.
#[tokio::test]
async fn each_example_answers_as_its_readme_shows() -> Result<()> {
    for kind in Kind::available() {
        for name in ["pixel", "login", "ingest", "forward"] {
            let site = Site::new(86_400).await?;
            let instance = example(&site, kind, name)?.start().await?;
            let readme = paths::repository().join("examples").join(name).join("README.md");
            for (path, answer) in answers_in(&fs::read_to_string(readme)?)? {
                let answered = http::get(instance.addr(), &path).await?;
                let text = if name == "pixel" {
                    format!(
                        "{} {}",
                        answered.status,
                        answered.header("content-type").unwrap_or_default()
                    )
                } else {
                    answered.text()
                };
                assert_eq!(
                    text.trim_end(),
                    answer.trim_end(),
                    "{kind:?} {path}: {}",
                    instance.process().log()
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_rust_component_that_imports_the_interface() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "login")?.start().await?;
        let login = async |query: &str| http::get(instance.addr(), &format!("/login?{query}")).await;
        let window = clock::next_window(site.length).await;
        for (query, welcome) in [
            ("player=1", "Welcome, 1!\n"),
            ("player=1", "Welcome back, 1!\n"),
            (
                "player=2&friend=1&friend=3&friend=3",
                "Welcome, 2!\nWelcome back, 1!\nWelcome, 3!\nWelcome back, 3!\n",
            ),
        ] {
            let welcomed = login(query).await?;
            assert_eq!(welcomed.status, 200, "{kind:?}: {}", instance.process().log());
            assert_eq!(welcomed.text(), welcome, "{kind:?}");
        }
        clock::assert_still(site.length, window);
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, "3", "{kind:?}");

        // Ids counted while Redis is unreachable are spooled.
        site.redis.kill();
        let away = clock::next_window(site.length).await;
        assert_eq!(
            login("player=7&friend=8").await?.status,
            200,
            "{kind:?}: {}",
            instance.process().log()
        );
        site.redis.restart().await?;
        counted_again(&mut ledger, away, "2")
            .await
            .with_context(|| instance.process().log())?;
    }
    Ok(())
}

/// Waits until a window or the next one has this count.
async fn counted_again(ledger: &mut Ledger, window: Window, count: &str) -> Result<()> {
    let is_counted = |ledger: &Ledger, window| ledger.of(window).last().is_some_and(|record| record.value == count);
    ledger
        .read_until(Duration::from_secs(30), |ledger| {
            [window, window.next()].iter().any(|window| is_counted(ledger, *window))
        })
        .await
}

#[tokio::test]
async fn a_rust_component_that_depends_on_the_crate() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "pixel")?.start().await?;
        let load = async |visitor: &str| http::get(instance.addr(), &format!("/pixel.gif?visitor={visitor}")).await;
        let window = clock::next_window(site.length).await;
        for visitor in ["1", "2", "1", "-9223372036854775808"] {
            let pixel = load(visitor).await?;
            assert_eq!(pixel.status, 200, "{kind:?}: {}", instance.process().log());
            assert_eq!(pixel.header("content-type"), Some("image/gif"), "{kind:?}");
        }
        clock::assert_still(site.length, window);
        assert_eq!(load("nobody").await?.status, 400, "{kind:?}");
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, "3", "{kind:?}");

        // Ids counted while Redis is unreachable are spooled.
        site.redis.kill();
        let away = clock::next_window(site.length).await;
        assert_eq!(load("7").await?.status, 200, "{kind:?}: {}", instance.process().log());
        site.redis.restart().await?;
        counted_again(&mut ledger, away, "1")
            .await
            .with_context(|| instance.process().log())?;
    }
    Ok(())
}

#[tokio::test]
async fn errors_of_the_variables_are_reported() -> Result<()> {
    let site = Site::new(60).await?;
    for kind in Kind::available() {
        let instance = example(&site, kind, "pixel")?
            .variable("window_seconds", "soon")
            .start()
            .await?;
        let pixel = http::get(instance.addr(), "/pixel.gif?visitor=1").await?;
        assert_eq!(pixel.status, 500, "{kind:?}");
        instance.process().wait_for_text("window_seconds", SOON).await?;
        for (application, query) in [("login", "player=1"), ("ingest", "device=1")] {
            let instance = example(&site, kind, application)?
                .variable("window_seconds", "soon")
                .start()
                .await?;
            let answered = http::get(instance.addr(), &format!("/{application}?{query}")).await?;
            assert_eq!(answered.status, 500, "{kind:?} {application}");
            // The reason is only for the operator, who reads the log.
            assert!(!answered.text().contains("window_seconds"), "{}", answered.text());
            instance.process().wait_for_text("window_seconds", SOON).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_python_component_that_imports_the_interface() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "ingest")?.start().await?;
        let ingest = async |query: &str| http::get(instance.addr(), &format!("/ingest?{query}")).await;
        // The first request includes the start of the interpreter.
        for bad in [
            "device=x",
            "device=9223372036854775808",
            "fleet=a",
            "device=1&fleet=a%20b",
        ] {
            let answered = ingest(bad).await?;
            assert_eq!(answered.status, 400, "{kind:?} {bad}: {}", instance.process().log());
            assert!(answered.text().contains("error"), "{bad}: {}", answered.text());
        }
        let window = clock::next_window(site.length).await;
        let answered = ingest("device=1&device=2&device=1").await?;
        assert_eq!(answered.status, 200, "{kind:?}: {}", instance.process().log());
        assert_eq!(answered.text(), r#"["new", "new", "duplicate"]"#, "{kind:?}");
        let again = ingest("device=2").await?;
        assert_eq!(again.text(), r#"["duplicate"]"#, "{kind:?}");
        clock::assert_still(site.length, window);
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, "2", "{kind:?}");

        // WASI 0.2 has no spool, so the application gets an error.
        site.redis.kill();
        let answered = ingest("device=3").await?;
        assert_eq!(
            (answered.status, answered.text().as_str()),
            (503, r#"["failed"]"#),
            "{kind:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_component_counts_and_forwards() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
        let instance = example(&site, kind, "forward")?.start().await?;
        let window = clock::next_window(site.length).await;
        for visitor in [1, 2, 1] {
            let mut connection = http::Connection::open(instance.addr()).await?;
            let request = format!("GET /api/verve/accept?id=5 HTTP/1.1\r\nhost: a\r\nx-visitor: {visitor}\r\n\r\n");
            let answered = connection.exchange(request.as_bytes()).await?;
            // The answer of the application behind it, with the application's headers.
            assert_eq!(
                (answered.status, answered.text().as_str()),
                (200, "ok"),
                "{kind:?}: {}",
                instance.process().log()
            );
            assert_eq!(answered.header("verve-outcome"), Some("new"), "{kind:?}");
        }
        // The request is passed on unchanged, also if the application refuses it.
        assert_eq!(http::get(instance.addr(), "/?visitor=3").await?.status, 400, "{kind:?}");
        assert_eq!(
            http::get(instance.addr(), "/api/verve/accept?id=5").await?.status,
            200,
            "{kind:?}"
        );
        clock::assert_still(site.length, window);
        ledger.read_to(window, 1, SOON).await?;
        assert_eq!(ledger.of(window)[0].value, "3", "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_redis_user_of_an_application_suffices() -> Result<()> {
    let site = Site::new(60).await?;
    let text = fs::read_to_string(paths::repository().join("docs/deploy.md"))?;
    let spans: Vec<&str> = text.split('`').collect();
    let rules = |start: &str| {
        spans
            .iter()
            .find(|span| span.starts_with(start))
            .context(start.to_owned())
    };
    let [whole, more] = [rules("~verve:* ~{verve}:* +")?, rules("~verve/* ~{verve}/* +")?];
    let mut redis = site.connection().await?;
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg("edge").arg("reset").arg("on").arg(">hunter2");
    for rules in [whole, more] {
        let rules = rules.replace("verve", &site.namespace);
        let (rules, selector) = rules.split_once(" (").unwrap_or((&rules, ""));
        acl.arg(rules.split(' ').collect::<Vec<_>>());
        if !selector.is_empty() {
            acl.arg(format!("({selector}"));
        }
    }
    acl.exec_async(&mut redis).await.context("ACL")?;
    let url = format!("redis://edge:hunter2@{}", site.redis.server().address());
    for (application, query, counter) in [
        ("login", "player=1&game=chess", "game-chess"),
        ("ingest", "device=1&fleet=north", "north"),
    ] {
        let instance = example(&site, Kind::VerveHost, application)?
            .variable("redis_urls", &url)
            .start()
            .await?;
        let answered = http::get(instance.addr(), &format!("/{application}?{query}")).await?;
        assert_eq!(answered.status, 200, "{}", instance.process().log());
        let counted = site.keys().named(counter.parse()?);
        wait::until("its statistics", SOON, || async {
            let mut redis = site.connection().await.ok()?;
            let requests: Option<u64> = redis
                .hget(counted.stats(clock::current_window(site.length)), "requests")
                .await
                .ok()?;
            (requests == Some(1)).then_some(())
        })
        .await
        .with_context(|| instance.process().log())?;
    }
    let log: Vec<BTreeMap<String, String>> = redis::cmd("ACL").arg("LOG").query_async(&mut redis).await?;
    assert!(log.is_empty(), "{log:?}");
    Ok(())
}
