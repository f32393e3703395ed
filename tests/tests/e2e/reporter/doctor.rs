//! `verve-reporter doctor` finds each deliberate mistake, and reports no others.

use std::process::Command;

use anyhow::Result;
use redis::AsyncCommands as _;
use verve_protocol::Id;
use verve_tests::clock::WrongClock;
use verve_tests::kafka::Kafka;
use verve_tests::process::Process;
use verve_tests::redis::RedisServer;
use verve_tests::{clock, net, reporter};

use crate::site::{SOON, Site};

/// Runs the doctor; returns whether there is a problem, and its output.
async fn examine(site: &Site, more: &[&str]) -> Result<(bool, String)> {
    examine_by(command(site, more)?).await
}

fn command(site: &Site, more: &[&str]) -> Result<Command> {
    let mut command = reporter::command()?;
    command.arg("doctor").args(site.flags(more));
    Ok(command)
}

async fn examine_by(command: Command) -> Result<(bool, String)> {
    let process = Process::spawn("verve-reporter doctor", command)?;
    let status = process.wait(SOON).await?;
    let text = process.log();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}: {text}");
    Ok((status.code() == Some(1), text))
}

/// Asserts that the doctor reports a finding of this level.
///
/// The two lines about it must contain all of `words`.
fn assert_found(found: &(bool, String), level: &str, words: &[&str]) {
    let (is_bad, text) = found;
    assert_eq!(
        *is_bad,
        text.contains("\nproblem") || text.starts_with("problem"),
        "{text}"
    );
    let lines: Vec<&str> = text.lines().collect();
    let about = |pair: &[&str]| pair[0].starts_with(level) && words.iter().all(|word| pair.concat().contains(word));
    assert!(lines.windows(2).any(about), "no {level} with {words:?} in:\n{text}");
}

async fn durable() -> Result<Site> {
    let redis = RedisServer::options().append_only().start().await?;
    Ok(Site::with_redis(60, redis).partitioned(2))
}

/// Adds ids to the current window, as components would.
async fn add_now(site: &Site, ids: std::ops::Range<i64>) -> Result<()> {
    site.add(clock::current_window(site.length), ids).await
}

#[tokio::test]
async fn a_site_that_is_well() -> Result<()> {
    let site = durable().await?;
    add_now(&site, 0..200).await?;
    let kafka = Kafka::for_tests()?;
    let topic = clock::unique("doctor");
    kafka.create_topic(&topic, 1).await?;
    let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic];
    let found = examine(&site, &flags).await?;
    assert!(!found.0, "{}", found.1);
    // A single broker keeps one copy, which is a warning.
    let warnings: Vec<&str> = found.1.lines().filter(|line| line.starts_with("warning")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("one copy"), "{}", found.1);
    assert_eq!(
        found.1.lines().filter(|line| line.starts_with("ok")).count(),
        2,
        "{}",
        found.1
    );
    Ok(())
}

