//! Files that are open while they are deleted, replaced, copied up, mapped and locked.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, unshare};
use overstream_testkit::{Mapping, Scratch};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};
use xattr::FileExt as _;

use super::both::{Differs, Log, alike, alike_in_every_mode};
use super::frame::{Data, as_root};
use super::pair::{Layers, Pair, Setup};
use super::sample::set_times;

/// More than is read directly however it is served.
const BIG: usize = 200 << 10;
const PAGE: usize = 4096;
const TEXT: &[u8] = b"0123456789 of the layer\n";

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o644);
    Ok(rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, mode)?.into())
}

fn by_fd(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn content(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; file.metadata()?.len().try_into().unwrap()];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.escape_ascii().to_string())
}

/// Where a file lies when it is opened.
const PLACES: [&str; 3] = ["lower", "upper", "new"];

fn place(layers: &Layers, place: &str, name: &str) {
    let dir = match place {
        "lower" => &layers.lowers[0],
        "upper" => &layers.upper,
        _ => return,
    };
    fs::write(dir.join(name), TEXT).unwrap();
}

/// How an open file loses its name.
const LOSSES: [&str; 3] = ["unlinked", "replaced", "unlinked-twice"];

fn lose(how: &str, path: &Path) {
    match how {
        "unlinked" => fs::remove_file(path).unwrap(),
        "replaced" => {
            let other = path.with_extension("other");
            fs::write(&other, "other").unwrap();
            fs::rename(&other, path).unwrap();
        }
        _ => {
            fs::hard_link(path, path.with_extension("link")).unwrap();
            fs::remove_file(path).unwrap();
            fs::remove_file(path.with_extension("link")).unwrap();
        }
    }
}

/// Does everything to an open file that needs no name.
fn use_open(file: &File, writable: bool, log: &mut Log) {
    let seen = |log: &mut Log, when: &str| {
        let meta = file.metadata().unwrap();
        log.note(when, (meta.nlink(), meta.len(), meta.mode(), meta.uid(), meta.mtime().min(1000)));
        log.end("content", content(file));
    };
    seen(log, "first");
    if writable {
        log.end("write", file.write_at(b"XXXX", 2));
        seen(log, "written");
        log.end("cut", file.set_len(7));
        log.end("lengthen", file.set_len(9));
        seen(log, "cut");
    }
    log.end("chmod", file.set_permissions(Permissions::from_mode(0o4711)));
    log.end("chown", fchown(file, Some(77), Some(78)));
    log.end("set an attribute", file.set_xattr("user.a", b"value"));
    log.end("read an attribute", file.get_xattr("user.a"));
    log.end("read none", file.get_xattr("user.b"));
    let names = file.list_xattr().map(|names| names.collect::<Vec<_>>());
    log.end("list attributes", names);
    let none = XattrFlags::REPLACE;
    log.end(
        "replace none",
        rustix::fs::fsetxattr(file, "user.c", b"", none).map_err(io::Error::from),
    );
    log.end("remove an attribute", file.remove_xattr("user.a"));
    let old = Timespec { tv_sec: 77, tv_nsec: 5 };
    let times = Timestamps { last_access: old, last_modification: old };
    log.end("set times", rustix::fs::futimens(file, &times));
    seen(log, "changed");
    log.end("sync", file.sync_all());
    log.end("sync data", file.sync_data());
    log.end("where it ends", rustix::fs::seek(file, SeekFrom::End(0)));
    for flags in [OFlags::RDONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::APPEND] {
        let again = open(&by_fd(file), flags);
        log.end(
            "open again",
            again.as_ref().map(drop).map_err(|error| io::Error::from(error.kind())),
        );
        let Ok(again) = again else { continue };
        if flags != OFlags::RDONLY {
            log.end("write again", (&again).write(b"again"));
            seen(log, "written again");
        }
    }
    let cut = open(&by_fd(file), OFlags::RDWR | OFlags::TRUNC);
    log.end("cut again", cut.map(drop));
    seen(log, "cut again");
}

