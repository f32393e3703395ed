//! The bindings of Spin's interfaces, and the host's side of `spin:variables`.
//!
//! The host's sides of `spin:redis` and `spin:sqlite` are in `redis` and `sqlite`.

use std::collections::BTreeMap;
use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf};

use crate::variables::check_name;
use bindings::fermyon::spin::variables as old;
use bindings::spin::variables::variables::{Error, Host, HostWithStore};

/// Generated from the WIT of this workspace.
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "verve:accept/spin",
        imports: { default: async | trappable },
        with: {
            "spin:redis/redis.connection": crate::pool::Shared,
            "fermyon:spin/redis.connection": crate::pool::Shared,
            "spin:sqlite/sqlite.connection": crate::database::Connection,
        },
    });
}

/// The variables that the manifest gives to the component.
pub struct Variables(Arc<BTreeMap<String, String>>);

impl Variables {
    /// Returns variables with these names and values.
    pub fn new(values: Arc<BTreeMap<String, String>>) -> Self {
        Self(values)
    }

    fn get(&self, name: &str) -> Result<String, Error> {
        check_name(name).map_err(|error| Error::InvalidName(error.to_string()))?;
        let undefined = || Error::Undefined(format!("the manifest gives the component no variable `{name}`"));
        self.0.get(name).cloned().ok_or_else(undefined)
    }
}

impl Host for Variables {}

impl<T: Send> HostWithStore<T> for HasSelf<Variables> {
    async fn get(guest: &Accessor<T, Self>, name: String) -> wasmtime::Result<Result<String, Error>> {
        Ok(guest.with(|mut access| access.get().get(&name)))
    }
}

/// For components of WASI 0.2.
impl old::Host for Variables {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<String, old::Error>> {
        Ok(Self::get(self, &name).map_err(|error| match error {
            Error::InvalidName(message) => old::Error::InvalidName(message),
            Error::Undefined(message) => old::Error::Undefined(message),
            Error::Provider(message) => old::Error::Provider(message),
            Error::Other(message) => old::Error::Other(message),
        }))
    }
}