#[tokio::test]
async fn data_that_redis_does_not_keep() -> Result<()> {
    let redis = RedisServer::start().await?;
    let site = Site::with_redis(60, redis);
    // Without any persistence.
    let found = examine(&site, &[]).await?;
    assert_found(&found, "problem", &["neither append-only", "appendonly yes"]);
    site.redis.set("save", "3600 1").await?;
    let found = examine(&site, &[]).await?;
    assert_found(&found, "warning", &["append-only", "last snapshot", "appendonly yes"]);
    assert_found(&found, "warning", &["no Kafka", "--kafka-brokers"]);
    assert_found(&found, "warning", &["no component wrote"]);
    assert!(!found.0);
    for (parameter, value, level, words) in [
        ("maxmemory", "100mb", "warning", &["append-only"][..]),
        (
            "maxmemory-policy",
            "volatile-ttl",
            "problem",
            &["volatile-ttl", "noeviction"],
        ),
        ("maxmemory-policy", "noeviction", "warning", &["append-only"]),
        ("maxmemory", "1mb", "warning", &["% of maxmemory"]),
    ] {
        site.redis.set(parameter, value).await?;
        assert_found(&examine(&site, &[]).await?, level, words);
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_in_place_of_its_primary() -> Result<()> {
    let primary = RedisServer::start().await?;
    let address = primary.address();
    let replica = RedisServer::options()
        .argument("--replicaof")
        .argument(&address.ip().to_string());
    let replica = replica.argument(&address.port().to_string()).start().await?;
    let site = Site::with_redis(60, replica);
    let of = format!("replica, of {}:{}", address.ip(), address.port());
    assert_found(&examine(&site, &[]).await?, "problem", &[&of, "primary"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_not_there_or_refuses() -> Result<()> {
    let site = durable().await?;
    let run = async |urls: &str| examine(&site, &["--redis-urls", urls]).await;
    let nowhere = net::free_address()?;
    let found = run(&format!("redis://:hunter2@{nowhere}")).await?;
    assert_found(&found, "problem", &[&nowhere.to_string(), "start it"]);
    assert!(!found.1.contains("hunter2"), "{}", found.1);

    let locked = RedisServer::options().password("hunter2").start().await?;
    let found = run(&format!("redis://:hunter3@{}", locked.address())).await?;
    assert_found(&found, "problem", &["user and the password"]);
    assert!(!found.1.contains("hunter3"), "{}", found.1);
    Ok(())
}

#[tokio::test]
async fn settings_that_are_not_those_of_the_components() -> Result<()> {
    let site = durable().await?;
    add_now(&site, 0..200).await?;
    for other in ["1", "3"] {
        assert_found(
            &examine(&site, &["--partitions", other]).await?,
            "problem",
            &["other partitions", other],
        );
    }
    assert_found(
        &examine(&site, &["--window-seconds", "5"]).await?,
        "problem",
        &["windows of 60 s", "5 s"],
    );
    let found = examine(&site, &["--namespace", "elsewhere"]).await?;
    assert_found(&found, "problem", &["namespace elsewhere", &site.namespace]);

    // Two window lengths in use, one of which is not the site's.
    let mut other = site.redis.connection().await?;
    let window = clock::current_window(clock::length(10));
    let zero: Id = "0".parse()?;
    let _: () = other.sadd(site.ids(window), zero.to_string()).await?;
    assert_found(&examine(&site, &[]).await?, "problem", &["windows of 10 s"]);
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_wrong() -> Result<()> {
    let site = durable().await?;
    let mut command = command(&site, &[])?;
    let clock = WrongClock::ahead(90)?;
    clock.give(&mut command);
    let found = examine_by(command).await?;
    assert_found(&found, "problem", &["behind this machine", "NTP"]);
    Ok(())
}

#[tokio::test]
async fn kafka_and_its_topic() -> Result<()> {
    let site = durable().await?;
    let nowhere = net::free_address()?.to_string();
    let found = examine(&site, &["--kafka-brokers", &nowhere]).await?;
    assert_found(&found, "problem", &[&nowhere, "--kafka-brokers"]);
    let kafka = Kafka::for_tests()?;
    let topic = clock::unique("nobody-made-this");
    let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", &topic];
    assert_found(
        &examine(&site, &flags).await?,
        "problem",
        &["no topic", "kafka-topics.sh"],
    );
    // The check did not create the topic.
    assert_found(&examine(&site, &flags).await?, "problem", &["no topic"]);
    Ok(())
}

#[tokio::test]
async fn transactions_that_are_not_allowed() -> Result<()> {
    let site = durable().await?;
    let kafka = Kafka::embedded()?;
    // This creates the topic.
    kafka.read_all("t").await?;
    let flags = ["--kafka-brokers", kafka.brokers(), "--kafka-topic", "t"];
    let found = examine(&site, &flags).await?;
    assert!(!found.0, "{}", found.1);
    kafka.forbid_transactions()?;
    let found = examine(&site, &flags).await?;
    assert_found(&found, "problem", &["transactions are refused", "transactional ids"]);
    let without = [&flags[..], &["--kafka-transactions", "false"]].concat();
    assert!(!examine(&site, &without).await?.0);
    Ok(())
}

#[tokio::test]
async fn a_callback_that_would_be_refused() -> Result<()> {
    let site = durable().await?;
    let found = examine(&site, &["--callback-url", "http://localhost:8080/hook"]).await?;
    assert_found(&found, "problem", &["localhost", "--callback-allow"]);
    let flags = [
        "--callback-url",
        "http://localhost:8080/hook",
        "--callback-allow",
        "localhost",
    ];
    assert!(!examine(&site, &flags).await?.0);
    let found = examine(&site, &["--listen", "0.0.0.0:9090"]).await?;
    assert_found(&found, "warning", &["0.0.0.0:9090", "--admin-token"]);
    Ok(())
}
