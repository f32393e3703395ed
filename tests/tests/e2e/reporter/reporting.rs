//! Further behaviour of the reporter.
//!
//! Headers from the statistics, the log, the admin server, settings.

use std::time::Duration;

use anyhow::{Context, Result};
use verve_protocol::Method;
use verve_tests::host::Kind;
use verve_tests::process::{Process, Signal};
use verve_tests::reporter::{self, Reporter};
use verve_tests::sink::Sink;
use verve_tests::{clock, http, net, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Returns whether a line names this window and this count.
fn names(line: &str, window: &str, count: &str) -> bool {
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
    line.contains(window) && words.any(|word| word == count)
}

#[tokio::test]
async fn a_record_contains_requests_and_duplicates() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::new(2).await?;
        let mut ledger = Ledger::new().await?;
        let instance = site.host(kind).start().await?;
        // Long enough for the statistics of the instances to arrive.
        let _reporter = Reporter::ready(&ledger.flags(&site, &["--grace-ms", "2500"])).await?;
        let window = clock::next_window(site.length).await;
        for id in [1, 2, 2, 3, 1] {
            let answer = http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await?;
            assert_eq!(answer.status, 200, "{kind:?}");
        }
        http::get(instance.addr(), "/api/verve/accept?id=x").await?;
        assert_eq!(
            clock::current_window(site.length),
            window,
            "{kind:?}: too slow a machine"
        );
        ledger.read_to(window, 1, SOON).await?;
        let record = ledger.of(window)[0];
        let wanted = [
            ("revision", "0"),
            ("window-seconds", "2"),
            ("requests", "6"),
            ("duplicates", "2"),
        ];
        assert_eq!(record.value, "3", "{kind:?}");
        for (name, value) in wanted {
            assert_eq!(record.header(name), value, "{kind:?} {record:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_kafka_counts_are_logged() -> Result<()> {
    let site = Site::new(1).await?;
    let reporter = site.reporter(&[]).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..471).await?;
    let key = window.to_string();
    let line = reporter
        .process()
        .wait_for_line(SOON, |l| names(l, &key, "471"))
        .await?;
    // One line each; the next line is for the next window.
    let next = window.next().to_string();
    reporter.process().wait_for_line(SOON, |l| names(l, &next, "0")).await?;
    let lines = reporter.process().lines();
    let reported = lines.iter().filter(|l| l.contains(&key)).count();
    assert_eq!(reported, 1, "{line}: {lines:#?}");
    Ok(())
}

#[tokio::test]
async fn json_logs_are_json() -> Result<()> {
    let site = Site::new(1).await?;
    let sink = Sink::start().await?;
    let url = format!("http://localhost:{}/", sink.port());
    let reporter = site.reporter(&["--log-format", "json", "--callback-url", &url]).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..471).await?;
    let key = window.to_string();
    reporter
        .process()
        .wait_for_line(SOON, |l| names(l, &key, "471"))
        .await?;
    // Errors too: the callback is refused, because its name resolves to a private address, and
    // Redis is killed.
    site.redis.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    reporter.process().terminate(SOON).await?;
    for line in reporter.process().lines() {
        let value: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        assert!(value.is_object(), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn health_and_readiness() -> Result<()> {
    let mut site = Site::new(1).await?;
    let reporter = site.reporter(&[]).await?;
    let statuses =
        async || -> Result<(u16, u16)> { Ok((reporter.status("/healthz").await?, reporter.status("/readyz").await?)) };
    let becomes = async |wanted| {
        wait::until("health and readiness", SOON, || async {
            statuses().await.ok().filter(|s| *s == wanted)
        })
        .await
        .with_context(|| format!("{wanted:?}; {}", reporter.process().log()))
    };
    assert_eq!(statuses().await?, (200, 200));
    assert_eq!(reporter.status("/nothing-here").await?, 404);
    site.redis.kill();
    becomes((200, 503)).await?;
    site.redis.restart().await?;
    becomes((200, 200)).await?;
    // Paused, so that connections are open and nothing is answered.
    site.redis.pause()?;
    becomes((200, 503)).await?;
    site.redis.resume()?;
    becomes((200, 200)).await?;
    Ok(())
}

#[tokio::test]
async fn reports_go_on_after_an_outage_of_redis() -> Result<()> {
    use verve_tests::redis::RedisServer;
    // With a disk, so that the outage loses no accepted id.
    let redis = RedisServer::options().append_only().start().await?;
    let mut site = Site::with_redis(1, redis);
    let mut ledger = Ledger::new().await?;
    let _reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..7).await?;
    site.redis.kill();
    clock::sleep_until_ms(window.end_ms() + 2_000).await;
    site.redis.restart().await?;
    ledger.read_to(window.next(), 1, Duration::from_secs(30)).await?;
    assert_eq!(ledger.of(window)[0].value, "7");
    crate::ledger::values_in_order(&site, ledger.read());
    Ok(())
}

#[tokio::test]
async fn flags_may_come_from_the_environment() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let sink = Sink::start().await?;
    let address = net::free_address()?;
    let mut command = reporter::command()?;
    command
        .env("VERVE_REDIS_URLS", site.redis_urls())
        .env("VERVE_NAMESPACE", &site.namespace)
        .env("VERVE_WINDOW_SECONDS", "1")
        .env("VERVE_GRACE_MS", "300")
        .env("VERVE_KAFKA_BROKERS", ledger.kafka.brokers())
        .env("VERVE_KAFKA_TOPIC", &ledger.topic)
        .env("VERVE_CALLBACK_URL", sink.url("/fixed"))
        .env("VERVE_CALLBACK_METHOD", "get")
        .env("VERVE_CALLBACK_ALLOW", "127.0.0.1")
        .env("VERVE_LISTEN", address.to_string())
        .env("VERVE_LOG_FORMAT", "json");
    let process = Process::spawn("verve-reporter", command)?;
    ledger
        .read_until(SOON, |ledger| !ledger.read().is_empty())
        .await
        .with_context(|| process.log())?;
    assert_eq!(http::get(address, "/healthz").await?.status, 200);
    assert_eq!(sink.wait_for("/fixed", 1, SOON).await?[0].method, "GET");
    assert!(process.log().starts_with('{'), "{}", process.log());
    Ok(())
}

#[tokio::test]
async fn kafka_options_reach_librdkafka() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    // Tested by their effect: with TLS it cannot connect to a broker without TLS.
    let tls = [
        "--kafka-option",
        "linger.ms=1",
        "--kafka-option",
        "security.protocol=ssl",
    ];
    let reporter = Reporter::start(&ledger.flags(&site, &tls))?;
    ledger.read_for(Duration::from_secs(4)).await;
    assert!(ledger.read().is_empty(), "{}", reporter.process().log());
    reporter.process().kill();
    let harmless = [
        "--kafka-option",
        "linger.ms=1",
        "--kafka-option",
        "compression.type=gzip",
    ];
    let _reporter = Reporter::ready(&ledger.flags(&site, &harmless)).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await
}

#[tokio::test]
async fn a_stopped_reporter_finishes_its_callback() -> Result<()> {
    use verve_tests::sink::Answer;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let site = Site::new(60).await?;
        let sink = Sink::start().await?;
        sink.answer("/slow", [Answer::status(200).after(Duration::from_secs(1))]);
        let reporter = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
        let window = clock::current_window(site.length);
        site.add_job(&sink.url("/slow"), Method::Get, window).await?;
        sink.wait_for("/slow", 1, SOON).await?;
        reporter.process().signal(signal)?;
        let status = reporter.process().wait(SOON).await?;
        assert_eq!(status.code(), Some(0), "{signal}: {}", reporter.process().log());
        // Another reporter finds no work left.
        let _other = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(sink.received().len(), 1, "{signal}");
    }
    Ok(())
}
