//! The usual service instead of a component, in native Rust with axum.
//!
//! It has one multiplexed Redis connection and sends one `SADD` for each request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Parser;
use redis::aio::MultiplexedConnection;
use serde::Deserialize;

const WINDOW_SECONDS: u64 = 60;

#[derive(Parser)]
struct Arguments {
    /// Address to serve HTTP on
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// URL of the Redis server
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,
}

struct Site {
    redis: MultiplexedConnection,
    expiring: AtomicU64,
}

#[derive(Deserialize)]
struct Accept {
    id: i64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_millis(500)));
    let client = redis::Client::open(arguments.redis_url)?;
    let redis = client.get_multiplexed_async_connection_with_config(&config).await?;
    let site = Site {
        redis,
        expiring: AtomicU64::new(0),
    };
    let router = Router::new()
        .route("/api/verve/accept", get(accept))
        .with_state(Arc::new(site));
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // With Nagle's algorithm a response waits in vain for the next one.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await?;
    Ok(())
}

async fn accept(State(site): State<Arc<Site>>, Query(Accept { id }): Query<Accept>) -> impl IntoResponse {
    let headers = |outcome: &'static str| {
        [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (HeaderName::from_static("verve-outcome"), outcome),
        ]
    };
    match record(&site, id).await {
        Ok(true) => (StatusCode::OK, headers("new"), "ok"),
        Ok(false) => (StatusCode::OK, headers("duplicate"), "ok"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, headers("none"), "failed"),
    }
}

async fn record(site: &Site, id: i64) -> Result<bool> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let start = now - now % WINDOW_SECONDS;
    let key = format!("axum:ids:{WINDOW_SECONDS}:{start}");
    let mut redis = site.redis.clone();
    let added: u64 = redis::cmd("SADD").arg(&key).arg(id).query_async(&mut redis).await?;
    if site.expiring.swap(start, Ordering::Relaxed) != start {
        redis::cmd("EXPIRE")
            .arg(&key)
            .arg(86_400)
            .exec_async(&mut redis)
            .await?;
    }
    Ok(added == 1)
}
