//! The snapshots service: decode, call, one reply.

pub(crate) mod call;
pub(crate) mod convert;
pub(crate) mod socket;
mod status;

use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use self::call::{Server, UnderWay, namespace_of};
use crate::proto::snapshots as wire;
use crate::proto::snapshots::snapshots_server::Snapshots;
use crate::snapshot::Labels;
use crate::snapshotter::{LabelMask, New, Snapshotter};

/// Infos in one message of List; ten thousand take a hundred messages.
const BATCH: usize = 100;
/// Bytes in one message of List: a client takes at most 16 MiB, and labels can come from images.
const BATCH_BYTES: usize = 4 << 20;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Server {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Answer<wire::PrepareSnapshotResponse> {
        let namespace = namespace_of(&request);
        let wire::PrepareSnapshotRequest { snapshotter, key, parent, labels } =
            request.into_inner();
        let labels = convert::labels(labels);
        let call = self.call("Prepare", &snapshotter, &key, &namespace);
        let here = new(&snapshotter, &key, &parent, &labels, &namespace);
        let mounts = match call.attempt(|snapshots| snapshots.prepare_in_root(&here))? {
            Some(mounts) => mounts,
            None => {
                call.run(move |snapshots| {
                    snapshots.prepare(&new(&snapshotter, &key, &parent, &labels, &namespace))
                })
                .await?
            }
        };
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn view(
        &self,
        request: Request<wire::ViewSnapshotRequest>,
    ) -> Answer<wire::ViewSnapshotResponse> {
        let namespace = namespace_of(&request);
        let wire::ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let labels = convert::labels(labels);
        let call = self.call("View", &snapshotter, &key, &namespace);
        let mounts = call
            .run(move |snapshots| {
                snapshots.view(&new(&snapshotter, &key, &parent, &labels, &namespace))
            })
            .await?;
        Ok(Response::new(wire::ViewSnapshotResponse { mounts: convert::mounts(mounts) }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Answer<wire::MountsResponse> {
        let namespace = namespace_of(&request);
        let wire::MountsRequest { snapshotter, key } = request.into_inner();
        let call = self.call("Mounts", &snapshotter, &key, &namespace);
        let mounts = match call.attempt(|snapshots| snapshots.mounts_in_root(&snapshotter, &key))? {
            Some(mounts) => mounts,
            None => {
                call.run(move |snapshots| snapshots.mounts(&snapshotter, &key, &namespace)).await?
            }
        };
        Ok(Response::new(wire::MountsResponse { mounts: convert::mounts(mounts) }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Answer<()> {
        let namespace = namespace_of(&request);
        let wire::CommitSnapshotRequest { snapshotter, name, key, labels, parent } =
            request.into_inner();
        let labels = convert::labels(labels);
        let call = self.call("Commit", &snapshotter, &key, &namespace);
        let cancel = call.cancel();
        let commit = move |snapshots: &Arc<Snapshotter>| {
            snapshots.commit(&snapshotter, &key, &name, &labels, &parent, &cancel)
        };
        call.run(commit).await.map(Response::new)
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Answer<()> {
        let namespace = namespace_of(&request);
        let wire::RemoveSnapshotRequest { snapshotter, key } = request.into_inner();
        let call = self.call("Remove", &snapshotter, &key, &namespace);
        match call.attempt(|snapshots| snapshots.remove_in_root(&snapshotter, &key))? {
            Some(()) => {}
            None => call.run(move |snapshots| snapshots.remove(&snapshotter, &key)).await?,
        }
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<wire::StatSnapshotRequest>,
    ) -> Answer<wire::StatSnapshotResponse> {
        let namespace = namespace_of(&request);
        let wire::StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let call = self.call("Stat", &snapshotter, &key, &namespace);
        let info = call.attempt(|snapshots| snapshots.stat(&snapshotter, &key).map(Some))?;
        Ok(Response::new(wire::StatSnapshotResponse { info: info.map(convert::info) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Answer<wire::UpdateSnapshotResponse> {
        let namespace = namespace_of(&request);
        let wire::UpdateSnapshotRequest { snapshotter, info, update_mask } = request.into_inner();
        let wire::Info { name, labels, .. } = info.unwrap_or_default();
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels = convert::labels(labels);
        let call = self.call("Update", &snapshotter, &name, &namespace);
        let info = call
            .run(move |snapshots| {
                // An unknown snapshot is reported before a bad mask, as containerd does.
                snapshots.stat(&snapshotter, &name)?;
                snapshots.update(&snapshotter, &name, &labels, &LabelMask::parse(&paths)?)
            })
            .await?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(convert::info(info)) }))
    }

    type ListStream = Batches<wire::ListSnapshotsResponse>;

    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let namespace = namespace_of(&request);
        let wire::ListSnapshotsRequest { snapshotter, filters } = request.into_inner();
        let call = self.call("List", &snapshotter, "", &namespace);
        let under_way = call.under_way();
        let infos = call.run(move |snapshots| snapshots.list(&snapshotter, &filters)).await?;
        let batch = |infos: Vec<_>| wire::ListSnapshotsResponse { info: infos };
        Ok(Response::new(batches(infos, convert::info, batch, under_way)))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Answer<wire::UsageResponse> {
        let namespace = namespace_of(&request);
        let wire::UsageRequest { snapshotter, key } = request.into_inner();
        let call = self.call("Usage", &snapshotter, &key, &namespace);
        let cancel = call.cancel();
        let usage = call.run(move |snapshots| snapshots.usage(&snapshotter, &key, &cancel)).await?;
        let saturate = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let usage =
            wire::UsageResponse { size: saturate(usage.bytes), inodes: saturate(usage.inodes) };
        Ok(Response::new(usage))
    }

    async fn cleanup(&self, request: Request<wire::CleanupRequest>) -> Answer<()> {
        let namespace = namespace_of(&request);
        let wire::CleanupRequest { snapshotter } = request.into_inner();
        let call = self.call("Cleanup", &snapshotter, "", &namespace);
        let cleanup = |snapshots: &Arc<Snapshotter>| {
            snapshots.cleanup();
            Ok(())
        };
        call.run(cleanup).await.map(Response::new)
    }
}

fn new<'a>(
    snapshotter: &'a str,
    key: &'a str,
    parent: &'a str,
    labels: &'a Labels,
    namespace: &'a str,
) -> New<'a> {
    New { snapshotter, key, parent, labels, namespace }
}

/// A stream of messages that are made as they are sent.
pub(crate) type Batches<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends `items` in messages of at most `BATCH` items and, unless one alone takes more, `BATCH_BYTES`;
/// no message where there are none.
pub(crate) fn batches<I, W, T>(
    items: Vec<I>,
    wire: fn(I) -> W,
    batch: fn(Vec<W>) -> T,
    under_way: UnderWay,
) -> Batches<T>
where
    I: Send + 'static,
    W: prost::Message + 'static,
    T: 'static,
{
    let mut items = items.into_iter().map(wire).peekable();
    Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let _still = &under_way;
        let (mut message, mut bytes) = (Vec::new(), 0);
        while message.len() < BATCH
            && let Some(item) =
                items.next_if(|item| bytes + item.encoded_len() <= BATCH_BYTES || bytes == 0)
        {
            bytes += item.encoded_len();
            message.push(item);
        }
        (!message.is_empty()).then(|| Ok(batch(message)))
    })))
}
