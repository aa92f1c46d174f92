//! Keys, names and labels are text, never paths.

use std::fs;
use std::path::Path;

use overstream_testkit::proto::types::Mount;

use super::frame::{Bed, attack};

fn odd_texts() -> Vec<String> {
    let long = "k".repeat(64 << 10);
    let texts = [
        ".",
        "..",
        "/",
        "../../victim",
        "../victim/dir",
        "/etc/passwd",
        "a/../../../victim/dir/precious",
        "kept/1/../../../victim",
        "kept/1/..",
        "kept/1/web@1",
        "kept/99999999999999999999999/x",
        "snapshots/1",
        "1",
        "metadata.db",
        "x\0y",
        "\0",
        "line\nbreak\r\n",
        " ",
        "-rf",
        "--root=/",
        "$(touch x)`touch y`",
        "%s%n",
        "'; DROP TABLE snapshots; --",
        "\u{202e}\u{feff}\u{1f980}",
        "a,b:c\\d=e",
        "extract-",
        "kept/1/extract-../..",
    ];
    texts.into_iter().map(str::to_owned).chain([long]).collect()
}

/// Every path in the mounts of a snapshot lies below the root, and is not made of the key.
fn check_mounts(bed: &Bed, mounts: &[Mount]) {
    let below = bed.daemon.root().join("snapshots").display().to_string();
    for mount in mounts {
        let options = mount.options.iter().filter_map(|option| option.split_once('='));
        let paths = options.filter(|(name, _)| name.ends_with("dir")).map(|(_, paths)| paths);
        let source = (mount.r#type == "bind").then_some(mount.source.as_str());
        for path in paths.flat_map(|paths| paths.split(':')).chain(source) {
            let rest = path.strip_prefix(&below).unwrap_or_else(|| panic!("{path}"));
            let parts: Vec<&str> = rest.split('/').collect();
            assert!(parts.len() == 3 && parts[1].parse::<u64>().is_ok(), "{path}");
        }
    }
}

#[test]
fn keys_and_names_never_become_paths() {
    attack(|bed| {
        let client = &bed.client;
        for text in odd_texts().iter().filter(|text| !text.starts_with("kept/")) {
            check_mounts(bed, &client.prepare(text, "", &[]).unwrap());
            check_mounts(bed, &client.mounts(text).unwrap());
            client.usage(text).unwrap();
            let name = format!("{text}!");
            client.commit(&name, text, &[]).unwrap();
            assert_eq!(client.stat(&name).unwrap().name, name);
            check_mounts(bed, &client.prepare(text, &name, &[]).unwrap());
            let view = format!("{text}?");
            check_mounts(bed, &client.view(&view, &name, &[]).unwrap());
            assert_eq!(client.list(&[]).unwrap().len(), 3);
            for key in [text, &view, &name] {
                client.remove(key).unwrap();
            }
        }
        client.cleanup().unwrap();
        assert!(client.list(&[]).unwrap().is_empty());
    });
}

#[test]
fn a_retained_upper_is_found_by_its_name_and_not_through_it() {
    attack(|bed| {
        let texts = odd_texts();
        let containers = texts.iter().filter(|text| !text.starts_with("extract-"));
        for (number, text) in containers.enumerate() {
            let key = format!("kept/1/{text}");
            let mounts = bed.client.prepare(&key, "", &[]).unwrap();
            check_mounts(bed, &mounts);
            let upper = Path::new(&mounts[0].source);
            fs::write(upper.join("mine"), number.to_string()).unwrap();
            bed.client.remove(&key).unwrap();
            bed.client.cleanup().unwrap();
            // The same name under a later number gets the same upper back.
            let again = bed.client.prepare(&format!("kept/2/{text}"), "", &[]).unwrap();
            assert_eq!(again, mounts, "{text:?}");
            assert_eq!(fs::read(upper.join("mine")).unwrap(), number.to_string().as_bytes());
        }
    });
}

#[test]
fn labels_never_become_paths_either() {
    const PREFIX: &str = "containerd.io/snapshot/overstream.";
    attack(|bed| {
        let mut values = odd_texts();
        values.push(bed.victim.display().to_string());
        for (number, value) in values.iter().enumerate() {
            for label in ["store", "mode", "retain", "resume", "volatile", "pod-uid", "pod-name"] {
                let key = format!("kept/1/{number}-{label}");
                let label = format!("{PREFIX}{label}");
                // Refused or not, it must not lead anywhere.
                if let Ok(mounts) = bed.client.prepare(&key, "", &[(&label, value)]) {
                    check_mounts(bed, &mounts);
                    check_mounts(bed, &bed.client.mounts(&key).unwrap());
                }
            }
            let upperdir = [("containerd.io/snapshot/overlay.upperdir", value.as_str())];
            let key = format!("{number}-upperdir");
            check_mounts(bed, &bed.client.prepare(&key, "", &upperdir).unwrap());
        }
    });
}

#[test]
fn options_cannot_be_smuggled_into_mounts() {
    attack(|bed| {
        bed.client.prepare("base-key", "", &[]).unwrap();
        bed.client.commit("base", "base-key", &[]).unwrap();
        for map in ["0:0:1,upperdir=/etc", "0:0:1\0", "0:0:1 ", "0:0:1:1", "0:0:1\n"] {
            for label in ["uidmapping", "gidmapping"] {
                let label = format!("containerd.io/snapshot/{label}");
                bed.client.prepare("smuggled", "base", &[(&label, map)]).unwrap_err();
            }
        }
    });
}
