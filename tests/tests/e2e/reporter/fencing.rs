//! Records that could be repeated or out of order.
//!
//! Redis refuses to record them, a leader was paused, or Kafka is unreachable.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use redis::AsyncCommands;
use tokio::task::spawn_blocking;
use verve_protocol::Report;
use verve_tests::process::Signal;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::{clock, wait};

use crate::ledger::{Ledger, values_in_order};
use crate::reporter::late::metric;
use crate::site::{SOON, Site};

/// Asserts that each window's revisions start at 0 and grow by one.
///
/// A repeated record must be the same.
#[track_caller]
fn assert_revisions(ledger: &Ledger) {
    let mut last: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for record in ledger.read() {
        let revision: u64 = record.header("revision").parse().expect("a number");
        let fits = match last.insert(&record.key, (revision, &record.value)) {
            None => revision == 0,
            Some(before) => before == (revision, record.value.as_str()) || before.0 + 1 == revision,
        };
        assert!(fits, "{} in\n{ledger}", record.key);
    }
}

#[tokio::test]
async fn records_are_not_repeated_while_redis_takes_no_note_of_them() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let sink = Sink::start().await?;
    let callback = sink.url("/fixed");
    let flags = ledger.flags(&site, &["--callback-url", &callback, "--callback-allow", "127.0.0.1"]);
    let reporter = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    // Not a stream: only the recording fails, because it also queues the fixed callback.
    let callbacks = site.keys().callbacks();
    let () = site.connection().await?.set(&callbacks, "not a stream").await?;
    reporter.process().wait_for_text("Redis has not recorded", SOON).await?;
    ledger.read_for(Duration::from_secs(4)).await;
    values_in_order(&site, ledger.read());
    let window = crate::ledger::window_of(&site, &ledger.read().last().expect("a record").key);
    let log = reporter.process().log();
    assert_eq!(log.matches("Redis has not recorded").count(), 1, "{log}");
    // Ids that arrive meanwhile make the next revision.
    site.add(window, 0..3).await?;
    let () = site.connection().await?.del(&callbacks).await?;
    ledger.read_to(window, 2, SOON).await?;
    let until = clock::current_window(site.length);
    ledger.read_to(until, 1, SOON).await?;
    assert_revisions(&ledger);
    let repeated: Vec<_> = ledger
        .read()
        .iter()
        .filter(|r| r.key != window.to_string())
        .cloned()
        .collect();
    assert!(repeated.iter().all(|r| r.header("revision") == "0"), "{ledger}");
    assert_eq!(ledger.of(window)[1].value, "3");
    let json: String = site
        .connection()
        .await?
        .hget(site.keys().reports(site.length), window.start())
        .await?;
    let report = Report::from_json(&json)?;
    assert_eq!((report.count, report.revision), (3, 1));
    Ok(())
}

#[tokio::test]
async fn a_leader_that_wakes_from_a_pause_changes_nothing() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let flags = ledger.flags(&site, &[]);
    let paused = Reporter::ready(&flags).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    let other = Reporter::ready(&flags).await?;
    // The pause begins when it reports this window, if not just before or after.
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    clock::sleep_until_ms(window.end_ms() + 302).await;
    paused.process().pause()?;
    let pause = Instant::now();
    other.process().wait_for_text("holding the lease", SOON).await?;
    ensure!(
        pause.elapsed() < Duration::from_secs(10),
        "took over after {:?}",
        pause.elapsed()
    );
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 3..5).await?;
    ledger
        .read_until(SOON, |ledger| ledger.last()[window.to_string().as_str()].value == "5")
        .await?;
    paused.process().signal(Signal::SIGCONT)?;
    // It detects this by a refusal, or by an answer that took too long.
    wait::until("the paused one to follow", SOON, || async {
        (metric(&paused, "verve_lease_held").await.ok()? == 0).then_some(())
    })
    .await?;
    ledger.read_for(Duration::from_secs(3)).await;
    assert_revisions(&ledger);
    assert_eq!(ledger.last()[window.to_string().as_str()].value, "5");
    Ok(())
}

/// Creates a producer that Kafka takes for a reporter of this site.
async fn producer(site: &Site, ledger: &Ledger) -> Result<FutureProducer> {
    let id = format!("verve-reporter:{}:{}:{}", site.namespace, site.length, ledger.topic);
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", ledger.kafka.brokers())
        .set("transactional.id", id);
    spawn_blocking(move || {
        let producer: FutureProducer = config.create()?;
        producer.init_transactions(SOON)?;
        Ok(producer)
    })
    .await?
}

