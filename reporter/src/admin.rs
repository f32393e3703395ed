//! The admin port: `/healthz` says that the process lives, `/readyz` that it reaches Redis and Kafka; `/metrics` counts;
//! `/api/counts` tells what was reported, and `/api/openapi.json` how to ask; `/` shows what is going on, and `/events` keeps it up to date;
//! `/runbooks` says what to do.

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
use verve_protocol::WindowLength;

use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::named::SeenCounter;
use crate::overview::Seen;
use crate::store::Store;
pub use auth::Token;

/// How long a health check waits for an answer.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// What every response says. The page needs its own style, script and events, and nothing else from anywhere.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// What the port tells of.
#[derive(Clone)]
pub struct Admin {
    /// Of the windows that it tells of.
    pub length: WindowLength,
    /// Without one it answers everybody.
    pub token: Option<Token>,
    pub store: Store,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub seen: watch::Receiver<Seen>,
    /// The named counters.
    pub counters: watch::Receiver<Vec<SeenCounter>>,
    /// The name of this replica.
    pub replica: String,
    pub stop: CancellationToken,
}

/// Serves until a stop is asked for.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let stop = admin.stop.clone();
    let serving = axum::serve(listener, router(admin));
    if let Err(error) = serving.with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!("the admin port failed: {error}");
    }
}

/// Asks the reporter that listens there whether it lives.
///
/// # Errors
/// If it does not answer, or with another status than 200.
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

/// For everybody, as orchestrators show no token. Why it is not ready names servers, and is for those who do.
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
