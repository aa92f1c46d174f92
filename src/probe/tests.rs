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

/// A directory to try things in; nothing where they cannot be tried.
fn scratch() -> Option<tempfile::TempDir> {
    if nix::unistd::geteuid().is_root() {
        return Some(tempfile::tempdir_in("/var/tmp").unwrap());
    }
    eprintln!("NOT RUN probe: needs root");
    None
}

#[test]
fn the_kernel_says_whether_an_upper_is_in_use() {
    let Some(scratch) = scratch() else { return };
    // The kernel takes no longer option than 255 bytes.
    for base in
        [scratch.path().to_owned(), scratch.path().join("x".repeat(200)).join("y".repeat(200))]
    {
        let path = |name: &str| base.join(name);
        for name in ["l", "u", "w"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let before = fs::read_dir(&base).unwrap().count();
        check_upper(&base, "test", &Features::detect().unwrap()).unwrap();
        let after = fs::read_dir(&base).unwrap().count();
        assert_eq!(after, before, "the trial left something behind");
        assert!(!upper_in_use(&path("u")).unwrap());
        let [lower, upper, work] =
            ["l", "u", "w"].map(|name| Handle::new(open_directory(&path(name)).unwrap()));
        let layers =
            [("lowerdir", lower.path()), ("upperdir", upper.path()), ("workdir", work.path())];
        // Attached to no mount namespace at all: only the kernel knows of it.
        let mount = detached_overlay(&layers).unwrap();
        assert!(upper_in_use(&path("u")).unwrap());
        drop(mount);
        assert!(!upper_in_use(&path("u")).unwrap());
        assert_eq!(fs::read_dir(path("u")).unwrap().count(), 0);
    }
    assert_eq!(
        upper_in_use(&scratch.path().join("none")).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn a_trial_follows_no_link() {
    let Some(scratch) = scratch() else { return };
    let [tried, target] = ["tried", "target"].map(|name| scratch.path().join(name));
    fs::create_dir(&tried).unwrap();
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, tried.join(".overstream-probe-test")).unwrap();
    let problem = check_upper(&tried, "test", &Features::detect().unwrap()).unwrap_err();
    assert!(problem.contains("cannot create a directory"), "{problem}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn options_that_the_kernel_does_not_know_are_refused_with_its_words() {
    let Some(scratch) = scratch() else { return };
    let check = |options: &[&str]| {
        let options: Vec<_> = options.iter().map(ToString::to_string).collect();
        check_options(scratch.path(), "test", &Features::detect().unwrap(), &options)
    };
    check(&[]).unwrap();
    check(&["redirect_dir=on", "noatime", "nodev"]).unwrap();
    for (options, word) in [
        (&["noatime", "nonsense=1"][..], "nonsense"),
        (&["redirect_dir=perhaps"], "redirect_dir"),
        (&["nonsense"], "nonsense"),
        // Each is known, and both together are refused.
        (&["userxattr", "metacopy=on"], "Invalid argument"),
    ] {
        let problem = check(options).unwrap_err();
        // Before Linux 6.5 only its log names the option.
        assert!(problem.contains(word) || problem.contains("dmesg"), "{problem}");
        assert!(problem.contains("refuses"), "{problem}");
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
