//! Debian's fuse-overlayfs, as root, reads what is written here, and the other way round; the kernel reads both.
//!
//! What everybody must see is what the same commands leave in an ordinary directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use overstream_fuse::Format;
use overstream_testkit::facts::{self, assert_same};
use overstream_testkit::{
    Entry, Process, Scratch, Tree, mounts_below, require_command, run, wait_for,
};

use super::frame::{Data, Place, Served, as_root, kernel, subject};

const PROGRAM: &str = "fuse-overlayfs";
const SOON: Duration = Duration::from_secs(10);
/// What fuse-overlayfs leaves in a directory that hides lower ones, besides the kernel's mark. The kernel shows it,
/// and so does a mount of ours, which takes the layer for one of the kernel's.
const SENTINEL: &str = ".wh..wh..opq";

/// What the lower layer holds, at its top and in `sub`.
const LOWER: &str = "
    for file in deleted file over replaced file-to-dir appended emptied moded back kept; do
        echo $file >$file
    done
    for dir in gone again tree dir-to-file deep merged; do
        mkdir -p $dir/lower/empty
        echo $dir >$dir/file
        echo $dir >$dir/lower/x
        echo $dir >$dir/lower/y
        ln -s target $dir/lower/link
    done
";

/// What is done to it, round by round: each goes on with what the one before has left. mv copies where a directory
/// cannot be renamed.
const ROUNDS: [&str; 3] = [
    "
    rm deleted back
    rm -r gone
    rm -r again; mkdir again; echo new >again/new
    mv file moved
    mv over replaced
    mv tree elsewhere
    mkdir made; echo made >made/file; mv made renamed
    rm file-to-dir; mkdir file-to-dir; echo x >file-to-dir/x
    rm -r dir-to-file; echo now >dir-to-file
    echo more >>appended
    : >emptied
    chown 1:2 moded; chmod 640 moded
    ln moved linked
    ln -s nowhere symlink
    mkfifo fifo
    mknod device c 1 3
    rm deep/lower/x; mv deep/lower/y deep/lower/z
    rm -r merged/lower; echo more >merged/more
    ",
    "
    echo back >back
    mkdir gone; echo new >gone/new
    echo second >again/second; rm again/new
    rm elsewhere/lower/x; mv elsewhere/file elsewhere/lower
    mv renamed file
    rm moved; echo through >>linked
    rm dir-to-file; mkdir -p dir-to-file/lower; echo x >dir-to-file/lower/new
    mkdir merged/lower; mv merged/more merged/lower
    echo y >deep/lower/y; rm deep/lower/z
    mv symlink fifo
    ",
    "
    rm back gone/new again/second
    mv linked moved
    mkdir tree; mv merged/lower tree/lower
    mv deep/lower deep/higher
    rm -r deep/higher/empty
    rm device appended; mv emptied appended
    rm -r merged; mkdir -p merged/lower
    ",
];

/// What is done besides where only one of the two writes, and it is not fuse-overlayfs: that forgets what a renamed
/// directory has hidden, and leaves whiteouts in directories that hide nothing, which the kernel cannot delete then.
const BEYOND: [&str; 3] = [
    "",
    "mv again hidden; mkdir again; echo second >again/second; rm -r elsewhere; rm -r file-to-dir; echo file >file-to-dir",
    "mv file renamed; rm -r hidden again gone dir-to-file; mkdir dir-to-file; echo again >again",
];

/// What one path shows: the entry, and an attribute of a user's.
type View = BTreeMap<PathBuf, (Entry, Option<Vec<u8>>)>;

#[derive(Clone, Copy, Debug)]
enum Writer {
    Ours,
    Theirs,
}

/// A mount of fuse-overlayfs.
struct Theirs {
    target: PathBuf,
    process: Process,
}

impl Theirs {
    fn new(scratch: &Scratch, place: &Place, target: PathBuf) -> Self {
        fs::create_dir_all(&target).unwrap();
        let lowers: Vec<_> = place.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let [upper, work] = [&place.upper, &place.work].map(|path| path.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lowers.join(":"));
        let mut command = Command::new(PROGRAM);
        let process = scratch.spawn(PROGRAM, command.arg("-f").arg("-o").arg(options).arg(&target));
        let mounted = || process.ended().is_some() || !mounts_below(&target).is_empty();
        wait_for("fuse-overlayfs", SOON, mounted);
        assert!(process.ended().is_none(), "{}", process.describe());
        Self { target, process }
    }
}

