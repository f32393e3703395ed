//! Known faults of such queues.
//!
//! Jobs are lost between two steps, delivered twice concurrently, kept only in the memory of a
//! process, or stuck.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use redis::streams::{StreamInfoConsumersReply, StreamInfoGroupsReply};
use serde_json::Value;
use verve_protocol::Method;
use verve_tests::process::Signal;
use verve_tests::redis::RedisServer;
use verve_tests::reporter::Reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, wait};

use crate::site::{SOON, Site, field};

/// The reporter's flags: endpoints on this machine, two attempts, a short interval.
pub const TWICE: [&str; 6] = [
    "--callback-allow",
    "127.0.0.1",
    "--callback-attempts",
    "2",
    "--callback-backoff-ms",
    "100",
];

pub async fn add_job(site: &Site, endpoint: &str) -> Result<()> {
    site.add_job(endpoint, Method::Get, clock::current_window(site.length))
        .await
}

/// Returns the endpoints of the jobs in the stream, retry set and dead stream.
async fn places(site: &Site) -> Result<[Vec<String>; 3]> {
    let keys = site.keys();
    let of_stream =
        |jobs: Vec<Vec<(String, String)>>| jobs.iter().map(|job| field(job, "endpoint").to_owned()).collect();
    let members: Vec<String> = site.connection().await?.zrange(keys.callbacks_retry(), 0, -1).await?;
    let members = members.iter().map(|member| {
        let member: Value = serde_json::from_str(member)?;
        Ok(member["job"]["endpoint"].as_str().context("an endpoint")?.to_owned())
    });
    Ok([
        of_stream(site.stream(&keys.callbacks()).await?),
        members.collect::<Result<_>>()?,
        of_stream(site.stream(&keys.callbacks_dead()).await?),
    ])
}

async fn consumers(site: &Site) -> Result<Vec<String>> {
    let reply: StreamInfoConsumersReply = site
        .connection()
        .await?
        .xinfo_consumers(site.keys().callbacks(), "reporter")
        .await?;
    Ok(reply.consumers.into_iter().map(|consumer| consumer.name).collect())
}

#[tokio::test]
async fn no_job_is_lost_or_in_two_places_however_often_the_reporter_is_killed() -> Result<()> {
    const JOBS: usize = 150;
    /// The time of each answer, so that many jobs are settled at about the same time.
    const ANSWER_MS: u64 = 80;
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let mut most = [0; 3];
    for kill in 0..16 {
        for n in kill * JOBS..(kill + 1) * JOBS {
            let path = format!("/{n}");
            // A third succeeds, a third succeeds at the second attempt, and a third fails for good.
            let answers: &[u16] = [&[200][..], &[500, 200], &[500]][n % 3];
            let late = |status: &u16| Answer::status(*status).after(Duration::from_millis(ANSWER_MS));
            sink.answer(&path, answers.iter().map(late).collect::<Vec<_>>());
            add_job(&site, &sink.url(&path)).await?;
        }
        let reporter = Reporter::start(&site.flags(&TWICE))?;
        let called = sink.wait_for(&format!("/{}", kill * JOBS), 1, SOON).await?[0].time_ms;
        // Kills it during the work: each time a little later after the first answers, at last
        // during the retries.
        let later = if kill < 12 { 2 * kill as u64 } else { 50 * kill as u64 };
        clock::sleep_until_ms(called + ANSWER_MS + later).await;
        reporter.process().kill();

        let places = places(&site).await?;
        let found: BTreeSet<&String> = places.iter().flatten().collect();
        let count: usize = places.iter().map(Vec::len).sum();
        assert_eq!(found.len(), count, "kill {kill}: a job in two places");
        let mut calls: HashMap<String, usize> = HashMap::new();
        for call in sink.received() {
            let path = call.target.split('?').next().unwrap_or_default();
            *calls.entry(path.to_owned()).or_default() += 1;
        }
        for n in 0..(kill + 1) * JOBS {
            // A delivered job is in none of the three.
            let path = format!("/{n}");
            let calls = calls.get(&path).copied().unwrap_or_default();
            let delivered = [calls >= 1, calls >= 2, false][n % 3];
            let kept = found.contains(&sink.url(&path));
            assert!(kept || delivered, "kill {kill}: {n} is lost after {calls} calls");
        }
        for (most, place) in most.iter_mut().zip(&places) {
            *most = place.len().max(*most);
        }
    }
    assert!(most.iter().all(|jobs| *jobs > 0), "jobs were seen everywhere: {most:?}");
    Ok(())
}

