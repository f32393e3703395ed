//! The live page: as served, as updated, and as a browser shows it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use nix::sys::signal::Signal;
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use verve_protocol::Report;
use verve_tests::reporter::Reporter;
use verve_tests::{clock, http, wait};

use crate::site::{SOON, Site};

/// Reads an open stream of events, one after the other.
struct Events {
    stream: TcpStream,
    received: String,
}

impl Events {
    async fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let request = b"GET /events HTTP/1.1\r\nhost: verve.test\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        Ok(Self {
            stream,
            received: String::new(),
        })
    }

    /// Returns the next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(begin) = self.received.find("data: ")
                && let Some(length) = self.received[begin..].find("\n\n")
            {
                let event = self.received[begin..begin + length].replace("data: ", "");
                self.received.drain(..begin + length);
                return Ok(Some(event));
            }
            let mut bytes = [0; 16 * 1024];
            let read = tokio::time::timeout(SOON, self.stream.read(&mut bytes)).await??;
            if read == 0 {
                return Ok(None);
            }
            self.received.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }
}

/// Creates a site with an hour of history, and a reporter that has read it.
///
/// One window was corrected.
async fn with_history() -> Result<(Site, Reporter)> {
    let site = Site::new(60).await?;
    // The current window must not end during the test.
    if clock::current_window(site.length).end_ms() < clock::now_ms() + 30_000 {
        clock::next_window(site.length).await;
    }
    let mut redis = site.connection().await?;
    let mut window = clock::current_window(site.length);
    for n in 0..59 {
        window = window.previous().context("not 1970")?;
        let count = 3900 + n * 37 % 400;
        let report = Report {
            count,
            requests: count * 3 / 2,
            duplicates: count / 2,
            revision: u64::from(n == 7) * 2,
            time: window.end_ms() + 2_137,
            is_final: n > 2,
            ..Report::default()
        };
        let () = redis
            .hset(site.keys().reports(site.length), window.start(), report.to_json())
            .await?;
    }
    let reporter = site.reporter(&[]).await?;
    let current = clock::current_window(site.length);
    site.add(current, 0..4321).await?;
    let counted = [("new", 4321), ("duplicate", 1920), ("requests", 6241)];
    let () = redis.hset_multiple(site.keys().stats(current), &counted).await?;
    wait::until("the page", SOON, || async {
        let page = http::get(reporter.address(), "/").await.ok()?.text();
        (page.contains("4,321") && page.contains("held by this replica")).then_some(())
    })
    .await?;
    Ok((site, reporter))
}

#[tokio::test]
async fn the_page_is_complete_without_a_script() -> Result<()> {
    let (_site, reporter) = with_history().await?;
    let page = http::get(reporter.address(), "/").await?;
    let policy = page.header("content-security-policy").unwrap_or_default();
    assert!(
        policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
        "{policy}"
    );
    let page = page.text();
    assert!(page.matches("<tr id=\"w").count() >= 60, "{page}");
    // The first bar shows the first known window.
    assert_eq!(page.matches("<g class=").count(), 60, "{page}");
    assert!(page.contains("<title>4,321 · Verve</title>"), "{page}");
    // Kafka is not configured.
    assert!(page.contains("counts are only logged"), "{page}");
    assert!(
        page.contains(r#"class="scroll" tabindex="0" role="region" aria-label="Windows""#),
        "{page}"
    );
    assert_eq!(page.matches("<g class=\"revised\">").count(), 1, "{page}");
    assert!(page.contains("revision 2"), "{page}");
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\""), "{page}");
    // Nothing from other origins, and nothing that the policy would refuse.
    for refused in ["//", " style=", "<style", "onload=", "javascript:"] {
        let page = page.replace("redis://", "").replace("<!DOCTYPE html>", "");
        assert!(!page.contains(refused), "{refused}: {page}");
    }
    for (path, media_type) in [
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
        ("/runbooks", "text/html"),
    ] {
        let file = http::get(reporter.address(), path).await?;
        let found = file.header("content-type").unwrap_or_default();
        assert!(file.status == 200 && found.starts_with(media_type), "{path}: {found}");
    }
    Ok(())
}

