//! Which code answers which mistake, where there are several: the first check in containerd's order.

use tonic::Code::{self, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
use tonic::Status;

use super::frame::{Bed, code, names, serve, update_of};

const BAD_MAP: (&str, &str) = ("containerd.io/snapshot/uidmapping", "1:1:1");

/// Committed `c`, `d` on it, `other`; active `a` on `c`, `a0`; views `v` on `c`, `v0`.
fn populate(bed: &Bed) {
    bed.layer("c", "");
    bed.layer("d", "c");
    bed.layer("other", "");
    bed.prepare("a", "c");
    bed.prepare("a0", "");
    bed.view("v", "c");
    bed.view("v0", "");
}

type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Code);

/// SEMANTICS A1
#[test]
fn prepare_and_view_check_parent_then_key_then_labels() {
    serve(|bed| {
        populate(bed);
        let (before, directories) = (bed.all(), names(&bed.daemon.root().join("snapshots")));
        let rows: [Row<'_>; 14] = [
            ("new", "none", &[], NotFound),
            ("a", "none", &[], NotFound),
            ("", "none", &[BAD_MAP], NotFound),
            ("new", "a", &[], InvalidArgument),
            ("new", "v", &[], InvalidArgument),
            ("a0", "a", &[], InvalidArgument),
            ("", "a", &[], InvalidArgument),
            ("a", "", &[], AlreadyExists),
            ("v", "c", &[], AlreadyExists),
            ("c", "c", &[], AlreadyExists),
            ("c", "", &[BAD_MAP], AlreadyExists),
            ("", "", &[], InvalidArgument),
            ("", "c", &[BAD_MAP], InvalidArgument),
            ("new", "c", &[BAD_MAP], InvalidArgument),
        ];
        for (key, parent, labels, expected) in rows {
            let what = format!("{key:?} on {parent:?} with {labels:?}");
            assert_eq!(code(bed.client.prepare(key, parent, labels)), expected, "prepare {what}");
            assert_eq!(code(bed.client.view(key, parent, labels)), expected, "view {what}");
        }
        assert_eq!(bed.all(), before);
        assert_eq!(names(&bed.daemon.root().join("snapshots")), directories);
        // Nothing refused has used up a number.
        assert_eq!(bed.prepare("next", "")[0].source, bed.fs(8).display().to_string());
    });
}

/// SEMANTICS A3
#[test]
fn commit_checks_key_then_name_then_kind_then_parent() {
    serve(|bed| {
        populate(bed);
        let before = bed.all();
        let rows: [(&str, &str, &str, Code); 16] = [
            ("new", "none", "", NotFound),
            ("c", "none", "", NotFound),
            ("", "none", "none", NotFound),
            ("c", "a", "", AlreadyExists),
            ("v", "a", "", AlreadyExists),
            ("a", "a", "", AlreadyExists),
            ("c", "v", "", AlreadyExists),
            ("c", "c", "none", AlreadyExists),
            ("", "a", "", InvalidArgument),
            ("", "v", "", InvalidArgument),
            ("new", "v", "", FailedPrecondition),
            ("new", "c", "other", FailedPrecondition),
            ("new", "a", "other", InvalidArgument),
            ("new", "a", "none", InvalidArgument),
            ("new", "a0", "none", NotFound),
            ("new", "a0", "a", FailedPrecondition),
        ];
        for (name, key, parent, expected) in rows {
            let found = code(bed.client.commit_on(name, key, parent, &[("l", "v")]));
            assert_eq!(found, expected, "{key:?} as {name:?} on {parent:?}");
        }
        assert_eq!(bed.all(), before);
        bed.client.commit("new", "a", &[]).unwrap();
        bed.client.commit("new0", "a0", &[]).unwrap();
    });
}

/// SEMANTICS A2, A4
#[test]
fn the_other_calls_tell_what_is_wrong() {
    serve(|bed| {
        populate(bed);
        let client = &bed.client;
        for missing in ["none", ""] {
            assert_eq!(code(client.mounts(missing)), NotFound);
            assert_eq!(code(client.remove(missing)), NotFound);
            assert_eq!(code(client.stat(missing)), NotFound);
            assert_eq!(code(client.usage(missing)), NotFound);
            assert_eq!(code(client.update(update_of(missing, &[]), &[])), NotFound);
            assert_eq!(code(client.update(update_of(missing, &[]), &["parent"])), NotFound);
        }
        assert_eq!(code(client.mounts("c")), FailedPrecondition);
        let refused: Status = client.remove("c").unwrap_err();
        assert_eq!(refused.code(), FailedPrecondition);
        assert!(refused.message().contains("cannot remove snapshot with child"), "{refused}");
        client.cleanup().unwrap();
    });
}

/// SEMANTICS A5
#[test]
fn update_takes_only_labels() {
    serve(|bed| {
        bed.layer("c", "");
        let before = bed.all();
        let masks: [&[&str]; 11] = [
            &["parent"],
            &["kind"],
            &["name"],
            &["created_at"],
            &["updated_at"],
            &["label"],
            &["labelsx"],
            &["Labels"],
            &[""],
            &["labels.l", "parent"],
            &["labels", "kind"],
        ];
        for mask in masks {
            let found = code(bed.client.update(update_of("c", &[("l", "v")]), mask));
            assert_eq!(found, InvalidArgument, "{mask:?}");
        }
        assert_eq!(bed.all(), before);
    });
}

/// SEMANTICS F1
#[test]
fn bad_filters_are_the_callers_mistake() {
    serve(|bed| {
        bed.layer("c", "");
        let bad = [
            "name=x",
            "name===x",
            "name==",
            "name==/a/b",
            ",name==x",
            "name==x,",
            "name==a ",
            "name .x==1",
            "labels.a-b==x",
            r#"name~="a\d""#,
            r#"name=="x"#,
            "name==!x",
            "name\0==x",
            "name==\u{fffd}",
        ];
        for filter in bad {
            assert_eq!(code(bed.client.list(&[filter])), InvalidArgument, "{filter:?}");
            assert_eq!(code(bed.client.list(&["name==c", filter])), InvalidArgument, "{filter:?}");
        }
        // An expression that is no regular one matches nothing.
        assert!(bed.client.list(&["name~=("]).unwrap().is_empty());
        for good in ["", "foo!=bar", "parent", "name.more==c", "kind==committed, name ~= ^c$"] {
            assert_eq!(bed.client.list(&[good]).unwrap().len(), 1, "{good:?}");
        }
        for none in ["kind==Committed", "name=='c'", "nothing", "labels.l"] {
            assert!(bed.client.list(&[none]).unwrap().is_empty(), "{none:?}");
        }
    });
}
