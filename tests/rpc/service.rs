//! What a service manager gives, and what it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use overstream_testkit::{Daemon, Scratch, limit, require_command, require_root, wait_for};

use super::frame::BINARY;

/// Listens on the socket of the command line, and starts the daemon at the first connection.
fn activator(scratch: &Scratch) -> std::path::PathBuf {
    let script =
        format!("#!/bin/sh\nexec systemd-socket-activate --listen=\"$5\" {BINARY} \"$@\"\n");
    let path = scratch.write("activator", script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_socket_can_be_passed_in() {
    if !require_root() || !require_command("systemd", "systemd-socket-activate") {
        return;
    }
    limit(Duration::from_secs(60), || {
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, activator(&scratch));
        daemon.launch();
        let listens = || daemon.socket().exists();
        wait_for("the socket", Duration::from_secs(10), listens);
        assert!(!daemon.root().exists(), "started before anybody asked");
        let client = daemon.client("over");
        client.prepare("a", "", &[]).unwrap();
        // Not ours to replace or to remove: the manager goes on listening.
        assert!(daemon.stop().success());
        assert!(daemon.socket().exists());
        daemon.kill();
        fs::remove_file(daemon.socket()).unwrap();
        daemon.launch();
        wait_for("the socket again", Duration::from_secs(10), || daemon.socket().exists());
        assert_eq!(client.list(&[]).unwrap().len(), 1);
    });
}

#[test]
fn the_socket_goes_with_the_daemon_unless_it_is_another_ones() {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, BINARY);
        daemon.start();
        assert!(daemon.stop().success());
        assert!(!daemon.socket().exists(), "the socket was left behind");
        daemon.start();
        fs::remove_file(daemon.socket()).unwrap();
        let other = UnixListener::bind(daemon.socket()).unwrap();
        assert!(daemon.stop().success());
        assert!(daemon.socket().exists(), "the other one's socket was deleted");
        drop(other);
        // The one that nobody listens on any more is replaced, as after a kill.
        daemon.start();
        daemon.kill();
        assert!(daemon.socket().exists());
        daemon.start();
    });
}

/// Starts the daemon with these words before its command line, in a shell.
fn shell(scratch: &Scratch, words: &str) -> std::path::PathBuf {
    let path = scratch.write("shell", format!("#!/bin/sh\n{words} exec {BINARY} \"$@\"\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_socket_that_was_passed_to_another_process_is_not_taken() {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, shell(&scratch, "LISTEN_PID=1 LISTEN_FDS=1"));
        daemon.start();
        daemon.client("over").prepare("a", "", &[]).unwrap();
    });
}

#[test]
fn something_else_passed_for_a_socket_is_told() {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        let scratch = Scratch::new();
        let words = "exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1";
        let mut daemon = Daemon::new(&scratch, shell(&scratch, words));
        assert_eq!(daemon.try_start().unwrap_err().code(), Some(1));
        assert!(daemon.log().contains("socket"), "{}", daemon.log());
    });
}

#[test]
fn the_manager_is_told_when_it_is_ready_and_when_it_stops() {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        let scratch = Scratch::new();
        let manager = UnixDatagram::bind(scratch.join("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let path = scratch.join("notify").display().to_string();
        let mut daemon = Daemon::new(&scratch, BINARY).with_env("NOTIFY_SOCKET", &path);
        daemon.launch();
        assert_eq!(message(&manager), "READY=1");
        // Whoever waits for the message finds a daemon that answers.
        daemon.client("over").prepare("a", "", &[]).unwrap();
        assert!(daemon.stop().success());
        assert_eq!(message(&manager), "STOPPING=1");
    });
}

fn message(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}
