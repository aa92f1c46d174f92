use std::fs;
use std::time::Duration;

use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Scratch, Tree, limit, mount, mounts_below, require_root, run, try_mount};

fn new_mount(kind: &str, source: &str, options: &[String]) -> Mount {
    Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.to_vec(),
    }
}

#[test]
fn a_read_only_bind_refuses_writes() {
    limit(Duration::from_secs(30), || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let source = scratch.dir("source");
        let options = ["ro", "rbind"].map(str::to_owned);
        let bind = new_mount("bind", source.to_str().unwrap(), &options);
        let mounted = mount(&[bind], scratch.join("target"));
        assert_eq!(
            fs::write(mounted.join("file"), "x").unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
        mounted.unmount();
        assert!(mounts_below(scratch.path()).is_empty());
    });
}

#[test]
fn an_overlay_of_128_long_layers_mounts() {
    limit(Duration::from_secs(30), || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let lowers: Vec<String> = (0..128)
            .map(|number| {
                let lower = scratch.dir(format!("snapshots/a-layer-{number}/fs"));
                fs::write(lower.join(format!("file-{number}")), "x").unwrap();
                lower.display().to_string()
            })
            .collect();
        let upper = scratch.dir("other/fs").display().to_string();
        let work = scratch.dir("other/work").display().to_string();
        let options = [
            format!("workdir={work}"),
            format!("upperdir={upper}"),
            format!("lowerdir={}", lowers.join(":")),
        ];
        assert!(options.join(",").len() > 4096);
        let mounted = mount(&[new_mount("overlay", "overlay", &options)], scratch.join("target"));
        assert_eq!(Tree::read(mounted.path()).entries().len(), 128);
        fs::write(mounted.join("new"), "x").unwrap();
        assert!(scratch.join("other/fs/new").exists());
    });
}

#[test]
fn a_failing_mount_leaves_none_before_it() {
    limit(Duration::from_secs(30), || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let source = scratch.dir("source");
        let bind = new_mount("bind", source.to_str().unwrap(), &["rbind".to_owned()]);
        let missing = new_mount("bind", "/does/not/exist", &["rbind".to_owned()]);
        try_mount(&[bind, missing], &scratch.join("target")).unwrap_err();
        assert!(mounts_below(scratch.path()).is_empty());
    });
}

#[test]
fn trees_are_told_apart_by_what_counts() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.dir("a"), scratch.dir("b"));
    for tree in [&a, &b] {
        fs::write(tree.join("one"), "1").unwrap();
        fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
        std::os::unix::fs::symlink("one", tree.join("link")).unwrap();
    }
    Tree::read(&a).assert_same(&Tree::read(&b), "equal trees");
    fs::remove_file(b.join("two")).unwrap();
    run(std::process::Command::new("cp").arg("-p").arg(b.join("one")).arg(b.join("two"))).ok();
    let difference = Tree::read(&a).difference(&Tree::read(&b)).unwrap();
    assert!(difference.contains("- one: file of 1 bytes"), "{difference}");
    assert!(difference.contains("links [\"one\", \"two\"]"), "{difference}");
    assert!(!difference.contains("link: Symlink"), "{difference}");
}
