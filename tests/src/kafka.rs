//! Kafka: a broker to write to, and a consumer that reads everything in a topic.
//!
//! There are three kinds of broker:
//!
//! - Tests use the broker that `KAFKA_BROKERS` names. `cargo xtask test` starts a real Apache Kafka
//!   and sets the variable.
//! - Without it, they use the broker embedded in librdkafka, in this process.
//! - Tests that stop and restart a broker start a real one of their own.

use std::env;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaErrorCode, RDKafkaRespErr};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::process::{OnLine, Process};
use crate::{paths, wait};

mod records;

pub use records::{Record, Records};

/// How long a broker may take to start, and a topic to appear.
const PATIENCE: Duration = Duration::from_secs(90);

/// A Kafka broker. Dropping it ends it, unless it already ran before.
pub struct Kafka {
    brokers: String,
    kind: Kind,
}

enum Kind {
    /// The broker embedded in librdkafka. It lives as long as its client.
    Embedded(Box<BaseProducer>),
    /// A real broker that this value started.
    Real(Process),
    /// A real broker that runs outside of the tests.
    External,
}

impl Kafka {
    /// Starts the broker embedded in librdkafka, in this process.
    ///
    /// # Errors
    /// Fails if librdkafka refuses.
    pub fn embedded() -> Result<Self> {
        let producer: BaseProducer = ClientConfig::new().set("test.mock.num.brokers", "1").create()?;
        let cluster = producer.client().mock_cluster();
        let brokers = cluster.context("the embedded broker")?.bootstrap_servers();
        Ok(Self {
            brokers,
            kind: Kind::Embedded(Box::new(producer)),
        })
    }

    /// Starts a real Apache Kafka with `cargo xtask kafka`, and waits until it answers.
    ///
    /// It listens on `port` of 127.0.0.1. Its data are in `dir`: a broker that starts there again
    /// has them all, however the previous one ended.
    ///
    /// # Errors
    /// Fails if there is no Java, if the broker cannot be downloaded, or if it does not start.
    pub async fn real(port: u16, dir: &Path) -> Result<Self> {
        Self::real_with(port, dir, None).await
    }

    /// Starts a broker as [`Self::real`] does, and passes each line to `on_line`.
    ///
    /// The lines are the output of the broker, and of the program that installs it.
    ///
    /// # Errors
    /// See [`Self::real`].
    pub async fn real_with(port: u16, dir: &Path, on_line: Option<OnLine>) -> Result<Self> {
        Self::launch(port, port, dir, on_line, &[]).await
    }

    /// Starts a broker as [`Self::real`] does, with a second, secure listener.
    ///
    /// Its clients use TLS and a password (SASL_SSL with SCRAM-SHA-512). They connect to
    /// `localhost:secure_port`. `pem` has the certificate and the key of that name. `user` is
    /// `name:password`.
    ///
    /// # Errors
    /// See [`Self::real`].
    pub async fn real_secure(port: u16, dir: &Path, secure_port: u16, pem: &Path, user: &str) -> Result<Self> {
        let pem = pem.display().to_string();
        let secure_port = secure_port.to_string();
        let secure = [
            "--secure-port",
            &secure_port,
            "--secure-pem",
            &pem,
            "--secure-user",
            user,
        ];
        Self::launch(port, port, dir, None, &secure).await
    }

    /// Starts a broker as [`Self::real`] does, which advertises the port `advertised`.
    ///
    /// Clients connect to this port, where a link to the broker listens.
    ///
    /// # Errors
    /// See [`Self::real`].
    pub async fn real_behind(advertised: u16, port: u16, dir: &Path) -> Result<Self> {
        Self::launch(advertised, port, dir, None, &[]).await
    }

    async fn launch(advertised: u16, port: u16, dir: &Path, on_line: Option<OnLine>, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(paths::program("xtask")?);
        let (port, advertised) = (port.to_string(), advertised.to_string());
        command.args(["kafka", "--port", &port, "--advertised-port", &advertised]);
        command.arg("--dir").arg(dir).args(more);
        let kafka = Self {
            brokers: format!("127.0.0.1:{advertised}"),
            kind: Kind::Real(Process::spawn_with("kafka", command, on_line)?),
        };
        kafka.wait_ready(&format!("127.0.0.1:{port}")).await?;
        Ok(kafka)
    }

    /// Returns the broker that all tests share.
    ///
    /// It is the one that `KAFKA_BROKERS` names, or else an embedded one, with a visible warning.
    ///
    /// # Errors
    /// Fails if the named one does not answer, or the embedded one cannot be started.
    pub fn for_tests() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| shared().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Returns its address, for `--kafka-brokers`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Returns whether it is an Apache Kafka, not the embedded broker.
    #[must_use]
    pub const fn is_real(&self) -> bool {
        !matches!(self.kind, Kind::Embedded(_))
    }

