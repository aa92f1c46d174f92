//! One operation's layers, mounted by turns: by the kernel's overlayfs, by the real daemon, and by this process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, umount2};
use overstream_fuse::layer::open_layers;
use overstream_fuse::{Format, MountOptions, Overlay};
use overstream_testkit::facts::{self, Tree, assert_same};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Mounted, Process, Scratch, limit, require_command, require_fuse, require_root, wait_for,
};

use super::layers::Layers;
use super::ops::{Op, all};
use super::seen::{Eye, Views, Which};
use super::traced::{Call, Tracer};
use crate::served::Served;

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
pub(super) const SOON: Duration = Duration::from_secs(20);
/// Most of the time everybody waits for a tracer.
const WORKERS: usize = 4;

/// Tells whether everything is to be tested, not only what is quick.
pub(super) fn full() -> bool {
    std::env::var_os("OVERSTREAM_FULL").is_some()
}

/// Runs a test that traces, as root.
pub(super) fn as_root(body: impl FnOnce() + Send + 'static) {
    if require_root() && require_fuse() && require_command("strace", "strace") {
        limit(Duration::from_secs(if full() { 2400 } else { 600 }), body);
    }
}

/// An operation and what is there before it.
pub(super) struct World<'a> {
    pub(super) op: &'a Op,
    scratch: &'a Scratch,
    /// What processes and logs are called.
    name: String,
    layers: Layers,
    lowers: [Tree; 2],
    pub(super) eye: Eye,
    pub(super) views: Views,
}

/// The daemon, serving a copy of the upper.
pub(super) struct Daemon<'a> {
    world: &'a World<'a>,
    pub(super) process: Process,
    name: String,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

