//! `verve:unique/blocking-counter`, for WASI 0.2.

use verve_counter::Id;
use verve_counter::blocking::Counter;

use crate::bindings::exports::verve::unique::blocking_counter::{self as interface, Guest, GuestNamed};
use crate::bindings::exports::verve::unique::types;
use crate::{Added, Component, Named, added};

impl Guest for Component {
    type Named = Named;

    fn add(id: i64) -> Added {
        add(None, id)
    }

    fn add_many(ids: Vec<i64>) -> Vec<Added> {
        add_many(None, ids)
    }

    fn open(name: String) -> Result<interface::Named, types::Error> {
        Named::open(&name)
    }
}

impl GuestNamed for Named {
    fn add(&self, id: i64) -> Added {
        add(Some(self), id)
    }

    fn add_many(&self, ids: Vec<i64>) -> Vec<Added> {
        add_many(Some(self), ids)
    }
}

fn counter(named: Option<&Named>) -> Result<Counter, types::Error> {
    let counter = Counter::get()?;
    Ok(match named {
        None => counter,
        Some(Named(name)) => counter.open(name.clone()),
    })
}

fn add(named: Option<&Named>, id: i64) -> Added {
    added(counter(named)?.add(Id(id)))
}

fn add_many(named: Option<&Named>, ids: Vec<i64>) -> Vec<Added> {
    let ids: Vec<Id> = ids.into_iter().map(Id).collect();
    match counter(named) {
        Ok(counter) => counter.add_many(&ids).into_iter().map(added).collect(),
        Err(error) => ids.iter().map(|_| Err(error.clone())).collect(),
    }
}
