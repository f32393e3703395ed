//! A component of the same shape as Verve's that answers `ok` without Redis.
//!
//! The component's own code parses and answers the requests. Any rate that it cannot reach shows
//! the cost of the platform.
#![cfg(target_family = "wasm")]

#[path = "../../../accept-component/src/http.rs"]
mod http;
#[path = "../../../accept-component/src/request.rs"]
#[allow(dead_code)]
mod request;
#[path = "../../../accept-component/src/response.rs"]
#[allow(dead_code)]
mod response;

mod accept {
    use verve_counter::Outcome;

    use crate::request::Accept;
    use crate::response::Response;

    /// Answers a method other than GET.
    pub async fn look_around() -> Response {
        Response::MethodNotAllowed
    }

    /// Parses the request, and records nothing.
    pub async fn answer(path_with_query: &str) -> Response {
        match Accept::parse(path_with_query) {
            Ok(_) => Response::Answered(Ok(Outcome::New)),
            Err(bad) => Response::BadRequest(bad),
        }
    }
}
