//! An HTTP/1.1 client that sends exactly the bytes it is given.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer of a server.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without the transfer encoding.
    pub body: Vec<u8>,
    /// How many reads of the socket the response took: 1 if it arrived in one piece.
    pub reads: usize,
}

impl Response {
    /// Returns the only header of this name; `None` if there is none, or several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        values.next().filter(|_| values.next().is_none())
    }

    /// Returns the body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that is kept alive.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    reads: usize,
}

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    /// Fails if nobody listens.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            received: Vec::new(),
            reads: 0,
        })
    }

    /// Sends `GET target` with the headers that a correct client sends.
    ///
    /// # Errors
    /// See [`Self::exchange`].
    pub async fn get(&mut self, target: &str) -> Result<Response> {
        self.request("GET", target).await
    }

    /// Sends `method target` with the headers that a correct client sends.
    ///
    /// # Errors
    /// See [`Self::exchange`].
    pub async fn request(&mut self, method: &str, target: &str) -> Result<Response> {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: verve.test\r\n\r\n");
        self.exchange(request.as_bytes()).await
    }

    /// Sends these bytes and reads one response.
    ///
    /// # Errors
    /// Fails if the connection breaks, if the answer is not HTTP/1.1, or if it takes more than 30
    /// s.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Response> {
        self.send(request).await?;
        self.receive(request.starts_with(b"HEAD ")).await
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// Fails if the connection is broken.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Reads one response; `head_only` if it answers a HEAD request.
    ///
    /// # Errors
    /// See [`Self::exchange`].
    pub async fn receive(&mut self, head_only: bool) -> Result<Response> {
        timeout(PATIENCE, self.read_response(head_only))
            .await
            .context("no answer within 30 s")?
    }

    async fn read_response(&mut self, head_only: bool) -> Result<Response> {
        self.reads = 0;
        let head = loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                break self.take(end + 4)?;
            }
            self.read().await?;
        };
        let (status, headers) = parse_head(&head)?;
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
            reads: 0,
        };
        if !head_only && !matches!(status, 100..=199 | 204 | 304) {
            response.body = self.read_body(&response).await?;
        }
        response.reads = self.reads;
        Ok(response)
    }

    async fn read_body(&mut self, response: &Response) -> Result<Vec<u8>> {
        if response.header("transfer-encoding") == Some("chunked") {
            return self.read_chunks().await;
        }
        match response.header("content-length") {
            Some(length) => self.read_exactly(length.parse()?).await,
            None => {
                while self.read().await.is_ok() {}
                Ok(std::mem::take(&mut self.received))
            }
        }
    }

    async fn read_chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                match find(&self.received, b"\r\n") {
                    Some(end) => break end,
                    None => self.read().await?,
                }
            };
            let line = self.take(end + 2)?;
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
            body.extend(self.read_exactly(size).await?);
            self.read_exactly(2).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.received.len() < length {
            self.read().await?;
        }
        self.take(length)
    }

    async fn read(&mut self) -> Result<()> {
        // With less space, one read could not take a whole response, which would look split.
        self.received.reserve(16 * 1024);
        let read = self.stream.read_buf(&mut self.received).await?;
        ensure!(read > 0, "the server closed the connection after {:?}", self.received);
        self.reads += 1;
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        ensure!(length <= self.received.len());
        let rest = self.received.split_off(length);
        Ok(std::mem::replace(&mut self.received, rest))
    }
}

/// Sends `GET target` on a new connection.
///
/// # Errors
/// See [`Connection::open`] and [`Connection::exchange`].
pub async fn get(address: SocketAddr, target: &str) -> Result<Response> {
    Connection::open(address).await?.get(target).await
}

fn parse_head(head: &[u8]) -> Result<(u16, Vec<(String, String)>)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let Some(("HTTP/1.1", rest)) = status_line.split_once(' ') else {
        bail!("not an HTTP/1.1 status line: {status_line:?}");
    };
    let status = rest.split(' ').next().unwrap_or_default().parse()?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').with_context(|| format!("a header: {line:?}"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Result<_>>()?;
    Ok((status, headers))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
