//! Attacks of a hostile client on `verve-host`.
//!
//! Each is refused or tolerated, in bounded memory, while other clients are served. The rows of
//! `SECURITY.md` name these tests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use verve_tests::host::{Instance, Kind};
use verve_tests::process::memory_kb;
use verve_tests::{http, wait};

use crate::site::{SOON, Site};

const PATH: &str = "/api/verve/accept?id=";
/// How long to wait for further data.
const QUIET: Duration = Duration::from_millis(400);

/// Returns the answer to these bytes, and whether the host then closed.
async fn exchange(address: SocketAddr, sent: &[u8], then_half_closed: bool) -> Result<(String, bool)> {
    let mut stream = TcpStream::connect(address).await?;
    // The host may have closed the connection meanwhile.
    let _ = stream.write_all(sent).await;
    if then_half_closed {
        stream.shutdown().await?;
    }
    let mut got = Vec::new();
    let closed = loop {
        let mut buffer = [0; 4096];
        match timeout(QUIET, stream.read(&mut buffer)).await {
            Err(_) => break false,
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(read)) => got.extend(&buffer[..read]),
        }
    };
    Ok((String::from_utf8_lossy(&got).into_owned(), closed))
}

async fn assert_served(address: SocketAddr, context: &str) -> Result<()> {
    let response = timeout(SOON, http::get(address, &format!("{PATH}1"))).await;
    let response = response.context("no answer")?.with_context(|| context.to_owned())?;
    assert_eq!(response.text(), "ok", "{context}");
    Ok(())
}

async fn started(site: &Site) -> Result<Instance> {
    site.host(Kind::VerveHost).start().await
}

/// Each is answered according to HTTP, or the connection is closed.
///
/// No request is ever taken for two.
#[tokio::test]
async fn malformed_and_unusual_requests() -> Result<()> {
    let site = Site::new(60).await?;
    let host = started(&site).await?;
    let long = "a".repeat(100_000);
    let many: String = (0..500).map(|n| format!("x{n}: a\r\n")).collect();
    let get = |version: &str, headers: &str| format!("GET {PATH}1 HTTP/{version}\r\n{headers}\r\n");
    let second = get("1.1", "host: b\r\n");
    let both = "host: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n";
    let requests: Vec<(&str, Vec<u8>, &[&str], bool)> = vec![
        ("HTTP/1.0", get("1.0", "").into(), &["200"], true),
        (
            "HTTP/1.0 kept alive, as `ab -k` does",
            get("1.0", "connection: keep-alive\r\n").into(),
            &["200"],
            false,
        ),
        (
            "asked to close",
            get("1.1", "host: a\r\nconnection: close\r\n").into(),
            &["200"],
            true,
        ),
        (
            "absolute form",
            format!("GET http://e.com{PATH}1 HTTP/1.1\r\nhost: a\r\n\r\n").into(),
            &["200"],
            false,
        ),
        (
            "asterisk form",
            "GET * HTTP/1.1\r\nhost: a\r\n\r\n".into(),
            &["404"],
            false,
        ),
        (
            "authority form",
            "CONNECT e.com:80 HTTP/1.1\r\nhost: a\r\n\r\n".into(),
            &["404"],
            false,
        ),
        (
            "a body with GET",
            get("1.1", "host: a\r\ncontent-length: 4\r\n")
                .into_bytes()
                .into_iter()
                .chain(*b"abcd")
                .collect(),
            &["200"],
            false,
        ),
        (
            "a body that never comes",
            get("1.1", "host: a\r\ncontent-length: 1000000000\r\n").into(),
            &["200"],
            true,
        ),
        (
            "a body that is asked for first",
            get("1.1", "host: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n").into(),
            &["200"],
            true,
        ),
        // The body of the first request must not become a second request.
        (
            "two lengths in one request",
            format!("{}0\r\n\r\n{second}", get("1.1", both)).into(),
            &["200"],
            true,
        ),
        (
            "two lengths that differ",
            format!(
                "{}abcd",
                get("1.1", "host: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n")
            )
            .into(),
            &["400"],
            true,
        ),
        (
            "an unknown coding",
            get("1.1", "host: a\r\ntransfer-encoding: xchunked\r\n").into(),
            &["400"],
            true,
        ),
        (
            "a header of two lines",
            get("1.1", "host: a\r\nx: a\r\n b\r\n").into(),
            &["400"],
            true,
        ),
        (
            "a zero byte",
            get("1.1", "host: a\r\nx: a\0b\r\n").into(),
            &["400"],
            true,
        ),
        (
            "a head of a megabyte",
            get("1.1", &format!("host: a\r\nx: {}\r\n", long.repeat(10))).into(),
            &["431"],
            true,
        ),
        ("five hundred headers", get("1.1", &many).into(), &["431"], true),
        (
            "a target of 100,000 bytes",
            format!("GET {PATH}1&x={long} HTTP/1.1\r\nhost: a\r\n\r\n").into(),
            &["431"],
            true,
        ),
        (
            "HTTP/2 without an upgrade",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
            &[],
            true,
        ),
        (
            "HTTP/2 by upgrade",
            get(
                "1.1",
                "host: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
            )
            .into(),
            &["200"],
            false,
        ),
        (
            "TLS",
            [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[7; 500]].concat(),
            &["400"],
            true,
        ),
        ("noise", (0..=255u8).cycle().take(10_000).collect(), &["400"], true),
        (
            "ten pipelined",
            get("1.1", "host: a\r\n").repeat(10).into(),
            &["200"; 10],
            false,
        ),
    ];
    for (name, sent, statuses, closes) in requests {
        let (got, closed) = exchange(host.addr(), &sent, false).await.context(name)?;
        let found: Vec<&str> = got
            .split("HTTP/1.")
            .skip(1)
            .filter_map(|answer| answer.get(2..5))
            .collect();
        assert_eq!((found.as_slice(), closed), (statuses, closes), "{name}: {got}");
    }
    let (got, closed) = exchange(host.addr(), get("1.1", "host: a\r\n").as_bytes(), true).await?;
    assert!(got.ends_with("ok") && closed, "a client that sends no more: {got}");
    assert_served(host.addr(), "after all").await
}

