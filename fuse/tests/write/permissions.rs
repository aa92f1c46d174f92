//! Who may do what, whose new files are, and what writing takes away.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use overstream_testkit::Mapping;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode};

use super::both::{Log, alike, alike_in_every_mode};
use super::frame::{Data, as_root};
use super::pair::{Layers, Setup};
use super::sample::{ACL, CAPABILITY, DEFAULT_ACL, acl, capability};
use super::user::User;

const OWNER: User = User::new(1000);
const STRANGER: User = User::new(1002);
/// The group of the files, in which their owner is not.
const GROUP: u32 = 3000;
const MEMBER: User = User { gid: GROUP, ..User::new(1001) };
/// One who is in the group besides its own one.
const ALSO_MEMBER: User = User { groups: &[GROUP], ..User::new(1003) };
const ROOT: User = User::new(0);

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode()
}

/// Something that somebody does to a path.
type Act = fn(&Path) -> io::Result<()>;

fn for_writing(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

const WRITES: [(&str, Act); 13] = [
    ("append", |path| OpenOptions::new().append(true).open(path)?.write_all(b"more")),
    ("write", |path| for_writing(path)?.write_all_at(b"new", 2)),
    ("write-only", |path| OpenOptions::new().write(true).open(path)?.write_all_at(b"new", 2)),
    ("write-twice", |path| {
        let file = for_writing(path)?;
        file.write_all_at(b"new", 2)?;
        file.write_all_at(b"new", 3)
    }),
    ("cut", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 3)?)),
    ("ftruncate", |path| for_writing(path)?.set_len(30)),
    ("fallocate", |path| {
        Ok(rustix::fs::fallocate(for_writing(path)?, FallocateFlags::empty(), 0, 99)?)
    }),
    ("copy", |path| {
        let file = for_writing(path)?;
        let (mut from, mut to) = (0, 8);
        rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 4)?;
        Ok(())
    }),
    ("mapping", |path| {
        let mapping = Mapping::new(for_writing(path)?, 4096, true)?;
        mapping.write(1, b"mapped");
        mapping.sync()
    }),
    ("open", |path| for_writing(path).map(drop)),
    ("touch", |path| for_writing(path)?.set_modified(SystemTime::now())),
    // Only its owner may do this, and root.
    ("chgrp", |path| chown(path, None, Some(fs::metadata("/proc/thread-self")?.gid()))),
];

/// Mode, and whether the file has a capability.
const PRIVILEGES: [(u32, bool); 7] = [
    (0o6777, false),
    (0o4777, false),
    (0o2777, false),
    (0o2767, false),
    (0o6767, false),
    (0o777, true),
    (0o6777, true),
];

/// A write that is to take privileges away.
#[derive(Clone, Copy, Debug)]
struct Written {
    place: &'static str,
    user: User,
    mode: u32,
    capable: bool,
    write: (&'static str, Act),
}

impl Written {
    fn all() -> impl Iterator<Item = Self> {
        let users = [ROOT, OWNER, MEMBER, ALSO_MEMBER, STRANGER];
        let places = ["lower", "upper"].into_iter();
        let users = places.flat_map(move |place| users.map(|user| (place, user)));
        let modes = users.flat_map(|(place, user)| PRIVILEGES.map(|mode| (place, user, mode)));
        modes.flat_map(|(place, user, (mode, capable))| {
            WRITES.map(|write| Self { place, user, mode, capable, write })
        })
    }

    fn name(&self) -> String {
        let Self { place, user, mode, capable, write } = self;
        format!("{place}-{}-{mode:o}-{capable}-{}", user.uid, write.0)
    }

    fn make(&self, layers: &Layers) {
        let layer = if self.place == "lower" { &layers.lowers[0] } else { &layers.upper };
        let path = layer.join(self.name());
        fs::write(&path, "what is there at first").unwrap();
        chown(&path, Some(OWNER.uid), Some(GROUP)).unwrap();
        set_mode(&path, self.mode);
        if self.capable {
            xattr::set(&path, CAPABILITY, &capability()).unwrap();
        }
    }

