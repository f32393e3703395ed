//! The port: accepts connections for the threads that serve them, and stops gracefully.

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

/// How long to wait after a connection could not be accepted, since the cause (such as too many open files) stays.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is said that there are too many connections.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Serves until a signal comes, and for `grace` longer if that is SIGTERM. Then it stops: idle connections are closed, requests in
/// flight are answered, and what the component does after its responses may finish.
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
        tracing::info!("{signal}: serving for {seconds} s longer, until load balancers have turned away");
        tokio::select! {
            never = accept(&listener, &workers, &places) => match never {},
            () = tokio::time::sleep(grace) => {}
            signal = signals.next() => {
                tracing::warn!("{signal}: stopping at once");
                return Ok(Ended::Cut);
            }
        }
    }
    drop(listener);
    tracing::info!("{signal}: stopping once requests in flight are answered; a second signal stops at once");
    let stop = async {
        workers.stop().await;
        let cut = factory.drain(BACKGROUND_LIMIT).await;
        if cut > 0 {
            tracing::warn!("stopping although {cut} instances still work on something after their responses");
        }
    };
    tokio::select! {
        () = stop => Ok(Ended::Gracefully),
        signal = signals.next() => {
            tracing::warn!("{signal}: stopping at once");
            Ok(Ended::Cut)
        }
        () = tokio::time::sleep(LIMIT) => {
            tracing::warn!("stopping although requests are still in flight after {} s", LIMIT.as_secs());
            Ok(Ended::Cut)
        }
    }
}

/// Has connections served, as they come and while there is a place for one. Others wait with the system.
async fn accept(listener: &TcpListener, workers: &Workers, places: &Arc<Semaphore>) -> Infallible {
    let mut said: Option<Instant> = None;
    loop {
        if places.available_permits() == 0 && said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
            tracing::warn!("--max-connections are open: further ones wait until one ends");
            said = Some(Instant::now());
        }
        // It is never closed.
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

/// Tells that requests are welcome, and where, in Spin's words.
fn announce(listener: &TcpListener, site: &Site) -> io::Result<()> {
    let address = listener.local_addr()?;
    println!("Serving http://{address}");
    println!("Available Routes:");
    for route in &site.routes {
        println!("  {}: http://{address}{route}", site.component);
    }
    Ok(())
}
