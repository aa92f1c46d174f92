//! A connection that sends what it has to say at once.
//!
//! The HTTP/2 library writes an answer's data and its trailers apart. Every write wakes the other side. Here
//! a flush waits until the tasks that are ready have run, and one write takes what all of them had.
//!
//! Go's client measures the connection with a ping after every answer, unless one is under way. Its
//! acknowledgement goes out with the next answer, or after a while: that makes few of the pings.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Bytes that may wait; more are written before others are taken.
const BUFFER: usize = 64 << 10;
/// How long the acknowledgement of a ping may wait for company.
const PATIENCE: Duration = Duration::from_millis(5);
/// Length of a ping's frame, and how that of an acknowledgement begins (RFC 9113, 6.7).
const PING: usize = 17;
const PING_ACK: [u8; 5] = [0, 0, 8, 6, 1];

/// A stream of a unix socket with its writes gathered.
#[derive(Debug)]
pub(crate) struct Gathering {
    stream: UnixStream,
    waiting: Vec<u8>,
    /// How many of those were written.
    written: usize,
    /// True if something came since the last flush.
    fresh: bool,
    /// When an acknowledgement that waits alone goes out. One timer serves all that come before it ends:
    /// setting another for each would wake the thread each time.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Gathering {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, waiting: Vec::new(), written: 0, fresh: false, patience: None }
    }

    /// True as long as what waits can wait for more.
    fn is_patient(&mut self, cx: &mut Context<'_>) -> bool {
        let lone_ack =
            self.written == 0 && self.waiting.len() == PING && self.waiting.starts_with(&PING_ACK);
        if !lone_ack {
            return false;
        }
        let timer = self.patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        let waits = timer.as_mut().poll(cx).is_pending();
        if !waits {
            self.patience = None;
        }
        waits
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
        if this.is_patient(cx) {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Flushes whenever it is woken for a while, as the HTTP/2 library does.
    async fn keep_flushing(stream: &mut Gathering) -> io::Result<()> {
        let flushing = std::future::poll_fn(|cx| match Pin::new(&mut *stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Pending,
            other => other,
        });
        tokio::time::timeout(4 * PATIENCE, flushing).await.unwrap_or(Ok(()))
    }

    async fn pair() -> (Gathering, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Gathering::new(ours), theirs)
    }

    fn ack(number: u8) -> [u8; PING] {
        let mut frame = [number; PING];
        frame[..9].copy_from_slice(&[0, 0, 8, 6, 1, 0, 0, 0, 0]);
        frame
    }

    /// Bytes that are there now, without waiting.
    fn there(stream: &UnixStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = stream.try_read(&mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }

    #[tokio::test]
    async fn what_is_written_between_two_flushes_goes_out_at_once() {
        let (mut ours, mut theirs) = pair().await;
        ours.write_all(b"data").await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(there(&theirs), b"", "flushed before the trailers came");
        ours.write_all(b"trailers").await.unwrap();
        keep_flushing(&mut ours).await.unwrap();
        let mut bytes = [0; 12];
        theirs.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"datatrailers");
    }

    #[tokio::test]
    async fn an_acknowledgement_waits_for_company_but_not_for_ever() {
        let (mut ours, mut theirs) = pair().await;
        ours.write_all(&ack(7)).await.unwrap();
        ours.flush().await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(there(&theirs), b"", "it went out alone");
        ours.write_all(b"answer").await.unwrap();
        ours.flush().await.unwrap();
        ours.flush().await.unwrap();
        let mut bytes = [0; PING + 6];
        theirs.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes[..PING], &bytes[PING..]), (&ack(7)[..], &b"answer"[..]));

        ours.write_all(&ack(8)).await.unwrap();
        let reader = tokio::spawn(async move {
            let mut bytes = [0; PING];
            theirs.read_exact(&mut bytes).await.unwrap();
            bytes
        });
        keep_flushing(&mut ours).await.unwrap();
        assert_eq!(reader.await.unwrap(), ack(8), "sent without company, after a while");
    }

    #[tokio::test]
    async fn more_than_the_buffer_and_the_socket_hold_arrives_whole_and_in_order() {
        let (mut ours, mut theirs) = pair().await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            theirs.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        for chunk in sent.chunks(1000) {
            ours.write_all(chunk).await.unwrap();
            ours.flush().await.unwrap();
        }
        ours.shutdown().await.unwrap();
        assert!(reader.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error() {
        let (mut ours, theirs) = pair().await;
        drop(theirs);
        ours.write_all(b"answer").await.unwrap();
        let error = keep_flushing(&mut ours).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
