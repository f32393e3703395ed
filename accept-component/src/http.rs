//! HTTP with the host's own types, for speed.
//!
//! It reads only the needed parts of a request, and controls how the response is written.

use futures::channel::oneshot::{self, Sender};
use futures::future;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{self, ErrorCode, Fields, Method, Request};
use spin_sdk::wasip3::{wit_future, wit_stream};
use wit_bindgen::spawn;

use crate::accept;
use crate::response::Response;

struct Component;

spin_sdk::wasip3::http::service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<types::Response, ErrorCode> {
        let guard = YieldGuard::join();
        let answer = match request.get_method() {
            Method::Get => accept::answer(&request.get_path_with_query().unwrap_or_default()).await,
            _ => accept::look_around().await,
        };
        respond(answer, guard)
    }
}

/// A future beside that of a request, which waits until the request is over.
///
/// `wit-bindgen` drives a request with `FuturesUnordered`, which wakes itself after it has polled
/// all its futures, so that other tasks can run. `wit-bindgen` treats this as a yield. The host
/// resumes a request that yields only after all new ones: under load, requests that have only their
/// response to finish would never end, and would fill the host's tables. When the request's own
/// future is polled, this one is not, so never all of them are polled.
struct YieldGuard(Sender<()>);

impl YieldGuard {
    fn join() -> Self {
        let (leave, left) = oneshot::channel();
        spawn(async move {
            // The error means that the guard has left.
            let _ = left.await;
        });
        // Ready immediately. It ends the round in which the other future is polled.
        spawn(future::ready(()));
        Self(leave)
    }

    /// Ends the future, because the request is over.
    fn leave(self) {
        drop(self.0);
    }
}

fn respond(answer: Response, guard: YieldGuard) -> Result<types::Response, ErrorCode> {
    let headers = answer
        .headers()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let headers = Fields::from_list(&headers).map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    let (mut body, body_reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _sent) = types::Response::new(headers, Some(body_reader), trailers_reader);
    response
        .set_status_code(answer.status())
        .map_err(|()| ErrorCode::InternalError(None))?;
    spawn(async move {
        // The body is written before the trailers: in the other order, the host sends the head
        // alone and the body after it.
        body.write_all(answer.body().as_bytes().to_vec()).await;
        drop(body);
        // If the client is disconnected, nothing reads the trailers.
        let _ = trailers.write(Ok(None)).await;
        guard.leave();
    });
    Ok(response)
}
