//! The service behind `overstream ls`, `mounts`, `usage` and `retained`: decode, call, one reply.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::grpc::call::Server;
use crate::grpc::{Batches, batches, convert};
use crate::metastore::{Place, Row};
use crate::proto::control as wire;
use crate::proto::control::control_server::Control;
use crate::snapshotter::{Explanation, RetainedUpper, Snapshotter, StoreReport};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Server {
    type ListStream = Batches<wire::ListResponse>;

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<Self::ListStream> {
        let wire::ListRequest { filters } = request.into_inner();
        let call = self.call("control.List", "", "", "");
        let under_way = call.under_way();
        let found = call.run(move |snapshots| snapshots.list_places(&filters)).await?;
        let batch = |snapshots: Vec<_>| wire::ListResponse { snapshots };
        Ok(Response::new(batches(found, |(row, upper)| snapshot(row, upper), batch, under_way)))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Answer<wire::ExplainResponse> {
        let wire::ExplainRequest { snapshotter, key } = request.into_inner();
        let call = self.call("control.Explain", &snapshotter, &key, "");
        let explained = call
            .run(move |snapshots| {
                let snapshotter = Some(snapshotter.as_str()).filter(|name| !name.is_empty());
                snapshots.explain(snapshotter, &key)
            })
            .await?;
        let Explanation { row, upper, mounts, layers, notes } = explained;
        let (snapshot, mounts) = (Some(snapshot(row, upper)), convert::mounts(mounts));
        Ok(Response::new(wire::ExplainResponse { snapshot, mounts, layers, notes }))
    }

    async fn usage(&self, _: Request<wire::UsageRequest>) -> Answer<wire::UsageResponse> {
        let call = self.call("control.Usage", "", "", "");
        let cancel = call.cancel();
        let reports = call.run(move |snapshots| snapshots.report(&cancel)).await?;
        Ok(Response::new(wire::UsageResponse { stores: reports.into_iter().map(store).collect() }))
    }

    async fn list_retained(
        &self,
        request: Request<wire::ListRetainedRequest>,
    ) -> Answer<wire::ListRetainedResponse> {
        let wire::ListRetainedRequest { sizes } = request.into_inner();
        let call = self.call("control.ListRetained", "", "", "");
        let cancel = call.cancel();
        let list = move |snapshots: &Arc<Snapshotter>| {
            if sizes { snapshots.retained_with_sizes(&cancel) } else { snapshots.retained() }
        };
        let found = call.run(list).await?;
        let retained = found.into_iter().map(retained).collect();
        Ok(Response::new(wire::ListRetainedResponse { retained }))
    }

    async fn remove_retained(&self, request: Request<wire::RemoveRetainedRequest>) -> Answer<()> {
        let wire::RemoveRetainedRequest { id } = request.into_inner();
        let call = self.call("control.RemoveRetained", "", "", "");
        call.run(move |snapshots| snapshots.remove_retained(id)).await.map(Response::new)
    }
}

fn snapshot(row: Row, upper: String) -> wire::Snapshot {
    let placement = match row.placement.place {
        Place::Store | Place::Volume(_) => "placed",
        Place::Pending => "pending",
        Place::Moved(_) => "moved",
    };
    wire::Snapshot {
        id: row.id,
        snapshotter: row.snapshotter,
        key: row.info.name,
        kind: row.info.kind.as_str().to_owned(),
        parent: row.info.parent,
        store: row.placement.store,
        upper,
        placement: placement.to_owned(),
        reason: row.placement.reason,
        volatile: row.placement.volatile_boot.is_some(),
        retain: row.placement.retain,
        created_at: Some(convert::timestamp(row.info.created)),
        labels: row.info.labels.into_iter().collect(),
    }
}

fn store(report: StoreReport) -> wire::StoreUsage {
    wire::StoreUsage {
        name: report.name,
        r#type: report.kind.to_owned(),
        path: report.path,
        problem: report.problem,
        committed_bytes: report.committed.1.bytes,
        committed_inodes: report.committed.1.inodes,
        committed_count: report.committed.0,
        active_bytes: report.active.1.bytes,
        active_inodes: report.active.1.inodes,
        active_count: report.active.0,
        view_count: report.views,
        retained_count: report.retained.0,
        retained_bytes: report.retained.1.bytes,
        retained_inodes: report.retained.1.inodes,
        garbage_count: report.garbage,
        filesystem_bytes: report.space.0,
        available_bytes: report.space.1,
    }
}

fn retained(upper: RetainedUpper) -> wire::Retained {
    wire::Retained {
        id: upper.id,
        snapshotter: upper.snapshotter,
        namespace: upper.namespace,
        name: upper.name,
        store: upper.store,
        upper: upper.upper,
        removed_at: upper.removed.map(convert::timestamp),
        chain: upper.chain,
        size: upper.size.map(|size| wire::RetainedSize { bytes: size.bytes, inodes: size.inodes }),
    }
}