/// A file that has lost its name is as usable as before, has no links, and is gone when it is closed.
#[test]
fn a_file_without_a_name_lives_on() {
    let cases = || {
        let all = PLACES.iter().flat_map(|place| LOSSES.iter().map(move |how| (place, how)));
        all.flat_map(|(place, how)| [true, false].map(|writable| (place, how, writable)))
    };
    let name = |(place, how, writable): (&&str, &&str, bool)| format!("{place}-{how}-{writable}");
    as_root(move || {
        alike_in_every_mode(
            Setup::default(),
            |layers| {
                for case in cases() {
                    place(layers, case.0, &name(case));
                    place(layers, "upper", &format!("{}.stand-in", name(case)));
                }
            },
            |root, log| {
                for case in cases() {
                    let (place, how, writable) = case;
                    let path = root.join(name(case));
                    let other = path.with_extension("stand-in");
                    let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
                    if *place == "new" {
                        fs::write(&path, TEXT).unwrap();
                    }
                    // A lower file that has no name and is not copied up yet the kernel cannot change at all.
                    let able = *place != "lower" || writable || !log.is_kernel;
                    let file = open(if able { &path } else { &other }, flags).unwrap();
                    lose(how, &path);
                    lose("unlinked", &other);
                    log.note("case", case);
                    use_open(&file, writable, log);
                    log.end("by name", fs::read_to_string(&path));
                    let relink = rustix::fs::linkat(
                        CWD,
                        by_fd(&file),
                        CWD,
                        path.with_extension("again"),
                        AtFlags::SYMLINK_FOLLOW,
                    );
                    log.end("link", relink);
                }
            },
        );
    });
}

/// Who may write to a file cuts it off also by opening it only to read.
#[test]
fn a_file_opened_to_read_is_truncated() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| PLACES.iter().for_each(|at| place(layers, at, at)),
            |root, log| {
                for at in PLACES {
                    let path = root.join(at);
                    if at == "new" {
                        fs::write(&path, TEXT).unwrap();
                    }
                    let cut = open(&path, OFlags::RDONLY | OFlags::TRUNC);
                    log.end(at, cut.and_then(|file| content(&file)));
                    log.end("length", fs::metadata(&path).map(|meta| meta.len()));
                }
            },
        );
    });
}

/// SEMANTICS W32
#[test]
fn a_running_program_is_not_written_to() {
    let fill = |layers: &Layers| {
        for (dir, name) in [(&layers.lowers[0], "lower"), (&layers.upper, "upper")] {
            fs::copy("/bin/sleep", dir.join(name)).unwrap();
        }
    };
    let act = |root: &Path, log: &mut Log| {
        for name in ["lower", "upper"] {
            let path = root.join(name);
            let mut program = std::process::Command::new(&path).arg("60").spawn().unwrap();
            let writing = [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC];
            for flags in writing {
                log.end(format!("{name} {flags:?}"), open(&path, flags).map(drop));
            }
            log.end("cut", nix::unistd::truncate(&path, 0));
            log.note("is whole", fs::metadata(&path).unwrap().len() > 0);
            log.end("cut open", open(&path, OFlags::RDONLY | OFlags::TRUNC).map(drop));
            let is_cut = fs::metadata(&path).unwrap().len() == 0;
            log.differs(is_cut, Differs { kernel: name == "lower", ours: false });
            program.kill().unwrap();
            program.wait().unwrap();
            log.end("overwrite", fs::write(&path, TEXT));
        }
    };
    as_root(move || alike_in_every_mode(Setup::default(), fill, act));
}

