//! Free ports, and a forwarder.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::{Mutex, PoisonError};

use tokio::task::{JoinHandle, JoinSet};

/// Below what Linux gives to outgoing connections by default (`ip_local_port_range`), of which tests make thousands: a port
/// from there could be taken at any moment between this choice and its use.
const PORTS: Range<u16> = 10_000..32_000;

/// How many of them a process takes at a time.
const BLOCK: u16 = 500;

/// The ports that are this process's own: two run at once, and a server that is restarted wants its port again.
struct Own {
    /// The first port of each block that it has taken, listened on so that no other process takes it.
    claims: Vec<TcpListener>,
    /// Those that it has not given out yet.
    left: Range<u16>,
}

impl Own {
    /// Takes a block that no process has.
    fn take(&mut self) -> io::Result<()> {
        // Not all of them begin at the same place, so that ports rest for a while.
        let blocks = (PORTS.end - PORTS.start) / BLOCK;
        let begin = u16::try_from(process::id() % u32::from(blocks)).unwrap_or_default();
        for n in 0..blocks {
            let first = PORTS.start + (begin + n) % blocks * BLOCK;
            if let Ok(claim) = TcpListener::bind((Ipv4Addr::LOCALHOST, first)) {
                self.claims.push(claim);
                self.left = first + 1..first + BLOCK;
                return Ok(());
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

/// An address of 127.0.0.1 that nobody listens on, and that this process never gives out again, nor any other one that runs now.
///
/// # Errors
/// When there is no free port.
pub fn free_address() -> io::Result<SocketAddr> {
    static OWN: Mutex<Own> = Mutex::new(Own {
        claims: Vec::new(),
        left: 0..0,
    });
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        for port in own.left.by_ref() {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return listener.local_addr();
            }
        }
        own.take()?;
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_processes_have_the_same_ports() {
        let own = || Own {
            claims: Vec::new(),
            left: 0..0,
        };
        let mut processes = [own(), own(), own()];
        for process in &mut processes {
            process.take().expect("ports");
        }
        let ports: Vec<u16> = processes.iter().flat_map(|process| process.left.clone()).collect();
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), ports.len());
        // A process goes on beyond its first block, and gives none out twice.
        let given = (0..BLOCK + 10).map(|_| free_address().expect("a port").port());
        assert_eq!(given.collect::<BTreeSet<u16>>().len(), usize::from(BLOCK) + 10);
    }
}
