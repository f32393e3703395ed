//! The component that exports `verve:unique`, for components in any language: [`verve_counter`], and nothing else.
#![cfg(target_family = "wasm")]

use verve_counter::{Answer, Counter, Id, Limit, Outcome};

#[cfg(feature = "wasip2")]
use bindings::exports::verve::unique::blocking_counter::Guest;
#[cfg(not(feature = "wasip2"))]
use bindings::exports::verve::unique::counter::Guest;
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

#[cfg(not(feature = "wasip2"))]
impl Guest for Component {
    async fn add(id: i64) -> Added {
        added(Counter::get().await.map_err(invalid)?.add(Id(id)).await)
    }

    async fn add_many(ids: Vec<i64>) -> Vec<Added> {
        let ids: Vec<Id> = ids.into_iter().map(Id).collect();
        match Counter::get().await {
            Ok(counter) => counter.add_many(&ids).await.into_iter().map(added).collect(),
            Err(error) => ids.iter().map(|_| Err(invalid(error.clone()))).collect(),
        }
    }
}

#[cfg(feature = "wasip2")]
impl Guest for Component {
    fn add(id: i64) -> Added {
        let counter = Counter::get().map_err(invalid)?;
        let (answer, note) = counter.add(Id(id), None);
        note.tell();
        added(answer)
    }

    fn add_many(ids: Vec<i64>) -> Vec<Added> {
        let ids: Vec<Id> = ids.into_iter().map(Id).collect();
        match Counter::get() {
            Ok(counter) => counter.add_many(&ids).into_iter().map(added).collect(),
            Err(error) => ids.iter().map(|_| Err(invalid(error.clone()))).collect(),
        }
    }
}

fn invalid(error: String) -> types::Error {
    types::Error::InvalidVariable(error)
}

fn added(answer: Answer) -> Added {
    match answer {
        Answer::Recorded(Outcome::New) => Ok(types::Outcome::New),
        Answer::Recorded(Outcome::Duplicate) => Ok(types::Outcome::Duplicate),
        Answer::Recorded(Outcome::Spooled) => Ok(types::Outcome::Spooled),
        Answer::Limited(Limit::Window) => Err(types::Error::WindowLimit),
        // No callback is asked for here, so the other limit is nobody's.
        Answer::Limited(Limit::Endpoint) | Answer::Unavailable => Err(types::Error::Unavailable),
    }
}
