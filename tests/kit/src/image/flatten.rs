//! Works out what layers on top of each other look like, without a file system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layer::{Content, Entry, Layer};
use crate::tree::{self, Kind, Tree, sha256};

/// Entries by path; equal numbers are names of the same file.
type Flat = BTreeMap<PathBuf, (tree::Entry, Option<u64>)>;

pub(super) fn flatten(layers: &[Layer]) -> Tree {
    let mut flat = Flat::new();
    let mut next = 0;
    for layer in layers {
        // Deletions concern the layers below only, wherever they stand in the archive.
        layer.entries.iter().for_each(|entry| delete(&mut flat, entry));
        for entry in &layer.entries {
            next += 1;
            make(&mut flat, entry, next);
        }
    }
    Tree::from_numbered(flat)
}

fn delete(flat: &mut Flat, entry: &Entry) {
    match entry.content {
        Content::Whiteout => flat.retain(|path, _| !path.starts_with(&entry.path)),
        Content::Opaque => {
            flat.retain(|path, _| path == &entry.path || !path.starts_with(&entry.path));
        }
        _ => {}
    }
}

fn make(flat: &mut Flat, entry: &Entry, number: u64) {
    let made = match &entry.content {
        Content::Whiteout | Content::Opaque => return,
        Content::HardLink(target) => flat.get(target).expect("the target of a hard link").clone(),
        content => {
            let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
            (tree::Entry { kind: kind(content), mode, uid, gid }, Some(number))
        }
    };
    make_parents(flat, &entry.path);
    if made.0.kind != Kind::Directory {
        flat.retain(|path, _| !path.starts_with(&entry.path));
    }
    flat.insert(entry.path.clone(), made);
}

/// Adds the directories that the archive leaves out, as containerd makes them.
fn make_parents(flat: &mut Flat, path: &Path) {
    for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        let implicit = tree::Entry { kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0 };
        flat.entry(parent.to_owned()).or_insert((implicit, None));
    }
}

fn kind(content: &Content) -> Kind {
    match content {
        Content::File(content) => {
            Kind::File { size: content.len() as u64, content: sha256(content), links: Vec::new() }
        }
        Content::Symlink(target) => Kind::Symlink(target.clone()),
        Content::CharDevice(major, minor) => Kind::CharDevice((*major).into(), (*minor).into()),
        Content::BlockDevice(major, minor) => Kind::BlockDevice((*major).into(), (*minor).into()),
        Content::Fifo => Kind::Fifo,
        Content::Directory => Kind::Directory,
        Content::HardLink(_) | Content::Whiteout | Content::Opaque => {
            unreachable!("makes nothing of its own")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Image;
    use super::*;

    fn paths(tree: &Tree) -> Vec<String> {
        tree.entries().keys().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn deletions_reach_the_layers_below_only() {
        let image = Image::new()
            .layer(|l| l.dirs(&["a", "b"]).file("a/low", "").file("b/low", "").file("c", ""))
            .layer(|l| l.file("a/up", "").opaque("a").whiteout("b").whiteout("c").file("c", "new"));
        assert_eq!(paths(&image.tree()), ["a", "a/up", "c"]);
    }

    #[test]
    fn a_file_replaces_a_directory_and_breaks_a_hard_link() {
        let image = Image::new()
            .layer(|l| l.dir("d").file("d/x", "").file("f", "1").hardlink("g", "f"))
            .layer(|l| l.file("d", "").file("f", "2"));
        let tree = image.tree();
        assert_eq!(paths(&tree), ["d", "f", "g"]);
        let Kind::File { links, .. } = &tree.entries()[Path::new("g")].kind else { panic!() };
        assert!(links.is_empty());
    }
}
