//! The Redis users of docs/deploy.md have sufficient rights.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_tests::host::Kind;
use verve_tests::process::Process;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, http, paths, reporter, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Returns the documented rules with this beginning, for this site's namespace.
fn rules(site: &Site, begin: &str) -> Result<String> {
    let text = fs::read_to_string(paths::repository().join("docs/deploy.md"))?;
    let rules = text.split('`').find(|code| code.starts_with(begin));
    let rules = rules.context("docs/deploy.md has no rules")?;
    let namespace = &site.namespace;
    Ok(rules
        .replace("~verve", &format!("~{namespace}"))
        .replace("~{verve", &format!("~{{{namespace}")))
}

/// Returns the rules of the component's Redis user, for this site's namespace.
fn redis_user(site: &Site) -> Result<Vec<String>> {
    let rules = rules(site, "~verve:* ~{verve}:* +")?;
    let (rules, selector) = rules.split_once(" (").context("a selector")?;
    let words = ["SETUSER", "edge", "reset", "on", ">hunter2"]
        .into_iter()
        .chain(rules.split(' '));
    Ok(words.map(str::to_owned).chain([format!("({selector}")]).collect())
}

#[tokio::test]
async fn the_components_redis_user_suffices() -> Result<()> {
    let site = Site::with_one_window().await?;
    let rules = redis_user(&site)?;
    let url = format!("redis://edge:hunter2@{}", site.redis.server().address());
    let host = site.host(Kind::VerveHost).variable("redis_urls", &url);
    let host = host.variable("redis_timeout_ms", "300").start().await?;
    let window = clock::current_window(site.length);
    let accept = async |query: &str| -> Result<String> {
        let answer = http::get(host.addr(), &format!("/api/verve/accept?{query}")).await?;
        Ok(answer.header("verve-outcome").unwrap_or_default().to_owned())
    };
    // Redis does not know the user yet, so all three are spooled, including the callback.
    for query in ["id=1", "id=2", "id=3&endpoint=http%3A%2F%2Fe.com%2F"] {
        assert_eq!(accept(query).await?, "spooled", "{query}");
    }
    let mut acl = redis::cmd("ACL");
    acl.arg(&rules)
        .exec_async(&mut site.connection().await?)
        .await
        .context("ACL")?;
    wait::until("the spool to be drained", SOON, || async {
        let jobs = site.stream(&site.keys().callbacks()).await.ok()?;
        let ids = site.members(window).await.ok()?;
        (jobs.len() == 1 && ids[0].len() == 3).then_some(())
    })
    .await
    .with_context(|| host.process().log())?;
    // Another instance may get the request, and spools once more before it notices.
    let asked = Cell::new(3);
    let recorded = async |query: &dyn Fn(u64) -> String, outcome: &str| {
        wait::until(outcome, SOON, || async {
            asked.set(asked.get() + 1);
            (accept(&query(asked.get())).await.ok()? == outcome).then_some(())
        })
        .await
    };
    recorded(&|_| "id=3".to_owned(), "duplicate").await?;
    recorded(&|n| format!("id={n}&endpoint=http%3A%2F%2Fe.com%2F"), "new").await?;
    let stats = site.keys().stats(window);
    wait::until("statistics that expire", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let requests: u64 = redis.hget(&stats, "requests").await.ok()?;
        let expiry: i64 = redis.ttl(&stats).await.ok()?;
        (requests == asked.get() && expiry > 0).then_some(())
    })
    .await?;
    let older = site.host(Kind::VerveHostP2).variable("redis_urls", &url);
    let older = older.start().await?;
    for (query, outcome) in [("id=2", "duplicate"), ("id=-1&endpoint=http%3A%2F%2Fe.com%2F", "new")] {
        let answer = http::get(older.addr(), &format!("/api/verve/accept?{query}")).await?;
        assert_eq!(answer.header("verve-outcome"), Some(outcome), "{query} on WASI 0.2");
    }
    assert_eq!(denied(&site).await?, [""; 0]);
    Ok(())
}

