//! OCI images made on the spot, and what their root file systems must look like.

mod archive;
mod demo;
mod flatten;
mod layer;

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use archive::architecture;
pub use demo::{CAPABILITY, LATIN1_NAME, demo, many_layers, pause};
pub use layer::Layer;

use crate::tree::Tree;

/// An image, described layer by layer from the bottom.
#[derive(Clone, Debug, Default)]
pub struct Image {
    layers: Vec<Layer>,
    archives: Vec<Vec<u8>>,
    annotations: BTreeMap<String, String>,
    environment: Vec<String>,
    command: Vec<String>,
    user: String,
    volumes: Vec<String>,
}

impl Image {
    /// Describes an image without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a layer on top.
    pub fn layer(mut self, describe: impl FnOnce(Layer) -> Layer) -> Self {
        self.layers.push(describe(Layer::default()));
        self
    }

    /// Puts a layer on top of all others that is a compressed tar archive already, as `ctr snapshots
    /// diff` prints it. What it holds is not part of [`Image::tree`].
    pub fn archived_layer(mut self, tar_gz: Vec<u8>) -> Self {
        self.archives.push(tar_gz);
        self
    }

    /// Adds an annotation to the descriptor of each layer in the manifest.
    pub fn layer_annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of the environment of its containers.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Sets the command its containers run unless told otherwise.
    pub fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets the user, `UID` or `UID:GID`, its containers run as.
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Declares a directory for which containers get a volume of their own, as `VOLUME` does.
    pub fn volume(mut self, path: &str) -> Self {
        self.volumes.push(path.to_owned());
        self
    }

    /// Returns how many layers it has.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Writes it as an OCI archive that `ctr images import` takes, under the full name `name`
    /// (`localhost/demo:1`).
    #[track_caller]
    pub fn write_oci_archive(&self, path: impl AsRef<Path>, name: &str) {
        let path = path.as_ref();
        archive::write(self, path, name)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// Returns the root file system its containers must start from.
    pub fn tree(&self) -> Tree {
        flatten::flatten(&self.layers)
    }
}
