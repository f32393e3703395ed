//! A connection that accepts `"`, `<` and `>` in the targets of requests.
//!
//! Links on the web contain these characters, and the HTTP library refuses them. They are
//! percent-encoded here, as a browser would have done.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a client.
pub struct Lenient<S> {
    stream: S,
    /// Whether the next bytes are certainly the first line of a request.
    ///
    /// True while all data so far were heads of requests without a body, each complete in one read.
    /// A body must never be taken for a request.
    begins: bool,
    /// Data that was read and must be returned before any other.
    pending: Vec<u8>,
}

impl<S> Lenient<S> {
    /// Wraps a connection on which nothing was read yet.
    pub const fn new(stream: S) -> Self {
        Self {
            stream,
            begins: true,
            pending: Vec::new(),
        }
    }

    /// Copies as much of the pending data as fits into the buffer.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.pending.len().min(buffer.remaining());
        buffer.put_slice(&self.pending[..length]);
        self.pending.drain(..length);
    }
}

/// Returns the encoded first line of a GET request, and its original length.
///
/// `None` if the line is incomplete, is not such a request, or needs no encoding.
fn encoded(read: &[u8]) -> Option<(Vec<u8>, usize)> {
    let is_refused = |byte: &u8| matches!(byte, b'"' | b'<' | b'>');
    if !read.starts_with(b"GET ") {
        return None;
    }
    let end = read.iter().position(|byte| *byte == b'\n')?;
    let line = &read[..end];
    let version = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.iter().any(is_refused) || !(version.ends_with(b" HTTP/1.1") || version.ends_with(b" HTTP/1.0")) {
        return None;
    }
    let mut encoded = Vec::with_capacity(line.len() + 32);
    for byte in line {
        match byte {
            b'"' => encoded.extend(b"%22"),
            b'<' => encoded.extend(b"%3C"),
            b'>' => encoded.extend(b"%3E"),
            byte => encoded.push(*byte),
        }
    }
    Some((encoded, end))
}

/// Returns whether this is exactly one complete request, without a body.
fn is_whole(read: &[u8]) -> bool {
    // Compares the hyphen first: all bytes of each request are checked, and few are hyphens.
    let has_header = |name: &[u8], hyphen: usize| {
        let mut parts = read.windows(name.len());
        parts.any(|part| part[hyphen] == b'-' && part.eq_ignore_ascii_case(name))
    };
    let after = |at: usize| &read[at + 1..];
    let ends = |at: &usize| read[*at] == b'\n' && (after(*at).starts_with(b"\n") || after(*at).starts_with(b"\r\n"));
    read.starts_with(b"GET ")
        && (0..read.len()).find(ends).is_some_and(|at| after(at) == b"\r\n")
        && !has_header(b"content-length", 7)
        && !has_header(b"transfer-encoding", 8)
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.pending.is_empty() {
            self.hand_on(buffer);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let rewritten = if self.begins { encoded(read) } else { None };
        let begins = self.begins && is_whole(read);
        if let Some((mut line, length)) = rewritten {
            line.extend_from_slice(&read[length..]);
            buffer.set_filled(before);
            self.pending = line;
            self.hand_on(buffer);
        }
        self.begins = begins;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends pieces and returns the data that is read.
    ///
    /// Each piece is sent after the one before was read.
    async fn read(pieces: &[&str], at_once: usize) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut server = Lenient::new(server);
        let mut all = Vec::new();
        let mut buffer = vec![0; at_once];
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.expect("written");
            loop {
                let length = server.read(&mut buffer).await.expect("read");
                all.extend_from_slice(&buffer[..length]);
                if length < at_once && server.pending.is_empty() {
                    break;
                }
            }
        }
        String::from_utf8(all).expect("text")
    }

    #[tokio::test]
    async fn a_target_is_encoded_and_nothing_else() {
        let get = "GET /a?x=\"<b>\" HTTP/1.1\r\nhost: \"a\"\r\n\r\n";
        let encoded = "GET /a?x=%22%3Cb%3E%22 HTTP/1.1\r\nhost: \"a\"\r\n\r\n";
        for (pieces, expected) in [
            (&[get][..], encoded),
            (&[get, get], &encoded.repeat(2)),
            (&["GET / HTTP/1.1\r\n\r\n"], "GET / HTTP/1.1\r\n\r\n"),
            // Bodies stay unchanged.
            (
                &[
                    "POST / HTTP/1.1\r\ncontent-length: 40\r\n\r\n",
                    "GET /\"\" HTTP/1.1\r\n\r\n",
                    "GET /\"\" HTTP/1.1\r\n\r\n",
                ],
                "POST / HTTP/1.1\r\ncontent-length: 40\r\n\r\nGET /\"\" HTTP/1.1\r\n\r\nGET /\"\" HTTP/1.1\r\n\r\n",
            ),
            (
                &[
                    "GET / HTTP/1.1\r\nContent-Length: 40\r\n\r\n",
                    "GET /\"\" HTTP/1.1\r\n\r\n",
                ],
                "GET / HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /\"\" HTTP/1.1\r\n\r\n",
            ),
            (
                &["POST /\"a\" HTTP/1.1\r\ncontent-length: 6\r\n\r\n\"<a>\"\n"],
                "POST /\"a\" HTTP/1.1\r\ncontent-length: 6\r\n\r\n\"<a>\"\n",
            ),
            (&["GET /\"a\" HTTP/2.0\r\n\r\n"], "GET /\"a\" HTTP/2.0\r\n\r\n"),
            (
                &["GET / HTTP/1.1\r\nreferer: ", "\"x\"\r\n\r\n"],
                "GET / HTTP/1.1\r\nreferer: \"x\"\r\n\r\n",
            ),
        ] {
            assert_eq!(read(pieces, 8192).await, expected, "{pieces:?}");
        }
        // A small buffer gives the same result if the first line fits into it.
        assert_eq!(read(&[get], 100).await, encoded);
    }
}
