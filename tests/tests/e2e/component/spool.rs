//! The spool: an id that was answered `ok` while Redis is unreachable is not lost.
//!
//! It is counted later, in its own window, whichever process dies meanwhile.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result};
use verve_protocol::Window;
use verve_protocol::keys::MAX_QUEUED_JOBS;
use verve_tests::cluster::Cluster;
use verve_tests::host::{Instance, Kind};
use verve_tests::link::{Hold, Link};
use verve_tests::redis::RedisServer;
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site, field};

/// Starts a host that notices quickly that Redis is unreachable.
async fn start(site: &Site, kind: Kind) -> Result<Instance> {
    site.host(kind).variable("redis_timeout_ms", "300").start().await
}

/// Starts a host that reaches Redis only over a link, with a timeout per attempt.
async fn start_behind(link: &Link, site: &Site, kind: Kind, timeout_ms: &str) -> Result<Instance> {
    let url = format!("redis://{}", link.address());
    let host = site.host(kind).variable("redis_urls", &url);
    host.variable("redis_timeout_ms", timeout_ms).start().await
}

/// Sends an id that must be accepted, and returns its outcome.
async fn accept(instance: &Instance, query: &str) -> Result<String> {
    let response = http::get(instance.addr(), &format!("/api/verve/accept?{query}")).await?;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{query}");
    Ok(response.header("verve-outcome").unwrap_or_default().to_owned())
}

/// Waits until the window contains exactly the ids `0..count`.
async fn assert_drained(site: &Site, window: Window, count: i64, context: &str) -> Result<()> {
    let expected = (0..count).map(|id| id.to_string()).collect();
    wait::until("the spooled ids", SOON, || async {
        site.members(window).await.ok().filter(|sets| sets[0] == expected)
    })
    .await
    .with_context(|| format!("{context}: {count} ids in {window}"))?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_was_killed_drains_what_it_had_spooled() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let mut site = Site::with_one_window().await?;
        let mut instance = start(&site, kind).await?;
        let window = clock::current_window(site.length);
        site.redis.kill();
        for id in 0..300 {
            assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled", "{context}");
        }
        instance.restart().await?;
        assert_eq!(accept(&instance, "id=7").await?, "spooled", "{context}");
        instance.process().kill();
        site.redis.restart().await?;
        instance.restart().await?;
        // Only the first request after Redis is reachable again.
        accept(&instance, "id=300").await?;
        assert_drained(&site, window, 301, &context).await?;
    }
    Ok(())
}

#[tokio::test]
async fn it_is_drained_without_further_requests() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let mut site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        let window = clock::current_window(site.length);
        site.redis.kill();
        assert_eq!(accept(&instance, "id=0").await?, "spooled", "{context}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        site.redis.restart().await?;
        assert_drained(&site, window, 1, &context).await?;
    }
    Ok(())
}

/// A killed host that is started again drains, even if it receives no request.
#[tokio::test]
async fn an_idle_host_drains_what_another_life_has_left() -> Result<()> {
    let mut site = Site::with_one_window().await?;
    let mut instance = start(&site, Kind::VerveHost).await?;
    let window = clock::current_window(site.length);
    site.redis.kill();
    for id in 0..5 {
        assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled");
    }
    instance.process().kill();
    site.redis.restart().await?;
    instance.restart().await?;
    assert_drained(&site, window, 5, "no request").await
}

