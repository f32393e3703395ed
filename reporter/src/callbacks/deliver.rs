//! Calls one endpoint over HTTP.

use std::error::Error;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, redirect};
use url::Url;
use verve_protocol::{CallbackJob, CounterName, Endpoint, Method};

use super::policy::{Policy, Refused, Resolver};
use super::sign::Signer;
use crate::clock::machine_ms;
use crate::telemetry;

/// The timeout of the connection, including the name resolution.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many bytes of a body are read, so that the connection can be reused.
const BODY_LIMIT: usize = 64 * 1024;

/// The maximum number of headers in a response.
const MOST_HEADERS: usize = 1000;

/// Calls endpoints.
pub trait Call: Send + Sync + 'static {
    /// Calls the job's endpoint with the count.
    ///
    /// Returns the status of the response, which is a success. `id` is the same for each attempt.
    fn call(&self, id: &str, job: &CallbackJob, unique_count: u64)
    -> impl Future<Output = Result<u16, Failure>> + Send;
}

/// Calls endpoints by HTTP.
pub struct Client {
    http: reqwest::Client,
    policy: Policy,
    /// Signs each call.
    signer: Option<Signer>,
    /// The timeout of a whole call.
    call: Duration,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One line, for the log and for the dead letter.
    pub error: String,
    /// The status of the response, if there was one.
    pub status: Option<u16>,
    /// Whether another attempt is pointless.
    pub permanent: bool,
    /// The delay that the endpoint requested.
    pub retry_after: Option<Duration>,
}

impl Client {
    /// Creates a client that reaches what `policy` permits, with this call timeout.
    pub fn new(policy: Policy, signer: Option<Signer>, call: Duration) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("verve-reporter/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // A proxy would resolve the name itself, without the check of its addresses.
            .no_proxy()
            .dns_resolver(Resolver::new(policy.clone()))
            // An endpoint that answers has received the count. A malformed answer must not cause
            // another call.
            .http1_max_headers(MOST_HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(call)
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Self {
            http,
            policy,
            signer,
            call,
        })
    }

    fn request(&self, id: &str, job: &CallbackJob, unique_count: u64) -> RequestBuilder {
        let mut url = job.endpoint.to_url();
        let signed = |contents: &[&str]| {
            let signer = self.signer.as_ref();
            signer.map(|signer| signer.headers(id, machine_ms() / 1000, contents))
        };
        let (request, headers) = match job.method {
            Method::Get => {
                url.query_pairs_mut()
                    .append_pair("unique_count", &unique_count.to_string());
                // One signature is for the empty body, the other for the query, which contains the
                // count.
                let headers = signed(&["", url.query().unwrap_or_default()]);
                (self.http.get(url), headers)
            }
            Method::Post => {
                let body = format!(r#"{{"unique_count":{unique_count}}}"#);
                let headers = signed(&[&body]);
                let request = self.http.post(url).header(CONTENT_TYPE, "application/json");
                (request.body(body), headers)
            }
        };
        let headers = headers.into_iter().flatten();
        let request = headers.fold(request, |request, (name, value)| request.header(name, value));
        let request = request
            .header("verve-window", job.window.to_string())
            .header("verve-window-seconds", job.window.length().to_string());
        let optional = [
            ("verve-counter", job.counter.as_ref().map(CounterName::to_string)),
            ("traceparent", telemetry::traceparent()),
            ("verve-revision", job.revision.map(|revision| revision.to_string())),
        ];
        let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
        optional.fold(request, |request, (name, value)| request.header(name, value))
    }
}

impl Call for Client {
    async fn call(&self, id: &str, job: &CallbackJob, unique_count: u64) -> Result<u16, Failure> {
        // A literal address is not resolved, so the resolver does not check it.
        self.policy
            .check_literal(&job.endpoint.to_url())
            .map_err(|refused| Failure::refused(&refused))?;
        let response = self
            .request(id, job, unique_count)
            .send()
            .await
            .map_err(|error| Failure::from_http(&error, self.call))?;
        let status = response.status();
        let retry_after = retry_after(&response, Timestamp::now());
        read_some(response).await;
        if status.is_success() {
            Ok(status.as_u16())
        } else {
            Err(Failure::from_status(status.as_u16(), retry_after))
        }
    }
}

/// Reads the body up to a limit; a longer one closes the connection.
async fn read_some(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > BODY_LIMIT {
            return;
        }
    }
}

/// Returns the delay that a response requests: a number of seconds, or a date.
fn retry_after(response: &Response, now: Timestamp) -> Option<Duration> {
    parse_retry_after(response.headers().get(RETRY_AFTER)?.to_str().ok()?, now)
}

fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Returns the endpoint for log lines, without its query, which may have secrets.
pub fn shown(endpoint: &Endpoint) -> String {
    without_secrets(endpoint.to_url())
}

/// Returns the URL without the parts that may contain secrets.
///
/// These are userinfo, query and fragment.
pub fn without_secrets(mut url: Url) -> String {
    // This fails for a URL without a host, which has no userinfo either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

impl Failure {
    fn refused(refused: &Refused) -> Self {
        Self {
            error: refused.to_string(),
            status: None,
            permanent: true,
            retry_after: None,
        }
    }

    /// Returns the failure for the status of an unsuccessful response.
    #[must_use]
    pub fn from_status(status: u16, retry_after: Option<Duration>) -> Self {
        // With this status an endpoint declines further calls, by the Standard Webhooks scheme.
        let permanent = status == StatusCode::GONE;
        Self {
            error: format!("status {status}"),
            status: Some(status),
            permanent,
            retry_after,
        }
    }

    fn from_http(error: &reqwest::Error, call: Duration) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return Self::refused(refused);
            }
            causes.push(error.to_string());
            cause = error.source();
        }
        let kind = match () {
            () if error.is_timeout() => format!("no response within {} s", call.as_secs()),
            () if error.is_connect() => "cannot connect".to_owned(),
            () => "the request failed".to_owned(),
        };
        let error = match causes.last() {
            // The last cause is that of the operating system or the protocol; those between add
            // nothing.
            Some(cause) => format!("{kind}: {cause}"),
            None => kind,
        };
        Self {
            error,
            status: None,
            permanent: false,
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-22T21:30:00Z".parse().expect("a time");
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("Sun, 22 Nov 2026 21:30:30 GMT", Some(30)),
            ("Sun, 22 Nov 2026 21:29:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(
                parse_retry_after(text, now),
                seconds.map(Duration::from_secs),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_query_is_not_shown() {
        let endpoint: Endpoint = "http://e.com/a?token=hunter2#x".parse().expect("an endpoint");
        assert_eq!(shown(&endpoint), "http://e.com/a");
    }
}
