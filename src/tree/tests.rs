use std::fs as stdfs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// SEMANTICS X3
#[test]
fn a_tree_is_removed_without_following_links() {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, outside) = (scratch.path().join("t"), scratch.path().join("outside"));
    stdfs::create_dir_all(tree.join("a/b/c")).unwrap();
    stdfs::create_dir_all(&outside).unwrap();
    stdfs::write(outside.join("precious"), "x").unwrap();
    stdfs::write(tree.join("a/b/file"), "x").unwrap();
    symlink(&outside, tree.join("a/link")).unwrap();
    stdfs::create_dir(tree.join("a/b/closed")).unwrap();
    stdfs::set_permissions(tree.join("a/b/closed"), stdfs::Permissions::from_mode(0o000)).unwrap();
    remove(&tree).unwrap();
    assert!(!tree.exists());
    assert!(outside.join("precious").exists());
    remove(&tree).unwrap();
    remove(&scratch.path().join("no/such/parent")).unwrap();
}

/// Deeper than the limit on open files and longer than PATH_MAX: a container can make such a tree.
/// SEMANTICS X3
#[test]
fn a_very_deep_tree_is_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("t");
    stdfs::create_dir(&top).unwrap();
    let mut here = fs::open(&top, DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..6000 {
        fs::mkdirat(&here, c"deeper", Mode::RWXU).unwrap();
        here = fs::openat(&here, c"deeper", DIRECTORY, Mode::empty()).unwrap();
    }
    drop(here);
    remove(&top).unwrap();
    assert!(!top.exists());
}
