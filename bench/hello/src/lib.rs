//! The component of the same shape that answers `ok` without Redis: requests are parsed and answered by the component's own
//! code. What it cannot reach is the platform's cost.
#![cfg(target_family = "wasm")]

#[path = "../../../accept-component/src/answer.rs"]
#[allow(dead_code)]
mod answer;
#[path = "../../../accept-component/src/http.rs"]
mod http;
#[path = "../../../accept-component/src/request.rs"]
mod request;

mod instance {
    use crate::answer::{Answer, Outcome};
    use crate::request::Accept;

    /// Answers another method than GET.
    pub async fn look_around() -> Answer {
        Answer::MethodNotAllowed
    }

    /// Parses, and records nothing.
    pub async fn answer(path_with_query: &str) -> Answer {
        match Accept::parse(path_with_query) {
            Ok(_) => Answer::Recorded(Outcome::New),
            Err(bad) => Answer::BadRequest(bad),
        }
    }
}
