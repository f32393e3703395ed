//! Tests failures of Kafka: windows wait, and are reported when it works again.
//!
//! The whole table is in `redis_fails`.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;
use verve_protocol::Window;
use verve_tests::broker::Broker;
use verve_tests::host::Kind;
use verve_tests::kafka::Kafka;
use verve_tests::process::Signal;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::faults::trial::Trial;
use crate::ledger::Ledger;
use crate::site::{SOON, Site};

const A_WHILE: Duration = Duration::from_secs(3);
/// Longer than the reporter waits for an acknowledgement.
///
/// The reporter then does not know whether a record was stored.
const BEYOND_DELIVERY: Duration = Duration::from_secs(5);

/// Runs the failures one after the other, since a separate broker starts slowly.
#[tokio::test]
async fn kafka_killed_paused_and_stopped() -> Result<()> {
    let mut broker = Broker::start().await?;
    let redis = RedisServer::options().append_only().start().await?;
    let trial = Trial::start(Kind::VerveHost, redis, broker.kafka()).await?;
    broker.process().kill();
    sleep(A_WHILE).await;
    broker.restart().await?;
    broker.process().pause()?;
    sleep(BEYOND_DELIVERY).await;
    broker.process().signal(Signal::SIGCONT)?;
    sleep(A_WHILE).await;
    broker.link().cut();
    sleep(A_WHILE).await;
    broker.link().restore();
    sleep(A_WHILE).await;
    broker.link().hold();
    sleep(A_WHILE).await;
    broker.link().restore();
    broker.process().terminate(Duration::from_secs(30)).await?;
    broker.restart().await?;
    let answers = trial.finish(broker.kafka()).await?;
    assert!(answers.all_ok(), "{answers:?}");
    Ok(())
}

/// The time limit after Kafka is reachable again.
///
/// The client looks for a topic at its own interval.
const LATER: Duration = Duration::from_secs(90);

/// A reporter and its topic.
struct Publishing {
    site: Site,
    topic: String,
    reporter: Reporter,
}

impl Publishing {
    async fn start(kafka: &Kafka, more: &[&str]) -> Result<Self> {
        let topic = clock::unique("faults");
        kafka.create_topic(&topic, 1).await?;
        let site = Site::new(1).await?;
        let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic];
        let reporter = site.reporter(&[&flags[..], more].concat()).await?;
        reporter.process().wait_for_text("window reported", SOON).await?;
        Ok(Self { site, topic, reporter })
    }

    fn log(&self) -> String {
        self.reporter.process().log()
    }

    /// Returns a window with ids, which ends during the failure.
    async fn window(&self) -> Result<Window> {
        let window = clock::next_window(self.site.length).await;
        self.site.add(window, 0..3).await?;
        Ok(window)
    }

    /// Waits until `/readyz` reports a problem with Kafka.
    async fn wait_for_problem(&self, context: &str) -> Result<()> {
        wait::until("a problem", SOON, || async {
            let ready = http::get(self.reporter.address(), "/readyz").await.ok()?;
            (ready.status == 503 && ready.text().contains("Kafka")).then_some(())
        })
        .await
        .with_context(|| format!("{context}:\n{}", self.log()))
    }

    /// Waits until the topic has the window's record and one of a later window.
    ///
    /// Then waits until the reporter is ready again.
    async fn assert_goes_on(&self, kafka: &Kafka, window: Window, context: &str) -> Result<()> {
        let later = clock::next_window(self.site.length).await;
        wait::until("the records", LATER, || async {
            let records = kafka.read_all(&self.topic).await.ok()?;
            let value = |window: Window| {
                let found = records.iter().rfind(|record| record.key == window.to_string());
                found.map(|record| record.value.clone())
            };
            (value(window)? == "3" && value(later).is_some()).then_some(())
        })
        .await
        .with_context(|| format!("{context}, window {window}:\n{}", self.log()))?;
        self.reporter.wait_ready(SOON).await
    }

    /// Asserts that each outage is logged once, not with each attempt.
    ///
    /// The process is still the same.
    fn assert_logged(&self, outages: std::ops::RangeInclusive<usize>) {
        let log = self.log();
        let logged = log.matches("is not reachable").count();
        assert!(outages.contains(&logged), "{logged} of {outages:?}:\n{log}");
        assert_eq!(self.reporter.process().exit_status(), None);
    }
}

/// Deletes, loses and freezes the topic.
///
/// The same reporter process continues each time, with a new producer where it needs one.
async fn the_topic_is_not_what_it_was(more: &[&str]) -> Result<()> {
    let mut broker = Broker::start().await?;
    let publishing = Publishing::start(broker.kafka(), more).await?;

    // Deleted and created again.
    broker.kafka().delete_topic(&publishing.topic).await?;
    let window = publishing.window().await?;
    sleep(A_WHILE).await;
    broker.kafka().create_topic(&publishing.topic, 1).await?;
    publishing.assert_goes_on(broker.kafka(), window, "made again").await?;

    // Everything is lost: topics, records, the state of producers.
    broker.process().kill();
    let window = publishing.window().await?;
    publishing.wait_for_problem("lost").await?;
    broker.restart_empty().await?;
    broker.kafka().create_topic(&publishing.topic, 1).await?;
    publishing.assert_goes_on(broker.kafka(), window, "lost").await?;

    broker.process().pause()?;
    let window = publishing.window().await?;
    sleep(BEYOND_DELIVERY).await;
    publishing.wait_for_problem("frozen").await?;
    broker.process().signal(Signal::SIGCONT)?;
    publishing.assert_goes_on(broker.kafka(), window, "frozen").await?;

    // Whether the reporter notices the deleted topic depends on when it looks.
    publishing.assert_logged(2..=5);
    Ok(())
}

