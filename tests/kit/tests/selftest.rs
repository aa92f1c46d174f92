//! Tests the kit against Debian's containerd and its built-in overlayfs snapshotter.

mod selftest {
    mod containers;
    mod daemon;
    mod limits;
    mod loops;
    mod mounts;
    mod registries;
    mod scratch;
}