#[tokio::test]
async fn ids_and_jobs_come_into_their_own_windows() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let mut site = Site::new(2).await?;
        let instance = start(&site, kind).await?;
        site.redis.kill();
        let mut windows = Vec::new();
        for _ in 0..3 {
            let window = clock::next_window(site.length).await;
            for id in 0..3 {
                accept(&instance, &format!("id={id}&endpoint=http://e.com/{}", window.start())).await?;
            }
            assert_eq!(
                clock::current_window(site.length),
                window,
                "the machine is too slow for this test"
            );
            windows.push(window);
        }
        site.redis.restart().await?;
        for window in &windows {
            assert_drained(&site, *window, 3, &context).await?;
        }
        let jobs = wait::until("the jobs", SOON, || async {
            let jobs = site.stream(&site.keys().callbacks()).await.ok()?;
            (jobs.len() >= 9).then_some(jobs)
        })
        .await
        .context(context)?;
        let found: Vec<(String, String)> = jobs
            .iter()
            .map(|job| (field(job, "window").to_owned(), field(job, "endpoint").to_owned()))
            .collect();
        let expected: Vec<(String, String)> = windows
            .iter()
            .flat_map(|window| [window.start(); 3])
            .map(|start| (start.to_string(), format!("http://e.com/{start}")))
            .collect();
        assert_eq!(found, expected, "{kind:?}");
        // Statistics are drained too, and counted once.
        let mut first = site.connection().await?;
        let mut counts = async |window: Window| -> Result<(Option<u64>, Option<u64>)> {
            let mut get = redis::cmd("HMGET");
            get.arg(site.keys().stats(window)).arg("requests").arg("spooled");
            Ok(get.query_async(&mut first).await?)
        };
        let expected = (Some(3), Some(3));
        let begin = tokio::time::Instant::now();
        for window in &windows {
            while counts(*window).await? != expected && begin.elapsed() < SOON {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for window in &windows {
            assert_eq!(counts(*window).await?, expected, "{kind:?} {window}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_spool_and_drain_at_once() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let mut site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        let window = clock::current_window(site.length);
        site.redis.kill();
        // Several instances of the component, with up to 16 concurrent requests each.
        let client = |first: i64| {
            let instance = &instance;
            async move {
                for id in (first..4000).step_by(40) {
                    accept(instance, &format!("id={id}&endpoint=http://e.com/{id}")).await?;
                }
                anyhow::Ok(())
            }
        };
        futures::future::try_join_all((0..40).map(client)).await?;
        site.redis.restart().await?;
        // All instances drain concurrently with new ids.
        futures::future::try_join_all((0..40).map(client)).await?;
        assert_drained(&site, window, 4000, &context).await?;
        // Each request has a job, and no spooled job was added twice.
        let key = site.keys().callbacks();
        wait::until("the jobs", SOON, || async {
            (site.stream(&key).await.ok()?.len() >= 8000).then_some(())
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(site.stream(&key).await?.len(), 8000, "{context}");
    }
    Ok(())
}

#[tokio::test]
async fn too_many_callback_jobs_wait_on_disk() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let instance = start(&site, kind).await?;
        let (key, mut first) = (site.keys().callbacks(), site.connection().await?);
        // In several steps, so that a busy machine completes each one within the time limit.
        let fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'a', 'b') end";
        let mut left = MAX_QUEUED_JOBS - 1;
        while left > 0 {
            let jobs = left.min(50_000);
            left -= jobs;
            let mut eval = redis::cmd("EVAL");
            eval.arg(fill).arg(1).arg(&key).arg(jobs).exec_async(&mut first).await?;
        }
        let mut sent = 0;
        let mut send = async || -> Result<u64> {
            sent += 1;
            assert_ne!(
                accept(&instance, &format!("id={sent}&endpoint=http://e.com/{sent}")).await?,
                "spooled"
            );
            let mut length = redis::cmd("XLEN");
            Ok(length.arg(&key).query_async(&mut site.connection().await?).await?)
        };
        // The instances notice the full queue after a moment.
        assert!(send().await? >= MAX_QUEUED_JOBS, "{kind:?}");
        tokio::time::sleep(Duration::from_millis(600)).await;
        let full = send().await?;
        let mut now = full;
        for _ in 0..10 {
            now = send().await?;
        }
        // Once a second, one job may probe for room, and is added.
        assert!(now <= full + 5, "{kind:?}: {full} and then {now}");
        // Room for all jobs.
        redis::cmd("XTRIM")
            .arg(&key)
            .arg("MAXLEN")
            .arg(0)
            .exec_async(&mut first)
            .await?;
        let jobs = wait::until("the jobs", SOON, || async {
            let jobs = site.stream(&key).await.ok()?;
            (jobs.len() >= 5).then_some(jobs)
        });
        let jobs = jobs.await.with_context(|| format!("{kind:?}"))?;
        assert!(
            jobs.iter()
                .all(|job| field(job, "endpoint").starts_with("http://e.com/")),
            "{kind:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_full_spool_refuses_ids_and_logs_it() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let mut site = Site::with_one_window().await?;
        let instance = site.host(kind).variable("redis_timeout_ms", "300");
        let instance = instance.variable("spool_limit", "10").start().await?;
        let window = clock::current_window(site.length);
        site.redis.kill();
        for id in 0..10 {
            assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled", "{context}");
        }
        let refused = http::get(instance.addr(), "/api/verve/accept?id=10").await?;
        assert_eq!(refused.status, 503, "{context}");
        assert_eq!(refused.header("verve-error"), Some("unavailable"), "{context}");
        let line = instance.process().wait_for_text("spool: full", SOON).await?;
        assert!(line.contains("spool_limit"), "{context}: {line}");
        // Accepted ids are drained, and then there is room again.
        site.redis.restart().await?;
        let all: Vec<String> = (0..10).map(|id| id.to_string()).collect();
        wait::until("the spooled ids", SOON, || async {
            // Answered 503 until there is room.
            http::get(instance.addr(), "/api/verve/accept?id=0").await.ok()?;
            let sets = site.members(window).await.ok()?;
            let left = instance.in_spool("SELECT total FROM size").ok()?;
            (all.iter().all(|id| sets[0].contains(id)) && left == 0).then_some(())
        })
        .await
        .with_context(|| context.clone())?;
        site.redis.kill();
        assert_eq!(accept(&instance, "id=10").await?, "spooled", "{context}");
    }
    Ok(())
}

/// With `redis_wait_replicas`, an id that only the primary has is spooled as well.
///
/// It could be lost with the primary.
#[tokio::test]
async fn an_id_is_on_the_configured_replicas_or_in_the_spool() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let site = Site::with_one_window().await?;
        let replica = RedisServer::start().await?;
        let mut follow = redis::cmd("REPLICAOF");
        let primary = site.redis.server().address();
        follow.arg("127.0.0.1").arg(primary.port());
        follow.exec_async(&mut replica.connection().await?).await?;
        let instance = site.host(kind).variable("redis_timeout_ms", "500");
        let instance = instance.variable("redis_wait_replicas", "1").start().await?;
        let window = clock::current_window(site.length);
        // Until the replica follows, and all instances have noticed that it does.
        let next = Cell::new(0);
        let new = |what: &'static str| {
            let (instance, next) = (&instance, &next);
            wait::until(what, SOON, move || async move {
                let id = next.replace(next.get() + 1);
                let outcome = accept(instance, &format!("id={id}")).await.ok()?;
                (outcome == "new").then_some(id.to_string())
            })
        };
        let id = new("the replica to follow").await.with_context(|| context.clone())?;
        let on_replica: Vec<String> = redis::cmd("SMEMBERS")
            .arg(site.ids(window))
            .query_async(&mut replica.connection().await?)
            .await?;
        assert!(on_replica.contains(&id), "{context}: {id} of {on_replica:?}");
        replica.pause()?;
        let id = next.replace(next.get() + 1);
        assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled", "{context}");
        replica.resume()?;
        new("the replica to follow again")
            .await
            .with_context(|| context.clone())?;
        assert_drained(&site, window, next.get(), &context).await?;
    }
    Ok(())
}

