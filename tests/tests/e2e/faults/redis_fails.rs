//! All failures, and what must hold after each.
//!
//! Under steady traffic, no id that was answered `ok` and no callback is lost, no window is
//! missing, no count is too high.
//!
//! | what fails | how | test |
//! |---|---|---|
//! | Redis | killed, and restarted with its data | [`redis_killed_and_back_with_its_data`] |
//! | | killed, and restarted without its data | [`redis_back_without_its_data`] |
//! | | paused, for longer than a lease | [`redis_paused_beyond_the_lease`] |
//! | | restarted between two requests | `redis_away::a_restart_of_redis_is_not_noticed` |
//! | | full | [`redis_full`] |
//! | | restarted, and loading its data for long | [`redis_loading`] |
//! | | unable to save | [`redis_that_cannot_save`] |
//! | | with another password | [`redis_with_another_password`] |
//! | | refusing single commands of the reporter | `refusals` |
//! | | never up, or answering errors | `redis_away::redis_that_was_never_up`, `redis_away::redis_that_answers_errors` |
//! | | demoted, and another at its address | [`redis_fails_over_behind_its_address`] |
//! | a node of a cluster | killed, paused, cut off, added, removed, its slots moved | `cluster` |
//! | its stream of jobs, or the group | removed | [`the_stream_of_jobs_removed`] |
//! | the link to Redis | cut, held | [`the_link_to_redis_cut_and_held`] |
//! | Kafka | killed, paused, stopped | `kafka_fails::kafka_killed_paused_and_stopped` |
//! | | emptied, its topic deleted, frozen; with and without transactions | `kafka_fails::a_topic_deleted_emptied_and_frozen` |
//! | | short of replicas | `kafka_fails::a_topic_under_replicated` |
//! | the link to Kafka | cut, held | `kafka_fails::kafka_killed_paused_and_stopped` |
//! | | not there at first | `startup::a_reporter_waits_for_kafka` |
//! | the reporter | killed between any two of its steps | `processes_fail::a_reporter_killed_between_two_steps` |
//! | | killed during callbacks | `replicas::jobs_of_a_killed_reporter_are_delivered_by_another` |
//! | | the leader killed, or paused beyond its lease | `processes_fail::the_leader_killed_and_paused` |
//! | | with a record in transit for longer than its lease | `processes_fail::a_record_on_its_way_for_longer_than_the_lease` |
//! | the host | killed under traffic, with and without Redis | `processes_fail::the_host_killed` |
//! | all of them | at random, several concurrently | `chaos::nothing_is_lost_whatever_fails`, `chaos::nothing_is_lost_on_a_cluster` |
//!
//! Failures of callback endpoints are in `callback_retries` and `hostile_endpoints`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use tokio::time::sleep;
use verve_protocol::Method;
use verve_tests::clock;
use verve_tests::host::Kind;
use verve_tests::kafka::Kafka;
use verve_tests::redis::{Options, RedisServer};
use verve_tests::reporter::Reporter;
use verve_tests::sink::Sink;
use verve_tests::store::Store;
use verve_tests::wait;

use crate::faults::trial::{Trial, assert_in_order};
use crate::ledger::Ledger;
use crate::site::{SOON, Site};

/// Longer than a reporter's lease, and longer than it waits for an answer of Redis.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(6);

/// Runs a fault of Redis under traffic; every request must be answered `ok`.
async fn endure(fault: impl AsyncFn(&mut Trial) -> Result<()>) -> Result<()> {
    endure_on(RedisServer::options(), fault).await
}

