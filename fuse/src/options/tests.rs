//! Every option is obeyed, noted or refused; and how lists are written.

use std::collections::BTreeSet;

use super::*;

fn parse(list: &str) -> Result<MountOptions, String> {
    MountOptions::parse(OsStr::new(list))
}

fn parsed(list: &str) -> MountOptions {
    parse(list).unwrap()
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// SEMANTICS O13
#[test]
fn colons_and_backslashes_in_names_are_escaped() {
    let split = |list: &str| split_lowers(OsStr::new(list));
    assert_eq!(split("a"), Ok(paths(&["a"])));
    assert_eq!(split("/a:b c:/d"), Ok(paths(&["/a", "b c", "/d"])));
    assert_eq!(split(r"a\:b:c\\d:\e"), Ok(paths(&["a:b", r"c\d", "e"])));
    for bad in ["", ":", "a:", ":a", "a::b", "a\\"] {
        assert!(split(bad).is_err(), "{bad}");
    }
}

/// SEMANTICS O13
#[test]
fn commas_in_directories_and_values_are_escaped_or_quoted() {
    let options = parsed(r#"lowerdir=/a\,b:/c\:d\\,upperdir=u\,\:"p,context="x:y,z",workdir=w"#);
    assert_eq!(options.lowers, paths(&["/a,b", r"/c:d\"]));
    assert_eq!(options.upper, Some(r#"u,:"p"#.into()));
    assert_eq!(options.context.as_deref(), Some("x:y,z"));
    assert_eq!(options.work, Some("w".into()));
    let options = parsed(r"lowerdir=a,lowerdir+=b\:c,lowerdir+=d:e");
    assert_eq!(options.lowers, paths(&["a", "b:c", "d:e"]));
    for bad in ["ro\\", "context=\"x", "upperdir=", "lowerdir=//plugin/data/path"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

/// SEMANTICS O13
#[test]
fn an_option_is_obeyed_or_refused() {
    let options = parsed("ro,nodev,noexec,exec,userxattr,fsname=x=y,subtype=z,allow_other,sync");
    assert_eq!(options.flags, [Flag::NoDev, Flag::Sync]);
    assert_eq!(options.format, Format::User);
    assert_eq!((options.source.as_str(), options.subtype.as_str()), ("x=y", "z"));
    assert_eq!(options.access, Access::Everybody);
    assert_eq!(options.writing, Writing::No);
    assert_eq!(parse(""), Ok(MountOptions::default()));
    assert_eq!(parsed("defaults,,xino=auto,uuid=null,verity=off"), MountOptions::default());
    let options = parsed("threaded=0,writeback=1,fsync=0,timeout=1.5,allow_root");
    assert_eq!((options.threads, options.writeback), (Some(1), Some(true)));
    assert_eq!((options.volatile, options.access), (true, Access::MounterAndRoot));
    assert!(!options.passthrough && parsed("writeback=0").passthrough);
    assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
    assert!(!parsed("volatile,fsync=auto").volatile);
    for (bad, why) in [
        ("nosuchthing", "option nosuchthing is not known"),
        ("ro=1", "option ro has no value"),
        ("ro,fsname", "option fsname needs a value"),
        (r"fsname=a\,b", "commas"),
        ("plugins=a:b", "option plugins=a:b: there are no plugins"),
        ("nfs_export=on", "option nfs_export=on: the view has no file handles"),
        ("uuid=on", "auto, null or off"),
        ("verity=require", "digests"),
        ("index=maybe", "give on, or off"),
        ("threaded=2", "give 1, or 0"),
        ("timeout=-1", "from zero upwards"),
        ("timeout=long", "a number"),
        ("squash_to_uid=-1", "a number"),
        ("xattr_permissions=3", "give 0, or 1, or 2"),
        ("datadir+=/x", "data only"),
    ] {
        let problem = parse(bad).unwrap_err();
        assert!(problem.contains(why), "{bad}: {problem}");
    }
}

#[test]
fn ranges_of_ids_are_read() {
    let options = parsed("uidmapping=0:100000:65536:65536:1000:1,gidmapping=0:1:1");
    let range = |disk, shown, length| IdRange { disk, shown, length };
    assert_eq!(options.uid_map, [range(0, 100_000, 65536), range(65536, 1000, 1)]);
    assert_eq!(options.gid_map, [range(0, 1, 1)]);
    for bad in ["", "0", "0:1", "0:1:0", "0:1:2:3", "x:1:1", "0:4294967295:1", "0:1:4294967295"] {
        assert!(parse(&format!("uidmapping={bad}")).is_err(), "{bad}");
    }
}

/// SEMANTICS O13
#[test]
fn what_changes_nothing_is_told_and_what_is_missing_refused() {
    assert_eq!(parsed("lowerdir=a,ro").notes, [""; 0]);
    for noted in ["static_nlink", "fast_ino", "max_write=4096", "strictatime"] {
        let notes = parsed(noted).notes;
        let name = noted.split('=').next().unwrap();
        assert!(notes.len() == 1 && notes[0].contains(name), "{noted}: {notes:?}");
    }
    let checked = |list: &str| {
        let mut options = parsed(list);
        options.check().map(|()| options)
    };
    for (bad, why) in [
        ("ro", "no lower directory"),
        ("lowerdir=a,upperdir=u", "needs a work directory"),
        ("lowerdir=a,rw", "option rw"),
    ] {
        assert!(checked(bad).unwrap_err().contains(why), "{bad}");
    }
    assert_eq!(checked("lowerdir=a,workdir=w,volatile").unwrap().notes.len(), 2);
    let view = checked("lowerdir=a").unwrap();
    assert!(view.read_only());
    assert!(!checked("lowerdir=a,upperdir=u,workdir=w,rw").unwrap().read_only());
    assert!(checked("lowerdir=a,upperdir=u,workdir=w,ro").unwrap().read_only());
    assert_eq!(unsupported(&view), Ok(()));
}

/// SEMANTICS O13
#[test]
fn what_is_not_there_yet_is_refused() {
    for asked in [
        "redirect_dir=on",
        "redirect_dir=follow",
        "metacopy=on",
        "noacl",
        "noxattrs",
        "ino32_t",
        "squash_to_root",
        "squash_to_gid=5",
        "gidmapping=0:1:1",
        "xattr_permissions=2",
    ] {
        let problem = unsupported(&parsed(asked)).unwrap_err();
        let name = asked.split('=').next().unwrap();
        assert!(problem.starts_with("not supported yet: ") && problem.contains(name), "{problem}");
    }
    for fine in [
        "redirect_dir=off",
        "redirect_dir=nofollow",
        "metacopy=off,index=off",
        "index=on",
        "fsync=1",
    ] {
        assert_eq!(unsupported(&parsed(fine)), Ok(()), "{fine}");
    }
}

#[test]
fn no_option_is_in_the_table_twice() {
    let names: Vec<_> = MountOptions::names().collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}
