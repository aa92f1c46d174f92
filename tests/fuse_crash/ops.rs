//! The operations, each with what is there before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::libc::O_TRUNC;
use rustix::fs::{CWD, RenameFlags};

use super::layers::Layers;

/// An operation that changes the view in one step.
pub(super) struct Op {
    pub(super) name: &'static str,
    pub(super) make: fn(&Layers),
    pub(super) run: fn(&Path) -> io::Result<()>,
}

impl Op {
    /// Tells whether it throws data away.
    pub(super) fn cuts(&self) -> bool {
        self.name.contains("trunc") || self.name.contains("TRUNC")
    }
}

fn op(name: &'static str, make: fn(&Layers), run: fn(&Path) -> io::Result<()>) -> Op {
    Op { name, make, run }
}

/// Returns all operations.
pub(super) fn all() -> Vec<Op> {
    [made(), removed(), renamed_files(), renamed_dirs(), linked(), copied_up(), attributes()]
        .into_iter()
        .flatten()
        .collect()
}

fn create(root: &Path) -> io::Result<()> {
    File::create_new(root.join("d/a")).map(drop)
}

fn mkdir(root: &Path) -> io::Result<()> {
    fs::create_dir(root.join("d/a"))
}

fn made() -> Vec<Op> {
    let over = |l: &Layers| {
        l.file("0/d/a");
        l.whiteout("u/d/a");
    };
    let over_dir = |l: &Layers| {
        l.file("0/d/a/below");
        l.whiteout("u/d/a");
    };
    let over_dir_acl = |l: &Layers| {
        l.file("0/d/a/below");
        l.whiteout("u/d/a");
        l.default_acl("u/d");
    };
    vec![
        op("create", |_| (), create),
        op("create in the upper", |l| l.dir("u/d"), create),
        op("create over a whiteout", over, create),
        op("create over a whiteout, default ACL", over_dir_acl, create),
        op("mkdir", |_| (), mkdir),
        op("mkdir over a whiteout", over_dir, mkdir),
        op("mkdir over a whiteout, default ACL", over_dir_acl, mkdir),
        op("symlink", |_| (), |root| symlink("new", root.join("d/a"))),
        op("symlink over a whiteout", over, |root| symlink("new", root.join("d/a"))),
    ]
}

fn unlink(root: &Path) -> io::Result<()> {
    fs::remove_file(root.join("d/a"))
}

fn rmdir(root: &Path) -> io::Result<()> {
    fs::remove_dir(root.join("d/a"))
}

fn removed() -> Vec<Op> {
    vec![
        op("unlink, lower", |l| l.file("1/d/a"), unlink),
        op("unlink, upper", |l| l.file("u/d/a"), unlink),
        op("unlink, both", |l| ["u/d/a", "0/d/a"].iter().for_each(|path| l.file(path)), unlink),
        op("rmdir, lower", |l| l.dir("0/d/a"), rmdir),
        op("rmdir, pure", |l| l.dir("u/d/a"), rmdir),
        op("rmdir, merged with whiteouts", with_whiteouts, rmdir),
    ]
}

/// An empty merged directory `d/a`.
fn with_whiteouts(l: &Layers) {
    l.file("0/d/a/x");
    l.file("1/d/a/y/z");
    l.whiteout("u/d/a/x");
    l.whiteout("u/d/a/y");
}

fn rename(root: &Path) -> io::Result<()> {
    fs::rename(root.join("d/from"), root.join("d/a"))
}

fn rename_out(root: &Path) -> io::Result<()> {
    fs::rename(root.join("from"), root.join("d/a"))
}

fn renamed_files() -> Vec<Op> {
    vec![
        op("rename, lower", |l| l.file("0/d/from"), rename),
        op("rename, upper", |l| l.file("u/d/from"), rename),
        op("rename, both", |l| ["u/d/from", "0/d/from"].iter().for_each(|p| l.file(p)), rename),
        op("rename, over lower", |l| ["u/d/from", "0/d/a"].iter().for_each(|p| l.file(p)), rename),
        op("rename, over upper", |l| ["0/d/from", "u/d/a"].iter().for_each(|p| l.file(p)), rename),
        op(
            "rename, lower over both",
            |l| ["1/d/from", "0/d/a", "u/d/a"].iter().for_each(|p| l.file(p)),
            rename,
        ),
        op(
            "rename, upper over a whiteout",
            |l| {
                l.file("u/d/from");
                l.file("0/d/a");
                l.whiteout("u/d/a");
            },
            rename,
        ),
        op(
            "rename, lower over a whiteout",
            |l| {
                l.file("0/d/from");
                l.file("0/d/a");
                l.whiteout("u/d/a");
            },
            rename,
        ),
    ]
}

