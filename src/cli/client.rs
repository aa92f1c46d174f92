//! Asking a running daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::{Remote, show};
use crate::filter;
use crate::proto::control as wire;
use crate::proto::control::control_client::ControlClient;

/// Messages of a daemon with very many snapshots are still far below this.
const MESSAGE_MAX: usize = 64 << 20;
/// How often a daemon that has not answered yet is asked for a sign of life, and how long that may take.
///
/// The answer itself may take as long as it does: disks are walked for some.
const SIGN: Duration = Duration::from_secs(5);

pub(super) fn ls(remote: &Remote, filters: Vec<String>) -> Result<(), String> {
    let unknown = filter::unknown_fields(&filters);
    let all = filters.is_empty();
    let snapshots = ask(remote, async |client| {
        let mut stream = client.list(wire::ListRequest { filters }).await?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = stream.message().await? {
            all.extend(batch.snapshots);
        }
        Ok(all)
    })?;
    if !remote.json && (snapshots.is_empty() || !unknown.is_empty()) {
        show::hint_at_filters(all, &unknown);
    }
    show::snapshots(&snapshots, remote.json)
}

pub(super) fn mounts(remote: &Remote, snapshotter: String, key: String) -> Result<(), String> {
    let request = wire::ExplainRequest { snapshotter, key };
    let answer = ask(remote, async |client| Ok(client.explain(request).await?.into_inner()))?;
    show::explanation(&answer, remote.json)
}

pub(super) fn usage(remote: &Remote) -> Result<(), String> {
    let answer =
        ask(remote, async |client| Ok(client.usage(wire::UsageRequest {}).await?.into_inner()))?;
    show::usage(&answer.stores, remote.json)
}

pub(super) fn retained(remote: &Remote, sizes: bool) -> Result<(), String> {
    let request = wire::ListRetainedRequest { sizes };
    let answer = ask(remote, async |client| Ok(client.list_retained(request).await?.into_inner()))?;
    show::retained(&answer.retained, sizes, remote.json)
}

pub(super) fn remove_retained(remote: &Remote, id: u64) -> Result<(), String> {
    let request = wire::RemoveRetainedRequest { id };
    ask(remote, async |client| client.remove_retained(request).await.map(drop))
}

/// Connects, asks, and puts failures into words.
fn ask<T>(
    remote: &Remote,
    question: impl AsyncFnOnce(&mut ControlClient<Channel>) -> Result<T, tonic::Status>,
) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let channel = connect(&remote.socket).await?;
        let mut client = ControlClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        question(&mut client).await.map_err(|status| refusal(&remote.socket, &status))
    })
}

/// What the daemon says, or that it is not Overstream that answers.
fn refusal(socket: &Path, status: &tonic::Status) -> String {
    let message = status.message();
    if is_silent(status) {
        return format!(
            "{}: the program that listens there gives no sign of life; it is stopped, or hangs: see its log, or \
             restart it; --socket names another one",
            socket.display()
        );
    }
    let not_ours = if status.code() == tonic::Code::Unimplemented {
        "another program answers there, which does not know Overstream's calls"
    } else if std::error::Error::source(status).is_some() {
        "the answer cannot be read; another program may listen there, or the daemon was killed"
    } else {
        return message.to_owned();
    };
    let said = if message.is_empty() { String::new() } else { format!(" ({message})") };
    format!("{}: {not_ours}{said}; --socket names another one", socket.display())
}

/// True if the connection was given up because nobody answered on it.
fn is_silent(status: &tonic::Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source())
        .any(|error| error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout))
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    let path: PathBuf = socket.to_owned();
    let dial = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is never resolved: the connector always dials the socket.
    let endpoint = Endpoint::from_static("http://overstream")
        .http2_keep_alive_interval(SIGN)
        .keep_alive_timeout(SIGN);
    endpoint.connect_with_connector(dial).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        format!(
            "cannot reach a daemon at {}: {cause}; is `overstream serve` running, and are you allowed to use it? \
             --socket names another one",
            socket.display()
        )
    })
}
