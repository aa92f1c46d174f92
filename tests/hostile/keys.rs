//! Keys, names and labels are text, never paths.

use std::fs;
use std::path::Path;
use std::process::Command;

use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Output, run};

use super::frame::{BINARY, Bed, attack};

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
        "\x1b[2J\x1b]0;title\x07",
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

fn tool(bed: &Bed, arguments: &[&str]) -> Output {
    run(Command::new(BINARY).args(arguments).env("OVERSTREAM_SOCKET", bed.daemon.socket()))
}

/// What a terminal would obey is escaped, and what is one line stays one.
#[track_caller]
fn is_plain(output: &Output) {
    let text = output.text() + &output.errors();
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    assert!(!text.contains("line\nbreak"), "{text:?}");
}

#[test]
fn the_tools_print_no_control_characters() {
    attack(|bed| {
        for text in odd_texts() {
            let (key, twin) = (format!("kept/1/{text}"), format!("twin/1/{text}"));
            for key in [&key, &twin] {
                let mounts = bed.client.prepare(key, "", &[]).unwrap();
                fs::write(Path::new(&mounts[0].source).join("kept"), "x").unwrap();
            }
            if !text.contains('\0') && text.len() < 100 {
                is_plain(&tool(bed, &["mounts", "--", &key]));
                is_plain(&tool(bed, &["mounts", "--", &text]));
            }
            bed.client.remove(&key).unwrap();
        }
        for command in ["ls", "retained", "usage"] {
            is_plain(&tool(bed, &[command]).ok());
        }
    });
}