    fn run(&self, root: &Path, log: &mut Log) {
        let path = root.join(self.name());
        log.end(self.name(), self.user.run(|| (self.write.1)(&path)));
        if self.write.0 == "mapping" && log.data != Data::Passthrough {
            // What is written to a mapping comes as any other write, so this has gone (*differs*: stays).
            xattr::remove(&path, CAPABILITY).ok();
        }
        let capability = xattr::get(&path, CAPABILITY).unwrap().is_some();
        log.note("then", (format!("{:o}", mode_of(&path)), capability));
    }
}

/// Setuid, setgid and capabilities go when somebody writes who may not keep them, however that is done.
#[test]
fn writing_takes_privileges_away() {
    as_root(|| {
        alike_in_every_mode(
            Setup::default(),
            |layers| Written::all().for_each(|case| case.make(layers)),
            |root, log| Written::all().for_each(|case| case.run(root, log)),
        );
    });
}

/// A kind of directory that something is made in.
const DIRECTORIES: [(&str, u32, bool); 4] = [
    ("plain", 0o777, false),
    ("setgid", 0o2777, false),
    ("acl", 0o777, true),
    ("acl-setgid", 0o3777, true),
];

fn create(path: &Path, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode).open(path)?.write_all(b"new")
}

fn node(path: &Path, kind: FileType, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), 0)?)
}

const MAKES: [(&str, Act); 8] = [
    ("file", |path| create(path, 0o666)),
    ("nobodys-file", |path| create(path, 0)),
    ("setgid-file", |path| create(path, 0o6775)),
    ("directory", |path| Ok(rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o777))?)),
    ("private-directory", |path| Ok(rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o1700))?)),
    ("fifo", |path| node(path, FileType::Fifo, 0o666)),
    ("node", |path| node(path, FileType::RegularFile, 0o2777)),
    ("symlink", |path| symlink("to", path)),
];

/// Something new, whose owner, group, mode and access control list depend on who makes it where.
struct Made {
    layer: &'static str,
    dir: (&'static str, u32, bool),
    /// A whiteout is there.
    deleted: bool,
    user: User,
    make: (&'static str, Act),
}

impl Made {
    fn all() -> impl Iterator<Item = Self> {
        let users = [ROOT, OWNER, MEMBER, ALSO_MEMBER, STRANGER];
        let masks = [0, 0o022, 0o077];
        let users =
            users.into_iter().flat_map(move |user| masks.map(|umask| User { umask, ..user }));
        let users: Vec<_> = users.collect();
        let dirs = ["lower", "merged", "upper"].into_iter();
        let dirs = dirs.flat_map(|layer| DIRECTORIES.map(|dir| (layer, dir)));
        let places = dirs.flat_map(|(layer, dir)| [true, false].map(|gone| (layer, dir, gone)));
        let places = places.filter(|(layer, _, deleted)| !deleted || *layer == "merged");
        places.flat_map(move |(layer, dir, deleted)| {
            let users = users.clone().into_iter();
            users.flat_map(move |user| MAKES.map(|make| Self { layer, dir, deleted, user, make }))
        })
    }

    fn path(&self, root: &Path) -> PathBuf {
        let Self { layer, dir, deleted, user, make } = self;
        let dir = root.join(format!("{layer}-{}", dir.0));
        dir.join(format!("{}-{:o}-{deleted}-{}", user.uid, user.umask, make.0))
    }

    fn make_dirs(&self, layers: &Layers) {
        let [lower, upper] = [&layers.lowers[0], &layers.upper].map(|layer| self.path(layer));
        let made: &[_] = match self.layer {
            "lower" => &[&lower],
            "upper" => &[&upper],
            _ => &[&lower, &upper],
        };
        for dir in made.iter().map(|path| path.parent().unwrap()).filter(|dir| !dir.exists()) {
            fs::create_dir(dir).unwrap();
            chown(dir, Some(7), Some(GROUP)).unwrap();
            if self.dir.2 {
                xattr::set(dir, DEFAULT_ACL, &acl(&[(4321, 6)])).unwrap();
            }
            set_mode(dir, self.dir.1);
        }
        if self.deleted {
            fs::write(&lower, "deleted").unwrap();
            node(&upper, FileType::CharacterDevice, 0).unwrap();
        }
    }

    fn run(&self, root: &Path, log: &mut Log) {
        let path = self.path(root);
        log.end(
            path.file_name().unwrap().to_string_lossy(),
            self.user.run(|| (self.make.1)(&path)),
        );
        let meta = fs::symlink_metadata(&path).unwrap();
        log.note("made", (format!("{:o}", meta.mode()), meta.uid(), meta.gid()));
        if !path.is_symlink() {
            log.note("lists", [ACL, DEFAULT_ACL].map(|name| xattr::get(&path, name).unwrap()));
        }
    }
}

/// SEMANTICS W8: what is new belongs to who makes it, save the group in a setgid directory; its mode and access control list are
/// what the directory and the umask say. A whiteout in its place makes no difference.
#[test]
fn what_is_new_belongs_to_who_makes_it() {
    as_root(|| {
        alike(
            Setup::default(),
            |layers| Made::all().for_each(|case| case.make_dirs(layers)),
            |root, log| Made::all().for_each(|case| case.run(root, log)),
        );
    });
}

fn touch(path: &Path, time: TimeSpec) -> io::Result<()> {
    let (here, flags) = (nix::fcntl::AT_FDCWD, UtimensatFlags::NoFollowSymlink);
    Ok(nix::sys::stat::utimensat(here, path, &time, &time, flags)?)
}

/// Everything that takes a right, of a file or of the directory that it is in.
const ASKS: [(&str, Act); 24] = [
    ("write", |path| for_writing(path)?.write_all(b"new")),
    ("append", |path| OpenOptions::new().append(true).open(path)?.write_all(b"more")),
    ("read", |path| fs::read(path).map(drop)),
    ("cut", |path| File::create(path).map(drop)),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 1)?)),
    ("chmod", |path| fs::set_permissions(path, Permissions::from_mode(0o4711))),
    ("chmod-setgid", |path| fs::set_permissions(path, Permissions::from_mode(0o2755))),
    ("chown", |path| chown(path, Some(1002), None)),
    ("chown-to-owner", |path| chown(path, Some(1000), None)),
    ("chgrp", |path| chown(path, None, Some(4000))),
    ("chgrp-to-group", |path| chown(path, None, Some(GROUP))),
    ("chgrp-to-own", |path| chown(path, None, Some(1000))),
    ("touch", |path| touch(path, TimeSpec::new(1_000_000, 1))),
    ("touch-now", |path| touch(path, TimeSpec::UTIME_NOW)),
    ("set-user-attribute", |path| xattr::set(path, "user.a", b"a")),
    ("set-trusted-attribute", |path| xattr::set(path, "trusted.a", b"a")),
    ("set-security-attribute", |path| xattr::set(path, "security.a", b"a")),
    ("set-capability", |path| xattr::set(path, CAPABILITY, &capability())),
    ("set-list", |path| xattr::set(path, ACL, &acl(&[(1, 1)]))),
    ("link", |path| fs::hard_link(path, path.with_extension("link"))),
    ("rename", |path| fs::rename(path, path.with_extension("renamed"))),
    ("replace", |path| {
        let new = path.with_extension("new");
        fs::write(&new, "new")?;
        fs::rename(new, path)
    }),
    ("remove", |path| fs::remove_file(path)),
    ("make-beside", |path| fs::create_dir(path.with_extension("beside"))),
];