#[tokio::test]
async fn a_delivery_that_takes_long_is_not_made_by_two_at_once() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let flags = site.flags(&TWICE);
    let _reporters = [Reporter::ready(&flags).await?, Reporter::ready(&flags).await?];
    // Shorter than the timeout of a call, and more jobs than both reporters can call concurrently.
    let slow = Answer::status(200).after(Duration::from_secs(2));
    let paths: Vec<String> = (0..700).map(|n| format!("/{n}")).collect();
    for path in &paths {
        sink.answer(path, [slow.clone()]);
        add_job(&site, &sink.url(path)).await?;
    }
    let called = || sink.received().len();
    wait::until("all to be called", Duration::from_secs(40), || async {
        (called() >= paths.len()).then_some(())
    })
    .await?;
    // Until the calls are answered, with a margin.
    tokio::time::sleep(Duration::from_secs(11) / 3).await;
    assert_eq!(called(), paths.len(), "each is called once");
    let [new, retry, dead] = places(&site).await?;
    assert_eq!((new.len(), retry.len(), dead.len()), (0, 0, 0));
    Ok(())
}

#[tokio::test]
async fn a_job_is_retried_when_due_by_a_reporter_that_was_not_there() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    sink.answer("/job", [Answer::status(500), Answer::status(200)]);
    let flags = site.flags(&["--callback-allow", "127.0.0.1", "--callback-backoff-ms", "6000"]);
    let killed = Reporter::ready(&flags).await?;
    add_job(&site, &sink.url("/job")).await?;
    wait::until("the job in the retry set", SOON, || async {
        places(&site).await.ok().filter(|[_, retry, _]| retry.len() == 1)
    })
    .await?;
    killed.process().kill();
    let due: Vec<(String, f64)> = site
        .connection()
        .await?
        .zrange_withscores(site.keys().callbacks_retry(), 0, -1)
        .await?;
    let due = due[0].1 as u64;
    let _other = Reporter::ready(&flags).await?;
    let called = sink.wait_for("/job", 2, SOON).await?[1].time_ms;
    assert!((due..due + 3000).contains(&called), "due {due}, called {called}");
    Ok(())
}

#[tokio::test]
async fn callbacks_go_on_when_the_queue_was_deleted() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let reporter = site.reporter(&TWICE).await?;
    let mut redis = site.connection().await?;
    let callbacks = site.keys().callbacks();
    for (n, command) in [
        vec!["DEL", &callbacks],
        vec!["FLUSHALL"],
        vec!["XGROUP", "DESTROY", &callbacks, "reporter"],
        // The job follows immediately, so the stream exists again before the reporter reads it.
        vec!["DEL", &callbacks],
    ]
    .into_iter()
    .enumerate()
    {
        add_job(&site, &sink.url(&format!("/before/{n}"))).await?;
        sink.wait_for(&format!("/before/{n}"), 1, SOON).await?;
        let mut delete = redis::cmd(command[0]);
        let () = delete.arg(&command[1..]).query_async(&mut redis).await?;
        if n < 3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        add_job(&site, &sink.url(&format!("/after/{n}"))).await?;
        sink.wait_for(&format!("/after/{n}"), 1, Duration::from_secs(5))
            .await
            .with_context(|| format!("{command:?}: {}", reporter.process().log()))?;
    }
    assert_eq!(sink.received().len(), 8, "each once");
    let log = reporter.process().log();
    assert!(!log.contains("ERROR"), "nothing to complain of: {log}");
    Ok(())
}

