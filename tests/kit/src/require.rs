//! Says aloud which tests did not run, or forbids that.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Tells loudly that the current test did not run because `capability` is missing.
///
/// The line goes to standard error past the test harness, and to the file named by
/// `OVERSTREAM_NOT_RUN_FILE`. Panics instead if `OVERSTREAM_REQUIRE` names the capability or `all`,
/// so that a run which promises to cover it cannot pass without.
pub fn not_run(capability: &str, why: &str) {
    let test = test_name();
    let line = format!("NOT RUN {test}: {capability}: {}\n", why.replace('\n', "; "));
    assert!(!is_required(capability), "OVERSTREAM_REQUIRE={capability} but {line}");
    std::io::stderr().write_all(line.as_bytes()).expect("write to standard error");
    if let Some(path) = env::var_os("OVERSTREAM_NOT_RUN_FILE") {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| panic!("cannot write to {}: {error}", path.display()));
    }
}

/// Tells whether the test has root's rights (capability `root`); says so if not.
pub fn require_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        not_run("root", "it needs root's rights");
    }
    root
}

/// Tells whether the host can mount FUSE file systems (capability `fuse`); says so if not.
pub fn require_fuse() -> bool {
    let device = Path::new("/dev/fuse").exists();
    if !device {
        not_run("fuse", "there is no /dev/fuse; try `modprobe fuse`");
    }
    device
}

/// Tells whether `program` is installed; if not, says that `capability` is missing.
pub fn require_command(capability: &str, program: &str) -> bool {
    let found = find_program(program).is_some();
    if !found {
        not_run(capability, &format!("{program} is not installed; scripts/deps.sh installs it"));
    }
    found
}

/// Returns the name of the test this thread runs.
pub(crate) fn test_name() -> String {
    thread::current().name().unwrap_or("unnamed").to_owned()
}

/// Looks a program up in `PATH` and in the places of system programs.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let mut places = env::split_paths(&path).chain(system);
    places.find_map(|place| Some(place.join(program)).filter(|file| file.is_file()))
}

fn is_required(capability: &str) -> bool {
    let required = env::var("OVERSTREAM_REQUIRE").unwrap_or_default();
    required.split(',').map(str::trim).any(|name| name == capability || name == "all")
}
