//! One call: its log span, its metrics, and the thread it may block.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::{Request, Status};
use tracing::Span;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::snapshot::KeyHint;
use crate::snapshotter::Snapshotter;
use crate::usage::Cancel;

/// Characters of a key that a log line shows; containerd's keys have about 100.
const KEY_SHOWN: usize = 256;

/// What all services share.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    snapshots: Arc<Snapshotter>,
    metrics: Arc<Metrics>,
    calls: Arc<watch::Sender<usize>>,
}

impl Server {
    pub(crate) fn new(snapshots: Arc<Snapshotter>, metrics: Arc<Metrics>) -> Self {
        Self { snapshots, metrics, calls: Arc::default() }
    }

    /// Waits until no call has been under way for as long as `quiet`.
    pub(crate) async fn wait_quiet(&self, quiet: Duration) {
        let mut calls = self.calls.subscribe();
        // The other end is ours, so waiting cannot fail.
        while calls.wait_for(|count| *count == 0).await.is_ok()
            && tokio::time::timeout(quiet, calls.changed()).await.is_ok()
        {}
    }

    /// Begins a call of `method`.
    pub(crate) fn call(
        &self,
        method: &'static str,
        snapshotter: &str,
        key: &str,
        namespace: &str,
    ) -> Call {
        let shown: String = key.chars().take(KEY_SHOWN).collect();
        // Without a header that tells, the key does.
        let namespace = if namespace.is_empty() { KeyHint::of(key).namespace } else { namespace };
        let span = tracing::info_span!("rpc", method, snapshotter, key = shown, namespace);
        let under_way = UnderWay::new(Arc::clone(&self.calls));
        Call { server: self.clone(), method, span, cancel: Cancel::default(), under_way }
    }
}

/// Counts a call among those under way until its last copy is dropped.
#[derive(Clone, Debug)]
pub(crate) struct UnderWay {
    _counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted(Arc<watch::Sender<usize>>);

impl UnderWay {
    fn new(calls: Arc<watch::Sender<usize>>) -> Self {
        calls.send_modify(|count| *count += 1);
        Self { _counted: Arc::new(Counted(calls)) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call {
    server: Server,
    method: &'static str,
    span: Span,
    cancel: Cancel,
    under_way: UnderWay,
}

impl Call {
    /// Keeps the call under way while its answer is streamed.
    pub(crate) fn under_way(&self) -> UnderWay {
        self.under_way.clone()
    }

    /// Tells the work that the client went away.
    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Tries `work` where it is, without a change of thread; the call goes on if that has no answer.
    ///
    /// For work on the root's disk alone, as long as it takes less time than waking a thread does: without
    /// that disk no call has an answer anyway.
    pub(crate) fn attempt<T>(
        &self,
        work: impl FnOnce(&Arc<Snapshotter>) -> Result<Option<T>>,
    ) -> Result<Option<T>, Status> {
        let Self { server, method, span, .. } = self;
        let _entered = span.enter();
        let started = Instant::now();
        let in_flight = server.metrics.begin(method);
        let answer = catch_unwind(AssertUnwindSafe(|| work(&server.snapshots)));
        drop(in_flight);
        match answer {
            Ok(Ok(None)) => Ok(None),
            Ok(result) => finish(&server.metrics, method, started, result),
            Err(_) => Err(unforeseen(method, &"it panicked")),
        }
    }

    /// Runs `work` on a thread that may block; it goes on if the client does not wait for it.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Arc<Snapshotter>) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let Self { server, method, span, cancel, under_way } = self;
        let _cancel_if_dropped = CancelOnDrop(cancel);
        let blocking = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            let started = Instant::now();
            let in_flight = server.metrics.begin(method);
            let result = work(&server.snapshots);
            drop(in_flight);
            let result = finish(&server.metrics, method, started, result);
            drop(under_way);
            result
        });
        blocking.await.map_err(|error| unforeseen(method, &error))?
    }
}

fn unforeseen(method: &str, error: &dyn Display) -> Status {
    tracing::error!(method, %error, "a call failed in an unforeseen way");
    Status::internal(format!("{method} failed in an unforeseen way; see the log"))
}

/// Counts and logs a call's result.
fn finish<T>(
    metrics: &Metrics,
    method: &'static str,
    started: Instant,
    result: Result<T, Error>,
) -> Result<T, Status> {
    let elapsed = started.elapsed();
    let result = result.map_err(Status::from);
    let code = result.as_ref().err().map_or(tonic::Code::Ok, Status::code);
    metrics.finished(method, code, elapsed);
    // Whole microseconds, so that no digits are shown that nobody measured.
    let milliseconds = elapsed.as_micros() as f64 / 1e3;
    match &result {
        Ok(_) => tracing::debug!(milliseconds, "done"),
        Err(status) if is_ordinary(code) => {
            tracing::info!(milliseconds, ?code, error = status.message(), "refused");
        }
        Err(status) => tracing::warn!(milliseconds, ?code, error = status.message(), "failed"),
    }
    result
}

/// Answers that clients get in the ordinary course of things: containerd probes with Stat and Prepare.
fn is_ordinary(code: tonic::Code) -> bool {
    use tonic::Code;
    matches!(code, Code::NotFound | Code::AlreadyExists | Code::InvalidArgument | Code::Cancelled)
}

/// A future that is dropped before its work is done belongs to a client that went away.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// containerd's namespace, where the request says.
pub(crate) fn namespace_of<T>(request: &Request<T>) -> String {
    let header = request.metadata().get("containerd-namespace");
    header.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
