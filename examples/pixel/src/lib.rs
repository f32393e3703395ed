//! A tracking pixel: `GET /pixel.gif?visitor=<number>` answers an image of one pixel, and counts the visitor.
#![cfg(target_family = "wasm")]

use bytes::Bytes;
use spin_sdk::http::{FullBody, HeaderMap, HeaderValue, IntoResponse, Request, StatusCode};
use spin_sdk::http_service;
use verve_counter::{Answer, Counter, Id};

/// A GIF of one transparent pixel.
const PIXEL: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

#[http_service]
async fn pixel(request: Request) -> impl IntoResponse {
    let query = request.uri().query().unwrap_or_default();
    let visitor = query.split('&').find_map(|pair| pair.strip_prefix("visitor="));
    let Some(visitor) = visitor.and_then(|visitor| visitor.parse::<Id>().ok()) else {
        return answer(
            StatusCode::BAD_REQUEST,
            Bytes::from_static(b"expected ?visitor=<number>\n"),
        );
    };
    match count(visitor).await {
        Ok(Answer::Recorded(_)) => answer(StatusCode::OK, Bytes::from_static(PIXEL)),
        Ok(_) => answer(StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        Err(error) => {
            eprintln!("{error}");
            answer(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new())
        }
    }
}

/// All there is to counting.
async fn count(visitor: Id) -> Result<Answer, String> {
    Ok(Counter::get().await?.add(visitor).await)
}

fn answer(status: StatusCode, body: Bytes) -> (StatusCode, HeaderMap, FullBody<Bytes>) {
    let content = if status == StatusCode::OK {
        "image/gif"
    } else {
        "text/plain"
    };
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(content));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    (status, headers, FullBody::new(body))
}
