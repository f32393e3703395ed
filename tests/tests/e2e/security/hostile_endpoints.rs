//! Attacks of a hostile endpoint on the reporter.
//!
//! Its job fails in time and in bounded memory, while other jobs are delivered. The rows of
//! `SECURITY.md` name these tests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use verve_protocol::Method;
use verve_tests::clock;
use verve_tests::process::memory_kb;
use verve_tests::sink::Sink;

use crate::site::{SOON, Site, field};

/// The head of a zip bomb.
///
/// The output of gzip for 100 MB of zeros begins like this, and can be continued with any number of
/// the second part.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// What an endpoint does after it has read a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trick {
    /// A success whose body never ends.
    EndlessBody,
    /// The same, in chunks.
    EndlessChunks,
    /// The same, declared as compressed.
    Bomb,
    /// A header that never ends.
    EndlessHeader,
    /// Headers without end.
    EndlessHeaders,
    /// Interim answers without end.
    EndlessInterim,
    /// An occasional byte of the head.
    SlowHead,
    /// An occasional byte of the body.
    SlowBody,
    /// Nothing at all.
    Silence,
    /// The end of the connection.
    Hangup,
    /// Bytes that are not HTTP.
    Noise,
    /// TLS on a plain connection.
    Tls,
    /// A redirect to another address.
    Redirect,
    /// More headers than HTTP libraries accept by default.
    ManyHeaders,
    /// Malformed headers.
    WrongHeaders,
}

const ALL: [Trick; 15] = [
    Trick::EndlessBody,
    Trick::EndlessChunks,
    Trick::Bomb,
    Trick::EndlessHeader,
    Trick::EndlessHeaders,
    Trick::EndlessInterim,
    Trick::SlowHead,
    Trick::SlowBody,
    Trick::Silence,
    Trick::Hangup,
    Trick::Noise,
    Trick::Tls,
    Trick::Redirect,
    Trick::ManyHeaders,
    Trick::WrongHeaders,
];

impl Trick {
    /// Whether the answer is a success: bytes after the head are ignored.
    fn succeeds(self) -> bool {
        matches!(
            self,
            Self::EndlessBody
                | Self::EndlessChunks
                | Self::Bomb
                | Self::SlowBody
                | Self::ManyHeaders
                | Self::WrongHeaders
        )
    }

    /// Returns the first bytes, the bytes that are repeated, and the pause between.
    fn parts(self) -> (Vec<u8>, Vec<u8>, Duration) {
        let ok = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n").into_bytes();
        let at_once = Duration::ZERO;
        let rarely = Duration::from_millis(500);
        match self {
            Self::EndlessBody => (ok(""), vec![b'a'; 65536], at_once),
            Self::EndlessChunks => (
                ok("transfer-encoding: chunked\r\n"),
                b"4\r\naaaa\r\n".repeat(5000),
                at_once,
            ),
            Self::Bomb => (
                [ok("content-encoding: gzip\r\n"), GZIP_HEAD.to_vec()].concat(),
                vec![0; 65536],
                at_once,
            ),
            Self::EndlessHeader => (b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 65536], at_once),
            Self::EndlessHeaders => (b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: a\r\n".repeat(5000), at_once),
            Self::EndlessInterim => (
                Vec::new(),
                b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n".repeat(1000),
                at_once,
            ),
            Self::SlowHead => (b"HTTP/1.1 200 OK\r\nx: ".to_vec(), b"a".to_vec(), rarely),
            Self::SlowBody => (ok("content-length: 1000\r\n"), b"a".to_vec(), rarely),
            Self::Silence => (Vec::new(), Vec::new(), rarely),
            Self::Hangup => (Vec::new(), Vec::new(), at_once),
            Self::Noise => ((0..=255).collect(), Vec::new(), at_once),
            Self::Tls => (b"\x15\x03\x01\0\x02\x02\x28".to_vec(), Vec::new(), at_once),
            Self::ManyHeaders => {
                let many: String = (0..101).map(|n| format!("x{n}: a\r\n")).collect();
                (ok(&format!("{many}content-length: 0\r\n")), Vec::new(), at_once)
            }
            Self::WrongHeaders => (
                ok("no colon\r\na b: c\r\nx : y\r\nz: 1\r\n more\r\ncontent-length: 0\r\n"),
                Vec::new(),
                at_once,
            ),
            // To an internal service of this machine, in effect.
            Self::Redirect => (
                b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_vec(),
                Vec::new(),
                at_once,
            ),
        }
    }

    /// Plays the trick on one connection; returns how many bytes it could send.
    async fn play(self, mut stream: TcpStream) -> u64 {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await;
        let (first, again, pause) = self.parts();
        let mut sent = 0;
        if stream.write_all(&first).await.is_err() || self == Self::Hangup {
            return sent;
        }
        if again.is_empty() {
            // Until the other side closes.
            while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
            return sent;
        }
        while stream.write_all(&again).await.is_ok() {
            sent += again.len() as u64;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
        sent
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_trick_at_once() -> Result<()> {
    let site = Site::new(60).await?;
    let sink = Sink::start().await?;
    let reporter = site
        .reporter(&["--callback-allow", "127.0.0.1", "--callback-attempts", "1"])
        .await?;
    let window = clock::current_window(site.length);
    let mut endpoints = Vec::new();
    for trick in ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}/{trick:?}", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(trick.play(stream));
            }
        });
        // More than once, so that leaks would add up.
        for _ in 0..2 {
            site.add_job(&endpoint, Method::Post, window).await?;
        }
        endpoints.push((trick, endpoint));
    }
    let began = Instant::now();
    site.add_job(&sink.url("/good"), Method::Post, window).await?;
    sink.wait_for("/good", 1, Duration::from_secs(5))
        .await
        .context("others wait")?;
    let failing = ALL.iter().filter(|trick| !trick.succeeds()).count();
    let dead = site
        .dead(failing * 2, Duration::from_secs(60))
        .await
        .with_context(|| reporter.process().log())?;
    for (trick, endpoint) in endpoints {
        let times = dead.iter().filter(|job| field(job, "endpoint") == endpoint).count();
        assert_eq!(times, if trick.succeeds() { 0 } else { 2 }, "{trick:?}: {dead:#?}");
    }
    let most = memory_kb(reporter.process().pid(), "VmHWM")?;
    assert!(most < 100_000, "{most} KB");
    // Nothing remains: the queue is empty, and a further job is delivered immediately.
    site.add_job(&sink.url("/after"), Method::Post, window).await?;
    sink.wait_for("/after", 1, SOON).await?;
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    Ok(())
}
