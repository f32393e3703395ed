//! Counts visitors, and forwards each request to the application behind it.
//!
//! The visitor is in the header `x-visitor`, or else in `?visitor=<number>`. The request is
//! forwarded as it is, and the application's response is returned. The application is composed with
//! this component, and knows nothing of it.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};
use verve_counter::{Counter, Id};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "example:forward/forward",
        with: { "wasi:http/types@0.3.0": spin_sdk::wasip3::http::types },
        generate_all,
    });

    use super::Forward;
    spin_sdk::wasip3::http::service::export!(Forward with_types_in spin_sdk::wasip3);
}

struct Forward;

impl Guest for Forward {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        if let Some(visitor) = visitor(&request) {
            count(visitor).await;
        }
        bindings::wasi::http::handler::handle(request).await
    }
}

/// Returns the visitor, if the request names one.
fn visitor(request: &Request) -> Option<Id> {
    let headers = request.get_headers().get("x-visitor");
    let header = headers.first().and_then(|value| str::from_utf8(value).ok());
    let path = request.get_path_with_query().unwrap_or_default();
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let queried = query.split('&').find_map(|pair| pair.strip_prefix("visitor="));
    header.or(queried)?.parse().ok()
}

/// Counts a visitor. If this fails, the request is forwarded nevertheless.
async fn count(visitor: Id) {
    let counter = match Counter::get().await {
        Ok(counter) => counter,
        Err(misconfigured) => return eprintln!("{misconfigured}"),
    };
    if let Err(error) = counter.add(visitor).await {
        eprintln!("visitor {visitor} is not counted: {error}");
    }
}