/// Does the same on a Redis with these options.
async fn endure_on(redis: Options, fault: impl AsyncFn(&mut Trial) -> Result<()>) -> Result<()> {
    let kafka = Kafka::for_tests()?;
    for kind in Kind::available() {
        let redis = redis.clone().append_only().start().await?;
        let mut trial = Trial::start(kind, redis, kafka).await?;
        fault(&mut trial).await?;
        let answers = trial.finish(kafka).await?;
        assert!(answers.all_ok(), "{kind:?}: {answers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn redis_killed_and_back_with_its_data() -> Result<()> {
    endure(async |trial| {
        trial.site.redis.kill();
        sleep(Duration::from_secs(3)).await;
        trial.site.redis.restart().await
    })
    .await
}

#[tokio::test]
async fn redis_paused_beyond_the_lease() -> Result<()> {
    endure(async |trial| {
        trial.site.redis.pause()?;
        sleep(BEYOND_THE_LEASE).await;
        trial.site.redis.resume()
    })
    .await
}

#[tokio::test]
async fn redis_full() -> Result<()> {
    endure(async |trial| {
        // One byte, and then no limit.
        for (bytes, lasts) in [("1", 3), ("0", 0)] {
            trial.site.redis.set("maxmemory", bytes).await?;
            sleep(Duration::from_secs(lasts)).await;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn redis_loading() -> Result<()> {
    // In microseconds per key: five seconds in all. While it loads, it handles connections every
    // 1,000 keys.
    let redis = RedisServer::options().argument("--key-load-delay").argument("200");
    endure_on(redis, async |trial| {
        let mut fill = redis::pipe();
        for key in 0..25_000 {
            fill.set(format!("other:{key}"), 1).ignore();
        }
        fill.exec_async(&mut trial.site.connection().await?).await?;
        let begun = Instant::now();
        trial.site.redis.restart().await?;
        // Hosts log different lines about a loading server, so only the duration is checked.
        ensure!(begun.elapsed() > Duration::from_secs(3), "it has loaded immediately");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn redis_that_cannot_save() -> Result<()> {
    let redis = RedisServer::options()
        .argument("--enable-protected-configs")
        .argument("yes");
    endure_on(redis, async |trial| {
        let redis = &trial.site.redis;
        // This folder is not writable.
        redis.set("dir", "/proc").await?;
        redis::cmd("BGSAVE")
            .exec_async(&mut trial.site.connection().await?)
            .await?;
        // Only now, because it might already be saving before.
        redis.set("save", "1 1").await?;
        trial.host.process().wait_for_text("MISCONF", SOON).await?;
        sleep(Duration::from_secs(2)).await;
        redis.set("stop-writes-on-bgsave-error", "no").await
    })
    .await
}

#[tokio::test]
async fn redis_with_another_password() -> Result<()> {
    endure(async |trial| {
        // On one connection: a new one would be asked for the password.
        let mut redis = trial.site.connection().await?;
        let mut set = async |password: &str| {
            let mut set = redis::cmd("CONFIG");
            set.arg("SET")
                .arg("requirepass")
                .arg(password)
                .exec_async(&mut redis)
                .await
        };
        set("another").await?;
        // Open connections stay authenticated, so they are cut.
        trial.link.cut();
        sleep(Duration::from_secs(1)).await;
        trial.link.restore();
        trial.host.process().wait_for_text("NOAUTH", SOON).await?;
        sleep(Duration::from_secs(2)).await;
        Ok(set("").await?)
    })
    .await
}

#[tokio::test]
async fn the_link_to_redis_cut_and_held() -> Result<()> {
    endure(async |trial| {
        for disturb in [|trial: &Trial| trial.link.cut(), |trial: &Trial| trial.link.hold()] {
            disturb(trial);
            sleep(Duration::from_secs(3)).await;
            trial.link.restore();
            sleep(Duration::from_secs(2)).await;
        }
        Ok(())
    })
    .await
}

/// At some moment the address leads to the new primary.
///
/// The old one keeps its connections, and answers `READONLY`.
#[tokio::test]
async fn redis_fails_over_behind_its_address() -> Result<()> {
    endure(async |trial| {
        let replica = RedisServer::options().append_only().start().await?;
        let (old, new) = (trial.site.redis.server().address(), replica.address());
        let ask = async |server: SocketAddr, command: &str| -> Result<redis::Value> {
            let client = redis::Client::open(format!("redis://{server}"))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            let mut words = command.split(' ');
            let mut cmd = redis::cmd(words.next().unwrap_or_default());
            for word in words {
                cmd.arg(word);
            }
            Ok(cmd.query_async(&mut connection).await?)
        };
        let offset = async |server: SocketAddr, field: &str| -> Result<u64> {
            let info: String = redis::from_redis_value(ask(server, "INFO replication").await?)?;
            let line = info
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            Ok(line.context("no such field")?.parse()?)
        };
        ask(new, &format!("REPLICAOF {} {}", old.ip(), old.port())).await?;
        wait::until("the replica to follow", SOON, || async {
            (offset(new, "slave_repl_offset").await.ok()? > 0).then_some(())
        })
        .await?;
        // Writes that a failover loses are out of scope: nothing is written from here on.
        ask(old, "CLIENT PAUSE 10000 WRITE").await?;
        wait::until("the replica to have all", SOON, || async {
            let (sent, had) = (
                offset(old, "master_repl_offset").await,
                offset(new, "slave_repl_offset").await,
            );
            (sent.ok()? == had.ok()?).then_some(())
        })
        .await?;
        ask(new, "REPLICAOF NO ONE").await?;
        trial.link.lead_to(new);
        ask(old, &format!("REPLICAOF {} {}", new.ip(), new.port())).await?;
        ask(old, "CLIENT UNPAUSE").await?;
        // The trial owns the new primary, so that it lives as long as the rest.
        let _old = std::mem::replace(&mut trial.site.redis, Store::Server(replica));
        let reporter = &trial.reporters[0];
        reporter.process().wait_for_text("READONLY", SOON).await?;
        let ready = async || reporter.status("/readyz").await.ok();
        wait::until("the reporter to be ready again", SOON, || async {
            (ready().await? == 200).then_some(())
        })
        .await
    })
    .await
}

/// Data in Redis is lost; reported counts stay true, and everything continues.
#[tokio::test]
async fn redis_back_without_its_data() -> Result<()> {
    let mut site = Site::new(1).await?;
    let mut ledger = Ledger::new().await?;
    let sink = Sink::start().await?;
    let reporter = Reporter::ready(&ledger.flags(&site, &["--callback-allow", "127.0.0.1"])).await?;
    let before = clock::next_window(site.length).await;
    site.add(before, 0..5).await?;
    // The log line follows the recording, which follows the acknowledgement of Kafka.
    reporter.process().wait_for_text(&before.to_string(), SOON).await?;
    site.redis.kill();
    sleep(Duration::from_secs(2)).await;
    site.redis.restart().await?;
    site.add_job(&sink.url("/job"), Method::Get, before).await?;
    let after = clock::next_window(site.length).await;
    site.add(after, 0..3).await?;
    ledger.read_to(after, 1, SOON).await?;
    // For records of windows that were empty before and after, and are watched.
    ledger.read_for(Duration::from_secs(2)).await;
    assert_in_order(&site, ledger.read());
    assert_eq!(ledger.last()[before.to_string().as_str()].value, "5");
    assert_eq!(ledger.last()[after.to_string().as_str()].value, "3");
    sink.wait_for("/job", 1, SOON).await?;
    Ok(())
}

#[tokio::test]
async fn the_stream_of_jobs_removed() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let _reporter = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
    let window = clock::current_window(site.length);
    let (stream, mut redis) = (site.keys().callbacks(), site.connection().await?);
    site.add_job(&sink.url("/first"), Method::Get, window).await?;
    sink.wait_for("/first", 1, SOON).await?;
    let () = redis.del(&stream).await?;
    site.add_job(&sink.url("/no-stream"), Method::Get, window).await?;
    sink.wait_for("/no-stream", 1, SOON).await?;
    let groups: Vec<redis::Value> = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(&stream)
        .query_async(&mut redis)
        .await?;
    assert_eq!(groups.len(), 1, "one group was made again");
    let () = redis.xgroup_destroy(&stream, "reporter").await?;
    site.add_job(&sink.url("/no-group"), Method::Get, window).await?;
    sink.wait_for("/no-group", 1, SOON).await?;
    Ok(())
}
