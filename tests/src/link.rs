//! A link between two parts that fails as networks do.
//!
//! It can be cut or held, also at the exact moment that a test needs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::net;

/// How many of a connection's last bytes a [`Gate`] searches for its pattern.
const REMEMBERED: usize = 64 * 1024;

/// Listens on a port of its own and forwards bytes to a server and back.
///
/// Dropping it cuts the link permanently.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    to: Mutex<SocketAddr>,
    state: watch::Sender<State>,
    /// The delay of the server's answers.
    delay: Mutex<Duration>,
    armed: Mutex<Vec<Armed>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// Connections stay open and new ones are accepted, but nothing passes.
    Held,
    /// As `Held`, for the connections from this address only.
    HeldFrom(IpAddr),
    /// There are no connections, and new ones end immediately.
    Cut,
}

impl State {
    /// Returns whether the data of a connection from `peer` is held.
    fn holds(self, peer: IpAddr) -> bool {
        matches!(self, Self::Held | Self::Cut) || self == Self::HeldFrom(peer)
    }
}

/// The part of a request and its answer that a [`Gate`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The request: the server never receives it.
    Request,
    /// The answer: the server has executed the request, and the client does not know.
    Answer,
}

/// A gate that has not been reached yet.
struct Armed {
    pattern: Vec<Vec<u8>>,
    hold: Hold,
    reached: watch::Sender<bool>,
    open: watch::Receiver<bool>,
}

/// Holds a connection from the moment when a pattern passes.
///
/// The connection is held until the gate is opened or dropped.
pub struct Gate {
    reached: watch::Receiver<bool>,
    open: watch::Sender<bool>,
}

impl Link {
    /// Starts a link to the server at `to`, which may start later.
    ///
    /// # Errors
    /// Fails if there is no free port.
    pub async fn start(to: SocketAddr) -> io::Result<Self> {
        Self::start_on(net::free_address()?, to).await
    }

