//! The port: accepts connections for the threads that serve them, and stops gracefully.

use std::io;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::instances::Factory;
use crate::server::Site;
use crate::shutdown::{BACKGROUND_LIMIT, Ended, LIMIT, Signals};
use crate::workers::Workers;

/// How long to wait after a connection could not be accepted, since the cause (such as too many open files) stays.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until a signal comes, then stops: idle connections are closed, requests in flight are answered, and what the
/// component does after its responses may finish.
///
/// # Errors
/// If the listener's address is unknown, or a thread cannot be started.
pub async fn serve(listener: TcpListener, site: Site, factory: Factory, mut signals: Signals) -> io::Result<Ended> {
    announce(&listener, &site)?;
    let workers = Workers::start(&site, &factory)?;
    let signal = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => workers.serve(stream),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            signal = signals.next() => break signal,
        }
    };
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
