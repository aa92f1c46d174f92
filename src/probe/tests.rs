use super::*;

fn features(userxattr: bool, index: bool) -> Features {
    Features { userxattr, index, id_mapped_layers: true, boot: "b".to_owned() }
}

fn options(userxattr: bool, index: bool, configured: &[&str]) -> String {
    let configured: Vec<_> = configured.iter().map(ToString::to_string).collect();
    features(userxattr, index).overlay_options(&configured).join(",")
}

/// SEMANTICS M2
#[test]
fn detected_options_follow_configured_ones_unless_configured() {
    assert_eq!(options(false, false, &["metacopy=on"]), "metacopy=on");
    assert_eq!(options(true, true, &["metacopy=on"]), "metacopy=on,userxattr,index=off");
    assert_eq!(options(true, true, &["index=on", "userxattr"]), "index=on,userxattr");
    assert_eq!(options(false, true, &["index"]), "index");
}

#[test]
fn the_kernel_says_whether_an_upper_is_in_use() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT RUN upper_in_use: needs root");
        return;
    }
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| scratch.path().join(name);
    for name in ["l", "u", "w"] {
        fs::create_dir(path(name)).unwrap();
    }
    let found = Features::detect().unwrap();
    check_upper(scratch.path(), "test", &found).unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3, "the trial left something behind");
    assert!(!upper_in_use(&path("u")).unwrap());
    let layers = [("lowerdir", path("l")), ("upperdir", path("u")), ("workdir", path("w"))];
    // Attached to no mount namespace at all: only the kernel knows of it.
    let mount = detached_overlay(&layers).unwrap();
    assert!(upper_in_use(&path("u")).unwrap());
    drop(mount);
    assert!(!upper_in_use(&path("u")).unwrap());
    assert_eq!(fs::read_dir(path("u")).unwrap().count(), 0);
}