#[tokio::test]
async fn kafka_refuses_the_records_of_a_leader_that_was_followed() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    // The embedded broker does not fence producers.
    ensure!(
        ledger.kafka.is_real(),
        "this test needs an Apache Kafka: run `cargo xtask test`"
    );
    let old = producer(&site, &ledger).await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &[])).await?;
    ledger.read_until(SOON, |ledger| !ledger.read().is_empty()).await?;
    let topic = ledger.topic.clone();
    let sent = spawn_blocking(move || {
        old.begin_transaction()?;
        let stale = FutureRecord::to(&topic).key("stale").payload("0");
        let sent = old.send_result(stale).map_err(|(error, _)| error)?;
        drop(sent);
        old.commit_transaction(Duration::from_secs(5))
    });
    sent.await?.expect_err("it was fenced");
    // A reporter that is fenced gives up the lease; here no other takes it.
    let _newer = producer(&site, &ledger).await?;
    reporter.process().wait_for_text("giving up the lease", SOON).await?;
    let until = clock::current_window(site.length).next();
    ledger.read_to(until, 1, SOON).await?;
    values_in_order(&site, ledger.read());
    Ok(())
}

#[tokio::test]
async fn no_window_is_skipped_while_kafka_is_unreachable() -> Result<()> {
    use verve_tests::kafka::Kafka;
    use verve_tests::net;
    let folder = tempfile::tempdir()?;
    let port = net::free_address()?.port();
    let kafka = Kafka::real(port, folder.path()).await?;
    let topic = clock::unique("away");
    kafka.create_topic(&topic, 1).await?;
    let site = Site::new(1).await?;
    let flags = site.flags(&["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic]);
    let reporter = Reporter::ready(&flags).await?;
    reporter.process().wait_for_text("window reported", SOON).await?;
    drop(kafka);
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    reporter.process().wait_for_text("is not reachable", SOON).await?;
    // Longer than the delivery timeout, so that transactions fail and sessions cannot begin; the
    // lease is kept.
    tokio::time::sleep(Duration::from_secs(12)).await;
    site.add(window, 3..5).await?;
    assert!(
        !reporter.process().log().contains("lost the lease"),
        "{}",
        reporter.process().log()
    );
    let kafka = Kafka::real(port, folder.path()).await?;
    let records = kafka.consume(&topic).await?;
    let mut read = Vec::new();
    let patience = Instant::now() + Duration::from_secs(60);
    let until = clock::current_window(site.length).to_string();
    while !read
        .iter()
        .any(|record: &verve_tests::kafka::Record| record.key == until)
    {
        ensure!(Instant::now() < patience, "{read:#?}\n{}", reporter.process().log());
        read.extend(records.next(Duration::from_secs(1)).await);
    }
    let first: Vec<_> = read
        .iter()
        .filter(|record| record.header("revision") == "0")
        .cloned()
        .collect();
    values_in_order(&site, &first);
    let of = read.iter().rfind(|record| record.key == window.to_string());
    assert_eq!(of.map(|record| record.value.as_str()), Some("5"));
    Ok(())
}

#[tokio::test]
async fn a_reporter_stops_soon_though_kafka_was_never_there() -> Result<()> {
    let site = Site::new(1).await?;
    let nobody = verve_tests::net::free_address()?.to_string();
    let reporter = Reporter::start(&site.flags(&["--kafka-brokers", &nobody]))?;
    reporter.process().wait_for_text("holding the lease", SOON).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stop = Instant::now();
    assert_eq!(reporter.process().terminate(SOON).await?.code(), Some(0));
    assert!(stop.elapsed() < Duration::from_secs(10), "took {:?}", stop.elapsed());
    // The lease was not lost meanwhile, and is now free.
    assert!(
        !reporter.process().log().contains("lost the lease"),
        "{}",
        reporter.process().log()
    );
    wait::until("the lease", SOON, || async {
        let holder: Option<String> = site
            .connection()
            .await
            .ok()?
            .get(site.keys().lease(site.length))
            .await
            .ok()?;
        holder.is_none().then_some(())
    })
    .await
}
