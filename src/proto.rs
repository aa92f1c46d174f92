//! The generated interfaces, by short names.

mod generated {
    #![allow(
        clippy::all,
        clippy::cognitive_complexity,
        clippy::too_many_lines,
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("interfaces");
}

pub(crate) use generated::containerd::services::containers::v1 as containers;
pub(crate) use generated::containerd::services::snapshots::v1 as snapshots;
pub(crate) use generated::containerd::types;
pub(crate) use generated::overstream::v1 as control;
