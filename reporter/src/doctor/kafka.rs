//! Kafka: checks the topic, its copies, and that transactions are permitted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, Producer as _};

use super::Finding;
use crate::kafka::KafkaConfig;

/// The timeout of each request to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The state of the topic.
#[derive(Debug, Default)]
struct Topic {
    /// For each partition: whether it has a leader, its copies, and those in sync.
    partitions: Vec<(bool, usize, usize)>,
}

/// Checks Kafka and the topic.
pub async fn examine(config: &KafkaConfig) -> Vec<Finding> {
    let Some(brokers) = config.brokers.clone() else {
        return vec![Finding::warning(
            "no Kafka: counts are only logged, and kept in Redis for a while (--keep-reports)",
            "set --kafka-brokers",
        )];
    };
    let config = config.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&config));
    let findings = match asked.await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::problem(error.to_string(), "report this to the developers")],
    };
    let name = format!("Kafka {brokers}");
    findings.into_iter().map(|finding| finding.of(&name)).collect()
}

fn ask(config: &KafkaConfig) -> Vec<Finding> {
    let topic = match topic(config) {
        Ok(topic) => topic,
        Err((error, message)) => return vec![away(&error, message)],
    };
    let mut findings = judge(&config.topic, topic.as_ref());
    match transactions(config) {
        Ok(()) => {}
        Err(error) => findings.push(untransacted(&error)),
    }
    findings
}

/// Why brokers refuse a client.
///
/// The request itself only times out, without a reason.
#[derive(Clone, Default)]
struct Refusals(Arc<Mutex<Option<Refused>>>);

impl ClientContext for Refusals {
    fn error(&self, error: KafkaError, reason: &str) {
        let message = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SSL
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::BrokerTransportFailure
            )
        );
        if message {
            self.replace(Some((error, reason.to_owned())));
        }
    }
}

impl Refusals {
    /// Stores the last refusal, and returns the one before.
    fn replace(&self, refusal: Option<Refused>) -> Option<Refused> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), refusal)
    }
}

impl ConsumerContext for Refusals {}

/// An error, and its message.
type Refused = (KafkaError, String);

/// Asks as a consumer, because a request of a producer may create the topic.
fn topic(config: &KafkaConfig) -> Result<Option<Topic>, Refused> {
    let plain = |error: KafkaError| {
        let text = error.to_string();
        (error, text)
    };
    let refusals = Refusals::default();
    let consumer: BaseConsumer<Refusals> = config.client().create_with_context(refusals.clone()).map_err(plain)?;
    let metadata = consumer.fetch_metadata(Some(&config.topic), TIMEOUT).map_err(|error| {
        // The client passes on its errors one by one, when it is polled for messages. There are no
        // messages.
        let refusal = (0..100).find_map(|_| {
            let _ = consumer.poll(Duration::from_millis(10));
            refusals.replace(None)
        });
        refusal.unwrap_or_else(|| plain(error))
    })?;
    let Some(topic) = metadata.topics().first() else {
        return Ok(None);
    };
    if let Some(error) = topic.error() {
        let code = RDKafkaErrorCode::from(error);
        return match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => Ok(None),
            _ => Err(plain(KafkaError::MetadataFetch(code))),
        };
    }
    Ok(Some(Topic::of(topic)))
}

impl Topic {
    fn of(topic: &MetadataTopic) -> Self {
        let partitions = topic.partitions().iter();
        Self {
            partitions: partitions
                .map(|of| (of.leader() >= 0, of.replicas().len(), of.isr().len()))
                .collect(),
        }
    }
}

