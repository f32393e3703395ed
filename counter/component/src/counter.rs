//! `verve:unique/counter`, for WASI 0.3.

use verve_counter::{Counter, Id};

use crate::bindings::exports::verve::unique::counter::{self as interface, Guest, GuestNamed};
use crate::bindings::exports::verve::unique::types;
use crate::{Added, Component, Named, added};

impl Guest for Component {
    type Named = Named;

    async fn add(id: i64) -> Added {
        add(None, id).await
    }

    async fn add_many(ids: Vec<i64>) -> Vec<Added> {
        add_many(None, ids).await
    }

    fn open(name: String) -> Result<interface::Named, types::Error> {
        Named::open(&name)
    }
}

impl GuestNamed for Named {
    async fn add(&self, id: i64) -> Added {
        add(Some(self), id).await
    }

    async fn add_many(&self, ids: Vec<i64>) -> Vec<Added> {
        add_many(Some(self), ids).await
    }
}

async fn counter(named: Option<&Named>) -> Result<Counter, types::Error> {
    let counter = Counter::get().await?;
    Ok(match named {
        None => counter,
        Some(Named(name)) => counter.open(name.clone()),
    })
}

async fn add(named: Option<&Named>, id: i64) -> Added {
    added(counter(named).await?.add(Id(id)).await)
}

async fn add_many(named: Option<&Named>, ids: Vec<i64>) -> Vec<Added> {
    let ids: Vec<Id> = ids.into_iter().map(Id).collect();
    match counter(named).await {
        Ok(counter) => counter.add_many(&ids).await.into_iter().map(added).collect(),
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    }
}
