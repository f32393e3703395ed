//! Properties of everything that parses external input, for any input.
//!
//! Nothing panics, and an accepted value is what it seems to be.
//!
//! `cargo xtask fuzz` searches for violations with libFuzzer, for as long as you like
//! (`libfuzzer/`). `cargo xtask test` tries the texts in `corpus/`, and random ones (`tests/`).

use std::net::IpAddr;
use std::path::Path;

use accept_component::request::Accept;
use url::{Host, Url};
use verve_counter_core::cluster::{Map, Redirect};
use verve_counter_core::reply::Reply;
use verve_protocol::slot::SLOTS;
use verve_protocol::{CallbackJob, Endpoint, Id, RedisUrls, Report, SpoolState, WindowLength};

// Modules of programs that are in no library.
#[path = "../../host/src/manifest.rs"]
#[allow(dead_code, reason = "the host reads more of it")]
mod manifest;
#[path = "../../reporter/src/callbacks/policy.rs"]
#[allow(dead_code, reason = "the reporter uses more of it")]
mod policy;
#[path = "../../host/src/routes.rs"]
#[allow(dead_code, reason = "the host uses more of it")]
mod routes;
#[path = "../../host/src/variables.rs"]
#[allow(dead_code, reason = "the host uses more of it")]
mod variables;

/// A substitute for the host's module of this name.
mod database {
    pub const DATABASE: &str = "default";
}

/// Parses a text, and checks the properties of the result.
pub type Target = fn(&str);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 7] = [
    ("address", address),
    ("cluster", cluster),
    ("endpoint", endpoint),
    ("manifest", manifest),
    ("records", records),
    ("redis_urls", redis_urls),
    ("request", request),
];

/// Checks the path and query of a request.
///
/// An accepted request stays the same when it is written and parsed again.
///
/// # Panics
/// If a property does not hold, as in all other targets.
pub fn request(text: &str) {
    let Ok(accept) = Accept::parse(text) else { return };
    let written: Id = accept.id.to_string().parse().expect("an id reads back");
    assert_eq!(written, accept.id);
    if let Some(callback) = accept.callback {
        endpoint(&callback.endpoint.to_string());
    }
}

/// Checks an endpoint.
///
/// An accepted text is a URL of `http` or `https` without userinfo, kept as it is.
pub fn endpoint(text: &str) {
    let Ok(endpoint) = text.parse::<Endpoint>() else { return };
    assert_eq!(endpoint.to_string(), text);
    let url = endpoint.to_url();
    assert!(["http", "https"].contains(&url.scheme()) && url.host().is_some());
    assert!(url.username().is_empty() && url.password().is_none());
    assert!(text.len() <= Endpoint::MAX_BYTES);
}

/// Checks whether a callback may call a URL.
///
/// It may not call an address that the standard library does not regard as public.
pub fn address(text: &str) {
    let Ok(url) = Url::parse(text) else { return };
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        _ => return,
    };
    if policy::Policy::default().check_literal(&url).is_err() {
        return;
    }
    match address.to_canonical() {
        IpAddr::V4(v4) => assert!(
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()),
            "{url}"
        ),
        IpAddr::V6(v6) => assert!(
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()),
            "{url}"
        ),
    }
}

/// Checks the records in Redis: a callback job, a report, the state of a spool.
///
/// A parsed record stays the same when it is written and parsed again.
pub fn records(text: &str) {
    let mut lines = text.lines();
    let fields: Vec<Option<&str>> = ["endpoint", "method", "window", "revision", "counter"]
        .map(|_| lines.next())
        .to_vec();
    let get = |name: &str| match name {
        "endpoint" => fields[0],
        "method" => fields[1],
        "window" => fields[2],
        "revision" => fields[3],
        "counter" => fields[4],
        _ => None,
    };
    let length = WindowLength::try_new(60).expect("valid");
    if let Ok(job) = CallbackJob::from_fields(length, get) {
        let written = job.to_fields();
        let again = CallbackJob::from_fields(length, |name| {
            let field = written.iter().find(|(field, _)| *field == name);
            field.map(|(_, value)| value.as_str())
        });
        assert_eq!(again, Ok(job));
    }
    if let Ok(report) = Report::from_json(text) {
        let again = Report::from_json(&report.to_json()).expect("a report reads back");
        assert_eq!(again.to_json(), report.to_json());
    }
    if let Ok(state) = text.parse::<SpoolState>() {
        assert_eq!(state.to_string().parse(), Ok(state));
    }
}

/// Checks a list of Redis servers. Its displayed form contains no password.
pub fn redis_urls(text: &str) {
    let Ok(urls) = text.parse::<RedisUrls>() else { return };
    for url in urls.as_slice() {
        let secret = Url::parse(url.secret()).expect("a URL");
        let shown = Url::parse(&url.to_string()).expect("a URL");
        assert_eq!((shown.password(), shown.username()), (None, ""), "{url}");
        assert_eq!((shown.host_str(), shown.scheme()), (secret.host_str(), secret.scheme()));
    }
}

/// Checks the answers of the nodes of a cluster.
///
/// A map has one node or none for each slot, and the text before a redirection does not change what
/// is parsed.
pub fn cluster(text: &str) {
    let parts = text.split(' ').map(|word| match word.parse() {
        Ok(number) => Reply::Number(number),
        Err(_) if word.is_empty() => Reply::Nothing,
        Err(_) => Reply::Text(word.to_owned()),
    });
    let mut map = Map::parse(&parts.collect::<Vec<_>>(), "asked");
    assert!(map.node(SLOTS - 1).is_none_or(|node| !node.is_empty()));
    if let Some(redirect) = Redirect::parse(text)
        && let Some(address) = redirect.to("asked")
    {
        let again = format!(
            "An error was signalled by the server - Moved: {} {address}",
            redirect.slot
        );
        let again = Redirect::parse(&again).expect("a redirection");
        assert_eq!((again.slot, again.to("asked")), (redirect.slot, Some(address.clone())));
        map.moved(redirect.slot, address.clone());
        assert!(map.node(redirect.slot).is_some_and(|node| node.contains(&address)));
    }
}

/// Checks a manifest.
pub fn manifest(text: &str) {
    let _ = manifest::Manifest::parse(text, Path::new(""));
}
