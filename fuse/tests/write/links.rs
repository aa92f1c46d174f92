//! Hard links of lower files, kept when one is copied up. The oracle is the kernel with `index=on`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use overstream_fuse::Format;
use overstream_testkit::{Scratch, facts};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::frame::{Data, Place, Served, as_root, kernel, subject};
use super::pair::{Layers, Pair, Setup};
use super::seen::indexed;

/// Something that is done to a file, by the end of its name.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append(&'static str),
    Chmod(&'static str),
    Truncate(&'static str),
    Unlink(&'static str),
    Link(&'static str, &'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    New(&'static str),
}

use Step::{Append, Chmod, Exchange, Link, New, Rename, Truncate, Unlink};

/// Sequences, each on three names of one file (`a`, `b` and `c`, this one in another directory), a single file
/// `x`, and a file of the upper `u`. The first step copies up.
const HISTORIES: &[&[Step]] = &[
    &[Append("a")],
    &[Append("b")],
    &[Append("d/c"), Append("a"), Append("b")],
    &[Chmod("a"), Chmod("b")],
    &[Truncate("b"), Append("a")],
    &[Append("a"), Unlink("a")],
    &[Append("a"), Unlink("b")],
    &[Append("a"), Unlink("d/c"), Unlink("b")],
    &[Append("a"), Unlink("d/c"), Unlink("b"), Unlink("a")],
    &[Append("b"), Unlink("b"), Unlink("a"), Unlink("d/c")],
    &[Append("b"), Unlink("b"), Append("d/c"), Unlink("a")],
    &[Append("a"), Link("b", "n")],
    &[Append("a"), Link("a", "n"), Unlink("a"), Append("b")],
    &[Append("a"), Link("b", "n"), Unlink("a"), Unlink("b"), Unlink("d/c"), Append("n")],
    &[Append("a"), Link("b", "n"), Unlink("a"), Unlink("b"), Unlink("d/c"), Unlink("n")],
    &[Link("b", "n")],
    &[Link("d/c", "n"), Unlink("n")],
    &[Rename("a", "n")],
    &[Rename("b", "n"), Append("a")],
    &[Append("a"), Rename("b", "n"), Append("n")],
    &[Append("a"), Rename("d/c", "n"), Rename("b", "d/c"), Unlink("a")],
    &[Append("a"), Rename("a", "b")],
    &[Append("a"), Rename("x", "b")],
    &[Append("a"), Rename("x", "a"), Append("b")],
    &[Append("a"), Rename("x", "a"), Rename("u", "b"), Unlink("d/c")],
    &[Append("a"), Rename("d/c", "x"), Unlink("x")],
    &[Append("a"), Exchange("b", "x"), Append("x")],
    &[Exchange("b", "x"), Unlink("x"), Append("a")],
    &[Append("a"), Exchange("b", "u"), Exchange("a", "d/c")],
    &[Append("a"), Unlink("b"), New("b"), Append("a")],
    &[Append("a"), Unlink("a"), New("a"), Append("b"), Rename("a", "d/c")],
    &[Append("a"), Unlink("a"), Link("d/c", "a"), Append("a")],
];

impl Step {
    fn run(self, dir: &Path) {
        let at = |name: &str| dir.join(name);
        match self {
            Append(name) => append(&at(name)),
            Chmod(name) => fs::set_permissions(at(name), Permissions::from_mode(0o640)).unwrap(),
            Truncate(name) => drop(File::create(at(name)).unwrap()),
            Unlink(name) => fs::remove_file(at(name)).unwrap(),
            Link(from, to) => fs::hard_link(at(from), at(to)).unwrap(),
            Rename(from, to) => fs::rename(at(from), at(to)).unwrap(),
            Exchange(from, to) => {
                renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE).unwrap();
            }
            New(name) => drop(File::create_new(at(name)).unwrap()),
        }
    }
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b" and more").unwrap();
}

/// Makes the files of all histories, each in a directory of its own.
fn fill(layers: &Layers) {
    for number in 0..HISTORIES.len() {
        let lower = layers.lowers[0].join(number.to_string());
        fs::create_dir_all(lower.join("d")).unwrap();
        fs::write(lower.join("a"), "linked").unwrap();
        fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
        fs::hard_link(lower.join("a"), lower.join("d/c")).unwrap();
        fs::write(lower.join("x"), "single").unwrap();
        let upper = layers.upper.join(number.to_string());
        fs::create_dir(&upper).unwrap();
        fs::write(upper.join("u"), "upper").unwrap();
    }
}

fn agree(format: Format, look_first: bool) {
    let scratch = Scratch::new();
    let pair = Pair::new(&scratch, Setup { format, index: true, ..Setup::default() }, fill);
    for root in [pair.oracle(), pair.subject()] {
        if look_first {
            facts::read(root, &[]);
        }
        for (number, history) in HISTORIES.iter().enumerate() {
            history.iter().for_each(|step| step.run(&root.join(number.to_string())));
        }
    }
    pair.assert_same(&[]);
    pair.assert_interchangeable(&[]);
}

/// SEMANTICS W40
#[test]
fn hard_links_are_kept_as_the_kernel_keeps_them() {
    as_root(|| agree(Format::Trusted, false));
}

/// SEMANTICS W40
#[test]
fn hard_links_that_were_seen_before_are_kept_as_the_kernel_keeps_them() {
    as_root(|| agree(Format::Trusted, true));
}

/// SEMANTICS W40
#[test]
fn hard_links_are_kept_with_user_marks() {
    as_root(|| agree(Format::User, false));
}

/// A place with hard links `a`, `b` and `c` in its lower layer.
fn linked(scratch: &Scratch) -> (Place, PathBuf) {
    let (lower, upper, work) = (scratch.dir("lower"), scratch.dir("upper"), scratch.dir("work"));
    fs::write(lower.join("a"), "linked").unwrap();
    ["b", "c"].iter().for_each(|name| fs::hard_link(lower.join("a"), lower.join(name)).unwrap());
    let place = Place {
        lowers: vec![lower],
        upper,
        work,
        format: Format::Trusted,
        data: Data::default(),
        index: true,
    };
    (place, scratch.path().join("view"))
}

/// What tells hard links: number, links and content.
fn seen(served: &dyn Served, name: &str) -> (u64, u64, String) {
    let path = served.path().join(name);
    let meta = fs::metadata(&path).unwrap();
    (meta.ino(), meta.nlink(), fs::read_to_string(path).unwrap())
}

/// SEMANTICS W40: peers break the link at the first change, or at the next mount.
#[test]
fn two_names_of_a_lower_file_are_one_file_after_a_change_and_a_remount() {
    as_root(|| {
        let scratch = Scratch::new();
        let (place, target) = linked(&scratch);
        let view = subject(&place, &target);
        let before = seen(&*view, "a");
        append(&view.path().join("a"));
        let after = (before.0, 3, "linked and more".to_owned());
        for name in ["c", "b", "a"] {
            assert_eq!(seen(&*view, name), after, "{name}");
        }
        view.unmount();
        for name in ["c", "b", "a"] {
            let view = subject(&place, &target);
            assert_eq!(seen(&*view, name), after, "{name} first");
            view.unmount();
        }
    });
}

/// SEMANTICS W40: a deletion takes no copy, so the names that are left are counted only as long as the file is known.
#[test]
fn names_deleted_before_a_change_are_counted_in_the_session_and_cost_no_copy() {
    as_root(|| {
        let scratch = Scratch::new();
        let (place, target) = linked(&scratch);
        let view = subject(&place, &target);
        let open = File::open(view.path().join("a")).unwrap();
        fs::remove_file(view.path().join("a")).unwrap();
        assert_eq!(seen(&*view, "b").1, 2);
        assert_eq!(indexed(&place.work), 0, "copied up");
        fs::remove_file(view.path().join("b")).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 1);
        // A change by way of the handle shows under the name that is left.
        open.set_permissions(Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(view.path().join("c")).unwrap().mode() & 0o777, 0o600);
        drop(open);
        view.unmount();
        let view = subject(&place, &target);
        assert_eq!(fs::metadata(view.path().join("c")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(seen(&*view, "c").1, 1);
        fs::remove_file(view.path().join("c")).unwrap();
        assert_eq!(indexed(&place.work), 0, "a file without names is left in the index");
    });
}

/// SEMANTICS W40: a file that is deleted under its last name, but open, works on.
#[test]
fn a_linked_file_that_is_deleted_and_open_works_on() {
    as_root(|| {
        let scratch = Scratch::new();
        let (place, target) = linked(&scratch);
        let view = subject(&place, &target);
        append(&view.path().join("b"));
        let mut open =
            OpenOptions::new().read(true).append(true).open(view.path().join("c")).unwrap();
        for name in ["a", "b", "c"] {
            fs::remove_file(view.path().join(name)).unwrap();
        }
        assert_eq!(indexed(&place.work), 0);
        open.write_all(b"!").unwrap();
        let meta = open.metadata().unwrap();
        assert_eq!((meta.nlink(), meta.len()), (0, 16));
    });
}

/// SEMANTICS W41: what a crash leaves in the index goes at the next mount, and nothing else.
#[test]
fn an_index_entry_without_names_goes_at_the_next_mount() {
    as_root(|| {
        for mount in [kernel, subject] {
            let scratch = Scratch::new();
            let (place, target) = linked(&scratch);
            let view = subject(&place, &target);
            append(&view.path().join("a"));
            view.unmount();
            let entry = fs::read_dir(place.work.join("index")).unwrap().next().unwrap();
            let entry = entry.unwrap().path();
            mount(&place, &target).unmount();
            assert_eq!(indexed(&place.work), 1, "an entry in use is gone");
            fs::remove_file(place.upper.join("a")).unwrap();
            xattr::set(&entry, "trusted.overlay.nlink", b"U-1").unwrap();
            mount(&place, &target).unmount();
            assert_eq!(indexed(&place.work), 0);
        }
    });
}

/// SEMANTICS W40: files of other types have names too.
#[test]
fn linked_symlinks_and_pipes_stay_linked() {
    as_root(|| {
        let scratch = Scratch::new();
        let (place, target) = linked(&scratch);
        let lower = &place.lowers[0];
        symlink("nowhere", lower.join("s")).unwrap();
        fs::hard_link(lower.join("s"), lower.join("t")).unwrap();
        for remount in [false, true] {
            let view = subject(&place, &target);
            if !remount {
                let (from, to) = (view.path().join("s"), view.path().join("moved"));
                fs::rename(from, to).unwrap();
            }
            let meta = |name| fs::symlink_metadata(view.path().join(name)).unwrap();
            assert_eq!(meta("moved").ino(), meta("t").ino(), "after a remount: {remount}");
            assert_eq!((meta("moved").nlink(), meta("t").nlink()), (2, 2));
            view.unmount();
        }
    });
}

/// SEMANTICS W42: to who keeps no links they have parted.
#[test]
fn the_kernel_without_an_index_sees_the_upper_name_changed_and_the_lower_ones_not() {
    as_root(|| {
        let scratch = Scratch::new();
        let (place, target) = linked(&scratch);
        let view = subject(&place, &target);
        append(&view.path().join("a"));
        view.unmount();
        let without = Place { index: false, ..place.clone() };
        for mount in [kernel, subject] {
            let view = mount(&without, &target);
            assert_eq!(seen(&*view, "a").2, "linked and more");
            assert_eq!(seen(&*view, "b").2, "linked");
            view.unmount();
        }
        // What it changes meanwhile is never counted as fewer names than there are.
        let view = kernel(&without, &target);
        fs::remove_file(view.path().join("a")).unwrap();
        append(&view.path().join("b"));
        view.unmount();
        let view = subject(&place, &target);
        assert_eq!(seen(&*view, "b").2, "linked and more");
        assert_eq!(seen(&*view, "c").2, "linked and more");
        assert_ne!(seen(&*view, "b").0, seen(&*view, "c").0);
        fs::remove_file(view.path().join("b")).unwrap();
        assert_eq!(seen(&*view, "c").2, "linked and more");
    });
}
