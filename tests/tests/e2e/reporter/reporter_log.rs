//! What the reporter logs: one line per window and callback result, no secrets.

use anyhow::{Context, Result};
use serde_json::Value;
use verve_protocol::Method;
use verve_tests::clock;
use verve_tests::sink::{Answer, Sink};

use crate::site::{SOON, Site};

#[tokio::test]
async fn windows_and_callbacks_are_a_line_each_in_json() -> Result<()> {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let site = Site::new(1).await?;
    let sink = Sink::start().await?;
    sink.answer("/flaky", [Answer::status(503), Answer::status(204)]);
    let flags = [
        "--log-format",
        "json",
        "--callback-allow",
        "127.0.0.1",
        "--callback-backoff-ms",
        "50",
    ];
    let secret = ["--callback-secret", SECRET];
    let reporter = site.reporter(&[&flags[..], &secret].concat()).await?;
    let process = reporter.process();
    let window = clock::next_window(site.length).await;
    site.add(window, 0..3).await?;
    site.add_job(&sink.url("/flaky?token=hunter2"), Method::Post, window)
        .await?;
    let window = window.to_string();
    process
        .wait_for_line(SOON, |line| line.contains("window reported") && line.contains(&window))
        .await?;
    process.wait_for_text("callback delivered", SOON).await?;

    let lines: Vec<Value> = (process.lines().iter())
        .map(|line| serde_json::from_str(line).with_context(|| line.clone()))
        .collect::<Result<_>>()?;
    let logged = |message: &str| {
        let of_window = |line: &&Value| {
            line["window"] == window.as_str() && line["message"].as_str().is_some_and(|text| text.starts_with(message))
        };
        lines.iter().filter(of_window).collect::<Vec<_>>()
    };
    let (reported, failed, delivered) = (
        logged("window reported"),
        logged("callback failed"),
        logged("callback delivered"),
    );
    assert_eq!(
        (reported.len(), failed.len(), delivered.len()),
        (1, 1, 1),
        "{}",
        process.log()
    );
    assert_eq!(
        (&reported[0]["unique"], &reported[0]["revision"]),
        (&3.into(), &0.into())
    );
    assert_eq!(
        (&failed[0]["status"], &failed[0]["level"]),
        (&503.into(), &"WARN".into())
    );
    assert_eq!(
        (&delivered[0]["status"], &delivered[0]["attempt"]),
        (&204.into(), &2.into())
    );
    assert_eq!(delivered[0]["endpoint"], sink.url("/flaky"));
    assert!(
        !process.log().contains("hunter") && !process.log().contains("whsec"),
        "{}",
        process.log()
    );
    Ok(())
}
