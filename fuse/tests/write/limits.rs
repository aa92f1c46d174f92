//! What the kernel's overlayfs can do and a view cannot: the limits, so that nobody is surprised.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use overstream_fuse::layer::open_layers;
use overstream_fuse::{Caller, Change, ChangeSink, Format, MountOptions, Overlay, What};
use overstream_testkit::Scratch;
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use rustix::io::Errno;

use super::frame::{Data, Place, as_root, kernel, subject};
use crate::served::Served;

fn place(scratch: &Scratch) -> Place {
    let (lower, upper, work) = (scratch.dir("lower"), scratch.dir("upper"), scratch.dir("work"));
    fs::write(lower.join("file"), "text").unwrap();
    let (format, data) = (Format::Trusted, Data::default());
    Place { lowers: vec![lower], upper, work, format, data, index: true }
}

/// SEMANTICS W44
#[test]
fn files_without_a_name_are_refused_as_where_the_file_system_has_none() {
    as_root(|| {
        for (mount, expected) in
            [(kernel as fn(&_, &_) -> _, Ok(())), (subject, Err(Errno::OPNOTSUPP))]
        {
            let scratch = Scratch::new();
            let view = mount(&place(&scratch), &scratch.path().join("view"));
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            assert_eq!(openat(CWD, view.path(), flags, Mode::RUSR).map(drop), expected);
            view.unmount();
        }
    });
}

/// SEMANTICS W45
#[test]
fn syncing_the_whole_view_is_no_error() {
    as_root(|| {
        let scratch = Scratch::new();
        let view = subject(&place(&scratch), &scratch.path().join("view"));
        fs::write(view.path().join("file"), "new").unwrap();
        let dir = openat(CWD, view.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(syncfs(&dir), Ok(()));
    });
}

/// Holds a copy-up until it is told to go on.
#[derive(Debug)]
struct Hold {
    begun: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl ChangeSink for Hold {
    fn before(&self, change: &Change, _: &Caller) -> io::Result<()> {
        if matches!(change.what, What::CopyUp { .. }) {
            self.begun.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }

    fn after(&self, _: &Change, _: &Caller, _: bool) {}
}

/// SEMANTICS W46
#[test]
fn who_is_killed_in_a_copy_up_ends_when_it_has_ended() {
    as_root(|| {
        let scratch = Scratch::new();
        let Place { lowers, upper, work, .. } = place(&scratch);
        let target = scratch.dir("view");
        let mut layers = open_layers(&lowers, Some((&upper, &work)), &target).unwrap();
        let ((begun, has_begun), (go_on, told)) = (channel(), channel());
        layers.upper().unwrap().set_sink(Arc::new(Hold { begun, go_on: Mutex::new(told) }));
        let overlay = Overlay::new(layers, Format::Trusted);
        let view = Served::new(overlay, target, &MountOptions::default());
        let file = view.path().join("file");
        let mut child = Command::new("truncate").args(["--size=2"]).arg(&file).spawn().unwrap();
        has_begun.recv().unwrap();
        child.kill().unwrap();
        sleep(Duration::from_millis(300));
        let ended = child.try_wait().unwrap();
        go_on.send(()).unwrap();
        assert_eq!(ended, None, "a request was interrupted");
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // What was under way is done.
        assert!(fs::symlink_metadata(upper.join("file")).is_ok());
    });
}
