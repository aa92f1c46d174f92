//! All that can be seen of the engine's tree, as the kit reads one from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use overstream_fuse::layer::{Kind, Stat};
use overstream_fuse::{Attr, Caller, Error, Ino, Overlay};
use overstream_testkit::facts::{Facts, Tree};
use rustix::fs::{FileType, OFlags};

/// Who only looks.
pub(super) const NOBODY: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0, operation: "look" };

/// Reads the engine's tree; looks for the names in `also` at its top, listed or not.
pub(super) fn of_engine(overlay: &Overlay, also: &[String]) -> Tree {
    let mut tree = Tree::new();
    let root = overlay.attr(Ino::ROOT).map(|attr| (Ino::ROOT, attr));
    let mut todo = vec![(PathBuf::new(), root)];
    let at_top =
        |name: &String| (PathBuf::from(name), looked_up(overlay, Ino::ROOT, name.as_ref()));
    todo.extend(also.iter().map(at_top));
    while let Some((path, found)) = todo.pop() {
        if tree.contains_key(&path) {
            continue;
        }
        let facts = found.and_then(|(ino, attr)| {
            let facts = engine_facts(overlay, ino, &attr)?;
            for name in facts.names() {
                todo.push((path.join(name), looked_up(overlay, ino, name)));
            }
            Ok(facts)
        });
        tree.insert(path, facts.map_err(|error| error.errno().raw_os_error()));
    }
    tree
}

fn looked_up(overlay: &Overlay, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
    overlay.lookup(parent, name).map(|attr| (attr.ino, attr))
}

fn engine_facts(overlay: &Overlay, ino: Ino, attr: &Attr) -> Result<Facts, Error> {
    let Stat { kind, mode, links, uid, gid, device, size, blocks, modified, changed, .. } =
        attr.stat;
    let content = match kind {
        Kind::File => {
            let handle = overlay.open(&NOBODY, ino, OFlags::RDONLY)?;
            let content = overlay.read(handle, 0, 1 << 20)?;
            overlay.release(handle);
            content
        }
        Kind::Symlink => overlay.read_link(ino)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    let names = overlay.xattrs(ino, true)?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        xattrs.insert(name.to_owned(), overlay.xattr(ino, name)?);
    }
    let mut listing = BTreeSet::new();
    if kind == Kind::Directory {
        let handle = overlay.open_dir(ino)?;
        overlay.read_dir(handle, 0, |name, ino, kind, _| {
            if name != ".." {
                listing.insert((name.to_owned(), ino.0, type_bits(kind)));
            }
            ControlFlow::Continue(())
        })?;
        overlay.release_dir(handle);
    }
    Ok(Facts {
        ino: attr.ino.0,
        mode: type_bits(kind) | u32::from(mode),
        links: links.into(),
        owner: (uid, gid),
        device: rustix::fs::makedev(device.0, device.1),
        size,
        blocks,
        modified: (modified.seconds, modified.nanoseconds.into()),
        changed: (changed.seconds, changed.nanoseconds.into()),
        xattrs,
        content,
        listing,
    })
}

fn type_bits(kind: Kind) -> u32 {
    let file_type = match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    file_type.as_raw_mode()
}