#[tokio::test]
async fn a_stopped_reporter_finishes_and_nothing_is_delivered_twice() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let flags = site.flags(&TWICE);
    let stopped = Reporter::ready(&flags).await?;
    let paths: Vec<String> = (0..20).map(|n| format!("/{n}")).collect();
    for path in &paths {
        sink.answer(path, [Answer::status(200).after(Duration::from_secs(2))]);
        add_job(&site, &sink.url(path)).await?;
    }
    for path in &paths {
        sink.wait_for(path, 1, SOON).await?;
    }
    let other = Reporter::ready(&flags).await?;
    stopped.process().signal(Signal::SIGTERM)?;
    // Jobs that arrive while one reporter stops do not wait until they can be claimed.
    for n in 0..100 {
        add_job(&site, &sink.url(&format!("/later/{n}"))).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for n in 0..100 {
        sink.wait_for(&format!("/later/{n}"), 1, Duration::from_secs(5)).await?;
    }
    let status = stopped.process().wait(SOON).await?;
    assert_eq!(status.code(), Some(0), "{}", stopped.process().log());
    let [new, retry, dead] = places(&site).await?;
    assert_eq!(
        (new.len(), retry.len(), dead.len()),
        (0, 0, 0),
        "all is settled by then"
    );
    assert_eq!(consumers(&site).await?.len(), 1, "it has left the group");
    drop(other);
    assert_eq!(sink.received().len(), 120, "each once");
    Ok(())
}

#[tokio::test]
async fn a_reporter_that_was_paused_does_not_undo_what_another_did() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    // The first call fails, but only after another replica has delivered the job.
    sink.answer(
        "/job",
        [Answer::status(500).after(Duration::from_secs(2)), Answer::status(200)],
    );
    let flags = site.flags(&TWICE);
    let paused = Reporter::ready(&flags).await?;
    add_job(&site, &sink.url("/job")).await?;
    sink.wait_for("/job", 1, SOON).await?;
    paused.process().pause()?;
    let _other = Reporter::ready(&flags).await?;
    sink.wait_for("/job", 2, Duration::from_secs(60)).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    paused.process().signal(Signal::SIGCONT)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sink.received().len(), 2, "delivered is delivered");
    let [new, retry, dead] = places(&site).await?;
    assert_eq!((new.len(), retry.len(), dead.len()), (0, 0, 0));
    Ok(())
}

/// Makes a consumer of the group look as if it was last active two hours ago.
///
/// Only time changes this value in Redis, so the dump of the stream is changed and restored.
async fn age_consumer(site: &Site, consumer: &str) -> Result<()> {
    let mut redis = site.connection().await?;
    let key = site.keys().callbacks();
    let mut dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await?;
    let found = dump
        .windows(consumer.len())
        .position(|part| part == consumer.as_bytes());
    // After the name, in Unix milliseconds.
    let seen = found.context("the consumer")? + consumer.len();
    let ago = clock::now_ms() - 2 * 3_600_000;
    dump[seen..seen + 8].copy_from_slice(&ago.to_le_bytes());
    let mut unchecked = redis::cmd("DEBUG");
    unchecked.arg("SET-SKIP-CHECKSUM-VALIDATION").arg(1);
    let () = unchecked.query_async(&mut redis).await?;
    let mut restore = redis::cmd("RESTORE");
    restore.arg(&key).arg(0).arg(dump).arg("REPLACE");
    Ok(restore.query_async(&mut redis).await?)
}

#[tokio::test]
async fn consumers_that_are_gone_are_removed_unless_they_have_jobs() -> Result<()> {
    let redis = RedisServer::options()
        .argument("--enable-debug-command")
        .argument("yes");
    let site = Site::with_redis(60, redis.start().await?);
    let mut redis = site.connection().await?;
    let key = site.keys().callbacks();
    let () = redis.xgroup_create_mkstream(&key, "reporter", "0").await?;
    add_job(&site, "http://127.0.0.1:1/").await?;
    // One consumer has taken a job, two have not; one of those two was active just now.
    for consumer in ["dead-with-a-job", "gone", "recent"] {
        let () = redis.xgroup_createconsumer(&key, "reporter", consumer).await?;
    }
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP")
        .arg("reporter")
        .arg("dead-with-a-job")
        .arg("STREAMS")
        .arg(&key)
        .arg(">");
    let _: redis::Value = read.query_async(&mut redis).await?;
    for consumer in ["dead-with-a-job", "gone"] {
        age_consumer(&site, consumer).await?;
    }
    assert_eq!(consumers(&site).await?.len(), 3);
    let _reporter = site.reporter(&[]).await?;
    let left = wait::until("the removal", SOON, || async {
        let names = consumers(&site).await.ok()?;
        (!names.contains(&"gone".to_owned())).then_some(names)
    })
    .await?;
    for name in ["dead-with-a-job", "recent"] {
        assert!(left.contains(&name.to_owned()), "{name}: {left:?}");
    }
    let groups: StreamInfoGroupsReply = redis.xinfo_groups(&key).await?;
    assert_eq!(groups.groups[0].pending, 1, "its job is still there to be claimed");
    Ok(())
}

