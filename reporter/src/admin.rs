//! The admin port: `/healthz` says that the process lives, `/readyz` that it reaches Redis and Kafka.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// Serves until a stop is asked for.
pub async fn serve(listener: TcpListener, health: Arc<Health>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    {
        tracing::error!("the admin port failed: {error}");
    }
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    let problems = health.problems();
    if problems.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines: Vec<String> = problems
        .iter()
        .map(|(name, error)| format!("{name}: {error}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.concat())
}
