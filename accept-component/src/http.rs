//! HTTP by the host's own types: what is not read of a request, and how the response is made, decide the speed.

use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use spin_sdk::wasip3::{wit_future, wit_stream};
use wit_bindgen::{spawn, yield_async};

use crate::answer::Answer;
use crate::instance;

struct Component;

spin_sdk::wasip3::http::service::export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let answer = match request.get_method() {
            Method::Get => instance::answer(&request.get_path_with_query().unwrap_or_default()).await,
            _ => instance::look_around().await,
        };
        // Lets the host finish what it is about, so that head and body of this response leave in one write.
        yield_async().await;
        respond(answer)
    }
}

fn respond(answer: Answer) -> Result<Response, ErrorCode> {
    let headers = answer
        .headers()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let headers = Fields::from_list(&headers).map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    let (mut body, body_reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(body_reader), trailers_reader);
    response
        .set_status_code(answer.status())
        .map_err(|()| ErrorCode::InternalError(None))?;
    spawn(async move {
        // The body before the trailers: the other way round the host sends the head by itself and the body after it.
        body.write_all(answer.body().as_bytes().to_vec()).await;
        drop(body);
        // If the client has gone, nobody reads them.
        let _ = trailers.write(Ok(None)).await;
    });
    Ok(response)
}
