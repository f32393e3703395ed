//! A tracking pixel, which counts its visitors.
//!
//! `GET /pixel.gif?visitor=<number>` returns an image of one pixel, and counts the visitor. With
//! `&within=<milliseconds>`, it returns the image after at most this time. If it is not known by
//! then whether the visitor is counted, the status is 202.
#![cfg(target_family = "wasm")]

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use spin_sdk::http::{FullBody, HeaderMap, HeaderValue, IntoResponse, Request, StatusCode};
use spin_sdk::http_service;
use spin_sdk::time::sleep;
use verve_counter::{Counter, Id, InvalidVariable, NotCounted, Outcome};

/// A GIF of one transparent pixel.
const PIXEL: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

#[http_service]
async fn pixel(request: Request) -> impl IntoResponse {
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let visitor = parameter("visitor=");
    let Some(visitor) = visitor.and_then(|visitor| visitor.parse::<Id>().ok()) else {
        return answer(
            StatusCode::BAD_REQUEST,
            Bytes::from_static(b"expected ?visitor=<number>\n"),
        );
    };
    let counted = match parameter("within=").and_then(|within| within.parse().ok()) {
        None => count(visitor).await,
        // The count is cancelled after this time, but the visitor may still be counted.
        Some(within) => match future::select(pin!(count(visitor)), pin!(sleep(Duration::from_millis(within)))).await {
            Either::Left((counted, _)) => counted,
            Either::Right(_) => return answer(StatusCode::ACCEPTED, Bytes::from_static(PIXEL)),
        },
    };
    match counted {
        Ok(Ok(_)) => answer(StatusCode::OK, Bytes::from_static(PIXEL)),
        // Redis is unreachable and there is no spool, or a limit is exceeded: see the counter's
        // log.
        Ok(Err(_)) => answer(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        Err(misconfigured) => {
            eprintln!("{misconfigured}");
            answer(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new())
        }
    }
}

/// Counts a visitor. No other code is necessary for that.
async fn count(visitor: Id) -> Result<Result<Outcome, NotCounted>, InvalidVariable> {
    Ok(Counter::get().await?.add(visitor).await)
}

fn answer(status: StatusCode, body: Bytes) -> (StatusCode, HeaderMap, FullBody<Bytes>) {
    let content = if status.is_success() { "image/gif" } else { "text/plain" };
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(content));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    (status, headers, FullBody::new(body))
}
