//! A blocking client of one snapshotter, for tests that read as a list of calls.

use std::collections::HashMap;
use std::path::Path;

use tokio::runtime::{Builder, Runtime};
use tonic::Status;
use tonic::transport::Channel;

use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest,
};
use crate::proto::types::Mount;
use crate::rpc;

/// Answers with very many labels are larger than tonic's default of 4 MiB.
const MESSAGE_MAX: usize = 64 << 20;

/// Labels as tests write them down.
pub type LabelSlice<'a> = &'a [(&'a str, &'a str)];

/// Calls the snapshots service under one plugin name, and waits for each answer.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    snapshots: SnapshotsClient<Channel>,
    snapshotter: String,
}

impl Client {
    /// Describes a client of the daemon at `socket`; it connects at the first call.
    pub fn new(socket: &Path, snapshotter: &str) -> Self {
        // A thread of its own notices when the daemon hangs up between two calls.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("start a runtime");
        let channel = runtime.block_on(rpc::channel(socket));
        let snapshots = SnapshotsClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Self { runtime, snapshots, snapshotter: snapshotter.to_owned() }
    }

    /// Returns the client below, for requests that have no method here.
    pub fn raw(&self) -> SnapshotsClient<Channel> {
        self.snapshots.clone()
    }

    /// Runs a future of the client below.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Makes an active snapshot.
    pub fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: LabelSlice<'_>,
    ) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (self.name(), key.to_owned(), parent.to_owned());
        let request = PrepareSnapshotRequest { snapshotter, key, parent, labels: map(labels) };
        Ok(self.block_on(self.raw().prepare(request))?.into_inner().mounts)
    }

    /// Makes a view.
    pub fn view(
        &self,
        key: &str,
        parent: &str,
        labels: LabelSlice<'_>,
    ) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (self.name(), key.to_owned(), parent.to_owned());
        let request = ViewSnapshotRequest { snapshotter, key, parent, labels: map(labels) };
        Ok(self.block_on(self.raw().view(request))?.into_inner().mounts)
    }

    /// Asks for the mounts of an active snapshot or a view.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { snapshotter: self.name(), key: key.to_owned() };
        Ok(self.block_on(self.raw().mounts(request))?.into_inner().mounts)
    }

    /// Commits the active snapshot `key` as `name`.
    pub fn commit(&self, name: &str, key: &str, labels: LabelSlice<'_>) -> Result<(), Status> {
        self.commit_on(name, key, "", labels)
    }

    /// Commits the active snapshot `key` as `name` on `parent`.
    pub fn commit_on(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: LabelSlice<'_>,
    ) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: map(labels),
            parent: parent.to_owned(),
        };
        self.block_on(self.raw().commit(request)).map(drop)
    }

    /// Removes a snapshot.
    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        self.block_on(self.raw().remove(request)).map(drop)
    }

    /// Describes a snapshot; panics if the answer describes none, as containerd's client does.
    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let answer = self.block_on(self.raw().stat(request))?.into_inner();
        Ok(answer.info.expect("an answer to Stat with info"))
    }

    /// Updates a snapshot; no `paths` is no mask. Panics if the answer has no description.
    pub fn update(&self, info: Info, paths: &[&str]) -> Result<Info, Status> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let mask = (!paths.is_empty()).then_some(prost_types::FieldMask { paths });
        let request =
            UpdateSnapshotRequest { snapshotter: self.name(), info: Some(info), update_mask: mask };
        let answer = self.block_on(self.raw().update(request))?.into_inner();
        Ok(answer.info.expect("an answer to Update with info"))
    }

    /// Lists what matches any filter.
    pub fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        Ok(self.list_messages(filters)?.into_iter().flatten().collect())
    }

    /// Lists what matches any filter, message by message.
    pub fn list_messages(&self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { snapshotter: self.name(), filters };
        self.block_on(async {
            let mut stream = self.raw().list(request).await?.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message.info);
            }
            Ok(messages)
        })
    }

    /// Tells the space a snapshot takes: bytes and inodes.
    pub fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = UsageRequest { snapshotter: self.name(), key: key.to_owned() };
        let usage = self.block_on(self.raw().usage(request))?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    /// Deletes what removed snapshots left.
    pub fn cleanup(&self) -> Result<(), Status> {
        let request = CleanupRequest { snapshotter: self.name() };
        self.block_on(self.raw().cleanup(request)).map(drop)
    }

    fn name(&self) -> String {
        self.snapshotter.clone()
    }
}

fn map(labels: LabelSlice<'_>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
