//! `verve-reporter dead`: dead letters, listed, retried and dropped.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::AsyncCommands;
use serde_json::Value;
use verve_tests::process::Process;
use verve_tests::reporter;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, net, wait};

use crate::site::{SOON, Site, field};

/// The exit code and the output of a command.
struct Ended {
    code: Option<i32>,
    output: String,
}

/// Runs `verve-reporter dead` on this site's Redis.
async fn dead(site: &Site, arguments: &[&str]) -> Result<Ended> {
    let redis_urls = site.redis_urls();
    run(&[
        arguments,
        &["--redis-urls", &redis_urls, "--namespace", &site.namespace],
    ]
    .concat())
    .await
}

async fn run(arguments: &[&str]) -> Result<Ended> {
    let mut command = reporter::command()?;
    command.arg("dead").args(arguments);
    let process = Process::spawn("verve-reporter dead", command)?;
    let code = process.wait(SOON).await?.code();
    Ok(Ended {
        code,
        output: process.log(),
    })
}

/// Adds a dead letter, as the reporter does, and returns its id.
async fn bury(site: &Site, endpoint: &str) -> Result<String> {
    let window = clock::current_window(site.length).start().to_string();
    let fields = [
        ("endpoint", endpoint),
        ("method", "get"),
        ("window", &window),
        ("error", "status 418"),
        ("attempts", "12"),
    ];
    Ok(site
        .connection()
        .await?
        .xadd(site.keys().callbacks_dead(), "*", &fields)
        .await?)
}

/// Returns the ids that `dead list` shows.
async fn listed(site: &Site) -> Result<Vec<String>> {
    let ended = dead(site, &["list", "--json", "--limit", "100000"]).await?;
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    let jobs: Vec<Value> = serde_json::from_str(&ended.output)?;
    Ok(jobs
        .iter()
        .filter_map(|job| Some(job["id"].as_str()?.to_owned()))
        .collect())
}

#[tokio::test]
async fn dead_letters_are_listed_retried_and_delivered() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    sink.answer("/job", [500, 500, 500, 500, 200].map(Answer::status));
    let flags = ["--callback-allow", "127.0.0.1", "--callback-attempts", "2"];
    let reporter = site
        .reporter(&[&flags[..], &["--callback-backoff-ms", "50"]].concat())
        .await?;
    let window = clock::current_window(site.length);
    site.add(window, 0..3).await?;
    let endpoint = sink.url("/job?token=hunter2");
    site.add_job(&endpoint, verve_protocol::Method::Get, window).await?;
    site.dead(1, SOON).await.with_context(|| reporter.process().log())?;

    let table = dead(&site, &["list"]).await?;
    assert_eq!(table.code, Some(0));
    let json = dead(&site, &["list", "--json"]).await?;
    let jobs: Vec<Value> = serde_json::from_str(&json.output)?;
    assert_eq!(jobs.len(), 1, "{}", json.output);
    let shown = sink.url("/job");
    for (name, value) in [
        ("endpoint", Value::from(shown.as_str())),
        ("method", "get".into()),
        ("window", window.to_string().into()),
        ("attempts", 2.into()),
        ("error", "status 500".into()),
    ] {
        assert_eq!(jobs[0][name], value, "{name}");
    }
    let id = jobs[0]["id"].as_str().context("an id")?;
    let time = jobs[0]["time"].as_str().context("a time")?;
    let window = window.to_string();
    for word in [id, time, &window, "get", " 2 ", &shown, "status 500"] {
        assert!(table.output.contains(word), "{word}: {}", table.output);
    }
    for output in [&table.output, &json.output] {
        assert!(!output.contains("hunter2"), "a secret: {output}");
    }

    // It has all attempts again: it fails for good after two more, and is retried by its new id.
    let ended = dead(&site, &["retry", id]).await?;
    assert_eq!((ended.code, ended.output.trim()), (Some(0), "retried 1"));
    sink.wait_for("/job", 4, SOON).await?;
    let again = wait::until("the job's second death", SOON, || async {
        listed(&site).await.ok().filter(|ids| ids.len() == 1)
    })
    .await?;
    assert_ne!(again, [id]);
    assert_eq!(dead(&site, &["retry", "--all"]).await?.output.trim(), "retried 1");
    let received = sink.wait_for("/job", 5, SOON).await?;
    assert_eq!(received[4].target, "/job?token=hunter2&unique_count=3");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sink.received().len(), 5);
    assert!(listed(&site).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn some_are_retried_and_dropped_and_unknown_ones_are_named() -> Result<()> {
    let site = Site::new(60).await?;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(bury(&site, &format!("http://e.com/{n}?x=1")).await?);
    }
    // An id given twice counts once.
    let ended = dead(&site, &["retry", &ids[0], "1-1", &ids[1], &ids[0]]).await?;
    assert_eq!(ended.code, Some(1));
    assert!(ended.output.contains("retried 2"), "{}", ended.output);
    let complaints: Vec<&str> = ended.output.lines().filter(|line| line.contains("1-1:")).collect();
    assert_eq!(complaints.len(), 1, "{}", ended.output);
    let ended = dead(&site, &["drop", &ids[2], "2-2"]).await?;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.output.contains("dropped 1") && ended.output.contains("2-2:"),
        "{}",
        ended.output
    );
    assert_eq!(listed(&site).await?, [ids[3].as_str()]);
    // The job in the stream is as the component wrote it.
    let jobs = site.stream(&site.keys().callbacks()).await?;
    let endpoints: Vec<&str> = jobs.iter().map(|job| field(job, "endpoint")).collect();
    assert_eq!(endpoints, ["http://e.com/0?x=1", "http://e.com/1?x=1"]);
    assert!(jobs.iter().all(|job| job.len() == 3), "{jobs:?}");
    Ok(())
}