    /// Returns the broker's process, if this value started one.
    #[must_use]
    pub const fn process(&self) -> Option<&Process> {
        match &self.kind {
            Kind::Real(process) => Some(process),
            Kind::Embedded(_) | Kind::External => None,
        }
    }

    /// Creates a topic. An existing topic stays unchanged.
    ///
    /// # Errors
    /// Fails if the broker refuses.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        if let Kind::Embedded(producer) = &self.kind {
            let cluster = producer.client().mock_cluster().context("the embedded broker")?;
            return Ok(cluster.create_topic(name, partitions, 1)?);
        }
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for result in admin.create_topics([&topic], &AdminOptions::new()).await? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => bail!("topic {name}: {code}"),
            }
        }
        Ok(())
    }

    /// Returns whether a topic exists, without creating it.
    ///
    /// # Errors
    /// Fails if the broker does not answer.
    pub async fn has_topic(&self, name: &str) -> Result<bool> {
        let (config, name) = (self.client(), name.to_owned());
        spawn_blocking(move || {
            let consumer: BaseConsumer = config.create()?;
            let all = consumer.fetch_metadata(None, PATIENCE)?;
            Ok(all.topics().iter().any(|topic| topic.name() == name))
        })
        .await?
    }

    /// Deletes a topic of a real broker with all its records.
    ///
    /// # Errors
    /// Fails if the broker refuses.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        for result in admin.delete_topics(&[name], &AdminOptions::new()).await? {
            result.map_err(|(_, code)| anyhow!("topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Makes an embedded broker refuse each record, or accept records again.
    ///
    /// The error is that too few replicas would have the record. A real broker answers so when it
    /// has lost replicas, which requires several brokers.
    ///
    /// # Errors
    /// Fails if this is not an embedded broker.
    pub fn set_under_replicated(&self, is: bool) -> Result<()> {
        let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
        self.set_refused(RDKafkaApiKey::Produce, is.then_some(error))
    }

    /// Makes an embedded broker deny transactions to every producer.
    ///
    /// A producer gets the error when it begins to publish in transactions. A real broker answers
    /// so because of its access control lists.
    ///
    /// # Errors
    /// Fails if this is not an embedded broker.
    pub fn forbid_transactions(&self) -> Result<()> {
        let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
        self.set_refused(RDKafkaApiKey::InitProducerId, Some(error))
    }

    fn set_refused(&self, what: RDKafkaApiKey, error: Option<RDKafkaRespErr>) -> Result<()> {
        let Kind::Embedded(producer) = &self.kind else {
            bail!("not an embedded broker");
        };
        let cluster = producer.client().mock_cluster().context("the embedded broker")?;
        cluster.clear_request_errors(what);
        if let Some(error) = error {
            // Each request takes one error, and there are fewer requests than errors.
            cluster.request_errors(what, &[error; 10_000]);
        }
        Ok(())
    }

    /// Reads all partitions of `topic` from their beginning.
    ///
    /// The broker creates the topic if it does not exist.
    ///
    /// # Errors
    /// Fails if the broker does not answer, or has no such topic.
    pub async fn consume(&self, topic: &str) -> Result<Records> {
        self.consumer(topic, self.client()).await.map(Records::new)
    }

    /// Returns the records that are in `topic` now, in order within each partition.
    ///
    /// # Errors
    /// Fails as [`Self::consume`] does, or if the end is not reached within 90 s.
    pub async fn read_all(&self, topic: &str) -> Result<Vec<Record>> {
        let mut config = self.client();
        config.set("enable.partition.eof", "true");
        let records = Records::new(self.consumer(topic, config).await?);
        timeout(PATIENCE, records.to_the_end())
            .await
            .context("the end of the topic")?
    }

    async fn consumer(&self, topic: &str, mut config: ClientConfig) -> Result<StreamConsumer> {
        // The client requires a group name even if it joins no group.
        config.set("group.id", "verve-tests").set("enable.auto.commit", "false");
        config
            .set("allow.auto.create.topics", "true")
            .set("fetch.wait.max.ms", "50");
        let topic = topic.to_owned();
        spawn_blocking(move || {
            let consumer: StreamConsumer = config.create()?;
            let mut all = TopicPartitionList::new();
            for partition in partitions(&consumer, &topic)? {
                all.add_partition_offset(&topic, partition, Offset::Beginning)?;
            }
            consumer.assign(&all)?;
            Ok(consumer)
        })
        .await?
    }

    fn client(&self) -> ClientConfig {
        client(&self.brokers)
    }

    /// Waits until the broker itself answers at `address`, not through a link.
    async fn wait_ready(&self, address: &str) -> Result<()> {
        let log = || self.process().map(Process::log).unwrap_or_default();
        let ready = wait::until("Kafka to answer", 10 * PATIENCE, || async {
            if let Some(status) = self.process().and_then(Process::exit_status) {
                return Some(Err(status));
            }
            // Ask only if the port is open: before, `xtask kafka` may install Kafka for minutes.
            tokio::net::TcpStream::connect(address).await.ok()?;
            answers(address, Duration::from_secs(2)).ok().map(Ok)
        });
        match ready.await.with_context(|| format!("its log:\n{}", log()))? {
            Ok(()) => Ok(()),
            Err(status) => bail!("Kafka ended: {status}; its log:\n{}", log()),
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    // The client must find a restarting broker again soon.
    config
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "500");
    config
}

fn answers(brokers: &str, timeout: Duration) -> Result<()> {
    let client: BaseConsumer = client(brokers).create()?;
    let metadata = client.fetch_metadata(None, timeout)?;
    metadata.brokers().first().map(drop).context("no broker")
}

fn shared() -> Result<Kafka> {
    if let Some(brokers) = env::var("KAFKA_BROKERS").ok().filter(|brokers| !brokers.is_empty()) {
        let kafka = Kafka {
            brokers,
            kind: Kind::External,
        };
        answers(&kafka.brokers, PATIENCE).with_context(|| format!("KAFKA_BROKERS={}", kafka.brokers))?;
        return Ok(kafka);
    }
    // Written to standard error directly: the test harness hides what passing tests print.
    let _ = writeln!(
        std::io::stderr(),
        "\nTHE KAFKA TESTS RUN ON THE EMBEDDED BROKER, NOT ON A REAL KAFKA (KAFKA_BROKERS IS NOT SET)\n"
    );
    Kafka::embedded()
}

fn partitions(consumer: &StreamConsumer, topic: &str) -> Result<Vec<i32>> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        // The broker creates the topic on the first request. A later request returns it.
        if let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)) {
            let found = metadata
                .topics()
                .iter()
                .find(|t| t.name() == topic && t.error().is_none());
            let ids: Vec<i32> = found
                .map(|t| t.partitions().iter().map(|p| p.id()).collect())
                .unwrap_or_default();
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        if std::time::Instant::now() >= deadline {
            bail!("the broker has no topic {topic}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rdkafka::producer::{FutureProducer, FutureRecord};

    use super::*;
    use crate::net;

    const SOON: Duration = Duration::from_secs(30);

    async fn produce(kafka: &Kafka, topic: &str, key: &str, value: &str) {
        let producer: FutureProducer = kafka.client().create().expect("a producer");
        let header = rdkafka::message::Header {
            key: "revision",
            value: Some("0"),
        };
        let headers = rdkafka::message::OwnedHeaders::new().insert(header);
        let record = FutureRecord::to(topic).key(key).payload(value).headers(headers);
        producer.send(record, SOON).await.expect("acknowledged");
    }

    async fn all(records: &Records, count: usize) -> Vec<(String, String)> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let record = records.next(SOON).await.expect("a record");
            assert_eq!(record.header("revision"), "0");
            seen.push((record.key, record.value));
        }
        seen
    }

    #[tokio::test]
    async fn the_embedded_broker_returns_what_it_received() {
        let kafka = Kafka::embedded().expect("a broker");
        assert!(!kafka.is_real());
        kafka.create_topic("t", 3).await.expect("a topic");
        let records = kafka.consume("t").await.expect("a consumer");
        produce(&kafka, "t", "k", "1").await;
        assert_eq!(all(&records, 1).await, [("k".to_owned(), "1".to_owned())]);
        assert_eq!(records.next(Duration::from_millis(100)).await, None);
    }

    /// Run manually: `cargo test --release -p verve-tests --lib -- --ignored`.
    #[tokio::test]
    #[ignore = "starts a real Kafka twice"]
    async fn a_real_broker_keeps_its_records_when_it_is_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let port = net::free_address().expect("a port").port();
        let kafka = Kafka::real(port, folder.path()).await.expect("a broker");
        kafka.create_topic("t", 1).await.expect("a topic");
        kafka.create_topic("t", 1).await.expect("the same topic");
        produce(&kafka, "t", "before", "1").await;
        let records = kafka.consume("t").await.expect("a consumer");
        assert_eq!(all(&records, 1).await, [("before".to_owned(), "1".to_owned())]);
        drop(kafka);

        let kafka = Kafka::real(port, folder.path()).await.expect("the broker again");
        produce(&kafka, "t", "after", "2").await;
        // The consumer from before has reconnected to the broker.
        assert_eq!(all(&records, 1).await, [("after".to_owned(), "2".to_owned())]);
        let again = kafka.consume("t").await.expect("a consumer");
        assert_eq!(all(&again, 2).await[0], ("before".to_owned(), "1".to_owned()));
        // This topic was not created before.
        kafka.consume("of-itself").await.expect("a topic created by the broker");
        assert!(fs::read_dir(folder.path()).expect("the folder").count() > 0);
    }
}