#[tokio::test]
async fn events_go_on_until_the_reporter_stops() -> Result<()> {
    let site = Site::with_one_window().await?;
    let reporter = site.reporter(&[]).await?;
    let mut events = Events::open(reporter.address()).await?;
    events.next().await?.context("an event")?;
    site.add(clock::current_window(site.length), 0..77).await?;
    let mut shown = false;
    for _ in 0..10 {
        let event = events.next().await?.context("an event")?;
        shown = shown || event.contains(r#"<p class="big" id="current">77</p>"#);
    }
    assert!(shown, "the current window does not tick");
    reporter.process().signal(Signal::SIGTERM)?;
    let status = reporter.process().wait(Duration::from_secs(5)).await?;
    assert_eq!(status.code(), Some(0), "{}", reporter.process().log());
    while events.next().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn an_error_s_text_cannot_become_part_of_the_page() -> Result<()> {
    let site = Site::new(60).await?;
    let reporter = site.reporter(&[]).await?;
    let () = site
        .connection()
        .await?
        .set(site.keys().lease(site.length), "<script>alert(1)</script>")
        .await?;
    wait::until("the page", SOON, || async {
        let page = http::get(reporter.address(), "/").await.ok()?.text();
        assert!(!page.contains("<script>alert"), "{page}");
        page.contains("&lt;script&gt;alert").then_some(())
    })
    .await
}

/// Starts a proxy between a browser and the reporter.
///
/// The stream of events ends after its first event, and is then no longer available, so that the
/// browser becomes idle. Without `scripts`, the browser runs none.
async fn with_one_event(reporter: SocketAddr, scripts: bool) -> Result<SocketAddr> {
    let asked = Arc::new(AtomicUsize::new(0));
    let pass = async move |request: Request| {
        let path = request.uri().path().to_owned();
        if path == "/events" {
            if asked.fetch_add(1, Ordering::Relaxed) > 0 {
                return StatusCode::NO_CONTENT.into_response();
            }
            let mut events = Events::open(reporter).await.expect("a stream");
            let event = events.next().await.expect("a stream").expect("an event");
            let lines: Vec<String> = event.lines().map(|line| format!("data: {line}\n")).collect();
            return ([(header::CONTENT_TYPE, "text/event-stream")], lines.concat() + "\n").into_response();
        }
        let response = http::get(reporter, &path).await.expect("an answer");
        // The content of the event is not in the page before.
        let body = response.text().replace("4,321", "stale");
        let mut passed = body.into_response();
        for name in [header::CONTENT_TYPE, header::CONTENT_SECURITY_POLICY] {
            if let Some(value) = response.header(name.as_str()) {
                passed.headers_mut().insert(name, value.parse().expect("a header"));
            }
        }
        if !scripts {
            let sandbox = HeaderValue::from_static("sandbox allow-same-origin");
            passed.headers_mut().append(header::CONTENT_SECURITY_POLICY, sandbox);
        }
        passed
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, Router::new().fallback(pass)).into_future());
    Ok(address)
}

/// Runs Chromium until it exits, and returns its output.
async fn chromium(profile: &Path, flags: &[&str], url: &str) -> Result<String> {
    let mut command = Command::new("chromium");
    command
        // A sandbox needs rights that a container does not have.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(flags)
        .arg(url)
        .stderr(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(Duration::from_secs(60), run).await???;
    ensure!(output.status.success(), "chromium: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The token is the password of any user.
#[tokio::test]
async fn a_browser_shows_the_token_as_a_password() -> Result<()> {
    let site = Site::new(60).await?;
    let reporter = Reporter::ready(&site.flags(&["--admin-token", "s3cret"])).await?;
    let folder = tempfile::tempdir()?;
    for (password, is_shown) in [("s3cret", true), ("other", false)] {
        let url = format!("http://any:{password}@{}/", reporter.address());
        let dom = chromium(folder.path(), &["--timeout=3000", "--dump-dom"], &url).await?;
        assert_eq!(dom.contains(r#"id="current""#), is_shown, "{password}: {dom}");
    }
    Ok(())
}

#[tokio::test]
async fn a_browser_shows_it_live() -> Result<()> {
    let (_site, reporter) = with_history().await?;
    let folder = tempfile::tempdir()?;
    let dom = async |scripts: bool| {
        let url = format!("http://{}/", with_one_event(reporter.address(), scripts).await?);
        chromium(folder.path(), &["--virtual-time-budget=15000", "--dump-dom"], &url)
            .await
            .context("Chromium is needed: on Debian, the package chromium")
    };
    let without = dom(false).await?;
    let rows = without.matches("<tr id=").count();
    assert!(without.contains(r#"id="current">stale<"#) && rows >= 60, "{without}");
    let dom = dom(true).await?;
    assert!(
        dom.contains(r#"id="current">4,321<"#) && !dom.contains("stale"),
        "the script did not run: {dom}"
    );
    let url = format!("http://{}/", reporter.address());
    for (name, flags) in [
        ("desktop", &["--window-size=1000,900"][..]),
        ("phone", &["--window-size=500,900"]),
        (
            "dark",
            &["--window-size=1000,900", "--blink-settings=preferredColorScheme=0"],
        ),
    ] {
        let picture: PathBuf = folder.path().join(format!("{name}.png"));
        let screenshot = format!("--screenshot={}", picture.display());
        let flags = [flags, &["--timeout=5000", &screenshot]].concat();
        chromium(folder.path(), &flags, &url).await?;
        let size = std::fs::metadata(&picture).context(name)?.len();
        assert!(size > 20_000, "{name} is an empty page: {size} bytes");
        // `cargo xtask screenshots` keeps them for the README.
        if let Some(folder) = std::env::var_os("VERVE_TESTS_PICTURES") {
            std::fs::copy(&picture, Path::new(&folder).join(format!("page-{name}.png")))?;
        }
    }
    Ok(())
}
