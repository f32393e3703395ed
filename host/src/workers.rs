//! The host's threads: one per processor.
//!
//! Each thread has its own runtime, connections and component instances, so that a request is
//! answered by the thread that read it.

use std::io;
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hyper_util::server::graceful::GracefulShutdown;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::instances::{Factory, Instances};
use crate::server::{Site, look_after, serve_connection};

/// A connection, and its permit from the maximum number of connections.
type Accepted = (TcpStream, OwnedSemaphorePermit);

/// All threads.
pub struct Workers(Vec<Worker>);

struct Worker {
    streams: UnboundedSender<Accepted>,
    /// The number of its open connections.
    connections: Arc<AtomicUsize>,
    /// Completes when the thread has no connections left.
    stopped: oneshot::Receiver<()>,
}

impl Workers {
    /// Starts one thread for each processor that this process may use.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn start(site: &Site, factory: &Factory) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let site = Arc::new(site.clone());
        let started = (0..count).map(|number| Worker::start(number, site.clone(), factory.for_one_thread()));
        Ok(Self(started.collect::<io::Result<_>>()?))
    }

    /// Passes a connection to the thread with the fewest connections.
    pub fn serve(&self, accepted: Accepted) {
        let fewest = self
            .0
            .iter()
            .min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
        if let Some(worker) = fewest {
            worker.connections.fetch_add(1, Ordering::Relaxed);
            // A thread ends only with the process.
            let _ = worker.streams.send(accepted);
        }
    }

    /// Closes idle connections, and waits until requests in flight are answered.
    pub async fn stop(self) {
        for worker in self.0 {
            drop(worker.streams);
            // An error means that the thread has ended.
            let _ = worker.stopped.await;
        }
    }
}

impl Worker {
    fn start(number: usize, site: Arc<Site>, instances: Instances) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (streams, incoming) = unbounded_channel();
        let (stopped_sender, stopped) = oneshot::channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let name = format!("worker-{number}");
        thread::Builder::new()
            .name(name)
            .spawn(move || work(number, &runtime, site, instances, incoming, counted, stopped_sender))?;
        Ok(Self {
            streams,
            connections,
            stopped,
        })
    }
}

fn work(
    number: usize,
    runtime: &Runtime,
    site: Arc<Site>,
    instances: Instances,
    mut incoming: UnboundedReceiver<Accepted>,
    connections: Arc<AtomicUsize>,
    stopped: oneshot::Sender<()>,
) {
    runtime.block_on(async {
        let graceful = GracefulShutdown::new();
        // One thread is enough for this task.
        let looking_after = (number == 0).then(|| tokio::spawn(look_after(site.clone(), instances.clone())));
        while let Some((stream, permit)) = incoming.recv().await {
            let served = serve_connection(stream, site.clone(), instances.clone(), &graceful);
            let connections = connections.clone();
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::debug!("a connection ended early: {error}");
                }
                connections.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            });
        }
        if let Some(looking_after) = looking_after {
            looking_after.abort();
        }
        graceful.shutdown().await;
        let _ = stopped.send(());
        // Instances may continue their work until the process ends.
        std::future::pending::<()>().await;
    });
}
