//! An upper has one writer, and a place where it hides and shows nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use overstream_fuse::layer::{Claim, Holder, Role, Unclaimable, claim, in_use};
use overstream_testkit::{Scratch, limit, require_root, run, wait_for};

const SOON: Duration = Duration::from_secs(10);
const NONE: Option<&str> = None;

/// The directories of a mount, below one that is the test's.
struct Dirs {
    upper: PathBuf,
    work: PathBuf,
    lower: PathBuf,
    target: PathBuf,
}

impl Dirs {
    fn new(scratch: &Scratch) -> Self {
        let [upper, work, lower, target] =
            ["upper", "work", "lower", "target"].map(|name| scratch.dir(name));
        Self { upper, work, lower, target }
    }

    fn claim(&self) -> Result<Claim, Unclaimable> {
        claim(&self.upper, &self.work, std::slice::from_ref(&self.lower), &self.target)
    }

    fn options(&self, more: &str) -> String {
        let [lower, upper, work] = [&self.lower, &self.upper, &self.work].map(|p| p.display());
        format!("lowerdir={lower},upperdir={upper},workdir={work}{more}")
    }

    /// Has the kernel mount these directories; the scratch directory unmounts them.
    fn kernel(&self, more: &str) -> nix::Result<()> {
        let kind = Some("overlay");
        mount(kind, &self.target, kind, MsFlags::empty(), Some(self.options(more).as_str()))
    }
}

fn with_scratch(body: impl FnOnce(&Scratch) + Send + 'static) {
    if require_root() {
        limit(Duration::from_secs(60), move || body(&Scratch::new()));
    }
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).unwrap();
}

fn used(result: Result<Claim, Unclaimable>) -> (Role, Holder) {
    match result.map(drop) {
        Err(Unclaimable::InUse { role, holder, .. }) => (role, holder),
        other => panic!("{other:?}"),
    }
}

fn errno(dirs: &Dirs) -> (Role, Errno) {
    match dirs.claim().map(drop) {
        Err(Unclaimable::Directory { role, source, .. }) => {
            (role, Errno::from_raw(source.raw_os_error().unwrap()))
        }
        other => panic!("{other:?}"),
    }
}

/// SEMANTICS O17
#[test]
fn an_upper_has_one_mount_of_ours() {
    with_scratch(|scratch| {
        let dirs = Dirs::new(scratch);
        let first = dirs.claim().unwrap();
        assert_eq!(used(dirs.claim()), (Role::Upper, Holder::Ours));
        let other_work = Dirs { work: scratch.dir("work2"), ..Dirs::new(scratch) };
        assert_eq!(used(other_work.claim()), (Role::Upper, Holder::Ours));
        let other_upper = Dirs { upper: scratch.dir("upper2"), ..Dirs::new(scratch) };
        assert_eq!(used(other_upper.claim()), (Role::Work, Holder::Ours));
        let exchanged =
            Dirs { upper: dirs.work.clone(), work: scratch.dir("work2"), ..Dirs::new(scratch) };
        assert_eq!(used(exchanged.claim()), (Role::Upper, Holder::Ours));
        drop(first);
        drop(dirs.claim().unwrap());
        // What was refused has left no lock behind.
        drop(other_work.claim().unwrap());
        drop(other_upper.claim().unwrap());
        for name in ["upper", "work"] {
            assert_eq!(fs::read_dir(scratch.join(name)).unwrap().count(), 0, "{name}");
        }
    });
}

/// SEMANTICS O17
#[test]
fn a_lock_ends_with_its_process() {
    with_scratch(|scratch| {
        let dirs = Dirs::new(scratch);
        let mut holder = Command::new("flock");
        holder.arg("--exclusive").arg(&dirs.work).args(["sleep", "1000"]);
        let holder = scratch.spawn("holder", &mut holder);
        wait_for("the lock", SOON, || dirs.claim().is_err());
        assert_eq!(used(dirs.claim()), (Role::Work, Holder::Ours));
        holder.kill();
        wait_for("its end", SOON, || dirs.claim().is_ok());
    });
}

/// SEMANTICS O17
#[test]
fn an_upper_that_the_kernel_uses_is_refused() {
    with_scratch(|scratch| {
        let dirs = Dirs::new(scratch);
        dirs.kernel("").unwrap();
        let elsewhere = Dirs { target: scratch.dir("target2"), ..Dirs::new(scratch) };
        assert_eq!(used(elsewhere.claim()), (Role::Upper, Holder::Kernel));
        let other_upper = Dirs {
            upper: scratch.dir("upper2"),
            target: scratch.dir("target2"),
            ..Dirs::new(scratch)
        };
        assert_eq!(used(other_upper.claim()), (Role::Work, Holder::Kernel));
        // Under another name, and in no mount table.
        let alias = scratch.dir("alias");
        bind(&dirs.upper, &alias);
        let upper = fs::File::open(&alias).unwrap();
        assert!(in_use(upper.as_fd()).unwrap());
        umount(&dirs.target).unwrap();
        assert!(!in_use(upper.as_fd()).unwrap());
        drop(upper);
        umount(&alias).unwrap();
        drop(dirs.claim().unwrap());
        // A claim leaves nothing that would keep the kernel from mounting.
        dirs.kernel(",index=on").unwrap();
    });
}

