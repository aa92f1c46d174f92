//! Names of all kinds, and layers that would lead outside.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use overstream_fuse::{Error, Format, Ino};
use overstream_testkit::facts::{assert_same, read};

use super::facts::of_engine;
use super::frame::{Layers, with_scratch};

/// SEMANTICS O10
#[test]
fn names_of_all_kinds_agree_with_the_kernel() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "names", 2);
        let longest = "l".repeat(255);
        let names: [&[u8]; 7] =
            [b"\xff\xfe", longest.as_bytes(), b".wh.file", b".wh..wh..opq", b"a\nb", b"...", b" "];
        for (number, name) in names.iter().enumerate() {
            fs::write(layers.dir(number % 2).join(OsStr::from_bytes(name)), name).unwrap();
        }
        fs::write(layers.dir(1).join("file"), "not deleted by .wh.file").unwrap();
        let too_long = ["x".repeat(256)];
        let kernel = read(layers.kernel(Format::Trusted).path(), &too_long);
        assert_eq!(kernel.len(), 1 + names.len() + 1 + 1);
        assert_same(&kernel, &read(layers.served(Format::Trusted).path(), &too_long));
        let links = of_engine(&layers.overlay(Format::Trusted), &too_long);
        assert_same(&kernel, &links);
    });
}

/// SEMANTICS O9
#[test]
fn a_symlink_that_leads_outside_is_only_a_symlink() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "links", 2);
        for (name, target) in [
            ("abs", "/etc"),
            ("up", "../../../../../../etc"),
            ("self", "self"),
            ("proc", "/proc/1/root"),
        ] {
            symlink(target, layers.dir(0).join(name)).unwrap();
            fs::create_dir(layers.dir(1).join(name)).unwrap();
            fs::write(layers.dir(1).join(name).join("hostname"), "of the layer").unwrap();
        }
        let kernel = read(layers.kernel(Format::Trusted).path(), &[]);
        assert_same(&kernel, &read(layers.served(Format::Trusted).path(), &[]));
        let overlay = layers.overlay(Format::Trusted);
        for name in ["abs", "up", "self", "proc"] {
            let link = overlay.lookup(Ino::ROOT, name.as_ref()).unwrap();
            let beyond = overlay.lookup(link.ino, "hostname".as_ref());
            assert!(matches!(beyond, Err(Error::NotDirectory)), "{beyond:?}");
        }
        for bad in ["..", ".", "", "abs/hostname", "../0/abs"] {
            let out = overlay.lookup(Ino::ROOT, bad.as_ref());
            assert!(matches!(out, Err(Error::BadName)), "{out:?}");
        }
    });
}

/// SEMANTICS O9
#[test]
fn a_directory_that_becomes_a_symlink_is_not_followed() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "swap", 1);
        let outside = scratch.dir("outside");
        fs::write(outside.join("secret"), "secret").unwrap();
        let inside = layers.dir(0).join("d");
        fs::create_dir(&inside).unwrap();
        let overlay = layers.overlay(Format::Trusted);
        let dir = overlay.lookup(Ino::ROOT, "d".as_ref()).unwrap();
        fs::remove_dir(&inside).unwrap();
        symlink(&outside, &inside).unwrap();
        let out = overlay.lookup(dir.ino, "secret".as_ref()).unwrap_err();
        assert_eq!(out.errno().raw_os_error(), Errno::ELOOP as i32, "{out:?}");
    });
}

/// SEMANTICS O11
#[test]
fn what_is_mounted_inside_a_layer_is_not_shown() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "inner", 2);
        let inner = layers.dir(0).join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("below"), "").unwrap();
        let tmpfs = Some("tmpfs");
        nix::mount::mount(tmpfs, &inner, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
        fs::write(inner.join("mounted"), "").unwrap();
        let kernel = read(layers.kernel(Format::Trusted).path(), &[]);
        assert!(kernel.contains_key(Path::new("inner/below")));
        assert_same(&kernel, &read(layers.served(Format::Trusted).path(), &[]));
    });
}

/// SEMANTICS O4
#[test]
fn marks_that_are_not_supported_are_refused_not_ignored() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "marks", 2);
        fs::create_dir(layers.dir(0).join("moved")).unwrap();
        xattr::set(layers.dir(0).join("moved"), "trusted.overlay.redirect", b"/old").unwrap();
        fs::write(layers.dir(0).join("file"), [0; 5]).unwrap();
        xattr::set(layers.dir(0).join("file"), "trusted.overlay.metacopy", b"").unwrap();
        fs::write(layers.dir(1).join("file"), "DATA!").unwrap();
        let served = layers.served(Format::Trusted);
        let listed = fs::read_dir(served.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(listed.collect::<BTreeSet<_>>(), ["file".into(), "moved".into()].into());
        for refused in [
            fs::symlink_metadata(served.path().join("moved")).map(drop),
            fs::read(served.path().join("file")).map(drop),
        ] {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        }
    });
}
