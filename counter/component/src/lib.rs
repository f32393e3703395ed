//! The component that exports `verve:unique`, for components in any language: [`verve_counter`], and nothing else.
#![cfg(target_family = "wasm")]

#[cfg(feature = "wasip2")]
mod blocking_counter;
#[cfg(not(feature = "wasip2"))]
mod counter;

use verve_counter::{Answer, Counter, CounterName, Limit, Outcome};

#[cfg(feature = "wasip2")]
use bindings::exports::verve::unique::blocking_counter as interface;
#[cfg(not(feature = "wasip2"))]
use bindings::exports::verve::unique::counter as interface;
use bindings::exports::verve::unique::types;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    #[cfg(not(feature = "wasip2"))]
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/counter-interface",
        generate_all,
    });
    #[cfg(feature = "wasip2")]
    wit_bindgen::generate!({
        path: "wit",
        world: "verve:accept/blocking-counter-interface",
        generate_all,
    });

    use super::Component;
    export!(Component);
}

struct Component;

/// What is said of an id.
type Added = Result<types::Outcome, types::Error>;

/// A counter that has a name.
struct Named(CounterName);

impl Named {
    fn open(name: &str) -> Result<interface::Named, types::Error> {
        match name.parse() {
            Ok(name) => Ok(interface::Named::new(Self(name))),
            Err(error) => Err(types::Error::InvalidName(format!("{error}"))),
        }
    }
}

fn opened(counter: Counter, named: Option<&Named>) -> Counter {
    match named {
        None => counter,
        Some(Named(name)) => counter.open(name.clone()),
    }
}

fn added(answer: Answer) -> Added {
    match answer {
        Answer::Recorded(Outcome::New) => Ok(types::Outcome::New),
        Answer::Recorded(Outcome::Duplicate) => Ok(types::Outcome::Duplicate),
        Answer::Recorded(Outcome::Spooled) => Ok(types::Outcome::Spooled),
        Answer::Limited(Limit::Window) => Err(types::Error::WindowLimit),
        Answer::Limited(Limit::Counters) => Err(types::Error::TooManyCounters),
        // No callback is asked for here, so the other limit is nobody's.
        Answer::Limited(Limit::Endpoint) | Answer::Unavailable => Err(types::Error::Unavailable),
    }
}
