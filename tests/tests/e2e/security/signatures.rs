//! Signed callbacks, verified as an endpoint does.
//!
//! Uses the public library of the Standard Webhooks scheme.

use std::time::Duration;

use anyhow::{Context as _, Result};
use standardwebhooks::Webhook;
use verve_protocol::Method;
use verve_tests::clock;
use verve_tests::sink::{Answer, Received, Sink};

use crate::site::{SOON, Site};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEXT: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NOBODY_S: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn verifies(secret: &str, received: &Received) -> bool {
    verifies_as(secret, received, &received.body)
}

/// Returns whether a call is signed for this content.
fn verifies_as(secret: &str, received: &Received, content: &str) -> bool {
    let mut headers = axum::http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let value = received.header(name).unwrap_or_default();
        headers.insert(name, value.parse().expect("a header"));
    }
    let webhook = Webhook::new(secret).expect("a secret");
    webhook.verify(content.as_bytes(), &headers).is_ok()
}

#[tokio::test]
async fn calls_are_signed_by_each_secret() -> Result<()> {
    let site = Site::with_one_window().await?;
    let sink = Sink::start().await?;
    sink.answer("/post", [Answer::status(500), Answer::status(200)]);
    let folder = tempfile::tempdir()?;
    let secrets = folder.path().join("secrets").display().to_string();
    std::fs::write(&secrets, format!("{SECRET}\n{NEXT}\n"))?;
    let flags = [
        "--callback-allow",
        "127.0.0.1",
        "--callback-backoff-ms",
        "4000",
        "--callback-secret-file",
        &secrets,
    ];
    let reporter = site.reporter(&flags).await?;
    let window = clock::current_window(site.length);
    site.add_job(&sink.url("/post"), Method::Post, window).await?;
    let posts = sink.wait_for("/post", 2, SOON).await?;
    for post in &posts {
        assert!(verifies(SECRET, post) && verifies(NEXT, post), "{post:?}");
        assert!(!verifies(NOBODY_S, post), "{post:?}");
        let mut forged = post.clone();
        forged.body = r#"{"unique_count":1000000}"#.to_owned();
        assert!(!verifies(SECRET, &forged), "{forged:?}");
    }
    // One message, sent twice at different times.
    assert_eq!(posts[0].header("webhook-id"), posts[1].header("webhook-id"));
    assert_ne!(
        posts[0].header("webhook-timestamp"),
        posts[1].header("webhook-timestamp")
    );

    site.add_job(&sink.url("/get?a=%20b"), Method::Get, window).await?;
    let get = &sink.wait_for("/get", 1, SOON).await?[0];
    let (_, query) = get.target.split_once('?').expect("a query");
    assert!(query.starts_with("a=%20b&unique_count="), "{get:?}");
    for secret in [SECRET, NEXT] {
        assert!(
            verifies_as(secret, get, "") && verifies_as(secret, get, query),
            "{get:?}"
        );
        assert!(!verifies_as(secret, get, "a=%20b&unique_count=1000000"), "{get:?}");
    }
    assert!(!verifies_as(NOBODY_S, get, query) && !verifies_as(NOBODY_S, get, ""));
    let log = reporter.process().log();
    assert!(!log.contains("whsec_") && !log.contains(&SECRET[6..]), "{log}");
    Ok(())
}

/// Verifies as documented for a Python endpoint: a GET's query is not JSON.
#[tokio::test]
async fn python_verifies_both_methods() -> Result<()> {
    let python = std::env::var_os("VERVE_TESTS_WEBHOOKS").context("a Python with the package standardwebhooks")?;
    let site = Site::with_one_window().await?;
    let sink = Sink::start().await?;
    let flags = ["--callback-allow", "127.0.0.1", "--callback-secret", SECRET];
    let _reporter = site.reporter(&flags).await?;
    let window = clock::current_window(site.length);
    site.add_job(&sink.url("/post"), Method::Post, window).await?;
    site.add_job(&sink.url("/get?a=b"), Method::Get, window).await?;
    let (post, get) = (
        sink.wait_for("/post", 1, SOON).await?,
        sink.wait_for("/get", 1, SOON).await?,
    );
    let query = get[0].target.split_once('?').map(|(_, query)| query.to_owned());
    let query = query.context("a query")?;
    const VERIFY: &str = "\
import json, sys
from standardwebhooks import Webhook
secret, data, headers, *raw = sys.argv[1:]
payload = Webhook(secret).verify(data, json.loads(headers), **({'json_parse': False} if raw else {}))
print(payload)
";
    let verifies = |received: &Received, data: &str, raw: &[&str]| -> Result<Option<String>> {
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers = names.map(|name| (name, received.header(name).unwrap_or_default()));
        let headers = serde_json::to_string(&std::collections::BTreeMap::from(headers))?;
        let mut command = std::process::Command::new(&python);
        command.args(["-c", VERIFY, SECRET, data, &headers]).args(raw);
        let output = command.output()?;
        let payload = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(output.status.success().then_some(payload))
    };
    let payload = verifies(&post[0], &post[0].body, &[])?;
    assert_eq!(payload.as_deref(), Some("{'unique_count': 0}"));
    assert_eq!(verifies(&get[0], &query, &["raw"])?.as_deref(), Some("None"));
    // As the documentation warns.
    assert_eq!(verifies(&get[0], &query, &[])?, None);
    assert_eq!(verifies(&get[0], "a=b&unique_count=9", &["raw"])?, None);
    Ok(())
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed() -> Result<()> {
    let site = Site::with_one_window().await?;
    let sink = Sink::start().await?;
    let _reporter = site.reporter(&["--callback-allow", "127.0.0.1"]).await?;
    let window = clock::current_window(site.length);
    site.add_job(&sink.url("/post"), Method::Post, window).await?;
    let post = sink.wait_for("/post", 1, Duration::from_secs(15)).await?;
    assert!(
        post[0].headers.keys().all(|name| !name.starts_with("webhook-")),
        "{post:?}"
    );
    Ok(())
}