/// The host dies while it drains.
///
/// Each command is held once before Redis receives it, and once after Redis has executed it and
/// before the spool is updated.
#[tokio::test]
async fn a_host_killed_while_draining_loses_and_repeats_nothing() -> Result<()> {
    const COUNT: i64 = 40;
    for kind in Kind::available() {
        for (hold, what) in [
            (Hold::Request, "SADD"),
            (Hold::Answer, "SADD"),
            (Hold::Request, "XADD"),
            (Hold::Answer, "XADD"),
        ] {
            let context = format!("{kind:?}, {hold:?} of {what}");
            let site = Site::with_one_window().await?;
            let link = Link::start(site.redis.server().address()).await?;
            // A long timeout, so that the held command does not time out.
            let mut instance = start_behind(&link, &site, kind, "10000").await?;
            let window = clock::current_window(site.length);
            link.cut();
            let requests = (0..COUNT).map(|id| {
                let instance = &instance;
                async move { accept(instance, &format!("id={id}&endpoint=http://e.com/{id}")).await }
            });
            let outcomes = futures::future::try_join_all(requests).await?;
            assert!(outcomes.iter().all(|outcome| outcome == "spooled"), "{context}");
            // The statistics of these requests are spooled a moment later.
            let spooled = "SELECT count(*) FROM commands WHERE command LIKE '[\"HINCRBY\"%'";
            wait::until("statistics", SOON, || async {
                (instance.in_spool(spooled).ok()? > 0).then_some(())
            })
            .await
            .with_context(|| context.clone())?;
            let mut gate = link.gate(&[what], hold);
            link.restore();
            gate.reached(SOON).await.with_context(|| context.clone())?;
            instance.process().kill();
            drop(gate);
            instance.restart().await?;
            assert_drained(&site, window, COUNT, &context).await?;
            wait::until("an empty spool", SOON, || async {
                let count = "SELECT (SELECT total FROM size) + (SELECT count(*) FROM commands)";
                (instance.in_spool(count).ok()? == 0).then_some(())
            })
            .await
            .with_context(|| context.clone())?;
            let jobs = site.stream(&site.keys().callbacks()).await?;
            let mut endpoints: Vec<&str> = jobs.iter().map(|job| field(job, "endpoint")).collect();
            endpoints.sort_unstable();
            let mut expected: Vec<String> = (0..COUNT).map(|id| format!("http://e.com/{id}")).collect();
            expected.sort_unstable();
            assert_eq!(endpoints, expected, "{context}");
            let mut get = redis::cmd("HMGET");
            get.arg(site.keys().stats(window)).arg("requests").arg("spooled");
            let counts: (i64, i64) = get.query_async(&mut site.connection().await?).await?;
            assert_eq!(counts, (COUNT, COUNT), "{context}");
        }
    }
    Ok(())
}

