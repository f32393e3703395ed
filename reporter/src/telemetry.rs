//! Log lines on standard error, and spans by OTLP.
//!
//! Spans are exported if OpenTelemetry's own variables name a target.

use std::env;

use anyhow::Context as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// The default of `RUST_LOG`.
///
/// The Redis client is off: the calling code reports its errors once.
const LEVELS: &str = "info,redis=off";
/// The service name of spans, unless `OTEL_SERVICE_NAME` sets another one.
const SERVICE: &str = "verve-reporter";

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Plain text lines
    Text,
    /// One JSON object per line
    Json,
}

/// The exporter of spans, if a collector is configured.
pub struct Traces(Option<SdkTracerProvider>);

/// Sends log lines to standard error, and spans to `OTEL_EXPORTER_OTLP_ENDPOINT`.
///
/// `RUST_LOG` selects the lines; by default those of level info and above.
///
/// # Errors
/// If the environment has an invalid endpoint, or another invalid setting of OpenTelemetry.
pub fn init(format: LogFormat) -> anyhow::Result<Traces> {
    let provider = provider()?;
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVELS));
    // Each line is complete without its span; spans are only for the collector.
    let levels = levels.and(filter_fn(|metadata| metadata.is_event()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A log without a reader must not stop the reporter.
        .log_internal_errors(false)
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Leaves out the spans of libraries, and those of the export itself.
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("verve_reporter"));
    let spans = provider.as_ref().map(|provider| {
        let tracer = provider.tracer(SERVICE);
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours)
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(levels))
        .with(spans)
        .init();
    Ok(Traces(provider))
}

/// Returns the current span as the header `traceparent` of W3C Trace Context.
///
/// The service that is called within the span continues the trace with it. `None` without traces.
pub fn traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    let flags = span.trace_flags().to_u8();
    (span.is_valid()).then(|| format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()))
}

/// Returns `None` if no target for spans is configured.
fn provider() -> anyhow::Result<Option<SdkTracerProvider>> {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    if !set("OTEL_EXPORTER_OTLP_ENDPOINT") && !set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let resource = Resource::builder();
    let resource = if set("OTEL_SERVICE_NAME") {
        resource
    } else {
        resource.with_service_name(SERVICE)
    };
    Ok(Some(
        SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build(),
    ))
}

impl Traces {
    /// Exports the remaining spans.
    ///
    /// It blocks, so it must not be called within the runtime.
    pub fn finish(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}
