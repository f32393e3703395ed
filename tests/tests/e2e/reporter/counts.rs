//! Tests `/api/counts`, `verve-reporter counts`, and access to the admin port.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;
use verve_protocol::Report;
use verve_tests::host::Kind;
use verve_tests::http::{self, Connection};
use verve_tests::process::Process;
use verve_tests::reporter::{self, Reporter};
use verve_tests::{clock, wait};

use crate::site::{SOON, Site};

async fn counts(reporter: &Reporter, query: &str) -> Result<Vec<Value>> {
    let response = http::get(reporter.address(), &format!("/api/counts{query}")).await?;
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    assert_eq!(response.header("content-type"), Some("application/json"));
    Ok(serde_json::from_slice(&response.body)?)
}

#[tokio::test]
async fn reported_windows_are_shown() -> Result<()> {
    let site = Site::new(2).await?;
    let reporter = site.reporter(&["--late-seconds", "30"]).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    let query = format!("?from={window}&to={}", window.end());
    let reported = async |revision: u64| {
        wait::until("the count", SOON, || async {
            let counts = counts(&reporter, &query).await.ok()?;
            counts.first().filter(|count| count["revision"] == revision)?;
            Some(counts)
        })
        .await
    };
    let first = reported(0).await?;
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["count"], &first[0]["final"]), (&3.into(), &false.into()));
    assert_eq!(first[0]["window"], window.to_string());
    assert_eq!(first[0]["start"], window.start());
    let reported_at = first[0]["reported_at"].as_str().expect("a time");
    let reported_at: jiff::Timestamp = reported_at.parse()?;
    assert!((0..15).contains(&(reported_at.as_second() - window.end().cast_signed())));
    site.add(window, 3..5).await?;
    assert_eq!(reported(1).await?[0]["count"], 5);
    // Without bounds, the newest windows are returned, newest first.
    let all = counts(&reporter, "").await?;
    assert!(
        all.windows(2)
            .all(|pair| pair[0]["start"].as_u64() > pair[1]["start"].as_u64())
    );
    assert!(all.iter().any(|count| count["start"] == window.start()));
    Ok(())
}

/// Requests and duplicates equal Kafka's headers.
///
/// They remain when the statistics have expired.
#[tokio::test]
async fn requests_and_the_open_window_are_shown() -> Result<()> {
    let site = Site::new(3).await?;
    let reporter = site.reporter(&["--grace-ms", "1500", "--late-seconds", "30"]).await?;
    let host = site.host(Kind::VerveHost).start().await?;
    let window = clock::next_window(site.length).await;
    for id in [1, 2, 2, 3, 3] {
        http::get(host.addr(), &format!("/api/verve/accept?id={id}")).await?;
    }
    let current = wait::until("the open window", SOON, || async {
        let response = http::get(reporter.address(), "/api/counts/current").await.ok()?;
        let current: Value = serde_json::from_slice(&response.body).ok()?;
        (current["requests"] == 5).then_some(current)
    });
    let expected = serde_json::json!({
        "window": window.to_string(), "start": window.start(), "end": window.end(), "window_seconds": 3,
        "count": 3, "requests": 5, "duplicates": 2,
    });
    assert_eq!(current.await?, expected);
    let query = format!("?from={window}&to={}", window.end());
    let reported = wait::until("the report", SOON, || async {
        counts(&reporter, &query).await.ok()?.pop()
    });
    let reported = reported.await?;
    assert_eq!(
        (
            &reported["count"],
            &reported["requests"],
            &reported["duplicates"],
            &reported["late"]
        ),
        (&3.into(), &5.into(), &2.into(), &0.into())
    );
    // A correction without statistics.
    let () = redis::AsyncCommands::del(&mut site.connection().await?, site.keys().stats(window)).await?;
    site.add(window, 4..6).await?;
    let reported = wait::until("the correction", SOON, || async {
        counts(&reporter, &query)
            .await
            .ok()?
            .pop()
            .filter(|count| count["revision"] == 1)
    });
    let reported = reported.await?;
    assert_eq!((&reported["count"], &reported["requests"]), (&5.into(), &5.into()));
    Ok(())
}

/// Creates a site with reports of these windows before the current one.
///
/// Each report has its number as its count.
async fn with_reports(before: impl Iterator<Item = u64>) -> Result<Site> {
    let site = Site::new(60).await?;
    let current = clock::current_window(site.length).start();
    let mut redis = site.connection().await?;
    for n in before {
        let report = Report {
            count: n,
            time: (current - n * 60 + 62) * 1000,
            is_final: true,
            ..Report::default()
        };
        let key = site.keys().reports(site.length);
        let () = redis::AsyncCommands::hset(&mut redis, key, current - n * 60, report.to_json()).await?;
    }
    Ok(site)
}

