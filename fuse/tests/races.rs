//! Many threads at the same few names: copying up, renaming, linking, deleting, listing, while the kernel
//! forgets what it knows. Afterwards everybody sees the same, and nothing is remembered or open any more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;
use overstream_fuse::layer::open_layers;
use overstream_fuse::{Format, MountOptions, Overlay, bridge};
use overstream_testkit::facts::{self, Tree, assert_same};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Scratch, limit, require_fuse, require_root, wait_for};
use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, StatxFlags};

const SOON: Duration = Duration::from_secs(20);
const THREADS: u64 = 8;
const DIRS: [&str; 3] = ["d", "e", "f"];
const NAMES: u64 = 5;
/// How many files may be remembered when nobody uses any.
const FEW: usize = 4;

/// What may happen to somebody whose files others change.
const EXPECTED: [Errno; 9] = [
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::EXDEV,
    Errno::ENOTEMPTY,
    Errno::EISDIR,
    Errno::ENOTDIR,
    Errno::EINVAL,
    Errno::ENXIO,
    // A directory gets no second name.
    Errno::EPERM,
];

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let dir = DIRS[usize::try_from(self.below(DIRS.len() as u64)).unwrap()];
        root.join(dir).join(format!("n{}", self.below(NAMES)))
    }
}

/// SEMANTICS O12, W22
#[test]
fn many_threads_at_few_names_leave_one_truth() {
    if !require_root() || !require_fuse() {
        return;
    }
    let full = std::env::var_os("OVERSTREAM_FULL").is_some();
    let time = Duration::from_secs(if full { 120 } else { 10 });
    // Who is still waiting a minute later waits for ever.
    limit(time + Duration::from_secs(60), move || race(time));
}

/// A file was once reached by its name until it was known that the name had been taken from it.
///
/// SEMANTICS W22
#[test]
fn what_takes_a_files_name_is_not_taken_for_it() {
    if require_root() && require_fuse() {
        limit(Duration::from_secs(120), || {
            let scratch = Scratch::new();
            let layers = Layers::new(&scratch.dir("layers"));
            let target = scratch.dir("mnt");
            let options = MountOptions::default();
            let mut mounted = bridge::mount(layers.overlay(&target), &target, &options).unwrap();
            let mut unmounter = mounted.unmounter();
            let server = thread::spawn(move || mounted.serve().unwrap());
            (0..500).for_each(|round| replace(&target, round));
            wait_for("an unmount", SOON, || unmounter.unmount().is_ok());
            server.join().unwrap();
        });
    }
}

/// Replaces or deletes a file while somebody asks what it is.
fn replace(root: &Path, round: u32) {
    let (file, other) = (root.join("d/n1"), root.join("d/other"));
    fs::write(&file, "file").unwrap();
    symlink("link", &other).unwrap();
    let open = File::open(&file).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // The kernel has to ask.
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
                let stat = rustix::fs::statx(&open, "", flags, StatxFlags::BASIC_STATS).unwrap();
                let kind = FileType::from_raw_mode(stat.stx_mode.into());
                assert_eq!((kind, stat.stx_size), (FileType::RegularFile, 4));
            }
        });
        match round % 2 {
            0 => fs::rename(&other, &file).unwrap(),
            _ => fs::remove_file(&file).unwrap(),
        }
        over.store(true, Ordering::Relaxed);
    });
    fs::remove_file(&file).ok();
    fs::remove_file(&other).ok();
}

