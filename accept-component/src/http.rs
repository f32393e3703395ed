//! HTTP by the host's own types: what is not read of a request, and how the response is made, decide the speed.

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
        let company = YieldGuard::join();
        let answer = match request.get_method() {
            Method::Get => accept::answer(&request.get_path_with_query().unwrap_or_default()).await,
            _ => accept::look_around().await,
        };
        respond(answer, company)
    }
}

/// A future that is spawned beside a request's own and waits until that is over.
///
/// `wit-bindgen` drives a request by futures' `FuturesUnordered`, which wakes itself once it has polled all that it holds, since
/// somebody else might want to go on. `wit-bindgen` takes that for a yield. To the host a request that yields comes after all that is
/// new: under load, those that have only their response to finish would never come to an end, and fill its tables. Whenever the
/// request's own future is polled, this one is not, and so not all are.
struct YieldGuard(Sender<()>);

impl YieldGuard {
    fn join() -> Self {
        let (leave, left) = oneshot::channel();
        spawn(async move {
            // An error tells that it was left.
            let _ = left.await;
        });
        // Ready at once, and so the end of the round in which the other one is polled.
        spawn(future::ready(()));
        Self(leave)
    }

    /// The request is over.
    fn leave(self) {
        drop(self.0);
    }
}

fn respond(answer: Response, company: YieldGuard) -> Result<types::Response, ErrorCode> {
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
        // The body before the trailers: the other way round the host sends the head by itself and the body after it.
        body.write_all(answer.body().as_bytes().to_vec()).await;
        drop(body);
        // If the client has gone, nobody reads them.
        let _ = trailers.write(Ok(None)).await;
        company.leave();
    });
    Ok(response)
}
