//! The port: accepts connections and stops gracefully.
//!
//! Worker threads serve the connections.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::instances::Factory;
use crate::server::Site;
use crate::shutdown::{BACKGROUND_LIMIT, Ended, LIMIT, SIGTERM, Signals};
use crate::workers::Workers;

/// The pause after a connection could not be accepted.
///
/// The cause, such as too many open files, does not disappear immediately.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The minimum interval between warnings about too many connections.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Serves until a signal arrives, then stops gracefully.
///
/// After SIGTERM it first serves for `grace` longer. The stop closes idle connections, answers
/// requests in flight, and lets the component finish its work after responses.
///
/// # Errors
/// If the listener's address is unknown, or a thread cannot be started.
pub async fn serve(
    listener: TcpListener,
    site: Site,
    factory: Factory,
    mut signals: Signals,
    grace: Duration,
) -> io::Result<Ended> {
    announce(&listener, &site)?;
    let workers = Workers::start(&site, &factory)?;
    let places = Arc::new(Semaphore::new(site.max_connections.get()));
    let signal = tokio::select! {
        never = accept(&listener, &workers, &places) => match never {},
        signal = signals.next() => signal,
    };
    site.is_stopping.store(true, Ordering::Relaxed);
    if signal == SIGTERM && !grace.is_zero() {
        let seconds = grace.as_secs_f32();
        tracing::info!("{signal}: serving for {seconds} s longer, until load balancers have stopped sending");
        tokio::select! {
            never = accept(&listener, &workers, &places) => match never {},
            () = tokio::time::sleep(grace) => {}
            signal = signals.next() => {
                tracing::warn!("{signal}: stopping immediately");
                return Ok(Ended::Cut);
            }
        }
    }
    drop(listener);
    tracing::info!("{signal}: stopping once requests in flight are answered; a second signal stops immediately");
    let stop = async {
        workers.stop().await;
        let cut = factory.drain(BACKGROUND_LIMIT).await;
        if cut > 0 {
            tracing::warn!("stopping although {cut} instances still work after their responses");
        }
    };
    tokio::select! {
        () = stop => Ok(Ended::Gracefully),
        signal = signals.next() => {
            tracing::warn!("{signal}: stopping immediately");
            Ok(Ended::Cut)
        }
        () = tokio::time::sleep(LIMIT) => {
            tracing::warn!("stopping although requests are still in flight after {} s", LIMIT.as_secs());
            Ok(Ended::Cut)
        }
    }
}

/// Accepts connections and passes them to the threads, up to the maximum number.
///
/// Further connections wait in the queue of the operating system.
async fn accept(listener: &TcpListener, workers: &Workers, places: &Arc<Semaphore>) -> Infallible {
    let mut warned: Option<Instant> = None;
    loop {
        if places.available_permits() == 0 && warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            tracing::warn!("--max-connections are open: further ones wait until one ends");
            warned = Some(Instant::now());
        }
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            continue;
        };
        match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => workers.serve((stream, place)),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Prints the address and the routes, in Spin's words.
fn announce(listener: &TcpListener, site: &Site) -> io::Result<()> {
    let address = listener.local_addr()?;
    println!("Serving http://{address}");
    println!("Available Routes:");
    for route in &site.routes {
        println!("  {}: http://{address}{route}", site.component);
    }
    Ok(())
}
