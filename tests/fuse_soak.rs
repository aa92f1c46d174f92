//! Real work on real trees, once on a mount of the kernel's overlayfs and once, in the same place, on the
//! daemon's: both end with the same tree.
//!
//! It runs with `OVERSTREAM_FULL=1` only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use overstream_testkit::facts::{self, Tree, assert_same};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Scratch, limit, not_run, require_command, require_fuse, require_root, run_within, wait_for,
};
use rustix::fs::FileType;

const SOON: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_secs(900);
/// A real tree that a Debian host has.
const TREE: &str = "/usr/lib/python3";

/// What is done, in a shell in the root of the mount. `lower` holds a copy of the tree.
const WORK: [(&str, &str); 4] = [
    ("unpack", "mkdir unpacked && tar -C \"$TREE\" -cf - . | tar -C unpacked -xpf -"),
    (
        "change",
        "chmod -R g-r lower
         find lower -name '*.py' -type f | sort | sed -n 1,400p | xargs sed -i '1i # changed'
         find lower -name '*.py' -type f | sort | tail -n 200 | while read -r f; do mv \"$f\" \"$f.moved\"; done
         find lower -depth -name '__pycache__' -exec rm -rf {} +
         find lower -name '*.txt' -type f | sort | while read -r f; do ln \"$f\" \"$f.link\"; done
         mkdir lower/new && cp -a unpacked/. lower/new/ && rm -rf unpacked",
    ),
    (
        "git",
        "export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
         git clone -q --no-hardlinks \"$MIRROR\" clone
         first=$(git -C clone rev-list HEAD | tail -n 1)
         git -C clone checkout -q \"$first\" && git -C clone checkout -q -
         test -z \"$(git -C clone status --porcelain)\" && git -C clone fsck --strict && git -C clone gc -q",
    ),
    (
        "compile",
        "cargo init -q --vcs none --name soak crate && cd crate
         for i in $(seq 40); do echo \"pub fn f() -> u32 { $i }\" >src/m$i.rs; echo \"mod m$i;\"; done >src/mods
         { cat src/mods; echo 'fn main() { println!(\"{}\", m1::f() + m40::f()); }'; } >src/main.rs
         cargo build -q --offline && cargo build -q --offline --release
         test \"$(target/debug/soak) $(target/release/soak)\" = '41 41'
         touch src/m7.rs && cargo build -q --offline && target/debug/soak",
    ),
];

/// Holds times of the clock, and is not compared.
const OWN: [&str; 2] = ["clone/.git", "crate/target"];

/// SEMANTICS W9
#[test]
fn real_work_ends_as_on_the_kernels_overlayfs() {
    if std::env::var_os("OVERSTREAM_FULL").is_none() {
        println!("only with OVERSTREAM_FULL=1");
        return;
    }
    let able = require_root() && require_fuse() && require_command("peers", "git");
    if able && !Path::new(TREE).exists() {
        not_run("tree", &format!("there is no {TREE}"));
    } else if able {
        limit(Duration::from_secs(1800), soak);
    }
}

fn soak() {
    let scratch = Scratch::new();
    let lower = scratch.dir("lower-layer");
    sh(Path::new("/"), "copy", &format!("cp -a {TREE} {}/lower", lower.display()));
    // So that both clone the same, whatever is committed meanwhile.
    let mirror = scratch.join("mirror");
    let top = env!("CARGO_MANIFEST_DIR");
    let clone = format!("git -c safe.directory='*' clone -q --bare {top} {}", mirror.display());
    sh(Path::new("/"), "mirror", &clone);
    let before = facts::read(&lower, &[]);
    let (target, begin) = (scratch.dir("mnt"), SystemTime::UNIX_EPOCH.elapsed().unwrap());
    let begin = (begin.as_secs().cast_signed(), 0);

    let layers = Layers::new(&scratch, &lower, "kernel");
    let kernel = layers.kernel(&target);
    work(&target, &mirror);
    let expected = seen(&target, begin);
    kernel.unmount();

    let layers = Layers::new(&scratch, &lower, "daemon");
    let mut command = Command::new(env!("CARGO_BIN_EXE_overstream"));
    command.arg("mount").arg("--lower").arg(&lower).arg("--upper").arg(&layers.upper);
    command.arg("--work").arg(&layers.work).arg(&target);
    let daemon = scratch.spawn("daemon", &mut command);
    wait_for("the mount", SOON, || daemon.log().contains(" is mounted"));
    work(&target, &mirror);
    assert_same(&expected, &seen(&target, begin));
    assert!(daemon.stop(SOON).success(), "{}", daemon.describe());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.describe());
    assert_eq!(fs::read_dir(layers.work.join("work")).unwrap().count(), 0);

    let kernel = layers.kernel(&target);
    assert_same(&expected, &seen(&target, begin));
    kernel.unmount();
    assert_same(&before, &facts::read(&lower, &[]));
}

struct Layers {
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    fn new(scratch: &Scratch, lower: &Path, name: &str) -> Self {
        let dir = |kind: &str| scratch.dir(format!("{name}-{kind}"));
        Self { lower: lower.to_owned(), upper: dir("upper"), work: dir("work") }
    }

    fn kernel(&self, target: &Path) -> overstream_testkit::Mounted {
        let options = [
            format!("lowerdir={}", self.lower.display()),
            format!("upperdir={}", self.upper.display()),
            format!("workdir={}", self.work.display()),
        ];
        let fixed = ["index=off", "xino=off", "redirect_dir=off", "metacopy=off"];
        let options = options.into_iter().chain(fixed.map(str::to_owned)).collect();
        let overlay = "overlay".to_owned();
        let mount =
            Mount { r#type: overlay.clone(), source: overlay, target: String::new(), options };
        overstream_testkit::mount(&[mount], target)
    }
}

fn work(root: &Path, mirror: &Path) {
    for (name, script) in WORK {
        sh(root, name, &format!("MIRROR={}\n{script}", mirror.display()));
    }
}

fn sh(dir: &Path, name: &str, script: &str) {
    let mut command = Command::new("bash");
    command.args(["-eu", "-o", "pipefail", "-c", script]).current_dir(dir);
    command.env("TREE", TREE);
    command.env_remove("CARGO_TARGET_DIR").env("LC_ALL", "C");
    let output = run_within(STEP, &mut command).ok();
    println!("{name}: {:?}", output.took);
}

/// Reads a view, without what must differ: numbers, blocks, and times that are those of the work.
fn seen(root: &Path, begin: (i64, i64)) -> Tree {
    let mut tree = facts::read(root, &[]);
    tree.retain(|path, _| !OWN.iter().any(|own| path.starts_with(own)));
    for facts in tree.values_mut().flatten() {
        (facts.ino, facts.blocks, facts.changed) = (0, 0, (0, 0));
        if facts.modified >= begin {
            facts.modified = (i64::MAX, 0);
        }
        if FileType::from_raw_mode(facts.mode) == FileType::Directory {
            facts.size = 0;
        }
        let listing = std::mem::take(&mut facts.listing);
        facts.listing = listing.into_iter().map(|(name, _, kind)| (name, 0, kind)).collect();
    }
    tree
}
