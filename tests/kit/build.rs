//! Generates gRPC clients from the product's protos and the kit's own, without a protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "containerd/services/snapshots/v1/snapshots.proto",
        "containerd/services/containers/v1/containers.proto",
        "overstream/v1/control.proto",
        "cri.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=../../proto");
    let descriptors = protox::compile(files, ["../../proto", "proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("protos.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
