//! The gRPC interfaces the tests call.

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

pub use generated::containerd::services::containers::v1 as containers;
pub use generated::containerd::services::snapshots::v1 as snapshots;
pub use generated::containerd::types;
pub use generated::overstream::v1 as control;
pub use generated::runtime::v1 as cri;
