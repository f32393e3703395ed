//! The component built for WASI 0.2, which every Spin since 2.0 can run. It answers as the other build does.
//!
//! An instance serves one request there, and each call of the host blocks it. So there is nothing to keep, nothing to share, and no
//! spool; what one request asks of Redis is one script.

mod redis;

use std::time::SystemTime;

use verve_protocol::keys::stats;
use verve_protocol::{CallbackJob, Window};

use crate::answer::{Answer, Limit, Outcome};
use crate::config::{self, Config, Log, VARIABLES};
use crate::failures;
use crate::request::{Accept, Callback};
use bindings::exports::wasi::http0_2_0::incoming_handler::Guest;
use bindings::fermyon::spin::variables;
use bindings::wasi::http0_2_0::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use redis::{Note, Redis, Unrecorded};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/wasip2",
        generate_all,
    });

    use super::Component;
    export!(Component);
}

struct Component;

impl Guest for Component {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        if !matches!(request.method(), Method::Get) {
            return respond(response, Answer::MethodNotAllowed);
        }
        let config = match load() {
            Ok(config) => config,
            Err(error) => {
                eprintln!("verve: {error}");
                return respond(response, Answer::Unavailable);
            }
        };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let window = config.window_length.window_at_ms(now.as_millis() as u64);
        // What is noted after the response: of a recorded id it is in Redis already.
        let (answer, note) = match Accept::parse(&request.path_with_query().unwrap_or_default()) {
            Ok(accept) => record(&config, window, accept),
            Err(bad) => (Answer::BadRequest(bad), Some(stats::INVALID)),
        };
        respond(response, answer);
        if let Some(outcome) = note {
            // Statistics alone, of a request that was not recorded.
            let _ = Redis::new(&config, window).note(&Note::of(outcome));
        }
    }
}

fn load() -> Result<Config, String> {
    let mut values = <[String; VARIABLES.len()]>::default();
    for (value, name) in values.iter_mut().zip(VARIABLES) {
        *value = match (variables::get(name), config::when_undefined(name)) {
            (Ok(value), _) => value,
            (Err(variables::Error::Undefined(_)), Some(default)) => default.to_owned(),
            (Err(error), _) => return Err(format!("variable {name}: {error}")),
        };
    }
    Config::parse(values)
}

/// Records an id and its callback job. Answers also which outcome is to be noted yet.
fn record(config: &Config, window: Window, Accept { id, callback }: Accept) -> (Answer, Option<&'static str>) {
    let job = callback.map(|Callback { endpoint, method }| CallbackJob {
        endpoint,
        method: method.unwrap_or(config.callback_method),
        window,
        revision: None,
    });
    match Redis::new(config, window).record(id, job.as_ref()) {
        Ok(answer) => {
            match answer {
                Answer::Recorded(outcome) if config.log == Log::All => {
                    eprintln!("verve: id {id} {} in window {window}", outcome.as_str());
                }
                Answer::Limited(limit) if config.log >= Log::Error => {
                    eprintln!("verve: id {id} not recorded: {}", failures::beyond(limit));
                }
                _ => {}
            }
            (answer, None)
        }
        Err(Unrecorded { error, may_be_noted }) => {
            if config.log >= Log::Error {
                eprintln!("verve: id {id} not recorded: {error}");
            }
            (Answer::Unavailable, may_be_noted.then_some(stats::FAILED))
        }
    }
}

impl Answer {
    /// The answer that the script tells, if it is one.
    fn told(said: &[u8]) -> Option<Self> {
        let known = [
            Self::Recorded(Outcome::New),
            Self::Recorded(Outcome::Duplicate),
            Self::Limited(Limit::Window),
            Self::Limited(Limit::Endpoint),
        ];
        known.into_iter().find(|known| known.reason().1.as_bytes() == said)
    }
}

/// Sends a response. A client that has gone is nobody's failure.
fn respond(to: ResponseOutparam, answer: Answer) {
    let headers = answer
        .headers()
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    // Names and values are known to be valid, and so is the status; each part is taken once.
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
