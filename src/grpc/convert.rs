//! Between the wire's types and ours.

use std::collections::HashMap;

use prost_types::Timestamp;

use crate::proto::{snapshots as wire, types};
use crate::snapshot::{Info, Kind, Labels, Mount, Time};

pub(crate) fn labels(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

pub(crate) fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts
        .into_iter()
        .map(|mount| types::Mount {
            r#type: mount.fs_type.to_owned(),
            source: mount.source,
            target: String::new(),
            options: mount.options,
        })
        .collect()
}

pub(crate) fn info(info: Info) -> wire::Info {
    wire::Info {
        name: info.name,
        parent: info.parent,
        kind: kind(info.kind).into(),
        created_at: Some(timestamp(info.created)),
        updated_at: Some(timestamp(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

pub(crate) fn timestamp(time: Time) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(time.0.rem_euclid(SECOND)).unwrap_or(0);
    Timestamp { seconds: time.0.div_euclid(SECOND), nanos }
}

fn kind(kind: Kind) -> wire::Kind {
    match kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    }
}