#[tokio::test]
async fn all_of_many_are_retried_or_dropped() -> Result<()> {
    let site = Site::new(60).await?;
    let key = site.keys().callbacks_dead();
    let mut redis = site.connection().await?;
    let fill = redis::Script::new(
        "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'endpoint', 'http://e.com/' .. n, \
         'method', 'get', 'window', '60', 'error', 'e', 'attempts', '1') end",
    );
    for command in ["retry", "drop"] {
        let () = fill.key(&key).arg(1234).invoke_async(&mut redis).await?;
        // Not a valid job: it cannot be retried, and does not prevent the others.
        let () = redis
            .xadd(&key, "*", &[("error", "not readable"), ("attempts", "0")])
            .await?;
        assert_eq!(listed(&site).await?.len(), 1235);
        // First a dry run.
        let ended = dead(&site, &[command, "--all", "--dry-run"]).await?;
        let jobs = if command == "retry" { 1234 } else { 1235 };
        assert!(
            ended.output.contains(&format!("would {command} {jobs}")),
            "{}",
            ended.output
        );
        assert_eq!(ended.output.matches("http://e.com/").count(), 1234);
        assert_eq!(ended.code, Some(i32::from(command == "retry")));
        let listed_still = listed(&site).await?;
        assert_eq!(listed_still.len(), 1235);
        let retried = if command == "retry" { 0 } else { 1234 };
        assert_eq!(site.stream(&site.keys().callbacks()).await?.len(), retried);
        let ended = dead(&site, &[command, "--dry-run", &listed_still[1], "1-1"]).await?;
        assert!(
            ended.output.contains(&format!("would {command} 1")) && ended.output.contains("1-1:"),
            "{}",
            ended.output
        );
        let ended = dead(&site, &[command, "--all"]).await?;
        if command == "retry" {
            assert_eq!(ended.code, Some(1));
            assert!(ended.output.contains("retried 1234"), "{}", ended.output);
            assert_eq!(listed(&site).await?.len(), 1, "what is no job stays");
            assert_eq!(site.stream(&site.keys().callbacks()).await?.len(), 1234);
            assert_eq!(dead(&site, &["drop", "--all"]).await?.output.trim(), "dropped 1");
        } else {
            assert_eq!(ended.output.trim(), "dropped 1235");
            assert_eq!(ended.code, Some(0));
        }
        assert!(listed(&site).await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn the_newest_are_listed_first_and_100_of_them() -> Result<()> {
    let site = Site::new(60).await?;
    let mut ids = Vec::new();
    for n in 0..120 {
        ids.push(bury(&site, &format!("http://e.com/{n}")).await?);
    }
    ids.reverse();
    for (arguments, count) in [(&[][..], 100), (&["--limit", "7"], 7), (&["--limit", "1000"], 120)] {
        let ended = dead(&site, &[&["list", "--json"], arguments].concat()).await?;
        let jobs: Vec<Value> = serde_json::from_str(&ended.output)?;
        let shown: Vec<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
        assert_eq!(shown, ids[..count], "{arguments:?}");
        let table = dead(&site, &[&["list"], arguments].concat()).await?;
        assert_eq!(table.output.lines().count(), count + 1, "a line each, and the header");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_command_line_exits_with_64_and_an_unreachable_redis_with_1() -> Result<()> {
    for arguments in [
        &[][..],
        &["retry"],
        &["drop"],
        &["retry", "--all", "1-0"],
        &["drop", "--all", "1-0"],
        &["retry", "1"],
        &["drop", "x-0"],
        &["list", "--limit", "x"],
        &["bury", "--all"],
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.output);
        assert_eq!(ended.output.lines().count(), 1, "{arguments:?}: {}", ended.output);
    }
    let nobody = net::free_address()?.to_string();
    let urls = format!("redis://:hunter2@{nobody}");
    for arguments in [&["list"][..], &["retry", "--all"], &["drop", "1-0"]] {
        let ended = run(&[arguments, &["--redis-urls", &urls]].concat()).await?;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.output);
        assert_eq!(ended.output.lines().count(), 1, "{arguments:?}: {}", ended.output);
        assert_eq!(ended.output.matches("refused").count(), 1, "{}", ended.output);
        assert!(
            ended.output.contains(&nobody) && !ended.output.contains("hunter2"),
            "{}",
            ended.output
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_help_names_the_available_values() -> Result<()> {
    for (arguments, words) in [
        (
            &["--help"][..],
            &["list", "retry", "drop", "--redis-urls", "--namespace"][..],
        ),
        (&["list", "--help"], &["--json", "--limit", "100"]),
        (&["retry", "--help"], &["--all", "ID", "--dry-run"]),
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.code, Some(0), "{arguments:?}");
        for word in words {
            assert!(ended.output.contains(word), "{arguments:?} {word}: {}", ended.output);
        }
    }
    Ok(())
}
