//! The application of the tests, which counts as each request specifies.
//!
//! `GET /count?by=crate|interface&call=add|many|callback|named&id=<number>[&name=<counter>]`
//! counts. With `&polls=<number>`, it drops the call if this many polls have not completed it, and
//! answers 202. `GET /trap` ends the instance with a trap.
#![cfg(target_family = "wasm")]

use std::error::Error;
use std::pin::pin;
use std::task::Poll;

use spin_sdk::http::{IntoResponse, Request, StatusCode};
use spin_sdk::http_service;
use verve_counter::{Callback, Counter, Id};

use bindings::verve::unique::counter as interface;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "test:guest/guest",
        generate_all,
    });
}

#[http_service]
async fn count(request: Request) -> impl IntoResponse {
    assert_ne!(request.uri().path(), "/trap", "as asked");
    let query = request.uri().query().unwrap_or_default();
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    };
    let asked = (|| {
        let id: i64 = value("id")?.parse().ok()?;
        let polls = value("polls").map(str::parse).transpose().ok()?;
        Some((value("by")?, value("call")?, value("name").unwrap_or("a"), id, polls))
    })();
    let Some((by, call, name, id, polls)) = asked else {
        return (StatusCode::BAD_REQUEST, query.to_owned());
    };
    let counted = async {
        match by {
            "crate" => by_crate(call, name, id).await,
            "interface" => by_interface(call, name, id).await,
            by => Err(format!("by={by}").into()),
        }
    };
    match given_up_after(polls, counted).await {
        Some(Ok(())) => (StatusCode::OK, String::new()),
        Some(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        None => (StatusCode::ACCEPTED, String::new()),
    }
}

/// Returns the result of `work`, or `None` if `polls` polls do not complete it.
async fn given_up_after<T>(polls: Option<u32>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    std::future::poll_fn(|context| match (work.as_mut().poll(context), &mut left) {
        (Poll::Ready(done), _) => Poll::Ready(Some(done)),
        (Poll::Pending, Some(0 | 1)) => Poll::Ready(None),
        (Poll::Pending, left) => {
            *left = left.map(|left| left - 1);
            Poll::Pending
        }
    })
    .await
}

/// Returns three ids that no other request has.
fn several(id: i64) -> [i64; 3] {
    [0, 1, 2].map(|more| id + more * 1_000_000)
}

async fn by_crate(call: &str, name: &str, id: i64) -> Result<(), Box<dyn Error>> {
    let counter = Counter::get().await?;
    match call {
        "add" => counter.add(Id(id)).await.map(drop)?,
        "callback" => {
            let endpoint = "http://127.0.0.1:9/".parse()?;
            let callback = Callback { endpoint, method: None };
            counter.add_with_callback(Id(id), Some(callback)).await.map(drop)?;
        }
        "many" => {
            for outcome in counter.add_many(&several(id).map(Id)).await {
                outcome?;
            }
        }
        "named" => counter.open(name.parse()?).add(Id(id)).await.map(drop)?,
        call => return Err(format!("call={call}").into()),
    }
    Ok(())
}

async fn by_interface(call: &str, name: &str, id: i64) -> Result<(), Box<dyn Error>> {
    match call {
        "add" => interface::add(id).await.map(drop)?,
        "many" => {
            for outcome in interface::add_many(several(id).to_vec()).await {
                outcome?;
            }
        }
        "named" => interface::open(name)?.add(id).await.map(drop)?,
        call => return Err(format!("call={call}").into()),
    }
    Ok(())
}
