//! A view of directories, served in the foreground.

use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use overstream_fuse::bridge::{self, Unmounted, Unmounter};
use overstream_fuse::layer::open_lowers;
use overstream_fuse::{MountOptions, Overlay, split_lowers};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Debug, Args)]
pub(super) struct Mount {
    /// Directories to merge, the topmost first, separated by colons; `\:` is a colon in a name
    #[arg(long, value_name = "LIST")]
    lower: OsString,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS", default_value = "", hide_default_value = true)]
    options: String,
    /// Directory to mount on
    mount_point: PathBuf,
}

pub(super) fn run(args: &Mount) -> Result<(), String> {
    let lowers = split_lowers(&args.lower).map_err(|problem| format!("--lower: {problem}"))?;
    let options = MountOptions::parse(&args.options).map_err(|problem| format!("-o: {problem}"))?;
    let at = |error: std::io::Error| format!("mount point {}: {error}", args.mount_point.display());
    let target = args.mount_point.canonicalize().map_err(at)?;
    if !target.is_dir() {
        return Err(at(std::io::ErrorKind::NotADirectory.into()));
    }
    raise_descriptor_limit()?;
    let layers = open_lowers(&lowers, &target).map_err(|refused| format!("--lower: {refused}"))?;
    let overlay = Overlay::new(layers, options.format).ok_or("--lower: no directory is given")?;
    // Before there are threads, so that no other one takes them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().map_err(|errno| format!("block signals: {errno}"))?;
    let mut mounted = bridge::mount(overlay, &target, &options).map_err(at)?;
    let unmounter = mounted.unmounter();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || unmount_on(&signals, unmounter))
        .map_err(|error| format!("start a thread: {error}"))?;
    eprintln!("overstream: {} is mounted, read-only; Ctrl-C unmounts it", target.display());
    mounted.serve().map_err(at)
}

/// Takes as many descriptors as are allowed: every layer needs one, and every file that is open.
fn raise_descriptor_limit() -> Result<(), String> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|errno| format!("raise the limit of open files: {errno}"))
}

/// Unmounts at the first signal; if users hold the mount, ends the process at the second.
fn unmount_on(signals: &SigSet, mut unmounter: Unmounter) {
    while signals.wait().is_ok() {
        match unmounter.unmount() {
            Ok(Unmounted::Gone) => return,
            Ok(Unmounted::InUse) => {
                eprintln!(
                    "overstream: the mount is in use, and goes on without a name until that ends; \
                     another signal ends it now"
                );
                break;
            }
            Err(error) => eprintln!("overstream: cannot unmount: {error}"),
        }
    }
    if signals.wait().is_ok() {
        std::process::exit(1);
    }
}