#[tokio::test]
async fn pages_lead_to_all_there_is() -> Result<()> {
    // With a gap longer than one batch.
    let numbers = (1..=70).chain(3000..3050);
    let site = with_reports(numbers.clone()).await?;
    let reporter = Reporter::start(&site.flags(&[]))?;
    let (mut path, mut reported) = (Some("/api/counts?limit=50".to_owned()), Vec::new());
    let mut pages = 0;
    while let Some(page) = path.take() {
        let response = wait::until("a page", SOON, || async {
            http::get(reporter.address(), &page).await.ok()
        });
        let response = response.await?;
        assert_eq!(response.status, 200, "{page}: {}", response.text());
        let counts: Vec<Value> = serde_json::from_slice(&response.body)?;
        reported.extend(
            counts
                .iter()
                .filter(|count| count["final"] == true)
                .map(|count| count["count"].as_u64()),
        );
        path = response.header("link").map(|link| {
            let next = link
                .strip_suffix(">; rel=\"next\"")
                .and_then(|link| link.strip_prefix('<'));
            let next = next.filter(|next| next.starts_with('?'));
            format!("/api/counts{}", next.expect("a link to the next page"))
        });
        pages += 1;
    }
    assert_eq!(reported, numbers.map(Some).collect::<Vec<_>>());
    assert_eq!(pages, 3);
    Ok(())
}

#[tokio::test]
async fn counts_on_the_command_line() -> Result<()> {
    let site = with_reports(1..=3).await?;
    let run = async |more: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = reporter::command()?;
        command.arg("counts").args(["--redis-urls", &site.redis_urls()]);
        command.args(["--namespace", &site.namespace]).args(more);
        let process = Process::spawn("verve-reporter counts", command)?;
        let status = process.wait(SOON).await?;
        Ok((status.code(), process.log()))
    };
    let (code, table) = run(&["--limit", "2"]).await?;
    assert_eq!(code, Some(0), "{table}");
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("WINDOW") && lines[0].contains("UNIQUE"), "{table}");
    let current = clock::current_window(site.length);
    let columns: Vec<&str> = lines[1].split_whitespace().collect();
    // The next minute may have begun.
    assert!([1, 2].contains(&(clock::current_window(site.length).start() - window_start(columns[0])?).div_euclid(60)));
    assert_eq!(columns[1..], ["1", "0", "0", "0", "0", "yes"]);
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[3].contains("--to"), "{table}");
    let (code, json) = run(&["--json", "--to", &current.to_string()]).await?;
    assert_eq!(code, Some(0), "{json}");
    assert_eq!(serde_json::from_str::<Vec<Value>>(&json)?.len(), 3, "{json}");
    let (code, refused) = run(&["--from", "soon"]).await?;
    assert_eq!(code, Some(64), "{refused}");
    assert!(refused.contains("--from") && refused.contains("RFC 3339"), "{refused}");
    site.redis.kill();
    let (code, away) = {
        let mut command = reporter::command()?;
        command.arg("counts").args(["--redis-urls", &site.redis_urls()]);
        let process = Process::spawn("verve-reporter counts", command)?;
        (process.wait(SOON).await?.code(), process.log())
    };
    assert_eq!((code, away.lines().count()), (Some(1), 1), "{away}");
    Ok(())
}

fn window_start(text: &str) -> Result<u64> {
    let time: jiff::Timestamp = text.parse()?;
    Ok(u64::try_from(time.as_second())?)
}

/// The description lists exactly the fields that are answered.
#[tokio::test]
async fn the_description_of_the_api() -> Result<()> {
    let site = with_reports(1..=1).await?;
    let reporter = site.reporter(&[]).await?;
    let get = async |path: &str| -> Result<Value> {
        let response = http::get(reporter.address(), path).await?;
        assert_eq!(response.status, 200, "{path}");
        Ok(serde_json::from_slice(&response.body)?)
    };
    let description = get("/api/openapi.json").await?;
    assert!(
        description["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3."))
    );
    let paths = description["paths"].as_object().expect("paths");
    let all = ["/api/counts", "/api/counts.csv", "/api/counts/current"];
    assert_eq!(paths.keys().collect::<Vec<_>>(), all);
    let parameters = |path: &str| -> Vec<String> {
        let parameters = description["paths"][path]["get"]["parameters"].as_array();
        let names = parameters.expect("parameters").iter();
        names
            .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned))
            .collect()
    };
    for path in &all[..2] {
        assert_eq!(parameters(path), ["from", "to", "limit", "counter", "window_seconds"]);
    }
    // The CSV has the same windows, with a column for each field.
    let csv = http::get(reporter.address(), "/api/counts.csv").await?;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let csv = csv.text();
    let mut lines = csv.lines();
    let names: BTreeSet<&str> = lines.next().context("names")?.split(',').collect();
    let counts = get("/api/counts").await?;
    let fields = counts[0].as_object().context("an object")?;
    assert_eq!(names, fields.keys().map(String::as_str).collect());
    let first = lines.next().context("a window")?;
    assert!(
        first.starts_with(counts[0]["window"].as_str().context("a window")?),
        "{first}"
    );
    assert_eq!(first.split(',').count(), names.len(), "{first}");
    assert_eq!(parameters("/api/counts/current"), ["counter", "window_seconds"]);
    let described = |schema: &str| -> BTreeSet<String> {
        let properties = description["components"]["schemas"][schema]["properties"].as_object();
        properties.expect("a schema").keys().cloned().collect()
    };
    let found = |value: &Value| -> BTreeSet<String> { value.as_object().expect("an object").keys().cloned().collect() };
    assert_eq!(described("Count"), found(&get("/api/counts").await?[0]));
    // With one length, there are no longer windows in the answer.
    assert_eq!(described("Open"), found(&get("/api/counts/current").await?));
    Ok(())
}

