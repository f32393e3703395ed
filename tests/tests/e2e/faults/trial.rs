//! A complete Verve under steady traffic, which tests put through a failure.
//!
//! It has a host, a reporter, and a link to Redis that can be cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use verve_tests::clock;
use verve_tests::host::{Instance, Kind};
use verve_tests::http::{Connection, Response};
use verve_tests::kafka::{Kafka, Record};
use verve_tests::link::Link;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::wait;

use crate::ledger::window_of;
use crate::site::{SOON, Site};

/// For claims after a failure: a callback job can be claimed after 30 s.
const LATER: Duration = Duration::from_secs(90);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(10);
/// One request in this number asks for a callback.
const CALLED_BACK: usize = 10;

/// The parts, and the answers to a client that sends its own ids.
pub struct Trial {
    pub site: Site,
    /// Between Redis and all other parts.
    pub link: Link,
    pub host: Instance,
    /// As many as a test needs.
    pub reporters: Vec<Reporter>,
    flags: Vec<String>,
    topic: String,
    sink: Arc<Sink>,
    sent: Arc<Sent>,
    client: JoinHandle<()>,
}

#[derive(Default)]
struct Sent {
    stop: AtomicBool,
    answers: Mutex<Answers>,
}

/// The answers to the client.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// How many ids were answered `ok`.
    pub ok: usize,
    /// Other answers and errors; such an id may have been recorded.
    pub others: Vec<String>,
    /// How often no host was listening.
    pub refused: usize,
    /// The paths of the callbacks whose request was answered `ok`.
    callbacks: Vec<String>,
}

impl Trial {
    /// Starts all parts on this Redis and this Kafka, with windows of one second.
    ///
    /// Waits until everything works.
    pub async fn start(kind: Kind, redis: RedisServer, kafka: &Kafka) -> Result<Self> {
        let link = Link::start(redis.address()).await?;
        let site = Site::with_redis(1, redis);
        let url = format!("redis://{}", link.address());
        let host = site
            .host(kind)
            .variable("redis_urls", &url)
            .variable("redis_timeout_ms", "300");
        let host = host.start().await?;
        let topic = clock::unique("trial");
        kafka.create_topic(&topic, 1).await?;
        let flags = site.flags(&[
            "--redis-urls",
            &url,
            "--kafka-brokers",
            kafka.brokers(),
            "--kafka-topic",
            &topic,
            "--callback-allow",
            "127.0.0.1",
        ]);
        let sink = Arc::new(Sink::start().await?);
        let sent = Arc::new(Sent::default());
        let reporter = Reporter::ready(&flags).await?;
        let client = tokio::spawn(send(host.addr(), sink.url(""), Arc::clone(&sent)));
        let trial = Self {
            site,
            link,
            host,
            reporters: vec![reporter],
            flags,
            topic,
            sink,
            sent,
            client,
        };
        wait::until("a count", SOON, || async {
            let records = kafka.read_all(&trial.topic).await.ok()?;
            (total(&last(&records)?) > 0).then_some(())
        })
        .await?;
        Ok(trial)
    }

    /// Starts another reporter, without waiting until it is ready.
    pub fn another_reporter(&mut self) -> Result<()> {
        self.reporters.push(Reporter::start(&self.flags)?);
        Ok(())
    }

    /// Ends the traffic a little later, and waits for its results.
    ///
    /// Every id that was answered `ok` must be in a record, and every callback at its endpoint. No
    /// window may be missing, no count too high, no correction reverted.
    pub async fn finish(self, kafka: &Kafka) -> Result<Answers> {
        sleep(Duration::from_secs(2)).await;
        self.sent.stop.store(true, Ordering::Relaxed);
        self.client.await?;
        let answers = self.sent.answers().clone();
        let possible = answers.ok..=answers.ok + answers.others.len();
        let end = clock::current_window(self.site.length).to_string();
        let counted = wait::until("each id in a record", LATER, || async {
            let last = last(&kafka.read_all(&self.topic).await.ok()?)?;
            (last.contains_key(&end) && total(&last) >= *possible.start()).then_some(())
        });
        let log = || {
            self.reporters
                .iter()
                .map(|reporter| reporter.process().log())
                .collect::<String>()
        };
        counted.await.with_context(|| format!("{answers:?}\n{}", log()))?;
        wait::until("each callback", LATER, || async {
            let reached = |path: &String| !self.sink.received_at(path).is_empty();
            answers.callbacks.iter().all(reached).then_some(())
        })
        .await
        .with_context(log)?;
        // Wait, so that any double count would be visible.
        sleep(Duration::from_secs(2)).await;
        let records = kafka.read_all(&self.topic).await?;
        assert_in_order(&self.site, &records);
        let counted = total(&last(&records).context("a count")?);
        ensure!(
            possible.contains(&counted),
            "{counted} counted, of {possible:?}: {records:#?}"
        );
        Ok(answers)
    }
}

/// Asserts that no window is missing between the first and the last.
///
/// Revisions and counts of a window only grow.
#[track_caller]
pub fn assert_in_order(site: &Site, records: &[Record]) {
    let mut windows = BTreeMap::new();
    for record in records {
        let revision: u64 = record.header("revision").parse().expect("a revision");
        let count: u64 = record.value.parse().expect("a count");
        let before = windows.insert(window_of(site, &record.key), (revision, count));
        let grows = before.is_none_or(|(before, counted)| revision >= before && count >= counted);
        assert!(grows, "{record:?} after {before:?}: {records:#?}");
    }
    let found: Vec<_> = windows.into_keys().collect();
    for pair in found.windows(2) {
        assert_eq!(pair[0].next(), pair[1], "a window is missing: {records:#?}");
    }
}

/// Returns the last count of each window, by key.
fn last(records: &[Record]) -> Option<BTreeMap<String, usize>> {
    records
        .iter()
        .map(|record| Some((record.key.clone(), record.value.parse().ok()?)))
        .collect()
}

fn total(last: &BTreeMap<String, usize>) -> usize {
    last.values().sum()
}

impl Answers {
    /// Returns whether every id was answered `ok`.
    pub fn all_ok(&self) -> bool {
        self.ok > 0 && self.others.is_empty() && self.refused == 0
    }
}

impl Sent {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, answer: Result<Response>, callback: Option<String>) {
        let mut answers = self.answers();
        match answer {
            Ok(response) if response.status == 200 => {
                answers.ok += 1;
                answers.callbacks.extend(callback);
            }
            Ok(response) => answers.others.push(format!("{} {}", response.status, response.text())),
            Err(error) => answers.others.push(format!("{error:#}")),
        }
    }
}

/// Sends one id after the other until it is stopped.
async fn send(host: SocketAddr, sink: String, sent: Arc<Sent>) {
    for id in 0.. {
        if sent.stop.load(Ordering::Relaxed) {
            return;
        }
        let callback = (id % CALLED_BACK == 0).then(|| format!("/{id}"));
        let endpoint = callback
            .as_ref()
            .map(|path| format!("&endpoint={sink}{path}"))
            .unwrap_or_default();
        match Connection::open(host).await {
            Ok(mut connection) => {
                let answer = connection.get(&format!("/api/verve/accept?id={id}{endpoint}")).await;
                sent.note(answer, callback);
            }
            Err(_) => sent.answers().refused += 1,
        }
        sleep(PAUSE).await;
    }
}
