//! Calls of the library that are abandoned, or take long.
//!
//! They do not delay other calls, and each call is answered in its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Partition;
use verve_tests::host::Kind;
use verve_tests::link::Link;
use verve_tests::redis::RedisServer;
use verve_tests::{clock, examples, http};

use crate::library::examples::{example, example_with};
use crate::site::{SOON, Site};

/// The time limit for a hundred ids after a call was abandoned.
const IN_TIME: Duration = Duration::from_secs(5);

/// Abandons each call at each point at which it waits, while others count.
///
/// Then a hundred more ids are counted immediately.
#[tokio::test]
async fn each_call_can_be_given_up_at_each_point() -> Result<()> {
    for (by, call) in [
        ("crate", "add"),
        ("crate", "many"),
        ("crate", "callback"),
        ("crate", "named"),
        ("interface", "add"),
        ("interface", "many"),
        ("interface", "named"),
    ] {
        let site = Site::new(86_400).await?;
        let instance = example(&site, Kind::VerveHost, examples::GUEST)?.start().await?;
        let mut last = 0;
        let mut count = |name: u32, polls: Option<u32>| {
            last += 1;
            let polls = polls.map_or_else(String::new, |polls| format!("&polls={polls}"));
            let path = format!("/count?by={by}&call={call}&name={name}&id={last}{polls}");
            let (id, address) = (last, instance.addr());
            async move { anyhow::Ok((id, http::get(address, &path).await?.status)) }
        };
        let (mut counted, mut points) = (Vec::new(), 0);
        for polls in 1.. {
            let (_, given_up) = count(polls, Some(polls)).await?;
            // Each named counter is registered here, and gets its first ids.
            let others = (0..5).map(|_| count(polls, None)).collect::<Vec<_>>();
            let together = [count(polls, Some(polls)), count(polls, Some(polls))];
            let (others, together) = futures::try_join!(
                futures::future::try_join_all(others),
                futures::future::try_join_all(together)
            )?;
            let later = futures::future::try_join_all((0..100).map(|_| count(polls, None)));
            let later = tokio::time::timeout(IN_TIME, later)
                .await
                .with_context(|| format!("{by} {call} {polls}: {}", instance.process().log()))??;
            for (id, status) in others.into_iter().chain(later) {
                assert_eq!(status, 200, "{by} {call} {polls}: {}", instance.process().log());
                counted.push((polls, id));
            }
            if given_up == 200 && together.iter().all(|(_, status)| *status == 200) {
                points = polls - 1;
                break;
            }
            assert!(polls < 50, "{by} {call}: it never comes to its end");
        }
        assert!(points >= 1, "{by} {call}: it waits for nothing");
        // Every id that was answered 200 is in Redis, in a set that expires.
        let mut redis = site.connection().await?;
        let window = clock::current_window(site.length);
        for (polls, id) in counted {
            let mut keys = site.keys();
            if call == "named" {
                keys = keys.named(polls.to_string().parse()?);
            }
            let set = keys.ids(window, Partition::Whole);
            let (is_there, expires_in): (bool, i64) = (redis.sismember(&set, id).await?, redis.ttl(&set).await?);
            assert!(is_there && expires_in > 0, "{by} {call}: {id} in {set}, {expires_in} s");
        }
    }
    Ok(())
}

/// If an instance ends, the calls that wait in it fail.
///
/// Their clients get an error, and the next instance counts as usual.
#[tokio::test]
async fn an_instance_ends_while_others_wait() -> Result<()> {
    for by in ["crate", "interface"] {
        let site = Site::new(86_400).await?;
        let instance = example(&site, Kind::VerveHost, examples::GUEST)?.start().await?;
        let mut last = 0;
        let mut count = || {
            last += 1;
            let path = format!("/count?by={by}&call=add&id={last}");
            let (id, address) = (last, instance.addr());
            async move { anyhow::Ok((id, http::get(address, &path).await?.status)) }
        };
        assert_eq!(count().await?.1, 200, "{by}: {}", instance.process().log());
        let mut counted = Vec::new();
        for round in 0..5 {
            site.redis.pause()?;
            let waiting = futures::future::try_join_all((0..20).map(|_| count()));
            let end = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let trapped = http::get(instance.addr(), "/trap").await?;
                assert_eq!(trapped.status, 500, "{by}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                site.redis.resume()
            };
            let (waiting, ()) = futures::try_join!(waiting, end)?;
            let later = futures::future::try_join_all((0..100).map(|_| count()));
            let later = tokio::time::timeout(IN_TIME, later)
                .await
                .with_context(|| format!("{by} {round}: {}", instance.process().log()))??;
            assert!(later.iter().all(|(_, status)| *status == 200), "{by}: {later:?}");
            counted.extend(waiting.into_iter().chain(later).filter(|(_, status)| *status == 200));
        }
        let mut redis = site.connection().await?;
        let set = site.keys().ids(clock::current_window(site.length), Partition::Whole);
        for (id, _) in counted {
            assert!(redis.sismember(&set, id).await?, "{by}: {id}");
        }
    }
    Ok(())
}

