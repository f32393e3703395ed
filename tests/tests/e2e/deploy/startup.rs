//! Wrong flags, and servers that are unreachable when a program starts.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use verve_tests::host::Kind;
use verve_tests::process::{Process, cpu_seconds};
use verve_tests::redis::RedisServer;
use verve_tests::reporter::{self, Reporter};
use verve_tests::{clock, http, net, paths, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// `EX_USAGE` of sysexits.h.
const EX_USAGE: i32 = 64;

/// Asserts that the command exits with [`EX_USAGE`].
///
/// Its output is one line that contains all of `words`.
async fn assert_refused(command: Command, words: &[&str], context: &str) -> Result<()> {
    let process = Process::spawn(context, command)?;
    let status = process
        .wait(SOON)
        .await
        .with_context(|| format!("{context} was accepted"))?;
    let log = process.log();
    assert_eq!(status.code(), Some(EX_USAGE), "{context}: {log}");
    assert_eq!(log.trim_end().lines().count(), 1, "{context}: not one line:\n{log}");
    for word in words {
        assert!(log.contains(word), "{context}: {word:?} is not in: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_flags_of_the_reporter() -> Result<()> {
    for (arguments, words) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (&["stray"], &["stray"]),
        (&["--window-seconds"], &["--window-seconds"]),
        (&["--window-seconds", "0"], &["--window-seconds", "0", "86400"]),
        (&["--window-seconds", "abc"], &["--window-seconds", "abc", "86400"]),
        (&["--window-seconds", "86401"], &["--window-seconds", "86400"]),
        (&["--redis-urls", "http://e.com"], &["--redis-urls", "redis://"]),
        (&["--redis-urls", ""], &["--redis-urls", "redis://"]),
        (
            &["--redis-urls", "redis://a,redis://a"],
            &["--redis-urls", "2 of 2", "twice"],
        ),
        (&["--namespace", "a b"], &["--namespace", "a b"]),
        (&["--grace-ms=-1"], &["--grace-ms", "-1"]),
        (&["--late-seconds", "soon"], &["--late-seconds", "soon"]),
        (
            &["--kafka-option", "no-value"],
            // The value is not shown, because it may be a secret.
            &["--kafka-option", "KEY=VALUE"],
        ),
        (
            &["--kafka-brokers", "127.0.0.1:1", "--kafka-option", "no.such.setting=1"],
            &["--kafka-option", "no.such.setting"],
        ),
        (
            &["--callback-allow", "10.0.0.0/99"],
            &["--callback-allow", "10.0.0.0/99"],
        ),
        (
            &["--callback-allow", "http://e.com/"],
            &["--callback-allow", "http://e.com/"],
        ),
        (&["--callback-url", "ftp://e.com/"], &["--callback-url", "http"]),
        (
            &["--callback-url", "http://10.0.0.1/"],
            &["--callback-url", "10.0.0.1", "--callback-allow"],
        ),
        (&["--callback-allow-only"], &["--callback-allow-only"]),
        (&["--callback-method", "put"], &["--callback-method", "put", "post"]),
        (&["--listen", "nonsense"], &["--listen", "nonsense"]),
        (&["--log-format", "xml"], &["--log-format", "xml", "json"]),
        (
            &["--admin-token", "a", "--admin-token-file", "b"],
            &["--admin-token", "--admin-token-file", "one of them"],
        ),
        (&["--admin-token-file", "/nowhere"], &["--admin-token-file", "/nowhere"]),
        (
            &["--callback-secret-file", "/dev/null"],
            &["--callback-secret-file", "whsec_"],
        ),
    ] {
        let mut command = reporter::command()?;
        command.args(arguments);
        assert_refused(command, words, &arguments.join(" ")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_variable_of_the_reporter() -> Result<()> {
    let mut command = reporter::command()?;
    command.env("VERVE_WINDOW_SECONDS", "abc");
    assert_refused(
        command,
        &["abc", "86400", "from VERVE_WINDOW_SECONDS"],
        "VERVE_WINDOW_SECONDS=abc",
    )
    .await?;
    for (name, value, words) in [
        (
            "VERVE_REDIS_URL",
            "redis://a",
            &["VERVE_REDIS_URL ", "VERVE_REDIS_URLS?"][..],
        ),
        (
            "VERVE_ADMIN_TOKEN",
            "",
            &["--admin-token", "empty", "from VERVE_ADMIN_TOKEN"],
        ),
        ("VERVE_CALLBACK_SECRET", "", &["--callback-secret", "empty"]),
        ("VERVE_REDIS_URLS", "", &["--redis-urls", "empty"]),
    ] {
        let mut command = reporter::command()?;
        command.env(name, value);
        assert_refused(command, words, name).await?;
    }
    // Other empty variables count as unset.
    let mut command = reporter::command()?;
    command.args(["config", "check"]);
    for name in [
        "VERVE_KAFKA_BROKERS",
        "VERVE_WINDOW_SECONDS",
        "VERVE_CALLBACK_URL",
        "VERVE_CONFIG",
    ] {
        command.env(name, "");
    }
    command
        .env("VERVE_PORT", "tcp://10.0.0.1:9090")
        .env("VERVE_LOG", "info");
    let process = Process::spawn("verve-reporter config check", command)?;
    assert!(process.wait(SOON).await?.success(), "{}", process.log());
    let log = process.log();
    assert!(
        log.contains("# kafka-brokers is not set") && log.contains("window-seconds = 60 # default"),
        "{log}"
    );
    Ok(())
}

/// A host with a misconfigured component fails its health check.
///
/// It logs the problem once, and where the wrong value was set.
#[tokio::test]
async fn a_wrong_variable_of_the_component() -> Result<()> {
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let site = Site::new(60).await?;
        let host = site.host(kind).environment("SPIN_VARIABLE_CALLBACK_METHOD", "put");
        let host = host.start().await?;
        for id in 0..20 {
            let answer = http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
            let reason = answer.header("verve-error");
            assert_eq!((answer.status, reason), (503, Some("misconfigured")), "{kind:?}");
        }
        wait::until("the health check to fail", SOON, || async {
            let answer = http::get(host.addr(), "/.well-known/spin/health").await.ok()?;
            (answer.status == 503 && answer.text() == "misconfigured").then_some(())
        })
        .await?;
        let lines = host.process().lines();
        let about = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!(about("variable callback_method"), 1, "{kind:?}: {lines:#?}");
        assert_eq!(about("SPIN_VARIABLE_CALLBACK_METHOD"), 1, "{kind:?}: {lines:#?}");
    }
    Ok(())
}

/// The component's messages are in the host's log, in the same format.
///
/// They are not repeated.
#[tokio::test]
async fn the_components_log_is_the_hosts() -> Result<()> {
    for (format, is_json) in [("text", false), ("json", true)] {
        let mut site = Site::new(60).await?;
        let host = site.host(Kind::VerveHost).flags(&["--log-format", format]);
        let host = host.variable("redis_timeout_ms", "100").start().await?;
        site.redis.kill();
        let begin = std::time::Instant::now();
        let mut id = 0;
        while begin.elapsed() < Duration::from_secs(4) {
            id += 1;
            http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let lines: Vec<String> = (host.process().lines().into_iter())
            .filter(|line| line.contains("verve: spooling"))
            .collect();
        let messages: BTreeSet<String> = lines
            .iter()
            .map(|line| {
                if is_json {
                    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                    assert!(line["timestamp"].is_string() && line["level"] == "WARN", "{line}");
                    line["message"].as_str().unwrap_or_default().to_owned()
                } else {
                    let (before, message) = line.split_once(" WARN ").expect("a level");
                    assert!(before.contains('T') && before.ends_with(['Z', ' ']), "{line}");
                    message.to_owned()
                }
            })
            .collect();
        assert!(!lines.is_empty() && lines.len() == messages.len(), "{lines:#?}");
        site.redis.restart().await?;
    }
    Ok(())
}

#[tokio::test]
async fn passwords_in_wrong_flags_are_not_shown() -> Result<()> {
    for urls in ["redis://:hunter2@", "redis://:hunter2@a/x", "http://u:hunter2@a"] {
        let mut command = reporter::command()?;
        command.args(["--redis-urls", urls]);
        let process = Process::spawn("verve-reporter", command)?;
        assert_eq!(process.wait(SOON).await?.code(), Some(EX_USAGE));
        assert!(!process.log().contains("hunter2"), "{}", process.log());
    }
    Ok(())
}

#[tokio::test]
async fn wrong_flags_of_the_host() -> Result<()> {
    for (arguments, words) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (&["stray"], &["stray"]),
        (&["--listen", "nonsense"], &["--listen", "nonsense"]),
        (&["--variable", "window_seconds"], &["--variable", "window_seconds"]),
        (&["--variable", "no_such_variable=1"], &["no_such_variable"]),
        (
            &["--variable", "namespace=a", "--variable", "namespace=b"],
            &["--variable namespace", "twice"],
        ),
        (&["--listn", ":3000"], &["--listn", "--listen"]),
        (&["--listen", ":x"], &["--listen", ":x"]),
        (&["--log-format", "xml"], &["--log-format", "json"]),
    ] {
        let mut command = Kind::VerveHost.command(&paths::manifest())?;
        command.args(arguments);
        assert_refused(command, words, &arguments.join(" ")).await?;
    }
    let mut command = Kind::VerveHost.command(&paths::manifest())?;
    command.env("SPIN_VARIABLE_REDIS_URL", "redis://:hunter2@a");
    assert_refused(command, &["SPIN_VARIABLE_REDIS_URL", "redis_urls?"], "a typo").await?;
    let missing = tempfile::tempdir()?.path().join("spin.toml");
    let command = Kind::VerveHost.command(&missing)?;
    assert_refused(command, &[&missing.to_string_lossy()], "a missing manifest").await
}

#[tokio::test]
async fn a_reporter_waits_for_redis() -> Result<()> {
    let address = net::free_address()?;
    let namespace = clock::unique("startup");
    let urls = format!("redis://:hunter2@{address}");
    let flags = [
        "--redis-urls",
        &urls,
        "--namespace",
        &namespace,
        "--window-seconds",
        "1",
    ];
    let reporter = Reporter::start(&flags)?;
    // Clear and early: the line names the unreachable server.
    let address_text = address.to_string();
    reporter
        .process()
        .wait_for_text(&address_text, Duration::from_secs(10))
        .await?;
    let (healthz, readyz) = (reporter.status("/healthz").await?, reporter.status("/readyz").await?);
    assert_eq!((healthz, readyz), (200, 503));
    let redis = RedisServer::options().port(address.port()).password("hunter2");
    let _redis = redis.start().await?;
    reporter.wait_ready(SOON).await?;
    assert!(!reporter.process().log().contains("hunter2"), "a password in the log");
    Ok(())
}

#[tokio::test]
async fn a_reporter_without_redis_and_kafka_takes_next_to_no_processor_time() -> Result<()> {
    let nobody = net::free_address()?.to_string();
    let site = Site::new(1).await?;
    // One that loses Redis, one that never had it, and one whose Redis does not answer.
    let silent = Site::new(1).await?;
    let loses = site.reporter(&[]).await?;
    let never = format!("redis://{nobody}");
    let never = Reporter::start(&site.flags(&["--redis-urls", &never, "--kafka-brokers", &nobody]))?;
    let unanswered = silent.reporter(&[]).await?;
    site.redis.kill();
    silent.redis.pause()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reporters = [&loses, &never, &unanswered].map(|reporter| reporter.process().pid());
    let before = reporters.map(cpu_seconds);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used: Vec<f64> = reporters
        .iter()
        .zip(before)
        .map(|(pid, before)| cpu_seconds(*pid) - before)
        .collect();
    assert!(used.iter().all(|seconds| *seconds < 0.25), "{used:?} of 5 s");
    Ok(())
}

#[tokio::test]
async fn a_reporter_waits_for_kafka() -> Result<()> {
    let mut ledger = Ledger::new().await?;
    let site = Site::new(1).await?;
    let address = net::free_address()?.to_string();
    let flags = ["--kafka-brokers", &address, "--kafka-topic", &ledger.topic];
    let reporter = Reporter::start(&site.flags(&flags))?;
    let line = reporter
        .process()
        .wait_for_text(&address, Duration::from_secs(10))
        .await;
    line.context("the brokers' address in the log")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(reporter.status("/healthz").await?, 200);
    assert_eq!(reporter.process().exit_status(), None);

    // A broker appears: the address now leads to the broker of the tests.
    let last = clock::current_window(site.length);
    let _forwarder = net::forward(&address, ledger.kafka.brokers()).await?;
    ledger.read_to(last, 1, Duration::from_secs(30)).await?;
    // No window was lost meanwhile.
    let values = crate::ledger::values_in_order(&site, ledger.read());
    assert!(values.len() >= 3, "{values:?}");
    wait::until("/readyz", SOON, || async {
        (reporter.status("/readyz").await.ok()? == 200).then_some(())
    })
    .await
}
