//! An HTTP server that records every request, and answers as configured.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{self, Body};
use axum::extract::{Request, State};
use axum::http;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::{clock, wait};

/// A request that reached the sink.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method, in capitals.
    pub method: String,
    /// Path and query, as received.
    pub target: String,
    /// The headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// When its head arrived, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

impl Received {
    /// Returns a header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Additional headers.
    pub headers: Vec<(String, String)>,
    /// How long the answer is delayed.
    pub delay: Duration,
}

impl Answer {
    /// Creates an answer with this status, sent immediately.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            delay: Duration::ZERO,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Delays the answer.
    #[must_use]
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    /// By path. The last answer of a sequence is repeated for all later requests.
    answers: Mutex<HashMap<String, VecDeque<Answer>>>,
}

/// A recording server. Dropping it ends it.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Sink {
    /// Starts a sink on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// Fails if there is no free port.
    pub async fn start() -> Result<Self> {
        Self::start_on("127.0.0.1:0").await
    }

    /// Starts a sink on this address.
    ///
    /// # Errors
    /// Fails if the address cannot be bound.
    pub async fn start_on(address: &str) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("sink on {address}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(record).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            shared,
            server,
        })
    }

    /// Returns its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns a URL of the sink; `target` is path and query.
    #[must_use]
    pub fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    /// Sets the answers to the requests for `path`, in this order.
    ///
    /// The last answer is repeated for all later requests. The default answer is 200.
    pub fn answer(&self, path: &str, answers: impl Into<VecDeque<Answer>>) {
        lock(&self.shared.answers).insert(path.to_owned(), answers.into());
    }

    /// Returns the requests so far.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Returns the number of requests so far.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.shared.received).len()
    }

    /// Returns the requests for `path` so far, with any query.
    #[must_use]
    pub fn received_at(&self, path: &str) -> Vec<Received> {
        let of_path = |r: &Received| r.target.split('?').next() == Some(path);
        self.received().into_iter().filter(of_path).collect()
    }

    /// Waits for `count` requests for `path`, and returns all of them.
    ///
    /// # Errors
    /// Fails after `timeout`. The error contains the requests that arrived.
    pub async fn wait_for(&self, path: &str, count: usize, timeout: Duration) -> Result<Vec<Received>> {
        wait::until("requests at the sink", timeout, || async {
            Some(self.received_at(path)).filter(|received| received.len() >= count)
        })
        .await
        .with_context(|| format!("{count} requests for {path}; came: {:#?}", self.received()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn record(State(shared): State<Arc<Shared>>, request: Request) -> http::Response<Body> {
    let time_ms = clock::now_ms();
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    lock(&shared.received).push(Received {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
        time_ms,
    });
    let answer = next_answer(&shared, &path);
    sleep(answer.delay).await;
    let response = http::Response::builder().status(answer.status);
    let response = answer.headers.into_iter().fold(response, |r, (n, v)| r.header(n, v));
    response.body(Body::empty()).unwrap_or_default()
}

fn next_answer(shared: &Shared, path: &str) -> Answer {
    match lock(&shared.answers).get_mut(path) {
        Some(answers) if answers.len() > 1 => answers.pop_front(),
        Some(answers) => answers.front().cloned(),
        None => None,
    }
    .unwrap_or_else(|| Answer::status(200))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