fn race(time: Duration) {
    let seed = std::env::var("OVERSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) + 1);
    println!("OVERSTREAM_SEED={seed}");
    let scratch = Scratch::new();
    let base = scratch.dir("layers");
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &base, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    let layers = Layers::new(&base);
    let before = layers.lowers.clone().map(|lower| facts::read(&lower, &[]));
    let open = descriptors();

    let target = scratch.dir("mnt");
    let mut mounted =
        bridge::mount(layers.overlay(&target), &target, &MountOptions::default()).unwrap();
    let (mut unmounter, overlay) = (mounted.unmounter(), mounted.overlay());
    let server = thread::spawn(move || mounted.serve().unwrap());
    let done = AtomicU64::new(0);
    stress(&target, time, seed, &done);
    assert!(done.load(Ordering::Relaxed) > 1000, "too slow: {done:?}");

    let live = seen(&target);
    forget();
    wait_for("the kernel to forget", SOON, || {
        forget();
        overlay.remembered() <= FEW
    });
    assert_same(&live, &seen(&target));
    drop(overlay);
    wait_for("an unmount", SOON, || unmounter.unmount().is_ok());
    server.join().unwrap();
    assert_eq!(fs::read_dir(layers.work.join("work")).unwrap().count(), 0);
    drop(unmounter);
    wait_for("all to be closed", SOON, || descriptors() <= open);

    assert_same(&layers.seen_by_kernel(), &live);
    for (lower, before) in layers.lowers.iter().zip(&before) {
        assert_same(before, &facts::read(lower, &[]));
    }
}

struct Layers {
    lowers: [PathBuf; 2],
    upper: PathBuf,
    work: PathBuf,
    oracle: PathBuf,
}

impl Layers {
    fn new(base: &Path) -> Self {
        let make = |name: &str| {
            fs::create_dir(base.join(name)).unwrap();
            base.join(name)
        };
        let (lowers, upper, work) = ([make("0"), make("1")], make("u"), make("w"));
        for (number, lower) in lowers.iter().enumerate() {
            for dir in DIRS {
                fs::create_dir(lower.join(dir)).unwrap();
                for name in (0..NAMES).filter(|name| !(name + number as u64).is_multiple_of(3)) {
                    let path = lower.join(dir).join(format!("n{name}"));
                    fs::write(&path, vec![b'0'; 40_000]).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
                }
            }
        }
        Self { lowers, upper, work, oracle: make("oracle") }
    }

    fn overlay(&self, target: &Path) -> Overlay {
        let layers = open_layers(&self.lowers, Some((&self.upper, &self.work)), target).unwrap();
        Overlay::new(layers, Format::Trusted)
    }

    fn seen_by_kernel(&self) -> Tree {
        let lowers: Vec<_> = self.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let options = [
            format!("lowerdir={}", lowers.join(":")),
            format!("upperdir={}", self.upper.display()),
            format!("workdir={}", self.work.display()),
        ];
        let fixed = ["index=off", "xino=off", "redirect_dir=off", "metacopy=off"];
        let options = options.into_iter().chain(fixed.map(str::to_owned)).collect();
        let overlay = "overlay".to_owned();
        let mount =
            Mount { r#type: overlay.clone(), source: overlay, target: String::new(), options };
        let mounted = overstream_testkit::mount(&[mount], &self.oracle);
        let tree = seen(mounted.path());
        mounted.unmount();
        tree
    }
}

/// Has all threads do what comes into their minds.
fn stress(root: &Path, time: Duration, seed: u64, done: &AtomicU64) {
    let (end, over) = (Instant::now() + time, AtomicBool::new(false));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_mul(2 * number + 1) | 1 << 40);
                    while Instant::now() < end {
                        let (what, result) = act(root, &mut random);
                        if let Err(error) = result {
                            let known = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                            assert!(EXPECTED.contains(&known), "{what}: {error}");
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                forget();
                thread::sleep(Duration::from_millis(300));
            }
        });
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
}

/// Does one thing; returns what.
fn act(root: &Path, random: &mut Random) -> (&'static str, io::Result<()>) {
    let (path, other) = (random.path(root), random.path(root));
    match random.below(14) {
        0 => ("create", File::create_new(&path).map(drop)),
        1 => ("append", append(&path)),
        2 => (
            "write",
            OpenOptions::new().write(true).open(&path).and_then(|f| f.write_all_at(b"xyz", 9)),
        ),
        3 => ("chmod", fs::set_permissions(&path, fs::Permissions::from_mode(0o644))),
        4 | 5 => ("rename", fs::rename(&path, &other)),
        6 => {
            let exchanged =
                rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE);
            ("exchange", exchanged.map_err(io::Error::from))
        }
        7 => ("link", fs::hard_link(&path, &other)),
        8 => ("unlink", fs::remove_file(&path)),
        9 => ("mkdir", fs::create_dir(&path)),
        10 => ("rmdir", fs::remove_dir(&path)),
        11 => ("symlink", symlink("somewhere", &path)),
        12 => ("read", fs::read(&path).map(drop)),
        _ => ("list", list(path.parent().unwrap())),
    }
}

fn append(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    // Files stay small.
    if file.metadata()?.len() > 100_000 { file.set_len(10) } else { file.write_all(b"more") }
}

/// Looks at everything in a directory. What is listed may be gone when it is looked at.
fn list(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        match entry?.metadata() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Has the kernel forget all names and inodes that nobody uses.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Reads a view, without numbers and what the file systems count differently.
fn seen(root: &Path) -> Tree {
    let mut tree = facts::read(root, &[]);
    for facts in tree.values_mut().flatten() {
        (facts.ino, facts.blocks) = (0, 0);
        if FileType::from_raw_mode(facts.mode) == FileType::Directory {
            (facts.size, facts.changed) = (0, (0, 0));
        }
        let listing = std::mem::take(&mut facts.listing);
        facts.listing = listing.into_iter().map(|(name, _, kind)| (name, 0, kind)).collect();
    }
    tree
}
