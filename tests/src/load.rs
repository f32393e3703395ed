//! Many concurrent requests, on connections that are kept alive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::clock;
use crate::http::Connection;

/// The answer to one request of a load.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header `verve-outcome`.
    pub outcome: Option<String>,
    /// When the request was sent, in milliseconds since the Unix epoch.
    pub sent_ms: u64,
    /// When the answer had arrived, in milliseconds since the Unix epoch.
    pub answered_ms: u64,
}

/// Sends a GET for each of `targets`, as fast as they are answered.
///
/// It uses `connections` connections, spread evenly over `addresses`. The answers are in the order
/// of the targets.
///
/// # Errors
/// Fails if a connection breaks.
pub async fn run(addresses: &[SocketAddr], connections: usize, targets: Vec<String>) -> Result<Vec<Answer>> {
    let targets = Arc::new(targets);
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for address in addresses.iter().cycle().take(connections) {
        workers.push(tokio::spawn(worker(*address, Arc::clone(&targets), Arc::clone(&next))));
    }
    let mut answers = Vec::with_capacity(targets.len());
    for worker in workers {
        answers.extend(worker.await??);
    }
    answers.sort_by_key(|(index, _)| *index);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

async fn worker(
    address: SocketAddr,
    targets: Arc<Vec<String>>,
    next: Arc<AtomicUsize>,
) -> Result<Vec<(usize, Answer)>> {
    let mut connection = Connection::open(address).await?;
    let mut answers = Vec::new();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(target) = targets.get(index) else {
            return Ok(answers);
        };
        let sent_ms = clock::now_ms();
        let response = connection.get(target).await?;
        answers.push((
            index,
            Answer {
                status: response.status,
                outcome: response.header("verve-outcome").map(str::to_owned),
                sent_ms,
                answered_ms: clock::now_ms(),
            },
        ));
    }
}
