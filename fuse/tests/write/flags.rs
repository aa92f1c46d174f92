//! Flags of files (`chattr`): read, set, and honoured.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use overstream_testkit::Scratch;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, IFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    UTIME_NOW, fallocate, ioctl_getflags, ioctl_setflags, renameat_with, utimensat,
};

use super::both::{Log, alike};
use super::frame::{Data, Place, as_root, kernel, subject};
use super::pair::{Layers, Setup};
use overstream_fuse::Format;

const FLAGS: [(&str, IFlags); 4] = [
    ("none", IFlags::empty()),
    ("immutable", IFlags::IMMUTABLE),
    ("append", IFlags::APPEND),
    ("both", IFlags::IMMUTABLE.union(IFlags::APPEND)),
];

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

fn flags(path: &Path) -> io::Result<IFlags> {
    Ok(ioctl_getflags(open(path, OFlags::RDONLY)?)?)
}

fn set_flags(path: &Path, flags: IFlags) -> io::Result<()> {
    Ok(ioctl_setflags(open(path, OFlags::RDONLY)?, flags)?)
}

fn append(path: &Path) -> io::Result<()> {
    open(path, OFlags::WRONLY | OFlags::APPEND)?.write_all(b" and more")
}

/// Tries everything that may be forbidden, in an order in which what succeeds does not spoil what follows.
fn use_file(path: &Path, log: &mut Log) {
    let what = |what: &str| format!("{what} {}", path.file_name().unwrap().display());
    log.end(what("read"), fs::read(path));
    log.end(what("open"), open(path, OFlags::WRONLY).map(drop));
    log.end(what("append"), append(path));
    log.end(what("truncate"), open(path, OFlags::WRONLY | OFlags::TRUNC).map(drop));
    log.end(what("cut"), nix::unistd::truncate(path, 3));
    log.end(what("chmod"), fs::set_permissions(path, Permissions::from_mode(0o600)));
    log.end(what("chown"), std::os::unix::fs::chown(path, Some(7), None));
    log.end(what("set an attribute"), xattr::set(path, "user.a", b"b"));
    log.end(what("remove an attribute"), xattr::remove(path, "user.a"));
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let now = Timestamps { last_access: now, last_modification: now };
    log.end(what("touch"), utimensat(CWD, path, &now, AtFlags::empty()));
    let past = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    log.end(what("set times"), open(path, OFlags::RDONLY).and_then(|file| file.set_times(past)));
    let file = open(path, OFlags::WRONLY | OFlags::APPEND);
    if let Ok(file) = &file {
        for mode in
            [FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE)]
        {
            log.end(what("allocate"), fallocate(file, mode, 0, 10));
        }
        log.end(what("cut what is open"), file.set_len(2));
    }
    log.note(what("flags"), flags(path).ok());
}

fn lose_file(path: &Path, log: &mut Log) {
    let what = |what: &str| format!("{what} {}", path.file_name().unwrap().display());
    let (one, other) = (path.with_extension("one"), path.with_extension("other"));
    log.end(what("link"), fs::hard_link(path, &one));
    log.end(what("rename"), fs::rename(path, &other));
    log.end(what("rename back"), fs::rename(&other, path));
    fs::write(&other, "other").unwrap();
    log.end(what("exchange"), renameat_with(CWD, path, CWD, &other, RenameFlags::EXCHANGE));
    log.end(what("replace"), fs::rename(&other, path));
    log.end(what("unlink"), fs::remove_file(path));
}

fn use_dir(path: &Path, log: &mut Log) {
    let what = |what: &str| format!("{what} in {}", path.file_name().unwrap().display());
    log.end(what("append"), append(&path.join("file")));
    log.end(what("create"), File::create_new(path.join("new")).map(drop));
    log.end(what("mkdir"), fs::create_dir(path.join("new-dir")));
    log.end(what("symlink"), symlink("x", path.join("new-link")));
    log.end(what("link"), fs::hard_link(path.join("file"), path.join("linked")));
    log.end(what("rename"), fs::rename(path.join("file"), path.join("moved")));
    log.end(what("unlink"), fs::remove_file(path.join("gone")));
    log.end(what("rmdir"), fs::remove_dir(path.join("empty")));
    log.end(what("chmod"), fs::set_permissions(path, Permissions::from_mode(0o711)));
    log.note(what("flags"), flags(path).ok());
}

