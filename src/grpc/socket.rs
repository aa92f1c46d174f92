//! A connection that sends what it has to say at once.
//!
//! The HTTP/2 library writes an answer's data and its trailers apart, and so each acknowledgement of a
//! ping, of which Go's client sends one per answer. Every write wakes the other side. Here a flush waits
//! until the tasks that are ready have run, and one write takes what all of them had.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Bytes that may wait; more are written before others are taken.
const BUFFER: usize = 64 << 10;

/// A stream of a unix socket with its writes gathered.
#[derive(Debug)]
pub(crate) struct Gathering {
    stream: UnixStream,
    waiting: Vec<u8>,
    /// How many of those were written.
    written: usize,
    /// True if something came since the last flush.
    fresh: bool,
}

impl Gathering {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, waiting: Vec::new(), written: 0, fresh: false }
    }

    /// Writes all that waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.waiting.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl Connected for Gathering {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.waiting.len() >= BUFFER {
            ready!(this.poll_drain(cx))?;
        }
        this.waiting.extend_from_slice(bytes);
        this.fresh = true;
        Poll::Ready(Ok(bytes.len()))
    }

    /// The first flush after a write only asks for another, which comes once other tasks have run.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.fresh) {
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        this.poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
