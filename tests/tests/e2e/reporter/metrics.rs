//! Tests `/metrics`, and that dashboards and alerts use only existing metrics.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Method;
use verve_tests::host::Kind;
use verve_tests::metrics::Metrics;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, http, paths, wait};

use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Waits until a sample has this value.
async fn becomes(reporter: &Reporter, sample: &str, value: f64) -> Result<()> {
    let reached = wait::until(sample, SOON, || async {
        let metrics = Metrics::scrape(reporter).await.ok()?;
        (metrics.get(sample) == Some(value)).then_some(())
    });
    match reached.await {
        Ok(()) => Ok(()),
        Err(error) => {
            let metrics = http::get(reporter.address(), "/metrics").await?.text();
            Err(error).with_context(|| format!("{sample} {value}:\n{metrics}"))
        }
    }
}

#[tokio::test]
async fn requests_are_counted_by_the_one_that_leads() -> Result<()> {
    let site = Site::with_one_window().await?;
    let instance = site.host(Kind::VerveHost).start().await?;
    let accept = async |query: &str| {
        let target = format!("/api/verve/accept?{query}");
        anyhow::Ok(http::get(instance.addr(), &target).await?.status)
    };
    let leader = site.reporter(&[]).await?;
    becomes(&leader, "verve_lease_held", 1.0).await?;
    becomes(&leader, "verve_unique_ids{window=\"current\"}", 0.0).await?;
    let other = site.reporter(&[]).await?;
    for (query, status) in [("id=1", 200), ("id=1", 200), ("id=2", 200), ("id=x", 400)] {
        assert_eq!(accept(query).await?, status);
    }
    for (outcome, count) in [("new", 2.0), ("duplicate", 1.0), ("invalid", 1.0), ("failed", 0.0)] {
        let sample = format!("verve_requests_total{{outcome=\"{outcome}\"}}");
        becomes(&leader, &sample, count).await?;
    }
    becomes(&leader, "verve_unique_ids{window=\"current\"}", 2.0).await?;
    becomes(&other, "verve_unique_ids{window=\"current\"}", 2.0).await?;
    let counted = Metrics::scrape(&other).await?.sum("verve_requests_total");
    assert!(counted.abs() < f64::EPSILON, "{counted} requests counted twice");
    // The next leader does not count again what the last one has counted.
    drop(leader);
    becomes(&other, "verve_lease_held", 1.0).await?;
    assert_eq!(accept("id=3").await?, 200);
    becomes(&other, "verve_requests_total{outcome=\"new\"}", 1.0).await?;
    let counted = Metrics::scrape(&other).await?.sum("verve_requests_total");
    assert!((counted - 1.0).abs() < f64::EPSILON, "{counted}");
    Ok(())
}

#[tokio::test]
async fn callbacks_are_counted_by_status_and_result() -> Result<()> {
    let site = Site::with_one_window().await?;
    let sink = Sink::start().await?;
    sink.answer("/flaky", [Answer::status(503), Answer::status(204)]);
    sink.answer("/never", [Answer::status(404)]);
    let flags = [
        "--callback-allow",
        "127.0.0.1",
        "--callback-attempts",
        "2",
        "--callback-backoff-ms",
        "50",
    ];
    let reporter = site.reporter(&flags).await?;
    let window = clock::current_window(site.length);
    for path in ["/flaky", "/never"] {
        site.add_job(&sink.url(path), Method::Get, window).await?;
    }
    site.add_job("http://10.0.0.1/private", Method::Get, window).await?;
    for (status, result, count) in [
        ("5xx", "retried", 1.0),
        ("2xx", "delivered", 1.0),
        ("4xx", "retried", 1.0),
        ("4xx", "dead", 1.0),
        ("none", "dead", 1.0),
    ] {
        let sample = format!("verve_callback_attempts_total{{status=\"{status}\",result=\"{result}\"}}");
        becomes(&reporter, &sample, count).await?;
    }
    becomes(&reporter, "verve_callback_jobs{place=\"dead\"}", 2.0).await?;
    becomes(&reporter, "verve_callback_jobs{place=\"stream\"}", 0.0).await?;
    becomes(&reporter, "verve_callback_seconds_count", 5.0).await
}

#[tokio::test]
async fn an_unreachable_redis_is_reported() -> Result<()> {
    let mut site = Site::new(1).await?;
    let reporter = site.reporter(&[]).await?;
    let dependency = format!("verve_dependency_up{{dependency=\"Redis {}\"}}", site.redis_urls());
    becomes(&reporter, &dependency, 1.0).await?;
    becomes(&reporter, "verve_window_overdue_seconds", 0.0).await?;
    site.redis.kill();
    becomes(&reporter, &dependency, 0.0).await?;
    wait::until("an overdue window", SOON, || async {
        let metrics = Metrics::scrape(&reporter).await.ok()?;
        (metrics.get("verve_window_overdue_seconds")? >= 2.0).then_some(())
    })
    .await?;
    assert!(Metrics::scrape(&reporter).await?.sum("verve_redis_errors_total") > 0.0);
    site.redis.restart().await?;
    becomes(&reporter, &dependency, 1.0).await?;
    becomes(&reporter, "verve_window_overdue_seconds", 0.0).await
}