/// Another instance drains meanwhile, and its row numbers are reused for other ids.
#[tokio::test]
async fn a_slow_drain_removes_only_the_drained_rows() -> Result<()> {
    for kind in Kind::available() {
        let context = format!("{kind:?}");
        let site = Site::with_one_window().await?;
        let link = Link::start(site.redis.server().address()).await?;
        let instance = start_behind(&link, &site, kind, "10000").await?;
        let window = clock::current_window(site.length);
        link.cut();
        assert_eq!(accept(&instance, "id=0").await?, "spooled", "{context}");
        let mut gate = link.gate(&["SADD"], Hold::Answer);
        link.restore();
        gate.reached(SOON).await.with_context(|| context.clone())?;
        // Simulates two other instances: one drains the ids as well, the other spools other ids.
        let other = instance.spool()?.execute_batch(
            "CREATE TEMP TABLE brought AS SELECT * FROM ids; DELETE FROM ids; \
            INSERT INTO ids SELECT number, key, '1', 1 FROM brought; INSERT INTO ids SELECT number + 1, key, '2', 1 FROM brought",
        );
        other.with_context(|| context.clone())?;
        gate.open();
        assert_drained(&site, window, 3, &context).await?;
    }
    Ok(())
}

/// Redis has counted a flush of statistics, and its answer is lost.
///
/// Once Redis can be asked again, once it is unreachable.
#[tokio::test]
async fn a_flush_of_statistics_whose_answer_was_lost_counts_once() -> Result<()> {
    for kind in Kind::available() {
        for goes_away in [false, true] {
            let context = format!("{kind:?}, goes away: {goes_away}");
            let site = Site::with_one_window().await?;
            let link = Link::start(site.redis.server().address()).await?;
            let instance = start_behind(&link, &site, kind, "1000").await?;
            let window = clock::current_window(site.length);
            let mut gate = link.gate(&["HINCRBY"], Hold::Answer);
            assert_eq!(accept(&instance, "id=1").await?, "new", "{context}");
            gate.reached(SOON).await.with_context(|| context.clone())?;
            if goes_away {
                link.cut();
                let spooled = "SELECT count(*) FROM commands WHERE batch IS NOT NULL";
                wait::until("statistics", SOON, || async {
                    (instance.in_spool(spooled).ok()? > 0).then_some(())
                })
                .await
                .with_context(|| context.clone())?;
                link.restore();
            }
            // The flush is sent again. Then Redis drops its idempotency key, since no third attempt
            // follows, or the flush is no longer in the spool.
            let remains = "SELECT count(*) FROM commands";
            wait::until("the end of it", Duration::from_secs(20), || async {
                let names: Vec<String> = redis::cmd("KEYS")
                    .arg(format!("{}:spooled:*", site.namespace))
                    .query_async(&mut site.connection().await.ok()?)
                    .await
                    .ok()?;
                let is_over = if goes_away {
                    instance.in_spool(remains).ok()? == 0
                } else {
                    names.is_empty()
                };
                is_over.then_some(())
            })
            .await
            .with_context(|| context.clone())?;
            drop(gate);
            let mut get = redis::cmd("HMGET");
            get.arg(site.keys().stats(window)).arg("requests").arg("new");
            let counts: (i64, i64) = get.query_async(&mut site.connection().await?).await?;
            assert_eq!(counts, (1, 1), "{context}");
        }
    }
    Ok(())
}