/// Requests as links and old clients send them, to both builds.
#[tokio::test]
async fn raw_characters_and_no_host() -> Result<()> {
    for kind in [Kind::VerveHost, Kind::VerveHostP2] {
        let site = Site::new(86_400).await?;
        let host = site.host(kind).start().await?;
        for (request, status) in [
            (format!("GET {PATH}1 HTTP/1.0\r\n\r\n"), "200"),
            (
                format!("GET {PATH}2&ref=\"<a>\" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
                "200",
            ),
            (
                format!("GET {PATH}\"3\" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
                "400",
            ),
        ] {
            let (answer, _) = exchange(host.addr(), request.as_bytes(), false).await?;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.starts_with(&format!("HTTP/1.0 {status}")),
                "{kind:?} {request}: {answer}"
            );
            assert!(
                answer.contains("verve-outcome: new") || answer.contains("verve-error: invalid-id"),
                "{kind:?} {request}: {answer}"
            );
        }
    }
    Ok(())
}

/// Without `look_after`, a component gets only the requests of clients.
#[tokio::test]
async fn a_component_that_does_not_want_it_is_not_called() -> Result<()> {
    let manifest = Kind::VerveHost.manifest()?;
    for (manifest, is_asked) in [(manifest.replace("look_after = true", ""), false), (manifest, true)] {
        let site = Site::new(60).await?;
        // A component that gets a request logs this wrong value.
        let host = site.host(Kind::VerveHost).manifest(manifest).variable("log", "loud");
        let host = host.start().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            host.process().log().contains("variable log"),
            is_asked,
            "{}",
            host.process().log()
        );
    }
    Ok(())
}