/// Name, owner, group, mode, and whether a list gives one more user rights.
const FILES: [(&str, u32, u32, u32, bool); 6] = [
    ("roots", 0, 0, 0o644, false),
    ("open", 0, 0, 0o666, false),
    ("own", 1000, GROUP, 0o6750, false),
    ("groups", 0, GROUP, 0o660, false),
    ("members", 1003, GROUP, 0o2775, false),
    ("listed", 0, 0, 0o671, true),
];

const LISTED: User = User::new(4321);

/// Somebody who asks for something.
struct Asked {
    layer: &'static str,
    dir: (&'static str, u32),
    file: (&'static str, u32, u32, u32, bool),
    user: User,
    ask: (&'static str, Act),
}

impl Asked {
    fn all() -> impl Iterator<Item = Self> {
        let dirs = [("closed", 0o755), ("any", 0o777), ("sticky", 0o1777)];
        let dirs =
            ["lower", "upper"].into_iter().flat_map(move |layer| dirs.map(|dir| (layer, dir)));
        let files = dirs.flat_map(|(layer, dir)| FILES.map(|file| (layer, dir, file)));
        let users = [OWNER, STRANGER, ALSO_MEMBER, LISTED];
        let users =
            files.flat_map(move |(layer, dir, file)| users.map(|user| (layer, dir, file, user)));
        users.flat_map(|(layer, dir, file, user)| {
            ASKS.map(|ask| Self { layer, dir, file, user, ask })
        })
    }

    fn path(&self, root: &Path) -> PathBuf {
        let Self { layer, dir, file, user, ask } = self;
        let name = format!("{}-{}-{}", file.0, user.uid, ask.0);
        root.join(format!("{layer}-{}", dir.0)).join(name)
    }

    fn make(&self, layers: &Layers) {
        let layer = if self.layer == "lower" { &layers.lowers[0] } else { &layers.upper };
        let path = self.path(layer);
        let dir = path.parent().unwrap();
        if !dir.exists() {
            fs::create_dir(dir).unwrap();
            set_mode(dir, self.dir.1);
        }
        let (_, uid, gid, mode, listed) = self.file;
        fs::write(&path, "content").unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        if listed {
            xattr::set(&path, ACL, &acl(&[(LISTED.uid, 6)])).unwrap();
        }
        set_mode(&path, mode);
    }

    fn run(&self, root: &Path, log: &mut Log) {
        let path = self.path(root);
        let what = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        log.end(what, self.user.run(|| (self.ask.1)(&path)));
    }
}

/// Who has no right is told so, and nothing is copied up for him.
#[test]
fn who_has_no_right_is_refused() {
    as_root(|| {
        alike(
            Setup::default(),
            |layers| Asked::all().for_each(|case| case.make(layers)),
            |root, log| Asked::all().for_each(|case| case.run(root, log)),
        );
    });
}

/// A change of mode, owner or access control list counts from the next call on, for files and directories.
#[test]
fn a_change_of_rights_counts_at_once() {
    as_root(|| {
        alike(
            Setup::default(),
            |layers| {
                for (layer, dir) in [("lower", &layers.lowers[0]), ("upper", &layers.upper)] {
                    fs::create_dir(dir.join(layer)).unwrap();
                    fs::write(dir.join(layer).join("file"), "content").unwrap();
                    set_mode(&dir.join(layer).join("file"), 0o600);
                    fs::write(dir.join(layer).join("other"), "content").unwrap();
                }
            },
            |root, log| {
                for layer in ["lower", "upper"] {
                    let dir = root.join(layer);
                    let file = dir.join("file");
                    let mut tried = |when: &str| {
                        let read = LISTED.run(|| fs::read(&file).map(drop));
                        let write = LISTED.run(|| for_writing(&file).map(drop));
                        let other = LISTED.run(|| fs::read(dir.join("other")).map(drop));
                        log.end(format!("{when}: read"), read);
                        log.end(format!("{when}: write"), write);
                        log.end(format!("{when}: another file"), other);
                        log.note(when, format!("{:o} {:o}", mode_of(&file), mode_of(&dir)));
                    };
                    tried("at first");
                    xattr::set(&file, ACL, &acl(&[(LISTED.uid, 4)])).unwrap();
                    tried("listed");
                    set_mode(&file, 0o600);
                    tried("masked");
                    set_mode(&file, 0o660);
                    tried("unmasked");
                    xattr::set(&file, ACL, &acl(&[(LISTED.uid, 6)])).unwrap();
                    tried("for writing too");
                    fs::hard_link(&file, dir.join("link")).unwrap();
                    xattr::remove(dir.join("link"), ACL).unwrap();
                    tried("not listed");
                    chown(dir.join("link"), Some(LISTED.uid), None).unwrap();
                    tried("owned");
                    set_mode(&dir, 0o700);
                    tried("closed");
                    xattr::set(&dir, ACL, &acl(&[(LISTED.uid, 1)])).unwrap();
                    set_mode(&dir, 0o710);
                    tried("opened by list");
                    xattr::remove(&dir, ACL).unwrap();
                    tried("closed again");
                }
            },
        );
    });
}

/// Attributes of every namespace, for those who may see or set them.
#[test]
fn attributes_are_for_those_whose_namespace_it_is() {
    const NAMES: [&str; 7] = [
        "user.a",
        "user.overlay.opaque",
        "trusted.a",
        "trusted.overlay.opaque",
        "security.a",
        "system.a",
        "other.a",
    ];
    as_root(|| {
        alike(
            Setup::default(),
            |layers| {
                for user in [ROOT, OWNER, STRANGER] {
                    let file = layers.lowers[0].join(format!("file-{}", user.uid));
                    fs::write(&file, "").unwrap();
                    set_mode(&file, 0o666);
                    let dir = file.with_file_name(format!("dir-{}", user.uid));
                    fs::create_dir(&dir).unwrap();
                    set_mode(&dir, 0o1777);
                    let link = file.with_file_name(format!("link-{}", user.uid));
                    symlink("to", link).unwrap();
                    for path in [file, dir] {
                        chown(&path, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
                        xattr::set(&path, "trusted.there", b"trusted").unwrap();
                        xattr::set(&path, "user.there", b"user").unwrap();
                    }
                }
            },
            |root, log| {
                for user in [ROOT, OWNER, STRANGER] {
                    for kind in ["file", "dir", "link"] {
                        let path = root.join(format!("{kind}-{}", user.uid));
                        user.run(|| {
                            log.note("path", (kind, user.uid));
                            for name in NAMES {
                                log.end(name, xattr::set(&path, name, b"value"));
                                log.end(name, xattr::get(&path, name));
                            }
                            let list = xattr::list(&path)
                                .map(|list| list.collect::<std::collections::BTreeSet<_>>());
                            log.end("list", list);
                            for name in NAMES.iter().chain(&["user.there", "trusted.there"]) {
                                log.end(*name, xattr::remove(&path, name));
                            }
                        });
                    }
                }
            },
        );
    });
}
