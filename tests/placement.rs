//! Uppers on other disks than the layers, and pods with an upper on a volume.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "placement/hung.rs"]
mod hung;
#[path = "placement/identity.rs"]
mod identity;
#[path = "placement/pods.rs"]
mod pods;
#[path = "placement/splitting.rs"]
mod splitting;
#[path = "placement/stores.rs"]
mod stores;

use std::path::Path;

use overstream_testkit::{Client, Daemon, Stack};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const DEMO: &str = "localhost/demo:1";
const SLEEP: [&str; 2] = ["sleep", "1000"];

/// A store `fast` for the containers of two namespaces.
fn fast(path: &Path) -> String {
    format!(
        "[stores.fast]\ntype = \"dir\"\npath = \"{}\"\n\
         [[rules]]\nnamespace = \"default\"\nstore = \"fast\"\n\
         [[rules]]\nnamespace = \"k8s.io\"\nstore = \"fast\"\n",
        path.display()
    )
}

fn client(daemon: &Daemon) -> Client {
    Client::new(daemon.socket(), Stack::PLUGIN)
}

/// Restarts a daemon; a client that nobody drives would not hang up.
fn restart(daemon: &mut Daemon, old: Client) -> Client {
    drop(old);
    daemon.restart();
    client(daemon)
}

/// Name of a layer as containerd writes it; `number` stands for its content.
fn layer(number: usize) -> String {
    format!("default/{number}/sha256:{number:064x}")
}

/// Commits an image layer that holds one file named after its number.
fn add_layer(client: &Client, number: usize, parent: &str) -> String {
    let key = format!("default/{number}/extract-{number}-x sha256:{number:064x}");
    let mounts = client.prepare(&key, parent, &[]).unwrap();
    std::fs::write(writable(&mounts).join(number.to_string()), "layer").unwrap();
    client.commit(&layer(number), &key, &[]).unwrap();
    layer(number)
}

/// Directory that takes what is written through these mounts.
fn writable(mounts: &[overstream_testkit::proto::types::Mount]) -> std::path::PathBuf {
    let upper = |option: &String| option.strip_prefix("upperdir=").map(Into::into);
    let bind = || mounts[0].source.clone().into();
    mounts[0].options.iter().find_map(upper).unwrap_or_else(bind)
}
