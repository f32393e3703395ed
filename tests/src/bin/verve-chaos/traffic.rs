//! The clients: they send ids to hosts that fail and recover.
//!
//! Each id belongs to one client. Some ids are repeated, and some requests ask for a callback.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use verve_protocol::{CounterName, WindowLength};
use verve_tests::clock;
use verve_tests::http::{Connection, Response};

use crate::tally::{Request, Tally};

/// The number of clients.
///
/// With the pause after each answer, they send some hundred requests per second.
const CLIENTS: usize = 6;
/// The longest pause after an answer, in milliseconds.
const PAUSE_MS: u64 = 20;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// The share of ids that are sent again after the answer `ok`.
const REPEATED: f64 = 0.2;
/// The last milliseconds of a window, in which no id is sent again.
///
/// So most repetitions are in the window of the id.
const MARGIN_MS: u64 = 300;
/// The share of ids that a client retries if they were not answered `ok`.
const TRIED_AGAIN: f64 = 0.5;
/// The share of requests that ask for a callback.
const CALLED_BACK: f64 = 0.03;

/// The running clients.
pub struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// The requests that the clients send.
pub struct Asked {
    /// The URL for callbacks, without the path.
    pub sink: String,
    /// The counters.
    ///
    /// An id is always added to the same one. `None` is the one without a name.
    pub counters: Vec<Option<CounterName>>,
}

/// Returns the place of an id's counter among so many of them.
pub fn counter_of(id: i64, counters: usize) -> usize {
    usize::try_from(id.rem_euclid(counters as i64)).unwrap_or_default()
}

struct Shared {
    hosts: Vec<SocketAddr>,
    length: WindowLength,
    asked: Asked,
    stop: AtomicBool,
    next_job: AtomicU64,
    tally: Mutex<Tally>,
}

impl Traffic {
    /// Starts to send requests to `hosts`, drawn from `rng`.
    pub fn start(hosts: Vec<SocketAddr>, length: WindowLength, asked: Asked, rng: &mut Rng) -> Self {
        let shared = Arc::new(Shared {
            hosts,
            length,
            asked,
            stop: AtomicBool::new(false),
            next_job: AtomicU64::new(0),
            tally: Mutex::default(),
        });
        let client = |number: usize| {
            let client = Client {
                shared: Arc::clone(&shared),
                rng: rng.fork(),
                connections: shared.hosts.iter().map(|_| None).collect(),
            };
            // Each client has its own range of ids. Some ranges are negative.
            let ids = (number as i64 - 3) << 40;
            tokio::spawn(client.run(ids))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { shared, clients }
    }

    /// Returns the answers so far.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally()
    }

    /// Stops sending, and waits for the last answers.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // The panic of a client is already printed, and its entries in the tally stay valid.
            let _ = client.await;
        }
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Client {
    shared: Arc<Shared>,
    rng: Rng,
    /// By host. They are kept alive.
    connections: Vec<Option<Connection>>,
}

impl Client {
    async fn run(mut self, first: i64) {
        let mut id = first;
        while !self.shared.stop.load(Ordering::Relaxed) {
            id += 1;
            let mut ok = self.send(id).await;
            while self.goes_on(ok) {
                ok = self.send(id).await;
            }
            sleep(Duration::from_millis(self.rng.u64(0..=PAUSE_MS))).await;
        }
    }

    /// Returns whether to send the last id again.
    fn goes_on(&mut self, ok: bool) -> bool {
        let now = clock::now_ms();
        let left = self.shared.length.window_at_ms(now).end_ms() - now;
        let share = if ok { REPEATED } else { TRIED_AGAIN };
        left > MARGIN_MS && self.rng.f64() < share && !self.shared.stop.load(Ordering::Relaxed)
    }

    /// Sends an id to one of the hosts, and records the result in the tally.
    ///
    /// Returns whether the answer was `ok`.
    async fn send(&mut self, id: i64) -> bool {
        let place = self.rng.usize(..self.connections.len());
        let Some(mut connection) = self.connection(place).await else {
            // Nothing was sent because no host listens. A load balancer would try another host.
            sleep(Duration::from_millis(PAUSE_MS)).await;
            return false;
        };
        let asked = &self.shared.asked;
        let mut target = format!("/api/verve/accept?id={id}");
        if let Some(name) = &asked.counters[counter_of(id, asked.counters.len())] {
            target += &format!("&counter={}", name.as_str());
        }
        let mut job = None;
        if self.rng.f64() < CALLED_BACK {
            let number = self.shared.next_job.fetch_add(1, Ordering::Relaxed);
            target += &format!("&endpoint={}/job/{number}", asked.sink);
            job = Some(number);
        }
        let sent = self.window();
        let answer = timeout(PATIENCE, connection.get(&target)).await;
        let (outcome, is_ok) = match &answer {
            Ok(Ok(response)) => outcome(response),
            Ok(Err(_)) => ("connection lost".to_owned(), false),
            Err(_) => ("no answer".to_owned(), false),
        };
        if matches!(answer, Ok(Ok(_))) {
            self.connections[place] = Some(connection);
        }
        let ok = is_ok.then(|| self.window());
        self.shared.tally().note(Request { id, sent, ok }, &outcome, job);
        is_ok
    }

    async fn connection(&mut self, place: usize) -> Option<Connection> {
        match self.connections[place].take() {
            Some(connection) => Some(connection),
            None => connect(self.shared.hosts[place]).await.ok(),
        }
    }

    /// Returns the number of the window that is open now.
    fn window(&self) -> u64 {
        clock::current_window(self.shared.length).start() / self.shared.length.seconds()
    }
}

async fn connect(host: SocketAddr) -> Result<Connection> {
    timeout(PATIENCE, Connection::open(host)).await?
}

/// Returns the outcome of a response, and whether the response is a promise.
fn outcome(response: &Response) -> (String, bool) {
    let text = response.text();
    let is_ok = text == "ok" && response.status == 200;
    match response.header("verve-outcome") {
        Some(outcome) if is_ok => (outcome.to_owned(), true),
        _ => (format!("{} {}", response.status, text.trim_end()), is_ok),
    }
}
