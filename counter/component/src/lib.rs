//! The component that exports `verve:unique`, for components in any language.
//!
//! It contains [`verve_counter`], and nothing else.
#![cfg(target_family = "wasm")]

#[cfg(feature = "wasip2")]
mod blocking_counter;
#[cfg(not(feature = "wasip2"))]
mod counter;

use verve_counter::{CounterName, InvalidVariable, Limit, NotCounted, Outcome};

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

/// The outcome of an id, or the error.
type Added = Result<types::Outcome, types::Error>;

/// A named counter.
struct Named(CounterName);

impl Named {
    fn open(name: &str) -> Result<interface::Named, types::Error> {
        match name.parse() {
            Ok(name) => Ok(interface::Named::new(Self(name))),
            Err(error) => Err(types::Error::InvalidName(format!("{error}"))),
        }
    }
}

fn added(answer: Result<Outcome, NotCounted>) -> Added {
    match answer {
        Ok(Outcome::New) => Ok(types::Outcome::New),
        Ok(Outcome::Duplicate) => Ok(types::Outcome::Duplicate),
        Ok(Outcome::Spooled) => Ok(types::Outcome::Spooled),
        Err(NotCounted::Limited(Limit::Window)) => Err(types::Error::WindowLimit),
        Err(NotCounted::Limited(Limit::Counters)) => Err(types::Error::TooManyCounters),
        // Without a callback, an id cannot exceed the limit of an endpoint.
        Err(NotCounted::Limited(Limit::Endpoint) | NotCounted::Unavailable) => Err(types::Error::Unavailable),
    }
}

impl From<InvalidVariable> for types::Error {
    fn from(error: InvalidVariable) -> Self {
        Self::InvalidVariable(error.to_string())
    }
}
