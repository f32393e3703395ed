//! Component instances: how many there are, how many requests each serves, and when it goes.
//!
//! [`ProxyHandler`] hands requests to instances and starts another one when all are busy. This module makes the
//! decisions it leaves open. An instance that still works on something, even after its last response, is never ended by a
//! time limit here; only idle ones go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use crate::cli::Reuse;
use crate::wasm::{Grants, Guest, MAX_INSTANCES, new_store};

/// All instances of the component. Clones are the same instances.
#[derive(Clone)]
pub struct Instances(ProxyHandler<Factory>);

impl Instances {
    /// None yet: they are made as requests come.
    pub fn new(component: ServicePre<Guest>, grants: Grants, reuse: Reuse) -> Self {
        Self(ProxyHandler::new(Factory {
            component,
            grants,
            reuse,
            slots: Arc::new(Semaphore::new(MAX_INSTANCES as usize)),
            draining: CancellationToken::new(),
        }))
    }

    /// Has an instance answer a request.
    ///
    /// # Errors
    /// If the instance trapped, or none could be made.
    pub async fn handle(&self, request: hyper::Request<WasiBody>) -> wasmtime::Result<hyper::Response<WasiBody>> {
        self.0.handle((), request).await
    }

    /// Ends idle instances at once and waits at most `limit` for those that still work. Returns how many then still do.
    pub async fn drain(&self, limit: Duration) -> usize {
        let factory = self.0.state();
        factory.draining.cancel();
        match tokio::time::timeout(limit, factory.slots.acquire_many(MAX_INSTANCES)).await {
            Ok(_) => 0,
            Err(_) => MAX_INSTANCES as usize - factory.slots.available_permits(),
        }
    }
}

/// Makes instances.
struct Factory {
    component: ServicePre<Guest>,
    grants: Grants,
    reuse: Reuse,
    /// One permit for each instance that may still be made.
    slots: Arc<Semaphore>,
    draining: CancellationToken,
}

impl HandlerState for Factory {
    type StoreData = Guest;
    type WorkerExpiration = IdleLimit;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<Guest, IdleLimit, Worker>> {
        let slot = self.slots.clone().acquire_owned().await?;
        let mut store = new_store(self.component.engine(), &self.grants);
        let proxy = Proxy::P3(self.component.instantiate_async(&mut store).await?);
        Ok(Instance {
            store,
            proxy,
            view: Guest::http,
            expiration: IdleLimit {
                limit: self.reuse.idle,
                timer: Box::pin(tokio::time::sleep(self.reuse.idle)),
                draining: Box::pin(self.draining.clone().cancelled_owned()),
            },
            state: Worker {
                reuse: self.reuse,
                _slot: slot,
            },
        })
    }
}

/// Ends an instance that had nothing to do for a while, or has nothing to do when the host stops.
struct IdleLimit {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl WorkerExpiration for IdleLimit {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, since: Instant) -> Poll<()> {
        match status {
            WorkerStatus::Idle => {}
            WorkerStatus::Requests | WorkerStatus::PostReturn => return Poll::Pending,
        }
        if self.draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(deadline) = since.checked_add(self.limit).map(tokio::time::Instant::from_std) else {
            return Poll::Pending;
        };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// One instance's share of requests.
struct Worker {
    reuse: Reuse,
    /// Given back after the instance's memory, since a worker outlives its store.
    _slot: OwnedSemaphorePermit,
}

impl WorkerState for Worker {
    type StoreData = Guest;
    type RequestData = ();

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        if total >= self.reuse.requests.get() {
            ShouldAccept::Never
        } else if concurrent >= self.reuse.concurrent.get() {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    /// The future of a request's time limit: there is none, as in Spin.
    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, Guest>,
        _data: (),
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        Box::pin(std::future::pending())
    }

    fn drop(&self, store: Store<Guest>, result: wasmtime::Result<()>) {
        drop(store);
        if let Err(error) = result {
            tracing::error!("an instance of the component failed, and its requests with it: {error:#}");
        }
    }
}
