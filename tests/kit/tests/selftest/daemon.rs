use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use overstream_testkit::proto::snapshots::ListSnapshotsRequest;
use overstream_testkit::{Daemon, Scratch, block_on, limit, require_command, require_root};
use tonic::Request;

/// A stand-in with the daemon's command line: containerd, which serves snapshots on its socket.
const STAND_IN: &str = r#"#!/bin/sh
test "$1 $2 $4" = "serve --root --socket" || exit 2
test -z "$CRASH" || exit 3
printf 'version = 2\nroot = "%s"\nstate = "%s.state"\n[grpc]\naddress = "%s"\n' "$3" "$3" "$5" >"$3.conf"
printf '[ttrpc]\naddress = "%s.ttrpc"\n' "$5" >>"$3.conf"
printf '[plugins."io.containerd.internal.v1.opt"]\npath = "%s.opt"\n' "$3" >>"$3.conf"
exec containerd -c "$3.conf"
"#;

/// Writes the stand-in and returns its path.
pub fn stand_in(scratch: &Scratch) -> PathBuf {
    let path = scratch.write("stand-in", STAND_IN);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_daemon_starts_answers_stops_and_crashes() {
    limit(Duration::from_secs(60), || {
        if !require_root() || !require_command("containerd", "containerd") {
            return;
        }
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, stand_in(&scratch));
        daemon.start();
        let first = daemon.pid();
        block_on(async {
            let mut client = daemon.snapshots().await;
            let mut request = Request::new(ListSnapshotsRequest {
                snapshotter: "overlayfs".into(),
                ..Default::default()
            });
            request.metadata_mut().insert("containerd-namespace", "default".parse().unwrap());
            let mut stream = client.list(request).await.unwrap().into_inner();
            assert_eq!(stream.message().await.unwrap(), None);
        });
        assert!(daemon.stop().success());
        daemon.start();
        daemon.restart();
        assert_ne!(daemon.pid(), first);
        daemon.kill();
        assert!(!daemon.is_running());
        daemon.set_env("CRASH", "1");
        assert_eq!(daemon.try_start().unwrap_err().code(), Some(3));
        daemon.unset_env("CRASH");
        daemon.start();
        assert!(daemon.log().contains("containerd successfully booted"));
    });
}
