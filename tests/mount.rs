//! `overstream mount`, and the same program under the names by which mount(8) and podman call it: a view in
//! the foreground and in the background, its end, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overstream_testkit::{
    Process, Scratch, limit, mounts_below, require_command, require_fuse, require_root, run,
    wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const SOON: Duration = Duration::from_secs(10);

fn command(lower: &str, target: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["mount", "--lower", lower, "-o", "nodev,fsname=test"]).arg(target);
    command
}

/// Directories `a:b` and `b` to be mounted, and one to mount on, which is returned.
fn layers(scratch: &Scratch) -> PathBuf {
    for name in ["a:b", "b"] {
        scratch.dir(name);
        scratch.write(format!("{name}/both"), name);
    }
    scratch.write("b/only", "only in b");
    scratch.dir("mnt")
}

/// A mounted view of the directories `a:b` and `b`, of which the upper one is `a:b`.
fn mounted(scratch: &Scratch) -> Process {
    let target = layers(scratch);
    let lower = format!("{0}/a\\:b:{0}/b", scratch.path().display());
    let process = scratch.spawn("mount", &mut command(&lower, &target));
    wait_for("the mount", SOON, || mounts_below(&target) == [target.clone()]);
    process
}

fn with_scratch(body: impl FnOnce(&Scratch) + Send + 'static) {
    if require_root() && require_fuse() {
        limit(Duration::from_secs(60), move || body(&Scratch::new()));
    }
}

/// SEMANTICS O13, O15
#[test]
fn a_view_is_seen_and_unmounted_by_a_signal() {
    with_scratch(|scratch| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let process = mounted(scratch);
            let read = |name: &str| fs::read_to_string(scratch.join("mnt").join(name)).unwrap();
            assert_eq!(read("both"), "a:b");
            assert_eq!(read("only"), "only in b");
            let target = scratch.join("mnt");
            let line = in_mount_table(&target);
            assert!(line.contains(" ro,nodev,"), "{line}");
            assert!(line.contains(" - fuse.overstream test "), "{line}");
            process.signal(signal);
            assert!(process.wait_exit(SOON).success(), "{}", process.describe());
            assert_eq!(mounts_below(&target), [] as [&Path; 0]);
        }
    });
}

/// SEMANTICS O15
#[test]
fn an_unmount_ends_the_command() {
    with_scratch(|scratch| {
        let process = mounted(scratch);
        run(Command::new("umount").arg(scratch.join("mnt"))).ok();
        assert!(process.wait_exit(SOON).success(), "{}", process.describe());
    });
}

/// SEMANTICS O15
#[test]
fn who_uses_the_view_at_a_signal_may_finish() {
    with_scratch(|scratch| {
        let process = mounted(scratch);
        let target = scratch.join("mnt");
        let mut user = File::open(target.join("both")).unwrap();
        process.signal(Signal::SIGTERM);
        wait_for("its name to go", SOON, || mounts_below(&target).is_empty());
        let mut content = String::new();
        user.read_to_string(&mut content).unwrap();
        assert_eq!(content, "a:b");
        assert!(process.ended().is_none());
        drop(user);
        assert!(process.wait_exit(SOON).success(), "{}", process.describe());
    });
}

fn in_mount_table(target: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap().to_owned()
}

/// A command in the scratch directory, by a name that leads to the program.
fn named(scratch: &Scratch, name: &str, arguments: &[&str]) -> Command {
    let link = scratch.join(name);
    if !link.exists() {
        symlink(BINARY, &link).unwrap();
    }
    let mut command = Command::new(link);
    command.args(arguments).current_dir(scratch.path());
    command
}

/// What podman would call, with paths relative to where it calls.
fn podman(scratch: &Scratch) -> Command {
    named(scratch, "overstream-mount", &["-o", r"lowerdir=a\:b:b", "mnt"])
}

/// Runs a command to its end. What it leaves belongs to the scratch directory.
fn ended(scratch: &Scratch, command: &mut Command) -> (ExitStatus, Process) {
    let process = scratch.spawn("command", command);
    (process.wait_exit(SOON), process)
}

/// The one process that a command has left.
fn server(scratch: &Scratch) -> Pid {
    let left = scratch.processes();
    assert_eq!(left.len(), 1, "{left:?}");
    Pid::from_raw(left[0].try_into().unwrap())
}

