//! Starts that are refused, and what they say.

use std::time::Duration;

use overstream_testkit::{Daemon, Scratch, limit, require_root};

use super::frame::BINARY;

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
