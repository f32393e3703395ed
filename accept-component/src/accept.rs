//! What the route does, whatever HTTP it comes by.

use verve_counter::{Answer, Counter};

use crate::request::Accept;
use crate::response::Response;

/// Answers a GET on the route.
pub async fn answer(path_with_query: &str) -> Response {
    let counter = match Counter::get().await {
        Ok(counter) => counter,
        Err(error) => {
            eprintln!("verve: {error}");
            return Response::Answered(Answer::Unavailable);
        }
    };
    match Accept::parse(path_with_query) {
        Ok(Accept { id, callback }) => Response::Answered(counter.add_with_callback(id, callback).await),
        Err(bad) => {
            counter.count_invalid();
            Response::BadRequest(bad)
        }
    }
}

/// Answers another method than GET. That an instance is there is enough for what is left in the spool.
pub async fn look_around() -> Response {
    if let Ok(counter) = Counter::get().await {
        counter.look_into_spool();
    }
    Response::MethodNotAllowed
}
