//! Free ports, and a forwarder.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tokio::task::{JoinHandle, JoinSet};

/// An address of 127.0.0.1 that nobody listens on.
///
/// The kernel hands ports out in no order that repeats soon, so between this call and the use of the port nobody else is
/// likely to be given it.
///
/// # Errors
/// When the system has no free port.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
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
