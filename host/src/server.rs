//! HTTP/1.1 in front of the component.
//!
//! Decides which requests of a connection go to the component, and answers the others.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpStream;
use wasmtime_wasi_http::WasiBody;

use crate::instances::Instances;
use crate::lenient::Lenient;
use crate::routes::Route;

/// The interval at which the component is asked to drain its database.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(30);
/// The path of Spin's own health check, which is served beside the routes.
const HEALTH: &str = "/.well-known/spin/health";

/// The application, and how it is served.
#[derive(Clone)]
pub struct Site {
    /// The component's name in the manifest.
    pub component: String,
    /// The paths that go to the component; all others are not found.
    pub routes: Vec<Route>,
    /// Whether to turn Nagle's algorithm off.
    pub tcp_nodelay: bool,
    /// The time limit for the head of a request, and for an idle connection.
    pub keep_alive: Duration,
    /// The maximum size of the head of a request, in bytes.
    pub max_head: usize,
    /// The maximum number of open connections.
    pub max_connections: NonZeroUsize,
    /// Whether the host asks the component to drain its database.
    pub looks_after: bool,
    /// Whether the component answers that it cannot work with its configuration.
    pub is_misconfigured: Arc<AtomicBool>,
    /// The variables that were set, each as it was set.
    pub given: Vec<String>,
    /// Whether load balancers should stop sending requests.
    pub is_stopping: Arc<AtomicBool>,
}

impl Site {
    /// Records whether the component cannot serve at all, and logs when that begins.
    fn note(&self, fails: bool) {
        if self.is_misconfigured.swap(fails, Ordering::Relaxed) || !fails {
            return;
        }
        let given = match self.given.as_slice() {
            [] => "none".to_owned(),
            given => given.join(", "),
        };
        tracing::error!(
            "the component cannot serve as it is configured, and the health check fails; variables that were given: {given}"
        );
    }
}

/// Asks the component to drain its database, immediately and then periodically.
///
/// The component processes the data that it may have left there, even if no client sends it a
/// request again. The request is `OPTIONS`, which the component answers only with the methods it
/// supports. If it answers that it cannot serve at all, the health check fails.
pub async fn look_after(site: Arc<Site>, instances: Instances) {
    let Some(route) = site.routes.first().filter(|_| site.looks_after) else {
        return;
    };
    loop {
        let mut request = Request::new(whole(""));
        *request.method_mut() = Method::OPTIONS;
        if let Ok(uri) = route.root().parse() {
            *request.uri_mut() = uri;
        }
        let host = HeaderValue::from_static("localhost");
        request.headers_mut().insert(HOST, host);
        match instances.handle(request).await {
            Ok(answer) => site.note(answer.status().is_server_error()),
            Err(error) => tracing::debug!("the component did not drain its database: {error}"),
        }
        tokio::time::sleep(LOOK_AFTER_EVERY).await;
    }
}

/// Serves a connection until it ends, or is idle after `graceful` has stopped.
pub fn serve_connection(
    stream: std::net::TcpStream,
    site: Arc<Site>,
    instances: Instances,
    graceful: &GracefulShutdown,
) -> impl Future<Output = io::Result<()>> + use<> {
    let watcher = graceful.watcher();
    async move {
        // A response may leave in two writes, head and body. With Nagle's algorithm the second
        // waits for the client's ACK of the first, which the client delays by 40 ms.
        stream.set_nodelay(site.tcp_nodelay)?;
        let stream = TokioIo::new(Lenient::new(TcpStream::from_std(stream)?));
        let (keep_alive, max_head) = (site.keep_alive, site.max_head);
        let service = service_fn(move |request| {
            let (site, instances) = (site.clone(), instances.clone());
            async move {
                let mut response = answer(&site, &instances, request).await;
                if site.is_stopping.load(Ordering::Relaxed) {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(keep_alive)
            .max_buf_size(max_head)
            // A client that has closed its sending side may still wait for the answer.
            .half_close(true)
            // The body is two bytes long: copying is cheaper than gathering.
            .writev(false)
            .serve_connection(stream, service);
        watcher.watch(connection).await.map_err(io::Error::other)
    }
}

async fn answer(site: &Site, instances: &Instances, request: Request<Incoming>) -> Response<WasiBody> {
    let path = request.uri().path();
    if !site.routes.iter().any(|route| route.takes(path)) {
        return match path {
            HEALTH if site.is_stopping.load(Ordering::Relaxed) => plain(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            HEALTH if site.is_misconfigured.load(Ordering::Relaxed) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "misconfigured")
            }
            HEALTH => plain(StatusCode::OK, "OK"),
            _ => plain(StatusCode::NOT_FOUND, ""),
        };
    }
    let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    if !request.headers().contains_key(HOST) && request.uri().authority().is_none() {
        // HTTP/1.0 requests may lack a host, and components need one.
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
    }
    match instances.handle(request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!("a request failed: {error}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "")
        }
    }
}

fn plain(status: StatusCode, body: &'static str) -> Response<WasiBody> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response
}

fn whole(body: &'static str) -> WasiBody {
    Full::new(Bytes::from_static(body.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync()
}
