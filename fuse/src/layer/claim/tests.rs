use std::fs::{self, File};

use overstream_testkit::Scratch;

use super::*;

#[test]
fn a_lock_file_locks_others_out_until_it_is_closed() {
    let scratch = Scratch::new();
    let work = File::open(scratch.dir("work")).unwrap().into();
    let first = lock(&work, LOCK_FILE, FILE).unwrap();
    assert_eq!(lock(&work, LOCK_FILE, FILE).unwrap_err(), Errno::WOULDBLOCK);
    drop(first);
    lock(&work, LOCK_FILE, FILE).unwrap();
    // Whoever can write to a work directory may have put a link there.
    fs::remove_file(scratch.join("work").join(LOCK_FILE)).unwrap();
    std::os::unix::fs::symlink(scratch.write("file", ""), scratch.join("work").join(LOCK_FILE))
        .unwrap();
    assert_eq!(lock(&work, LOCK_FILE, FILE).unwrap_err(), Errno::LOOP);
}

#[test]
fn a_local_file_system_is_not_shared() {
    let scratch = Scratch::new();
    assert!(!is_shared(&File::open(scratch.path()).unwrap().into()).unwrap());
}