#[tokio::test]
async fn a_topic_deleted_emptied_and_frozen() -> Result<()> {
    the_topic_is_not_what_it_was(&[]).await
}

/// The same for brokers without transactions.
///
/// The test broker has them; only the flag differs.
#[tokio::test]
async fn a_topic_deleted_emptied_and_frozen_without_transactions() -> Result<()> {
    the_topic_is_not_what_it_was(&["--kafka-transactions", "false"]).await
}

/// Fewer replicas than the topic requires, for longer than the delivery timeout.
#[tokio::test]
async fn a_topic_under_replicated() -> Result<()> {
    let test = async |more: &[&str]| -> Result<()> {
        let kafka = Kafka::embedded()?;
        let publishing = Publishing::start(&kafka, more).await?;
        kafka.set_under_replicated(true)?;
        let window = publishing.window().await?;
        publishing.wait_for_problem("under-replicated").await?;
        sleep(BEYOND_DELIVERY).await;
        kafka.set_under_replicated(false)?;
        publishing.assert_goes_on(&kafka, window, "under-replicated").await?;
        publishing.assert_logged(1..=1);
        Ok(())
    };
    tokio::try_join!(test(&[]), test(&["--kafka-transactions", "false"])).map(drop)
}

/// Kafka answers, and refuses every session for publishing.
///
/// The problem is logged once, and the reporter is not ready until Kafka allows publishing.
#[tokio::test]
async fn a_refused_session_does_not_count_as_a_reachable_kafka() -> Result<()> {
    let kafka = Kafka::embedded()?;
    kafka.forbid_transactions()?;
    let site = Site::new(1).await?;
    let reporter = Reporter::start(&site.flags(&["--kafka-brokers", kafka.brokers()]))?;
    reporter.process().wait_for_text("is not reachable", SOON).await?;
    for _ in 0..60 {
        assert_eq!(reporter.status("/readyz").await?, 503, "{}", reporter.process().log());
        sleep(Duration::from_millis(100)).await;
    }
    let lines = reporter.process().lines();
    let about = |word: &str| {
        lines
            .iter()
            .filter(|line| line.contains("Kafka") && line.contains(word))
            .count()
    };
    assert_eq!(
        (about("is not reachable"), about("reachable again")),
        (1, 0),
        "{lines:#?}"
    );
    Ok(())
}

/// A reporter with nothing to publish does not create the topic by looking for it.
#[tokio::test]
async fn looking_for_the_topic_does_not_make_it() -> Result<()> {
    let kafka = Kafka::for_tests()?;
    let topic = clock::unique("absent");
    let site = Site::new(86_400).await?;
    let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic];
    let reporter = Reporter::ready(&site.flags(&flags)).await?;
    sleep(Duration::from_secs(5)).await;
    assert!(!kafka.has_topic(&topic).await?, "{}", reporter.process().log());
    Ok(())
}

/// A key has the same partition as with Java's clients.
#[tokio::test]
async fn a_key_is_in_the_partition_where_others_look_for_it() -> Result<()> {
    let kafka = Kafka::for_tests()?;
    let topic = clock::unique("partitioned");
    kafka.create_topic(&topic, 4).await?;
    let site = Site::new(1).await?;
    let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic];
    let reporter = Reporter::ready(&site.flags(&flags)).await?;
    let records = wait::until("ten records", Duration::from_secs(30), || async {
        let records = kafka.read_all(&topic).await.ok()?;
        (records.len() >= 10).then_some(records)
    })
    .await
    .with_context(|| reporter.process().log())?;
    for record in records {
        let expected = (murmur2(record.key.as_bytes()) & 0x7fff_ffff) % 4;
        assert_eq!(record.partition, expected.cast_signed(), "{}", record.key);
    }
    // From the tests of Kafka's own client.
    assert_eq!(murmur2(b"21").cast_signed(), -973_932_308);
    assert_eq!(murmur2(b"foobar").cast_signed(), -790_332_482);
    assert_eq!(murmur2(b"a-little-bit-long-string").cast_signed(), -985_981_536);
    Ok(())
}

/// Austin Appleby's MurmurHash2 with the seed of Kafka's Java client.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).unwrap_or_default();
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (at, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * at);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Records and corrections are the same without transactions.
#[tokio::test]
async fn records_without_transactions() -> Result<()> {
    let site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &["--kafka-transactions", "false"])).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    ledger.read_to(window, 1, SOON).await?;
    site.add(window, 3..5).await?;
    ledger.read_to(window, 2, SOON).await?;
    let values: Vec<_> = ledger.of(window).iter().map(|record| record.value.clone()).collect();
    assert_eq!(values, ["3", "5"], "{ledger}\n{}", reporter.process().log());
    Ok(())
}