/// Returns the commands that Redis denied its users.
///
/// Failed logins are left out, and so is the name that clients set for themselves (Redis 7.2).
async fn denied(site: &Site) -> Result<Vec<String>> {
    let log: Vec<BTreeMap<String, String>> = redis::cmd("ACL")
        .arg("LOG")
        .query_async(&mut site.connection().await?)
        .await?;
    let is_refusal = |entry: &&BTreeMap<String, String>| {
        entry.get("reason").is_none_or(|reason| reason != "auth")
            && entry.get("object").is_none_or(|object| !object.starts_with("client"))
    };
    Ok(log
        .iter()
        .filter(is_refusal)
        .map(|entry| format!("{entry:?}"))
        .collect())
}

/// The documented rights are sufficient for all work of the reporter.
///
/// This covers reports, late ids, dead letters and their retry, named counters, `counts`, `dead`
/// and `doctor`.
#[tokio::test]
async fn the_reporters_redis_user_suffices() -> Result<()> {
    let redis = RedisServer::options().append_only().start().await?;
    let site = Site::with_redis(1, redis);
    let rules = rules(&site, "~verve:* ~{verve:* ")?;
    let set_user = async |rules: &str| {
        let mut acl = redis::cmd("ACL");
        acl.arg("SETUSER")
            .arg("reporter")
            .arg("reset")
            .arg("on")
            .arg(">hunter2");
        acl.arg(rules.split(' ').collect::<Vec<_>>());
        acl.exec_async(&mut site.connection().await?).await.context("ACL")
    };
    set_user(&rules).await?;
    let url = format!("redis://reporter:hunter2@{}", site.redis.server().address());
    let sink = Sink::start().await?;
    sink.answer("/no", [Answer::status(500), Answer::status(500)]);
    let mut ledger = Ledger::new().await?;
    let flags = [
        "--redis-urls",
        &url,
        "--late-seconds",
        "2",
        "--callback-allow",
        "127.0.0.1",
    ];
    let flags = [&flags[..], &["--callback-attempts", "2", "--callback-backoff-ms", "1"]].concat();
    let all = ledger.flags(&site, &flags);
    let reporter = Reporter::ready(&all).await?;
    let host = site.host(Kind::VerveHost).start().await?;
    let endpoint = sink.url("/no");
    let answer = http::get(host.addr(), &format!("/api/verve/accept?id=1&endpoint={endpoint}")).await?;
    assert_eq!(answer.status, 200);
    let window = clock::next_window(site.length).await;
    site.add(window, 0..5).await?;
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 5..6).await?;
    ledger.read_to(window, 2, SOON).await?;
    reporter.process().wait_for_text("callback given up on", SOON).await?;
    // Final, and then more ids.
    tokio::time::sleep(Duration::from_secs(5)).await;
    site.add(window, 6..7).await?;
    site.index(window).await?;
    reporter
        .process()
        .wait_for_text("ids arrived after their window", 2 * SOON)
        .await?;
    let run = async |command: &[&str]| -> Result<(Option<i32>, String)> {
        let mut asked = reporter::command()?;
        asked.args(command).args(site.flags(&["--redis-urls", &url]));
        let process = Process::spawn("verve-reporter", asked)?;
        let status = process.wait(SOON).await?;
        Ok((status.code(), process.log()))
    };
    for command in [
        &["counts"][..],
        &["dead", "list"],
        &["dead", "retry", "--all"],
        &["dead", "drop", "--all"],
        &["doctor"],
    ] {
        let (code, output) = run(command).await?;
        assert_eq!(code, Some(0), "{command:?}: {output}");
    }
    assert_eq!(denied(&site).await?, [""; 0]);
    // Missing rights are named.
    for (right, word) in [
        ("+evalsha ", "EVALSHA"),
        ("+zscore ", "ZSCORE"),
        ("+xgroup ", "XGROUP|CREATE, XGROUP|DELCONSUMER"),
        ("+hset ", "HSET"),
    ] {
        set_user(&rules.replace(right, "")).await?;
        let (code, output) = run(&["doctor"]).await?;
        assert_eq!(code, Some(1), "{right}: {output}");
        assert!(output.contains(word), "{right}: {output}");
    }
    Ok(())
}