fn judge(name: &str, topic: Option<&Topic>) -> Vec<Finding> {
    let Some(Topic { partitions }) = topic else {
        return vec![Finding::problem(
            format!("there is no topic {name} (or this user may not see it)"),
            format!(
                "kafka-topics.sh --create --topic {name}, with three copies where there are three brokers; or correct --kafka-topic"
            ),
        )];
    };
    let count = |is: fn(&(bool, usize, usize)) -> bool| partitions.iter().filter(|of| is(of)).count();
    let (leaderless, alone, behind) = (count(|of| !of.0), count(|of| of.1 < 2), count(|of| of.2 < of.1));
    let mut findings = Vec::new();
    if leaderless > 0 {
        findings.push(Finding::problem(
            format!("{leaderless} partitions of {name} have no leader: their records wait"),
            "check the brokers that have their copies",
        ));
    }
    if behind > 0 {
        findings.push(Finding::warning(
            format!("{behind} partitions of {name} have copies that are not up to date"),
            "check the brokers that have them: with fewer than min.insync.replicas Kafka accepts no records",
        ));
    }
    if alone > 0 {
        findings.push(Finding::warning(
            format!("{name} is kept in one copy: counts are lost with its broker's disk"),
            "three copies and min.insync.replicas=2, where there are three brokers",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::fine(format!(
            "topic {name}, {} partitions, each in several copies",
            partitions.len()
        )));
    }
    findings
}

/// Starts a transactional producer with its own id.
///
/// With the reporter's id it would fence the reporter.
fn transactions(config: &KafkaConfig) -> Result<(), KafkaError> {
    let Some(id) = &config.transactional_id else {
        return Ok(());
    };
    let config = KafkaConfig {
        transactional_id: Some(format!("{id}:doctor")),
        ..config.clone()
    };
    let producer: BaseProducer = config.producer().create()?;
    producer.init_transactions(TIMEOUT)
}

fn untransacted(error: &KafkaError) -> Finding {
    let what = format!("transactions are refused: {error}");
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
            Finding::problem(
                what,
                "let the reporter's user Write and Describe the transactional ids that begin with verve-reporter:",
            )
        }
        Some(RDKafkaErrorCode::InvalidTransactionTimeout) => Finding::problem(
            what,
            "--kafka-option transaction.timeout.ms=10000, or the brokers' transaction.max.timeout.ms, if that is 6000 or more; or set --kafka-transactions false",
        ),
        _ => Finding::problem(
            what,
            "check transaction.state.log.replication.factor and its min.isr, which require that number of brokers; or set --kafka-transactions false",
        ),
    }
}

/// Returns the reason for a missing answer, with the client's message.
fn away(error: &KafkaError, message: String) -> Finding {
    let contains = |word: &str| message.contains(word);
    let (what, fix) = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::Authentication) => (
            "it refuses this user",
            "correct sasl.mechanism, sasl.username and sasl.password, each a --kafka-option",
        ),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => (
            "this user may not see the topic",
            "let the reporter's user Describe and Write the topic",
        ),
        Some(RDKafkaErrorCode::SSL) => (
            "TLS fails",
            "correct security.protocol, ssl.ca.location and the like, each a --kafka-option",
        ),
        Some(RDKafkaErrorCode::Resolve) => (
            "there is no host of that name",
            "correct --kafka-brokers, or the name service of this machine",
        ),
        _ if contains("refused") => (
            "nobody listens there",
            "start it, or correct --kafka-brokers: its host and port",
        ),
        _ if contains("Disconnected") || contains("ApiVersion") || contains("security.protocol") => (
            "it ends the connection",
            "set security.protocol as a --kafka-option: brokers that want TLS or SASL do not answer without",
        ),
        _ => (
            "it does not answer",
            "start it, or correct --kafka-brokers; see that the network lets this machine through; and set security.protocol as a --kafka-option: brokers that want TLS or SASL do not answer without",
        ),
    };
    Finding::problem(format!("{what} ({message})"), fix)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn each_state_of_a_topic_is_reported() {
        use Level::{Fine, Problem, Warning};
        let cases = [
            (vec![(true, 3, 3), (true, 3, 3)], vec![Fine]),
            (vec![(true, 3, 3), (false, 3, 3)], vec![Problem]),
            (vec![(true, 3, 2)], vec![Warning]),
            (vec![(true, 1, 1)], vec![Warning]),
            (vec![(false, 1, 0)], vec![Problem, Warning, Warning]),
        ];
        for (partitions, levels) in cases {
            let found = judge("t", Some(&Topic { partitions }));
            let found: Vec<Level> = found.iter().map(|finding| finding.level).collect();
            assert_eq!(found, levels);
        }
        assert_eq!(judge("t", None)[0].level, Problem);
    }

    #[test]
    fn the_reason_for_an_outage_is_readable() {
        use RDKafkaErrorCode::{BrokerTransportFailure, OperationTimedOut, Resolve, SSL};
        for (code, message, word) in [
            (
                Resolve,
                "Failed to resolve 'nowhere:9092': Name or service not known",
                "no host of that name",
            ),
            (
                BrokerTransportFailure,
                "Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                "nobody listens",
            ),
            (
                BrokerTransportFailure,
                "Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol configuration",
                "ends the connection",
            ),
            (SSL, "SSL handshake failed", "TLS fails"),
            (OperationTimedOut, "timed out", "does not answer"),
        ] {
            let found = away(&KafkaError::MetadataFetch(code), message.to_owned());
            assert!(found.what.contains(word) && found.what.contains(message), "{found:?}");
        }
    }
}
