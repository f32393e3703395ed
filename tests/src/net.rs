//! Free ports and a forwarder.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::process;
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, JoinSet};

/// The ports that tests use.
///
/// They are below the range that Linux uses by default for outgoing connections
/// (`ip_local_port_range`). Tests open thousands of these, so a port of that range could be taken
/// at any moment between its choice and its use.
const PORTS: Range<u16> = 10_000..32_000;

/// How many ports a process takes at a time.
const BLOCK: u16 = 500;

/// The ports that belong to this process alone.
///
/// Two processes run at the same time, and a restarted server needs its old port.
struct Own {
    /// The first port of each block that the process has taken.
    ///
    /// The process listens on it so that no other process takes the block.
    claims: Vec<TcpListener>,
    /// The ports that it has not returned yet.
    left: Range<u16>,
}

impl Own {
    /// Takes a block that belongs to no process.
    fn take(&mut self) -> io::Result<()> {
        // Processes start at different blocks, so that a port is not reused soon.
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

/// Returns an address of 127.0.0.1 that nobody listens on.
///
/// This process does not return it again, and no other process that runs now returns it.
///
/// # Errors
/// Fails if there is no free port.
pub fn free_address() -> io::Result<SocketAddr> {
    static OWN: Mutex<Own> = Mutex::new(Own {
        claims: Vec::new(),
        left: 0..0,
    });
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        for port in own.left.by_ref() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if probe(address).is_ok() {
                return Ok(address);
            }
        }
        own.take()?;
    }
}

/// Fails if another socket listens on this address.
///
/// The returned socket does not listen, so it does not prevent others from doing so. A listener
/// would, even after it is closed: a process that another thread has started holds a copy of it
/// until it executes its program.
///
/// # Errors
/// Fails if the address cannot be bound.
pub fn probe(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Accepts connections on `from` and forwards their bytes to `to` and back.
///
/// It stands for a server that starts where none was. The forwarder ends when the handle is
/// dropped.
///
/// # Errors
/// Fails if `from` cannot be bound.
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

/// The handle of [`forward`].
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
        // A process continues with another block after its first one, and returns no port twice.
        let given = (0..BLOCK + 10).map(|_| free_address().expect("a port").port());
        assert_eq!(given.collect::<BTreeSet<u16>>().len(), usize::from(BLOCK) + 10);
    }
    #[test]
    fn a_probe_keeps_nobody_from_listening() {
        let address = free_address().expect("a port");
        let probed = probe(address).expect("a free port");
        let listener = TcpListener::bind(address).expect("nobody listens");
        drop(probed);
        assert!(probe(address).is_err());
        drop(listener);
        assert!(probe(address).is_ok());
    }
}
