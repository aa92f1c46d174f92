//! Starts that are refused, and what they say.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use overstream_testkit::{Daemon, Scratch, limit, require_root, run};

use super::frame::{BINARY, names};

/// Starts a daemon that must refuse to, and returns what it says.
fn refused(daemon: &mut Daemon) -> String {
    let before = daemon.log().len();
    let status = daemon.try_start().expect_err("a refusal");
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    daemon.log().split_off(before)
}

fn with_daemon(body: impl FnOnce(&Scratch, Daemon) + Send + 'static) {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), move || {
        let scratch = Scratch::new();
        let daemon = Daemon::new(&scratch, BINARY);
        body(&scratch, daemon);
    });
}

/// SEMANTICS M7
#[test]
fn mount_options_that_the_kernel_does_not_know() {
    with_daemon(|_, mut daemon| {
        daemon.set_config("mount_options = [\"noatime\", \"nonsense=1\"]\n");
        let said = refused(&mut daemon);
        for word in ["mount_options", "[\"noatime\", \"nonsense=1\"]", "the kernel refuses"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(said.contains("'nonsense'") || said.contains("dmesg"), "{said}");
        daemon.set_config("mount_options = [\"noatime\", \"metacopy=off\"]\n");
        daemon.start();
    });
}

/// Only users other than root have a limit of their own, and they cannot do more than fail to start.
#[test]
fn a_limit_that_leaves_no_threads() {
    with_daemon(|scratch, daemon| {
        let binary = scratch.join("overstream");
        fs::copy(BINARY, &binary).unwrap();
        for path in [scratch.path(), &binary] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let limited = ["--reuid", "65534", "--clear-groups", "prlimit", "--nproc=1"];
        let mut command = Command::new("setpriv");
        command.args(limited).arg(&binary).args(["serve", "--root"]).arg(daemon.root());
        let said = run(command.arg("--socket").arg(daemon.socket())).fails();
        assert_eq!(said.status.code(), Some(1), "{said}");
        for word in ["cannot start a thread", "TasksMax="] {
            assert!(said.errors().contains(word), "{word}: {said}");
        }
        assert!(!daemon.root().exists());
    });
}

/// SEMANTICS D7
#[test]
fn a_first_start_leaves_nothing_behind() {
    with_daemon(|scratch, mut daemon| {
        let [good, missing] = [scratch.dir("good"), scratch.join("missing")];
        let store = |name: &str, path: &Path| {
            format!("[stores.{name}]\ntype = \"dir\"\npath = \"{}\"\n", path.display())
        };
        let stores = store("good", &good) + &store("missing", &missing);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let metrics = format!("[metrics]\naddress = \"{}\"\n", taken.local_addr().unwrap());
        for (config, words) in [
            ("mount_options = [\"nonsense=1\"]\n", "the kernel refuses"),
            (&stores, "store \"missing\""),
            (&metrics, "choose another address"),
        ] {
            daemon.set_config(config);
            let said = refused(&mut daemon);
            assert!(said.contains(words), "{words}: {said}");
            assert!(!daemon.root().exists(), "{words}: the root was left behind");
            assert_eq!(names(&good), [""; 0], "{words}");
        }
        // What was there before stays, and the directory of the store is not taken for another root's.
        fs::create_dir(daemon.root()).unwrap();
        daemon.set_config("mount_options = [\"nonsense=1\"]\n");
        refused(&mut daemon);
        assert!(daemon.root().exists());
        fs::create_dir(&missing).unwrap();
        daemon.set_config(&stores);
        daemon.start();
    });
}

/// SEMANTICS D7
#[test]
fn a_first_start_on_an_unsuitable_file_system_leaves_nothing_behind() {
    with_daemon(|scratch, _| {
        // Overlay takes no upper on overlay.
        let [lower, upper, work, on] =
            ["lower", "upper", "work", "on"].map(|name| scratch.dir(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "none"]).arg(&on)).ok();
        let mut daemon = Daemon::new(scratch, BINARY).with_root(on.join("root"));
        let said = refused(&mut daemon);
        assert!(said.contains("refuses an upper on this file system"), "{said}");
        assert_eq!(names(&on), [""; 0]);
        run(Command::new("umount").arg(&on)).ok();
    });
}
