//! Answers requests on the route, independent of the host's HTTP types.

use std::cell::Cell;

use verve_counter::{Counter, InvalidVariable};

use crate::request::Accept;
use crate::response::Response;

/// Answers a GET request on the route.
pub async fn answer(path_with_query: &str) -> Response {
    let counter = match Counter::get().await {
        Ok(counter) => counter,
        Err(error) => return misconfigured(&error),
    };
    match Accept::open(path_with_query, |name| counter.open_permitted(name)) {
        Ok((Accept { id, callback, .. }, named)) => {
            let counter = named.unwrap_or(counter);
            Response::Answered(counter.add_with_callback(id, callback).await)
        }
        Err(bad) => {
            counter.count_invalid();
            Response::BadRequest(bad)
        }
    }
}

/// Answers a request with another method than GET.
///
/// The instance that runs for this request also drains what is left in the spool.
pub async fn look_around() -> Response {
    match Counter::get().await {
        Ok(counter) => {
            counter.look_into_spool();
            Response::MethodNotAllowed
        }
        Err(error) => misconfigured(&error),
    }
}

thread_local! {
    /// Whether this instance has logged the problem with its variables.
    static LOGGED: Cell<bool> = const { Cell::new(false) };
}

fn misconfigured(error: &InvalidVariable) -> Response {
    if !LOGGED.replace(true) {
        eprintln!("verve: {error}");
    }
    Response::Misconfigured
}