/// Who is in a directory that is deleted stays there, and finds nothing (*differs*: it has no links).
#[test]
fn a_directory_without_a_name_lives_on() {
    as_root(|| {
        let fill = |layers: &Layers| {
            for name in ["lower", "merged"] {
                fs::create_dir(layers.lowers[0].join(name)).unwrap();
                fs::write(layers.lowers[0].join(name).join("file"), "").unwrap();
            }
            fs::create_dir(layers.lowers[0].join("empty")).unwrap();
            for name in ["upper", "merged"] {
                fs::create_dir(layers.upper.join(name)).unwrap();
            }
        };
        let in_it = |path: &Path, kernel_links: u64, log: &mut Log| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            nix::unistd::chdir(path).unwrap();
            let dir = open(path, OFlags::RDONLY).unwrap();
            fs::remove_file(path.join("file")).ok();
            fs::remove_dir(path).unwrap();
            log.end("where", nix::unistd::getcwd());
            let links = Differs { kernel: kernel_links, ours: 0 };
            log.differs(dir.metadata().unwrap().nlink(), links);
            log.end("list", fs::read_dir(".").map(|entries| entries.count()));
            log.end("create", fs::write("new", ""));
            log.end("make", fs::create_dir("new"));
            log.end("look", fs::metadata("new").map(|_| ()));
            log.note("above", fs::metadata("..").unwrap().is_dir());
            let chmod = dir.set_permissions(Permissions::from_mode(0o711));
            if path.ends_with("empty") {
                let [kernel, ours] = [nix::libc::ENOTDIR, nix::libc::ENOENT].map(Some);
                let error = chmod.unwrap_err().raw_os_error();
                log.differs(error, Differs { kernel, ours });
                return;
            }
            log.end("chmod", chmod);
            log.end("chown", fchown(&dir, Some(7), Some(8)));
            log.end("set an attribute", dir.set_xattr("user.a", b"a"));
            log.end("sync", dir.sync_all());
            let meta = dir.metadata().unwrap();
            log.differs(meta.nlink(), links);
            log.note("now", (meta.mode(), meta.uid()));
        };
        alike(Setup::default(), fill, |root, log| {
            for (name, kernel_links) in [("empty", 2), ("lower", 1), ("merged", 1), ("upper", 0)] {
                let path = root.join(name);
                let in_it = || in_it(&path, kernel_links, log);
                thread::scope(|scope| scope.spawn(in_it).join().unwrap());
                log.end("by name", fs::metadata(root.join(name)).map(|_| ()));
                fs::create_dir(root.join(name)).unwrap();
                log.note("new", fs::read_dir(root.join(name)).unwrap().count());
            }
        });
    });
}

/// Who has a lower file open for reading reads what others write to it; the lower file itself stays as it is.
#[test]
fn who_reads_a_file_that_is_copied_up_sees_what_is_written() {
    let big = |byte| vec![byte; BIG];
    as_root(move || {
        alike_in_every_mode(
            Setup::default(),
            |layers| {
                fs::write(layers.lowers[0].join("small"), TEXT).unwrap();
                fs::write(layers.lowers[0].join("big"), big(b'l')).unwrap();
            },
            |root, log| {
                for (name, length) in [("small", TEXT.len()), ("big", BIG)] {
                    let path = root.join(name);
                    let reader = open(&path, OFlags::RDONLY).unwrap();
                    let checked = |log: &mut Log, when: &str, expected: &[u8]| {
                        let mut found = vec![0; 2 * BIG];
                        let read = reader.read_at(&mut found, 0).unwrap();
                        log.note(when, (read, found[..read] == *expected));
                        assert!(found[..read] == *expected, "{when}: {name}");
                        let fresh = fs::read(&path).unwrap();
                        assert!(fresh == *expected, "{when}: {name}, opened again");
                        assert_eq!(reader.metadata().unwrap().len(), expected.len() as u64);
                    };
                    let mut expected = fs::read(&path).unwrap();
                    checked(log, "before", &expected);
                    let writer = open(&path, OFlags::WRONLY).unwrap();
                    writer.write_all_at(b"XXXX", 3).unwrap();
                    expected[3..7].copy_from_slice(b"XXXX");
                    checked(log, "written", &expected);
                    writer.write_all_at(b"more", length as u64).unwrap();
                    expected.extend(b"more");
                    checked(log, "appended", &expected);
                    drop(writer);
                    checked(log, "closed", &expected);
                    nix::unistd::truncate(&path, 5).unwrap();
                    expected.truncate(5);
                    checked(log, "truncated", &expected);
                    fs::write(&path, "new").unwrap();
                    checked(log, "written anew", b"new");
                }
            },
        );
    });
}

/// A part of a page is written by who may not read the file, where the rest of the page is not in memory.
#[test]
fn who_only_writes_keeps_the_rest_of_the_page() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| ["lower", "upper"].iter().for_each(|name| place(layers, name, name)),
            |root, log| {
                for name in PLACES {
                    let path = root.join(name);
                    let flags = OFlags::WRONLY | OFlags::CREATE;
                    log.end("write", open(&path, flags).unwrap().write_at(b"XX", 5));
                    log.end("append", open(&path, flags | OFlags::APPEND).unwrap().write(b"end"));
                    log.end("beyond", open(&path, flags).unwrap().write_at(b"end", 9000));
                    log.note("content", fs::read(&path).unwrap());
                }
            },
        );
    });
}

