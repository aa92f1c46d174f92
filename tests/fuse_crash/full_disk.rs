//! A disk that is full in the middle of a copy-up.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use overstream_testkit::{FsKind, LoopFs, Scratch, wait_for};

use super::world::{SOON, as_root};

const BIG: usize = 24 << 20;

/// SEMANTICS W21
#[test]
fn a_copy_up_onto_a_full_disk_leaves_nothing() {
    as_root(|| {
        if !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let disk = LoopFs::new(&scratch, "disk", FsKind::Ext4, 32);
        let (lower, target) = (scratch.dir("lower"), scratch.dir("mnt"));
        fs::write(lower.join("big"), vec![b'b'; BIG]).unwrap();
        fs::write(lower.join("small"), b"small").unwrap();
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name)).unwrap();
        }
        fs::write(disk.join("upper/ballast"), vec![b'x'; 12 << 20]).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_overstream"));
        command.arg("mount").arg("--lower").arg(&lower).arg("--upper").arg(disk.join("upper"));
        command.arg("--work").arg(disk.join("work")).arg(&target);
        let daemon = scratch.spawn("daemon", &mut command);
        wait_for("the mount", SOON, || daemon.log().contains(" is mounted"));

        let free = || {
            nix::unistd::sync();
            statvfs(disk.path()).unwrap().blocks_free()
        };
        let before = free();
        let append = |name: &str| {
            let file = OpenOptions::new().append(true).open(target.join(name));
            file.and_then(|mut file| file.write_all(b"!"))
        };
        for _ in 0..3 {
            let error = append("big").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32), "{error}");
            wait_for("the space", SOON, || free() == before);
            assert!(!disk.join("upper/big").exists());
            assert_eq!(fs::read_dir(disk.join("work/work")).unwrap().count(), 0);
            assert_eq!(fs::read(target.join("big")).unwrap(), vec![b'b'; BIG]);
        }
        append("small").unwrap();
        fs::remove_file(target.join("ballast")).unwrap();
        append("big").unwrap();
        assert_eq!(fs::read(target.join("big")).unwrap().len(), BIG + 1);
        assert_eq!(fs::read(target.join("small")).unwrap(), b"small!");
        assert!(daemon.stop(SOON).success(), "{}", daemon.describe());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.describe());
        assert_eq!(fs::metadata(lower.join("big")).unwrap().len(), BIG as u64);
        disk.unmount();
    });
}
