//! Verve's Spin component: counts the ids of `GET /api/verve/accept?id=…`.
//!
//! It counts with [`verve_counter`]. The build for WASI 0.3 consists of these modules:
//!
//! - [`request`]: parses the query into an `Accept`, or a bad request
//! - `accept`: counts the id
//! - [`response`]: turns the outcome into status, headers and body, which `http` sends
//!
//! The build for WASI 0.2 has `wasip2` in place of `accept` and `http`.
//!
//! Modules that call the host exist only in the WebAssembly builds; the others are tested natively.

#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod accept;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod http;
pub mod request;
pub mod response;
#[cfg(all(target_family = "wasm", feature = "wasip2"))]
mod wasip2;
