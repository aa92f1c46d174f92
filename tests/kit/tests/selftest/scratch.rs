use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use overstream_testkit::{Scratch, limit, mounts_below, require_root};

const NONE: Option<&str> = None;

fn bind(from: &std::path::Path, to: &std::path::Path) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).unwrap();
}

#[test]
fn nothing_stays_behind_after_a_panic() {
    limit(Duration::from_secs(30), || {
        if !require_root() {
            return;
        }
        let mut seen: Option<(PathBuf, Vec<u32>)> = None;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let scratch = Scratch::new();
            let (a, b) = (scratch.dir("a b/inner"), scratch.dir("c"));
            bind(scratch.path(), &a);
            bind(&a, &b);
            bind(&a, &b);
            let closed = scratch.dir("closed");
            scratch.write("closed/file", "x");
            std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o0)).unwrap();
            // A daemon that leaves its parent and its session, as a shim does.
            let script = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000";
            let process = scratch.spawn("sleepers", Command::new("sh").args(["-c", script]));
            overstream_testkit::wait_for(
                "four sleepers and shells",
                Duration::from_secs(5),
                || scratch.processes().len() >= 4,
            );
            assert_eq!(mounts_below(scratch.path()).len(), 3);
            seen = Some((scratch.path().to_owned(), scratch.processes()));
            std::mem::forget(process);
            panic!("a failing test");
        }));
        assert!(result.is_err());
        let (path, processes) = seen.unwrap();
        assert!(!path.exists());
        assert_eq!(mounts_below(&path), Vec::<PathBuf>::new());
        for pid in processes {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(stat.is_empty() || stat.contains(") Z "), "process {pid} is left: {stat}");
        }
    });
}