#[tokio::test]
async fn wrong_requests_are_refused() -> Result<()> {
    let site = Site::new(60).await?;
    let reporter = site.reporter(&[]).await?;
    for (query, word) in [
        ("?from=2&to=1", "after"),
        ("?limit=0", "limit"),
        ("?limit=many", "limit"),
        ("?form=1", "form"),
        ("?from=soon", "RFC 3339"),
        ("?from=1&from=2", "from"),
        ("?counter=a%2Fb", "1 to 64"),
        ("/current?counter=a%2Fb", "1 to 64"),
        ("/current?from=1", "from"),
    ] {
        let response = http::get(reporter.address(), &format!("/api/counts{query}")).await?;
        assert_eq!(response.status, 400, "{query}");
        assert!(response.text().contains(word), "{query}: {}", response.text());
    }
    site.redis.kill();
    for path in ["/api/counts", "/api/counts/current"] {
        let response = http::get(reporter.address(), path).await?;
        assert_eq!(response.status, 503, "{}", response.text());
    }
    Ok(())
}

#[tokio::test]
async fn all_but_health_wants_the_token() -> Result<()> {
    const TOKEN: &str = "open-sesame-8";
    let site = Site::new(60).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token").display().to_string();
    std::fs::write(&file, format!("{TOKEN}\n"))?;
    let reporter = Reporter::start(&site.flags(&["--admin-token-file", &file]))?;
    reporter.process().wait_for_text("holding the lease", SOON).await?;
    let ask = async |path: &str, header: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: verve.test\r\n{header}\r\n");
        Connection::open(reporter.address())
            .await?
            .exchange(request.as_bytes())
            .await
    };
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    // `any:open-sesame-8`, as a browser sends it.
    let basic = "authorization: Basic YW55Om9wZW4tc2VzYW1lLTg=\r\n";
    for path in [
        "/",
        "/page.css",
        "/page.js",
        "/runbooks",
        "/events",
        "/api/counts",
        "/api/counts/current",
        "/api/openapi.json",
        "/metrics",
        "/nothing",
    ] {
        for wrong in [
            "",
            "authorization: Bearer open-sesame-9\r\n",
            "authorization: Bearer \r\n",
        ] {
            let response = ask(path, wrong).await?;
            assert_eq!(response.status, 401, "{path} {wrong}");
            let challenges = response.headers.iter().filter(|(name, _)| name == "www-authenticate");
            let schemes: Vec<_> = challenges.filter_map(|(_, asked)| asked.split(' ').next()).collect();
            assert_eq!(schemes, ["Basic", "Bearer"], "each in a line, for Chromium");
            assert!(!response.text().contains(TOKEN));
        }
        // This stream never ends; the tests of the page read it.
        if path != "/events" {
            let status = if path == "/nothing" { 404 } else { 200 };
            assert_eq!(ask(path, &bearer).await?.status, status, "{path}");
            assert_eq!(ask(path, basic).await?.status, status, "{path}");
        }
    }
    assert_eq!(ask("/healthz", "").await?.status, 200);
    assert_eq!(ask("/readyz", "").await?.status, 200);
    site.redis.kill();
    let away = wait::until("not ready", SOON, async || {
        let response = ask("/readyz", "").await.ok()?;
        (response.status == 503).then_some(response)
    });
    assert_eq!(away.await?.text(), "not ready\n");
    let why = ask("/readyz", &bearer).await?;
    assert!(
        why.status == 503 && why.text().contains("Redis redis://"),
        "{}",
        why.text()
    );
    assert!(
        !reporter.process().log().contains(TOKEN),
        "{}",
        reporter.process().log()
    );
    Ok(())
}