#[tokio::test]
async fn spooled_and_drained_ids_are_counted_once() -> Result<()> {
    for kind in Kind::available() {
        let redis = RedisServer::options().append_only().start().await?;
        let mut site = Site::with_redis(86_400, redis);
        let host = site.host(kind).variable("redis_timeout_ms", "300");
        let instance = host.start().await?;
        let mut reporters = Vec::new();
        let mut spooled = 0.0;
        // The spool has another name each time. The first time, no reporter leads.
        for outage in 1..=3 {
            site.redis.kill();
            for id in outage * 1000..outage * 1000 + 20 {
                let response = http::get(instance.addr(), &format!("/api/verve/accept?id={id}")).await?;
                assert_eq!(response.header("verve-outcome"), Some("spooled"), "{kind:?}");
            }
            spooled += 20.0;
            site.redis.restart().await?;
            if reporters.is_empty() {
                wait::until("all to be drained", SOON, || async {
                    let mut connection = site.connection().await.ok()?;
                    let spools: Vec<String> = connection.hvals(site.keys().spools()).await.ok()?;
                    spools.iter().any(|state| state.starts_with("0 20 ")).then_some(())
                })
                .await?;
                reporters = vec![site.reporter(&[]).await?, site.reporter(&[]).await?];
            }
            wait::until("all to be counted", SOON, || async {
                (drained(&reporters).await.ok()? >= spooled).then_some(())
            })
            .await?;
            // Its entry is removed once it was counted.
            wait::until("an empty spool to be forgotten", SOON, || async {
                let spools: u64 = site.connection().await.ok()?.hlen(site.keys().spools()).await.ok()?;
                (spools == 0).then_some(())
            })
            .await?;
            let drained = drained(&reporters).await?;
            assert!(
                (drained - spooled).abs() < f64::EPSILON,
                "{kind:?}: {drained} of {spooled}"
            );
        }
    }
    Ok(())
}

/// Returns how many drained ids these reporters have counted.
async fn drained(reporters: &[Reporter]) -> Result<f64> {
    let mut drained = 0.0;
    for reporter in reporters {
        drained += Metrics::scrape(reporter).await?.sum("verve_spool_drained_ids_total");
    }
    Ok(drained)
}

/// Returns all words that begin with `verve_`.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = text.split(word).filter(|word| word.starts_with("verve_"));
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn dashboard_and_alerts_use_existing_metrics() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let sink = Sink::start().await?;
    let (url, allow) = (sink.url("/fixed"), "127.0.0.1");
    let flags = ledger.flags(&site, &["--callback-url", &url, "--callback-allow", allow]);
    let reporter = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    sink.wait_for("/fixed", 1, SOON).await?;
    becomes(&reporter, "verve_kafka_errors_total{reason=\"away\"}", 0.0).await?;
    // The endpoint receives the call before the reporter has its answer.
    let metrics = wait::until("the callback to be counted", SOON, || async {
        let metrics = Metrics::scrape(&reporter).await.ok()?;
        (metrics.sum("verve_callback_attempts_total") >= 1.0).then_some(metrics)
    })
    .await?;
    assert!(metrics.sum("verve_window_lag_seconds_count") >= 1.0);
    assert!(metrics.sum("verve_kafka_publish_seconds_count") >= 1.0);
    assert!(metrics.sum("verve_redis_command_seconds_count") >= 1.0);
    let there: BTreeSet<String> = metrics.names().into_iter().map(str::to_owned).collect();
    for file in ["deploy/grafana/verve.json", "deploy/prometheus/alerts.yaml"] {
        let text = fs::read_to_string(paths::repository().join(file)).context(file)?;
        let asked = names(&text);
        assert!(asked.len() >= 5, "{file}: {asked:?}");
        let missing: Vec<&String> = asked.difference(&there).collect();
        assert!(
            missing.is_empty(),
            "{file} asks for {missing:?}, which is not in {there:?}"
        );
    }
    let dashboard = fs::read_to_string(paths::repository().join("deploy/grafana/verve.json"))?;
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard)?;
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() >= 6));
    Ok(())
}

/// Runs Prometheus' own checker with this text on its standard input.
///
/// Returns its output, or an error if it fails.
fn promtool(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(paths::repository().join("deploy/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool is needed: on Debian, the package prometheus")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}: {text}", output.status);
    Ok(text)
}

#[tokio::test]
async fn prometheus_finds_nothing_wrong() -> Result<()> {
    let site = Site::new(1).await?;
    let reporter = site.reporter(&[]).await?;
    becomes(&reporter, "verve_lease_held", 1.0).await?;
    let response = http::get(reporter.address(), "/metrics").await?;
    let kind = response.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    assert_eq!(promtool(&["check", "metrics"], &response.text())?.trim(), "");
    promtool(&["check", "rules", "alerts.yaml"], "")?;
    // For each alert one case, and a time before it at which it does not fire.
    promtool(&["test", "rules", "alerts-test.yaml"], "")?;
    let folder = paths::repository().join("deploy/prometheus");
    let (rules, cases) = (
        fs::read_to_string(folder.join("alerts.yaml"))?,
        fs::read_to_string(folder.join("alerts-test.yaml"))?,
    );
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 9, "{alerts:?}");
    for alert in alerts {
        assert!(cases.contains(&format!("alertname: {alert}\n")), "no case for {alert}");
    }
    // The rules for the operator are the same.
    let operators = fs::read_to_string(paths::repository().join("deploy/kubernetes/base/prometheusrule.yaml"))?;
    let indented = rules
        .lines()
        .skip_while(|line| *line != "groups:")
        .map(|line| format!("  {line}"));
    let spec = operators.lines().skip_while(|line| *line != "spec:").skip(1);
    assert!(indented.eq(spec), "{operators}");
    // Mistakes are found.
    let wrong = promtool(&["check", "metrics"], "# TYPE verve_x counter\nverve_x 1\n");
    assert!(wrong.is_err(), "{wrong:?}");
    Ok(())
}