fn wait_for_nobody(scratch: &Scratch) {
    wait_for("the server's end", SOON, || scratch.processes().is_empty());
}

fn unmount(target: &Path) {
    run(Command::new("umount").arg(target)).ok();
}

/// Mounts with `command`, looks at the view and at who serves it, and unmounts.
fn is_a_form(scratch: &Scratch, mut command: Command, source: &str, name: &str) {
    let target = scratch.join("mnt");
    let (status, process) = ended(scratch, &mut command);
    assert!(status.success(), "{}", process.describe());
    // At once, without waiting for anything.
    assert_eq!(fs::read_to_string(target.join("both")).unwrap(), "a:b");
    assert_eq!(fs::read_to_string(target.join("only")).unwrap(), "only in b");
    let line = in_mount_table(&target);
    assert!(line.contains(&format!(" - fuse.overstream {source} ")), "{line}");
    let server = server(scratch);
    let of_server = |file: &str| fs::read_link(format!("/proc/{server}/{file}")).unwrap();
    assert_eq!(of_server("cwd"), Path::new("/"));
    for descriptor in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(of_server(descriptor), Path::new("/dev/null"), "{descriptor}");
    }
    assert_eq!(nix::unistd::getsid(Some(server)), Ok(server));
    // The kernel keeps the first 15 bytes.
    let comm = fs::read_to_string(format!("/proc/{server}/comm")).unwrap();
    assert_eq!(comm.trim_end(), &name[..name.len().min(15)]);
    unmount(&target);
    wait_for_nobody(scratch);
}

/// SEMANTICS O19
#[test]
fn every_form_ends_when_the_view_can_be_used() {
    with_scratch(|scratch| {
        layers(scratch);
        let list = r"lowerdir=a\:b:b";
        is_a_form(scratch, podman(scratch), "overstream", "overstream-mount");
        let of_c = named(scratch, "fuse-overlayfs", &["-o", list, "-o", "fsname=x", "mnt"]);
        is_a_form(scratch, of_c, "x", "fuse-overlayfs");
        let options = format!("rw,{list},dev,suid");
        let helper = named(scratch, "mount.overstream", &["src", "mnt", "-v", "-o", &options]);
        is_a_form(scratch, helper, "src", "mount.overstream");
        // As mount.fuse3(8) calls.
        let by_type = named(scratch, "overstream", &["src", "mnt", "-o", &options]);
        is_a_form(scratch, by_type, "src", "overstream");
        let lower = ["mount", "--lower", r"a\:b:b", "--background", "mnt"];
        is_a_form(scratch, named(scratch, "overstream", &lower), "overstream", "overstream");
        let in_options =
            named(scratch, "overstream", &["mount", "--background", "mnt", "-o", list]);
        is_a_form(scratch, in_options, "overstream", "overstream");
    });
}

/// SEMANTICS O19
#[test]
fn mount_mounts_it() {
    with_scratch(|scratch| {
        if !require_command("fuse3", "mount.fuse3") {
            return;
        }
        layers(scratch);
        let mut command = Command::new("mount");
        let lowers = format!(r"lowerdir={0}/a\:b:{0}/b,noatime", scratch.path().display());
        command.args(["-t", "fuse", "-o", &lowers, &format!("{BINARY}#src")]);
        command.arg(scratch.join("mnt"));
        is_a_form(scratch, command, "src", "overstream");
    });
}

/// SEMANTICS O15, O19
#[test]
fn a_view_in_the_background_is_unmounted_by_a_signal() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let (status, process) = ended(scratch, &mut podman(scratch));
            assert!(status.success(), "{}", process.describe());
            kill(server(scratch), signal).unwrap();
            wait_for_nobody(scratch);
            assert_eq!(mounts_below(&target), [] as [&Path; 0]);
        }
    });
}

/// SEMANTICS O19
#[test]
fn a_server_lets_go_of_its_callers_pipes() {
    with_scratch(|scratch| {
        layers(scratch);
        let mut command = Command::new("sh");
        let script = format!(r"{BINARY} src mnt -o 'lowerdir=a\:b:b' 2>&1 | cat");
        command.arg("-c").arg(script).current_dir(scratch.path());
        // cat ends when nobody can write any more.
        let (status, process) = ended(scratch, &mut command);
        assert!(status.success(), "{}", process.describe());
        assert_eq!(mounts_below(scratch.path()).len(), 1);
    });
}

