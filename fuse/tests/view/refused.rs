//! What the view does not do: change, and look through itself.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use overstream_fuse::Format;
use overstream_fuse::layer::{Refused, open_layers};

use super::frame::{Layers, with_scratch};

/// Everything that would change the view.
fn changes(root: &Path) -> Vec<(&'static str, io::Result<()>)> {
    let (file, dir, new) = (root.join("file"), root.join("dir"), root.join("new"));
    let write = |options: &mut OpenOptions| options.open(&file).map(drop);
    vec![
        ("create", fs::write(&new, "")),
        ("open to write", write(OpenOptions::new().write(true))),
        ("open to append", write(OpenOptions::new().append(true))),
        ("truncate", write(OpenOptions::new().write(true).truncate(true))),
        ("mkdir", fs::create_dir(&new)),
        ("symlink", symlink("x", &new)),
        ("link", fs::hard_link(&file, &new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(&dir)),
        ("rename", fs::rename(&file, &new)),
        ("chown", chown(&file, Some(1), Some(1))),
        ("chmod", fs::set_permissions(&file, fs::metadata(&dir).unwrap().permissions())),
        ("setxattr", xattr::set(&file, "user.a", b"")),
        ("removexattr", xattr::remove(&file, "user.b")),
    ]
}

/// SEMANTICS O14
#[test]
fn every_change_is_refused_also_after_a_remount() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "ro", 1);
        fs::write(layers.dir(0).join("file"), "as it was").unwrap();
        fs::create_dir(layers.dir(0).join("dir")).unwrap();
        let served = layers.served(Format::Trusted);
        for remounted in [false, true] {
            if remounted {
                let none: Option<&str> = None;
                nix::mount::mount(none, served.path(), none, MsFlags::MS_REMOUNT, none).unwrap();
            }
            for (what, result) in changes(served.path()) {
                let errno = result.map_err(|error| error.raw_os_error());
                assert_eq!(errno, Err(Some(Errno::EROFS as i32)), "{what}, remounted: {remounted}");
            }
        }
        assert_eq!(fs::read(served.path().join("file")).unwrap(), b"as it was");
    });
}

/// SEMANTICS O11
#[test]
fn layers_that_overlap_are_refused() {
    with_scratch(|scratch| {
        let (one, two) = (scratch.dir("one"), scratch.dir("two"));
        let (inner, target) = (scratch.dir("one/inner"), scratch.dir("two/target"));
        let refused = |lowers: &[&PathBuf], target: &Path| {
            let lowers: Vec<_> = lowers.iter().map(|lower| (*lower).clone()).collect();
            open_layers(&lowers, None, target).map(drop).unwrap_err()
        };
        let away = Path::new("/nowhere");
        symlink(&one, scratch.join("alias")).unwrap();
        let alias = scratch.join("alias");
        for pair in [[&one, &one], [&one, &inner], [&inner, &one], [&one, &alias]] {
            assert!(matches!(refused(&pair, away), Refused::Overlap(..)), "{pair:?}");
        }
        assert!(matches!(refused(&[&one, &two], &target), Refused::Nested(..)));
        assert!(matches!(refused(&[&target], &two), Refused::Nested(..)));
        assert!(matches!(refused(&[&two], &two), Refused::Nested(..)));
        assert!(matches!(refused(&[], away), Refused::None));
        assert!(matches!(refused(&[&one; 501], away), Refused::TooMany(501)));
        assert!(matches!(refused(&[&scratch.join("none")], away), Refused::Open { .. }));
        assert!(matches!(refused(&[&scratch.write("file", "")], away), Refused::Open { .. }));
    });
}