/// An id is answered within four times the timeout, however slow Redis is.
///
/// docs/library.md specifies this limit. Here each command takes nearly half of the timeout, and
/// ids of many counters, each of which is first registered and indexed, wait for each other.
#[tokio::test]
async fn an_add_takes_at_most_the_time_that_is_documented() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_millis(400);
    for by in ["crate", "interface"] {
        let site = Site::with_redis(86_400, RedisServer::start().await?);
        let link = Link::start(site.redis.server().address()).await?;
        let instance = example_with(
            &site,
            Kind::VerveHost,
            examples::GUEST,
            &[("redis_timeout_ms", &TIMEOUT.as_millis().to_string())],
        )?
        .variable("redis_urls", &format!("redis://{}", link.address()))
        .start()
        .await?;
        let count = async |name: u32| {
            let path = format!("/count?by={by}&call=named&name={name}&id={name}");
            let begun = Instant::now();
            let status = http::get(instance.addr(), &path).await?.status;
            anyhow::Ok((status, begun.elapsed()))
        };
        assert_eq!(count(0).await?.0, 200, "{by}: {}", instance.process().log());
        link.delay(TIMEOUT * 45 / 100);
        let counted = futures::future::try_join_all((1..20).map(count)).await?;
        let longest = counted.iter().map(|(_, time)| *time).max().unwrap_or_default();
        // Allows for the spool's disk and other work on the machine.
        assert!(
            counted.iter().all(|(status, _)| *status == 200) && longest < 4 * TIMEOUT + Duration::from_millis(700),
            "{by}: {counted:?}"
        );
    }
    Ok(())
}

/// The first add to a hanging Redis waits; the next are spooled immediately.
#[tokio::test]
async fn only_the_first_add_waits_for_a_redis_that_hangs() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_millis(600);
    for by in ["crate", "interface"] {
        let site = Site::with_redis(86_400, RedisServer::start().await?);
        let timeout = TIMEOUT.as_millis().to_string();
        let instance = example_with(
            &site,
            Kind::VerveHost,
            examples::GUEST,
            &[("redis_timeout_ms", &timeout)],
        )?;
        let instance = instance.start().await?;
        // Another connection may lead to another instance of the component, which has to detect it
        // again.
        let mut connection = http::Connection::open(instance.addr()).await?;
        let mut count = async |id: u32| {
            let begun = Instant::now();
            let path = format!("/count?by={by}&call=add&id={id}");
            let status = connection.get(&path).await?.status;
            assert_eq!(status, 200, "{by}: {}", instance.process().log());
            anyhow::Ok(begun.elapsed())
        };
        count(0).await?;
        site.redis.pause()?;
        let first = count(1).await?;
        let mut next = Vec::new();
        for id in 2..6 {
            next.push(count(id).await?);
        }
        site.redis.resume()?;
        assert!(
            first < TIMEOUT * 3 && next.iter().all(|time| *time < TIMEOUT / 2),
            "{by}: {first:?}, {next:?}: {}",
            instance.process().log()
        );
        // The line may arrive after the answers.
        let node = site.redis.server().address().to_string();
        instance.process().wait_for_text(&node, SOON).await?;
    }
    Ok(())
}

/// An abandoned add does not affect the others, whenever it is abandoned.
#[tokio::test]
async fn an_abandoned_add_delays_no_other_call() -> Result<()> {
    for kind in Kind::available().into_iter().filter(|kind| *kind == Kind::VerveHost) {
        let site = Site::new(86_400).await?;
        let instance = example_with(&site, kind, "pixel", &[("redis_timeout_ms", "1000")])?;
        let instance = instance.start().await?;
        let mut visitor = 0;
        let mut load = |within: &str| {
            visitor += 1;
            let path = format!("/pixel.gif?visitor={visitor}{within}");
            let address = instance.addr();
            async move { anyhow::Ok(http::get(address, &path).await?.status) }
        };
        assert_eq!(load("").await?, 200);
        for round in 0..12 {
            site.redis.pause()?;
            let within = format!("&within={}", 5 + 15 * round);
            let given_up = futures::future::try_join_all((0..20).map(|_| load(&within)));
            let waiting = futures::future::try_join_all((0..10).map(|_| load("")));
            let resume = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                site.redis.resume()
            };
            let all = async { futures::try_join!(given_up, waiting, resume) };
            let (given_up, waiting, ()) = tokio::time::timeout(Duration::from_secs(5), all)
                .await
                .with_context(|| format!("round {round}: {}", instance.process().log()))??;
            assert!(
                given_up.contains(&202) && waiting.iter().all(|status| *status == 200),
                "{given_up:?} {waiting:?}"
            );
            let later = futures::future::try_join_all((0..100).map(|_| load("")));
            let later = tokio::time::timeout(Duration::from_secs(5), later)
                .await
                .with_context(|| format!("after round {round}: {}", instance.process().log()))??;
            assert!(later.iter().all(|status| *status == 200), "{later:?}");
        }
    }
    Ok(())
}
