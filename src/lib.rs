//! Overstream, a containerd snapshotter.