fn make_dir(path: &Path) {
    fs::create_dir_all(path.join("empty")).unwrap();
    fs::write(path.join("file"), "text").unwrap();
    fs::write(path.join("gone"), "text").unwrap();
}

/// SEMANTICS W43: flags that a lower file has.
#[test]
fn protected_lower_files_are_protected_as_in_the_kernel() {
    as_root(|| {
        let fill = |layers: &Layers| {
            let lower = &layers.lowers[0];
            for (name, flags) in FLAGS {
                fs::write(lower.join(name), "text").unwrap();
                set_flags(&lower.join(name), flags).unwrap();
                make_dir(&lower.join(format!("{name}-dir")));
                set_flags(&lower.join(format!("{name}-dir")), flags).unwrap();
            }
        };
        alike(Setup::default(), fill, |root, log| {
            for (name, _) in FLAGS {
                let (file, dir) = (root.join(name), root.join(format!("{name}-dir")));
                use_dir(&dir, log);
                log.end("rename a directory", fs::rename(&dir, root.join("moved-dir")));
                use_file(&file, log);
                lose_file(&file, log);
            }
        });
    });
}

/// SEMANTICS W43: flags that a file gets in the view, and loses there.
#[test]
fn flags_are_set_as_in_the_kernel() {
    const MORE: [(&str, IFlags); 2] = [("noatime", IFlags::NOATIME), ("nodump", IFlags::NODUMP)];
    let names = || FLAGS.into_iter().chain(MORE);
    as_root(move || {
        for data in [Data::Passthrough, Data::Through] {
            let fill = |layers: &Layers| {
                for (layer, at) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
                    for (name, _) in names() {
                        fs::write(at.join(format!("{layer}-{name}")), vec![b'x'; 200 << 10])
                            .unwrap();
                        make_dir(&at.join(format!("{layer}-{name}-dir")));
                    }
                }
            };
            alike(Setup { data, ..Setup::default() }, fill, |root, log| {
                for (name, set) in names() {
                    for layer in ["lower", "upper", "new"] {
                        let file = root.join(format!("{layer}-{name}"));
                        let dir = root.join(format!("{layer}-{name}-dir"));
                        if layer == "new" {
                            fs::write(&file, "text").unwrap();
                            make_dir(&dir);
                        }
                        for path in [&file, &dir] {
                            log.end("set", set_flags(path, set));
                            log.note("are", flags(path).ok());
                        }
                        use_dir(&dir, log);
                        log.end("rmdir", fs::remove_dir(&dir));
                        use_file(&file, log);
                        lose_file(&file, log);
                        if file.exists() {
                            log.end("clear", set_flags(&file, IFlags::empty()));
                            use_file(&file, log);
                            log.end("set again", set_flags(&file, set));
                        }
                    }
                }
            });
        }
    });
}

/// SEMANTICS W43: peers append to an immutable lower file and delete it, and cannot set the flag.
#[test]
fn an_immutable_file_stays_so_in_the_next_mount() {
    as_root(|| {
        let scratch = Scratch::new();
        let (lower, upper, work) =
            (scratch.dir("lower"), scratch.dir("upper"), scratch.dir("work"));
        fs::write(lower.join("file"), "text").unwrap();
        let place = Place {
            lowers: vec![lower],
            upper,
            work,
            format: Format::Trusted,
            data: Data::default(),
            index: true,
        };
        let target = scratch.path().join("view");
        let view = subject(&place, &target);
        set_flags(&view.path().join("file"), IFlags::IMMUTABLE).unwrap();
        view.unmount();
        for mount in [kernel, subject] {
            let view = mount(&place, &target);
            let file = view.path().join("file");
            assert!(flags(&file).unwrap().contains(IFlags::IMMUTABLE));
            let refused = Some(libc::EPERM);
            assert_eq!(append(&file).unwrap_err().raw_os_error(), refused);
            assert_eq!(fs::remove_file(&file).unwrap_err().raw_os_error(), refused);
            view.unmount();
        }
        let view = subject(&place, &target);
        set_flags(&view.path().join("file"), IFlags::empty()).unwrap();
        append(&view.path().join("file")).unwrap();
        assert_eq!(xattr::get(place.upper.join("file"), "trusted.overlay.protattr").unwrap(), None);
    });
}