/// Does `each` with every operation in a world of its own, several at a time; panics with all that went wrong.
#[track_caller]
pub(super) fn for_all(each: impl Fn(&World<'_>) -> Vec<String> + Sync) {
    let scratch = Scratch::new();
    let base = scratch.dir("layers");
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &base, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    let only = std::env::var("OVERSTREAM_ONLY").ok();
    let ops: Vec<_> =
        all().into_iter().filter(|op| only.as_ref().is_none_or(|o| op.name == o)).collect();
    let (todo, wrong) = (Mutex::new(ops.iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((number, op)) = todo.lock().unwrap().next() else { break };
                    let world = World::new(&scratch, &base, number, op);
                    let found = each(&world);
                    let found = found.into_iter().map(|what| format!("{}: {what}", op.name));
                    wrong.lock().unwrap().extend(found);
                    world.assert_lowers_unchanged();
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} times\n{}", wrong.len(), wrong.join("\n"));
}

impl<'a> World<'a> {
    fn new(scratch: &'a Scratch, base: &Path, number: usize, op: &'a Op) -> Self {
        let layers = Layers::new(base.join(number.to_string()));
        (op.make)(&layers);
        let lowers = layers.lowers().map(|lower| facts::read(&lower, &[]));
        let eye = Eye::new();
        let upper = layers.copy_upper("oracle");
        let old = kernel(&layers, &upper);
        let before = eye.view(old.path());
        (op.run)(old.path()).unwrap_or_else(|error| panic!("{}: the kernel: {error}", op.name));
        old.unmount();
        let new = kernel(&layers, &upper);
        let views = Views { old: before, new: eye.view(new.path()) };
        new.unmount();
        assert_ne!(views.old, views.new, "{} changes nothing", op.name);
        Self { op, scratch, name: number.to_string(), layers, lowers, eye, views }
    }

    /// Does it once undisturbed, and returns the daemon's calls.
    pub(super) fn calls(&self) -> Result<Vec<Call>, String> {
        let daemon = self.mount("calls");
        let tracer = daemon.trace(None);
        let done = (self.op.run)(&daemon.target);
        let calls = tracer.calls();
        let which = self.which(&daemon.target)?;
        daemon.stop();
        match (done, which) {
            (Ok(()), Which::New) => Ok(calls),
            other => Err(format!("undisturbed: {other:?}")),
        }
    }

    /// Has the daemon mount a copy of the upper.
    #[track_caller]
    pub(super) fn mount(&self, name: &str) -> Daemon<'_> {
        let name = format!("{}-{name}", self.name);
        let upper = self.layers.copy_upper(&format!("upper-{name}"));
        let directory = |kind: &str| {
            let path = self.layers.base().join(format!("{kind}-{name}"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (work, target) = (directory("work"), directory("mnt"));
        let lowers = self.layers.lowers().map(|lower| lower.display().to_string()).join(":");
        let mut command = Command::new(BINARY);
        // One thread serves, so that the calls come in one order.
        command.args(["mount", "--lower", &lowers, "-o", "threaded=0", "--upper"]).arg(&upper);
        command.arg("--work").arg(&work).arg(&target);
        let process = self.scratch.spawn(&name, &mut command);
        wait_for("the mount", SOON, || {
            assert!(process.ended().is_none(), "{}", process.describe());
            process.log().contains(" is mounted")
        });
        Daemon { world: self, process, name, upper, work, target }
    }

    /// Tells which view a mount shows.
    pub(super) fn which(&self, root: &Path) -> Result<Which, String> {
        self.views.which(&self.eye.view(root))
    }

    fn assert_lowers_unchanged(&self) {
        for (before, lower) in self.lowers.iter().zip(self.layers.lowers()) {
            assert_same(before, &facts::read(&lower, &[]));
        }
    }
}

impl Daemon<'_> {
    /// Traces it, perhaps with something to be done at a call.
    #[track_caller]
    pub(super) fn trace(&self, inject: Option<&str>) -> Tracer {
        Tracer::attach(self.world.scratch, &self.name, &self.process, inject)
    }

    /// Does the operation in its mount.
    pub(super) fn run(&self) -> std::io::Result<()> {
        (self.world.op.run)(&self.target)
    }

    /// Tells which view it shows.
    pub(super) fn which(&self) -> Result<Which, String> {
        self.world.which(&self.target)
    }

    /// Unmounts it by a signal; panics if it does not end well.
    #[track_caller]
    pub(super) fn stop(&self) {
        let status = self.process.stop(SOON);
        let log = self.process.log();
        assert!(status.success() && !log.contains("panicked"), "{}", self.process.describe());
    }

    /// Gets rid of the mount that a killed daemon left.
    pub(super) fn detach(&self) {
        umount2(&self.target, MntFlags::MNT_DETACH).ok();
    }

    /// Returns what lies in the work directory.
    pub(super) fn left_in_work(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.work.join("work")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Mounts the upper anew, with ours and then with the kernel's; returns the view that both show. The work
    /// directory must be empty afterwards.
    pub(super) fn examine(self) -> Result<Which, String> {
        let layers = &self.world.layers;
        let (lowers, view) = (layers.lowers(), layers.base().join(format!("view-{}", self.name)));
        fs::create_dir(&view).unwrap();
        let opened = open_layers(&lowers, Some((&self.upper, &self.work)), &view);
        let opened = opened.map_err(|refused| refused.to_string())?;
        let overlay = Overlay::new(opened, Format::Trusted);
        let served = Served::new(overlay, view, &MountOptions::default());
        let ours = self.world.which(served.path());
        drop(served);
        let left = self.left_in_work();
        let mounted = kernel(layers, &self.upper);
        let theirs = self.world.which(mounted.path());
        mounted.unmount();
        for path in [&self.upper, &self.work, &self.target] {
            fs::remove_dir_all(path).ok();
        }
        let ours = ours.map_err(|what| format!("ours shows {what}"))?;
        let theirs = theirs.map_err(|what| format!("the kernel's shows {what}"))?;
        match left.as_slice() {
            [] if ours == theirs => Ok(ours),
            [] => Err(format!("ours shows the {ours:?} view, the kernel's the {theirs:?} one")),
            left => Err(format!("left in work: {left:?}")),
        }
    }
}

/// Mounts the kernel's overlayfs, with a new work directory.
fn kernel(layers: &Layers, upper: &Path) -> Mounted {
    let named = |kind: &str| {
        let name = upper.file_name().unwrap().to_str().unwrap();
        layers.base().join(format!("{kind}-{name}"))
    };
    let (work, target) = (named("oracle-work"), named("oracle-mnt"));
    fs::remove_dir_all(&work).ok();
    fs::create_dir(&work).unwrap();
    let lowers = layers.lowers().map(|lower| lower.display().to_string()).join(":");
    let options = [
        format!("lowerdir={lowers}"),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    // The host may have other defaults.
    let fixed = ["index=off", "xino=off", "redirect_dir=off", "metacopy=off"];
    let options = options.into_iter().chain(fixed.map(str::to_owned)).collect();
    let overlay = "overlay".to_owned();
    let mount = Mount { r#type: overlay.clone(), source: overlay, target: String::new(), options };
    overstream_testkit::mount(&[mount], target)
}
