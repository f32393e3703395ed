//! `/api/counts`, and who may see it and the rest of the admin port.

use anyhow::Result;
use serde_json::Value;
use verve_protocol::Report;
use verve_tests::http::{self, Connection};
use verve_tests::reporter::Reporter;
use verve_tests::{clock, wait};

use crate::site::{SOON, Site};

async fn counts(reporter: &Reporter, query: &str) -> Result<Vec<Value>> {
    let response = http::get(reporter.address(), &format!("/api/counts{query}")).await?;
    assert_eq!(response.status, 200, "{query}: {}", response.text());
    assert_eq!(response.header("content-type"), Some("application/json"));
    Ok(serde_json::from_slice(&response.body)?)
}

#[tokio::test]
async fn reported_windows_are_told() -> Result<()> {
    let site = Site::new(2).await?;
    let reporter = site.reporter(&["--late-seconds", "30"]).await?;
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    let query = format!("?from={window}&to={}", window.end());
    let told = async |revision: u64| {
        wait::until("the count", SOON, || async {
            let counts = counts(&reporter, &query).await.ok()?;
            counts.first().filter(|count| count["revision"] == revision)?;
            Some(counts)
        })
        .await
    };
    let first = told(0).await?;
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["count"], &first[0]["final"]), (&3.into(), &false.into()));
    assert_eq!(first[0]["window"], window.to_string());
    assert_eq!(first[0]["start"], window.start());
    let reported_at = first[0]["reported_at"].as_str().expect("a time");
    let reported_at: jiff::Timestamp = reported_at.parse()?;
    assert!((0..15).contains(&(reported_at.as_second() - window.end().cast_signed())));
    site.add(window, 3..5).await?;
    assert_eq!(told(1).await?[0]["count"], 5);
    // Without bounds it is the last hour, in order.
    let all = counts(&reporter, "").await?;
    assert!(
        all.windows(2)
            .all(|pair| pair[0]["start"].as_u64() < pair[1]["start"].as_u64())
    );
    assert!(all.iter().any(|count| count["start"] == window.start()));
    Ok(())
}

#[tokio::test]
async fn final_windows_and_those_of_long_ago_are_told() -> Result<()> {
    let site = Site::new(60).await?;
    let reporter = site.reporter(&[]).await?;
    let report = Report {
        count: 7,
        revision: 2,
        time: 1_700_000_100_250,
        first: 0,
        late: 0,
        is_final: true,
    };
    let () = redis::AsyncCommands::hset(
        &mut site.first().await?,
        site.keys().reports(site.length),
        1_699_999_980,
        report.to_json(),
    )
    .await?;
    let counts = counts(&reporter, "?from=2023-11-14T22:00:00Z&to=1700000400").await?;
    let expected = serde_json::json!([{
        "window": "2023-11-14T22:13:00Z", "start": 1_699_999_980, "count": 7, "revision": 2, "final": true,
        "reported_at": "2023-11-14T22:15:00.25Z",
    }]);
    assert_eq!(Value::from(counts), expected);
    for (query, word) in [
        ("?from=2&to=1", "after"),
        ("?from=0", "at most"),
        ("?from=soon", "RFC 3339"),
        ("?from=1&from=2", "from"),
    ] {
        let response = http::get(reporter.address(), &format!("/api/counts{query}")).await?;
        assert_eq!(response.status, 400, "{query}");
        assert!(response.text().contains(word), "{query}: {}", response.text());
    }
    site.redis[0].kill();
    let response = http::get(reporter.address(), "/api/counts").await?;
    assert_eq!(response.status, 503, "{}", response.text());
    Ok(())
}

#[tokio::test]
async fn all_but_healthz_wants_the_token() -> Result<()> {
    const TOKEN: &str = "open-sesame-8";
    let site = Site::new(60).await?;
    let reporter = Reporter::start(&site.flags(&["--admin-token", TOKEN]))?;
    reporter.process().wait_for_text("holding the lease", SOON).await?;
    let ask = async |path: &str, header: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: verve.test\r\n{header}\r\n");
        Connection::open(reporter.address())
            .await?
            .exchange(request.as_bytes())
            .await
    };
    let bearer = format!("authorization: Bearer {TOKEN}\r\n");
    // `any:open-sesame-8`, what a browser sends.
    let basic = "authorization: Basic YW55Om9wZW4tc2VzYW1lLTg=\r\n";
    for path in [
        "/",
        "/page.css",
        "/page.js",
        "/events",
        "/api/counts",
        "/metrics",
        "/readyz",
        "/nothing",
    ] {
        for wrong in [
            "",
            "authorization: Bearer open-sesame-9\r\n",
            "authorization: Bearer \r\n",
        ] {
            let response = ask(path, wrong).await?;
            assert_eq!(response.status, 401, "{path} {wrong}");
            assert!(response.header("www-authenticate").is_some());
            assert!(!response.text().contains(TOKEN));
        }
        // It never ends; the page's tests read it.
        if path != "/events" {
            let status = if path == "/nothing" { 404 } else { 200 };
            assert_eq!(ask(path, &bearer).await?.status, status, "{path}");
            assert_eq!(ask(path, basic).await?.status, status, "{path}");
        }
    }
    assert_eq!(ask("/healthz", "").await?.status, 200);
    assert!(
        !reporter.process().log().contains(TOKEN),
        "{}",
        reporter.process().log()
    );
    Ok(())
}
