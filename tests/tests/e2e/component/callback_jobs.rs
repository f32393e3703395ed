//! Callback jobs as the component writes them.

use anyhow::Result;
use verve_tests::host::Kind;
use verve_tests::http::Connection;
use verve_tests::{clock, http};

use crate::site::{Site, field};

/// Returns rows of: endpoint as sent, endpoint in the stream, method in the stream.
fn table() -> Vec<(String, String, &'static str)> {
    let longest = format!("http://e.com/{}", "x".repeat(2048 - 13));
    // The same decoded length, three times that when encoded.
    let encoded = format!("http://e.com/{}", "%78".repeat(2048 - 13));
    let rows = [
        ("endpoint=http://e.com", "http://e.com", "get"),
        ("endpoint=http://e.com/&method=get", "http://e.com/", "get"),
        ("method=post&endpoint=https://e.com/", "https://e.com/", "post"),
        (
            "endpoint=http%3A%2F%2Fe.com%2Fa%3Fb%3Dc%26d%3D%2Be",
            "http://e.com/a?b=c&d=+e",
            "get",
        ),
        // An endpoint with its own query, encoded only where necessary.
        ("endpoint=http://e.com/?a=b=c/d?e", "http://e.com/?a=b=c/d?e", "get"),
        // Decoded only once: what the endpoint itself encodes stays encoded.
        ("endpoint=http://e.com/%2520%253F", "http://e.com/%20%3F", "get"),
        ("endpoint=HTTPS://E.com:8443/%23f", "HTTPS://E.com:8443/#f", "get"),
        ("endpoint=http://e.com/stra%C3%9Fe", "http://e.com/straße", "get"),
        // The component does not check for private addresses; the reporter does.
        ("endpoint=http://127.0.0.1:1/", "http://127.0.0.1:1/", "get"),
        ("endpoint=http://[::1]/", "http://[::1]/", "get"),
    ];
    let mut table: Vec<_> = rows.map(|(q, e, m)| (q.to_owned(), e.to_owned(), m)).into();
    table.push((format!("endpoint={longest}"), longest.clone(), "get"));
    table.push((format!("endpoint={encoded}"), longest, "get"));
    table
}

#[tokio::test]
async fn jobs_are_written_as_requested() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).start().await?;
        let mut connection = Connection::open(instance.addr()).await?;
        let table = table();
        for (query, ..) in &table {
            // Always the same id: the endpoint of a duplicate is called as well.
            let response = connection.get(&format!("/api/verve/accept?id=1&{query}")).await?;
            assert_eq!(response.status, 200, "{kind:?} {query}: {response:?}");
        }
        let window = clock::current_window(site.length).start().to_string();
        let jobs = site.stream(&site.keys().callbacks()).await?;
        assert_eq!(jobs.len(), table.len(), "{kind:?}: {jobs:?}");
        for (job, (query, endpoint, method)) in jobs.iter().zip(&table) {
            let expected = [
                ("endpoint", endpoint.as_str()),
                ("length", &site.length.to_string()),
                ("method", method),
                ("window", &window),
            ];
            let expected = expected.map(|(n, v)| (n.to_owned(), v.to_owned()));
            assert_eq!(job, &expected, "{kind:?} {query}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_default_method_is_a_variable() -> Result<()> {
    for kind in Kind::every() {
        let site = Site::with_one_window().await?;
        let instance = site.host(kind).variable("callback_method", "post").start().await?;
        for more in ["", "&method=get"] {
            let target = format!("/api/verve/accept?id=1&endpoint=http://e.com{more}");
            assert_eq!(http::get(instance.addr(), &target).await?.status, 200, "{kind:?}");
        }
        let jobs = site.stream(&site.keys().callbacks()).await?;
        let methods: Vec<&str> = jobs.iter().map(|job| field(job, "method")).collect();
        assert_eq!(methods, ["post", "get"], "{kind:?}");
    }
    Ok(())
}