impl Served for Theirs {
    fn path(&self) -> &Path {
        &self.target
    }

    fn unmount(self: Box<Self>) {
        run(Command::new("umount").arg(&self.target)).ok();
        assert!(self.process.wait_exit(SOON).success(), "{}", self.process.describe());
    }

    fn is_kernel(&self) -> bool {
        false
    }
}

/// Runs commands at the top of a tree, and in its directory `sub`.
fn change(root: &Path, commands: &str) {
    for directory in [root.to_owned(), root.join("sub")] {
        let mut command = Command::new("sh");
        run(command.args(["-euc", commands]).current_dir(&directory)).ok();
        let marked = directory.join("kept");
        let before = xattr::get(&marked, "user.mark").unwrap().unwrap_or_default();
        xattr::set(&marked, "user.mark", &[&before[..], b"+"].concat()).unwrap();
    }
}

fn view(root: &Path) -> View {
    let tree = Tree::read(root);
    let shown = tree.entries().iter().filter(|(path, _)| !path.ends_with(SENTINEL));
    let mark = |path: &Path| xattr::get(root.join(path), "user.mark").ok().flatten();
    shown.map(|(path, entry)| (path.clone(), (entry.clone(), mark(path)))).collect()
}

#[track_caller]
fn assert_seen(expected: &View, seen: &View, who: &str) {
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(seen.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != seen.get(*path));
    let differ: Vec<_> =
        differ.map(|path| (path, expected.get(path), seen.get(path))).take(5).collect();
    assert!(differ.is_empty(), "{who}: expected and seen: {differ:#?}");
}

/// Everything that can be seen of a mounted overlay, but for numbers, and the time that reading may change.
fn everything(served: &dyn Served) -> facts::Tree {
    let mut tree = facts::read(served.path(), &[]);
    for facts in tree.values_mut().flatten() {
        facts.ino = 0;
        facts.changed = (0, 0);
        facts.blocks = 0;
        if !facts.listing.is_empty() {
            facts.size = 0;
        }
        let listing = std::mem::take(&mut facts.listing);
        facts.listing = listing.into_iter().map(|(name, _, kind)| (name, 0, kind)).collect();
    }
    tree
}

/// Layers, and an ordinary directory with what everybody must see of them.
struct Stand<'a> {
    scratch: &'a Scratch,
    place: Place,
    plain: PathBuf,
}

impl<'a> Stand<'a> {
    fn new(scratch: &'a Scratch, format: Format) -> Self {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.dir(name));
        fs::create_dir(lower.join("sub")).unwrap();
        change_lower(&lower);
        let plain = scratch.join("plain");
        run(Command::new("cp").arg("-a").arg(&lower).arg(&plain)).ok();
        Self {
            scratch,
            place: Place {
                lowers: vec![lower],
                upper,
                work,
                format,
                data: Data::default(),
                index: false,
            },
            plain,
        }
    }

    fn mount(&self, writer: Writer) -> Box<dyn Served> {
        let target = self.scratch.join("mnt");
        match writer {
            Writer::Ours => subject(&self.place, &target),
            Writer::Theirs => Box::new(Theirs::new(self.scratch, &self.place, target)),
        }
    }

    /// Lets one of the two do a round, and panics unless all then see the same.
    fn round(&self, number: usize, writer: Writer, beyond: bool) {
        let commands = [ROUNDS[number], if beyond { BEYOND[number] } else { "" }].concat();
        let commands = commands.as_str();
        change(&self.plain, commands);
        let expected = view(&self.plain);
        let mounted = self.mount(writer);
        change(mounted.path(), commands);
        assert_seen(&expected, &view(mounted.path()), &format!("{number}, written by {writer:?}"));
        mounted.unmount();
        for reader in [Writer::Ours, Writer::Theirs] {
            let mounted = self.mount(reader);
            let who = format!("{number}, written by {writer:?}, read by {reader:?}");
            assert_seen(&expected, &view(mounted.path()), &who);
            mounted.unmount();
        }
        self.assert_as_the_kernel();
    }

