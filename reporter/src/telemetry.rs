//! Log lines on standard error; and spans, exported by OTLP where OpenTelemetry's own variables say where to.

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

/// What is logged unless `RUST_LOG` says otherwise. What the Redis client notices is told once, by whoever asked.
const LEVELS: &str = "info,redis=off";
/// What spans are said to come from, unless `OTEL_SERVICE_NAME` says otherwise.
const SERVICE: &str = "verve-reporter";

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line to read
    Text,
    /// A JSON object in each line
    Json,
}

/// The way of spans to a collector, if there is one.
pub struct Traces(Option<SdkTracerProvider>);

/// Sends log lines to standard error, and spans to where `OTEL_EXPORTER_OTLP_ENDPOINT` says. `RUST_LOG` chooses which lines; by
/// default those of level info and above.
///
/// # Errors
/// When the environment names an endpoint or a setting of OpenTelemetry that is none.
pub fn init(format: LogFormat) -> anyhow::Result<Traces> {
    let provider = provider()?;
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVELS));
    // A line says all that is to be said; spans are for the collector.
    let levels = levels.and(filter_fn(|metadata| metadata.is_event()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A log that nobody reads any more stops nothing.
        .log_internal_errors(false)
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Those of libraries, and those of the export itself, are nobody's concern.
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

/// The current span for whoever is called from within it, as the header `traceparent` of W3C Trace Context; `None` without traces.
pub fn traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    let flags = span.trace_flags().to_u8();
    (span.is_valid()).then(|| format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()))
}

/// `None` where nobody asked for spans.
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
    /// Exports what is left. Not to be called within the runtime, since it blocks.
    pub fn finish(self) {
        if let Some(Err(error)) = self.0.map(|provider| provider.shutdown()) {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}
