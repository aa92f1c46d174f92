//! Generates the gRPC code from `proto/`, without a protoc on the system.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/containerd/services/snapshots/v1/snapshots.proto",
        "proto/containerd/services/containers/v1/containers.proto",
        "proto/overstream/v1/control.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().include_file("interfaces.rs").compile_fds(descriptors)?;
    Ok(())
}