/// All who map a file share it with each other and with those who read and write.
#[test]
fn shared_mappings_agree_with_reads_and_writes() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| {
                for (name, dir) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
                    fs::write(dir.join(name), vec![b'.'; 2 * PAGE]).unwrap();
                }
            },
            |root, log| {
                for name in ["lower", "upper"] {
                    let path = root.join(name);
                    let [one, two] = [(), ()].map(|()| open(&path, OFlags::RDWR).unwrap());
                    let reader = open(&path, OFlags::RDONLY).unwrap();
                    let mapping = Mapping::new(&one, 2 * PAGE, true).unwrap();
                    let other = Mapping::new(&two, 2 * PAGE, true).unwrap();
                    let read_only = Mapping::new(&reader, 2 * PAGE, false).unwrap();
                    let seen = |log: &mut Log, when: &str| {
                        let mut read = vec![0; 2 * PAGE];
                        reader.read_exact_at(&mut read, 0).unwrap();
                        let all = [&read, &mapping.read(), &other.read(), &read_only.read()]
                            .map(|all| all.iter().filter(|byte| **byte != b'.').count());
                        log.note(when, all);
                        assert_eq!(all, [all[0]; 4], "{name}: {when}");
                    };
                    mapping.write(10, b"mapped");
                    seen(log, "mapped");
                    two.write_all_at(b"written", PAGE as u64 - 3).unwrap();
                    seen(log, "written");
                    other.write(PAGE + 100, b"other");
                    log.end("sync", other.sync());
                    seen(log, "synced");
                    drop((one, two));
                    mapping.write(PAGE + 200, b"closed");
                    seen(log, "closed");
                    drop((mapping, other, read_only, reader));
                    let content = fs::read(&path).unwrap();
                    log.note("content", content.iter().filter(|byte| **byte != b'.').count());
                }
            },
        );
    });
}

/// Who mapped a lower file goes on seeing what is in it (*differs*: what was in it before the copy-up).
#[test]
fn a_mapping_from_before_the_copy_up_shows_what_is_written() {
    as_root(|| {
        for data in Data::ALL {
            let scratch = Scratch::new();
            let pair = Pair::new(&scratch, Setup { data, ..Setup::default() }, |layers| {
                fs::write(layers.lowers[0].join("file"), [b'.'; PAGE]).unwrap();
            });
            let path = pair.subject().join("file");
            let reader = open(&path, OFlags::RDONLY).unwrap();
            let mapping = Mapping::new(&reader, PAGE, false).unwrap();
            assert_eq!(mapping.read(), [b'.'; PAGE]);
            open(&path, OFlags::RDWR).unwrap().write_all_at(b"XXXX", 10).unwrap();
            assert_eq!(&mapping.read()[9..15], b".XXXX.", "{data:?}");
            let append = OFlags::WRONLY | OFlags::APPEND;
            open(&path, append).unwrap().write_all(b"more").unwrap();
            assert_eq!(fs::read(&path).unwrap().len(), PAGE + 4);
            fs::write(&path, [b'n'; PAGE]).unwrap();
            assert_eq!(mapping.read(), [b'n'; PAGE], "{data:?}");
        }
    });
}

/// Writing to a mapping changes the time of modification, which everybody sees.
#[test]
fn writing_to_a_mapping_changes_the_time() {
    as_root(|| {
        alike_in_every_mode(
            Setup { on_disk: true, ..Setup::default() },
            |layers| {
                for (name, dir) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
                    fs::write(dir.join(name), vec![b'.'; 2 * PAGE]).unwrap();
                }
            },
            |root, log| {
                for name in ["lower", "upper"] {
                    let path = root.join(name);
                    let is_new = || fs::metadata(&path).unwrap().mtime() > 1;
                    let file = open(&path, OFlags::RDWR).unwrap();
                    let mapping = Mapping::new(&file, 2 * PAGE, true).unwrap();
                    set_times(&path, (1, 1));
                    log.note("old", is_new());
                    mapping.write(10, b"first");
                    mapping.sync().unwrap();
                    log.note("synced", is_new());
                    set_times(&path, (1, 1));
                    drop(file);
                    log.note("old again", is_new());
                    mapping.write(PAGE, b"second");
                    mapping.sync().unwrap();
                    log.note("synced after the last close", is_new());
                    drop(mapping);
                    log.note("unmapped", is_new());
                }
            },
        );
    });
}