/// SEMANTICS O19
#[test]
fn what_a_server_says_goes_to_its_log() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        let mut command = podman(scratch);
        command.args(["--log", "said"]);
        let (status, process) = ended(scratch, &mut command);
        assert!(status.success() && process.log().is_empty(), "{}", process.describe());
        kill(server(scratch), Signal::SIGUSR1).unwrap();
        let log = || fs::read_to_string(scratch.join("said")).unwrap();
        wait_for("an answer in the log", SOON, || log().contains(" inodes known, "));
        assert!(log().starts_with(&format!("overstream: {}: ", target.display())), "{}", log());
        unmount(&target);
        wait_for_nobody(scratch);

        let mut command = podman(scratch);
        command.env("FUSE_OVERLAYFS_DEBUG_LOG", "requests");
        let (status, process) = ended(scratch, &mut command);
        let quiet = process.log().is_empty();
        assert!(status.success() && quiet, "{}", process.describe());
        assert!(target.join("only").exists());
        let log = fs::read_to_string(scratch.join("requests")).unwrap();
        assert!(log.contains("LOOKUP") && log.contains("only"), "{log}");
    });
}

/// SEMANTICS O19
#[test]
fn what_the_background_cannot_mount_leaves_nobody() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        for (name, arguments, why) in [
            ("overstream-mount", &["-o", "lowerdir=none", "mnt"][..], "none: No such file"),
            ("overstream-mount", &["-o", "lowerdir=b", "nowhere"], "nowhere: No such file"),
            ("overstream-mount", &["-o", "lowerdir=b,plugins=p", "mnt"], "option plugins=p: "),
            ("overstream-mount", &["-o", "lowerdir=b", "--log", "mnt", "mnt"], "log mnt: "),
            ("overstream-mount", &["-o", "ro", "mnt"], "no lower directory"),
            ("overstream-mount", &["-o", "lowerdir=b"], "required"),
            ("overstream-mount", &["-o", "lowerdir=b,squash_to_root", "mnt"], "not supported yet"),
            ("overstream-mount", &["-o", "lowerdir=b,context=a:b", "mnt"], "SELinux"),
            ("mount.overstream", &["a,b", "mnt", "-o", "lowerdir=b"], "commas"),
            ("overstream", &["a", "mnt", "-o", "rw,lowerdir=b,lots"], "option lots is not known"),
            ("overstream", &["mount", "--background", "--lower", "b:b", "mnt"], "are one"),
        ] {
            if why == "SELinux" && Path::new("/sys/fs/selinux").exists() {
                continue;
            }
            let output = run(&mut named(scratch, name, arguments)).fails();
            let said = output.errors();
            assert!(said.contains(why), "{arguments:?}: {said}");
            assert_eq!(output.code(), Some(1), "{output}");
            let mistaken = why == "required";
            assert!(mistaken || said.lines().count() == 1, "{said}");
            assert!(mistaken || said.starts_with("overstream: "), "{said}");
            assert_eq!(mounts_below(&target), [] as [&Path; 0]);
            wait_for_nobody(scratch);
        }
    });
}

/// A view whose server does not answer, so that whoever uses it as a layer waits.
fn stuck(scratch: &Scratch) -> (Process, PathBuf) {
    let (lower, target) = (scratch.dir("lower"), scratch.dir("stuck"));
    let process = scratch.spawn("stuck", &mut command(lower.to_str().unwrap(), &target));
    wait_for("the mount", SOON, || mounts_below(&target) == [target.clone()]);
    process.signal(Signal::SIGSTOP);
    (process, target)
}

/// A command that waits for its server, which waits for the layer `stuck`.
fn waiting(scratch: &Scratch, stopped: &Process) -> (Process, Pid) {
    let process = scratch.spawn(
        "waiting",
        &mut named(scratch, "overstream-mount", &["-o", "lowerdir=stuck", "mnt"]),
    );
    let found = || {
        let others = scratch.processes();
        others.into_iter().find(|pid| *pid != process.pid() && *pid != stopped.pid())
    };
    wait_for("a server", SOON, || found().is_some());
    let server = Pid::from_raw(found().unwrap().try_into().unwrap());
    // It has left the session when nothing but the layer holds it up.
    wait_for("its session", SOON, || nix::unistd::getsid(Some(server)) == Ok(server));
    (process, server)
}

