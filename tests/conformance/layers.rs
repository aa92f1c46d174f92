//! What chains of layers show.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use overstream_testkit::Tree;

use super::frame::{Step, check, dir, exists, file, give, remove};

/// Waits for the beginning of a second, so that what follows falls into one.
fn next_second() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    sleep(Duration::from_nanos(u64::from(1_000_000_000 - since.subsec_nanos())));
}

#[test]
fn layer_file_update() {
    check(|suite| {
        let first = |root: &Path| {
            dir(root, "etc", 0o700);
            file(root, "etc/hosts", "mydomain 10.0.0.1", 0o644);
            file(root, "etc/profile", "PATH=/usr/bin", 0o644);
        };
        let second = |root: &Path| {
            file(root, "etc/hosts", "mydomain 10.0.0.2", 0o644);
            file(root, "etc/profile", "PATH=/usr/bin", 0o666);
            dir(root, "root", 0o700);
            file(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644);
        };
        for _ in 0..5 {
            next_second();
            suite.chain(&[&first, &second]);
        }
    });
}

#[test]
fn remove_directory_in_lower_layer() {
    check(|suite| {
        let steps: [Step<'_>; 3] = [
            &|root| {
                dir(root, "lib", 0o700);
                file(root, "lib/hidden", "", 0o644);
            },
            &|root| {
                remove(root, "lib");
                dir(root, "lib", 0o700);
                file(root, "lib/not-hidden", "", 0o644);
            },
            &|root| file(root, "lib/newfile", "", 0o644),
        ];
        let top = suite.chain(&steps);
        let mounted = suite.mount(&suite.view("last", &top));
        assert!(!exists(&mounted.join("lib/hidden")), "a hidden file came back");
        assert!(exists(&mounted.join("lib/not-hidden")));
        mounted.unmount();
    });
}

#[test]
fn chown() {
    const ALL: [&str; 4] = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"];
    check(|suite| {
        let steps: [Step<'_>; 2] = [
            &|root| {
                ALL[..3].iter().for_each(|name| dir(root, name, 0o700));
                file(root, ALL[3], "hello", 0o644);
            },
            &|root| give(root, &ALL, 1),
        ];
        suite.chain(&steps);
    });
}

#[test]
fn directory_permission_on_commit() {
    check(|suite| {
        let steps: [Step<'_>; 3] = [
            &|root| {
                for name in ["dir1", "dir2", "dir3", "dir4", "dir5"] {
                    dir(root, name, 0o700);
                }
                file(root, "dir4/f1", "", 0o644);
                file(root, "dir5/f1", "", 0o644);
                give(root, &["dir1", "dir2", "dir3", "dir5", "dir5/f1"], 1);
            },
            &|root| {
                give(root, &["dir2"], 0);
                remove(root, "dir3");
                give(root, &["dir4", "dir4/f1"], 1);
            },
            &|root| {
                dir(root, "dir3", 0o700);
                give(root, &["dir3"], 1);
                remove(root, "dir5");
                dir(root, "dir5", 0o700);
                give(root, &["dir5"], 1);
            },
        ];
        suite.chain(&steps);
    });
}

#[test]
fn deleted_files_in_child_snapshot() {
    check(|suite| {
        let steps: [Step<'_>; 3] = [
            &|root| {
                file(root, "foo", "foo\n", 0o777);
                file(root, "foobar", "foobar\n", 0o777);
            },
            &|root| remove(root, "foobar"),
            &|_| {},
        ];
        suite.chain(&steps);
    });
}

#[test]
fn move_file_from_lower_layer() {
    check(|suite| {
        let steps: [Step<'_>; 2] = [
            &|root| {
                dir(root, "dir1", 0o700);
                file(root, "dir1/f1", "Hello", 0o644);
                dir(root, "dir2", 0o700);
                file(root, "dir2/f2", "..", 0o644);
            },
            &|root| {
                dir(root, "dir3", 0o700);
                file(root, "dir3/f1", "Hello", 0o644);
                remove(root, "dir1");
                fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
                remove(root, "dir2/f2");
            },
        ];
        suite.chain(&steps);
    });
}

/// Renaming a directory of a lower layer is left out, as upstream leaves it out for overlayfs: kernel
/// overlay mounts without `redirect_dir` answer EXDEV.
#[test]
fn rename() {
    check(|suite| {
        let first: Step<'_> = &|root| {
            dir(root, "dir1", 0o700);
            dir(root, "somefiles", 0o700);
            file(root, "somefiles/f1", "was here first!", 0o644);
            file(root, "somefiles/f2", "nothing interesting", 0o644);
        };
        let second: Step<'_> = &|root| {
            file(root, "somefiles/f1-overwrite", "new content 1", 0o644);
            fs::rename(root.join("somefiles/f1-overwrite"), root.join("somefiles/f1")).unwrap();
            fs::rename(root.join("somefiles/f2"), root.join("somefiles/f3")).unwrap();
        };
        let top = suite.chain(&[first, second]);
        let mounted = suite.mount(&suite.prepare("directory", &top));
        let error = fs::rename(mounted.join("dir1"), mounted.join("dir2")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EXDEV as i32), "{error}");
        mounted.unmount();
    });
}

fn layer_of_128(number: usize, root: &Path) {
    if number == 0 {
        file(root, "bottom", "way at the bottom\n", 0o777);
        file(root, "overwriteme", "FIRST!\n", 0o777);
        dir(root, "addhere", 0o755);
        dir(root, "onlyme", 0o755);
        file(root, "onlyme/bottom", "bye!\n", 0o777);
        return;
    }
    file(root, "overwriteme", &format!("{number} WAS HERE!\n"), 0o777);
    file(root, &format!("addhere/file-{number}"), "same\n", 0o755);
    remove(root, "onlyme");
    dir(root, "onlyme", 0o755);
    file(root, &format!("onlyme/file-{number}"), "only me!\n", 0o777);
}

/// SEMANTICS M3
#[test]
fn layers_128_mount() {
    check(|suite| {
        let flat = suite.scratch.dir("flat");
        let mut top = String::new();
        for number in 0..128 {
            let (key, name) = (format!("active-{number}"), format!("layer-{number}"));
            let mounted = suite.mount(&suite.prepare(&key, &top));
            let before = format!("layer {number} before");
            Tree::read(&flat).assert_same(&Tree::read(mounted.path()), &before);
            layer_of_128(number, mounted.path());
            layer_of_128(number, &flat);
            let after = format!("layer {number} after");
            Tree::read(&flat).assert_same(&Tree::read(mounted.path()), &after);
            mounted.unmount();
            suite.commit(&name, &key);
            top = name;
        }
        suite.shows(&suite.view("all", &top), &flat, "a view of all");
    });
}
