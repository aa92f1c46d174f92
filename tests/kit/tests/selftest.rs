//! Tests the kit against Debian's containerd and its built-in overlayfs snapshotter.

mod selftest {
    mod daemon;
    mod limits;
    mod mounts;
    mod scratch;
}
