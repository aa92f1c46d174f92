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

/// SEMANTICS X3
#[test]
fn a_directory_of_many_names_is_removed() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let top = scratch.path().join("t");
    stdfs::create_dir(&top).unwrap();
    for number in 0..20_000 {
        stdfs::File::create(top.join(format!("file-{number}"))).unwrap();
    }
    for number in 0..1_000 {
        stdfs::create_dir(top.join(format!("directory-{number}"))).unwrap();
    }
    remove(&top).unwrap();
    assert!(!top.exists());
}

/// Deletes nothing, though it says so: as if somebody added names as fast as they are deleted.
struct Futile(usize);

impl Visitor for Futile {
    fn file(&mut self, _: BorrowedFd<'_>, _: &CStr, _: &Stat) -> io::Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn enter(&mut self, _: &Stat) -> io::Result<()> {
        Ok(())
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> io::Result<()> {
        Ok(())
    }

    fn deletes(&self) -> bool {
        true
    }
}

#[test]
fn names_that_stay_do_not_keep_a_walk_for_ever() {
    let scratch = tempfile::tempdir().unwrap();
    stdfs::create_dir_all(scratch.path().join("t/d")).unwrap();
    stdfs::write(scratch.path().join("t/file"), "x").unwrap();
    let parent = fs::open(scratch.path(), DIRECTORY, Mode::empty()).unwrap();
    let mut futile = Futile(0);
    walk(parent.as_fd(), c"t", &mut futile).unwrap();
    assert_eq!(futile.0, LISTINGS);
}

/// SEMANTICS X3
#[test]
fn a_file_that_cannot_be_deleted_is_an_error() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = scratch.path().join("t/a/file");
    stdfs::create_dir_all(scratch.path().join("t/a")).unwrap();
    stdfs::write(&file, "x").unwrap();
    let change = |how| {
        let chattr = std::process::Command::new("chattr").arg(how).arg(&file).output();
        chattr.is_ok_and(|output| output.status.success())
    };
    if !change("+i") {
        overstream_testkit::not_run("immutable", "no file in /var/tmp can be made immutable");
        return;
    }
    let removed = remove(&scratch.path().join("t"));
    assert!(change("-i"));
    assert_eq!(removed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    remove(&scratch.path().join("t")).unwrap();
}

#[test]
fn a_tree_of_directories_alone_is_seen_to_get_on() {
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("t");
    for number in 0..10 {
        stdfs::create_dir_all(top.join(format!("{number}/below"))).unwrap();
    }
    let told = std::cell::Cell::new(0);
    remove_slowly(&top, &|| told.set(told.get() + 1)).unwrap();
    assert!(!top.exists());
    assert!(told.get() >= 20, "told {} times", told.get());
}
