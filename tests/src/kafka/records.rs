//! The records of a topic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use tokio::time::{Instant, sleep, timeout_at};

/// The records of a topic, old and new.
pub struct Records {
    consumer: StreamConsumer,
}

impl Records {
    /// Reads with `consumer`, which already has its partitions assigned.
    pub(super) const fn new(consumer: StreamConsumer) -> Self {
        Self { consumer }
    }

    /// Returns all records up to the current end of each partition.
    ///
    /// The client must report these ends (`enable.partition.eof`).
    pub(super) async fn to_the_end(&self) -> Result<Vec<Record>> {
        let partitions = self.consumer.assignment()?.count();
        let (mut records, mut ended) = (Vec::new(), BTreeSet::new());
        while ended.len() < partitions {
            match self.consumer.recv().await {
                Ok(message) => records.push(Record::from(&message)),
                Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(records)
    }

    /// Returns the next record, or `None` if there is none within `timeout`.
    ///
    /// The records of a partition arrive in order.
    pub async fn next(&self, timeout: Duration) -> Option<Record> {
        let deadline = Instant::now() + timeout;
        loop {
            match timeout_at(deadline, self.consumer.recv()).await {
                Ok(Ok(message)) => return Some(Record::from(&message)),
                // The client retries on its own: an unreachable broker may become reachable again.
                Ok(Err(_)) => sleep(Duration::from_millis(20)).await,
                Err(_) => return None,
            }
        }
    }
}

/// A record of the topic, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key; empty if there is none.
    pub key: String,
    /// The value; empty if there is none.
    pub value: String,
    /// The headers by name.
    pub headers: BTreeMap<String, String>,
    /// The partition it is in.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// When it was produced, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Record {
    /// Returns a header's value; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl From<&BorrowedMessage<'_>> for Record {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers.map(|h| (h.key.to_owned(), text(h.value))).collect(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        }
    }
}