fn renamed_dirs() -> Vec<Op> {
    vec![
        op("rename a directory", |l| l.file("u/d/from/x"), rename),
        op(
            "rename a directory over a whiteout",
            |l| {
                l.file("u/from/x");
                l.file("0/d/a/below");
                l.whiteout("u/d/a");
            },
            rename_out,
        ),
        op(
            "rename a directory over an empty merged one",
            |l| {
                l.file("u/from/new");
                with_whiteouts(l);
            },
            rename_out,
        ),
        op(
            "rename a directory over an empty lower one",
            |l| {
                l.file("u/d/from/new");
                l.dir("0/d/a");
            },
            rename,
        ),
        op("exchange files", |l| ["0/d/from", "u/d/a"].iter().for_each(|p| l.file(p)), exchange),
        op(
            "exchange a file and a directory",
            |l| ["0/d/from", "u/d/a/x"].iter().for_each(|p| l.file(p)),
            exchange,
        ),
    ]
}

fn exchange(root: &Path) -> io::Result<()> {
    let (from, to) = (root.join("d/from"), root.join("d/a"));
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?)
}

fn linked() -> Vec<Op> {
    fn link(root: &Path) -> io::Result<()> {
        fs::hard_link(root.join("d/from"), root.join("d/a"))
    }
    vec![
        op("link, lower", |l| l.file("0/d/from"), link),
        op("link, upper", |l| l.file("u/d/from"), link),
        op(
            "link over a whiteout",
            |l| {
                l.file("0/d/from");
                l.file("0/d/a");
                l.whiteout("u/d/a");
            },
            link,
        ),
    ]
}

/// The file that is copied up, with directories above it.
const DEEP: &str = "d/e/f/a";

fn copied_up() -> Vec<Op> {
    fn write(root: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(root.join(DEEP))?;
        file.write_at(b"changed", 3).map(drop)
    }
    fn append(root: &Path) -> io::Result<()> {
        OpenOptions::new().append(true).open(root.join(DEEP))?.write_all(b"more")
    }
    fn cut(root: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).custom_flags(O_TRUNC).open(root.join(DEEP)).map(drop)
    }
    fn truncate(root: &Path) -> io::Result<()> {
        Ok(nix::unistd::truncate(&root.join(DEEP), 2)?)
    }
    fn lengthen(root: &Path) -> io::Result<()> {
        Ok(nix::unistd::truncate(&root.join(DEEP), 9000)?)
    }
    fn chmod(root: &Path) -> io::Result<()> {
        fs::set_permissions(root.join(DEEP), fs::Permissions::from_mode(0o600))
    }
    let file = |l: &Layers| l.file("1/d/e/f/a");
    let big = |l: &Layers| l.big("1/d/e/f/a");
    vec![
        op("write, lower", file, write),
        op("write, lower, 1 MiB", big, write),
        op("write, upper", |l| l.file("u/d/e/f/a"), write),
        op("append, lower", file, append),
        op("O_TRUNC, lower", file, cut),
        op("O_TRUNC, upper", |l| l.file("u/d/e/f/a"), cut),
        op("truncate, lower, 1 MiB", big, truncate),
        op("lengthen, lower", file, lengthen),
        op("chmod, lower", file, chmod),
        op("chmod, lower directory", |l| l.dir("0/d/e/f/a"), chmod),
    ]
}

fn attributes() -> Vec<Op> {
    vec![
        op("chown, lower", |l| l.file("0/d/a"), |root| chown(root.join("d/a"), Some(7), Some(8))),
        op(
            "chown, lower symlink",
            |l| l.symlink("0/d/a"),
            |root| std::os::unix::fs::lchown(root.join("d/a"), Some(7), Some(8)),
        ),
        op(
            "setxattr, lower",
            |l| l.file("0/d/a"),
            |root| xattr::set(root.join("d/a"), "user.new", b"value"),
        ),
        op(
            "removexattr, lower",
            |l| l.file("0/d/a"),
            |root| xattr::remove(root.join("d/a"), "user.layer"),
        ),
        op(
            "removexattr, upper",
            |l| l.file("u/d/a"),
            |root| xattr::remove(root.join("d/a"), "user.layer"),
        ),
    ]
}