#[tokio::test]
async fn an_unreachable_redis_is_logged_once_and_no_job_is_lost() -> Result<()> {
    let redis = RedisServer::options().append_only();
    let mut site = Site::with_redis(60, redis.start().await?);
    let sink = Sink::start().await?;
    let reporter = site.reporter(&TWICE).await?;
    // The answer arrives while Redis is unreachable, so the reporter cannot record it.
    sink.answer("/job", [Answer::status(500).after(Duration::from_secs(1))]);
    add_job(&site, &sink.url("/job")).await?;
    sink.wait_for("/job", 1, SOON).await?;
    site.redis.kill();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = reporter.process().log();
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
    assert!(log.contains("is not reachable"), "{log}");
    site.redis.restart().await?;
    reporter.process().wait_for_text("is reachable again", SOON).await?;
    let [new, ..] = places(&site).await?;
    assert_eq!(new, [sink.url("/job")], "where it was");
    add_job(&site, &sink.url("/next")).await?;
    sink.wait_for("/next", 1, SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_queue_that_redis_refuses_is_logged_once_and_recovers() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let mut redis = site.connection().await?;
    let callbacks = site.keys().callbacks();
    let () = redis.set(&callbacks, "no stream").await?;
    // The reporter does not become ready, because Redis refuses a command.
    let reporter = Reporter::start(&site.flags(&TWICE))?;
    let complaint = |line: &str| line.contains("ERROR") && line.contains("WRONGTYPE");
    reporter.process().wait_for_line(SOON, complaint).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let complaints = reporter.process().lines().iter().filter(|line| complaint(line)).count();
    assert_eq!(complaints, 1, "{}", reporter.process().log());
    let () = redis.del(&callbacks).await?;
    add_job(&site, &sink.url("/job")).await?;
    sink.wait_for("/job", 1, SOON).await?;
    reporter
        .process()
        .wait_for_text("works again", Duration::from_secs(20))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_job_that_cannot_be_kept_for_want_of_memory_is_not_lost() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let reporter = site.reporter(&TWICE).await?;
    sink.answer(
        "/job",
        [Answer::status(500).after(Duration::from_secs(1)), Answer::status(200)],
    );
    add_job(&site, &sink.url("/job")).await?;
    sink.wait_for("/job", 1, SOON).await?;
    let mut redis = site.connection().await?;
    let mut memory = async |bytes: &str| -> Result<()> {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        Ok(set.query_async(&mut redis).await?)
    };
    memory("1").await?;
    reporter.process().wait_for_text("OOM", SOON).await?;
    let [new, ..] = places(&site).await?;
    assert_eq!(new, [sink.url("/job")], "where it was");
    memory("0").await?;
    let begin = Instant::now();
    sink.wait_for("/job", 2, Duration::from_secs(60)).await?;
    assert!(begin.elapsed() < Duration::from_secs(45), "once its claim has run out");
    Ok(())
}

/// An endpoint that never answers does not delay the others.
///
/// It accepts calls. None of its own jobs is lost.
#[tokio::test]
async fn a_hanging_endpoint_does_not_delay_others() -> Result<()> {
    const HANGING: usize = 1_500;
    let site = Site::new(60).await?;
    let (hanging, good) = (Sink::start().await?, Sink::start().await?);
    hanging.answer("/job", [Answer::status(200).after(Duration::from_secs(60))]);
    for _ in 0..HANGING {
        add_job(&site, &hanging.url("/job")).await?;
    }
    let reporter = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
    add_job(&site, &good.url("/first")).await?;
    let begin = Instant::now();
    good.wait_for("/first", 1, SOON).await?;
    let first = begin.elapsed();
    // By then, many calls to the hanging endpoint have timed out.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let begin = Instant::now();
    add_job(&site, &good.url("/second")).await?;
    good.wait_for("/second", 1, SOON).await?;
    let second = begin.elapsed();
    let limit = Duration::from_secs(5);
    assert!(first < limit && second < limit, "{first:?}, {second:?}");
    let [new, waiting, dead] = places(&site).await?;
    assert_eq!(
        new.len() + waiting.len() + dead.len(),
        HANGING,
        "{}",
        reporter.process().log()
    );
    assert!(waiting.len() > HANGING / 2, "{} wait", waiting.len());
    Ok(())
}
