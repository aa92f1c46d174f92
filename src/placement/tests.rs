use std::path::{Path, PathBuf};

use super::identity::{Identity, Record};
use super::volume::{Found, NoVolume, find};
use super::*;
use crate::config::Field;
use crate::mountinfo::MountPoint;

const CONFIG: &str = r#"
[labels]
allow = ["store", "retain", "resume", "volatile", "mode"]
[stores.fast]
type = "dir"
path = "/fast"
[stores.v]
type = "volume"
match = '^/pods/(?P<pod>[^/]+)/volumes/(?P<name>[^/]+)$'
[[rules]]
namespace = "k8s.io"
store = "v"
volume = { pod = "{pod.uid}", name = "rootfs" }
otherwise = "next"
[[rules]]
namespace = "k8s.io"
store = "fast"
retain = true
[[rules]]
snapshotter = "other"
key = '^c[0-9]+$'
labels = { tier = "hot" }
store = "fast"
volatile = true
"#;

fn policy(text: &str) -> Policy {
    Policy::new(&Config::parse(Path::new("c"), text).unwrap())
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn decide(
    policy: &Policy,
    snapshotter: &str,
    key: &str,
    pairs: &[(&str, &str)],
) -> Result<Decision> {
    let labels = labels(pairs);
    let hint = KeyHint::of(key);
    policy.decide(&Request { snapshotter, namespace: hint.namespace, hint, labels: &labels })
}

fn store(decision: &Decision) -> &str {
    match &decision.target {
        Target::Store(store) | Target::Volume { store, .. } => store,
    }
}

/// SEMANTICS P2
#[test]
fn the_first_matching_rule_decides() {
    let policy = policy(CONFIG);
    let cri = decide(&policy, "over", "k8s.io/1/c1", &[]).unwrap();
    assert_eq!(cri.target, Target::Volume { store: "v".to_owned(), rule: 0 });
    assert!(cri.retains() && !cri.volatile && cri.reason == "rule 1");
    let hot = decide(&policy, "other", "default/1/c1", &[("tier", "hot")]).unwrap();
    assert!(store(&hot) == "fast" && hot.volatile && hot.reason == "rule 3");
    for (snapshotter, key, tier) in
        [("over", "default/1/c1", "hot"), ("other", "default/1/x", "hot"), ("other", "d/1/c1", "")]
    {
        let none = decide(&policy, snapshotter, key, &[("tier", tier)]).unwrap();
        assert!(store(&none) == ROOT_STORE && none.reason.starts_with("default"), "{key}");
    }
}

#[test]
fn without_a_volume_the_rules_below_decide() {
    let policy = policy(CONFIG);
    let labels = Labels::new();
    let hint = KeyHint::of("k8s.io/1/c1");
    let request = Request { snapshotter: "s", namespace: "k8s.io", hint, labels: &labels };
    let next = policy.decide_without_volume(0, &request).unwrap();
    assert_eq!((next.target.clone(), next.retains()), (Target::Store("fast".to_owned()), true));
}

/// SEMANTICS P3
#[test]
fn labels_override_where_allowed_and_are_refused_elsewhere() {
    const PREFIX: &str = "containerd.io/snapshot/overstream.";
    let label = |word: &str| format!("{PREFIX}{word}");
    let with = |policy: &Policy, word: &str, value: &str| {
        decide(policy, "s", "d/1/c", &[(&label(word), value)])
    };
    let policy_all = policy(CONFIG);
    assert_eq!(store(&with(&policy_all, "store", "fast").unwrap()), "fast");
    assert!(with(&policy_all, "retain", "true").unwrap().retains());
    assert_eq!(
        with(&policy_all, "resume", "c0").unwrap().resume,
        Resume::Required("c0".to_owned())
    );
    let refused = [
        ("store", "/etc", "no store of this name"),
        ("store", "v", "only a rule"),
        ("mode", "fuse", "not available"),
        ("retain", "yes", "\"true\" or \"false\""),
        ("sotre", "fast", "no such label"),
        ("pod-uid", "u", "does not allow"),
    ];
    for (word, value, message) in refused {
        let error = with(&policy_all, word, value).unwrap_err().to_string();
        assert!(error.contains(message), "{word}={value}: {error}");
    }
    // A volume's default does not follow the upper to another store; a resumed upper stays retained.
    let elsewhere = decide(&policy_all, "s", "k8s.io/1/c", &[(&label("store"), "root")]).unwrap();
    assert!(!elsewhere.retains() && elsewhere.retains_resumed());
    let given_up = [(&*label("retain"), "false"), (&*label("resume"), "c0")];
    assert!(!decide(&policy_all, "s", "d/1/c", &given_up).unwrap().retains_resumed());
    let both = decide(
        &policy_all,
        "s",
        "d/1/c",
        &[(&label("retain"), "true"), (&label("volatile"), "true")],
    );
    assert!(both.unwrap_err().to_string().contains("volatile"));
    let none = policy("");
    for word in ["store", "mode", "retain", "resume", "volatile"] {
        let value = if word == "mode" { "kernel" } else { "true" };
        assert!(
            with(&none, word, value).unwrap_err().to_string().contains("does not allow"),
            "{word}"
        );
    }
}

fn identity(uid: &str, name: &str) -> Identity {
    let labels = [("io.kubernetes.pod.uid", uid), ("io.kubernetes.container.name", name)];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Identity::from_record(&Record { labels, ..Record::default() }, "id")
}

fn mounts(paths: &[&str]) -> Vec<MountPoint> {
    let mount = |path: &&str| MountPoint {
        id: 1,
        device: "8:1".to_owned(),
        root: "/".into(),
        path: PathBuf::from(path),
        fs_type: "ext4".to_owned(),
        read_only: false,
    };
    paths.iter().map(mount).collect()
}

/// SEMANTICS P6
#[test]
fn a_container_gets_its_own_pods_volume_or_none() {
    let policy = policy(CONFIG);
    let rule = &policy.rules[0];
    let StoreKind::Volume(pattern) = &policy.stores["v"].kind else { unreachable!() };
    let host = mounts(&[
        "/",
        "/pods/u1/volumes/rootfs",
        "/pods/u2/volumes/rootfs",
        "/pods/u1/volumes/data",
        "/pods/u1",
    ]);
    let found = |identity: &Identity, host: &[MountPoint]| find(pattern, rule, identity, host);
    for uid in ["u1", "u2"] {
        let expected = Found {
            mount: format!("/pods/{uid}/volumes/rootfs").into(),
            subdirectory: "web".to_owned(),
        };
        assert_eq!(found(&identity(uid, "web"), &host), Ok(expected));
    }
    assert!(matches!(found(&identity("u3", "web"), &host), Err(NoVolume::None(_))));
    assert_eq!(found(&identity("", "web"), &host), Err(NoVolume::Unknown(Field::PodUid)));
    assert_eq!(found(&identity("u1", ""), &host), Err(NoVolume::Unknown(Field::ContainerName)));
    // The same mount point twice is one volume, mounted over itself.
    let stacked = mounts(&["/pods/u1/volumes/rootfs", "/pods/u1/volumes/rootfs"]);
    assert!(found(&identity("u1", "web"), &stacked).is_ok());
}

#[test]
fn a_pattern_is_for_the_whole_path() {
    for pattern in ["/pods/(?P<pod>[^/]+)/a|(?P<x>none)", "^/pods/(?P<pod>[^/]+)/a$"] {
        let text = format!(
            "[stores.v]\ntype = \"volume\"\nmatch = '{pattern}'\n\
             [[rules]]\nstore = \"v\"\nvolume = {{ pod = \"{{pod.uid}}\" }}"
        );
        let policy = policy(&text);
        let StoreKind::Volume(regex) = &policy.stores["v"].kind else { unreachable!() };
        let found =
            |path| find(regex, &policy.rules[0], &identity("u1", "web"), &mounts(&[path])).is_ok();
        assert!(found("/pods/u1/a"));
        assert!(!found("/pods/u1/a/b") && !found("/x/pods/u1/a"), "{pattern}");
    }
}

#[test]
fn several_matching_volumes_are_no_choice() {
    let text = "[stores.v]\ntype = \"volume\"\nmatch = '^/pods/(?P<pod>[^/]+)/volumes/.*$'\n\
                [[rules]]\nstore = \"v\"\nvolume = { pod = \"{pod.uid}\" }";
    let policy = policy(text);
    let StoreKind::Volume(pattern) = &policy.stores["v"].kind else { unreachable!() };
    let host = mounts(&["/pods/u1/volumes/a", "/pods/u1/volumes/b"]);
    let found = find(pattern, &policy.rules[0], &identity("u1", "web"), &host);
    assert!(matches!(found, Err(NoVolume::Several(paths)) if paths.len() == 2));
}

#[test]
fn a_volume_that_is_seen_to_be_read_only_is_none() {
    let text = "[stores.v]\ntype = \"volume\"\nmatch = '^/pods/(?P<pod>[^/]+)$'\n\
                [[rules]]\nstore = \"v\"\nvolume = { pod = \"{pod.uid}\" }";
    let policy = policy(text);
    let StoreKind::Volume(pattern) = &policy.stores["v"].kind else { unreachable!() };
    let mut host = mounts(&["/pods/u1", "/pods/u1"]);
    host[1].read_only = true;
    let find = |host: &[MountPoint]| find(pattern, &policy.rules[0], &identity("u1", "web"), host);
    assert!(matches!(find(&host), Err(NoVolume::ReadOnly(_))));
    host.reverse();
    find(&host).unwrap();
}

#[test]
fn a_sandbox_is_known_by_its_record() {
    let labels = [("io.cri-containerd.kind".to_owned(), "sandbox".to_owned())].into();
    assert!(Identity::from_record(&Record { labels, ..Record::default() }, "id").sandbox);
    assert!(!identity("u", "c").sandbox);
}
