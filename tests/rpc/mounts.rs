//! The mount lists, option for option.

use std::fs;
use std::path::{Path, PathBuf};

use overstream_testkit::mount;
use overstream_testkit::proto::types::Mount;
use tonic::Code;

use super::frame::{Bed, code, serve, serve_as};

fn bind(source: &Path, access: &str) -> Vec<Mount> {
    let options = [access, "rbind"].map(str::to_owned).to_vec();
    let source = source.display().to_string();
    vec![Mount { r#type: "bind".to_owned(), source, target: String::new(), options }]
}

fn overlay(options: Vec<String>) -> Vec<Mount> {
    let [kind, source] = ["overlay"; 2].map(str::to_owned);
    vec![Mount { r#type: kind, source, target: String::new(), options }]
}

/// `index=off`, where the kernel knows the option.
fn index_off() -> Option<String> {
    let known = Path::new("/sys/module/overlay/parameters/index").exists();
    known.then(|| "index=off".to_owned())
}

fn lowers(bed: &Bed, ids: &[u64]) -> String {
    let paths: Vec<_> = ids.iter().map(|id| bed.fs(*id).display().to_string()).collect();
    format!("lowerdir={}", paths.join(":"))
}

fn writable(bed: &Bed, id: u64, ids: &[u64]) -> Vec<String> {
    let work = bed.own(id).join("work");
    vec![
        format!("workdir={}", work.display()),
        format!("upperdir={}", bed.fs(id).display()),
        lowers(bed, ids),
    ]
}

/// SEMANTICS M1
#[test]
fn each_kind_of_snapshot_has_its_mount() {
    serve(|bed| {
        let expect = |found: Vec<Mount>, key: &str, expected: Vec<Mount>| {
            assert_eq!(found, expected, "{key}");
            assert_eq!(bed.client.mounts(key).unwrap(), expected, "{key}, asked again");
        };
        expect(bed.prepare("a1", ""), "a1", bind(&bed.fs(1), "rw"));
        bed.client.commit("c1", "a1", &[]).unwrap();
        expect(bed.view("v2", ""), "v2", bind(&bed.fs(2), "ro"));
        expect(bed.view("v3", "c1"), "v3", bind(&bed.fs(1), "ro"));
        let mut options = writable(bed, 4, &[1]);
        options.extend(index_off());
        expect(bed.prepare("a4", "c1"), "a4", overlay(options));
        bed.client.commit("c4", "a4", &[]).unwrap();
        let mut options = vec![lowers(bed, &[4, 1])];
        options.extend(index_off());
        expect(bed.view("v5", "c4"), "v5", overlay(options));
        let mut options = writable(bed, 6, &[4, 1]);
        options.extend(index_off());
        expect(bed.prepare("a6", "c4"), "a6", overlay(options));
        bed.client.commit("c6", "a6", &[]).unwrap();
        let mut options = vec![lowers(bed, &[6, 4, 1])];
        options.extend(index_off());
        expect(bed.view("v7", "c6"), "v7", overlay(options));
    });
}

/// SEMANTICS M2
#[test]
fn configured_options_stand_last_on_overlay_mounts_only() {
    let config = "mount_options = [\"metacopy=off\", \"xino=off\"]\n";
    serve_as(
        move |daemon| daemon.with_config(config),
        |bed| {
            assert_eq!(bed.prepare("a1", ""), bind(&bed.fs(1), "rw"));
            bed.client.commit("c1", "a1", &[]).unwrap();
            assert_eq!(bed.view("v2", "c1"), bind(&bed.fs(1), "ro"));
            let configured = ["metacopy=off", "xino=off"].map(str::to_owned);
            let mut options = writable(bed, 3, &[1]);
            options.extend(configured.clone().into_iter().chain(index_off()));
            let mounts = bed.prepare("a3", "c1");
            assert_eq!(mounts, overlay(options));
            mount(&mounts, bed.scratch.join("mnt")).unmount();
            bed.client.commit("c3", "a3", &[]).unwrap();
            let mut options = vec![lowers(bed, &[3, 1])];
            options.extend(configured.into_iter().chain(index_off()));
            assert_eq!(bed.view("v4", "c3"), overlay(options));
        },
    );
}

/// SEMANTICS M2
#[test]
fn a_configured_index_is_not_overridden() {
    serve_as(
        |daemon| daemon.with_config("mount_options = [\"index=on\"]\n"),
        |bed| {
            bed.layer("c", "");
            let mut options = writable(bed, 2, &[1]);
            options.push("index=on".to_owned());
            assert_eq!(bed.prepare("a", "c"), overlay(options));
        },
    );
}

/// SEMANTICS A3
#[test]
fn commit_may_name_the_parent() {
    serve(|bed| {
        bed.layer("base", "");
        bed.layer("other", "");
        bed.prepare("active", "base");
        let rows = [("", ""), ("", "base"), ("base", "base"), ("base", "")];
        for (number, (own, given)) in rows.into_iter().enumerate() {
            let (key, name) = (format!("key-{number}"), format!("name-{number}"));
            bed.prepare(&key, own);
            bed.client.commit_on(&name, &key, given, &[]).unwrap();
            let expected = if own.is_empty() { given } else { own };
            assert_eq!(bed.client.stat(&name).unwrap().parent, expected, "{own:?}, {given:?}");
        }
        // What was adopted lies above its new parent, and keeps it from being removed.
        let view = bed.view("view", "name-1");
        assert_eq!(view[0].options[0], lowers(bed, &[5, 1]));
        bed.prepare("key-base", "base");
        let refused = bed.client.commit_on("name", "key-base", "other", &[]);
        assert_eq!(code(refused), Code::InvalidArgument);
        bed.prepare("key-none", "");
        let refused = bed.client.commit_on("name", "key-none", "active", &[]);
        assert_eq!(code(refused), Code::FailedPrecondition);
        bed.client.mounts("key-base").unwrap();
        bed.client.mounts("key-none").unwrap();
    });
}

#[test]
fn commit_moves_no_data() {
    serve(|bed| {
        bed.prepare("a", "");
        fs::write(bed.fs(1).join("file"), "content").unwrap();
        let inode =
            |path: PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(bed.fs(1).join("file"));
        bed.client.commit("c", "a", &[]).unwrap();
        assert_eq!(inode(bed.fs(1).join("file")), before);
        assert_eq!(bed.view("v", "c"), bind(&bed.fs(1), "ro"));
    });
}
