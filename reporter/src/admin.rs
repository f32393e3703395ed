//! The admin port.
//!
//! - `/healthz` answers while the process lives, `/readyz` while it reaches Redis and Kafka
//! - `/metrics` has the metrics
//! - `/api/counts` has the reported windows, and `/api/openapi.json` describes it
//! - `/` shows the live state, and `/events` updates it
//! - `/runbooks` has the runbooks

mod auth;
mod counts;
mod page;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use verve_protocol::{WindowLength, WindowLengths};

use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::named::CounterSnapshot;
use crate::overview::Snapshot;
use crate::store::Store;
pub use auth::Token;

/// How long a health check waits for an answer.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// The headers of every response.
///
/// The page needs only its own style, script and events.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
             form-action 'self'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// The state of the admin port.
#[derive(Clone)]
pub struct Admin {
    /// The lengths of the windows.
    pub lengths: WindowLengths,
    /// Without a token, the port answers every client.
    pub token: Option<Token>,
    pub store: Store,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub snapshot: watch::Receiver<Snapshot>,
    /// The counters in use, by the length of their windows.
    pub counters: Vec<(WindowLength, watch::Receiver<Vec<CounterSnapshot>>)>,
    /// The name of this replica.
    pub replica: String,
    pub stop: CancellationToken,
}

/// Serves until a stop is requested.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let stop = admin.stop.clone();
    let serving = axum::serve(listener, router(admin));
    if let Err(error) = serving.with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("the admin port failed: {error}");
    }
}

/// Asks the reporter at this address whether it is alive.
///
/// # Errors
/// If it does not answer, or answers with another status than 200.
pub async fn healthcheck(mut address: SocketAddr) -> anyhow::Result<Vec<String>> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let client = reqwest::Client::builder().no_proxy().timeout(HEALTH_WITHIN).build()?;
    let answer = client.get(format!("http://{address}/healthz")).send().await?;
    answer.error_for_status()?;
    Ok(Vec::new())
}

fn router(admin: Admin) -> Router {
    let mut guarded = Router::new()
        .route("/metrics", get(counted))
        .route("/api/counts", get(counts::counts))
        .route("/api/counts.csv", get(counts::csv))
        .route("/api/counts/current", get(counts::current))
        .route("/api/openapi.json", get(counts::description))
        .route("/", get(page::page))
        .route("/events", get(page::events))
        .route("/runbooks", get(page::runbooks))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/icon.svg", get(page::icon))
        .fallback(async || (StatusCode::NOT_FOUND, "no such page\n"));
    if let Some(token) = admin.token.clone() {
        guarded = guarded.layer(middleware::from_fn_with_state(token, auth::check));
    }
    guarded
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .layer(middleware::map_response(with_headers))
        .with_state(admin)
}

async fn with_headers(mut response: Response) -> Response {
    response.headers_mut().extend(HEADERS);
    response
}

/// Answers every client, because orchestrators send no token.
///
/// The reasons for not being ready contain names of servers, and are only for clients with the
/// token.
async fn ready(State(admin): State<Admin>, asked: HeaderMap) -> (StatusCode, String) {
    let problems = admin.health.problems();
    if problems.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    if admin.token.is_some_and(|token| !token.is_shown(&asked)) {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned());
    }
    let lines: Vec<String> = problems
        .iter()
        .map(|(name, problem)| format!("{name}: {problem}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat())
}

async fn counted(State(admin): State<Admin>, asked: HeaderMap) -> Response {
    let formats = asked.get(ACCEPT).and_then(|formats| formats.to_str().ok());
    let openmetrics = formats.is_some_and(|formats| formats.contains("application/openmetrics-text"));
    match admin.metrics.render() {
        Ok(text) if openmetrics => ([(CONTENT_TYPE, metrics::OPENMETRICS)], text).into_response(),
        Ok(text) => {
            let text = metrics::prometheus_text(&text);
            ([(CONTENT_TYPE, metrics::PROMETHEUS_TEXT)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