/// A connection that was cut silently, while Redis answers on any other.
#[tokio::test]
async fn a_connection_on_which_nothing_is_answered_any_more_is_replaced() -> Result<()> {
    for kind in Kind::available() {
        let site = Site::with_one_window().await?;
        let link = Link::start(site.redis.server().address()).await?;
        let instance = start_behind(&link, &site, kind, "1000").await?;
        let mut gate = link.gate(&["SADD"], Hold::Answer);
        // The first attempt has recorded it.
        assert_eq!(accept(&instance, "id=1").await?, "duplicate", "{kind:?}");
        gate.reached(SOON).await?;
        assert_eq!(accept(&instance, "id=2").await?, "new", "{kind:?}");
        drop(gate);
    }
    Ok(())
}

/// A stored node address of another cluster is not asked, and gets nothing.
#[tokio::test]
async fn a_node_of_another_cluster_is_not_used() -> Result<()> {
    for kind in Kind::available() {
        let before = Cluster::start(3, 0).await?;
        let mut site = Site::with_one_window().await?;
        let mut instance = start(&site, kind).await?;
        site.redis.kill();
        assert_eq!(accept(&instance, "id=3").await?, "spooled", "{kind:?}");
        let node = before.nodes()[0].url();
        let row = "INSERT INTO state VALUES (?, ?)";
        instance.spool()?.execute(row, (node, clock::now_ms().cast_signed()))?;
        instance.restart().await?;
        for id in 4..10 {
            assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled", "{kind:?}");
        }
        site.redis.restart().await?;
        wait::until("the ids", SOON, || async {
            let ids = site.members(clock::current_window(site.length)).await.ok()?;
            (ids[0].len() == 7).then_some(())
        })
        .await
        .with_context(|| instance.process().log())?;
        assert_eq!(before.sizes().await?, [0, 0, 0], "{kind:?}");
    }
    Ok(())
}

/// A spool that cannot be read is logged, and drained once it is readable.
#[tokio::test]
async fn a_spool_that_cannot_be_read_is_an_error() -> Result<()> {
    let mut site = Site::with_one_window().await?;
    let mut instance = start(&site, Kind::VerveHost).await?;
    let window = clock::current_window(site.length);
    site.redis.kill();
    for id in 0..5 {
        assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled");
    }
    instance.process().kill();
    instance.spool()?.execute_batch("ALTER TABLE state RENAME TO damaged")?;
    site.redis.restart().await?;
    instance.restart().await?;
    let line = instance
        .process()
        .wait_for_text("cannot look into the spool", SOON)
        .await?;
    assert!(line.contains("no such table: state"), "{line}");
    instance.spool()?.execute_batch("ALTER TABLE damaged RENAME TO state")?;
    instance.restart().await?;
    assert_drained(&site, window, 5, "fixed").await
}

/// Ids accepted after the spool's files were removed go into new files.
#[tokio::test]
async fn a_spool_whose_files_are_removed_is_created_again() -> Result<()> {
    let mut site = Site::with_one_window().await?;
    let instance = start(&site, Kind::VerveHost).await?;
    let window = clock::current_window(site.length);
    site.redis.kill();
    assert_eq!(accept(&instance, "id=1000").await?, "spooled");
    for file in ["sqlite_db.db", "sqlite_db.db-wal", "sqlite_db.db-shm"] {
        std::fs::remove_file(instance.folder().join(".spin").join(file))?;
    }
    let mut answers = Vec::new();
    for id in 0..20 {
        let target = format!("/api/verve/accept?id={id}");
        let answer = http::get(instance.addr(), &target).await?;
        answers.push((id, answer.status));
    }
    assert!(
        answers.iter().filter(|(_, status)| *status != 200).count() <= 2,
        "{answers:?}"
    );
    instance
        .process()
        .wait_for_text("was removed or replaced", SOON)
        .await?;
    site.redis.restart().await?;
    wait::until("all that was answered ok", SOON, || async {
        let ids = site.members(window).await.ok()?;
        let accepted = answers.iter().filter(|(_, status)| *status == 200);
        accepted
            .clone()
            .all(|(id, _)| ids[0].contains(&id.to_string()))
            .then_some(())
    })
    .await
    .with_context(|| instance.process().log())
}

