//! The demo: requests to all hosts, two callbacks, and a tally of the requests.
//!
//! Many ids are repeated. A request belongs to the window in which the host records it, but the
//! tally knows only when the request was sent and answered. So no request is sent shortly before a
//! window ends. If a request crosses the boundary anyway, the tally counts it as in doubt, and the
//! count may differ by one.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use verve_protocol::{Window, WindowLength};
use verve_tests::clock;
use verve_tests::http::Connection;
use verve_tests::kafka::Record;
use verve_tests::sink::{Received, Sink};

use crate::Args;
use crate::parts::Parts;

/// The number of connections to each host.
///
/// With a pause after each answer, they send some hundred requests per second.
const CONNECTIONS: usize = 2;
const PAUSE: Duration = Duration::from_millis(8);

/// The number of different ids.
///
/// About half of the ids in a window of 10 s are repetitions.
const IDS: u64 = 2_000;

/// The last milliseconds of a window, in which no request is sent.
const QUIET_MS: u64 = 300;

/// How long after their end all windows must have been reported correctly.
const PATIENCE: Duration = Duration::from_secs(20);

/// The running demo.
pub struct Demo {
    plan: Arc<Plan>,
    workers: Vec<JoinHandle<()>>,
    sink: Sink,
    callbacks_shown: usize,
    reported: BTreeMap<String, u64>,
    deadline: Option<Instant>,
}

/// The state that the workers share.
struct Plan {
    length: WindowLength,
    /// Stop after this number of windows.
    windows: Option<usize>,
    tally: Mutex<BTreeMap<Window, Sent>>,
}

/// The requests that were sent in a window.
#[derive(Default)]
struct Sent {
    requests: usize,
    ids: HashSet<u64>,
    in_doubt: usize,
}

impl Demo {
    pub async fn start(parts: &Parts, args: &Args) -> Result<Self> {
        let sink = Sink::start().await?;
        let plan = Arc::new(Plan {
            length: args.window_seconds,
            windows: args.windows.map(|windows| windows as usize),
            tally: Mutex::default(),
        });
        let endpoint = percent_encoded(&sink.url("/hello?from=verve"));
        let mut workers = Vec::new();
        for (index, host) in parts
            .hosts
            .iter()
            .cycle()
            .take(parts.hosts.len() * CONNECTIONS)
            .enumerate()
        {
            // The first worker asks for the callbacks, after it has sent some ids.
            let extras = match index {
                0 => ["get", "post"]
                    .map(|method| format!("&endpoint={endpoint}&method={method}"))
                    .to_vec(),
                _ => Vec::new(),
            };
            let (plan, address) = (Arc::clone(&plan), host.addr());
            let seed = clock::now_ms() ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            workers.push(tokio::spawn(async move { plan.send(address, seed, extras).await }));
        }
        Ok(Self {
            plan,
            workers,
            sink,
            callbacks_shown: 0,
            reported: BTreeMap::new(),
            deadline: None,
        })
    }

    /// Adds a record, and returns a text about the requests sent in its window.
    pub fn reported(&mut self, record: &Record) -> Option<String> {
        let count = record.value.parse().ok()?;
        self.reported.insert(record.key.clone(), count);
        let tally = self.plan.tally();
        let (_, sent) = tally.iter().find(|(window, _)| window.to_string() == record.key)?;
        let agrees = match sent.ids.len() as u64 == count {
            true => "agrees",
            false if sent.in_doubt > 0 => "requests crossed the boundary",
            false => "DIFFERS (unless you sent some, too)",
        };
        Some(format!(
            "sent {} requests, {} distinct ids: {agrees}",
            sent.requests,
            sent.ids.len()
        ))
    }

    /// Returns the callbacks since the last call.
    pub fn new_callbacks(&mut self) -> Vec<Received> {
        let new = self.sink.received().split_off(self.callbacks_shown);
        self.callbacks_shown += new.len();
        new
    }