/// Everybody who appends finds the end of the file, also while others append.
#[test]
fn appended_lines_are_all_there() {
    const WRITERS: usize = 4;
    const LINES: usize = 100;
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| fs::write(layers.lowers[0].join("file"), "0 of the layer\n").unwrap(),
            |root, log| {
                let path = root.join("file");
                let append = OFlags::WRONLY | OFlags::APPEND;
                let [mut one, mut two] = [(), ()].map(|()| open(&path, append).unwrap());
                for _ in 0..3 {
                    one.write_all(b"1 by one\n").unwrap();
                    two.write_all(b"2 by two, longer\n").unwrap();
                }
                log.note("by turns", fs::read_to_string(&path).unwrap());
                thread::scope(|scope| {
                    for writer in 0..WRITERS {
                        let mut file = open(&path, append).unwrap();
                        scope.spawn(move || {
                            for line in 0..LINES {
                                let line = format!("{writer} {line} {}\n", "x".repeat(line));
                                file.write_all(line.as_bytes()).unwrap();
                            }
                        });
                    }
                });
                let all = fs::read_to_string(&path).unwrap();
                let mut lines: Vec<_> = all.lines().collect();
                assert_eq!(lines.len(), 7 + WRITERS * LINES);
                lines.sort_unstable();
                log.note("at once", &lines);
                // Which of them came first differs.
                fs::write(&path, lines.concat()).unwrap();
            },
        );
    });
}

/// Who has locked a lower file has locked the copy.
#[test]
fn locks_hold_across_the_copy_up() {
    use FlockOperation::{
        NonBlockingLockExclusive as Exclusive, NonBlockingLockShared as Shared, Unlock,
    };
    let range = |kind: i32| nix::libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: 0,
        l_start: 0,
        l_len: 10,
        l_pid: 0,
    };
    as_root(move || {
        alike_in_every_mode(
            Setup::default(),
            |layers| {
                for name in ["whole", "range", "mixed"] {
                    fs::write(layers.lowers[0].join(name), TEXT).unwrap();
                }
            },
            |root, log| {
                let path = root.join("whole");
                let reader = open(&path, OFlags::RDONLY).unwrap();
                log.end("shared", rustix::fs::flock(&reader, Shared));
                let writer = open(&path, OFlags::RDWR).unwrap();
                log.end("exclusive", rustix::fs::flock(&writer, Exclusive));
                writer.write_all_at(b"copied up", 0).unwrap();
                log.end("shared too", rustix::fs::flock(&writer, Shared));
                log.end("exclusive", rustix::fs::flock(&reader, Exclusive));
                log.end("unlock", rustix::fs::flock(&reader, Unlock));
                log.end("exclusive", rustix::fs::flock(&writer, Exclusive));
                let late = open(&path, OFlags::RDONLY).unwrap();
                log.end("late", rustix::fs::flock(&late, Shared));
                drop(writer);
                log.end("late", rustix::fs::flock(&late, Shared));

                let path = root.join("range");
                let reader = open(&path, OFlags::RDONLY).unwrap();
                let read_lock = range(nix::libc::F_RDLCK);
                log.end("read", fcntl(&reader, FcntlArg::F_OFD_SETLK(&read_lock)));
                let writer = open(&path, OFlags::RDWR).unwrap();
                let write_lock = range(nix::libc::F_WRLCK);
                log.end("write", fcntl(&writer, FcntlArg::F_OFD_SETLK(&write_lock)));
                let unlock = range(nix::libc::F_UNLCK);
                log.end("unlock", fcntl(&reader, FcntlArg::F_OFD_SETLK(&unlock)));
                log.end("write", fcntl(&writer, FcntlArg::F_OFD_SETLK(&write_lock)));
                log.end("read", fcntl(&reader, FcntlArg::F_OFD_SETLK(&read_lock)));

                let path = root.join("mixed");
                let reader = open(&path, OFlags::RDONLY).unwrap();
                log.end("process", rustix::fs::fcntl_lock(&reader, Shared));
                let writer = open(&path, OFlags::RDWR).unwrap();
                log.end("file", fcntl(&writer, FcntlArg::F_OFD_SETLK(&write_lock)));
            },
        );
    });
}