    /// Starts a link that listens on `address`.
    ///
    /// # Errors
    /// Fails if the address cannot be bound.
    pub async fn start_on(address: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared {
            to: Mutex::new(to),
            state: watch::Sender::new(State::Up),
            delay: Mutex::default(),
            armed: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Returns the address it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and every new one, until [`Self::restore`].
    pub fn cut(&self) {
        self.shared.state.send_replace(State::Cut);
    }

    /// Lets nothing pass until [`Self::restore`]. Connections stay open.
    pub fn hold(&self) {
        self.shared.state.send_replace(State::Held);
    }

    /// Holds only the connections from this address, until [`Self::restore`].
    pub fn hold_from(&self, peer: IpAddr) {
        self.shared.state.send_replace(State::HeldFrom(peer));
    }

    /// Reverts [`Self::cut`], [`Self::hold`] and [`Self::hold_from`].
    pub fn restore(&self) {
        self.shared.state.send_replace(State::Up);
    }

    /// Delays each answer by `by` from now on.
    pub fn delay(&self, by: Duration) {
        *self.shared.delay.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }

    /// Connects new connections to another server. Existing ones stay connected.
    pub fn lead_to(&self, to: SocketAddr) {
        *self.shared.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Holds the first connection that sends all parts of `pattern` in this order.
    #[must_use]
    pub fn gate(&self, pattern: &[&str], hold: Hold) -> Gate {
        let (reached, open) = (watch::Sender::new(false), watch::Sender::new(false));
        let (reached_receiver, open_receiver) = (reached.subscribe(), open.subscribe());
        self.shared.armed().push(Armed {
            pattern: pattern.iter().map(|part| part.as_bytes().to_vec()).collect(),
            hold,
            reached,
            open: open_receiver,
        });
        Gate {
            reached: reached_receiver,
            open,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    /// Waits until the pattern has passed.
    ///
    /// # Errors
    /// Fails after `patience`.
    pub async fn reached(&mut self, patience: Duration) -> Result<()> {
        let reached = timeout(patience, self.reached.wait_for(|reached| *reached));
        reached.await.context("the gate was not reached")??;
        Ok(())
    }

    /// Opens the gate: what is held passes, and all that follows.
    pub fn open(self) {
        self.open.send_replace(true);
    }
}

impl Shared {
    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the gate whose pattern is in `sent`. A gate is reached only once.
    fn reached(&self, sent: &[u8]) -> Option<Armed> {
        let mut armed = self.armed();
        let place = armed.iter().position(|gate| contains(sent, &gate.pattern))?;
        Some(armed.swap_remove(place))
    }

    async fn is(&self, wanted: impl FnMut(&State) -> bool) {
        // `self` has the sender, so there is no error.
        let _ = self.state.subscribe().wait_for(wanted).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((near, peer)) = listener.accept().await {
        if *shared.state.borrow() != State::Cut {
            let to = *shared.to.lock().unwrap_or_else(PoisonError::into_inner);
            connections.spawn(connect(near, peer.ip(), to, Arc::clone(&shared)));
        }
        // Removes the connections that have ended.
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(near: TcpStream, peer: IpAddr, to: SocketAddr, shared: Arc<Shared>) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    // If set, the answers of this connection wait for it.
    let answers = watch::Sender::new(None);
    tokio::select! {
        ended = requests(near_read, far_write, (&shared, peer), &answers) => ended,
        ended = replies(far_read, near_write, (&shared, peer), &answers) => ended,
        () = shared.is(|state| *state == State::Cut) => Ok(()),
    }
}

type Held = watch::Sender<Option<watch::Receiver<bool>>>;

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (shared, peer): (&Shared, IpAddr),
    answers: &Held,
) -> io::Result<()> {
    let mut sent = Vec::new();
    loop {
        let before = sent.len();
        if from.read_buf(&mut sent).await? == 0 {
            return Ok(());
        }
        if let Some(gate) = shared.reached(&sent) {
            gate.reached.send_replace(true);
            match gate.hold {
                Hold::Request => opened(gate.open).await,
                Hold::Answer => drop(answers.send_replace(Some(gate.open))),
            }
        }
        shared.is(|state| !state.holds(peer)).await;
        to.write_all(&sent[before..]).await?;
        sent.drain(..sent.len().saturating_sub(REMEMBERED));
    }
}

async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (shared, peer): (&Shared, IpAddr),
    answers: &Held,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let held = answers.borrow().clone();
        if let Some(gate) = held {
            opened(gate).await;
        }
        let delay = *shared.delay.lock().unwrap_or_else(PoisonError::into_inner);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        shared.is(|state| !state.holds(peer)).await;
        to.write_all(&buffer[..read]).await?;
    }
}

async fn opened(mut gate: watch::Receiver<bool>) {
    // An error means that the gate was dropped, which opens it.
    let _ = gate.wait_for(|open| *open).await;
}

/// Returns whether `sent` contains all parts of the pattern, in this order.
fn contains(mut sent: &[u8], pattern: &[Vec<u8>]) -> bool {
    pattern.iter().all(|part| {
        let found = sent.windows(part.len()).position(|bytes| bytes == part);
        found.is_some_and(|at| {
            sent = &sent[at + part.len()..];
            true
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// Long enough for data to arrive if it is not held.
    const A_WHILE: Duration = Duration::from_millis(100);

    /// Starts a server that counts the bytes it receives and echoes them.
    async fn echo() -> (SocketAddr, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (count, counted) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 100];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        count.send_modify(|count| *count += read);
                        let _ = stream.write_all(&buffer[..read]).await;
                    }
                });
            }
        });
        (address, counted)
    }

    async fn answers(stream: &mut TcpStream, text: &str) -> bool {
        let mut buffer = vec![0; text.len()];
        timeout(A_WHILE, stream.read_exact(&mut buffer))
            .await
            .is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn it_can_be_cut_and_held() -> Result<()> {
        let (server, _) = echo().await;
        let link = Link::start(server).await?;
        let mut stream = TcpStream::connect(link.address()).await?;
        stream.write_all(b"one").await?;
        assert!(answers(&mut stream, "one").await);
        link.hold();
        stream.write_all(b"two").await?;
        assert!(!answers(&mut stream, "two").await);
        link.restore();
        assert!(answers(&mut stream, "two").await);
        link.hold_from([127, 0, 0, 2].into());
        stream.write_all(b"of others").await?;
        assert!(answers(&mut stream, "of others").await);
        link.hold_from(stream.local_addr()?.ip());
        stream.write_all(b"mine").await?;
        assert!(!answers(&mut stream, "mine").await);
        link.restore();
        assert!(answers(&mut stream, "mine").await);
        link.cut();
        assert_eq!(timeout(SOON, stream.read(&mut [0])).await?.unwrap_or(0), 0);
        let mut new = TcpStream::connect(link.address()).await?;
        assert_eq!(timeout(SOON, new.read(&mut [0])).await?.unwrap_or(0), 0);
        link.restore();
        let mut new = TcpStream::connect(link.address()).await?;
        new.write_all(b"three").await?;
        assert!(answers(&mut new, "three").await);
        Ok(())
    }

    #[tokio::test]
    async fn a_gate_holds_the_request_or_the_answer() -> Result<()> {
        for hold in [Hold::Request, Hold::Answer] {
            let (server, mut counted) = echo().await;
            let link = Link::start(server).await?;
            let mut stream = TcpStream::connect(link.address()).await?;
            let mut gate = link.gate(&["need", "dle"], hold);
            stream.write_all(b"dle nee").await?;
            assert!(answers(&mut stream, "dle nee").await, "{hold:?}: not the pattern");
            stream.write_all(b"dle!").await?;
            assert!(gate.reached(A_WHILE).await.is_err(), "{hold:?}: half of the pattern");
            assert!(answers(&mut stream, "dle!").await, "{hold:?}");
            stream.write_all(b"-dle").await?;
            gate.reached(SOON).await?;
            assert!(!answers(&mut stream, "-dle").await, "{hold:?}");
            let arrived = if hold == Hold::Request { 11 } else { 15 };
            timeout(SOON, counted.wait_for(|count| *count == arrived)).await??;
            let mut other = TcpStream::connect(link.address()).await?;
            other.write_all(b"needdle").await?;
            assert!(answers(&mut other, "needdle").await, "{hold:?}: only the first is held");
            gate.open();
            assert!(answers(&mut stream, "-dle").await, "{hold:?}");
        }
        Ok(())
    }
}