    /// Returns the result, once all requested windows are over and reported.
    pub fn verdict(&mut self) -> Option<Verdict> {
        if self.plan.windows.is_none() || !self.workers.iter().all(JoinHandle::is_finished) {
            return None;
        }
        let verdict = self.compare();
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + self.plan.last_report());
        (verdict.agrees() || Instant::now() >= deadline).then_some(verdict)
    }

    fn compare(&self) -> Verdict {
        let tally = self.plan.tally();
        let count = |window: &Window| self.reported.get(&window.to_string());
        Verdict {
            windows: tally.len(),
            unreported: tally.keys().filter(|window| count(window).is_none()).count(),
            requests: tally.values().map(|sent| sent.requests).sum(),
            distinct: tally.values().map(|sent| sent.ids.len() as u64).sum(),
            counted: tally.keys().filter_map(count).sum(),
            in_doubt: tally.values().map(|sent| sent.in_doubt as u64).sum(),
            callbacks: self.callbacks_shown,
        }
    }

    /// Stops the workers.
    pub fn end(self) {
        for worker in &self.workers {
            worker.abort();
        }
    }
}

impl Plan {
    fn tally(&self) -> MutexGuard<'_, BTreeMap<Window, Sent>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how long after the last answer all windows must be reported.
    fn last_report(&self) -> Duration {
        Duration::from_secs(self.length.seconds()) + PATIENCE
    }

    /// Runs one worker: one connection, one request at a time.
    async fn send(&self, address: SocketAddr, mut random: u64, mut extras: Vec<String>) {
        let mut connection = None;
        for sent in 0.. {
            let Some(window) = self.window().await else {
                return;
            };
            let id = next_random(&mut random) % IDS;
            let extra = if sent >= 100 { extras.pop() } else { None };
            let target = format!("/api/verve/accept?id={id}{}", extra.unwrap_or_default());
            let ok = get(&mut connection, address, &target).await;
            self.note(window, id, ok);
            sleep(PAUSE).await;
        }
    }

    /// Returns the window to send in, or `None` after the last window.
    ///
    /// It waits if the current window is about to end.
    async fn window(&self) -> Option<Window> {
        loop {
            let now = clock::now_ms();
            let window = self.length.window_at_ms(now);
            {
                let tally = self.tally();
                if self
                    .windows
                    .is_some_and(|most| tally.len() >= most && !tally.contains_key(&window))
                {
                    return None;
                }
            }
            let quiet = QUIET_MS.min(self.length.seconds() * 250);
            if now + quiet < window.end_ms() {
                return Some(window);
            }
            clock::sleep_until_ms(window.end_ms()).await;
        }
    }

    fn note(&self, window: Window, id: u64, ok: bool) {
        let crossed = self.length.window_at_ms(clock::now_ms()) != window;
        let mut tally = self.tally();
        let sent = tally.entry(window).or_default();
        sent.requests += 1;
        sent.in_doubt += usize::from(crossed || !ok);
        sent.ids.insert(id);
    }
}

/// Returns whether the answer was `ok`. Connects if there is no connection.
async fn get(connection: &mut Option<Connection>, address: SocketAddr, target: &str) -> bool {
    let open = match connection.take() {
        Some(open) => Ok(open),
        None => Connection::open(address).await,
    };
    let Ok(mut open) = open else {
        return false;
    };
    match open.get(target).await {
        Ok(response) => {
            *connection = Some(open);
            response.status == 200 && response.body == b"ok"
        }
        Err(_) => false,
    }
}

/// The sums over all windows.
pub struct Verdict {
    windows: usize,
    unreported: usize,
    requests: usize,
    distinct: u64,
    counted: u64,
    in_doubt: u64,
    callbacks: usize,
}

impl Verdict {
    /// Returns whether the result is right.
    ///
    /// Every window was reported, the sum is right, and both callbacks arrived.
    pub const fn agrees(&self) -> bool {
        self.unreported == 0 && self.counted.abs_diff(self.distinct) <= self.in_doubt && self.callbacks >= 2
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} windows: sent {} requests with {} ids distinct in their window, counted {}; {} callbacks",
            self.windows, self.requests, self.distinct, self.counted, self.callbacks
        )?;
        if self.unreported > 0 {
            write!(f, "; {} windows were not reported", self.unreported)?;
        }
        if self.in_doubt > 0 {
            write!(f, "; {} requests are in doubt", self.in_doubt)?;
        }
        f.write_str(if self.agrees() { ": agrees" } else { ": DIFFERS" })
    }
}

/// Encodes a text as the value of a query parameter.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Returns the next number of SplitMix64.
///
/// It needs no dependency and suffices for a demo.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
