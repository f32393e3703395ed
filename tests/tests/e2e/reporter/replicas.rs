//! Several reporters: one publishes, and others take over from a dead one.

use std::time::{Duration, Instant};

use anyhow::Result;
use verve_protocol::Method;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, wait};

use crate::ledger::{Ledger, values_in_order};
use crate::site::{SOON, Site};

#[tokio::test]
async fn one_publishes_and_another_takes_over_within_10_seconds() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let mut reporters = vec![Reporter::ready(&flags).await?, Reporter::ready(&flags).await?];
    let last = clock::current_window(site.length).next().next();
    ledger.read_to(last, 1, SOON).await?;
    values_in_order(&site, ledger.read());

    // The leader is the one that logs the window; the line may follow the record.
    let key = last.to_string();
    let leads = |reporter: &Reporter| reporter.process().log().contains(&key);
    let leader = wait::until("a reporter that logs the window", SOON, || async {
        reporters.iter().position(leads)
    })
    .await?;
    assert_eq!(reporters.iter().filter(|r| leads(r)).count(), 1, "both log {key}");
    // Between two reports, so that acknowledged records are also recorded in Redis.
    clock::sleep_until_ms(clock::next_window(site.length).await.start() * 1000 + 800).await;
    let killed = reporters.remove(leader);
    killed.process().kill();
    let death = Instant::now();
    let due = clock::current_window(site.length);
    ledger.read_to(due, 1, SOON).await?;
    let took = death.elapsed();
    // The window was open for up to a second after the kill, and is due after its grace.
    assert!(took < Duration::from_secs(12), "took over after {took:?}");
    ledger.read_to(clock::current_window(site.length), 1, SOON).await?;
    values_in_order(&site, ledger.read());
    Ok(())
}

#[tokio::test]
async fn a_stopped_leader_is_followed_at_once() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let first = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    let _second = Reporter::ready(&flags).await?;
    assert_eq!(first.process().terminate(SOON).await?.code(), Some(0));
    let end = Instant::now();
    let due = clock::current_window(site.length);
    ledger.read_to(due, 1, SOON).await?;
    assert!(end.elapsed() < Duration::from_secs(5), "took {:?}", end.elapsed());
    values_in_order(&site, ledger.read());
    Ok(())
}

#[tokio::test]
async fn replicas_share_the_callbacks() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let flags = site.flags(&["--callback-allow", "127.0.0.1"]);
    let _reporters = [Reporter::ready(&flags).await?, Reporter::ready(&flags).await?];
    let window = clock::current_window(site.length);
    for n in 0..40 {
        site.add_job(&sink.url(&format!("/job/{n}")), Method::Post, window)
            .await?;
    }
    for n in 0..40 {
        sink.wait_for(&format!("/job/{n}"), 1, SOON).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sink.received().len(), 40, "each job is delivered once");
    Ok(())
}

#[tokio::test]
async fn jobs_of_a_killed_reporter_are_delivered_by_another() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    // The first call is never answered; the next one is.
    sink.answer(
        "/job",
        [Answer::status(200).after(Duration::from_secs(120)), Answer::status(200)],
    );
    let flags = site.flags(&["--callback-allow", "127.0.0.1"]);
    let killed = Reporter::ready(&flags).await?;
    site.add_job(&sink.url("/job"), Method::Get, clock::current_window(site.length))
        .await?;
    sink.wait_for("/job", 1, SOON).await?;
    killed.process().kill();
    let _other = Reporter::ready(&flags).await?;
    sink.wait_for("/job", 2, Duration::from_secs(90)).await?;
    assert!(site.stream(&site.keys().callbacks_dead()).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn retries_of_a_killed_reporter_are_made_by_another() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    sink.answer("/job", [Answer::status(500), Answer::status(200)]);
    let flags = site.flags(&["--callback-allow", "127.0.0.1", "--callback-backoff-ms", "3000"]);
    let killed = Reporter::ready(&flags).await?;
    site.add_job(&sink.url("/job"), Method::Get, clock::current_window(site.length))
        .await?;
    sink.wait_for("/job", 1, SOON).await?;
    // Enough time to record the retry, but not to make it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    killed.process().kill();
    let _other = Reporter::ready(&flags).await?;
    sink.wait_for("/job", 2, Duration::from_secs(30)).await?;
    Ok(())
}