/// Room is reserved, freed and found.
#[test]
fn holes_are_made_and_found() {
    let data = |layers: &Layers| {
        for (name, dir) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
            fs::write(dir.join(name), vec![b'.'; 64 * PAGE]).unwrap();
        }
    };
    as_root(move || {
        for on_disk in [false, true] {
            alike_in_every_mode(Setup { on_disk, ..Setup::default() }, data, |root, log| {
                let writes_back = log.data == Data::WriteBack;
                for name in PLACES {
                    let path = root.join(name);
                    let file = open(&path, OFlags::RDWR | OFlags::CREATE).unwrap();
                    let page = PAGE as u64;
                    let mut allocate = |mode, at, length| {
                        let end = rustix::fs::fallocate(&file, mode, at * page, length * page);
                        log.end(format!("{mode:?}"), end);
                        log.note("size", file.metadata().unwrap().len());
                        let find = |to| rustix::fs::seek(&file, to).map_err(io::Error::from);
                        // What is kept back is no hole, so none is found.
                        if writes_back {
                            return;
                        }
                        log.end("hole", find(SeekFrom::Hole(0)));
                        log.end("second hole", find(SeekFrom::Hole(20 * page)));
                        log.end("data", find(SeekFrom::Data(page + 10)));
                        log.end("late data", find(SeekFrom::Data(300 * page)));
                    };
                    let keep = FallocateFlags::KEEP_SIZE;
                    allocate(FallocateFlags::empty(), 0, 64);
                    file.write_all_at(&[b'.'; 64 * PAGE], 0).unwrap();
                    file.sync_all().unwrap();
                    allocate(FallocateFlags::PUNCH_HOLE | keep, 1, 2);
                    allocate(FallocateFlags::PUNCH_HOLE | keep, 62, 10);
                    allocate(FallocateFlags::empty(), 60, 100);
                    allocate(keep, 160, 100);
                    allocate(FallocateFlags::PUNCH_HOLE, 1, 2);
                    file.write_all_at(b"data", 2 * page).unwrap();
                    file.sync_all().unwrap();
                    allocate(FallocateFlags::PUNCH_HOLE | keep, 30, 1);
                    let reader = open(&path, OFlags::RDONLY).unwrap();
                    let end = rustix::fs::fallocate(&reader, keep, 0, 1);
                    log.end("without the right", end);
                    log.note(
                        "content",
                        fs::read(&path).unwrap().iter().map(|b| usize::from(*b)).sum::<usize>(),
                    );
                }
            });
        }
    });
}

/// What was just written is data, whether it has reached the server or not.
#[test]
fn data_that_are_written_are_found() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| place(layers, "lower", "lower"),
            |root, log| {
                for name in ["lower", "new"] {
                    let path = root.join(name);
                    let file = open(&path, OFlags::RDWR | OFlags::CREATE).unwrap();
                    file.set_len(1 << 20).unwrap();
                    file.write_all_at(b"data", 100 * PAGE as u64).unwrap();
                    let from = 50 * PAGE as u64;
                    let found = rustix::fs::seek(&file, SeekFrom::Data(from)).unwrap();
                    let writes_back = log.data == Data::WriteBack && !log.is_kernel;
                    assert_eq!(found, if writes_back { from } else { 100 * PAGE as u64 });
                }
            },
        );
    });
}

/// A range is copied from whatever layer, and everybody sees it.
#[test]
fn ranges_are_copied() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| {
                ["lower", "upper"].iter().for_each(|name| place(layers, name, name));
                fs::write(layers.lowers[0].join("big"), vec![b'l'; BIG]).unwrap();
            },
            |root, log| {
                for from in ["lower", "upper", "big"] {
                    for to in PLACES {
                        let [from, to] = [root.join(from), root.join(to)];
                        if from == to {
                            continue;
                        }
                        // In memory, so that what is in memory must not stay.
                        let old = fs::read(&to).ok();
                        let source = open(&from, OFlags::RDONLY).unwrap();
                        let target = open(&to, OFlags::RDWR | OFlags::CREATE).unwrap();
                        let (mut read_at, mut write_at) = (3, 5);
                        let end = rustix::fs::copy_file_range(
                            &source,
                            Some(&mut read_at),
                            &target,
                            Some(&mut write_at),
                            BIG,
                        );
                        log.end("copy", end);
                        log.note("at", (read_at, write_at));
                        let length = |file: &File| file.metadata().unwrap().len();
                        log.note("length", (length(&source), length(&target)));
                        let new = content(&target).unwrap();
                        log.note("changed", (old.map(|old| old.len()), new.len()));
                        log.note("content", &new[..60.min(new.len())]);
                        let opened_again = fs::read(&to).unwrap();
                        assert_eq!(opened_again.escape_ascii().to_string(), new);
                    }
                }
            },
        );
    });
}

