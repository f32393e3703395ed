//! Publishes records to Kafka by a transactional producer.
//!
//! Of two replicas that both believe they hold the lease, only one can publish. Each leader begins
//! a [`Session`] with its own producer. When it begins, the broker starts to refuse every older
//! producer of the same transactional id, including the records in that producer's buffers: a
//! replica that wakes from a pause publishes nothing. Without transactions (`--kafka-transactions
//! false`), nothing ensures this.

mod shared;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::runtime::Handle;
use verve_protocol::{CounterName, WindowLengths, WindowRecord};

use crate::health::{Dependency, Health};
use crate::metrics::Metrics;
pub use shared::SharedSession;

/// How long to wait until acknowledged records are cleaned up.
/// This is usually immediate. If not, the commit waits for it, but takes longer.
const CLEANED_UP_WITHIN: Duration = Duration::from_millis(100);
/// The timeout for probing whether Kafka is reachable.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout for the beginning of a session, which each publishing tries again.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where records go.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// Without brokers, counts are only logged.
    pub brokers: Option<String>,
    pub topic: String,
    /// The lengths of windows, by which the keys of records are formed.
    pub lengths: WindowLengths,
    /// The transactional id: of all producers with it, only the latest can publish.
    /// Without one there are no transactions, and a replica that was paused may publish outdated
    /// records.
    pub transactional_id: Option<String>,
    /// librdkafka settings. They may contain passwords.
    pub options: Vec<(String, String)>,
    /// The timeout for the acknowledgement of records, and again for their transaction.
    /// Both together are shorter than the time that a stopped reporter has. Records that are not
    /// acknowledged stay due and are sent again.
    pub delivery: Duration,
}

/// Publishes records.
/// Without brokers it drops them, since every count is logged anyway.
#[derive(Clone)]
pub struct Publisher(Option<Kafka>);

#[derive(Clone)]
struct Kafka {
    config: ClientConfig,
    /// Only probes whether Kafka is reachable.
    /// It is a consumer, because brokers may create a topic that a producer looks for.
    asking: Arc<BaseConsumer<Quiet>>,
    topic: Arc<str>,
    lengths: WindowLengths,
    transactions: bool,
    delivery: Duration,
    dependency: Dependency,
    /// What failed last.
    /// While it is not empty, Kafka does not count as reachable, even if it answers other requests.
    failing: Arc<Mutex<BTreeSet<Doing>>>,
    metrics: Metrics,
}

/// Where records are published.
pub trait Sessions: Clone + Send + Sync + 'static {
    /// The session type that publishes.
    type Session: Publish;

    /// Returns a session for a replica that has just acquired the lease.
    fn session(&self) -> Self::Session;
}

/// A record of a counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CounterRecord {
    /// The name of the counter, if it has one.
    pub counter: Option<CounterName>,
    /// What is published of its window.
    pub record: WindowRecord,
}

/// Publishes for one holder of the lease.
pub trait Publish: Send {
    /// Begins the session, so that Kafka refuses what older sessions still send.
    /// The lease must be checked after that and before publishing: a session that holds the lease
    /// then is fenced before the next holder publishes.
    fn begin(&mut self) -> impl Future<Output = Result<Begun, Unpublished>> + Send;

    /// Publishes records in order, all or none, and waits for the acknowledgement.
    /// After a failure, the session must be begun again.
    fn publish(&mut self, records: &[CounterRecord]) -> impl Future<Output = Result<(), Unpublished>> + Send;
}

/// A session of a [`Publisher`].
pub struct Session {
    kafka: Option<Kafka>,
    producer: Option<FutureProducer<Quiet>>,
}

/// An operation of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    Beginning,
    Publishing,
}

/// When a session began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// In this call.
    Now,
    /// Before this call, or there is no Kafka.
    Before,
}

/// Why records are not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpublished {
    /// Kafka is unreachable. It may have the records nevertheless.
    Away,
    /// Another replica has begun a session after this one.
    Fenced,
}

/// Logs the messages of librdkafka as debug messages only.
/// librdkafka repeats them while a broker is unreachable. `Dependency` logs what matters of them.
#[derive(Clone)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!("librdkafka: {facility} {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

