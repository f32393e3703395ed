//! Kafka: a broker to write to, and a consumer that sees everything in a topic.
//!
//! There are three kinds. Tests use the one that `KAFKA_BROKERS` names (`cargo xtask test` starts a real Apache Kafka and
//! sets it); where none can be had they use the broker that librdkafka carries, in this process. Tests that stop and
//! restart a broker start a real one of their own.

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

/// A Kafka broker. Dropping it ends it, unless it was there before us.
pub struct Kafka {
    brokers: String,
    kind: Kind,
}

enum Kind {
    /// librdkafka's own broker; it lives as long as the client it came with.
    Embedded(Box<BaseProducer>),
    /// A real one that we started.
    Real(Process),
    /// A real one that somebody else keeps running.
    External,
}

impl Kafka {
    /// Starts librdkafka's own broker, inside this process.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn embedded() -> Result<Self> {
        let producer: BaseProducer = ClientConfig::new().set("test.mock.num.brokers", "1").create()?;
        let cluster = producer.client().mock_cluster();
        let brokers = cluster.context("the embedded broker")?.bootstrap_servers();
        Ok(Self {
            brokers,
            kind: Kind::Embedded(Box::new(producer)),
        })
    }

    /// Starts a real Apache Kafka on `port` of 127.0.0.1 by `cargo xtask kafka`, and waits until it answers. Its data are
    /// in `dir`: a broker started there again, after whatever end, has them all.
    ///
    /// # Errors
    /// When there is no Java, the broker cannot be fetched, or it does not come up.
    pub async fn real(port: u16, dir: &Path) -> Result<Self> {
        Self::real_with(port, dir, None).await
    }

    /// The same, and `on_line` is called with each line that the broker, or what installs it, writes.
    ///
    /// # Errors
    /// As [`Self::real`].
    pub async fn real_with(port: u16, dir: &Path, on_line: Option<OnLine>) -> Result<Self> {
        Self::launch(port, port, dir, on_line, &[]).await
    }

    /// The same, and there is a second listener, for clients with TLS and a password (SASL_SSL with SCRAM-SHA-512). They connect to
    /// `localhost:secure_port`; `pem` has that name's certificate and key; `user` is `name:password`.
    ///
    /// # Errors
    /// As [`Self::real`].
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

    /// The same, and clients are told to connect to the port `advertised`, where a link to the broker listens.
    ///
    /// # Errors
    /// As [`Self::real`].
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

    /// The broker that all tests share: the one that `KAFKA_BROKERS` names, or else an embedded one, which is said aloud.
    ///
    /// # Errors
    /// When the named one does not answer, or the embedded one cannot be started.
    pub fn for_tests() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| shared().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Its address, for `--kafka-brokers`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Whether it is an Apache Kafka, and not the embedded broker.
    #[must_use]
    pub const fn is_real(&self) -> bool {
        !matches!(self.kind, Kind::Embedded(_))
    }

    /// The broker's process, if we started one.
    #[must_use]
    pub const fn process(&self) -> Option<&Process> {
        match &self.kind {
            Kind::Real(process) => Some(process),
            Kind::Embedded(_) | Kind::External => None,
        }
    }

    /// Creates a topic. One that is there already stays as it is.
    ///
    /// # Errors
    /// When the broker refuses.
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

    /// Whether there is such a topic. This does not create it.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn has_topic(&self, name: &str) -> Result<bool> {
        let (config, name) = (self.client(), name.to_owned());
        spawn_blocking(move || {
            let consumer: BaseConsumer = config.create()?;
            let all = consumer.fetch_metadata(None, PATIENCE)?;
            Ok(all.topics().iter().any(|topic| topic.name() == name))
        })
        .await?
    }

    /// Deletes a topic of a real broker, and all its records.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        for result in admin.delete_topics(&[name], &AdminOptions::new()).await? {
            result.map_err(|(_, code)| anyhow!("topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Has an embedded broker say of every record that too few replicas would have it, or else take records again. A real one says so
    /// when it has lost replicas, which takes several brokers.
    ///
    /// # Errors
    /// When this is no embedded broker.
    pub fn set_under_replicated(&self, is: bool) -> Result<()> {
        let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
        self.set_refused(RDKafkaApiKey::Produce, is.then_some(error))
    }

    /// Has an embedded broker say to whoever begins to publish in transactions that they are not for him. A real one says so by its
    /// access control lists.
    ///
    /// # Errors
    /// When this is no embedded broker.
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
            // One for each request, and more of them than there will be.
            cluster.request_errors(what, &[error; 10_000]);
        }
        Ok(())
    }

    /// Reads all partitions of `topic` from their beginning. A topic that is not there is created by the broker.
    ///
    /// # Errors
    /// When the broker does not answer, or has no such topic.
    pub async fn consume(&self, topic: &str) -> Result<Records> {
        self.consumer(topic, self.client()).await.map(Records::new)
    }

    /// The records that are in `topic` now, in order within each partition.
    ///
    /// # Errors
    /// As [`Self::consume`], or when the end is not reached within 90 s.
    pub async fn read_all(&self, topic: &str) -> Result<Vec<Record>> {
        let mut config = self.client();
        config.set("enable.partition.eof", "true");
        let records = Records::new(self.consumer(topic, config).await?);
        timeout(PATIENCE, records.to_the_end())
            .await
            .context("the end of the topic")?
    }

    async fn consumer(&self, topic: &str, mut config: ClientConfig) -> Result<StreamConsumer> {
        // The client wants a group's name even where it joins none.
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

    /// Waits until the broker itself, at `address`, answers.
    async fn wait_ready(&self, address: &str) -> Result<()> {
        let log = || self.process().map(Process::log).unwrap_or_default();
        let ready = wait::until("Kafka to answer", 10 * PATIENCE, || async {
            if let Some(status) = self.process().and_then(Process::exit_status) {
                return Some(Err(status));
            }
            // Asked only where somebody listens: `xtask kafka` may be installing for minutes.
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
    // A broker that is being restarted is looked for again soon.
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
    // Past the test harness, which keeps what passing tests print to itself.
    let _ = writeln!(
        std::io::stderr(),
        "\nTHE KAFKA TESTS RUN ON THE EMBEDDED BROKER, NOT ON A REAL KAFKA (KAFKA_BROKERS IS NOT SET)\n"
    );
    Kafka::embedded()
}

fn partitions(consumer: &StreamConsumer, topic: &str) -> Result<Vec<i32>> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        // The first request makes the broker create the topic; a later one sees it.
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
    async fn the_embedded_broker_gives_back_what_it_got() {
        let kafka = Kafka::embedded().expect("a broker");
        assert!(!kafka.is_real());
        kafka.create_topic("t", 3).await.expect("a topic");
        let records = kafka.consume("t").await.expect("a consumer");
        produce(&kafka, "t", "k", "1").await;
        assert_eq!(all(&records, 1).await, [("k".to_owned(), "1".to_owned())]);
        assert_eq!(records.next(Duration::from_millis(100)).await, None);
    }

    /// Run by hand: `cargo test --release -p verve-tests --lib -- --ignored`.
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
        // The consumer of before has found it again.
        assert_eq!(all(&records, 1).await, [("after".to_owned(), "2".to_owned())]);
        let again = kafka.consume("t").await.expect("a consumer");
        assert_eq!(all(&again, 2).await[0], ("before".to_owned(), "1".to_owned()));
        // Nobody created this one.
        kafka.consume("of-itself").await.expect("a topic created by the broker");
        assert!(fs::read_dir(folder.path()).expect("the folder").count() > 0);
    }
}
