//! Callbacks that succeed: which requests are sent, and what remains in Redis.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use verve_protocol::Method;
use verve_tests::host::Kind;
use verve_tests::sink::{Answer, Received, Sink};
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site};

const ALLOW: [&str; 2] = ["--callback-allow", "127.0.0.1"];

#[track_caller]
fn assert_get(request: &Received, target: &str) {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", target));
    assert_eq!(request.body, "");
}

#[track_caller]
fn assert_post(request: &Received, target: &str, count: u64) {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", target));
    assert_eq!(request.header("content-type"), Some("application/json"), "{request:?}");
    assert_eq!(request.body, format!(r#"{{"unique_count":{count}}}"#));
}

#[tokio::test]
async fn from_the_request_to_the_endpoint() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::new(60).await?;
        let sink = Sink::start().await?;
        let instance = site.host(kind).start().await?;
        let reporter = site.reporter(&ALLOW).await?;
        let port = sink.port();
        let get = format!("endpoint=http%3A%2F%2F127.0.0.1%3A{port}%2Fget%3Fa%3Db%26c%3D%2520d");
        let post = format!("endpoint=http://127.0.0.1:{port}/post&method=post");
        let mut key = String::new();
        // All within one window, which does not end soon.
        if clock::current_window(site.length).end_ms() - clock::now_ms() < 5_000 {
            clock::next_window(site.length).await;
        }
        for query in ["id=1", "id=2", "id=3", &format!("id=3&{get}"), &format!("id=3&{post}")] {
            let response = http::get(instance.addr(), &format!("/api/verve/accept?{query}")).await?;
            assert_eq!(response.status, 200, "{kind:?} {query}");
            key = clock::current_window(site.length).to_string();
        }
        let got = sink
            .wait_for("/get", 1, SOON)
            .await
            .with_context(|| reporter.process().log())?;
        assert_get(&got[0], "/get?a=b&c=%20d&unique_count=3");
        let posted = sink.wait_for("/post", 1, SOON).await?;
        assert_post(&posted[0], "/post", 3);
        for request in [&got[0], &posted[0]] {
            assert_eq!(request.header("verve-window"), Some(key.as_str()), "{kind:?}");
            assert_eq!(
                request.header("verve-revision"),
                None,
                "{kind:?}: the fixed callback's alone"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_count_joins_the_query_that_is_there() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let _reporter = site.reporter(&ALLOW).await?;
    let window = clock::current_window(site.length);
    site.add(window, 0..5).await?;
    for (path, endpoint, target) in [
        ("/", "", "/?unique_count=5"),
        ("/a", "/a", "/a?unique_count=5"),
        ("/b", "/b?", "/b?unique_count=5"),
        ("/c", "/c?x", "/c?x&unique_count=5"),
        ("/d", "/d?x=1&y=%26+z", "/d?x=1&y=%26+z&unique_count=5"),
        ("/e", "/e?unique_count=9", "/e?unique_count=9&unique_count=5"),
        ("/f", "/f#part", "/f?unique_count=5"),
        ("/g", "/g?x=1#part?y", "/g?x=1&unique_count=5"),
        ("/h%2Fi", "/h%2Fi", "/h%2Fi?unique_count=5"),
    ] {
        site.add_job(&sink.url(endpoint), Method::Get, window).await?;
        let received = sink.wait_for(path, 1, SOON).await.context(endpoint)?;
        assert_get(&received[0], target);
    }
    // A POST does not change the query.
    site.add_job(&sink.url("/p?x=1&y=%26"), Method::Post, window).await?;
    assert_post(&sink.wait_for("/p", 1, SOON).await?[0], "/p?x=1&y=%26", 5);
    Ok(())
}

#[tokio::test]
async fn the_count_is_that_of_the_jobs_window() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let now = clock::current_window(site.length);
    let earlier = now.previous().context("a window before")?;
    site.add(now, 0..5).await?;
    site.add(earlier, 0..9).await?;
    let _reporter = site.reporter(&ALLOW).await?;
    for (path, window, count) in [
        ("/now", now, "5"),
        ("/earlier", earlier, "9"),
        ("/next", now.next(), "0"),
    ] {
        site.add_job(&sink.url(path), Method::Get, window).await?;
        let received = sink.wait_for(path, 1, SOON).await?;
        assert_get(&received[0], &format!("{path}?unique_count={count}"));
        assert_eq!(received[0].header("verve-window"), Some(window.to_string().as_str()));
    }
    Ok(())
}

#[tokio::test]
async fn a_delivered_job_is_gone_and_its_status_is_logged() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let reporter = site.reporter(&ALLOW).await?;
    let window = clock::current_window(site.length);
    for status in [200, 202, 204] {
        let path = format!("/status-{status}-x");
        sink.answer(&path, [Answer::status(status)]);
        site.add_job(&sink.url(&path), Method::Post, window).await?;
        sink.wait_for(&path, 1, SOON).await?;
        let status = status.to_string();
        let of_status = |l: &str| {
            let rest = l.replace(&path, "").replace(&sink.port().to_string(), "");
            rest.split(|c: char| !c.is_ascii_alphanumeric())
                .any(|word| word == status)
        };
        let line = reporter.process().wait_for_line(SOON, of_status).await;
        line.with_context(|| format!("status {status}"))?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(sink.received().len(), 3, "none is delivered twice");
    // Nothing is pending: no job, no acknowledgement, no retry.
    let keys = site.keys();
    let empty = wait::until("nothing to be left", SOON, || async {
        let mut redis = site.connection().await.ok()?;
        let groups: redis::streams::StreamInfoGroupsReply = redis.xinfo_groups(keys.callbacks()).await.ok()?;
        let retries: usize = redis.zcard(keys.callbacks_retry()).await.ok()?;
        let pending: usize = groups.groups.iter().map(|group| group.pending).sum();
        (groups.groups.len() == 1 && pending == 0 && retries == 0).then_some(())
    });
    empty.await?;
    assert!(site.stream(&keys.callbacks_dead()).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_fixed_callback_receives_each_report() -> Result<()> {
    for (method, more) in [("POST", &[][..]), ("GET", &["--callback-method", "get"])] {
        let site = Site::new(1).await?;
        let sink = Sink::start().await?;
        let url = sink.url("/fixed?key=1");
        let flags = [&["--callback-url", &url, ALLOW[0], ALLOW[1]], more].concat();
        let _reporter = site.reporter(&flags).await?;
        let window = clock::next_window(site.length).await;
        site.add(window, 0..5).await?;
        let of_window = |received: Vec<Received>, key: &str| {
            let of_window = |r: &Received| r.header("verve-window") == Some(key);
            received.into_iter().filter(of_window).collect::<Vec<_>>()
        };
        let key = window.to_string();
        for (revision, count) in [(0, 5), (1, 7)] {
            site.add(window, 0..count).await?;
            let requests = wait::until("the fixed callback", SOON, || async {
                let requests = of_window(sink.received(), &key);
                (requests.len() > revision).then_some(requests)
            })
            .await?;
            let request = &requests[revision];
            let revision = revision.to_string();
            assert_eq!(request.header("verve-revision"), Some(revision.as_str()));
            if method == "POST" {
                assert_post(request, "/fixed?key=1", u64::try_from(count)?);
            } else {
                assert_get(request, &format!("/fixed?key=1&unique_count={count}"));
            }
        }
        // Empty windows are announced as well, each once.
        let next = window.next().to_string();
        wait::until("the next window's", SOON, || async {
            (!of_window(sink.received(), &next).is_empty()).then_some(())
        })
        .await?;
        assert_eq!(of_window(sink.received(), &key).len(), 2, "{method}");
        assert_eq!(of_window(sink.received(), &next).len(), 1, "{method}");
    }
    Ok(())
}
