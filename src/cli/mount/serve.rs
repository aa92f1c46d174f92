//! Serves a mount in this process, until it is unmounted or a signal comes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use overstream_fuse::bridge::{self, Unmounted, Unmounter};
use overstream_fuse::layer::open_layers;
use overstream_fuse::{MountOptions, Overlay};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::background::Parent;
use super::forms::Request;
use super::trace::Trace;

/// Signals that are waited for.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];

pub(super) fn serve(request: Request, parent: Option<Parent>) -> Result<(), String> {
    let Request { options, target, log, trace, debug, .. } = request;
    let target = mount_point(&target)?;
    check_context(&options)?;
    check_fuse()?;
    let log = log.map(|path| open_log(&path)).transpose()?;
    set_up_log(debug, log.clone())?;
    raise_descriptor_limit()?;
    let upper = options.upper.as_deref().zip(options.work.as_deref());
    let layers = open_layers(&options.lowers, upper, &target);
    let mut layers = layers.map_err(|refused| refused.to_string())?;
    if let Some(upper) = layers.upper().filter(|_| options.volatile) {
        upper.set_volatile();
    }
    if let Some(upper) = layers.upper().filter(|_| !options.index) {
        upper.set_no_index();
    }
    if let Some(upper) = layers.upper().filter(|_| trace) {
        upper.set_sink(Arc::new(Trace::new()));
    }
    let overlay = Overlay::new(layers, options.format);
    // Before there are threads, so that no other one takes them.
    let signals = SigSet::from_iter(SIGNALS);
    signals.thread_block().map_err(|errno| format!("block signals: {errno}"))?;
    let at = |error: io::Error| format!("mount point {}: {error}", target.display());
    let mut mounted = bridge::mount(overlay, &target, &options).map_err(at)?;
    let unmounter = mounted.unmounter();
    let (named, overlay) = (target.display().to_string(), mounted.overlay());
    // Who waits for signals must not keep it: its end empties the work directory.
    let overlay = Arc::downgrade(&overlay);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || obey(&signals, &named, unmounter, &overlay))
        .map_err(|error| format!("start a thread: {error}"))?;
    options.notes.iter().for_each(|note| say(note));
    if let Some(parent) = parent {
        parent.announce(log.as_deref())?;
    } else {
        let how = if options.read_only() { ", read-only" } else { "" };
        say(&format!("{} is mounted{how}; Ctrl-C unmounts it", target.display()));
        let replaced = log.map(rustix::stdio::dup2_stderr).transpose();
        replaced.map_err(|errno| format!("write to the log: {errno}"))?;
    }
    mounted.serve().map_err(at)
}

/// Resolves the mount point, which must be a directory.
fn mount_point(path: &Path) -> Result<PathBuf, String> {
    let at = |error: io::Error| {
        let dead = error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error());
        let advice = if dead { "; its server was killed: unmount it first" } else { "" };
        format!("mount point {}: {error}{advice}", path.display())
    };
    let target = path.canonicalize().map_err(at)?;
    if !fs::metadata(&target).map_err(at)?.is_dir() {
        return Err(at(io::ErrorKind::NotADirectory.into()));
    }
    Ok(target)
}

/// Without `SELinux` the kernel would refuse the option as one it has never heard of.
fn check_context(options: &MountOptions) -> Result<(), String> {
    if options.context.is_none() {
        return Ok(());
    }
    let known = fs::read_to_string("/proc/filesystems").map_err(|error| error.to_string())?;
    if known.lines().any(|line| line.ends_with("selinuxfs")) {
        return Ok(());
    }
    Err("option context: this host's kernel has no SELinux".to_owned())
}

/// Opens a file that what is said is added to.
fn open_log(path: &Path) -> Result<Arc<File>, String> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(Arc::new).map_err(|error| format!("log {}: {error}", path.display()))
}

/// Names what is missing, which mount(2) does not.
fn check_fuse() -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("/dev/fuse: {error}; it must be writable for you")
        }
        _ => format!("/dev/fuse: {error}; try `modprobe fuse`"),
    })
}

/// Prints errors of the connection to the kernel, and with `debug` every request.
fn set_up_log(debug: bool, log: Option<Arc<File>>) -> Result<(), String> {
    let filter = if debug { "debug" } else { "error" };
    let writer = match log {
        Some(log) => BoxMakeWriter::new(log),
        None => BoxMakeWriter::new(io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    builder.with_ansi(false).try_init().map_err(|error| format!("set up the log: {error}"))
}

/// Takes as many descriptors as are allowed: every layer needs one, and every file that is open.
fn raise_descriptor_limit() -> Result<(), String> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|errno| format!("raise the limit of open files: {errno}"))
}

/// Unmounts at the first signal that ends; if users hold the mount, ends the process at the second.
fn obey(signals: &SigSet, target: &str, mut unmounter: Unmounter, overlay: &Weak<Overlay>) {
    let mut in_use = false;
    while let Ok(signal) = signals.wait() {
        match signal {
            Signal::SIGUSR1 => {
                let known = overlay.upgrade().map_or(0, |overlay| overlay.remembered());
                say(&format!("{target}: {known} inodes known, {}", resources()));
            }
            _ if in_use => std::process::exit(1),
            _ => match unmounter.unmount() {
                Ok(Unmounted::Gone) => return,
                Ok(Unmounted::InUse) => {
                    say(
                        "the mount is in use, and goes on without a name until that ends; another \
                         signal ends it now",
                    );
                    in_use = true;
                }
                Err(error) => say(&format!("cannot unmount: {error}")),
            },
        }
    }
}

/// Prints a line. Whoever no longer listens does not end the mount.
pub(super) fn say(line: &str) {
    writeln!(io::stderr(), "overstream: {line}").ok();
}

/// Tells what serving takes.
fn resources() -> String {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    format!("{open} descriptors open, {} of memory", resident.unwrap_or("?").trim())
}