/// SEMANTICS O19
#[test]
fn a_server_that_is_killed_before_it_has_mounted_is_noticed() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        let (stopped, _) = stuck(scratch);
        let (command, server) = waiting(scratch, &stopped);
        assert!(command.ended().is_none());
        kill(server, Signal::SIGKILL).unwrap();
        let status = command.wait_exit(SOON);
        assert_eq!(status.code(), Some(1), "{}", command.describe());
        assert!(command.log().contains("signal 9 ended"), "{}", command.log());
        assert_eq!(mounts_below(&target), [] as [&Path; 0]);
        stopped.signal(Signal::SIGCONT);
    });
}

/// SEMANTICS O19
#[test]
fn a_command_that_is_killed_leaves_no_mount() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        let (stopped, _) = stuck(scratch);
        let (command, server) = waiting(scratch, &stopped);
        kill(Pid::from_raw(command.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
        command.wait_exit(SOON);
        stopped.signal(Signal::SIGCONT);
        wait_for("the server's end", SOON, || {
            !scratch.processes().contains(&server.as_raw().try_into().unwrap())
        });
        assert_eq!(mounts_below(&target), [] as [&Path; 0]);
    });
}

/// SEMANTICS O19
#[test]
fn what_a_killed_server_leaves_can_be_unmounted_and_mounted_again() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        let (status, process) = ended(scratch, &mut podman(scratch));
        assert!(status.success(), "{}", process.describe());
        kill(server(scratch), Signal::SIGKILL).unwrap();
        let errno = || fs::metadata(target.join("only")).err()?.raw_os_error();
        wait_for("the end of the connection", SOON, || errno() == Some(Errno::ENOTCONN as i32));
        let said = run(&mut podman(scratch)).fails().errors();
        assert!(said.contains("unmount it first"), "{said}");
        unmount(&target);
        is_a_form(scratch, podman(scratch), "overstream", "overstream-mount");
    });
}

/// SEMANTICS O13
#[test]
fn an_upper_is_written_to() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        for name in ["u,p", "work"] {
            scratch.dir(name);
        }
        let list = r"lowerdir=b,upperdir=u\,p,workdir=work";
        let mut command = named(scratch, "overstream-mount", &["-o", list, "mnt"]);
        let (status, process) = ended(scratch, &mut command);
        assert!(status.success(), "{}", process.describe());
        fs::write(target.join("new"), "written").unwrap();
        assert_eq!(fs::read_to_string(scratch.join("u,p/new")).unwrap(), "written");
        unmount(&target);
        wait_for_nobody(scratch);
        let alone =
            run(&mut named(scratch, "overstream-mount", &["-o", "lowerdir=b,upperdir=u", "mnt"]));
        assert!(alone.fails().errors().contains("needs a work directory"));
    });
}

/// SEMANTICS O19
#[test]
fn an_ordinary_user_mounts_by_way_of_fusermount3() {
    with_scratch(|scratch| {
        if !require_command("fuse3", "fusermount3") {
            return;
        }
        let target = layers(scratch);
        // Where the build lies a user may not look; and to open the device is not everywhere allowed.
        fs::copy(BINARY, scratch.join("program")).unwrap();
        let script = r"set -eu
            mknod device c 10 229
            chmod 666 device
            mount --bind device /dev/fuse
            chown 65534 mnt
            user='setpriv --reuid=65534 --regid=65534 --clear-groups'
            $user ./program mount --lower 'a\:b:b' --background mnt
            $user cat mnt/only
            if ls mnt; then exit 1; fi
            $user fusermount3 -u mnt
            if $user ./program mount --lower b -o allow_other --background mnt; then exit 1; fi";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]);
        let (status, process) = ended(scratch, command.current_dir(scratch.path()));
        assert!(status.success(), "{}", process.describe());
        assert!(process.log().contains("only in b"), "{}", process.log());
        assert!(process.log().contains("user_allow_other"), "{}", process.log());
        wait_for_nobody(scratch);
        assert_eq!(mounts_below(&target), [] as [&Path; 0]);
    });
}

