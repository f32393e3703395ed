//! Callbacks that fail: retried with growing delays, and finally given up.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Method;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, net, wait};

use crate::site::{SOON, Site, field};

/// Starts a site and its reporter.
///
/// The reporter makes `attempts` attempts; the first delay is `backoff_ms`.
async fn start(attempts: &str, backoff_ms: &str) -> Result<(Site, Sink, Reporter)> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let flags = ["--callback-attempts", attempts, "--callback-backoff-ms", backoff_ms];
    let reporter = site
        .reporter(&[&flags[..], &["--callback-allow", "127.0.0.1"]].concat())
        .await?;
    Ok((site, sink, reporter))
}

async fn add_job(site: &Site, endpoint: &str) -> Result<()> {
    let window = clock::current_window(site.length);
    site.add_job(endpoint, Method::Get, window).await
}

#[tokio::test]
async fn a_failing_callback_is_retried_until_it_succeeds() -> Result<()> {
    let (site, sink, _reporter) = start("5", "200").await?;
    let answers = [500, 404, 503, 200];
    sink.answer("/job", answers.map(Answer::status));
    add_job(&site, &sink.url("/job")).await?;
    let received = sink.wait_for("/job", 4, SOON).await?;
    // The delays grow, apart from jitter: the third is nominally four times the first.
    let pauses: Vec<u64> = received.windows(2).map(|r| r[1].time_ms - r[0].time_ms).collect();
    assert!(pauses[2] > pauses[0], "{pauses:?}");
    assert!(pauses.iter().all(|pause| (50..10_000).contains(pause)), "{pauses:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sink.received().len(), 4, "success is the end");
    let retries: usize = site.connection().await?.zcard(site.keys().callbacks_retry()).await?;
    assert_eq!(retries, 0);
    assert!(site.stream(&site.keys().callbacks_dead()).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_count_is_that_of_the_moment_it_is_sent() -> Result<()> {
    let (site, sink, _reporter) = start("5", "1000").await?;
    sink.answer("/job", [500, 200].map(Answer::status));
    let window = clock::current_window(site.length);
    site.add(window, 0..3).await?;
    site.add_job(&sink.url("/job"), Method::Get, window).await?;
    sink.wait_for("/job", 1, SOON).await?;
    site.add(window, 3..8).await?;
    let targets: Vec<_> = sink
        .wait_for("/job", 2, SOON)
        .await?
        .into_iter()
        .map(|r| r.target)
        .collect();
    assert_eq!(targets, ["/job?unique_count=3", "/job?unique_count=8"]);
    Ok(())
}

#[tokio::test]
async fn a_callback_that_keeps_failing_becomes_a_dead_letter_with_its_error() -> Result<()> {
    let (site, sink, reporter) = start("3", "50").await?;
    sink.answer("/job", [Answer::status(418)]);
    let endpoint = sink.url("/job?x=1");
    let window = clock::current_window(site.length);
    site.add_job(&endpoint, Method::Get, window).await?;
    let dead = site.dead(1, SOON).await.with_context(|| reporter.process().log())?;
    assert_eq!(sink.received().len(), 3);
    assert_eq!(field(&dead[0], "endpoint"), endpoint);
    assert_eq!(field(&dead[0], "method"), "get");
    assert_eq!(field(&dead[0], "window"), window.start().to_string());
    assert!(field(&dead[0], "error").contains("418"), "{dead:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sink.received().len(), 3, "dead is dead");
    Ok(())
}

/// An endpoint that answers 410 is not called again for this job.
///
/// Standard Webhooks specifies this.
#[tokio::test]
async fn an_endpoint_that_is_gone_is_not_called_again() -> Result<()> {
    let (site, sink, reporter) = start("5", "1").await?;
    sink.answer("/gone", [Answer::status(410)]);
    add_job(&site, &sink.url("/gone")).await?;
    let dead = site.dead(1, SOON).await?;
    assert_eq!(field(&dead[0], "error"), "status 410");
    assert_eq!(sink.received_at("/gone").len(), 1, "{}", reporter.process().log());
    Ok(())
}

#[tokio::test]
async fn a_missing_server_is_a_failure() -> Result<()> {
    let (site, _sink, _reporter) = start("2", "50").await?;
    let nobody = net::free_address()?;
    add_job(&site, &format!("http://{nobody}/")).await?;
    // A name that never resolves, RFC 2606.
    add_job(&site, "http://nobody.invalid/").await?;
    let dead = site.dead(2, SOON).await?;
    assert!(dead.iter().all(|job| !field(job, "error").is_empty()), "{dead:?}");
    Ok(())
}

#[tokio::test]
async fn redirects_are_not_followed() -> Result<()> {
    let (site, sink, _reporter) = start("2", "50").await?;
    for status in [301, 302, 303, 307, 308] {
        let path = format!("/from-{status}");
        let answer = Answer::status(status).header("location", &sink.url("/to"));
        sink.answer(&path, [answer]);
        add_job(&site, &sink.url(&path)).await?;
    }
    for job in site.dead(5, SOON).await? {
        let status = field(&job, "endpoint")
            .rsplit('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        assert!(field(&job, "error").contains(&status), "{job:?}");
    }
    assert!(sink.received_at("/to").is_empty());
    assert_eq!(sink.received().len(), 10, "a redirect is a failure and tried again");
    Ok(())
}

#[tokio::test]
async fn retry_after_is_honoured() -> Result<()> {
    let (site, sink, _reporter) = start("3", "50").await?;
    for status in [429, 503] {
        let path = format!("/{status}");
        let wait = Answer::status(status).header("retry-after", "1");
        sink.answer(&path, [wait, Answer::status(200)]);
        add_job(&site, &sink.url(&path)).await?;
    }
    for path in ["/429", "/503"] {
        let received = sink.wait_for(path, 2, SOON).await?;
        let pause = received[1].time_ms - received[0].time_ms;
        assert!((1_000..5_000).contains(&pause), "{path}: {pause} ms");
    }
    Ok(())
}

#[tokio::test]
async fn retry_after_may_be_a_date() -> Result<()> {
    let (site, sink, _reporter) = start("3", "50").await?;
    // Dates have a resolution of seconds, so it is between two and three seconds from now.
    let date = jiff::Timestamp::from_second(i64::try_from(clock::now_ms() / 1000)? + 3)?;
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let wait = Answer::status(429).header("retry-after", &date);
    sink.answer("/job", [wait, Answer::status(200)]);
    add_job(&site, &sink.url("/job")).await?;
    let received = sink.wait_for("/job", 2, SOON).await?;
    let pause = received[1].time_ms - received[0].time_ms;
    assert!((1_500..6_000).contains(&pause), "{date}: {pause} ms");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_cannot_ask_for_more_than_an_hour() -> Result<()> {
    let (site, sink, _reporter) = start("3", "50").await?;
    let asked = ["86400", "18446744073709551615", "Fri, 01 Jan 2100 00:00:00 GMT"];
    for (n, asked) in asked.iter().enumerate() {
        let path = format!("/{n}");
        sink.answer(&path, [Answer::status(503).header("retry-after", asked)]);
        add_job(&site, &sink.url(&path)).await?;
    }
    let due = wait::until("all to wait", SOON, || async {
        let retry = site.keys().callbacks_retry();
        let due: Vec<(String, f64)> = site
            .connection()
            .await
            .ok()?
            .zrange_withscores(retry, 0, -1)
            .await
            .ok()?;
        let now = clock::now_ms() as f64;
        // Taken jobs are due in half a minute.
        let waits: Vec<f64> = due
            .iter()
            .map(|(_, due)| due - now)
            .filter(|wait| *wait > 60_000.0)
            .collect();
        (waits.len() == asked.len()).then_some(waits)
    })
    .await?;
    assert!(
        due.iter().all(|wait| (3_500_000.0..=3_600_000.0).contains(wait)),
        "{due:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_tried_again() -> Result<()> {
    let (site, sink, reporter) = start("3", "50").await?;
    sink.answer(
        "/job",
        [Answer::status(200).after(Duration::from_secs(600)), Answer::status(200)],
    );
    add_job(&site, &sink.url("/job")).await?;
    let received = sink.wait_for("/job", 2, Duration::from_secs(20)).await?;
    let pause = received[1].time_ms - received[0].time_ms;
    assert!((3_000..8_000).contains(&pause), "{pause} ms");
    reporter.process().wait_for_text("no response within 3 s", SOON).await?;
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_called_once_it_is_up() -> Result<()> {
    let (site, _sink, reporter) = start("10", "200").await?;
    let address = net::free_address()?.to_string();
    add_job(&site, &format!("http://{address}/job")).await?;
    reporter.process().wait_for_text("cannot connect", SOON).await?;
    let sink = Sink::start_on(&address).await?;
    sink.wait_for("/job", 1, SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_broken_entry_does_not_stop_the_others() -> Result<()> {
    let (site, sink, reporter) = start("2", "50").await?;
    let mut redis = site.connection().await?;
    let callbacks = site.keys().callbacks();
    for fields in [
        &[("endpoint", "nonsense"), ("method", "get"), ("window", "60")][..],
        &[("endpoint", "http://e.com/"), ("method", "put"), ("window", "60")],
        &[("endpoint", "http://e.com/"), ("method", "get"), ("window", "61")],
        &[("something", "else")],
    ] {
        let () = redis.xadd(&callbacks, "*", fields).await?;
    }
    add_job(&site, &sink.url("/job")).await?;
    sink.wait_for("/job", 1, SOON)
        .await
        .with_context(|| reporter.process().log())?;
    // Kept for the operator.
    let dead = site.dead(4, SOON).await?;
    assert!(dead.iter().all(|job| !field(job, "error").is_empty()), "{dead:?}");
    Ok(())
}

#[tokio::test]
async fn a_slow_endpoint_does_not_hold_up_the_others() -> Result<()> {
    let (site, sink, _reporter) = start("2", "50").await?;
    sink.answer("/slow", [Answer::status(200).after(Duration::from_secs(60))]);
    add_job(&site, &sink.url("/slow")).await?;
    sink.wait_for("/slow", 1, SOON).await?;
    for n in 0..10 {
        add_job(&site, &sink.url(&format!("/fast/{n}"))).await?;
    }
    for n in 0..10 {
        sink.wait_for(&format!("/fast/{n}"), 1, Duration::from_secs(5)).await?;
    }
    Ok(())
}
