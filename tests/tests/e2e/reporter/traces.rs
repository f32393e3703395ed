//! Spans, as a collector receives them.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use verve_protocol::Method;
use verve_tests::process::Process;
use verve_tests::sink::{Answer, Sink};
use verve_tests::{clock, reporter};

use crate::site::{SOON, Site};

type Exports = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// Starts a collector that keeps what it receives; returns its address.
async fn collector() -> Result<(String, Exports)> {
    let exports = Exports::default();
    let kept = exports.clone();
    let receive = post(async move |body: Bytes| {
        let export = ExportTraceServiceRequest::decode(body).expect("protobuf");
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(export);
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().route("/v1/traces", receive)).into_future());
    Ok((url, exports))
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(n) => Some(n.to_string()),
        other => Some(format!("{other:?}")),
    }
}

#[tokio::test]
async fn reports_and_callbacks_are_traced() -> Result<()> {
    let (url, exports) = collector().await?;
    let site = Site::new(1).await?;
    let sink = Sink::start().await?;
    sink.answer("/bad", [Answer::status(500)]);
    let mut command = reporter::command()?;
    command
        .args(site.flags(&["--callback-allow", "127.0.0.1", "--callback-attempts", "1"]))
        .args(["--listen", &verve_tests::net::free_address()?.to_string()])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    let process = Process::spawn("verve-reporter", command)?;
    let window = clock::current_window(site.length);
    site.add_job(&sink.url("/good?secret=hunter2"), Method::Post, window)
        .await?;
    site.add_job(&sink.url("/bad"), Method::Get, window).await?;
    process.wait_for_text("window reported", SOON).await?;
    process.wait_for_text("callback delivered", SOON).await?;
    process.wait_for_text("callback given up on", SOON).await?;
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.wait(SOON).await?.code(), Some(0), "{}", process.log());

    let exports = exports.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let resources: Vec<_> = exports.iter().flat_map(|export| &export.resource_spans).collect();
    assert!(format!("{:?}", resources[0].resource).contains("verve-reporter"));
    let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
    let spans: Vec<&Span> = scopes.flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| {
        spans
            .iter()
            .copied()
            .filter(|span| span.name == name)
            .collect::<Vec<_>>()
    };
    let report = named("window report");
    assert!(
        attribute(report[0], "window").is_some_and(|window| window.ends_with('Z')),
        "{report:?}"
    );
    let calls = named("callback delivery");
    let to = |path: &str| {
        let found = calls
            .iter()
            .find(|span| attribute(span, "endpoint") == Some(sink.url(path)));
        *found.unwrap_or_else(|| panic!("{path} in {calls:?}"))
    };
    let (good, bad) = (to("/good"), to("/bad"));
    assert_eq!(attribute(good, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(bad, "http.response.status_code").as_deref(), Some("500"));
    // The endpoint can continue the trace.
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parent = format!("00-{}-{}-01", hex(&good.trace_id), hex(&good.span_id));
    let received = sink.received_at("/good");
    assert_eq!(received[0].header("traceparent"), Some(parent.as_str()));
    assert_eq!(good.status.as_ref().map_or(0, |status| status.code), 0);
    assert_eq!(bad.status.as_ref().map_or(0, |status| status.code), 2);
    assert_eq!(spans.len(), report.len() + calls.len(), "others' spans: {spans:?}");
    // Log lines are the same as without traces.
    assert!(!process.log().contains("callback delivery"), "{}", process.log());
    Ok(())
}
