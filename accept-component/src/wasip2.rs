//! HTTP in the build for WASI 0.2.

use verve_counter::blocking::Counter;

use crate::request::Accept;
use crate::response::Response;
use bindings::exports::wasi::http0_2_0::incoming_handler::Guest;
use bindings::wasi::http0_2_0::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/http-wasip2",
        generate_all,
    });

    use super::Component;
    export!(Component);
}

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let counter = match Counter::get() {
            Ok(counter) => counter,
            Err(error) => {
                eprintln!("verve: {error}");
                return respond(response, Response::Misconfigured);
            }
        };
        if !matches!(request.method(), Method::Get) {
            return respond(response, Response::MethodNotAllowed);
        }
        let query = request.path_with_query().unwrap_or_default();
        let opened = Accept::open(&query, |name| counter.open_permitted(name));
        let answer = match &opened {
            Ok((Accept { id, callback, .. }, named)) => {
                let counter = named.as_ref().unwrap_or(&counter);
                Response::Answered(counter.add_with_callback(*id, callback.clone()))
            }
            Err(bad) => {
                counter.count_invalid();
                Response::BadRequest(*bad)
            }
        };
        respond(response, answer);
        // When the counters are dropped here, they flush statistics: the client does not wait for
        // that.
    }
}

/// Sends a response. A disconnected client is not a failure.
fn respond(to: ResponseOutparam, answer: Response) {
    let headers = answer
        .headers()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    // Nothing here fails: names, values and status are valid, and each part is taken once.
    let Ok(headers) = Fields::from_list(&headers) else {
        return;
    };
    let response = OutgoingResponse::new(headers);
    let (Ok(()), Ok(body)) = (response.set_status_code(answer.status()), response.body()) else {
        return;
    };
    ResponseOutparam::set(to, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(answer.body().as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}