/// Heads and bodies one byte at a time: the connections end, others are served.
#[tokio::test]
async fn slow_heads_and_bodies() -> Result<()> {
    let site = Site::new(60).await?;
    let host = site
        .host(Kind::VerveHost)
        .flags(&["--keep-alive-timeout", "2s"])
        .start()
        .await?;
    let address = host.addr();
    let drip = async |start: String| -> Result<Duration> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(start.as_bytes()).await?;
        let began = std::time::Instant::now();
        let mut buffer = [0; 1024];
        loop {
            // A write to a connection that the other side has closed fails at some point.
            let written = stream.write_all(b"a").await;
            let read = timeout(Duration::from_millis(100), stream.read(&mut buffer)).await;
            if written.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                return Ok(began.elapsed());
            }
            anyhow::ensure!(began.elapsed() < SOON, "still open");
        }
    };
    let slow = (0..50).flat_map(|_| {
        let head = format!("GET {PATH}2 HTTP/1.1\r\nx: ");
        let body = format!("GET {PATH}3 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n");
        [drip(head), drip(body)]
    });
    let slow = futures::future::try_join_all(slow);
    let served = async {
        for _ in 0..10 {
            assert_served(address, "beside slow clients").await?;
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    let (slow, ()) = futures::future::try_join(slow, served).await?;
    let longest = slow.into_iter().max().unwrap_or_default();
    assert!(longest < Duration::from_secs(4), "{longest:?}");
    Ok(())
}

/// As many connections as this machine allows a process.
///
/// Each costs little, and other clients are served.
#[tokio::test]
async fn thousands_of_idle_connections() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // This process also has the connections of other tests.
    let count = usize::try_from(most)?.saturating_sub(2000).clamp(2000, 5_000);
    let site = Site::new(60).await?;
    let host = started(&site).await?;
    assert_served(host.addr(), "before").await?;
    let before = memory_kb(host.process().pid(), "VmRSS")?;
    let mut idle = Vec::with_capacity(count);
    for at in 0..count {
        let mut stream = TcpStream::connect(host.addr())
            .await
            .with_context(|| format!("connection {at}"))?;
        if at % 2 == 0 {
            stream.write_all(b"GET /api").await?;
        }
        idle.push(stream);
    }
    assert_served(host.addr(), "beside idle connections").await?;
    let each = (memory_kb(host.process().pid(), "VmRSS")?.saturating_sub(before)) * 1024 / count as u64;
    assert!(each < 32 * 1024, "{each} bytes for each connection");
    drop(idle);
    assert_served(host.addr(), "after them").await
}

#[tokio::test]
async fn no_more_connections_than_are_allowed() -> Result<()> {
    let site = Site::new(60).await?;
    let host = site
        .host(Kind::VerveHost)
        .flags(&["--max-connections", "10"])
        .start()
        .await?;
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut connection = http::Connection::open(host.addr()).await?;
        assert_eq!(connection.get(&format!("{PATH}1")).await?.text(), "ok");
        held.push(connection);
    }
    let address = host.addr();
    let waiting = tokio::spawn(async move { http::get(address, &format!("{PATH}2")).await });
    host.process().wait_for_text("--max-connections", SOON).await?;
    // Open connections are served.
    assert_eq!(held[3].get(&format!("{PATH}1")).await?.text(), "ok");
    assert!(!waiting.is_finished());
    held.pop();
    assert_eq!(timeout(SOON, waiting).await???.text(), "ok");
    Ok(())
}

/// When files for further connections run out, the host logs it.
///
/// It serves its open connections, and accepts new ones once there is room.
#[tokio::test]
async fn open_files_run_out() -> Result<()> {
    let site = Site::new(60).await?;
    let host = site.host(Kind::VerveHost).open_files(64).start().await?;
    let mut served = http::Connection::open(host.addr()).await?;
    assert_eq!(served.get(&format!("{PATH}1")).await?.text(), "ok");
    let mut more = Vec::new();
    for _ in 0..100 {
        more.push(TcpStream::connect(host.addr()).await?);
    }
    host.process().wait_for_text("cannot accept a connection", SOON).await?;
    assert_eq!(served.get(&format!("{PATH}1")).await?.text(), "ok");
    drop(more);
    wait::until("a new connection is served", SOON, async || {
        let response = timeout(QUIET, http::get(host.addr(), &format!("{PATH}2"))).await;
        response.ok()?.ok().filter(|response| response.text() == "ok").map(drop)
    })
    .await
}
