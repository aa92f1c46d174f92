//! Answers too long for one message, sent in batches while they are still being found.
//!
//! At most a few batches are in memory, however many snapshots there are. The work that finds them
//! may hold a reading transaction until the last is sent, so a client that stops reading is given up.

use std::mem::take;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Response, Status};

use super::call::Call;
use crate::error::{Error, Result};
use crate::snapshotter::Snapshotter;

/// Items in one message; ten thousand take a hundred messages.
const BATCH: usize = 100;
/// How long a client may take to read one message.
const STALLED: Duration = Duration::from_secs(30);

/// A stream of messages.
pub(crate) type Batches<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where the work puts what it finds.
#[derive(Debug)]
pub(crate) struct Outbox<W, T> {
    items: Vec<W>,
    batch: fn(Vec<W>) -> T,
    sender: Sender<Result<T, Status>>,
    runtime: Handle,
}

impl<W, T> Outbox<W, T> {
    /// Sends an item, with others; waits while the client is busy reading earlier ones.
    pub(crate) fn push(&mut self, item: W) -> Result<()> {
        self.items.push(item);
        if self.items.len() < BATCH { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let message = (self.batch)(take(&mut self.items));
        let sent = self.runtime.block_on(self.sender.send_timeout(Ok(message), STALLED));
        sent.map_err(|_| Error::Cancelled)
    }
}

/// Runs `work`, and answers with what it puts in the outbox; no message where that is nothing.
pub(crate) async fn stream<W, T>(
    call: Call,
    batch: fn(Vec<W>) -> T,
    work: impl FnOnce(&Snapshotter, &mut Outbox<W, T>) -> Result<()> + Send + 'static,
) -> Result<Response<Batches<T>>, Status>
where
    W: Send + 'static,
    T: Send + 'static,
{
    let (sender, mut receiver) = channel(1);
    let runtime = Handle::current();
    let mut outbox = Outbox { items: Vec::new(), batch, sender: sender.clone(), runtime };
    tokio::spawn(async move {
        let work = call.run(move |snapshots| {
            work(snapshots, &mut outbox)?;
            outbox.flush()
        });
        if let Err(status) = work.await {
            // Fails only if the client went away, which is then no news.
            drop(sender.send(Err(status)).await);
        }
    });
    // An error before the first message is the answer itself.
    let first = receiver.recv().await.transpose()?;
    let rest = ReceiverStream::new(receiver);
    Ok(Response::new(Box::pin(tokio_stream::iter(first.map(Ok)).chain(rest))))
}
