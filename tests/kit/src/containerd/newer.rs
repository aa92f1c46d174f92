//! Unpacks containerd from a newer Debian suite; nothing is installed, and apt's own state stays
//! untouched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::command::{Output, run_within};

const DEFAULT_CACHE: &str = "/var/tmp/overstream-cache";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// 16 s on an idle host.
const LIMIT: Duration = Duration::from_secs(300);

/// Returns the directory of the programs of a suite's containerd, whose version must start with
/// `version`. They are fetched once and kept in `OVERSTREAM_CACHE`.
pub(super) fn programs(suite: &str, version: &str) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = std::env::var_os("OVERSTREAM_CACHE").unwrap_or_else(|| DEFAULT_CACHE.into());
    let place = PathBuf::from(cache).join(format!("containerd-{suite}"));
    let programs = place.join("usr/bin");
    if !programs.join("containerd").exists() {
        fetch(suite, &place)?;
    }
    check(&programs, version)?;
    Ok(programs)
}

fn check(programs: &Path, version: &str) -> Result<(), String> {
    let output = succeed(Command::new(programs.join("containerd")).arg("--version"))?.text();
    let found = output.split_whitespace().nth(2).unwrap_or_default();
    if found.trim_start_matches('v').starts_with(version) {
        Ok(())
    } else {
        Err(format!("wanted containerd {version}x but the package is: {output}"))
    }
}

fn fetch(suite: &str, place: &Path) -> Result<(), String> {
    // Made aside and moved, so that other test processes see all of it or nothing.
    let aside = place.with_extension(format!("new-{}", std::process::id()));
    let fetched = unpack(suite, &aside, &aside.join("tree"));
    let moved = fetched.and_then(|()| {
        fs::rename(aside.join("tree"), place)
            .or_else(|error| if place.exists() { Ok(()) } else { Err(error.to_string()) })
    });
    fs::remove_dir_all(&aside).ok();
    moved.map_err(|error| format!("no containerd of Debian {suite}: {error}"))
}

fn unpack(suite: &str, aside: &Path, tree: &Path) -> Result<(), String> {
    for directory in ["lists/partial", "cache/archives/partial", "download"] {
        fs::create_dir_all(aside.join(directory)).map_err(|error| error.to_string())?;
    }
    let source = format!("deb [signed-by={KEYRING}] {} {suite} main\n", archive()?);
    fs::write(aside.join("sources.list"), source).map_err(|error| error.to_string())?;
    fs::write(aside.join("status"), "").map_err(|error| error.to_string())?;
    succeed(apt(aside).args(["-qq", "-o", "APT::Update::Error-Mode=any", "update"]))?;
    let package = format!("containerd/{suite}");
    succeed(apt(aside).args(["-qq", "download", &package]).current_dir(aside.join("download")))?;
    let mut files = fs::read_dir(aside.join("download")).map_err(|error| error.to_string())?;
    let file = files.next().ok_or("nothing downloaded")?.map_err(|error| error.to_string())?;
    succeed(Command::new("dpkg").arg("-x").arg(file.path()).arg(tree))?;
    Ok(())
}

/// Returns the address of the Debian archive this system uses.
fn archive() -> Result<String, String> {
    let format = "$(REPO_URI)|$(ORIGIN)|$(CODENAME)|$(COMPONENT)";
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let end = format!("|Debian|{}|main", codename.unwrap_or_default());
    let targets = succeed(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let text = targets.text();
    let address = text.lines().find_map(|line| line.strip_suffix(&end));
    address.map(str::to_owned).ok_or("apt knows no Debian archive; run apt-get update".into())
}

/// Returns an apt-get that keeps everything in `aside`.
fn apt(aside: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let mut set = |name: &str, value: &Path| {
        command.arg("-o").arg(format!("{name}={}", value.display()));
    };
    set("Dir::Etc::sourcelist", &aside.join("sources.list"));
    set("Dir::Etc::sourceparts", Path::new("/dev/null"));
    set("Dir::State::Lists", &aside.join("lists"));
    set("Dir::State::status", &aside.join("status"));
    set("Dir::Cache", &aside.join("cache"));
    set("APT::Sandbox::User", Path::new("root"));
    command
}

fn succeed(command: &mut Command) -> Result<Output, String> {
    let output = run_within(LIMIT, command);
    if output.status.success() {
        return Ok(output);
    }
    let errors = output.errors();
    let program = command.get_program().to_string_lossy();
    Err(format!("{program}: {}", errors.lines().next().unwrap_or("failed without a word")))
}
