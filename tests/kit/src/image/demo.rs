//! Ready-made images on busybox.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Image, Layer};

/// Value of `security.capability` on `bin/capable` of the demo image: `cap_net_bind_service=ep` in
/// the kernel's version 2 form (magic with the effective bit; permitted and inheritable, low; the
/// same, high).
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Name in `data` of the demo image that is not UTF-8.
pub const LATIN1_NAME: &[u8] = b"na\xefve \xff";

const APPLETS: &[&str] = &[
    "awk",
    "basename",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "flock",
    "fsync",
    "grep",
    "head",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "mount",
    "mv",
    "od",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setfattr",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "top",
    "touch",
    "tr",
    "true",
    "truncate",
    "umount",
    "uname",
    "uniq",
    "wc",
    "xargs",
];

/// Returns the demo image, whose four layers hold every kind of entry and every kind of change.
///
/// Its root file system is `demo().tree()`; on top of that, `data/attributes` has `user.demo` =
/// `value`, and `bin/capable` has [`CAPABILITY`].
pub fn demo() -> Image {
    Image::new()
        .layer(|layer| {
            busybox(layer)
                .dirs(&["data", "opaque", "opaque/deep", "gone", "replaced"])
                .file("data/one", "one\n")
                .file("data/two", "two\n")
                .file("data/4k", pattern(4 << 10))
                .file("data/1m", pattern(1 << 20))
                .file("opaque/low", "low\n")
                .file("opaque/deep/low", "low\n")
                .file("gone/file", "gone\n")
                .file("replaced/file", "replaced\n")
        })
        .layer(|layer| {
            layer
                .file("data/one", "ONE2\n")
                .whiteout("data/two")
                .opaque("opaque")
                .file("opaque/up", "up\n")
                .whiteout("gone")
                .file("replaced", "a file now\n")
        })
        .layer(|layer| {
            layer
                .file("data/three", "three\n")
                .hardlink("data/three.link", "data/three")
                .symlink("data/three.symlink", "three")
                .device("data/null", 1, 3)
                .mode(0o666)
                .block_device("data/block", 7, 99)
                .mode(0o660)
                .fifo("data/pipe")
                .mtime(1_000_000_000)
        })
        .layer(|layer| {
            layer
                .file("data/attributes", "attributes\n")
                .xattr("user.demo", "value")
                .file("bin/capable", "#!/bin/sh\n")
                .mode(0o755)
                .xattr("security.capability", CAPABILITY)
                .file("bin/setuid", "#!/bin/sh\n")
                .mode(0o4755)
                .file("data/owned", "owned\n")
                .mode(0o640)
                .owner(1000, 1001)
                .dir("data/shared")
                .mode(0o3777)
                .owner(1000, 1001)
                .file(std::path::Path::new("data").join(OsStr::from_bytes(LATIN1_NAME)), "name\n")
                .dir("gone")
                .file("gone/again", "again\n")
        })
        .env("PATH", "/bin")
        .command(&["/bin/sh"])
}

/// Returns the image that holds a pod's namespaces: it sleeps.
pub fn pause() -> Image {
    Image::new().layer(busybox).env("PATH", "/bin").command(&["/bin/sleep", "1000000"])
}

/// Returns an image of `count` layers. Each but the first overwrites `overwritten`, adds a file to
/// `added` and replaces the directory `replaced` by one with a single file.
pub fn many_layers(count: usize) -> Image {
    let first = Image::new()
        .layer(|layer| {
            busybox(layer)
                .dirs(&["added", "replaced"])
                .file("overwritten", "0")
                .file("replaced/0", "0")
        })
        .env("PATH", "/bin")
        .command(&["/bin/sh"]);
    (1..count).fold(first, |image, number| {
        let content = number.to_string();
        image.layer(|layer| {
            layer
                .file("overwritten", content.as_str())
                .file(format!("added/{number}"), content.as_str())
                .opaque("replaced")
                .file(format!("replaced/{number}"), content.as_str())
        })
    })
}

/// Adds a small system of busybox, which must be the static one.
fn busybox(layer: Layer) -> Layer {
    let program = std::fs::read("/bin/busybox").unwrap_or_else(|error| {
        panic!("cannot read /bin/busybox (package busybox-static): {error}")
    });
    let layer = layer
        .dirs(&["bin", "dev", "etc", "proc", "root", "run", "sys"])
        .dir("tmp")
        .mode(0o1777)
        .file("bin/busybox", program)
        .mode(0o755)
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndemo:x:1000:1001::/tmp:/bin/sh\n")
        .file("etc/group", "root:x:0:\ndemo:x:1001:\n");
    APPLETS.iter().fold(layer, |layer, name| layer.symlink(format!("bin/{name}"), "busybox"))
}

/// Returns bytes in which no two blocks are equal.
fn pattern(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0_u32..).flat_map(|n| format!("{n:07}\n").into_bytes()).take(length).collect();
    bytes.truncate(length);
    bytes
}
