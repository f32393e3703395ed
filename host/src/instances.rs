//! Component instances: their number, the requests that each serves, and their end.
//!
//! Each thread of the host has its own instances. A request goes to the first instance that accepts
//! another one, and to a new instance only if none does. No time limit here ends an instance that
//! still works, even after its last response: only idle instances end.

use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::channel::oneshot;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use wasmtime::component::Accessor;
use wasmtime::{AsContextMut as _, Store};
use wasmtime_wasi_http::handler::{Prepared, Proxy, ProxyPre};
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use crate::cli::Reuse;
use crate::pool::Connections;
use crate::wasm::{Grants, Guest, Loaded, MAX_INSTANCES, new_store};

/// Creates instances. Clones share the limit on the number of instances.
#[derive(Clone)]
pub struct Factory {
    component: Arc<Loaded>,
    grants: Grants,
    reuse: Reuse,
    /// One permit for each instance that may still be created.
    slots: Arc<Semaphore>,
    /// Cancelled when idle instances must end immediately.
    draining: CancellationToken,
}

impl Factory {
    /// Returns a factory for instances of this component, with these grants.
    ///
    /// An instance of a WASI 0.2 component serves one request, as in Spin.
    pub fn new(component: Loaded, grants: Grants, mut reuse: Reuse) -> Self {
        if matches!(component.proxy, ProxyPre::P2(_)) {
            reuse.requests = NonZeroUsize::MIN;
        }
        Self {
            component: Arc::new(component),
            grants,
            reuse,
            slots: Arc::new(Semaphore::new(MAX_INSTANCES as usize)),
            draining: CancellationToken::new(),
        }
    }

    /// Returns the instances of one more thread: none at first, requests create them.
    pub fn for_one_thread(&self) -> Instances {
        Instances(Arc::new(Shared {
            factory: self.clone(),
            redis: Connections::default(),
            open: Mutex::default(),
        }))
    }

    /// Ends the idle instances of all threads immediately, and waits for the others.
    ///
    /// Waits at most `limit`. Returns how many instances still work then.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.cancel();
        match tokio::time::timeout(limit, self.slots.acquire_many(MAX_INSTANCES)).await {
            Ok(_) => 0,
            Err(_) => MAX_INSTANCES as usize - self.slots.available_permits(),
        }
    }

    async fn instantiate(&self, redis: &Connections) -> wasmtime::Result<(OwnedSemaphorePermit, Store<Guest>, Proxy)> {
        let slot = self.slots.clone().acquire_owned().await?;
        let mut store = new_store(&self.component.engine, &self.grants, redis);
        let proxy = self.component.proxy.instantiate_async(&mut store).await?;
        Ok((slot, store, proxy))
    }
}

/// The instances of one thread. Clones share them.
#[derive(Clone)]
pub struct Instances(Arc<Shared>);

struct Shared {
    factory: Factory,
    redis: Connections,
    /// The instances that accept requests.
    open: Mutex<Vec<Open>>,
}

/// An instance that accepts requests.
struct Open {
    queue: UnboundedSender<Job>,
    /// The number of requests that it serves now.
    running: Arc<AtomicUsize>,
    /// The number of requests that it has received.
    total: usize,
}

/// A request, and the channel for its response.
struct Job {
    request: hyper::Request<WasiBody>,
    response: oneshot::Sender<wasmtime::Result<hyper::Response<WasiBody>>>,
    running: Running,
}

/// Counts a request for as long as this value lives.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instances {
    /// Passes a request to an instance, and returns the response.
    ///
    /// # Errors
    /// If the instance trapped, or no instance could be created.
    pub async fn handle(&self, request: hyper::Request<WasiBody>) -> wasmtime::Result<hyper::Response<WasiBody>> {
        let (response, answered) = oneshot::channel();
        self.dispatch(request, response);
        let gone = |_| wasmtime::format_err!("the instance of the component that had it failed");
        answered.await.map_err(gone)?
    }

    fn dispatch(
        &self,
        request: hyper::Request<WasiBody>,
        response: oneshot::Sender<wasmtime::Result<hyper::Response<WasiBody>>>,
    ) {
        let reuse = self.0.factory.reuse;
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|instance| !instance.queue.is_closed());
        let free = |instance: &Open| instance.running.load(Ordering::Relaxed) < reuse.concurrent.get();
        let place = open.iter().position(free).unwrap_or_else(|| {
            let (queue, jobs) = unbounded_channel();
            tokio::spawn(run(self.0.clone(), jobs));
            open.push(Open {
                queue,
                running: Arc::default(),
                total: 0,
            });
            open.len() - 1
        });
        let instance = &mut open[place];
        instance.total += 1;
        let running = Running::new(&instance.running);
        // An instance that has ended drops the job, and the request fails.
        let _ = instance.queue.send(Job {
            request,
            response,
            running,
        });
        if instance.total == reuse.requests.get() {
            // It has received all its requests, and ends when they are done.
            open.remove(place);
        }
    }
}

/// Runs one instance, from its creation to its end.
async fn run(shared: Arc<Shared>, mut jobs: UnboundedReceiver<Job>) {
    let (slot, mut store, proxy) = match shared.factory.instantiate(&shared.redis).await {
        Ok(made) => made,
        Err(error) => {
            tracing::error!("no instance of the component could be made: {error:#}");
            return;
        }
    };
    let served = store
        .run_concurrent(async |guest| serve(guest, &shared.factory, &proxy, &mut jobs).await)
        .await;
    // The slot is released after the memory, because a new instance may use the slot immediately.
    drop((store, slot));
    if let Err(error) = served.and_then(|served| served) {
        tracing::error!("an instance of the component failed, and its requests with it: {error:#}");
    }
}

/// Serves requests until no more can arrive, or none has arrived for a while.
async fn serve(
    guest: &Accessor<Guest>,
    factory: &Factory,
    proxy: &Proxy,
    jobs: &mut UnboundedReceiver<Job>,
) -> wasmtime::Result<()> {
    let mut running = FuturesUnordered::new();
    let mut draining = pin!(factory.draining.cancelled());
    let mut idle: Option<Pin<Box<Sleep>>> = None;
    let mut over = false;
    std::future::poll_fn(|cx| {
        loop {
            match running.poll_next_unpin(cx) {
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            match jobs.poll_recv(cx) {
                Poll::Ready(Some(job)) => {
                    idle = None;
                    running.push(answer(guest, proxy, job)?);
                    continue;
                }
                Poll::Ready(None) => over = true,
                Poll::Pending => {}
            }
            if !running.is_empty() || guest.poll_no_interesting_tasks(cx).is_pending() {
                idle = None;
                return Poll::Pending;
            }
            let limit = || Box::pin(tokio::time::sleep(factory.reuse.idle));
            let waited = idle.get_or_insert_with(limit).as_mut().poll(cx).is_ready();
            if !over && !waited && draining.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The queue is closed first: a job that arrived before the next poll would be lost.
            jobs.close();
            if jobs.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    })
    .await
}

/// Starts to answer a request.
fn answer<'a>(
    guest: &'a Accessor<Guest>,
    proxy: &'a Proxy,
    job: Job,
) -> wasmtime::Result<impl Future<Output = wasmtime::Result<()>> + 'a> {
    let Job {
        request,
        response,
        running,
    } = job;
    let prepared =
        guest.with(|mut store| Prepared::new(store.as_context_mut(), proxy, request, Guest::http, response))?;
    Ok(async move {
        // There is no time limit for a request, as in Spin.
        prepared.run(guest, std::future::pending()).await?;
        drop(running);
        Ok(())
    })
}