/// SEMANTICS O20
#[test]
fn a_trace_tells_what_changes_and_who_asks() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        scratch.dir("upper");
        scratch.dir("work");
        let arguments = ["mount", "--lower", "b", "--upper", "upper", "--work", "work", "--trace"];
        let traced = scratch.spawn("traced", named(scratch, "overstream", &arguments).arg("mnt"));
        wait_for("the mount", SOON, || mounts_below(&target) == [target.clone()]);
        let script = "echo more >> both; rm only";
        run(Command::new("sh").args(["-c", script]).current_dir(&target)).ok();
        traced.signal(Signal::SIGTERM);
        assert!(traced.wait_exit(SOON).success(), "{}", traced.describe());
        let log = traced.log();
        let line =
            |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or("").to_owned();
        let copied = line(" copy-up /both: 1 bytes in ");
        assert!(copied.ends_with(", user 0, sh)"), "{log}");
        assert!(line(" whiteout /only (").contains("process "), "{log}");
        let unseen =
            named(scratch, "overstream", &arguments).args(["--background", "mnt"]).output();
        assert!(String::from_utf8_lossy(&unseen.unwrap().stderr).contains("--log"));
        let nothing = &["mount", "--lower", "b", "--trace", "mnt"];
        let said = run(&mut named(scratch, "overstream", nothing)).fails().errors();
        assert!(said.contains("nothing is changed"), "{said}");
    });
}

#[test]
fn programs_are_told_apart_by_name() {
    let scratch = Scratch::new();
    let version = run(&mut named(&scratch, "fuse-overlayfs", &["--version"])).ok().text();
    assert_eq!(version, format!("overstream-mount {}", env!("CARGO_PKG_VERSION")));
    let help = run(&mut named(&scratch, "overstream-mount", &["--help"])).ok().text();
    assert!(help.contains("[SOURCE] MOUNT_POINT") && help.contains("mount -t overstream"));
    let help = run(&mut named(&scratch, "overstream", &["mount", "--help"])).ok().text();
    assert!(help.contains("--background") && help.contains("mount_program"), "{help}");
}

/// SEMANTICS O11, O13
#[test]
fn what_cannot_be_mounted_says_why() {
    with_scratch(|scratch| {
        let target = scratch.dir("mnt");
        let (a, b) = (scratch.dir("a"), scratch.dir("b"));
        let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
        let inside = scratch.dir("a/inside");
        let file = scratch.write("file", "");
        for (lower, target, why) in [
            ("/no/such".to_owned(), &target, "/no/such: No such file or directory"),
            (format!("{a}:{a}"), &target, "are one, or one lies in the other"),
            (format!("{a}:{b}"), &inside, "the mount point"),
            (format!("{a}::{b}"), &target, "is empty"),
            (format!("{a}:{}", file.display()), &target, "Not a directory"),
            (a.to_owned(), &scratch.join("none"), "none: No such file or directory"),
            (a.to_owned(), &file, "file: not a directory"),
        ] {
            let said = run(&mut command(&lower, target)).fails().errors();
            assert!(said.starts_with("overstream: ") && said.contains(why), "{lower}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let mut read_write = Command::new(BINARY);
        read_write.args(["mount", "-o", "rw", "--lower", a]).arg(&target);
        assert!(run(&mut read_write).fails().errors().contains("read-only"));
    });
}

/// A signal's thread once kept the view, and with it the whiteout that all others are links of.
///
/// SEMANTICS W20
#[test]
fn nothing_is_left_in_work_after_a_deletion_and_an_unmount() {
    with_scratch(|scratch| {
        let target = layers(scratch);
        let (upper, work) = (scratch.dir("upper"), scratch.dir("work"));
        for by_signal in [false, true] {
            fs::remove_dir_all(&upper).unwrap();
            fs::create_dir(&upper).unwrap();
            let mut command = command(scratch.join("b").to_str().unwrap(), &target);
            command.arg("--upper").arg(&upper).arg("--work").arg(&work);
            let process = scratch.spawn("mount", &mut command);
            wait_for("the mount", SOON, || mounts_below(&target) == [target.clone()]);
            fs::remove_file(target.join("only")).unwrap();
            match by_signal {
                true => process.signal(Signal::SIGTERM),
                false => unmount(&target),
            }
            assert!(process.wait_exit(SOON).success(), "{}", process.describe());
            assert_eq!(fs::read_dir(work.join("work")).unwrap().count(), 0);
        }
    });
}
