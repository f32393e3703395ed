//! Verve's Spin component: `GET /api/verve/accept?id=…` in, an id counted by [`verve_counter`].
//!
//! - [`request`]: the query becomes an `Accept`, or a bad request
//! - `accept`: counts it
//! - [`response`]: what came of it, as status, headers and body; `http` sends it
//!
//! So it is in the build for WASI 0.3. The one for WASI 0.2 has `wasip2` in place of `accept` and `http`.
//!
//! What talks to the host exists only in the WebAssembly builds; the rest is tested natively.

#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod accept;
#[cfg(all(target_family = "wasm", not(feature = "wasip2")))]
mod http;
pub mod request;
pub mod response;
#[cfg(all(target_family = "wasm", feature = "wasip2"))]
mod wasip2;