/// SEMANTICS O18
#[test]
fn what_lies_in_each_other_is_refused() {
    with_scratch(|scratch| {
        let make = || Dirs::new(scratch);
        let inside = |of: &str| scratch.dir(format!("{of}/inside"));
        let link = scratch.join("link");
        symlink(scratch.dir("upper"), &link).unwrap();
        let alias = scratch.dir("alias");
        bind(&scratch.dir("upper"), &alias);
        let in_alias = scratch.dir("alias/in");
        use Role::{Lower, Target, Upper, Work};
        for (dirs, pair) in [
            (Dirs { work: make().upper, ..make() }, (Upper, Work)),
            (Dirs { work: inside("upper"), ..make() }, (Upper, Work)),
            (Dirs { upper: inside("work"), ..make() }, (Upper, Work)),
            (Dirs { work: link, ..make() }, (Upper, Work)),
            (Dirs { lower: make().upper, ..make() }, (Upper, Lower)),
            (Dirs { lower: inside("upper"), ..make() }, (Upper, Lower)),
            (Dirs { upper: inside("lower"), ..make() }, (Upper, Lower)),
            (Dirs { lower: alias.clone(), ..make() }, (Upper, Lower)),
            (Dirs { lower: in_alias.clone(), ..make() }, (Upper, Lower)),
            (Dirs { work: inside("lower"), ..make() }, (Work, Lower)),
            (Dirs { lower: inside("work"), ..make() }, (Work, Lower)),
            (Dirs { target: make().upper, ..make() }, (Upper, Target)),
            (Dirs { target: inside("upper"), ..make() }, (Upper, Target)),
            (Dirs { target: in_alias, ..make() }, (Upper, Target)),
            (Dirs { upper: inside("target"), ..make() }, (Upper, Target)),
            (Dirs { work: inside("target"), ..make() }, (Work, Target)),
        ] {
            match dirs.claim().map(drop) {
                Err(Unclaimable::Overlap((one, _), (other, _))) => assert_eq!((one, other), pair),
                other => panic!("{pair:?}: {other:?}"),
            }
            // The kernel has no objection to its mount point.
            if pair.1 != Target {
                assert!(dirs.kernel(",index=on").is_err(), "{pair:?}");
            }
        }
    });
}

/// SEMANTICS O18
#[test]
fn upper_and_work_lie_on_one_mount() {
    with_scratch(|scratch| {
        let apart = |dirs: &Dirs| {
            let refused = dirs.claim().map(drop);
            assert!(matches!(refused, Err(Unclaimable::Apart { .. })), "{refused:?}");
            assert!(dirs.kernel("").is_err());
        };
        let tmpfs = Some("tmpfs");
        let other = scratch.dir("other");
        mount(tmpfs, &other, tmpfs, MsFlags::empty(), NONE).unwrap();
        apart(&Dirs { work: scratch.dir("other/work"), ..Dirs::new(scratch) });
        // One file system, and two mounts of it: rename(2) does not cross them.
        let alias = scratch.dir("alias");
        bind(&scratch.dir("there"), &alias);
        apart(&Dirs { work: alias, ..Dirs::new(scratch) });
    });
}

/// SEMANTICS O18
#[test]
fn what_cannot_be_written_to_is_refused() {
    with_scratch(|scratch| {
        let dirs = Dirs::new(scratch);
        let none = Dirs { upper: scratch.join("none"), ..Dirs::new(scratch) };
        assert_eq!(errno(&none), (Role::Upper, Errno::ENOENT));
        let file = Dirs { work: scratch.write("file", ""), ..Dirs::new(scratch) };
        assert_eq!(errno(&file), (Role::Work, Errno::ENOTDIR));
        run(Command::new("chattr").arg("+i").arg(&dirs.work)).ok();
        let immutable = errno(&dirs);
        run(Command::new("chattr").arg("-i").arg(&dirs.work)).ok();
        assert_eq!(immutable, (Role::Work, Errno::EPERM));
        let read_only = scratch.dir("ro");
        bind(&read_only, &read_only);
        let [upper, work] = ["ro/u", "ro/w"].map(|name| scratch.dir(name));
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, &read_only, NONE, flags, NONE).unwrap();
        let dirs = Dirs { upper, work, ..dirs };
        assert_eq!(errno(&dirs), (Role::Upper, Errno::EROFS));
    });
}

/// Without the right to mount, the kernel cannot be asked; locks and checks hold all the same.
///
/// SEMANTICS O17, O18
#[test]
fn a_user_claims_as_well() {
    if let Some(base) = std::env::var_os(BASE) {
        return as_user(Path::new(&base));
    }
    with_scratch(|scratch| {
        let program = scratch.join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let dirs = Dirs::new(scratch);
        for dir in [&dirs.upper, &dirs.work] {
            chown(dir, Some(USER), Some(USER)).unwrap();
        }
        let mut command = Command::new(program);
        command.args(["--exact", "a_user_claims_as_well"]).env(BASE, scratch.path());
        let said = run(command.uid(USER).gid(USER)).ok().text();
        assert!(said.contains("1 passed"), "{said}");
    });
}

/// Tells the program that it runs as the user, and where.
const BASE: &str = "OVERSTREAM_CLAIM_IN";
const USER: u32 = 1234;

fn as_user(base: &Path) {
    let [upper, work, lower, target] =
        ["upper", "work", "lower", "target"].map(|name| base.join(name));
    let dirs = Dirs { upper, work, lower, target };
    let directory = fs::File::open(&dirs.upper).unwrap();
    assert_eq!(in_use(directory.as_fd()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let first = dirs.claim().unwrap();
    assert_eq!(used(dirs.claim()), (Role::Upper, Holder::Ours));
    drop(first);
    let roots = Dirs { upper: dirs.lower.clone(), lower: dirs.upper.clone(), ..dirs };
    assert_eq!(errno(&roots), (Role::Upper, Errno::EACCES));
}