/// Data that go past the page cache and data that go through it are the same.
#[test]
fn direct_io_agrees_with_the_page_cache() {
    as_root(|| {
        alike_in_every_mode(
            Setup { on_disk: true, ..Setup::default() },
            |layers| {
                for (name, dir) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
                    fs::write(dir.join(name), vec![b'.'; 64 * PAGE]).unwrap();
                }
            },
            |root, log| {
                let mut room = vec![0; 3 * PAGE];
                let start = room.as_ptr().align_offset(PAGE);
                let aligned = &mut room[start..start + PAGE];
                for name in PLACES {
                    let path = root.join(name);
                    let create = OFlags::RDWR | OFlags::CREATE;
                    let cached = open(&path, create).unwrap();
                    let direct = open(&path, create | OFlags::DIRECT).unwrap();
                    cached.write_all_at(&[b'c'; 2 * PAGE], 0).unwrap();
                    log.end("read", direct.read_at(aligned, PAGE as u64));
                    log.note("read", aligned.iter().all(|byte| *byte == b'c'));
                    aligned.fill(b'd');
                    log.end("write", direct.write_at(aligned, 0));
                    let mut read = [0; 2 * PAGE];
                    cached.read_exact_at(&mut read, 0).unwrap();
                    log.note("count", read.iter().filter(|byte| **byte == b'd').count());
                    log.end("append", direct.write_at(aligned, 64 * PAGE as u64));
                    log.note("length", cached.metadata().unwrap().len());
                    drop(direct);
                    let direct = open(&path, OFlags::RDONLY | OFlags::DIRECT).unwrap();
                    log.end("read", direct.read_at(aligned, 64 * PAGE as u64));
                    log.note("read", aligned.iter().all(|byte| *byte == b'd'));
                }
            },
        );
    });
}

/// A handle of a name that moves is of the file, not of the name.
#[test]
fn handles_follow_renames() {
    as_root(|| {
        alike(
            Setup::default(),
            |layers| {
                fs::create_dir(layers.lowers[0].join("dir")).unwrap();
                fs::write(layers.lowers[0].join("dir/lower"), TEXT).unwrap();
                fs::write(layers.lowers[0].join("lower"), TEXT).unwrap();
                fs::create_dir(layers.upper.join("upper-dir")).unwrap();
                fs::write(layers.upper.join("upper-dir/file"), TEXT).unwrap();
            },
            |root, log| {
                let file = open(&root.join("lower"), OFlags::RDONLY).unwrap();
                let path_only = open(&root.join("dir/lower"), OFlags::PATH).unwrap();
                let inner = open(&root.join("upper-dir/file"), OFlags::RDWR).unwrap();
                let dir = open(&root.join("upper-dir"), OFlags::RDONLY).unwrap();
                fs::rename(root.join("lower"), root.join("dir/moved")).unwrap();
                fs::rename(root.join("dir/lower"), root.join("lower")).unwrap();
                fs::rename(root.join("upper-dir"), root.join("dir/upper-dir")).unwrap();
                fs::create_dir(root.join("upper-dir")).unwrap();
                file.set_permissions(Permissions::from_mode(0o600)).unwrap();
                log.note("path", fs::read_link(by_fd(&file)).unwrap().file_name());
                let mode = |name: &str| fs::metadata(root.join(name)).unwrap().mode();
                log.note("modes", ["dir/moved", "lower"].map(mode));
                fs::write(by_fd(&path_only), "by handle").unwrap();
                log.note("lower", fs::read_to_string(root.join("lower")).unwrap());
                inner.write_all_at(b"inner", 0).unwrap();
                let made = rustix::fs::mkdirat(&dir, "made", Mode::from_raw_mode(0o755));
                log.end("make", made);
                log.note("moved", fs::metadata(root.join("dir/upper-dir/made")).is_ok());
                log.note("inner", fs::read_to_string(root.join("dir/upper-dir/file")).unwrap());
            },
        );
    });
}

/// A file that never had a name is refused (*differs*: supported).
#[test]
fn files_that_never_had_a_name_are_not_supported() {
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |_| ());
        let error = open(pair.subject(), OFlags::TMPFILE | OFlags::RDWR).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EOPNOTSUPP));
    });
}
