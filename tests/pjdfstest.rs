//! pjdfstest, some hundred checks of what POSIX says of a file system, fails on a mount of ours exactly where it
//! fails on the kernel's overlayfs, with the same layers on the same host.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::MsFlags;
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Mounted, Scratch, limit, mount, mounts_below, not_run, require_fuse, require_root, run,
    run_within, wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const SOON: Duration = Duration::from_secs(10);
/// How long one run of all checks may take. On an idle machine it is a few seconds.
const ALL: Duration = Duration::from_secs(240);
/// How many checks there are at least that neither are skipped nor fail, or the comparison is worth nothing.
const ENOUGH: usize = 150;

/// Users and groups that every Debian system has, and a pause longer than the kernel's coarse clock stands still.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// How a check ended, and what it said if not well.
#[derive(Clone, Debug)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// All checks by name.
type Outcomes = BTreeMap<String, Outcome>;

/// Returns the program, or says that there is none, and why.
fn program() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin/pjdfstest");
    if program.is_file() {
        return Some(program);
    }
    let why = fs::read_to_string(program.with_extension("why-not"));
    let untried = |_| "it is not built; scripts/peers.sh pjdfstest builds it".to_owned();
    not_run("pjdfstest", why.unwrap_or_else(untried).trim());
    None
}

/// Layers for a mount named NAME: `lower` and `upper`, both with a directory `merged`, `work`, and `mnt`.
fn layers(base: &Path, name: &str) -> PathBuf {
    let place = base.join(name);
    for directory in ["lower/merged", "upper/merged", "work", "mnt"] {
        fs::create_dir_all(place.join(directory)).unwrap();
    }
    place
}

/// Runs all checks in a mount.
fn outcomes(program: &Path, scratch: &Scratch, mounted: &Path, other: &Path) -> Outcomes {
    let settings = scratch.write("settings.toml", SETTINGS);
    let mut command = Command::new(program);
    command.arg("-c").arg(settings).arg("-p").arg(mounted.join("merged")).arg("-s").arg(other);
    // It ends with 1 if a check fails, which some do everywhere.
    let output = run_within(ALL, command.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE"));
    let outcomes = parsed(&output.text());
    let passed = outcomes.values().filter(|outcome| matches!(outcome, Outcome::Passed)).count();
    assert!(passed >= ENOUGH, "{passed} checks passed: {output}");
    outcomes
}

/// Reads what is printed: a line with the name and the end of each check, below it what more it says.
fn parsed(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut last = None;
    for line in text.lines() {
        if let (true, Some(last)) = (line.starts_with('\t'), &last) {
            match outcomes.get_mut(last) {
                Some(Outcome::Skipped(why) | Outcome::Failed(why)) => why.push_str(line.trim()),
                Some(Outcome::Passed) | None => {}
            }
        } else if let Some((name, end)) = line.split_once(' ') {
            let outcome = match end.trim() {
                "ok" => Outcome::Passed,
                "skipped" => Outcome::Skipped(String::new()),
                "FAILED" => Outcome::Failed(String::new()),
                _ => continue,
            };
            last = Some(name.to_owned());
            assert!(outcomes.insert(name.to_owned(), outcome).is_none(), "{name} twice: {text}");
        }
    }
    outcomes
}

fn on_kernel(program: &Path, scratch: &Scratch, base: &Path) -> Outcomes {
    let place = layers(base, "kernel");
    let at = |name: &str| place.join(name).display().to_string();
    let options = vec![
        format!("lowerdir={}", at("lower")),
        format!("upperdir={}", at("upper")),
        format!("workdir={}", at("work")),
    ];
    let kind = "overlay".to_owned();
    let overlay = Mount { r#type: kind.clone(), source: kind, target: String::new(), options };
    let mounted: Mounted = mount(&[overlay], place.join("mnt"));
    let outcomes = outcomes(program, scratch, mounted.path(), base);
    mounted.unmount();
    outcomes
}

fn on_ours(program: &Path, scratch: &Scratch, base: &Path, way: &str) -> Outcomes {
    let place = layers(base, way);
    let target = place.join("mnt");
    let mut command = Command::new(BINARY);
    command.args(["mount", "--lower", "lower", "--upper", "upper", "--work", "work"]);
    match way {
        "passthrough" => {}
        "through" => drop(command.env("FUSE_OVERLAYFS_NO_PASSTHROUGH", "1")),
        "writeback" => drop(command.args(["-o", "writeback=1"])),
        _ => unreachable!("{way}"),
    }
    let process = scratch.spawn(way, command.arg("mnt").current_dir(&place));
    wait_for("the mount", SOON, || process.ended().is_some() || !mounts_below(&target).is_empty());
    assert!(process.ended().is_none(), "{}", process.describe());
    let outcomes = outcomes(program, scratch, &target, base);
    run(Command::new("umount").arg(&target)).ok();
    assert!(process.wait_exit(SOON).success(), "{}", process.describe());
    outcomes
}

/// Checks that end otherwise on a mount than on the kernel's overlayfs.
fn differences(kernel: &Outcomes, ours: &Outcomes) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = kernel.keys().chain(ours.keys()).collect();
    let kind = |outcome: Option<&Outcome>| outcome.map(std::mem::discriminant);
    let differ = names.into_iter().filter(|name| kind(kernel.get(*name)) != kind(ours.get(*name)));
    differ.map(|name| format!("{name}: {:?}, {:?}", kernel.get(name), ours.get(name))).collect()
}

/// Compares all ways to mount with the kernel, with layers below `base`.
fn fails_as_the_kernel_does(program: &Path, scratch: &Scratch, base: &Path) {
    let kernel = on_kernel(program, scratch, base);
    for way in ["passthrough", "through", "writeback"] {
        let differences = differences(&kernel, &on_ours(program, scratch, base, way));
        assert!(differences.is_empty(), "{way}:\n{}", differences.join("\n"));
    }
}

fn with_program(body: impl FnOnce(&Path, &Scratch) + Send + 'static) {
    if require_root()
        && require_fuse()
        && let Some(program) = program()
    {
        limit(4 * ALL, move || body(&program, &Scratch::new()));
    }
}

/// SEMANTICS W30
#[test]
fn checks_fail_where_the_kernel_fails_on_disk() {
    with_program(|program, scratch| {
        fails_as_the_kernel_does(program, scratch, &scratch.dir("disk"));
    });
}

/// SEMANTICS W30
#[test]
fn checks_fail_where_the_kernel_fails_in_memory() {
    with_program(|program, scratch| {
        let (base, tmpfs) = (scratch.dir("memory"), Some("tmpfs"));
        nix::mount::mount(tmpfs, &base, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        fails_as_the_kernel_does(program, scratch, &base);
    });
}
