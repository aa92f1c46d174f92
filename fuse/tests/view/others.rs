//! Several users, and layers on several file systems.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::MsFlags;
use overstream_fuse::Format;
use overstream_testkit::run;

use super::frame::{Layers, with_scratch};

/// A list that lets the owner read and write and the user 1234 read, as it lies on disk.
fn access_list() -> Vec<u8> {
    let nobody = u32::MAX;
    let entries = [
        (0x01, 6, nobody),
        (0x02, 4, 1234),
        (0x04, 0, nobody),
        (0x10, 4, nobody),
        (0x20, 0, nobody),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(u16::to_le_bytes(tag));
        list.extend(u16::to_le_bytes(permissions));
        list.extend(u32::to_le_bytes(id));
    }
    list
}

/// Which of these files which of these users may read.
fn readable(root: &Path) -> Vec<(u32, &'static str, bool)> {
    let mut may = Vec::new();
    for user in [0, 1234, 5678] {
        for file in ["listed", "owned", "open", "closed/file", "passed/file"] {
            let read = run(Command::new("cat").arg(root.join(file)).uid(user).gid(user));
            may.push((user, file, read.status.success()));
        }
    }
    may
}

/// SEMANTICS O16
#[test]
fn every_user_may_read_what_the_kernel_lets_read() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "users", 2);
        let (upper, lower) = (layers.dir(0), layers.dir(1));
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for dir in ["closed", "passed"] {
            fs::create_dir(upper.join(dir)).unwrap();
            fs::create_dir(lower.join(dir)).unwrap();
            fs::write(lower.join(dir).join("file"), "").unwrap();
        }
        // The upper directory's mode counts, not that of the one with the file.
        mode(&upper.join("closed"), 0o700);
        mode(&lower.join("passed"), 0o700);
        for file in ["listed", "owned", "open"] {
            fs::write(lower.join(file), "").unwrap();
        }
        mode(&lower.join("owned"), 0o400);
        std::os::unix::fs::chown(lower.join("owned"), Some(5678), Some(0)).unwrap();
        mode(&lower.join("listed"), 0o600);
        xattr::set(lower.join("listed"), "system.posix_acl_access", &access_list()).unwrap();
        let kernel = readable(layers.kernel(Format::Trusted).path());
        assert_eq!(kernel.iter().filter(|(.., may)| *may).count(), 5 + 3 + 3);
        assert_eq!(readable(layers.served(Format::Trusted).path()), kernel);
    });
}

/// SEMANTICS O6
#[test]
fn numbers_are_unique_over_several_file_systems() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "systems", 4);
        for layer in 0..3 {
            let tmpfs = Some("tmpfs");
            let at = layers.dir(layer);
            nix::mount::mount(tmpfs, &at, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        }
        for layer in 0..4 {
            // tmpfs counts from 1, so the same numbers are in each.
            for number in 0..10 {
                fs::write(layers.dir(layer).join(format!("{layer}-{number}")), "").unwrap();
            }
            fs::create_dir(layers.dir(layer).join("merged")).unwrap();
        }
        let served = layers.served(Format::Trusted);
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(served.path()).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{entry:?}");
            assert_eq!(names.insert(meta.ino(), entry.file_name()), None);
        }
        let root = fs::metadata(served.path()).unwrap().ino();
        assert_eq!(names.insert(root, "/".into()), None);
        assert_eq!(names.len(), 4 * 10 + 2);
    });
}
