//! The records: an idempotent producer that waits for all in-sync replicas.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use verve_protocol::WindowRecord;

use crate::cli::{Config, KafkaConfig};
use crate::health::{Dependency, Health};

/// For the acknowledgement of a record. A record that is not acknowledged stays due and is sent again.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to whether Kafka is there.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Publishes records; without brokers it accepts them silently, since every count is logged anyway.
#[derive(Clone)]
pub struct Publisher(Option<Kafka>);

#[derive(Clone)]
struct Kafka {
    producer: FutureProducer<Quiet>,
    topic: Arc<str>,
    dependency: Dependency,
}

/// librdkafka repeats itself for as long as a broker is away; what matters of it is said by `Dependency`.
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

impl KafkaConfig {
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "verve-reporter");
        if let Some(brokers) = &self.brokers {
            client.set("bootstrap.servers", brokers);
        }
        // A window's record is alone: nothing to wait for.
        client.set("linger.ms", "0");
        client.set("reconnect.backoff.max.ms", "1000");
        for (key, value) in &self.options {
            client.set(key, value);
        }
        // What the guarantees rest on comes last, so that no option undoes it.
        client.set("enable.idempotence", "true");
        client.set("acks", "all");
        client.set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string());
        client
    }

    /// Says which setting librdkafka refuses. Its own message shows the value, which may be a password.
    pub fn check(&self) -> Result<(), String> {
        match self.client().create_native_config() {
            Ok(_) => Ok(()),
            Err(KafkaError::ClientConfig(_, problem, key, _)) => {
                let problem = if problem.contains("No such") {
                    "no such setting"
                } else {
                    "not a valid value"
                };
                Err(format!(
                    "--kafka-option {key}: {problem} (see librdkafka's CONFIGURATION.md)"
                ))
            }
            Err(error) => Err(format!("--kafka-option: {error}")),
        }
    }
}

impl Publisher {
    /// A publisher to the configured brokers, which need not be there yet.
    pub fn new(config: &Config, health: &Arc<Health>) -> anyhow::Result<Self> {
        let Some(brokers) = &config.kafka.brokers else {
            return Ok(Self(None));
        };
        let producer = config
            .kafka
            .client()
            .create_with_context(Quiet)
            .with_context(|| format!("cannot set up the Kafka producer for {brokers}"))?;
        let dependency = Dependency::new(format!("Kafka {brokers}"), health);
        Ok(Self(Some(Kafka {
            producer,
            topic: config.kafka.topic.as_str().into(),
            dependency,
        })))
    }

    /// Sends records in their order and waits for all acknowledgements. Says how many, from the first on, are acknowledged.
    pub async fn publish(&self, records: &[WindowRecord]) -> usize {
        let Some(kafka) = &self.0 else { return records.len() };
        let acknowledged = future::join_all(records.iter().map(|record| kafka.send(record))).await;
        let failed = acknowledged.iter().position(Result::is_err);
        match failed.map(|i| &acknowledged[i]) {
            Some(Err(error)) => kafka.dependency.down(error),
            _ => kafka.dependency.up(),
        }
        failed.unwrap_or(records.len())
    }

    /// Asks Kafka whether it is there.
    pub async fn ping(&self) {
        let Some(kafka) = self.0.clone() else { return };
        let asked = tokio::task::spawn_blocking(move || {
            let answer = kafka.producer.client().fetch_metadata(Some(&kafka.topic), PING_TIMEOUT);
            match answer {
                Ok(_) => kafka.dependency.up(),
                Err(error) => kafka.dependency.down(error),
            }
        });
        // It does not panic.
        let _ = asked.await;
    }
}

impl Kafka {
    async fn send(&self, record: &WindowRecord) -> Result<(), KafkaError> {
        let (key, value) = (record.key(), record.value());
        let headers = record.headers();
        let headers = headers.iter().fold(
            OwnedHeaders::new_with_capacity(headers.len()),
            |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(value),
                })
            },
        );
        let message = FutureRecord::to(&self.topic).key(&key).payload(&value).headers(headers);
        let sent = self.producer.send(message, Timeout::After(DELIVERY_TIMEOUT)).await;
        sent.map(drop).map_err(|(error, _)| error)
    }
}
