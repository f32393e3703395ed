//! The view of a consumer of the topic: the records of each window.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;
use verve_protocol::Window;
use verve_tests::clock;
use verve_tests::kafka::{Kafka, Record, Records};

use crate::site::Site;

/// A test's own topic, and all records read from it.
pub struct Ledger {
    pub kafka: &'static Kafka,
    pub topic: String,
    records: Records,
    read: Vec<Record>,
}

impl Ledger {
    /// Creates the topic, with one partition, so that all records are ordered.
    pub async fn new() -> Result<Self> {
        let kafka = Kafka::for_tests()?;
        let topic = clock::unique("windows");
        kafka.create_topic(&topic, 1).await?;
        let records = kafka.consume(&topic).await?;
        Ok(Self {
            kafka,
            topic,
            records,
            read: Vec::new(),
        })
    }

    /// Returns the flags of a reporter of `site` that publishes here, plus `more`.
    pub fn flags(&self, site: &Site, more: &[&str]) -> Vec<String> {
        let mut flags = vec!["--kafka-brokers", self.kafka.brokers(), "--kafka-topic", &self.topic];
        flags.extend(more);
        site.flags(&flags)
    }

    /// Returns all records read so far, in the order of the topic.
    pub fn read(&self) -> &[Record] {
        &self.read
    }

    /// Returns the last record of each key, which is the valid one.
    pub fn last(&self) -> BTreeMap<&str, &Record> {
        self.read.iter().map(|record| (record.key.as_str(), record)).collect()
    }

    /// Returns the records of one window, in order.
    pub fn of(&self, window: Window) -> Vec<&Record> {
        let key = window.to_string();
        self.read.iter().filter(|record| record.key == key).collect()
    }

    /// Continues to read until `enough` returns true.
    pub async fn read_until(&mut self, timeout: Duration, enough: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !enough(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.records.next(left).await {
                Some(record) => self.read.push(record),
                None => bail!("not enough in the topic after {timeout:?}:\n{self}"),
            }
        }
        Ok(())
    }

    /// Continues to read until `window` has been reported `times` times.
    pub async fn read_to(&mut self, window: Window, times: usize, timeout: Duration) -> Result<()> {
        self.read_until(timeout, |ledger| ledger.of(window).len() >= times)
            .await
    }

    /// Continues to read for this long.
    pub async fn read_for(&mut self, time: Duration) {
        // Never enough, so this ends at its timeout.
        let _ = self.read_until(time, |_| false).await;
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read
            .iter()
            .try_for_each(|r| writeln!(f, "{} = {} {:?}", r.key, r.value, r.headers))
    }
}

/// Returns the windows from `first` to `last`, both included.
pub fn windows(first: Window, last: Window) -> Vec<Window> {
    let mut all = vec![first];
    while let Some(window) = all.last().filter(|w| **w < last) {
        all.push(window.next());
    }
    all
}

/// Asserts that the records are of consecutive windows, each reported once.
///
/// Returns their values.
#[track_caller]
pub fn values_in_order(site: &Site, records: &[Record]) -> Vec<String> {
    let mut expected = None;
    for record in records {
        let start = record.key.clone();
        if let Some(expected) = expected {
            assert_eq!(start, format!("{expected}"), "records out of order: {records:#?}");
        }
        assert_eq!(record.header("revision"), "0", "{record:?}");
        expected = Some(window_of(site, &start).next());
    }
    records.iter().map(|record| record.value.clone()).collect()
}

/// Returns the window of a record's key.
#[track_caller]
pub fn window_of(site: &Site, key: &str) -> Window {
    // The time need not be parsed: all windows here are recent.
    let mut window = clock::current_window(site.length);
    for _ in 0..1000 {
        if window.to_string() == key {
            return window;
        }
        window = window.previous().expect("not 1970");
    }
    panic!(
        "{key} is the key of no window of the last {} s",
        1000 * site.length.seconds()
    );
}
