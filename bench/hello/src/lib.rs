//! The component of the same shape that answers `ok` without Redis: requests are parsed and answered by the component's own
//! code. What it cannot reach is the platform's cost.
#![cfg(target_family = "wasm")]

#[path = "../../../accept-component/src/http.rs"]
mod http;
#[path = "../../../accept-component/src/request.rs"]
mod request;
#[path = "../../../accept-component/src/response.rs"]
#[allow(dead_code)]
mod response;

mod accept {
    use verve_counter::Outcome;

    use crate::request::Accept;
    use crate::response::Response;

    /// Answers another method than GET.
    pub async fn look_around() -> Response {
        Response::MethodNotAllowed
    }

    /// Parses, and records nothing.
    pub async fn answer(path_with_query: &str) -> Response {
        match Accept::parse(path_with_query) {
            Ok(_) => Response::Answered(Ok(Outcome::New)),
            Err(bad) => Response::BadRequest(bad),
        }
    }
}
