//! Id mapping labels: whose the new snapshot's root is, and what containerd is asked to map.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tonic::Code;

use super::frame::{code, names, serve_as};

const UID: &str = "containerd.io/snapshot/uidmapping";
const GID: &str = "containerd.io/snapshot/gidmapping";

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// SEMANTICS M4
#[test]
fn the_mapped_root_owns_a_new_snapshot() {
    serve_as(
        |daemon| daemon.with_config("remap_ids = \"on\"\n"),
        |bed| {
            let maps = [
                ("0:1000:65536", "0:2000:65536", (1000, 2000)),
                ("5:3000:10,0:1666:65536", "1:4:2,0:1888:4", (1666, 1888)),
                ("0:1:1", "", (1, 0)),
                ("", "0:7:1", (0, 7)),
            ];
            bed.layer("base", "");
            let mut id = 1;
            for (number, (uids, gids, expected)) in maps.into_iter().enumerate() {
                let labels = [(UID, uids), (GID, gids)];
                for parent in ["", "base"] {
                    let key = format!("{number} on {parent:?}");
                    let mounts = bed.client.prepare(&key, parent, &labels).unwrap();
                    id += 1;
                    assert_eq!(owner(&bed.fs(id)), expected, "{key}");
                    let options = &mounts[0].options;
                    let mut first = Vec::new();
                    for (option, map) in [("uidmap", uids), ("gidmap", gids)] {
                        // A label with an empty value is no label.
                        if !map.is_empty() {
                            first.push(format!("{option}={map}"));
                        }
                    }
                    assert_eq!(options[..first.len()], first, "{key}");
                    assert_eq!(
                        options.iter().filter(|o| o.contains("idmap=")).count(),
                        first.len()
                    );
                    assert_eq!(&bed.client.mounts(&key).unwrap(), &mounts);
                }
            }
            // Without labels a snapshot is its parent's owner's, and the base is root's.
            bed.prepare("plain", "base");
            assert_eq!(owner(&bed.fs(id + 1)), (0, 0));
            bed.client.commit("mapped", "0 on \"base\"", &[]).unwrap();
            bed.prepare("heir", "mapped");
            assert_eq!(owner(&bed.fs(id + 2)), (1000, 2000));
        },
    );
}

#[test]
fn mapping_options_can_be_switched_off() {
    serve_as(
        |daemon| daemon.with_config("remap_ids = \"off\"\n"),
        |bed| {
            let labels = [(UID, "0:1000:65536"), (GID, "0:2000:65536")];
            let mounts = bed.client.prepare("a", "", &labels).unwrap();
            assert_eq!(mounts[0].options, ["rw", "rbind"]);
            assert_eq!(owner(&bed.fs(1)), (1000, 2000));
        },
    );
}

#[test]
fn maps_that_cannot_be_are_refused() {
    serve_as(
        |daemon| daemon.with_config("remap_ids = \"on\"\n"),
        |bed| {
            bed.layer("base", "");
            let good = "0:1000:65536";
            let bad = [
                ("-1:-1:-2", "0:0:1"),
                ("0:0:1", "-1:-1:-2"),
                ("0:0:1,-1:-1:1", good),
                (good, "0:0:1,1:-1:1"),
                ("1:1000:65536", good),
                (good, "1:1000:65536"),
                ("1:1:9,20:20:9", "1:1:9,20:20:9"),
                ("0:0:4294967295", good),
                (good, "0:0:4294967295"),
                ("0:1", good),
                ("0:a:1", good),
                ("0:0:1,", good),
            ];
            let before = names(&bed.daemon.root().join("snapshots"));
            for (uids, gids) in bad {
                for parent in ["", "base"] {
                    let labels = [(UID, uids), (GID, gids)];
                    let prepared = bed.client.prepare("bad", parent, &labels);
                    assert_eq!(code(prepared), Code::InvalidArgument, "{uids} {gids}");
                    let viewed = bed.client.view("bad", parent, &labels);
                    assert_eq!(code(viewed), Code::InvalidArgument, "{uids} {gids}");
                }
            }
            assert_eq!(names(&bed.daemon.root().join("snapshots")), before);
            assert_eq!(code(bed.client.stat("bad")), Code::NotFound);
        },
    );
}