impl KafkaConfig {
    /// Returns the settings of any Kafka client, including a consumer.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "verve-reporter");
        if let Some(brokers) = &self.brokers {
            client.set("bootstrap.servers", brokers);
        }
        // A window's record is alone, so there is no batch to wait for.
        client.set("linger.ms", "0");
        client.set("reconnect.backoff.max.ms", "1000");
        for (key, value) in &self.options {
            client.set(key, value);
        }
        client
    }

    /// Returns the settings of a producer.
    pub fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        if client.get("partitioner").is_none() {
            // Java's clients use this one, so that a search for a key reads the right partition.
            client.set("partitioner", "murmur2_random");
        }
        // The guarantees depend on these settings: set them last, so that no option overrides them.
        client.set("enable.idempotence", "true");
        client.set("acks", "all");
        client.set("message.timeout.ms", self.delivery.as_millis().to_string());
        if let Some(id) = &self.transactional_id {
            client.set("transactional.id", id);
        }
        client
    }

    /// Checks the settings, and names the one that librdkafka refuses.
    /// librdkafka's own message shows the value, which may be a password.
    pub fn check(&self) -> Result<(), String> {
        let mut producer = self.producer();
        // librdkafka checks the values when a producer is created. Without brokers it does not
        // connect.
        producer.remove("bootstrap.servers");
        match producer.create_with_context::<_, FutureProducer<Quiet>>(Quiet) {
            Ok(_) => Ok(()),
            Err(KafkaError::ClientConfig(_, problem, key, _)) => {
                let problem = if problem.contains("No such") {
                    "no such setting"
                } else {
                    "not a valid value"
                };
                Err(format!("{key}: {problem} (see librdkafka's CONFIGURATION.md)"))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Publisher {
    /// Creates a publisher to the configured brokers, which need not be reachable yet.
    pub fn new(config: &KafkaConfig, health: &Arc<Health>, metrics: &Metrics) -> anyhow::Result<Self> {
        let Some(brokers) = &config.brokers else {
            return Ok(Self(None));
        };
        let client = config.producer();
        let asking = (config.client().create_with_context(Quiet))
            .with_context(|| format!("cannot set up the Kafka client for {brokers}"))?;
        let dependency = Dependency::new(format!("Kafka {brokers}"), health);
        Ok(Self(Some(Kafka {
            config: client,
            asking: Arc::new(asking),
            topic: config.topic.as_str().into(),
            transactions: config.transactional_id.is_some(),
            lengths: config.lengths.clone(),
            delivery: config.delivery,
            dependency,
            failing: Arc::default(),
            metrics: metrics.clone(),
        })))
    }

    /// Returns a publisher that drops all records.
    #[cfg(test)]
    pub const fn without_kafka() -> Self {
        Self(None)
    }

    /// Probes whether Kafka is reachable.
    pub async fn ping(&self) {
        let Some(kafka) = self.0.clone() else { return };
        let asked = tokio::task::spawn_blocking(move || {
            // The poll renews a token. The messages that it returns are not needed.
            let _ = kafka.asking.poll(Duration::ZERO);
            let answer = kafka.asking.client().fetch_metadata(Some(&kafka.topic), PING_TIMEOUT);
            match answer {
                Ok(_) => kafka.answered(),
                Err(error) => kafka.dependency.down(error),
            }
        });
        // The task does not panic.
        let _ = asked.await;
    }
}

impl Sessions for Publisher {
    type Session = Session;

    fn session(&self) -> Session {
        Session {
            kafka: self.0.clone(),
            producer: None,
        }
    }
}

impl Publish for Session {
    async fn begin(&mut self) -> Result<Begun, Unpublished> {
        let (Some(kafka), None) = (self.kafka.clone(), &self.producer) else {
            return Ok(Begun::Before);
        };
        let begun = blocking(move || {
            let producer: FutureProducer<Quiet> = kafka.config.create_with_context(Quiet)?;
            if kafka.transactions {
                let begun = producer.init_transactions(BEGIN_TIMEOUT);
                begun.map_err(|error| cause(&producer, error))?;
            }
            Ok(producer)
        });
        let begun = self.judge(begun.await);
        self.set_failing(Doing::Beginning, begun.as_ref().err() == Some(&Unpublished::Away));
        self.producer = Some(begun?);
        self.kafka.iter().for_each(Kafka::answered);
        Ok(Begun::Now)
    }

    async fn publish(&mut self, records: &[CounterRecord]) -> Result<(), Unpublished> {
        let Some(kafka) = self.kafka.clone() else { return Ok(()) };
        let Some(producer) = self.producer.take() else {
            return Err(Unpublished::Away);
        };
        let records = records.to_vec();
        // A failed producer cannot be used again. The next one ends its transaction when it begins.
        let published = blocking(move || {
            let start = Instant::now();
            let transacted = kafka.transact(&producer, &records);
            kafka.metrics.kafka_publish.observe(start.elapsed().as_secs_f64());
            match transacted {
                Ok(()) => Ok(producer),
                Err(error) => Err(cause(&producer, error)),
            }
        });
        let published = self.judge(published.await);
        self.set_failing(Doing::Publishing, published.as_ref().err() == Some(&Unpublished::Away));
        self.kafka.iter().for_each(Kafka::answered);
        self.producer = Some(published?);
        Ok(())
    }
}

impl Session {
    fn set_failing(&self, doing: Doing, failing: bool) {
        if let Some(kafka) = &self.kafka {
            let mut all = kafka.failing.lock().unwrap_or_else(PoisonError::into_inner);
            if failing {
                all.insert(doing);
            } else {
                all.remove(&doing);
            }
        }
    }

    fn judge<T>(&self, result: KafkaResult<T>) -> Result<T, Unpublished> {
        let error = match result {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch,
            ) => {
                tracing::warn!("Kafka takes records from another replica now: giving up the lease");
                self.failed("fenced");
                Err(Unpublished::Fenced)
            }
            _ => {
                self.failed("away");
                self.kafka.iter().for_each(|kafka| kafka.dependency.down(&error));
                Err(Unpublished::Away)
            }
        }
    }

    fn failed(&self, reason: &str) {
        self.kafka.iter().for_each(|kafka| kafka.metrics.kafka_error(reason));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The next session finds out whether Kafka works.
        for doing in [Doing::Beginning, Doing::Publishing] {
            self.set_failing(doing, false);
        }
        if let Some(producer) = self.producer.take() {
            // Dropping a producer blocks until its threads have ended.
            drop(tokio::task::spawn_blocking(move || drop(producer)));
        }
    }
}

impl Kafka {
    /// Notes that Kafka answered a request.
    fn answered(&self) {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.is_empty() {
            self.dependency.up();
        }
    }

    /// Publishes records in one transaction or, without transactions, one by one.
    /// Waits for every acknowledgement, and fails if one failed.
    fn transact(&self, producer: &FutureProducer<Quiet>, records: &[CounterRecord]) -> KafkaResult<()> {
        if self.transactions {
            producer.begin_transaction()?;
        }
        let queued = records.iter().map(|CounterRecord { counter, record }| {
            let counter = counter.as_ref();
            let (key, value) = (record.key(counter, &self.lengths), record.value());
            let headers = headers(&record.headers(counter));
            let message = FutureRecord::to(&self.topic).key(&key).payload(&value).headers(headers);
            producer.send_result(message).map_err(|(error, _)| error)
        });
        let queued: Vec<_> = queued.collect::<KafkaResult<_>>()?;
        // The commit would wait for these as well, and for acknowledged records that are not
        // cleaned up yet, but it checks only every 100 ms.
        for delivery in queued {
            let delivered = Handle::current().block_on(delivery).map_err(|_| KafkaError::Canceled)?;
            delivered.map_err(|(error, _)| error)?;
        }
        if self.transactions {
            let begin = Instant::now();
            while producer.in_flight_count() > 0 && begin.elapsed() < CLEANED_UP_WITHIN {
                std::thread::sleep(Duration::from_millis(1));
            }
            producer.commit_transaction(self.delivery)?;
        }
        Ok(())
    }
}

fn headers(headers: &[(&str, String)]) -> OwnedHeaders {
    let none = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(none, |headers, (key, value)| {
        let value = Some(value);
        headers.insert(Header { key, value })
    })
}

/// Returns why the producer failed: its fatal error, or else its last one.
fn cause(producer: &FutureProducer<Quiet>, error: KafkaError) -> KafkaError {
    match producer.client().fatal_error() {
        Some((code, _)) => KafkaError::Global(code),
        None => error,
    }
}

/// Runs blocking work outside the async tasks.
/// The work runs to its end even if the caller no longer waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> KafkaResult<T> + Send + 'static) -> KafkaResult<T> {
    // The task does not panic.
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(KafkaError::Canceled))
}