    /// Has the kernel read a copy of the upper, in which it may leave marks of its own.
    fn assert_as_the_kernel(&self) {
        let [upper, work] = ["kernel-upper", "kernel-work"].map(|name| self.scratch.join(name));
        run(Command::new("cp").arg("-a").arg(&self.place.upper).arg(&upper)).ok();
        fs::create_dir_all(&work).unwrap();
        let place = Place { upper: upper.clone(), work, ..self.place.clone() };
        let served = kernel(&place, &self.scratch.join("kernel"));
        let kernels = everything(&*served);
        served.unmount();
        let served = self.mount(Writer::Ours);
        assert_same(&kernels, &everything(&*served));
        served.unmount();
        fs::remove_dir_all(upper).unwrap();
    }
}

fn change_lower(lower: &Path) {
    for directory in [lower.to_owned(), lower.join("sub")] {
        run(Command::new("sh").args(["-euc", LOWER]).current_dir(directory)).ok();
    }
}

fn in_turns(format: Format, writers: [Writer; 3]) {
    if !require_command("peers", PROGRAM) {
        return;
    }
    as_root(move || {
        let scratch = Scratch::new();
        let stand = Stand::new(&scratch, format);
        let beyond = writers.iter().all(|writer| matches!(writer, Writer::Ours));
        for (number, writer) in writers.into_iter().enumerate() {
            stand.round(number, writer, beyond);
        }
    });
}

/// SEMANTICS W31
#[test]
fn fuse_overlayfs_reads_what_is_written_here() {
    in_turns(Format::Trusted, [Writer::Ours; 3]);
}

/// SEMANTICS W31
#[test]
fn what_fuse_overlayfs_writes_is_read_as_the_kernel_reads_it() {
    in_turns(Format::Trusted, [Writer::Theirs; 3]);
}

/// SEMANTICS W31
#[test]
fn fuse_overlayfs_goes_on_with_what_is_written_here() {
    in_turns(Format::Trusted, [Writer::Ours, Writer::Theirs, Writer::Ours]);
}

/// SEMANTICS W31
#[test]
fn what_fuse_overlayfs_writes_is_gone_on_with() {
    in_turns(Format::Trusted, [Writer::Theirs, Writer::Ours, Writer::Theirs]);
}

/// SEMANTICS W31
#[test]
fn fuse_overlayfs_reads_marks_of_the_other_namespace() {
    in_turns(Format::User, [Writer::Ours; 3]);
}

/// SEMANTICS W31
#[test]
fn marks_of_fuse_overlayfs_are_names_as_in_the_kernel() {
    if !require_command("peers", PROGRAM) {
        return;
    }
    as_root(|| {
        let scratch = Scratch::new();
        let stand = Stand::new(&scratch, Format::Trusted);
        let theirs = stand.mount(Writer::Theirs);
        run(Command::new("mv").args(["tree", "elsewhere"]).current_dir(theirs.path())).ok();
        theirs.unmount();
        let copy = scratch.join("copy");
        run(Command::new("cp").arg("-a").arg(&stand.place.upper).arg(&copy)).ok();
        let of_kernel =
            Place { upper: copy, work: scratch.dir("copy-work"), ..stand.place.clone() };
        let target = scratch.join("mnt");
        for mount in
            [&|| kernel(&of_kernel, &target) as Box<dyn Served>, &|| stand.mount(Writer::Ours)]
                as [&dyn Fn() -> Box<dyn Served>; 2]
        {
            let mounted = mount();
            let elsewhere = mounted.path().join("elsewhere");
            assert!(elsewhere.join(SENTINEL).exists());
            // All that is seen goes, but not the whiteout that is left.
            run(Command::new("rm").arg("-r").arg(&elsewhere)).fails();
            let error = fs::remove_dir(&elsewhere).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
            assert_eq!(Tree::try_read(&elsewhere).map_or(0, |tree| tree.entries().len()), 0);
            mounted.unmount();
        }
    });
}
