//! Free ports, and a forwarder.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::task::{JoinHandle, JoinSet};

/// Below what Linux gives to outgoing connections by default (`ip_local_port_range`), of which tests make thousands: a port
/// from there could be taken at any moment between this choice and its use.
const PORTS: Range<u16> = 10_000..32_000;

/// An address of 127.0.0.1 that nobody listens on, and that this process never gives out again.
///
/// # Errors
/// When there is no free port.
pub fn free_address() -> io::Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes begin at places far from each other, since two run at once, and a server that is restarted wants its port again.
    let begin = process::id().wrapping_mul(7919);
    let count = u32::from(PORTS.end - PORTS.start);
    for _ in PORTS {
        let n = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = PORTS.start + u16::try_from(n).unwrap_or_default();
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr();
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Accepts connections on `from` and passes their bytes to and fro `to`: a server that appears where none was.
/// Ends when the handle is dropped.
///
/// # Errors
/// When `from` cannot be bound.
pub async fn forward(from: &str, to: &str) -> io::Result<Forwarder> {
    let listener = tokio::net::TcpListener::bind(from).await?;
    let to = to.to_owned();
    let task = tokio::spawn(async move {
        let mut pairs = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let to = to.clone();
            pairs.spawn(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    Ok(Forwarder { task })
}

/// See [`forward`].
pub struct Forwarder {
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