/// Hosts that share a state folder by mistake leave each other's spool alone.
///
/// They do not drain each other's ids into their own Redis.
#[tokio::test]
async fn a_spool_of_another_redis_or_namespace_is_left_alone() -> Result<()> {
    for kind in Kind::available() {
        let [mut first, second] = [Site::with_one_window().await?, Site::with_one_window().await?];
        let mut instance = start(&first, kind).await?;
        let window = clock::current_window(first.length);
        first.redis.kill();
        for id in 0..5 {
            assert_eq!(accept(&instance, &format!("id={id}")).await?, "spooled", "{kind:?}");
        }
        instance.process().kill();
        let of_first = [first.redis_urls(), first.namespace.clone()];
        let strangers = [
            [second.redis_urls(), second.namespace.clone()],
            [second.redis_urls(), first.namespace.clone()],
            [first.redis_urls(), second.namespace.clone()],
        ];
        for [urls, namespace] in strangers {
            instance.set_variable("redis_urls", &urls);
            instance.set_variable("namespace", &namespace);
            instance.restart().await?;
            // The host's own ids go to its own Redis.
            http::get(instance.addr(), "/api/verve/accept?id=7").await?;
            let line = instance.process().wait_for_text("it is not used", SOON).await?;
            assert!(
                line.contains(&of_first[0]) && line.contains(&of_first[1]),
                "{kind:?}: {line}"
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut keys: Vec<String> = redis::cmd("KEYS")
            .arg("*:ids:*")
            .query_async(&mut second.connection().await?)
            .await?;
        keys.sort();
        assert_eq!(keys.len(), 2, "{keys:?}");
        let ids: Vec<String> = redis::cmd("SUNION")
            .arg(&keys)
            .query_async(&mut second.connection().await?)
            .await?;
        assert_eq!(ids, ["7"], "{kind:?}");
        // The owner drains it, also under another of its servers' names.
        instance.set_variable("redis_urls", &of_first[0]);
        instance.set_variable("namespace", &of_first[1]);
        first.redis.restart().await?;
        instance.restart().await?;
        assert_drained(&first, window, 5, &format!("{kind:?}")).await?;
        // An empty spool belongs to the next host. Drained rows are removed a little later.
        wait::until("the spool to be empty", SOON, || async {
            let left = "SELECT (SELECT count(*) FROM ids) + (SELECT count(*) FROM commands)";
            (instance.in_spool(left).ok()? == 0).then_some(())
        })
        .await?;
        instance.set_variable("redis_urls", "redis://127.0.0.1:1");
        instance.restart().await?;
        assert_eq!(accept(&instance, "id=8").await?, "spooled", "{kind:?}");
        let owner: String = instance
            .spool()?
            .query_one("SELECT redis FROM owner", [], |row| row.get(0))?;
        assert_eq!(owner, "redis://127.0.0.1:1", "{kind:?}");
    }
    Ok(())
}

/// A host of an older version does not touch the spool of a newer one.
///
/// It neither reads nor changes data that it could misread.
#[tokio::test]
async fn a_spool_of_another_format_is_left_alone() -> Result<()> {
    for kind in Kind::available() {
        let mut site = Site::with_one_window().await?;
        let mut instance = start(&site, kind).await?;
        let window = clock::current_window(site.length);
        site.redis.kill();
        assert_eq!(accept(&instance, "id=1").await?, "spooled", "{kind:?}");
        instance.process().kill();
        let format = |instance: &Instance, number: i64| -> Result<()> {
            let spool = instance.spool()?;
            let found: i64 = spool.pragma_query_value(None, "user_version", |row| row.get(0))?;
            assert_ne!(found, number, "{kind:?}");
            Ok(spool.pragma_update(None, "user_version", number)?)
        };
        format(&instance, 2)?;
        site.redis.restart().await?;
        instance.restart().await?;
        http::get(instance.addr(), "/api/verve/accept?id=2").await?;
        let message = "its format is 2, and this version knows 1; it is not used";
        instance.process().wait_for_text(message, SOON).await?;
        site.redis.kill();
        let refused = http::get(instance.addr(), "/api/verve/accept?id=3").await?;
        assert_eq!(refused.status, 503, "{kind:?}: {}", refused.text());
        assert_eq!(instance.in_spool("SELECT count(*) FROM ids")?, 1, "{kind:?}");
        instance.process().kill();
        format(&instance, 1)?;
        site.redis.restart().await?;
        instance.restart().await?;
        wait::until("the first id", SOON, || async {
            let ids = site.members(window).await.ok()?;
            ids.iter().any(|ids| ids.contains("1")).then_some(())
        })
        .await?;
    }
    Ok(())
}
